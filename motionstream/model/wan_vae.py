"""Wan's own causal video autoencoder (2.1: 8x8x4, 16 channels; 2.2: 16x16x4, 48 channels), as a stream.

The network, its configuration and its weight names are diffusers' `AutoencoderKLWan`. That class keeps the features its
causal convolutions remember on itself and forgets them after every call; here each stream has its own, so that a clip
cut anywhere between latent frames gives what the whole clip gives, and two streams do not meet. Latents are normalised
by the configuration's mean and deviation, as the transformer wants them; `encode` takes the mean of the distribution.

    decoder = vae.decoder_stream()               # step as latents come, reset for another stream
    for latents in chunks:                       # [B, C, t, h, w]
        show(decoder.step(latents))              # [B, 3, 4t, H, W]; the very first latent frame gives one frame
"""

import functools

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    DupUp3D,
    WanCausalConv3d,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
    patchify,
    unpatchify,
)
from torch import Tensor, nn

from motionstream.model.device import own_precision
from motionstream.model.vae import FRAMES_PER_LATENT, Stream

NO_LENGTH = 1e-24  # squared: what diffusers divides by at least
PAST = 2  # frames that a convolution over three remembers


class CausalConv(WanCausalConv3d):
    """diffusers' layer, whose borders are the convolution's own instead of a padded copy of the video."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        left, _, top, _, before, _ = self._padding
        if cache_x is not None and before:
            x, before = torch.cat([cache_x, x], dim=2), before - cache_x.shape[2]
        x = F.pad(x, (0, 0, 0, 0, before, 0)) if before else x
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, top, left))


class ChannelNorm(WanRMS_norm):
    """diffusers' norm over channels as one kernel, for channels that come last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), self.gamma.shape[:1], self.gamma.flatten(), NO_LENGTH).movedim(-1, 1)


def convolved_next(x: Tensor, bias: Tensor | None, gamma: Tensor, past: Tensor) -> Tensor:
    """SiLU of the normed x + bias, behind the frames before it: what a convolution over time takes.

    x [B, C, T, H, W], bias and gamma [C, 1, 1, 1], past [B, C, PAST, H, W] -> [B, C, PAST + T, H, W].
    """
    x = x if bias is None else x + bias
    x = F.silu(F.rms_norm(x.movedim(1, -1), gamma.shape[:1], gamma.flatten(), NO_LENGTH)).movedim(-1, 1)
    return torch.cat([past, x], dim=2)


def summed(x: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    """x, shortcut [B, C, T, H, W], bias [C, 1, 1, 1]."""
    return x + bias + shortcut


class ResidualBlock(WanResidualBlock):
    """diffusers' block in few passes over memory, if these two functions are compiled: half of its time is such passes.

    Its convolutions' biases are added by what comes after them.
    """

    convolved_next, summed = staticmethod(convolved_next), staticmethod(summed)

    def forward(self, x: Tensor, feat_cache: list, feat_idx: list[int]) -> Tensor:
        shortcut, bias = self.conv_shortcut(x), None
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            past = feat_cache[feat_idx[0]]
            past = torch.cat(PAST * [torch.zeros_like(x[:, :, :1])], dim=2) if past is None else past
            x = self.convolved_next(x, bias, norm.gamma, past)
            feat_cache[feat_idx[0]] = x[:, :, -PAST:].clone()
            feat_idx[0] += 1
            x, bias = F.conv3d(x, conv.weight, padding=(0, 1, 1)), conv.bias.view(-1, 1, 1, 1)
        return self.summed(x, bias, shortcut)


class Upsample(WanUpsample):
    """diffusers' nearest neighbours without the way through float32, which changes nothing; channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Upsample.forward(self, x.contiguous(memory_format=torch.channels_last))


class Duplicate(DupUp3D):
    """diffusers' shortcut of an enlargement, from channels into places; channels last in memory."""

    def forward(self, x: Tensor, first_chunk: bool = False) -> Tensor:
        factors = (self.out_channels, self.factor_t, self.factor_s, self.factor_s)
        x = x.movedim(1, -1).repeat_interleave(self.repeats, dim=-1).unflatten(-1, factors)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
        return x[:, :, self.factor_t - 1 :] if first_chunk else x


FASTER = {
    DupUp3D: Duplicate, WanCausalConv3d: CausalConv, WanResidualBlock: ResidualBlock, WanRMS_norm: ChannelNorm,
    WanUpsample: Upsample,
}  # fmt: skip


class WanVAE(AutoencoderKLWan):
    """`diffusers.AutoencoderKLWan` with the interface of `EmbeddedVAE`.

    Frames [B, 3, T, H, W] in [-1, 1], T = 1 + 4j; latents [B, z_dim, 1 + j, H/s, W/s], s = `scale_factor_spatial`.
    latents_at_once: latent frames decoded together, None for all of a step: fewer need less memory, more are faster.
    """

    latents_at_once: int | None = None
    follows_dtype = True  # its norms compute in float32 inside

    @functools.wraps(AutoencoderKLWan.__init__)  # keeps the signature, from which diffusers reads the config keys
    def __init__(self, *args, **kwargs):
        # Presets hold tuples; diffusers adds lists to them.
        super().__init__(*args, **{key: list(x) if isinstance(x, tuple) else x for key, x in kwargs.items()})
        for name, values in (("mean", self.config.latents_mean), ("deviation", self.config.latents_std)):
            values = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        for module in self.modules():
            module.__class__ = FASTER.get(type(module), type(module))  # diffusers makes them itself
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)):
            conv.to(memory_format=torch.channels_last if conv.weight.ndim == 4 else torch.channels_last_3d)

    def compile_blocks(self, **options) -> None:
        """For a GPU: a block's functions are compiled for each shape when it is first seen. options: torch's."""
        quick = [torch.compile(function, dynamic=False, **options) for function in (convolved_next, summed)]
        for block in (module for module in self.modules() if isinstance(module, ResidualBlock)):
            block.convolved_next, block.summed = quick

    def encode(self, frames: Tensor) -> Tensor:
        return self.encoder_stream().step(frames)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder_stream().step(latents)

    def encoder_stream(self) -> Stream:
        """`step(frames)`: 1 + 4j frames first, then 4j at a time."""
        return Stream(self._encode_step)

    def decoder_stream(self) -> Stream:
        """`step(latents)`: the first latent frame of the stream gives one frame, every other one four."""
        return Stream(self._decode_step)

    def _encode_step(self, frames: Tensor, memory: list | None) -> tuple[Tensor, list]:
        with own_precision(self.quant_conv.weight, frames) as frames:
            return self._encode_piece(frames, memory)

    def _encode_piece(self, frames: Tensor, memory: list | None) -> tuple[Tensor, list]:
        count, height, width = frames.shape[2:]
        stride, begins = self.config.scale_factor_spatial, memory is None
        if height % stride or width % stride or (count - begins) % FRAMES_PER_LATENT:
            raise ValueError(
                f"frames {tuple(frames.shape)}: height and width must be multiples of {stride}, and the frame count "
                f"{'1 + a multiple' if begins else 'a multiple'} of {FRAMES_PER_LATENT}"
            )
        memory = memory or [None] * self._cached_conv_counts["encoder"]
        if self.config.patch_size is not None:
            frames = patchify(frames, self.config.patch_size)
        # Frame 0 is alone in its latent frame. One latent frame at a time: a chunk at once would need more memory than
        # all else that a stream does.
        alone, rest = frames.split([int(begins), count - begins], dim=2)
        pieces = [alone] * begins + [*rest.split(FRAMES_PER_LATENT, dim=2)]
        parts = [self.encoder(piece, feat_cache=memory, feat_idx=[0]) for piece in pieces if piece.shape[2]]
        mean = self.quant_conv(torch.cat(parts, 2)).chunk(2, dim=1)[0]
        return (mean - self.mean) / self.deviation, memory

    def _decode_step(self, latents: Tensor, memory: list | None) -> tuple[Tensor, list]:
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim:
            raise ValueError(f"latents {tuple(latents.shape)}: expected [B, {self.config.z_dim}, t, h, w]")
        with own_precision(self.quant_conv.weight, latents * self.deviation + self.mean) as latents:
            return self._decode_piece(latents, memory)

    def _decode_piece(self, latents: Tensor, memory: list | None) -> tuple[Tensor, list]:
        begins, count = memory is None, latents.shape[2]
        memory = memory or [None] * self._cached_conv_counts["decoder"]
        x = self.post_quant_conv(latents)
        pieces = list(x[:, :, int(begins) :].split(self.latents_at_once or max(count, 1), dim=2))
        parts = [self.decoder(x[:, :, :1], feat_cache=memory, feat_idx=[0], first_chunk=True)] if begins else []
        parts += [self.decoder(piece, feat_cache=memory, feat_idx=[0]) for piece in pieces if piece.shape[2]]
        frames = torch.cat(parts, 2)
        if self.config.patch_size is not None:
            frames = unpatchify(frames, self.config.patch_size)
        return frames.clamp(-1, 1), memory
