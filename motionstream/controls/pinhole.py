"""Cameras and what they see: pinhole projection in float64, a depth map as a surface, and visible tracks of its points.

Axes are OpenCV's: x right, y down, z forward. A pose is 4x4 camera-to-world. Pixels are continuous: a frame spans
[0, width) x [0, height), so a pixel's centre is at + 0.5. Depth is z, in any unit; poses use the same one.

    camera = Camera.facing(320, 192, focal=300.0)
    surface = Surface(camera, depth, 320, 192)                    # depth [h, w], of what `camera` sees
    points = surface.lift(grid)                                   # unprojected once
    tracks = surface.tracks(grid, points, cameras, ids)           # projected for every camera, hidden where it is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from motionstream.errors import InputError
from motionstream.tracks import MAX_TRACKS, Tracks

NEAR = 1e-6  # share of the distance: what is nearer than this to the camera's own plane counts as behind it
ROTATION_TOLERANCE = 5e-3  # by which the axes of a pose may miss being orthonormal
TOLERANCE = 0.05  # a point is hidden by what is nearer than it by more than this share of its depth
UNSURE = 0.4  # of a grid's spacing: how near to a point of it the surface may not end
STEP = 0.05  # share of a point's nearness: where that changes more unevenly, the surface ends
SAMPLES = 8_000  # points of the surface that can hide others, at most
REACH = 2.0  # cells: what was so near to a point in the first view is the same piece of surface, and doesn't hide it
FAR_OUT = 4.0  # frame sides from the middle of the frame, where tracks that have left it far behind are kept


@dataclass(frozen=True, eq=False)
class Camera:
    """intrinsics: float64 [3, 3], pixels, without skew; pose: float64 [4, 4], camera-to-world.

    Raises `InputError` where they are not of this shape, not finite, or the pose is no rotation and translation.
    """

    intrinsics: np.ndarray
    pose: np.ndarray

    def __post_init__(self):
        intrinsics, pose = _matrix("intrinsics", self.intrinsics, 3), _matrix("camera_to_world", self.pose, 4)
        expected = _intrinsics(np.diag(intrinsics), intrinsics[:, 2])
        if not (np.array_equal(intrinsics, expected) and (np.diag(expected) > 0).all()):
            raise InputError("intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0")
        axes = pose[:3, :3]
        if np.abs(axes @ axes.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(axes) < 0:
            raise InputError("camera_to_world must turn and shift, not stretch or mirror: its 3x3 part is no rotation")
        if not np.array_equal(pose[3], [0, 0, 0, 1]):
            raise InputError("the last row of camera_to_world must be 0, 0, 0, 1")
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "pose", pose)

    @classmethod
    def facing(cls, width: float, height: float, focal: float) -> Camera:
        """At the origin, looking along z, its principal point in the middle of the frame; focal: pixels."""
        return cls(np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]), np.eye(4))

    @property
    def focal(self) -> np.ndarray:
        """fx, fy in pixels, [2]."""
        return np.diag(self.intrinsics)[:2]

    @property
    def middle(self) -> np.ndarray:
        """The principal point in pixels, [2]."""
        return self.intrinsics[:2, 2]

    def scaled(self, from_size: tuple[float, float], to_size: tuple[float, float]) -> Camera:
        """The camera of the frame after `Tracks.fit`: centre crop from `from_size` (width, height), then resize."""
        factor = max(to / side for side, to in zip(from_size, to_size, strict=True))
        middle = (self.middle - np.array(from_size) / 2) * factor + np.array(to_size) / 2
        return Camera(_intrinsics(self.focal * factor, middle), self.pose)

    def moved(self, motion: np.ndarray, zoom: float = 1.0) -> Camera:
        """After `motion` [4, 4] in its own axes; `zoom` multiplies the focal length."""
        return Camera(_intrinsics(self.focal * zoom, self.middle), self.pose @ motion)

    def project(self, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [N, 3] -> (pixels [N, 2], depth [N]); pixels mean nothing where the depth is not above 0."""
        seen = (np.asarray(world, np.float64) - self.pose[:3, 3]) @ self.pose[:3, :3]
        z = seen[:, 2]
        safe = np.maximum(z, NEAR * np.maximum(np.linalg.norm(seen, axis=1), 1e-300))
        return seen[:, :2] / safe[:, None] * self.focal + self.middle, z

    def unproject(self, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] at depth [N] -> world points [N, 3]."""
        return self.rays(pixels) * np.asarray(depth, np.float64)[:, None] + self.pose[:3, 3]

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """World directions [N, 3] of pixels [N, 2]; one unit of depth long."""
        flat = (np.asarray(pixels, np.float64) - self.middle) / self.focal
        return np.concatenate([flat, np.ones((len(flat), 1))], axis=1) @ self.pose[:3, :3].T


class Surface:
    """What a camera sees, as the points of its depth map: they can be lifted out of the picture, and hide each other.

    depth: [h, w] of the whole frame of `width` x `height` pixels, above 0 and finite; any resolution.
    """

    def __init__(self, camera: Camera, depth: np.ndarray, width: int, height: int):
        if depth.ndim != 2 or not depth.size or not (np.isfinite(depth) & (depth > 0)).all():
            raise InputError("a depth map must be a picture of finite numbers above 0")
        self.camera, self.width, self.height = camera, width, height
        self.depth = np.asarray(depth, np.float64)
        spacing = max(np.sqrt(width * height / SAMPLES), 1.0)
        self._cell = 2 * spacing  # so a surface that comes nearer by some factors still has no gaps
        self._places = pixel_grid(width, height, spacing)
        self._points = self.lift(self._places)

    def depth_at(self, pixels: np.ndarray) -> np.ndarray:
        """Depth [N] at pixels [N, 2] of the frame: that of the nearest sample, so that edges stay edges."""
        rows, columns = self.depth.shape
        column = np.clip(np.floor(pixels[:, 0] * columns / self.width).astype(int), 0, columns - 1)
        row = np.clip(np.floor(pixels[:, 1] * rows / self.height).astype(int), 0, rows - 1)
        return self.depth[row, column]

    def places(self, count: int) -> np.ndarray:
        """A grid of at most about `count` points, [N, 2] pixels, without those near an edge of the surface: where in
        the picture that is, is not known so exactly, and they may be of either side."""
        spacing = np.sqrt(self.width * self.height / count)
        places = pixel_grid(self.width, self.height, spacing)
        places = places[np.linspace(0, len(places) - 1, min(len(places), MAX_TRACKS)).round().astype(int)]
        unsure = self.ends_at(places, UNSURE * spacing)
        return places if unsure.all() else places[~unsure]

    def ends_at(self, pixels: np.ndarray, reach: float) -> np.ndarray:
        """Whether the surface ends within `reach` pixels of these [N, 2], bool [N].

        Nearness, the inverse of depth, changes evenly along a plane. Where it changes by more about a point than it
        does beside that, there is more than a crease.
        """
        ways = reach / 2 * np.array([(1, 0), (0, 1), (1, 1), (1, -1)])
        far, fore, back, behind = (1 / self.depth_at(np.vstack(pixels + k * ways[:, None])) for k in (2, 1, -1, -2))
        step = 2 * (fore - back) - (far - behind)
        return (np.abs(step) > STEP * np.minimum(far, behind)).reshape(len(ways), -1).any(0)

    def lift(self, pixels: np.ndarray) -> np.ndarray:
        """World points [N, 3] of the frame's pixels [N, 2]."""
        return self.camera.unproject(pixels, self.depth_at(pixels))

    def tracks(self, places: np.ndarray, points: np.ndarray, cameras: Sequence[Camera], ids: np.ndarray) -> Tracks:
        """World points [N, 3], lifted at `places` [N, 2], seen by one camera a frame; a track is invisible where its
        point is behind the camera, outside the frame, or hidden."""
        pixels, visible = [], []
        for camera in cameras:
            at, z = camera.project(points)
            ahead = z > 0
            inside = ahead & ((at >= 0) & (at < (self.width, self.height))).all(axis=1)
            visible.append(inside & ~self._hidden(camera, at, z, inside, places))
            pixels.append(self._bounded(at))
        return Tracks(np.stack(pixels), np.stack(visible), ids).in_frame(self.width, self.height)

    def seen_from(self, camera: Camera) -> np.ndarray:
        """The depth map that `camera` sees of this surface, [rows, columns] of about 2 samples a side; NaN where it
        sees none of it."""
        at, z = camera.project(self._points)
        owner = self._front(at, z)
        return np.where(owner >= 0, z[owner], np.nan)

    def _hidden(self, camera, at: np.ndarray, z: np.ndarray, inside: np.ndarray, places: np.ndarray) -> np.ndarray:
        samples, depths = camera.project(self._points)
        front = self._front(samples, depths)
        column, row = np.floor(np.where(inside[:, None], at, 0) / self._cell).astype(int).T
        owner = front[row, column]
        # A farther camera puts more of one and the same piece of surface into a cell, twice so where it is a floor.
        smaller = (z / self.depth_at(places)) ** 2 * self.camera.focal[0] / camera.focal[0]
        apart = np.linalg.norm(self._places[owner] - places, axis=1) > REACH * self._cell * np.maximum(smaller, 1)
        return (owner >= 0) & apart & (z > depths[owner] * (1 + TOLERANCE))

    def _front(self, at: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The z-buffer: number of the nearest of the projected samples in every cell, -1 where there is none."""
        columns, rows = (int(np.ceil(side / self._cell)) for side in (self.width, self.height))
        buffer = np.full((rows, columns), -1)
        order = np.argsort(-z)[: np.count_nonzero(z > 0)]  # far to near: of several writes the last one stays
        corner = np.floor(np.clip(at[order] / self._cell, -9, 9 + max(rows, columns)) - 0.5).astype(int)
        column, row = corner.T[..., None] + np.array([[[0, 1, 0, 1]], [[0, 0, 1, 1]]])
        kept = (0 <= column) & (column < columns) & (0 <= row) & (row < rows)
        buffer[row[kept], column[kept]] = np.broadcast_to(order[:, None], kept.shape)[kept]
        return buffer

    def _bounded(self, at: np.ndarray) -> np.ndarray:
        """Pixels [N, 2]; those far outside the frame, as of points beside or behind the camera, drawn in."""
        middle, limit = np.array([self.width, self.height]) / 2, FAR_OUT * max(self.width, self.height)
        away = at - middle
        return middle + away * np.minimum(1, limit / np.maximum(np.abs(away).max(axis=1, keepdims=True), 1e-9))


def pixel_grid(width: float, height: float, spacing: float) -> np.ndarray:
    """Places [N, 2] about `spacing` pixels apart over the whole frame, the outer ones half of that from its border."""
    columns, rows = max(1, round(width / spacing)), max(1, round(height / spacing))
    x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _intrinsics(focal: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1.0]])


def _matrix(name: str, value: object, side: int) -> np.ndarray:
    try:
        given = np.array(value)
    except ValueError as error:
        raise InputError(f"{name} must be {side} lists of {side} numbers") from error
    if given.shape != (side, side) or given.dtype.kind not in "iuf" or not np.isfinite(given).all():
        raise InputError(f"{name} must be {side} lists of {side} finite numbers")
    matrix = given.astype(np.float64)
    matrix.setflags(write=False)
    return matrix
