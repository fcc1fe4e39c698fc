"""The motion of cells that a few tracks imply, by least squares; and how most of some cells go."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.packed import product

UNIT = 32.0  # pixels: keeps the moments of the least squares near 1
HIDDEN = 1e-3  # weight of a hidden track beside a visible one's 1
DECIDED = 7.0  # power of the odds with which a cell goes with one motion, not with another
MODES = 4  # motions, at the most, that are told apart
GOES = 16.0  # power of the odds with which a cell goes at all: what goes a part of the way is torn off its thing
SAME, TURNED = 4.0, 0.3  # pixels, and share of how far they go, by which motions of one thing that turns may differ
ROUNDED = 1e-3  # pixels: motions that differ by less are one
LITTLE = 0.1  # pixels that are hardly a motion
STIFF = 1e-4  # of what tells an affine motion: what that does not determine of turning and growing is none
ENOUGH = 500  # cells that tell how most of them move
ROUNDS = 6  # in which it is found how most of some cells move


def least_squares_motion(
    weights: Tensor, centres: Tensor, anchors: Tensor, moved: Tensor, visible: Tensor, ridge: Tensor
) -> Tensor:
    """Moving least squares: the affine motion of every cell under its weights of the tracks.

    weights [P, N] of the tracks at each cell; anchors [N, 2]; moved [T, N, 2] is each track's displacement from its
    anchor, in pixels; visible [T, N]: a hidden track counts only where hardly any other does; ridge (pixels squared)
    pulls the affine part towards pure translation where the tracks do not determine it. Returns [T, P, 2] in pixels.
    """
    return _affine(_moments(anchors, moved, visible) @ weights.T, centres - anchors.mean(0), ridge)


def decided_motion(
    weights: Tensor,
    centres: Tensor,
    anchors: Tensor,
    moved: Tensor,
    visible: Tensor,
    ridge: Tensor,
    bodies: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`least_squares_motion`, but a cell goes with one motion, not with the mean of several.

    Where tracks part, half of one motion and half of another is a smear. So each weight is multiplied by a power of
    what all that move alike have together: tracks of one thing do not compete. Of what moves, only what moves like that
    which has most counts. And what goes with them more likely than not goes all the way. But tracks that hold one body
    turn it, bend it or stretch it between them, however they part.
    weights [P, 1 + N] of staying and of following each track; bodies: which tracks hold the same, bool [N, N], and
    which cells are of what is held, bool [P]; the rest as there. Returns the motion [T, P, 2], pixels, of what follows
    tracks, and the share [T, P] with which each cell does.
    """
    motions, moments = F.pad(moved, (0, 0, 1, 0)), F.pad(_moments(anchors, moved, visible), (1, 0))
    modes = _farthest(motions, MODES)
    off = torch.cdist(motions, modes)
    nearest, far = F.one_hot(off.argmin(2), modes.shape[1]).mT, modes.norm(dim=2)
    within = ((nearest * off.mT.square()).sum(2) / nearest.sum(2).clamp_min(1)).sqrt()  # a mode stands for all of these
    less, more = (pick(far[:, None], far[:, :, None]) for pick in (torch.minimum, torch.maximum))
    # What stays is nothing like what moves, be it ever so little: together they would make motion between and beyond.
    spread = less.clamp(LITTLE, SAME) + TURNED * more + within[:, None] + within[:, :, None]
    alike = torch.exp(-torch.cdist(modes, modes).square() / (2 * spread**2))
    bent, held = alike, None
    if bodies is not None:
        same, held = bodies
        moving = nearest[..., 1:].float()
        bent = torch.maximum(alike, (moving @ same.float() @ moving.mT > 0).float())

    def by_cell(of: Callable[[Tensor], Tensor]) -> Tensor:
        return of(alike) if torch.equal(bent, alike) else torch.where(held, of(bent), of(alike))

    of_modes = torch.cat([torch.ones_like(moments[:1]), moments])[:, :, None] * nearest
    sums = product(of_modes.flatten(0, 2), weights).unflatten(0, of_modes.shape[:3])  # [1 + moments, T, modes, P]
    together = by_cell(lambda alike: alike @ sums[0])
    odds = (together / together.amax(1, keepdim=True).clamp_min(1e-12)) ** (DECIDED - 1)
    followed, going = sums[:2] * odds
    # `argmax` over anything but the last dimension takes ten times as long.
    most = by_cell(lambda alike: alike @ going).max(1).indices[:, None].mT.expand(-1, -1, modes.shape[1])
    stays = (odds[:, 0] * weights[:, 0] / followed.sum(1).clamp_min(1e-12)).clamp(0, 1)
    shares = odds * by_cell(lambda alike: alike.gather(1, most).mT)
    counted = sums[1:, :, 0] * shares[:, 0]
    for mode in range(1, modes.shape[1]):  # all at once they would be copied: under a moving camera 37 MB
        counted.addcmul_(sums[1:, :, mode], shares[:, mode])
    goes = (1 - stays) ** GOES
    return _affine(counted, centres - anchors.mean(0), ridge), goes / (goes + stays**GOES)


def _farthest(points: Tensor, most: int) -> Tensor:
    """Of points [T, N, 2], in each frame, the first and then the farthest from those taken: [T, M, 2], at most so many,
    and no more than differ."""
    taken, away = [points[:, 0]], torch.full(points.shape[:2], torch.inf)
    while len(taken) < most:
        away = torch.minimum(away, (points - taken[-1][:, None]).norm(dim=2))
        if not (away > ROUNDED).any():
            break
        taken.append(points[torch.arange(len(points)), away.argmax(1)])
    return torch.stack(taken, 1)


def _moments(anchors: Tensor, moved: Tensor, visible: Tensor) -> Tensor:
    """What least squares sum over tracks, [12, ..., N]; see `least_squares_motion`."""
    x, y = ((anchors - anchors.mean(0)) / UNIT).unbind(-1)
    u, v = (moved / UNIT).unbind(-1)
    one, seen = torch.ones_like(u), torch.where(visible, 1.0, HIDDEN)
    return seen * torch.stack([one, *(one * k for k in (x, y, x * x, x * y, y * y)), u, v, x * u, x * v, y * u, y * v])


def _affine(sums: Tensor, away: Tensor, ridge: Tensor) -> Tensor:
    """Motion [..., P, 2], pixels, of cells that lie `away` [P, 2] from the middle, from their moments [12, ..., P]."""
    x, y, xx, xy, yy, u, v, xu, xv, yu, yv = sums[1:] / sums[0].clamp_min(1e-12)
    xx, xy, yy = xx - x * x + ridge / UNIT**2, xy - x * y, yy - y * y + ridge / UNIT**2
    away_x, away_y = (away / UNIT).T
    away_x, away_y, determinant = away_x - x, away_y - y, xx * yy - xy * xy
    a, b = (away_x * yy - away_y * xy) / determinant, (away_y * xx - away_x * xy) / determinant
    went = u + a * (xu - x * u) + b * (yu - y * u), v + a * (xv - x * v) + b * (yv - y * v)
    return (torch.stack(went, -2) * UNIT).transpose(-1, -2)  # as the rest of the geometry wants it in memory


def most_go(basis: np.ndarray, gone: np.ndarray, far: float | None = None) -> np.ndarray:
    """The affine motion [..., 3, 2] of most of some cells that have gone [..., K, 2], pixels: least squares in which
    what strays from it, by more than `far` pixels, counts less and less.

    basis: [3, K], 1 and where they are, in about one unit. far: None for what half of them stray from going alike.
    """
    some = slice(None, None, max(1, gone.shape[-2] // ENOUGH))
    told, gone = basis[:, some], gone[..., some, :].astype(np.float64)
    middle = np.median(gone, axis=-2, keepdims=True)
    gone = rest = gone - middle
    if far is None:
        far = max(LITTLE, np.median(np.linalg.norm(rest, axis=-1)))
    stiff = STIFF * told.shape[1] * np.diag([0.0, 1.0, 1.0])
    for _ in range(ROUNDS):
        counts = told / (1 + np.square(rest).sum(-1) / far**2)[..., None, :]
        affine = np.linalg.solve(counts @ told.T + stiff, counts @ gone)
        rest = gone - told.T @ affine
    affine[..., :1, :] += middle
    return affine
