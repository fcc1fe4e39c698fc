"""Causal adaptation, the roll-out against the stream, and distribution matching against closed forms."""

from dataclasses import replace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import PLACE, RECIPE, TINY, clip_batch, falls, gradients, network

from motionstream.errors import InputError
from motionstream.model.cache import RollingCache
from motionstream.model.checkpoint import assemble
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.text import EffectTextEncoder
from motionstream.model.vae import EmbeddedVAE, Stream
from motionstream.streaming import add_noise, chunk_noise, sampling_timesteps, shift_timestep, stream
from motionstream.tracks import StaticTracks, Tracks
from motionstream.training import adaptation, effects, self_forcing
from motionstream.training.adaptation import causal_loss, kept_steps, own_way
from motionstream.training.clips import ClipBatch, Encoders, chunk_bounds
from motionstream.training.effects import clip_noise
from motionstream.training.guidance import Guidance
from motionstream.training.parallel import World
from motionstream.training.self_forcing import Distillation, dmd_gradient, drawn_noise, roll_out, stretch
from motionstream.training.trainer import Draws

STEPS = TINY.steps


class Pooled(nn.Module):
    """An autoencoder's stand-in: 4 frames of 8x8 pixels -> their mean colour, in the first 3 of 8 channels."""

    def encode(self, frames):
        first, rest = frames[:, :, :1], frames[:, :, 1:].unflatten(2, (-1, 4)).mean(3)
        cells = torch.nn.functional.avg_pool3d(torch.cat([first, rest], 2), (1, 8, 8))
        return torch.cat([cells, torch.zeros_like(cells[:, :1]).expand(-1, 5, -1, -1, -1)], 1)

    def decode(self, latents):
        frames = latents[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4).repeat_interleave(4, 2)
        return frames[:, :, 3:]

    def decoder_stream(self):
        def advance(latents, memory):
            if memory is None:
                return self.decode(latents), [latents]
            return self.decode(torch.cat([latents[:, :, :1], latents], 2))[:, :, 1:], [latents]

        return Stream(advance)


def encoders() -> Encoders:
    return Encoders(TINY, Pooled(), EffectTextEncoder(16))


def rolled(net, batch, chunks=3, last=STEPS - 1, sink=1, window=1):
    return roll_out(net, batch, chunks, last, drawn_noise(batch, TINY), sink=sink, window=window)


def test_a_roll_out_is_the_stream():
    torch.manual_seed(0)
    vae = EmbeddedVAE(8, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=1).eval()
    prior, net = MotionPrior(widths=(8, 8), features=4).eval(), network()
    parts = dict(transformer=net.transformer, track_head=net.track_head, text_encoder=net.text_encoder, vae=vae)
    model = assemble(TINY, parts | {"motion_prior": prior}, "cpu", torch.float32)
    rng, frames = np.random.default_rng(0), chunk_bounds(TINY, 5)[-1][1]
    image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    path = rng.uniform(8, 24, (1, 4, 2)) + np.cumsum(rng.normal(0, 0.5, (frames, 4, 2)), 0)
    tracks = Tracks(path, np.ones((frames, 4), bool), np.arange(4))
    chunks, seen = stream(model, image, StaticTracks(tracks), prompt="fog", seed=7), []

    import motionstream.streaming as streaming

    real = streaming.write_cache

    def watch(transformer, x0, condition, context, cache):
        seen.append((x0.clone(), cache))
        real(transformer, x0, condition, context, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "write_cache", watch)
        for _ in range(6):
            next(chunks)
    video = np.repeat(image[None], frames, axis=0)  # of which only frame 0 counts
    record = Encoders(TINY, vae, net.text_encoder, prior).record(video, tracks, "fog", World(), 4)
    values = {name: value[None] for name, value in record.items() if name in ClipBatch.__dataclass_fields__}
    batch = ClipBatch(tracks=[tracks], draws=Draws(0, 0, [0]), **values)
    caches = []
    net.new_cache, new = lambda *a, **k: caches.append(new(*a, **k)) or caches[-1], net.new_cache
    shape = (1, TINY.latent_channels, TINY.chunk_size, *PLACE)
    with torch.no_grad():
        made = roll_out(
            net,
            batch,
            5,
            STEPS - 1,
            lambda i: chunk_noise(7, i, shape, torch.device("cpu")),
            sink=TINY.sink,
            window=TINY.window,
        )
    torch.testing.assert_close(made, torch.cat([x0 for x0, _ in seen], 2), atol=2e-4, rtol=1e-3)
    [mine], theirs = caches, seen[0][1]
    assert type(mine) is type(theirs) is RollingCache
    assert (mine.sink, mine.window, mine.shape) == (theirs.sink, theirs.window, theirs.shape)
    torch.testing.assert_close(mine.table, theirs.table)
    assert mine.chunks == 4 and theirs.chunks == 5  # a roll-out's last chunk is never read again


def test_roll_outs_go_on_in_the_same_way():
    net, batch = network(), clip_batch(chunks=5)
    with torch.no_grad():
        long = rolled(net, batch, 5)
        batch.draws = clip_batch().draws
        torch.testing.assert_close(rolled(net, batch, 3), long[:, :, :9])


@pytest.mark.parametrize("last", range(STEPS))
def test_gradients_flow_through_exactly_one_step(last):
    net, batch = network(), clip_batch(clips=2)
    learning = []
    forward = net.transformer.forward

    def watch(x, t, *rest, cache=None, write=False, **named):
        learning.append((torch.is_grad_enabled(), write, t.max().item()))
        return forward(x, t, *rest, cache=cache, write=write, **named)

    net.transformer.forward = watch
    x = rolled(net, batch, last=last)
    timesteps = [1000 * t for t in sampling_timesteps(STEPS, TINY.shift)]
    with_gradients = [t for learns, _, t in learning if learns]
    assert with_gradients == pytest.approx([timesteps[last]] * 3)  # one pass a chunk
    assert sum(write for _, write, _ in learning) == 2 and len(learning) == 3 * (last + 1) + 2
    # Cached keys and values are detached: the last chunk's gradient is that of its last pass alone.
    x[:, :, -3:].square().sum().backward()
    got = gradients(net.transformer)

    net.zero_grad()
    learning.clear()
    again = clip_batch(clips=2)
    context, condition = net.context(again), net.condition(again, range(2, 3))
    cache = net.new_cache(again, 1, 1)
    with torch.no_grad():
        for index in range(2):
            net.write(
                x[:, :, 3 * index : 3 * index + 3].detach(),
                net.condition(again, range(index, index + 1)),
                context,
                cache,
            )
        noise = drawn_noise(clip_batch(clips=2), TINY)
        for draw in (noise(0), noise(1)):
            for _ in range(last + 1):
                draw()
        draw = noise(2)
        z = draw()
        for t, following in zip([t / 1000 for t in timesteps[:last]], [t / 1000 for t in timesteps[1:]], strict=False):
            x0 = net.predict(z, torch.full((2,), t), condition, context, cache)
            z = add_noise(x0, draw(), following)
    net.predict(z, torch.full((2,), timesteps[last] / 1000), condition, context, cache).square().sum().backward()
    expected = gradients(net.transformer)
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_reduced_precision_keeps_gradients_after_passes_without():
    net, batch = network(), clip_batch(clips=2)
    net.world = World(dtype=torch.bfloat16)
    rolled(net, batch).square().mean().backward()
    found = gradients(net.transformer)
    assert all(found[f"blocks.{i}.attn1.to_q.weight"].abs().sum() > 0 for i in range(2))


@pytest.mark.parametrize(("sink", "window", "kept"), [(0, 0, 5), (1, 1, 3), (0, 2, 3), (1, 3, 1), (2, 2, 1)])
def test_checkpointed_roll_outs_have_the_same_gradients_from_few_copies_of_the_cache(sink, window, kept):
    results = []
    for checkpointing in (False, True):
        net = network()
        net.checkpointing = checkpointing
        net._predict = passes = Mock(wraps=net._predict)
        rolled(net, clip_batch(clips=2, chunks=5), 5, sink=sink, window=window).square().mean().backward()
        results.append(gradients(net))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=0, atol=0, msg=name)
    assert len({one.args[-1].layers[0].keys.data_ptr() for one in passes.call_args_list}) == kept


def test_checkpointed_adaptation_has_the_same_gradients():
    results = []
    for checkpointing in (False, True):
        net, batch = network(), clip_batch(clips=2, chunks=5)
        net.checkpointing = checkpointing
        causal_loss(net, batch, replace(RECIPE, chunks=5, sinks=(1,), windows=(1,)))["loss"].backward()
        results.append(gradients(net))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=0, atol=0, msg=name)


def test_the_dmd_gradient_is_the_closed_form_for_normal_distributions():
    real_mean, real_spread, mean, spread = 2.0, 0.5, -1.0, 0.8

    def posterior(z, t, m, s):
        gain = (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2)
        return m + gain * (z - (1 - t) * m)

    def score(z, t, m, s):  # of N((1 - t) m, (1 - t)^2 s^2 + t^2)
        return ((1 - t) * m - z) / ((1 - t) ** 2 * s**2 + t**2)

    torch.manual_seed(0)
    x, t = mean + spread * torch.randn(3, 2, 1000), torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)
    z = add_noise(x, torch.randn_like(x), t)
    real, fake = posterior(z, t, real_mean, real_spread), posterior(z, t, mean, spread)
    wanted = -(score(z, t, real_mean, real_spread) - score(z, t, mean, spread)) * t**2 / (1 - t)
    size = (x - real).abs().mean(2, keepdim=True)
    torch.testing.assert_close(dmd_gradient(x, real, fake), wanted / size, atol=1e-5, rtol=1e-4)


def test_no_channel_outweighs_the_others_by_its_variance():
    torch.manual_seed(0)
    x, real, fake = torch.randn(3, 2, 4, 5, 6, 6)
    scale = torch.tensor([25.0, 1.0, 3.0, 0.1]).view(4, 1, 1, 1)
    torch.testing.assert_close(dmd_gradient(scale * x, scale * real, scale * fake), dmd_gradient(x, real, fake))


def test_distribution_matching_finds_the_real_distribution():
    """Generator N(m, s^2), both scores exact: at the end m and s are the real ones."""
    torch.manual_seed(0)
    m, log_s = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.4, requires_grad=True)
    optimiser = torch.optim.Adam([m, log_s], lr=0.05)

    def posterior(z, t, m, s):
        return m + (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2) * (z - (1 - t) * m)

    for _ in range(400):
        x = m + log_s.exp() * torch.randn(64, 1, 16)
        with torch.no_grad():
            t = torch.rand(64, 1, 1) * 0.96 + 0.02
            z = add_noise(x, torch.randn_like(x), t)
            g = dmd_gradient(x, posterior(z, t, 1.5, 0.4), posterior(z, t, m, log_s.exp()))
        optimiser.zero_grad()
        (0.5 * (x - (x - g).detach()).square().mean()).backward()
        optimiser.step()
    assert m.item() == pytest.approx(1.5, abs=0.1) and log_s.exp().item() == pytest.approx(0.4, abs=0.08)


def distillation(chunks=3, teacher_chunks=3) -> Distillation:
    student, teacher, critic = network(seed=1), network(seed=2, skip=True), network(seed=3, skip=True)
    return Distillation(
        student, teacher.requires_grad_(False), critic, encoders(), replace(RECIPE, chunks=chunks), teacher_chunks
    )


def test_each_player_learns_from_its_own_loss_alone():
    losses = distillation()
    losses.generator_loss(clip_batch())["loss"].backward()
    assert gradients(losses.student) and not gradients(losses.teacher) and not gradients(losses.critic)
    losses.student.zero_grad()
    losses.critic_loss(clip_batch())["loss"].backward()
    assert gradients(losses.critic) and not gradients(losses.teacher) and not gradients(losses.student)


def test_the_generators_loss_has_the_dmd_gradient(monkeypatch):
    losses, taken = distillation(), {}
    real = self_forcing.dmd_gradient

    def watch(x, *believed):
        taken["gradient"], taken["x"] = real(x, *believed), x
        x.retain_grad()
        return taken["gradient"]

    monkeypatch.setattr(self_forcing, "dmd_gradient", watch)
    losses.generator_loss(clip_batch())["loss"].backward()
    torch.testing.assert_close(taken["x"].grad, taken["gradient"] / taken["x"].numel())


@pytest.mark.parametrize("chunks", [3, 5])
def test_an_anchored_student_is_also_drawn_to_the_clip(chunks, monkeypatch):
    losses, taken = distillation(chunks), {}
    losses.recipe = replace(losses.recipe, anchor=0.3)

    def nothing(x, real, fake):
        taken["x"], taken["size"] = x, (x - real).abs().mean((2, 3, 4), keepdim=True)
        x.retain_grad()
        return torch.zeros_like(x)

    monkeypatch.setattr(self_forcing, "dmd_gradient", nothing)
    batch = clip_batch(chunks=chunks)
    start = losses._scene(clip_batch(chunks=chunks))[2]
    losses.generator_loss(batch)["loss"].backward()
    x, begin = taken["x"], next(i for i in range(0, 9, 3) if torch.equal(batch.latents[:, :, i : i + 9], start))
    wanted = 0.3 * (x - batch.latents[:, :, begin : begin + 9]) / taken["size"] / x.numel()
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("something", [False, True])
def test_only_a_roll_out_that_was_told_what_falls_is_drawn_to_the_clip(something, monkeypatch):
    losses, roll_outs, drawn = distillation(), Mock(wraps=self_forcing.roll_out), []
    monkeypatch.setattr(self_forcing, "roll_out", roll_outs)
    for seed in range(12):
        batch = clip_batch(seed=seed)
        batch.noise = torch.tensor([5] * len(batch)) if something else None
        drawn.append(losses._scene(batch)[2] is not None)
    lasts, timesteps = [call.args[3] for call in roll_outs.call_args_list], sampling_timesteps(STEPS, TINY.shift)
    telling = max(i for i, t in enumerate(timesteps) if t > effects.SHOWS)
    assert telling > 0 and {*lasts} == {*range(STEPS)}
    assert drawn == [not something or last >= telling for last in lasts]


def test_the_last_noise_before_a_roll_out_shows_what_falls_is_the_clips_own():
    batch = clip_batch(clips=2)
    batch.noise = torch.tensor([5, 6])
    draw = drawn_noise(batch, TINY)(1)
    drawn = [draw() for _ in range(STEPS)]
    own = torch.stack([clip_noise(seed, batch.latents.shape[1:])[:, 3:6] for seed in (5, 6)])
    timesteps = sampling_timesteps(STEPS, TINY.shift)
    telling = timesteps.index(min(t for t in timesteps if t > effects.SHOWS))
    assert [torch.equal(one, own) for one in drawn] == [index == telling for index in range(STEPS)]


def test_teacher_and_critic_see_timesteps_that_are_uniform_before_the_shift():
    clips, draws = torch.full((50, 1, 1, 1, 1), 2.0), Draws(3, 0, range(50))
    z, t = distillation()._noised(clips, Draws(3, 0, range(50)))
    before = 0.02 + 0.96 * draws.uniform()
    torch.testing.assert_close(t, shift_timestep(before, TINY.shift))
    torch.testing.assert_close(z, add_noise(clips, draws.normal(1, 1, 1, 1), t.view_as(z)))


def scene_of(losses, **named):
    """What both losses begin with, from the same draws: clips, what is told about them, and the clips noised."""
    batch = clip_batch(**named)
    with torch.no_grad():
        x, seen, _ = losses._scene(batch)
        return x, seen, *losses._noised(x, batch.draws)


def test_the_critics_loss_is_flow_matching_on_the_students_clips():
    losses = distillation()
    x, seen, z, t = scene_of(losses)
    with torch.no_grad():
        told = losses.critic.condition(seen, range(3)), losses.critic.context(seen)
        each = (losses.critic.predict(z, t, *told) - x).square().mean((1, 2, 3, 4)) / t.square()
    weight = (t / 0.3).clamp(max=1).square()
    torch.testing.assert_close(losses.critic_loss(clip_batch())["loss"], (weight * each).mean())
    losses._believed = lambda z, t, seen: torch.zeros_like(z)  # small timesteps, where the weight counts
    losses._noised = lambda x, draws: (x, torch.tensor([0.1, 0.2, 0.3, 0.6]))
    size, weight = x.square().mean((1, 2, 3, 4)), torch.tensor([1 / 0.09, 1 / 0.09, 1 / 0.09, 1 / 0.36])
    torch.testing.assert_close(losses.critic_loss(clip_batch())["loss"], (size * weight).mean())


def test_the_teacher_is_guided_as_the_recipe_says():
    losses = distillation()
    x, seen, z, t = scene_of(losses)
    with torch.no_grad():
        full = losses.teacher.predict(z, t, losses.teacher.condition(seen, range(3)), losses.teacher.context(seen))
        guided = losses.generator_loss(clip_batch())["to_real"]
        losses.recipe = replace(losses.recipe, guidance=Guidance(0.4, 0.6))  # that sum to 1: unguided
        unguided = losses.generator_loss(clip_batch())["to_real"]
    torch.testing.assert_close(unguided, (x - full).abs().mean())
    assert not torch.isclose(guided, unguided, rtol=1e-3)


def test_the_critic_learns_a_batch():
    losses = distillation()
    assert falls(lambda: losses.critic_loss(clip_batch())["loss"], losses.critic)


def test_the_student_moves_towards_the_teacher():
    """The critic agrees with the student's own clips, so what is left of the gradient points to the teacher."""
    losses = distillation()
    losses._believed = lambda z, t, seen: losses.rolled
    scene = losses._scene

    def keep(batch):
        x, *others = scene(batch)
        losses.rolled = x.detach()
        return x, *others

    losses._scene = keep

    def distance():
        return losses.generator_loss(clip_batch())

    before = distance()["to_real"].item()
    optimiser = torch.optim.AdamW(losses.student.parameters(), lr=3e-3)
    for _ in range(6):
        optimiser.zero_grad()
        distance()["loss"].backward()
        optimiser.step()
    assert distance()["to_real"].item() < 0.97 * before


def test_a_stretch_begins_with_a_frame_of_its_own():
    batch = clip_batch(clips=2, chunks=5)
    x = torch.randn(2, 8, 15, *PLACE).clamp(-0.9, 0.9).requires_grad_()
    same, seen = stretch(encoders(), batch, x, 0, 3)
    torch.testing.assert_close(same, x[:, :, :9])
    assert [one.T for one in seen.tracks] == [33, 33]
    cut, seen = stretch(encoders(), batch, x, 2, 3)
    begin = 9 + 12 + 3  # the last of the four frames of latent 6
    assert cut.shape == x[:, :, :9].shape and seen.tracks[0].T == 33
    np.testing.assert_array_equal(seen.tracks[1].points, batch.tracks[1].points[begin : begin + 33])
    torch.testing.assert_close(cut[:, :, 1:], x[:, :, 7:15])
    torch.testing.assert_close(cut[:, :3, 0], x[:, :3, 6])  # the stand-in's four frames are alike
    torch.testing.assert_close(seen.latents, cut)
    torch.testing.assert_close(seen.prior[:, :, 0], cut[:, :, 0])
    torch.testing.assert_close(seen.prior[:, :, 1:], batch.prior[:, :, 7:15])
    assert (seen.confidence[:, :, 0] == 1).all()
    cut.sum().backward()
    assert (x.grad[:, :, 7:] == 1).all() and not x.grad[:, :, :7].any()


def test_a_stretch_keeps_nothing_of_how_its_image_was_encoded():
    parts, batch = encoders(), clip_batch(clips=2, chunks=5)
    scale = torch.ones(1, requires_grad=True)  # as the weights of encoders are: nobody trains them
    monkey = Mock(side_effect=lambda picture, frames: scale * torch.zeros(len(picture), 8, 9, *PLACE))
    batch.image = torch.zeros_like(batch.latents)
    with patch.object(Encoders, "image_latents", monkey):
        cut, seen = stretch(parts, batch, torch.randn(2, 8, 15, *PLACE).requires_grad_(), 2, 3)
    assert monkey.called and seen.image.grad_fn is None and cut.grad_fn is not None


def test_roll_outs_go_beyond_the_teachers_length(monkeypatch):
    losses, lengths, roll_outs = distillation(chunks=5, teacher_chunks=3), set(), Mock(wraps=self_forcing.roll_out)
    monkeypatch.setattr(self_forcing, "roll_out", roll_outs)
    for step in range(6):
        with torch.no_grad():
            x, seen, clip = losses._scene(clip_batch(clips=1, chunks=5, step=step))
        assert x.shape[2] == 9 and clip.shape == x.shape and seen.tracks[0].T == 33
        lengths.add(bool((seen.tracks[0].points == clip_batch(clips=1, chunks=5).tracks[0].points[:33]).all()))
    assert lengths == {True, False} and {call.args[2] for call in roll_outs.call_args_list} == {3, 4, 5}
    losses.generator_loss(clip_batch(clips=1, chunks=5, step=2))["loss"].backward()
    assert gradients(losses.student)


def test_the_students_timesteps_are_the_teachers_steps():
    fine, coarse = sampling_timesteps(24, 3.0), sampling_timesteps(3, 3.0)
    assert [fine[i] for i in kept_steps(24, TINY)] == pytest.approx(coarse)
    with pytest.raises(InputError, match="take a multiple"):
        kept_steps(10, TINY)


def trajectories(**named):
    batch = clip_batch(**named)
    batch.trajectory, batch.endpoint = (
        torch.randn(len(batch), STEPS, *batch.latents.shape[1:]),
        torch.randn_like(batch.latents),
    )
    batch.endpoint[:, :, 0] = batch.latents[:, :, 0]
    return batch


def test_the_causal_student_learns_a_batch():
    net = network()
    torch.manual_seed(0)
    fixed = trajectories()

    def loss():
        fixed.draws = clip_batch().draws
        return causal_loss(net, fixed, RECIPE)["loss"]

    assert falls(loss, net)


def test_without_a_teacher_the_student_learns_the_clips_themselves():
    net, fixed = network(), clip_batch()

    def loss():
        fixed.draws = clip_batch().draws
        return causal_loss(net, fixed, RECIPE)["loss"]

    assert falls(loss, net)


@pytest.mark.parametrize("shown", (False, True))
def test_without_a_teacher_every_step_starts_from_the_guess_before_or_from_the_clip(shown):
    timesteps = sampling_timesteps(STEPS, TINY.shift)  # 1, 0.857, 0.6
    part, scale, seen = slice(3, 6), torch.ones((), requires_grad=True), []

    def predict(z, t):
        seen.append((t, z.detach()))
        return scale * (len(seen) + z)

    def starts(seeds):
        """What the steps start from, and what they should have been made of beside noise."""
        seen.clear()
        batch = clip_batch(clips=2)
        batch.noise = seeds
        guesses = own_way(predict, batch, part, timesteps, torch.tensor(shown))
        for guess, (_, z) in zip(guesses, seen, strict=True):
            (slope,) = torch.autograd.grad(guess.sum(), scale)
            torch.testing.assert_close(slope, guess.sum())  # no gradient comes from the steps before
            assert not z.requires_grad
        made_of = [batch.latents[:, :, part] if shown else guess.detach() for guess in guesses]
        return [z for _, z in seen], made_of

    plain, made_of = starts(None)
    draws, shape = clip_batch(clips=2).draws, plain[0].shape[1:]
    noises = [draws.normal(*shape) for _ in timesteps]
    assert [t for t, _ in seen] == timesteps
    torch.testing.assert_close(plain[0], noises[0])
    for n in (1, 2):
        torch.testing.assert_close(plain[n], add_noise(made_of[n - 1], noises[n], timesteps[n]))
    told, made_of = starts(torch.tensor([3, 4]))
    tells = torch.stack([clip_noise(n, clip_batch(clips=1).latents.shape[1:])[:, part] for n in (3, 4)])
    torch.testing.assert_close(told[0], noises[0])
    torch.testing.assert_close(told[1], add_noise(made_of[0], tells, timesteps[1]))  # the last that hides what falls
    torch.testing.assert_close(told[2], add_noise(made_of[1], noises[2], timesteps[2]))


@pytest.mark.parametrize("share", (0.0, 0.5, 1.0))
def test_without_a_teacher_later_chunks_attend_to_the_students_own_or_to_the_clips(share, monkeypatch):
    monkeypatch.setattr(adaptation, "SHOWN", share)
    net, batch, written = network(), clip_batch(clips=40), []
    net.predict = lambda z, t, *_: torch.full_like(z, 100.0)
    net.write = lambda x0, *_: written.append(x0)
    causal_loss(net, batch, RECIPE)
    own = torch.stack([(x0 == 100).flatten(1).all(1) for x0 in written])
    chunks = zip(written, batch.latents.split(3, 2), strict=True)
    true = torch.stack([(x0 == clean).flatten(1).all(1) for x0, clean in chunks])
    assert torch.equal(own, ~true) and torch.equal(own, own[:1].expand_as(own))  # a clip is one or the other
    assert own[0].float().mean() == pytest.approx(1 - share, abs=0.25)


def test_with_trajectories_each_chunk_of_each_clip_is_at_a_timestep_of_its_own():
    net, batch, seen, written = network(), trajectories(clips=20), [], []
    net.predict = lambda z, t, *_: seen.append((z, t)) or z
    net.write = lambda x0, *_: written.append(x0)
    loss = causal_loss(net, batch, RECIPE)["loss"]
    timesteps = torch.tensor(sampling_timesteps(STEPS, TINY.shift))
    steps = torch.stack([(t[:, None] - timesteps).abs().argmin(1) for _, t in seen])  # [chunks, clips]
    torch.testing.assert_close(torch.stack([t for _, t in seen]), timesteps[steps])
    assert len(steps.unique()) == STEPS and len({tuple(row) for row in steps.tolist()}) == 3
    taken = [batch.trajectory[range(20), row][:, :, 3 * i : 3 * i + 3] for i, row in enumerate(steps)]
    assert all(torch.equal(z, wanted) for (z, _), wanted in zip(seen, taken, strict=True))
    assert torch.equal(torch.cat(written, 2), batch.endpoint)  # what is attended to is the teacher's
    torch.testing.assert_close(loss, (torch.cat(taken, 2) - batch.endpoint).square().mean())


def test_without_a_teacher_every_step_counts_alike():
    net, batch = network(), clip_batch()
    net.predict = lambda z, t, *_: t.view(-1, 1, 1, 1, 1).expand_as(z)
    errors = [(t - batch.latents).square().mean() for t in sampling_timesteps(STEPS, TINY.shift)]
    torch.testing.assert_close(causal_loss(net, batch, RECIPE)["loss"], torch.stack(errors).mean())


def test_adaptation_attends_to_clean_chunks_through_sinks_and_windows_of_all_sizes():
    net, recipe = network(), replace(RECIPE, chunks=2, sinks=(0, 2), windows=(1, 3))
    used, new = set(), net.new_cache
    net.new_cache = lambda batch, sink, window: used.add((sink, window)) or new(batch, sink, window)
    with torch.no_grad():
        for step in range(12):
            causal_loss(net, trajectories(clips=1, chunks=2, step=step), recipe)
    assert used == {(sink, window) for sink in (0, 2) for window in (1, 3)}


def test_adaptation_is_causal():
    net, recipe = network(), replace(RECIPE, sinks=(1,), windows=(1,))
    torch.manual_seed(0)
    one = trajectories()
    other = replace(one, endpoint=one.endpoint.clone(), draws=clip_batch().draws)
    other.endpoint[:, :, 6:] += 1  # the last chunk: only its own error may change
    with torch.no_grad():
        a, b = causal_loss(net, one, recipe), causal_loss(net, other, recipe)
    torch.testing.assert_close(a["first"], b["first"])
    assert not torch.allclose(a["last"], b["last"])
