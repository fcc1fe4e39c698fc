"""A visitor's grid that lies across the edge of a thing moves the thing, not what is beside it.

Nobody hits a thing with all points of a grid. Those beside it would take along as much of the background as they can.
"""

import torch
from torch import Tensor

from motionstream.model.warping import are_dense, at_points, nearest_cells, tracked_cells

ON, OFF = 0.7, 0.5  # how far in front, in [0, 1], tracks on a thing start, at the least, and those beside it, at most
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


def idling(gone: Tensor, pairs: Tensor) -> Tensor:
    """Tracks beside a thing that go just as one on it does, bool [T, N]: of a grid that was to move the thing alone.

    gone [T, N, 2]: how far tracks have since they were first seen, pixels; pairs: see `straddling`.
    """
    idle = torch.zeros(gone.shape[:2], dtype=torch.bool)
    beside, on = gone[:, pairs[0]], gone[:, pairs[1]]
    alike = ((beside - on).norm(dim=2) < ALIKE) & (beside.norm(dim=2) > ALIKE)
    frame, pair = alike.nonzero(as_tuple=True)
    idle[frame, pairs[0, pair]] = True
    return idle
