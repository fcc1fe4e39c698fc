"""The one training loop: resumable at any step to the bit, on one process or many, with EMA, log, plot and sheets.

A stage (`Stage`) gives players, data and a sheet; `Trainer` does the rest. A player is a module with a loss and
optimisers; where there are several (generator and critic), they take turns.

Decisions:
- Every random number of an update comes from `Draws`, that is from the run's seed, the step and the sample's place in
  the batch. So the step is the data position and the state of all random generators at once, and a batch is the same
  however it is split over processes and pieces.
- A checkpoint is written to a temporary name and then renamed: the last good one stays whole whatever happens.
- What went wrong is an `InputError` that names step and checkpoint, never a bare traceback.

In a run folder: `run.json` (its settings), `run.lock` (see `command.sole_run`), `log.jsonl`, `loss.png`,
`sheet-STEP.png`, `last.pt`, in the end `model/`.
"""

import contextlib
import copy
import functools
import json
import math
import multiprocessing
import os
import pickle
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from motionstream.errors import InputError, one_line, writing
from motionstream.evaluation.plot import line_plot
from motionstream.evaluation.sheets import save_png
from motionstream.progress import Progress
from motionstream.training.parallel import World, alike, full_state, limit_norm, load_full_state, share_gradients

LOG_EVERY = 10  # rounds: one update of every player, in its turns
CHECKPOINT_SECONDS = 120.0
SHEET_SECONDS = 600.0
WIDE = 32  # channels
BESIDE = 0.1  # share of a run's time that checkpoints may take, and sheets: those of the largest models take minutes


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn: for so many minutes of training in all, or for so many steps if `steps` is given.

    batch: samples an update, over all processes. pieces: that each process takes its share in, one after the other
    (gradient accumulation). The rate warms up over `warmup` updates, then falls along a cosine to the share `floor`.
    ema: decay of the averaged weights an update, less in the first ones (see `Ema`); clip_norm: of the gradient.
    """

    batch: int
    minutes: float | None = None
    steps: int | None = None
    pieces: int = 1
    warmup: int = 100
    floor: float = 0.02
    ema: float = 0.995
    clip_norm: float = 1.0

    def __post_init__(self):
        if (self.minutes is None) == (self.steps is None):
            raise InputError("give either the steps or the minutes to train for")
        if not 0 < (self.steps or self.minutes) < math.inf:
            given = f"{self.minutes} minutes" if self.steps is None else f"{self.steps} steps"
            raise InputError(f"cannot train for {given}: give a number above 0")

    def gone(self, step: int, seconds: float) -> float:
        """Share of the schedule behind us, in [0, 1]."""
        return min(1.0, seconds / (60 * self.minutes) if self.steps is None else step / self.steps)

    def rate(self, step: int, seconds: float) -> float:
        """Factor on the learning rate, in (0, 1]."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.gone(step, seconds)))
        return min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


class Draws:
    """All random numbers of one piece of one update, on whichever process it is.

    Numbers of a sample depend on the seed, the step and the sample's place in the batch alone. `shared` is the same for
    all samples and processes: what decides which computation runs must come from it.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int], device: torch.device | str = "cpu"):
        self.shared = np.random.default_rng([seed, 6, step])
        self.own = [np.random.default_rng([seed, 7, step, place]) for place in places]
        self.device = device
        self._seeds = [int(rng.integers(2**63)) for rng in self.own]

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        """Of noise, which is drawn where it is needed."""
        return [torch.Generator(self.device).manual_seed(seed) for seed in self._seeds]

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws on another device; before the first of `normal` and `uniform`."""
        moved = copy.copy(self)
        moved.device = device
        return moved

    def normal(self, *shape: int) -> Tensor:
        """[samples, *shape]"""
        return self._stack(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """[samples, *shape] in [0, 1)"""
        return self._stack(torch.rand, shape)

    def _stack(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=own, device=self.device) for own in self._generators])


class Piece(Protocol):
    """What a loss is given: some samples of a batch, and their random numbers."""

    draws: Draws


@dataclass
class Player:
    """A module and how it learns.

    loss: piece -> named scalars, means over its samples; "loss" is minimised, all are logged. turns: updates in a row.
    """

    name: str
    module: nn.Module
    loss: Callable[[Any], dict[str, Tensor]]
    optimisers: list[torch.optim.Optimizer]
    turns: int = 1


@dataclass
class Stage:
    """players take turns in their order. data: first step -> endless updates, each a list of pieces.

    sheet: draws what the averaged modules make, uint8 [H, W, 3]; it must not touch the global random generators.
    """

    players: list[Player]
    data: Callable[[int], Iterator[list[Any]]]
    sheet: Callable[[], np.ndarray] | None = None

    def turn(self, step: int) -> Player:
        """Whose update it is."""
        step %= sum(player.turns for player in self.players)
        for player in self.players:
            if step < player.turns:
                break
            step -= player.turns
        return player


class Ema:
    """Exponential moving average of a module's trained parameters.

    After n updates the decay is (1 + n) / (10 + n), at most `decay`: 0.98 takes 440 updates, 0.999 nearly 9,000.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module has its averaged weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


class _Rows(Dataset):
    """Sample number n is `make` with its own generator, whichever worker is asked for it."""

    def __init__(self, make: Callable[[np.random.Generator], dict[str, Tensor]], seed: int):
        self.make, self.seed = make, seed

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.make(np.random.default_rng([self.seed, 1, number]))


@dataclass
class _Numbers:
    """Endless batches of sample numbers: `places` of every update from step `start` on."""

    start: int
    size: int
    places: list[list[int]]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield from ([step * self.size + place for place in places] for places in self.places)
            step += 1


@dataclass
class Samples:
    """A piece made of `Player`-independent samples, each a dictionary of tensors: values[name] is [samples, ...]."""

    values: dict[str, Tensor]
    draws: Draws

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


def made_samples(
    make: Callable[[np.random.Generator], dict[str, Tensor]],
    schedule: Schedule,
    seed: int,
    world: World,
    workers: int = 1,
) -> Callable[[int], Iterator[list[Samples]]]:
    """Data of samples that are made as they are needed, in `workers` processes beside this one."""
    cv2.setNumThreads(0)  # a pool of OpenCV threads does not survive the fork into a worker
    places = world.places(schedule)

    def data(start: int) -> Iterator[list[Samples]]:
        numbers = _Numbers(start, schedule.batch, places)
        loader = iter(
            DataLoader(
                _Rows(make, seed),
                batch_sampler=numbers,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=start_worker,
            )
        )
        step = start
        while True:
            pieces = []
            for group in places:
                values = {name: value.to(world.device) for name, value in next_made(loader).items()}
                pieces.append(Samples(values, Draws(seed, step, group, world.device)))
            yield pieces
            step += 1

    return data


def first_made(
    make: Callable[[np.random.Generator], dict[str, Tensor]], count: int, seed: int, world: World
) -> dict[str, Tensor]:
    """The first samples of `made_samples`, the same on every process and however a batch is split."""
    rows = _Rows(make, seed)
    return {name: value.to(world.device) for name, value in default_collate([rows[n] for n in range(count)]).items()}


def next_made(loader: Iterator[Any]) -> Any:
    """What a `DataLoader` gives next; of a worker's `InputError` the sentence, without PyTorch's traceback."""
    try:
        return next(loader)
    except InputError as error:
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error


def start_worker(worker: int) -> None:
    """For a `DataLoader`: one thread to compute with, and no life after a training that is killed.

    PyTorch's own workers look for their parent between samples only, and then wait for ever with what nobody reads any
    more: the end of the pipe that would tell them is held open by their brothers.
    """
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class FilterMuon(torch.optim.Optimizer):
    """PyTorch's Muon, which takes matrices alone, for filters of convolutions, [out, in, h, w] as [out, in * h * w]."""

    def __init__(self, filters: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(filters, {"lr": lr})
        matrices = [nn.Parameter(own.detach().flatten(1)) for own in filters]
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        (group,), (inner,) = self.param_groups, self.muon.param_groups
        inner["lr"] = group["lr"]
        pairs = list(zip(group["params"], inner["params"], strict=True))
        for own, matrix in pairs:
            matrix.copy_(own.flatten(1))
            matrix.grad = None if own.grad is None else own.grad.flatten(1)
            self.muon.state[matrix] = self.state[own]
        self.muon.step()
        for own, matrix in pairs:
            own.copy_(matrix.view_as(own))


def optimisers_for(
    module: nn.Module, learning_rate: float, muon: float | None = None, leave_out: Sequence[nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """AdamW; with `muon`, the hidden matrices of transformer blocks, and the filters of convolutions between layers of
    `WIDE` channels or more, go to Muon at that rate instead."""
    others = {id(p) for p in leave_out}
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in others]
    matrices = [p for name, p in parameters if muon and p.ndim == 2 and ".blocks." in f".{name}"]
    filters = [p for _, p in parameters if muon and p.ndim == 4 and p.shape[-1] > 1 and min(p.shape[:2]) >= WIDE]
    chosen = {id(p) for p in matrices + filters}
    rest = [p for _, p in parameters if id(p) not in chosen]
    found = [torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)]
    if filters:
        found.append(FilterMuon(filters, lr=muon, weight_decay=0.01))
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.01))
    return found


@dataclass
class _NowAndThen:
    """`work` every so many seconds, or less often: see BESIDE."""

    seconds: float
    work: Callable[[], None]
    world: World

    def __post_init__(self):
        self.due = time.monotonic() + self.seconds

    def __call__(self) -> None:
        if self.world.agreed(time.monotonic() - self.due) <= 0:
            return
        begun = time.monotonic()
        self.work()
        ended = time.monotonic()
        self.due = ended + self.seconds * max(1.0, (ended - begun) / (BESIDE * self.seconds))


@dataclass
class Trainer:
    """Trains a stage in `folder` to the end of the schedule, counted over every resumed run.

    Continues from `folder/last.pt` if it is there. checkpoint_seconds, sheet_seconds: how often each is written,
    or less often if it would take more than the share BESIDE of the time.
    """

    stage: Stage
    folder: Path
    schedule: Schedule
    world: World
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    sheet_seconds: float = SHEET_SECONDS
    step: int = 0
    seconds: float = 0.0
    saved_step: int | None = None  # of the last whole checkpoint
    sums: dict[str, list[float]] = field(default_factory=dict)  # per term: sum and number of values since the last row

    def __post_init__(self):
        for player in self.stage.players:
            alike(player.module, self.world)
        self.averages = {player.name: Ema(player.module, self.schedule.ema) for player in self.stage.players}
        self.rates = {
            player.name: [[group["lr"] for group in optimiser.param_groups] for optimiser in player.optimisers]
            for player in self.stage.players
        }
        self.apart = LOG_EVERY * sum(player.turns for player in self.stage.players)  # steps from row to row

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    @property
    def progress(self) -> str:
        """For messages: where we are and what is safe."""
        kept = (
            "no checkpoint yet" if self.saved_step is None else f"{self.checkpoint} of step {self.saved_step} is whole"
        )
        return f"at step {self.step}; {kept}"

    def train(self, save: Callable[[], None] | None = None) -> None:
        """save: writes the model in the end, when the modules have their averaged weights.

        Raises `InputError` naming the step and the last good checkpoint if loss or gradient are not finite, a data
        worker dies or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore()
        self._shorten_log()
        data = self.stage.data(self.step)
        started, before = time.monotonic(), self.seconds
        draw = _NowAndThen(self.sheet_seconds, self._draw, self.world)
        save_all = _NowAndThen(self.checkpoint_seconds, self._save, self.world)
        with self._told(), Progress(total=self.schedule.steps, initial=self.step, unit="step", disable=None) as bar:
            while self.schedule.gone(self.step, self.seconds) < 1:
                player = self.stage.turn(self.step)
                terms = self._update(player, next(data))
                self.step += 1
                # The learning rate may follow it: one clock for all.
                self.seconds = self.world.agreed(before + time.monotonic() - started)
                self._note(player, terms)
                bar.update()
                bar.set_postfix_str(f"{player.name} {terms['loss']:.4f}", refresh=False)
                draw()
                save_all()
        if self.saved_step != self.step:
            self._save()
        if save is not None:  # before the drawing, which may want more memory than there is
            with self._averaged(), saving(self.folder / "model", self.progress):
                save()
        if self.sums:  # they stay in the checkpoint: a run that goes on puts a row of its own in this one's place
            self._log()
        self._draw()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """All modules have their averaged weights meanwhile."""
        with contextlib.ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.applied())
            yield

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The death of a data worker, which PyTorch raises wherever we are, and a full GPU: `InputError`."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            remedy = "free some, or continue with --resume and more --pieces"
            raise InputError(f"the GPU has too little memory {self.progress}: {remedy}") from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(f"a data worker died {self.progress}: continue with --resume ({error})") from error

    def _update(self, player: Player, pieces: list[Piece]) -> dict[str, float]:
        """One update of one player -> its terms, means over the batch."""
        means: dict[str, float] = {}
        for piece in pieces:
            terms = player.loss(piece)
            (terms["loss"] / len(pieces)).backward()
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value.detach() / len(pieces)
        means = self.world.mean(means)
        self._check(player, "loss", means["loss"])
        parameters = [p for group in player.optimisers for g in group.param_groups for p in g["params"]]
        share_gradients(parameters, self.world)
        self._check(player, "gradient", limit_norm(parameters, self.schedule.clip_norm))
        rate = self.schedule.rate(self.step, self.seconds)
        for optimiser, rates in zip(player.optimisers, self.rates[player.name], strict=True):
            for group, base in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = base * rate
            optimiser.step()
        for each in self.stage.players:  # a loss may have gone through another player, who is not to learn from it
            each.module.zero_grad(set_to_none=True)
        self.averages[player.name].update()
        return means

    def _check(self, player: Player, name: str, value: float) -> None:
        """What is not finite must not reach the weights."""
        if not math.isfinite(value):
            raise InputError(
                f"the {player.name}'s {name} is {value} {self.progress}: resume it with a lower learning rate"
            )

    def _note(self, player: Player, terms: dict[str, float]) -> None:
        """Adds to the sums, and writes a row of their means now and then."""
        prefix = f"{player.name}." if len(self.stage.players) > 1 else ""
        for name, value in terms.items():
            kept = self.sums.setdefault(prefix + name, [0.0, 0])
            kept[0], kept[1] = kept[0] + value, kept[1] + 1
        if self.step % self.apart == 0:
            self._log()
            self.sums = {}

    def _log(self) -> None:
        """A row of the sums' means."""
        means = {name: round(total / count, 6) for name, (total, count) in self.sums.items()}
        if self.world.leads:
            path = self.folder / "log.jsonl"
            with saving(path, self.progress), open(path, "a") as log:
                log.write(json.dumps({"step": self.step, "minutes": round(self.seconds / 60, 2), **means}) + "\n")

    def _rows(self) -> list[dict[str, float]]:
        """Of the log; a line that a full disk or a kill tore is left out."""
        log, rows = self.folder / "log.jsonl", []
        for line in log.read_text().splitlines() if log.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def _shorten_log(self) -> None:
        """Rows of steps that are gone for want of a checkpoint will come again. So will the last row of a run that
        goes on: its values are still in the sums."""
        if self.world.leads and (self.folder / "log.jsonl").exists():
            rows = (row for row in self._rows() if row["step"] <= self.step and row["step"] % self.apart == 0)
            kept = "".join(json.dumps(row) + "\n" for row in rows)
            write_whole(self.folder / "log.jsonl", lambda file: file.write(kept.encode()), self.progress)

    def _draw(self) -> None:
        """The loss plot and the sheet of the averaged weights. All processes take part: weights may be sharded."""
        with torch.no_grad(), self._averaged():
            sheet = None if self.stage.sheet is None else self.stage.sheet()
        if not self.world.leads:
            return
        pictures = {} if sheet is None else {f"sheet-{self.step:06d}.png": sheet}
        if rows := self._rows():
            names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "minutes"))
            curves = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
            pictures["loss.png"] = line_plot(curves, "step", log=True)
        for name, picture in pictures.items():
            with saving(self.folder / name, self.progress):
                save_png(self.folder / name, picture)

    def _save(self) -> None:
        players = {}
        for player in self.stage.players:
            weights, optimisers = full_state(player.module, player.optimisers)
            average = self.averages[player.name]
            with average.applied():
                averaged, _ = full_state(player.module, [])
            players[player.name] = {
                "weights": weights,
                "averaged": averaged,
                "optimisers": optimisers,
                "updates": average.updates,
            }
        if self.world.leads:
            state = {"players": players, "step": self.step, "seconds": self.seconds, "sums": self.sums}
            write_whole(self.checkpoint, lambda file: torch.save(state, file), self.progress)
        self.saved_step = self.step

    def _restore(self) -> None:
        state = read_checkpoint(self.checkpoint)
        names = [player.name for player in self.stage.players]
        if list(state["players"]) != names:
            raise InputError(
                f"{self.checkpoint} is of {', '.join(state['players'])}; this stage trains {', '.join(names)}"
            )
        for player in self.stage.players:
            saved, average = state["players"][player.name], self.averages[player.name]
            load_full_state(player.module, [], saved["averaged"], [], self.checkpoint)
            with torch.no_grad():
                for kept, parameter in zip(average.average, average.parameters, strict=True):
                    kept.copy_(parameter)
            load_full_state(player.module, player.optimisers, saved["weights"], saved["optimisers"], self.checkpoint)
            average.updates = saved["updates"]
        self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
        self.saved_step = self.step


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `Trainer`; `InputError` names the file that is none."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no checkpoint of a run, or half of one: remove it, or name another folder")
    try:
        # Mapped: what a process needs of it is read when it is needed, not the whole file by every process at once.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # PyTorch's own advice is to run the code in it
        raise InputError(f"{path} is no checkpoint of a run: it holds more than tensors and numbers") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} is no checkpoint of a run: {one_line(error)}") from error
    if not isinstance(state, dict) or not {"players", "step", "seconds", "sums"} <= state.keys():
        raise InputError(f"{path} is no checkpoint of a run: it lacks players, step, seconds or sums")
    return state


class _Disk:
    """A file being written that remembers why that failed: torch.save reports nothing but a wrong position."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def saving(path: Path, progress: str) -> contextlib.AbstractContextManager[None]:
    """`writing` whose `InputError` also says where we are and what is safe."""
    return writing(path, f"{progress}; make room, then start again or --resume")


def write_whole(path: Path, write: Callable[[_Disk], object], progress: str) -> None:
    """Writes to a temporary name, then renames. A full disk: `InputError`, and what was at `path` stays."""
    unfinished = path.with_name(path.name + ".tmp")
    with saving(path, progress):
        try:
            with open(unfinished, "wb") as file:
                disk = _Disk(file)
                try:
                    write(disk)
                except RuntimeError as error:
                    raise disk.error or error from error
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:  # after the last line there is nothing of that name
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The folder of a temporary name that the block fills, and that then takes this one's place. After an error there
    is nothing of it, and what was at `folder` stays."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
