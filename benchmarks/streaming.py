"""Speed of the embedded model over its sizes, number formats and threads.

    python -m benchmarks.streaming [--chunks 40] [--threads 1 2] [--random-weights] [--write benchmarks/results/NAME.md]

Prints every run, then a table of all, then one JSON line. Each run is a process of its own, so that its peak memory is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from motionstream.evaluation.sheets import table
from motionstream.model.presets import PRESETS

COLUMNS = ("width", "height", "fps", "first_chunk_s", "latency_s", "chunk_s_median", "chunk_s_p95",
           "chunk_s_last_over_first", "peak_rss_mb", "peak_tflops", "denoise_utilisation")
RUN = """
import json, sys
from motionstream.evaluation.speed import bench  # before PyTorch, whose threads it tells how to wait
import torch
model, chunks, random_weights, device, dtype, resolution, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
print(json.dumps(bench(model, chunks, random_weights, device, getattr(torch, dtype), resolution)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    results = {}
    budgets = PRESETS[args.model if args.model in PRESETS else "embedded"].budgets
    for budget, dtype, threads in itertools.product(budgets, args.dtypes, args.threads):
        settings = [args.model, args.chunks, args.random_weights, args.device, dtype, str(budget), threads]
        command = [sys.executable, "-c", RUN, json.dumps(settings)]
        name = f"{budget} tokens, {dtype}, {threads} threads"
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name}: no figures, because of the error above")
        print(f"== {name}\n{done.stdout}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
    text = table({name: {key: figures[key] for key in COLUMNS} for name, figures in results.items()})
    print(text)
    if args.write:
        line = " ".join(["python", *sys.argv])
        args.write.write_text(f"# {args.model} on {args.device}\n\n`{line}`\n\n```\n{text}\n```\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
