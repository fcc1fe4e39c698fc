"""Speed and memory of the full-size students on this machine's GPU, with random weights: nothing is downloaded.

    python -m benchmarks.gpu [--minutes 25] [--chunks 30] [--write benchmarks/results/NAME.md]

Every setting of `RUNS` for both models, each in a process of its own, so that its peak memory is; those that no longer
fit into the time are left out and named. The table is written anew after every run, so that one cut short leaves what
it has measured; without any figure an older table stays. Ends with one JSON line. On a machine without a GPU it says so
and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from motionstream.evaluation.sheets import table

MODELS = {"wan2.1-1.3b": "832x480", "wan2.2-5b": "1280x704"}  # at the sizes of the paper
RUNS = (  # the most telling first
    ("--vae", "tiny", "--compile"),
    ("--vae", "tiny", "--compile", "--fp8"),
    ("--vae", "tiny", "--low-memory"),
    ("--vae", "full", "--compile"),
    ("--vae", "full", "--compile", "--fp8"),
    ("--vae", "tiny"),
)
COLUMNS = ("fps", "latency_s", "chunk_s_median", "chunk_s_p95", "chunk_s_last_over_first", "first_chunk_s",
           "gpu_peak_mb", "weights_mb", "peak_tflops", "utilisation", "denoise_utilisation", "jpeg_s")
RUN_MINUTES = 5.0  # longer than any of them should take


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--write", type=Path, help="default: benchmarks/results/ and the GPU's name")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: this machine has no GPU that PyTorch can use", file=sys.stderr)
        return 2
    end, results, left_out = time.monotonic() + 60 * args.minutes, {}, []
    path = args.write or Path(__file__).parent / "results" / f"{_gpu().lower().replace(' ', '-')}.md"
    for options in RUNS:
        for model in args.models:
            name = " ".join([model, *options])
            if end - time.monotonic() < 30:
                left_out.append(f"{name}: no time left")
                continue
            figures, log = _run(model, options, args, min(60 * RUN_MINUTES, end - time.monotonic()))
            print(f"== {name}\n{log}", flush=True)
            if figures is None:
                left_out.append(f"{name}: {log.strip().splitlines()[-1] if log.strip() else 'stopped'}")
            else:
                results[name] = figures
            _write(path, results, left_out, args.chunks)
    print(_write(path, results, left_out, args.chunks))
    print(json.dumps(results))
    return 0


def _run(model: str, options: tuple[str, ...], args: argparse.Namespace, seconds: float) -> tuple[dict | None, str]:
    """Figures, None if there are none, and what was printed."""
    command = [sys.executable, "-m", "motionstream", "bench", "--model", model, "--random-weights", "--json"]
    command += ["--resolution", MODELS[model], "--device", args.device, "--chunks", str(args.chunks), *options]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"not done after {seconds:.0f} s"
    if done.returncode:
        return None, done.stdout
    *log, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(log)


def _write(path: Path, results: dict[str, dict], left_out: list[str], chunks: int) -> str:
    text = _text(results, left_out, chunks)
    if results:  # an older table is worth more than an empty one
        path.write_text(text)
    return text


def _text(results: dict[str, dict], left_out: list[str], chunks: int) -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip() if shutil.which("git") else ""
    head = [f"# Full-size students on {_gpu()}", "", f"{date.today()}, commit {commit or 'unknown'}, torch "
            f"{torch.__version__}, random weights, `python -m benchmarks.gpu --chunks {chunks}`"]
    first = next(iter(results.values()), None)
    if first:
        head += ["", f"Attention and tuning: {'; '.join(sorted({figures['tuned'] for figures in results.values()}))}."]
    rows = {name: {key: figures[key] for key in COLUMNS} for name, figures in results.items()}
    return "\n".join([*head, "", "```", table(rows) if rows else "nothing was measured", "```", "", *left_out]) + "\n"


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
