"""Trains the motion prior: `python -m motionstream train motion-prior --library DIR --out RUN --minutes 60`.

Only first frames are rendered: the scene knows where every pixel goes. On random windows of cells: the motion error;
its total variation, so that where the outline is uncertain the picture stretches softly instead of tearing; the
cross-entropy of following a track of one's own layer (or of staying, where the layer stays); and the order of the
layers. What moves although no track says so is left out: nobody could know. On cells anywhere: the overlap of each
thing that has tracks with what follows these.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.checkpoint import load_component
from motionstream.model.least_squares import least_squares_motion
from motionstream.model.motion_prior import Cells, Grips, MotionPrior
from motionstream.model.warping import CELL, cell_centres
from motionstream.training.clips import to_tensor
from motionstream.training.parallel import World
from motionstream.training.pictures import Library
from motionstream.training.scenes import (
    MAX_LAYERS,
    Scene,
    choose_points,
    random_scene,
    render_frame,
    track_points,
)

SIZE = (256, 160)
FRAMES = 25
MAX_TRACKS = 300
WINDOW, WINDOWS = 16, 8  # the loss looks at this many windows of so many cells squared in each picture
DEPTHS = (0, 1, 2, 2, 1, 1)  # residual blocks more at each width
ANYWHERE = 1024  # cells of each picture, anywhere in it, that tell how much follows of what should
LITTLE = 0.1  # of what its values count for on average, below which a sample counts less in the loss
AROUND = 9  # cells to a side of what lies around one


def sample(rng: np.random.Generator, library: Library) -> dict[str, Tensor]:
    scene = random_scene(rng, library, *SIZE, FRAMES)
    time = int(rng.integers(4, FRAMES))
    rendered = [render_frame(scene, t) for t in (0, time)]
    owner = np.stack([layers for _, layers in rendered])
    points = points_of_any_kind(rng, scene, owner[0])
    tracks = track_points(scene, owner, (0, time), points, np.arange(len(points)))
    columns, rows = SIZE[0] // CELL, SIZE[1] // CELL
    limit = rows - WINDOW, columns - WINDOW
    corners = rng.integers(limit, size=(WINDOWS, 2), endpoint=True)
    objects = np.argwhere(owner[0])
    if len(objects):  # half of the windows on objects: that is where it is decided
        picked = objects[rng.integers(len(objects), size=WINDOWS // 2)] // CELL
        corners[: WINDOWS // 2] = np.clip(picked - WINDOW // 2, 0, limit)
    inside = np.arange(WINDOW)
    cells = ((corners[:, :1, None] + inside[:, None]) * columns + corners[:, 1:, None] + inside).reshape(-1)
    anywhere = rng.choice(rows * columns, ANYWHERE, replace=False)
    centres = cell_centres(SIZE[1], SIZE[0]).numpy()[cells]
    seen = owner[0][CELL // 2 :: CELL, CELL // 2 :: CELL]
    layers = seen.ravel()[cells].astype(np.int64)
    weight = rarity(seen, AROUND).ravel()
    return {
        "image": to_tensor(as_taken(rng, rendered[0][0])[None])[:, 0],
        **_padded(tracks, owner[0]),
        "cells": torch.from_numpy(cells),
        "layers": torch.from_numpy(layers),
        "anywhere": torch.from_numpy(anywhere),
        "layers_anywhere": torch.from_numpy(seen.ravel()[anywhere].astype(np.int64)),
        "weight": torch.from_numpy(weight[cells]),
        "weight_anywhere": torch.from_numpy(weight[anywhere]),
        "stays": _staying(scene),
        "target": torch.from_numpy(_displacement(scene, centres, layers, time)),
    }


def as_taken(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A picture as lenses, sensors and files leave it: softer, with noise and blocks over all of it, pasted or not."""
    if rng.random() < 0.4:
        return picture
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        noise = rng.normal(0, rng.uniform(1, 8), picture.shape)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        picture = cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)
    return picture


def prior_to_train(folder: Path | None) -> MotionPrior:
    """A new one, or the one of a model folder; where that is shallow, with `DEPTHS`."""
    if folder is None:
        return MotionPrior(depths=DEPTHS)
    prior = load_component(folder / "motion_prior")
    return prior if any(prior.config.depths) else prior.deepened(DEPTHS[: len(prior.config.widths)])


def points_of_any_kind(rng: np.random.Generator, scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Points [N, 2] of frame 0 to track, at most MAX_TRACKS: mostly a visitor's."""
    mode = rng.choice(["drags", "sparse", "dense"], p=[0.75, 0.1, 0.15])
    return choose_points(rng, scene, owner, mode)[:MAX_TRACKS]


def _padded(tracks, owner: np.ndarray) -> dict[str, Tensor]:
    anchors, moved = np.zeros((2, MAX_TRACKS, 2), np.float32)
    valid, group = np.zeros(MAX_TRACKS, bool), np.zeros(MAX_TRACKS, np.int64)
    first, last = tracks.points[:, tracks.visible[1]]  # the others tell nothing
    n = len(first)
    anchors[:n], moved[:n], valid[:n] = first, last - first, True
    columns, rows = np.minimum(first.astype(int), np.subtract(owner.shape[::-1], 1)).T  # rounded, it may lie outside
    group[:n] = owner[rows, columns]
    return {
        name: torch.from_numpy(value)
        for name, value in (("anchors", anchors), ("moved", moved), ("valid", valid), ("group", group))
    }


def _staying(scene: Scene) -> Tensor:
    stays = torch.ones(MAX_LAYERS, dtype=torch.bool)
    stays[: len(scene.layers)] = torch.tensor([not layer.moves for layer in scene.layers])
    return stays


def rarity(layers: np.ndarray, around: int) -> np.ndarray:
    """How much the loss weighs each cell [h, w]: the fewer of so many around it (to a side) are of its layer, the more.

    Legs, ropes, tails and outlines are few cells, but to the eye as much as the rest.
    """
    shares = np.stack([cv2.blur((layers == n).astype(np.float32), (around, around)) for n in range(MAX_LAYERS)])
    return (np.take_along_axis(shares, layers[None].astype(np.int64), 0)[0] + 0.1) ** -0.5


def _displacement(scene: Scene, points: np.ndarray, layers: np.ndarray, time: int) -> np.ndarray:
    moved = np.zeros(points.shape, np.float32)
    for layer in np.unique(layers):
        own = points[layers == layer]
        moved[layers == layer] = scene.positions(layer, own, time) - own
    return moved


def weighed_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the samples' means of values [B, ...], each of which counts for so much.

    Sample by sample, so that a batch in pieces is the whole batch. One in which next to nothing counts, counts less.
    """
    values, counts = values.flatten(1), counts.flatten(1)
    return ((values * counts).mean(1) / counts.mean(1).clamp_min(LITTLE)).mean()


def not_shared(follow: Tensor, layers: Tensor, weight: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """One less the Dice coefficient of what follows the tracks of a thing and that thing: mean, sample by sample, of
    all that have some; 0 where none has.

    follow [B, C, N], layers [B, C], weight [B, C] of each cell, group [B, N].
    """
    things = torch.arange(1, MAX_LAYERS)
    of = ((group[..., None] == things) & valid[..., None]).float()
    share, true, weight = follow @ of, (layers[..., None] == things).float(), weight[..., None]
    dice = (2 * (weight * share * true).sum(1) + 1) / ((weight * (share + true)).sum(1) + 1)
    has = of.any(1).float()
    return (((1 - dice) * has).sum(1) / has.sum(1).clamp_min(1)).mean()


def _weighed(
    prior: MotionPrior, everywhere: Cells, cells: Tensor, anchors: Tensor, grips: Grips, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [B, C, 2], weights [B, C, 1 + N] and logits [B, C] of lying in front, of these cells [B, C] of all."""
    here = cells[..., None].expand(-1, -1, everywhere.queries.shape[-1])
    looked_at = Cells(everywhere.queries.gather(1, here), *(part.gather(1, cells) for part in everywhere[1:]))
    centres = cell_centres(SIZE[1], SIZE[0])[cells]
    return centres, prior.weigh(centres, looked_at, anchors, grips, valid), looked_at.front


def motion_loss(prior: MotionPrior, batch: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    most = max(1, int(batch["valid"].sum(1).max()))  # the rest is padding
    anchors, moved, valid, group = (batch[name][:, :most] for name in ("anchors", "moved", "valid", "group"))
    with world.autocast():
        everywhere, grips = prior.features(batch["image"], anchors, valid)
    centres, weights, front = _weighed(prior, everywhere, batch["cells"], anchors, grips, valid)
    _, anywhere, _ = _weighed(prior, everywhere, batch["anywhere"], anchors, grips, valid)
    missed = not_shared(anywhere[..., 1:], batch["layers_anywhere"], batch["weight_anywhere"], group, valid)
    motion = torch.func.vmap(least_squares_motion, in_dims=(0, 0, 0, 0, 0, None))(
        weights[..., 1:], centres, anchors, moved[:, None], valid[:, None], prior.ridge.exp()
    )
    layers = batch["layers"]
    own = (group[:, None] == layers[..., None]) & valid[:, None]
    stays = batch["stays"].gather(1, layers)
    known = stays | own.any(-1)
    counts = known * batch["weight"]
    correct = (weights[..., 1:] * own).sum(-1) + weights[..., 0] * stays
    chosen = -weighed_mean(torch.log(correct + 1e-4), counts)
    difference = motion[:, 0] * (1 - weights[..., :1]) - batch["target"]
    error = difference.square().sum(-1).add(1e-4).sqrt()
    moving = weighed_mean(torch.log1p(error), counts)
    patches = (difference * known[..., None]).unflatten(1, (WINDOWS, WINDOW, WINDOW))
    torn = patches.diff(dim=2).abs().clamp_max(8).mean() + patches.diff(dim=3).abs().clamp_max(8).mean()
    in_front = F.binary_cross_entropy_with_logits(front, (layers > 0).float())
    still = batch["target"].square().sum(-1).sqrt()
    return {
        "loss": moving + 2 * chosen + 0.3 * in_front + 0.7 * torn + 2 * missed,
        "missed": missed.detach(),
        "torn": torn.detach(),
        "epe": weighed_mean(error, known.float()).detach(),
        "still_epe": weighed_mean(still, known.float()),
        "chosen": chosen.detach(),
        "in_front": in_front.detach(),
    }
