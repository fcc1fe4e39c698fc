"""Where the camera goes: named moves, keyframes from a file, and a visitor who steers.

Every named move is a function of one number u, from 0, where the camera is where it began, through 1, a move's usual
extent, to anything. `ENDS` says how u goes with time: there and back, once, or on and on. Lengths are multiples of the
pivot, the depth of what is in the middle of the picture, so that all scenes get the same motion in the picture.

Turns are composed in the camera's own axes and interpolated along the shortest rotation, never as three angles: looking
straight up is a direction like any other.

Camera files are JSON (`Keyframes.to_json`, `Keyframes.from_json`), as most other tools' are: intrinsics in pixels,
4x4 camera-to-world, OpenCV axes (x right, y down, z forward):

    {"format": "motionstream-cameras", "version": 1,
     "width": 832, "height": 480,                 # size of the frame that the intrinsics belong to
     "frames": [{"time": 0.0,                     # seconds, rising
                 "intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
                 "camera_to_world": [[...], [...], [...], [0, 0, 0, 1]]}]}
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from motionstream.controls.pinhole import Camera
from motionstream.errors import InputError

FORMAT, VERSION = "motionstream-cameras", 1
MAX_KEYFRAMES = 10_000
MAX_FILE_BYTES = 16 * 2**20
MAX_SIDE = 1e5  # pixels
MAX_SECONDS = 3_600.0
PERIOD = 4.0  # seconds to u = 1 at speed 1
SHIFT = 0.2  # pivots
TURN = math.radians(12)
ORBIT = math.radians(20)
DOLLY_ZOOM = 1.5 * SHIFT
MOST_DOLLY_ZOOM = (1 - 0.2) / DOLLY_ZOOM  # u at which a dolly-zoom is so near to the pivot, 0.2 pivots, that it ends
EASE = 0.15  # share by which a steered velocity nears what the keys ask for, per frame
MAX_ZOOM = 8.0  # of the first focal length, either way
MOST_ZOOM = 6.0  # u at which a zoom has come to that
SWING, ONCE, ON = "swing", "once", "on"
ENDS = (SWING, ONCE, ON)

# (u, pivot) -> (motion [4, 4] in the first camera's own axes, factor on the focal length)
Move = Callable[[float, float], tuple[np.ndarray, float]]


def rigid(turn: Sequence[float] = (0, 0, 0), shift: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """4x4: rotation by the vector `turn` (its direction the axis, its length the angle in radians), then `shift`."""
    motion = np.eye(4)
    motion[:3, :3] = cv2.Rodrigues(np.asarray(turn, np.float64))[0]
    motion[:3, 3] = shift
    return motion


def _orbit(u: float, pivot: float) -> tuple[np.ndarray, float]:
    there, turn, back = rigid(shift=(0, 0, pivot)), rigid((0, ORBIT * u, 0)), rigid(shift=(0, 0, -pivot))
    return there @ turn @ back, 1.0


def _dolly_zoom(u: float, pivot: float) -> tuple[np.ndarray, float]:
    ahead = DOLLY_ZOOM * min(u, MOST_DOLLY_ZOOM)
    return rigid(shift=(0, 0, ahead * pivot)), 1 - ahead  # what is at the pivot keeps its size


def _spiral(u: float, pivot: float) -> tuple[np.ndarray, float]:
    """A circle across the view, reached from its middle in the first round, looking at the pivot all the while."""
    radius, angle = SHIFT * 0.6 * min(abs(u), 1.0), 2 * math.pi * u
    place = np.array([math.cos(angle), math.sin(angle), 0.5 * math.sin(angle / 2)]) * radius
    yaw, pitch = math.atan2(-place[0], 1 - place[2]), math.atan2(place[1], math.hypot(place[0], 1 - place[2]))
    return rigid(shift=place * pivot) @ rigid((0, yaw, 0)) @ rigid((pitch, 0, 0)), 1.0


def _handheld(u: float, pivot: float) -> tuple[np.ndarray, float]:
    """Sines of frequencies that never meet again, as a hand and breath make them; 0 at u = 0."""
    def sway(*rates: float) -> float:
        return sum(math.sin(2 * math.pi * rate * u + i) - math.sin(i) for i, rate in enumerate(rates)) / len(rates)

    turn = (TURN * 0.10 * sway(1.3, 3.1, 5.7), TURN * 0.12 * sway(1.1, 2.3, 4.9), TURN * 0.05 * sway(0.7, 1.9))
    shift = (SHIFT * 0.12 * sway(0.9, 2.1), SHIFT * 0.10 * sway(1.7, 3.3), SHIFT * 0.04 * sway(0.5, 1.2))
    return rigid(turn, np.multiply(shift, pivot)), 1.0


MOVES: dict[str, Move] = {
    "still": lambda u, pivot: (np.eye(4), 1.0),
    "orbit": _orbit,
    "dolly": lambda u, pivot: (rigid(shift=(0, 0, SHIFT * u * pivot)), 1.0),
    "truck": lambda u, pivot: (rigid(shift=(SHIFT * u * pivot, 0, 0)), 1.0),
    "pedestal": lambda u, pivot: (rigid(shift=(0, -SHIFT * u * pivot, 0)), 1.0),
    "pan": lambda u, pivot: (rigid((0, TURN * u, 0)), 1.0),
    "tilt": lambda u, pivot: (rigid((TURN * u, 0, 0)), 1.0),
    "roll": lambda u, pivot: (rigid((0, 0, TURN * u)), 1.0),
    "zoom": lambda u, pivot: (np.eye(4), MAX_ZOOM ** min(max(u / MOST_ZOOM, -1), 1)),
    "dolly-zoom": _dolly_zoom,
    "spiral": _spiral,
    "handheld": _handheld,
}
RHYTHMIC = {"spiral", "handheld"}  # have their own to and fro


def progress(name: str, ends: str, seconds: float) -> float:
    """u of move `name` after `seconds` at speed 1; it begins gently, so that nothing jerks."""
    u = seconds / PERIOD
    if name in RHYTHMIC:
        return u
    if ends == SWING:
        return math.sin(math.pi / 2 * u)
    return math.copysign(_eased(abs(u), ends), u)  # at a negative speed the other way, in the same manner


def lasts(name: str, ends: str) -> tuple[float, float]:
    """Seconds (from, to) between which move `name` changes something; maybe for ever."""
    if name in RHYTHMIC or ends == SWING:
        return -math.inf, math.inf
    if ends == ONCE:
        return -PERIOD, PERIOD
    ends_at = {"zoom": (-MOST_ZOOM, MOST_ZOOM), "dolly-zoom": (-math.inf, MOST_DOLLY_ZOOM)}
    least, most = ends_at.get(name, (-math.inf, math.inf))
    return PERIOD * (least - 0.25), PERIOD * (most + 0.25)  # 0.25: see `_eased`


def _eased(u: float, ends: str) -> float:
    if ends == ONCE:
        u = min(u, 1.0)
        return u * u * (3 - 2 * u)
    return u - 0.25 * (1 - math.exp(-4 * u))


@dataclass(frozen=True, eq=False)
class Keyframes:
    """cameras at rising times (seconds, [K]) for a frame of `size` (width, height) pixels; K > 0.

    Before the first and after the last one the camera rests. Raises `InputError`.
    """

    cameras: Sequence[Camera]
    times: np.ndarray
    size: tuple[float, float]

    def __post_init__(self):
        times = np.array(self.times, np.float64)
        if not 1 <= len(self.cameras) <= MAX_KEYFRAMES or times.shape != (len(self.cameras),):
            raise InputError(f"{len(self.cameras)} cameras; expected 1 to {MAX_KEYFRAMES}, with a time each")
        if not (np.abs(times) <= MAX_SECONDS).all() or (np.diff(times) <= 0).any():
            raise InputError(f"the times of the cameras must rise, and stay within {MAX_SECONDS:g} seconds")
        object.__setattr__(self, "times", times)

    def at(self, seconds: float) -> Camera:
        """The camera at a time after the first one's: position and log focal length linear between two keyframes,
        direction along the shortest rotation."""
        time = seconds + self.times[0]
        after = int(np.clip(np.searchsorted(self.times, time), 1, max(len(self.times) - 1, 1)))
        if len(self.times) == 1:
            return self.cameras[0]
        a, b, span = self.cameras[after - 1], self.cameras[after], self.times[after - 1 : after + 1]
        share = float(np.clip((time - span[0]) / (span[1] - span[0]), 0, 1))
        if share in (0.0, 1.0):
            return (a, b)[int(share)]
        axes = a.pose[:3, :3]
        turn = cv2.Rodrigues(axes.T @ b.pose[:3, :3])[0].ravel()
        pose = np.eye(4)
        pose[:3, :3] = axes @ cv2.Rodrigues(turn * share)[0]
        pose[:3, 3] = a.pose[:3, 3] * (1 - share) + b.pose[:3, 3] * share
        intrinsics = a.intrinsics * (1 - share) + b.intrinsics * share
        intrinsics[[0, 1], [0, 1]] = np.exp(np.log(a.focal) * (1 - share) + np.log(b.focal) * share)
        return Camera(intrinsics, pose)

    def scaled(self, to_size: tuple[float, float]) -> Keyframes:
        """The same cameras for a frame that is cropped and resized to `to_size` as the picture is."""
        return Keyframes([camera.scaled(self.size, to_size) for camera in self.cameras], self.times, to_size)

    def to_json(self) -> str:
        """The JSON that the module's docstring describes; `from_json` gives back the same bits."""
        frames = [{"time": time, "intrinsics": camera.intrinsics.tolist(), "camera_to_world": camera.pose.tolist()}
                  for time, camera in zip(self.times.tolist(), self.cameras, strict=True)]
        head = {"format": FORMAT, "version": VERSION, "width": self.size[0], "height": self.size[1]}
        return json.dumps({**head, "frames": frames})

    @staticmethod
    def from_json(text: str | bytes) -> Keyframes:
        """Reads `to_json`'s text. Raises `InputError` naming what is wrong."""
        if len(text) > MAX_FILE_BYTES:
            raise InputError(f"the camera file is larger than {MAX_FILE_BYTES >> 20} MB: thin its keyframes out")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the cameras are not JSON: {error}") from error
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise InputError(f'this is no camera file: "format" must be "{FORMAT}", "version" {VERSION}')
        frames, size = data.get("frames"), (data.get("width"), data.get("height"))
        if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
            raise InputError('"frames" must be a list of objects with "time", "intrinsics" and "camera_to_world"')
        if len(frames) > MAX_KEYFRAMES:
            raise InputError(f"{len(frames)} cameras; at most {MAX_KEYFRAMES}: thin them out")
        if not all(_is_number(side) and 0 < side <= MAX_SIDE for side in size):
            raise InputError(f'"width" and "height" of the camera file must be numbers above 0, at most {MAX_SIDE:g}')
        if not all(_is_number(frame.get("time")) for frame in frames):
            raise InputError('every camera needs a "time" in seconds')
        cameras = [Camera(frame.get("intrinsics"), frame.get("camera_to_world")) for frame in frames]
        return Keyframes(cameras, np.array([float(frame["time"]) for frame in frames]), size)


class Steering:
    """A camera steered live: what the keys ask for is a velocity, which it takes up and loses gently.

    move: x, y, z in [-1, 1], pivots' share a second; turn: about x, y, z; zoom: [-1, 1]; all in the camera's own axes.
    """

    def __init__(self):
        self.wanted = np.zeros(7)
        self._velocity = np.zeros(7)
        self.motion, self.zoom = np.eye(4), 1.0

    def step(self, seconds: float, pivot: float, speed: float) -> None:
        """Goes on by one frame of `seconds`."""
        self._velocity += (self.wanted - self._velocity) * EASE
        rate = self._velocity * speed * seconds
        self.motion = self.motion @ rigid(rate[3:6] * TURN, rate[:3] * SHIFT * pivot)
        self.zoom = min(max(self.zoom * 2 ** (0.25 * rate[6]), 1 / MAX_ZOOM), MAX_ZOOM)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
