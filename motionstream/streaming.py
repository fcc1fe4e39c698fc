"""The generator of endless video: what the paper's section 3.2 calls inference, and training's roll-out as well.

Chunk by chunk: ask for the chunk's tracks, denoise it in a few steps while it attends to the rolling cache, decode it,
and run the network once more at t = 0 on the clean chunk to write the cache:

    for chunk in stream(model, image, source, prompt="fog", seed=0):    # endless; close it when you have enough
        show(chunk.frames)

Decisions:
- Nothing runs while nobody calls `next`; pausing is not calling it, and closing the generator frees everything.
- Noise comes from the seed and the chunk's number alone, so a stream cut anywhere and run again gives the same pixels.
- The cache is written after the chunk has been handed over: its pixels need not wait for that pass.
- Everything up to `stream` is a pure function of tensors, with a batch dimension and gradients, for training to use.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.cache import RollingCache
from motionstream.model.checkpoint import Model
from motionstream.model.track_head import pack_time, track_map
from motionstream.model.transformer import Context, MotionTransformer
from motionstream.tracks import ChunkRequest, Tracks, TrackSource

TIMESTEPS = 1000  # the network counts t in [0, 1] in thousandths
HISTORY_CHUNKS = 4


def shift_timestep(t: Tensor | float, k: float) -> Tensor | float:
    """t' = k t / (1 + (k - 1) t): more of the steps at high noise (paper, appendix)."""
    return k * t / (1 + (k - 1) * t)


def sampling_timesteps(steps: int, shift: float) -> list[float]:
    """`steps` timesteps from 1 downwards, evenly spaced before the shift; 0 is where they lead, not one of them."""
    return [shift_timestep(1 - i / steps, shift) for i in range(steps)]


def add_noise(x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """z_t = (1 - t) z_0 + t z_1 (equation A1); a tensor t must broadcast."""
    return (1 - t) * x0 + t * noise


@dataclass(frozen=True)
class Condition:
    """What the network is told about one chunk, beside noise and text.

    channels: [B, C, t, h, w], concatenated to the noisy latents. prior: [B, latent_channels, t, h, w], to which a
    "residual" prediction is added. first: [B, latent_channels, 1, h, w], the clean first latent frame if there is one.
    """

    channels: Tensor
    prior: Tensor | None = None
    first: Tensor | None = None


def assemble_condition(
    tracks: Tensor,
    image: Tensor | None = None,
    prior: Tensor | None = None,
    confidence: Tensor | None = None,
    first: Tensor | None = None,
) -> Condition:
    """Condition channels in the order of `Preset.condition_channels`; all parts [B, C, t, h, w].

    tracks: the track head's output; image: see `image_channels`; prior: latents of the moved picture; confidence: see
    `pack_confidence`; first: clean first latent frame [B, latent_channels, 1, h, w].
    """
    parts = [part for part in (image, tracks, prior, confidence) if part is not None]
    return Condition(torch.cat(parts, dim=1), prior, first)


def pack_confidence(confidence: Tensor, spatial_stride: int, temporal_stride: int, first: bool) -> Tensor:
    """Per-pixel confidence [B, 1, T, H, W] -> [B, temporal_stride, t, h, w], averaged over latent cells."""
    pooled = F.avg_pool3d(confidence, (1, spatial_stride, spatial_stride))
    return pack_time(pooled, temporal_stride, first)


def image_channels(latents: Tensor, temporal_stride: int, first: bool) -> Tensor:
    """Wan 2.1's image condition: mask (1 where the image is known) and latents of the image followed by blank frames.

    latents: [B, C, t, h, w] -> [B, temporal_stride + C, t, h, w].
    """
    mask = torch.zeros_like(latents[:, :1]).expand(-1, temporal_stride, -1, -1, -1).clone()
    if first:
        mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


def composite(decoded: Tensor, unchanged: Tensor, warped: Tensor, confidence: Tensor, cell: int) -> Tensor:
    """Fine detail from the moved picture where it is sure; light and colour, and all the rest, from the student.

    decoded: the student's frames [1, 3, T, H, W] in [-1, 1]; unchanged: what they would be had it changed nothing;
    warped: the moved picture; confidence: [1, 1, T, H, W]. Light is the mean of what is sure over about `cell` pixels:
    where the student darkens, the picture is dimmed; where it brightens, the difference is added.
    """
    decoded, unchanged, warped, confidence = (x[0].transpose(0, 1) for x in (decoded, unchanged, warped, confidence))
    share = F.avg_pool2d(confidence, cell).clamp_min(1e-3)

    def light(x: Tensor) -> Tensor:
        mean = F.avg_pool2d((x + 1) * confidence, cell) / share
        return F.interpolate(mean, size=x.shape[-2:], mode="bilinear", align_corners=False)

    wanted, given = light(decoded), light(unchanged)
    relit = (warped + 1) * ((wanted + 0.02) / (given + 0.02)).clamp(0, 1) + (wanted - given).clamp(min=0) - 1
    return torch.lerp(decoded, relit, confidence).transpose(0, 1)[None]


def predict_x0(
    transformer: MotionTransformer,
    z: Tensor,
    t: Tensor,
    condition: Condition,
    context: Context,
    cache: RollingCache | None = None,
    *,
    prediction: str,
) -> Tensor:
    """The network's idea of the clean chunk: noisy latents z [B, C, t, h, w] at t [B] in [0, 1] -> [B, C, t, h, w].

    Reads the cache and leaves it as it is. Without a cache the chunk (or the whole clip) is seen bidirectionally.
    """
    if condition.first is not None:
        t = t[:, None].repeat(1, z.shape[2])
        t[:, 0] = 0
        z = torch.cat([condition.first, z[:, :, 1:]], dim=2)
    inputs = torch.cat([z, condition.channels], dim=1)
    out = transformer(inputs, TIMESTEPS * t, context, return_dict=False, cache=cache)[0]
    x0 = condition.prior + out if prediction == "residual" else z - t.view(len(z), 1, -1, 1, 1) * out
    return x0 if condition.first is None else torch.cat([condition.first, x0[:, :, 1:]], dim=2)


@torch.no_grad()
def write_cache(
    transformer: MotionTransformer, x0: Tensor, condition: Condition, context: Context, cache: RollingCache
) -> None:
    """One clean pass at t = 0, which stores the chunk's keys and values (detached) and moves the cache on."""
    inputs = torch.cat([x0, condition.channels], dim=1)
    transformer(inputs, inputs.new_zeros(len(x0)), context, return_dict=False, cache=cache, write=True)


def sample(predict: Callable[[Tensor, float], Tensor], noise: Callable[[], Tensor], timesteps: list[float]) -> Tensor:
    """Few-step sampling with fresh noise between the steps, as in Self Forcing.

    predict(z, t) -> x0; noise() -> standard normal of the chunk's shape; timesteps from 1 downwards.
    """
    x0 = predict(noise(), timesteps[0])
    for t in timesteps[1:]:
        x0 = predict(add_noise(x0, noise(), t), t)
    return x0


def chunk_noise(seed: int, index: int, shape: tuple[int, ...], device: torch.device) -> Callable[[], Tensor]:
    """A source of standard normals that depends on the seed and the chunk's number only, the same on every device."""
    state = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    return lambda: torch.randn(shape, generator=generator).to(device)


@dataclass(frozen=True)
class Chunk:
    """Frames generated together.

    index: 0, 1, ...; start: stream index of the first frame; frames: uint8 RGB [n, H, W, 3], 9 for chunk 0 (frame 0 is
    the image), 12 afterwards; tracks: those that drove it; timings: seconds spent on "control" (asking the source),
    "condition", "denoise", "decode", "cache" (writing the chunk before this one) and in "total".
    """

    index: int
    start: int
    frames: np.ndarray
    tracks: Tracks
    timings: dict[str, float]


class _Clock:
    """Seconds per stage; waits for the device, so that work is charged to the stage that asked for it."""

    def __init__(self, device: torch.device):
        self.device, self.begun = device, time.perf_counter()
        self.seconds, self.last = {}, self.begun

    def lap(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now

    def timings(self) -> dict[str, float]:
        return self.seconds | {"total": self.last - self.begun}


@contextlib.contextmanager
def inference(model: Model) -> Iterator[None]:
    """No gradients, and the model's dtype for whatever may run in it."""
    reduced = model.dtype != torch.float32
    with torch.inference_mode(), torch.autocast(model.device.type, model.dtype if reduced else None, enabled=reduced):
        yield


class _Stream:
    """All that one stream remembers between chunks; `next_chunk` is the algorithm, the other methods its stages."""

    def __init__(self, model: Model, image: np.ndarray, seed: int):
        preset = model.preset
        height, width = (side // preset.spatial_stride for side in image.shape[:2])
        self.model, self.seed, self.index, self.start = model, seed, 0, 0
        self.shape = (1, preset.latent_channels, preset.chunk_size, height, width)
        self.history = {0: image}
        self.clean: tuple[Tensor, Condition] | None = None  # the newest chunk, not yet in the cache
        self.prompt: str | None = None
        with inference(model):
            self.picture = torch.tensor(image, device=model.device).permute(2, 0, 1) / 127.5 - 1
            self.image_tokens = model.image_encoder.encode(self.picture) if model.image_encoder else None
            self.prior = model.motion_prior.start(self.picture) if model.motion_prior else None
            self.encoder, self.prior_encoder = model.vae.encoder_stream(), model.vae.encoder_stream()
            self.decoder = model.vae.decoder_stream()
            self.cache = model.transformer.new_cache(
                1, preset.chunk_size, height, width, sink=preset.sink, window=preset.window
            )

    def next_chunk(self, source: TrackSource, prompt: str) -> Chunk:
        clock = _Clock(self.model.device)
        with inference(self.model):
            if self.clean is not None:
                write_cache(self.model.transformer, *self.clean, self.context, self.cache)
            clock.lap("cache")
        tracks = self.ask(source)
        clock.lap("control")
        with inference(self.model):
            self.read(prompt)
            condition, warped, confidence = self.condition(tracks)
            clock.lap("condition")
            x0 = self.denoise(condition)
            clock.lap("denoise")
            frames = self.decode(x0, condition, warped, confidence)
            clock.lap("decode")
        chunk = Chunk(self.index, self.start, frames, tracks, clock.timings())
        self.clean = x0, condition
        self.remember(frames)
        return chunk

    def ask(self, source: TrackSource) -> Tracks:
        """This chunk's tracks. Only now: the source is never asked about the future."""
        preset, (height, width) = self.model.preset, self.picture.shape[1:]
        frames = preset.chunk_frames(self.index)
        history = MappingProxyType(self.history)
        tracks = source.tracks_for(ChunkRequest(self.index, self.start, frames, width, height, preset.fps, history))
        if tracks.T != frames:
            raise ValueError(f"{type(source).__name__} gave tracks of {tracks.T} frames; {frames} were asked for")
        return tracks

    def read(self, prompt: str) -> None:
        """Keys and values of the prompt, anew only when it has changed."""
        if prompt != self.prompt:
            text = self.model.text_encoder.encode(prompt).to(self.model.device)
            self.prompt, self.context = prompt, self.model.transformer.encode_context(text, self.image_tokens)

    def condition(self, tracks: Tracks) -> tuple[Condition, Tensor | None, Tensor | None]:
        """The chunk's condition; with a motion prior also the moved picture and its confidence."""
        model, preset, first = self.model, self.model.preset, self.index == 0
        height, width = self.picture.shape[1:]
        maps = track_map(tracks, width, height, preset.spatial_stride, preset.track_dim, model.device)
        image = prior = packed = clean = warped = confidence = None
        if preset.image_conditioning == "channel_concat":
            frames = self.picture.new_zeros(1, 3, tracks.T, height, width)
            if first:
                frames[0, :, 0] = self.picture
            image = image_channels(self.encoder.step(frames), preset.temporal_stride, first)
        if self.prior is not None:
            warped, confidence = (x.to(model.device) for x in model.motion_prior.step(self.prior, tracks))
            prior = self.prior_encoder.step(warped)
            packed = pack_confidence(confidence, preset.spatial_stride, preset.temporal_stride, first)
        if first and preset.image_conditioning == "first_latent":
            clean = model.vae.encode(self.picture[None, :, None])
        return assemble_condition(model.track_head(maps[None], first), image, prior, packed, clean), warped, confidence

    def denoise(self, condition: Condition) -> Tensor:
        """A few steps from pure noise to the clean chunk."""
        preset, device = self.model.preset, self.model.device

        def predict(z: Tensor, t: float) -> Tensor:
            times = torch.full((1,), t, device=device)
            parts = (condition, self.context, self.cache)
            return predict_x0(self.model.transformer, z, times, *parts, prediction=preset.prediction)

        noise = chunk_noise(self.seed, self.index, self.shape, device)
        return sample(predict, noise, sampling_timesteps(preset.steps, preset.shift))

    def decode(self, x0: Tensor, condition: Condition, warped: Tensor | None, confidence: Tensor | None) -> np.ndarray:
        """Pixels. Where a motion prior is confident, what the autoencoder loses of the moved picture is added back."""
        if not self.model.preset.composite:
            frames = self.decoder.step(x0).float()
        else:
            frames, unchanged = self.decoder.step(torch.cat([x0, condition.prior])).float().chunk(2)
            frames = composite(frames, unchanged, warped, confidence, self.model.preset.cell)
        return ((frames[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def remember(self, frames: np.ndarray) -> None:
        """Moves on to the next chunk; the newest frames are kept for sources that look at them."""
        self.history |= dict(enumerate(frames, self.start))
        self.index, self.start = self.index + 1, self.start + len(frames)
        oldest = self.start - HISTORY_CHUNKS * self.model.preset.chunk_frames(1)
        self.history = {i: frame for i, frame in self.history.items() if i >= oldest}


def stream(
    model: Model, image: np.ndarray, source: TrackSource, *, prompt: str | Callable[[], str] = "", seed: int = 0
) -> Iterator[Chunk]:
    """Video without end, chunk by chunk, from an image and tracks that need not exist yet.

    image: uint8 RGB [H, W, 3] at generation size (see `presets.fit_size`), which frame 0 reproduces. source: asked for
    a chunk's tracks when the chunk is due. prompt: text, or a function asked for it once a chunk. seed: any integer.

    Raises `InputError` if the image has another type, shape or size. Close the generator to free what it holds.
    """
    cell = model.preset.cell
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3]")
    if image.shape[0] % cell or image.shape[1] % cell or not image.size:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"image is {size}; width and height must be multiples of {cell}: resize it")
    return _chunks(model, image, source, prompt, seed)


def _chunks(model, image, source, prompt, seed) -> Iterator[Chunk]:
    state = _Stream(model, image, seed)
    while True:
        yield state.next_chunk(source, prompt() if callable(prompt) else prompt)
