"""Tracks move the piece that they are attached to: what looks like it elsewhere stays."""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.model.warping import CELL, IN_FRONT, nearest_cells

FOLLOWS = 0.5  # share of a cell's motion that must come from tracks for the cell to be of a piece
NECK = 2  # cells: what is no wider than twice these does not join a patch of background to a thing
GAP = 2  # cells: what lies in front is of one piece across gaps of up to twice these, as a basket that hangs on ropes


def connect(weights: Tensor, front: Tensor, anchors: Tensor, thin: Tensor | None = None) -> Tensor:
    """Shares [P, 1 + N] of staying and of following each track, where a cell follows only tracks that are attached to
    its own piece of what follows any. front, thin [h, w] in [0, 1]: how far in front the cells lie, and the same at a
    closer look; anchors [N, 2], pixels.

    Ropes through which one sees the sky follow as what they join does: alone, a basket would count as a speck.
    """
    rows, columns = front.shape
    follows = (1 - weights[:, 0] > FOLLOWS).view(rows, columns)
    if thin is not None and follows.any():
        ropes = across_gaps(follows.numpy() & (front.numpy() > IN_FRONT)) & (thin.numpy() > IN_FRONT) & ~follows.numpy()
        weights = weights.clone()
        weights[ropes.ravel()] = weights[nearest_cells(follows.numpy())[1][ropes]]
        follows |= torch.from_numpy(ropes)
    of = torch.from_numpy(pieces(follows.numpy(), front.numpy())).flatten(1)
    cells = (anchors / CELL).long().clamp(torch.zeros(2).long(), torch.tensor([columns, rows]) - 1)
    attached = of[:, cells[:, 1] * columns + cells[:, 0]]
    kept = weights[:, 1:] * ((of[..., None] == attached[:, None]) & (attached[:, None] > 0)).any(0)
    total = kept.sum(1, keepdim=True)
    kept = torch.where(total > 0, kept / total.clamp_min(1e-12) * weights[:, 1:].sum(1, keepdim=True), 0.0)
    return torch.cat([(1 - kept.sum(1, keepdim=True)).clamp(0, 1), kept], 1)


def across_gaps(cells: np.ndarray) -> np.ndarray:
    """The cells, bool [h, w], and the gaps between them."""
    over = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * GAP + 1, 2 * GAP + 1))
    return cv2.morphologyEx(cells.view(np.uint8), cv2.MORPH_CLOSE, over).view(bool)


def pieces(follows: np.ndarray, front: np.ndarray) -> np.ndarray:
    """The number of the piece that each cell is of, and of the one that it is of besides, int [2, h, w]; 0 where it
    does not follow, bool [h, w].

    A patch of background to which only a neck leads, of a rope or a foot, is a piece of its own; a head is not, since
    it lies in front, see `connect`; nor is a basket a few cells below its balloon. What lies in front on such a patch
    is of the patch and of what it is connected to: where a pin holds the sky, a basket is the balloon's still.
    """
    across = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NECK + 1, 2 * NECK + 1))
    bodies, number = cv2.connectedComponents(cv2.erode(follows.astype(np.uint8), across))
    number, grown = number.astype(np.float32), None
    while grown is None or not np.array_equal(number, grown):  # what is thin is of the body that is nearer
        grown, number = number, np.where(follows & (number == 0), cv2.dilate(number, np.ones((3, 3))), number)
    number = number.astype(int)
    lies = np.bincount(number.ravel(), front.ravel()) / np.bincount(number.ravel()).clip(1)
    patch = (number > 0) & (lies[number] < IN_FRONT)
    joined = cv2.connectedComponents((across_gaps(follows & (front > IN_FRONT)) | follows).view(np.uint8))[1]
    whole = np.where(follows, bodies + joined, 0)
    return np.stack([np.where(patch, number, whole), np.where(patch & (front < IN_FRONT), number, whole)])
