"""A preset of the embedded kind that trains in milliseconds, its networks, and batches of clips without a scene."""

from dataclasses import replace

import numpy as np
import torch

from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.model.transformer import MotionTransformer
from motionstream.tracks import Tracks
from motionstream.training.clips import ClipBatch, chunk_bounds
from motionstream.training.network import Network, new_head
from motionstream.training.settings import Recipe
from motionstream.training.trainer import Draws

SIZES = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    ffn_dim=48,
    text_dim=16,
    freq_dim=32,
)
TINY = replace(PRESETS["embedded"], name="tiny", latent_channels=8, track_dim=8, track_channels=4, transformer=SIZES)
PLAIN = replace(  # of Wan 2.1's kind: velocity, image beside the noise, no motion prior
    TINY,
    name="plain",
    prediction="velocity",
    motion_prior=False,
    composite=False,
    image_conditioning="channel_concat",
    text_encoder="none",
)
ALONE = replace(TINY, name="alone", prediction="clean", motion_prior=False, composite=False)  # without a motion prior
RECIPE = Recipe(
    batch=4,
    rate=1e-3,
    steps=4,
    warmup=1,
    ema=0.9,
    chunks=3,
    tracks=None,
    ode_steps=6,
    sinks=(0, 1),
    windows=(0, 1),
    checkpointing=False,
)
PLACE = (4, 6)  # latent rows and columns


def network(preset=TINY, seed=0, skip=False) -> Network:
    """All weights random, so that every input matters."""
    torch.manual_seed(seed)
    transformer = MotionTransformer(**preset.transformer_config())
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    head = new_head(preset)
    text = EffectTextEncoder(text_dim=16) if preset.text_encoder == "EffectTextEncoder" else None
    return Network(preset, transformer, head, text, skip=torch.ones(preset.latent_channels) if skip else None)


def clip_batch(preset=TINY, clips=4, chunks=3, seed=0, step=0, places=None) -> ClipBatch:
    """Random latents; 5 tracks a clip that wander and sometimes hide."""
    rng = np.random.default_rng(seed)
    length, (rows, columns) = chunks * preset.chunk_size, PLACE
    frames, stride = chunk_bounds(preset, chunks)[-1][1], preset.spatial_stride

    def latents(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32))

    whole = (clips, preset.latent_channels, length, rows, columns)
    extent = np.array([columns, rows]) * stride
    tracks = [
        Tracks(
            rng.uniform(0, extent, (1, 5, 2)) + rng.normal(0, 2, (frames, 5, 2)),
            rng.random((frames, 5)) < 0.9,
            rng.permutation(10_000)[:5],
        )
        for _ in range(clips)
    ]
    values = {"latents": latents(*whole)}
    if preset.text_encoder == "EffectTextEncoder":
        values |= {"text": torch.from_numpy(rng.integers(0, 11, (clips, 4))), "null_text": torch.zeros(clips, 4).long()}
    else:
        values |= {"text": latents(clips, 3, 16), "null_text": latents(1, 3, 16).expand(clips, -1, -1)}
        values |= {"image": latents(*whole)}
    if preset.motion_prior:
        later = chunks - 1, rows, columns
        values |= {"prior": latents(*whole), "confidence": latents(clips, 4, *whole[2:]).sigmoid()}
        values |= {"held": latents(*whole[:2], *later), "held_confidence": latents(clips, 4, *later).sigmoid()}
        values["prior"][:, :, 0] = values["latents"][:, :, 0]
    batch = ClipBatch(tracks=tracks, draws=Draws(seed, step, list(range(clips))), **values)
    return batch if places is None else part(batch, places, seed, step)


def part(batch: ClipBatch, places, seed=0, step=0) -> ClipBatch:
    """Some clips of a batch, with the random numbers that they have in it."""
    values = {name: value[places] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, tracks=[batch.tracks[n] for n in places], draws=Draws(seed, step, places), **values)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def falls(loss, module: torch.nn.Module, rate=3e-3, steps=12, share=0.9) -> bool:
    """Whether a few steps on one batch lower its loss to `share`; loss() draws the same numbers every time."""
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=rate)
    with torch.no_grad():
        before = loss().item()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    with torch.no_grad():
        return loss().item() < share * before
