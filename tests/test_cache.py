"""The rolling cache: what a chunk attends to, at which positions, and at what cost."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from motionstream.model.transformer import MotionTransformer

CONFIG = dict(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=6,
    out_channels=6,
    text_dim=10,
    freq_dim=32,
    ffn_dim=48,
    num_layers=3,
)
FRAMES, SIZE = 3, (4, 6)  # one chunk: 3 latent frames of 2 x 3 tokens
TOKENS = 18


class MaskedProcessor(WanAttnProcessor):
    """The stock processor with a fixed mask in self-attention: an implementation independent of the cache."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        mask = self.mask if encoder_hidden_states is None else None
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


def models() -> tuple[WanTransformer3DModel, MotionTransformer]:
    torch.manual_seed(0)
    stock, ours = WanTransformer3DModel(**CONFIG).eval(), MotionTransformer(**CONFIG).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def masked(stock, chunks, timesteps, text, allowed) -> torch.Tensor:
    """One pass of the stock model over all chunks; allowed[i][j]: chunk i sees chunk j. -> [B, chunks, C, T, H, W]"""
    mask = torch.tensor(allowed).repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    stock.set_attn_processor(MaskedProcessor(mask))
    per_token = torch.tensor(timesteps).repeat_interleave(TOKENS)[None].expand(len(chunks[0]), -1)
    with torch.no_grad():
        out = stock(torch.cat(chunks, 2), per_token, text).sample
    return out.unflatten(2, (len(chunks), FRAMES)).transpose(1, 2)


def run(model, cache, x, t, text, write=False):
    return model(x, torch.full((x.shape[0],), t), text, return_dict=False, cache=cache, write=write)[0]


def read_and_write(model, cache, x, text):
    """What a pass at t = 0 makes of a clean chunk, which a second one then stores."""
    out = run(model, cache, x, 0.0, text)
    assert not run(model, cache, x, 0.0, text, write=True).numel()
    return out


@pytest.mark.parametrize("batch", [1, 2])
def test_unbounded_window_equals_one_pass_under_a_chunk_causal_mask(batch):
    stock, ours = models()
    clean = [torch.randn(batch, 6, FRAMES, *SIZE) for _ in range(4)]
    noisy = torch.randn(batch, 6, FRAMES, *SIZE)
    text = torch.randn(batch, 5, 10)
    cache = ours.new_cache(batch, FRAMES, *SIZE, sink=1, window=8)
    with torch.no_grad():
        streamed = [read_and_write(ours, cache, x, text) for x in clean]
        before = run(ours, cache, noisy, 800.0, text)
        again = run(ours, cache, noisy, 800.0, text)  # a pass that does not write leaves no trace
    causal = [[j <= i for j in range(5)] for i in range(5)]
    expected = masked(stock, [*clean, noisy], [0.0, 0.0, 0.0, 0.0, 800.0], text, causal)
    assert torch.equal(before, again)
    assert (torch.stack([*streamed, before], 1) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [2, 3])
def test_a_rolled_window_equals_one_pass_under_a_banded_mask(window):
    """Rotary attention sees distances only, so without a sink places in the cache are as good as absolute positions."""
    stock, ours = models()
    text = torch.randn(1, 5, 10)
    clean = [torch.randn(1, 6, FRAMES, *SIZE) for _ in range(6)]
    cache = ours.new_cache(1, FRAMES, *SIZE, sink=0, window=window)
    with torch.no_grad():
        streamed = [read_and_write(ours, cache, x, text) for x in clean]
    expected = masked(stock, clean, [0.0] * 6, text, [[i - window <= j <= i for j in range(6)] for i in range(6)])
    assert (torch.stack(streamed, 1) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("sink, window", [(1, 1), (2, 1), (0, 2), (1, 3), (1, 0)])
def test_a_rolled_cache_equals_recomputing_on_the_kept_chunks(sink, window):
    """In one layer a chunk's keys don't depend on its context: a fresh cache given the kept chunks only is the same."""
    torch.manual_seed(0)
    ours = MotionTransformer(**(CONFIG | dict(num_layers=1))).eval()
    text, total = torch.randn(1, 5, 10), 7
    clean, noisy = [torch.randn(1, 6, FRAMES, *SIZE) for _ in range(total)], torch.randn(1, 6, FRAMES, *SIZE)
    rolled, fresh, whole = (
        ours.new_cache(1, FRAMES, *SIZE, sink=s, window=w) for s, w in ((sink, window), (sink, window), (0, total))
    )
    with torch.no_grad():
        for i, x in enumerate(clean):
            run(ours, rolled, x, 0.0, text, write=True)
            run(ours, whole, x, 0.0, text, write=True)
            if i < sink or i >= total - window:
                run(ours, fresh, x, 0.0, text, write=True)
        got, expected, all_seen = (run(ours, c, noisy, 700.0, text) for c in (rolled, fresh, whole))
    assert fresh.chunks == sink + window and rolled.chunks == total
    assert (got - expected).abs().max() <= 1e-6
    assert (got - all_seen).abs().max() > 1e-3  # what was dropped mattered


def test_size_and_positions_are_constant_over_100_chunks():
    _, ours = models()
    cache = ours.new_cache(1, FRAMES, *SIZE, sink=1, window=1)
    text = ours.encode_context(torch.randn(1, 5, 10))
    buffers = [t for layer in cache.layers for t in (layer.keys, layer.values, layer.unrotated)]
    places = [t.data_ptr() for t in buffers]
    with torch.inference_mode():
        sink = None
        for i in range(100):
            assert cache.filled == min(i, 2) * TOKENS
            assert torch.equal(cache.positions, cache.table[cache.filled : cache.filled + TOKENS])
            run(ours, cache, torch.randn(1, 6, FRAMES, *SIZE), 0.0, text, write=True)
            sink = cache.layers[-1].keys[:, :TOKENS].clone() if i == 0 else sink
    assert torch.equal(cache.layers[-1].keys[:, :TOKENS], sink)
    assert [t.data_ptr() for t in buffers] == places
    assert all(t.isfinite().all() for t in buffers)


def test_training_reads_through_the_same_cache_and_writes_nothing_with_a_graph():
    """Gradients reach the noisy pass of every chunk, never the cache, although the cache rolls between the passes."""
    _, ours = models()
    text = torch.randn(2, 5, 10)
    cache = ours.new_cache(2, FRAMES, *SIZE, sink=1, window=1)
    reference = ours.new_cache(2, FRAMES, *SIZE, sink=1, window=1)
    losses = []
    for _ in range(4):
        clean, noisy = torch.randn(2, 2, 6, FRAMES, *SIZE)
        out = run(ours, cache, noisy, 500.0, text)
        with torch.inference_mode():
            assert (run(ours, reference, noisy, 500.0, text) - out).abs().max() <= 1e-5
            run(ours, reference, clean, 0.0, text, write=True)
        run(ours, cache, clean, 0.0, text, write=True)
        losses.append(out.square().mean())
    assert not any(t.requires_grad for layer in cache.layers for t in (layer.keys, layer.values, layer.unrotated))
    sum(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_wrong_sizes_are_named():
    _, ours = models()
    cache = ours.new_cache(1, FRAMES, *SIZE, sink=1, window=1)
    with pytest.raises(ValueError, match=r"1 x 12 tokens does not fit.*\(1, 18\)"):
        run(ours, cache, torch.randn(1, 6, 2, *SIZE), 0.0, torch.randn(1, 5, 10))
    with pytest.raises(ValueError, match="sink is -1"):
        ours.new_cache(1, FRAMES, *SIZE, sink=-1, window=1)
    ours.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        run(ours, cache, torch.randn(1, 6, FRAMES, *SIZE), 0.0, torch.randn(1, 5, 10))
