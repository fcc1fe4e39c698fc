"""Training data and stages: scenes whose tracks are true, effects, shards, real clips, autoencoder and motion prior."""

import contextlib
import gc
import hashlib
import io
import itertools
import multiprocessing
import os
import re
import select
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm
from training_kit import falls, gradients

from motionstream.errors import InputError
from motionstream.model.matte import Matte
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.model.tiny_vae import TinyVAE
from motionstream.model.unet import Residual
from motionstream.model.vae import EmbeddedVAE
from motionstream.progress import Progress
from motionstream.streaming import pack_confidence
from motionstream.tracks import Tracks
from motionstream.training import matte, parallel, pictures, prior, scenes, tiny_vae
from motionstream.training.clips import (
    Clips,
    Encoders,
    chunk_bounds,
    folder_records,
    make_clip,
    to_tensor,
    with_effect,
    write_shard,
    write_stream,
)
from motionstream.training.effects import (
    EFFECTS,
    RAIN,
    SNOW,
    STRIDE,
    Effect,
    Fallen,
    Sky,
    anywhere,
    clip_noise,
    likeness,
)
from motionstream.training.folder import CROP_FRAMES, RealClips, cached_tracks, caption
from motionstream.training.parallel import World
from motionstream.training.pictures import noise_texture
from motionstream.training.scenes import (
    choose_points,
    choose_tracks,
    random_scene,
    render_clip,
    sliding_scene,
)
from motionstream.training.settings import MIXTURES
from motionstream.training.trainer import Draws, Samples, Schedule, made_samples, optimisers_for
from motionstream.video import Clip, Mp4Writer

PRESET = PRESETS["embedded"]

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
    for seed in range(60):
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


@pytest.mark.parametrize("reach", [8, 30])
def test_what_is_shrunk_and_pasted_has_no_rim_of_hidden_colours(reach):
    white = np.zeros((200, 200, 4), np.uint8)
    cv2.circle(white, (100, 100), 90, (250, 250, 250, 255), cv2.FILLED)  # black where it is clear, as files are
    for seed in range(6):
        placed = pictures._paste(np.random.default_rng(seed), white, (120, 90), (80, 60), np.array([60.0, 45.0]), reach)
        rim = placed[(placed[..., 3] > 30) & (placed[..., 3] < 220)].astype(float)
        assert len(rim) > 5 and (rim[:, 0] / rim[:, 3]).min() > 0.9


def test_what_is_thin_may_be_pasted_very_small():
    thin = np.full((256, 9, 4), 255, np.uint8)
    for seed in range(6):
        placed = pictures._paste(np.random.default_rng(seed), thin, (60, 60), (40, 40), np.array([30.0, 30.0]), 2.0)
        assert placed.shape == (60, 60, 4) and placed.any()


@pytest.fixture
def disc():
    """A thing on an empty canvas, premultiplied RGBA."""
    return cv2.circle(np.zeros((200, 200, 4), np.uint8), (100, 90), 40, (200, 120, 160, 255), cv2.FILLED)


def test_what_a_thing_throws_on_the_ground_goes_along_with_it(disc):
    solid, reached = disc[..., 3] == 255, 0
    for seed in range(12):
        shaded = pictures._shaded(np.random.default_rng(seed), disc)
        np.testing.assert_array_equal(shaded[solid], disc[solid])
        assert (shaded[..., :3] <= shaded[..., 3:].astype(int) + 1).all()
        thrown = (shaded[..., 3] > scenes.OWNED) & ~solid
        assert (shaded[thrown, :3] <= np.array([200, 120, 160])).all()
        reached += thrown.sum() > 100
    assert reached > 6


def test_limbs_are_thin_and_begin_at_their_thing(disc):
    for seed in range(12):
        whole = (pictures._limbed(np.random.default_rng(seed), disc)[..., 3] > scenes.OWNED).astype(np.uint8)
        assert cv2.connectedComponents(whole)[0] == 2
        limbs = whole & (cv2.dilate(disc[..., 3], np.ones((3, 3), np.uint8)) == 0)
        assert limbs.any() and not cv2.erode(limbs, np.ones((7, 7), np.uint8)).any()


def test_a_thing_in_the_light_of_its_background_keeps_its_outline(disc):
    background = np.full((200, 200, 3), (40, 200, 90), np.uint8)
    solid, off = disc[..., 3] == 255, []
    for seed in range(12):
        lit = pictures._in_light(np.random.default_rng(seed), disc, background)
        np.testing.assert_array_equal(lit[..., 3], disc[..., 3])
        assert (lit[..., :3] <= lit[..., 3:]).all()
        off.append(np.abs(lit[solid, :3].mean(0) - (40, 200, 90)) / np.abs(np.array([200, 120, 160]) - (40, 200, 90)))
    assert 0.15 < np.min(off) < 0.5 < np.max(off) <= 1.01


def test_what_is_dressed_keeps_its_outline_and_changes_within(disc):
    background, solid, alike = np.full((200, 200, 3), (40, 200, 90), np.uint8), disc[..., 3] == 255, []
    for seed in range(12):
        dressed = pictures._dressed(np.random.default_rng(seed), EMPTY, disc, background)
        assert np.array_equal(dressed[..., 3], disc[..., 3]) and not dressed[disc[..., 3] == 0].any()
        changed = (dressed != disc).any(-1)
        assert 0.02 < changed.sum() / (disc[..., 3] > 0).sum() < 1
        alike.append(np.abs(dressed[changed & solid, :3].astype(int).mean(0) - (40, 200, 90)).max() < 50)
    assert 1 < sum(alike) < 11  # some patches can hardly be told from what is behind


def test_what_is_grown_is_one_piece_with_what_it_was(disc):
    hidden, larger = [], 0
    for seed in range(12):
        grown = pictures._grown(np.random.default_rng(seed), EMPTY, disc, (200, 200), (140, 140))
        assert (grown[..., 3] >= disc[..., 3]).all()
        larger += (grown[..., 3] > disc[..., 3]).any()
        assert cv2.connectedComponents((grown[..., 3] > scenes.OWNED).astype(np.uint8))[0] == 2
        hidden.append((grown != disc)[disc[..., 3] == 255].any())
    assert any(hidden) and not all(hidden) and larger > 6  # a part lies on it, or behind


def test_objects_mostly_lie_apart():
    half = np.zeros((60, 90, 4), np.uint8)
    half[:, :45] = 255
    stamp = np.full((10, 10, 4), 255, np.uint8)
    rng = np.random.default_rng(0)
    both = [pictures._paste_apart(rng, stamp, (90, 60), (40, 30), [half])[..., 3] > 0 for _ in range(60)]
    alone = [pictures._paste(rng, stamp, (90, 60), (40, 30))[..., 3] > 0 for _ in range(60)]
    touch = [sum((placed & (half[..., 3] > 0)).any() for placed in each) for each in (both, alone)]
    assert 0 < touch[0] < 0.6 * touch[1]


def test_objects_of_photographs_are_pasted_on_others():
    photo, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    photo[20:40, 10:50], mask[20:40, 10:50] = (200, 60, 60), 255
    library = SimpleNamespace(photos=[photo], cutouts=[np.full((30, 30, 4), 255, np.uint8)], objects=[(0, mask)])
    found = [pictures._object_picture(np.random.default_rng(seed), library) for seed in range(40)]
    own = [picture for picture in found if picture.shape == (20, 40, 4)]
    assert 4 < len(own) < 25 and all((picture[..., 3] == 255).all() for picture in own)
    assert all(picture[..., 0].mean() > 1.5 * picture[..., 1].mean() for picture in own)


def test_nothing_has_no_limbs_and_throws_no_shadow():
    nothing = np.zeros((20, 20, 4), np.uint8)
    dressed = partial(pictures._dressed, library=EMPTY, background=nothing[..., :3])
    for draw in (pictures._limbed, pictures._shaded, dressed):
        assert not draw(np.random.default_rng(0), placed=nothing).any()


@pytest.mark.parametrize("step", (8, 3))
def test_a_sliding_photograph_stands_whole_steps_from_where_it_was(step):
    found = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scene = sliding_scene(rng, EMPTY, *SIZE, 33, step)
        clip = render_clip(scene)
        tracks = choose_tracks(rng, scene, clip, "dense")
        shift = tracks.points[-1, 0] - tracks.points[0, 0]
        columns, rows = np.round(shift).astype(int)
        moved = tracks.points[-1] - tracks.points[0]
        np.testing.assert_allclose(moved, np.broadcast_to([columns, rows], moved.shape), atol=1e-4)
        assert columns % step == rows % step == 0 and max(abs(columns), abs(rows)) <= 4 * step
        there = clip.frames[0][max(0, -rows) : SIZE[1] - rows, max(0, -columns) : SIZE[0] - columns]
        np.testing.assert_array_equal(
            clip.frames[-1][max(0, rows) : SIZE[1] + rows, max(0, columns) : SIZE[0] + columns],
            there[: SIZE[1] - abs(rows), : SIZE[0] - abs(columns)],
        )
        np.testing.assert_array_equal(clip.frames[16:], np.broadcast_to(clip.frames[-1:], clip.frames[16:].shape))
        found.add((columns, rows))
    assert len(found) > 4


@pytest.fixture(scope="module")
def sky():
    torch.manual_seed(0)
    return Sky(small_vae())


def test_effects_change_what_they_should_and_fade_in(sky):
    frames = render_clip(random_scene(np.random.default_rng(1), EMPTY, *SIZE, 9)).frames
    fall = sky.over(3, frames)
    for name in EFFECTS:
        effect = Effect((name,))
        assert np.array_equal(effect.apply(frames, np.zeros(9), fall), frames), name
        changed = effect.apply(frames, np.ones(9), fall)
        assert changed.dtype == np.uint8 and changed.shape == frames.shape
        assert np.abs(changed.astype(int) - frames).mean() > 1, name
    for seed in range(8):
        shown, prompt = with_effect(np.random.default_rng(seed), frames, fall, 0.5)
        assert np.array_equal(shown[0], frames[0])
        assert bool(prompt) != np.array_equal(shown, frames)


@pytest.mark.parametrize("drop", [SNOW, RAIN])
def test_noise_says_where_things_fall(sky, drop):
    frames = np.full((17, 96, 128, 3), 90, np.uint8)
    noise = sky.noise(5, frames)
    fallen = sky.fall(drop, noise)
    look, cells = sky.looks[drop], 5 * 12 * 16
    alike = likeness(noise, look)
    assert abs(alike.mean()) < 0.1 and abs(alike.std() - 1) < 0.1  # so drops are as frequent as they should be
    assert 0.5 * drop.share * cells < len(fallen.x) < 1.5 * drop.share * cells * (1 + drop.reach / 12)
    inside = (fallen.y > 0) & (fallen.x > STRIDE) & (fallen.x < 120) & (fallen.y < 96 - STRIDE * drop.reach)
    threshold = torch.special.ndtri(torch.tensor(1 - drop.share))
    for t, x, y in zip(fallen.latent[inside], fallen.x[inside], fallen.y[inside], strict=True):
        row, column = y // STRIDE, x // STRIDE
        seen = noise[:, t, row : row + drop.reach, column - 1 : column + 2]
        assert (seen * look).sum() > threshold * 0.999  # there the noise does look like one
    cells = np.stack([fallen.latent, fallen.x // STRIDE, fallen.y // STRIDE], axis=1)
    beside = (np.abs(cells[:, None, 1:] - cells[:, 1:]).max(2) <= 1) & (cells[:, None, 0] == cells[:, 0])
    assert np.array_equal(beside, np.eye(len(cells), dtype=bool))  # of those beside each other the likest
    one = Fallen(*(v[:1] for v in vars(fallen).values()))
    nothing = Fallen(*[np.zeros(0)] * 4)
    painted, still = (drop.paint(frames.astype(np.float32), lambda _, fallen=seen: fallen) for seen in (one, nothing))
    changed = np.abs(painted - still).max((1, 2, 3))
    assert set(changed.nonzero()[0]) <= set(range(4 * one.latent[0] - 3, 4 * one.latent[0] + 1))


@pytest.mark.parametrize("drop", [SNOW, RAIN])
def test_what_falls_goes_down_by_its_speed_and_is_as_bright_as_it_is_near(drop):
    frames, y, x = np.full((9, 96, 128, 3), 20, np.float32), *np.mgrid[:96, :128]
    haze, peaks = drop.paint(frames, lambda _: Fallen(*[np.zeros(0)] * 4)), []
    for near in (1.0, 0.5):
        fallen = Fallen(np.array([1]), np.array([44.0]), np.array([36.0]), np.array([near]))
        bright = (drop.paint(frames, lambda _, fallen=fallen: fallen) - haze)[1:5, ..., 0]
        places = [[(picture * at).sum() / picture.sum() for at in (x, y)] for picture in bright]
        np.testing.assert_allclose(np.diff(places, axis=0), [[drop.slant * drop.speed, drop.speed]] * 3, atol=0.2)
        np.testing.assert_allclose(places[0], [44 + drop.slant * drop.length / 2, 36 + drop.length / 2], atol=0.5)
        rows = (bright > 1).any((0, 2)).nonzero()[0]
        assert rows.max() // STRIDE == 4 + drop.reach - 1  # beginning with the cell in which it starts
        peaks.append(bright.max())
    assert peaks[1] == pytest.approx(peaks[0] / 2, rel=0.1)


def test_without_noise_things_fall_anywhere_and_as_often(sky):
    frames = np.zeros((17, 96, 128, 3), np.uint8)
    fallen = anywhere(np.random.default_rng(0), frames)(SNOW)
    expected = SNOW.share * 5 * 12 * 16
    assert 0.6 * expected < len(fallen.x) < 1.5 * expected
    assert set(fallen.latent) == set(range(5)) and fallen.x.min() >= 0 and fallen.x.max() <= 128


def test_the_noise_of_a_shorter_clip_is_the_beginning_of_a_longer_ones(sky):
    long = clip_noise(9, (4, 6, 3, 5))
    torch.testing.assert_close(clip_noise(9, (4, 2, 3, 5)), long[:, :2], rtol=0, atol=0)
    assert sky.noise(9, np.zeros((9, 16, 24, 3), np.uint8)).shape == (24, 3, 2, 3)


def samples(make, count=3):
    made = [make(np.random.default_rng(seed)) for seed in range(count)]
    values = {name: torch.stack([one[name] for one in made]) for name in made[0]}
    return lambda: Samples(values, Draws(0, 0, range(count)))


def small_vae(channels=24):
    return EmbeddedVAE(channels, encoder_width=16, decoder_width=16, decoder_fine_width=8, decoder_depth=1)


def test_the_autoencoder_starts_from_pca_and_learns():
    torch.manual_seed(0)
    batch = samples(tiny_vae.Pixels(EMPTY, 64, 5), 4)
    frames, vae = batch()["frames"], small_vae()
    losses = tiny_vae.Losses(vae, World())
    untrained = losses.decoder_loss(batch())["psnr"]
    tiny_vae.start_from_pca(vae, frames[:2])
    assert losses.decoder_loss(batch())["psnr"] > untrained + 6
    before, optimisers = losses.decoder_loss(batch())["loss"].item(), tiny_vae.vae_optimisers(vae, 1e-3)
    for _ in range(20):
        losses.decoder_loss(batch())["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    assert losses.decoder_loss(batch())["loss"] < 0.97 * before
    tiny_vae.normalise(vae, frames)
    latents = vae.encode(frames).detach()
    worth = tiny_vae.channel_worth(vae, latents)
    torch.testing.assert_close(worth, worth.mean().expand(24), rtol=0.02, atol=0)
    variance = latents.var((0, 2, 3, 4))
    assert variance.mean() == pytest.approx(1, abs=0.02) and latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert variance.max() > 3  # the picture's mean colour counts for more than its finest detail
    torch.testing.assert_close(torch.tensor(vae.config.latent_variance), variance, rtol=1e-3, atol=0)


def test_clips_of_one_colour_are_a_start_too():
    vae, clips = small_vae(), torch.zeros(2, 3, 5, 64, 64)
    tiny_vae.start_from_pca(vae, clips)
    assert vae.encode(torch.full((1, 3, 5, 64, 64), 0.1)).abs().max() < 1000
    tiny_vae.normalise(vae, clips)
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    assert np.isfinite(vae.config.latent_variance).all()


def test_a_tiny_decoder_learns_another_vaes_latents_and_leaves_it_alone():
    torch.manual_seed(0)
    batch, full = samples(tiny_vae.Pixels(EMPTY, 32, 5), 2), small_vae(8)
    decoder = TinyVAE(latent_channels=8, widths=(16, 16, 8, 8))
    pair = tiny_vae.LatentDecoder(full, decoder)
    assert {id(p) for p in pair.parameters()} == {id(p) for p in decoder.parameters()}
    losses = tiny_vae.Losses(pair, World())
    assert falls(lambda: losses.decoder_loss(batch())["loss"], decoder, rate=1e-2, steps=15)
    assert all(p.grad is None for p in full.parameters())


def test_the_discriminator_learns_to_tell_and_the_decoder_to_fool_it():
    torch.manual_seed(0)
    batch, vae = samples(tiny_vae.Pixels(EMPTY, 32, 5), 2), small_vae(8)
    critic = tiny_vae.PatchDiscriminator(width=8)
    assert critic(torch.zeros(2, 3, 40, 48)).shape[:2] == (2, 1)
    losses = tiny_vae.Losses(vae, World(), critic=critic, adversarial=0.1)
    assert falls(lambda: losses.critic_loss(batch())["loss"], critic, steps=10)
    assert all(p.grad is None for p in vae.parameters())
    with torch.no_grad():
        terms = losses.decoder_loss(batch())
        plain = tiny_vae.Losses(vae, World()).decoder_loss(batch())
    torch.testing.assert_close(terms["loss"], plain["loss"] + 0.1 * terms["fools"])
    made, _ = losses.reconstruct(batch())
    torch.testing.assert_close(terms["fools"], -critic(tiny_vae.pictures(made)).mean())


def test_the_motion_prior_learns():
    batch = samples(lambda rng: prior.sample(rng, EMPTY))
    torch.manual_seed(0)
    small = MotionPrior(widths=(16, 16, 16), features=8)
    optimisers = optimisers_for(small, 3e-3)
    before = prior.motion_loss(small, batch(), World())["loss"].item()
    for _ in range(8):
        prior.motion_loss(small, batch(), World())["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    assert prior.motion_loss(small, batch(), World())["loss"] < 0.97 * before


def test_what_a_prior_and_its_matte_learn_does_not_depend_on_pieces():
    torch.manual_seed(0)
    seeing = MotionPrior(widths=(8, 8), features=4)
    parts = (
        (prior.sample, seeing, lambda batch: prior.motion_loss(seeing, batch, World())),
        (matte.sample, net := Matte(widths=(8, 8)), lambda batch: matte.matte_loss(seeing, net, batch, World())),
    )
    for sample, module, loss in parts:
        made = [sample(np.random.default_rng(seed), EMPTY) for seed in range(4)]
        found = []
        for pieces in ([0, 1, 2, 3],), ([0, 2], [1, 3]):
            terms = []
            for piece in pieces:
                terms.append(loss({name: torch.stack([made[n][name] for n in piece]) for name in made[0]}))
                (terms[-1]["loss"] / len(pieces)).backward()
            means = {name: sum(each[name] for each in terms).detach() / len(pieces) for name in terms[0]}
            found.append(gradients(module) | means)
            module.zero_grad()
        for name, whole in found[0].items():  # float32's last digits count for more in some of a tensor than in others
            assert (found[1][name] - whole).norm() < 5e-3 * whole.norm(), name


def test_a_sample_of_which_nothing_is_known_spoils_no_loss():
    batch = {name: value[None] for name, value in prior.sample(np.random.default_rng(0), EMPTY).items()}
    batch["valid"][:], batch["stays"][:] = False, False
    terms = prior.motion_loss(MotionPrior(widths=(8, 8), features=4), batch, World())
    assert all(value.isfinite() for value in terms.values())


def test_what_is_not_shared_counts_each_thing_that_has_tracks():
    layers, group = torch.tensor([[0, 1, 1, 2, 2, 0]]), torch.tensor([[1, 2, 0, 3]])
    valid = torch.tensor([[True, True, True, False]])
    follow = torch.zeros(1, 6, 4)
    follow[0, 1:3, 0] = 1  # all of thing 1 follows its track,
    follow[0, 3, 1], follow[0, 5, 1] = 1, 1  # half of thing 2 and one cell of the background that of thing 2,
    follow[0, 0, 2] = 1  # and the background its own
    dice = torch.tensor([(2 * 2 + 1) / (2 + 2 + 1), (2 * 1 + 1) / (2 + 2 + 1)])
    alike = torch.ones(1, 6)
    torch.testing.assert_close(prior.not_shared(follow, layers, alike, group, valid), 1 - dice.mean())
    assert prior.not_shared(follow, layers, alike, group, torch.zeros_like(valid)) == 0
    heavy = torch.tensor([[1.0, 1, 1, 1, 3, 1]])  # what is missing of thing 2 counts as much as three cells
    dice = torch.tensor([(2 * 2 + 1) / (2 + 2 + 1), (2 * 1 + 1) / (2 + 4 + 1)])
    torch.testing.assert_close(prior.not_shared(follow, layers, heavy, group, valid), 1 - dice.mean())


def test_a_deepened_prior_says_the_same_until_it_has_learned(tmp_path):
    torch.manual_seed(0)
    shallow = MotionPrior(widths=(8, 16), features=4)
    shallow.save_pretrained(tmp_path / "motion_prior")
    deep = prior.prior_to_train(tmp_path)
    batch = samples(lambda rng: prior.sample(rng, EMPTY))()
    places, valid = batch["anchors"][:, :4], batch["valid"][:, :4]
    before, after = (each.features(batch["image"], places, valid)[0].queries for each in (shallow, deep))
    assert torch.equal(before, after)
    prior.motion_loss(deep, batch, World())["loss"].backward()
    assert all(block.convs[1].weight.grad.abs().max() > 0 for block in deep.modules() if isinstance(block, Residual))
    deep.save_pretrained(tmp_path / "motion_prior")
    assert len(list(prior.prior_to_train(tmp_path).parameters())) == len(list(deep.parameters()))


def test_a_new_prior_is_as_deep_as_a_deepened_one(tmp_path):
    MotionPrior().save_pretrained(tmp_path / "motion_prior")
    names = [set(each.state_dict()) for each in (prior.prior_to_train(None), prior.prior_to_train(tmp_path))]
    assert names[0] == names[1] > set(MotionPrior().state_dict())


def test_a_picture_as_taken_is_the_same_picture():
    rng = np.random.default_rng(0)
    picture = noise_texture(rng, 64, 48)
    taken = [prior.as_taken(rng, picture) for _ in range(40)]
    assert all(each.shape == picture.shape and each.dtype == np.uint8 for each in taken)
    off = [np.abs(each.astype(float) - picture).mean() for each in taken]
    assert 5 < sum(value == 0 for value in off) < 30 and max(off) < 12


def test_the_matte_learns():
    batch = samples(lambda rng: matte.sample(rng, EMPTY))()
    torch.manual_seed(0)
    prior_, net = MotionPrior(widths=(8, 8), features=4).eval().requires_grad_(False), Matte(widths=(8, 8))
    assert falls(lambda: matte.matte_loss(prior_, net, batch, World())["loss"], net, steps=12)


def test_the_matte_is_to_leave_whole_what_the_prior_takes_for_a_thing_unless_an_outline_is_near(monkeypatch):
    batch = samples(lambda rng: matte.sample(rng, EMPTY), count=6)()
    assert batch["open"].any() and not (batch["open"] & (batch["opaque"] >= matte.CLEAR)).any()
    monkeypatch.setattr(matte, "seen_by", lambda *_: torch.ones(2, 18, 30))  # a prior to which all is a thing
    opaque, counts = batch["opaque"], batch["counts"]
    whole = torch.where(batch["open"], 1.0, opaque)

    def loss(found):
        return matte.matte_loss(None, lambda picture, cells: torch.logit(found, 1e-6), batch, World())["loss"].item()

    assert loss(whole) < 1e-3 < loss(opaque)
    means = (2 * counts * (whole - opaque)).sum((1, 2, 3)) / counts.sum((1, 2, 3))
    assert loss(opaque) == pytest.approx(means.mean().item(), rel=0.02)


def test_opacity_is_how_much_hides_the_background():
    rng = np.random.default_rng(3)
    for _ in range(6):
        scene = scenes.random_scene(rng, EMPTY, 96, 64, 2)
        owner, opaque = scenes.render_frame(scene, 1)[1], scenes.opacity(scene, 1)
        assert opaque.dtype == np.float32 and 0 <= opaque.min() and opaque.max() <= 1
        assert (opaque[owner > 0] > scenes.OWNED / 255).all()
        bare = replace(scene, layers=scene.layers[:1])
        clear = opaque == 0
        assert np.array_equal(scenes.render_frame(scene, 1)[0][clear], scenes.render_frame(bare, 1)[0][clear])
        assert not scenes.opacity(bare, 1).any()


def test_the_motion_prior_minds_thin_things_most():
    layers = np.zeros((40, 64), np.uint8)
    layers[:, 32:] = 1
    layers[20, :20] = 2  # a rope
    weight = prior.rarity(layers, 9)
    assert weight.dtype == np.float32 and (weight > 0).all()
    assert weight[20, 10] > 1.4 * weight[20, 31] > 1.4 * 1.2 * weight[5, 50]
    np.testing.assert_allclose(weight[5, 50], 1.1**-0.5, rtol=1e-5)


def test_made_samples_are_the_same_with_any_number_of_workers():
    schedule = Schedule(4, steps=9, pieces=2)

    def make(rng):
        return {"x": torch.tensor(rng.normal(0, 1, 3), dtype=torch.float32)}

    alone, helped = (made_samples(make, schedule, 5, World(), workers)(3) for workers in (0, 2))
    for _ in range(3):
        one, other = next(alone), next(helped)
        assert len(one) == len(other) == 2
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a["x"], b["x"]) and torch.equal(a.draws.normal(2), b.draws.normal(2))


# --- shards --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    small = MotionPrior(widths=(8, 8), features=4).eval()
    return Encoders(PRESET, small_vae(48).eval(), EffectTextEncoder(), small)


@pytest.fixture(scope="module")
def scene(encoders):
    rng = np.random.default_rng(5)
    return make_clip(rng, random_scene(rng, EMPTY, 64, 64, 33), 33, MIXTURES["embedded"].modes, Sky(encoders.vae))


@pytest.fixture(scope="module")
def record(encoders, scene):
    frames, tracks, prompt, seed = scene
    return encoders.record(frames, tracks, prompt, World(), 300, seed)


def test_a_record_holds_what_a_stream_would_have_met(encoders, scene, record):
    frames, tracks, prompt, seed = scene
    assert chunk_bounds(PRESET, 3) == [(0, 9), (9, 21), (21, 33)]
    assert record["latents"].shape == record["prior"].shape == (48, 9, 8, 8) and record["confidence"].shape == (
        4,
        9,
        8,
        8,
    )
    torch.testing.assert_close(
        record["latents"][:, 0], record["prior"][:, 0], atol=1e-4, rtol=1e-4
    )  # frame 0 is the image
    assert record["text"].tolist()[: len(prompt.split())] == encoders.text_encoder.tokens(prompt)
    assert not record["null_text"].any() and record["noise"] == seed
    with torch.inference_mode():
        state, stream = encoders.motion_prior.start(to_tensor(frames[:1])[:, 0]), encoders.vae.encoder_stream()
        for index, (start, stop) in enumerate(chunk_bounds(PRESET, 3)):
            moved = encoders.motion_prior.step(state, tracks.rows(start, stop))
            warped, sure = moved.picture, moved.confidence
            part = slice(3 * index, 3 * index + 3)
            torch.testing.assert_close(record["prior"][:, part], stream.step(warped)[0])
            torch.testing.assert_close(record["confidence"][:, part], pack_confidence(sure, 8, 4, index == 0)[0])
            if index < 2:
                torch.testing.assert_close(record["held"][:, index], encoders.vae.encode(warped[:, :, -1:])[0, :, 0])
                held = pack_confidence(sure[:, :, -1:], 8, 4, True)[0, :, 0]
                torch.testing.assert_close(record["held_confidence"][:, index], held)


def test_every_preset_has_a_mixture_of_clips_that_its_tokens_fit():
    assert MIXTURES.keys() == PRESETS.keys()
    for name, mixture in MIXTURES.items():
        assert sum(mixture.sizes.values()) == pytest.approx(1) == sum(mixture.modes.values())
        assert 0 <= mixture.still + mixture.slides < 1
        sizes = [*mixture.sizes] + [mixture.still_size] * (mixture.still > 0)
        assert not any(side % PRESETS[name].cell for size in sizes for side in size)


@pytest.mark.parametrize("still", (False, True))
def test_without_a_sky_a_clip_belongs_to_no_noise(still):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng, EMPTY, 64, 64, 1 if still else 33)
        frames, tracks, prompt, noise = make_clip(rng, scene, 33, {"dense": 1.0}, None)
        assert frames.shape == (33, 64, 64, 3) and tracks.T == 33 and noise is None
        assert bool(tracks.N) != still
        assert prompt or not still  # where nothing moves, the prompt is what there is to learn


def test_without_tracks_the_prior_is_the_first_frame_in_every_latent(encoders, scene):
    """What `Network.condition` says to clips whose tracks are dropped."""
    made = encoders.record(scene[0], Tracks.empty(33), "", World(), 10)
    torch.testing.assert_close(made["prior"], made["latents"][:, :1].expand(-1, 9, -1, -1), atol=1e-4, rtol=1e-4)
    assert (made["confidence"] == 1).all()


def test_shards_are_read_as_they_were_written(record, scene, tmp_path):
    tracks = scene[1]
    write_shard(tmp_path / "00-00000.safetensors", [record, record, record])
    clips = Clips(tmp_path, PRESET, 2)
    draws = [Draws(0, step, [0, 1]) for step in (0, 0, 1)]
    first, same, later = (clips.read(clips.shards[0][0], [2, 0], one).to("cpu") for one in draws)
    assert first.latents.shape == (2, 48, 6, 8, 8) and first.held.shape == (2, 48, 1, 8, 8)
    torch.testing.assert_close(first.latents[0], record["latents"][:, :6], atol=5e-3, rtol=5e-3)
    shown = tracks.visible.any(0)
    np.testing.assert_array_equal(first.tracks[0].points, tracks.points[:21, shown])
    np.testing.assert_array_equal(first.tracks[0].visible, tracks.visible[:21, shown])
    np.testing.assert_array_equal(first.tracks[1].ids, same.tracks[1].ids)
    assert not np.array_equal(first.tracks[0].ids, first.tracks[1].ids)
    assert not np.array_equal(first.tracks[0].ids, later.tracks[0].ids)
    few = replace(clips, tracks=(1, 2))
    counts = {few.read(clips.shards[0][0], [0], Draws(0, step, [0])).tracks[0].N for step in range(12)}
    assert counts == {1, 2}


def test_an_updates_clips_come_from_all_shards_of_their_shape_whoever_reads_them(record, tmp_path):
    longer = record | {"points": record["points"].repeat(1, 2, 1), "visible": record["visible"].repeat(1, 2)}
    for number, one in enumerate((record, record, longer)):
        marked = [one | {"noise": torch.tensor(10 * number + row)} for row in range(4)]
        write_shard(tmp_path / f"00-{number:05d}.safetensors", marked)
    clips, schedule = Clips(tmp_path, PRESET, 2), Schedule(batch=6, steps=1, pieces=2)
    read = [clips.data(schedule, 3, World(), workers)(5) for workers in (0, 2)]
    seen = set()
    for _ in range(6):
        here, beside = next(read[0]), next(read[1])
        for one, other in zip(here, beside, strict=True):
            torch.testing.assert_close(one.latents, other.latents, atol=0, rtol=0)
            torch.testing.assert_close(one.noise, other.noise)
            torch.testing.assert_close(one.draws.normal(5), other.draws.normal(5), atol=0, rtol=0)
            np.testing.assert_array_equal(one.tracks[0].ids, other.tracks[0].ids)
        seen.add(frozenset((torch.cat([piece.noise for piece in here]) // 10).tolist()))
    assert seen <= {frozenset({0, 1}), frozenset({2})} and frozenset({0, 1}) in seen


def test_every_clip_is_taken_as_often_whatever_its_shape(record, tmp_path):
    longer = record | {"points": record["points"].repeat(1, 2, 1), "visible": record["visible"].repeat(1, 2)}
    for number, records in enumerate(([record] * 9, [longer])):
        marked = [one | {"noise": torch.tensor(number)} for one in records]
        write_shard(tmp_path / f"00-{number:05d}.safetensors", marked)
    updates = Clips(tmp_path, PRESET, 2).data(Schedule(batch=1, steps=1), 3, World())(0)
    taken = sum(int(next(updates)[0].noise) for _ in range(40))  # of the one among ten: 4 are expected
    assert 1 <= taken <= 10


def test_batches_do_not_depend_on_how_they_are_split(record, tmp_path):
    write_shard(tmp_path / "00-00000.safetensors", [record] * 4)
    clips, whole = Clips(tmp_path, PRESET, 2), Schedule(4, steps=9)
    [batch] = next(clips.data(whole, 1, World())(7))
    for rank in range(2):
        places = World(rank, 2).places(replace(whole, pieces=2))
        assert places == [[rank], [rank + 2]]
        for piece, [place] in zip(
            next(clips.data(replace(whole, pieces=2), 1, World(rank, 2))(7)), places, strict=True
        ):
            np.testing.assert_array_equal(piece.tracks[0].ids, batch.tracks[place].ids)
            torch.testing.assert_close(piece.latents[0], batch.latents[place])
    with pytest.raises(InputError, match="a multiple of 6"):
        World(0, 2).places(replace(whole, pieces=3))


def test_wrong_shards_are_named(record, tmp_path):
    with pytest.raises(InputError, match="holds no .safetensors shard"):
        Clips(tmp_path, PRESET, 3)
    path = tmp_path / "00-00000.safetensors"
    write_shard(path, [record])
    with pytest.raises(InputError, match="clips of 3 chunks; this stage takes 4"):
        Clips(tmp_path, PRESET, 4)
    with pytest.raises(InputError, match="48 latent channels; wan2.1-1.3b has 16"):
        Clips(tmp_path, PRESETS["wan2.1-1.3b"], 3)
    write_shard(path, [{name: value for name, value in record.items() if name != "prior"}])
    with pytest.raises(InputError, match="lacks prior, which embedded is told: write shards for this preset"):
        Clips(tmp_path, PRESET, 3)
    wrong = {"latents": record["latents"][0], "points": record["points"][:, :-1], "visible": record["points"]}
    for name in wrong:
        write_shard(path, [record | {name: wrong[name]}])
        with pytest.raises(InputError, match="00-00000.safetensors has latents .* do not belong together"):
            Clips(tmp_path, PRESET, 3)
    write_shard(path, [{name: record[name] for name in ("latents", "null_text")}])
    with pytest.raises(InputError, match="00-00000.safetensors lacks points, text, visible"):
        Clips(tmp_path, PRESET, 3)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="00-00000.safetensors is no shard"):
        Clips(tmp_path, PRESET, 3)


def train_for_ever(updates, ready):
    os.setpgid(0, 0)
    torch.set_num_threads(1)  # a process has no other threads after a fork, and would wait for them
    next(updates)
    time.sleep(1)  # the workers read ahead
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize("of_clips", [True, False], ids=["waiting for a reader", "at work"])
def test_data_workers_end_with_a_training_that_is_killed(record, tmp_path, of_clips):
    context, (held, ours) = multiprocessing.get_context("fork"), os.pipe()  # ours: held open by all of them
    ready = context.Event()
    if of_clips:  # whose tracks are more than a pipe takes
        write_shard(tmp_path / "00-00000.safetensors", [record | {"visible": torch.ones_like(record["visible"])}])
        updates = Clips(tmp_path, PRESET, 3).data(Schedule(8, steps=1), 0, World(), workers=2)(0)
    else:
        updates = made_samples(lambda _: ready.set() or time.sleep(600), Schedule(1, steps=1), 0, World())(0)
    training = context.Process(target=train_for_ever, args=(updates, ready))
    training.start()
    os.close(ours)
    try:
        assert ready.wait(30)
        training.kill()
        training.join()
        assert select.select([held], [], [], 15)[0], "workers are left"
    finally:
        os.close(held)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)


@pytest.mark.parametrize("left", [None, 100], ids=["gone", "cut"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_gone_or_cut_during_a_training_is_named(record, tmp_path, workers, left):
    path = tmp_path / "00-00000.safetensors"
    write_shard(path, [record])
    updates = Clips(tmp_path, PRESET, 3).data(Schedule(2, steps=1), 0, World(), workers)(0)
    next(updates)
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(whole[:left])
    with pytest.raises(InputError, match=rf"^{path} is no shard: .*; remove what is there and write it again$"):
        for _ in itertools.islice(updates, 9):  # some were read ahead
            pass


def test_a_full_disk_leaves_no_half_shard(record, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("motionstream.training.clips.save_file", full)
    with pytest.raises(InputError, match="00-00000.safetensors: .*No space left"):
        write_shard(tmp_path / "00-00000.safetensors", [record])
    assert not list(tmp_path.iterdir())


def test_a_shard_may_be_read_by_whom_the_umask_lets(record, tmp_path):
    before = os.umask(0o027)
    try:
        write_shard(tmp_path / "00-00000.safetensors", [record])
    finally:
        os.umask(before)
    assert (tmp_path / "00-00000.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_run_that_fails_at_once_loses_no_earlier_shards(record, tmp_path):
    def broken():
        raise InputError("no weights")
        yield record

    def shards():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    write_stream(tmp_path, iter([record] * 33), World())
    before = shards()
    for records, why in ((iter(()), "no clip was good enough"), (broken(), "no weights")):
        with pytest.raises(InputError, match=why):
            write_stream(tmp_path, records, World())
        assert len(before) == 2 and shards() == before
    write_stream(tmp_path, iter([record]), World())
    assert list(shards()) == ["clips-00-00000.safetensors"] and before != shards()


# --- real clips ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """Two good clips (one with a caption, one of pictures), a short one, and junk."""
    folder = tmp_path_factory.mktemp("clips")
    frames = render_clip(random_scene(np.random.default_rng(3), EMPTY, 96, 64, 45)).frames
    for name, count in (("a.mp4", 45), ("short.mp4", 5)):
        with Mp4Writer(folder / name, 96, 64, 16) as writer:
            writer.write(frames[:count])
    (folder / "a.txt").write_text("a boat in fog\n")
    (folder / "b.mp4").write_bytes(b"no video at all")
    (folder / "notes.pdf").write_bytes(b"not a clip")
    (folder / "empty").mkdir()
    pictures = folder / "pictures"
    pictures.mkdir()
    from motionstream.evaluation.sheets import save_png

    for number, frame in enumerate(frames[:21]):
        save_png(pictures / f"{number:03d}.png", frame)
    return folder


def test_bad_clips_are_named_and_skipped(clip_folder):
    said = []
    clips = RealClips(clip_folder, (96, 64), 16, said.append)
    pieces = [(path.name, start, len(frames)) for path, start, frames in clips.pieces(21, clips.paths)]
    assert pieces == [("a.mp4", 0, 21), ("a.mp4", 21, 21), ("pictures", 0, 21)]
    assert len(said) == 3
    for name, why in (("b.mp4", ""), ("empty", "no pictures"), ("short.mp4", "5 frames")):
        assert sum(name in line and why in line for line in said) == 1
    assert caption(clip_folder / "a.mp4") == "a boat in fog" and caption(clip_folder / "pictures") == ""
    (clip_folder / "walk.02").mkdir()
    for name, text in (("walk", "another"), ("walk.02", "its own")):
        (clip_folder / f"{name}.txt").write_text(text)
    assert caption(clip_folder / "walk.02") == "its own"
    (clip_folder / "walk.02.txt").write_text("its own", encoding="utf-8-sig")
    assert caption(clip_folder / "walk.02") == "its own"
    with pytest.raises(InputError, match="no folder"):
        RealClips(clip_folder / "none", (96, 64), 16)
    with pytest.raises(InputError, match="has no clips"):
        RealClips(clip_folder / "pictures", (96, 64), 16)


class Skipping(torch.utils.data.Dataset):
    def __init__(self, clips):
        self.clips = clips

    def __getitem__(self, number):
        self.clips.skip(self.clips.paths[0], "it is bad")
        return number


def test_a_data_worker_names_a_clip_though_the_lock_of_progress_bars_was_held_when_it_began(clip_folder, capfd):
    held, done = threading.Event(), threading.Event()

    def hold():
        with tqdm.get_lock():
            held.set()
            done.wait(60)

    gc.collect()  # or the worker inherits what earlier tests have left, and waits for locks as it clears that up
    holder, threads = threading.Thread(target=hold), cv2.getNumThreads()
    holder.start()
    cv2.setNumThreads(0)  # as `made_samples` does: OpenCV's own do not survive the fork, with whatever locks they hold
    try:
        assert held.wait(10)
        clips = RealClips(clip_folder, (96, 64), 16)
        assert list(torch.utils.data.DataLoader(Skipping(clips), sampler=[3], num_workers=1, timeout=20)) == [3]
    finally:
        cv2.setNumThreads(threads)
        done.set()
        holder.join()
    assert f"skipped {clips.paths[0]}: it is bad" in capfd.readouterr().out


def test_progress_needs_no_thread(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor", None)
    before = threading.active_count()
    with Progress(total=2, file=io.StringIO(), disable=False) as bar:
        bar.update()
        assert threading.active_count() == before


def test_a_clip_of_any_length_is_read_piece_by_piece(tmp_path):
    """Beyond 60 seconds, and the same frames as read at once."""
    with Mp4Writer(tmp_path / "long.mp4", 32, 32, 2) as writer:
        writer.write(np.repeat(np.arange(140, dtype=np.uint8), 32 * 32 * 3).reshape(140, 32, 32, 3))
    said = []
    clips = RealClips(tmp_path, (32, 32), 2, said.append)
    found = list(clips.pieces(33, clips.paths))
    assert [start for _, start, _ in found] == [0, 33, 66, 99] and not said
    whole = np.stack(list(Clip.open(tmp_path / "long.mp4").frames(2, (32, 32))))
    np.testing.assert_array_equal(np.concatenate([frames for *_, frames in found]), whole[:132])
    assert clips.crop(np.random.default_rng(0), 16, 140).shape == (140, 16, 16, 3)


def test_every_kind_of_clip_that_the_app_takes_is_taken(tmp_path):
    for name in ("a.ts", "b.GIF", "c.MP4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in RealClips(tmp_path, (32, 32), 16).paths] == ["a.ts", "b.GIF", "c.MP4"]


def test_squares_are_cut_from_good_clips(clip_folder):
    clips = RealClips(clip_folder, (96, 64), 16, lambda line: None)
    made = tiny_vae.Pixels(clips, 48, 9)(np.random.default_rng(0))["frames"]
    assert made.shape == (3, 9, 48, 48) and made.std() > 0.05
    with pytest.raises(InputError, match="no clip of 99 frames"):
        clips.crop(np.random.default_rng(0), 48, 99)


def test_no_more_is_read_of_a_clip_than_is_cut_from_it(clip_folder, tmp_path, monkeypatch):
    for name in ("a.mp4", "pictures"):
        (tmp_path / name).symlink_to(clip_folder / name)
    asked, frames = [], RealClips.frames
    monkeypatch.setattr(RealClips, "frames", lambda *given: asked.append(given[1:]) or frames(*given))
    clips, rng = RealClips(tmp_path, (96, 64), 16), np.random.default_rng(0)
    whole = {path: frames(clips, path, 0, 99) for path in clips.paths}
    cut = [clips.crop(rng, 64, 9) for _ in range(12)]
    assert {most for *_, most in asked} == {9} and len({start for _, start, _ in asked}) > 6
    for (path, start, _), one in zip(asked, cut, strict=True):
        x = [np.array_equal(whole[path][start : start + 9, :, x : x + 64], one) for x in range(33)]
        assert x.count(True) == 1
    assert max(start for path, start, _ in asked if path.name == "pictures") <= 21 - 9


@pytest.mark.parametrize("seconds", [None, 0.1, 60.0])
def test_where_a_clip_says_wrongly_how_long_it_is_it_is_read_once(clip_folder, tmp_path, monkeypatch, seconds):
    (tmp_path / "a.mp4").symlink_to(clip_folder / "a.mp4")
    asked, frames, opened = [], RealClips.frames, Clip.open
    monkeypatch.setattr(RealClips, "frames", lambda *given: asked.append(given[3]) or frames(*given))
    monkeypatch.setattr(Clip, "open", lambda path: replace(opened(path), seconds=seconds))
    clips, rng = RealClips(tmp_path, (96, 64), 16), np.random.default_rng(0)
    assert all(clips.crop(rng, 48, 9).shape == (9, 48, 48, 3) for _ in range(9)) and not clips.bad
    assert [most for most in asked if most > 9] == [CROP_FRAMES] and clips.lengths == {clips.paths[0]: 45}


def test_tracks_are_cached_and_a_broken_cache_is_made_anew(clip_folder, tmp_path):
    from motionstream.controls.trackers import LucasKanade

    asked = []

    def tracker(seeds):
        asked.append(seeds)
        return LucasKanade(seeds)

    clips = RealClips(clip_folder, (96, 64), 16)
    path, start, frames = next(clips.pieces(21, clips.paths))
    place = tmp_path / "cache", path, start
    one = cached_tracks(*place, frames, "lucas-kanade", tracker)
    two = cached_tracks(*place, frames, "lucas-kanade", tracker)
    assert len(asked) == 1 and one.T == 21 and one.N > 20
    assert len(asked[0].centres(832, 480)) == len(asked[0].centres(480, 832)) == 50 * 50
    np.testing.assert_array_equal(one.points, two.points)
    [file] = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    torn = whole[:300] + bytes(64) + whole[364:]  # which zlib finds out, in the middle of a compressed array
    for junk in (b"junk", b"", whole[:200], torn):
        file.write_bytes(junk)
        again = cached_tracks(*place, frames, "lucas-kanade", tracker)
        np.testing.assert_array_equal(again.points, one.points)
    assert len(asked) == 5
    mirrored = cached_tracks(*place, frames[:, :, ::-1], "lucas-kanade", tracker)  # another clip of that name
    cached_tracks(*place, frames, "cotracker3", tracker)
    assert len(asked) == 7 and not np.array_equal(mirrored.points[0], one.points[0])


def test_tracks_of_clips_with_long_names_are_cached_too(tmp_path):
    from motionstream.controls.trackers import LucasKanade

    asked, frames = [], np.zeros((3, 64, 64, 3), np.uint8)
    digest = hashlib.blake2b(frames, digest_size=8).hexdigest()
    for name, kept in (("a.mp4", "a.mp4"), ("a" + 84 * "\u6620", "a" + 69 * "\u6620"), ("b" * 251 + ".mp4", "b" * 210)):
        cache = tmp_path / str(len(kept))
        for _ in range(2):
            cached_tracks(cache, Path(name), 0, frames, "lucas-kanade", lambda s: asked.append(s) or LucasKanade(s))
        assert [file.name for file in cache.iterdir()] == [f"{kept}.0-2.lucas-kanade.{digest}.tracks.npz"]
    assert len(asked) == 3


def test_a_caption_that_cannot_be_read_costs_its_clip_alone(clip_folder, encoders, tmp_path):
    for name in ("a.mp4", "pictures"):
        (tmp_path / name).symlink_to(clip_folder / name)
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # not even by root
    said = []
    clips = RealClips(tmp_path, (96, 64), 16, said.append)
    assert len(list(folder_records(encoders, clips, 2, World(), tmp_path / "tracks", "lucas-kanade"))) == 1
    told = rf"skipped {tmp_path}/a.mp4: the caption {tmp_path}/a.txt cannot be read \(Input/output error\): make it .*"
    assert len(said) == 1 and re.fullmatch(told, said[0])
    (tmp_path / ("a" * 255)).mkdir()
    assert caption(tmp_path / ("a" * 255)) == ""


def test_a_folder_of_real_clips_becomes_shards(clip_folder, encoders, tmp_path, monkeypatch):
    class Store(Counter):
        def add(self, key, number):
            self[key] += number
            return self[key]

    store = Store()
    monkeypatch.setattr(parallel, "_get_default_store", lambda: store)
    clips = RealClips(clip_folder, (96, 64), 16, lambda line: None)
    shares = [World(rank, 2) for rank in range(2)]
    for world in shares:  # each process writes its own clips' shards
        write_stream(
            tmp_path, folder_records(encoders, clips, 2, world, tmp_path / "tracks", "lucas-kanade"), world
        )
    assert sum(len(load_file(shard)["latents"]) for shard in tmp_path.glob("*.safetensors")) == 3
    (tmp_path / "clips-of-mine.safetensors").hardlink_to(next(tmp_path.glob("clips-0*")))  # no name of ours
    world = World()  # and a later run with fewer processes leaves nothing of it
    write_stream(tmp_path, folder_records(encoders, clips, 2, world, tmp_path / "tracks", "lucas-kanade"), world)
    shard, mine = sorted(tmp_path.glob("*.safetensors"))
    assert mine.name == "clips-of-mine.safetensors"
    mine.unlink()
    stored = load_file(shard)
    assert stored["latents"].shape == (3, 48, 6, 8, 12)
    assert stored["text"][0].tolist() == [1 + encoders.text_encoder.vocabulary.index("fog"), 0, 0, 0]
    batch = Clips(tmp_path, PRESET, 2).read(shard, range(3), Draws(0, 0, range(3))).to("cpu")
    assert all(tracks.N > 20 for tracks in batch.tracks)
    with pytest.raises(InputError, match="no clip was good enough"):
        write_stream(tmp_path / "none", iter(()), World())


def test_tracks_of_another_tracker_are_not_taken_for_what_auto_finds_now(clip_folder, encoders, tmp_path, monkeypatch):
    from motionstream.controls import trackers

    class Better(trackers.LucasKanade):
        name = "cotracker3"

    def record() -> None:
        assert list(folder_records(encoders, clips, 2, World(), tmp_path, "auto"))

    def now(name, seeds, live, window=0):
        return Better(seeds) if name in ("auto", "cotracker3") else trackers.LucasKanade(seeds)

    clips = RealClips(clip_folder, (96, 64), 16, lambda line: None)
    record()
    monkeypatch.setattr("motionstream.training.clips.open_tracker", now)
    record()
    names = [file.name.split(".")[-4] for file in tmp_path.iterdir()]
    assert names.count("lucas-kanade") == names.count("cotracker3") == 3


def test_full_size_clips_have_the_papers_number_of_tracks():
    for name in ("wan2.1-1.3b", "wan2.2-5b"):
        mixture, rng = MIXTURES[name], np.random.default_rng(0)
        [(width, height)] = mixture.sizes
        scene = random_scene(rng, EMPTY, width, height, 1)
        owner = np.zeros((1, height, width), np.uint8)
        for spacing in mixture.spacings:
            points = choose_points(rng, scene, owner[0], "dense", (spacing, spacing))
            assert 900 < len(points) <= mixture.most_tracks


def test_a_point_that_rounding_moves_onto_the_edge_belongs_to_the_last_cell():
    owner = np.arange(12).reshape(3, 4)
    at = np.float32([[3.9999999, 1], [0, 2.9999999]])
    assert (at[0, 0], at[1, 1]) == (4, 3)  # float32 has nothing between
    found = prior._padded(Tracks(np.stack([at, at]), np.ones((2, 2), bool), np.arange(2)), owner)
    assert found["group"][:2].tolist() == [owner[1, 3], owner[2, 0]]
