"""The embedded autoencoder: a stream, cut anywhere, equals the whole; shapes; bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionstream.model.vae import EmbeddedVAE, TemporalMix


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = EmbeddedVAE(latent_channels=6, encoder_width=8, decoder_width=8, decoder_fine_width=8, decoder_depth=2)
    for parameter in vae.parameters():  # the residual parts start at zero: give them something to say
        torch.nn.init.normal_(parameter, std=0.2)
    vae.latent_mean.normal_()
    vae.latent_std.uniform_(0.5, 2)
    return vae.eval().requires_grad_(False)


def pieces(cuts, total):
    edges = [0, *sorted(set(cuts)), total]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 4)))
def test_decoding_in_pieces_equals_decoding_at_once(vae, cuts):
    latents = torch.randn(2, 6, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    decoder = vae.decoder_stream()
    streamed = torch.cat([decoder.step(latents[:, :, piece]) for piece in pieces(cuts, 5)], dim=2)
    torch.testing.assert_close(streamed, vae.decode(latents), atol=1e-5, rtol=1e-5)
    assert streamed.shape == (2, 3, 17, 16, 24)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 4)))
def test_encoding_in_pieces_equals_encoding_at_once(vae, cuts):
    frames = torch.rand(2, 3, 17, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoder = vae.encoder_stream()
    ends = [piece.stop for piece in pieces(cuts, 5)]
    starts = [0, *(1 + 4 * (end - 1) for end in ends)]
    streamed = torch.cat([encoder.step(frames[:, :, a:b]) for a, b in zip(starts, starts[1:], strict=False)], dim=2)
    torch.testing.assert_close(streamed, vae.encode(frames), atol=1e-5, rtol=1e-5)
    assert streamed.shape == (2, 6, 5, 2, 3)


def test_the_future_does_not_change_the_past(vae):
    latents = torch.randn(1, 6, 4, 2, 2)
    changed = latents.clone()
    changed[:, :, 3] += 1
    before, after = vae.decode(latents), vae.decode(changed)
    torch.testing.assert_close(before[:, :, :9], after[:, :, :9])
    assert (before[:, :, 9:] - after[:, :, 9:]).abs().max() > 1e-3


def test_each_latent_frame_sees_the_one_before_and_the_first_one_itself():
    mix, frames = TemporalMix(1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        mix.project.weight.copy_(torch.tensor([3.0, 10.0]).view(1, 2, 1, 1))
        mixed, last = mix(frames, 1, None)
        later, _ = mix(frames, 1, last)
    assert mixed.flatten().tolist() == [1 + 3 + 10, 2 + 6 + 10, 4 + 12 + 20]
    assert later.flatten().tolist() == [1 + 3 + 40, 2 + 6 + 10, 4 + 12 + 20]


def test_a_forked_stream_goes_on_apart(vae):
    latents, others = torch.randn(2, 1, 6, 4, 2, 2)
    one = vae.decoder_stream()
    one.step(latents[:, :, :2])
    other = one.fork()
    turned = torch.cat([latents[:, :, :2], others[:, :, 2:]], dim=2)
    torch.testing.assert_close(other.step(others[:, :, 2:]), vae.decode(turned)[:, :, 5:])
    torch.testing.assert_close(one.step(latents[:, :, 2:]), vae.decode(latents)[:, :, 5:])


def test_reset_starts_a_new_stream(vae):
    latents = torch.randn(1, 6, 2, 2, 2)
    decoder = vae.decoder_stream()
    first = decoder.step(latents)
    decoder.step(latents)
    decoder.reset()
    torch.testing.assert_close(decoder.step(latents), first)
    decoder.flush()
    assert decoder.step(latents).shape[2] == 5


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16)])
def test_frames_that_do_not_fit_are_named(vae, shape):
    with pytest.raises(ValueError, match="must be multiples of 8"):
        vae.encode(torch.zeros(shape))


def test_latents_of_another_model_are_named(vae):
    with pytest.raises(ValueError, match=r"\(1, 5, 1, 2, 2\).*\[B, 6, t, h, w\]"):
        vae.decode(torch.zeros(1, 5, 1, 2, 2))


def test_save_and_load_give_the_same_frames(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".json"] == [".safetensors"]
    loaded = EmbeddedVAE.from_pretrained(tmp_path)
    latents = torch.randn(1, 6, 2, 2, 2)
    torch.testing.assert_close(loaded.decode(latents), vae.decode(latents))
