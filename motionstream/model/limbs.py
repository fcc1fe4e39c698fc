"""Legs, ropes and tails go along with the thing that they hang on.

They are as thin as specks of wrong motion, which medians remove (`warping.settle`), and a track seldom lies on them.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.model.warping import CELL, IN_FRONT, NARROW, medians, parting

THIN = 0.3  # by how much, of 1, a limb lies in front of what is around it
LIMB = 16  # steps of up to two cells from the inside of a thing to the end of a limb


def limbs(front: Tensor, anchors: Tensor) -> Tensor:
    """The number [h * w] of the cell with which each cell goes: its own, but for legs, ropes and tails, which go with
    an inner cell of the thing that they hang on.

    A limb is thin and lies in front of what is on both sides of it (a white top-hat). One that has a track of its own,
    at one of the anchors [N, 2] pixels, goes as it likes. front: [h, w] in [0, 1].
    """
    rows, columns = front.shape
    front, near, next_to = front.numpy(), *(np.ones((side, side), np.uint8) for side in (NARROW, 3))
    thick = cv2.morphologyEx(front, cv2.MORPH_OPEN, near)
    thing, thin = thick > IN_FRONT, front - thick > THIN
    number, (x, y) = cv2.connectedComponents(thin.view(np.uint8))[1], (anchors / CELL).long().numpy().T
    tracked = number[y.clip(0, rows - 1), x.clip(0, columns - 1)]
    free, inner = thin & ~np.isin(number, tracked[tracked > 0]), cv2.erode(thing.view(np.uint8), near) > 0
    own = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    bearer = np.where(inner, own, -1)
    for _ in range(LIMB):
        bearer = np.where((free | thing) & (bearer < 0), cv2.dilate(bearer, near), bearer)
    bearer = np.where(free, bearer, -1)
    bearer = np.where(cv2.morphologyEx(bearer, cv2.MORPH_CLOSE, next_to) >= 0, cv2.dilate(bearer, next_to), -1)
    return torch.from_numpy(np.where(inner | (bearer < 0), own, bearer)).flatten().long()


def with_rims(bearer: Tensor, rim: Tensor, foremost: Tensor) -> Tensor:
    """What bears each cell, see `limbs`, when the rims of limbs go with them, and what lies between; rim,
    foremost: see `outlines`."""
    taken, own = bearer[foremost], torch.arange(len(bearer))
    bearer = torch.where(rim.flatten() & (taken != foremost), taken, bearer)
    borne = torch.where(bearer == own, -1, bearer).float().view(rim.shape).numpy()
    closed = torch.from_numpy(cv2.morphologyEx(borne, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))).flatten().long()
    return torch.where((bearer == own) & (closed >= 0), closed, bearer)


def borne(motion: Tensor, share: Tensor, bearer: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Motion [T, P, 2] of `rows` rows of cells, pixels, and the share [T, P] of the tracks' motion in it, where limbs
    that would stay behind go along with what bears them instead, without specks; bearer: see `limbs`."""
    limb = (bearer != torch.arange(len(bearer))).nonzero()[:, 0]
    own, taken = motion[:, limb], motion[:, bearer[limb]]
    parts = torch.tensor([parting(frame) for frame in motion.numpy()])[:, None]
    stays = ((taken - own).norm(dim=2) > parts) & (taken.norm(dim=2) > own.norm(dim=2))
    motion, share, changed = motion.clone(), share.clone(), stays.any(1)
    motion[:, limb] = torch.where(stays[..., None], taken, own)
    share[:, limb] = torch.where(stays, share[:, bearer[limb]], share[:, limb])
    for frame in changed.nonzero()[:, 0]:
        grid = motion[frame].T.unflatten(1, (rows, -1)).numpy()
        narrow, wide = (torch.from_numpy(medians(grid, side)).flatten(1).T for side in (3, NARROW))
        motion[frame], motion[frame, limb] = wide, narrow[limb]
    return motion, share
