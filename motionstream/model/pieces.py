"""Tracks move the piece that they are attached to: what looks like it elsewhere stays."""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.model.warping import CELL

FOLLOWS = 0.5  # share of a cell's motion that must come from tracks for the cell to be of a piece
NECK = 2  # cells: what is no wider than twice these does not join two pieces, but hangs on one of them


def connect(weights: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
    """Shares [P, 1 + N] of staying and of following each track, where a cell follows only tracks that are attached to
    its own piece of what follows any; anchors [N, 2] of these, pixels of a picture of this height and width.
    """
    rows, columns = height // CELL, width // CELL
    piece = torch.from_numpy(pieces((1 - weights[:, 0] > FOLLOWS).view(rows, columns).numpy())).flatten()
    cells = (anchors / CELL).long().clamp(torch.zeros(2).long(), torch.tensor([columns, rows]) - 1)
    attached = piece[cells[:, 1] * columns + cells[:, 0]]
    kept = weights[:, 1:] * ((piece[:, None] == attached) & (attached > 0))
    total = kept.sum(1, keepdim=True)
    kept = torch.where(total > 0, kept / total.clamp_min(1e-12) * weights[:, 1:].sum(1, keepdim=True), 0.0)
    return torch.cat([(1 - kept.sum(1, keepdim=True)).clamp(0, 1), kept], 1)


def pieces(follows: np.ndarray) -> np.ndarray:
    """The number of the piece that each cell is of, int [h, w]; 0 where it does not follow, bool [h, w].

    Two bodies that a neck joins are two pieces: a thing and the patch of background that its rope or its foot leads
    to. What is thin is of the body that is nearer within `follows`, or a piece of its own where there is none.
    """
    across = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NECK + 1, 2 * NECK + 1))
    bodies, number = cv2.connectedComponents(cv2.erode(follows.astype(np.uint8), across))
    number, grown = number.astype(np.float32), None
    while grown is None or not np.array_equal(number, grown):
        grown, number = number, np.where(follows & (number == 0), cv2.dilate(number, np.ones((3, 3))), number)
    thin = cv2.connectedComponents((follows & (number == 0)).astype(np.uint8))[1]
    return np.where(thin > 0, bodies + thin, number.astype(int))
