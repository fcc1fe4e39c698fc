"""What any model must beat: a video that doesn't move, and the first frame warped by a thin-plate spline."""

from __future__ import annotations

import cv2
import numpy as np

from motionstream.tracks import Tracks

STRIDE = 4  # px between the places where the spline is evaluated; it is smooth, so between them it is interpolated


def motionless(image: np.ndarray, tracks: Tracks) -> np.ndarray:
    """`image` uint8 [H, W, 3], tracks.T times -> uint8 [T, H, W, 3]."""
    return np.repeat(image[None], tracks.T, axis=0)


def warp(image: np.ndarray, tracks: Tracks, pinned_border: bool = False) -> np.ndarray:
    """`image` uint8 [H, W, 3] bent along the tracks -> uint8 [T, H, W, 3]; frame 0 is the image.

    Frame t looks up each pixel in the image where a thin-plate spline through the points visible in frames 0 and t
    says it came from. What it came from outside the image shows the border. Nothing is ever covered or uncovered.
    `pinned_border` holds 5x5 points along the border still, as one would by hand with few drags.
    """
    height, width = image.shape[:2]
    known = tracks.visible & tracks.visible[:1]
    border = _border(width, height) if pinned_border else np.zeros((0, 2))
    frames = [image]
    for t in range(1, tracks.T):
        if np.array_equal(tracks.points[t], tracks.points[t - 1]) and np.array_equal(known[t], known[t - 1]):
            frames.append(frames[-1])  # drags that are over are held for long
            continue
        came_from = np.concatenate([tracks.points[0, known[t]], border])
        went_to = np.concatenate([tracks.points[t, known[t]], border])
        frames.append(_look_up(image, displacement(went_to, came_from - went_to, width, height)))
    return np.stack(frames)


def displacement(points: np.ndarray, values: np.ndarray, width: int, height: int) -> np.ndarray:
    """The spline through `values` [N, 2] at `points` [N, 2] (px), on all pixels -> float32 [height, width, 2], px.

    Evaluated every 4 px, linear in between. N = 0 gives zeros.
    """
    if len(points) == 0:
        return np.zeros((height, width, 2), np.float32)
    x, y = (np.arange(-(-size // STRIDE) + 1) * STRIDE for size in (width, height))
    coarse = thin_plate(points, values, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    coarse = coarse.reshape(len(y), len(x), 2).astype(np.float32)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32) / STRIDE
    return cv2.remap(coarse, grid, None, cv2.INTER_LINEAR)


def thin_plate(points: np.ndarray, values: np.ndarray, at: np.ndarray, smoothing: float = 1e-6) -> np.ndarray:
    """Thin-plate spline (Bookstein 1989) through `values` [N, D] at `points` [N, 2], evaluated `at` [M, 2] -> [M, D].

    Exact on affine motion. Where the points don't fix the affine part (fewer than three, or on a line) it is the
    smallest possible: a single point gives a constant. `smoothing` > 0 lets the spline miss its values a little, so
    that points that (nearly) coincide are averaged; its unit is that of U(r) = r^2 log r^2 with the points' extent 1.
    """
    points, at = np.asarray(points, float), np.asarray(at, float)
    centre = points.mean(axis=0)
    extent = max(np.abs(points - centre).max(), 1.0)
    points, at = (points - centre) / extent, (at - centre) / extent
    n = len(points)
    affine = np.concatenate([np.ones((n, 1)), points], axis=1)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = _bend(points, points) + smoothing * n * np.eye(n)
    system[:n, n:], system[n:, :n] = affine, affine.T
    right = np.concatenate([np.asarray(values, float), np.zeros((3, np.shape(values)[1]))])
    if np.linalg.matrix_rank(affine) == 3:
        weights = np.linalg.solve(system, right)
    else:
        weights = np.linalg.lstsq(system, right, rcond=None)[0]
    return _bend(at, points) @ weights[:n] + weights[n] + at @ weights[n + 1 :]


def _bend(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """U(r) = r^2 log r^2 between all of `a` [M, 2] and `b` [N, 2] -> [M, N]."""
    squared = np.square(a[:, None] - b[None]).sum(axis=-1)
    return squared * np.log(np.maximum(squared, 1e-300))


def _border(width: int, height: int, side: int = 5) -> np.ndarray:
    """`side` points along each side of the frame -> [4 side - 4, 2], px."""
    x, y = np.meshgrid(np.linspace(0, width - 1, side), np.linspace(0, height - 1, side))
    edge = (x == 0) | (x == width - 1) | (y == 0) | (y == height - 1)
    return np.stack([x[edge], y[edge]], axis=-1)


def _look_up(image: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Each pixel of the image at its own place plus `offset` [H, W, 2], px."""
    height, width = image.shape[:2]
    place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    return cv2.remap(image, place + offset.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
