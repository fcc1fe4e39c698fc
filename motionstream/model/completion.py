"""What lies behind things: guessed once, in the first frame, so that it stays the same for as long as one can see it.

A hole is filled square by square from its rim inwards, each with the place of the picture whose surroundings are most
like its own (Criminisi et al. 2004, "Region Filling and Object Removal by Exemplar-Based Inpainting"), rather at the
same height: a horizon goes on. What is copied keeps its detail, and takes on the colours around it (Pérez et al. 2003,
"Poisson Image Editing"). All this happens on cells; the copies are then made of pixels, of as sharp a picture as there
is. What the thing still covers waits until it does not: filling all at once would take longer than a chunk's denoising.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from motionstream.model.silhouettes import FEW, RIM, SOLID, cut_off, ground, things_in_front, with_rim
from motionstream.model.warping import CELL, in_pixels, squared

LEAVES = 2.0  # pixels that a part of a thing has moved when one sees behind it
WHOLE = 0.8  # how much of a thing has left when all of it has
OPEN = 0.5  # how much of a part's outline is not of the thing: what leaves from inside a thing leaves a dent in that
THIN = 5  # cells: parts that stay and are less wide count for nothing
SQUARE = 3  # cells that are filled at once, from the middle one to each side
RING = 2  # cells around them that must be alike
ODD = 0.15  # how much it counts that what would be copied is unlike the surroundings: it may be another thing
NEAR = 2.0  # squared difference of colours, of 255, that a cell of distance counts as much as
UPRIGHT = 12.0  # cells to the side that one up or down counts as much as: most pictures lie in layers
LEVEL = 0.25  # of the picture's height up or down, from where nothing is copied if there is anything else
WORSE = 1e6  # than any difference of colours
SOFT = (2 * (SQUARE + RING) + 1,) * 2  # cells from which colours spread
ROUNDS = 60  # in which colours settle: from then on they hardly change
TINT = 30.0  # of 255, what is added to a copy's colours at the most: from copy to copy it adds up
FADE = 3  # cells within which one copy fades into another: the mean of two has less detail than either
BESIDE = np.array([[[-1, 0]], [[1, 0]], [[0, -1]], [[0, 1]]])


@dataclass(frozen=True)
class Completion:
    """How some cells of a picture are filled with others, instead of what lies in front there.

    filled: bool [h, w]; shift: int [h, w, 2], rows and columns to where a cell is copied from; colour: float32
    [h, w, 3], what is added to it, of 255; seen: float32 [h, w] in [0, 1], how much of that is to be shown; things:
    bool [h, w], behind which that is; source: bool [h, w], what may be copied; holes: one for each of those things.
    """

    filled: np.ndarray
    shift: np.ndarray
    colour: np.ndarray
    seen: np.ndarray
    things: np.ndarray
    source: np.ndarray
    holes: list["Hole"]

    @classmethod
    def empty(cls, rows: int, columns: int) -> "Completion":
        zeros = np.zeros((rows, columns, 3), np.float32)
        seen = zeros[..., 0].copy()
        return cls(seen > 0, zeros[..., :2].astype(int), zeros, seen, seen > 0, seen > 0, [])

    def uncover(
        self,
        picture: np.ndarray,
        front: np.ndarray,
        number: np.ndarray,
        across: np.ndarray,
        moved: np.ndarray,
        dense: bool = False,
        turned: np.ndarray | float = 0.0,
    ) -> bool:
        """Fills what one sees behind things that have left, each cell once; whether there was anything to fill.

        picture: uint8 [H, W, 3]; front: how far in front cells lie, [h, w] in [0, 1]; number: of the thing that each is
        surely of, int [h, w], see `numbered`; across: bool [h, w], see `PriorState`; moved: how far they have moved, in
        each frame of a chunk, pixels [T, h, w, 2]; dense: whether tracks are all over the picture; turned: how much of
        `moved` is turning alone, see `turning`: what a thing turns about has left its place, too.

        Other things that stay may be copied, and ground that lies across an edge, however far in front. A thing has
        also left where what lies behind goes past it; but where tracks are dense, what does not go past all of it may
        be a part of it, and what goes along with what lies behind, as under a moving camera, has not left. But beyond
        the picture's edges one sees what is behind things mirrored, not them once more.
        """
        straight = moved - turned
        things, far = things_in_front(front), np.sqrt(squared(straight).max(0))
        source = ground(things, front.shape)
        apart = [far] * len(things)
        if (far[source] > LEAVES).any():
            apart = [far_apart(thing, far, straight, dense) for thing in things]
        beyond = seen_mirrored(moved)
        apart = [
            (thing, far, thing if (thing & beyond).any() and not cut_off(thing) else leaving_part(thing, far))
            for thing, far in zip(things, apart, strict=True)
        ]
        new = [leaves for leaves in apart if leaves[2].any() and self.things[leaves[2]].mean() < WHOLE]
        if new:
            cells = cv2.resize(picture, front.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
            going = np.any([self.things, far > LEAVES, *(gone for *_, gone in apart)], axis=0)
        for thing, far, gone in new:
            seen = seen_behind(gone, thing & (far < np.median(far[gone]) / 2))
            own = np.isin(number, number[gone & (number > 0)]) | thing & (number == 0) & ~across
            may = source | ~with_rim(own | going)
            np.logical_or(self.source, may, out=self.source)
            self.holes.append(Hole.behind(cells, gone, seen, may))
            self.things[gone] = True
        solid, unfilled = front > SOLID, [hole for hole in self.holes if hole.left.any()]
        bare = [(hole, hole.left & (beyond | ~covered(hole.thing, solid, moved))) for hole in unfilled]
        for hole, wanted in bare:
            complete(self, hole, wanted)
            np.maximum(self.seen, hole.seen * self.filled, out=self.seen)
        return any(wanted.any() for _, wanted in bare)

    def copy(self, cells: np.ndarray) -> tuple:
        """Cells, bool [h, w], that are copied by one shift, and those beside them: the part of the picture that these
        are in, where that is copied from, and in the part how much of a cell is this copy, whether it may be, and what
        is to be added to it.
        """
        size, (row, column) = self.filled.shape, np.argwhere(cells)[0]
        shift = self.shift[row, column]
        wide = cv2.dilate(cells.view(np.uint8), np.ones((FADE, FADE), np.uint8)).nonzero()
        sides = zip(wide, shift, size, strict=True)
        here = tuple(slice(max(at.min(), -by), min(at.max() + 1, most - by)) for at, by, most in sides)
        there = tuple(slice(part.start + by, part.stop + by) for part, by in zip(here, shift, strict=True))
        own = cells[here].astype(np.float32)
        near = cv2.blur(np.dstack([self.colour[here] * own[..., None], own]), (2 * FADE - 1,) * 2)
        colour = np.where(own[..., None] > 0, self.colour[here], near[..., :3] / np.maximum(near[..., 3:], 1e-6))
        may = np.maximum(own, self.filled[here] & self.source[there])
        return here, there, cv2.GaussianBlur(own, (FADE, FADE), 0, borderType=cv2.BORDER_CONSTANT), may, colour


class Plate:
    """A picture, uint8 [n * h, n * w, 3], filled as far as a `Completion` has come."""

    def __init__(self, picture: np.ndarray):
        self.picture, self.filled = picture, picture.copy()
        self._cells = self._source = np.zeros((0, 0), bool)  # of the completion, when last taken over

    def update(self, found: Completion) -> np.ndarray:
        """The filled picture, anew where there is more `found` than last time. Where what is copied from one place
        meets what is copied from another, one fades into the other.
        """
        picture, times = self.picture, len(self.picture) // len(found.filled)
        ways, new = found.shift @ (2 * found.filled.shape[1], 1), found.filled
        if np.array_equal(self._source, found.source):
            new = new & ~self._cells
        anew = found.filled & _beside(found.filled & np.isin(ways, ways[new]))  # any part of what a copy is a part of
        sums, total = np.zeros(picture.shape, np.float32), np.zeros(picture.shape[:2], np.float32)
        for way in np.unique(ways[found.filled & _beside(anew)]):
            here, there, share, may, colour = found.copy(found.filled & (ways == way))
            size = share.shape[1] * times, share.shape[0] * times
            weight = cv2.resize(share, size) * cv2.resize(may, size, interpolation=cv2.INTER_NEAREST)
            part, source = (in_pixels(cells, times) for cells in (here, there))
            sums[part] += weight[..., None] * (picture[source] + cv2.resize(colour, size))
            total[part] += weight
        cells = np.kron(anew, np.ones((times, times), bool))
        self.filled[cells] = np.rint(sums[cells] / total[cells, None]).clip(0, 255)
        self._cells, self._source = found.filled.copy(), found.source.copy()
        return self.filled


def _beside(cells: np.ndarray) -> np.ndarray:
    """Cells, bool [h, w], and all that copies of them can reach."""
    return cv2.dilate(cells.view(np.uint8), np.ones((2 * FADE + 1, 2 * FADE + 1), np.uint8)).view(bool)


@dataclass(frozen=True)
class Hole:
    """What lies behind one thing.

    picture, now: cells, and the same as far as they are filled, float32 [h, w, 3] of 255; thing: bool [h, w]; seen: see
    `seen_behind`; usable: bool [h, w], what may be looked at; left: bool [h, w], what is not yet filled.
    """

    picture: np.ndarray
    now: np.ndarray
    thing: np.ndarray
    seen: np.ndarray
    usable: np.ndarray
    left: np.ndarray
    searched: "Searched"

    @classmethod
    def behind(cls, picture: np.ndarray, thing: np.ndarray, seen: np.ndarray, source: np.ndarray) -> "Hole":
        """source: bool [h, w], what may be copied."""
        left = seen > 0
        return cls(picture, picture.copy(), thing, seen, source | left, left, Searched.of(picture, source))


def past_what_is_behind(thing: np.ndarray, moved: np.ndarray) -> Iterator[np.ndarray]:
    """How a thing's cells, bool [h, w], move against what lies behind it, pixels [cells, 2] in each frame; moved: of
    all cells, pixels [T, h, w, 2].

    What lies behind moves as the cells around the thing do, those that do not go along with it.
    """
    around = with_rim(with_rim(thing)) & ~with_rim(thing)
    for frame in moved:
        own, others = np.median(frame[thing], axis=0), frame[around]
        others = others[np.linalg.norm(others - own, axis=-1) > LEAVES]
        yield frame[thing] - (np.median(others, axis=0) if len(others) else own)


def far_from_behind(thing: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The most that a thing's cells move against what lies behind it, pixels [h, w]; 0 elsewhere."""
    far = np.zeros(thing.shape, np.float32)
    far[thing] = np.max([np.linalg.norm(apart, axis=-1) for apart in past_what_is_behind(thing, moved)], axis=0)
    return far


def far_apart(thing: np.ndarray, far: np.ndarray, moved: np.ndarray, dense: bool) -> np.ndarray:
    """How far a thing's cells have gone from their places, or what lies behind has from them, pixels [h, w]; where
    tracks are `dense` the less of both, unless all of the thing goes past what lies behind. far: see `leaving_part`."""
    past = far_from_behind(thing, moved)
    if dense and (past[thing] > LEAVES).mean() <= WHOLE:
        return np.minimum(far, past)
    return np.maximum(far, past)


def leaving_part(thing: np.ndarray, far: np.ndarray) -> np.ndarray:
    """What of a thing, bool [h, w], has left its place: all, a part, or none; far: pixels moved, [h, w]."""
    moved = thing & (far > LEAVES)
    if moved.sum() > WHOLE * thing.sum():
        return thing
    beside = cv2.dilate(moved.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool) & ~moved
    return moved & (moved.sum() >= FEW and (beside & ~thing).sum() > OPEN * beside.sum())


def seen_mirrored(moved: np.ndarray) -> np.ndarray:
    """Which cells of the first frame, bool [h, w], are about to be seen mirrored beyond its edges; moved: of all cells,
    pixels [T, h, w, 2]."""
    seen = np.zeros(moved.shape[1:3], bool)
    for lines, along in ((seen, moved[..., 1]), (seen.T, moved[..., 0].swapaxes(1, 2))):
        side = CELL * len(lines)
        first, last = np.median(along[:, 0], axis=1), np.median(along[:, -1], axis=1)
        shrunk = np.maximum(1 + (last - first) / side, 1 / side)
        for inwards, gap in ((lines, first), (lines[::-1], -last)):
            if (far := (gap / shrunk).max()) > LEAVES:
                inwards[: math.ceil(far / CELL) + RIM] = True
    return seen


def seen_behind(thing: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """How much one sees of what lies behind a thing that leaves, float32 [h, w] in [0, 1], rim included.

    stays: bool [h, w], parts of it that stay: where these end is not known to the cell, unless they are thin.
    """
    thick = cv2.morphologyEx(stays.view(np.uint8), cv2.MORPH_OPEN, np.ones((THIN, THIN), np.uint8))
    away = cv2.distanceTransform(1 - thick, cv2.DIST_L2, 5) if thick.any() else np.full(thing.shape, np.inf, np.float32)
    return with_rim(thing) * np.clip(away / RIM, 0, 1)


def covered(thing: np.ndarray, solid: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """What a thing hides in every frame of what lies behind it, less its rim, bool [h, w]; moved: [T, h, w, 2], pixels.

    solid: bool [h, w], of the thing what cannot be seen through, as a ring can.
    """
    hidden, (rows, columns) = np.ones_like(thing), np.nonzero(thing & solid)
    for beside in past_what_is_behind(thing, moved):
        at = np.rint(beside[solid[thing]] / CELL).astype(int) + np.stack([columns, rows], axis=1)
        column, row = at[((at >= 0) & (at < thing.shape[::-1])).all(1)].T
        landed = np.zeros_like(thing)
        landed[row, column] = True
        hidden &= landed
    return cv2.erode(hidden.view(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)).view(bool)


def complete(found: Completion, hole: Hole, cells: np.ndarray) -> None:
    """Fills a hole at least where `cells`, bool [h, w], are, and adds that to what was `found` before.

    What nothing fits into is left out.
    """
    taken = hole.left & found.filled  # by another hole
    hole.now[taken] = hole.picture[tuple((np.argwhere(taken) + found.shift[taken]).T)] + found.colour[taken]
    hole.left[taken] = False
    left, now, picture, reach = hole.left, hole.now, hole.picture, SQUARE + RING
    before = found.filled.copy()
    while (wanted := left & cells).any():
        known = cv2.boxFilter((~left).astype(np.float32), -1, (2 * reach + 1,) * 2, borderType=cv2.BORDER_CONSTANT)
        middle = np.unravel_index(np.where(wanted, known, -1).argmax(), left.shape)
        window, square = (tuple(slice(max(0, at - far), at + far + 1) for at in middle) for far in (reach, SQUARE))
        piece, ring = np.zeros_like(left), ~left & hole.usable
        piece[square] = left[square]
        piece, ring = piece[window], ring[window]
        left[window] &= ~piece
        corner = hole.searched.best_place(now[window], piece, ring, (window[0].start, window[1].start))
        if corner is None:
            hole.usable[window] &= ~piece  # it still shows the thing
            continue
        copied = picture[corner[0] : corner[0] + len(piece), corner[1] : corner[1] + piece.shape[1]]
        colour = spread(now[window] - copied, ring).clip(-TINT, TINT)
        now[window][piece] = (copied + colour)[piece]
        found.filled[window][piece], found.colour[window][piece] = True, colour[piece]
        found.shift[window][piece] = corner[0] - window[0].start, corner[1] - window[1].start
    join(found, hole, found.filled & ~before)


def join(found: Completion, hole: Hole, new: np.ndarray) -> None:
    """Colours for what has just been copied into the cells `new`, bool [h, w], so that one sees no seams.

    Neighbours then differ as they do where they were copied from (the Poisson equation of Pérez et al., by Jacobi's
    iteration); if that is two places, as in the one where they differ less, which may be not at all: just outside of
    what was copied there can be anything. What was filled before stays.
    """
    size, places = new.shape, np.argwhere(new)

    def seen(at: np.ndarray) -> np.ndarray:
        return hole.picture[tuple(np.moveaxis(at.clip(0, np.subtract(size, 1)), -1, 0))]

    beside = (places + BESIDE).clip(0, np.subtract(size, 1))  # [4, n, 2]
    cells = tuple(np.moveaxis(beside, -1, 0))
    own, theirs = found.shift[new], found.shift[cells]
    copied = seen(places + own)
    differ, other = copied - seen(places + own + BESIDE), seen(places + theirs) - seen(beside + theirs)
    less = np.where(differ * other > 0, np.sign(differ) * np.minimum(abs(differ), abs(other)), 0)
    known = (hole.usable & (found.filled | (hole.seen == 0)))[cells][..., None]
    differ = (np.where(new[cells][..., None], less, differ) * known).sum(0)
    beside = np.where(known, beside, places)  # what says nothing: as the cell itself is
    numbers = np.ravel_multi_index(tuple(np.moveaxis(beside, -1, 0)), size)
    colours, here = hole.now.reshape(-1, 3), np.flatnonzero(new)
    for _ in range(ROUNDS):
        colours[here] = (colours[numbers].sum(0) + differ) / len(BESIDE)
    found.colour[new] = (hole.now[new] - copied).clip(-TINT, TINT)


@dataclass(frozen=True)
class Searched:
    """A picture in which places are sought that are like others.

    spectra: of its colours, of the sum of their squares, and of what is no source, complex [5, h, w // 2 + 1]; far:
    what a distance in cells counts, [2h - 1, 2w - 1], from the middle.
    """

    spectra: torch.Tensor
    far: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray, source: np.ndarray) -> "Searched":
        """picture, float32 [h, w, 3] of 255; source: bool [h, w]."""
        planes = np.dstack([picture, np.square(picture).sum(2), ~source]).astype(np.float32)
        rows, columns = (np.arange(1 - side, side, dtype=np.float32) for side in source.shape)
        far = NEAR * np.hypot(UPRIGHT * rows[:, None], columns)
        far[abs(rows) > LEVEL * len(source)] += WORSE
        return cls(torch.fft.rfft2(torch.from_numpy(planes).movedim(2, 0)), far)

    def best_place(
        self, now: np.ndarray, piece: np.ndarray, ring: np.ndarray, here: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Row and column of the window whose `ring` is most like that of the window `now` [n, m, 3].

        Its `piece` should not be too unlike that either: a thing may be there. It must have `piece` and `ring`, bool
        [n, m], in the source. here: row and column of the window, which the other one should not be far from. None:
        there is no such place.
        """
        height, width = size = [(side + 1) // 2 for side in self.far.shape]
        usual = now[ring].mean(0) if ring.any() else np.zeros(3, np.float32)
        wanted = np.where(ring[..., None], now, usual)
        weight = ring / max(1, ring.sum()) + ODD * piece / piece.sum()
        # The weighted squared difference, multiplied out: correlations, for which the spectra serve again and again.
        templates = np.dstack([-2 * weight[..., None] * wanted, weight, ring | piece]).astype(np.float32)
        products = self.spectra * torch.fft.rfft2(torch.from_numpy(templates).movedim(2, 0), s=size).conj()
        sums = torch.fft.irfft2(torch.stack([products[:4].sum(0), products[4]]), s=size).numpy()
        unlike, missing = sums[:, : height - len(now) + 1, : width - now.shape[1] + 1]
        first, begin = height - 1 - here[0], width - 1 - here[1]
        unlike += self.far[first : first + len(unlike), begin : begin + unlike.shape[1]]
        unlike[missing > 0.5] = np.inf
        row, column = np.unravel_index(unlike.argmin(), unlike.shape)
        return (int(row), int(column)) if np.isfinite(unlike[row, column]) else None


def spread(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values [h, w, C], known in some places, bool [h, w], smoothly continued into the others."""
    weight = known[..., None].astype(np.float32)
    sums = cv2.GaussianBlur(np.concatenate([values * weight, weight], axis=2), SOFT, 0, borderType=cv2.BORDER_CONSTANT)
    return np.where(known[..., None], values, sums[..., :-1] / np.maximum(sums[..., -1:], 1e-9))
