"""Drag control: live pointer paths, pinned points and pre-drawn paths become the next chunk's tracks.

Every control is a rigid grid of points around an anchor. The visitor grabs what they saw, which may be a second old by
now, so the anchor is first carried from the frame they saw to the newest generated frame (`carry`: sparse optical flow
on the generated frames). From there

- a drag follows the pointer: the pointer's motion since the last chunk becomes the next chunk's track, resampled by the
  samples' times. Its first chunk begins where the carried anchor is, so that the model sees what was grabbed, and the
  distance to the pointer shrinks linearly to nothing over it, so that it ends under the pointer;
- a pin stands still;
- a path moves along its points once, at constant speed, and closes the distance to its anchor like a drag; one that a
  drag takes along moves as the drag does from then on, and stays when that is gone.

Grids that hold one thing, as two fingers or a pin and a drag do, turn as it is turned between them.

A released drag and a path at its end stay where they are ("hold") or end ("let_go"). Those that stay are given up where
another drag or path begins on the same thing, which would be torn between the two; a pin stays. A track outside the
frame is invisible, never clamped.

Messages are JSON objects; coordinates are pixels of the generated frame, `frame` is the stream index of the frame that
the visitor saw, `t` is milliseconds on the browser's clock:

    {"kind": "drag", "id": 7, "phase": "start" | "move" | "end", "samples": [{"x": 1, "y": 2, "t": 3, "frame": 4}, ...],
     "takes": [9, ...]}                                              at the start: paths to take along
    {"kind": "pin", "id": 8, "x": 1, "y": 2, "frame": 4}
    {"kind": "path", "id": 9, "points": [[x, y], ...], "frame": 4, "seconds": 2.0}
    {"kind": "remove", "id": 9}    {"kind": "clear"}
    {"kind": "grid", "spacing": 16, "size": 3}           for controls made from now on: size x size points
    {"kind": "release", "mode": "hold" | "let_go"}       for drags released and paths made from now on

An `id` names one control as long as it lives. Moves, ends and removals of an unknown `id` do nothing: they were under
way while their control was removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import itemgetter

import cv2
import numpy as np

from motionstream.errors import InputError
from motionstream.tracks import MAX_ID, MAX_TRACKS, ChunkRequest, Tracks, angles, draw_ids

MAX_CONTROLS = 100
MAX_SAMPLES = 10_000  # pointer samples in one message, and kept for one drag between two chunks
MAX_GRID = 10
MAX_SPACING = 500.0  # pixels
MAX_PIXEL = 1e5  # coordinates further out than this are no pointer's
MAX_SECONDS = 600.0
APART = 4.0  # pixels from their middle to what holds a thing, at the least: nearer than that, it does not turn it
IDLE_MS = 100.0  # a pause of the pointer counts as no more than this, so that motion after it is not squeezed
RELEASE_MODES = ("hold", "let_go")


class DragSource:
    """A `TrackSource` fed with control messages.

    seed: of the tracks' ID numbers; release: "hold" or "let_go", what happens to drags that are let go of; reserved: ID
    numbers that are another source's.
    """

    def __init__(self, seed: int = 0, release: str = "hold", reserved: Iterable[int] = ()):
        self._rng = np.random.default_rng(seed)
        self._reserved = frozenset(reserved)
        self._used: dict[int, None] = {}  # in the order in which they were given out
        self._controls: dict[int, _Pin] = {}
        self._spacing, self._size = 16.0, 1
        self._given_up: list[int] = []
        self._together: list[list[_Pin]] = []  # controls that hold one thing
        self._on: dict[_Pin, set[int]] = {}  # things that most points of each were on when the newest came
        self._set_release({"mode": release})

    def apply(self, message: dict) -> None:
        """Takes in one message (see the module's docstring). A bad one raises `InputError` and changes nothing."""
        kinds = {
            "drag": self._drag,
            "pin": self._pin,
            "path": self._path,
            "remove": self._remove,
            "clear": lambda _: self._controls.clear(),
            "grid": self._grid,
            "release": self._set_release,
        }
        kind = message.get("kind") if isinstance(message, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise InputError(f"control message of unknown kind {_short(kind)}; expected one of {', '.join(kinds)}")
        kinds[kind](message)

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        """The tracks of all live controls over the request's frames; takes up what was applied since the last call."""
        new = [control for control in self._controls.values() if control.place is None]
        if new:
            anchors = np.array([control.anchor for control in new])
            for control, place in zip(new, carry(request.history, anchors, [c.frame for c in new]), strict=True):
                control.place = place
            self._take_hold(new, request)
        led = [control for control in self._controls.values() if control.hand]
        for control in led:
            control.hand.moved = np.zeros((1, 2))  # what a hand that has gone moves
        moving = [control for control in self._controls.values() if not control.hand] + led
        for control in moving:
            control.go(request)
        for holding in self._together:
            _turn([control for control in holding if control in moving])
        parts = [Tracks.empty(request.frames), *(control.tracks(request) for control in moving)]
        self._controls = {key: control for key, control in self._controls.items() if not control.over}
        return Tracks.concatenate(parts).in_frame(request.width, request.height)

    def take_given_up(self) -> list[int]:
        """The ids of controls that were given up since the last call."""
        taken, self._given_up = self._given_up, []
        return taken

    def turned(self) -> dict[int, np.ndarray]:
        """By how much the grids of controls had turned in each frame of the newest chunk, radians [T], by their ids."""
        turned = ((key, control) for key, control in self._controls.items() if control.turned.any())
        return {key: np.broadcast_to(control.turned, len(control.centers)) for key, control in turned}

    def held(self) -> set[int]:
        """Numbers of the things that controls hold, see `ChunkRequest`; for drags on top of another source."""
        return set().union(*(self._on.get(control, ()) for control in self._controls.values()))

    def _take_hold(self, new: list[_Pin], request: ChunkRequest) -> None:
        """Ends what is held on the things that new drags and paths begin to move, and finds which controls hold one."""
        if len(self._controls) == 1 and not self._reserved:  # nobody asks what it holds
            return
        controls = list(self._controls.values())
        points = [control.points(request) for control in controls]
        things, bodies = request.things(np.concatenate(points))
        ends = np.cumsum([len(part) for part in points])[:-1]
        on = self._on = {one: _most(own, 1 / 2) for one, own in zip(controls, np.split(things, ends), strict=True)}
        moved = set().union(*(on[control] for control in new if control.moves))
        again = [key for key, one in self._controls.items() if one.rests(request.fps) and on[one] & moved]
        self._controls = {key: control for key, control in self._controls.items() if key not in again}
        self._given_up += again
        together: dict[int, list[_Pin]] = {}
        for control, own in zip(controls, np.split(bodies, ends), strict=True):
            for number in sorted(_most(own, 1 / 3 if control.moves else 1 / 2))[:1]:
                together.setdefault(number, []).append(control)
        self._together = list(together.values())

    def _drag(self, message: dict) -> None:
        key, phase = _key(message), message.get("phase")
        samples = _samples(message)
        if phase == "start":
            if not samples:
                raise InputError("a drag starts with at least one sample")
            takes = _keys(message.get("takes", []))
            drag = _Drag(*self._new(key), samples)
            self._add(key, drag)
            for path in (self._controls.get(taken) for taken in takes):
                if isinstance(path, _Path):
                    path.hand = drag
        elif phase not in ("move", "end"):
            raise InputError(f"drag phase {_short(phase)} is not one of start, move, end")
        elif isinstance(drag := self._controls.get(key), _Drag) and drag.mode is None:
            drag.extend(samples)
            drag.mode = self._release if phase == "end" else None

    def _pin(self, message: dict) -> None:
        key, point, frame = _key(message), (_pixel(message, "x"), _pixel(message, "y")), _frame(message)
        self._add(key, _Pin(*self._new(key), point, frame))

    def _path(self, message: dict) -> None:
        key, points, frame = _key(message), message.get("points"), _frame(message)
        if not isinstance(points, list) or not 1 <= len(points) <= MAX_SAMPLES:
            raise InputError(f'a path\'s "points" must be a list of 1 to {MAX_SAMPLES} [x, y] pairs')
        if not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise InputError('a path\'s "points" must be [x, y] pairs')
        path = np.array([[_pixel({"x": x}, "x"), _pixel({"y": y}, "y")] for x, y in points])
        seconds = _number(message, "seconds", 0.0, MAX_SECONDS)
        self._add(key, _Path(*self._new(key), path, frame, seconds, self._release))

    def _remove(self, message: dict) -> None:
        self._controls.pop(_key(message), None)

    def _grid(self, message: dict) -> None:
        spacing = _number(message, "spacing", 1.0, MAX_SPACING)
        self._size, self._spacing = _whole(message, "size", 1, MAX_GRID), spacing

    def _set_release(self, message: dict) -> None:
        if message.get("mode") not in RELEASE_MODES:
            raise InputError(f"release mode {_short(message.get('mode'))} is not one of {', '.join(RELEASE_MODES)}")
        self._release = message["mode"]

    def _new(self, key: int) -> tuple[float, int, np.ndarray]:
        """Spacing, size and fresh ID numbers of a new control's grid."""
        if key in self._controls:
            raise InputError(f"control {key} exists already; give a new control a new id")
        if len(self._controls) >= MAX_CONTROLS:
            raise InputError(f"{MAX_CONTROLS} controls are live, the most there can be: remove some first")
        live = {number for control in self._controls.values() for number in control.ids.tolist()}
        count = self._size**2
        if len(live) + count > MAX_TRACKS:
            raise InputError(f"{len(live) + count} points would be live; at most {MAX_TRACKS}: remove some first")
        # An endless stream runs out of numbers: those given out longest ago come again, unless they are still live.
        lacking = max(0, len(self._reserved) + len(self._used) + count - MAX_ID)
        for number in [number for number in self._used if number not in live][:lacking]:
            del self._used[number]
        return self._spacing, self._size, draw_ids(count, self._rng, chain(self._reserved, self._used))

    def _add(self, key: int, control: _Pin) -> None:
        self._controls[key] = control
        self._used.update(dict.fromkeys(control.ids.tolist()))


class _Pin:
    """A rigid grid that stands still where its anchor is in the newest frame; the base of the moving controls.

    anchor: [2], pixels, in the stream frame `frame`; place: [2], the grid's centre in the newest frame generated, None
    until `carry` has found it; holds: bool [N], its points that were in the frame in its first chunk, None before: the
    others hold nothing, wherever they come; over: no more tracks after this chunk; hand: a drag that it follows. In
    each frame of the newest chunk: centers, moved [T, 2], where its centre was and how far it had gone, turned [T],
    radians by which the grid had turned since it was made, and visible [T].
    """

    moves = False

    def __init__(self, spacing: float, size: int, ids: np.ndarray, anchor: tuple[float, float], frame: int):
        self.spacing, self.size, self.ids = spacing, size, ids
        self.anchor, self.frame = np.array(anchor), frame
        self.place: np.ndarray | None = None
        self.holds: np.ndarray | None = None
        self.over = False
        self.hand: _Drag | None = None
        self.centers, self.moved = np.zeros((2, 1, 2))
        self.visible, self.turned = np.ones(1, bool), np.zeros(1)

    def go(self, request: ChunkRequest) -> None:
        """To where it is in the request's frames."""
        # Frames since `place`: where a track begins is what it holds, so it begins there, a frame late.
        steps = np.arange(request.frames) + (self.holds is not None)
        if self.hand:
            self.centers = np.repeat(self.place[None], len(steps), axis=0) + self.hand.moved
            self.visible, self.over = np.ones(len(steps), bool), self.hand.over
        else:
            self.centers, self.visible = self.motion(steps, request.fps)
        self.moved, self.place, self.turned = self.centers - self.place, self.centers[-1], self.turned[-1:]

    def tracks(self, request: ChunkRequest) -> Tracks:
        """Where it went to, as a grid."""
        grid = Tracks.rigid_grid(self.centers, self.spacing, self.size, self.ids, self.turned)
        if self.holds is None:
            self.holds = grid.in_frame(request.width, request.height).visible[0]
        return Tracks(grid.points, grid.visible & self.visible[:, None] & self.holds, grid.ids)

    def points(self, request: ChunkRequest) -> np.ndarray:
        """Those of its points [K, 2], pixels, that are in the frame."""
        grid = Tracks.rigid_grid(self.place[None], self.spacing, self.size, self.ids, self.turned[-1])
        return grid.points[0, grid.in_frame(request.width, request.height).visible[0]]

    def motion(self, steps: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
        """Centres [T, 2] and visibility [T] at `steps` frames after `place`."""
        return np.repeat(self.place[None], len(steps), axis=0), np.ones(len(steps), bool)

    def rests(self, fps: float) -> bool:
        """Whether it has moved, and only holds what it has moved."""
        return False


class _Drag(_Pin):
    """A grid under the pointer; `mode` is the release mode once the pointer is up."""

    moves = True

    def __init__(self, spacing: float, size: int, ids: np.ndarray, samples: list[tuple]):
        samples = sorted(samples, key=itemgetter(0))
        self.time, *point, frame = samples[0]
        super().__init__(spacing, size, ids, point, frame)
        self.pointer = self.anchor
        self.pending = samples[1:]
        self.mode: str | None = None

    def extend(self, samples: list[tuple]) -> None:
        self.pending += samples
        if len(self.pending) > MAX_SAMPLES:
            self.pending = self.pending[-1::-2][::-1]  # every second one; the newest stays

    def motion(self, steps: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
        # Samples from before the last chunk's newest came late: what they say is over.
        samples = sorted((sample for sample in self.pending if sample[0] >= self.time), key=itemgetter(0))
        times = np.array([self.time] + [sample[0] for sample in samples])
        path = np.array([self.pointer] + [sample[1:3] for sample in samples])
        durations = np.minimum(np.diff(times), IDLE_MS)
        if not durations.any():
            durations = np.ones(len(samples))
        clock = np.concatenate([[0.0], durations.cumsum()])
        progress = steps / max(steps[-1], 1)
        offset = (self.place - self.pointer) * (1 - progress[:, None])
        centers = _along(path, clock, progress) + offset
        self.time, self.pointer, self.pending = times[-1], path[-1], []
        self.over = self.mode == "let_go"
        return centers, np.ones(len(steps), bool)

    def rests(self, fps: float) -> bool:
        return self.mode is not None and self.holds is not None


class _Path(_Pin):
    """A grid that moves along `path` [P, 2] once, in `seconds`; `mode` says what becomes of it at the end."""

    moves = True

    def __init__(self, spacing, size, ids, path: np.ndarray, frame: int, seconds: float, mode: str):
        super().__init__(spacing, size, ids, path[0], frame)
        self.path, self.seconds, self.mode = path, seconds, mode
        self.elapsed = 0  # frames

    def motion(self, steps: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
        length = self._length(fps)
        at = self.elapsed + steps
        closing = np.clip(1 - steps / min(length, max(steps[-1], 1)), 0, 1)[:, None] * (self.elapsed == 0)
        lengths = np.concatenate([[0.0], np.linalg.norm(np.diff(self.path, axis=0), axis=1).cumsum()])
        centers = _along(self.path, lengths, np.minimum(at / length, 1.0)) + (self.place - self.path[0]) * closing
        self.elapsed = at[-1]
        self.over = self.mode == "let_go" and self.elapsed >= length
        return centers, (at <= length) | (self.mode == "hold")

    def rests(self, fps: float) -> bool:
        return self.hand.rests(fps) if self.hand else self.holds is not None and self.elapsed >= self._length(fps)

    def _length(self, fps: float) -> float:
        """Frames."""
        return max(self.seconds * fps, 1.0)


def _most(numbers: np.ndarray, least: float) -> set[int]:
    """Those of the numbers [K], but 0, that at least such a share of them are."""
    found, counts = np.unique(numbers, return_counts=True)
    return set(found[counts >= least * counts.sum()].tolist()) - {0}


def _turn(controls: list[_Pin]) -> None:
    """Turns the grids of controls that hold one thing as this has turned between them, from where they were last."""
    if len(controls) < 2:
        return
    begin = np.stack([control.centers[0] - control.moved[0] for control in controls])
    paths = np.stack([control.centers for control in controls], axis=1)
    away = [np.linalg.norm(points - points.mean(-2, keepdims=True), axis=-1).max(-1) for points in (begin, paths)]
    if min(np.min(far) for far in away) > APART:
        for control in controls:
            control.turned = control.turned + angles(begin, paths)


def carry(history: Mapping[int, np.ndarray], anchors: np.ndarray, frames: list[int]) -> np.ndarray:
    """Where points of earlier frames are in the newest frame of `history`.

    history: uint8 RGB [H, W, 3] by stream index; anchors: [K, 2] pixels; frames: K stream indices, the frame that each
    anchor was seen in (one that `history` lacks counts as the nearest it has) -> [K, 2] pixels.
    A patch of points around each anchor is followed from frame to frame by pyramidal Lucas-Kanade flow. Points that do
    not find back to where they came from are dropped; the anchor moves by the median of the rest. When fewer than a
    quarter are left, the anchor stays where it was seen.
    """
    known = np.array(sorted(history))
    seen = known[np.abs(known - np.array(frames)[:, None]).argmin(axis=1)]
    reach = np.arange(-2, 3) * max(2, min(history[known[0]].shape[:2]) // 80)
    patch = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(1, -1, 2)
    start = (anchors[:, None] + patch).astype(np.float32)
    points, alive = start.copy(), np.ones(start.shape[:2], bool)
    for before, after in zip(known[:-1], known[1:], strict=True):
        moving = alive & (seen <= before)[:, None]
        if moving.any():
            points[moving], alive[moving] = _follow(history[before], history[after], points[moving])
    moves = np.where(alive[..., None], points - start, np.nan)
    found = alive.sum(axis=1) * 4 >= alive.shape[1]
    result = anchors.astype(np.float64)
    result[found] += np.nanmedian(moves[found], axis=1)
    return result


def _follow(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] of one frame in the next, and whether [N] they also find the way back, to within a pixel."""
    before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    settings = {"winSize": (9, 9), "maxLevel": 3}
    forth, there, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **settings)
    back, again, _ = cv2.calcOpticalFlowPyrLK(after, before, forth, None, **settings)
    return forth, (there & again).ravel().astype(bool) & (np.abs(back - points).max(axis=1) < 1.0)


def _along(path: np.ndarray, marks: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Points [T, 2] at `progress` [T] in [0, 1] of a polyline `path` [P, 2] whose corners are at `marks` [P]."""
    return np.stack([np.interp(progress * marks[-1], marks, path[:, axis]) for axis in (0, 1)], axis=-1)


def _samples(message: dict) -> list[tuple[float, float, float, int]]:
    """The samples of a drag message as (t, x, y, frame)."""
    samples = message.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise InputError('a drag\'s "samples" must be a list of {"x", "y", "t", "frame"} objects')
    if len(samples) > MAX_SAMPLES:
        raise InputError(f"{len(samples)} pointer samples in one message; at most {MAX_SAMPLES}: send fewer at once")
    return [(_number(s, "t", 0.0, 1e15), _pixel(s, "x"), _pixel(s, "y"), _frame(s)) for s in samples]


def _number(message: dict, name: str, low: float, high: float) -> float:
    value = message.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f'"{name}" is {_short(value)}; expected a number from {low:g} to {high:g}')
    return float(value)


def _whole(message: dict, name: str, low: int, high: int) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f'"{name}" is {_short(value)}; expected a whole number from {low} to {high}')
    return value


def _pixel(message: dict, name: str) -> float:
    return _number(message, name, -MAX_PIXEL, MAX_PIXEL)


def _frame(message: dict) -> int:
    return _whole(message, "frame", -(2**53), 2**53)


def _key(message: dict) -> int:
    return _whole(message, "id", 0, 2**53)


def _keys(values: object) -> list[int]:
    if not isinstance(values, list) or len(values) > MAX_CONTROLS:
        raise InputError(f'a drag\'s "takes" must be a list of at most {MAX_CONTROLS} ids')
    return [_key({"id": value}) for value in values]


def _short(value: object) -> str:
    """A value as an error message shows it; what a browser sends may be long or deep."""
    if not isinstance(value, (str, int, float)):
        return f"of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
