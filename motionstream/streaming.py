"""The generator of endless video: what the paper's section 3.2 calls inference, and training's roll-out as well.

Chunk by chunk: ask for the chunk's tracks, denoise it in a few steps while it attends to the rolling cache, decode it,
and run the network once more at t = 0 on the clean chunk to write the cache:

    for chunk in stream(model, image, source, prompt="fog", seed=0):    # endless; close it when you have enough
        show(chunk.frames)

Decisions:
- Nothing runs while nobody calls `next`; pausing is not calling it, and closing the generator frees everything.
- Noise comes from the seed and the chunk's number alone, so a stream cut anywhere and run again gives the same pixels.
- The cache is written after the chunk has been handed over: its pixels need not wait for that pass. On a GPU it is
  written while the chunk is decoded, on a stream of its own: that pass has to come before the next chunk's first step,
  and asking for controls any earlier, to begin that step too, would make them old.
- Nothing inside a chunk waits for a GPU: what goes there is pinned, stages are timed by events, and the one wait is for
  the finished pixels.
- Everything up to `stream` is a pure function of tensors, with a batch dimension and gradients, for training to use.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.cache import RollingCache
from motionstream.model.checkpoint import Model
from motionstream.model.composite import Light, Sharp, composite, fade, find_light, sharpened
from motionstream.model.device import GIB, Download, beside, free_bytes, stream_bytes, upload, visiting
from motionstream.model.presets import Preset, fit_size
from motionstream.model.prior_state import Moved
from motionstream.model.text import FALLING
from motionstream.model.track_head import pack_time, track_map
from motionstream.model.transformer import Context, MotionTransformer
from motionstream.model.vae import Stream as DecoderStream
from motionstream.tracks import ChunkRequest, Tracks, TrackSource

TIMESTEPS = 1000  # the network counts t in [0, 1] in thousandths
HISTORY_CHUNKS = 4
PROMPTS = 16  # that are remembered as read, at the most
BLANK_LATENTS = 30  # until Wan's encoder, which sees 112 frames back, has forgotten the picture before the blank ones


def settled(preset: Preset) -> int:
    """Index of the first chunk that costs what every later one does.

    The cache is full, what is compiled for a full one, to read and to write it, has been, and blank frames are known.
    """
    full = preset.sink + preset.window + 2
    return max(full, blank_chunks(preset)) if preset.image_conditioning == "channel_concat" else full


def blank_chunks(preset: Preset) -> int:
    """Index of the first chunk beside which blank frames look as they do beside every later one."""
    return math.ceil(BLANK_LATENTS / preset.chunk_size)


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
    if prediction == "velocity":
        x0 = z - t.view(len(z), 1, -1, 1, 1) * out
    else:
        x0 = out if condition.prior is None else condition.prior + out
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


def quantised(frames: Tensor) -> Tensor:
    """Frames [T, 3, H, W] in [-1, 1] -> uint8 [T, H, W, 3]."""
    return (127.5 * (frames + 1)).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def chunk_noise(seed: int, index: int, shape: tuple[int, ...], device: torch.device) -> Callable[[], Tensor]:
    """A source of standard normals that depends on the seed and the chunk's number only, the same on every device."""
    state = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    return lambda: upload(torch.randn(shape, generator=generator), device)


@dataclass(frozen=True)
class Chunk:
    """Frames generated together.

    index: 0, 1, ...; start: stream index of the first frame; frames: uint8 RGB [n, H, W, 3], or larger (see `stream`),
    9 for chunk 0 (frame 0 is the image), 12 afterwards; tracks: those that drove it; timings: seconds spent on
    "control" (asking the source), "condition", "denoise", "decode", "copy" (of pixels, to the CPU's memory), "sharpen",
    "cache" (writing the chunk before this one; on a GPU before the "total" begins, beside that chunk's decoding) and in
    "total".
    """

    index: int
    start: int
    frames: np.ndarray
    tracks: Tracks
    timings: dict[str, float]


class _Clock:
    """Seconds per stage. On a GPU its own events say when a stage began and ended; they are read when all is done."""

    def __init__(self, device: torch.device):
        self.device, self.on_gpu, self.begun = device, device.type == "cuda", 0.0
        self.spans: dict[str, tuple] = {}

    @contextlib.contextmanager
    def stage(self, name: str, on_gpu: bool = True) -> Iterator[None]:
        """on_gpu: whether a GPU, if there is one, does the stage's work."""
        begin = self._mark(on_gpu)
        yield
        self.spans[name] = begin, self._mark(on_gpu)

    def _mark(self, on_gpu: bool):
        if not (self.on_gpu and on_gpu):
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def timings(self) -> dict[str, float]:
        """Once the pixels have arrived; `total` is counted from `begun`."""
        total = time.perf_counter() - self.begun
        return {"cache": 0.0} | {name: _seconds(*span) for name, span in self.spans.items()} | {"total": total}


def _seconds(begin, end) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()  # the pixels may have arrived a moment before the event that follows them
    return begin.elapsed_time(end) / 1e3


@contextlib.contextmanager
def inference(model: Model) -> Iterator[None]:
    """No gradients, the model's dtype for whatever may run in it, and no other stream of the model meanwhile."""
    reduced = model.dtype != torch.float32
    autocast = torch.autocast(model.device.type, model.dtype if reduced else None, enabled=reduced)
    with model.turn, torch.inference_mode(), autocast:
        yield


class _Stream:
    """All that one stream remembers between chunks; `next_chunk` is the algorithm, the other methods its stages."""

    def __init__(self, model: Model, image: np.ndarray, seed: int, sharp: np.ndarray | None = None):
        preset = model.preset
        height, width = (side // preset.spatial_stride for side in image.shape[:2])
        self.model, self.seed, self.index, self.start = model, seed, 0, 0
        self.shape = (1, preset.latent_channels, preset.chunk_size, height, width)
        self.sharp = Sharp(image if sharp is None else sharp) if preset.composite else None
        self.history = {0: image}
        self.clean: tuple[Tensor, Condition] | None = None  # the newest chunk, not yet in the cache
        self.prompt: str | None = None
        self.light: Light | None = None  # of the newest frame; None: the picture's own
        self.shown_in: Light | None = None  # the same for each frame of the newest chunk
        self.dry: DecoderStream | None = None  # of what would be had the student changed nothing, while something falls
        self.beside = model.beside if model.device.type == "cuda" else None
        self.clock = _Clock(model.device)
        with inference(model):
            self.picture = upload(torch.tensor(image), model.device).permute(2, 0, 1) / 127.5 - 1
            self.image_tokens = self.look()
            shown = None if sharp is None else torch.tensor(sharp).permute(2, 0, 1) / 127.5 - 1
            self.prior = model.motion_prior.start(self.picture, shown) if model.motion_prior else None
            self.encoder, self.prior_encoder = model.vae.encoder_stream(), model.vae.encoder_stream()
            self.decoder = model.decoder.decoder_stream()
            self.known, self.noise = self.encode_picture(0), self.draw(0)
            self.cache = model.transformer.new_cache(
                1, preset.chunk_size, height, width, sink=preset.sink, window=preset.window
            )

    def next_chunk(self, source: TrackSource, prompt: str) -> Chunk:
        clock = self.clock
        clock.begun = time.perf_counter()
        if self.beside is None:
            self.prepare(self.index)
        with clock.stage("control"):
            tracks = self.ask(source)
        with inference(self.model):
            with clock.stage("condition"):
                self.read(prompt)
                condition, moved = self.condition(tracks)
            with clock.stage("denoise"):
                x0 = self.denoise(condition)
            self.clean = x0, condition
            with beside(self.beside):
                with clock.stage("decode"):
                    decoded = self.decode(x0, condition, moved)
                with clock.stage("copy"):
                    pixels = Download(decoded if self.sharp is not None else quantised(decoded))
        self.clock = _Clock(self.model.device)
        if self.beside is not None:
            self.prepare(self.index + 1)
        found = pixels.wait()
        with clock.stage("sharpen", on_gpu=False):
            frames = found.numpy() if self.sharp is None else sharpened(found, moved, self.shown_in, self.sharp)
        chunk = Chunk(self.index, self.start, frames, tracks, clock.timings())
        larger = frames.shape[1:3] != self.picture.shape[1:]
        self.remember(quantised(found).numpy() if larger else frames)
        return chunk

    def prepare(self, index: int) -> None:
        """What chunk `index` needs of the chunks before it, and no pixels have to wait for."""
        with self.clock.stage("cache"), inference(self.model):
            if self.clean is not None:
                write_cache(self.model.transformer, *self.clean, self.context, self.cache)
                self.clean = None
            if index:
                self.known, self.noise = self.encode_picture(index), self.draw(index)

    def look(self) -> Tensor | None:
        """What the image encoder, if there is one, sees in the picture."""
        if self.model.image_encoder is None:
            return None
        with visiting(self.model.image_encoder, self.model.device) as encoder:
            return encoder.encode(self.picture).to(self.model.device)

    def draw(self, index: int) -> list[Tensor]:
        """Chunk `index`'s noise, one tensor a denoising step."""
        noise = chunk_noise(self.seed, index, self.shape, self.model.device)
        return [noise() for _ in range(self.model.preset.steps)]

    def encode_picture(self, index: int) -> Tensor | None:
        """Latents of the picture followed by blank frames, which "channel_concat" puts beside chunk `index`'s noise."""
        preset = self.model.preset
        if preset.image_conditioning != "channel_concat":
            return None
        if index >= blank_chunks(preset):
            self.encoder.reset()  # what it remembers is large, and not needed any more
            return self.known[:, :, -1:].expand_as(self.known)
        frames = self.picture.new_zeros(1, 3, preset.chunk_frames(index), *self.picture.shape[1:])
        if index == 0:
            frames[0, :, 0] = self.picture
        return self.encoder.step(frames)

    def ask(self, source: TrackSource) -> Tracks:
        """This chunk's tracks. Only now: the source is never asked about the future."""
        preset, (height, width) = self.model.preset, self.picture.shape[1:]
        frames = preset.chunk_frames(self.index)
        request = ChunkRequest(
            self.index, self.start, frames, width, height, preset.fps, MappingProxyType(self.history)
        )
        if self.prior is not None:
            request = replace(request, things=self.things)
        tracks = source.tracks_for(request)
        if tracks.T != frames:
            raise ValueError(f"{type(source).__name__} gave tracks of {tracks.T} frames; {frames} were asked for")
        return tracks

    def things(self, points: np.ndarray) -> np.ndarray:
        """See `ChunkRequest`."""
        with inference(self.model):
            return self.model.motion_prior.things_at(self.prior, points)

    def read(self, prompt: str) -> None:
        """Keys and values of the prompt, anew only when it has changed."""
        if prompt != self.prompt:
            texts = self.model.texts
            if prompt not in texts:
                with visiting(self.model.text_encoder, self.model.device) as encoder:
                    texts[prompt] = encoder.encode(prompt).to(self.model.device)
            self.prompt, self.context = prompt, self.model.transformer.encode_context(texts[prompt], self.image_tokens)
            if len(texts) > PROMPTS:
                del texts[next(iter(texts))]

    def condition(self, tracks: Tracks) -> tuple[Condition, Moved | None]:
        """The chunk's condition; with a motion prior also the moved picture."""
        model, preset, first = self.model, self.model.preset, self.index == 0
        height, width = self.picture.shape[1:]
        maps = track_map(tracks, width, height, preset.spatial_stride, preset.track_dim, model.device)
        image = prior = packed = clean = moved = None
        if self.known is not None:
            image = image_channels(self.known, preset.temporal_stride, first)
        if self.prior is not None:
            moved = model.motion_prior.step(self.prior, tracks).to(model.device)
            if self.sharp is not None and model.matte is not None:
                self.sharp.cut_out(moved, model.matte)
            prior = self.prior_encoder.step(moved.picture)
            packed = pack_confidence(moved.confidence, preset.spatial_stride, preset.temporal_stride, first)
        if first and preset.image_conditioning == "first_latent":
            clean = model.vae.encode(self.picture[None, :, None])
        return assemble_condition(model.track_head(maps[None], first), image, prior, packed, clean), moved

    def denoise(self, condition: Condition) -> Tensor:
        """A few steps from pure noise to the clean chunk."""
        preset, device = self.model.preset, self.model.device

        def predict(z: Tensor, t: float) -> Tensor:
            times = torch.full((1,), t, device=device)
            parts = (condition, self.context, self.cache)
            return predict_x0(self.model.transformer, z, times, *parts, prediction=preset.prediction)

        return sample(predict, iter(self.noise).__next__, sampling_timesteps(preset.steps, preset.shift))

    def decode(self, x0: Tensor, condition: Condition, moved: Moved | None) -> Tensor:
        """Frames [T, 3, H, W] in [-1, 1].

        Where a motion prior is confident, what the autoencoder loses of the moved picture is added back.
        """
        if not self.model.preset.composite:
            return self.decoder.step(x0)[0].float().transpose(0, 1)
        return self.composite(x0, condition.prior, moved)

    def composite(self, x0: Tensor, prior: Tensor, moved: Moved) -> Tensor:
        """`composite` in the light that the prompt asks for, to which the stream turns within a chunk."""
        warped, confidence, guessed = (x[0].transpose(0, 1) for x in (moved.picture, moved.confidence, moved.guessed))
        cell, newest = self.model.preset.cell, slice(-self.model.preset.temporal_stride, None)
        asked, before = self.model.text_encoder.effects(self.prompt), self.light
        if FALLING.isdisjoint(asked):
            self.dry = None
        elif self.dry is None:  # where nothing falls yet, nothing has been changed that it would have to know of
            self.dry = self.decoder.fork()
        decoded = self.decoder.step(x0)[0].float().transpose(0, 1)
        unchanged = self.dry and self.dry.step(prior)[0].float().transpose(0, 1)
        with torch.autocast(decoded.device.type, enabled=False):  # colours and their moments need all digits
            if not asked:
                self.light = None
            elif confidence[newest].any():  # else nothing tells: it stays
                self.light = find_light(decoded[newest], warped[newest], confidence[newest], cell)
            self.shown_in = fade(before, self.light, len(decoded))
            return composite(decoded, warped, confidence, cell, self.shown_in, unchanged, guessed)

    def remember(self, frames: np.ndarray) -> None:
        """Moves on to the next chunk; the newest frames are kept for sources that look at them."""
        self.history |= dict(enumerate(frames, self.start))
        self.index, self.start = self.index + 1, self.start + len(frames)
        oldest = self.start - HISTORY_CHUNKS * self.model.preset.chunk_frames(1)
        self.history = {i: frame for i, frame in self.history.items() if i >= oldest}


def stream(
    model: Model,
    image: np.ndarray,
    source: TrackSource,
    *,
    prompt: str | Callable[[], str] = "",
    seed: int = 0,
    sharp: np.ndarray | None = None,
) -> Iterator[Chunk]:
    """Video without end, chunk by chunk, from an image and tracks that need not exist yet.

    image: uint8 RGB [H, W, 3] at generation size (see `presets.fit_size`), which frame 0 reproduces. source: asked for
    a chunk's tracks when the chunk is due. prompt: text, or a function asked for it once a chunk. seed: any integer.
    sharp: the same image a whole number of times as large (see `machine.fit_pictures`), for a model with a composite:
    then frames come at its size, while tracks stay in pixels of `image`. None: as large as the image.

    Raises `InputError` if the image has another type, shape or size, or if the GPU has no room for the stream. Close
    the generator to free what it holds.
    """
    cell = model.preset.cell
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3]")
    if image.shape[0] % cell or image.shape[1] % cell or not image.size:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"image is {size}; width and height must be multiples of {cell}: resize it")
    if sharp is not None:
        _check_sharp(model, image, sharp)
    return _chunks(model, image, source, prompt, seed, sharp)


def _check_sharp(model: Model, image: np.ndarray, sharp: np.ndarray) -> None:
    if not model.preset.composite:
        raise InputError(f"{model.preset.name} shows what it generates: it takes no sharper copy of the image")
    times = sharp.shape[0] // image.shape[0]
    if sharp.dtype != np.uint8 or sharp.shape != (times * image.shape[0], times * image.shape[1], 3) or not times:
        given = f"{sharp.dtype} {list(sharp.shape)}"
        raise InputError(f"the sharper copy is {given}; it must be uint8 and a multiple of the image's {image.shape}")


def _chunks(model, image, source, prompt, seed, sharp) -> Iterator[Chunk]:
    def ask() -> str:
        return prompt() if callable(prompt) else prompt

    state = None
    while True:
        chunk = None
        with contextlib.suppress(torch.OutOfMemoryError):
            state = state or _Stream(model, image, seed, sharp)
            chunk = state.next_chunk(source, ask())
        if chunk is None:
            state = None  # what it held counts as free again
            raise InputError(_no_room(model, image.shape[1], image.shape[0]))
        yield chunk


def room_for_stream(model: Model, width: int, height: int) -> int:
    """About how many bytes a stream of this size takes beside the weights."""
    at_once = getattr(model.vae, "latents_at_once", None)
    return stream_bytes(model.preset, width, height, model.tiny_vae is not None, at_once)


def _no_room(model: Model, width: int, height: int) -> str:
    """What to say when a stream does not fit in the GPU's memory: what it needs and what would fit."""
    preset, room = model.preset, free_bytes(model.device)

    def needs(budget: int) -> int:
        return room_for_stream(model, *fit_size(preset, width, height, budget))

    needed = room_for_stream(model, width, height)
    text = f"no room for a stream of {width}x{height} on the GPU: it takes about {needed / GIB:.1f} GiB beside the "
    text += f"weights, and {room / GIB:.1f} GiB are left of the GPU's memory"
    smaller = (round(max(preset.budgets) * share) for share in (0.75, 0.5, 0.35, 0.25, 0.15))
    fits = next((budget for budget in smaller if needs(budget) < min(0.9 * room, needed)), None)
    remedies = [] if fits is None else [f"--resolution {fits} would fit"]
    remedies += ["a tiny VAE needs less"] if preset.tiny_vae and not model.tiny_vae else []
    half = "--low-memory (of the app, generate and bench) halves the weights"
    remedies += ["a smaller model needs less" if model.in_8_bits else half]
    return f"{text}: {', '.join(remedies)}"
