"""Point trackers: frames go in as they come, `Tracks` come out. Two of them behind one protocol.

- `LucasKanade`: pyramidal Lucas-Kanade flow (OpenCV) with a forward-backward check; always there, real time on a CPU.
  Its points are corners, one to a cell of a grid; where cells have lost their points, corners are sought again.
- `CoTracker3` (https://github.com/facebookresearch/co-tracker, code and weights CC-BY-NC 4.0, so not part of this
  project): loaded with torch.hub from its repository at a pinned commit, or from the checkout that the variable
  MOTIONSTREAM_COTRACKER names; weights from the Hub. Online for what is live, offline for files. It follows any point,
  also behind others, in windows; when too many points are hidden or have left, a new window fills its grid up.

    tracker = open_tracker("auto", Seeds(20), live=True)
    for frames in clip:                                   # uint8 RGB [n, H, W, 3], any n
        tracks = tracker.follow(frames)                   # of the frames that are settled now: none to all, and more
    rest = tracker.finish()

Memory is bounded by the window, however long the clip. A track's ID is one point's for as long as numbers last; blocks
may have different IDs: points are lost and found. `motionstream.tracks.join` puts blocks together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import nn

from motionstream.controls.layers import BASE_IDS, base_ids
from motionstream.errors import InputError
from motionstream.model.device import gpu_at_hand
from motionstream.tracks import MAX_TRACKS, Tracks, join

TRACKERS = ("auto", "cotracker3", "lucas-kanade")
CHECKOUT = "MOTIONSTREAM_COTRACKER"  # environment variable: a folder with CoTracker's repository
REPOSITORY = "facebookresearch/co-tracker:82e02e8029753ad4ef13cf06be7f4fc5facdda4d"
WEIGHTS = "facebook/cotracker3"
LICENCES = {
    "cotracker3": "CoTracker3 by Meta, CC-BY-NC 4.0: not for commercial use",
    "lucas-kanade": "Lucas-Kanade optical flow: finds visible corners, loses what is hidden",
}
MIN_GRID, MAX_GRID = 4, 50
FOUND_BACK = 1.0  # pixels: a point that flow there and back brings further away is lost
QUALITY = 0.002  # of the best corner's strength: weaker ones are none
WEAKEST = 1e-5  # corner strength below which there is nothing to follow
EMPTY_CELLS = 0.1  # share of the cells: so many must have lost their points before corners are sought again
FLOW = {
    "winSize": (11, 11),
    "maxLevel": 4,
    "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
}
VISIBLE_SHARE = 0.6  # of CoTracker's points; with fewer its grid is filled up
OFFLINE_WINDOW = 60  # frames that offline CoTracker sees together where clips have any length, as it was trained


class Tracker(Protocol):
    """Follows points through frames that come one after the other. Frame 0 decides where points are."""

    name: str

    def follow(self, frames: np.ndarray) -> Tracks:
        """The next frames, uint8 RGB [n, H, W, 3] -> tracks of those frames that are settled now, in order; T >= 0."""

    def finish(self) -> Tracks:
        """No more frames -> tracks of those that were not settled yet."""


@dataclass(frozen=True)
class Seeds:
    """Where points are sought: cells of a grid, `grid` along the frame's longer side.

    rows: of cells, which else are square; `grid` is then the number of columns.
    region: polygon [K, 2] in shares of the frame's width and height, in frame 0; None: everywhere.
    """

    grid: int = 20
    region: tuple[tuple[float, float], ...] | None = None
    rows: int | None = None

    def cells(self, width: int, height: int) -> tuple[int, int, float]:
        """Columns and rows of cells, and a cell's side in pixels, the longer one."""
        if self.rows:
            return self.grid, self.rows, max(width / self.grid, height / self.rows)
        side = max(width, height) / self.grid
        return max(1, round(width / side)), max(1, round(height / side)), side

    def number(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """The cell [N] that each point [N, 2], inside the frame, lies in."""
        columns, rows, _ = self.cells(width, height)
        at = (points / (width, height) * (columns, rows)).astype(int).clip(0, (columns - 1, rows - 1))
        return at[:, 1] * columns + at[:, 0]

    def centres(self, width: int, height: int) -> np.ndarray:
        """The middles [cells, 2] of all cells, pixels."""
        columns, rows, _ = self.cells(width, height)
        x, y = np.meshgrid((np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows)
        return np.stack([x, y], axis=-1).reshape(-1, 2)

    def mask(self, width: int, height: int, shift: np.ndarray) -> np.ndarray:
        """uint8 [height, width]: where the region is after it has moved by `shift` [2] pixels."""
        if self.region is None:
            return np.ones((height, width), np.uint8)
        polygon = np.array(self.region) * (width, height) + shift
        return cv2.fillPoly(np.zeros((height, width), np.uint8), [polygon.round().astype(np.int32)], 1)


class _Points:
    """The live points of a tracker: ids, where they are, how far the region has moved along with them."""

    def __init__(self, seeds: Seeds, seed: int):
        self.seeds, self.rng = seeds, np.random.default_rng(seed)
        self.used: dict[int, None] = {}  # numbers, in the order in which they were given up; those in use last
        self.ids, self.at, self.shift = np.zeros(0, np.int64), np.zeros((0, 2), np.float32), np.zeros(2)

    def add(self, points: np.ndarray) -> None:
        """Takes in new points [N, 2], as many as there is room for."""
        points = points[: MAX_TRACKS - len(self.ids)]
        for number in list(self.used)[: max(0, len(self.used) + len(points) - BASE_IDS)]:
            del self.used[number]  # it may be another point's from now on
        new = base_ids(len(points), self.rng, self.used)
        self.used.update(dict.fromkeys(new.tolist()))
        self.ids, self.at = np.concatenate([self.ids, new]), np.concatenate([self.at, points.astype(np.float32)])

    def move(self, at: np.ndarray, keep: np.ndarray) -> None:
        """All points are at `at` [N, 2] now; those that are not in `keep` [N] are given up."""
        if keep.any():
            self.shift = self.shift + np.median(at[keep] - self.at[keep], axis=0)
        for number in self.ids[keep].tolist():
            self.used[number] = self.used.pop(number)
        self.ids, self.at = self.ids[keep], at[keep].astype(np.float32)

    def bare(self, width: int, height: int) -> np.ndarray:
        """Whether [cells] each cell has no point in it."""
        columns, rows, _ = self.seeds.cells(width, height)
        bare = np.ones(columns * rows, bool)
        bare[self.seeds.number(self.at, width, height)] = False
        return bare


class LucasKanade:
    """A `Tracker`. seed: of the ID numbers."""

    name = "lucas-kanade"

    def __init__(self, seeds: Seeds, seed: int = 0):
        self._points = _Points(seeds, seed)
        self._gray: np.ndarray | None = None  # the newest frame

    def follow(self, frames: np.ndarray) -> Tracks:
        if not len(frames):
            return Tracks.empty(0)
        grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        if self._gray is None:
            self._gray = grays[0]
            self._seek(0.0)
        at, alive = self._points.at, np.ones(len(self._points.ids), bool)
        path, visible = np.zeros((len(frames), len(at), 2), np.float32), np.zeros((len(frames), len(at)), bool)
        for t, gray in enumerate(grays):
            if gray is not self._gray and alive.any():
                at = at.copy()
                there, found = flow(self._gray, gray, at[alive])
                at[alive] = np.where(_likely(there - at[alive], found)[:, None], there, at[alive])
                alive[alive] = found
            path[t], visible[t], self._gray = at, alive, gray
        tracks = Tracks(path, visible, self._points.ids)
        self._points.move(at, alive)
        self._seek(EMPTY_CELLS)
        return tracks

    def finish(self) -> Tracks:
        return Tracks.empty(0)

    def _seek(self, share: float) -> None:
        """A corner for every bare cell that has one, if more than `share` of such cells are bare."""
        height, width = self._gray.shape
        seeds = self._points.seeds
        strength = cv2.cornerMinEigenVal(self._gray, 5)
        threshold = max(WEAKEST, QUALITY * strength.max())
        strength = strength * seeds.mask(width, height, self._points.shift)
        y, x = (strength >= threshold).nonzero()
        spots = np.stack([x, y], axis=-1)[np.argsort(strength[y, x])[::-1]]  # strongest first
        _, first = np.unique(cells := seeds.number(spots, width, height), return_index=True)
        bare = self._points.bare(width, height)[cells[first]]
        if bare.sum() > share * len(first):
            self._points.add(spots[first[bare]])


def _likely(steps: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which [N] of the steps [N, 2] may be true: of points that were not found, those about as long as steps usually
    are, as of one that leaves the frame. The others are made up, and lead anywhere; at a cut most are."""
    length = np.linalg.norm(steps, axis=1)
    usual = np.median(length[found]) if 2 * found.sum() > len(found) else 0.0
    return found | (length <= 2 * usual + 2)


def flow(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] of a gray frame in the next one, and whether [N] they are in it and find the way back."""
    forth, there, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **FLOW)
    back, again, _ = cv2.calcOpticalFlowPyrLK(after, before, forth, None, **FLOW)
    near = np.linalg.norm(back - points, axis=1) < FOUND_BACK
    inside = ((forth >= 0) & (forth < before.shape[::-1])).all(axis=1)
    return forth, (there & again).ravel().astype(bool) & near & inside


class CoTracker3:
    """A `Tracker` around one of CoTracker's predictors.

    predictor: `CoTrackerOnlinePredictor`, or with `live` false `CoTrackerPredictor`. The online one is called as in its
    own demo: once with `is_first_step` and the queries, then with windows of 2 * step frames that overlap by step.
    The other one sees `window` frames together, which overlap by one.
    """

    name = "cotracker3"

    def __init__(
        self,
        predictor: nn.Module,
        seeds: Seeds,
        seed: int = 0,
        live: bool = True,
        device: str = "cpu",
        window: int = OFFLINE_WINDOW,
    ):
        self._predictor, self._points, self._live, self._device = predictor, _Points(seeds, seed), live, device
        self._window = 2 * predictor.step if live else window
        self._step = predictor.step if live else window - 1  # frames that one window settles
        self._pending: list[np.ndarray] = []  # frames from the first one on that is not settled
        self._begun = False  # whether the predictor knows the present points

    def follow(self, frames: np.ndarray) -> Tracks:
        self._pending += list(frames)
        blocks = [Tracks.empty(0)]
        while len(self._pending) >= self._window:
            blocks.append(self._settle(self._step))
        return join(blocks)

    def finish(self) -> Tracks:
        count = len(self._pending)
        if not count:
            return Tracks.empty(0)
        if self._live:  # its windows have one length only
            self._pending += [self._pending[-1]] * (self._window - count)
        tracks = self._settle(count)
        self._pending = []
        return tracks

    def _settle(self, count: int) -> Tracks:
        """Tracks of the first `count` pending frames, which then are no longer pending."""
        height, width = self._pending[0].shape[:2]
        if not self._begun:
            self._fill(width, height)
        if not len(self._points.ids):
            self._pending = self._pending[count:]
            return Tracks.empty(count)
        points, visible = self._predict(np.stack(self._pending[: self._window]))
        tracks = Tracks(points[:count], visible[:count], self._points.ids).in_frame(width, height)
        self._pending = self._pending[count:]
        following = min(count, len(points) - 1)
        seen = Tracks(points, visible, self._points.ids).in_frame(width, height).visible[following]
        enough = seen.mean() >= VISIBLE_SHARE
        self._begun = self._live and enough
        self._points.move(points[following], seen if not self._begun else np.ones(len(seen), bool))
        return tracks

    def _fill(self, width: int, height: int) -> None:
        """A point for every bare cell, on the first pending frame."""
        centres = self._points.seeds.centres(width, height)
        x, y = centres.astype(int).T
        wanted = self._points.seeds.mask(width, height, self._points.shift)[y, x] > 0
        self._points.add(centres[wanted & self._points.bare(width, height)])

    @torch.inference_mode()
    def _predict(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A window's frames -> points [window, N, 2] and visibility [window, N]."""
        video = torch.from_numpy(frames).to(self._device).float().permute(0, 3, 1, 2)[None]  # [1, T, 3, H, W], 0..255
        queries = None
        if not self._begun:
            at = torch.from_numpy(self._points.at).to(self._device)
            queries = torch.cat([torch.zeros_like(at[:, :1]), at], dim=1)[None]  # (t, x, y)
        if not self._live:
            points, visible = self._predictor(video, queries=queries)
        else:
            if queries is not None:
                self._predictor(video_chunk=video, is_first_step=True, queries=queries)
                self._begun = True
            points, visible = self._predictor(video_chunk=video)
        points, visible = points[0, -len(frames) :], visible[0, -len(frames) :]
        return points.float().cpu().numpy(), visible.bool().cpu().numpy()


def open_tracker(name: str, seeds: Seeds, live: bool, seed: int = 0, window: int = OFFLINE_WINDOW) -> Tracker:
    """A tracker by name (one of TRACKERS). live: frames come one by one and tracks are wanted soon; window: frames
    that CoTracker3 sees together if they do not.

    "auto" is CoTracker3 where there is a GPU or a checkout, if it can be loaded, else Lucas-Kanade. `InputError` if the
    name is not known, or CoTracker3 was asked for and cannot be had.
    """
    if name not in TRACKERS:
        raise InputError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
    if name == "lucas-kanade" or (name == "auto" and not (gpu_at_hand() or os.environ.get(CHECKOUT))):
        return LucasKanade(seeds, seed)
    try:
        predictor, device = load_cotracker(live)
    except InputError:
        if name == "auto":
            return LucasKanade(seeds, seed)
        raise
    return CoTracker3(predictor, seeds, seed, live, device, window)


def load_cotracker(live: bool) -> tuple[nn.Module, str]:
    """CoTracker3's online or offline predictor with its weights, and the device it is on."""
    from huggingface_hub import hf_hub_download

    kind, checkout = "online" if live else "offline", os.environ.get(CHECKOUT)
    local = Path(checkout or "", "checkpoints", f"scaled_{kind}.pth")
    try:
        predictor = torch.hub.load(
            checkout or REPOSITORY,
            f"cotracker3_{kind}",
            source="local" if checkout else "github",
            trust_repo=True,
            skip_validation=True,
            pretrained=False,
        )
        weights = local if checkout and local.exists() else hf_hub_download(WEIGHTS, local.name)
        predictor.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, ImportError, ValueError, RuntimeError) as error:  # no network, no such folder, foreign weights
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"CoTracker3 cannot be loaded ({reason}): choose the tracker lucas-kanade, or set {CHECKOUT} to a"
            " checkout of its repository"
        ) from error
    device = "cuda" if gpu_at_hand() else "cpu"
    return predictor.to(device), device
