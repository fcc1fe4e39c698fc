"""Wan's autoencoders and the tiny decoder: a stream, cut anywhere, equals the whole, and what diffusers computes."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from motionstream.machine import MAX_VAE_GRAPHS
from motionstream.model.checkpoint import load_component
from motionstream.model.presets import PRESETS
from motionstream.model.tiny_vae import TinyVAE
from motionstream.model.wan_vae import WanVAE

SMALL = dict(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=2)
SMALL |= dict(latents_mean=(0.1, -0.2, 0.3, 0.4), latents_std=(0.5, 1.5, 2.0, 3.0))
KINDS = {
    "2.1": SMALL,
    "2.2": SMALL
    | dict(decoder_base_dim=6, is_residual=True, in_channels=12, out_channels=12)
    | dict(patch_size=2, scale_factor_spatial=16),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request) -> tuple[AutoencoderKLWan, WanVAE]:
    torch.manual_seed(0)
    stock = AutoencoderKLWan(**KINDS[request.param]).eval().requires_grad_(False)
    for parameter in stock.parameters():  # unit gains and zero biases would hide a layer that is left out
        parameter.add_(0.02 * torch.randn_like(parameter))
    ours = WanVAE(**KINDS[request.param]).eval().requires_grad_(False)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


@pytest.fixture(scope="module")
def tiny() -> TinyVAE:
    torch.manual_seed(0)
    return TinyVAE(latent_channels=4, patch_size=2, widths=(12, 8, 8, 8)).eval().requires_grad_(False)


def channels(values) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def noise(*shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def pieces(cuts, total) -> list[slice]:
    edges = [0, *sorted(set(cuts)), total]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def test_latents_and_frames_equal_diffusers(pair):
    stock, ours = pair
    mean, deviation = channels(stock.config.latents_mean), channels(stock.config.latents_std)
    frames = noise(2, 3, 9, 32, 32).clamp(-1, 1)
    latents = ours.encode(frames)
    assert latents.shape == (2, 4, 3, 32 // ours.config.scale_factor_spatial, 32 // ours.config.scale_factor_spatial)
    assert (latents * deviation + mean - stock.encode(frames).latent_dist.mode()).abs().max() <= 1e-5
    decoded = ours.decode(latents)
    assert decoded.shape == frames.shape and decoded.std() > 0.01
    assert (decoded - stock.decode(latents * deviation + mean).sample).abs().max() <= 1e-5


def test_compiled_blocks_decode_the_same_and_settle(pair):
    ours, graphs, counts = pair[1], [], []
    quick = WanVAE(**ours.config).eval().requires_grad_(False)
    quick.load_state_dict(ours.state_dict())

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    quick.compile_blocks(backend=backend, recompile_limit=MAX_VAE_GRAPHS)
    decoders = ours.decoder_stream(), quick.decoder_stream()
    for _ in range(4):
        latents = noise(1, 4, 3, 2, 2)
        expected, got = (decoder.step(latents) for decoder in decoders)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert 0 < counts[0] < counts[1] == counts[2] == counts[3]


@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(1, 3)))
def test_a_stream_in_pieces_equals_the_whole(pair, cuts):
    vae, parts = pair[1], pieces(cuts, 4)
    frames = noise(1, 3, 13, 32, 32).clamp(-1, 1)
    encoder, other = vae.encoder_stream(), vae.encoder_stream()
    ends = [0, *(1 + 4 * (part.stop - 1) for part in parts)]
    streamed = []
    for a, b in zip(ends, ends[1:], strict=False):
        streamed.append(encoder.step(frames[:, :, a:b]))
        other.reset()
        other.step(-frames[:, :, :1])  # another stream of the same model in between
    latents = torch.cat(streamed, 2)
    assert (latents - vae.encode(frames)).abs().max() <= 1e-5
    decoder = vae.decoder_stream()
    decoded = torch.cat([decoder.step(latents[:, :, part]) for part in parts], 2)
    assert (decoded - vae.decode(latents)).abs().max() <= 1e-5


def test_latent_frames_may_be_decoded_one_at_a_time(pair):
    vae = pair[1]
    latents, decoder = noise(1, 4, 5, 2, 2), vae.decoder_stream()
    expected = vae.decode(latents)
    vae.latents_at_once = 1
    try:
        got = torch.cat([decoder.step(latents[:, :, :2]), decoder.step(latents[:, :, 2:])], 2)
    finally:
        vae.latents_at_once = None
    assert (got - expected).abs().max() <= 1e-5


def test_the_encoder_forgets_the_picture_after_some_blank_frames(pair):
    """What `streaming.BLANK_LATENTS` is: from then on blank frames encode to the same latents for ever."""
    from motionstream.streaming import BLANK_LATENTS

    vae = pair[1]
    encoder, blank = vae.encoder_stream(), torch.zeros(1, 3, 12, 32, 32)
    encoder.step(torch.cat([noise(1, 3, 1, 32, 32), blank[:, :, :8]], 2))
    latents = [encoder.step(blank) for _ in range(BLANK_LATENTS // 3 + 2)]
    held = latents[BLANK_LATENTS // 3 - 1][:, :, -1:]
    assert (torch.cat(latents[BLANK_LATENTS // 3 :], 2) - held).abs().max() <= 1e-5
    assert (latents[0] - held).abs().max() > 1e-4


def test_what_does_not_fit_is_named(pair):
    vae = pair[1]
    with pytest.raises(ValueError, match="must be multiples of"):
        vae.encode(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(ValueError, match="must be multiples of"):
        vae.encode(torch.zeros(1, 3, 5, 33, 32))
    with pytest.raises(ValueError, match=r"\(1, 5, 1, 2, 2\).*\[B, 4, t, h, w\]"):
        vae.decode(torch.zeros(1, 5, 1, 2, 2))


def test_published_presets_build_the_published_autoencoders():
    for name, millions in (("wan2.1-1.3b", 126.9), ("wan2.2-5b", 704.7)):
        with torch.device("meta"):
            vae = WanVAE(**PRESETS[name].configs.get("vae", {}))
        assert sum(p.numel() for p in vae.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
        assert vae.config.z_dim == PRESETS[name].latent_channels
        assert len(vae.config.latents_mean) == len(vae.config.latents_std) == vae.config.z_dim
        assert vae.config.scale_factor_spatial == PRESETS[name].spatial_stride


# ---------------------------------------------------------------- the tiny decoder


def reference(layers: nn.Sequential, latents: torch.Tensor) -> torch.Tensor:
    """The decoder of one clip, frame by frame from its weights alone: [C, t, h, w] -> [C', 4t, H, W]."""
    weights = layers.state_dict()

    def conv(index, x, name="weight"):
        weight, bias = weights[f"{index}.{name}"], weights.get(f"{index}.{name.replace('weight', 'bias')}")
        return nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    frames = [torch.relu(conv(1, torch.tanh(z / 3) * 3)) for z in latents.unbind(1)]
    for first, stride in ((3, 1), (9, 2), (15, 2)):
        for index in range(first, first + 3):
            before = [torch.zeros_like(frames[0]), *frames[:-1]]
            inputs = [torch.cat(two) for two in zip(frames, before, strict=True)]
            for part in (0, 2, 4):
                inputs = [conv(index, x, f"conv.{part}.weight") for x in inputs]
                inputs = [torch.relu(x) for x in inputs] if part < 4 else inputs
            frames = [torch.relu(x + y) for x, y in zip(frames, inputs, strict=True)]
        frames = [x.repeat_interleave(2, 1).repeat_interleave(2, 2) for x in frames]
        frames = [part for x in frames for part in conv(first + 4, x, "conv.weight").chunk(stride)]
        frames = [conv(first + 5, x) for x in frames]
    return torch.stack([conv(22, torch.relu(x)) for x in frames], 1)


def test_the_tiny_decoder_is_what_its_weights_say(tiny):
    latents = 2 * noise(1, 4, 3, 2, 3)
    expected = nn.functional.pixel_shuffle(reference(tiny.decoder, latents[0])[:, 3:].transpose(0, 1), 2)
    got = tiny.decode(latents)
    assert got.shape == (1, 3, 9, 32, 48) and got.std() > 0.01
    assert (got[0].transpose(0, 1) - (expected.clamp(0, 1) * 2 - 1)).abs().max() <= 1e-5


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 4)))
def test_tiny_decoding_in_pieces_equals_decoding_at_once(tiny, cuts):
    latents = noise(2, 4, 5, 2, 2)
    decoder = tiny.decoder_stream()
    streamed = torch.cat([decoder.step(latents[:, :, part]) for part in pieces(cuts, 5)], 2)
    assert (streamed - tiny.decode(latents)).abs().max() <= 1e-6
    decoder.flush()
    assert decoder.step(latents).shape[2] == 17  # a stream of its own again


def test_the_tiny_decoder_has_the_papers_size():
    assert sum(p.numel() for p in TinyVAE().parameters()) / 1e6 == pytest.approx(9.84, abs=0.01)


def test_community_files_load_under_their_names_without_their_encoder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = {f"decoder.{name}": value.contiguous() for name, value in tiny.decoder.state_dict().items()}
    save_file(weights | {"encoder.0.weight": torch.zeros(2)}, path)
    latents = noise(1, 4, 2, 2, 2)
    assert torch.equal(load_component(tmp_path).eval().decode(latents), tiny.decode(latents))
    with pytest.raises(ValueError, match=r"\(1, 5, 1, 2, 2\).*\[B, 4, t, h, w\]"):
        tiny.decode(torch.zeros(1, 5, 1, 2, 2))
