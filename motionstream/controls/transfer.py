"""Motion transfer: the tracks of a clip, or of a live camera, drive another picture.

A clip is read and tracked piece by piece, while its motion already drives the stream (`ClipMotion`); a webcam's
pictures come as control messages (`WebcamMotion`). Both then do the same (`Carried`): fit the clip's frame to the
picture, and amplify. Amplifying by a moves a track to o + a (p - o), where o is its origin: where it was in the
stream's first frame. A track found later gets the origin that brings it here along with its nearest neighbours.

Played in reverse, a clip begins at its end, so that is the frame that the picture corresponds to. A loop goes forwards
and backwards in turn: nothing jumps, and the picture comes back to where it began.

Webcam messages: {"kind": "webcam", "jpeg": base64, "t": milliseconds}. They show the visitor, so none is recorded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from motionstream.controls.trackers import MAX_GRID, MIN_GRID, TRACKERS, Seeds, Tracker, open_tracker
from motionstream.errors import InputError
from motionstream.tracks import ChunkRequest, Tracks, join
from motionstream.video import Clip, fit_image, read_image

MAX_SECONDS = 60.0  # of a clip that drives a stream
TRACKING_SIDE = 512  # pixels of the longer side of what trackers see
BLOCK = 12  # frames that are tracked at once
FITS = ("crop", "stretch", "align")
MIN_AMPLIFY, MAX_AMPLIFY = 0.25, 2.0
MAX_REGION = 200  # corners
NEIGHBOURS = 4  # tracks that tell a new one's origin
LATE = 4  # one of so many of a clip's first points comes late
MAX_WEBCAM_BYTES = 200_000  # of one picture, decoded
MAX_WEBCAM_SIDE = 1_280
MAX_WAITING = 60  # webcam pictures that wait for a busy generator; then every second one is dropped

Point = tuple[float, float]
Pair = tuple[float, float, float, float]  # a place in the clip, and the place in the picture that it goes to


@dataclass(frozen=True)
class Settings:
    """What to take from a clip and how; places are shares of the frame's or the picture's width and height.

    start, seconds: the piece of the clip; grid: see `Seeds`; region: polygon, None for everywhere; fit: one of FITS;
    pairs: for "align", two places in the clip and in the picture; amplify: of the motion; tracker: see TRACKERS.
    Raises `InputError` on values out of range.
    """

    start: float = 0.0
    seconds: float = 10.0
    grid: int = 20
    region: tuple[Point, ...] | None = None
    fit: str = "crop"
    pairs: tuple[Pair, Pair] = ((0.3, 0.5, 0.3, 0.5), (0.7, 0.5, 0.7, 0.5))
    amplify: float = 1.0
    reverse: bool = False
    loop: bool = False
    tracker: str = "auto"

    def __post_init__(self):
        _within("start", self.start, 0.0, 86_400.0)
        _within("seconds", self.seconds, 0.05, MAX_SECONDS)
        _within("grid", self.grid, MIN_GRID, MAX_GRID)
        _within("amplify", self.amplify, MIN_AMPLIFY, MAX_AMPLIFY)
        if self.fit not in FITS or self.tracker not in TRACKERS:
            given = f"fit {self.fit[:40]!r} or tracker {self.tracker[:40]!r}"
            raise InputError(f"{given} is not known; there are {', '.join(FITS)} and {', '.join(TRACKERS)}")
        if self.region is not None and not 3 <= len(self.region) <= MAX_REGION:
            raise InputError(f"the region has {len(self.region)} corners; expected 3 to {MAX_REGION}: draw it anew")
        a, b = self.pairs
        if self.fit == "align" and np.hypot(a[0] - b[0], a[1] - b[1]) < 0.02:
            raise InputError("the two points in the clip are the same: move them apart")

    @classmethod
    def from_json(cls, data: object) -> Settings:
        """Settings as a browser sends them; what is left out keeps its default. `InputError` on what is wrong."""
        if not isinstance(data, dict):
            raise InputError(f"motion settings must be an object, not {type(data).__name__}")
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        for key, value in known.items():
            default = getattr(cls, key)
            if isinstance(default, bool | str) and not isinstance(value, type(default)):
                raise InputError(f'"{key}" must be {type(default).__name__}, not {type(value).__name__}')
        if "grid" in known:
            _within("grid", known["grid"], MIN_GRID, MAX_GRID)
            known["grid"] = round(known["grid"])
        if known.get("region") is not None:
            known["region"] = _places(known["region"], "region", 2)
        if "pairs" in known:
            known["pairs"] = _places(known["pairs"], "pairs", 4)
            if len(known["pairs"]) != 2:
                raise InputError(f'"pairs" must be two pairs of places, not {len(known["pairs"])}')
        return cls(**known)

    def to_json(self) -> dict:
        """JSON types, of which `from_json` makes the same."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def tracking(self) -> tuple:
        """What tracks depend on: equal here, equal tracks."""
        return self.start, self.seconds, self.grid, self.region, self.tracker

    def open_tracker(self, live: bool = True) -> Tracker:
        """A fresh tracker for these settings; live: see `motionstream.controls.trackers.open_tracker`."""
        return open_tracker(self.tracker, Seeds(self.grid, self.region), live)

    def fitted(self, size: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
        """Affine map [2, 3] from pixels of the clip's frame of `size` to the picture's, both (width, height)."""
        (w, h), (width, height) = size, picture
        if self.fit == "stretch":
            return np.array([[width / w, 0, 0], [0, height / h, 0]])
        if self.fit == "crop":
            scale = max(width / w, height / h)
            return np.array([[scale, 0, (width - scale * w) / 2], [0, scale, (height - scale * h) / 2]])
        (a, to_a), (b, to_b) = (
            (complex(x * w, y * h), complex(to_x * width, to_y * height)) for x, y, to_x, to_y in self.pairs
        )
        turn = (to_b - to_a) / (b - a)  # rotation and scale
        shift = to_a - turn * a
        return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def tracking_size(width: int, height: int) -> tuple[int, int]:
    """The size (width, height) that trackers see of a clip: at most TRACKING_SIDE, same aspect."""
    scale = min(1.0, TRACKING_SIDE / max(width, height))
    return max(16, round(width * scale)), max(16, round(height * scale))


def track_clip(
    clip: Clip, settings: Settings, fps: float, tracker: Tracker, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[tuple[np.ndarray, Tracks]]:
    """Tracks a piece of a clip -> (frames read, tracks of the frames settled with them), block by block.

    Frames are uint8 RGB at `tracking_size`; over all blocks, tracks are of as many frames. `InputError` if there is
    none. tracker: a fresh one, see `Settings.open_tracker`; cancelled: see `Clip.frames`.
    """
    size = tracking_size(clip.width, clip.height)
    frames = islice(clip.frames(fps, size, settings.start, cancelled), max(1, round(settings.seconds * fps)))
    count = 0
    while (block := list(islice(frames, BLOCK))) and not cancelled():
        count += len(block)
        block = np.stack(block)
        yield block, tracker.follow(block)
    if cancelled():
        return
    if not count:
        raise InputError(f"the clip has no frame at {settings.start:g} seconds: start earlier")
    yield np.zeros((0, size[1], size[0], 3), np.uint8), tracker.finish()


@dataclass(frozen=True)
class ClipRecipe:
    """A `SourceRecipe`: a clip's motion.

    path: of the file, which must stay while the stream runs; fps: the stream's; blocks: tracks of the whole piece as
    `track_clip` gives them, if it has been tracked already; another: whether the picture is not the clip's own frame.
    """

    path: str
    settings: Settings
    fps: float
    blocks: tuple[Tracks, ...] | None = None
    another: bool = False

    def build(self) -> ClipMotion:
        clip = Clip.open(self.path)
        size = tracking_size(clip.width, clip.height)
        if self.blocks is not None:
            return ClipMotion(iter(self.blocks), size, self.settings, self.another)
        found = track_clip(clip, self.settings, self.fps, self.settings.open_tracker())
        return ClipMotion((tracks for _, tracks in found), size, self.settings, self.another)

    def describe(self) -> dict:
        facts = {"fps": self.fps, "another": self.another, "settings": self.settings.to_json()}
        return {"kind": "clip", "sha256": _digest(Path(self.path)), **facts}


@dataclass(frozen=True)
class WebcamRecipe:
    """A `SourceRecipe`: the motion in front of the visitor's camera."""

    settings: Settings

    def build(self) -> WebcamMotion:
        return WebcamMotion(self.settings)

    def describe(self) -> dict:
        return {"kind": "webcam", "settings": self.settings.to_json()}


@dataclass
class Carried:
    """Carries tracks from the clip's frame to the picture; remembers the origins of the tracks that it has seen."""

    settings: Settings
    origins: dict[int, np.ndarray] = field(default_factory=dict)  # id -> [2], pixels of the picture

    def carry(self, tracks: Tracks, size: tuple[int, int], request: ChunkRequest) -> Tracks:
        """tracks: pixels of the clip's frame of `size` (width, height) -> pixels of the picture."""
        affine = self.settings.fitted(size, (request.width, request.height))
        points = tracks.points @ affine[:, :2].T + affine[:, 2]
        if self.settings.amplify != 1:
            origins = self._find_origins(points, tracks)
            points = origins + self.settings.amplify * (points - origins)
        return Tracks(points, tracks.visible, tracks.ids).in_frame(request.width, request.height)

    def forget(self, but: np.ndarray) -> None:
        """Of an endless stream, all tracks but these: their numbers may come again, of other points."""
        self.origins = {track: self.origins[track] for track in but.tolist() if track in self.origins}

    def _find_origins(self, points: np.ndarray, tracks: Tracks) -> np.ndarray:
        """Origins [N, 2] of the tracks, in the order in which they come into sight; of no account until they do."""
        ids = tracks.ids.tolist()
        known = np.array([track in self.origins for track in ids], bool)
        origins = np.array([self.origins.get(track, (0, 0)) for track in ids], np.float64).reshape(-1, 2)
        first = np.where(tracks.visible.any(axis=0), tracks.visible.argmax(axis=0), tracks.T)
        for frame in np.unique(first[~known & (first < tracks.T)]):
            new = ~known & (first == frame)
            here, seen = points[frame], np.flatnonzero(known & tracks.visible[frame])  # others may be anywhere
            origins[new] = here[new]
            for n in np.flatnonzero(new) if len(seen) else ():
                nearest = seen[np.linalg.norm(here[seen] - here[n], axis=1).argsort()[:NEIGHBOURS]]
                origins[n] -= (here - origins)[nearest].mean(axis=0)
            self.origins |= {ids[n]: origins[n] for n in np.flatnonzero(new)}
            known |= new
        return origins


class ClipMotion:
    """A `BaseSource`: a clip's tracks, read from `blocks` no further than the stream has come.

    blocks: tracks of frame after frame, in pixels of a frame of `size` (width, height); another: see `ClipRecipe`. Then
    its things lie elsewhere than the clip's, which must not tear them: some points come into sight in the second frame,
    as a tracker's do while others go on.
    """

    kinds: frozenset[str] = frozenset()
    whole = False
    unrecorded: frozenset[str] = frozenset()

    def __init__(self, blocks: Iterator[Tracks], size: tuple[int, int], settings: Settings, another: bool = False):
        self._blocks, self._size, self._settings, self._another = blocks, size, settings, another
        self._known: list[Tracks] = []  # at most MAX_SECONDS of tracks
        self._length, self._complete = 0, False
        self._carried = Carried(settings)

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        at = np.arange(request.start, request.start + request.frames)
        while not self._complete and (self._settings.reverse or self._length <= at[-1]):
            self._read()
        if not self._length:
            return Tracks.empty(request.frames)
        tracks = self._carried.carry(self._rows(self._rows_at(at)), self._size, request)
        if request.start or not self._another:
            return tracks
        visible = tracks.visible.copy()
        visible[0, ::LATE] = False
        return Tracks(tracks.points, visible, tracks.ids)

    def apply(self, message: dict) -> None:
        raise InputError("a clip takes no messages")

    def close(self) -> None:
        if hasattr(self._blocks, "close"):
            self._blocks.close()

    def _read(self) -> None:
        block = next(self._blocks, None)
        self._complete = block is None
        if block is not None and block.T:
            self._known.append(block)
            self._length += block.T

    def _rows_at(self, at: np.ndarray) -> np.ndarray:
        """Rows of the clip for frames `at` of the stream; the clip's length is known where it matters."""
        last = self._length - 1
        if self._settings.loop and last > 0:
            at = last - np.abs(at % (2 * last) - last)
        at = np.minimum(at, last)
        return last - at if self._settings.reverse else at

    def _rows(self, rows: np.ndarray) -> Tracks:
        """The tracks of those blocks that `rows` touches, at `rows`."""
        start, parts, first = 0, [], 0
        for block in self._known:
            if start <= rows.max() and start + block.T > rows.min():
                first = first if parts else start
                parts.append(block)
            start += block.T
        whole = join(parts)
        return Tracks(whole.points[rows - first], whole.visible[rows - first], whole.ids)


class WebcamMotion:
    """A `BaseSource` fed with webcam pictures: what moved since the last chunk becomes the next chunk's motion.

    Of the points in the first picture every second one comes a chunk later. A tracker's points come while others go on,
    a grid's do not; and a thing must not be torn by the first motion that there is.
    """

    kinds = unrecorded = frozenset({"webcam"})
    whole = False

    def __init__(self, settings: Settings, tracker: Tracker | None = None):
        self._tracker = tracker or settings.open_tracker()
        self._carried = Carried(replace(settings, reverse=False, loop=False))
        self._waiting: list[np.ndarray] = []
        self._size: tuple[int, int] | None = None
        self._newest = Tracks.empty(0)  # the last settled frame's

    def apply(self, message: dict) -> None:
        jpeg = message.get("jpeg")
        if not isinstance(jpeg, str) or len(jpeg) > MAX_WEBCAM_BYTES * 4 // 3 + 4:
            raise InputError(f'a webcam picture needs "jpeg", at most {MAX_WEBCAM_BYTES} bytes: send it smaller')
        try:
            data = base64.b64decode(jpeg, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"a webcam picture is not base64: {error}") from error
        picture = read_image(data, MAX_WEBCAM_SIDE, MAX_WEBCAM_BYTES)
        self._size = self._size or tracking_size(picture.shape[1], picture.shape[0])
        if len(self._waiting) >= MAX_WAITING:
            self._waiting = self._waiting[1::2]
        self._waiting.append(fit_image(picture, *self._size))

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        settled = Tracks.empty(0)
        if self._waiting:
            frames, self._waiting = np.stack(self._waiting), []
            settled = self._tracker.follow(frames)
        new = join([self._newest, settled])
        if not new.T:
            return Tracks.empty(request.frames)
        live = np.isin(new.ids, settled.ids) if settled.T else np.ones(new.N, bool)
        new = Tracks(new.points[:, live], new.visible[:, live], new.ids[live])
        before = self._newest.T  # the chunk begins one step after the frame that the last one ended with
        self._newest = new.rows(new.T - 1, new.T)
        spread = new.resample(request.frames + before).rows(before, request.frames + before)
        tracks = self._carried.carry(spread, self._size, request)
        self._carried.forget(self._newest.ids)
        return tracks if before else Tracks(tracks.points[:, ::2], tracks.visible[:, ::2], tracks.ids[::2])

    def close(self) -> None:
        self._waiting = []


def _digest(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _within(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f'"{name}" is {str(value)[:40]}; expected a number from {low:g} to {high:g}')


def _places(value: object, name: str, numbers: int) -> tuple:
    """[[x, y, ...], ...] of `numbers` shares of a frame each; a little outside is all right."""
    if not isinstance(value, list) or len(value) > MAX_REGION:
        raise InputError(f'"{name}" must be a list of at most {MAX_REGION} places')
    for place in value:
        if not isinstance(place, list) or len(place) != numbers:
            raise InputError(f'"{name}" must be a list of lists of {numbers} numbers')
        for number in place:
            _within(name, number, -1.0, 2.0)
    return tuple(tuple(float(number) for number in place) for place in value)
