"""`motionstream train`: the whole pipeline of a tiny model by its commands, the paper's settings, and bad input."""

import errno
import itertools
import json
import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from training_kit import ALONE, PLAIN, RECIPE, TINY, clip_batch, network

from motionstream.cli import main
from motionstream.errors import InputError
from motionstream.evaluation.sheets import save_png
from motionstream.model.checkpoint import load_component
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.model.track_head import embed_ids
from motionstream.model.transformer import MotionTransformer
from motionstream.model.vae import EmbeddedVAE
from motionstream.streaming import Condition
from motionstream.training import adaptation, clips, command
from motionstream.training.guidance import Guidance
from motionstream.training.network import load_network, model_folder, new_network, save_network, widened_network
from motionstream.training.parallel import World
from motionstream.training.rgb_tracks import RgbTracks
from motionstream.training.settings import RECIPES

QUICK = replace(RECIPE, batch=2, chunks=2, ode_steps=3)
STAGES = ("teacher-a", "teacher-b", "adapt", "distil", "tiny-vae", "motion-prior", "matte")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a tiny model ("start") and shards of its clips ("clips"), and a preset "tiny" to train."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        patch.setitem(RECIPES, "tiny", {stage: replace(QUICK, frozen_head=stage != "teacher-a") for stage in STAGES})
        patch.setattr(command, "load_library", lambda _: SimpleNamespace(photos=[], cutouts=[], objects=[]))
        mixture = replace(clips.MIXTURES["embedded"], sizes={(64, 64): 1.0}, still_size=(64, 64))
        patch.setitem(clips.MIXTURES, "tiny", mixture)
        for module in (clips, adaptation, command):
            patch.setattr(module, "SHARD", 2)
        torch.manual_seed(0)
        start = folder / "parts"
        EmbeddedVAE(
            latent_channels=8, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=1
        ).save_pretrained(start / "vae")
        MotionPrior(widths=(8, 8), features=4).save_pretrained(start / "motion_prior")
        save_network(network(), start, folder / "start", torch.float32)
        assert train(folder, "clips", "--model start --library any --count 2 --chunks 3 --out clips") == 0
        yield folder


def train(folder, stage, options, preset="tiny"):
    """The command, with file names in `folder`."""
    names = (
        "start",
        "parts",
        "clips",
        "any",
        "teacher",
        "masked",
        "paths",
        "shared",
        "split",
        "causal",
        "alone",
        "student",
        "none",
        "junk",
        "rgb",
        "vae",
        "prior",
        "ends",
        "few",
        "more",
    )
    outs = [out for before, out in itertools.pairwise(options.split()) if before == "--out"]
    assert all(Path(out).is_absolute() or out.split("/")[0] in names for out in outs), f"{outs}: beside the tests"
    words = [str(folder / word) if word.split("/")[0] in names else word for word in options.split()]
    last = [] if "--resume" in words else ["--preset", preset, "--precision", "fp32"]
    return main(["train", stage, *words, *last])


def test_the_whole_pipeline(workshop, capsys):
    assert train(workshop, "teacher", "--model start --data clips --out teacher --steps 2") == 0
    assert train(workshop, "teacher", "--stage b --model teacher/model --data clips --out masked --steps 1") == 0
    assert (
        train(workshop, "trajectories", "--model masked/model --data clips --count 4 --guidance 1 1 --out paths") == 0
    )
    assert train(workshop, "adapt", "--model masked/model --data paths --out causal --steps 2") == 0
    assert train(workshop, "adapt", "--resume causal --steps 3") == 0
    distil = "--model causal/model --teacher masked/model --data clips --out student --steps 6 --chunks 3"
    assert train(workshop, "distil", distil) == 0
    for run, steps in (("teacher", 2), ("masked", 1), ("causal", 3), ("student", 6)):
        folder = workshop / run
        assert torch.load(folder / "last.pt", weights_only=True)["step"] == steps
        assert (folder / f"sheet-{steps:06d}.png").is_file()
        load_network(folder / "model", TINY)
    stored = [load_file(path) for path in sorted((workshop / "paths").glob("*.safetensors"))]
    assert len(stored) == 2 and stored[0]["trajectory"].shape == (2, 3, 8, 6, 8, 8)
    torch.testing.assert_close(stored[0]["endpoint"][:, :, 0], stored[0]["latents"][:, :, 0])
    players = torch.load(workshop / "student" / "last.pt", weights_only=True)["players"]
    assert list(players) == ["critic", "student"] and [one["updates"] for one in players.values()] == [5, 1]
    heads = [load_component(workshop / run / "model" / "track_head").conv.weight for run in ("teacher", "masked")]
    assert torch.equal(*heads)  # frozen after the first stage

    assert train(workshop, "teacher", "--model start --data clips --out teacher --steps 2") == 2
    assert "holds a run: continue it with --resume" in capsys.readouterr().err
    assert train(workshop, "adapt", "--model start --data clips --out alone --steps 1") == 0  # without a teacher
    load_network(workshop / "alone" / "model", TINY)
    assert train(workshop, "adapt", "--resume teacher") == 2
    assert "is a run of teacher, not of adapt" in capsys.readouterr().err
    assert train(workshop, "adapt", "--resume causal --steps 4 --rate 1e-9 --precision fp32") == 0
    settings = json.loads((workshop / "causal" / "run.json").read_text())
    assert (settings["rate"], settings["steps"], settings["model"]) == (1e-9, 4, str(workshop / "masked" / "model"))
    assert train(workshop, "adapt", "--resume causal --batch 7") == 2
    assert "a resumed run keeps its --batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kept"), [("--stage a", "stage"), ("--preset embedded", "preset"), ("--seed 0", "seed")]
)
def test_a_resumed_run_keeps_what_is_given_as_its_default_too(workshop, options, kept, tmp_path, capsys):
    begun = f"--stage b --model start --data clips --out {tmp_path} --steps 1 --seed 3 --workers 1"
    assert train(workshop, "teacher", begun) == 0
    assert train(workshop, "teacher", f"--resume {tmp_path} {options}") == 2
    assert f"a resumed run keeps its --{kept}: leave it out" in capsys.readouterr().err
    more = "--stage b --seed 3 --workers 0 --pieces 2 --minutes 1e-9"  # in more pieces where memory is short
    assert train(workshop, "teacher", f"--resume {tmp_path} {more}") == 0
    settings, names = json.loads((tmp_path / "run.json").read_text()), "stage seed workers pieces steps minutes"
    assert [settings[name] for name in names.split()] == ["b", 3, 0, 2, None, 1e-9]


def test_a_run_is_resumed_from_any_folder(workshop, tmp_path, monkeypatch):
    def go(stage, options):
        return main(["train", stage, *options.split()])

    begun = "--preset tiny --precision fp32 --data clips --steps 1"
    for folder in ("clips", "start"):
        (tmp_path / folder).symlink_to(workshop / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("motionstream.training.network.WEIGHTS", tmp_path / "known")
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "tiny").symlink_to(workshop / "start")
    assert go("distil", f"{begun} --model tiny --teacher start --out run") == 0
    assert go("teacher", f"{begun} --model start --widen start/transformer --out wide") == 0
    assert go("distil", "--resume run --data clips --teacher start --steps 2") == 0  # said again
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert go("distil", "--resume ../run --steps 3") == go("teacher", "--resume ../wide --steps 3") == 0
    for run in ("run", "wide"):
        assert torch.load(tmp_path / run / "last.pt", weights_only=True)["step"] == 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"] == "tiny"
    older = tmp_path / "run" / "run.json"  # whose paths are as they were given
    older.write_text(json.dumps(json.loads(older.read_text()) | {"data": "clips", "teacher": "start", "out": "run"}))
    monkeypatch.chdir(tmp_path)
    assert go("distil", "--resume run --steps 4") == 0


def hold(folder, workers):
    with command.sole_run(folder, World()):
        if worker := os.fork():  # which outlives it
            workers.put(worker)
        time.sleep(100)


def test_a_run_is_trained_by_one_command_at_a_time(workshop, tmp_path, capsys):
    begun = f"--model start --data clips --out {tmp_path} --steps 1"
    assert train(workshop, "teacher", begun) == 0
    before, context = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}, mp.get_context("fork")
    workers = context.SimpleQueue()
    other = context.Process(target=hold, args=(tmp_path, workers))
    other.start()
    worker = workers.get()
    capsys.readouterr()
    for options in (begun, f"--resume {tmp_path} --steps 2"):
        assert train(workshop, "teacher", options) == 2
        said = f"motionstream: another process trains in {tmp_path}: stop it first, or name another folder\n"
        assert capsys.readouterr().err == said
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    other.kill()
    other.join()
    assert train(workshop, "teacher", f"--resume {tmp_path} --steps 2") == 0
    os.kill(worker, signal.SIGKILL)


def test_where_there_are_no_locks_a_run_goes_unguarded(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    with command.sole_run(tmp_path, World()), command.sole_run(tmp_path, World()):
        assert list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", '{"command": "teac', "[]", '{"preset": null}'])
def test_notes_that_are_torn_are_named(workshop, text, tmp_path, capsys):
    for name in ("run.json", "shards.json", "model_index.json", "clip.safetensors"):
        (tmp_path / name).write_text(text)
    for stage, options in (
        ("teacher", f"--resume {tmp_path}"),
        ("clips", f"--model start --library any --count 2 --out {tmp_path}"),
        ("adapt", f"--model {tmp_path} --data clips --out {tmp_path / 'run'}"),
    ):
        assert train(workshop, stage, options) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"motionstream: {tmp_path}") and said.count("\n") == 1


def test_commands_that_begin_at_once_share_a_folder(tmp_path):
    ready = threading.Barrier(8)

    def begin(folder):
        ready.wait()
        clips.claim_shards(folder, {"command": "clips", "chunks": 3}, World())

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            list(pool.map(begin, [tmp_path / str(number)] * 8))
            assert json.loads((tmp_path / str(number) / "shards.json").read_text())["chunks"] == 3


def test_shards_of_other_settings_are_not_taken_for_these(workshop, capsys):
    written = "--model start --data clips --count 2 --out shared"
    assert train(workshop, "trajectories", f"{written} --ode-steps 4") == 2  # which writes none
    assert train(workshop, "trajectories", written) == 0
    assert train(workshop, "trajectories", f"{written} --guidance 3 1.5") == 0  # the same, said aloud
    before = load_file(workshop / "shared" / "00-00000.safetensors")
    assert train(workshop, "trajectories", f"{written} --guidance 1 1") == 2
    said = "shared holds shards made with guidance [3.0, 1.5], not [1.0, 1.0]: give the same, or name another folder"
    assert said in capsys.readouterr().err
    assert train(workshop, "trajectories", "--model start --data clips --count 2 --out clips") == 2
    assert "clips holds shards made with command clips, not trajectories" in capsys.readouterr().err
    assert train(workshop, "clips", "--model start --library any --count 2 --chunks 2 --out clips") == 2
    assert "made with chunks 3, not 2" in capsys.readouterr().err
    after = load_file(workshop / "shared" / "00-00000.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    (workshop / "shared" / "shards.json").unlink()  # of an earlier version
    assert train(workshop, "trajectories", f"{written} --guidance 1 1") == 0


def test_shards_of_a_model_that_has_changed_are_not_taken_for_this_ones(workshop, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(workshop / "start", model)
    kinds = {"clips": "--library any", "trajectories": "--data clips"}

    def write(kind, count):
        return train(workshop, kind, f"--model {model} {kinds[kind]} --count {count} --out {tmp_path}/{kind}")

    assert write("clips", 2) == write("trajectories", 2) == 0
    save_network(network(seed=9), workshop / "start", model, torch.float32)
    assert write("clips", 4) == 0  # of which transformer, track head and the words that are learned are no part
    note = tmp_path / "trajectories" / "shards.json"
    before = note.read_bytes()
    assert write("trajectories", 4) == 2
    said = capsys.readouterr().err
    assert "trajectories holds shards made with weights " in said and said.count("\n") == 1
    assert len(list((tmp_path / "trajectories").glob("*.safetensors"))) == 1 and note.read_bytes() == before
    noted = json.loads(before)
    del noted["weights"]  # as of an earlier version
    note.write_text(json.dumps(noted))
    assert write("trajectories", 4) == 0
    [path] = (model / "vae").glob("*.safetensors")
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)
    assert write("clips", 6) == 2
    assert "clips holds shards made with weights " in capsys.readouterr().err


def test_clips_of_another_folder_do_not_take_these_ones_place(workshop, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name / "clip").mkdir(parents=True)
        for number in range(33):
            save_png(tmp_path / name / "clip" / f"{number}.png", np.full((64, 64, 3), 4 * number, np.uint8))

    def write(options):
        given = "--tracker lucas-kanade --resolution 64x64" if "--folder" in options else "--count 2"
        return train(workshop, "clips", f"--model start {given} {options} --out {tmp_path}/out")

    def shards():
        return {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")}

    assert write(f"--folder {tmp_path}/a --chunks 3") == 0
    before = shards()
    for other, told in ((f"--folder {tmp_path}/b", f"{tmp_path}/b"), ("--library any", "none")):
        assert write(other) == 2
        said = f"out holds shards made with folder {tmp_path}/a, not {told}: give the same, or name another folder"
        assert said in capsys.readouterr().err and shards() == before
    assert write(f"--folder {tmp_path}/a --chunks 2") == 0
    assert shards().keys() == before.keys() and shards() != before


def test_trajectories_and_plain_clips_may_lie_together(workshop, tmp_path, monkeypatch):
    mixed, columns = tmp_path / "mixed", []
    blank = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr("motionstream.training.teacher.contact_sheet", lambda names, _: columns.append(names) or blank)
    assert train(workshop, "trajectories", f"--model start --data clips --count 2 --guidance 1 1 --out {mixed}") == 0
    [plain] = (workshop / "clips").glob("*.safetensors")
    for run, last in (("01", plain), ("02", mixed / "00-00000.safetensors")):
        shutil.copy(last, mixed / f"{run}.safetensors")
        assert train(workshop, "adapt", f"--model start --data {mixed} --steps 4 --out {tmp_path}/{run}") == 0
    assert [names.count("teacher") for names in columns] == [0, 1]


def one_of_two(rank, port, folder):
    torch.set_num_threads(1)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert train(folder, "trajectories", "--model start --data clips --count 6 --out split") == 0


def test_two_processes_share_shards_that_do_not_divide_evenly(workshop):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = mp.start_processes(one_of_two, (port, workshop), nprocs=2, start_method="fork", join=False)
    deadline = time.monotonic() + 60
    while not both.join(timeout=1) and time.monotonic() < deadline:
        pass
    for process in both.processes:
        process.kill()
    assert len(list((workshop / "split").glob("*.safetensors"))) == 3


def test_a_run_keeps_the_precision_that_was_measured_for_it(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "pick_dtype", lambda device: torch.bfloat16)
    start = ["--model", str(workshop / "start"), "--data", str(workshop / "clips"), "--out", str(tmp_path)]
    assert main(["train", "teacher", "--preset", "tiny", *start, "--steps", "1"]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("options", ["--steps 0", "--steps -5", "--pieces 0", "--workers -1", "--chunks -2"])
def test_numbers_that_make_no_sense_are_refused(workshop, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(workshop, "teacher", f"--model start --data clips --out junk {options}")
    assert stopped.value.code == 2 and "is no whole number from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rate nan", "--rate: nan is no number above 0"),
        ("--rate -1", "--rate: -1 is no number above 0"),
        ("--seed -1", "--seed: -1 is not from 0 to"),
        ("--steps 1 --minutes 1", "--minutes: not allowed with argument --steps"),
    ],
)
def test_values_that_make_no_sense_are_refused(workshop, options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(workshop, "teacher", f"--model start --data clips --out junk {options}")
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("teacher", "--model start --data clips --steps 1"),
        ("trajectories", "--model start --data clips --count 2"),
        ("clips", "--model start --library any --count 2"),
        ("clips", "--model start --folder {}"),
    ],
)
def test_an_output_that_cannot_be_a_folder_is_named(workshop, stage, options, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"")
    for out in (tmp_path / "clip.mp4", "/proc/nowhere"):
        assert train(workshop, stage, f"{options.format(tmp_path)} --out {out}") == 2
        assert f"cannot write {out}: " in capsys.readouterr().err


@pytest.mark.parametrize(("options", "critics"), [("", 1), ("--adversarial 0", 0)])
def test_a_recipes_discriminator_takes_turns_unless_it_is_switched_off(workshop, options, critics, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.VAE_CLIPS, "EmbeddedVAE", (64, 5))
        patch.setitem(RECIPES["tiny"], "tiny-vae", replace(QUICK, adversarial=0.1))
        flags = f"--model start --library any --out {tmp_path}/run --steps 20 --batch 2 --workers 0 {options}"
        assert train(workshop, "tiny-vae", flags) == 0
    logged = {name for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert sum(name.startswith("discriminator.") for name in logged) == critics


def test_pieces_change_neither_where_an_autoencoder_starts_nor_its_scale(workshop, tmp_path, monkeypatch):
    sizes = load_component(workshop / "start" / "vae").config
    monkeypatch.setattr(command, "EmbeddedVAE", lambda: EmbeddedVAE.from_config(sizes))
    monkeypatch.setitem(command.VAE_CLIPS, "EmbeddedVAE", (64, 5))
    begun = "--library any --steps 1 --rate 1e-30 --workers 0"
    for run, options in (("whole", "--batch 2"), ("pieces", "--batch 2 --pieces 2"), ("other", "--batch 4")):
        assert train(workshop, "tiny-vae", f"{begun} {options} --out {tmp_path}/{run}") == 0
    runs = [tmp_path / run / "model" / "vae" for run in ("whole", "pieces", "other")]
    whole, *others = (load_component(run).state_dict() for run in runs)
    assert whole["latent_std"].std() > 0
    for other in others:
        torch.testing.assert_close(other, whole)


def test_the_embedded_models_own_stages(workshop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.VAE_CLIPS, "EmbeddedVAE", (64, 5))
        options = "--model start --library any --out vae --steps 2 --batch 2 --adversarial 0.1 --workers 0"
        assert train(workshop, "tiny-vae", options) == 0
    assert load_component(workshop / "vae" / "model" / "vae").latent_std.std() > 0
    assert (
        train(workshop, "motion-prior", "--model start --library any --out prior --steps 1 --batch 2 --workers 0") == 0
    )
    load_component(workshop / "prior" / "model" / "motion_prior")
    written = workshop / "prior" / "model" / "motion_prior"
    assert len({path.stat().st_mode for path in written.iterdir()}) == 1  # whoever reads the one may read the other
    assert train(workshop, "matte", "--model start --library any --out ends --steps 1 --batch 2 --workers 0") == 0
    assert torch.isfinite(load_component(workshop / "ends" / "model" / "matte").gain)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("teacher", "--model none --data clips --out junk", "is no model folder"),
        ("teacher", "--model parts --data clips --out junk", "parts has no model_index.json"),
        ("teacher", "--model start --data none --out junk", "holds no .safetensors shard"),
        ("teacher", "--model start --data clips --out junk --chunks 4", "clips of 3 chunks; this stage takes 4"),
        ("teacher", "--model start --data clips --out junk --batch 3 --pieces 2", "make it a multiple of 2"),
        ("teacher", "--model start --data clips --out junk --minutes nan", "cannot train for nan minutes"),
        ("teacher", "--model start --data clips --out junk --minutes 0", "cannot train for 0.0 minutes"),
        ("teacher", "--model start --data clips --out junk --device elsewhere", "no device is called 'elsewhere'"),
        ("teacher", "--model start --out junk", "--data"),
        ("teacher", "--model start --data clips", "--out"),
        ("distil", "--model start --data clips --out junk", "--teacher"),
        ("trajectories", "--model start --data clips --out junk --ode-steps 4", "take a multiple"),
        ("trajectories", "--model start --data clips --out junk --guidance 0 0", "not both 0"),
        ("adapt", "--resume none", "it is no run folder"),
        ("clips", "--model start --out junk", "--library"),
    ],
)
def test_bad_input_is_named(workshop, stage, options, message, capsys):
    assert train(workshop, stage, options) == 2
    said = capsys.readouterr().err
    assert said.startswith("motionstream: ") and message in said and "Traceback" not in said


def test_a_model_of_another_preset_is_named(workshop, capsys):
    assert train(workshop, "teacher", "--model start --data clips --out junk", preset="embedded") == 2
    assert "is of the preset tiny; asked for was embedded" in capsys.readouterr().err


def test_a_stage_that_a_preset_does_not_have_is_named(workshop, capsys):
    for stage in ("motion-prior", "matte"):
        assert train(workshop, stage, "--library any --out junk --minutes 1", preset="wan2.1-1.3b") == 2
        assert f"wan2.1-1.3b has no {stage}: give --preset " in capsys.readouterr().err


def test_settings_are_appendix_d():
    for name, chunks, second in (("wan2.1-1.3b", 7, 800), ("wan2.2-5b", 10, 400)):
        rows = RECIPES[name]
        found = {stage: (row.batch, row.rate, row.steps) for stage, row in rows.items()}
        assert found == {
            "teacher-a": (128, 1e-5, 4_800),
            "teacher-b": (128, 1e-6, second),
            "adapt": (128, 2e-6, 2_000),
            "distil": (64, 2e-6, 2_400),
            "tiny-vae": (16, 3e-4, 400_000),  # the decoder's and as many of its discriminator
        }
        assert rows["tiny-vae"].adversarial > 0
        assert rows["distil"].critic_rate == 4e-7 and rows["distil"].critic_turns == 5
        assert rows["teacher-b"].hide == 0.2 and rows["teacher-b"].frozen_head and rows["teacher-a"].hide == 0
        assert all(row.guidance == Guidance(3.0, 1.5) and row.tracks == (1_000, 2_500) for row in rows.values())
        assert all(row.chunks == chunks for stage, row in rows.items() if stage != "tiny-vae")


def test_without_a_discriminator_the_decoder_has_as_many_updates():
    def steps(**given):
        return command._recipe(SimpleNamespace(preset="wan2.1-1.3b", **given), "tiny-vae").steps

    assert steps(adversarial=0.0) == steps() // 2 and steps(adversarial=0.05) == steps()
    assert steps(adversarial=0.0, steps=10) == 10


@pytest.mark.parametrize("stage", ["adapt", "distil"])
def test_a_given_rate_takes_muons_and_the_critics_along(stage):
    row = RECIPES["embedded"][stage]
    given = command._recipe(SimpleNamespace(preset="embedded", rate=row.rate / 3), stage)
    muon = row.muon and pytest.approx(row.muon / 3)
    assert given == replace(row, rate=row.rate / 3, muon=muon, critic_rate=pytest.approx(row.critic_rate / 3))


@pytest.mark.parametrize("preset", RECIPES)
def test_real_clips_are_as_large_as_synthetic_ones(preset, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(command, "load_encoders", lambda *_: None)
    monkeypatch.setattr(command, "RealClips", lambda folder, size, fps: sizes.append(size))
    monkeypatch.setattr(command, "folder_records", lambda *_: None)
    monkeypatch.setattr(command, "write_stream", lambda *_: None)
    assert command.main(["clips", "--preset", preset, "--model", "any", "--folder", "any", "--out", str(tmp_path)]) == 0
    width, height = sizes[0]
    assert width > height
    if preset.startswith("wan"):
        assert sizes[0] in clips.MIXTURES[preset].sizes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--folder any --count 3", "--count says nothing about the clips of --folder: leave it out"),
        ("--library any --resolution 64x64", "--resolution says nothing about synthetic clips: leave it out"),
        ("--library any --cache any", "--cache says nothing about synthetic clips: leave it out"),
    ],
)
def test_options_that_say_nothing_are_refused(workshop, options, said, tmp_path, capsys):
    assert train(workshop, "clips", f"--model start --out {tmp_path} {options}") == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_text_encoder_is_read_at_the_precision_that_it_runs_in(tmp_path):
    read, preset = [], PRESETS["wan2.2-5b"]

    def load(folder, dtype=None):
        read.append((folder.name, dtype))
        return torch.nn.Linear(1, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "load_component", load)
        clips.load_encoders(tmp_path, preset, World(dtype=torch.bfloat16))
    assert read == [("vae", None), ("text_encoder", torch.bfloat16)]


def test_where_no_clip_begins_in_its_middle_distillation_loads_no_encoders(workshop, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(command, "load_encoders", lambda *_, **__: loaded.append(1) or clips.load_encoders(*_, **__))
    options = f"--model start --teacher start --data clips --steps 1 --out {tmp_path}"
    assert train(workshop, "distil", options + "/a") == 0 and not loaded
    assert train(workshop, "distil", options + "/b --chunks 3") == 0 and loaded


# --- where a network starts ----------------------------------------------------------------------------------------


def test_a_widened_network_is_the_model_it_comes_from(tmp_path):
    torch.manual_seed(0)
    known = PLAIN.transformer_config()
    narrow = MotionTransformer(**(known | {"in_channels": known["in_channels"] - PLAIN.track_channels}))
    narrow.save_pretrained(tmp_path)
    wide, batch = widened_network(PLAIN, tmp_path), clip_batch(PLAIN, clips=2)
    z, t = torch.randn_like(batch.latents), torch.tensor([1.0, 0.5])
    with torch.no_grad():
        condition = wide.condition(batch, range(3))
        x0 = wide.predict(z, t, condition, wide.context(batch))
        stock = torch.cat([z, condition.channels[:, : -PLAIN.track_channels]], 1)
        velocity = narrow(stock, 1000 * t, narrow.encode_context(batch.text), return_dict=False)[0]
    torch.testing.assert_close(x0, z - t.view(-1, 1, 1, 1, 1) * velocity, atol=1e-5, rtol=1e-4)


def test_a_model_with_other_channels_is_not_widened_even_from_a_folder_of_diffusers(tmp_path):
    known = PLAIN.transformer_config()
    more = known["in_channels"] - PLAIN.track_channels + 4
    MotionTransformer(**(known | {"in_channels": more})).save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanImageToVideoPipeline"}')
    with pytest.raises(InputError, match=f"has {more} input channels"):
        widened_network(PLAIN, tmp_path / "transformer")


def test_a_network_without_a_motion_prior_starts_from_one_that_had_it(tmp_path):
    parts, source = tmp_path / "parts", network()
    MotionPrior(widths=(8, 8), features=4).save_pretrained(parts / "motion_prior")
    save_network(source, parts, tmp_path / "model", torch.float32)
    alone = widened_network(ALONE, tmp_path / "model" / "transformer")
    torch.testing.assert_close(alone.text_encoder.embedding.weight, source.text_encoder.embedding.weight)
    batch, t = clip_batch(ALONE, clips=2), torch.tensor([1.0, 0.5])
    z = torch.randn_like(batch.latents)
    nothing = Condition(torch.zeros(2, TINY.condition_channels, *z.shape[2:]), torch.zeros_like(z), z[:, :, :1])
    with torch.no_grad():
        condition = replace(alone.condition(batch, range(3)), first=z[:, :, :1])
        got = alone.predict(z, t, condition, alone.context(batch))
        torch.testing.assert_close(got, source.predict(z, t, nothing, source.context(batch)))
    save_network(alone, parts, tmp_path / "alone", torch.float32)
    assert not (tmp_path / "alone" / "motion_prior").exists()
    load_network(tmp_path / "alone", ALONE)


def test_a_widened_network_leaves_out_what_a_motion_prior_said(tmp_path):
    parts, source = tmp_path / "parts", network()
    MotionPrior(widths=(8, 8), features=4).save_pretrained(parts / "motion_prior")
    save_network(source, parts, tmp_path / "model", torch.float32)
    wide = widened_network(TINY, tmp_path / "model" / "transformer").transformer.patch_embedding.weight
    torch.testing.assert_close(wide[:, :8], source.transformer.patch_embedding.weight[:, :8])
    assert wide.shape == source.transformer.patch_embedding.weight.shape and not wide[:, 8:].any()


def test_trajectories_are_as_many_as_asked_for_however_few_clips_there_are(workshop):
    clips, few = sorted((workshop / "clips").glob("*.safetensors")), workshop / "few"
    few.mkdir()
    save_file({name: value[:1] for name, value in load_file(clips[0]).items()}, few / clips[0].name)
    shutil.copy(workshop / "clips" / "shards.json", few)
    assert train(workshop, "trajectories", "--model start --data few --count 4 --guidance 1 1 --out more") == 0
    ends = torch.cat([load_file(path)["endpoint"] for path in sorted((workshop / "more").glob("*.safetensors"))])
    assert len(ends) == 4 and len({end.sum().item() for end in ends}) == 4  # each from noise of its own


def test_tracks_as_rgb_are_colours_through_the_autoencoder(workshop):
    vae = load_component(workshop / "parts" / "vae")
    head, ids = RgbTracks(vae, 8), torch.tensor([3, 8_000])
    maps = torch.zeros(1, 9, 4, 6, 8)
    maps[:, :, 1, 2], maps[:, :, 3, 5] = embed_ids(ids, 8)
    canvas = torch.zeros(1, 3, 9, 32, 48)
    canvas[:, :, :, 8:16, 16:24] = embed_ids(ids, 8)[0, :3].view(3, 1, 1, 1)
    canvas[:, :, :, 24:, 40:] = embed_ids(ids, 8)[1, :3].view(3, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(head(maps, True), vae.encode(canvas))
    with pytest.raises(ValueError, match="whole clips"):
        head(maps[:, 1:], False)


def test_a_teacher_learns_from_tracks_as_rgb(workshop, capsys):
    start = "--scratch --model start --data clips --steps 1"
    assert train(workshop, "teacher", f"{start} --rgb-tracks --out rgb") == 0
    assert train(workshop, "teacher", "--resume rgb --steps 2") == 0
    net = load_network(workshop / "rgb" / "model", TINY, rgb=True)
    assert not (workshop / "rgb" / "model" / "track_head").exists()  # it would be another one's
    assert isinstance(net.track_head, RgbTracks) and net.transformer.config.in_channels == 8 + 8 + 12
    batch, told = clip_batch(clips=2), torch.tensor([True, False])
    shown = net.condition(batch, range(3), told).channels[:, :8]
    blank = net.track_head(torch.zeros(1, 33, 4, 6, 8), True)
    torch.testing.assert_close(shown[1:], blank)
    assert (shown[0] - blank[0]).abs().max() > 0.01
    assert train(workshop, "teacher", "--scratch --data clips --out junk") == 2
    assert "need --model" in capsys.readouterr().err


def test_foreign_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="is no transformer folder"):
        widened_network(PLAIN, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file({"patch_embedding.weight": torch.zeros(32, 5, 1, 2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="has 5 input channels; plain widens 20 of them by 4"):
        widened_network(PLAIN, tmp_path)
    save_file({"patch_embedding.weight": torch.zeros(32, 20, 1, 2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="does not fit plain: the first weight that differs is blocks.0"):
        widened_network(PLAIN, tmp_path)
    with pytest.raises(InputError, match="has no model_index.json"):
        model_folder(tmp_path, TINY)


def test_a_new_network_of_the_residual_kind_shows_the_motion_prior(tmp_path):
    net, batch = new_network(TINY, tmp_path, seed=1), clip_batch(clips=2)
    assert isinstance(net.text_encoder, EffectTextEncoder)
    with torch.no_grad():
        x0 = net.predict(
            torch.randn_like(batch.latents), torch.ones(2), net.condition(batch, range(3)), net.context(batch)
        )
    torch.testing.assert_close(x0, batch.prior)


def test_words_that_a_model_lacks_get_vectors(tmp_path):
    old = EffectTextEncoder(text_dim=16, vocabulary=("fog", "night"))
    old.save_pretrained(tmp_path / "text_encoder")
    text = new_network(TINY, tmp_path, seed=1).text_encoder
    for prompt in ("", "fog", "night fog"):
        torch.testing.assert_close(text.encode(prompt), old.encode(prompt))
    assert len(text.vocabulary) > 2


def test_saving_rounds_nothing_that_is_read_in_float32(workshop, tmp_path):
    taught = network()
    save_network(taught, workshop / "parts", tmp_path, torch.bfloat16)
    kept = load_component(tmp_path / "transformer")
    assert torch.equal(kept.scale_shift_table, taught.transformer.scale_shift_table)
    assert torch.equal(kept.blocks[0].norm2.weight, taught.transformer.blocks[0].norm2.weight)
    rounded = taught.transformer.blocks[0].ffn.net[2].weight.bfloat16().float()
    assert torch.equal(kept.blocks[0].ffn.net[2].weight, rounded)


def test_what_begins_anew_begins_alike(workshop, tmp_path):
    """So the processes of one training do, and a run that is begun again."""
    weights = []
    for name in ("a", "b"):
        torch.rand(len(weights))
        options = f"--model start --widen {workshop}/start/transformer --data clips --rate 1e-30 --steps 1"
        assert train(workshop, "teacher", f"{options} --out {tmp_path}/{name}") == 0
        weights.append(load_component(tmp_path / name / "model" / "track_head").state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_saving_keeps_the_other_parts(workshop, tmp_path):
    net = network(seed=9)
    for _ in range(2):  # over an earlier one
        save_network(net, workshop / "start", tmp_path / "model", torch.float16)
    again = load_network(tmp_path / "model", TINY)
    torch.testing.assert_close(again.transformer.proj_out.weight, net.transformer.proj_out.weight, atol=1e-3, rtol=1e-3)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "transformer",
        "track_head",
        "text_encoder",
        "vae",
        "motion_prior",
        "model_index.json",
    }
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["preset"]["name"] == "tiny"
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert len(modes) == 1  # whoever may read the settings may read the weights
