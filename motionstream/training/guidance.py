"""Joint text and motion guidance (paper section 3.1, equation 2): the one function that steers the teacher.

The teacher's sampler, the writer of its trajectories and the real score of the distillation all call `joint_guidance`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from motionstream.errors import InputError

NEGLIGIBLE = 1e-9  # what rounding leaves of a factor that is 0


@dataclass(frozen=True)
class Guidance:
    """w_t and w_m of equation 2: how strongly to follow the prompt and the tracks. One of them may be 0."""

    text: float = 3.0
    motion: float = 1.5

    def __post_init__(self):
        if self.text < 0 or self.motion < 0 or not self.text + self.motion > 0:
            raise InputError(f"guidance {self.text}, {self.motion}: both at least 0 and not both 0")


def joint_guidance(predict: Callable[[bool, bool], Tensor], weights: Guidance) -> Tensor:
    """v_base + w_t (v(c_t, c_m) - v(0, c_m)) + w_m (v(c_t, c_m) - v(c_t, 0)), where v_base = a v(0, c_m) +
    (1 - a) v(c_t, 0) and a = w_t / (w_t + w_m).

    predict(text, motion): the prediction with or without each condition; three evaluations, fewer where one does not
    count. The coefficients sum to 1, so velocities and clean latents may be guided alike; weights that sum to 1 guide
    nothing: what is left is the full prediction.
    """
    share = weights.text / (weights.text + weights.motion)
    factors = {
        (True, True): weights.text + weights.motion,
        (False, True): share - weights.text,
        (True, False): 1 - share - weights.motion,
    }
    return sum(factor * predict(*told) for told, factor in factors.items() if abs(factor) > NEGLIGIBLE)
