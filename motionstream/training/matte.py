"""Trains the matte of a motion prior: `python -m motionstream train matte --library DIR --out RUN --minutes 60`.

The prior, which stays as it is, tells what it sees in the cells of a small copy of a scene. From that, and from the
scene itself, the matte learns how opaque each pixel is.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.matte import Matte
from motionstream.model.motion_prior import MotionPrior
from motionstream.training.clips import to_tensor
from motionstream.training.parallel import World
from motionstream.training.pictures import Library
from motionstream.training.prior import MAX_TRACKS, points_of_any_kind, rarity, weighed_mean
from motionstream.training.scenes import opacity, random_scene, render_frame

SIZE = (480, 288)  # of the picture that one sees
SMALLER = (1, 2, 2, 3)  # times by which the one that the prior looks at is smaller
ALONG, ELSEWHERE = 12, 0.3  # pixels from an outline that count, and what all others do
AROUND = 25  # pixels to a side around one: the fewer of these are as opaque as it is, the more it counts
CLEAR = 0.05  # opacity below which nothing is there
HOLE = 2.0  # how much more a hole in a thing counts than what it takes along


def sample(rng: np.random.Generator, library: Library) -> dict[str, Tensor]:
    scene = random_scene(rng, library, *SIZE, 2)
    picture, owner = render_frame(scene, 0)
    points = points_of_any_kind(rng, scene, owner)
    anchors, valid = np.zeros((MAX_TRACKS, 2), np.float32), np.arange(MAX_TRACKS) < len(points)
    anchors[valid] = points
    opaque = opacity(scene, 0)
    thing, around = (opaque > 0.5).astype(np.uint8), np.ones((2 * ALONG + 1, 2 * ALONG + 1), np.uint8)
    along = cv2.dilate(thing, around) > cv2.erode(thing, around)
    return {
        "picture": to_tensor(picture[None])[:, 0],
        "anchors": torch.from_numpy(anchors),
        "valid": torch.from_numpy(valid),
        "smaller": torch.tensor(int(rng.choice(SMALLER))),
        "opaque": torch.from_numpy(opaque)[None],
        "open": torch.from_numpy(~along & (opaque < CLEAR))[None],
        "counts": torch.from_numpy(np.where(along, rarity(thing, AROUND) ** 2, np.float32(ELSEWHERE)))[None],
    }


@torch.no_grad()
def seen_by(prior: MotionPrior, picture: Tensor, anchors: Tensor, valid: Tensor, smaller: int) -> Tensor:
    """What the prior sees in the cells of a picture [3, H, W] made so many times as small, [2, h, w].

    anchors [N, 2] of the tracks, pixels of the large one; valid bool [N].
    """
    size = picture.shape[1] // smaller, picture.shape[2] // smaller
    return prior.look(picture, anchors[valid] / smaller, size, prior.closely(picture, size)).seen


def matte_loss(prior: MotionPrior, matte: Matte, batch: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Mean difference of opacities, where too little counts more; "given" is that of what the prior sees in front.

    Background far from any outline that the prior takes for a thing goes along as one: it is to stay whole.
    """
    picture, counts = batch["picture"], batch["counts"]
    with world.autocast():
        parts = zip(picture, batch["anchors"], batch["valid"], batch["smaller"].tolist(), strict=True)
        cells = [F.interpolate(seen_by(prior, *part)[None], picture.shape[-2:], mode="bilinear") for part in parts]
        cells = torch.cat(cells)
        found = matte(picture, cells).sigmoid()
    front = (cells[:, :1] > 0.5).float()
    opaque = torch.where(batch["open"], front, batch["opaque"])

    def off(guess: Tensor) -> Tensor:
        return weighed_mean(torch.where(guess < opaque, HOLE, 1.0) * (guess - opaque).abs(), counts)

    return {"loss": off(found), "given": off(front)}
