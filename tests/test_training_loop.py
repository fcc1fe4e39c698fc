"""The training loop: learns, resumes to the bit, takes turns, and what it says and keeps when something goes wrong."""

import json
import math
import multiprocessing
import os
import re
import resource
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import RECIPE, clip_batch, network

from motionstream.errors import InputError
from motionstream.training import trainer as trainer_module
from motionstream.training.parallel import World, full_state, load_full_state
from motionstream.training.teacher import flow_loss
from motionstream.training.trainer import (
    LOG_EVERY,
    Draws,
    Ema,
    Player,
    Samples,
    Schedule,
    Stage,
    Trainer,
    _NowAndThen,
    made_samples,
    optimisers_for,
    read_checkpoint,
    whole_folder,
    write_whole,
)

FAST = Schedule(batch=8, steps=60, warmup=1, ema=0.9)


class Line(nn.Module):
    def __init__(self, slope=0.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))


def points(rng):
    return {"x": torch.tensor(rng.normal(0, 1), dtype=torch.float32)}


def line_loss(line):
    return lambda batch: {
        "loss": (line.slope * batch["x"] - 3 * batch["x"] + 0.1 * batch.draws.normal()).square().mean()
    }


def line_stage(line, schedule=FAST, loss=None, world=None, data=None):
    data = data or made_samples(points, schedule, 0, world or World(), workers=0)
    return Stage([Player("line", line, loss or line_loss(line), optimisers_for(line, 0.1))], data)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_an_update_does_not_draw_what_its_first_sample_draws():
    draws = [Draws(1, step, places) for step, places in ((0, range(3)), (1, range(3)))]
    numbers = [int(rng.integers(2**63)) for one in draws for rng in (one.shared, *one.own)]
    numbers += [seed for one in draws for seed in one._seeds]
    assert len(set(numbers)) == 2 * 7


def test_the_loop_learns_and_keeps_log_plot_and_averages(tmp_path):
    line = Line()
    trainer = Trainer(line_stage(line), tmp_path, FAST, World())
    trainer.train()
    log = rows(tmp_path)
    assert [row["step"] for row in log] == list(range(LOG_EVERY, 61, LOG_EVERY))
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    raw = line.slope.item()
    with trainer.averages["line"].applied():
        assert abs(line.slope.item() - 3) < 0.5 and line.slope.item() != raw
    assert line.slope.item() == raw


def test_the_end_of_a_run_has_a_row_of_its_own_until_the_run_goes_on(tmp_path):
    Trainer(line_stage(Line()), tmp_path / "cut", replace(FAST, steps=4, floor=1.0), World()).train()
    (first,) = rows(tmp_path / "cut")
    assert first["step"] == 4 and math.isfinite(first["loss"]) and (tmp_path / "cut" / "loss.png").exists()
    for name in ("cut", "whole"):
        Trainer(line_stage(Line()), tmp_path / name, replace(FAST, steps=24, floor=1.0), World()).train()
    cut, whole = ([(row["step"], row["loss"]) for row in rows(tmp_path / name)] for name in ("cut", "whole"))
    assert cut == whole and [step for step, _ in cut] == [10, 20, 24]


def test_the_plot_shows_every_term_whoever_had_the_last_turn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(trainer_module, "line_plot", lambda curves, *_, **__: drawn.append(curves) or np.zeros((1, 1)))
    monkeypatch.setattr(trainer_module, "save_png", lambda *_: None)
    Trainer(rivals(False), tmp_path, replace(FAST, steps=21), World()).train()
    assert {name: [step for step, _ in curve] for name, curve in drawn[-1].items()} == {
        "judge.loss": [20, 21],
        "maker.loss": [20],
    }


def test_the_average_is_what_its_name_says():
    line = Line(1.0)
    ema, expected = Ema(line, 0.5), 1.0
    for n, value in enumerate((2.0, 5.0, 3.0)):
        with torch.no_grad():
            line.slope.fill_(value)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.average[0].item() == pytest.approx(expected)


def test_the_rate_warms_up_and_falls():
    schedule = Schedule(8, steps=100, warmup=10, floor=0.1)
    rates = [schedule.rate(step, 0.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and rates[100] == pytest.approx(0.1) and max(rates) > 0.95
    assert Schedule(8, minutes=2).gone(10**6, 60.0) == 0.5
    constant = replace(schedule, floor=1.0)
    assert all(constant.rate(step, 0.0) == 1 for step in range(10, 101))
    for wrong in (dict(), dict(steps=1, minutes=1)):
        with pytest.raises(InputError, match="either the steps or the minutes"):
            Schedule(8, **wrong)


def test_pieces_are_the_whole_batch():
    results = []
    for pieces in (1, 4):
        line = Line()
        schedule = replace(FAST, pieces=pieces, steps=1, clip_norm=100)
        trainer = Trainer(line_stage(line, schedule), Path("unused"), schedule, World())
        terms = trainer._update(trainer.stage.players[0], next(trainer.stage.data(0)))
        results.append((terms["loss"], line.slope.item()))
    assert results[0] == pytest.approx(results[1])


def test_players_take_turns():
    order, lines = [], [Line(), Line()]

    def loss(n):
        def told(batch):
            order.append(n)
            return line_loss(lines[n])(batch)

        return told

    players = [
        Player(str(n), lines[n], loss(n), optimisers_for(lines[n], 0.1), turns=5 if n == 0 else 1) for n in (0, 1)
    ]
    stage = Stage(players, made_samples(points, FAST, 0, World(), workers=0))
    assert [stage.turn(step).name for step in range(8)] == list("00000100")
    trainer = Trainer(stage, Path("unused"), FAST, World())
    data = stage.data(0)
    for step in range(12):
        trainer._update(stage.turn(step), next(data))
    assert order == [0, 0, 0, 0, 0, 1] * 2


def rivals(judged):
    """Two players in turns; the second one's loss goes through the first, if it is `judged` by it."""
    judge, maker = Line(1.0), Line()

    def made(batch):
        told = line_loss(maker)(batch)
        return {"loss": told["loss"] + (judge.slope if judged else 5.0) * maker.slope}

    losses = {"judge": (judge, line_loss(judge)), "maker": (maker, made)}
    players = [Player(name, line, loss, optimisers_for(line, 0.1)) for name, (line, loss) in losses.items()]
    return Stage(players, made_samples(points, FAST, 0, World(), workers=0))


def test_a_player_does_not_learn_from_anothers_loss(tmp_path):
    slopes = []
    for judged in (False, True):
        trainer = Trainer(rivals(judged), tmp_path / str(judged), replace(FAST, steps=9), World())
        trainer.train()
        slopes.append([player.module.slope.item() for player in trainer.stage.players])
    assert slopes[0][0] == slopes[1][0] and slopes[0][1] != slopes[1][1]


def test_checkpoints_do_not_change_what_is_learned(tmp_path):
    counters, slopes = [], []
    for seconds in (-1.0, 1e9):
        folder = tmp_path / str(seconds)
        trainer = Trainer(rivals(True), folder, replace(FAST, steps=9), World(), checkpoint_seconds=seconds)
        trainer.train()
        slopes.append([player.module.slope.item() for player in trainer.stage.players])
        players = read_checkpoint(folder / "last.pt")["players"]
        counters.append([players[name]["optimisers"][0]["state"]["slope"]["step"].item() for name in players])
    assert slopes[0] == slopes[1] and counters == [[5, 4], [5, 4]]


def test_a_run_cut_before_a_players_first_turn_goes_on_to_the_same_bits(tmp_path):
    for steps in (1, 9):
        cut = Trainer(rivals(True), tmp_path / "cut", replace(FAST, steps=steps), World())
        cut.train()
    whole = Trainer(rivals(True), tmp_path / "whole", replace(FAST, steps=9), World())
    whole.train()
    for one, other in zip(whole.stage.players, cut.stage.players, strict=True):
        assert one.module.slope.item() == other.module.slope.item()


def test_what_takes_long_is_done_less_often(monkeypatch):
    now, done = [0.0], []

    def work():
        done.append(now[0])
        now[0] += took

    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    for took, pause in ((3.0, 120.0), (60.0, 600.0)):
        done.clear()
        save = _NowAndThen(120.0, work, World())
        begun = now[0]
        for _ in range(2_000):
            now[0] += 1
            save()
        assert done[0] - begun == 121
        np.testing.assert_array_equal(np.diff(done), took + pause + 1)


# --- resuming ------------------------------------------------------------------------------------------------------


@dataclass
class Clips:
    """The teacher's data: a batch a step, from the kit."""

    kill_at: int | None = None

    def __call__(self, start):
        step = start
        while True:
            if step == self.kill_at:
                raise KeyboardInterrupt
            yield [clip_batch(clips=2, seed=step, step=step)]
            step += 1


def teacher(folder, steps, kill_at=None, muon=None):
    net = network(skip=True)
    schedule = Schedule(2, steps=9, warmup=2, ema=0.9, floor=0.1)
    player = Player("teacher", net, lambda batch: flow_loss(net, batch, RECIPE), optimisers_for(net, 1e-3, muon))
    trainer = Trainer(
        Stage([player], Clips(kill_at)), folder, replace(schedule, steps=steps), World(), checkpoint_seconds=-1
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("muon", [None, 1e-3], ids=["adamw", "muon"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, muon):
    whole = teacher(tmp_path / "whole", 9, muon=muon)
    for kill_at in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            teacher(tmp_path / "cut", 9, kill_at, muon)
    cut = teacher(tmp_path / "cut", 9, muon=muon)
    assert cut.step == 9
    for name, value in whole.stage.players[0].module.state_dict().items():
        assert torch.equal(value, cut.stage.players[0].module.state_dict()[name]), name
    for a, b in zip(whole.averages["teacher"].average, cut.averages["teacher"].average, strict=True):
        assert torch.equal(a, b)
    one, other = (read_checkpoint(tmp_path / name / "last.pt")["players"]["teacher"] for name in ("whole", "cut"))
    for a, b in zip(one["optimisers"], other["optimisers"], strict=True):
        for key, state in a["state"].items():
            assert all(torch.equal(torch.as_tensor(state[n]), torch.as_tensor(b["state"][key][n])) for n in state)
    assert one["updates"] == other["updates"] == 9
    sums = [read_checkpoint(tmp_path / name / "last.pt")["sums"] for name in ("whole", "cut")]
    assert sums[0] == sums[1]


def filters_steps(net, optimisers, steps):
    for step in steps:
        torch.manual_seed(step)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        for optimiser in optimisers:
            optimiser.step()


def test_muon_learns_filters_as_matrices_and_goes_on_to_the_same_bits():
    def start():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(32, 40, 3), nn.Conv2d(40, 32, 1), nn.Conv2d(32, 4, 3))
        return net, optimisers_for(net, 1e-3, 3e-3)

    net, optimisers = start()
    assert optimisers[1].param_groups[0]["params"] == [net[0].weight]  # neither single pixels nor what leaves
    matrix = nn.Parameter(net[0].weight.detach().flatten(1).clone())
    plain = torch.optim.Muon([matrix], lr=3e-3, weight_decay=0.01)
    filters_steps(net, optimisers, range(2))
    state = full_state(net, optimisers)
    filters_steps(net, optimisers, range(2, 4))
    for step in range(4):
        torch.manual_seed(step)
        matrix.grad = torch.randn_like(net[0].weight).flatten(1)
        plain.step()
    assert torch.equal(net[0].weight.flatten(1), matrix)
    again, optimisers = start()
    load_full_state(again, optimisers, *state, Path("saved"))
    filters_steps(again, optimisers, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_rows_after_the_checkpoint_come_again_once(tmp_path):
    line = Line()
    Trainer(line_stage(line), tmp_path, replace(FAST, steps=20), World()).train()
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 30, "minutes": 1.0, "loss": 99.0}) + "\n")
    again = Line()
    Trainer(line_stage(again), tmp_path, replace(FAST, steps=40), World()).train()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30, 40]
    assert rows(tmp_path)[2]["loss"] != 99.0


def slow_run(folder: Path) -> None:
    line = Line()

    def loss(batch):
        time.sleep(0.02)
        return line_loss(line)(batch)

    Trainer(line_stage(line, loss=loss), folder, FAST, World(), checkpoint_seconds=-1).train()


def test_a_run_killed_by_the_system_goes_on_to_the_same_bits(tmp_path):
    run = multiprocessing.get_context("fork").Process(target=slow_run, args=(tmp_path / "cut",))
    run.start()
    while not (tmp_path / "cut" / "last.pt").exists():
        assert run.is_alive()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert 0 < read_checkpoint(tmp_path / "cut" / "last.pt")["step"] < 60
    cut, whole = Line(), Line()
    Trainer(line_stage(cut), tmp_path / "cut", FAST, World()).train()
    Trainer(line_stage(whole), tmp_path / "whole", FAST, World()).train()
    assert torch.equal(cut.slope, whole.slope)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path):
    line = Line()
    Trainer(line_stage(line), tmp_path, replace(FAST, steps=4), World()).train()
    before = (tmp_path / "last.pt").read_bytes()
    bad = Line()
    stage = line_stage(bad, loss=lambda batch: {"loss": bad.slope * float("nan")})
    with pytest.raises(InputError, match=r"the line's loss is nan at step 4; .*last.pt of step 4 is whole"):
        Trainer(stage, tmp_path, replace(FAST, steps=8), World()).train()
    assert (tmp_path / "last.pt").read_bytes() == before and torch.isfinite(bad.slope)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_gradient_that_is_no_number_spares_the_checkpoint(tmp_path):
    Trainer(line_stage(Line()), tmp_path, replace(FAST, steps=4), World()).train()
    before, bad = (tmp_path / "last.pt").read_bytes(), Line()
    stage = line_stage(bad, loss=lambda batch: {"loss": (0 * bad.slope).sqrt()})
    with pytest.raises(InputError, match=r"the line's gradient is nan at step 4; .*last.pt of step 4 is whole"):
        Trainer(stage, tmp_path, replace(FAST, steps=8), World()).train()
    assert (tmp_path / "last.pt").read_bytes() == before and torch.isfinite(bad.slope)


def test_a_dead_worker_is_named_with_the_step(tmp_path):
    def suicidal(rng):
        if rng.random() < 0.02:
            os.kill(os.getpid(), signal.SIGKILL)
        return points(rng)

    data = made_samples(suicidal, FAST, 0, World(), workers=1)
    with pytest.raises(InputError, match=r"a data worker died at step \d+; no checkpoint yet: continue with --resume"):
        Trainer(line_stage(Line(), data=data), tmp_path, FAST, World()).train()


def test_a_worker_that_dies_while_the_loss_is_computed_is_named_too(tmp_path):
    line, ready = Line(), []

    def loss(batch):
        ready.append(line_loss(line)(batch))
        if len(ready) == 5:
            [worker] = multiprocessing.active_children()
            worker.kill()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:  # PyTorch raises when the system tells it
                time.sleep(0.01)
        return ready[-1]

    data = made_samples(points, FAST, 0, World(), workers=1)
    with pytest.raises(InputError, match=r"a data worker died at step 4; no checkpoint yet: continue with --resume"):
        Trainer(line_stage(line, loss=loss, data=data), tmp_path, FAST, World()).train()


def test_a_workers_sentence_comes_alone(tmp_path):
    def nothing(rng):
        raise InputError("clips has no clip of 9 frames: name another folder")

    for workers in (0, 1):
        data = made_samples(nothing, FAST, 0, World(), workers)
        with pytest.raises(InputError, match="^clips has no clip of 9 frames: name another folder$"):
            Trainer(line_stage(Line(), data=data), tmp_path, FAST, World()).train()


def test_a_full_gpu_is_told(tmp_path):
    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    told = r"^the GPU has too little memory at step 0; no checkpoint yet: free some, or continue .* more --pieces$"
    with pytest.raises(InputError, match=told):
        Trainer(line_stage(Line(), loss=full), tmp_path, FAST, World()).train()


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    line = Line()
    trainer = Trainer(line_stage(line), tmp_path, replace(FAST, steps=2), World())
    trainer.train()
    before, real = (tmp_path / "last.pt").read_bytes(), open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 300

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def opened(path, mode="r", *rest, **named):
        return Full(real(path, mode)) if str(path).endswith("last.pt.tmp") else real(path, mode, *rest, **named)

    monkeypatch.setattr("builtins.open", opened)
    trainer.step = 3
    with pytest.raises(
        InputError, match=r"cannot write .*last.pt: No space left on device; at step 3; .* of step 2 is whole"
    ):
        trainer._save()
    monkeypatch.undo()
    assert (tmp_path / "last.pt").read_bytes() == before and not list(tmp_path.glob("*.tmp"))
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 2


def test_a_log_that_a_full_disk_tore_is_mended(tmp_path):
    Trainer(line_stage(Line()), tmp_path, replace(FAST, steps=20), World()).train()
    before, log = (tmp_path / "last.pt").read_bytes(), tmp_path / "log.jsonl"
    told = r"cannot write .*log.jsonl: .*; at step 30; .*last.pt of step 20 is whole"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 9, limits[1]))
    try:
        with pytest.raises(InputError, match=told):
            Trainer(line_stage(Line()), tmp_path, replace(FAST, steps=40), World()).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == before and len(log.read_text().splitlines()) == 3
    Trainer(line_stage(Line()), tmp_path, replace(FAST, steps=40), World()).train()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30, 40]


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_disk_too_full_for_model_or_plot_is_told(tmp_path, monkeypatch):
    schedule, told = replace(FAST, steps=10), r"cannot write .*{}: No space left on device; at step 10; .* is whole"
    with pytest.raises(InputError, match=told.format("model")):
        Trainer(line_stage(Line()), tmp_path, schedule, World()).train(full)
    monkeypatch.setattr("motionstream.training.trainer.save_png", full)
    with pytest.raises(InputError, match=told.format("loss.png")):
        Trainer(line_stage(Line()), tmp_path, schedule, World()).train()


def test_the_averaged_model_is_saved_before_the_last_sheet(tmp_path):
    line, saved = Line(), []

    def too_large():
        raise MemoryError

    stage = line_stage(line)
    stage.sheet = too_large
    trainer = Trainer(stage, tmp_path, replace(FAST, steps=5), World())
    with pytest.raises(MemoryError):
        trainer.train(lambda: saved.append(line.slope.item()))
    assert saved == [trainer.averages["line"].average[0].item()] and saved[0] != line.slope.item()


def test_half_a_file_is_never_seen(tmp_path):
    def stop(file):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "x").write_bytes(b"whole")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", stop, "now")
    assert (tmp_path / "x").read_bytes() == b"whole" and list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_half_a_folder_is_never_seen(tmp_path):
    def fill(text, error=None):
        with whole_folder(tmp_path / "model") as unfinished:
            unfinished.mkdir()
            (unfinished / "config.json").write_text(text)
            if error is not None:
                raise error

    (tmp_path / "model.tmp").mkdir()  # of a run that was killed
    fill("first")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fill("half", error)
        assert (tmp_path / "model" / "config.json").read_text() == "first"
        assert list(tmp_path.iterdir()) == [tmp_path / "model"]
    fill("second")
    assert (tmp_path / "model" / "config.json").read_text() == "second"


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04 half a file"])
def test_a_checkpoint_that_is_none_is_named(tmp_path, junk):
    (tmp_path / "last.pt").write_bytes(junk)
    with pytest.raises(InputError, match="last.pt is no checkpoint of a run"):
        Trainer(line_stage(Line()), tmp_path, FAST, World()).train()


def test_a_checkpoint_is_read_as_far_as_it_is_used(tmp_path):
    """Each of many processes needs a part of it."""

    def held():
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    large = {"weights": torch.ones(2**24)}  # 64 MB
    torch.save({"players": large, "step": 0, "seconds": 0.0, "sums": {}}, tmp_path / "last.pt")
    before = held()
    state = read_checkpoint(tmp_path / "last.pt")
    assert held() - before < 32 and state["players"]["weights"][-1] == 1


def test_foreign_checkpoints_are_named(tmp_path):
    torch.save({"model": Line()}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="last.pt is no checkpoint of a run: it holds more than tensors and numbers$"):
        Trainer(line_stage(Line()), tmp_path, FAST, World()).train()
    torch.save({"model": {}}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="last.pt is no checkpoint of a run: it lacks players"):
        Trainer(line_stage(Line()), tmp_path, FAST, World()).train()
    Trainer(line_stage(Line()), tmp_path / "line", replace(FAST, steps=1), World()).train()
    net = nn.Linear(2, 2)
    player = Player("line", net, lambda batch: {"loss": net.weight.sum()}, optimisers_for(net, 0.1))
    data = made_samples(points, FAST, 0, World(), workers=0)
    with pytest.raises(InputError, match=r"last.pt has nothing for bias; this model needs \[2\]"):
        Trainer(Stage([player], data), tmp_path / "line", FAST, World()).train()
    player.name = "critic"
    with pytest.raises(InputError, match="last.pt is of line; this stage trains critic"):
        Trainer(Stage([player], data), tmp_path / "line", FAST, World()).train()


def test_draws_belong_to_seed_step_and_place():
    one, part = Draws(1, 2, [0, 1, 2, 3]), Draws(1, 2, [2, 3])
    torch.testing.assert_close(one.normal(5)[2:], part.normal(5))
    torch.testing.assert_close(one.uniform()[2:], part.uniform())
    assert one.shared.integers(1000) == part.shared.integers(1000)
    values = [Draws(*key).normal(3) for key in ((1, 2, [0]), (1, 3, [0]), (2, 2, [0]), (1, 2, [1]))]
    assert len({tuple(v.flatten().tolist()) for v in values}) == 4
    assert abs(Draws(0, 0, [0]).normal(20_000).std().item() - 1) < 0.02


def test_sheets_do_not_change_what_is_learned(tmp_path):
    slopes = []
    for seconds in (-1.0, 1e9):
        line = Line()
        stage = line_stage(line)
        stage.sheet = lambda: np.zeros((4, 4, 3), np.uint8)
        Trainer(stage, tmp_path / str(seconds), replace(FAST, steps=5), World(), sheet_seconds=seconds).train()
        slopes.append(line.slope.item())
    assert slopes[0] == slopes[1]
    assert len(list((tmp_path / "-1.0").glob("sheet-*.png"))) == 5


def test_samples_carry_their_draws():
    batch = Samples({"x": torch.ones(2)}, Draws(0, 0, [0, 1]))
    assert batch["x"].sum() == 2 and batch.draws.normal().shape == (2,)
