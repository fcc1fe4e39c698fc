"""Things turn: the motion of what is held at several places is told as it is seen by one who turns with it.

Of a thing that is turned every cell moves otherwise, neighbours by more than a cell's width from a right angle on. All
that looks at motion (medians, outlines, tracks that move alike) would tear it to pieces. So what goes along is found in
the thing's own frame, in which it only goes, bends and is stretched; then that is turned.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from motionstream.model.warping import nearest_cells
from motionstream.tracks import angles

LEAST = 0.5  # pixels that turning must move what is held, in the mean: less is not told from bending
APART = 16.0  # pixels that a thing goes in its own frame, at the least, which tell it from what stays
TIMES = 4.0  # and how many times as far as it bends


class Turn(NamedTuple):
    """How one thing turns in T frames.

    thing: its number, see `numbered`; middle: [2], pixels, of the places where it is held; arrives: [T, 2], where that
    comes to lie; by: [T, 2, 2], rotation of column vectors; goes: [T, 2], pixels that it goes in its own frame: as its
    middle does, but where it turns so far that it can be told from what stays.
    """

    thing: int
    middle: Tensor
    arrives: Tensor
    by: Tensor
    goes: Tensor


def joined(alike: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which tracks hold one thing at places that look alike, bool [N, N]; arguments as of `bodies`."""
    return alike & (held == held[:, None]) & (held > 0)


def bodies(alike: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Numbers [N] of the bodies that tracks hold, 0 for none: those of one thing at places that look alike, or like
    those of others between them. alike: bool [N, N]; held [N]: numbers of the things, see `numbered`."""
    same = joined(alike, held)
    number, before = np.where(held > 0, np.arange(len(held)) + 1, 0), None
    while before is None or (number != before).any():
        before, number = number, np.where(same, number, 0).max(1, initial=0)
    return number


def turns(places: Tensor, moved: Tensor, body: np.ndarray, held: np.ndarray) -> list[Turn]:
    """How those bodies turn that do.

    places [N, 2] of tracks; moved [T, N, 2] from there, pixels; body, held [N]: see `bodies`.
    """
    found = []
    for number in np.unique(body[body > 0]):
        tracks = torch.from_numpy(body == number)
        begin, end = places[tracks], (places + moved)[:, tracks]
        middle, arrives = begin.mean(0), end.mean(1)
        away, angle = begin - middle, torch.from_numpy(angles(begin.numpy(), end.numpy())).float()
        turning = angle.abs() * away.norm(dim=1).mean() > LEAST
        if not turning.any():
            continue
        cos, sin = (angle * turning).cos(), (angle * turning).sin()
        by = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        bends = ((end - arrives[:, None]) @ by - away).norm(dim=2).amax(1)
        went, far = arrives - middle, (arrives - middle).norm(dim=1, keepdim=True)
        ahead = torch.where(far > 0, went / far, torch.tensor([1.0, 0.0]))
        farther = ahead * torch.maximum(far, (TIMES * bends).clamp_min(APART)[:, None])
        goes = torch.where(turning[:, None], farther, went)
        found.append(Turn(int(held[body == number][0]), middle, arrives, by, goes))
    return found


def straightened(
    places: Tensor, moved: Tensor, held: np.ndarray, pairs: Tensor, found: list[Turn]
) -> tuple[Tensor, Tensor]:
    """Motion [T, N, 2] of tracks, arguments as of `turns`, which `found` these, as in the frames of those things that
    they hold and turn with; and that of those beside a thing, too, see `straddling`, as if they held it."""
    straight, beside = moved.clone(), moved.clone()
    for turn in found:
        own = (places + moved - turn.arrives[:, None]) @ turn.by + turn.middle + turn.goes[:, None] - places
        on, goes = torch.from_numpy(held == turn.thing), turn.goes[:, None]
        along = on & ((own - goes).norm(dim=2) < goes.norm(dim=2) / 2)
        straight = torch.where(along[..., None], own, straight)
        hold = pairs[0, on[pairs[1]]]
        beside[:, hold] = own[:, hold]
    others = torch.ones(len(places), dtype=torch.bool).index_fill_(0, pairs[0], False)
    return straight, torch.where(others[:, None], straight, beside)


def turning(places: Tensor, motion: Tensor, number: np.ndarray, held: np.ndarray, found: list[Turn]) -> Tensor:
    """What the turning of things adds to motion [T, P, 2] of cells at these places [P, 2], pixels, that is told as in
    their frames, or [1, P, 2] where nothing turns; number [h, w] of the things, see `numbered`, and held [N] of those
    that tracks hold. What goes along with a thing turns with it, if it is nearer to no other that is held.
    """
    if not found:
        return torch.zeros_like(places)[None]
    added, least = torch.zeros_like(motion), motion.norm(dim=2, keepdim=True)
    nearest = number.ravel()[nearest_cells(np.isin(number, held[held > 0]))[1]].ravel()
    for turn in found:
        cells, goes = torch.from_numpy(nearest == turn.thing), turn.goes[:, None]
        end, off = (places + motion)[:, cells], (motion[:, cells] - goes).norm(dim=2, keepdim=True)
        there = (end - goes - turn.middle) @ turn.by.mT + turn.arrives[:, None]
        added[:, cells] = torch.where(off < least[:, cells], there - end, added[:, cells])
        least[:, cells] = torch.minimum(off, least[:, cells])
    return added
