"""Cells of the first frame are laid on those of a new one: forward motion becomes backward motion (splatting).

Where several land, one is in front; where none does, something has left (`frames` says what one sees there).
"""

import math

import cv2
import numpy as np

from motionstream.model.warping import CELL, PARTS, cell_numbers, enlarged_motion, nearest_cells, squared, steps

FRONT = 40.0  # log-weight of a cell that is surely in front over one that is surely behind
SLIVER = 0.04  # of a cell's area: what lands by less is not seen there, however far in front it lies
FINEST = 4  # times two to a side, at the most, that cells are laid out finer
STRETCHED, WIDELY = 1.0, 0.01  # pixels by which cells move apart that are laid out finer, and the share that must


def splat(displacement: np.ndarray, front: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns forward motion of the first frame's cells into backward motion of a new frame's cells.

    displacement [P, 2] pixels, front [P]. Each cell is laid on the four cells that it lands between; where several
    land, the ones in front win, and where their motions part, the one that counts most and those like it. Returns
    backward [2, h, w] in pixels (what to add to a new pixel's place to find it in the first frame) and coverage [h, w]:
    the area that landed there, 1 where nothing stretched; more of it where all grows to more than four times.
    """
    h, w = height // CELL, width // CELL
    *landed, x_moved, y_moved, front, covers = laid_out(displacement.T.reshape(2, h, w), front.reshape(h, w))
    corner = np.floor(landed)
    off, after = landed - corner, corner + 1
    sides = np.stack([1 - off, off])  # of the column and of the row that it lands on first, and of the next ones
    sides *= [(0 <= at) & (at < [[w], [h]]) for at in (corner, after)]
    share = (sides[:, None, 1] * sides[None, :, 0]).ravel()
    landing = np.flatnonzero(share > SLIVER)  # what stays lies on one cell, not on four
    which, cell = np.divmod(landing, len(front))
    first = (corner[1] * w + corner[0]).astype(np.intp)
    index, share = first.take(cell) + np.array([0, 1, w, w + 1]).take(which), share.take(landing) * covers.take(cell)
    motion, weight = np.stack([x_moved.take(cell), y_moved.take(cell)]), share * np.exp(FRONT * front).take(cell)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, h * w).astype(np.float32).reshape(h, w)

    total = np.maximum(sums(weight), 1e-12)
    moved = np.stack([sums(weight * along) for along in motion]) / total
    part = sums(weight * np.square(motion).sum(0)) / total - np.square(moved).sum(0) > PARTS**2
    here = np.flatnonzero(part.ravel()[index])
    cells = np.cumsum(part) - 1  # numbers of those where motions part
    moved[:, part] = _foremost(cells[index[here]], weight[here], motion.T[here], np.count_nonzero(part)).T
    return -moved, sums(share)


def laid_out(motion: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Cells as they are laid on a new frame, finer where they are stretched, or there would be gaps between what was
    together: float32 [6, K], where each lands, in columns and rows of cells, its motion, how far in front it lies, and
    how much of a cell it covers. motion [2, h, w] pixels, front [h, w].
    """
    change, parts = steps(motion)
    stretched = (change > STRETCHED) & ~parts
    some = np.count_nonzero(parts) + WIDELY * parts.size  # those beside where things part
    if np.count_nonzero(stretched) <= some:
        return _laid(motion, front, np.ones_like(front))
    grown = 1 + np.median(change[stretched]) / CELL
    finer = 2 * min(FINEST, math.ceil(grown / 4))
    here = cv2.dilate(np.pad((stretched | parts).view(np.uint8), ((0, 1), (0, 1))), np.ones((2, 2), np.uint8))
    fine = enlarged_motion(motion, np.ones_like(front), finer)
    return np.hstack([
        _laid(motion, front, here == 0),
        _laid(fine, *(part.repeat(finer, 0).repeat(finer, 1) for part in (front, here)), finer),
    ])


def _laid(motion: np.ndarray, front: np.ndarray, here: np.ndarray, finer: int = 1) -> np.ndarray:
    """`laid_out` of those cells that are `here` [h, w], so many to a side of one of the first frame's."""
    cells, covers = np.flatnonzero(here), np.float32(1 / min(finer, 2) ** 2)
    numbers = cell_numbers(*front.shape).take(cells, 1)
    motion, front = motion.reshape(2, -1).take(cells, 1), front.ravel().take(cells)
    landed = (numbers + np.float32(0.5)) / finer - np.float32(0.5) + motion / CELL
    return np.vstack([landed, motion, front, np.full_like(front, covers)])


def _foremost(cells: np.ndarray, weight: np.ndarray, motion: np.ndarray, count: int) -> np.ndarray:
    """Of motions [K, 2] that land on so many cells, in each the mean [count, 2] of those like the one that weighs most.

    What lies between two motions is no motion: through it one would see a piece of something else.
    """
    most, order = np.zeros(count, np.intp), weight.argsort()
    most[cells[order]] = order  # of several the last one stays
    weight = weight * (squared(motion - motion[most[cells]]) < PARTS**2)
    sums = [np.bincount(cells, weight * values, count) for values in (*motion.T, 1.0)]
    return (np.stack(sums[:2]) / sums[2]).T


def close_gaps(backward: np.ndarray, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fills cells that stretching left bare from their neighbours, where these part from the nearest one; real holes
    keep confidence 0.

    Returns backward [2, h, w] and confidence [h, w] in [0, 1].
    """
    known = (coverage > 0.05).astype(np.float32)
    near, all_near, *sums = (
        cv2.boxFilter(part, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        for part in (known, np.ones_like(known), *backward * known, np.square(backward).sum(0) * known)
    )
    *mean, square = sums / np.maximum(near, 1)
    filled = np.where(known > 0, backward, mean)
    part = (known == 0) & (square - np.square(mean).sum(0) > PARTS**2)
    if part.any():
        _, nearest = nearest_cells(known > 0)
        filled[:, part] = backward.reshape(2, -1)[:, nearest[part]]
    return filled, np.clip((near / all_near - 0.3) / 0.25, 0, 1)
