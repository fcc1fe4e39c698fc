"""The motion prior: the first frame moved along the dense motion that a few tracks imply.

A small model cannot learn from minutes of training what every track ID means; it learns at once from a picture that is
already nearly right. The prior makes it, in three steps:

1. A U-Net reads the first frame (as sharp as there is, a small one enlarged) and the tracks' anchors, where they start
   in it, and gives each pixel a feature. How much a pixel follows a track is a softmax over the tracks of feature
   affinity and nearness, beside one learned choice more: to stay. These weights depend on the picture and the anchors
   alone, never on the motion.
2. Each pixel's motion is the moving-least-squares affine map (Schaefer et al. 2006) of the tracks under these weights,
   mostly of those that move as most of its weight does, or hold the same body, which they turn between them
   (`turning`); of a grid across the edge of a thing those on it alone; cut where the U-Net sees one thing in front of
   another, the same for a thing and what hangs on it (`limbs`), and corrected by what it misses at the tracks.
   Background that is dragged stretches what is around it (`elastic`). Under a tracker's tracks, which come and go,
   things stay whole (`tracked`).
3. The moved pixels are laid on the new frame (`splatting`), nearer ones over farther ones, what visible tracks show
   above them; the first frame is sampled through the resulting backward motion, so it stays sharp however long the
   stream. What no pixel reached has confidence 0 (`frames`). Where a thing in front has moved away, it shows what may
   lie behind (`completion`), elsewhere ground, or a blur of what is around it, and beyond the first frame's edges its
   mirror image.

The reference is the first frame for ever. When the set of tracks changes, the motion so far is kept as the base on
which new tracks add; a track that starts later finds its anchor through the inverse of the motion so far.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from motionstream.model.completion import Completion, Plate
from motionstream.model.elastic import pulled
from motionstream.model.frames import Scene, in_motion
from motionstream.model.grids import holding, idling, straddling
from motionstream.model.least_squares import decided_motion
from motionstream.model.limbs import borne, limbs, with_rims
from motionstream.model.pieces import (
    FOLLOWS,
    along_again,
    attached,
    connect,
    left_behind,
    numbered,
    together,
    undivided,
)
from motionstream.model.prior_state import Moved, PriorState
from motionstream.model.silhouettes import cut_off, cut_through, ground, lying_across, things_in_front
from motionstream.model.tracked import as_their_tracks, each_by_itself, in_one_piece, of_the_background, own_tracks
from motionstream.model.turning import bodies, joined, straightened, turning, turns
from motionstream.model.unet import UNet
from motionstream.model.warping import (
    BEHIND,
    CELL,
    FAR,
    IN_FRONT,
    PARTS,
    SEEN,
    are_dense,
    at_points,
    between,
    cell_centres,
    cells_of,
    has_moved,
    meet,
    nearest_cells,
    on_top,
    outlines,
    settle,
    tracked_cells,
    whole,
    with_hem,
)
from motionstream.tracks import Tracks

CERTAIN = 3.0  # log-odds with which a track moves the place it is attached to, at the least
UNLIKE = 5.0  # log-odds by which tracks prefer their own places to each other's, at the least, if they hold two things
LOOK = 320 * 192  # pixels, at the least, of the picture that the U-Net sees: in smaller ones it cuts off what is thin
CLOSE = 480 * 288  # the same, for a closer look at what is thin


def as_seen(
    weights: Tensor, front: Tensor, held: Tensor, anchors: Tensor, thin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is seen in cells, where limbs are seen as their things are: how far in front they lie, and how much they
    follow tracks that hold what lies in front, not the background, [2, h, w] in [0, 1]; and what bears each cell [P],
    see `limbs`.

    weights [P, 1 + N]; front [h, w] and held [N], how far in front, in [0, 1], cells lie and what tracks hold; anchors
    [N, 2] of these, pixels; thin [h, w]: as front, of what is seen only at a closer look.
    """
    seen = torch.stack([front.flatten(), weights[:, 1:] @ held])
    bearer = limbs(front if thin is None else torch.maximum(front, thin), anchors)
    return seen[:, bearer].view(2, *front.shape), bearer


def shape_at(pixels: int, size: tuple[int, int]) -> list[int]:
    """Height and width of a picture as the U-Net sees it: about as many `pixels`, but not fewer than frames of this
    size (height, width) have."""
    times = max(1.0, (pixels / math.prod(size)) ** 0.5)
    return [CELL * round(side * times / CELL) for side in size]


def seen_at(shape: Sequence[int], image: Tensor) -> Tensor:
    """A picture [3, kH, kW] as the U-Net sees it, [1, 3, H', W']."""
    return F.interpolate(image[None], shape, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def _cell_at(point: Tensor, displacement: Tensor, state: PriorState) -> int:
    """Number of the cell that one sees at a point [2], pixels: of all that have come there [P, 2] the one in front."""
    away = (cell_centres(*state.size) + displacement - point).square().sum(1)
    return int((away - (0 if state.front is None else (away < 4 * CELL**2) * state.front * 4 * CELL**2)).argmin())


def _stacked(places: dict[int, Tensor]) -> Tensor:
    """Places [2] of tracks as one, [N, 2]."""
    return torch.stack([*places.values(), torch.zeros(2)])[:-1]  # N may be 0


def _as_before(state: PriorState, held: np.ndarray, cells: np.ndarray) -> None:
    """What has come along with things comes along again, and what they left behind stays; held [N]: of the things that
    tracks hold, cells [N]: that these are on."""
    base, number = (state.base - state.turned_base).numpy(), state.number
    left = left_behind(base.T.reshape(2, *number.shape), number, cells)
    came = with_hem(number > 0, base) & has_moved(base, number.shape) & ~left
    state.weights, state.left = along_again(state.weights, came, number, held), torch.from_numpy(left).flatten()
    state.weights[state.left] = F.one_hot(torch.tensor(0), state.weights.shape[1]).to(state.weights)
    state.solid |= torch.from_numpy(came).flatten()


def _cells(size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the cells of a picture of this size (height, width)."""
    return size[0] // CELL, size[1] // CELL


def _nearest(centres: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
    """Distance of each centre [B, P, 2] to its nearest valid anchor, pixels [B, P]; far away where there is none."""
    with torch.no_grad():
        return torch.cdist(centres, anchors).masked_fill(~valid[:, None], FAR).amin(-1)


class Cells(NamedTuple):
    """What each cell of a picture is like: queries [B, P, C], logits [B, P] of staying and of lying in front."""

    queries: Tensor
    stay: Tensor
    front: Tensor


class Grips(NamedTuple):
    """What each track holds: keys [B, N, C], logits [B, N] of lying in front, a head start [B, N] in log-odds, so large
    that a track surely moves the very place that it is attached to, and that place's own queries [B, N, C].
    """

    keys: Tensor
    front: Tensor
    head_start: Tensor
    queries: Tensor


class Looked(NamedTuple):
    """What a picture looks like under tracks.

    weights [P, 1 + N] of cells, see `MotionPrior.weigh`; seen [2, h, w] in cells and bearer [P] of them, see `as_seen`;
    alike: bool [N, N], see `MotionPrior.alike`; found [1, C, h', w'], what the U-Net makes of the picture.
    """

    weights: Tensor
    seen: Tensor
    bearer: Tensor
    alike: Tensor
    found: Tensor


class MotionPrior(ModelMixin, ConfigMixin):
    """Image and tracks -> the first frame in motion, with a confidence; see the module's docstring."""

    stays_on_cpu = True  # beside a GPU too: much of its work is OpenCV's and NumPy's

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 96, 128, 160, 192),
        features: int = 32,
        depths: tuple[int, ...] = (),
    ):
        """depths: see `UNet`."""
        super().__init__()
        self.net = UNet(3 * CELL**2 + 2, tuple(widths), 2 * features + 2, tuple(depths))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.nearness = nn.Parameter(torch.tensor(1.0))
        self.reach = nn.Parameter(torch.tensor(4.0))  # pixels within which all anchors are equally near
        self.ridge = nn.Parameter(torch.tensor(3.0))  # log of pixels squared
        self.layered = nn.Parameter(torch.tensor(2.0))  # log-odds against following a track that lies fully in front
        self.to(memory_format=torch.channels_last)

    def deepened(self, depths: tuple[int, ...]) -> "MotionPrior":
        """The same with residual blocks more, where it has none: it says the same until they have learned something."""
        deeper = MotionPrior(**{**self.config, "depths": depths})
        own = self.state_dict()
        deeper.load_state_dict({name: own.get(name, new) for name, new in deeper.state_dict().items()})
        return deeper

    def features(self, image: Tensor, anchors: Tensor, valid: Tensor) -> tuple[Cells, Grips]:
        """What each cell is like, and what each track holds, given the picture and where its tracks start.

        image [B, 3, H, W] in [-1, 1]; anchors [B, N, 2] pixels; valid bool [B, N]: which of them count.
        """
        return self.read(self.see(image, anchors, valid), anchors)

    def see(self, image: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
        """What the U-Net makes of a picture's cells, [B, C, h, w]; see `features`."""
        height, width = image.shape[-2:]
        nearest = _nearest(cell_centres(height, width).expand(len(image), -1, -1), anchors, valid)
        shown = nearest[:, None].unflatten(2, (height // CELL, width // CELL))
        marks = torch.cat([torch.exp(-shown / 4), torch.exp(-shown / 24)], dim=1)
        x = torch.cat([F.pixel_unshuffle(image, CELL), marks.to(image)], dim=1)
        return self.net(x.contiguous(memory_format=torch.channels_last)).float()

    def read(self, found: Tensor, anchors: Tensor) -> tuple[Cells, Grips]:
        """`features` of what was `found`, [B, C, h, w], for tracks that start at anchors [B, N, 2] in it."""
        channels = self.config.features
        queries, _, stay, front = found.flatten(2).transpose(1, 2).split([channels, channels, 1, 1], dim=-1)
        own_query, keys, own_stay, own_front = at_points(found, anchors).split([channels, channels, 1, 1], dim=-1)
        head_start = F.relu(own_stay[..., 0] - self._match(own_query, keys) + CERTAIN)
        return Cells(queries, stay[..., 0], front[..., 0]), Grips(keys, own_front[..., 0], head_start, own_query)

    def _match(self, query: Tensor, key: Tensor) -> Tensor:
        return (query * key).sum(-1) * self.sharpness / self.config.features**0.5

    def _matches(self, queries: Tensor, keys: Tensor) -> Tensor:
        """`_match` of each with each, [B, P, N]."""
        return queries @ keys.transpose(1, 2) * self.sharpness / self.config.features**0.5

    def alike(self, grips: Grips) -> Tensor:
        """Which tracks hold what looks alike, bool [B, N, N]: to each, the other's place is almost as its own."""
        match = self._matches(grips.queries, grips.keys)
        less = match.diagonal(dim1=1, dim2=2)[..., None] - match
        return (less + less.transpose(1, 2)) / 2 < UNLIKE

    def weigh(self, centres: Tensor, cells: Cells, anchors: Tensor, grips: Grips, valid: Tensor) -> Tensor:
        """Shares [B, P, 1 + N] with which each cell stays (first) or follows each track; they sum to 1.

        centres [B, P, 2] of the cells and anchors [B, N, 2] of the tracks, pixels.
        """
        distance = torch.cdist(centres, anchors)
        nearest = distance.detach().masked_fill(~valid[:, None], FAR).amin(-1, keepdim=True)
        match = self._matches(cells.queries, grips.keys) + grips.head_start[:, None]
        near = torch.log((distance**2 + self.reach**2) / (nearest**2 + self.reach**2))
        # The background does not follow what lies in front of it.
        behind = F.relu(grips.front.sigmoid()[:, None] - cells.front.sigmoid()[..., None])
        follow = match - F.softplus(self.nearness) * near - F.softplus(self.layered) * behind
        follow = follow.masked_fill(~valid[:, None], float("-inf"))
        return torch.cat([cells.stay[..., None], follow], dim=-1).softmax(-1)

    def start(self, image: Tensor, sharp: Tensor | None = None) -> PriorState:
        """A stream that begins with `image` [3, H, W] in [-1, 1], H and W even, on any device; sharp: a larger copy."""
        image, cells = image.float().cpu(), math.prod(_cells(image.shape[1:]))
        state = PriorState(image, image, *torch.zeros(3, cells, 2), torch.zeros(1, cells, 2))
        if sharp is not None:
            state.sharp = sharp.float().cpu()
            state.thin = self.closely(state.sharp, state.size)
        return state

    @torch.no_grad()
    def step(self, state: PriorState, tracks: Tracks) -> Moved:
        """The next `tracks.T` frames of the moved picture; on the CPU."""
        displacement = self.motion(state, tracks)
        if not displacement.any():
            still = state.image[None, :, None].expand(-1, -1, tracks.T, -1, -1)
            return Moved(still, torch.ones_like(still[:, :1]), *[torch.zeros_like(still[:, :1])] * 2)
        self._uncover(state, displacement)
        height, width = state.size
        moving = ~state.outlines[1].numpy()  # not the background beside what moves
        front = state.front.view(height // CELL, width // CELL).numpy()
        things = (front > IN_FRONT) | ~moving
        if state.picture is None:
            shown = np.dstack([state.image.movedim(0, -1).numpy(), cv2.resize(front, (width, height))])
            state.picture = between(shown)
        scene = Scene(state.picture, state.plate, state.ground, state.alone, state.across, state.cut)
        placed = [n for n, track in enumerate(tracks.ids.tolist()) if track in state.anchors]
        anchors = _stacked(state.anchors).numpy()
        follows, turned = state.weights[:, 1:].numpy(), bool(state.turned.any())

        def frame(moved: np.ndarray, points: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, ...]:
            gone = points - anchors
            told = visible & (np.hypot(*gone.T) > PARTS) if state.by_hand else visible  # not by a pin
            shown = on_top(moved, points, gone, told, height, width)
            if state.by_hand:  # what is dragged lies in front of all that it passes
                led = follows[:, told].sum(1) > FOLLOWS
                shown = np.maximum(shown, led & has_moved(moved, front.shape).ravel() & (state.parts.ravel() > 0))
            # The rim that a thing takes along hides what stays: where the thing ends in it is for the matte to say.
            hides = ~moving & has_moved(moved, front.shape) & (not state.dense)
            now = np.where(hides, np.maximum(front, np.float32(IN_FRONT)), front)
            now, taken = now + np.float32(SEEN) * moving * shown.reshape(front.shape), with_hem(things, moved)
            if turned:  # the outermost cells of things are not turned themselves, and show what is beside them
                taken = cv2.dilate(taken.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
            return *in_motion(scene, taken, moved, now), taken

        frames = map(frame, displacement.numpy(), tracks.points[:, placed], tracks.visible[:, placed])
        *shown, backward, under, sure, taken = (np.stack(part) for part in zip(*frames, strict=True))
        parts = (torch.from_numpy(part).view(tracks.T, -1, height, width).movedim(1, 0)[None] for part in shown)
        on = state.number.ravel()[cells_of(torch.from_numpy(anchors), *front.shape)] > 0
        beside = np.isin(np.arange(len(anchors)), state.pairs[0].numpy())
        telling = anchors[~(beside | on & (not state.dense)) & (not state.tracked)]
        return Moved(*parts, backward, under, sure, state.behind, state.cells, taken, telling)

    def _uncover(self, state: PriorState, displacement: Tensor) -> None:
        """Guesses what one sees behind things that have left."""
        front = state.front.view(state.size[0] // CELL, state.size[1] // CELL).numpy()
        if state.behind is None:
            picture = (127.5 * (state.image + 1)).round().byte().permute(1, 2, 0).numpy()
            state.behind, state.filled = Completion.empty(*front.shape), Plate(picture)
        picture = state.filled.picture
        moved, turned = (part.unflatten(1, front.shape).numpy() for part in (displacement, state.turned))
        filled = state.behind.uncover(picture, front, state.number, state.across, moved, state.dense, turned)
        if filled or state.plate is None:
            seen = cv2.resize(state.behind.seen, picture.shape[1::-1])
            shown = state.filled.update(state.behind).astype(np.float32) / 127.5 - 1
            state.plate = between(np.dstack([shown, seen]))

    @torch.no_grad()
    def things_at(self, state: PriorState, points: np.ndarray) -> np.ndarray:
        """Numbers [2, K] of the things that one sees at points [K, 2] of the newest frame, pixels, and of the `bodies`
        that tracks would hold there; 0 where there is none."""
        places = torch.tensor(points).float()
        if state.number is None:
            looked = self.look(state.sharp, places, state.size, state.thin)
            state.number, state.found = numbered(looked.seen[0], state.thin), looked.found
        cells = [_cell_at(place, state.latest, state) for place in places]
        held = state.number.ravel()[cells]
        times = torch.tensor(shape_at(LOOK, state.size)[::-1]) / torch.tensor(state.size[::-1])
        grips = self.read(state.found, times * cell_centres(*state.size)[None, cells])[1]
        return np.stack([held, bodies(self.alike(grips)[0].numpy(), held)])

    @torch.inference_mode()
    def things(self, picture: np.ndarray) -> np.ndarray:
        """What lies in front in a picture, uint8 [H, W, 3], that nothing moves: see `numbered`, int [h, w] in cells of
        the picture as it is at `LOOK`."""
        image = torch.tensor(picture).movedim(2, 0) / 127.5 - 1
        times = (LOOK / math.prod(image.shape[1:])) ** 0.5
        size = [CELL * max(1, round(side * times / CELL)) for side in image.shape[1:]]
        thin = self.closely(image, size)
        return numbered(self.look(image, torch.zeros(0, 2), size, thin).seen[0], thin)

    @torch.no_grad()
    def motion(self, state: PriorState, tracks: Tracks) -> Tensor:
        """Displacement of every cell of the first frame, [T, P, 2] pixels, at each of the tracks' frames.

        Where a hidden track is, nobody knows: it counts from the first chunk on that begins with it in sight, when all
        that has moved till then is known; if there is no other, from when it is seen.
        """
        known = np.array([i in state.anchors for i in tracks.ids.tolist()], bool)
        newcomers = ~(known if known.any() else tracks.visible[0])
        come = not state.tracked and each_by_itself(tracks.points[:, newcomers], tracks.visible[:, newcomers])
        state.tracked |= come
        placed = known | (tracks.visible[0] if (known | tracks.visible[0]).any() else tracks.visible.any(0))
        tracks = Tracks(tracks.points[:, placed], tracks.visible[:, placed], tracks.ids[placed])
        points, visible = torch.tensor(tracks.points), torch.tensor(tracks.visible)
        if state.front is None or tuple(tracks.ids.tolist()) != state.ids or come:
            self._regroup(state, tracks, points, visible, known[placed], come)
        if not tracks.N:
            state.turned = state.turned_base[None]
            return state.base.expand(tracks.T, -1, -1)
        # What is dragged out of the frame goes on moving; what is hidden inside stays where it was last seen.
        told = visible | (points < 0).any(-1) | (points >= torch.tensor(state.size[::-1])).any(-1)
        told &= torch.tensor(known[placed]) | (visible.cumsum(0) > 0)
        anchors = _stacked(state.anchors)
        moved = []
        for displacement, known in zip(points - anchors - state.held, told, strict=True):
            state.newest = torch.where(known[:, None], displacement, state.newest)
            moved.append(state.newest)
        counted = visible if state.dense else told  # trackers do not see what is out of the frame
        with torch.autocast("cpu", enabled=False):  # second moments need all the digits of float32
            displacement = self._moved(state, anchors, torch.stack(moved), counted)
        state.latest = displacement[-1].clone()
        return displacement

    def _moved(self, state: PriorState, anchors: Tensor, moved: Tensor, counted: Tensor) -> Tensor:
        """Displacement of all cells [T, P, 2] when tracks have moved [T, N, 2] since the base; counted [T, N]: of which
        it is known where they are. Found for things that turn as if they only went."""
        places, held = anchors + state.held, state.number.ravel()[cells_of(anchors, *state.number.shape)]
        found = []
        if state.by_hand:
            found = turns(places, moved, np.where(holding(held, places, moved[-1]), state.body, 0), held)
        moved, together = straightened(places, moved, held, state.pairs, found)
        idle = idling(together, places, _stacked(state.firsts), state.pairs)
        idle, frames = idle.unique(dim=0, return_inverse=True)
        motion = torch.zeros(len(moved), *state.base.shape)
        for number, leading in enumerate(~idle):
            here = frames == number
            motion[here] = self._led(state, leading, anchors, moved[here], counted[here])
        if state.tracked:
            motion = in_one_piece(state.base + motion, state.parts) - state.base
        elif state.dense:
            motion = as_their_tracks(motion, *map(Tensor.numpy, (anchors, moved, counted)), held, state.parts)
        turned = turning(cell_centres(*state.size) + state.base, motion, state.number, held, found)
        state.turned = state.turned_base + turned
        return state.base + motion + turned

    def _led(self, state: PriorState, leading: Tensor, anchors: Tensor, moved: Tensor, counted: Tensor) -> Tensor:
        """Motion of all cells [T, P, 2] on top of the base, by those tracks, bool [N], that lead; counted [T, N]: those
        of which it is known where they are."""
        rows, anchors, moved, counted = state.size[0] // CELL, anchors[leading], moved[:, leading], counted[:, leading]
        weights = state.weights
        if not leading.all():
            weights = weights[:, F.pad(leading, (1, 0), value=True)]
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        same = None if state.dense else (state.bodies[leading][:, leading], state.gripped)
        centres = cell_centres(*state.size)
        motion, share = decided_motion(weights, centres, anchors, moved, counted, self.ridge.exp(), same)
        going = motion * share[..., None]
        motion, share = borne(settle(going, *state.outlines), share, state.bearer, rows)
        motion = whole(motion, going, state.solid, *state.outlines[1:])
        motion[:, state.left] = 0
        if not state.dense:
            motion = attached(motion, anchors, state.solid, rows)
            motion, share = pulled(motion, share, state.number > 0, state.parts == 0, anchors, moved)
        return meet(motion, share, anchors, moved, counted, rows)

    def look(
        self,
        image: Tensor,
        anchors: Tensor,
        size: tuple[int, int],
        thin: Tensor | None = None,
        found: Tensor | None = None,
    ) -> Looked:
        """What the first frame, image [3, kH, kW] in [-1, 1], looks like under tracks.

        anchors [N, 2], pixels of frames of this size (height, width); thin: see `closely`; found: of an earlier look,
        which the U-Net takes for this one, too. So that things are cut out of a small picture as well as of a large
        one, it is seen at `LOOK`, at the least.
        """
        shape, tracks = shape_at(LOOK, size), len(anchors)
        times, valid = torch.tensor(shape[::-1]) / torch.tensor(size[::-1]), torch.arange(tracks + 1) < tracks
        centres = times * cell_centres(*size)[None]
        places = times * F.pad(anchors, (0, 0, 0, 1))[None]  # the last one never counts: N may be 0
        if found is None:
            found = self.see(seen_at(shape, image), places, valid[None])
        cells, grips = self.read(found, places)
        maps = torch.cat([cells.queries, cells.stay[..., None], cells.front[..., None]], dim=2)[0].T
        maps = F.adaptive_avg_pool2d(maps.unflatten(1, found.shape[2:]), _cells(size))
        queries, stay, front = maps.flatten(1).T[None].split([self.config.features, 1, 1], dim=2)
        cells = Cells(queries, stay[..., 0], front[..., 0])
        with torch.autocast("cpu", enabled=False):
            weights = self.weigh(centres, cells, places, grips, valid[None])[0, :, :-1]
            front, held = cells.front[0].sigmoid().view(_cells(size)), grips.front[0, :-1].sigmoid()
            return Looked(weights, *as_seen(weights, front, held, anchors, thin), self.alike(grips)[0, :-1, :-1], found)

    def closely(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """How far in front what is in each cell lies, where it is thinner than a cell, too: [h, w] in [0, 1].

        image, size: as in `look`. This is seen at `CLOSE`, where large things look hollow: it tells of limbs only.
        """
        seen, nowhere = seen_at(shape_at(CLOSE, size), image), torch.zeros(1, 1, 2)
        cells, _ = self.features(seen, nowhere, torch.zeros(1, 1, dtype=torch.bool))
        front = cells.front.sigmoid().view(1, *_cells(seen.shape[2:]))
        return F.adaptive_max_pool2d(front, _cells(size))[0]

    def _regroup(
        self, state: PriorState, tracks: Tracks, points: Tensor, visible: Tensor, known: np.ndarray, come: bool
    ) -> None:
        """Takes in a new set of tracks: bakes the motion so far, anchors the newcomers, weighs all of them anew.

        known: bool [N], those that are no newcomers; come: whether these are the first that show that tracks are a
        tracker's.
        """
        state.base, state.turned_base = state.latest, state.turned[-1]
        reached = {} if state.held is None else dict(zip(state.ids, state.held + state.newest, strict=True))
        state.ids = tuple(tracks.ids.tolist())
        begun = {}
        for n, track in enumerate(state.ids):
            if not known[n]:
                first = points[int(visible[:, n].int().argmax()), n]
                begun[track] = state.base[_cell_at(first, state.base, state)] if state.base.any() else torch.zeros(2)
                state.firsts[track], state.anchors[track] = first, first - begun[track]
        state.anchors = {track: state.anchors[track] for track in state.ids}
        state.firsts = {track: state.firsts[track] for track in state.ids}
        if first_look := state.number is None:
            self._look_anew(state, _stacked(state.anchors))
        behind = self._put_back(state, tracks, known & (not come)) if state.tracked else {}
        begun |= behind
        anchors = _stacked(state.anchors)
        if behind or not first_look:
            self._look_anew(state, anchors)
        base = state.base.T.unflatten(1, _cells(state.size))[None]
        state.held = at_points(base, anchors[None])[0]
        # Exactly where it was grabbed, or has come to, so that nothing jumps, whatever the motion missed; but where
        # tracks are dense, or a tracker's, which come and go all the time, that is made up for.
        for n, track in enumerate(state.ids):
            if track in begun:
                state.held[n] = begun[track]
            elif state.by_hand:
                state.held[n] = reached[track]
        state.newest = torch.zeros_like(state.held)

    def _put_back(self, state: PriorState, tracks: Tracks, known: np.ndarray) -> dict[int, Tensor]:
        """Attaches those of the tracks to the background that are of it, see `of_the_background` -> how far they have
        come from there [2], pixels. known: bool [N], those of which it is known what they are of."""
        centres, begun = cell_centres(*state.size), {}
        cells = cells_of(_stacked(state.anchors), *state.number.shape)
        here = tracks.points[tracks.visible.argmax(0), np.arange(tracks.N)]
        landed = (centres + state.base).numpy()
        for n, cell in of_the_background(tracks, known, here, cells, state.number, landed):
            state.anchors[state.ids[n]] = centres[cell]
            begun[state.ids[n]] = torch.from_numpy(here[n]) - centres[cell]
        return begun

    def _look_anew(self, state: PriorState, anchors: Tensor) -> None:
        """What is seen, and goes along, under the tracks with these anchors [N, 2], pixels."""
        found = None if state.by_hand else state.found
        weights, seen, bearer, alike, state.found = self.look(state.sharp, anchors, state.size, state.thin, found)
        rows, columns = seen[0].shape
        tracked = tracked_cells(anchors.numpy(), rows, columns)
        state.dense = state.dense or bool(len(anchors)) and are_dense(nearest_cells(tracked)[0])
        if state.number is None or state.by_hand:
            state.number = numbered(seen[0], state.thin)
        number, cell = state.number, cells_of(anchors, rows, columns)
        held = number.ravel()[cell]
        state.bodies = torch.from_numpy(joined(alike.numpy(), held))
        state.body = bodies(alike.numpy(), held) if state.by_hand else None
        state.gripped = torch.from_numpy(np.isin(number, held[held > 0])).flatten()
        if state.tracked:
            weights = own_tracks(weights, number, held)
        if not state.dense:
            weights = undivided(weights, number, held)
        state.weights = connect(weights, seen[0], anchors, state.thin)
        if not state.dense:
            state.weights = together(state.weights, weights, number, held)
        state.solid = (seen[0] if state.thin is None else torch.maximum(seen[0], state.thin)).flatten() > IN_FRONT
        state.left = torch.zeros_like(state.solid)
        if state.by_hand and (number > 0).any():
            _as_before(state, held, cell)
        outline, rim, foremost = outlines(seen[0])
        # What a thing has left behind is no rim of it any more, but under a tracker's tracks, which miss some of its
        # motion; what has come along with it stays with it.
        straight = state.base - state.turned_base
        along = ((straight - straight[foremost]).norm(dim=1) < PARTS).view(rim.shape)
        rim &= along | state.tracked
        came = along & (straight.norm(dim=1) >= PARTS).view(rim.shape) & (not state.tracked)
        if state.cells is None or state.by_hand:
            state.cells = np.stack([*seen.numpy(), np.float32(number > 0)])
        state.outlines = (outline, rim, foremost)
        rim, foremost = (rim | came).numpy(), foremost.numpy()
        state.parts = np.where(rim & (number == 0), number.ravel()[foremost].reshape(rim.shape), number)
        state.pairs = straddling(anchors, _stacked(state.firsts), seen[0])
        state.bearer = with_rims(bearer, *state.outlines[1:])
        front = (seen[0] - BEHIND * state.outlines[1]).clamp_min(0)
        state.picture, state.front = None, front.flatten()
        things, wider = things_in_front(front.numpy()), things_in_front(front.numpy(), IN_FRONT)
        state.across, state.cut = lying_across(wider, front.shape), cut_through(wider, front.numpy())
        bare, others = (ground(those, front.shape) for those in (things, filter(cut_off, things)))
        state.ground, state.alone = (
            cv2.resize(cells.astype(np.float32), state.size[::-1]) for cells in (bare, others & ~bare)
        )
