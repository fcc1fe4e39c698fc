"""The members of the family, one row each: sizes are data, not branches in code."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SHARP_PIXELS = 640 * 384  # of a frame as it is shown
MAX_ASPECT = 2.25  # wider or taller pictures are cropped to this: nobody trains on strips


@dataclass(frozen=True)
class Preset:
    """One model: what it was trained for and the shapes of its parts.

    fps: playback rate. shift: k of the timestep shift (paper, appendix, after A1). spatial_stride: pixels per latent
    cell. budgets: trained sizes, as tokens per latent frame. chunk_size: latent frames a chunk. sink, window: chunks.
    steps: denoising steps. temporal_stride: frames per latent frame. image_conditioning: "channel_concat" (mask and
    image latents beside the noise) or "first_latent" (the image is the clean first latent frame, its tokens at
    timestep 0). prediction: what the network gives, "velocity" z_1 - z_0, the "clean" latents, or their "residual"
    over the motion prior's. composite: whether decoded frames get back what the autoencoder loses of the motion prior's
    picture.
    vae, text_encoder, image_encoder, tiny_vae: their classes, "" where there is none. transformer: keywords of
    `diffusers.WanTransformer3DModel`, but channels. configs: keywords of the other classes, by sub-folder.
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
    image_encoder: str = ""
    tiny_vae: str = ""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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


UMT5_XXL = dict(
    vocab_size=256_384,
    d_model=4096,
    d_kv=64,
    d_ff=10_240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)
CLIP_VIT_H = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    hidden_act="gelu",
    projection_dim=1024,
)
WAN_2_2_VAE = dict(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=16,
    # fmt: off
    latents_mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    latents_std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
    # fmt: on
)

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
            budgets=(100, 140, 180, 240),
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
            configs=dict(vae=dict(latent_channels=48), text_encoder=dict(text_dim=64)),
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
            vae="WanVAE",
            text_encoder="UMT5TextEncoder",
            image_encoder="CLIPImageEncoder",
            tiny_vae="TinyVAE",
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
            configs=dict(
                text_encoder=UMT5_XXL, image_encoder=CLIP_VIT_H, tiny_vae=dict(latent_channels=16, patch_size=1)
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
            vae="WanVAE",
            text_encoder="UMT5TextEncoder",
            tiny_vae="TinyVAE",
            transformer=dict(
                patch_size=(1, 2, 2),
                num_attention_heads=24,
                attention_head_dim=128,
                num_layers=30,
                ffn_dim=14336,
                text_dim=4096,
                freq_dim=256,
            ),
            configs=dict(
                vae=WAN_2_2_VAE, text_encoder=UMT5_XXL, tiny_vae=dict(latent_channels=48, patch_size=2)
            ),
        ),
    )
}


# The paper's architecture at a size for experiments on a CPU: no motion prior moves and holds the picture, track IDs
# and cache must. A token is one latent cell, so that it sees one track at a time.
PRESETS["embedded-plain"] = replace(
    PRESETS["embedded"],
    name="embedded-plain",
    shift=6.0,
    track_channels=64,
    budgets=(100,),  # 80 x 80
    prediction="clean",
    motion_prior=False,
    composite=False,
    transformer=dict(PRESETS["embedded"].transformer)
    | dict(patch_size=(1, 1, 1), num_attention_heads=2, num_layers=6, ffn_dim=512),
)


def sharp_times(preset: Preset, width: int, height: int, picture_width: int, picture_height: int) -> int:
    """How many times as large as generated, `width` x `height`, frames are shown; see `composite.sharpened`.

    As large as SHARP_PIXELS allow and the picture's own pixels are worth, for a preset that has a composite; else 1.
    """
    own = math.ceil(min(picture_width / width, picture_height / height))
    return max(1, min(own, math.isqrt(SHARP_PIXELS // (width * height)))) if preset.composite else 1


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
