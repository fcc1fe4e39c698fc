"""What a stream's motion prior remembers, and what it hands on."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from motionstream.model.completion import Completion, Plate


@dataclass(frozen=True)
class Moved:
    """Some frames of the first frame in motion.

    picture: [1, 3, T, H, W] in [-1, 1]; confidence: [1, 1, T, H, W]; guessed: likewise, where it shows what may lie
    behind; beyond: likewise, where it is mirrored at the first frame's edges. backward: [T, 2, h, w], pixels, where the
    cells of each frame are to be found in the first one, and sure: [T, h, w], their confidence; under: as backward, of
    what lies behind things; None where nothing has moved. behind, cells: see `PriorState`; things: bool [T, h, w],
    cells of the first frame that go with a thing in front, see `with_hem`; anchors: [N, 2], pixels, where tracks start
    in it that may tell how what lies behind moves: not those on a thing, nor beside one if they are of a grid across
    its edge, nor a tracker's; but dense ones all do.
    """

    picture: Tensor
    confidence: Tensor
    guessed: Tensor
    beyond: Tensor
    backward: np.ndarray | None = None
    under: np.ndarray | None = None
    sure: np.ndarray | None = None
    behind: Completion | None = None
    cells: np.ndarray | None = None
    things: np.ndarray | None = None
    anchors: np.ndarray | None = None

    def to(self, device: torch.device) -> "Moved":
        parts = ("picture", "confidence", "guessed", "beyond")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


@dataclass
class PriorState:
    """What one stream's prior remembers: fixed size but for one row a track."""

    image: Tensor  # [3, H, W] in [-1, 1]: the reference
    sharp: Tensor  # [3, kH, kW]: the same, as large as there is
    base: Tensor  # [P, 2] displacement in pixels when the present set of tracks began
    latest: Tensor  # [P, 2] displacement at the newest frame
    turned_base: Tensor  # [P, 2] how much of the base is turning alone, see `turning`
    turned: Tensor  # [T, P, 2] the same of the displacement at the newest frames, or [1, P, 2] of all of them
    ids: tuple[int, ...] = ()
    anchors: dict[int, Tensor] = field(default_factory=dict)  # id -> [2], its place in the first frame
    firsts: dict[int, Tensor] = field(default_factory=dict)  # id -> [2], its place where it was first seen
    pairs: Tensor | None = None  # [2, K]: see `straddling`
    dense: bool = False  # whether tracks are all over the picture, or were
    tracked: bool = False  # whether they are a tracker's, or were: see `each_by_itself`
    number: np.ndarray | None = None  # int [h, w]: see `numbered`; where no hand leads, as first seen
    parts: np.ndarray | None = None  # int [h, w]: the same, and the rims of things are of them
    held: Tensor | None = None  # [N, 2] how far each track had come when the present set began
    newest: Tensor | None = None  # [N, 2] each track's newest known displacement on top of that
    found: Tensor | None = None  # see `Looked`; where no hand leads, of the first look
    weights: Tensor | None = None  # [P, 1 + N]
    bodies: Tensor | None = None  # bool [N, N]: which tracks hold the same thing, at places that look alike
    body: np.ndarray | None = None  # int [N]: see `bodies`; of what a visitor's hand leads
    gripped: Tensor | None = None  # bool [P]: cells of things that tracks hold
    front: Tensor | None = None  # [P]
    outlines: tuple[Tensor, Tensor, Tensor] | None = None  # see `outlines`
    thin: Tensor | None = None  # [h, w], see `MotionPrior.closely`
    bearer: Tensor | None = None  # [P], see `limbs`, with their rims
    solid: Tensor | None = None  # bool [P]: what lies in front, ropes and feet as well, or has come along with a thing
    left: Tensor | None = None  # bool [P]: see `left_behind`
    # [3, h, w] in [0, 1]: see `as_seen`, and 1 in the cells of things, see `numbered`; where no hand leads, of the
    # first look
    cells: np.ndarray | None = None
    behind: Completion | None = None  # what lies behind things of the first frame that have left
    filled: Plate | None = None  # the first frame with that
    picture: np.ndarray | None = None  # `between` of [H, W, 4]: the first frame, and how far in front it lies
    plate: np.ndarray | None = None  # `between` of [H, W, 4]: the first frame so filled, and how much of that is seen
    ground: np.ndarray | None = None  # float32 [H, W] in [0, 1]: where nothing lies in front
    alone: np.ndarray | None = None  # the same: where things do, with rims, that no edge cuts off
    across: np.ndarray | None = None  # bool [h, w]: see `lying_across`
    cut: np.ndarray | None = None  # bool [h, w]: see `cut_through`

    @property
    def by_hand(self) -> bool:
        """Whether a visitor's hand leads what moves: tracks are neither all over the picture nor a tracker's."""
        return not (self.dense or self.tracked)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]
