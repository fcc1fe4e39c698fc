"""What a tracker's tracks tell, as those of a clip: they come and go, and where one starts does not tell what it is of.

A tracker's corners lie where a thing ends before what is behind it, and are of either. What comes into sight beside a
thing that has moved starts where nothing of the first frame is. How they move tells (`strays`). And what is missed of
their motion adds up over the chunks: things must not fall to pieces over it (`in_one_piece`). Nor must they where a
camera moves and all else goes past them (`as_their_tracks`).
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.model.least_squares import most_go
from motionstream.model.warping import CELL, cell_numbers, squared
from motionstream.tracks import Tracks

NEIGHBOURS = 5  # tracks of a thing, and of the background, that tell how either moves
UNSURE = 1.0  # pixels by which a track has to move less like the thing that it lies on
LESS = 0.5  # of how it moves unlike the thing: how much unlike the background, at the most
HOLE = 4.0  # pixels from a track to the nearest cell of the first frame, more than which it is on none
WITHIN = 2  # cells: what is farther than these from where a thing ends is surely on it, or surely is not
# How far parts stray, at the most, from how most of a thing moves, of its size; within how much of that they go alike;
# and how much longer one side may get, to the other.
THING = 0.03, 0.05, 1.05
BACKGROUND = 0.15, 0.0, 1e6  # it is not of one piece, but lies near and far
FROM_ALL_SIDES = 0.07, 0.05, 1e6  # a thing that a camera moves about: near parts of it are larger, and it gets narrow
LEAST, MOST = 2.0, 4.0  # cells within which parts go alike
WHOLE = 0.8  # of a thing's tracks that go as one
SMALL = 12  # cells, fewer of which do not tell
MANY = 8  # motions
STEP = 0.05  # pixels by which two of them differ
RIGID = 1e-3  # pixels by which points of a grid come nearer to each other, or part: by rounding alone
OWN = 1e-4  # share of a cell's following that tracks of its own thing have, at the least: else it does not look like it


def well_within(number: np.ndarray) -> np.ndarray:
    """Which cells, bool [h, w], are surely of the thing, or of the background, that `number` [h, w] says."""
    around, values = np.ones((2 * WITHIN + 1, 2 * WITHIN + 1), np.uint8), number.astype(np.float32)
    return cv2.dilate(values, around) == cv2.erode(values, around)


def each_by_itself(points: np.ndarray, visible: np.ndarray) -> bool:
    """Whether tracks that come while others go on are a tracker's: several that do not move alike, as those of a
    visitor's grid do, or turn as one. points [T, N, 2], pixels, and visible [T, N]."""
    seen = visible.any(0)
    points, visible, tracks = points[:, seen], visible[:, seen], np.arange(seen.sum())
    first, last = visible.argmax(0), len(visible) - 1 - visible[::-1].argmax(0)
    steps = np.rint((points[last, tracks] - points[first, tracks]) / STEP)
    if len(np.unique(steps, axis=0)) < MANY:
        return False
    begin, *later = (np.hypot(*(at[:, None] - at).T) for at in (points[0], points[len(points) // 2], points[-1]))
    grid = np.all([np.abs(away - begin) < RIGID for away in later], axis=0)
    return len(np.unique(steps[np.unique(grid.argmax(1))], axis=0)) >= MANY  # of each grid one


def of_the_background(
    tracks: Tracks, known: np.ndarray, here: np.ndarray, cells: np.ndarray, number: np.ndarray, landed: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Tracks that seem to lie on a thing, but move as what is behind it, or begin where that has been uncovered: which,
    and the cell of the background that is nearest.

    known: bool [N], those that are not asked about; here [N, 2], where they are first seen now, pixels, and cells [N],
    of the first frame, that seem to be there; number: see `pieces.numbered`; landed [P, 2]: where all cells are now.
    """
    held, background = number.ravel()[cells], np.flatnonzero(number.ravel() == 0)
    asked = ~known & tracks.visible.any(0)
    tell = known if known.any() else well_within(number).ravel()[cells]
    uncovered = (held > 0) & (np.linalg.norm(here - landed[cells], axis=1) > HOLE)
    found = asked & (strays(tracks.points, tracks.visible, held, asked, tell) | uncovered)
    for n in np.flatnonzero(found) if len(background) else ():
        yield int(n), int(background[squared(landed[background] - here[n]).argmin()])


def strays(
    points: np.ndarray, visible: np.ndarray, held: np.ndarray, asked: np.ndarray, tell: np.ndarray
) -> np.ndarray:
    """Which of the tracks asked about, bool [N], lie on a thing and move as the background beside it does, not as it.

    points [T, N, 2], pixels, and visible [T, N]; held [N]: number of the thing that each lies on, 0 of the background;
    tell [N]: which are known to be of what they lie on. Of a thing of which none is nothing is known.
    """
    found = np.zeros(len(held), bool)
    for thing in np.unique(held[asked & (held > 0)]):
        on, own = np.flatnonzero(asked & (held == thing)), np.flatnonzero(tell & (held == thing))
        behind = np.flatnonzero(tell & (held == 0))
        if len(own) and len(behind):
            like, unlike = (_unlike(points, visible, on, others) for others in (behind, own))
            found[on] = like + UNSURE < LESS * unlike
    return found


def _unlike(points: np.ndarray, visible: np.ndarray, tracks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much, in pixels, each of the tracks [K] moves unlike those nearest to it of others [M], the median [K];
    nan where it is seen with none."""
    first = visible[:, tracks].argmax(0)
    away = np.linalg.norm(points[first, tracks][:, None] - points[first][:, others], axis=2)  # [K, M]
    away = np.where(visible[first][:, others], away, np.inf)
    nearest = others[away.argsort(1)[:, :NEIGHBOURS]]  # [K, n]
    both = visible[:, tracks, None] & visible[:, nearest]  # [T, K, n]
    off = points[:, tracks, None] - points[:, nearest]
    off = np.where(both[..., None], off - off[first, np.arange(len(tracks))], 0)
    unlike = np.linalg.norm(off, axis=3).max(0)
    seen = both.sum(0) > 1
    return np.ma.median(np.ma.array(unlike, mask=~seen), axis=1).filled(np.nan)


def own_tracks(weights: Tensor, number: np.ndarray, held: np.ndarray) -> Tensor:
    """Shares [P, 1 + N] of staying and of following each track, where cells of a thing that tracks hold follow these.

    number [h, w] of the thing that each cell is of, see `pieces.numbered`; held: as `strays` takes it.
    """
    of = torch.from_numpy(number).flatten()
    kept = weights[:, 1:] * (of[:, None] == torch.from_numpy(held))
    total, before = kept.sum(1, keepdim=True), weights[:, 1:].sum(1, keepdim=True)
    kept = kept * before / total.clamp_min(1e-12)
    takes = (of[:, None] > 0) & (total > OWN * before)
    return torch.cat([weights[:, :1], torch.where(takes, kept, weights[:, 1:])], 1)


def in_one_piece(displacement: Tensor, number: np.ndarray) -> Tensor:
    """Displacement [T, P, 2] of cells, pixels, where things, and the background, bend, but are not torn.

    What strays far from the affine motion of most of a thing goes as what is around it, and parts that are near go
    alike. number [h, w]: of the thing that each cell is of, see `pieces.numbered`.
    """
    places, moved = cell_numbers(*number.shape), displacement.numpy().copy()
    for thing in range(number.max() + 1):
        cells = np.flatnonzero(number.ravel() == thing)
        if len(cells) >= SMALL:
            moved[:, cells] = _bent(moved[:, cells], places[:, cells], *(THING if thing else BACKGROUND))
    return torch.from_numpy(moved)


def as_their_tracks(
    motion: Tensor, anchors: np.ndarray, moved: np.ndarray, visible: np.ndarray, held: np.ndarray, number: np.ndarray
) -> Tensor:
    """Motion [T, P, 2] of cells, pixels, where a thing whose own tracks go as one piece, all but a few, goes so.

    Where a camera moves and all else goes past it, no part of it is left behind that looks like something else, nor one
    that has left the frame, of which nothing is known. anchors [N, 2] and moved [T, N, 2], pixels; visible [T, N]; held
    [N]: of the thing that each lies on; number [h, w]: of the thing that each cell is of.
    """
    places, found, at = cell_numbers(*number.shape), motion.numpy().copy(), anchors.T / CELL - 0.5
    for thing in np.unique(held[held > 0]):
        cells = np.flatnonzero(number.ravel() == thing)
        limit = FROM_ALL_SIDES[0] * CELL * len(cells) ** 0.5
        for gone, seen, going in zip(moved, visible & (held == thing), found, strict=True):
            if len(cells) < SMALL or not seen.any():
                continue
            basis = _basis(at[:, seen], places[:, cells])
            affine = most_go(basis, gone[seen], limit / 2)
            if (np.hypot(*(gone[seen] - basis.T @ affine).T) < limit).mean() > WHOLE:
                going[cells] = _bent(going[None, cells], places[:, cells], *FROM_ALL_SIDES, affine[None])
    return torch.from_numpy(found)


def _basis(at: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[3, N]: 1, and where these [2, N] are from the middle of a thing, with cells at `places` [2, K], by its size."""
    return np.vstack([np.ones(at.shape[1]), (at - places.mean(1, keepdims=True)) / places.shape[1] ** 0.5])


def _bent(
    moved: np.ndarray,
    places: np.ndarray,
    limit: float,
    spread: float,
    longer: float,
    affine: np.ndarray | None = None,
) -> np.ndarray:
    """Motion [T, K, 2] of the cells of one thing, at places [2, K], where none strays further than `limit` of its size,
    those within `spread` of that go alike, and it is not sheared so that one side gets so much `longer` to another.

    affine: how most of it goes, [T, 3, 2] by `_basis`; None for how most of its cells do.
    """
    cells = places.shape[1]
    side = cells**0.5
    most = limit * CELL * side
    basis = _basis(places, places)
    if affine is None:
        affine = most_go(basis, moved, most / 2)
    rest = np.float32(moved - basis.T @ affine)
    keeps = np.square(rest).sum(2, keepdims=True) < most**2
    column, row = (places - places.min(1, keepdims=True)).astype(int)
    plane = np.zeros((row.max() + 1, column.max() + 1, 3 * len(moved)), np.float32)
    plane[row, column] = np.concatenate([rest * keeps, keeps], 2).swapaxes(0, 1).reshape(cells, -1)
    sums = cv2.GaussianBlur(plane, (0, 0), np.clip(spread * side, LEAST, MOST), borderType=cv2.BORDER_CONSTANT)
    sums = sums[row, column].reshape(cells, -1, 3).swapaxes(0, 1)
    excess = _sheared(np.eye(2) + affine[:, 1:] / (CELL * side), longer) * CELL * side
    return np.float32(moved - rest + sums[..., :2] / np.maximum(sums[..., 2:], 1e-3) - basis[1:].T @ excess)


def _sheared(linear: np.ndarray, longer: float) -> np.ndarray:
    """What of linear maps [T, 2, 2] makes one side more than so much `longer` to another than it was.

    Without it, a thing is as nearly as large as it was as both sides allow: squeezed, it does not get small.
    """
    turned, sides, back = np.linalg.svd(linear)
    most, least = sides.T
    size = np.clip(1, least * longer**0.5, np.maximum(most / longer**0.5, least * longer**0.5))[:, None]
    kept = sides.clip(size / longer**0.5, size * longer**0.5)
    return np.where((most > longer * least)[:, None, None], linear - (turned * kept[:, None]) @ back, 0)
