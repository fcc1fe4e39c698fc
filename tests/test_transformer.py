"""The transformer is diffusers' own, to the last digit, and keeps its weight names."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn

from motionstream.model import transformer
from motionstream.model.transformer import MotionTransformer, matmul_attention, most_score

TINY = dict(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=20,
    out_channels=8,
    text_dim=10,
    freq_dim=32,
    ffn_dim=48,
    num_layers=2,
)
IMAGE = dict(image_dim=14, added_kv_proj_dim=24)


def pair(**extra) -> tuple[WanTransformer3DModel, MotionTransformer]:
    torch.manual_seed(0)
    stock = WanTransformer3DModel(**TINY, **extra).eval()
    ours = MotionTransformer(**TINY, **extra).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)  # same names, same shapes
    return stock, ours


def same(stock, ours, *inputs) -> None:
    with torch.no_grad():
        expected, got = stock(*inputs, return_dict=False)[0], ours(*inputs, return_dict=False)[0]
    assert expected.abs().max() > 0.01
    assert (expected - got).abs().max() <= 1e-5


def test_image_to_video_with_image_tokens_equals_diffusers():
    stock, ours = pair(**IMAGE)
    text, image = torch.randn(2, 512, 10), torch.randn(2, 7, 14)  # 512: the stock processor's fixed text length
    same(stock, ours, torch.randn(2, 20, 3, 6, 8), torch.tensor([900.0, 20.0]), text, image)


def test_per_token_timesteps_equal_diffusers():
    stock, ours = pair()
    same(stock, ours, torch.randn(2, 20, 3, 6, 8), torch.rand(2, 3 * 3 * 4) * 1000, torch.randn(2, 5, 10))


def test_a_timestep_per_latent_frame_equals_the_same_timestep_for_its_tokens():
    stock, ours = pair()
    x, text = torch.randn(2, 20, 3, 6, 8), torch.randn(2, 5, 10)
    per_frame = torch.tensor([[0.0, 700.0, 700.0], [0.0, 30.0, 1000.0]])
    with torch.no_grad():
        expected = stock(x, per_frame.repeat_interleave(12, 1), text).sample
        assert (expected - ours(x, per_frame, text).sample).abs().max() <= 1e-5


def test_a_text_of_one_token_equals_diffusers_and_is_as_good_as_many_that_are_alike():
    stock, ours = pair()
    x, text = torch.randn(2, 20, 3, 6, 8), torch.randn(2, 1, 10)
    for t in (torch.tensor([900.0, 20.0]), torch.rand(2, 3) * 1000, torch.rand(2, 3 * 3 * 4) * 1000):
        same(stock, ours, x, t.repeat_interleave(36 // t.shape[1], 1) if t.ndim > 1 else t, text)
        with torch.no_grad():
            alike = ours(x, t, text.repeat(1, 4, 1)).sample
            assert (alike - ours(x, t, text).sample).abs().max() <= 1e-5
            assert (alike - ours(x, t, text.flip(0)).sample).abs().max() > 0.01


def test_beside_a_text_of_one_token_the_image_is_seen():
    _, ours = pair(**IMAGE)
    x, t, text, image = torch.randn(1, 20, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 1, 10), torch.randn(1, 7, 14)
    with torch.no_grad():
        one, other = (ours(x, t, text, tokens).sample for tokens in (image, image.flip(2)))
        alike = ours(x, t, text.repeat(1, 4, 1), image).sample
    assert (one - other).abs().max() > 1e-3 and (one - alike).abs().max() <= 1e-5


def test_context_computed_once_gives_the_same_result():
    _, ours = pair(**IMAGE)
    x, t = torch.randn(1, 20, 2, 4, 4), torch.tensor([500.0])
    text, image = torch.randn(1, 9, 10), torch.randn(1, 7, 14)
    with torch.no_grad():
        expected = ours(x, t, text, image).sample
        context = ours.encode_context(text, image)
        assert torch.equal(ours(x, t, context).sample, expected)
        assert not torch.allclose(ours(x, t, ours.encode_context(text + 1, image)).sample, expected)
        assert not torch.allclose(ours(x, t, ours.encode_context(text, image + 1)).sample, expected)


def test_gradients_equal_diffusers_with_and_without_checkpointing():
    stock, ours = pair()
    inputs = torch.randn(1, 20, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 10)
    stock(*inputs).sample.square().sum().backward()
    for checkpointing in (False, True):
        ours.zero_grad()
        if checkpointing:
            ours.enable_gradient_checkpointing()
        ours(*inputs).sample.square().sum().backward()
        for (name, a), (_, b) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4), name


def test_the_configuration_is_the_stock_one():
    stock, ours = pair()
    assert dict(ours.config) == dict(stock.config)
    assert MotionTransformer.from_config(ours.config).state_dict().keys() == stock.state_dict().keys()


def test_bfloat16_autocast_stays_close():
    _, ours = pair()
    x, t, text = torch.randn(1, 20, 3, 4, 4), torch.tensor([[0.0, 400.0, 400.0]]), torch.randn(1, 5, 10)
    with torch.no_grad():
        exact = ours(x, t, text).sample
        with torch.autocast("cpu", torch.bfloat16):
            rough = ours(x, t, text).sample
    assert (exact - rough.float()).norm() / exact.norm() < 0.03


def test_norms_keep_their_weights_in_bfloat16():
    _, ours = pair(**IMAGE)
    x, t = torch.randn(2, 20, 2, 4, 4), torch.tensor([900.0, 20.0])
    text, image = torch.randn(2, 9, 10), torch.randn(2, 7, 14)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.2, 3)
        exact = ours(x, t, text, image).sample
        with torch.autocast("cpu", torch.bfloat16):
            rough = ours(x, t, text, image).sample
    assert (exact - rough.float()).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("at_once", [2**22, 1500])
def test_attention_by_matrix_products_agrees_with_the_dispatcher(at_once, monkeypatch):
    monkeypatch.setattr(transformer, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 16, requires_grad=True) for tokens in (50, 70, 70))
    expected, got = dispatch_attention_fn(query, key, value), matmul_attention(query, key, value)
    assert (got - expected).abs().max() <= 1e-5
    gradients = (torch.autograd.grad(x.square().sum(), (query, key, value)) for x in (got, expected))
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4
    with torch.no_grad():  # another way, in memory used again
        again = matmul_attention(query, key, value)
        rough = matmul_attention(*(x.bfloat16() for x in (query, key, value)))
    assert (again - expected).abs().max() <= 1e-5
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("score", [0, 200, -200])
def test_scores_may_be_so_large_that_their_powers_would_overflow_or_vanish(score):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 16) for tokens in (50, 70, 70))
    query[..., 0], key[..., 0] = 4, score
    with torch.no_grad():
        expected, got = dispatch_attention_fn(query, key, value), matmul_attention(query, key, value)
    assert (got - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("score", [0.0, 20.0, 85.0, -80.0])
def test_powers_made_of_bits_are_nearly_as_good_as_powers(score):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 16).bfloat16() for tokens in (50, 70, 70))
    query[..., 0], key[..., 0] = 4, score
    expected = dispatch_attention_fn(*(x.float() for x in (query, key, value)))
    with torch.no_grad():
        exact, fast = (matmul_attention(query, key, value, bounded).float() for bounded in (False, True))
    far, farther = ((got - expected).norm() / expected.norm() for got in (exact, fast))
    assert (fast - exact).any() == (abs(score) < 80)  # from there on both are computed from the largest score
    assert farther < far + 0.02


def test_what_scores_hardly_is_hardly_seen_with_powers_made_of_bits():
    query, key, value = (torch.zeros(1, tokens, 1, 4).bfloat16() for tokens in (1, 2, 2))
    query[..., 0], key[:, 1, :, 0] = 8, -20  # scores of 0 and, in powers of two, -115
    value[0, :, 0, 0] = torch.tensor([1.0, -1000.0])
    with torch.no_grad():
        assert matmul_attention(query, key, value, bounded=True)[..., 0].item() == 1


def test_no_score_is_more_than_most_score():
    torch.manual_seed(0)
    attn = pair(**IMAGE)[1].blocks[0].attn2
    with torch.no_grad():
        attn.norm_q.weight[3], attn.norm_k.weight[5], attn.norm_added_k.weight[5] = -7, 2, 5
        most = most_score(attn)
        query, keys = torch.eye(attn.inner_dim)[3], torch.eye(attn.inner_dim)[5]
        reached = attn.norm_q(query).norm() * attn.norm_added_k(keys).norm() * 12**-0.5 * math.log2(math.e)
        assert most == pytest.approx(reached.item(), rel=1e-4)
        found = attn.norm_q(torch.randn(500, attn.inner_dim)) @ attn.norm_k(torch.randn(500, attn.inner_dim)).T
    assert found.abs().max() * 12**-0.5 * math.log2(math.e) < most


def test_powers_are_made_of_bits_only_where_norms_keep_scores_small(monkeypatch):
    ours, seen = pair()[1], []

    def attend(query, key, value, bounded):
        seen.append(bounded)
        return matmul_attention(query, key, value, bounded)

    monkeypatch.setattr(transformer, "matmul_attention", attend)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours.blocks[1].attn1.norm_k.weight *= -13
        for fused in (False, True):
            if fused:
                ours.fuse_projections()
            ours(torch.randn(1, 20, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 10))
    assert seen == [False, False, False, False, True, True, False, True]  # self and cross, block by block


def test_bfloat16_on_the_cpu_goes_another_way_only_while_no_backend_is_chosen(monkeypatch):
    def unexpected(*_, **__):
        raise AssertionError("the dispatcher was asked")

    _, ours = pair()
    inputs = torch.randn(1, 20, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 10)
    monkeypatch.setattr(transformer, "dispatch_attention_fn", unexpected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours(*inputs)
        for block in ours.blocks:
            block.attn1.processor._attention_backend = "native"
        with pytest.raises(AssertionError, match="dispatcher"):
            ours(*inputs)
    with torch.no_grad(), pytest.raises(AssertionError, match="dispatcher"):
        pair()[1](*inputs)


def test_a_grid_beyond_the_rotary_table_is_refused():
    _, ours = pair(rope_max_seq_len=4)
    with pytest.raises(ValueError, match="5 rotary positions.*at most 4"):
        ours.rotary_table(5, 4, 4)
