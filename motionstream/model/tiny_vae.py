"""A tiny causal decoder for Wan's latents: 9.84 million parameters, some ten times as fast as Wan's own.

The layers and weight names are those of the community's tiny autoencoders for video (TAEHV: `taew2_1.safetensors`,
`taew2_2.safetensors`), so that their files load as they are; the paper trains the same decoder from scratch (appendix).
Their encoder is passed over: it looks three frames ahead, which a stream has not got; Wan's own encodes.

Every layer works on single frames but two: `Remember` sees the frame before (zeros before the first), `Grow` unpacks
one frame into several. So a stream needs one remembered frame a layer, and a clip cut anywhere between latent frames
gives what the whole clip gives.

    decoder = vae.decoder_stream()               # step as latents come, reset for another stream
    for latents in chunks:                       # normalised, [B, C, t, h, w]
        show(decoder.step(latents))              # [B, 3, 4t, H, W]; the very first latent frame gives one frame
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from motionstream.model.device import own_precision
from motionstream.model.vae import FRAMES_PER_LATENT, Stream

BOUND = 3.0  # latents beyond this many deviations are squashed


def _conv(incoming: int, outgoing: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(incoming, outgoing, 3, padding=1, bias=bias)


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BOUND * torch.tanh(x / BOUND)


class Remember(nn.Module):
    """A residual block that sees a frame and the one before it."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [_conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU()]
        self.conv = nn.Sequential(*layers, _conv(channels, channels))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(x + self.conv(torch.cat([x, before], dim=1)))


class Grow(nn.Module):
    """Unpacks every frame into `stride` frames: [B*t, C, h, w] -> [B*t * stride, C, h, w], channels last."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)
        return frames.contiguous(memory_format=torch.channels_last)


class TinyVAE(ModelMixin, ConfigMixin):
    """Latents [B, latent_channels, 1 + j, h, w] -> frames [B, 3, 1 + 4j, s * h, s * w] in [-1, 1], s = 8 * patch_size.

    patch_size: pixels to a side that come out of the last convolution as channels (Wan 2.1: 1, Wan 2.2: 2).
    widths: channels of the four levels.
    """

    follows_dtype = True
    _keys_to_ignore_on_load_unexpected = [r"^encoder\."]

    @register_to_config
    def __init__(self, latent_channels: int = 16, patch_size: int = 1, widths: Sequence[int] = (256, 128, 64, 64)):
        super().__init__()
        layers = [Squash(), _conv(latent_channels, widths[0]), nn.ReLU()]
        for stride, wide, narrow in zip((1, 2, 2), widths[:-1], widths[1:], strict=True):
            layers += [Remember(wide) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(wide, stride), _conv(wide, narrow, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3 * patch_size**2))
        self.to(memory_format=torch.channels_last)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder_stream().step(latents)

    def decoder_stream(self) -> Stream:
        """`step(latents)`: the first latent frame of the stream gives one frame, every other one four."""
        return Stream(self._decode_step)

    def _decode_step(self, latents: Tensor, memory: list | None) -> tuple[Tensor, list]:
        with own_precision(self.decoder[1].weight, latents) as latents:
            return self._decode_piece(latents, memory)

    def _decode_piece(self, latents: Tensor, memory: list | None) -> tuple[Tensor, list]:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(f"latents {tuple(latents.shape)}: expected [B, {self.config.latent_channels}, t, h, w]")
        batch, x, seen = latents.shape[0], latents.transpose(1, 2).flatten(0, 1), []
        for layer, last in zip(self.decoder, memory or [None] * len(self.decoder), strict=True):
            seen.append(None)
            if isinstance(layer, Remember):
                now = x.movedim(1, -1).unflatten(0, (batch, -1))
                last = torch.zeros_like(now[:, :1]) if last is None else last
                seen[-1] = now[:, -1:].clone()  # a view would keep the whole chunk
                x = layer(x, torch.cat([last, now[:, :-1]], dim=1).flatten(0, 1).movedim(-1, 1))
            elif isinstance(layer, Grow):  # it treats every pixel alike, so it may do so while they are few
                x = F.interpolate(layer(x), scale_factor=2)
            elif not isinstance(layer, nn.Upsample):
                x = layer(x)
        frames = F.pixel_shuffle(x, self.config.patch_size).unflatten(0, (batch, -1)).transpose(1, 2)
        frames = frames.clamp(0, 1) * 2 - 1
        return (frames[:, :, FRAMES_PER_LATENT - 1 :] if memory is None else frames), seen
