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
LEAST = 0.1  # of its area that is left of what has not shrunk to next to nothing
STRETCHED, WIDELY = 1.0, 0.01  # pixels by which cells move apart that are laid out finer, and the share that must


def splat(displacement: np.ndarray, front: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns forward motion of the first frame's cells into backward motion of a new frame's cells.

    displacement [P, 2] pixels, front [P]. Each cell is laid on the four cells that it lands between; where several
    land, the ones in front win, and where their motions part, the one that counts most and those like it. Returns
    backward [2, h, w] in pixels (what to add to a new pixel's place to find it in the first frame) and coverage [h, w]:
    the area that landed there, 1 where nothing stretched; more of it where all grows to more than four times.
    """
    h, w = height // CELL, width // CELL
    laid = laid_out(displacement.T.reshape(2, h, w), front.reshape(h, w))
    landed, motion, (covers, front), slope = laid[:2], laid[2:4], laid[4:6], laid[6:]
    corner = np.floor(landed)
    off, after = landed - corner, corner + 1
    sides = np.stack([1 - off, off])  # of the column and of the row that it lands on first, and of the next ones
    sides *= [(0 <= at) & (at < [[w], [h]]) for at in (corner, after)]
    shares = [row * column for row in sides[:, 1] for column in sides[:, 0]]
    landing = [np.flatnonzero(share > SLIVER) for share in shares]  # what stays lies on one cell, not on four
    which, cell = np.arange(4).repeat([len(cells) for cells in landing]), np.concatenate(landing)
    first = (corner[1] * w + corner[0]).astype(np.intp)
    index = first.take(cell) + np.array([0, 1, w, w + 1]).take(which)
    share = np.concatenate([share.take(cells) for share, cells in zip(shares, landing, strict=True)])
    share *= covers.take(cell)
    motion, weight = motion.take(cell, 1), share * np.exp(FRONT * front).take(cell)
    if len(slope):
        x, y = (np.float32([[0, 1, 0, 1], [0, 0, 1, 1]]).take(which, 1) - off.take(cell, 1)) * np.float32(CELL)
        a, b, c, d = slope.take(cell, 1)
        motion[0] += a * x + b * y
        motion[1] += c * x + d * y

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
    together: float32 [6, K], where each lands, in columns and rows of cells, its motion, how much of a cell it covers,
    and how far in front it lies; where some are turned by more than a right angle, or stretched to more than twice,
    `slopes_seen` as well, [10, K], by which those that land on one cell would move alike there. motion [2, h, w]
    pixels, front [h, w].
    """
    change, parts = steps(motion)
    stretched = (change > STRETCHED) & ~parts
    some = np.count_nonzero(parts) + WIDELY * parts.size  # those beside where things part
    if np.count_nonzero(stretched) <= some:
        return _laid(motion, front[None], np.ones_like(front))
    grown = 1 + np.median(change[stretched]) / CELL
    finer = 2 * min(FINEST, math.ceil(grown / 4))
    here, edge = (
        cv2.dilate(np.pad(corners.view(np.uint8), ((0, 1), (0, 1))), np.ones((2, 2), np.uint8)).view(bool)
        for corners in (stretched | parts, parts)
    )
    steep = np.count_nonzero(stretched & (change > PARTS)) > some
    also = np.stack([front, *(slopes_seen(motion, edge) if steep else ())])
    fine, *larger = (part.repeat(finer, -1).repeat(finer, -2) for part in (also, here))
    return np.hstack([
        _laid(motion, also, ~here),
        _laid(enlarged_motion(motion, np.ones_like(front), finer), fine, *larger, finer),
    ])


def _laid(motion: np.ndarray, also: np.ndarray, here: np.ndarray, finer: int = 1) -> np.ndarray:
    """`laid_out` of those cells that are `here` [h, w], so many to a side of one of the first frame's; also: [C, h, w],
    what is told of each besides."""
    cells, covers = np.flatnonzero(here), np.float32(1 / min(finer, 2) ** 2)
    numbers = cell_numbers(*here.shape).take(cells, 1)
    motion, also = (part.reshape(len(part), -1).take(cells, 1) for part in (motion, also))
    landed = (numbers + np.float32(0.5)) / finer - np.float32(0.5) + motion / CELL
    return np.vstack([landed, motion, np.full_like(also[:1], covers), also])


def slopes_seen(motion: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """By how much motion [2, h, w] changes from pixel to pixel of the frame in which it is seen, float32 [4, h, w]: x
    rightwards and downwards, and y. Not at all at an edge, bool [h, w], and where it has shrunk to next to nothing."""
    (xx, yx), (xy, yy) = (_slopes(motion, axis) / CELL for axis in (2, 1))
    size = (1 + xx) * (1 + yy) - xy * yx  # of a cell as it is seen, of 1
    none = edge | (np.abs(size) < LEAST)
    return np.where(none, 0, np.stack([size - 1 - yy, xy, yx, size - 1 - xx])) / np.where(none, 1, size)


def _slopes(motion: np.ndarray, axis: int) -> np.ndarray:
    """By how much motion changes from cell to cell along an axis, no more than to either side (minmod): what changes in
    one step does not."""
    change = np.diff(motion, axis=axis)
    first, last = change.take([0], axis), change.take([-1], axis)
    before, after = np.concatenate([first, change], axis), np.concatenate([change, last], axis)
    return (np.sign(before) + np.sign(after)) / 2 * np.minimum(np.abs(before), np.abs(after))


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
