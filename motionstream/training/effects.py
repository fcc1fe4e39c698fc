"""Weather and light that a prompt can ask for, painted on the synthetic clips; their names are the prompt's vocabulary.

Each effect takes frames and a strength per frame, and gives frames: so one that fades in can be shown to the student.
Snow and rain were tried: a student this small learns their haze but no flake, so they are not offered.
"""

from dataclasses import dataclass

import numpy as np


def _mix(frames: np.ndarray, painted: np.ndarray, strength: np.ndarray) -> np.ndarray:
    share = strength.reshape(-1, 1, 1, 1).astype(np.float32)
    return np.clip(frames + share * (painted - frames), 0, 255)


def _luminance(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114], np.float32)


def _tint(colour: tuple[float, float, float], keep: float, gain: float):
    """Light of one colour: saturation falls to `keep`, brightness to `gain`."""

    def paint(frames: np.ndarray) -> np.ndarray:
        grey = _luminance(frames)[..., None]
        return (grey + keep * (frames - grey)) * gain * np.array(colour, np.float32)

    return paint


def _fog(frames: np.ndarray) -> np.ndarray:
    height = frames.shape[1]
    density = np.linspace(0.85, 0.45, height, dtype=np.float32)[None, :, None, None]
    return frames * (1 - density) + 215 * density


EFFECTS = {
    "night": _tint((0.75, 0.9, 1.35), 0.45, 0.33),
    "sunset": _tint((1.3, 0.95, 0.65), 0.9, 0.9),
    "sepia": _tint((1.12, 0.95, 0.72), 0.0, 1.0),
    "monochrome": _tint((1.0, 1.0, 1.0), 0.0, 1.0),
    "cold": _tint((0.8, 0.98, 1.25), 0.75, 1.0),
    "warm": _tint((1.18, 1.02, 0.8), 1.0, 1.0),
    "bright": _tint((1.0, 1.0, 1.0), 1.05, 1.35),
    "dark": _tint((1.0, 1.0, 1.0), 0.95, 0.5),
    "vivid": _tint((1.0, 1.0, 1.0), 1.7, 1.0),
    "fog": _fog,
}


@dataclass(frozen=True)
class Effect:
    """One or two of `EFFECTS`, by name; `prompt` asks for them."""

    names: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return " ".join(self.names)

    def apply(self, frames: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3], strength [T] in [0, 1] -> uint8 of the same shape."""
        painted = frames.astype(np.float32)
        for name in self.names:
            painted = _mix(painted, EFFECTS[name](painted), strength)
        return np.round(painted).astype(np.uint8)


def random_effect(rng: np.random.Generator) -> Effect:
    names = list(EFFECTS)
    chosen = rng.choice(len(names), 2 if rng.random() < 0.2 else 1, replace=False)
    return Effect(tuple(names[i] for i in chosen))
