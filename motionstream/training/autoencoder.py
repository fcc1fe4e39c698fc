"""Trains the embedded student's autoencoder: `python -m motionstream.training.autoencoder --run DIR --library DIR`.

Starts from a whitened PCA of 8x8x4 pixel blocks (the linear shortcuts), then learns the residual: L1 on pixels, on
their gradients and at two coarser scales, with a little noise on the latents so that the decoder forgives small errors.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.model.vae import FRAMES_PER_LATENT, STRIDE, EmbeddedVAE
from motionstream.training.effects import random_effect
from motionstream.training.loop import Schedule, batches, fit, optimisers_for
from motionstream.training.photos import load_library
from motionstream.training.scenes import Library, random_scene, render_clip

SIDE = 128
FRAMES = 9
LATENT_NOISE = 0.04


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] -> float [3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)


def sample(rng: np.random.Generator, library: Library) -> dict[str, Tensor]:
    frames = render_clip(random_scene(rng, library, SIDE, SIDE, FRAMES)).frames
    if rng.random() < 0.25:
        frames = random_effect(rng).apply(frames, np.full(FRAMES, rng.uniform(0.3, 1)))
    return {"frames": to_tensor(frames)}


def start_from_pca(vae: EmbeddedVAE, clips: Tensor) -> None:
    """Sets the linear shortcuts to a whitened PCA of the blocks of `clips` [B, 3, 1 + 4j, H, W]."""
    blocks = clips[:, :, 1:].unflatten(2, (-1, FRAMES_PER_LATENT)).movedim(1, 3).flatten(0, 1).flatten(1, 2)
    rows = F.pixel_unshuffle(blocks, STRIDE).movedim(1, -1).flatten(0, 2)
    mean = rows.mean(0)
    _, sizes, directions = torch.pca_lowrank(rows - mean, q=vae.config.latent_channels, niter=4)
    deviation = sizes / len(rows) ** 0.5
    with torch.no_grad():
        encode = directions.T / deviation[:, None]
        vae.encoder.shortcut.weight.copy_(encode[..., None, None])
        vae.encoder.shortcut.bias.copy_(-encode @ mean)
        vae.decoder.shortcut.weight.copy_((directions * deviation)[..., None, None])
        vae.decoder.shortcut.bias.copy_(mean)


def reconstruction_loss(vae: EmbeddedVAE, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    frames = batch["frames"]
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(frames)
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents))
    wanted, got = frames.movedim(2, 1).flatten(0, 1), decoded.float().movedim(2, 1).flatten(0, 1)
    error = got - wanted
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = sum(F.avg_pool2d(error, scale).abs().mean() for scale in (2, 4))
    psnr = -10 * torch.log10((error / 2).square().mean())
    unit = latents.float().square().mean().sub(1).abs()  # keeps the latents near the scale of the noise
    return {"loss": error.abs().mean() + 0.5 * gradients + 0.5 * coarse + 0.01 * unit, "psnr": psnr.detach()}


def optimisers(vae: EmbeddedVAE, rate: float) -> list[torch.optim.Optimizer]:
    """The PCA's weights are small, so they learn in smaller steps than the rest."""
    linear = [*vae.encoder.shortcut.parameters(), *vae.decoder.shortcut.parameters()]
    return [*optimisers_for(vae, rate, leave_out=linear), torch.optim.AdamW(linear, lr=0.03 * rate, weight_decay=0)]


@torch.no_grad()
def normalise(vae: EmbeddedVAE, clips: Tensor) -> None:
    """Measures the latents' mean and deviation per channel on `clips` and stores them."""
    latents = vae.encode(clips)
    vae.latent_mean += vae.latent_std * latents.mean((0, 2, 3, 4))
    vae.latent_std *= latents.std((0, 2, 3, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder: log, checkpoints, and in the end vae/")
    parser.add_argument("--library", type=Path, help="folder of photographs; procedural textures without it")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    library = load_library(arguments.library)
    schedule = Schedule(minutes=arguments.minutes, learning_rate=1.2e-3, batch=12)
    data = batches(lambda rng: sample(rng, library), schedule.batch, arguments.seed)
    vae = EmbeddedVAE()
    start_from_pca(vae, torch.cat([next(data)["frames"] for _ in range(6)]))
    trained = fit(vae, data, reconstruction_loss, arguments.run, schedule, optimisers(vae, schedule.learning_rate))
    normalise(trained, torch.cat([next(data)["frames"] for _ in range(8)]))
    trained.save_pretrained(arguments.run / "vae")


if __name__ == "__main__":
    main()
