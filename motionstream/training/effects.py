"""Weather and light that a prompt can ask for, painted on the synthetic clips; their names are the prompt's vocabulary.

Each effect takes frames and a strength per frame, and gives frames: so one that fades in can be shown to the student.
What falls is drawn larger and slower than in nature, so that the latents of a small autoencoder can hold it.
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

    def paint(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grey = _luminance(frames)[..., None]
        return (grey + keep * (frames - grey)) * gain * np.array(colour, np.float32)

    return paint


def _fog(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height = frames.shape[1]
    density = np.linspace(0.85, 0.45, height, dtype=np.float32)[None, :, None, None]
    return frames * (1 - density) + 215 * density


def _falling(count: float, length: float, size: float, speed: float, slant: float, brightness: float):
    """Flakes or streaks that fall; near ones are larger and faster.

    count: in a square frame; length, size: shares of its height; speed: heights a second; slant: way sideways for a way
    down of 1; brightness: [0, 1].
    """

    def paint(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = frames.shape[1:3]
        drops = max(8, round(count * width / height))
        start, near = rng.uniform(0, 1, (drops, 2)), rng.uniform(0.5, 1, drops)
        painted = frames.copy()
        for time, picture in enumerate(painted):
            fallen = start[:, 1] + speed * near * time / FPS
            top = np.stack([start[:, 0] * width + slant * fallen * height, (fallen % 1.1 - 0.05) * height], 1)
            top[:, 0] %= width
            end = top + np.outer(near * length * height, [slant, 1])
            layer = np.zeros((height, width), np.uint8)
            for a, b, scale in zip(np.round(top * 8).astype(int), np.round(end * 8).astype(int), near, strict=True):
                thickness = max(1, round(size * height * scale))
                cv2.line(layer, a.tolist(), b.tolist(), round(255 * scale), thickness, cv2.LINE_AA, 3)
            picture += layer[..., None].astype(np.float32) / 255 * brightness * (245 - picture)
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
    "snow": _falling(count=70, length=0.004, size=0.035, speed=0.22, slant=0.25, brightness=0.95),
    "rain": _falling(count=60, length=0.14, size=0.012, speed=0.8, slant=0.15, brightness=0.5),
}


@dataclass(frozen=True)
class Effect:
    """One or two of `EFFECTS`, by name; `prompt` asks for them. seed: places what falls."""

    names: tuple[str, ...]
    seed: int = 0

    @property
    def prompt(self) -> str:
        return " ".join(self.names)

    def apply(self, frames: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3], strength [T] in [0, 1] -> uint8 of the same shape."""
        painted, rng = frames.astype(np.float32), np.random.default_rng(self.seed)
        for name in self.names:
            painted = _mix(painted, EFFECTS[name](painted, rng), strength)
        return np.round(painted).astype(np.uint8)


def random_effect(rng: np.random.Generator) -> Effect:
    names = list(EFFECTS)
    chosen = rng.choice(len(names), 2 if rng.random() < 0.2 else 1, replace=False)
    return Effect(tuple(names[i] for i in chosen), int(rng.integers(2**31)))
