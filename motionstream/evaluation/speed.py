"""How fast a model streams: a drag that never rests drives it, and the clock is read after every chunk.

    python -m motionstream bench --chunks 40 --json
    python -m motionstream bench --model wan2.1-1.3b --random-weights --device cuda --vae tiny --compile

The figures are those of the generator alone: no browser, no network, no MP4; what JPEG encoding takes on its own thread
is told beside them. `utilisation` relates the arithmetic of a chunk to what the same machine reaches on plain matrix
products in the same minute, so it can be compared across machines where frames per second can't; `denoise_utilisation`
is that of the denoising passes alone.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from motionstream.errors import InputError
from motionstream.evaluation.sheets import table
from motionstream.machine import fit_pictures, parse_resolution, shown_size, tune
from motionstream.model.checkpoint import Model, load_model, random_model
from motionstream.model.device import weight_bytes
from motionstream.model.presets import PRESETS
from motionstream.streaming import settled, stream
from motionstream.tracks import ChunkRequest, Tracks

STAGES = ("control", "condition", "denoise", "decode", "copy", "sharpen", "cache")
ASPECT = (832, 480)
FIFTHS = 5
JPEG_QUALITY = 88  # of the canvas's frames
MIB = 2**20 if sys.platform == "darwin" else 2**10  # in the unit in which this system counts resident memory


class MovingDrag:
    """A `TrackSource`: a rigid 3x3 grid goes round the middle of the frame every 4 s, and a pin stays in a corner."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        seconds = (request.start + np.arange(request.frames)) / request.fps
        angle = seconds * 2 * np.pi / 4
        size = np.array([request.width, request.height])
        path = size / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * size.min() / 5
        pin = np.repeat(size[None] / 8, request.frames, axis=0)
        grid = Tracks.rigid_grid(path, size.min() / 16, 3, np.arange(1, 10))
        return Tracks.concatenate([grid, Tracks.rigid_grid(pin, 0, 1, np.array([0]))])


@dataclass(frozen=True)
class Timing:
    """seconds: wall clock of every timed chunk; stages: medians over the steady chunks, s; latency: from asking for a
    chunk's control to its pixels, median, s; jpeg: encoding one chunk's frames, s; frames: frames of a steady chunk;
    steady: index of the first of these, see `settled`; flops: floating-point operations of a steady chunk;
    denoise_flops: those of its denoising passes; rss, gpu: peaks of memory, MiB; ageing: a chunk at the end over one
    at the start."""

    seconds: np.ndarray
    stages: dict[str, float]
    latency: float
    jpeg: float
    frames: int
    steady: int
    flops: int
    denoise_flops: int
    rss: float
    gpu: float
    ageing: float


def bench(model: str = "embedded", chunks: int = 40, random_weights: bool = False, device: str = "cpu",
          dtype: torch.dtype | None = None, resolution: str | None = None, *, vae: str | None = None,
          compile: bool = False, fp8: bool = False, low_memory: bool = False) -> dict[str, float | int | str]:
    """Streams `chunks` chunks, prints where the time went, and returns the figures.

    model: name or folder, with `random_weights` the name of a preset; dtype: None for the model's own; resolution: see
    `parse_resolution`, None for the preset's largest budget; vae, low_memory: see `load_model`; compile, fp8: see
    `machine.tune`. Raises `InputError` on too few chunks and a resolution that is none. Returned: fps (generated,
    steady chunks), first_chunk_s (from the call to the first frames), latency_s (from asking for a chunk's control to
    its pixels), chunk_s_median, chunk_s_p95, chunk_s_last_over_first (medians of the last and the first fifth of the
    steady chunks; on a CPU see `compare_ages`), peak_rss_mb (of this process so far, MiB), gpu_peak_mb (0 on the CPU),
    weights_mb (on the device), flops_per_chunk, peak_tflops (of plain matrix products), utilisation and
    denoise_utilisation [0, 1], jpeg_s, and model, device, dtype, tuned, vae, width, height, shown (size of the frames),
    params_m (millions, all parts).
    """
    if random_weights and model not in PRESETS:
        raise InputError(f"no preset is called {model!r}; random weights need one of {', '.join(PRESETS)}")
    options = {"vae": vae, "low_memory": low_memory}
    if random_weights:
        loaded = random_model(PRESETS[model], 0, device, dtype, **options)
    else:
        loaded = load_model(model, device, dtype, **options)
    return bench_model(loaded, model, chunks, resolution, tune(loaded, compile, fp8))


def bench_model(
    model: Model, name: str, chunks: int, resolution: str | None = None, tuned: str = "as it is"
) -> dict[str, float | int | str]:
    """`bench` for a model that is loaded already."""
    preset = model.preset
    choice = parse_resolution(resolution, preset)
    peak = matmul_peak(model.device, model.dtype)
    image, sharp = fit_pictures(preset, choice, _picture())
    timing = measure(model, image, sharp, chunks)
    peak = max(peak, matmul_peak(model.device, model.dtype))  # whichever moment the machine was less busy
    on_gpu = model.device.type == "cuda"
    figures = {
        "model": name,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tuned": tuned,
        "vae": type(model.decoder).__name__,
        "width": image.shape[1],
        "height": image.shape[0],
        "shown": "x".join(map(str, shown_size(image, sharp))),
        "params_m": count_parameters(model) / 1e6,
        **_speed(timing),
        "peak_rss_mb": timing.rss,
        "gpu_peak_mb": timing.gpu,
        "weights_mb": weight_bytes(*model.components().values()) / 2**20,
        "flops_per_chunk": timing.flops,
        "peak_tflops": peak / 1e12,
        "utilisation": timing.flops / float(np.median(timing.seconds[timing.steady :])) / peak,
        "denoise_utilisation": timing.denoise_flops / timing.stages["denoise"] / peak,
    }
    print(report(figures, timing.stages))
    return figures


def _speed(timing: Timing) -> dict[str, float]:
    steady = timing.seconds[timing.steady :]
    return {
        "fps": timing.frames * len(steady) / float(steady.sum()),
        "first_chunk_s": float(timing.seconds[0]),
        "latency_s": timing.latency,
        "chunk_s_median": float(np.median(steady)),
        "chunk_s_p95": float(np.percentile(steady, 95)),
        "chunk_s_last_over_first": timing.ageing,
        "jpeg_s": timing.jpeg,
    }


def report(figures: dict, stages: dict[str, float]) -> str:
    """The figures, one a line, and the split of a steady chunk over its stages, as text."""
    total = figures["chunk_s_median"]
    split = {name: {"ms": 1e3 * seconds, "share": seconds / total} for name, seconds in stages.items()}
    width = max(map(len, figures))
    lines = [f"{key:<{width}}  {value:.4g}" if isinstance(value, float) else f"{key:<{width}}  {value}"
             for key, value in figures.items()]
    return "\n".join([*lines, "", table(split)])


def measure(model: Model, image: np.ndarray, sharp: np.ndarray | None, chunks: int) -> Timing:
    """Streams `chunks` chunks from `image` under the clock, then one more of which the operations are counted.

    sharp: see `stream`.
    """
    steady, on_cpu = settled(model.preset), model.device.type == "cpu"
    if chunks < steady + FIFTHS:
        raise InputError(f"{chunks} chunks are too few; this model needs {steady + FIFTHS} or more: "
                         f"all cost the same after {steady}, and {FIFTHS} are compared")
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    seconds, stages = [], []
    begin_stream = partial(stream, model, image, MovingDrag(), seed=0, sharp=sharp)
    with contextlib.closing(begin_stream()) as chunk_stream:
        for _ in range(chunks):
            begin = time.perf_counter()
            chunk = next(chunk_stream)
            seconds.append(time.perf_counter() - begin)
            stages.append([chunk.timings[stage] for stage in STAGES] + [chunk.timings["total"]])
        begin = time.perf_counter()
        for frame in chunk.frames:
            cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        encoding = time.perf_counter() - begin
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
        gpu = 0.0 if on_cpu else torch.cuda.max_memory_allocated(model.device) / 2**20
        fifth = (chunks - steady) // FIFTHS
        if on_cpu:
            with contextlib.closing(begin_stream()) as young:
                ageing = compare_ages(chunk_stream, young, steady, fifth)
        else:  # nobody else uses it, and it may not hold two streams
            ageing = float(np.median(seconds[-fifth:]) / np.median(seconds[steady : steady + fifth]))
        flops, denoising = count_flops(chunk_stream, model.transformer, model.preset.steps)
    *medians, total = np.median(stages[steady:], axis=0).tolist()
    timed = dict(zip(STAGES, medians, strict=True))
    latency = total - timed["cache"] if on_cpu else total  # on a CPU the chunk before is written first
    fixed = len(chunk.frames), steady, flops, denoising, rss, gpu, ageing
    return Timing(np.array(seconds), timed, latency, encoding, *fixed)


def compare_ages(old: Iterator, young: Iterator, steady: int, chunks: int) -> float:
    """What a chunk of an old stream takes over one of a new stream, median of `chunks` pairs.

    They take turns, because a machine that others use gets slower and faster by more than the difference looked for.
    The new one first fills its cache, with `steady` chunks.
    """
    for _ in range(steady):
        next(young)
    ratios = []
    for _ in range(chunks):
        begin = time.perf_counter()
        next(young)
        middle = time.perf_counter()
        next(old)
        ratios.append((time.perf_counter() - middle) / (middle - begin))
    return float(np.median(ratios))


def count_flops(chunk_stream, network: torch.nn.Module, steps: int) -> tuple[int, int]:
    """Operations of the stream's next chunk, all and those of `network` in the chunk's `steps` denoising passes: matrix
    products, convolutions, attention. The network's other pass, which writes the cache, needs little of the last block.

    2 per multiply-add. Compiled code and attention kernels from elsewhere cannot be looked into; that chunk does
    without them.
    """

    def attention(query, key, value, *args, out_val=None, **kwargs) -> int:
        return sdpa_flop(query, key, value)

    def packed(rows, weight, *args, **kwargs) -> int:
        return 2 * math.prod(rows) * weight[0]

    processors = [module.processor for module in network.modules() if hasattr(module, "processor")]
    backends = [processor._attention_backend for processor in processors]
    for processor, backend in zip(processors, backends, strict=True):
        processor._attention_backend = backend and "native"
    # The CPU's own kernels are missing from the counter's table.
    own = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.mkldnn._linear_pointwise: packed,
    }
    try:
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=own) as counter:
            next(chunk_stream)
    finally:
        for processor, backend in zip(processors, backends, strict=True):
            processor._attention_backend = backend
    name, layers = type(network).__name__, len(network.blocks)
    parts = name, f"{name}.blocks.0", f"{name}.blocks.{layers - 1}"
    whole, first, last = (sum(counter.get_flop_counts()[part].values()) for part in parts)
    denoising = whole * layers * steps / ((layers - 1 + last / first) * (steps + 1))
    return int(counter.get_total_flops()), int(denoising)


def matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square matrix product (1024, 2048, and on a GPU 8192) within about `seconds`."""
    on_gpu = torch.device(device).type == "cuda"
    best = 0.0
    for size in (1024, 2048, 8192)[: 3 if on_gpu else 2]:
        a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            begin = time.perf_counter()
            a @ b
            if on_gpu:
                torch.cuda.synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def count_parameters(model: Model) -> int:
    """Numbers in all parts of the model."""
    return sum(weights.numel() for part in model.components().values() for weights in part.parameters())


def _picture() -> np.ndarray:
    """A smooth colourful picture, uint8 [H, W, 3]: speed doesn't depend on what it shows."""
    y, x = np.mgrid[: ASPECT[1], : ASPECT[0]] / 80
    return (127 + 120 * np.stack([np.sin(x), np.sin(y + x), np.cos(y)], axis=-1)).astype(np.uint8)
