"""A small decoder for a latent space (paper, appendix A), and for the embedded preset its whole autoencoder.

    python -m motionstream train tiny-vae --preset embedded --library DIR --out RUN --minutes 20
    python -m motionstream train tiny-vae --preset wan2.1-1.3b --model DIR --folder CLIPS --lpips FILE --out RUN

Loss: L1 on pixels, on their gradients and at two coarser scales, plus LPIPS (`--lpips`: AlexNet and linear heads v0.1,
see evaluation/lpips.py) and a patch discriminator that judges every frame (`--adversarial`, hinge loss; by default for
Wan). For Wan it learns on the latents of the full VAE, which stays as it is. The embedded autoencoder learns its
encoder as well; it starts from a whitened PCA of 8x8x4 pixel blocks. A little noise on the latents teaches decoders to
forgive what a student gets wrong.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionstream.evaluation.lpips import Lpips
from motionstream.evaluation.sheets import contact_sheet
from motionstream.model.tiny_vae import TinyVAE
from motionstream.model.vae import FRAMES_PER_LATENT, STRIDE, EmbeddedVAE
from motionstream.training.clips import to_tensor
from motionstream.training.effects import anywhere, random_effect
from motionstream.training.folder import RealClips
from motionstream.training.parallel import World
from motionstream.training.pictures import Library
from motionstream.training.scenes import random_scene, render_clip
from motionstream.training.trainer import Samples, optimisers_for

LATENT_NOISE = 0.04
LPIPS_FRAMES = 4  # of each clip, an update
FLAT = 0.01  # deviation along a principal component that is no more than rounding; those of pictures have 0.3 and more


@dataclass(frozen=True)
class Pixels:
    """Makes training clips [3, frames, side, side] of scenes, or cut from real clips."""

    source: Library | RealClips
    side: int
    frames: int

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        if isinstance(self.source, RealClips):
            return {"frames": to_tensor(self.source.crop(rng, self.side, self.frames))}
        frames = render_clip(random_scene(rng, self.source, self.side, self.side, self.frames)).frames
        if rng.random() < 0.25:
            strength = np.full(self.frames, rng.uniform(0.3, 1))
            frames = random_effect(rng).apply(frames, strength, anywhere(rng, frames))
        return {"frames": to_tensor(frames)}


class PatchDiscriminator(nn.Module):
    """Judges every patch of 34 pixels of a picture (Isola et al. 2017): [B, 3, H, W] -> [B, 1, h, w], high if real."""

    def __init__(self, width: int = 32):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers = []
        for incoming, outgoing, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(incoming, outgoing, 4, stride, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class LatentDecoder(nn.Module):
    """A decoder that learns on the latents of a full VAE, which is not trained.

    It begins with grey pictures: values outside [0, 1] are cut off, and what is cut off learns nothing.
    """

    def __init__(self, full: nn.Module, decoder: TinyVAE):
        super().__init__()
        self.decoder = decoder
        nn.init.constant_(decoder.decoder[-1].bias, 0.5)
        self.encode = torch.no_grad()(full.encode)  # no sub-module: neither saved nor trained

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder.decode(latents)


@dataclass
class Losses:
    """The decoder's and the discriminator's loss. vae: has `encode` and `decode`; adversarial: weight, 0 for none."""

    vae: nn.Module
    world: World
    lpips: Lpips | None = None
    perceptual: float = 0.5
    critic: PatchDiscriminator | None = None
    adversarial: float = 0.0

    def reconstruct(self, batch: Samples) -> tuple[Tensor, Tensor]:
        """-> (decoded frames [B, 3, T, H, W], latents)"""
        frames = batch["frames"]
        with self.world.autocast():
            latents = self.vae.encode(frames)
            noise = batch.draws.normal(*latents.shape[1:])
            return self.vae.decode(latents + LATENT_NOISE * noise).float(), latents.float()

    def decoder_loss(self, batch: Samples) -> dict[str, Tensor]:
        frames = batch["frames"]
        made, latents = self.reconstruct(batch)
        error = pictures(made - frames)
        gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        coarse = sum(F.avg_pool2d(error, scale).abs().mean() for scale in (2, 4))
        loss = error.abs().mean() + 0.5 * gradients + 0.5 * coarse
        if latents.requires_grad:
            loss = loss + 0.01 * latents.square().mean().sub(1).abs()  # keeps them near the scale of the noise
        terms = {"psnr": -10 * torch.log10((error.detach() / 2).square().mean())}
        if self.lpips is not None:
            shown = torch.from_numpy(batch.draws.shared.choice(frames.shape[2], LPIPS_FRAMES)).to(frames.device)
            terms["lpips"] = self.lpips(*(pictures(video[:, :, shown]) for video in (made, frames))).mean()
            loss = loss + self.perceptual * terms["lpips"]
        if self.critic is not None:
            terms["fools"] = -self.critic(pictures(made)).mean()
            loss = loss + self.adversarial * terms["fools"]
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def critic_loss(self, batch: Samples) -> dict[str, Tensor]:
        """Hinge loss."""
        with torch.no_grad():
            made, _ = self.reconstruct(batch)
        real, fake = self.critic(pictures(batch["frames"])), self.critic(pictures(made))
        return {"loss": F.relu(1 - real).mean() + F.relu(1 + fake).mean()}


def pictures(video: Tensor) -> Tensor:
    """[B, 3, T, H, W] -> [B*T, 3, H, W]"""
    return video.movedim(2, 1).flatten(0, 1)


def start_from_pca(vae: EmbeddedVAE, clips: Tensor) -> None:
    """Sets the linear shortcuts to a whitened PCA of the blocks of `clips` [B, 3, 1 + 4j, H, W]."""
    blocks = clips[:, :, 1:].unflatten(2, (-1, FRAMES_PER_LATENT)).movedim(1, 3).flatten(0, 1).flatten(1, 2)
    rows = F.pixel_unshuffle(blocks, STRIDE).movedim(1, -1).flatten(0, 2)
    mean = rows.mean(0)
    _, sizes, directions = torch.pca_lowrank(rows - mean, q=vae.config.latent_channels, niter=4)
    deviation = (sizes / len(rows) ** 0.5).clamp_min(FLAT)
    with torch.no_grad():
        encode = directions.T / deviation[:, None]
        vae.encoder.shortcut.weight.copy_(encode[..., None, None])
        vae.encoder.shortcut.bias.copy_(-encode @ mean)
        vae.decoder.shortcut.weight.copy_((directions * deviation)[..., None, None])
        vae.decoder.shortcut.bias.copy_(mean)


def vae_optimisers(vae: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """The PCA's weights are small, so they learn in smaller steps than the rest."""
    if not isinstance(vae, EmbeddedVAE):
        return optimisers_for(vae, rate)
    linear = [*vae.encoder.shortcut.parameters(), *vae.decoder.shortcut.parameters()]
    return [*optimisers_for(vae, rate, leave_out=linear), torch.optim.AdamW(linear, lr=0.03 * rate, weight_decay=0)]


@torch.no_grad()
def normalise(vae: EmbeddedVAE, clips: Tensor) -> None:
    """Stores the latents' mean and scale per channel, measured on `clips`: a unit of any channel changes the picture as
    much as one of any other, and their mean variance is 1.

    Of latents with a variance of 1 in every channel, as a whitened PCA makes them, half describe what one hardly sees.
    A model that learns on them spends itself on these, and what has moved by half a cell looks altogether unlike: track
    IDs then pay only where motion is by whole cells.
    """
    latents = vae.encode(clips)
    worth, deviation = channel_worth(vae, latents), latents.std((0, 2, 3, 4)).clamp_min(FLAT)
    scale = worth / (worth * deviation).square().mean().sqrt()
    vae.latent_mean += vae.latent_std * latents.mean((0, 2, 3, 4))
    vae.latent_std /= scale
    vae.register_to_config(latent_variance=(scale * deviation).square().tolist())


@torch.no_grad()
def channel_worth(vae: EmbeddedVAE, latents: Tensor) -> Tensor:
    """[C]: by how much a unit in each channel of latents [B, C, t, h, w] changes the decoded picture, RMS."""
    made, deviation = vae.decode(latents), latents.std((0, 2, 3, 4)).clamp_min(FLAT)
    sign = torch.randint(0, 2, latents[:, 0].shape, generator=torch.Generator().manual_seed(0)).to(latents) * 2 - 1
    changes = []
    for channel, size in enumerate(deviation):
        other = latents.clone()
        other[:, channel] += size * sign
        changes.append((vae.decode(other) - made).square().mean().sqrt() / size)
    return torch.stack(changes)


@torch.no_grad()
def vae_sheet(vae: nn.Module, clips: Tensor) -> np.ndarray:
    """The last frame of each of `clips` [B, 3, T, H, W], and what comes back of it."""
    made = vae.decode(vae.encode(clips)).float()
    shown = [
        ((video[:, :, -1] + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        for video in (clips, made)
    ]
    return contact_sheet(["clip", "decoded"], [(f"clip {n}", pair) for n, pair in enumerate(zip(*shown, strict=True))])


def load_lpips(path: Path | None, world: World) -> Lpips | None:
    return None if path is None else Lpips.load(path).to(world.device)
