"""What this machine can do: picks number format, picture size and attention kernel at start-up.

Decisions:
- bfloat16 is used where it is measured to be faster than float32: CPUs without its instructions are slower with it.
- A chunk of the smallest trained size is generated; its time is scaled up to the larger sizes. The largest one that
  keeps up with playback, with ALONE_HEADROOM to spare for web server, encoder and browser, is taken. Where none
  does, the smallest is, shown as sharp as HEADROOM leaves time for. Every stream tells anew how fast the machine is,
  for the next picture: it may have got other work.
- On a CPU freed memory is kept (`keep_memory`): getting it from the system anew took a sixth of a chunk's time.
- No more threads than a container may have cores (`keep_to_cores`): it often sees all of its host's.
- A GPU gets bfloat16 and the largest size: the models for it were trained at one.
- Attention on a GPU is FlashAttention 3 where the `kernels` package brings it (Hopper), else PyTorch's own with cuDNN.
  On a CPU in bfloat16, PyTorch's fused kernel takes 0.6 to twice the time of plain matrix products: it is measured.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from huggingface_hub.errors import HTTPError
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.checkpoint import Model
from motionstream.model.fp8 import use_fp8
from motionstream.model.packed import can_pack, pack
from motionstream.model.presets import Preset, fit_size, sharp_times
from motionstream.model.transformer import matmul_attention
from motionstream.model.wan_vae import WanVAE
from motionstream.streaming import Chunk, settled
from motionstream.video import fit_image

T = TypeVar("T")
Run = Callable[[np.ndarray, np.ndarray | None], Iterator[Chunk]]  # (image, sharp) as in `stream` -> its chunks

HEADROOM = 1.25  # generation must be this many times as fast as playback
ALONE_HEADROOM = 1.75  # the same where nothing else was at work while it was measured: a browser here takes a core
SEEN_HEADROOM = 1.1  # the same where server and encoder were, and it was too slow
COST_EXPONENT = 0.9  # a chunk's time grows with its pixels to this power at most (measured: 0.5 to 1.0)
SHOWN_EXPONENT = 0.7  # the time to make its frames sharp with theirs (measured: 0.4 to 0.7)
PROBE_ASPECT = (5, 3)
PROBE_SIDE = 512  # of the matrices and pictures of the format measurement
PROBE_SECONDS = 1.0  # a quarter of it for the format; what is under way at the end is still finished
PROBE_CHUNKS = 2  # measured at most
SETTLED_CHUNKS = 5  # of a visitor's stream that tell how fast the machine is
MAX_PROBE_TIMES = 4  # the picture of the size measurement is as sharp as any that is shown
HOPPER, ADA, AMPERE = (9, 0), (8, 9), (8, 0)  # compute capabilities
# Of malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: one heap for all threads, for blocks of up to 1 GiB.
MALLOC = {-8: 1, -3: 2**30, -1: 2**31 - 1}
MAX_GRAPHS = 64  # kept of a compiled block, two for each size of picture and text: PyTorch's own limit of 8 would raise
MAX_VAE_GRAPHS = 256  # the same of the VAE, some fifty for each; PyTorch keeps no more in all
MAX_CELLS = 4_096  # tokens per latent frame that `--resolution` may ask for


@dataclass(frozen=True)
class Choice:
    """What was picked. budget: tokens per latent frame, or None where `size` (width, height) in pixels is fixed.

    fps: frames generated per second that the measurement promises at this size; None where nothing was measured.
    times: how many times as large as generated frames are shown at most; None where that costs too little to matter.
    """

    budget: int | None
    size: tuple[int, int] | None = None
    fps: float | None = None
    times: int | None = None


def pick_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def tune(model: Model, compile: bool = False, fp8: bool = False) -> str:
    """Makes the transformer as fast as this machine can run it -> how it was tuned, in a few words.

    compile: a block is compiled when the cache is full, to read it and to write it, which takes a minute. fp8:
    linear layers in 8 bit. Both only if asked for, with `InputError` of a model that was loaded with low_memory.
    """
    if model.in_8_bits and (fp8 or compile):
        raise InputError("--low-memory widens 8-bit weights layer by layer: leave it out, or --compile and --fp8")
    if fp8 and model.device.type != "cuda":
        raise InputError("--fp8 is for GPUs: leave it out")
    if fp8 and (found := torch.cuda.get_device_capability(model.device)) < ADA:
        given, least = (".".join(map(str, capability)) for capability in (found, ADA))
        raise InputError(f"--fp8 needs a GPU of compute capability {least} (Ada) or more, this one has {given}: "
                         "leave it out")
    keep_to_cores()
    if model.device.type == "cpu":
        keep_memory()
    backend = _pick_attention(model)
    if not model.in_8_bits:  # such weights are widened layer by layer, by hooks that other layers would not have
        model.transformer.fuse_projections()
        if model.device.type == "cpu" and can_pack(model.dtype) and not compile:
            pack(model.transformer)
    if fp8:
        use_fp8(model.transformer)
    if compile:
        model.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, recompile_limit=MAX_GRAPHS)
        if isinstance(model.vae, WanVAE) and model.tiny_vae is None:
            model.vae.compile_blocks(recompile_limit=MAX_VAE_GRAPHS)
    return ", ".join([f"attention {backend}"] + ["fp8"] * fp8 + ["compiled"] * compile)


def keep_to_cores() -> None:
    """Lets PyTorch use no more threads than this process may have cores, by its affinity and its container's quota.

    Where 16 are seen, say, and 2 may be used, all threads stop once that time is used up, until the next tenth of a
    second.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cv2.getNumberOfCPUs()))


def keep_memory() -> None:
    """Lets this process keep what it frees, for its next pictures, where the C library can be told so (glibc).

    By default glibc takes every block of more than a few MB from the system page by page, and gives it back at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in MALLOC.items() if mallopt else ():
        mallopt(option, value)


def _pick_attention(model: Model) -> str:
    if model.dtype == torch.float32:
        return "native"
    if model.device.type != "cuda":
        fastest = _fastest({"by matrix products": _attend(matmul_attention), "native": _attend(dispatch_attention_fn)})
        for block in model.transformer.blocks if fastest == "native" else ():
            for attn in (block.attn1, block.attn2):  # `set_attention_backend` would warn of experiments
                attn.processor._attention_backend = "native"
        return fastest
    capability = torch.cuda.get_device_capability(model.device)
    if capability[0] == HOPPER[0] and importlib.util.find_spec("kernels"):
        try:  # it is downloaded: no network, or no build for this PyTorch, is no reason to stop
            model.transformer.set_attention_backend("_flash_3_hub")
            return "FlashAttention 3"
        except (HTTPError, ImportError, OSError, RuntimeError, ValueError):
            model.transformer.reset_attention_backend()
    if capability < AMPERE:
        return "native"
    model.transformer.set_attention_backend("_native_cudnn")
    return "cuDNN"


def pick_dtype(device: str) -> torch.dtype:
    """bfloat16 or float32, whichever this device multiplies and convolves faster."""
    if device != "cpu":
        return torch.bfloat16
    return _fastest({dtype: _probe(dtype) for dtype in (torch.float32, torch.bfloat16)})


def _fastest(probes: Mapping[T, Callable[[], None]]) -> T:
    """Which of these takes least time on one thread.

    They take turns, and the best times count: another process's burst of work must not decide.
    """
    best = dict.fromkeys(probes, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for probe in probes.values():
            probe()  # sets up kernels
        end = time.perf_counter() + PROBE_SECONDS / 4
        while float("inf") in best.values() or time.perf_counter() < end:
            for name, probe in probes.items():
                start = time.perf_counter()
                probe()
                best[name] = min(best[name], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(best, key=best.get)


@dataclass(frozen=True)
class Cost:
    """Seconds that a frame takes here, for each pixel to a power: COST_EXPONENT to generate, SHOWN_EXPONENT to show."""

    generated: float
    shown: float

    @classmethod
    def of(cls, image: np.ndarray, sharp: np.ndarray | None, seconds: tuple[float, float]) -> Cost:
        """From the seconds that a frame took, to generate and to show, of a stream from `image` and `sharp`."""
        generated, shown = math.prod(image.shape[:2]), math.prod(shown_size(image, sharp))
        return cls(seconds[0] / generated**COST_EXPONENT, seconds[1] / shown**SHOWN_EXPONENT)

    def fps(self, preset: Preset, budget: int, times: int | None = None) -> float:
        """Frames a second at one of the preset's sizes, shown at most so many times as large."""
        width, height = fit_size(preset, *PROBE_ASPECT, budget)
        full = sharp_times(preset, width, height, *(MAX_PROBE_TIMES * side for side in (width, height)))
        generated, shown = width * height, width * height * min(full, times or full) ** 2
        return 1 / (self.generated * generated**COST_EXPONENT + self.shown * shown**SHOWN_EXPONENT)

    def best(self, preset: Preset, headroom: float) -> Choice:
        """The largest trained size that is so many times as fast as playback, or the smallest.

        That is shown as sharp as HEADROOM leaves time for: less would be seen at once, and saves little.
        """
        smallest = min(preset.budgets)
        rows = [(budget, None) for budget in sorted(preset.budgets, reverse=True)]
        rows += [(smallest, times) for times in range(MAX_PROBE_TIMES, 0, -1)]
        choices = [Choice(budget, fps=self.fps(preset, budget, times), times=times) for budget, times in rows]
        needed = {budget: headroom for budget in preset.budgets} | {smallest: min(headroom, HEADROOM)}
        return next((choice for choice in choices if choice.fps >= needed[choice.budget] * preset.fps), choices[-1])


def pick_size(preset: Preset, run: Run) -> Choice:
    """The size at which this machine's CPU plays `preset` in real time, see `Cost.best`."""
    smallest = fit_size(preset, *PROBE_ASPECT, min(preset.budgets))
    picture = _ramp(*(MAX_PROBE_TIMES * side for side in smallest))
    image, sharp = fit_pictures(preset, Choice(None, smallest), picture)
    return Cost.of(image, sharp, _fastest_frame(run(image, sharp), 1)).best(preset, ALONE_HEADROOM)


def time_size(preset: Preset, choice: Choice, run: Run) -> Choice:
    """`choice` with the pace of a stream whose chunks all cost the same by now. On a GPU it also warms up."""
    width, height = size_for(preset, choice, *PROBE_ASPECT)
    pictures = fit_pictures(preset, choice, _ramp(MAX_PROBE_TIMES * width, MAX_PROBE_TIMES * height))
    return replace(choice, fps=1 / sum(_fastest_frame(run(*pictures), settled(preset))))


def pick_again(
    preset: Preset, choice: Choice, image: np.ndarray, sharp: np.ndarray | None, spent: Sequence[tuple[float, float]]
) -> Choice:
    """What to pick after a stream from `image` and `sharp`: less if `choice` did not keep up, more if there was time.

    spent: `frame_seconds` of its chunks; too few tell nothing. A choice that was not measured stays.
    """
    if choice.fps is None or len(spent) < SETTLED_CHUNKS:
        return choice
    cost = Cost.of(image, sharp, tuple(np.median(spent, axis=0).tolist()))
    now, more = cost.fps(preset, choice.budget, choice.times), cost.best(preset, HEADROOM)
    if (more.budget, more.times or MAX_PROBE_TIMES) > (choice.budget, choice.times or MAX_PROBE_TIMES):
        return more
    return replace(choice, fps=now) if now >= preset.fps else cost.best(preset, SEEN_HEADROOM)


def parse_resolution(text: str | None, preset: Preset) -> Choice:
    """ "240" (tokens per latent frame, shape follows the picture) or "320x192" (pixels, pictures are cropped to it).

    None: the preset's most tokens.
    """
    if text is None:
        return Choice(max(preset.budgets))
    if re.fullmatch(r"\d{1,6}", text) and 1 <= int(text) <= MAX_CELLS:
        return Choice(int(text))
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text):
        width, height = size = int(match[1]), int(match[2])
        if width % preset.cell or height % preset.cell or not width or not height:
            raise InputError(f"resolution {text}: both sides must be multiples of {preset.cell} pixels, above 0")
        if width * height // preset.cell**2 <= MAX_CELLS:
            return Choice(None, size)
    raise InputError(
        f"resolution {text!r} is neither a budget of 1 to {MAX_CELLS} tokens, such as {max(preset.budgets)}, nor "
        f"WIDTHxHEIGHT in pixels of at most that many {preset.cell}x{preset.cell} tokens"
    )


def fit_pictures(preset: Preset, choice: Choice, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What `stream` takes of a picture, uint8 [H, W, 3]: at generation size, and sharper where it is shown so."""
    width, height = size_for(preset, choice, picture.shape[1], picture.shape[0])
    times = sharp_times(preset, width, height, picture.shape[1], picture.shape[0])
    times = min(times, choice.times or times)
    sharp = fit_image(picture, times * width, times * height) if times > 1 else None
    return fit_image(picture, width, height), sharp


def shown_size(image: np.ndarray, sharp: np.ndarray | None) -> tuple[int, int]:
    """(width, height) of the frames of a stream that starts from these, see `stream`."""
    return (image if sharp is None else sharp).shape[1::-1]


def size_for(preset: Preset, choice: Choice, width: int, height: int) -> tuple[int, int]:
    """The size (width, height) at which a picture of the given size is generated."""
    return choice.size or fit_size(preset, width, height, choice.budget)


def _probe(dtype: torch.dtype) -> Callable[[], None]:
    """A matrix product and a convolution, of the sizes that the embedded student has."""
    matrix = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype)
    picture = torch.ones(1, 32, PROBE_SIDE // 4, PROBE_SIDE // 4, dtype=dtype)
    kernel = torch.ones(32, 32, 3, 3, dtype=dtype)

    def work() -> None:
        with torch.inference_mode():
            matrix @ matrix
            torch.nn.functional.conv2d(picture, kernel)

    return work


def _attend(attention: Callable[..., Tensor]) -> Callable[[], None]:
    """Attention of a chunk of the embedded student to itself and two chunks of the cache."""
    query, key = (torch.ones(1, tokens, 4, 64, dtype=torch.bfloat16) for tokens in (PROBE_SIDE, 3 * PROBE_SIDE))

    def work() -> None:
        with torch.inference_mode():
            attention(query, key, key)

    return work


def _ramp(width: int, height: int) -> np.ndarray:
    return np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)


def frame_seconds(chunk: Chunk) -> tuple[float, float]:
    """Seconds a frame of this chunk: to generate with its tracks, taken to grow with the size, and to make it sharp."""
    total, shown = (chunk.timings.get(stage, 0.0) / len(chunk.frames) for stage in ("total", "sharpen"))
    return total - shown, shown


def _fastest_frame(chunks: Iterator[Chunk], first: int) -> tuple[float, float]:
    """`frame_seconds` of the fastest of some chunks of a new stream, after its `first` ones: they set things up."""
    with closing(chunks):
        for _ in range(first):
            next(chunks)
        start = time.perf_counter()
        spent = []
        while not spent or len(spent) < PROBE_CHUNKS and time.perf_counter() - start < PROBE_SECONDS:
            spent.append(frame_seconds(next(chunks)))
    return min(spent, key=sum)
