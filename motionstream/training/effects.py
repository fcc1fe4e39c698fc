"""Weather and light that a prompt can ask for, painted on the synthetic clips; their names are the prompt's vocabulary.

Each effect takes frames and a strength per frame, and gives frames: so one that fades in can be shown to the student.

Where flakes and drops fall is for the student to invent, and regression would teach it the mean of all places: haze. So
noise says where (`Sky`): one falls wherever the noise that the student starts from happens to look most like one. Then
one noise has one answer, as on a teacher's ODE trajectory. They live for one latent frame, and are drawn larger and
slower than in nature, so that the latents of a small autoencoder can hold them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.text import FALLING
from motionstream.model.vae import FRAMES_PER_LATENT, STRIDE

INSIDE = STRIDE // 2  # pixels from a cell's corner to where something begins to fall in it
RAMP = 0.7  # from the least likeness at which something falls to that of the nearest and brightest
SIDE = 1  # cells to both sides that it may reach
FADE = 6  # frames until an effect is there
SHOWS = 0.7  # timestep from which on downwards z shows what falls


@dataclass(frozen=True)
class Fallen:
    """Things of one kind that fall in a clip: in which latent frame, from where, px, and how near they are."""

    latent: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray  # [0, 1], 1 the nearest


@dataclass(frozen=True)
class Drop:
    """A kind of thing that falls: pixels a frame, length and width in pixels, way sideways for a way down of 1.

    brightness: [0, 1]; share: of all latent cells, in which one begins to fall; haze: share of `colour` in the air.
    """

    speed: float
    length: float
    width: float
    slant: float
    brightness: float
    share: float
    haze: float
    colour: tuple[int, int, int]

    @property
    def reach(self) -> int:
        """Cells, one below the other, that one falls through."""
        way = INSIDE + self.speed * (FRAMES_PER_LATENT - 1) + self.length + self.width / 2
        return 1 + int(way / STRIDE)

    def paint(self, frames: np.ndarray, fall: "Fall") -> np.ndarray:
        painted = frames + self.haze * (np.array(self.colour, np.float32) - frames)
        fallen = fall(self)
        for time, picture in enumerate(painted):
            latent, frame = divmod(time + FRAMES_PER_LATENT - 1, FRAMES_PER_LATENT)
            now = fallen.latent == latent
            self.draw(picture, fallen.x[now], fallen.y[now], fallen.size[now], frame)
        return painted

    def draw(self, picture: np.ndarray, x: np.ndarray, y: np.ndarray, size: np.ndarray, frame: int) -> None:
        """Adds them to float32 [H, W, 3], as they are `frame` frames after they began to fall."""
        layer = np.zeros(picture.shape[:2], np.uint8)
        start = np.stack([x + self.slant * self.speed * frame, y + self.speed * frame], axis=-1)
        end = start + (self.slant * self.length, self.length)
        for a, b, near in zip(start, end, size, strict=True):
            a, b = (np.round(8 * point).astype(int).tolist() for point in (a, b))
            cv2.line(layer, a, b, round(255 * near), max(1, round(self.width * (0.8 + 0.4 * near))), cv2.LINE_AA, 3)
        share = cv2.GaussianBlur(layer, (3, 3), 0.7)[..., None].astype(np.float32) / 255 * self.brightness
        picture += share * (245 - picture)


Fall = Callable[[Drop], Fallen]

SNOW = Drop(speed=4, length=0, width=5, slant=0, brightness=0.95, share=0.05, haze=0.2, colour=(205, 212, 225))
RAIN = Drop(speed=6, length=12, width=2, slant=0.125, brightness=0.75, share=0.05, haze=0.25, colour=(120, 130, 145))


def anywhere(rng: np.random.Generator, frames: np.ndarray) -> Fall:
    """Things fall anywhere in a clip, uint8 [T, H, W, 3]."""
    time, height, width = frames.shape[:3]
    latents = 1 + (time - 1) // FRAMES_PER_LATENT

    def fall(drop: Drop) -> Fallen:
        count = rng.poisson(drop.share * latents * height * width / STRIDE**2)
        x, y = rng.uniform(0, width, count), rng.uniform(-STRIDE * drop.reach, height, count)
        return Fallen(rng.integers(latents, size=count), x, y, rng.random(count))

    return fall


class Sky:
    """Finds in noise where things fall; `vae` says what they look like in latents."""

    def __init__(self, vae: torch.nn.Module):
        self.vae, self.looks = vae, {}

    def over(self, seed: int, frames: np.ndarray) -> Fall:
        """Where things fall in a clip, uint8 [T, H, W, 3], that belongs to the noise of this seed."""
        noise = self.noise(seed, frames)
        return lambda drop: self.fall(drop, noise)

    def noise(self, seed: int, frames: np.ndarray) -> Tensor:
        """`clip_noise` for the latents of a clip, uint8 [T, H, W, 3]."""
        time, height, width = frames.shape[:3]
        shape = (1 + (time - 1) // FRAMES_PER_LATENT, height // STRIDE, width // STRIDE)
        return clip_noise(seed, (self.vae.config.latent_channels, *shape))

    def fall(self, drop: Drop, noise: Tensor) -> Fallen:
        """noise: [C, t, h, w], standard normal."""
        if drop not in self.looks:
            self.looks[drop] = self.look(drop)
        alike = likeness(noise, self.looks[drop])
        least = torch.special.ndtri(torch.tensor(1 - drop.share))
        found = (alike > least) & (alike == F.max_pool2d(alike, 3, 1, 1))
        latent, row, column = found.nonzero(as_tuple=True)
        size = ((alike[found] - least) / RAMP).clamp(max=1)
        y = STRIDE * (row - (drop.reach - 1)) + INSIDE
        return Fallen(*(v.numpy() for v in (latent, STRIDE * column + INSIDE, y, size)))

    @torch.no_grad()
    def look(self, drop: Drop) -> Tensor:
        """What latents change by where one falls over grey: [C, reach, 1 + 2 SIDE], of length 1."""
        cell, frames = 1 + SIDE, 1 + 2 * FRAMES_PER_LATENT
        side = STRIDE * (drop.reach + 2 * cell)
        grey = np.full((frames, side, side, 3), 110, np.float32)
        place = np.array([STRIDE * cell + INSIDE])
        one, nothing = Fallen(np.array([2]), place, place, np.ones(1)), Fallen(*[np.zeros(0)] * 4)
        clips = np.stack([drop.paint(grey, lambda _, fallen=fallen: fallen) for fallen in (one, nothing)])
        video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3) / 127.5 - 1
        falling, still = self.vae.encode(video.to(next(self.vae.parameters()).device)).float().cpu()
        look = (falling - still)[:, 2, cell : cell + drop.reach, cell - SIDE : cell + SIDE + 1]
        return look / look.norm()


def clip_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The standard normal noise in which `seed` says where things fall; shape: of a clip's latents, [C, t, h, w].

    A shorter clip's is the beginning of a longer one's.
    """
    (channels, length, *place), generator = shape, torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(channels, *place, generator=generator) for _ in range(length)], dim=1)


def likeness(noise: Tensor, look: Tensor) -> Tensor:
    """How much noise [C, t, h, w] looks like `look` [C, rows, columns]: [t, h + rows - 1, w], standard normal.

    Row i is for a look whose last row is row i of the noise; of what reaches beyond the frame the rest counts.
    """
    margin = (look.shape[2] // 2,) * 2 + (look.shape[1] - 1,) * 2
    frames, seen = F.pad(noise, margin).movedim(1, 0), F.pad(torch.ones_like(noise[:, :1]), margin).movedim(1, 0)
    length = F.conv2d(seen, look[None].square()).clamp_min(1e-2).sqrt()
    return (F.conv2d(frames, look[None]) / length)[:, 0]


def _mix(frames: np.ndarray, painted: np.ndarray, strength: np.ndarray) -> np.ndarray:
    share = strength.reshape(-1, 1, 1, 1).astype(np.float32)
    return np.clip(frames + share * (painted - frames), 0, 255)


def _luminance(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114], np.float32)


def _tint(colour: tuple[float, float, float], keep: float, gain: float):
    """Light of one colour: saturation falls to `keep`, brightness to `gain`."""

    def paint(frames: np.ndarray, fall: Fall) -> np.ndarray:
        grey = _luminance(frames)[..., None]
        return (grey + keep * (frames - grey)) * gain * np.array(colour, np.float32)

    return paint


def _fog(frames: np.ndarray, fall: Fall) -> np.ndarray:
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
    "snow": SNOW.paint,
    "rain": RAIN.paint,
}
HARD = 8.0  # how many times likelier than another effect one is that the student has to learn places of


@dataclass(frozen=True)
class Effect:
    """One or two of `EFFECTS`, by name; `prompt` asks for them."""

    names: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return " ".join(self.names)

    def begin(self, frames: np.ndarray, fall: Fall | None = None) -> np.ndarray:
        """uint8 [T, H, W, 3] -> the same, fading into it just after frame 0, as when a visitor types a prompt."""
        return self.apply(frames, np.clip(np.arange(len(frames)) / FADE, 0, 1), fall)

    def apply(self, frames: np.ndarray, strength: np.ndarray, fall: Fall | None = None) -> np.ndarray:
        """uint8 [T, H, W, 3], strength [T] in [0, 1] -> uint8 of the same shape; fall: says where, see `Sky`."""
        painted = frames.astype(np.float32)
        for name in self.names:
            painted = _mix(painted, EFFECTS[name](painted, fall), strength)
        return np.round(painted).astype(np.uint8)


def random_effect(rng: np.random.Generator) -> Effect:
    names = list(EFFECTS)
    chances = np.array([HARD if name in FALLING else 1.0 for name in names])
    chosen = rng.choice(len(names), 2 if rng.random() < 0.2 else 1, replace=False, p=chances / chances.sum())
    return Effect(tuple(names[i] for i in chosen))
