"""Tracks move the piece that they are attached to: what looks like it elsewhere stays."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.warping import IN_FRONT, cells_of, nearest_cells, parting, steps

FOLLOWS = 0.5  # share of a cell's motion that must come from tracks for the cell to be of a piece
NECK = 2  # cells: what is no wider than twice these does not join a patch of background to a thing
SURE = 0.8  # how far in front, in [0, 1], cells lie that are surely of one thing with those beside them
CLOSER = 0.1  # by how much, at the most, a closer look makes surer of that, as of dark hair before what is dark
EDGE = 3  # cells around these that are of the thing, too, if they lie in front
CRUMB = 0.2  # of a thing: what is less of it, and has come less far or farther, is no part of it
LEFT = 8.0  # pixels by which a cell of a thing has come less far, or farther, than what it hangs on
WITH = 2.5  # log-odds by which a cell goes rather than stays where most of its thing goes
SPECK = 6  # cells, fewer of which are no piece of anything
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
    attached = of[:, cells_of(anchors, rows, columns)]
    kept = weights[:, 1:] * ((of[..., None] == attached[:, None]) & (attached[:, None] > 0)).any(0)
    total = kept.sum(1, keepdim=True)
    kept = torch.where(total > 0, kept / total.clamp_min(1e-12) * weights[:, 1:].sum(1, keepdim=True), 0.0)
    return torch.cat([(1 - kept.sum(1, keepdim=True)).clamp(0, 1), kept], 1)


def numbered(front: Tensor, thin: Tensor | None = None) -> np.ndarray:
    """The number of the thing that surely lies in front in each cell, with its soft edge, int [h, w]; 0 elsewhere.
    front, thin: see `connect`."""
    closely = front if thin is None else torch.maximum(front, thin)
    lies, surely = (closely > IN_FRONT).numpy(), (torch.minimum(closely, front + CLOSER) > SURE).numpy()
    number = cv2.connectedComponents(across_gaps(surely).view(np.uint8))[1]
    number = np.where(lies, number, 0).astype(np.float32)
    for _ in range(EDGE):
        number = np.where(lies & (number == 0), cv2.dilate(number, np.ones((3, 3))), number)
    return number.astype(int)


def undivided(weights: Tensor, number: np.ndarray, held: np.ndarray) -> Tensor:
    """Shares [P, 1 + N] of staying and of following each track, where a thing that has no track of its own goes as a
    whole, as most of it does, or stays: the sky that is dragged does not tear the rim off a balloon.

    number: see `numbered`; held [N]: of the things that tracks hold.
    """
    free = torch.from_numpy((number > 0) & ~np.isin(number, held)).flatten()
    of = torch.from_numpy(number).flatten()[free]
    sums = torch.zeros(number.max() + 1, weights.shape[1]).index_add_(0, of, weights[free])
    shares = sums / sums.sum(1, keepdim=True).clamp_min(1e-12)
    stays = F.one_hot(torch.zeros(len(sums)).long(), weights.shape[1]).to(shares)
    weights = weights.clone()
    weights[free] = torch.where(1 - shares[:, :1] > FOLLOWS, shares, stays)[of]
    return weights


def together(connected: Tensor, weights: Tensor, number: np.ndarray, held: np.ndarray) -> Tensor:
    """The shares `connected`, see `connect`, of `weights`, where less is needed for a cell to go if it is of a thing of
    which most goes: hair goes with the face, a rack with its car. Neither staying nor a track of something else, as
    a pin beside it, holds back what is left of it.

    number, held: see `undivided`. Such a cell follows the tracks that hold its thing.
    """
    of = torch.from_numpy(number).flatten()
    own = F.pad(of[:, None] == torch.from_numpy(held), (1, 0))
    follow, total = weights * own, (weights * own).sum(1)
    kept, others = (connected * own).sum(1), connected * ~own
    goes = torch.sigmoid(WITH + torch.logit(total, 1e-6))
    most = torch.bincount(of, kept) > FOLLOWS * torch.bincount(of)
    left = (of > 0) & most[of] & (kept < FOLLOWS) & (goes > FOLLOWS)
    found = goes[:, None] * F.normalize(follow, 1, 1) + (1 - goes[:, None]) * F.normalize(others, 1, 1)
    return torch.where(left[:, None], found, connected)


def along_again(shares: Tensor, came: np.ndarray, number: np.ndarray, held: np.ndarray) -> Tensor:
    """The shares [P, 1 + N] where what has once come along with a thing, as parts of its rim, does so again when most
    of the thing goes: as the nearest cell that goes with its thing does.

    came: bool [h, w]; number, held: see `undivided`.
    """
    of = number.ravel()[nearest_cells(number > 0)[1]].ravel()
    kept = (shares[:, 1:].numpy() * (of[:, None] == held)).sum(1)
    surely, goes = number.ravel() > 0, kept > FOLLOWS
    most = np.bincount(of[surely], kept[surely]) > FOLLOWS * np.bincount(of[surely])
    again = came.ravel() & most[of] & ~goes
    if not again.any():
        return shares
    nearest = nearest_cells(goes.reshape(number.shape))[1].ravel()
    return torch.where(torch.from_numpy(again)[:, None], shares[nearest], shares)


def left_behind(base: np.ndarray, number: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Which cells of things have not come as far as these have, bool [h, w]: crumbs, which would fly ahead of them.

    base [2, h, w]: how far cells have come, pixels; number: see `numbered`; cells [N]: of tracks: what these are on is
    no crumb. Of a thing that is turned or grows all has come along.
    """
    def of_nearest(known: np.ndarray) -> np.ndarray:
        return base.reshape(2, -1)[:, nearest_cells(known)[1]].reshape(base.shape)

    of = number > 0
    if not (of.any() and base.any()):
        return of & False
    parts = np.pad(steps(of_nearest(of))[1].view(np.uint8), ((0, 1), (0, 1)))
    whole = of & (cv2.dilate(parts, np.ones((2, 2), np.uint8)) == 0)
    _, piece, boxes, _ = cv2.connectedComponentsWithStats(whole.view(np.uint8))
    crumb = boxes[piece, cv2.CC_STAT_AREA] < CRUMB * np.bincount(number.ravel())[number]
    whole &= ~crumb | np.isin(piece, piece.ravel()[cells])
    return of & (np.hypot(*(base - of_nearest(whole))) > LEFT) if whole.any() else of & False


def across_gaps(cells: np.ndarray) -> np.ndarray:
    """The cells, bool [h, w], and the gaps between them."""
    over = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * GAP + 1, 2 * GAP + 1))
    return cv2.morphologyEx(cells.view(np.uint8), cv2.MORPH_CLOSE, over).view(bool)


def attached(motion: Tensor, anchors: Tensor, solid: Tensor, rows: int) -> Tensor:
    """Motion [T, P, 2] of `rows` rows of cells, pixels, where what goes without being connected to a track that goes
    stays: crumbs of the background that would fly along with a thing. anchors [N, 2], pixels; solid: bool [P], what is
    of one piece across gaps, as in `pieces`, if it is no speck."""
    cell, solid = cells_of(anchors, rows, motion.shape[1] // rows), solid.view(rows, -1).numpy()

    def frame(going: np.ndarray) -> np.ndarray:
        goes = (np.hypot(*going.T) > parting(going)).reshape(rows, -1)
        _, own, boxes, _ = cv2.connectedComponentsWithStats(goes.view(np.uint8))
        speck = (boxes[own, cv2.CC_STAT_AREA] < SPECK) & ~np.isin(own, own.ravel()[cell])
        goes &= ~speck
        number = cv2.connectedComponents((across_gaps(goes & solid) | goes).view(np.uint8))[1]
        crumb = ~np.isin(number, number.ravel()[cell]) & goes
        return going if (crumb == goes).all() else np.where((crumb | speck).reshape(-1, 1), 0, going)

    return torch.from_numpy(np.stack([frame(going) for going in motion.numpy()]))


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
