"""2D point tracks: the one form in which motion travels from any control to the generator.

Coordinates are pixels of the frame that the tracks belong to, x to the right, y down, continuous: a frame of
`width` x `height` spans [0, width) x [0, height). A track outside the frame is invisible there, never clamped to the
border (paper, eq. 1: `c_m[t, floor(y/s), floor(x/s)] = v[t, n] * phi_n`).

Track files are JSON (`Tracks.to_json`, `Tracks.from_json`):

    {"format": "motionstream-tracks", "version": 1,
     "width": 832, "height": 480,        # size of the frame that the points are pixels of
     "fps": 16.0, "frames": 2,           # 1 / fps seconds between two rows; "frames" may be left out with tracks
     "tracks": [{"id": 7,                # ID number in [0, 10000), of no other track; drawn if left out
                 "points": [[10.0, 20.0], [11.5, 20.0]],
                 "visible": [true, true]}]}     # all true if left out
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from motionstream.errors import InputError

MAX_ID = 10_000  # ID numbers are drawn from [0, MAX_ID)
MAX_TRACKS = 2_500  # the paper's 50 x 50 grid
MAX_FRAMES = 100_000
EXPLAINS = 0.1, 0.3  # share of how tracks part that turning must explain to be told from chance, and from bending
FORMAT, VERSION = "motionstream-tracks", 1


@dataclass(frozen=True, eq=False)
class Tracks:
    """N point tracks over T frames. Arrays are converted, copied and made read-only.

    points: float32 [T, N, 2], pixels; visible: bool [T, N]; ids: int64 [N], 0 <= id < MAX_ID, the number that the
    sinusoidal embedding phi_n encodes. Raises `InputError` on wrong shapes, values that are not finite, IDs out of
    range and more than MAX_TRACKS tracks.
    """

    points: np.ndarray
    visible: np.ndarray
    ids: np.ndarray

    def __post_init__(self):
        points = _array("points", self.points, np.float32)
        visible = _array("visible", self.visible, bool)
        ids = _array("ids", self.ids, np.int64)
        if points.ndim != 3 or points.shape[2] != 2:
            raise InputError(f"points have shape {list(points.shape)}; expected [frames, tracks, 2]")
        frames, count = points.shape[:2]
        if count > MAX_TRACKS:
            raise InputError(f"{count} tracks; at most {MAX_TRACKS}: thin them out")
        if visible.shape != (frames, count):
            raise InputError(f"visible has shape {list(visible.shape)}; the points need {[frames, count]}")
        if ids.shape != (count,):
            raise InputError(f"ids have shape {list(ids.shape)}; the points need {[count]}")
        if not np.isfinite(points).all():
            frame, track = np.argwhere(~np.isfinite(points))[0][:2]
            x, y = points[frame, track]
            raise InputError(f"track {track} is at ({x}, {y}) in frame {frame}; coordinates must be finite numbers")
        if ((ids < 0) | (ids >= MAX_ID)).any():
            bad = ids[(ids < 0) | (ids >= MAX_ID)][0]
            raise InputError(f"track ID {bad} is out of range; IDs are 0 to {MAX_ID - 1}")
        for name, array in (("points", points), ("visible", visible), ("ids", ids)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def T(self) -> int:
        """Number of frames."""
        return self.points.shape[0]

    @property
    def N(self) -> int:
        """Number of tracks."""
        return self.points.shape[1]

    @classmethod
    def empty(cls, frames: int) -> Tracks:
        """No tracks over `frames` frames."""
        return cls(np.zeros((frames, 0, 2)), np.zeros((frames, 0), bool), np.zeros(0, np.int64))

    @classmethod
    def rigid_grid(
        cls, center_path: np.ndarray, spacing: float, size: int, ids: np.ndarray, turned: np.ndarray | float = 0.0
    ) -> Tracks:
        """size x size tracks, `spacing` pixels apart, that move rigidly with their centre `center_path` [T, 2].

        Row by row from the top left; `ids` has size * size numbers; turned: radians in each frame, [T], clockwise. All
        visible: see `in_frame`.
        """
        path = np.asarray(center_path, np.float64)
        if path.ndim != 2 or path.shape[1] != 2:
            raise InputError(f"the grid's path has shape {list(path.shape)}; expected [frames, 2]")
        steps = (np.arange(size) - (size - 1) / 2) * spacing
        offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        cos, sin = np.cos(turned), np.sin(turned)
        turn = np.stack(np.broadcast_arrays(cos, sin, -sin, cos), -1).reshape(-1, 2, 2)
        return cls(path[:, None] + offsets @ turn, np.ones((len(path), size * size), bool), ids)

    @classmethod
    def concatenate(cls, parts: Sequence[Tracks]) -> Tracks:
        """All tracks of `parts` (at least one) side by side; the parts must have the same number of frames."""
        lengths = [part.T for part in parts]
        if len(set(lengths)) != 1:
            raise InputError(f"tracks of {lengths} frames cannot be joined; give them the same number of frames")
        return cls(
            np.concatenate([part.points for part in parts], axis=1),
            np.concatenate([part.visible for part in parts], axis=1),
            np.concatenate([part.ids for part in parts]),
        )

    def rows(self, start: int, stop: int) -> Tracks:
        """Frames start <= t < stop, both in [0, T]."""
        if not 0 <= start <= stop <= self.T:
            raise InputError(f"frames {start} to {stop} are not within the tracks' {self.T} frames")
        return Tracks(self.points[start:stop], self.visible[start:stop], self.ids)

    def resample(self, frames: int) -> Tracks:
        """The same motion in `frames` frames: first and last frame kept, linear in between.

        A new frame between two old ones is visible where both are. One frame is held; tracks without any frame are
        nowhere, so they come back invisible.
        """
        if self.T == 0:
            return Tracks(np.zeros((frames, self.N, 2)), np.zeros((frames, self.N), bool), self.ids)
        at = np.arange(frames) * (self.T - 1) / max(frames - 1, 1)
        low = np.floor(at).astype(int)
        high = np.ceil(at).astype(int)
        weight = (at - low)[:, None, None]
        points = self.points[low] * (1 - weight) + self.points[high] * weight
        return Tracks(points, self.visible[low] & self.visible[high], self.ids)

    def retime(self, from_fps: float, to_fps: float) -> Tracks:
        """The same motion at another rate, frames a second. `InputError` above MAX_FRAMES frames."""
        frames = math.floor((self.T - 1) * to_fps / from_fps + 0.5) + 1 if self.T else 0
        if frames > MAX_FRAMES:
            raise InputError(f"the tracks last {frames} frames at {to_fps:g} fps; at most {MAX_FRAMES}: shorten them")
        return self.resample(frames)

    def scale(self, from_size: tuple[float, float], to_size: tuple[float, float]) -> Tracks:
        """The tracks after the frame is resized from `from_size` to `to_size`, both (width, height)."""
        _check_size(from_size)
        _check_size(to_size)
        factor = np.divide(to_size, from_size)
        return Tracks(self.points * factor, self.visible, self.ids)

    def crop(self, x: float, y: float, width: float, height: float) -> Tracks:
        """The tracks after the frame is cut to the box at (x, y); invisible outside it."""
        return Tracks(self.points - np.array([x, y]), self.visible, self.ids).in_frame(width, height)

    def fit(self, from_size: tuple[float, float], to_size: tuple[float, float]) -> Tracks:
        """The tracks after `motionstream.video.fit_image`: centre crop to the new aspect, then resize."""
        _check_size(from_size)
        _check_size(to_size)
        (width, height), (to_width, to_height) = from_size, to_size
        factor = max(to_width / width, to_height / height)
        w, h = to_width / factor, to_height / factor
        return self.crop((width - w) / 2, (height - h) / 2, w, h).scale((w, h), to_size)

    def in_frame(self, width: float, height: float) -> Tracks:
        """The same points; invisible where they are outside [0, width) x [0, height)."""
        inside = ((self.points >= 0) & (self.points < np.array([width, height]))).all(axis=-1)
        return Tracks(self.points, self.visible & inside, self.ids)

    def to_json(self, width: int, height: int, fps: float) -> str:
        """The tracks as the JSON text that this module's docstring describes; `from_json` gives back the same bits."""
        points, visible = self.points.swapaxes(0, 1).tolist(), self.visible.T.tolist()
        tracks = [
            {"id": i, "points": p, "visible": v} for i, p, v in zip(self.ids.tolist(), points, visible, strict=True)
        ]
        head = {"format": FORMAT, "version": VERSION, "width": width, "height": height, "fps": fps, "frames": self.T}
        return json.dumps({**head, "tracks": tracks})

    @staticmethod
    def from_json(text: str | bytes) -> tuple[Tracks, tuple[float, float], float]:
        """Reads `to_json`'s text -> (tracks, (width, height), fps). Raises `InputError` naming what is wrong."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the tracks are not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'the tracks are not a track file: "format" must be "{FORMAT}"')
        if data.get("version") != VERSION:
            raise InputError(f"track file version {data.get('version')!r} is not known; this program reads {VERSION}")
        width, height, fps = (_positive(data, key) for key in ("width", "height", "fps"))
        tracks = data.get("tracks")
        if not isinstance(tracks, list) or not all(isinstance(track, dict) for track in tracks):
            raise InputError('"tracks" must be a list of objects with "points"')
        if len(tracks) > MAX_TRACKS:
            raise InputError(f"{len(tracks)} tracks; at most {MAX_TRACKS}: thin them out")
        return _tracks_from(tracks, data.get("frames")), (width, height), fps


def angles(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """By how much points that were at `begin` [K, 2] have turned about their middle when they are at `end` [T, K, 2]:
    radians [T] in [-pi, pi], clockwise as y points down, by least squares (Kabsch 1976).

    Less, down to nothing, where turning explains less than EXPLAINS of how they have moved otherwise than their middle:
    one that is held still beside several that go alike turns nothing.
    """
    away, now = begin - begin.mean(0), end - end.mean(1, keepdims=True)
    across = (away[:, 0] * now[..., 1] - away[:, 1] * now[..., 0]).sum(1)
    along, moved = (away * now).sum((1, 2)), np.square(now - away).sum((1, 2))
    explained = 2 * (np.hypot(across, along) - along) / np.maximum(moved, np.finfo(float).tiny)
    none, all_of_it = EXPLAINS
    return np.arctan2(across, along) * np.clip((explained - none) / (all_of_it - none), 0, 1)


@dataclass(frozen=True, eq=False)
class ChunkRequest:
    """What a `TrackSource` may know when the tracks of one chunk are due.

    index: chunk number 0, 1, ...; start: stream index of its first frame; frames: 9 for chunk 0 (whose frame 0 is the
    input image), 12 afterwards; width, height: generated frame, pixels; fps: playback rate; history: newest generated
    frames by stream index, uint8 RGB [H, W, 3] (at chunk 0: {0: image}); things: which things points [K, 2] of the
    newest frame lie on, pixels, and which parts of these that go as one -> numbers [2, K], 0 for none, or where the
    model has no idea of things.
    """

    index: int
    start: int
    frames: int
    width: int
    height: int
    fps: float
    history: Mapping[int, np.ndarray]
    things: Callable[[np.ndarray], np.ndarray] = lambda points: np.zeros((2, len(points)), int)


class TrackSource(Protocol):
    """Where tracks come from. Asked for chunk k only when chunk k is about to be generated, never for the future."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        """The tracks of one chunk, T == request.frames, in pixels of the generated frame."""
        ...


class StaticTracks:
    """A `TrackSource` of ready-made tracks: stream frame f uses row f; after the end the last row is held.

    `tracks` are in pixels of the generated frame and at the playback rate: see `motionstream.trajectories`.
    """

    def __init__(self, tracks: Tracks):
        self.tracks = tracks

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        if self.tracks.T == 0:
            return Tracks.empty(request.frames)
        at = np.minimum(np.arange(request.start, request.start + request.frames), self.tracks.T - 1)
        held = Tracks(self.tracks.points[at], self.tracks.visible[at], self.tracks.ids)
        return held.in_frame(request.width, request.height)


def join(blocks: Sequence[Tracks]) -> Tracks:
    """Blocks of frames, one after the other -> one: all their tracks, invisible in blocks that lack them.

    There a track keeps the nearest place where it is known. Of too many, the MAX_TRACKS that are seen longest are left.
    At least one block.
    """
    ids, blocks = _longest(blocks)
    length = sum(block.T for block in blocks)
    points, known = np.zeros((length, len(ids), 2), np.float32), np.zeros((length, len(ids)), bool)
    visible, start = known.copy(), 0
    for block in blocks:
        rows, columns = slice(start, start + block.T), np.searchsorted(ids, block.ids)
        points[rows, columns], visible[rows, columns], known[rows, columns] = block.points, block.visible, True
        start += block.T
    return Tracks(held(points, known), visible, ids)


def held(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Points [T, N, 2] that stay where they were `known` last, bool [T, N], or will be first."""
    if not len(points):
        return points
    row = np.where(known, np.arange(len(points))[:, None], -1)
    before = np.maximum.accumulate(row, axis=0)
    return points[np.where(before < 0, known.argmax(axis=0), before), np.arange(points.shape[1])]


def _longest(blocks: Sequence[Tracks]) -> tuple[np.ndarray, Sequence[Tracks]]:
    """The IDs of the MAX_TRACKS tracks that are seen longest, in order, and the blocks with those tracks only."""
    ids, place = np.unique(np.concatenate([block.ids for block in blocks]), return_inverse=True)
    if len(ids) <= MAX_TRACKS:
        return ids, blocks
    seen = np.bincount(place, np.concatenate([block.visible.sum(axis=0) for block in blocks]))
    ids = np.sort(ids[np.argsort(-seen, kind="stable")[:MAX_TRACKS]])
    kept = [np.isin(block.ids, ids) for block in blocks]
    cut = [Tracks(b.points[:, k], b.visible[:, k], b.ids[k]) for b, k in zip(blocks, kept, strict=True)]
    return ids, cut


def draw_ids(n: int, rng: np.random.Generator, taken: Iterable[int] = ()) -> np.ndarray:
    """n random ID numbers, int64 [n], all different and, while enough numbers are left, none of `taken`."""
    free = np.setdiff1d(np.arange(MAX_ID), np.fromiter(taken, np.int64))
    return rng.choice(free if len(free) >= n else MAX_ID, n, replace=False).astype(np.int64)


def _array(name: str, value: object, dtype: type) -> np.ndarray:
    """A copy of `value` as an array of `dtype`; `InputError` where that would lose its meaning."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes inf, which is refused by name
            raw = np.asarray(value)
            array = np.array(raw, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} must be numbers in lists of equal length") from error
    if raw.dtype.kind not in "biuf" or (dtype is not np.float32 and not np.array_equal(array, raw)):
        raise InputError(f"{name} must be {'true or false' if dtype is bool else 'numbers'}, not {_sample(raw)!r}")
    return array


def _sample(array: np.ndarray) -> object:
    return array.flat[0].item() if array.size and hasattr(array.flat[0], "item") else array.dtype.name


def _check_size(size: tuple[float, float]) -> None:
    if not (size[0] > 0 and size[1] > 0):
        raise InputError(f"a frame of {size[0]}x{size[1]} pixels has no area")


def _positive(data: dict, key: str) -> float:
    value = data.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-3 <= value <= 1e6:
        raise InputError(f'"{key}" of the track file is {value!r}; expected a number from 0.001 to 1000000')
    return value


def _tracks_from(tracks: list[dict], frames: object) -> Tracks:
    """The "tracks" list of a track file, and its "frames" (None: as many as the first track has) -> Tracks."""
    rows = [_array(f"points of track {n}", track.get("points"), np.float32) for n, track in enumerate(tracks)]
    frames = len(rows[0]) if frames is None and rows and rows[0].ndim else frames
    if not isinstance(frames, int) or isinstance(frames, bool) or not 0 <= frames <= MAX_FRAMES:
        raise InputError(f'"frames" of the track file is {frames!r}; expected a number from 0 to {MAX_FRAMES}')
    points = np.zeros((frames, len(tracks), 2), np.float32)
    visible = np.ones((frames, len(tracks)), bool)
    for n, track in enumerate(tracks):
        flags = _array(f"visible of track {n}", track.get("visible", [True] * frames), bool)
        if rows[n].shape != (frames, 2) and not (frames == 0 and rows[n].size == 0):
            raise InputError(f"points of track {n} have shape {list(rows[n].shape)}; expected {[frames, 2]}")
        if flags.shape != (frames,):
            raise InputError(f"visible of track {n} has shape {list(flags.shape)}; expected {[frames]}")
        points[:, n], visible[:, n] = rows[n].reshape(frames, 2), flags
    return Tracks(points, visible, _ids_from(tracks))


def _ids_from(tracks: list[dict]) -> np.ndarray:
    """The "id" of every track of a file; those left out are drawn."""
    given = [track["id"] for track in tracks if "id" in track]
    for value in given:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_ID:
            raise InputError(f"track ID {value!r} is not a whole number from 0 to {MAX_ID - 1}")
    if twice := [value for value, times in Counter(given).items() if times > 1]:
        raise InputError(f"track ID {twice[0]} is given to more than one track; give each its own, or leave IDs out")
    drawn = iter(draw_ids(len(tracks) - len(given), np.random.default_rng(0), given))
    return np.array([track["id"] if "id" in track else next(drawn) for track in tracks], np.int64)
