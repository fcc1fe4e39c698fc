"""The training loop that every stage shares: time-boxed, resumable, with EMA, a JSONL log and whole checkpoints.

A stage gives batches and a loss; `fit` does the rest. A checkpoint holds model, EMA, optimiser, step and seconds
trained, and is written to a temporary name and then renamed, so that the last good one stays whole whatever happens.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

CHECKPOINT_EVERY_S = 120.0
LOG_EVERY = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn: for so many minutes of training in all, or for so many steps if `steps` is given.

    The rate warms up over `warmup` steps, then falls along a cosine.
    """

    minutes: float
    learning_rate: float
    batch: int
    steps: int | None = None
    warmup: int = 100
    ema: float = 0.995
    clip_norm: float = 1.0

    def gone(self, step: int, seconds: float) -> float:
        """Share of the schedule behind us, in [0, 1]."""
        return min(1.0, seconds / (60 * self.minutes) if self.steps is None else step / self.steps)

    def rate(self, step: int, seconds: float) -> float:
        """Factor on the learning rate, in (0, 1]."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.gone(step, seconds)))
        return min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


class Samples(IterableDataset):
    """An endless stream of `make(rng)`; worker k of run seed s draws from its own generator."""

    def __init__(self, make: Callable[[np.random.Generator], dict[str, Tensor]], seed: int):
        self.make, self.seed = make, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.make(rng)


def batches(
    make: Callable[[np.random.Generator], dict[str, Tensor]], size: int, seed: int, workers: int = 1
) -> Iterator[dict[str, Tensor]]:
    cv2.setNumThreads(0)  # a pool of OpenCV threads does not survive the fork into a worker
    return iter(
        DataLoader(Samples(make, seed), batch_size=size, num_workers=workers, prefetch_factor=4 if workers else None)
    )


def optimisers_for(
    model: nn.Module, learning_rate: float, muon: float | None = None, leave_out: Sequence[nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """AdamW; with `muon`, the hidden matrices of transformer blocks go to Muon at that rate instead."""
    others = {id(p) for p in leave_out}
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in others]
    matrices = [p for name, p in parameters if muon and p.ndim == 2 and ".blocks." in f".{name}"]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in parameters if id(p) not in chosen]
    found = [torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.01))
    return found


def fit(
    model: nn.Module,
    data: Iterator[dict[str, Tensor]],
    loss: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]],
    folder: Path,
    schedule: Schedule,
    optimisers: list[torch.optim.Optimizer],
) -> nn.Module:
    """Trains `model` to the end of the schedule (counted over every resumed run); returns the EMA model.

    `loss` returns named scalars; "loss" is minimised, the others are logged. Resumes from `folder/last.pt` if it is
    there. Raises FloatingPointError, naming the step, if the loss is not finite; the last checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema), use_buffers=False)
    base_rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    checkpoint = folder / "last.pt"
    step, seconds = _restore(checkpoint, model, averaged, optimisers) if checkpoint.exists() else (0, 0.0)
    saved_at = started = time.monotonic()
    trained_before = seconds
    sums: dict[str, float] = {}
    with open(folder / "log.jsonl", "a") as log:
        while schedule.gone(step, seconds) < 1:
            rate = schedule.rate(step, seconds)
            terms = loss(model, next(data))
            if not torch.isfinite(terms["loss"]):
                value = terms["loss"].item()
                raise FloatingPointError(f"loss is {value} at step {step}; {checkpoint} holds the last good one")
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
            for optimiser, rates in zip(optimisers, base_rates, strict=True):
                for group, base in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = base * rate
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            averaged.update_parameters(model)
            step += 1
            seconds = trained_before + time.monotonic() - started
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item() / LOG_EVERY
            if step % LOG_EVERY == 0:
                means = {name: round(value, 5) for name, value in sums.items()}
                row = {"step": step, "minutes": round(seconds / 60, 2), "rate": round(rate, 4), **means}
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums = {}
            if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                _save(checkpoint, model, averaged, optimisers, step, seconds)
                saved_at = time.monotonic()
    _save(checkpoint, model, averaged, optimisers, step, seconds)
    return averaged.module


def _save(
    path: Path,
    model: nn.Module,
    averaged: AveragedModel,
    optimisers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    unfinished = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "step": step,
            "seconds": seconds,
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        },
        unfinished,
    )
    unfinished.replace(path)


def _restore(
    path: Path, model: nn.Module, averaged: AveragedModel, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Puts a checkpoint back in place -> its step, and the seconds trained until then."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"], state["seconds"]
