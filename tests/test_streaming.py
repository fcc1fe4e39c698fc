"""The stream: sampling as in the paper, determinism, what the source is asked, what is freed."""

import contextlib
import dataclasses
import itertools
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from motionstream import streaming
from motionstream.errors import InputError
from motionstream.model.checkpoint import Model, assemble, random_model
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.presets import PRESETS, fit_size
from motionstream.model.text import EffectTextEncoder
from motionstream.model.track_head import TrackHead
from motionstream.model.transformer import MotionTransformer
from motionstream.model.vae import EmbeddedVAE
from motionstream.streaming import (
    PROMPTS,
    Condition,
    add_noise,
    assemble_condition,
    chunk_noise,
    image_channels,
    pack_confidence,
    predict_x0,
    sample,
    sampling_timesteps,
    shift_timestep,
    stream,
    write_cache,
)
from motionstream.tracks import ChunkRequest, Tracks

WIDTH, HEIGHT = 48, 32
NETWORK = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, text_dim=8, freq_dim=16)


class ImageTokens(nn.Module):
    """Stands in for CLIP: a few tokens that depend on the picture."""

    def encode(self, image):
        return image.mean((1, 2))[None, None].expand(1, 5, 3)


@pytest.fixture(scope="module")
def embedded() -> Model:
    """The embedded student's kind: first latent given, residual over a motion prior."""
    row = PRESETS["embedded"]
    return tiny(dataclasses.replace(row, latent_channels=8, transformer=dict(row.transformer) | NETWORK))


@pytest.fixture(scope="module")
def concatenated() -> Model:
    """Wan 2.1's kind: image beside the noise, image tokens, velocity."""
    row = PRESETS["wan2.1-1.3b"]
    shape = dict(row.transformer) | NETWORK | dict(image_dim=3, added_kv_proj_dim=24)
    return tiny(dataclasses.replace(row, latent_channels=8, transformer=shape))


def tiny(preset) -> Model:
    torch.manual_seed(0)
    parts = {
        "transformer": MotionTransformer(**preset.transformer_config()),
        "track_head": TrackHead(preset.track_dim, preset.track_channels),
        "vae": EmbeddedVAE(preset.latent_channels, 16, 16, 8, 1),
        "text_encoder": EffectTextEncoder(text_dim=8),
    }
    parts |= {"motion_prior": MotionPrior(widths=(8, 8))} if preset.motion_prior else {"image_encoder": ImageTokens()}
    return assemble(preset, parts, "cpu", torch.float32)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


class Recorder:
    """A `TrackSource`: one point drifting right; keeps what it was asked."""

    def __init__(self):
        self.requests: list[ChunkRequest] = []
        self.seen: list[set[int]] = []

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        self.requests.append(request)
        self.seen.append(set(request.history))
        x = 10 + 0.5 * (request.start + np.arange(request.frames))
        return Tracks.rigid_grid(np.stack([x, np.full_like(x, 16)], -1), 0, 1, np.array([7]))


def play(model, image, count, **options) -> list:
    with contextlib.closing(stream(model, image, Recorder(), **options)) as chunks:
        return [next(chunks) for _ in range(count)]


def pixels(chunks) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


# ---------------------------------------------------------------- pure functions


def test_timestep_shift_is_the_closed_form():
    assert shift_timestep(0.5, 6.0) == pytest.approx(6 / 7)
    assert shift_timestep(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == pytest.approx([0, 0.75, 1])
    assert shift_timestep(0.3, 1.0) == pytest.approx(0.3)
    assert sampling_timesteps(3, 6.0) == pytest.approx([1, 12 / 13, 3 / 4])
    assert sampling_timesteps(1, 3.0) == [1.0]


def test_sampling_puts_fresh_noise_on_its_own_guess_between_the_steps():
    draws, seen = iter(torch.tensor([[1.0], [10.0], [100.0]])), []

    def predict(z, t):
        seen.append((z.item(), t))
        return torch.tensor([2.0 + len(seen)])

    assert sample(predict, lambda: next(draws), [1.0, 0.8, 0.5]).item() == 5
    assert [t for _, t in seen] == [1.0, 0.8, 0.5]
    assert [z for z, _ in seen] == pytest.approx([1, 0.2 * 3 + 0.8 * 10, 0.5 * 4 + 0.5 * 100])


def test_the_true_velocity_leads_to_the_clean_latents():
    x0, noise, channels = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2), torch.randn(2, 5, 3, 2, 2)
    first, t = x0[:, :, :1], torch.tensor([0.3, 0.9])
    calls = []

    def network(inputs, timestep, context, return_dict, cache):
        calls.append((inputs, timestep))
        return (noise - x0,)

    z = add_noise(x0, noise, t.view(2, 1, 1, 1, 1))
    for given in (None, first):
        got = predict_x0(network, z, t, Condition(channels, first=given), None, prediction="velocity")
        assert torch.allclose(got, x0, atol=1e-5)
    assert torch.equal(calls[0][0], torch.cat([z, channels], 1)) and torch.allclose(calls[0][1], 1000 * t)
    assert torch.equal(calls[1][0][:, :4, 0], x0[:, :, 0]) and torch.equal(calls[1][0][:, :4, 1:], z[:, :, 1:])
    assert calls[1][1].tolist() == [pytest.approx([0, 300, 300]), pytest.approx([0, 900, 900])]


def test_a_residual_is_added_to_the_prior_but_not_to_the_given_frame():
    prior, first, out = torch.randn(3, 1, 4, 3, 2, 2).unbind(0)
    condition = assemble_condition(torch.zeros(1, 1, 3, 2, 2), None, prior, None, first[:, :, :1])
    got = predict_x0(lambda *_, **__: (out,), torch.randn(1, 4, 3, 2, 2), torch.ones(1), condition, None,
                     prediction="residual")
    assert torch.equal(got[:, :, 1:], (prior + out)[:, :, 1:]) and torch.equal(got[:, :, :1], first[:, :, :1])


def test_condition_channels_come_in_the_documented_order():
    tracks, image, prior, confidence = (torch.full((1, n, 3, 2, 2), float(n)) for n in (1, 2, 3, 4))
    channels = assemble_condition(tracks, image, prior, confidence).channels
    assert channels[0, :, 0, 0, 0].tolist() == [2, 2, 1, 3, 3, 3, 4, 4, 4, 4]


def test_confidence_is_averaged_over_cells_and_packed_in_time():
    confidence = torch.arange(9.0).view(1, 1, 9, 1, 1) * torch.ones(16, 8)
    confidence[:, :, :, :4] = 0  # half of the upper cell
    packed = pack_confidence(confidence, 8, 4, first=True)
    assert packed[0, :, :, 1, 0].T.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert packed[0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 0], [0.5, 1, 1.5, 2], [2.5, 3, 3.5, 4]]


def test_the_image_mask_marks_the_first_latent_frame_of_the_stream_only():
    latents = torch.randn(1, 6, 3, 2, 2)
    for first in (True, False):
        got = image_channels(latents, 4, first)
        assert torch.equal(got[:, 4:], latents)
        assert got[0, :4, :, 0, 0].T.tolist() == [[float(first)] * 4, [0] * 4, [0] * 4]


def test_what_is_shown_follows_the_prompt(embedded, image, monkeypatch):
    seen, found, compose, find = [], [], streaming.composite, streaming.find_light
    monkeypatch.setattr(streaming, "composite", lambda *a: seen.append(a) or compose(*a))
    monkeypatch.setattr(streaming, "find_light", lambda *a: found.append(a) or find(*a))
    prompts = iter(["", "a dragon", "fog", "snow at night", "", ""])
    with contextlib.closing(stream(embedded, image, Recorder(), prompt=lambda: next(prompts))) as chunks:
        for _ in range(6):
            next(chunks)
    lights = zip(found, seen[2:4], strict=True)  # turned to is the light of the newest latent frame
    assert all(torch.equal(at[n], shown[n][-4:]) for at, shown in lights for n in range(3))
    seen = [a[4:6] for a in seen]
    assert [light is not None for light, _ in seen] == [False, False, True, True, True, False]
    assert [unchanged is not None for _, unchanged in seen] == [False, False, False, True, False, False]
    torch.testing.assert_close(seen[2][0].matrix[-1], seen[3][0].matrix[0])  # no jump between chunks
    torch.testing.assert_close(seen[4][0].matrix[-1], torch.eye(3))


def test_noise_depends_on_seed_and_chunk_only():
    def draw(seed, index):
        noise = chunk_noise(seed, index, (2, 50), torch.device("cpu"))
        return torch.cat([noise(), noise()])

    assert torch.equal(draw(5, 2), draw(5, 2))
    different = [draw(5, 2), draw(5, 3), draw(6, 2), draw(2, 5), draw(-1, 2), draw(5 + 2**32, 2)]
    assert len({tuple(x.flatten().tolist()) for x in different}) == 6
    assert not torch.equal(*draw(5, 2).chunk(2))


@pytest.mark.parametrize("name", list(PRESETS))
def test_sizes_fit_budget_and_grid(name):
    preset = PRESETS[name]
    for budget in preset.budgets:
        for width, height in ((1920, 1080), (1080, 1920), (640, 480), (500, 500), (4000, 500), (100, 3000)):
            w, h = fit_size(preset, width, height, budget)
            assert w % preset.cell == 0 and h % preset.cell == 0
            assert 0.8 * budget <= w * h / preset.cell**2 <= budget
            assert abs(np.log(w / h) - np.clip(np.log(width / height), -np.log(2.25), np.log(2.25))) < 0.15
    assert fit_size(PRESETS["wan2.1-1.3b"], 832, 480, 1560) == (832, 480)
    assert fit_size(PRESETS["wan2.2-5b"], 1280, 704, 880) == (1280, 704)


# ---------------------------------------------------------------- the stream


def test_chunks_follow_each_other_and_frame_0_is_the_image(embedded, image):
    chunks = play(embedded, image, 4)
    assert [c.index for c in chunks] == [0, 1, 2, 3]
    assert [c.start for c in chunks] == [0, 9, 21, 33]
    assert [c.frames.shape for c in chunks] == [(9, HEIGHT, WIDTH, 3)] + [(12, HEIGHT, WIDTH, 3)] * 3
    assert all(c.frames.dtype == np.uint8 and c.tracks.T == len(c.frames) for c in chunks)
    assert np.abs(chunks[0].frames[0].astype(int) - image).max() <= 1
    for c in chunks:
        assert c.timings.keys() == {"control", "condition", "denoise", "cache", "decode", "copy", "sharpen", "total"}
        assert sum(c.timings.values()) == pytest.approx(2 * c.timings["total"], rel=0.05)


@pytest.mark.parametrize("kind", ["embedded", "concatenated"])
def test_same_seed_same_pixels_and_another_seed_others(kind, image, request):
    model = request.getfixturevalue(kind)
    once, again, other = (pixels(play(model, image, 3, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_a_stream_cut_anywhere_equals_the_uncut_one(embedded, image):
    whole = play(embedded, image, 5, seed=3)
    for count in range(1, 5):
        assert np.array_equal(pixels(play(embedded, image, count, seed=3)), pixels(whole[:count]))


def test_two_streams_of_one_model_do_not_touch_each_other(embedded, image):
    alone = pixels(play(embedded, image, 3, seed=4))
    first, second = (stream(embedded, picture, Recorder(), seed=4) for picture in (image, 255 - image))
    got = []
    for _ in range(3):
        got.append(next(first))
        next(second)
    assert np.array_equal(pixels(got), alone)


def test_the_source_is_never_asked_ahead(embedded, image):
    source = Recorder()
    chunks = stream(embedded, image, source)
    assert source.requests == []
    for index in range(7):
        chunk = next(chunks)
        asked = source.requests[-1]
        assert len(source.requests) == index + 1
        assert (asked.index, asked.start, asked.frames) == (index, chunk.start, len(chunk.frames))
        assert (asked.width, asked.height, asked.fps) == (WIDTH, HEIGHT, 16)
        newest = max(asked.start - 1, 0)
        assert source.seen[-1] == set(range(max(0, asked.start - 48), newest + 1))
    assert np.array_equal(source.requests[0].history[0], image)


def test_each_chunk_takes_three_noisy_passes_and_one_clean_one_that_writes(embedded, image, monkeypatch):
    passes, results = [], []

    def record(_, positional, keywords):
        latents, times = positional[0][:, :8], positional[1].unique().tolist()
        passes.append((latents, times, keywords["cache"].chunks, keywords.get("write", False)))

    monkeypatch.setattr(streaming, "sample", lambda *a: results.append(sample(*a)) or results[-1])
    hook = embedded.transformer.register_forward_pre_hook(record, with_kwargs=True)
    play(embedded, image, 3)
    hook.remove()
    assert [write for *_, write in passes] == [False, False, False, True] * 2 + [False] * 3
    assert [chunks for _, _, chunks, _ in passes] == [0] * 4 + [1] * 4 + [2] * 3
    for chunk in range(2):
        clean, times, *_ = passes[4 * chunk + 3]
        assert torch.equal(clean, results[chunk]) and times == [0]
    steps = [pytest.approx(1000 * t) for t in sampling_timesteps(3, embedded.preset.shift)]
    assert [times[-1:] for _, times, *_ in passes[4:7]] == [[t] for t in steps]


def test_the_history_shows_the_generated_frames(embedded, image):
    shown = {}

    class Source(Recorder):
        def tracks_for(self, request):
            assert all(np.array_equal(request.history[i], shown[i]) for i in request.history if i in shown)
            return super().tracks_for(request)

    for chunk in itertools.islice(stream(embedded, image, Source()), 4):
        shown |= dict(enumerate(chunk.frames, chunk.start))


def test_tracks_steer_the_picture(embedded, image):
    class Still(Recorder):
        def tracks_for(self, request):
            return Tracks.empty(request.frames)

    with contextlib.closing(stream(embedded, image, Still())) as chunks:
        still = next(chunks).frames
    assert not np.array_equal(still, play(embedded, image, 1)[0].frames)


def test_tracks_of_the_wrong_length_are_refused(embedded, image):
    class Short(Recorder):
        def tracks_for(self, request):
            return Tracks.empty(3)

    with pytest.raises(ValueError, match="Short gave tracks of 3 frames; 9 were asked for"):
        next(stream(embedded, image, Short()))


def test_the_prompt_is_asked_for_once_a_chunk_and_encoded_when_it_changes(embedded, image, monkeypatch):
    encoded, asked = [], iter(["", "", "fog", "fog", "night"])
    encode = embedded.text_encoder.encode
    monkeypatch.setattr(embedded.text_encoder, "encode", lambda text: encoded.append(text) or encode(text))
    monkeypatch.setattr(embedded, "texts", {})
    changed = play(embedded, image, 5, prompt=lambda: next(asked))
    assert encoded == ["", "fog", "night"] and next(asked, None) is None
    again = play(embedded, image, 3, prompt="fog")  # the encoder may be large and away: what it read is remembered
    assert encoded == ["", "fog", "night"]
    for number in range(PROMPTS):
        play(embedded, image, 1, prompt=str(number))
    assert list(embedded.texts) == [str(number) for number in range(PROMPTS)]
    assert np.array_equal(pixels(again), pixels(play(embedded, image, 3, prompt="fog"))) and encoded[-1] == "fog"
    plain = play(embedded, image, 5)
    assert np.array_equal(pixels(changed[:2]), pixels(plain[:2]))
    assert not np.array_equal(changed[2].frames, plain[2].frames)


@pytest.mark.parametrize("pulled", [1, 3])
def test_closing_frees_everything(embedded, image, pulled):
    chunks = stream(embedded, image, Recorder())
    for _ in range(pulled):
        next(chunks)
    state = chunks.gi_frame.f_locals["state"]
    held = [weakref.ref(x) for x in (state, state.cache, state.cache.layers[0].keys, state.decoder, state.context)]
    del state
    chunks.close()
    assert [ref() for ref in held] == [None] * 5
    assert next(chunks, None) is None


def test_what_a_stream_holds_does_not_grow(embedded, image):
    chunks, sizes = stream(embedded, image, Recorder()), []
    for _ in range(12):
        next(chunks)
        state = chunks.gi_frame.f_locals["state"]
        tensors = [t for layer in state.cache.layers for t in (layer.keys, layer.values, layer.unrotated)]
        sizes.append((sum(t.numel() for t in tensors), len(state.history)))
    assert len(set(sizes[4:])) == 1


def test_the_consumer_keeps_its_own_gradient_mode(embedded, image):
    chunks = stream(embedded, image, Recorder())
    next(chunks)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_image_condition_and_image_tokens_reach_the_network(concatenated, image):
    plain = play(concatenated, image, 2, seed=1)
    assert [len(c.frames) for c in plain] == [9, 12]
    other = image.copy()
    other[8:24, 16:32] = 0
    assert not np.array_equal(play(concatenated, other, 1, seed=1)[0].frames[1:], plain[0].frames[1:])
    blind = dataclasses.replace(concatenated, image_encoder=type("Blank", (ImageTokens,), dict(
        encode=lambda self, image: torch.zeros(1, 5, 3)))())
    assert not np.array_equal(play(blind, image, 1, seed=1)[0].frames, plain[0].frames)


def test_bfloat16_follows_float32(embedded, image):
    row = embedded.preset
    exact = pixels(play(embedded, image, 3)).astype(float)
    half = assemble(row, tiny(row).components(), "cpu", torch.bfloat16)
    rough = pixels(play(half, image, 3)).astype(float)
    assert np.abs(exact - rough).mean() < 3
    assert half.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.transformer.blocks[0].norm2.weight.dtype == torch.float32


@pytest.mark.parametrize("bad, message", [
    (np.zeros((32, 48, 4), np.uint8), r"expected uint8 \[height, width, 3\]"),
    (np.zeros((32, 48, 3), np.float32), "image is float32"),
    (np.zeros((30, 48, 3), np.uint8), "48x30; width and height must be multiples of 16"),
    (np.zeros((0, 48, 3), np.uint8), "48x0"),
])
def test_bad_images_are_refused_before_anything_runs(embedded, bad, message):
    with pytest.raises(InputError, match=message):
        stream(embedded, bad, Recorder())


def test_training_rolls_out_with_the_same_functions(embedded):
    """Two chunks, batch 2, gradients: to the network and the track head, through the noisy passes only."""
    model = random_model(embedded.preset, 1)
    context = model.transformer.encode_context(torch.randn(2, 4, 8))
    cache = model.transformer.new_cache(2, 3, 4, 6, sink=1, window=1)
    losses = []
    for index in range(3):
        tracks = model.track_head(torch.randn(2, 9 if index == 0 else 12, 4, 6, 64), index == 0)
        prior, x0 = torch.randn(2, 2, 8, 3, 4, 6)
        first = x0[:, :, :1] if index == 0 else None
        condition = assemble_condition(tracks, None, prior, torch.rand(2, 4, 3, 4, 6), first)
        t = torch.tensor([0.9, 0.4])
        z = add_noise(x0, torch.randn_like(x0), t.view(2, 1, 1, 1, 1))
        guess = predict_x0(model.transformer, z, t, condition, context, cache, prediction="residual")
        losses.append((guess - x0).square().mean())
        write_cache(model.transformer, x0, condition, context, cache)
    assert cache.chunks == 3
    sum(losses).backward()
    for part in (model.transformer, model.track_head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


# ---------------------------------------------------------------- frames larger than the student's


@pytest.fixture
def photo(image) -> np.ndarray:
    return np.kron(image, np.ones((2, 2, 1), np.uint8))


class Still:
    def tracks_for(self, request: ChunkRequest) -> Tracks:
        assert (request.width, request.height) == (WIDTH, HEIGHT)
        assert all(frame.shape == (HEIGHT, WIDTH, 3) for frame in request.history.values())
        return Tracks.empty(request.frames)


def test_an_untouched_photo_is_shown_as_it_is(embedded, image, photo):
    with contextlib.closing(stream(embedded, image, Still(), sharp=photo)) as chunks:
        for chunk in itertools.islice(chunks, 3):
            assert np.abs(chunk.frames.astype(int) - photo).max() <= 1


def test_sharp_frames_move_as_the_students_do(embedded, image, photo):
    plain, sharp = pixels(play(embedded, image, 3)), play(embedded, image, 3, sharp=photo)
    assert all(one.timings["sharpen"] > 0 for one in sharp)
    assert pixels(sharp).shape == (len(plain), 2 * HEIGHT, 2 * WIDTH, 3)
    shrunk = pixels(sharp).reshape(len(plain), HEIGHT, 2, WIDTH, 2, 3).mean((2, 4))
    assert np.abs(shrunk - plain).mean() < np.abs(shrunk - image).mean() / 2
    assert np.array_equal(pixels(sharp), pixels(play(embedded, image, 3, sharp=photo)))


def test_a_sharper_copy_must_fit(embedded, concatenated, image, photo):
    with pytest.raises(InputError, match="multiple of the image's"):
        stream(embedded, image, Still(), sharp=photo[:-1])
    with pytest.raises(InputError, match="multiple of the image's"):
        stream(embedded, image, Still(), sharp=photo.astype(np.float32))
    with pytest.raises(InputError, match="no sharper copy"):
        stream(concatenated, image, Still(), sharp=photo)
