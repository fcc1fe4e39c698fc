"""The ablations: the configurations are what they say, figures are of the right frames, one run writes all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_kit import TINY, network

from motionstream.errors import InputError
from motionstream.evaluation import ablations
from motionstream.evaluation.ablations import by_second, context_table, contexts, name_of, score, streamed, to_and_fro
from motionstream.evaluation.motion import Clip
from motionstream.evaluation.plot import line_plot
from motionstream.model.checkpoint import assemble
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.vae import EmbeddedVAE
from motionstream.tracks import Tracks
from motionstream.training.effects import EFFECTS
from motionstream.training.settings import RECIPES


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = network()
    vae = EmbeddedVAE(8, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=1)
    parts = dict(transformer=net.transformer, track_head=net.track_head, text_encoder=net.text_encoder, vae=vae)
    return assemble(TINY, parts | {"motion_prior": MotionPrior(widths=(8, 8), features=4)}, "cpu", torch.float32)


def clip(frames=45, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.uniform(8, 40, (1, 6, 2)) * (1, 0.6) + np.linspace(0, 4, frames)[:, None, None]
    video = rng.integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)
    return Clip("noise", video, Tracks(points, np.ones((frames, 6), bool), np.arange(6)), 8.0, prompt="snow")


CONFIGURATIONS = ["as shipped", "c3s1w1", "c3s0w1", "c1s1w1", "c3s0w6", "window grows"]


def test_configurations_are_the_papers(model):
    found = contexts(model, 241)
    assert list(found) == CONFIGURATIONS
    for name, one in found.items():
        if name.startswith("c"):
            assert name_of(one.preset) == name and not one.preset.composite
    assert found["as shipped"].preset == TINY
    without = replace(model, preset=replace(TINY, composite=False))
    assert list(contexts(without, 241)) == list(found)[1:]  # it is shipped as it is
    grows = found["window grows"].preset
    assert grows.sink == 0 and grows.chunk_frames(0) + grows.chunk_frames(1) * (grows.window - 1) >= 241


def test_every_configuration_streams_and_a_sink_matters(model):
    one = clip()
    videos = {name: streamed(each, one.frames[0], one.tracks, 0) for name, each in contexts(model, 45).items()}
    assert all(video.shape == one.frames.shape for video, _ in videos.values())
    assert len(videos["c3s1w1"][1]) == 3 and len(videos["c1s1w1"][1]) == 11  # the first chunk isn't timed
    late = slice(33, 45)
    assert not np.array_equal(videos["c3s1w1"][0][late], videos["c3s0w1"][0][late])
    assert not np.array_equal(videos["window grows"][0][late], videos["c3s0w1"][0][late])
    assert np.array_equal(videos["window grows"][0][:21], videos["c3s0w1"][0][:21])  # a window of 1 has seen as much


def test_drift_is_the_last_second_over_the_first():
    one = clip()
    faded = one.frames.copy()
    faded[-16:] = 128
    kept, lost = score(one.frames, one, 16, None), score(faded, one, 16, None, [1.0, 3.0])
    assert kept["psnr first"] == kept["psnr last"] == 100 and kept["kept"] == pytest.approx(1, abs=0.1)
    assert lost["psnr first"] == 100 and lost["psnr last"] < 15 and lost["kept"] < 0.01
    assert (lost["latency"], lost["spread"]) == (2.0, 1.0)
    for frame, worse in ((0, set()), (1, {"first"}), (16, {"first"}), (17, set()), (28, set()), (29, {"last"}),
                         (44, {"last"})):
        touched = one.frames.copy()
        touched[frame] = 128
        figures = score(touched, one, 16, None)
        assert {when for when in ("first", "last") if figures[f"psnr {when}"] < 100} == worse, frame
    assert by_second(faded, 16)[0] == pytest.approx(1, abs=0.1) and len(by_second(faded, 16)) == 2


def test_whole_seconds_count_to_the_last():
    frames = clip(48).frames
    frames[32:] //= 2
    assert by_second(frames, 16) == pytest.approx([1, 1, 0.25], abs=0.05)
    assert len(by_second(frames[:47], 16)) == 2


def test_decoders_are_measured_on_the_same_latents(model):
    one, other = clip(), EmbeddedVAE(8, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=1)
    found = ablations.decoder_table(replace(model, tiny_vae=other), one)
    assert list(found) == ["full VAE", "tiny VAE"] and all(row["ms a frame"] > 0 for row in found.values())
    with torch.no_grad():
        latents = model.vae.encode(torch.tensor(one.frames[:9]).movedim(-1, 0)[None] / 127.5 - 1)
        for row, vae in zip(found.values(), (model.vae, other), strict=True):
            frames = 127.5 * (vae.decode(latents)[0].movedim(0, -1) + 1)
            error = np.square(frames.round().clamp(0, 255).numpy() - one.frames[:9]).mean((1, 2, 3))
            assert row["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / error)), abs=0.01)


def test_streams_are_told_what_a_clip_shows(model, monkeypatch):
    prompts = []

    def told(one, image, tracks, seed, prompt=""):
        prompts.append(prompt)
        return np.repeat(image[None], tracks.T, axis=0), [1.0]

    monkeypatch.setattr(ablations, "streamed", told)
    context_table(model, iter([clip()]), 0, None)
    ablations.long_streams(model, clip(), 60, 0)
    assert prompts == ["snow"] * (len(CONFIGURATIONS) + 2)


def test_clips_of_different_lengths_are_averaged_while_they_last(model, monkeypatch):
    monkeypatch.setattr(ablations, "contexts", lambda model, frames: {"plain": model})
    monkeypatch.setattr(ablations, "streamed", lambda model, image, tracks, *_: (videos[tracks.T].frames, [1.0]))
    videos = {frames: replace(clip(frames, seed=frames), name=f"{frames}") for frames in (57, 40)}
    videos[57].frames[16:] //= 2  # a quarter of the energy is left
    figures, curves, rows = context_table(model, iter(videos.values()), 0, None)
    assert [second for second, _ in curves["plain"]] == [0, 1, 2]
    assert [energy for _, energy in curves["plain"]] == pytest.approx([1, (1 + 0.25) / 2, 0.25], abs=0.05)
    assert [row["plain"]["psnr last"] for row in figures.values()] == [100, 100] and len(rows) == 2


def test_synthetic_clips_turn_to_the_light_that_their_prompt_asks_for():
    clips = [clip(20, seed) for seed in range(12)]
    lit = ablations.under_light(clips)
    assert lit[0].prompt == "night" and len({one.prompt for one in lit}) == 10  # then again from the first
    assert not {"snow", "rain"} & {one.prompt for one in lit}
    for before, after in zip(clips, lit, strict=True):
        assert np.array_equal(before.frames[0], after.frames[0])
        asked = np.clip(EFFECTS[after.prompt](before.frames[6:].astype(np.float32), None), 0, 255)
        assert np.abs(after.frames[6:] - asked).max() <= 1
    assert lit[0].frames[-1].mean() < 0.5 * clips[0].frames[-1].mean()


def test_tracks_go_to_and_fro():
    tracks = clip(5).tracks
    longer = to_and_fro(tracks, 12)
    assert longer.T == 12
    np.testing.assert_array_equal(longer.points, tracks.points[[0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]])


def test_a_long_stream_is_compared_with_the_image_when_its_tracks_are_back(model, monkeypatch):
    one, order = clip(5), to_and_fro(Tracks(np.arange(5.0).repeat(2).reshape(5, 1, 2), np.ones((5, 1), bool), [0]), 30)
    video = one.frames[order.points[:, 0, 0].astype(int)]
    monkeypatch.setattr(ablations, "streamed", lambda *_: (video, [1.0]))
    figures, _ = ablations.long_streams(model, one, 30, 0)
    assert {(row["returned"], row["psnr returned"]) for row in figures.values()} == {(24, 100.0)}


def test_plots_show_every_curve():
    picture = line_plot({"a": [(0, 1.0), (1, 2.0)], "b": [(0, 2.0), (1, float("nan")), (2, 1.0)]}, "x")
    empty = line_plot({"a": []}, "x")
    assert picture.shape == empty.shape and picture.dtype == np.uint8
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (picture == colour).all(-1).sum() > 50
    assert (empty == 255).all()
    line_plot({"a": [(0, 0.0), (0, 0.0)]}, "x", log=True)  # nothing to take a logarithm of
    single = line_plot({"a": [(3, 0.5)]}, "x", log=True)[:, : 860 - 210]  # without the names
    assert (single == (31, 119, 180)).all(-1).sum() > 20


def test_one_run_writes_tables_plot_and_sheets(model, tmp_path, monkeypatch, capsys):
    from motionstream.training.network import save_network, with_rgb
    from motionstream.training.rgb_tracks import RgbTracks

    source = tmp_path / "source"
    model.vae.save_pretrained(source / "vae")
    save_network(network(seed=4), source, tmp_path / "teacher", torch.float32)
    recipe = replace(RECIPES["embedded"]["teacher-a"], chunks=2, ode_steps=3)
    monkeypatch.setitem(RECIPES, "tiny", {"teacher-a": recipe})
    monkeypatch.setattr(ablations, "load_model", lambda *_: model)
    monkeypatch.setattr(ablations, "real_clips", lambda folder, frames, *_: iter([clip(min(frames, 45))]))
    rgb = network(with_rgb(TINY), seed=5)
    rgb.track_head = RgbTracks(model.vae, 8)
    rgb.preset = TINY
    save_network(rgb, source, tmp_path / "rgb", torch.float32)
    teachers = ["--teacher", str(tmp_path / "teacher"), "--rgb-teacher", str(tmp_path / "rgb")]
    code = ablations.main(["folder", *teachers, "--long", "100", "--out", str(tmp_path / "new" / "out"), "--json"])
    assert code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["context"]) == CONFIGURATIONS
    teachers = ["teacher", "teacher, text", "teacher, motion", "teacher, both", "teacher, both, its recipe's"]
    assert list(result["guidance"]) == [*teachers, "student", "motionless"]
    assert len({result["guidance"][name]["psnr last"] for name in teachers[:4]}) == 4  # each guided differently
    heads = result["tracks"]
    assert list(heads) == ["track head", "RGB through the VAE"] and all(row["ms"] > 0 for row in heads.values())
    assert heads["track head"]["psnr"] != heads["RGB through the VAE"]["psnr"]
    assert list(result["long"]) == ["c3s1w1", "c3s0w1"]
    assert all(row["returned"] == 88 and row["psnr returned"] < 60 for row in result["long"].values())
    assert result["decoders"] == {}
    assert {"latency", "spread", "kept", "epe"} <= result["context"]["c3s1w1"].keys()
    for name in ("ablations.png", "ablations-drift.png", "ablations-guidance.png", "ablations-long.png"):
        assert (tmp_path / "new" / "out" / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a folder"),
        (["folder", "--frames", "8"], "8 frames a clip are too few; give --frames 9 or more"),
        (["folder", "--spacing", "0"], "tracks 0 px apart"),
        (["folder", "--long", "15"], "--long 15 is less than a second; at least 16 frames"),
        (["folder", "--long", "-1"], "--long -1 is less than a second"),
        (["folder", "--frames", "20", "--teacher", "x"], "noise has 20 frames; at least 21 are needed"),
        (["folder", "--frames", "21", "--teacher", "x"], "x is no model folder"),
        (["folder", "--frames", "21", "--rgb-teacher", "x"], "x is no model folder"),
        (["folder", "--synthetic", "4"], "or ask for --synthetic ones with their --library"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(argv, message, model, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", {"teacher-a": replace(RECIPES["embedded"]["teacher-a"], chunks=2)})
    monkeypatch.setattr(ablations, "load_model", lambda *_: model)
    monkeypatch.setattr(ablations, "real_clips", lambda folder, frames, *_: iter([clip(min(frames, int(argv[2])))]))
    monkeypatch.setattr(ablations, "context_table", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(InputError, match=message):
        ablations.main([*argv, "--out", str(tmp_path)])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file: .*name another folder with --out"):
        ablations.main(["folder", "--out", str(tmp_path / "file")])


def test_tables_are_told_before_pictures_are_written(model, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    context = {"noise": {"c3s1w1": {"epe": 2.0}}}, {"c3s1w1": [(0, 1.0)]}, [("noise", 3 * [np.zeros((4, 4, 3), "u1")])]
    monkeypatch.setattr(ablations, "load_model", lambda *_: model)
    monkeypatch.setattr(ablations, "real_clips", lambda folder, frames, *_: iter([clip(20)]))
    monkeypatch.setattr(ablations, "context_table", lambda *_: context)
    monkeypatch.setattr(ablations, "tracks_table", lambda *_: {})
    monkeypatch.setattr(ablations, "save_png", full)
    with pytest.raises(InputError, match="ablations.png: No space left on device"):
        ablations.main(["folder", "--out", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["context"] == {"c3s1w1": {"epe": 2.0}}
