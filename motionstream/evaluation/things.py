"""What goes along with a drag, against things outlined by hand.

    python -m motionstream eval things LIBRARY/held-out [--json]

LIBRARY is written by `python -m motionstream.training.photos`; no training sees what lies in its `held-out`. Each thing
is grabbed with a grid in its middle, with four such grids anywhere on it (as far as they lie on it), and at four single
points, and dragged. What moves at least half as far as the pointer follows. Per way to grab, the means over all things:

- overlap: of what follows and the thing, intersection over union;
- follows: how much of the thing; ends: the same about its farthest six places, such as heads, feet and tails;
- along: how much that is not of the thing, of its size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from motionstream.errors import InputError
from motionstream.evaluation.motion import add_common, largest, mean_over, report, sheet_place
from motionstream.evaluation.sheets import check_place, draw_tracks
from motionstream.machine import Choice, fit_pictures, parse_resolution
from motionstream.model.checkpoint import Model, load_component, load_model
from motionstream.model.warping import CELL
from motionstream.streaming import inference
from motionstream.tracks import Tracks
from motionstream.training.photos import load_library
from motionstream.video import fit_image

GRID, SPACING = 3, 14.0  # points to a side, and pixels between them at generation size
DRAG = (12.0, 5.0)  # pixels; towards the nearer side it is mirrored
TIMES = 4  # grids, and points, anywhere
SMALLEST = 0.005  # of the picture: smaller things are not measured
UNSURE = 0.2, 0.8  # cells of which a share between these is of the thing tell nothing
ENDS = 6
WAYS = "grid in the middle", "grids anywhere", "single points"


@dataclass(frozen=True)
class Thing:
    """picture: uint8 [H, W, 3] at generation size; sharp: uint8 [kH, kW, 3], the same as it is shown; share: float32
    [h, w], how much of each cell is of the thing."""

    name: str
    picture: np.ndarray
    sharp: np.ndarray
    share: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        return self.share > 0.5

    @property
    def sure(self) -> np.ndarray:
        return (self.share <= UNSURE[0]) | (self.share >= UNSURE[1])


def outlined(model: Model, choice: Choice, folder: Path) -> Iterator[Thing]:
    """The things of a library, as a visitor's pictures would be shown. Raises `InputError`."""
    library = load_library(folder)
    for number, (photo, mask) in enumerate(library.objects):
        picture, sharp = fit_pictures(model.preset, choice, library.photos[photo])
        height, width = picture.shape[:2]
        fitted = fit_image(np.repeat(mask[..., None], 3, -1), width, height)[..., 0]
        cells = cv2.resize(fitted, (width // CELL, height // CELL), interpolation=cv2.INTER_AREA) / np.float32(255)
        if (cells > UNSURE[1]).mean() > SMALLEST:
            yield Thing(f"photo {photo}, thing {number}", picture, largest(picture, sharp), cells)


def grabs(thing: Thing, rng: np.random.Generator) -> Iterator[tuple[str, Tracks]]:
    """(one of WAYS, tracks of two frames) for each drag; points anywhere lie well inside, and grids' centres inside."""
    depth = _depth(thing.share >= UNSURE[1])
    for way in WAYS:
        inside = np.argwhere(depth >= {WAYS[0]: 1.0, WAYS[1]: 1 / depth.max(), WAYS[2]: 0.5}[way] * depth.max())
        for row, column in inside[rng.integers(len(inside), size=1 if way == WAYS[0] else TIMES)]:
            start = (np.array([column, row]) + 0.5) * CELL
            aside = np.array(DRAG) * (1 if start[0] < thing.picture.shape[1] / 2 else -1, 1)
            size = 1 if way == WAYS[2] else GRID
            grid = Tracks.rigid_grid(np.stack([start, start + aside]), SPACING, size, np.arange(size * size))
            x, y = np.floor(grid.points[0] / CELL).astype(int).T
            height, width = thing.whole.shape
            held = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            held[held] = thing.whole[y[held], x[held]]
            yield way, Tracks(grid.points[:, held], grid.visible[:, held], grid.ids[held])


def _depth(inside: np.ndarray) -> np.ndarray:
    """How many cells each one lies inside; the picture's edge counts as one."""
    framed = cv2.copyMakeBorder(inside.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]


def far_ends(whole: np.ndarray, count: int = ENDS) -> list[tuple[int, int]]:
    """Cells (row, column) of a thing [h, w], each the farthest from its middle and from the ones before, along it."""
    _, pieces, sizes, _ = cv2.connectedComponentsWithStats(whole.astype(np.uint8))
    largest = pieces == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()
    found = [np.unravel_index(_depth(largest).argmax(), whole.shape)]
    distance = np.full(whole.shape, np.inf)
    for _ in range(count):
        reached, steps = np.zeros(whole.shape, np.uint8), 0
        reached[found[-1]] = 1
        while (new := (reached > 0) & (distance > steps)).any():  # where an earlier one is nearer, it need not go on
            distance[new] = steps
            reached, steps = cv2.dilate(new.astype(np.uint8), np.ones((3, 3))) & largest, steps + 1
        found.append(np.unravel_index(np.where(largest, distance, -1).argmax(), whole.shape))
    return found[1:]


def following(model: Model, thing: Thing, tracks: Tracks) -> np.ndarray:
    """Which cells of its picture move at least half as far as these tracks, bool [h, w]."""
    with inference(model):
        image, sharp = (torch.from_numpy(p).movedim(-1, 0) / 127.5 - 1 for p in (thing.picture, thing.sharp))
        moved = model.motion_prior.motion(model.motion_prior.start(image, sharp), tracks)[-1].float()
    far = np.linalg.norm(tracks.points[-1] - tracks.points[0], axis=-1).max()
    return (moved.norm(dim=-1) >= far / 2).view(thing.share.shape).numpy()


def score(follows: np.ndarray, thing: Thing) -> dict[str, float]:
    """The figures of one drag, see the module's docstring."""
    whole, sure = thing.whole, thing.sure
    both, size = (follows & whole & sure).sum(), (whole & sure).sum()
    places = [np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] for y, x in far_ends(whole)]
    return {
        "overlap": both / ((follows | whole) & sure).sum(),
        "follows": both / size,
        "ends": float(np.mean([follows[place][whole[place]].mean() for place in places])),
        "along": (follows & ~whole & sure).sum() / size,
    }


def evaluate(model: Model, thing: Thing, seed: int) -> tuple[dict[str, dict[str, float]], list[np.ndarray]]:
    """-> ({way to grab: means of its drags}, a row of the contact sheet: the thing, and each way's last drag)."""
    scores, shown = {way: [] for way in WAYS}, {}
    outline, _ = cv2.findContours(thing.whole.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for way, tracks in grabs(thing, np.random.default_rng(seed)):
        follows = following(model, thing, tracks)
        scores[way].append(score(follows, thing))
        lit = np.repeat(np.repeat(np.where(follows, 1.0, 0.3), CELL, 0), CELL, 1)[..., None]
        picture = draw_tracks((thing.picture * lit).astype(np.uint8), tracks)
        shown[way] = cv2.drawContours(picture, [CELL * line for line in outline], -1, (255, 255, 0))
    means = {way: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} for way, rows in scores.items()}
    return means, [thing.picture, *shown.values()]


def main(argv: list[str]) -> int:
    """`motionstream eval things ...`: prints a table, writes a contact sheet, with --json one JSON line last -> 0."""
    args = _parser().parse_args(argv)
    check_place(sheet_place(args))
    model = load_model(args.model, args.device)
    if args.prior:
        model.motion_prior = load_component(args.prior / "motion_prior").eval()
    if model.motion_prior is None:
        raise InputError(f"{args.model} has no motion prior, which is what is measured: name another model")
    figures, rows = {}, []
    for thing in outlined(model, parse_resolution(args.resolution, model.preset), args.folder):
        figures[thing.name], shown = evaluate(model, thing, args.seed)
        rows.append((thing.name, shown))
    if not figures:
        raise InputError(f"{args.folder} has no outlined thing: write it with python -m motionstream.training.photos")
    report(args, ["picture", *WAYS], rows, figures, mean_over(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="motionstream eval things", description=__doc__.split("\n")[0])
    parser.set_defaults(table="things")
    parser.add_argument("folder", type=Path, metavar="LIBRARY", help="photos/ and objects/, see training/photos.py")
    parser.add_argument("--prior", type=Path, metavar="DIR", help="with the motion prior of this model folder instead")
    add_common(parser)
    return parser
