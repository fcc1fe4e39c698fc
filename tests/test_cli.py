"""The command line: what it writes, what it prints, how it ends."""

import dataclasses
import io
import json
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import torch
from PIL import Image

import app
import motionstream.evaluation.speed
import motionstream.streaming
from motionstream.cli import main
from motionstream.model.checkpoint import random_model, save_model
from motionstream.model.presets import PRESETS
from motionstream.tracks import Tracks
from motionstream.video import fit_image, read_clip, read_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small random model, a photo and tracks that were drawn on a quarter-size preview of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    row = PRESETS["embedded"]
    shape = dict(row.transformer) | dict(num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=16)
    save_model(random_model(dataclasses.replace(row, transformer=shape, budgets=(6, 4))), folder / "model")
    photo = np.random.default_rng(0).integers(0, 256, (120, 200, 3)).astype(np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    path = np.stack([np.linspace(10, 40, 21), np.full(21, 15)], axis=-1)
    (folder / "tracks.json").write_text(Tracks.rigid_grid(path, 4, 2, np.arange(4)).to_json(50, 30, 16.0))
    return folder


@pytest.fixture
def run(folder, tmp_path, capsys):
    """run(*arguments after `generate photo.png -o out.mp4 --model model`) -> exit code, stdout, stderr"""

    def run(*arguments, image="photo.png", out="out.mp4"):
        command = ["generate", str(folder / image), "-o", str(tmp_path / out), "--model", str(folder / "model")]
        code = main([*command, *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_generate_writes_what_it_reports(run, folder, tmp_path):
    code, out, err = run("--tracks", folder / "tracks.json", "--json", "--seed", 3, "--prompt", "fog")
    report = json.loads(out.splitlines()[-1])
    assert (code, err) == (0, "")
    assert report.keys() == {"out", "frames", "width", "height", "fps_playback", "fps_generated", "first_chunk_s"}
    frames, fps = read_clip(tmp_path / "out.mp4")
    assert frames.shape == (report["frames"], report["height"], report["width"], 3)
    assert report["frames"] == 21 and fps == report["fps_playback"] == 16  # as long as the tracks
    assert (report["width"], report["height"]) == (192, 128)  # 48x32 at 6 tokens, shown as sharp as the photo is
    assert report["fps_generated"] > 0 and report["first_chunk_s"] > 0
    photo = fit_image(read_image(folder / "photo.png"), report["width"], report["height"])
    assert np.abs(frames[0].astype(int) - photo).mean() < 40  # noise, twice compressed
    with av.open(str(tmp_path / "out.mp4")) as container:
        recipe = json.loads(container.metadata["comment"])
    assert (recipe["model"], recipe["prompt"], recipe["seed"]) == ("embedded", "fog", 3)
    assert len(recipe["tracks"]["sha256"]) == 64
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_length_seed_and_resolution(run, tmp_path):
    videos = []
    for name, seed in (("a.mp4", 0), ("b.mp4", 0), ("c.mp4", 1)):
        code, out, _ = run("--seconds", 0.75, "--resolution", "48x32", "--seed", seed, out=name)
        assert code == 0 and "12 frames of 192x128 at 16 fps" in out
        videos.append((tmp_path / name).read_bytes())
    assert videos[0] == videos[1]
    assert len(read_clip(tmp_path / "c.mp4")[0]) == 12


def test_tracks_are_in_the_pictures_own_place(run, folder, monkeypatch):
    seen = []
    original = motionstream.streaming.stream

    def watching(model, image, source, **options):
        for chunk in original(model, image, source, **options):
            seen.append(chunk.tracks)
            yield chunk

    monkeypatch.setattr(motionstream.streaming, "stream", watching)
    run("--tracks", folder / "tracks.json", "--resolution", "48x32", "--seconds", 1)
    centre = seen[0].points[0].mean(axis=0)  # (10, 15) of 50x30 is (40, 60) of 200x120, which is cut to 180x120
    np.testing.assert_allclose(centre, [(40 - 10) * 32 / 120, 60 * 32 / 120], rtol=1e-5)


def broken_files(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    (folder / "nan.json").write_text(Tracks.empty(3).to_json(5, 5, 16.0).replace('"tracks": []', '"tracks": [NaN]'))
    (folder / "broken.json").write_text("{")
    twice = Tracks(np.zeros((3, 2, 2)), np.ones((3, 2), bool), [7, 7])
    (folder / "twice.json").write_text(twice.to_json(5, 5, 16.0))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {"image": "empty.png"}, "image is an empty file"),
        ([], {"image": "text.png"}, "not an image of a known format"),
        ([], {"image": "none.png"}, "cannot read"),
        ([], {"out": "out.avi"}, "only .mp4 is known"),
        ([], {"out": "nowhere/out.mp4"}, "cannot write to"),
        (["--tracks", "broken.json"], {}, "the tracks are not JSON"),
        (["--tracks", "nan.json"], {}, '"tracks" must be a list of objects'),
        (["--tracks", "none.json"], {}, "cannot read"),
        (["--tracks", "twice.json"], {}, "track ID 7 is given to more than one track"),
        (["--prompt", "x" * 10_000], {}, "the prompt has 10000 characters; at most 2000"),
        (["--resolution", "50x50"], {}, "must be multiples of 16"),
        (["--model", "no-such-model"], {}, "no-such-model is neither a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, folder, tmp_path, arguments, options, message):
    broken_files(folder)
    arguments = [str(folder / a) if a.endswith(".json") else a for a in arguments]
    code, out, err = run(*arguments, **options)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("motionstream: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_folder_is_refused(run, tmp_path):
    (tmp_path / "out.mp4").mkdir()
    code, _, err = run()
    assert code == 2 and "it is a folder" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["generate"],
        ["generate", "a.png"],
        ["generate", "a.png", "-o", "b.mp4", "--seconds", "0"],
        ["generate", "a.png", "-o", "b.mp4", "--seconds", "nan"],
        ["generate", "a.png", "-o", "b.mp4", "--seed", "-1"],
        ["bench", "--chunks", "many"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--seconds", "long", "long is not above 0 and at most 3600"),
        ("--seed", "one", "one is not from 0 to"),
        ("--seed", "9" * 5_000, "9 is not from 0 to"),
    ],
)
def test_what_is_no_number_is_told_with_its_limits(option, text, message, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "a.png", "-o", "b.mp4", option, text])
    assert message in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_leaves_nothing(run, tmp_path, monkeypatch):
    original = motionstream.streaming.stream

    def interrupted(*args, **options):
        yield next(original(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(motionstream.streaming, "stream", interrupted)
    (tmp_path / "out.mp4").write_bytes(b"old")
    code, out, err = run()
    assert (code, out, err) == (130, "", "motionstream: stopped\n")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_program_that_is_asked_to_end_leaves_nothing(folder, tmp_path):
    words = f"generate {folder}/photo.png -o {tmp_path}/out.mp4 --model {folder}/model --seconds 3000"
    with subprocess.Popen([sys.executable, "-m", "motionstream", *words.split()]) as program:
        try:
            while not list(tmp_path.iterdir()):
                assert program.poll() is None
                time.sleep(0.01)
            program.terminate()
            assert program.wait(60) == 130 and list(tmp_path.iterdir()) == []
        finally:
            program.kill()


def test_progress_is_shown_on_a_terminal_only(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("--seconds", 0.5)[0] == 0
    assert "8/8" in terminal.getvalue()


def test_bench_prints_its_figures_last(monkeypatch, capsys):
    asked = []

    def measure(*arguments, **options):
        asked.append((arguments, options))
        print("a table")
        return {"fps": 20.0}

    monkeypatch.setattr(motionstream.evaluation.speed, "bench", measure)
    assert main(["bench", "--model", "wan2.1-1.3b", "--random-weights", "--chunks", "7", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == ["a table", '{"fps": 20.0}']
    assert asked[0][0][:3] == ("wan2.1-1.3b", 7, True)
    assert asked[0][1] == {"vae": None, "compile": False, "fp8": False, "low_memory": False}
    assert main(["bench"]) == 0
    assert capsys.readouterr().out == "a table\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--resolution", "0"], "resolution '0' is neither a budget of 1 to 4096 tokens"),
        (["bench", "--resolution", "100x64"], "both sides must be multiples of 16 pixels"),
        (["bench", "--chunks", "-1"], "-1 chunks are too few"),
        (["bench", "--device", "cuda"], "no CUDA device here"),
        (["eval", "motion", "clips", "--device", "cuda"], "no CUDA device here"),
        (["eval", "drags", "drags", "--device", "foo"], "no device is called 'foo'"),
        (["eval", "camera", "scenes", "--device", "cuda"], "no CUDA device here"),
        (["eval", "ablations", "clips", "--device", "foo"], "no device is called 'foo'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(motionstream.evaluation.speed, "matmul_peak", lambda *_: 1.0)
    assert main([*arguments, "--model", str(folder / "model")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("motionstream: ") and err.count("\n") == 1


@pytest.mark.parametrize(("given", "model"), [("", "embedded"), ("owner/name", "owner/name")])
def test_an_empty_name_in_the_environment_is_none(given, model, monkeypatch):
    monkeypatch.setenv("MOTIONSTREAM_MODEL", given)
    assert app.parse_arguments([]).model == model


def test_help_is_instant():
    code = "import sys, motionstream.cli as c\ntry: c.main(['generate', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--tracks FILE.json" in done.stdout
    assert not {"numpy", "torch", "gradio", "av"} & set(done.stdout.split())


def test_the_module_runs_as_a_program(folder, tmp_path):
    command = [sys.executable, "-m", "motionstream", "generate", folder / "none.png", "-o", tmp_path / "o.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [f"motionstream: cannot read {folder / 'none.png'}: No such file or directory"]
