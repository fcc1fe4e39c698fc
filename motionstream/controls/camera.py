"""Camera control: the picture's points, lifted into space by their depth, seen from a camera that moves.

A grid of points is unprojected once and projected for every frame of every chunk, in float64. A point behind the
camera, outside the frame, or hidden by something nearer is invisible. When more than half of the points have left the
view, the newest generated frame gets a grid and a depth of its own, in the same world.

`Rig` is the camera's motion alone: a named move or keyframes (see `paths.py`), with the visitor's steering on top, and
the same cameras again from the same messages. Messages are JSON objects:

    {"kind": "camera", "route": "orbit", "ends": "swing" | "once" | "on", "speed": 1.0}     from where the camera is now
    {"kind": "steer", "move": [x, y, z], "turn": [x, y, z], "zoom": z}     each in [-1, 1], held until the next message
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np

from motionstream.controls.depth import Depth
from motionstream.controls.layers import base_ids
from motionstream.controls.paths import ENDS, MAX_KEYFRAMES, MOVES, SWING, Keyframes, Steering, lasts, progress, rigid
from motionstream.controls.pinhole import Camera, Surface
from motionstream.errors import InputError
from motionstream.tracks import MAX_TRACKS, ChunkRequest, Tracks

KEYFRAMES = "keyframes"  # the path that a camera file describes
MAX_SPEED = 4.0
FILM = 36.0  # mm: focal lengths are for a picture whose longer side is this, as photographers say them
FOCALS = (10.0, 200.0)  # mm
POINTS = 240  # in the grid
LEFT = 0.5  # share of the points out of view that makes for a new grid


@dataclass(frozen=True)
class Plan:
    """What is chosen before the start. `InputError` where a value isn't among those there are.

    route: a name in `paths.MOVES`, or "keyframes"; ends: see `paths.ENDS`; speed: factor, negative runs the other way;
    focal: mm, for a frame whose longer side is 36 mm.
    """

    route: str = "orbit"
    ends: str = SWING
    speed: float = 1.0
    focal: float = 28.0

    def __post_init__(self):
        if self.route not in (*MOVES, KEYFRAMES):
            raise InputError(f"there is no camera path of that name; there are {', '.join(MOVES)} and {KEYFRAMES}")
        if self.ends not in ENDS:
            raise InputError(f"a camera path ends in one of these ways: {', '.join(ENDS)}")
        if not _within(self.speed, -MAX_SPEED, MAX_SPEED):
            raise InputError(f"the camera's speed must be a number from {-MAX_SPEED:g} to {MAX_SPEED:g}")
        if not _within(self.focal, *FOCALS):
            raise InputError(f"the focal length must be a number from {FOCALS[0]:g} to {FOCALS[1]:g} mm")

    def camera(self, width: int, height: int) -> Camera:
        """The first camera for a frame of this size."""
        return Camera.facing(width, height, self.focal / FILM * max(width, height))


class Rig:
    """The camera's motion from frame to frame.

    first: the camera at frame 0; pivot: depth of what the camera is about, see `pivot_of`; keyframes: for that path,
    already scaled to the frame.
    """

    def __init__(self, first: Camera, pivot: float, plan: Plan, keyframes: Keyframes | None = None):
        self.camera, self.pivot, self.plan, self._keyframes = first, pivot, plan, keyframes
        self._moving = False  # the first frame is the picture itself
        self._begin(np.zeros(7))

    def apply(self, message: dict) -> None:
        """Takes in one message (see the module's docstring). A bad one raises `InputError` and changes nothing."""
        match message:
            case {"kind": "camera"}:
                given = {key: message[key] for key in ("route", "ends", "speed") if key in message}
                if not all(isinstance(given.get(key, ""), str) for key in ("route", "ends")):
                    raise InputError('"route" and "ends" of a camera message must be text')
                plan = replace(self.plan, **given)
                if plan.route == KEYFRAMES and self._keyframes is None:
                    raise InputError("choose a camera file before the start, or another path")
                anew = plan.route != self.plan.route or plan.ends != self.plan.ends and plan.route != KEYFRAMES
                self.plan = plan
                if anew:
                    self._begin(self._steering.wanted)
            case {"kind": "steer"}:
                self._steering.wanted = np.concatenate([
                    _triple(message, "move"), _triple(message, "turn"), [_share(message.get("zoom", 0.0), "zoom")]])
            case _:
                raise InputError("a message to the camera must be of kind camera or steer")

    def frames(self, count: int, fps: float) -> list[Camera]:
        """The next `count` cameras."""
        cameras = []
        for _ in range(count):
            if self._moving:
                self._seconds = self._within(self._seconds + self.plan.speed / fps)
                self._steering.step(1 / fps, self.pivot, abs(self.plan.speed) or 1.0)  # a path may rest
            self._moving = True
            self.camera = self._path(self._seconds).moved(self._steering.motion, self._steering.zoom)
            cameras.append(self.camera)
        return cameras

    def _begin(self, wanted: np.ndarray) -> None:
        """Starts the path at the present camera; `wanted`: what the visitor steers, see `Steering`."""
        self._start, self._seconds, self._steering = self.camera, 0.0, Steering()
        self._steering.wanted = wanted

    def _within(self, seconds: float) -> float:
        """The same as long as the path goes on: at its end time stands still, or the way back would take as long."""
        if self.plan.route == KEYFRAMES:
            return min(max(seconds, 0.0), float(np.ptp(self._keyframes.times)))
        least, most = lasts(self.plan.route, self.plan.ends)
        return min(max(seconds, least), most)

    def _path(self, seconds: float) -> Camera:
        if self.plan.route == KEYFRAMES:
            begin, now = self._keyframes.at(0.0), self._keyframes.at(seconds)
            motion = np.linalg.inv(begin.pose) @ now.pose
            turn = cv2.Rodrigues(motion[:3, :3])[0].ravel()  # the nearest rotation: files hold rounded numbers
            intrinsics = now.intrinsics.copy()
            intrinsics[:2, 2] += self._start.middle - begin.middle
            goes_on = Camera(intrinsics, self._start.pose @ rigid(turn, motion[:3, 3]))
            return goes_on.moved(np.eye(4), self._start.focal / begin.focal)
        u = progress(self.plan.route, self.plan.ends, seconds)
        return self._start.moved(*MOVES[self.plan.route](u, self.pivot))


@dataclass(frozen=True, eq=False)
class CameraRecipe:
    """What a `CameraSource` is made of (see `layers.SourceRecipe`).

    depth: where depth comes from; first: the first frame's, [h, w], if it is known already; keyframes: for that path;
    count: about how many points, at most 2,500; seed: of the tracks' ID numbers.
    """

    plan: Plan
    depth: Depth
    first: np.ndarray | None = None
    keyframes: Keyframes | None = None
    count: int = POINTS
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.count <= MAX_TRACKS:
            raise InputError(f"{self.count} points; expected 1 to {MAX_TRACKS}")
        if self.plan.route == KEYFRAMES and self.keyframes is None:
            raise InputError("choose a camera file first, or another path")

    def build(self) -> CameraSource:
        return CameraSource(self)

    def describe(self) -> dict:
        """The plan, and the depth map and camera file by SHA-256."""
        sums = {"depth_map": self.first, "cameras": self.keyframes and self.keyframes.to_json()}
        sums = {name: hashlib.sha256(value.encode() if isinstance(value, str) else value.tobytes()).hexdigest()
                for name, value in sums.items() if value is not None}
        about = {"kind": "camera", **asdict(self.plan), "depth": self.depth.label, "count": self.count}
        return {**about, "seed": self.seed, "sha256": sums}

    def first_camera(self, width: int, height: int) -> Camera:
        """The camera of frame 0, at the origin."""
        if self.plan.route != KEYFRAMES:
            return self.plan.camera(width, height)
        return Camera(self.keyframes.at(0.0).scaled(self.keyframes.size, (width, height)).intrinsics, np.eye(4))

    def rig(self, width: int, height: int, pivot: float) -> Rig:
        """The camera's motion, for a frame of this size."""
        keyframes = self.keyframes.scaled((width, height)) if self.keyframes else None
        return Rig(self.first_camera(width, height), pivot, self.plan, keyframes)


class CameraSource:
    """A `layers.BaseSource`: a grid of points over the picture as a moving camera sees them."""

    kinds = frozenset({"camera", "steer"})
    unrecorded: frozenset[str] = frozenset()
    whole = True

    def __init__(self, recipe: CameraRecipe):
        self.recipe = recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._ids = np.zeros(0, np.int64)
        self._waiting: list[dict] = []  # messages from before the first request, which says how large the frame is
        self._rig: Rig | None = None

    def apply(self, message: dict) -> None:
        """Takes in one message, see `Rig`."""
        if self._rig is not None:
            return self._rig.apply(message)
        self.recipe.rig(1, 1, 1.0).apply(message)  # says what is wrong with it
        self._waiting.append(message)

    def close(self) -> None:
        """Nothing to free."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        """The grid over the request's frames."""
        if self._rig is None:
            self._begin(request)
        elif self._left() > LEFT:
            self._seed(self._rig.camera, request, self._surface.seen_from(self._rig.camera))
        cameras = self._rig.frames(request.frames, request.fps)
        return self._surface.tracks(self._places, self._points, cameras, self._ids)

    def _begin(self, request: ChunkRequest) -> None:
        size = request.width, request.height
        self._start = self.recipe.first_camera(*size)
        self._seed(self._start, request, None)
        self._rig = self.recipe.rig(*size, pivot_of(self._surface.depth))
        for message in self._waiting:
            self._rig.apply(message)
        self._waiting.clear()

    def _seed(self, camera: Camera, request: ChunkRequest, known: np.ndarray | None) -> None:
        """A new grid on the newest frame."""
        depth = self.recipe.first
        if known is not None or depth is None:
            image = request.history[max(request.history)]
            depth = self.recipe.depth.estimate(image, camera, self._start, known)
        self._surface = Surface(camera, depth, request.width, request.height)
        self._places = self._surface.places(self.recipe.count)
        self._points = self._surface.lift(self._places)
        self._ids = base_ids(len(self._places), self._rng, self._ids.tolist())

    def _left(self) -> float:
        """Share of the points that are out of the newest camera's view."""
        at, z = self._rig.camera.project(self._points)
        seen = (z > 0) & ((at >= 0) & (at < (self._surface.width, self._surface.height))).all(axis=1)
        return 1 - seen.mean()


def pivot_of(depth: np.ndarray) -> float:
    """What the camera turns about and its speed is measured by: the median depth of the picture's middle quarter."""
    middle = [slice(side // 4, side - side // 4) for side in depth.shape]
    return float(np.median(depth[middle[0], middle[1]]))


def recorded(
    rig: Rig, size: tuple[int, int], messages: Mapping[int, list[dict]], lengths: Sequence[int], fps: float
) -> Keyframes:
    """The cameras of a stream again, one a frame, as many as a file holds.

    rig: as it was at the start, for frames of `size` (width, height); messages: by the number of the chunk that they
    applied to; lengths: of the chunks, in frames.
    """
    cameras = []
    for index, length in enumerate(lengths):
        for message in messages.get(index, []):
            rig.apply(message)
        cameras += rig.frames(min(length, MAX_KEYFRAMES - len(cameras)), fps)
    return Keyframes(cameras, np.arange(len(cameras)) / fps, size)


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _share(value: object, name: str) -> float:
    if not _within(value, -1, 1):
        raise InputError(f'"{name}" of a steer message must be made of numbers from -1 to 1')
    return float(value)


def _triple(message: dict, name: str) -> np.ndarray:
    values = message.get(name, [0.0, 0.0, 0.0])
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f'"{name}" of a steer message must be three numbers, about or along x, y, z')
    return np.array([_share(value, name) for value in values])
