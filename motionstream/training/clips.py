"""Training clips for the student, written once as latents and read many times.

    python -m motionstream.training.clips --out DIR --model DIR --library DIR --count 4000

A clip is a synthetic scene, the tracks a visitor might have given, often an effect that a prompt asks for, and what the
trained autoencoder and motion prior make of them. Rendering and encoding cost far more than a training step, so the
student's training reads them from shards (safetensors); only IDs, noise and timesteps are drawn anew at each reading.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from motionstream.model.checkpoint import load_component
from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.streaming import pack_confidence
from motionstream.tracks import Tracks, draw_ids
from motionstream.training.autoencoder import to_tensor
from motionstream.training.effects import random_effect
from motionstream.training.photos import load_library
from motionstream.training.scenes import Library, choose_tracks, random_scene, render_clip

CHUNKS = 3
MAX_TRACKS = 300
SIZES = ((192, 128), (128, 192), (160, 160), (288, 160))  # (width, height)
SIZE_SHARES = (0.5, 0.15, 0.15, 0.2)
SHARD = 32
PRESET = PRESETS["embedded"]


def chunk_bounds() -> list[tuple[int, int]]:
    """(first frame, one past the last) of each chunk of a clip."""
    ends = np.cumsum([PRESET.chunk_frames(index) for index in range(CHUNKS)]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def with_effect(rng: np.random.Generator, frames: np.ndarray) -> tuple[np.ndarray, str]:
    """Half of the clips fade into an effect just after frame 0, as when a visitor types a prompt."""
    if rng.random() < 0.5:
        return frames, ""
    effect = random_effect(rng)
    strength = np.clip(np.arange(len(frames)) / 6, 0, 1)
    return effect.apply(frames, strength), effect.prompt


@torch.inference_mode()
def make_clip(
    rng: np.random.Generator, library: Library, vae, prior, text: EffectTextEncoder, size: tuple[int, int]
) -> dict[str, Tensor]:
    """One clip as latents: `latents` and `prior` [C, t, h, w], `confidence` [4, t, h, w], tracks and prompt tokens."""
    bounds = chunk_bounds()
    scene = random_scene(rng, library, *size, bounds[-1][1])
    clip = render_clip(scene)
    tracks = choose_tracks(rng, scene, clip, rng.choice(["drags", "sparse", "dense"], p=[0.6, 0.15, 0.25]))
    frames, prompt = with_effect(rng, clip.frames)
    state, encoder = prior.start(to_tensor(clip.frames[:1])[:, 0]), vae.encoder_stream()
    warped_latents, confidences = [], []
    with torch.autocast("cpu", torch.bfloat16):
        for first, (start, stop) in zip((True, *[False] * (CHUNKS - 1)), bounds, strict=True):
            warped, confidence = prior.step(state, tracks.rows(start, stop))
            warped_latents.append(encoder.step(warped))
            confidences.append(pack_confidence(confidence, PRESET.spatial_stride, PRESET.temporal_stride, first))
        latents = vae.encode(to_tensor(frames)[None])
    kept = min(tracks.N, MAX_TRACKS)
    points = torch.zeros(len(frames), MAX_TRACKS, 2, dtype=torch.float16)
    visible = torch.zeros(len(frames), MAX_TRACKS, dtype=torch.bool)
    points[:, :kept] = torch.tensor(tracks.points[:, :kept]).clamp(-999, 999)
    visible[:, :kept] = torch.tensor(tracks.visible[:, :kept])
    tokens = text.tokens(prompt)
    return {
        "latents": latents[0].half(),
        "prior": torch.cat(warped_latents, 2)[0].half(),
        "confidence": torch.cat(confidences, 2)[0].half(),
        "points": points,
        "visible": visible,
        "tokens": torch.tensor(tokens + [0] * (text.config.length - len(tokens))),
    }


def read_tracks(clip: dict[str, Tensor], rng: np.random.Generator) -> Tracks:
    """The clip's tracks with new random IDs; the rows that padded them to one shape never show."""
    used = int(clip["visible"].any(0).nonzero().max()) + 1 if clip["visible"].any() else 0
    return Tracks(clip["points"][:, :used].float().numpy(), clip["visible"][:, :used].numpy(), draw_ids(used, rng))


class Clips:
    """All shards of a folder in memory; batches are of one size each."""

    def __init__(self, folder: Path):
        self.shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not self.shards:
            raise FileNotFoundError(f"{folder} holds no .safetensors shard: write some with training.clips first")

    def batches(self, size: int, seed: int) -> Iterator[list[dict[str, Tensor]]]:
        """Endless batches of `size` clips of one shard, drawn at random."""
        rng = np.random.default_rng(seed)
        while True:
            shard = self.shards[rng.integers(len(self.shards))]
            count = len(shard["latents"])
            rows = rng.choice(count, min(size, count), replace=False)
            yield [{name: value[row] for name, value in shard.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards; shards that are there stay")
    parser.add_argument("--model", type=Path, required=True, help="folder with trained vae/ and motion_prior/")
    parser.add_argument("--library", type=Path, help="folder of photographs; procedural textures without it")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    library = load_library(arguments.library)
    vae, prior = (load_component(arguments.model / name).eval() for name in ("vae", "motion_prior"))
    text = EffectTextEncoder(PRESET.transformer["text_dim"])
    rng = np.random.default_rng([arguments.seed, 1])
    for number in range(-(-arguments.count // SHARD)):
        path = arguments.out / f"{arguments.seed:02d}-{number:04d}.safetensors"
        size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
        if path.exists():
            continue
        drawn = np.random.default_rng([arguments.seed, 2, number])
        clips = [make_clip(drawn, library, vae, prior, text, size) for _ in range(SHARD)]
        unfinished = path.with_suffix(".tmp")
        save_file({name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}, unfinished)
        unfinished.replace(path)
        print(path, size, flush=True)


if __name__ == "__main__":
    main()
