"""Two processes with FSDP2 over gloo reach what one process reaches, and may hand a run to each other."""

import itertools
import json
import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from training_kit import RECIPE, TINY, clip_batch, network, part

from motionstream.errors import InputError
from motionstream.training.adaptation import causal_loss
from motionstream.training.clips import Encoders, write_stream
from motionstream.training.command import prepared, sole_run
from motionstream.training.network import save_network
from motionstream.training.parallel import World, is_sharded, join_world, shard
from motionstream.training.self_forcing import Distillation
from motionstream.training.teacher import flow_loss
from motionstream.training.trainer import Player, Schedule, Stage, Trainer

SCHEDULE = Schedule(batch=4, steps=4, pieces=2, warmup=1, floor=1.0, ema=0.9)


def train(world, folder, steps=4, causal=False, sheets=False):
    """A few steps of the teacher (or of adaptation) in a world, with or without a sheet after each -> the trainer."""
    net = network(skip=not causal)
    net.world = world
    shard(net, world)
    assert is_sharded(net) == (world.size > 1)
    schedule = replace(SCHEDULE, steps=steps)
    loss = causal_loss if causal else flow_loss
    player = Player("net", net, lambda batch: loss(net, batch, RECIPE), [adam(net)])
    stage = Stage([player], batches(world, schedule), sheet_of(net) if sheets else None)
    trainer = Trainer(stage, folder, schedule, world, sheet_seconds=-1)
    trainer.train()
    return trainer


def batches(world, schedule):
    """The data of this process, from any step on."""

    def data(start):
        for step in itertools.count(start):
            whole = clip_batch(seed=step, step=step)
            generator = torch.Generator().manual_seed(step)
            whole.trajectory = torch.randn(4, 3, *whole.latents.shape[1:], generator=generator)
            whole.endpoint = whole.trajectory[:, 0] * 0.5
            yield [part(whole, places, step, step) for places in world.places(schedule)]

    return data


def adam(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-3, eps=1e-3)  # rounding must not decide a step's sign


def distil(world, folder):
    """Two turns of critic and student with gradient checkpointing, all three networks sharded where there are two."""
    recipe = replace(RECIPE, checkpointing=True)
    student, teacher, critic = (network(seed=seed, skip=seed > 1) for seed in (1, 2, 3))
    teacher.requires_grad_(False)
    for net in (student, teacher, critic):
        net.world = world
        prepared(net, recipe, causal=net is student)
    losses = Distillation(student, teacher, critic, Encoders(TINY, None, None), recipe, recipe.chunks)
    players = [
        Player("critic", critic, losses.critic_loss, [adam(critic)], 2),
        Player("student", student, losses.generator_loss, [adam(student)]),
    ]
    schedule = replace(SCHEDULE, steps=6)
    Trainer(Stage(players, batches(world, schedule)), folder, schedule, world).train()


def sheet_of(net):
    """A forward pass, as sheets need it."""

    def draw():
        flow_loss(net, clip_batch(seed=99), RECIPE)
        return np.zeros((4, 4, 3), np.uint8)

    return draw


def train_whole(world, folder):
    """The same for a module that is not sharded, and that each process would start in its own way."""
    module = nn.Linear(6, 3)
    nn.init.constant_(module.weight, 0.1 * (world.rank + 1))
    nn.init.zeros_(module.bias)
    samples = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0))  # [step, place, ...]

    def data(start):
        yield from ([samples[step, places] for places in world.places(SCHEDULE)] for step in range(start, 4))

    player = Player("net", module, lambda x: {"loss": (module(x) - x[:, :3]).square().mean()}, [sgd(module)])
    trainer = Trainer(Stage([player], data), folder, SCHEDULE, world)
    trainer.train()
    return trainer


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def two(rank, port, folder, tasks):
    """One of two processes; rank 0 writes what every task gave."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    world = join_world("cpu", torch.float32)
    write_stream(folder / "uneven", iter([{"null_text": torch.zeros(1)}] * world.leads), world)
    try:
        write_stream(folder / "nothing", iter(()), world)
    except InputError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    try:
        with sole_run(folder / "taken", world):
            pass
    except InputError as error:
        (folder / f"taken-{rank}.txt").write_text(str(error))
    with sole_run(folder / "whole", world):
        train_whole(world, folder / "whole")
    distil(world, folder / "distil")
    for name, settings in tasks.items():
        trainer = train(world, folder / name, **settings)
        net = trainer.stage.players[0].module
        if settings.get("causal"):
            with trainer.averages["net"].applied():
                save_network(net, folder, folder / "saved", torch.float32)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with runs of two processes: "teacher", the same "drawn" with sheets, "adapt", and "begun" (2 steps)."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("uneven", "nothing"):
        (folder / name).mkdir()
        for rank in range(2):
            (folder / name / f"clips-{rank:02d}-00001.safetensors").write_bytes(b"of an earlier run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tasks = {"teacher": {}, "drawn": {"sheets": True}, "adapt": {"causal": True}, "begun": {"steps": 2}}
    with sole_run(folder / "taken", World()):
        mp.start_processes(two, (port, folder, tasks), nprocs=2, start_method="fork")
    return folder


def state(folder):
    return torch.load(folder / "last.pt", weights_only=True)["players"]["net"]


def test_two_processes_distil_as_one(runs, tmp_path):
    distil(World(), tmp_path)
    one, both = (torch.load(folder / "last.pt", weights_only=True)["players"] for folder in (tmp_path, runs / "distil"))
    for name, begun in (("student", 1), ("critic", 3)):
        first = network(seed=begun, skip=begun > 1).state_dict()
        assert any((value - first[key]).abs().max() > 1e-3 for key, value in one[name]["weights"].items())
        for key, value in one[name]["weights"].items():
            torch.testing.assert_close(value, both[name]["weights"][key], atol=2e-4, rtol=1e-3, msg=f"{name} {key}")


@pytest.mark.parametrize(("name", "causal"), [("teacher", False), ("adapt", True)])
def test_two_processes_are_one(runs, tmp_path, name, causal):
    train(World(), tmp_path, causal=causal)
    one, both = state(tmp_path), state(runs / name)
    for kind in ("weights", "averaged"):
        assert one[kind].keys() == both[kind].keys()
        for key, value in one[kind].items():
            torch.testing.assert_close(value, both[kind][key], atol=2e-4, rtol=1e-3, msg=f"{kind} {key}")
    sums = [torch.load(folder / "last.pt", weights_only=True)["sums"] for folder in (tmp_path, runs / name)]
    assert sums[0]["loss"][0] == pytest.approx(sums[1]["loss"][0], rel=1e-4)


def test_sheets_of_sharded_weights_do_not_change_what_is_learned(runs):
    drawn = state(runs / "drawn")["weights"]
    for key, value in state(runs / "teacher")["weights"].items():
        torch.testing.assert_close(value, drawn[key], atol=1e-6, rtol=0, msg=key)


def test_one_process_without_a_good_clip_is_not_fatal(runs):
    assert [path.name for path in (runs / "uneven").iterdir()] == ["clips-00-00000.safetensors"]
    [refused] = runs.glob("refused-*.txt")
    assert "no clip was good enough" in refused.read_text()
    assert len(list((runs / "nothing").iterdir())) == 2  # a run without any clip loses none of an earlier one's


def test_all_processes_of_a_second_command_hear_of_the_first(runs):
    for rank in range(2):
        assert (runs / f"taken-{rank}.txt").read_text().startswith(f"another process trains in {runs / 'taken'}")


def test_two_processes_train_a_whole_module_together(runs, tmp_path):
    train_whole(World(), tmp_path)
    for key, value in state(tmp_path)["weights"].items():
        torch.testing.assert_close(value, state(runs / "whole")["weights"][key], msg=key)


def test_a_run_of_two_processes_goes_on_in_one(runs, tmp_path):
    (tmp_path / "last.pt").write_bytes((runs / "begun" / "last.pt").read_bytes())
    moved = train(World(), tmp_path)
    assert moved.step == 4
    whole = state(runs / "teacher")
    for key, value in state(tmp_path)["weights"].items():
        torch.testing.assert_close(value, whole["weights"][key], atol=2e-4, rtol=1e-3, msg=key)


def test_sharded_weights_are_saved_whole(runs):
    from motionstream.model.checkpoint import load_component

    saved = load_component(runs / "saved" / "transformer")
    averaged = state(runs / "adapt")["averaged"]
    for key, value in saved.state_dict().items():
        torch.testing.assert_close(value, averaged[f"transformer.{key}"])
    assert json.loads((runs / "saved" / "model_index.json").read_text())["preset"]["name"] == "tiny"
