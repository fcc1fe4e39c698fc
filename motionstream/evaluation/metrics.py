"""Measures of a generated video: how close to the real one, did it follow the tracks, is it sharp, did the rest stay.

Videos are uint8 RGB [T, H, W, 3]; coordinates are pixels (x right, y down). Frame 0 is the input image, which every
method is given, so callers leave it out where a measure compares frames (`video[1:]`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from motionstream.tracks import Tracks

PSNR_CAP = 100.0  # dB: what two equal frames score, so that means stay finite
ARRIVAL_PX = 4.0
CHANGED = 20  # steps of 255 by which a channel must differ for a pixel to count as changed


class Tracker(Protocol):
    """Follows points through a video; `lucas_kanade` is one, a learned tracker may be another."""

    def __call__(self, video: np.ndarray, points: np.ndarray) -> Tracks:
        """video uint8 [T, H, W, 3], points float [N, 2] in frame 0 -> Tracks of T frames and N tracks.

        An invisible entry still holds the tracker's last guess.
        """
        ...


@dataclass(frozen=True)
class TrackError:
    """How far a video's points are from where the tracks wanted them; NaN where no wanted point is visible.

    epe, epe_median: px, >= 0, over the visible wanted points, lost or not; pck: share within 4 px, lost points are
    misses, [0, 1]; lost: share that the tracker could not follow, [0, 1].
    """

    epe: float
    epe_median: float
    pck: float
    lost: float


@dataclass(frozen=True)
class Arrival:
    """Where the patch around a drag's start is found again.

    found: px (x, y); distance: px from the target; score: normalised cross-correlation there, [-1, 1] (0 where the
    patch or everything around it has no texture); arrived: within 4 px of the target at a score of `min_score`.
    """

    found: tuple[float, float]
    distance: float
    score: float
    arrived: bool


def psnr(video: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean over frames of the peak signal-to-noise ratio, dB, at most 100; higher is better.

    `mask` bool [T, H, W] restricts it to a region; frames in which that is empty don't count, NaN if all are.
    """
    _same_shape(video, reference)
    error = np.square(video.astype(np.float32) - reference).mean(axis=-1)
    mask = np.ones(error.shape, bool) if mask is None else mask
    regions = [frame[region] for frame, region in zip(error, mask, strict=True) if region.any()]
    means = np.array([region.mean(dtype=np.float64) for region in regions])
    floor = 255.0**2 / 10 ** (PSNR_CAP / 10)
    return float(np.mean(10 * np.log10(255.0**2 / np.maximum(means, floor)))) if len(means) else float("nan")


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean over frames and channels of the structural similarity (Wang et al. 2004), [-1, 1]; higher is better.

    Gaussian window of 11x11 px, sigma 1.5, K1 = 0.01, K2 = 0.03; windows that leave the frame don't count.
    """
    _same_shape(video, reference)
    if min(video.shape[1:3]) < 11:
        raise ValueError(f"frames are {video.shape[2]}x{video.shape[1]}; structural similarity needs 11x11 or more")
    return float(np.mean([_ssim_frame(a, b) for a, b in zip(video, reference, strict=True)]))


def _ssim_frame(a: np.ndarray, b: np.ndarray) -> float:
    def local_mean(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    a, b = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (var_a + var_b + c2)))


def visible_region(tracks: Tracks, width: int, height: int, radius: float) -> np.ndarray:
    """Pixels that were already to be seen in frame 0: those within `radius` px of a visible track -> bool [T, H, W].

    The rest is uncovered: new at the frame's edge, or it was hidden behind something. `tracks` must start in frame 0
    on a grid that is denser than `radius`, so the split is as fine as that grid; what the tracker lost counts as
    uncovered.
    """
    region = np.empty((tracks.T, height, width), bool)
    for t in range(tracks.T):
        free = np.ones((height, width), np.uint8)
        seen = tracks.in_frame(width, height).visible[t]
        x, y = tracks.points[t, seen].astype(int).T
        free[y, x] = 0
        region[t] = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius if len(x) else False
    return region


def lucas_kanade(video: np.ndarray, points: np.ndarray, window: int = 15, levels: int = 3, tolerance: float = 1.0):
    """A `Tracker`: pyramidal Lucas-Kanade from frame to frame (OpenCV), `window` px square, `levels` halvings.

    A point is invisible from the first frame on where tracking back ends more than `tolerance` px from where it came
    from, and while it is out of the frame.
    """
    height, width = video.shape[1:3]
    settings = {"winSize": (window, window), "maxLevel": levels}
    path = np.repeat(np.asarray(points, np.float32)[None], len(video), axis=0)
    visible = np.ones(path.shape[:2], bool)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    for t in range(1, len(video) if path.shape[1] else 0):
        path[t], found, _ = cv2.calcOpticalFlowPyrLK(gray[t - 1], gray[t], path[t - 1], None, **settings)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(gray[t], gray[t - 1], path[t], None, **settings)
        kept = np.linalg.norm(back - path[t - 1], axis=1) <= tolerance
        visible[t] = visible[t - 1] & kept & (found & found_back).ravel().astype(bool)
    return Tracks(path, visible, np.arange(path.shape[1])).in_frame(width, height)


def track_error(video: np.ndarray, wanted: Tracks, tracker: Tracker = lucas_kanade) -> TrackError:
    """The video's own motion against the wanted one: `video` is tracked from the wanted points of frame 0.

    Tracks that are not visible in frame 0 are left out (the image doesn't show their point). The tracker has errors of
    its own: track the real video for its floor. A warp flatters this measure, because it never occludes anything.
    """
    starts = np.flatnonzero(wanted.visible[0])
    found = tracker(video, wanted.points[0, starts])
    compared = wanted.visible[1:, starts]
    if not compared.any():
        return TrackError(*[float("nan")] * 4)
    error = np.linalg.norm(found.points[1:] - wanted.points[1:, starts], axis=-1)[compared]
    kept = found.visible[1:][compared]
    hits = kept & (error <= ARRIVAL_PX)
    return TrackError(float(error.mean()), float(np.median(error)), float(hits.mean()), float(1 - kept.mean()))


def evenly_lit(video: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] with frame 0's mean and deviation of luma in every frame: a tracker loses what turns dark."""
    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]).astype(np.float32)
    mean, deviation = (x[:, None, None, None] for x in (luma.mean((1, 2)), luma.std((1, 2)).clip(1)))
    even = (video - mean) * (deviation[:1] / deviation) + mean[:1]
    return even.round().clip(0, 255).astype(np.uint8)


def measurable(video: np.ndarray, tracks: Tracks, tracker: Tracker = lucas_kanade) -> Tracks:
    """`tracks` of `video`, invisible where the tracker itself loses them or is more than 4 px off.

    What cannot be measured on the truth says nothing about a generated video either.
    """
    starts = np.flatnonzero(tracks.visible[0])
    found, visible = tracker(video, tracks.points[0, starts]), np.zeros_like(tracks.visible)
    near = np.linalg.norm(found.points - tracks.points[:, starts], axis=-1) <= ARRIVAL_PX
    visible[:, starts] = tracks.visible[:, starts] & found.visible & near
    return Tracks(tracks.points, visible, tracks.ids)


def sharpness(frames: np.ndarray, first: np.ndarray) -> float:
    """Mean Laplacian energy of `frames` [T, H, W, 3] over that of `first` [H, W, 3]; 1 is as sharp, noise is above.

    Energy is the mean squared Laplacian (3x3, four neighbours) of the luma. NaN where `first` is flat.
    """
    base = _laplacian_energy(first)
    return float(np.mean([_laplacian_energy(frame) for frame in frames]) / base) if base > 0 else float("nan")


def _laplacian_energy(frame: np.ndarray) -> float:
    return float(np.square(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F)).mean())


def arrival(first: np.ndarray, last: np.ndarray, start, target, radius: int = 10, min_score: float = 0.6) -> Arrival:
    """Has what was at `start` in frame `first` come to `target` in frame `last`? Frames uint8 [H, W, 3], points px.

    The patch of 2 `radius` + 1 px around the start, weighted by a Gaussian so that its centre counts, is searched in
    the box around start and target with 2 `radius` px of margin, by zero-mean normalised cross-correlation in colour
    (indifferent to brightness and contrast). Its best place there must be the target: an object that stayed, or left
    a copy of itself behind, has its best match at the start.
    """
    start, target = np.asarray(start, float), np.asarray(target, float)
    margin = 3 * radius
    low = np.floor(np.minimum(start, target)).astype(int) - margin
    high = np.ceil(np.maximum(start, target)).astype(int) + margin
    patch = _box(first, np.round(start).astype(int) - radius, np.round(start).astype(int) + radius)
    weight = cv2.getGaussianKernel(2 * radius + 1, radius / 2)
    weight = np.repeat((weight @ weight.T)[..., None], 3, axis=2).astype(np.float32)
    scores = cv2.matchTemplate(_box(last, low, high), patch, cv2.TM_CCOEFF_NORMED, mask=weight)
    scores = np.where(np.isfinite(scores), np.clip(scores, -1, 1), 0)  # no texture, no correlation
    y, x = np.unravel_index(scores.argmax(), scores.shape)
    # The match is of whole pixels: keep the part of the start that rounding took away.
    found = low + np.array([x, y]) + radius + (start - np.round(start))
    distance, score = float(np.linalg.norm(found - target)), float(scores[y, x])
    return Arrival(tuple(found.tolist()), distance, score, distance <= ARRIVAL_PX and score >= min_score)


def _box(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Pixels low <= (x, y) <= high of `image`, mirrored where the box leaves it -> float32."""
    height, width = image.shape[:2]
    x, y = (_mirror(np.arange(low[i], high[i] + 1), size) for i, size in enumerate((width, height)))
    return image[y[:, None], x].astype(np.float32)


def _mirror(index: np.ndarray, size: int) -> np.ndarray:
    index = np.abs(index) % (2 * size - 2) if size > 1 else np.zeros_like(index)
    return np.minimum(index, 2 * size - 2 - index) if size > 1 else index


def rest_changed(first: np.ndarray, last: np.ndarray, paths: list[np.ndarray], distance: float) -> float:
    """Share of the pixels farther than `distance` px from every drag that changed, [0, 1]; lower is better.

    A pixel changed where a channel differs by more than 20 of 255. `paths` are the drags, each [n, 2] px. NaN where no
    pixel is that far away.
    """
    free = np.ones(first.shape[:2], np.uint8)
    for path in paths:
        cv2.polylines(free, [np.round(path).astype(np.int32).reshape(-1, 1, 2)], False, 0)
    rest = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > distance
    changed = np.abs(last.astype(int) - first).max(axis=-1) > CHANGED
    return float(changed[rest].mean()) if rest.any() else float("nan")


def _same_shape(video: np.ndarray, reference: np.ndarray) -> None:
    if video.shape != reference.shape or video.ndim != 4:
        raise ValueError(f"video has shape {list(video.shape)}, reference {list(reference.shape)}; expected equal "
                         "[frames, height, width, 3]")
