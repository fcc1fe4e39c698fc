"""The embedded student's causal video autoencoder: 8x8 pixels and 4 frames to one latent position of 48 channels.

A linear map (a whitened PCA of 8x8x4 pixel blocks, then trained) carries most of the picture; a small convolutional
residual adds what it loses. Frame 0 is a latent frame of its own, later frames are taken four at a time. Time is mixed
causally (a latent frame sees itself and the one before), so a stream needs one remembered feature map per mixing layer
and gives exactly what encoding or decoding at once gives.

    decoder = vae.decoder_stream()               # one stream: step as latents come, reset for another stream
    for latents in chunks:                       # [B, 48, t, H/8, W/8]
        show(decoder.step(latents))              # [B, 3, 4t, H, W]; the very first latent frame gives one frame

    frames = vae.decode(torch.cat(chunks, 2))    # the same, at once
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

FRAMES_PER_LATENT = 4
STRIDE = 8


class TemporalMix(nn.Module):
    """Adds a 1x1 view of the previous latent frame to each latent frame; the first one sees itself twice."""

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, batch: int, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` [B*t, C, h, w], `previous` [B, 1, C, h, w] or None at the start.

        Returns the mix and the new `previous`.
        """
        frames = x.unflatten(0, (batch, -1))
        before = frames[:, :1] if previous is None else previous
        shifted = torch.cat([before, frames[:, :-1]], dim=1).flatten(0, 1)
        return x + self.project(torch.cat([x, shifted], dim=1)), frames[:, -1:]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Encoder(nn.Module):
    """Blocks of four frames [B, t, 12, H, W] -> latents [B, t, C, H/8, W/8]."""

    def __init__(self, latent_channels: int, width: int):
        super().__init__()
        block = 3 * FRAMES_PER_LATENT
        self.shortcut = nn.Conv2d(block * STRIDE**2, latent_channels, 1)
        self.stem = nn.Conv2d(block * 16, width, 3, stride=2, padding=1)
        self.block = ResidualBlock(width)
        self.mix = TemporalMix(width)
        self.head = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, blocks: Tensor, memory: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        batch = blocks.shape[0]
        x = blocks.flatten(0, 1)
        features, remembered = self.mix(self.block(self.stem(F.pixel_unshuffle(x, 4))), batch, memory[0])
        latents = self.shortcut(F.pixel_unshuffle(x, STRIDE)) + self.head(F.silu(features))
        return latents.unflatten(0, (batch, -1)), [remembered]


class Decoder(nn.Module):
    """Latents [B, t, C, h, w] -> blocks of four frames [B, t, 12, 8h, 8w]."""

    def __init__(self, latent_channels: int, width: int, fine_width: int, depth: int):
        super().__init__()
        block = 3 * FRAMES_PER_LATENT
        self.shortcut = nn.Conv2d(latent_channels, block * STRIDE**2, 1)
        self.stem = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.mixes = nn.ModuleList(TemporalMix(width) for _ in range(depth))
        self.up = nn.Conv2d(width, 4 * fine_width, 1)
        self.fine = ResidualBlock(fine_width)
        self.head = nn.Conv2d(fine_width, block * 16, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latents: Tensor, memory: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        batch = latents.shape[0]
        z = latents.flatten(0, 1)
        x, remembered = self.stem(z), []
        for block, mix, previous in zip(self.blocks, self.mixes, memory, strict=True):
            x, state = mix(block(x), batch, previous)
            remembered.append(state)
        x = self.fine(F.pixel_shuffle(self.up(F.silu(x)), 2))
        frames = F.pixel_shuffle(self.shortcut(z), STRIDE) + F.pixel_shuffle(self.head(F.silu(x)), 4)
        return frames.unflatten(0, (batch, -1)), remembered


class Stream:
    """A causal network fed piece by piece. `step` continues the stream, `reset` starts another, `fork` splits it.

    `flush` ends one: a causal codec holds nothing back, so it only forgets, and is there to end any stream alike.
    """

    def __init__(self, advance: Callable[[Tensor, list[Tensor] | None], tuple[Tensor, list[Tensor]]]):
        self._advance = advance
        self._memory: list[Tensor] | None = None

    def step(self, piece: Tensor) -> Tensor:
        result, self._memory = self._advance(piece, self._memory)
        return result

    def fork(self) -> "Stream":
        """Another stream that goes on from here, apart from this one."""
        twin = Stream(self._advance)
        twin._memory = None if self._memory is None else list(self._memory)
        return twin

    def reset(self) -> None:
        self._memory = None

    def flush(self) -> None:
        self.reset()


class EmbeddedVAE(ModelMixin, ConfigMixin):
    """Causal autoencoder; frames [B, 3, T, H, W] in [-1, 1], T = 1 + 4j, H and W multiples of 8.

    Latents [B, C, 1 + j, H/8, W/8] are normalised over the training clips: mean 0 in every channel, mean variance 1
    (see `training.tiny_vae.normalise`). latent_variance: of each channel, for those who train on them.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        encoder_width: int = 128,
        decoder_width: int = 160,
        decoder_fine_width: int = 96,
        decoder_depth: int = 3,
        latent_variance: list[float] | None = None,
    ):
        super().__init__()
        self.encoder = Encoder(latent_channels, encoder_width)
        self.decoder = Decoder(latent_channels, decoder_width, decoder_fine_width, decoder_depth)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.to(memory_format=torch.channels_last)

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

    def _encode_step(self, frames: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        count, height, width = frames.shape[2:]
        if height % STRIDE or width % STRIDE or (count - (memory is None)) % FRAMES_PER_LATENT:
            raise ValueError(
                f"frames {tuple(frames.shape)}: height and width must be multiples of {STRIDE}, and the frame count "
                f"{'1 + a multiple' if memory is None else 'a multiple'} of {FRAMES_PER_LATENT}"
            )
        if memory is None:
            frames = torch.cat([frames[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT - 1, -1, -1), frames], dim=2)
        blocks = frames.unflatten(2, (-1, FRAMES_PER_LATENT)).movedim(1, 3).flatten(2, 3)
        latents, remembered = self.encoder(blocks, memory or [None])
        return (
            (latents.movedim(2, 1) - self._channels(self.latent_mean)) / self._channels(self.latent_std)
        ), remembered

    def _decode_step(self, latents: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if latents.ndim != 5 or latents.shape[1] != len(self.latent_mean):
            raise ValueError(f"latents {tuple(latents.shape)}: expected [B, {len(self.latent_mean)}, t, h, w]")
        latents = latents * self._channels(self.latent_std) + self._channels(self.latent_mean)
        blocks, remembered = self.decoder(latents.movedim(1, 2), memory or [None] * len(self.decoder.mixes))
        frames = blocks.unflatten(2, (FRAMES_PER_LATENT, 3)).flatten(1, 2).movedim(2, 1)
        return (frames[:, :, FRAMES_PER_LATENT - 1 :] if memory is None else frames), remembered

    @staticmethod
    def _channels(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1)
