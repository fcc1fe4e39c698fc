"""The scene as a box seen from within: floor, ceiling, two walls and a back wall ("Tour into the picture", 1997).

Two handles in the picture, the top left and bottom right corners of the back wall, fix all of it up to scale. A handle
at the picture's edge opens that side: no ceiling, no wall there. The vanishing point is the middle of the back wall;
where only one side of an axis is closed, as outdoors, it lies behind that side so that the floor at the picture's edge
is `OPEN` times nearer than where it meets the back wall. The back wall is at depth 1.

What lies in front is no part of the box: it stands upright on it ("Automatic Photo Pop-up", 2005), like a cardboard
figure, at the depth of its foot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from motionstream.controls.pinhole import Camera, pixel_grid
from motionstream.errors import InputError
from motionstream.model.checkpoint import WEIGHTS, load_component
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.silhouettes import FEW

OPEN = 2.5  # how many times nearer an open scene's floor is at the picture's edge
EDGE = 0.02  # share of the side within which a handle opens it
SMALLEST = 0.05  # share of the picture's sides that the back wall has at least
FAR = 10.0  # depth of what no plane is in front of: a camera that has left the box
CLOSE = 0.02  # the least depth: a camera that touches a wall
GUESS_SIDE = 160  # pixels: the guess looks at the picture this small
FLOORS = (0.5, 0.9)  # share of the height within which the guess looks for the floor's far edge
CLEAR = 0.6  # share of the oblique lines that must meet in one point for the guess to see a corridor
LONG = 2.0 * GUESS_SIDE  # pixels of such lines, at the least: a few short ones meet by chance
CORRIDOR = 0.24  # share of the sides that a guessed corridor's back wall has


@dataclass(frozen=True)
class ScenePlanes:
    """left, top, right, bottom of the back wall, as shares of the picture's width and height. `InputError` if it has no
    area. A `Depth`."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 0.55
    label = "Scene planes"

    def __post_init__(self):
        sides = (self.left, self.top, self.right, self.bottom)
        if not all(isinstance(side, (int, float)) and 0 <= side <= 1 for side in sides):
            raise InputError(f"the back wall's corners are {sides}; expected shares of the picture, from 0 to 1")
        if self.right - self.left < SMALLEST or self.bottom - self.top < SMALLEST:
            raise InputError(f"the back wall must have {SMALLEST:.0%} of the picture's width and height: pull its "
                             "corners apart")

    @property
    def vanishing_point(self) -> tuple[float, float]:
        """Where the lines along floor and walls meet, as shares of the picture's sides."""
        return _vanishing(self.left, self.right), _vanishing(self.top, self.bottom)

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        """Depth [H, W] of what `camera` sees: rays against the box that `start` stands in."""
        height, width = image.shape[:2]
        normals, distances = self._planes(start, width, height)
        rays = camera.rays(pixel_grid(width, height, 1.0))
        room, approach = distances - normals @ camera.pose[:3, 3], rays @ normals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.where((approach > 1e-9) & (room > 0), room / approach, np.inf)
        return np.clip(depth.min(axis=1), CLOSE, FAR).reshape(height, width)

    def _planes(self, start: Camera, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Outward normals [P, 3] and distances [P] in the world of `start`: inside, normal @ point < distance."""
        (x, y), (fx, fy), (cx, cy) = self.vanishing_point, start.focal, start.middle
        x, y = x * width, y * height
        along_x, along_y = (1, 0, (cx - x) / fx), (0, 1, (cy - y) / fy)
        found = [((0, 0, 1), 1.0)]
        for sign, side, at, focal, size, normal in (
            (-1, self.left, x, fx, width, along_x),
            (1, self.right, x, fx, width, along_x),
            (-1, self.top, y, fy, height, along_y),
            (1, self.bottom, y, fy, height, along_y),
        ):
            if EDGE < side < 1 - EDGE:
                found.append((np.multiply(sign, normal), sign * (side * size - at) / focal))
        normals, distances = zip(*found, strict=True)
        turn, place = start.pose[:3, :3], start.pose[:3, 3]
        normals = np.array(normals, np.float64) @ turn.T
        return normals, np.array(distances) + normals @ place


@dataclass(frozen=True)
class Standing:
    """Scene planes, and on them, upright, what the embedded student's motion prior sees in front. A `Depth`."""

    planes: ScenePlanes
    label = ScenePlanes.label

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        """Depth [H, W] of what `camera` sees: that of the planes, and of all of a thing that of its foot."""
        return upright(self.planes.estimate(image, camera, start, known), _prior().things(image))


def upright(depth: np.ndarray, number: np.ndarray) -> np.ndarray:
    """depth [H, W] with all of a thing at its foot's, or nearer where it was.

    number: int [h, w], of the thing that is in each cell of the picture, 0 where there is none.
    """
    cells = cv2.resize(depth, number.shape[::-1], interpolation=cv2.INTER_NEAREST)
    stands = np.full(number.max() + 1, np.inf)
    for thing in range(1, len(stands)):
        rows, columns = np.nonzero(number == thing)
        if len(rows) >= FEW:
            foot = rows.max()
            stands[thing] = cells[foot, int(np.median(columns[rows == foot]))]
    within = cv2.resize(number.astype(np.float32), depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.minimum(depth, stands[within.astype(int)])


def guess_planes(image: np.ndarray) -> ScenePlanes:
    """A first box for a picture uint8 [H, W, 3]: a corridor if many lines meet in a point, otherwise a floor whose far
    edge is the row that divides the picture best into two colours."""
    small = cv2.resize(image, (GUESS_SIDE, GUESS_SIDE), interpolation=cv2.INTER_AREA)
    meeting = _meeting_point(small)
    if meeting is not None:
        x, y = np.clip(meeting / GUESS_SIDE, CORRIDOR / 2 + EDGE, 1 - CORRIDOR / 2 - EDGE)
        half = CORRIDOR / 2
        return ScenePlanes(*(round(float(side), 3) for side in (x - half, y - half, x + half, y + half)))
    rows = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float64).mean(axis=1)
    counts = np.arange(1, GUESS_SIDE)[:, None]
    above = rows.cumsum(axis=0)[:-1] / counts
    below = (rows.sum(axis=0) - rows.cumsum(axis=0)[:-1]) / (GUESS_SIDE - counts)
    between = (counts * (GUESS_SIDE - counts))[:, 0] * np.square(above - below).sum(axis=1)
    low, high = (int(share * GUESS_SIDE) for share in FLOORS)
    return ScenePlanes(bottom=round((low + int(between[low:high].argmax()) + 1) / GUESS_SIDE, 3))


def _meeting_point(gray_or_rgb: np.ndarray) -> np.ndarray | None:
    """The point [2] in the middle of the picture where oblique lines from all sides meet, if there is one."""
    edges = cv2.Canny(gray_or_rgb, 60, 160)
    found = cv2.HoughLinesP(edges, 1, np.pi / 180, 25, minLineLength=GUESS_SIDE // 5, maxLineGap=4)
    lines = np.zeros((0, 4)) if found is None else found.reshape(-1, 4).astype(np.float64)
    start, step = lines[:, :2], lines[:, 2:] - lines[:, :2]
    length = np.linalg.norm(step, axis=1)
    direction = step / length[:, None]
    oblique = (np.abs(direction) > 0.2).all(axis=1)
    start, direction, length = start[oblique], direction[oblique], length[oblique]
    if len(start) < 4:
        return None
    places = pixel_grid(GUESS_SIDE, GUESS_SIDE, GUESS_SIDE / 40)
    places = places[(np.abs(places / GUESS_SIDE - 0.5) < 0.3).all(axis=1)]
    away = places[:, None] - start
    distance = np.abs(away[..., 0] * direction[:, 1] - away[..., 1] * direction[:, 0])
    through = (distance < GUESS_SIDE / 40) * length
    best = int(through.sum(axis=1).argmax())
    middle = start + direction * length[:, None] / 2 > places[best]
    quadrant = np.bincount(middle @ [1, 2], through[best], minlength=4)  # floor and walls, not one thing that tapers
    clear = through[best].sum() > max(LONG, CLEAR * length.sum()) and (quadrant > GUESS_SIDE / 4).sum() >= 3
    return places[best] if clear else None


def _vanishing(low: float, high: float) -> float:
    """The vanishing point on one axis, from the two sides of the back wall."""
    open_low, open_high = low <= EDGE, high >= 1 - EDGE
    if open_low == open_high:
        return (low + high) / 2 if not open_low else 0.5
    return low + low / (OPEN - 1) if open_high else high - (1 - high) / (OPEN - 1)


@cache
def _prior() -> MotionPrior:
    """What sees things, once a process."""
    return load_component(WEIGHTS / "embedded" / "motion_prior")
