"""The background gives way: where a track drags a part of it, what is around that part is stretched, not torn off."""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.model.least_squares import LITTLE
from motionstream.model.warping import CELL, cells_of, nearest_cells, with_hem

GOES = 0.5  # of how far a track goes: what goes farther does so by itself, and pulls
STAYS = 0.1  # of how far the farthest goes: a track that goes no farther holds its place
REACH = 2.0  # times as far as it goes: how far around it the background gives way; less would fold it
SOFT = 3.0  # cells, spread of the blur that makes neighbours give way alike


def pulled(
    motion: Tensor, share: Tensor, things: np.ndarray, background: np.ndarray, anchors: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """Motion [T, P, 2] of cells, pixels, and the share [T, P] of the tracks' motion in it, where background that stays
    beside background that goes is pulled along, the less the farther away, and least beside a track that stays.

    things, background: bool [h, w], neither are the rims of things; anchors [N, 2] and moved [T, N, 2] of the tracks,
    pixels. Nothing changes where all tracks that go are on things, nor what is no background.
    """
    rows, columns = background.shape
    cell, (x, y) = cells_of(anchors, rows, columns), anchors.numpy().T / CELL
    on = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & ~things.ravel()[cell]
    if not on.any():
        return motion, share

    def frame(going: np.ndarray, share: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        far = np.hypot(*moved.T)
        most, stays = far[on].max(), np.zeros(rows * columns, bool)
        by_itself = np.hypot(*going.T) / max(most, LITTLE) * (background & ~with_hem(things, going)).ravel()
        goes = by_itself > GOES
        if most < LITTLE or not goes.any():
            return going, share
        stays[cell[on & (far < STAYS * most)]] = True
        away, nearest = (cells.ravel() for cells in nearest_cells(goes.reshape(rows, columns)))
        strength = np.clip(1 - CELL * away / (REACH * np.hypot(*going[nearest].T)), 0, 1) * background.ravel()
        if stays.any():
            held = nearest_cells(stays.reshape(rows, columns))[0].ravel()
            strength *= held / (held + away).clip(1e-6)
        strength *= strength * (3 - 2 * strength)
        pull = _blurred(going + strength[:, None] * (going[nearest] - going), background)
        gives_way = np.clip(1.5 - by_itself / GOES, 0, 1) * background.ravel()
        share = share + gives_way * strength * (share[nearest] - share)
        return going + gives_way[:, None] * (pull - going), share

    done = map(frame, motion.numpy(), share.numpy(), moved.numpy())
    motion, share = (torch.from_numpy(np.stack(part).astype(np.float32)) for part in zip(*done, strict=True))
    return motion, share


def _blurred(motion: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Motion [P, 2] of cells, each the mean of those around it that are in `where`, bool [h, w]."""
    counts = where.astype(np.float32)
    planes = np.dstack([motion.reshape(*where.shape, 2) * counts[..., None], counts]).astype(np.float32)
    sums = cv2.GaussianBlur(planes, (0, 0), SOFT)
    return (sums[..., :2] / sums[..., 2:].clip(1e-6)).reshape(-1, 2)
