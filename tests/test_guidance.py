"""Joint guidance against equation 2 by hand; what "without text" and "without tracks" mean; the teacher's sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_kit import ALONE, PLAIN, RECIPE, TINY, clip_batch, falls, network

from motionstream.errors import InputError
from motionstream.model.vae import EmbeddedVAE
from motionstream.streaming import Condition, add_noise, sampling_timesteps, shift_timestep
from motionstream.training import teacher
from motionstream.training.guidance import Guidance, joint_guidance
from motionstream.training.network import hide_chunks, new_network, skipped
from motionstream.training.parallel import World
from motionstream.training.teacher import (
    T_LEAST,
    clip_sheet,
    flow_loss,
    flow_weight,
    guided,
    random_timesteps,
    sample_ode,
    sample_teacher,
    to_frames,
    velocity_loss,
)
from motionstream.training.trainer import Draws

weights = st.floats(0, 8).filter(lambda w: w == 0 or w > 0.01)


@given(weights, weights, st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_joint_guidance_is_equation_2(text, motion, values):
    if text + motion == 0:
        return
    full, no_text, no_motion = values
    table = {(True, True): full, (False, True): no_text, (True, False): no_motion}
    got = joint_guidance(lambda *told: torch.tensor(table[told], dtype=torch.float64), Guidance(text, motion)).item()
    a = text / (text + motion)
    base = a * no_text + (1 - a) * no_motion
    assert got == pytest.approx(base + text * (full - no_text) + motion * (full - no_motion), abs=1e-9)


def test_guidance_by_hand_and_its_limits():
    table = {(True, True): 3.0, (False, True): 1.0, (True, False): 2.0}

    def ask(*told):
        return torch.tensor(table[told])

    assert joint_guidance(ask, Guidance()).item() == pytest.approx(2 / 3 * 1 + 1 / 3 * 2 + 3 * 2 + 1.5 * 1)
    assert joint_guidance(ask, Guidance(0.5, 0.5)).item() == pytest.approx(3.0)  # no guidance at all
    assert joint_guidance(ask, Guidance(2.0, 0.0)).item() == pytest.approx(1 + 2 * 2)  # the usual one, text alone
    for wrong in ((0, 0), (-1, 3), (3, -1)):
        with pytest.raises(InputError, match="at least 0"):
            Guidance(*wrong)


def test_guiding_velocities_or_clean_latents_is_the_same():
    z, t = torch.randn(5), 0.7
    velocity = {told: torch.randn(5) for told in ((True, True), (False, True), (True, False))}
    v = joint_guidance(lambda *told: velocity[told], Guidance())
    x0 = joint_guidance(lambda *told: z - t * velocity[told], Guidance())
    torch.testing.assert_close(z - t * v, x0)


@pytest.mark.parametrize("preset", [TINY, PLAIN], ids=lambda p: p.name)
def test_clips_that_are_told_nothing_hear_nothing(preset):
    net, batch = network(preset), clip_batch(preset)
    told = torch.tensor([True, False, True, False])
    both, all_told = net.condition(batch, range(3), told), net.condition(batch, range(3))
    other = clip_batch(preset, seed=5)
    batch.tracks = other.tracks
    if preset.motion_prior:
        batch.prior, batch.confidence = other.prior, other.confidence
    changed = net.condition(batch, range(3), told)
    torch.testing.assert_close(both.channels[told], all_told.channels[told])
    torch.testing.assert_close(both.channels[~told], changed.channels[~told])
    assert not torch.allclose(both.channels[told], changed.channels[told])
    texts = net.context(batch, told).layers[0][0], net.context(batch).layers[0][0]
    nothing = network(preset).context(clip_batch(preset), torch.zeros(4, dtype=torch.bool)).layers[0][0]
    torch.testing.assert_close(texts[0][told], texts[1][told])
    torch.testing.assert_close(texts[0][~told], nothing[~told])
    assert not torch.allclose(texts[1][~told], nothing[~told])


def test_without_tracks_the_motion_prior_stands_still_and_is_sure():
    net, batch = network(), clip_batch()
    condition = net.condition(batch, range(3), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(condition.prior, batch.latents[:, :, :1].expand_as(condition.prior))
    assert (condition.channels[:, -4:] == 1).all()
    head = net.track_head.conv.bias.view(1, -1, 1, 1, 1)
    tracks = condition.channels[:, : TINY.track_channels]
    torch.testing.assert_close(tracks, head.expand_as(tracks))


def test_a_chunks_condition_is_its_part_of_the_whole():
    net, batch = network(), clip_batch()
    hidden = torch.tensor([[False, True, False]]).expand(4, -1)
    for hide in (None, hidden):
        whole = net.condition(batch, range(3), hidden=hide)
        for index in range(3):
            one = net.condition(batch, range(index, index + 1), hidden=hide)
            torch.testing.assert_close(one.channels, whole.channels[:, :, 3 * index : 3 * index + 3])
            assert (one.first is not None) == (index == 0)


def test_hidden_chunks_have_no_tracks_and_hold_the_prior():
    net, batch = network(), clip_batch()
    hidden = torch.tensor([[False, True, False], [False] * 3, [False, True, False], [False] * 3])
    seen, masked = net.condition(batch, range(3)), net.condition(batch, range(3), hidden=hidden)
    middle, rest = slice(3, 6), [0, 1, 2, 6, 7, 8]
    torch.testing.assert_close(masked.channels[:, :, rest], seen.channels[:, :, rest])
    torch.testing.assert_close(masked.channels[1::2], seen.channels[1::2])
    bias = net.track_head.conv.bias.view(1, -1, 1, 1, 1)
    tracks = masked.channels[::2, : TINY.track_channels, middle]
    torch.testing.assert_close(tracks, bias.expand_as(tracks))
    torch.testing.assert_close(masked.prior[::2, :, middle], batch.held[::2, :, :1].expand(-1, -1, 3, -1, -1))


def test_while_several_chunks_are_hidden_the_prior_stays_where_it_was_before_the_first():
    net, batch = network(), clip_batch(chunks=5)
    hidden = torch.tensor([[False, True, True, False, True]]).expand(4, -1)
    masked, seen = net.condition(batch, range(5), hidden=hidden), net.condition(batch, range(5))
    for chunk, stands in ((1, 0), (2, 0), (4, 3)):
        held = batch.held[:, :, stands : stands + 1].expand(-1, -1, 3, -1, -1)
        torch.testing.assert_close(masked.prior[:, :, 3 * chunk : 3 * chunk + 3], held)
    torch.testing.assert_close(masked.prior[:, :, 9:12], seen.prior[:, :, 9:12])


def test_masking_hides_mid_clip_chunks_with_its_probability():
    hidden = hide_chunks(Draws(0, 0, range(2000)), 7, 0.2)
    assert not hidden[:, 0].any() and not hidden[:, -1].any()
    share = hidden[:, 1:-1].float().mean(0)
    assert ((share - 0.2).abs() < 4 * (0.16 / 2000) ** 0.5).all()
    assert abs((hidden[:, 1] & hidden[:, 2]).float().mean() - 0.04) < 0.02  # each for itself
    assert not hide_chunks(Draws(0, 0, range(50)), 7, 0.0).any()


def test_timesteps_are_uniform_before_the_shift():
    t = random_timesteps(Draws(3, 0, range(3_000)), 6.0).double()
    assert ((t > 0) & (t <= 1)).all()
    for level in (0.2, 0.5, 0.8):
        # P(k u / (1 + (k - 1) u) <= level) = level / (k - (k - 1) level)
        assert (t <= level).double().mean().item() == pytest.approx(level / (6 - 5 * level), abs=0.03)
    assert shift_timestep(0.5, 6.0) == pytest.approx(6 / 7)


def test_the_velocity_loss_is_that_of_the_velocity():
    x0, clean, noise, t = (
        torch.randn(4, 3, 2),
        torch.randn(4, 3, 2),
        torch.randn(4, 3, 2),
        torch.tensor([0.1, 0.4, 0.9, 1.0]),
    )
    at = t.view(-1, 1, 1)
    velocity = (add_noise(clean, noise, at) - x0) / at
    each = (velocity - (noise - clean)).square().mean((1, 2))
    torch.testing.assert_close(velocity_loss(x0, clean, t, torch.ones(4)), each.mean())
    weight = flow_weight(t, TINY)
    torch.testing.assert_close(weight, torch.tensor([(0.1 / T_LEAST) ** 2, 1.0, 1.0, 1.0]))
    assert (flow_weight(t, PLAIN) == 1).all()
    torch.testing.assert_close(velocity_loss(x0, clean, t, weight), (weight * each).mean())


def test_the_skip_is_the_posterior_of_a_normal_prior():
    rng, variance = np.random.default_rng(0), 0.35
    prior, t = 0.8, 0.45
    x0 = prior + variance**0.5 * rng.standard_normal(400_000)
    z = (1 - t) * x0 + t * rng.standard_normal(len(x0))
    slope, offset = np.polyfit(z, x0, 1)
    ends = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1, 1)
    one = torch.ones(1)
    got = prior + skipped(ends, torch.full((2,), t), torch.tensor(prior), one)
    assert got.flatten().tolist() == pytest.approx([offset - slope, offset + 2 * slope], abs=0.01)
    start = skipped(ends, torch.ones(2), torch.tensor(prior), one)
    assert start.abs().max() == 0  # a student's first step is untouched
    without = skipped(ends, torch.full((2,), t), None, 4 * one)  # of N(0, 4): 4 (1 - t) z / (4 (1 - t)^2 + t^2)
    torch.testing.assert_close(without, ends * 4 * 0.55 / (4 * 0.55**2 + 0.45**2))


def test_a_teacher_knows_how_much_its_autoencoders_latents_vary(tmp_path):
    variance = [9.0, 2.0, *[0.25] * 6]
    EmbeddedVAE(8, 8, 8, 8, 1, latent_variance=variance).save_pretrained(tmp_path / "vae")
    assert new_network(ALONE, tmp_path, seed=0).skip is None
    teacher, z, t = new_network(ALONE, tmp_path, seed=0, skip=True), torch.ones(1, 8, 1, 1, 1), torch.full((1,), 0.5)
    spread = torch.tensor(variance)  # a network that has learned nothing gives the best guess from z alone
    context = teacher.transformer.encode_context(torch.zeros(1, 1, 16))
    made = teacher.predict(z.expand(1, 8, 1, 4, 6), t, Condition(torch.zeros(1, 4, 1, 4, 6)), context)
    torch.testing.assert_close(made[0, :, 0, 0, 0], 0.5 * spread / (0.25 * spread + 0.25))


def test_the_sampler_solves_the_ode_of_a_normal_distribution():
    mean, spread = 0.5, 0.3  # x0 ~ N(mean, spread^2): the ODE maps noise e to mean + spread * e

    def posterior(z, t):
        s = t.view(-1, 1)
        gain = (1 - s) * spread**2 / ((1 - s) ** 2 * spread**2 + s**2)
        return mean + gain * (z - (1 - s) * mean)

    noise = torch.linspace(-2, 2, 9)[None]
    path = list(sample_ode(posterior, noise, sampling_timesteps(400, 3.0)))
    assert len(path) == 401 and torch.equal(path[0], noise)
    torch.testing.assert_close(path[-1], mean + spread * noise, atol=0.01, rtol=0)


def test_the_guided_teacher_is_three_evaluations_of_the_network():
    net, batch = network(skip=True), clip_batch(clips=2)
    z, t = torch.randn_like(batch.latents), torch.tensor([0.9, 0.4])
    none = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        got = guided(net, batch, range(3), Guidance(2.0, 1.0))(z, t)
        full = net.predict(z, t, net.condition(batch, range(3)), net.context(batch))
        no_text = net.predict(z, t, net.condition(batch, range(3)), net.context(batch, none))
        no_tracks = net.predict(z, t, net.condition(batch, range(3), none), net.context(batch))
    by_hand = 2 / 3 * no_text + 1 / 3 * no_tracks + 2 * (full - no_text) + (full - no_tracks)
    torch.testing.assert_close(got, by_hand)
    torch.testing.assert_close(guided(net, batch, range(3), Guidance(0.4, 0.6))(z, t), full)  # sums to 1: unguided
    made = sample_teacher(net, batch, RECIPE)
    torch.testing.assert_close(made[:, :, 0], batch.latents[:, :, 0])  # the image stays


@pytest.mark.parametrize(("preset", "skip"), [(TINY, True), (PLAIN, False)], ids=["residual", "velocity"])
def test_the_teacher_learns_a_batch(preset, skip):
    net = network(preset, skip=skip)
    recipe = replace(RECIPE, hide=0.2)
    assert falls(lambda: flow_loss(net, clip_batch(preset), recipe)["loss"], net)


def test_sheets_decode_a_latent_frame_at_a_time_in_the_runs_precision(monkeypatch):
    torch.manual_seed(0)
    vae = EmbeddedVAE(8, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=1)
    latents, seen = clip_batch(clips=2).latents, []
    expected = ((vae.decode(latents) + 1) * 127.5).clamp(0, 255).movedim(1, -1)
    vae.decoder.register_forward_hook(lambda _, given, made: seen.append((given[0].shape[:2], made[0].dtype)))
    assert np.abs(to_frames(vae, latents) - expected.detach().numpy()).max() <= 0.51
    drawn = []
    monkeypatch.setattr(teacher, "contact_sheet", lambda columns, rows: drawn.extend(caption for caption, _ in rows))
    clip_sheet(vae, clip_batch(clips=2), {}, World(dtype=torch.bfloat16))
    assert drawn == ["clip 0, frame 16", "clip 0, frame 32", "clip 1, frame 16", "clip 1, frame 32"]
    assert {shape for shape, _ in seen} == {(1, 1)} and seen[0][1] == torch.float32 and seen[-1][1] == torch.bfloat16


def test_the_teachers_loss_is_told_beside_what_the_prior_alone_would_cost():
    net, batch = network(), clip_batch()
    terms = flow_loss(net, batch, replace(RECIPE, drop_text=0.0, drop_tracks=0.0))
    draws = clip_batch().draws
    for shape in ((), (), (RECIPE.chunks,)):  # texts, tracks and chunks that are left out
        draws.uniform(*shape)
    t = random_timesteps(draws, TINY.shift)
    weight = (t / T_LEAST).clamp(max=1).square() / t.square()
    of_prior = (weight * (batch.prior - batch.latents).square().mean((1, 2, 3, 4))).mean()
    torch.testing.assert_close(terms["prior"], of_prior)
    assert not torch.isclose(terms["loss"], of_prior, rtol=1e-3)


@pytest.mark.parametrize("part", ["text", "tracks", "middle"])
def test_what_is_left_out_of_clips_does_not_change_their_loss(part):
    net, batch, other = network(), clip_batch(), clip_batch(seed=5)
    changed, middle = replace(batch), (slice(None), slice(None), slice(3, 6))
    if part == "text":
        changed.text = other.text
    elif part == "tracks":
        changed.tracks, changed.prior, changed.confidence = other.tracks, other.prior, other.confidence
    else:
        changed.prior, changed.confidence = batch.prior.clone(), batch.confidence.clone()
        changed.prior[middle], changed.confidence[middle] = other.prior[middle], other.confidence[middle]

    def loss(clips, left_out=None):
        shares = {"drop_text": 0.0, "drop_tracks": 0.0, "hide": 0.0} | ({left_out: 1.0} if left_out else {})
        clips.draws = clip_batch().draws
        return flow_loss(net, clips, replace(RECIPE, **shares))["loss"].item()

    own = {"text": "drop_text", "tracks": "drop_tracks", "middle": "hide"}[part]
    others = {"text": ("drop_tracks", "hide"), "tracks": ("drop_text", "hide"), "middle": ("drop_text",)}[part]
    assert loss(changed, own) == loss(batch, own)
    assert all(loss(changed, one) != loss(batch, one) for one in (None, *others))


def test_dropout_leaves_out_its_share_and_gradients_reach_every_part():
    net, batch = network(), clip_batch()
    flow_loss(net, batch, RECIPE)["loss"].backward()
    for part in (net.transformer.patch_embedding, net.track_head.conv, net.text_encoder.embedding):
        assert part.weight.grad.abs().sum() > 0
    told = Draws(0, 0, [0]).uniform(20_000) >= 0.1
    assert told.float().mean().item() == pytest.approx(0.9, abs=0.01)
