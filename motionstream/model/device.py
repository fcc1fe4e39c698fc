"""Between the CPU and a GPU: copies that nobody waits for, visits of large encoders, how much memory a stream needs.

A copy from pinned memory is put in the GPU's queue like any other work; one from ordinary memory stops the program
until it is done. On the CPU all of this is nothing.
"""

import contextlib
import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from motionstream.errors import InputError
from motionstream.model.presets import Preset

ROOM = 1.2  # GPU memory that must be free for a visitor, in sizes of it
GIB = 2**30
FULL_DECODER_CHANNELS = 5 * 96  # numbers per pixel that are alive at once while a VAE decodes, full and tiny
TINY_DECODER_CHANNELS = 5 * 64
CONTEXT_TOKENS = 512 + 257  # of text and image


def on_zero_gpu() -> bool:
    """Whether this process runs on a Space whose GPU is lent to it call by call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def gpu_at_hand() -> bool:
    """Whether work can go to a GPU now. Where GPUs are lent PyTorch says so always; one that is has been set up."""
    return torch.cuda.is_available() and (torch.cuda.is_initialized() or not on_zero_gpu())


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name; `InputError` if it is none, or is not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device is called {str(name)!r}: it is cpu, cuda, or cuda:1 for the second GPU") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"no CUDA device here: PyTorch sees {count}, {name} was asked for; use the device cpu")
    return device


@contextlib.contextmanager
def holding_weights(device: torch.device | str, low_memory: bool = False) -> Iterator[None]:
    """Work inside the block puts a model's weights on `device`; `InputError` if they do not fit.

    low_memory: whether the transformer's are in 8 bits already.
    """
    room = free_bytes(torch.device(device))
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = "--low-memory (of the app, generate and bench), which halves the transformer's"
        remedy = "a smaller model" if low_memory else half
        raise InputError(f"the model's weights do not fit into the {room / GIB:.1f} GiB that are free on the GPU: free "
                         f"some, or use {remedy}") from error


def upload(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`, without waiting for the copy."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the CPU's memory: `wait` for it once the work in between is under way."""

    def __init__(self, x: Tensor):
        self._host, self._arrived = x, None
        if x.device.type == "cuda":
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


@contextlib.contextmanager
def own_precision(weight: Tensor, x: Tensor) -> Iterator[Tensor]:
    """`x` as a network with such a weight takes it: without autocast, unless the weight is in float32.

    Autocast on a GPU sends every norm and every enlargement of a network in reduced precision through float32.
    """
    mixed = weight.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, torch.get_autocast_dtype(x.device.type), enabled=mixed):
        yield x if mixed else x.to(weight.dtype)


@contextlib.contextmanager
def beside(stream: "torch.cuda.Stream | None") -> Iterator[None]:
    """Work inside the block runs on `stream`, after what was asked for before it and beside what comes after it."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield


@contextlib.contextmanager
def visiting(part: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """`part` on `device` while the block runs, if it is one that visits and there is room; else where it is."""
    home = next(part.parameters(), torch.empty(0)).device
    weights = [(weight, weight.data) for weight in part.parameters()]
    size = sum(weight.nbytes for weight, _ in weights)
    if home == device or not getattr(part, "visits", False) or free_bytes(device) < ROOM * size:
        yield part
        return
    try:
        part.to(device)  # there may be less room than was thought: what has moved by then moves back as well
        yield part
    finally:
        for weight, at_home in weights:  # nothing has changed: no need to copy it back
            weight.data = at_home
        part.to(home)


def free_bytes(device: torch.device) -> float:
    """GPU memory that can still be had, with what PyTorch has kept of freed tensors; unlimited elsewhere."""
    if device.type != "cuda":
        return math.inf
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def weight_bytes(*parts: nn.Module) -> int:
    """Memory that the parts' weights and buffers take on a GPU; visitors take none."""
    resident = [part for part in parts if not getattr(part, "visits", False)]
    return sum(x.nbytes for part in resident for x in (*part.parameters(), *part.buffers()))


def stream_bytes(preset: Preset, width: int, height: int, tiny: bool, latents_at_once: int | None = None) -> int:
    """About how much a stream of this size takes beside the weights, in 16 bit: cache, context, one pass, decoding."""
    network, chunks = preset.transformer, preset.sink + preset.window
    dim = network["num_attention_heads"] * network["attention_head_dim"]
    tokens = preset.chunk_size * width * height // preset.cell**2
    cache = network["num_layers"] * dim * (2 * (chunks + 1) + preset.window) * tokens
    context = network["num_layers"] * dim * 2 * CONTEXT_TOKENS
    one_pass = tokens * (2 * network["ffn_dim"] + 12 * dim)
    frames = preset.temporal_stride * (preset.chunk_size if tiny else latents_at_once or preset.chunk_size)
    decoding = frames * width * height * (TINY_DECODER_CHANNELS if tiny else FULL_DECODER_CHANNELS)
    decoding //= (preset.spatial_stride // 8) ** 2  # a VAE of stride 16 works on packed pixels
    return 2 * (cache + context + one_pass + decoding)
