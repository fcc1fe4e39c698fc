"""Training: scenes whose tracks are true, effects, the shared loop, and losses that can be learned."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from motionstream.model.motion_prior import MotionPrior
from motionstream.model.text import EffectTextEncoder
from motionstream.model.vae import EmbeddedVAE
from motionstream.training import autoencoder, prior
from motionstream.training.adaptation import Student
from motionstream.training.clips import Clips, chunk_bounds, make_clip, read_tracks, with_effect
from motionstream.training.effects import EFFECTS, Effect
from motionstream.training.loop import Schedule, batches, fit, optimisers_for
from motionstream.training.scenes import choose_tracks, noise_texture, random_scene, render_clip

EMPTY = SimpleNamespace(photos=[], cutouts=[], objects=[])
SIZE = (96, 64)


def scene_and_clip(seed, frames=13):
    scene = random_scene(np.random.default_rng(seed), EMPTY, *SIZE, frames)
    return scene, render_clip(scene)


@pytest.mark.parametrize("seed", range(6))
def test_what_a_visible_track_points_at_keeps_its_colour(seed):
    scene, clip = scene_and_clip(seed)
    tracks = choose_tracks(np.random.default_rng(seed), scene, clip, "dense")
    errors, chance = [], []
    for t in (6, 12):
        seen = tracks.visible[t] & tracks.visible[0]
        first, now = (np.floor(tracks.points[k, seen]).astype(int) for k in (0, t))
        was = clip.frames[0][first[:, 1], first[:, 0]].astype(float)
        errors.append(np.abs(was - clip.frames[t][now[:, 1], now[:, 0]]).mean())
        chance.append(np.abs(was - np.roll(was, len(was) // 2, axis=0)).mean())
    assert np.mean(errors) < 0.25 * np.mean(chance)


def test_a_visitors_tracks_reach_everything_that_moves():
    for seed in range(12):
        scene, clip = scene_and_clip(seed, frames=5)
        tracks = choose_tracks(np.random.default_rng(seed), scene, clip, "drags")
        cells = np.floor(tracks.points[0]).astype(int)
        reached = set(clip.owner[0][cells[:, 1], cells[:, 0]].tolist())
        shown = set(np.unique(clip.owner[0]).tolist())
        assert {i for i, layer in enumerate(scene.layers) if layer.moves} & shown <= reached


def test_objects_are_cut_from_photographs_in_their_place():
    rng = np.random.default_rng(0)
    photo = noise_texture(rng, 200, 150)
    mask = np.zeros((150, 200), np.uint8)
    mask[50:90, 60:120] = 255
    library = SimpleNamespace(
        photos=[photo], cutouts=[np.dstack([photo[:40, :40], mask[50:90, 60:100]])], objects=[(0, mask)]
    )
    shares = []
    for seed in range(12):
        scene = random_scene(np.random.default_rng(seed), library, *SIZE, 3)
        assert render_clip(scene).frames.shape == (3, 64, 96, 3)
        shares.append((render_clip(scene).owner[0] > 0).mean())
    assert 0.02 < np.mean(shares) < 0.7


def test_effects_change_what_they_should_and_fade_in():
    frames = render_clip(random_scene(np.random.default_rng(1), EMPTY, *SIZE, 9)).frames
    for name in EFFECTS:
        effect = Effect((name,))
        assert np.array_equal(effect.apply(frames, np.zeros(9)), frames), name
        changed = effect.apply(frames, np.ones(9))
        assert changed.dtype == np.uint8 and changed.shape == frames.shape
        assert np.abs(changed.astype(int) - frames).mean() > 1, name
    for seed in range(8):
        shown, prompt = with_effect(np.random.default_rng(seed), frames)
        assert np.array_equal(shown[0], frames[0])
        assert bool(prompt) != np.array_equal(shown, frames)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Linear(1, 1)


def line_loss(model, batch):
    return {"loss": (model.slope(batch["x"]) - 3 * batch["x"]).square().mean()}


def line_data(seed=0):
    return batches(lambda rng: {"x": torch.tensor(rng.normal(0, 1, (1,)), dtype=torch.float32)}, 8, seed, workers=0)


def test_the_loop_learns_resumes_and_keeps_its_log(tmp_path):
    torch.manual_seed(0)
    model = Line()
    optimisers = optimisers_for(model, 0.05)
    fit(model, line_data(), line_loss, tmp_path, Schedule(1, 0.05, 8, steps=80, warmup=1, ema=0.9), optimisers)
    first = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert first[-1]["loss"] < 0.5 * first[0]["loss"]
    resumed = Line()
    averaged = fit(
        resumed,
        line_data(),
        line_loss,
        tmp_path,
        Schedule(1, 0.05, 8, steps=120, warmup=1, ema=0.9),
        optimisers_for(resumed, 0.05),
    )
    later = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert later[len(first)]["step"] > first[-1]["step"] and later[len(first)]["loss"] < 0.5 * first[0]["loss"]
    assert abs(averaged.slope.weight.item() - 3) < 1


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path):
    model = Line()
    fit(model, line_data(), line_loss, tmp_path, Schedule(1, 0.01, 8, steps=4), optimisers_for(model, 0.01))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="loss is nan at step"):
        fit(
            Line(),
            line_data(),
            lambda m, b: {"loss": m.slope(b["x"]).mean() * float("nan")},
            tmp_path,
            Schedule(1, 0.01, 8, steps=8),
            optimisers_for(Line(), 0.01),
        )
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def falls(loss, batch, model, optimisers, steps=8):
    """Whether a few steps on one batch lower its loss, measured with the same random numbers before and after."""

    def value():
        torch.manual_seed(1)
        with torch.no_grad():
            return loss(model, batch)["loss"].item()

    before = value()
    for _ in range(steps):
        loss(model, batch)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    return value() < 0.97 * before


def test_the_autoencoder_starts_from_pca_and_learns():
    torch.manual_seed(0)
    clips = [autoencoder.sample(np.random.default_rng(seed), EMPTY)["frames"] for seed in range(4)]
    batch = {"frames": torch.stack(clips)[:, :, :5, :64, :64]}
    vae = EmbeddedVAE(latent_channels=24, encoder_width=16, decoder_width=16, decoder_fine_width=8, decoder_depth=1)
    untrained = autoencoder.reconstruction_loss(vae, batch)["psnr"]
    autoencoder.start_from_pca(vae, batch["frames"][:2])
    assert autoencoder.reconstruction_loss(vae, batch)["psnr"] > untrained + 6
    assert falls(autoencoder.reconstruction_loss, batch, vae, autoencoder.optimisers(vae, 1e-3), steps=20)
    autoencoder.normalise(vae, batch["frames"])
    latents = vae.encode(batch["frames"])
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(24), atol=1e-3, rtol=0)


def test_the_motion_prior_learns():
    samples = [prior.sample(np.random.default_rng(seed), EMPTY) for seed in range(3)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    torch.manual_seed(0)
    small = MotionPrior(widths=(16, 16, 16), features=8)
    assert falls(prior.motion_loss, batch, small, optimisers_for(small, 3e-3))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vae, text = (
        EmbeddedVAE(encoder_width=16, decoder_width=16, decoder_fine_width=8, decoder_depth=1),
        EffectTextEncoder(),
    )
    small = MotionPrior(widths=(8, 8), features=4).eval()
    return vae, make_clip(np.random.default_rng(5), EMPTY, vae.eval(), small, text, (64, 64))


def test_a_clip_holds_what_a_stream_would_have_met(clip, tmp_path):
    from safetensors.torch import save_file

    vae, made = clip
    assert chunk_bounds() == [(0, 9), (9, 21), (21, 33)]
    assert made["latents"].shape == made["prior"].shape == (48, 9, 8, 8) and made["confidence"].shape == (4, 9, 8, 8)
    torch.testing.assert_close(made["latents"][:, 0], made["prior"][:, 0], atol=0.02, rtol=0.02)  # frame 0 is the image
    save_file({name: value[None].contiguous() for name, value in made.items()}, tmp_path / "00-0000.safetensors")
    [[read]] = [next(Clips(tmp_path).batches(4, seed=0))]
    first, second = (read_tracks(read, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(first.points, second.points) and (first.N == 0 or not np.array_equal(first.ids, second.ids))
    with pytest.raises(FileNotFoundError, match="training.clips"):
        Clips(tmp_path / "nothing")


def test_an_untrained_student_is_the_motion_prior_and_a_trained_one_is_better(clip):
    vae, made = clip
    torch.manual_seed(0)
    student = Student(vae)
    terms = student.loss([made, made])
    torch.testing.assert_close(terms["loss"], terms["prior_loss"], atol=0.02, rtol=0.05)
    assert falls(Student.loss, [made], student, optimisers_for(student, 1e-3, muon=1e-3))
