"""Where exactly things end: how opaque each pixel of the first frame is, where the motion prior sees a thing in cells.

What a thing takes along of its surroundings would be seen as a hem of the old background at its new place. So in a
sharp frame (`composite`) one sees two layers there: the first frame as opaque as the thing is, and beneath it what lies
behind, in its own motion.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from motionstream.model.unet import UNet
from motionstream.model.warping import BESIDE, CELL, IN_FRONT, are_dense, nearest_cells, tracked_cells

SEES = 2  # pixels to a side of what the network sees as one
RIM = 3  # pixels about a hole in which opacities fade towards it
SLIT = 2  # cells: what is clear well within a thing, and no wider than twice these, is of it
HOLE = 0.95  # opacity below which pixels amid a thing are a hole in it
CONTRAST = 3e-4  # variance of colours, in [0, 1], below which they tell little
GIVEN = 4.0  # log-odds of what is surely a thing, before the network has looked


class Matte(ModelMixin, ConfigMixin):
    """A picture, and what the motion prior sees in its cells -> how opaque each of its pixels is."""

    stays_on_cpu = True  # as the prior does

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (24, 32, 48, 64)):
        super().__init__()
        self.net = UNet(3 * SEES**2 + 2, tuple(widths), SEES**2)
        self.gain = nn.Parameter(torch.tensor(GIVEN))
        self.to(memory_format=torch.channels_last)

    def forward(self, picture: Tensor, cells: Tensor) -> Tensor:
        """picture [B, 3, H, W] in [-1, 1], H and W even; cells [B, 2, h, w], see `as_seen` -> logits [B, 1, H, W]."""
        cells = 2 * F.interpolate(cells, picture.shape[-2:], mode="bilinear", align_corners=False) - 1
        seen = torch.cat([F.pixel_unshuffle(picture, SEES), F.avg_pool2d(cells, SEES)], dim=1)
        found = self.net(seen.contiguous(memory_format=torch.channels_last)).float()
        return F.pixel_shuffle(found, SEES) + self.gain * cells.mean(1, keepdim=True)

    @torch.no_grad()
    def of(self, picture: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Opacities, float32 [H, W] in [0, 1], of a picture, uint8 [H, W, 3], with cells [3, h, w], see `PriorState`;
        see also `without_slits`, `whole` and `with_colours`."""
        seen = torch.from_numpy(picture).movedim(2, 0)[None] / 127.5 - 1
        found = self(seen, torch.from_numpy(cells[:2])[None])[0, 0].sigmoid().numpy()
        found = whole(without_slits(found, cells[2]), cells[0])
        return with_colours(found, picture, len(picture) // (CELL * cells.shape[1]))


def without_slits(opaque: np.ndarray, things: np.ndarray) -> np.ndarray:
    """Opacities [H, W] without narrow slits that reach deep into a thing: dark hair beside a face, before dark trees.
    things: 1 in its cells, else 0, float32 [h, w]."""
    reach = SLIT * len(opaque) // len(things)
    deep = cv2.erode(things, np.ones((2 * SLIT + 1, 2 * SLIT + 1), np.uint8))
    over = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    closed = cv2.morphologyEx(opaque, cv2.MORPH_CLOSE, over)
    return np.maximum(opaque, np.minimum(closed, cv2.resize(deep, opaque.shape[::-1])))


def whole(opaque: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Opacities [H, W] without holes where the prior sees a thing: a part of it that looks like what is behind, as a
    balloon's panels before the sky. And without specks beside it, of what is no thing: waves that look like a boat.
    front [h, w]: how far in front its cells lie; a ring's hole does not, nor does a speck.
    """
    around = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)
    lies = (cv2.resize(front, opaque.shape[::-1], interpolation=cv2.INTER_LINEAR) > IN_FRONT).ravel()
    _, number, boxes, _ = cv2.connectedComponentsWithStats((opaque < HOLE).view(np.uint8), connectivity=4)
    left, top, width, height, area = boxes.T
    inside = (left > 0) & (top > 0) & (left + width < opaque.shape[1]) & (top + height < opaque.shape[0])
    hole = inside & (np.bincount(number.ravel(), lies, len(area)) > area / 2)
    hole[0] = False  # the number of what is opaque
    filled = cv2.dilate(hole[number].view(np.uint8), around) > 0
    number = cv2.connectedComponents((opaque >= 0.5).view(np.uint8))[1]
    thing = np.bincount(number.ravel(), lies)[number] > 0
    speck = cv2.dilate(((number > 0) & ~thing).view(np.uint8), around) > 0
    return np.where(filled, np.float32(1), np.where(speck & ((number == 0) | ~thing), np.float32(0), opaque))


def with_colours(opaque: np.ndarray, picture: np.ndarray, times: int) -> np.ndarray:
    """Opacities [H, W] that change where colours do, not in jags: in each small square a linear function of the
    colours of the picture, uint8 [H, W, 3] (He et al. 2010, "Guided Image Filtering"), found at half the size.

    times: by how much the picture is larger than a frame of the student's.
    """
    size, picture = opaque.shape[::-1], picture.astype(np.float32) / 255
    half = size[0] // 2, size[1] // 2
    colours, wanted = (cv2.resize(part, half, interpolation=cv2.INTER_AREA) for part in (picture, opaque))

    def mean(part: np.ndarray) -> np.ndarray:
        return cv2.blur(part, (2 * times + 1, 2 * times + 1))

    usual, usually = mean(colours), mean(wanted)
    along = mean(colours * wanted[..., None]) - usual * usually[..., None]
    products, squares = (part[..., None] * part[..., None, :] for part in (colours, usual))
    spread = mean(products.reshape(*half[::-1], 9)).reshape(squares.shape) - squares
    spread += CONTRAST * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(spread, along[..., None])[..., 0]
    level = usually - (slope * usual).sum(-1)
    slope, level = (cv2.resize(mean(part), size) for part in (slope, level))
    return ((slope * picture).sum(-1) + level).clip(0, 1)


def told(opaque: np.ndarray, anchors: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """1 where a track tells how what lies behind things moves, else 0: float32, as large as `opaque` [H, W].

    The prior's own motion is better there. anchors [N, 2] of the tracks, pixels of so many rows and columns of cells:
    one that is where it is clear tells of the cells that are near, and nearer to no other. Dense ones tell everything.
    """
    if not len(anchors):
        return np.zeros_like(opaque)
    far, nearest = nearest_cells(tracked_cells(anchors, rows, columns))
    cells = cv2.resize(opaque, (columns, rows), interpolation=cv2.INTER_AREA)
    held = are_dense(far) | (CELL * far < BESIDE) & (cells.ravel()[nearest] < 0.5)
    return cv2.resize(held.astype(np.float32), opaque.shape[::-1])
