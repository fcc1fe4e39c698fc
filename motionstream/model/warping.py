"""The geometry of the motion prior: from a few tracks and their weights to a picture that moves.

Motion lives on cells of 2x2 pixels of the first frame (`least_squares_motion`, `settle`). It is laid on the cells of
the new frame and turned around (`splat`, `close_gaps`); through that the first frame is seen (`warp`), and what
nothing has landed on is filled with what lies behind (`fill_holes`).
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 2  # pixels of the frame to a side of one motion cell
UNIT = 32.0  # pixels: keeps the moments of the least squares near 1
FRONT = 40.0  # log-weight of a cell that is surely in front over one that is surely behind
HIDDEN = 1e-3  # weight of a hidden track beside a visible one's 1
AROUND = 32  # pixels from a hole within which there should be something of what lies behind
SEAM = 2  # pixels along a hole that show the edge of what has left it, and so belong to the hole
RIM = 3  # pixels along a hole whose colours are mixed with those of what has left it
PARTS = 2.0  # pixels by which motions differ, at the least, where things part
BEHIND = 0.3  # by how much, of 1, background lies behind an object
FAR = 1e4  # pixels, more than any motion
MISSED = 8.0  # pixels of what motion misses at a track that are made up for
SEEN = 0.5  # by how much, of 1, what a visible track shows comes to the front
BESIDE = 12.0  # pixels from a visible track within which what moves like it is what one sees
ALIKE = 2.0  # pixels, spread of motions that count as the same
CUT = 0.7  # share of a change of motion that lies within NARROW cells where two things touch
NARROW, WIDE = 5, 17  # cells


def cell_centres(height: int, width: int) -> Tensor:
    """Centres of the motion cells of a frame, float32 [h*w, 2] pixels (x, y), h = height/2, w = width/2."""
    rows = torch.arange(height // CELL) * CELL + CELL / 2
    columns = torch.arange(width // CELL) * CELL + CELL / 2
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).reshape(-1, 2)


def least_squares_motion(
    weights: Tensor, centres: Tensor, anchors: Tensor, moved: Tensor, visible: Tensor, ridge: Tensor
) -> Tensor:
    """Moving least squares: the affine motion of every cell under its weights of the tracks.

    weights [P, N] of the tracks at each cell; anchors [N, 2]; moved [T, N, 2] is each track's displacement from its
    anchor, in pixels; visible [T, N]: a hidden track counts only where hardly any other does; ridge (pixels squared)
    pulls the affine part towards pure translation where the tracks do not determine it. Returns [T, P, 2] in pixels.
    """
    times = len(moved)
    middle = anchors.mean(0)
    a = (anchors - middle) / UNIT
    r = moved / UNIT
    seen = torch.where(visible, 1.0, HIDDEN)[..., None]
    products = torch.stack([a[:, 0] ** 2, a[:, 0] * a[:, 1], a[:, 1] ** 2], -1).expand(times, -1, -1)
    mixed = (a[None, :, :, None] * r[:, :, None, :]).flatten(2)
    moments = torch.cat([torch.ones_like(seen), a.expand(times, -1, -1), products, r, mixed], -1) * seen  # [T, N, 12]
    sums = (weights @ moments.movedim(0, 1).flatten(1)).unflatten(1, (times, 12)).movedim(1, 0)  # [T, P, 12]
    mean = sums[..., 1:] / sums[..., :1].clamp_min(1e-12)
    at, went = mean[..., :2], mean[..., 5:7]
    xx = mean[..., 2] - at[..., 0] ** 2 + ridge / UNIT**2
    yy = mean[..., 4] - at[..., 1] ** 2 + ridge / UNIT**2
    xy = mean[..., 3] - at[..., 0] * at[..., 1]
    cross = mean[..., 7:].unflatten(-1, (2, 2)) - at[..., :, None] * went[..., None, :]
    inverse = torch.stack([yy, -xy, -xy, xx], -1).unflatten(-1, (2, 2)) / (xx * yy - xy**2)[..., None, None]
    away = ((centres - middle) / UNIT - at)[..., None, :]
    return (went + (away @ inverse @ cross)[..., 0, :]) * UNIT


def settle(motion: Tensor, outline: Tensor, rim: Tensor, foremost: Tensor) -> Tensor:
    """Motion [T, P, 2] in pixels, cleaned, and cut along outlines; outline, rim, foremost: see `outlines`.

    Medians, as in classical optical flow, remove specks and keep edges. Where nearly all that the motion changes within
    WIDE cells it changes within NARROW ones, two things touch, and a cell goes with one or the other; elsewhere it
    stretches. The one in front takes its soft rim along. Last, medians again: single cells that chose otherwise than
    those around them would stay behind as crumbs.
    """
    grids = motion.unflatten(1, outline.shape).numpy()
    narrow, wide = (np.ones((side, side), np.uint8) for side in (NARROW, WIDE))
    settled = []
    for frame in grids:
        x = medians(frame)
        most, least = cv2.dilate(x, narrow), cv2.erode(x, narrow)
        step = most - least
        sharp = (step > CUT * (cv2.dilate(x, wide) - cv2.erode(x, wide))) & (step > PARTS) & outline[..., None].numpy()
        settled.append(np.where(sharp, np.where(most - x < x - least, most, least), x))
    cut = torch.from_numpy(np.stack(settled)).flatten(1, 2)
    taken = cut[:, foremost]
    taken_along = rim.flatten() & ((taken - cut).norm(dim=-1) > PARTS)
    grids = torch.where(taken_along[..., None], taken, cut).unflatten(1, outline.shape).numpy()
    return torch.from_numpy(np.stack([medians(frame) for frame in grids])).flatten(1, 2)


def medians(motion: np.ndarray) -> np.ndarray:
    """Of the motion [h, w, 2] of cells, over 5x5 of them."""
    return np.stack([cv2.medianBlur(np.ascontiguousarray(motion[..., k]), 5) for k in (0, 1)], -1)


def meet(motion: Tensor, share: Tensor, anchors: Tensor, moved: Tensor, visible: Tensor, rows: int) -> Tensor:
    """Motion [T, P, 2] of `rows` rows of cells, pixels, that also meets the tracks: least squares only come near them.

    What it misses at visible tracks, up to MISSED pixels, is added there, and between them smoothly, to each cell by
    the share [P] that it takes in the tracks' motion. Where none is visible, all count.
    anchors, moved, visible: as in `least_squares_motion`.
    """
    grid = motion.unflatten(1, (rows, -1)).movedim(3, 1)
    size = grid.shape[2:]
    column, row = (anchors / CELL).long().unbind(1)
    cell = row.clamp(0, size[0] - 1) * size[1] + column.clamp(0, size[1] - 1)
    places = (anchors / (CELL * torch.tensor(size[::-1])) * 2 - 1).expand(len(motion), 1, -1, -1)
    there = F.grid_sample(grid, places, align_corners=False, padding_mode="border")[:, :, 0].transpose(1, 2)
    missed = moved - there
    missed = missed * (MISSED / missed.norm(dim=2, keepdim=True).clamp_min(MISSED))
    counts = visible | ~visible.any(1, keepdim=True)
    found = torch.cat([missed, torch.ones_like(missed[..., :1])], 2) * counts[..., None]
    sums = torch.zeros(*motion.shape[:2], 3).index_add_(1, cell, found).unflatten(1, size).movedim(3, 1)
    known = (sums[:, 2:] > 0).to(sums)
    missed = fill_holes(sums[:, :2] / sums[:, 2:].clamp_min(1), known)
    return motion + missed.flatten(2).transpose(1, 2) * share[:, None]


def on_top(displacement: Tensor, points: Tensor, moved: Tensor, visible: Tensor, height: int, width: int) -> Tensor:
    """How surely each cell is what one sees where it lands: [T, P] in [0, 1].

    A visible track is seen, so what lands near its point and moves like it lies in front of whatever else lands there.
    displacement [T, P, 2] of the cells; points, moved [T, N, 2] and visible [T, N] of the tracks; all in pixels.
    """
    rows, columns = height // CELL, width // CELL
    most = torch.tensor([columns, rows]) - 1
    landed, at = ((place / CELL).floor() for place in (cell_centres(height, width) + displacement, points))
    inside, visible = ((landed >= 0) & (landed <= most)).all(2), visible & ((at >= 0) & (at <= most)).all(2)
    at, surely = at.long().numpy(), torch.zeros(displacement.shape[:2])
    for t in visible.any(1).nonzero()[:, 0].tolist():
        (x, y), shown = at[t, visible[t].numpy()].T, moved[t, visible[t]]
        tracked = np.ones((rows, columns), np.uint8)
        tracked[y, x] = 0
        far, label = cv2.distanceTransformWithLabels(tracked, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
        nearest = np.zeros(label.max() + 1, np.int64)
        nearest[label[y, x]] = np.arange(len(x))
        cells = inside[t].nonzero()[:, 0]
        place = (landed[t, cells, 1] * columns + landed[t, cells, 0]).long()
        near = torch.from_numpy(CELL * far.ravel() < BESIDE)[place]
        cells, place = cells[near], place[near]
        expected = shown[torch.from_numpy(nearest[label.ravel()])[place]]
        off = (displacement[t, cells] - expected).square().sum(1)
        surely[t, cells] = torch.exp(-off / (2 * ALIKE**2))
    return surely


def outlines(front: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where things are in front of others: front [h, w] in [0, 1] -> cells near an outline, bool [h, w]; those of them
    that are background, bool [h, w]; and the index [h * w] of the cell farthest in front around each.
    """
    most, foremost = F.max_pool2d(front[None], NARROW, 1, NARROW // 2, return_indices=True)
    least = -F.max_pool2d(-front[None], NARROW, 1, NARROW // 2)
    near = F.max_pool2d((most - least > BEHIND).to(front), NARROW, 1, NARROW // 2)[0] > 0
    return near, most[0] - front > BEHIND, foremost.flatten()


def splat(displacement: Tensor, front: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Turns forward motion of the first frame's cells into backward motion of the new frame's cells.

    displacement [T, P, 2] pixels, front [P] or [T, P]. Each cell is laid on the four cells that it lands between; where
    several land, the ones in front win. Returns backward [T, 2, h, w] in pixels (what to add to a new pixel's place to
    find it in the first frame) and coverage [T, 1, h, w]: the area that landed there, 1 where nothing stretched.
    """
    times, cells = displacement.shape[:2]
    h, w = height // CELL, width // CELL
    landed = (cell_centres(height, width) + displacement) / CELL - 0.5
    corner = landed.floor()
    fraction = landed - corner
    priority = torch.exp(FRONT * front)
    sums = torch.zeros(times * h * w, 4)
    offset = torch.arange(times)[:, None] * (h * w)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = corner[..., 0] + dx, corner[..., 1] + dy
            share = (1 - (fraction[..., 0] - dx).abs()) * (1 - (fraction[..., 1] - dy).abs())
            share = share * ((column >= 0) & (column < w) & (row >= 0) & (row < h))
            index = offset + row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
            weight = share * priority
            values = torch.stack([weight, -weight * displacement[..., 0], -weight * displacement[..., 1], share], -1)
            sums.index_add_(0, index.flatten(), values.flatten(0, 1))
    sums = sums.view(times, h, w, 4).permute(0, 3, 1, 2)
    return sums[:, 1:3] / sums[:, :1].clamp_min(1e-12), sums[:, 3:]


def close_gaps(backward: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Fills cells that stretching left bare from their neighbours; real holes keep confidence 0.

    Returns backward [T, 2, h, w] and confidence [T, 1, h, w] in [0, 1].
    """
    known = (coverage > 0.05).to(coverage)
    around = F.avg_pool2d(known, 3, 1, 1, count_include_pad=False)
    mean = F.avg_pool2d(backward * known, 3, 1, 1, count_include_pad=False) / around.clamp_min(1e-6)
    filled = torch.where(known > 0, backward, mean)
    return filled, ((around - 0.3) / 0.25).clamp(0, 1) * (around > 0)


def enlarged(cells: Tensor, like: Tensor) -> Tensor:
    """[T, C, h, w], bilinear, at the height and width of `like`."""
    return F.interpolate(cells, size=like.shape[-2:], mode="bilinear", align_corners=False)


def fill_holes(picture: Tensor, confidence: Tensor, source: Tensor | None = None) -> Tensor:
    """Pull-push: where confidence is low, the mean of the nearest known surroundings. [T, C, H, W], [T, 1, H, W].

    source: how much each pixel counts as surroundings, in [0, 1]; the confidence if it isn't given.
    """
    weight, levels = confidence if source is None else source, []
    colour = picture * weight
    while max(colour.shape[-2:]) > 1:
        colour = F.avg_pool2d(colour, 2, ceil_mode=True, count_include_pad=False)
        weight = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
        levels.append((colour / weight.clamp_min(1e-6), (weight * 20).clamp(0, 1)))
    known = levels.pop()[0] if levels else picture
    for colour, share in reversed(levels):
        known = torch.lerp(enlarged(known, colour), colour, share)
    return torch.lerp(enlarged(known, picture), picture, confidence)


def eroded(known: Tensor, pixels: int) -> Tensor:
    """The least value within so many pixels; [T, 1, H, W]."""
    around = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return torch.from_numpy(np.stack([cv2.erode(frame, around) for frame in known[:, 0].numpy()]))[:, None]


def without_seams(confidence: Tensor, beyond: Tensor, front: Tensor) -> Tensor:
    """Confidence, taken from what lies behind along holes: there it shows a rim of what has left. All [T, 1, H, W].

    beyond: 1 where there is no hole but the first frame's edge.
    """
    return confidence * torch.maximum(eroded(torch.maximum(confidence, beyond), SEAM), (front > 0.5).to(front))


def behind(front: Tensor, known: Tensor) -> Tensor:
    """How much each pixel tells about what an object uncovers: what lies behind, not the object, nor its soft rim.

    front, known: [T, 1, H, W] in [0, 1] -> the same. Only differences among the pixels around count: where all that
    is near lies in front, it tells as much as a background would.
    """
    weight = known * (0.001 + 0.999 * eroded(known, RIM) * (1 - front))
    block, (height, width) = AROUND // 4, known.shape[2:]
    best = F.max_pool2d(F.max_pool2d(weight, block, ceil_mode=True), 9, 1, 4)
    return weight / F.interpolate(best, scale_factor=block)[..., :height, :width].clamp_min(1e-6)


def enlarged_motion(motion: np.ndarray, sure: np.ndarray, scale: int = CELL) -> np.ndarray:
    """Motion [2, h, w] of one frame's cells, with its confidence [h, w] -> that of pixels, [2, scale * h, scale * w].

    Bilinear over the cells that are known. Where things part, what lies between two motions is no motion: a pixel there
    gets that of the four cells around it which is most like their mean. Motion keeps its unit; scale: an even number.
    """
    weight, square = np.maximum(sure, 1e-3), np.ones((2, 2), np.uint8)  # of each cell and the next ones, right and down
    sums = [cv2.resize(part * weight, None, fx=scale, fy=scale) for part in (*motion, np.ones_like(weight))]
    mean = np.stack(sums[:2]) / sums[2]
    sure, *motion = (cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for part in (sure, *motion))
    change = [cv2.dilate(part, square, anchor=(0, 0)) - cv2.erode(part, square, anchor=(0, 0)) for part in motion]
    rows, columns = (np.maximum(*change)[:-1, :-1] > PARTS).nonzero()
    corners = [(rows + down, columns + right) for down, right in np.ndindex(2, 2)]
    motions = np.stack([[part[corner] for part in motion] for corner in corners])
    unknown = np.stack([sure[corner] < 0.5 for corner in corners])
    between = np.indices((scale, scale)).reshape(2, -1, 1) - scale // 2  # pixels between four cells
    y, x = (scale * at + step for at, step in zip((rows, columns), between, strict=True))
    y, x = y.clip(0, mean.shape[1] - 1), x.clip(0, mean.shape[2] - 1)
    off = np.abs(motions[:, :, None] - mean[:, y, x]).sum(1) + FAR * unknown[:, None]
    mean[:, y, x] = np.moveaxis(motions[off.argmin(0), :, np.arange(len(rows))], -1, 0)
    return mean


def in_the_first_frame(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backward motion [2, H, W] of pixels -> columns and rows [H, W] of the first frame that they show."""
    _, height, width = flow.shape
    return flow[0] + np.arange(width, dtype=np.float32), flow[1] + np.arange(height, dtype=np.float32)[:, None]


def seen_through(picture: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A picture [H, W, C] at other places, bicubic, mirrored at its edges."""
    return cv2.remap(picture, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def warp(image: Tensor, front: Tensor, maps: list, confidence: Tensor) -> tuple[Tensor, ...]:
    """The first frame [3, H, W] seen at other places, bicubic, mirrored at its edges: [T, 3, H, W].

    maps: those places, one `in_the_first_frame` a frame; confidence: [T, 1, h, w] of the cells. Returns also, [T, 1, H,
    W]: what lies in front (given for cells, [P]); the confidence, 0 where the picture is mirrored; and 1 where it is
    ("beyond"), else 0.
    """
    _, height, width = image.shape
    near = F.interpolate(front.view(1, 1, height // CELL, width // CELL), size=(height, width), mode="bilinear")[0]
    picture = np.ascontiguousarray(torch.cat([image, near]).permute(1, 2, 0).numpy())
    seen = [seen_through(picture, *at) for at in maps]
    warped, near = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).split([3, 1], dim=1)
    beyond = torch.from_numpy(np.stack([(x < -1) | (x > width) | (y < -1) | (y > height) for x, y in maps]))[:, None]
    sure = F.interpolate(confidence, size=(height, width), mode="bilinear", align_corners=False) * ~beyond
    return warped.clamp(-1, 1), near.clamp(0, 1), sure, beyond.to(sure)
