"""The members of the family, one row each: sizes are data, not branches in code."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ASPECT = 2.25  # wider or taller pictures are cropped to this: nobody trains on strips


@dataclass(frozen=True)
class Preset:
    """One model: what it was trained for and the shapes of its parts.

    fps: playback rate. shift: k of the timestep shift (paper, appendix, after A1). spatial_stride: pixels per latent
    cell. budgets: trained sizes, as tokens per latent frame. chunk_size: latent frames a chunk. sink, window: chunks.
    steps: denoising steps. temporal_stride: frames per latent frame. image_conditioning: "channel_concat" (mask and
    image latents beside the noise) or "first_latent" (the image is the clean first latent frame, its tokens at
    timestep 0). prediction: what the network gives, "velocity" z_1 - z_0, or "residual" over the motion prior's
    latents. composite: whether decoded frames get back what the autoencoder loses of the motion prior's picture.
    vae, text_encoder: their classes. transformer: keywords of `diffusers.WanTransformer3DModel`, but channels.
    """

    name: str
    fps: float
    shift: float
    spatial_stride: int
    latent_channels: int
    track_channels: int
    budgets: tuple[int, ...]
    image_conditioning: str
    prediction: str
    motion_prior: bool
    composite: bool
    vae: str
    text_encoder: str
    transformer: Mapping[str, Any]
    chunk_size: int = 3
    sink: int = 1
    window: int = 1
    steps: int = 3
    temporal_stride: int = 4
    track_dim: int = 64

    @property
    def cell(self) -> int:
        """Pixels along one side of a token: width and height are multiples of it."""
        return self.spatial_stride * self.transformer["patch_size"][1]

    @property
    def condition_channels(self) -> int:
        """Channels beside the noisy latents: [mask, image latents], tracks, [prior latents, confidence]."""
        with_latents = self.latent_channels + self.temporal_stride
        image = with_latents if self.image_conditioning == "channel_concat" else 0
        return image + self.track_channels + (with_latents if self.motion_prior else 0)

    def transformer_config(self) -> dict[str, Any]:
        """All keywords of `MotionTransformer`."""
        channels = dict(in_channels=self.latent_channels + self.condition_channels, out_channels=self.latent_channels)
        return dict(self.transformer) | channels

    def chunk_frames(self, index: int) -> int:
        """Pixel frames of chunk `index`: frame 0 of the stream is alone in its latent frame."""
        frames = self.chunk_size * self.temporal_stride
        return frames if index else frames - self.temporal_stride + 1


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="embedded",
            fps=16,
            shift=3.0,
            spatial_stride=8,
            latent_channels=48,
            track_channels=16,
            budgets=(180, 240),
            image_conditioning="first_latent",
            prediction="residual",
            motion_prior=True,
            composite=True,
            vae="EmbeddedVAE",
            text_encoder="EffectTextEncoder",
            transformer=dict(
                patch_size=(1, 2, 2),
                num_attention_heads=4,
                attention_head_dim=64,
                num_layers=6,
                ffn_dim=1024,
                text_dim=64,
                freq_dim=256,
            ),
        ),
        Preset(
            name="wan2.1-1.3b",
            fps=16,
            shift=6.0,
            spatial_stride=8,
            latent_channels=16,
            track_channels=16,
            budgets=(1560,),  # 832 x 480
            image_conditioning="channel_concat",
            prediction="velocity",
            motion_prior=False,
            composite=False,
            vae="AutoencoderKLWan",
            text_encoder="UMT5EncoderModel",
            transformer=dict(
                patch_size=(1, 2, 2),
                num_attention_heads=12,
                attention_head_dim=128,
                num_layers=30,
                ffn_dim=8960,
                text_dim=4096,
                freq_dim=256,
                image_dim=1280,
                added_kv_proj_dim=1536,
            ),
        ),
        Preset(
            name="wan2.2-5b",
            fps=24,
            shift=6.0,
            spatial_stride=16,
            latent_channels=48,
            track_channels=48,
            budgets=(880,),  # 1280 x 704
            image_conditioning="first_latent",
            prediction="velocity",
            motion_prior=False,
            composite=False,
            vae="AutoencoderKLWan",
            text_encoder="UMT5EncoderModel",
            transformer=dict(
                patch_size=(1, 2, 2),
                num_attention_heads=24,
                attention_head_dim=128,
                num_layers=30,
                ffn_dim=14336,
                text_dim=4096,
                freq_dim=256,
            ),
        ),
    )
}


def fit_size(preset: Preset, width: float, height: float, budget: int) -> tuple[int, int]:
    """The generation size (width, height), pixels, for a picture of the given size.

    Both are multiples of `preset.cell`, at most `budget` tokens per latent frame are used, and the aspect is as near as
    can be without wasting much of the budget (an aspect off by a factor f counts as much as 1 - 1/f^2 of it unused).
    """
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)

    def cost(size: tuple[int, int]) -> float:
        columns, rows = size
        return abs(math.log(columns / rows / aspect)) + 0.5 * math.log(budget / (columns * rows))

    sizes = ((columns, rows) for columns in range(1, budget + 1) for rows in range(1, budget // columns + 1))
    columns, rows = min(sizes, key=cost)
    return columns * preset.cell, rows * preset.cell
