"""What a small student shows: the moved picture's own detail, in the light of what the student makes of it.

Its autoencoder loses fine detail, and its own pixels are noisy; the motion prior's picture is sharp, but knows neither
weather nor what objects uncover. So the light is found that the student puts on the picture, and the moved picture is
shown in that light. Where it keeps its own light and the prior has no more than a blur, one sees the mean of both.

Since that picture needs no network, it may be larger than what the student works at (`sharpened`): then only what the
student adds, and what is filled, is as coarse as its frames.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.completion import Completion, Plate
from motionstream.model.matte import Matte, told
from motionstream.model.prior_state import Moved
from motionstream.model.warping import (
    CELL,
    IN_FRONT,
    PARTS,
    THIRDS,
    around,
    between,
    fill_holes,
    in_cells,
    in_pixels,
    inside,
    places_within,
    seen_through,
    showing,
)

RIDGE = 4e-4  # variance of colours, in [-1, 1], below which they say little of the light
SMOOTH = 5  # cells over which light does not change by itself
KNOWN = 0.02  # share of what is sure within so many cells from which on their light is known
FILLING = 0.5  # share of the prior's blur in holes; the rest is the student's: the mean is better than either
CLEAR, MARGIN = 0.1, 3  # opacity of what is not quite a thing any more, and pixels from there that show nothing of it
UNSEEN = 1 / 64  # steps of what `between` makes by which OpenCV's `remap` does not tell places apart
NOISE, FLAKE = 0.14, 0.24  # how much brighter than its surroundings the student makes noise at most, a flake at least


@dataclass(frozen=True)
class Light:
    """What light and weather make of colours: matrices [T, 3, 3] and offsets [T, 3, rows, columns].

    One matrix for all colours of a frame (fog takes contrast, sepia the hues); offsets vary slowly in space.
    """

    matrix: Tensor
    offset: Tensor

    def on(self, pictures: Tensor) -> Tensor:
        """Pictures [T, 3, H, W] in this light."""
        return (self.matrix @ pictures.flatten(2)).view_as(pictures).add_(enlarged(self.offset, pictures))


def enlarged(cells: Tensor, like: Tensor) -> Tensor:
    """[T, C, h, w], bilinear, at the height and width of `like`."""
    return F.interpolate(cells, size=like.shape[-2:], mode="bilinear", align_corners=False)


def filled(cells: Tensor, known: Tensor) -> Tensor:
    """`fill_holes` of each frame: [T, 3, rows, columns], [T, 1, rows, columns]; on the CPU."""
    done = [fill_holes(frame, sure) for frame, sure in zip(cells.cpu().numpy(), known[:, 0].cpu().numpy(), strict=True)]
    return torch.from_numpy(np.stack(done)).to(cells)


def cell_means(pictures: Tensor, confidence: Tensor, cell: int) -> Tensor:
    """Means of what is sure over squares of `cell` pixels: [T, 3, H, W], [T, 1, H, W] -> [T, 3, rows, columns]."""
    return F.avg_pool2d(pictures * confidence, cell) / F.avg_pool2d(confidence, cell).clamp_min(1e-3)


def find_light(decoded: Tensor, warped: Tensor, confidence: Tensor, cell: int) -> Light:
    """The light that the student has put on what is sure, one for all frames; see `composite` for the arguments.

    Least squares over cells; colours that hardly differ from each other say nothing, and what they leave open stays.
    """
    sure = F.avg_pool2d(confidence, cell)
    given, wanted = (cell_means(x, confidence, cell) for x in (warped, decoded))
    shares = sure.clamp_min(1e-3).flatten()
    x, y = (v.transpose(0, 1).flatten(1) for v in (given, wanted))
    x, y = (v - (shares * v).sum(1, keepdim=True) / shares.sum() for v in (x, y))
    stay = RIDGE * shares.sum() * torch.eye(3, device=x.device)
    matrix = torch.linalg.solve_ex(shares * x @ x.T + stay, shares * x @ y.T + stay)[0].T[None]
    offset = wanted - Light(matrix, torch.zeros_like(given)).on(given)
    around = (SMOOTH, 1, SMOOTH // 2)
    near = F.avg_pool2d(sure, *around)
    smooth = F.avg_pool2d(offset * sure, *around) / near.clamp_min(1e-6)
    return Light(matrix, filled(smooth, (near > KNOWN).to(near)).mean(0, keepdim=True))


def fade(before: Light | None, after: Light | None, frames: int) -> Light | None:
    """From one light to another in `frames` frames, both included; None is the picture's own."""
    if before is None and after is None:
        return None
    like = (before or after).offset
    own = Light(torch.eye(3, device=like.device)[None], torch.zeros_like(like))
    ramp = torch.linspace(0, 1, frames, device=like.device).view(-1, 1, 1)
    (a, b), (c, d) = ((light.matrix, light.offset) for light in (before or own, after or own))
    return Light(torch.lerp(a, c, ramp), torch.lerp(b, d, ramp[..., None]))


def composite(
    decoded: Tensor,
    warped: Tensor,
    confidence: Tensor,
    cell: int,
    light: Light | None = None,
    unchanged: Tensor | None = None,
    guessed: Tensor | None = None,
) -> Tensor:
    """The moved picture where it is sure, or guesses what lies behind, in the light asked for; else half the student's.

    decoded: the student's frames [T, 3, H, W] in [-1, 1]; warped: the moved picture; confidence: [T, 1, H, W]; light:
    None for the picture's own; unchanged: if something falls, the student's frames as if it had changed nothing;
    guessed: see `Moved`.

    By what else the student changes the mean colours of what is sure, in squares of `cell` pixels, it errs: beside what
    is sure that is taken off. In another light than the picture's own it is too noisy to be shown even there. What it
    makes brighter than the light by more than its noise are flakes and drops. They are added, twice as bright as it
    dares, since regression halves what it is not sure of.
    """
    shown = warped if light is None else light.on(warped)
    wanted, given = (cell_means(x, confidence, cell) for x in (decoded, shown))
    known = (F.avg_pool2d(confidence, cell) > 0.5).to(confidence)
    decoded = decoded - enlarged(filled(wanted - given, known), decoded)
    if light is None:
        kept = confidence if guessed is None else confidence + guessed
        return torch.lerp(decoded, shown, kept.clamp(FILLING, 1))
    if unchanged is not None:
        fine = decoded - light.on(unchanged)
        meant = (F.avg_pool2d(fine.mean(1, keepdim=True), 3, 1, 1) - NOISE) / (FLAKE - NOISE)
        # Where nothing is sure, what is brighter is what the student has made up.
        shown = shown.addcmul(meant.clamp_(0, 1) * confidence, fine.clamp_(min=0), value=2)
    return shown


class Sharp:
    """A copy of the first frame, uint8 [kH, kW, 3], a whole number of times as large as the student's frames.

    It can be seen at other places, with and without the things in front.
    """

    def __init__(self, picture: np.ndarray):
        self.picture, self._thirds = picture, _thirds(picture)
        self._plate, self._behind, self._filled = Plate(picture), self._thirds, 0  # cells that are filled in it
        self.thing: np.ndarray | None = None  # float32 [kH, kW] in [0, 1]: how opaque what lies in front is, if known
        self.opaque: np.ndarray | None = None  # the same, but 1 where tracks tell how what lies behind moves
        self.hides: np.ndarray | None = None  # the same, and what else the prior takes for a thing
        self._cells: np.ndarray | None = None  # what the prior saw when that was found

    def seen(self, columns: np.ndarray, rows: np.ndarray, behind: bool = False) -> np.ndarray:
        """See `seen_through`. behind: without the things in front, as far as that has been filled."""
        return cv2.cvtColor(seen_through(self._behind if behind else self._thirds, columns, rows), cv2.COLOR_RGBA2RGB)

    def cut_out(self, moved: Moved, matte: Matte) -> None:
        """Finds out where things end, anew when the prior has looked anew; and where tracks tell."""
        if moved.cells is None:
            return
        if moved.cells is not self._cells:
            self._cells, self._filled = moved.cells, 0
            self.thing = matte.of(self.picture, moved.cells)
            front = np.float32(moved.cells[0] > IN_FRONT)
            self.hides = np.maximum(self.thing, cv2.resize(front, self.thing.shape[::-1]))
        self.opaque = np.maximum(self.thing, told(self.thing, moved.anchors, *moved.things.shape[1:]))

    def fill(self, behind: Completion | None) -> None:
        """Takes over what has been filled since."""
        if behind is not None and (filled := np.count_nonzero(behind.filled)) > self._filled:
            plate = self._plate.update(behind)
            if self.hides is not None:  # what surrounds a thing need not be guessed
                margin = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
                share = cv2.blur(np.minimum(cv2.dilate(self.hides, margin) / CLEAR, 1), (3, 3))
                plate = cv2.blendLinear(plate, self.picture, share, 1 - share)
            self._behind, self._filled = _thirds(plate), filled


def _thirds(picture: np.ndarray) -> np.ndarray:
    return between(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA))


def parted(moved: Moved, t: int) -> np.ndarray:
    """The cells of frame t, bool [h, w], in which things move otherwise than what lies behind them."""
    apart = np.square(moved.backward[t] - moved.under[t]).sum(0) > PARTS**2
    edge = apart & showing(moved.things[t], moved.backward[t])
    # Enlarged, motion reaches into the next cell.
    return cv2.dilate(edge.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


def layered(
    seen: np.ndarray, behind: np.ndarray, places: tuple[np.ndarray, np.ndarray], opaque: np.ndarray, edge: np.ndarray
) -> None:
    """Where things are not opaque one sees what lies behind: that is put into `seen`, both [kH, kW, 3], one frame.

    opaque: of the sharp copy, whose `places` are seen; edge: see `parted`.
    """
    scale, cells = len(seen) // len(edge), around(edge)
    part = in_pixels(cells, scale)
    here = cv2.resize(edge[cells].view(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    opaque = cv2.remap(opaque, *(at[part] for at in places), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    opaque = np.where(here, opaque, np.float32(1))
    seen[part] = cv2.blendLinear(seen[part], behind[part], opaque, 1 - opaque)


def goes(moved: Moved, t: int, times: int) -> np.ndarray:
    """The cells of frame t, bool [h, w], that show a copy, so many times as large, elsewhere than it was."""
    if moved.backward is None:
        return np.zeros(1, bool)
    return abs(moved.backward[t]).max(0) * times * THIRDS > UNSEEN


def lit(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A picture [H, W, 3] by the matrix of a light, if there is one; without its offset."""
    return picture if matrix is None else cv2.transform(picture.astype(np.float32), matrix)


def left_of(frame: np.ndarray, shown: np.ndarray, kept: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """What is left of a small frame without that share `kept` [1, H, W] of what is shown, by the matrix of a light: all
    [3, H, W] in [-1, 1] -> of 255. The light's offset is smooth and stays."""
    shown = 127.5 * (shown + 1)
    if matrix is not None:
        shown = np.tensordot(matrix, shown, 1)
    return 127.5 * (frame + 1) - kept * shown


def put(frame: np.ndarray, share: np.ndarray, picture: np.ndarray) -> None:
    """Adds a share [H, W] of the picture to the frame, both [kH, kW, 3], where there is any."""
    if share.any():
        part = in_pixels(around(share), len(frame) // len(share))
        share = cv2.resize(share, frame.shape[1::-1])[part]
        frame[part] += cv2.multiply(picture[part], cv2.merge([share] * 3), dtype=cv2.CV_32F)


def sharpened(frames: Tensor, moved: Moved, light: Light | None, sharp: Sharp) -> np.ndarray:
    """Frames as large as the sharp copy of the first frame: uint8 [T, kH, kW, 3].

    frames: [T, 3, H, W] in [-1, 1], as `composite` made them of the moved picture; light: the one that it is shown in.
    What is shown of the moved picture and what is guessed to lie behind is taken out of the small frames; they are
    enlarged, and the same is put in of the copy. Where nothing changes, that is the copy itself.
    """
    parts = (moved.picture, moved.confidence, moved.guessed, moved.beyond)
    warped, sure, guessed, beyond = (x[0].transpose(0, 1).cpu() for x in parts)
    sure = sure + (1 if light else FILLING) * beyond
    size, times = tuple(side // CELL for side in warped.shape[2:]), sharp.picture.shape[1] // warped.shape[-1]
    matrices = [None] * len(frames) if light is None else light.matrix.cpu().expand(len(frames), -1, -1).numpy()
    frames, warped, kept, unsure, guessed = (
        x.numpy() for x in (frames, warped, sure + guessed, (1 - sure)[:, 0], guessed[:, 0])
    )
    sharp.fill(moved.behind)
    made = np.repeat(sharp.picture[None], len(frames), axis=0)

    def moving(t: int, cells: tuple[slice, slice], edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is seen in these cells of frame t, and what lies behind it as far as that is needed."""
        under, needed = moved.under[t], edge | in_cells(guessed[t])
        places = places_within(moved.backward[t], moved.sure[t], cells, times)
        seen = lit(sharp.seen(*places), matrices[t])
        behind = np.zeros_like(seen)
        if needed.any():
            holes = around(needed)
            there = places_within(under, np.ones_like(under[0]), holes, times)
            behind[in_pixels(inside(holes, cells), CELL * times)] = lit(sharp.seen(*there, behind=True), matrices[t])
        if edge.any():
            layered(seen, behind, places, sharp.opaque, edge[cells])
        return seen, behind

    def make(t: int) -> None:
        left = left_of(frames[t], warped[t], kept[t], matrices[t])
        edge = parted(moved, t) if sharp.opaque is not None and moved.backward is not None else np.zeros(size, bool)
        new = edge | in_cells(left.any(0) | (unsure[t] != 0)) | goes(moved, t, times)
        if matrices[t] is not None:
            new[:] = True
        if not new.any():
            return
        cells = around(new)
        part, room = in_pixels(cells), made[t][in_pixels(cells, CELL * times)]
        seen, behind = (lit(room, matrices[t]), None) if moved.backward is None else moving(t, cells, edge)
        large = cv2.resize(cv2.merge([plane[part] for plane in left]), seen.shape[1::-1])
        frame = cv2.add(large, seen, dtype=cv2.CV_32F)
        put(frame, -unsure[t][part], seen)
        put(frame, guessed[t][part], behind)
        cv2.add(frame, 0.0, dst=room, dtype=cv2.CV_8U)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # OpenCV and NumPy only: PyTorch has threads of its own
        list(pool.map(make, range(len(frames))))
    return made
