"""Weather and light that a prompt can ask for, painted on the synthetic clips; their names are the prompt's vocabulary.

Each effect takes frames, a strength per frame and the time of the first one, and gives frames: so one that starts
mid-clip, changes or fades can be shown to the student.
"""

from dataclasses import dataclass

import cv2
import numpy as np

FPS = 16.0


def _mix(frames: np.ndarray, painted: np.ndarray, strength: np.ndarray) -> np.ndarray:
    share = strength.reshape(-1, 1, 1, 1).astype(np.float32)
    return np.clip(frames + share * (painted - frames), 0, 255)


def _luminance(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114], np.float32)


def _tint(colour: tuple[float, float, float], keep: float, gain: float):
    """Light of one colour: saturation falls to `keep`, brightness to `gain`."""

    def paint(frames: np.ndarray, times: np.ndarray, seed: int) -> np.ndarray:
        grey = _luminance(frames)[..., None]
        return (grey + keep * (frames - grey)) * gain * np.array(colour, np.float32)

    return paint


def _fog(frames: np.ndarray, times: np.ndarray, seed: int) -> np.ndarray:
    height = frames.shape[1]
    density = np.linspace(0.85, 0.45, height, dtype=np.float32)[None, :, None, None]
    return frames * (1 - density) + 215 * density


def _falling(count: float, length: float, size: float, speed: float, drift: float, brightness: float):
    """Streaks or flakes that fall; sizes in shares of the frame's height, speed in heights a second."""

    def paint(frames: np.ndarray, times: np.ndarray, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        height, width = frames.shape[1:3]
        drops = max(8, round(count * width / height))
        start, depth = rng.uniform(0, 1, (drops, 2)), rng.uniform(0.5, 1, drops)
        painted = frames.copy()
        for picture, time in zip(painted, times, strict=True):
            layer = np.zeros((height, width), np.uint8)
            x = (start[:, 0] * width + drift * height * time * depth) % width
            y = ((start[:, 1] + speed * depth * time) % 1.1 - 0.05) * height
            for left, top, near in zip(x, y, depth, strict=True):
                end = (left + drift * length / speed * height * near, top + length * height * near)
                cv2.line(layer, (round(left * 8), round(top * 8)), (round(end[0] * 8), round(end[1] * 8)),
                         int(255 * near), max(1, round(size * height * near)), cv2.LINE_AA, 3)
            share = layer[..., None].astype(np.float32) / 255 * brightness
            picture += share * (245 - picture)
        return painted

    return paint


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
    "snow": _falling(160, 0.004, 0.03, 0.35, 0.06, 0.95),
    "rain": _falling(130, 0.1, 0.008, 2.2, 0.25, 0.55),
}


@dataclass(frozen=True)
class Effect:
    """One or two of `EFFECTS`, by name; `prompt` asks for them."""

    names: tuple[str, ...]
    seed: int

    @property
    def prompt(self) -> str:
        return " ".join(self.names)

    def apply(self, frames: np.ndarray, strength: np.ndarray, first: int) -> np.ndarray:
        """uint8 [T, H, W, 3], strength [T] in [0, 1], index of the first frame -> uint8 of the same shape."""
        times = (first + np.arange(len(frames))) / FPS
        painted = frames.astype(np.float32)
        for name in self.names:
            painted = _mix(painted, EFFECTS[name](painted, times, self.seed), strength)
        return np.round(painted).astype(np.uint8)


def random_effect(rng: np.random.Generator) -> Effect:
    names = list(EFFECTS)
    count = 2 if rng.random() < 0.2 else 1
    chosen = rng.choice(len(names), count, replace=False)
    return Effect(tuple(names[i] for i in chosen), int(rng.integers(2**31)))
