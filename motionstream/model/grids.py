"""A visitor's grid that lies across the edge of a thing moves the thing, not what is beside it.

Nobody hits a thing with all points of a grid. Those beside it would take along as much of the background as they can.
"""

import numpy as np
import torch
from torch import Tensor

from motionstream.model.warping import are_dense, at_points, nearest_cells, tracked_cells

ON, OFF = 0.7, 0.5  # how far in front, in [0, 1], tracks on a thing start, at the least, and those beside it, at most
ENOUGH = 1 / 3, 1 / 2  # share of a grid that moves, and of one that does not, on the thing that it holds
EXACTLY = "donot_use_mm_for_euclid_dist"  # the other way is off by a tenth of a pixel where two lie on one place
GRID, ALIKE = 40.0, 0.1  # pixels: how near tracks of one grid are, at the most, and how differently they move


def straddling(anchors: Tensor, firsts: Tensor, front: Tensor) -> Tensor:
    """Pairs [2, K] of tracks that may be of one grid across the edge of a thing: the first beside it, the second on it.

    anchors, firsts [N, 2] of the tracks, see `PriorState`; front: how far in front cells lie, [h, w] in [0, 1]. None
    where tracks are dense.
    """
    if not len(anchors) or are_dense(nearest_cells(tracked_cells(anchors.numpy(), *front.shape))[0]):
        return torch.zeros(2, 0).long()
    lies = at_points(front[None, None], anchors[None])[0, :, 0]
    near = torch.cdist(firsts, firsts) < GRID
    return (near & (lies < OFF)[:, None] & (lies > ON)).nonzero().T


def holding(held: np.ndarray, places: Tensor, moved: Tensor) -> np.ndarray:
    """Which tracks, bool [N], are of a grid of which enough is on the same thing, if on any: more than a third where it
    moves, half where it does not. A pin beside a thing, on the rim of which some points of it are, does not hold it.

    held [N]: numbers of the things; places, moved [N, 2], pixels: of one grid is what is near, and stays as far away.
    """
    away, now = (torch.cdist(at, at, compute_mode=EXACTLY) for at in (places, places + moved))
    grid = ((away < GRID) & ((now - away).abs() < ALIKE)).numpy()
    share = (grid & (held == held[:, None])).sum(1) / grid.sum(1)
    return np.where((moved.norm(dim=1) > ALIKE).numpy(), share > ENOUGH[0], share >= ENOUGH[1])


def idling(moved: Tensor, places: Tensor, firsts: Tensor, pairs: Tensor) -> Tensor:
    """Tracks beside a thing that go just as one on it does, bool [T, N]: of a grid that was to move the thing alone.

    moved [T, N, 2] from their places [N, 2], those beside a thing that turns as in its frame; firsts [N, 2]: where they
    were first seen; all in pixels; pairs: see `straddling`.
    """
    beside, on = pairs
    idle = torch.zeros(moved.shape[:2], dtype=torch.bool)
    apart, before = (points[beside] - points[on] for points in (places, firsts))
    kept = (apart.norm(dim=1) - before.norm(dim=1)).abs() < ALIKE  # the grid may have turned till then
    alike = ((moved[:, beside] - moved[:, on]).norm(dim=2) < ALIKE) & kept
    alike &= (moved + places - firsts)[:, beside].norm(dim=2) > ALIKE
    frame, pair = alike.nonzero(as_tuple=True)
    idle[frame, beside[pair]] = True
    return idle
