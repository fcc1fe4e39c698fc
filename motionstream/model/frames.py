"""One frame of the first frame in motion, where its cells have gone: what is seen, how surely, and what is guessed."""

from typing import NamedTuple

import cv2
import numpy as np

from motionstream.model.least_squares import most_go
from motionstream.model.splatting import close_gaps, splat
from motionstream.model.warping import (
    CELL,
    PARTS,
    around,
    behind,
    beneath,
    cell_numbers,
    enlarged_motion,
    fill_holes,
    has_moved,
    in_cells,
    in_pixels,
    in_the_first_frame,
    mirrored,
    places_within,
    planes,
    seen_through,
    showing,
    surely,
    without_seams,
)

MOST, FADES = 0.8, 0.2  # of the cells: if fewer have moved, the ground stays; from how many fewer on all of it
KNOWN = 0.5  # confidence from which on a cell has a motion of its own
LEAST = 0.01  # of a frame that shows the picture, from which on it tells how the picture moves as a whole
FOLDS = 1 / 16  # of the frame's shorter side, of which is made what goes on beyond an edge that cuts through a thing


class Scene(NamedTuple):
    """What frames are made of: see `PriorState`."""

    picture: np.ndarray
    plate: np.ndarray
    ground: np.ndarray
    alone: np.ndarray
    across: np.ndarray
    cut: np.ndarray


def in_motion(scene: Scene, things: np.ndarray, displacement: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, ...]:
    """One frame of the first frame in motion: picture, confidence, guessed, beyond, backward, under, sure of `Moved`.

    things [h, w]: of `Moved`; displacement [P, 2] pixels and front [h, w] of the scene's cells in this frame.

    Mirrored beyond the picture's edges one sees what is behind things, not them once more; but things that an edge cuts
    through go on. Where nothing is known to lie behind, ground goes on; where much of the picture stays, so does the
    ground: what goes along of it leaves itself behind.
    """
    height, width = (CELL * side for side in front.shape)
    backward, sure = close_gaps(*splat(displacement, front.ravel(), height, width))
    trend = trend_of(backward, sure, things)

    def continued(source: np.ndarray = sure) -> np.ndarray:
        # Of what is known none is mixed with what is not: through a motion between two one sees a piece of something.
        return fill_holes(backward - trend, np.float32(sure >= KNOWN), source) + trend

    flow = continued()
    if not sure.any():  # all of it has left: one sees its mirror image
        flow -= displacement.mean(0)[:, None, None]
    places = in_the_first_frame(enlarged_motion(flow, sure))
    outside, on = in_cells(mirrored(*places)) & (sure < 1), np.zeros(sure.shape, bool)
    if outside.any():
        along, on = going_on(scene.cut, flow, backward, sure)
        if (apart := sure * ~showing(things & ~scene.across, flow)).any():
            # Beside a thing that was cut off by the frame's edge is not its mirror image, unless that is the ground.
            flow = np.where(outside, continued(apart), flow)
        flow = np.where(on, along, flow)
        places = in_the_first_frame(enlarged_motion(flow, np.maximum(sure, on)))
    seen = planes(seen_through(scene.picture, *places)).clip(-1, 1)
    warped, near = seen[:3], np.maximum(seen[3], 0)
    goes_on = cv2.resize(on.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    beyond = np.maximum(mirrored(*places), goes_on)
    confidence = cv2.resize(np.maximum(sure, on), (width, height)) * (1 - beyond)
    confidence = without_seams(confidence, beyond, near)
    beyond *= 1 - cv2.remap(scene.alone, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    known = np.maximum(confidence, beyond)
    tells = behind(near, known)
    shown, guessed = fill_holes(warped, known, tells), np.zeros_like(known)
    tells = surely(cv2.resize(tells, sure.shape[::-1], interpolation=cv2.INTER_AREA))
    tells *= sure  # where nothing landed, a mirror image is seen, of which no motion is known
    if tells.any():
        flow = np.where(on, flow, continued(tells))  # what was hidden moves as what is seen beside it, not as the thing
    under = beneath(flow, tells, things)
    holes = in_cells(known < 1)
    if holes.any():
        goes = has_moved(displacement, front.shape)
        stays = np.float32(np.clip((MOST - goes.mean()) / FADES, 0, 1))
        if stays:
            under = np.where(holes, under + stays * (beneath(flow, tells, things | goes) - under), under)
        guessed = show_behind(shown, warped, known, scene.plate, scene.ground, under, around(holes))
    return shown, confidence, guessed, beyond, flow, under, np.maximum(sure, on)


def going_on(
    cut: np.ndarray, flow: np.ndarray, backward: np.ndarray, sure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What goes on beyond an edge of the first frame that cuts through it: its backward motion [2, h, w], folded, and
    the cells of this frame, bool [h, w], where it does.

    cut: see `cut_through`; flow: as `showing` takes it; backward, sure: the same of cells that are known, and how well.
    """
    edge = sure * showing(cut, flow)
    if not edge.any():
        return flow, edge > 0
    along = fill_holes(backward, edge)
    motion, beyond = folded(along)
    return motion, beyond & showing(cut, along)


def folded(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backward motion [2, h, w] of cells that leads back into the first frame where it led beyond an edge, to and fro
    near that; and where it did, bool [h, w]."""
    sides, beyond, found = flow.shape[:0:-1], np.zeros(flow.shape[1:], bool), []
    reach = FOLDS * min(sides)
    for at, side, part in zip(in_the_first_frame(flow / CELL), sides, flow, strict=True):
        far = np.maximum(at - (side - 0.5), -0.5 - at)  # from the edge, outwards
        inwards = reach - np.abs(far % (2 * reach) - reach)
        within = np.where(at < 0, inwards - 0.5, side - 0.5 - inwards)
        found.append(np.where(far > 0, part + CELL * (within - at), part).astype(np.float32))
        beyond |= far > 0
    return np.stack(found), beyond


def show_behind(
    shown: np.ndarray,
    warped: np.ndarray,
    known: np.ndarray,
    plate: np.ndarray,
    ground: np.ndarray,
    under: np.ndarray,
    cells: tuple[slice, slice],
) -> np.ndarray:
    """Puts what lies behind into shown [3, H, W] where these cells of it have holes -> how far that is guessed, [H, W].

    warped [3, H, W]: what is seen, as far as it is known [H, W]; plate, ground: see `PriorState`; under: of `Moved`.
    """
    guessed, part = np.zeros_like(known), in_pixels(cells)
    places = places_within(under, np.ones(under.shape[1:], np.float32), cells)
    room, warped, known = shown[(slice(None), *part)], warped[(slice(None), *part)], known[part]
    filled, there = lying_behind(plate, ground, places)
    room += there * (filled + known * (warped - filled) - room)
    guessed[part] = there * (1 - known)
    return guessed


def lying_behind(
    plate: np.ndarray, ground: np.ndarray, places: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What lies behind at these places of the first frame, [3, H, W], and how surely that is known, [H, W]: filled, or
    ground that is seen there; plate, ground: see `PriorState`."""
    seen = planes(seen_through(plate, *places)).clip(-1, 1)
    bare = cv2.remap(ground, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return seen[:3], np.maximum(seen[3], bare)


def trend_of(backward: np.ndarray, sure: np.ndarray, things: np.ndarray) -> np.ndarray:
    """The affine motion [2, h, w] of a picture that moves as a whole, as a camera that zooms makes it; else none [1].

    backward [2, h, w] and its confidence: beyond the picture's edges it goes on so, not as its mean; things [h, w]: of
    `Moved`, which may go otherwise.
    """
    known = sure > 0.5
    moved = np.square(backward).sum(0) > PARTS**2
    if known.all() or known.mean() < LEAST or moved[known].mean() < MOST:
        return np.zeros(1, np.float32)
    behind = known & ~showing(things, backward)
    tell = np.flatnonzero(behind if behind.mean() >= LEAST else known)
    numbers = cell_numbers(*sure.shape)
    away = (numbers - numbers.take(tell, 1).mean(1, keepdims=True)) / len(tell) ** 0.5
    basis = np.vstack([np.ones(sure.size), away])
    affine = most_go(basis.take(tell, 1), backward.reshape(2, -1).take(tell, 1).T)
    return (affine.T @ basis).reshape(backward.shape).astype(np.float32)
