"""The geometry of the motion prior: from a few tracks and their weights to a picture that moves.

Motion lives on cells of 2x2 pixels of the first frame (`least_squares`, `settle`). It is laid on the cells of
the new frame and turned around (`splatting`); through that the first frame is seen (`seen_through`), and
what nothing has landed on is filled with what lies behind (`fill_holes`).
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 2  # pixels of the frame to a side of one motion cell
DENSE = 0.07  # of a picture's side, from a cell to the nearest track in the mean, where these are all over the picture
AROUND = 32  # pixels from a hole within which there should be something of what lies behind
SEAM = 2  # pixels along a hole that show the edge of what has left it, and so belong to the hole
RIM = 3  # pixels along a hole whose colours are mixed with those of what has left it
PARTS = 2.0  # pixels by which motions differ, at the least, where things part
HEM = 4  # cells to either side of a thing that it takes along of its surroundings, at the most
PART = 0.3  # share of what moves farthest that does, where all moves little
ABRUPT = 0.5  # share of a change of motion within five cells that is one step, where things part
IN_FRONT = 0.5  # how far in front, of 1, a cell of a thing lies
BEHIND = 0.3  # by how much, of 1, background lies behind an object
FAR = 1e4  # pixels, more than any motion
MISSED = 8.0  # pixels of what motion misses at a track that are made up for
SEEN = 0.5  # by how much, of 1, what a visible track shows comes to the front
BESIDE = 12.0  # pixels from a visible track within which what moves like it is what one sees
ALIKE = 2.0  # pixels, spread of motions that count as the same
CUT = 0.7  # share of a change of motion that lies within NARROW cells where two things touch
NARROW, WIDE = 5, 17  # cells
FEW = 4  # cells, of the coarsest level of what holes are filled with, that are no more than one
THIRDS = 3  # steps from one pixel of a picture to the next


def cell_numbers(rows: int, columns: int) -> np.ndarray:
    """Column and row of each cell, float32 [2, rows * columns]."""
    return np.indices((rows, columns), np.float32).reshape(2, -1)[::-1]


def cell_centres(height: int, width: int) -> Tensor:
    """Centres of the motion cells of a frame, float32 [h*w, 2] pixels (x, y), h = height/2, w = width/2."""
    numbers = cell_numbers(height // CELL, width // CELL)
    return torch.from_numpy(np.ascontiguousarray((CELL * (numbers + np.float32(0.5))).T))


def cells_of(anchors: Tensor, rows: int, columns: int) -> np.ndarray:
    """Numbers [N] of the cells, of rows x columns, that tracks are attached to, or come nearest to; anchors [N, 2]."""
    column, row = (anchors / CELL).long().numpy().T
    return row.clip(0, rows - 1) * columns + column.clip(0, columns - 1)


def at_points(cells: Tensor, points: Tensor) -> Tensor:
    """What cells [B, C, h, w] are at points [B, N, 2], pixels: [B, N, C], bilinear."""
    size = CELL * torch.tensor(cells.shape[:1:-1])
    places = (points / size * 2 - 1)[:, None]
    return F.grid_sample(cells, places, align_corners=False, padding_mode="border")[:, :, 0].transpose(1, 2)


def squared(motion: np.ndarray) -> np.ndarray:
    """How far motions [..., 2] go, squared; `sum` over two takes ten times as long."""
    x, y = motion[..., 0], motion[..., 1]
    return x * x + y * y


def settle(motion: Tensor, outline: Tensor, rim: Tensor, foremost: Tensor) -> Tensor:
    """Motion [T, P, 2] in pixels, cleaned, and cut along outlines; outline, rim, foremost: see `outlines`.

    Medians, as in classical optical flow, remove specks and keep edges. Where nearly all that the motion changes within
    WIDE cells it changes within NARROW ones, two things touch, and a cell goes with one or the other; elsewhere it
    stretches. The one in front takes its soft rim along. Last, medians again: single cells that chose otherwise than
    those around them would stay behind as crumbs.
    """
    outline, rim, front = outline.numpy(), rim.numpy(), foremost.view(rim.shape).numpy()
    narrow, wide = (np.ones((side, side), np.uint8) for side in (NARROW, WIDE))

    def settled(frame: np.ndarray) -> np.ndarray:
        cut, parts = medians(frame), parting(frame)
        for x in cut:
            most, least = cv2.dilate(x, narrow), cv2.erode(x, narrow)
            step = most - least
            sharp = (step > CUT * (cv2.dilate(x, wide) - cv2.erode(x, wide))) & (step > parts) & outline
            np.copyto(x, np.where(most - x < x - least, most, least), where=sharp)
        taken = cut.reshape(2, -1)[:, front]
        along = rim & (cv2.magnitude(*(taken - cut)) > parts)
        return medians(np.where(along, taken, cut))

    grids = motion.transpose(1, 2).unflatten(2, outline.shape).numpy()
    return torch.from_numpy(np.stack([settled(grid) for grid in grids])).flatten(2).transpose(1, 2)


def parting(motion: np.ndarray) -> float:
    """Pixels by which motion of cells differs, at the least, where things part: fewer when a drag has just begun."""
    return min(PARTS, PART * float(np.abs(motion).max()))


def medians(motion: np.ndarray, side: int = 5) -> np.ndarray:
    """Of the motion [2, h, w] of cells, over so many to a side; what would then go alone goes with those beside it."""
    return in_company(np.stack([cv2.medianBlur(along, side) for along in motion]), parting(motion))


def in_company(motion: np.ndarray, parts: float) -> np.ndarray:
    """Motion [2, h, w], pixels, where a cell that parts from those beside it, by so many pixels, goes with them."""
    beside, motion = np.uint8([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), motion.copy()
    for along in motion:
        most, least = cv2.dilate(along, beside), cv2.erode(along, beside)
        alone = (most - least < parts) & ((along > most + parts) | (along < least - parts))
        np.copyto(along, (most + least) / 2, where=alone)
    return motion


def whole(motion: Tensor, going: Tensor, solid: Tensor, rim: Tensor, foremost: Tensor) -> Tensor:
    """Motion [T, P, 2], pixels, as `going` where medians have made that stay: they eat small things from their corners.

    solid: bool [P], what is no speck, wherever it goes; rim, foremost: see `outlines`. The rim of a thing that stays is
    left to it, and what goes after all takes its own along.
    """
    of = torch.where(rim.flatten(), foremost, torch.arange(len(foremost)))
    parts = torch.tensor([parting(frame) for frame in going.numpy()])[:, None]
    far, farther = (torch.hypot(*of.unbind(2)) for of in (motion, going))  # `norm` over two takes ten times as long
    eaten = solid & (far < parts) & (farther > parts) & (farther[:, of] > parts)
    motion = torch.where(eaten[..., None], going, motion)
    along = rim.flatten() & (far < parts) & eaten[:, foremost]
    motion = torch.where(along[..., None], motion[:, foremost], motion)
    for frame in along.any(1).nonzero()[:, 0]:
        grid = in_company(motion[frame].T.unflatten(1, rim.shape).numpy(), float(parts[frame]))
        motion[frame] = torch.from_numpy(grid).flatten(1).T
    return motion


def meet(motion: Tensor, share: Tensor, anchors: Tensor, moved: Tensor, visible: Tensor, rows: int) -> Tensor:
    """Motion [T, P, 2] of `rows` rows of cells, pixels, that also meets the tracks: least squares only come near them.

    What it misses at visible tracks, up to MISSED pixels, is added there, and between them smoothly, to each cell by
    the share [T, P] that it takes in the tracks' motion. Where none is visible, all count. A track on the last cell of
    a thing is met by that cell: between it and what stays beside it there is no motion to be measured.
    anchors, moved, visible: as in `least_squares_motion`.
    """
    grid = motion.unflatten(1, (rows, -1)).movedim(3, 1)
    size = grid.shape[2:]
    cell = torch.from_numpy(cells_of(anchors, *size))
    missed, own = moved - at_points(grid, anchors.expand(len(motion), -1, -1)), moved - motion[:, cell]
    missed = torch.where(own.norm(dim=2, keepdim=True) < missed.norm(dim=2, keepdim=True), own, missed)
    missed = missed * (MISSED / missed.norm(dim=2, keepdim=True).clamp_min(MISSED))
    counts = visible | ~visible.any(1, keepdim=True)
    found = torch.cat([missed, torch.ones_like(missed[..., :1])], 2) * counts[..., None]
    sums = torch.zeros(*motion.shape[:2], 3).index_add_(1, cell, found).unflatten(1, size).movedim(3, 1)
    known, missed = (sums[:, 2] > 0).float(), sums[:, :2] / sums[:, 2:].clamp_min(1)
    missed = torch.from_numpy(np.stack([*map(fill_holes, missed.numpy(), known.numpy())]))
    return motion + missed.flatten(2).transpose(1, 2) * share[..., None]


def nearest_cells(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far, in cells, the nearest `known` one (bool [h, w], at least one) is from each cell, and its number."""
    far, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(label.max() + 1, np.intp)
    number[label[known]] = np.flatnonzero(known)
    return far, number[label]


def are_dense(far: np.ndarray) -> bool:
    """Whether tracks are all over a picture; far: cells from each cell to the nearest one that has a track, [h, w]."""
    return far.mean() < DENSE * far.size**0.5


def tracked_cells(anchors: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The cells in which tracks start, bool [rows, columns]; anchors [N, 2], pixels."""
    tracked = np.zeros((rows, columns), bool)
    at = np.clip(anchors // CELL, 0, (columns - 1, rows - 1)).astype(int)
    tracked[at[:, 1], at[:, 0]] = True
    return tracked


def on_top(
    displacement: np.ndarray, points: np.ndarray, moved: np.ndarray, visible: np.ndarray, height: int, width: int
) -> np.ndarray:
    """How surely each cell is what one sees where it lands in one frame: float32 [P] in [0, 1].

    A visible track is seen, so what lands near its point and moves like it lies in front of whatever else lands there.
    displacement [P, 2] of the cells; points, moved [N, 2] and visible [N] of the tracks; all in pixels.
    """
    rows, columns = size = height // CELL, width // CELL
    surely, centres = np.zeros(len(displacement), np.float32), cell_numbers(*size) + np.float32(0.5)
    landed, at = (np.floor(place) for place in (centres + displacement.T / CELL, points.T / CELL))
    inside, seen = (((0 <= x) & (x < columns) & (0 <= y) & (y < rows)) for x, y in (landed, at))
    seen &= visible
    if not seen.any():
        return surely
    (x, y), shown = at[:, seen].astype(int), moved[seen]
    tracked = np.zeros(size, bool)
    tracked[y, x] = True
    far, nearest = nearest_cells(tracked)
    track = np.zeros(tracked.size, int)
    track[columns * y + x] = np.arange(len(x))
    cells = inside.nonzero()[0]
    place = (landed[0, cells] + columns * landed[1, cells]).astype(int)
    near = CELL * far.ravel()[place] < BESIDE
    cells, place = cells[near], place[near]
    off = squared(displacement[cells] - shown[track[nearest.ravel()[place]]])
    surely[cells] = np.exp(-off / (2 * ALIKE**2))
    return surely


def outlines(front: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where things are in front of others: front [h, w] in [0, 1] -> cells near an outline, bool [h, w]; those of them
    that are background, bool [h, w]; and the index [h * w] of the cell farthest in front around each.
    """
    most, foremost = F.max_pool2d(front[None], NARROW, 1, NARROW // 2, return_indices=True)
    least = -F.max_pool2d(-front[None], NARROW, 1, NARROW // 2)
    near = F.max_pool2d((most - least > BEHIND).to(front), NARROW, 1, NARROW // 2)[0] > 0
    return near, most[0] - front > BEHIND, foremost.flatten()


def showing(things: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Which cells of a frame show some of the cells `things` of the first one, bool [h, w] both.

    flow: backward motion [2, h, w] of the frame's cells, pixels, without holes.
    """
    places = in_the_first_frame(flow / CELL)
    return cv2.remap(things.astype(np.float32), *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) > 0


def has_moved(displacement: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which cells have moved so far that things part there, bool as large as `size`; displacement [P, 2], pixels."""
    return (squared(displacement) > PARTS**2).reshape(size)


def with_hem(things: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """The cells of things, bool [h, w], and those beside them that they take along: a narrow hem, which does not tell
    how what lies behind moves, as wide background does that goes. displacement [P, 2], pixels."""
    goes = has_moved(displacement, things.shape)
    taken, things_go = goes & ~things, goes & things
    if not (taken.any() and things_go.any()):
        return things
    far, nearest = nearest_cells(things_go)
    like = squared(displacement - displacement[nearest.ravel()]).reshape(things.shape) < PARTS**2
    narrow = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * HEM + 1, 2 * HEM + 1))
    wide = cv2.morphologyEx(taken.view(np.uint8), cv2.MORPH_OPEN, narrow) > 0
    return things | taken & like & (far <= HEM) & ~wide


def beneath(flow: np.ndarray, tells: np.ndarray, things: np.ndarray) -> np.ndarray:
    """How what lies behind things moves, [2, h, w]: as what is seen beside them, not as they do.

    flow: as `showing` takes it; tells: [h, w] in [0, 1], how much its cells tell of what lies behind.
    """
    tells = tells * ~showing(things, flow)
    return fill_holes(flow, tells) if tells.any() else flow


def resized(planes: np.ndarray, like: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """[C, h, w] at the height and width of `like`, an array that ends in these."""
    size = like.shape[-2:]
    found = np.empty((len(planes), *size), np.float32)
    for plane, room in zip(planes, found, strict=True):
        cv2.resize(plane, size[::-1], dst=room, interpolation=interpolation)
    return found


def fill_holes(picture: np.ndarray, confidence: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
    """Pull-push: where confidence is low, the mean of the nearest known surroundings. [C, H, W], [H, W].

    source: how much each pixel counts as surroundings, in [0, 1]; the confidence if it isn't given.
    """
    weight, levels = confidence if source is None else source, []
    level = np.concatenate([picture * weight, weight[None]])
    while min(level.shape[1:]) > FEW:
        level = resized(level, level[0, ::2, ::2], cv2.INTER_AREA)
        levels.append((level[:-1] / np.maximum(level[-1], 1e-6), np.minimum(20 * level[-1], 1)))
    known = (level[:-1].sum((1, 2)) / np.maximum(level[-1].sum(), 1e-6))[:, None, None]
    for colour, share in [*reversed(levels), (picture, confidence)]:
        known = resized(known, share)
        known -= colour
        known *= 1 - share
        known += colour  # where the share is 1, exactly
    return known


def eroded(known: np.ndarray, pixels: int) -> np.ndarray:
    """The least value within so many pixels; [H, W]."""
    return cv2.erode(known, np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8))


def without_seams(confidence: np.ndarray, beyond: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Confidence, taken from what lies behind along holes: there it shows a rim of what has left. All [H, W].

    beyond: 1 where there is no hole but the first frame's edge.
    """
    return confidence * np.maximum(eroded(np.maximum(confidence, beyond), SEAM), front > 0.5)


def behind(front: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How much each pixel tells about what an object uncovers: what lies behind, not the object, nor its soft rim.

    front, known: [H, W] in [0, 1] -> the same. Only differences among the pixels around count: where all that is near
    lies in front, it tells as much as a background would.
    """
    weight = known * (0.001 + 0.999 * eroded(known, RIM) * (1 - front))
    best = cv2.dilate(weight, np.ones((2 * AROUND + 1, 2 * AROUND + 1), np.uint8))
    return weight / np.maximum(best, 1e-6)


def surely(share: np.ndarray) -> np.ndarray:
    """Of shares in [0, 1] what is above a half, as shares: of what is near, a little would soon outweigh all else."""
    return np.maximum(2 * share - 1, 0)


def steps(motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many pixels the motion [2, h, w] of each cell and those right and below differs, [h - 1, w - 1], and
    whether things part there: in one step of most of what it changes around, not as what is turned or grows.
    """
    square, around = np.ones((2, 2), np.uint8), np.ones((5, 5), np.uint8)
    change = [cv2.dilate(part, square, anchor=(0, 0)) - cv2.erode(part, square, anchor=(0, 0)) for part in motion]
    most = np.maximum(*change)
    parts = most > PARTS
    if parts.any():
        wide = (cv2.dilate(part, around) - cv2.erode(part, around) for part in motion)
        parts = np.logical_or(*((a > PARTS) & (a > ABRUPT * b) for a, b in zip(change, wide, strict=True)))
    return most[:-1, :-1], parts[:-1, :-1]


def enlarged_motion(motion: np.ndarray, sure: np.ndarray, scale: int = CELL) -> np.ndarray:
    """Motion [2, h, w] of one frame's cells, with its confidence [h, w] -> that of pixels, [2, scale * h, scale * w].

    Bilinear over the cells that are known. Where things part, what lies between two motions is no motion: a pixel there
    gets that of the four cells around it which is most like their mean. Motion keeps its unit; scale: an even number.
    """
    *motion, sure = (cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for part in (*motion, sure))
    weight = np.maximum(sure, 1e-3)
    sums = [cv2.resize(part, None, fx=scale, fy=scale) for part in (motion[0] * weight, motion[1] * weight, weight)]
    mean = [cv2.divide(part, sums[2]) for part in sums[:2]]
    rows, columns = steps(motion)[1].nonzero()
    beside, below = sure.shape[1], mean[0].shape[1]
    corners = rows * beside + columns + np.array([[0], [1], [beside], [beside + 1]])
    motions = [part.ravel().take(corners) for part in motion]
    unknown = np.where(sure.ravel().take(corners) < 0.5, np.float32(FAR), np.float32(0))
    y, x = np.indices((scale, scale)).reshape(2, -1, 1) + scale // 2  # pixels between four cells
    pixels = scale * (rows * below + columns) + y * below + x
    means = [part.ravel().take(pixels) for part in mean]
    nearest = np.zeros(pixels.shape, np.intp)
    least = np.full(pixels.shape, np.inf, np.float32)
    for corner in range(4):
        off = sum(np.abs(part - cell[corner]) for part, cell in zip(means, motions, strict=True)) + unknown[corner]
        np.copyto(nearest, corner, where=off < least)
        np.minimum(least, off, out=least)
    nearest = nearest * len(rows) + np.arange(len(rows))
    for part, cell in zip(mean, motions, strict=True):
        part.reshape(-1)[pixels] = cell.ravel().take(nearest)
    return np.stack([part[scale:-scale, scale:-scale] for part in mean])


def in_the_first_frame(flow: np.ndarray, left: int = 0, top: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Backward motion [2, H, W] of pixels -> columns and rows [H, W] of the first frame that they show.

    left, top: column and row of the first one, if they are a part of the frame.
    """
    height, width = flow.shape[1:]
    columns, rows = (np.arange(begin, begin + side, dtype=np.float32) for begin, side in ((left, width), (top, height)))
    return flow[0] + columns, flow[1] + rows[:, None]


def around(cells: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns within which some cells, [h, w], lie, and one more on each side; at least one is not 0."""
    left, top, width, height = cv2.boundingRect((cells != 0).view(np.uint8))
    return slice(max(0, top - 1), top + height + 1), slice(max(0, left - 1), left + width + 1)


def in_cells(pixels: np.ndarray) -> np.ndarray:
    """Which cells hold any of some pixels, bool or shares [H, W]: bool [h, w]."""
    size = pixels.shape[1] // CELL, pixels.shape[0] // CELL
    return cv2.resize(np.float32(pixels), size, interpolation=cv2.INTER_AREA) > 0


def in_pixels(part: tuple[slice, slice], scale: int = CELL) -> tuple[slice, slice]:
    """Rows and columns told in cells of so many pixels, in pixels."""
    return tuple(slice(scale * at.start, scale * at.stop) for at in part)


def inside(part: tuple[slice, slice], of: tuple[slice, slice]) -> tuple[slice, slice]:
    """Rows and columns of a part of another part, which holds it, told from where that begins."""
    return tuple(slice(at.start - begin.start, at.stop - begin.start) for at, begin in zip(part, of, strict=True))


def places_within(
    flow: np.ndarray, sure: np.ndarray, part: tuple[slice, slice], times: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """`in_the_first_frame` of a part of a frame, told in cells, for a picture that is so many times as large.

    flow [2, h, w] and sure [h, w] of all cells, see `enlarged_motion`.
    """
    motion = times * enlarged_motion(flow[(slice(None), *part)], sure[part], CELL * times)
    rows, columns = in_pixels(part, CELL * times)
    return in_the_first_frame(motion, columns.start, rows.start)


def between(picture: np.ndarray) -> np.ndarray:
    """What `seen_through` looks at: a picture [H, W, C] and, bicubic, two places between each two of its pixels.

    [3H - 2, 3W - 2, C]. From there on linear interpolation is as good; with four channels it takes a sixth of the time.
    """
    return cv2.resize(picture, None, fx=THIRDS, fy=THIRDS, interpolation=cv2.INTER_CUBIC)[1:-1, 1:-1]


def seen_through(thirds: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A picture, given as `between` makes it of [H, W, C], at other places, mirrored at its edges."""
    return cv2.remap(thirds, THIRDS * columns, THIRDS * rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def planes(picture: np.ndarray) -> np.ndarray:
    """float32 [H, W, C] -> [C, H, W]."""
    found = np.empty((picture.shape[2], *picture.shape[:2]), np.float32)
    cv2.split(picture, list(found))
    return found


def mirrored(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1 at places [H, W] beyond the edges of the first frame, of this size, where one sees its mirror image; else 0."""
    height, width = columns.shape
    return ((columns < -1) | (columns > width) | (rows < -1) | (rows > height)).astype(np.float32)
