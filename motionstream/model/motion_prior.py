"""The motion prior: the first frame moved along the dense motion that a few tracks imply.

A small model cannot learn from minutes of training what every track ID means; it learns at once from a picture that is
already nearly right. The prior makes it, in three steps:

1. A U-Net reads the first frame and the tracks' anchors (where they start in it) and gives each pixel a feature. How
   much a pixel follows a track is a softmax over the tracks of feature affinity and nearness, beside one learned choice
   more: to stay. These weights depend on the picture and the anchors alone, never on the motion.
2. Each pixel's motion is the moving-least-squares affine map (Schaefer et al. 2006) of the tracks under these weights,
   cut where the U-Net sees one thing in front of another.
3. The moved pixels are splatted, nearer ones over farther ones; the first frame is sampled through the resulting
   backward motion, so it stays sharp however long the stream. What no pixel reached has confidence 0 and is filled with
   what is around it, or, beyond the first frame's edges, with its mirror image.

The reference is the first frame for ever. When the set of tracks changes, the motion so far is kept as the base on
which new tracks add; a track that starts later finds its anchor through the inverse of the motion so far.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from motionstream.tracks import Tracks

CELL = 2  # pixels of the frame to a side of one motion cell
UNIT = 32.0  # pixels: keeps the moments of the least squares near 1
FRONT = 40.0  # log-weight of a cell that is surely in front over one that is surely behind
HIDDEN = 1e-3  # weight of a hidden track beside a visible one's 1
CERTAIN = 3.0  # log-odds with which a track moves the place it is attached to, at the least
CONNECTED = 0.15  # share of a cell's motion that must come from tracks for the cell to join two others
AROUND = 32  # pixels from a hole within which there should be something of what lies behind
SEAM = 2  # pixels along a hole that show the edge of what has left it, and so belong to the hole
RIM = 3  # pixels along a hole whose colours are mixed with those of what has left it
PARTS = 2.0  # pixels by which motions differ, at the least, where things part
BEHIND = 0.3  # by how much, of 1, background lies behind an object
FAR = 1e4  # pixels, more than any motion
CUT = 0.7  # share of a change of motion that lies within NARROW cells where two things touch
NARROW, WIDE = 5, 17  # cells
SHARPEN = 1.5  # power of the odds with which a cell follows the tracks: cleaner cuts, but still soft where unsure


class Block(nn.Module):
    def __init__(self, incoming: int, channels: int, stride: int = 1):
        super().__init__()
        self.enter = nn.Conv2d(incoming, channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return x + self.inner(F.silu(self.norm(x)))


class UNet(nn.Module):
    """[B, incoming, h, w] -> [B, outgoing, h, w]; any h and w."""

    def __init__(self, incoming: int, widths: tuple[int, ...], outgoing: int):
        super().__init__()
        self.enter = Block(incoming, widths[0])
        self.down = nn.ModuleList(Block(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(
            Block(a + b, b) for a, b in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.leave = nn.Conv2d(widths[0], outgoing, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.enter(x)]
        for block in self.down:
            levels.append(block(F.silu(levels[-1])))
        x = levels.pop()
        for block in self.up:
            skip = levels.pop()
            x = block(F.silu(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], dim=1)))
        return self.leave(F.silu(x))


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


def connect(weights: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
    """Shares [P, 1 + N] of staying and of following each track, cut to one piece: a cell follows only tracks that are
    attached to its own connected piece of what follows any. What looks like a dragged object elsewhere stays.
    """
    rows, columns = height // CELL, width // CELL
    follows = (1 - weights[:, 0] > CONNECTED).view(rows, columns).byte().numpy()
    piece = torch.from_numpy(cv2.connectedComponents(follows)[1]).flatten()
    cells = (anchors / CELL).long().clamp(torch.zeros(2).long(), torch.tensor([columns, rows]) - 1)
    attached = piece[cells[:, 1] * columns + cells[:, 0]]
    kept = weights[:, 1:] * ((piece[:, None] == attached) & (attached > 0))
    total = kept.sum(1, keepdim=True)
    kept = torch.where(total > 0, kept / total.clamp_min(1e-12) * weights[:, 1:].sum(1, keepdim=True), 0.0)
    return torch.cat([(1 - kept.sum(1, keepdim=True)).clamp(0, 1), kept], 1)


def settle(motion: Tensor, outline: Tensor, rim: Tensor, foremost: Tensor) -> Tensor:
    """Motion [T, P, 2] in pixels, cleaned, and cut along outlines; outline, rim, foremost: see `outlines`.

    Medians over 5x5 cells, as in classical optical flow, remove specks and keep edges. Where nearly all that the motion
    changes within WIDE cells it changes within NARROW ones, two things touch, and a cell goes with one or the other;
    elsewhere it stretches. Last, the one in front takes its soft rim along.
    """
    grids = motion.unflatten(1, outline.shape).numpy()
    narrow, wide = (np.ones((side, side), np.uint8) for side in (NARROW, WIDE))
    settled = []
    for frame in grids:
        x = np.stack([cv2.medianBlur(np.ascontiguousarray(frame[..., k]), 5) for k in (0, 1)], -1)
        most, least = cv2.dilate(x, narrow), cv2.erode(x, narrow)
        step = most - least
        sharp = (step > CUT * (cv2.dilate(x, wide) - cv2.erode(x, wide))) & (step > PARTS) & outline[..., None].numpy()
        settled.append(np.where(sharp, np.where(most - x < x - least, most, least), x))
    cut = torch.from_numpy(np.stack(settled)).flatten(1, 2)
    taken = cut[:, foremost]
    taken_along = rim.flatten() & ((taken - cut).norm(dim=-1) > PARTS)
    return torch.where(taken_along[..., None], taken, cut)


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

    displacement [T, P, 2] pixels, front [P] in [0, 1]. Each cell is laid on the four cells that it lands between; where
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


def _nearest(centres: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
    """Distance of each centre [B, P, 2] to its nearest valid anchor, pixels [B, P]; far away where there is none."""
    with torch.no_grad():
        return torch.cdist(centres, anchors).masked_fill(~valid[:, None], 1e4).amin(-1)


@dataclass
class PriorState:
    """What one stream's prior remembers: fixed size but for one row a track."""

    image: Tensor  # [3, H, W] in [-1, 1]: the reference
    base: Tensor  # [P, 2] displacement in pixels when the present set of tracks began
    latest: Tensor  # [P, 2] displacement at the newest frame
    ids: tuple[int, ...] = ()
    anchors: dict[int, Tensor] = field(default_factory=dict)  # id -> [2], its place in the first frame
    held: Tensor | None = None  # [N, 2] base at the anchors
    newest: Tensor | None = None  # [N, 2] each track's newest known displacement on top of that
    weights: Tensor | None = None  # [P, N]
    share: Tensor | None = None  # [P], of the tracks' motion that each cell takes part in
    front: Tensor | None = None  # [P]
    outlines: tuple[Tensor, Tensor, Tensor] | None = None  # see `outlines`

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]


class MotionPrior(ModelMixin, ConfigMixin):
    """Image and tracks -> the first frame in motion, with a confidence; see the module's docstring."""

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128, 160, 192), features: int = 32):
        super().__init__()
        self.net = UNet(3 * CELL**2 + 2, tuple(widths), 2 * features + 2)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.nearness = nn.Parameter(torch.tensor(1.0))
        self.reach = nn.Parameter(torch.tensor(4.0))  # pixels within which all anchors are equally near
        self.ridge = nn.Parameter(torch.tensor(3.0))  # log of pixels squared
        self.to(memory_format=torch.channels_last)

    def features(self, image: Tensor, anchors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What each cell is like, given the picture and where its tracks start.

        image [B, 3, H, W] in [-1, 1]; anchors [B, N, 2] pixels; valid bool [B, N]: which of them count. Returns per
        cell queries [B, P, C] and logits [B, P] of staying and of lying in front; per anchor keys [B, N, C] and a head
        start [B, N], so large that a track surely moves the very place that it is attached to.
        """
        height, width = image.shape[-2:]
        nearest = _nearest(cell_centres(height, width).expand(len(image), -1, -1), anchors, valid)
        shown = nearest[:, None].unflatten(2, (height // CELL, width // CELL))
        marks = torch.cat([torch.exp(-shown / 4), torch.exp(-shown / 24)], dim=1)
        x = torch.cat([F.pixel_unshuffle(image, CELL), marks.to(image)], dim=1)
        found = self.net(x.contiguous(memory_format=torch.channels_last)).float()
        channels = self.config.features
        queries, keys, stay, front = found.split([channels, channels, 1, 1], dim=1)
        places = (anchors / torch.tensor([width, height]) * 2 - 1)[:, None]
        there = F.grid_sample(found[:, : 2 * channels + 1], places, align_corners=False, padding_mode="border")[:, :, 0]
        own_query, key, own_stay = there.transpose(1, 2).split([channels, channels, 1], dim=-1)
        head_start = F.relu(own_stay[..., 0] - self._match(own_query, key) + CERTAIN)
        return queries.flatten(2).transpose(1, 2), stay.flatten(1), front.flatten(1), key, head_start

    def _match(self, query: Tensor, key: Tensor) -> Tensor:
        return (query * key).sum(-1) * self.sharpness / self.config.features**0.5

    def weigh(
        self,
        centres: Tensor,
        queries: Tensor,
        stay: Tensor,
        anchors: Tensor,
        keys: Tensor,
        head_start: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Shares [B, P, 1 + N] with which each cell stays (first) or follows each track; they sum to 1."""
        distance = torch.cdist(centres, anchors)
        nearest = _nearest(centres, anchors, valid)[..., None]
        match = queries @ keys.transpose(1, 2) * self.sharpness / self.config.features**0.5 + head_start[:, None]
        near = torch.log((distance**2 + self.reach**2) / (nearest**2 + self.reach**2))
        follow = (match - F.softplus(self.nearness) * near).masked_fill(~valid[:, None], float("-inf"))
        return torch.cat([stay[..., None], follow], dim=-1).softmax(-1)

    def start(self, image: Tensor) -> PriorState:
        """A stream that begins with `image` [3, H, W] in [-1, 1], H and W even."""
        cells = (image.shape[1] // CELL) * (image.shape[2] // CELL)
        return PriorState(image.float(), torch.zeros(cells, 2), torch.zeros(cells, 2))

    @torch.no_grad()
    def step(self, state: PriorState, tracks: Tracks) -> tuple[Tensor, Tensor]:
        """The next `tracks.T` frames: the moved picture [1, 3, T, H, W] in [-1, 1], confidence [1, 1, T, H, W]."""
        displacement = self.motion(state, tracks)
        if not displacement.any():
            still = state.image[None, :, None].expand(-1, -1, tracks.T, -1, -1)
            return still, torch.ones_like(still[:, :1])
        backward, confidence = close_gaps(*splat(displacement, state.front, *state.size))
        filled = fill_holes(backward, confidence)
        warped, front, confidence, beyond = _sample(state.image, state.front, filled, confidence)
        confidence = without_seams(confidence, beyond, front)
        known = torch.maximum(confidence, beyond)
        warped = fill_holes(warped, known, behind(front, known))
        return warped.movedim(0, 1)[None], confidence.movedim(0, 1)[None]

    @torch.no_grad()
    def motion(self, state: PriorState, tracks: Tracks) -> Tensor:
        """Displacement of every cell of the first frame, [T, P, 2] pixels, at each of the tracks' frames."""
        points, visible = torch.tensor(tracks.points), torch.tensor(tracks.visible)
        if state.front is None or tuple(tracks.ids.tolist()) != state.ids:
            self._regroup(state, tracks, points, visible)
        if not tracks.N:
            return state.base.expand(tracks.T, -1, -1)
        # What is dragged out of the frame goes on moving; what is hidden inside stays where it was last seen.
        told = visible | (points < 0).any(-1) | (points >= torch.tensor(state.size[::-1])).any(-1)
        anchors = torch.stack([state.anchors[i] for i in state.ids])
        moved = []
        for displacement, known in zip(points - anchors - state.held, told, strict=True):
            state.newest = torch.where(known[:, None], displacement, state.newest)
            moved.append(state.newest)
        with torch.autocast("cpu", enabled=False):  # second moments need all the digits of float32
            motion = least_squares_motion(
                state.weights, cell_centres(*state.size), anchors, torch.stack(moved), visible, self.ridge.exp()
            )
            motion = settle(motion * state.share[:, None], *state.outlines)
            displacement = state.base + motion
        state.latest = displacement[-1].clone()
        return displacement

    def _regroup(self, state: PriorState, tracks: Tracks, points: Tensor, visible: Tensor) -> None:
        """Takes in a new set of tracks: bakes the motion so far, anchors the newcomers, weighs all of them anew."""
        state.base = state.latest
        state.ids = tuple(tracks.ids.tolist())
        centres = cell_centres(*state.size)
        begun = {}
        for n, track in enumerate(state.ids):
            if track not in state.anchors:
                first = points[int(visible[:, n].int().argmax()), n]
                landed = (centres + state.base - first).square().sum(1)
                # Of all cells that landed here, the one in front.
                rank = landed - (0 if state.front is None else (landed < 4 * CELL**2) * state.front * 4 * CELL**2)
                begun[track] = state.base[int(rank.argmin())]
                state.anchors[track] = first - begun[track]
        state.anchors = {track: state.anchors[track] for track in state.ids}
        anchors = torch.stack([*state.anchors.values(), torch.zeros(2)])  # the last one never counts: N may be 0
        valid = (torch.arange(len(anchors)) < len(state.ids))[None]
        queries, stay, front, keys, head_start = self.features(state.image[None], anchors[None], valid)
        with torch.autocast("cpu", enabled=False):
            weights = self.weigh(centres[None], queries, stay, anchors[None], keys, head_start, valid)[0]
        weights = connect(weights[:, :-1], anchors[:-1], *state.size)
        state.weights = weights[:, 1:].contiguous()
        height, width = state.size
        share = 1 - weights[:, 0]
        state.share = share**SHARPEN / (share**SHARPEN + (1 - share) ** SHARPEN)
        front = front[0].sigmoid()
        state.outlines = outlines(front.view(height // CELL, width // CELL))
        state.front = (front - BEHIND * state.outlines[1].flatten()).clamp_min(0)
        places = anchors[:-1] / torch.tensor([width, height]) * 2 - 1
        base = state.base.T.unflatten(1, (height // CELL, width // CELL))[None]
        state.held = F.grid_sample(base, places[None, None], align_corners=False, padding_mode="border")[0, :, 0].T
        for n, track in enumerate(state.ids):
            if track in begun:  # exactly where it was grabbed, so that nothing jumps
                state.held[n] = begun[track]
        state.newest = torch.zeros_like(state.held)


def enlarged_motion(motion: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Motion [2, h, w] of one frame's cells, in pixels, with its confidence [h, w] -> that of pixels, [2, H, W].

    Bilinear over the cells that are known. Where things part, what lies between two motions is no motion: a pixel there
    gets that of the four cells around it which is most like their mean.
    """
    weight, square = np.maximum(sure, 1e-3), np.ones((2, 2), np.uint8)  # of each cell and the next ones, right and down
    sums = [cv2.resize(part * weight, None, fx=CELL, fy=CELL) for part in (*motion, np.ones_like(weight))]
    mean = np.stack(sums[:2]) / sums[2]
    sure, *motion = (cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for part in (sure, *motion))
    change = [cv2.dilate(part, square, anchor=(0, 0)) - cv2.erode(part, square, anchor=(0, 0)) for part in motion]
    rows, columns = (np.maximum(*change)[:-1, :-1] > PARTS).nonzero()
    corners = [(rows + down, columns + right) for down, right in np.ndindex(2, 2)]
    motions = np.stack([[part[corner] for part in motion] for corner in corners])
    unknown = np.stack([sure[corner] < 0.5 for corner in corners])
    for down, right in np.ndindex(CELL, CELL):
        y, x = (CELL * at - CELL // 2 + step for at, step in ((rows, down), (columns, right)))
        y, x = y.clip(0, mean.shape[1] - 1), x.clip(0, mean.shape[2] - 1)
        off = np.abs(motions - mean[:, y, x]).sum(1) + FAR * unknown
        mean[:, y, x] = motions[off.argmin(0), :, np.arange(len(rows))].T
    return mean


def _sample(image: Tensor, front: Tensor, backward: Tensor, confidence: Tensor) -> tuple[Tensor, ...]:
    """The first frame [3, H, W] seen through backward motion, bicubic, mirrored at its edges: [T, 3, H, W].

    Also at that size, [T, 1, H, W]: what lies in front (given for cells, [P]); the confidence, 0 where the picture is
    mirrored; and 1 where it is ("beyond"), else 0.
    """
    _, height, width = image.shape
    near = F.interpolate(front.view(1, 1, height // CELL, width // CELL), size=(height, width), mode="bilinear")[0]
    picture = np.ascontiguousarray(torch.cat([image, near]).permute(1, 2, 0).numpy())
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    flows = (enlarged_motion(*cells) for cells in zip(backward.numpy(), confidence[:, 0].numpy(), strict=True))
    maps = [(columns + flow[0], rows + flow[1]) for flow in flows]
    seen = [cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101) for x, y in maps]
    warped, near = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).split([3, 1], dim=1)
    beyond = torch.from_numpy(np.stack([(x < -1) | (x > width) | (y < -1) | (y > height) for x, y in maps]))[:, None]
    sure = F.interpolate(confidence, size=(height, width), mode="bilinear", align_corners=False) * ~beyond
    return warped.clamp(-1, 1), near.clamp(0, 1), sure, beyond.to(sure)
