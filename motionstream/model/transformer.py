"""Wan's video transformer, bidirectional (teacher) or chunk-causal with a rolling cache (student).

The network and its weight names are diffusers' own; only `in_channels` is wider (noisy latents, image condition,
tracks, motion prior). What differs from the stock class is how it is run:

- the self-attention processor reads and writes a `RollingCache`, and rotary positions are places in that cache;
- keys and values of text and image are computed once per prompt (`encode_context`), not once per pass;
- tokens that share a timestep form one row of the batch everywhere but in attention, so that per-token timesteps
  (Wan 2.2 TI2V) cost no more than one timestep;
- weights in reduced precision are run without autocast, which would send every norm through float32 and back;
- a block is a function of tensors and of a few small integers that settle once the cache is full. Until then it runs as
  it is, so that `compile_repeated_blocks` compiles one block once for reading and once for writing, and again only for
  a text of another length.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from motionstream.model.cache import LayerCache, RollingCache, rotate
from motionstream.model.device import own_precision

SCORES_AT_ONCE = 2**21  # 4 MiB, about what stays in a processor's caches
FAR_FROM_OVERFLOW = 2.0**60  # of bfloat16, which ends at 2**128, for sums of powers and for these times values
STEPS = 2**7  # of a bfloat16's fraction, from one power of two to the next
ONE = 127 * STEPS  # the bits of 1, read as a whole number
LEAST_POWER = 126.0  # 2**-126 is the smallest bfloat16 with a full fraction


@dataclass(frozen=True)
class Context:
    """What every layer's cross-attention sees: keys and values of text and, for Wan 2.1 I2V, of the image.

    layers: per layer (text key, text value) or (text key, text value, image key, image value), [B, tokens, heads, dim].
    """

    layers: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class Place:
    """Where a layer's tokens stand: batch size and rotary table [L, 1, head_dim / 2, 2].

    With a cache also that of the layer, the chunks stored in it, whether this pass writes, and whether this is the last
    layer, of which such a pass needs no more than keys and values.
    """

    batch: int
    table: Tensor
    cache: LayerCache | None = None
    stored: int = 0
    writes: bool = False
    last: bool = False


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, bounded: bool = False) -> Tensor:
    """Attention as plain matrix products, in blocks of queries whose scores stay in the processor's caches.

    In bfloat16 on a CPU this is twice as fast as PyTorch's fused kernel when it comes to gradients. Forwards alone it
    depends on the processor (`machine.tune` measures which is faster); in float32 the fused kernel is.
    Scores are rounded to bfloat16: about 1 % error where the fused kernel has 0.2 %. All [B, tokens, heads, head_dim].
    bounded: whether `most_score` is below LEAST_POWER, for bfloat16 only; see `_attend_in_place`.
    """
    # Contiguous: each block's products would copy keys and values anew.
    query, key, value = query.transpose(1, 2), key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
    blocks = math.ceil(query[0, ..., 0].numel() * key.shape[2] / SCORES_AT_ONCE)
    scale = query.shape[-1] ** -0.5
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return _attend_in_place(query, key, value, scale * math.log2(math.e), blocks, bounded)
    samples = []
    for q, k, v in zip(query * scale, key, value, strict=True):
        samples.append(torch.cat([torch.softmax(part @ k.mT, -1) @ v for part in q.chunk(blocks, 1)], 1))
    return torch.stack(samples).transpose(1, 2)


def _attend_in_place(
    query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: int, bounded: bool, shifted: bool = False
) -> Tensor:
    """`matmul_attention` of tensors [B, heads, tokens, head_dim], block after block in the same memory: new memory is
    slow to get, and so is every operation.

    The softmax is one of powers of two, and what it divides by comes last. Shifting scores by their maximum takes a
    quarter of its time, and they are small between queries and keys that are normed: it is done where they are not.
    Of bounded scores the powers are made of their bits (Schraudolph 1999, "A Fast, Compact Approximation of the
    Exponential Function"), in a third of the time. Between powers of two they are up to 6 % too large, which the sum
    they are divided by is, too: in the embedded student's attention it adds a tenth to what rounding scores does.
    """
    out = key.new_empty(query.transpose(1, 2).shape)
    totals = key.new_empty(*out.shape[:3], 1)
    tokens = math.ceil(query.shape[2] / blocks)
    room = key.new_empty(query.shape[1] * tokens * key.shape[2])
    scaled = query * (scale * STEPS if bounded else scale)
    for sample, k, v, *found in zip(scaled, key, value, *(x.transpose(1, 2) for x in (out, totals)), strict=True):
        for part, place, total in zip(*(x.split(tokens, 1) for x in (sample, *found)), strict=True):
            scores = room[: part[..., 0].numel() * k.shape[1]].view(*part.shape[:2], k.shape[1])
            torch.bmm(part, k.mT, out=scores)
            if bounded:
                powers = scores.view(torch.int16).copy_(scores).add_(ONE).view(scores.dtype)
            else:
                if shifted:
                    scores -= scores.amax(-1, keepdim=True)
                powers = torch.exp2(scores, out=scores)
            torch.sum(powers, -1, keepdim=True, out=total)
            torch.bmm(powers, v, out=place)
    least, most = (float(total) for total in totals.aminmax())
    if not shifted and not 1 / FAR_FROM_OVERFLOW < least <= most < FAR_FROM_OVERFLOW:
        return _attend_in_place(query, key, value, scale, blocks, bounded=False, shifted=True)
    return out.div_(totals)


def most_score(attn: nn.Module) -> float:
    """What a score between a query and a key that are normed cannot be more than, nor less than its negative, told as
    an exponent of 2. Through such a norm no vector becomes longer than the root of its length times the norm's largest
    weight, and rotary positions turn it only."""
    keys = [attn.norm_k, *([attn.norm_added_k] if attn.added_kv_proj_dim else [])]
    query, key = (max(float(norm.weight.detach().abs().max()) for norm in norms) for norms in ([attn.norm_q], keys))
    return attn.inner_dim * query * key * (attn.inner_dim // attn.heads) ** -0.5 * math.log2(math.e)


def _normed(x: Tensor, *norms: nn.RMSNorm) -> Tensor:
    """x [..., norms, dim], each through its own norm.

    In reduced precision on a CPU, PyTorch's own takes four times as long, and float32 on the way twice.
    """
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return torch.stack([norm(part) for norm, part in zip(norms, x.unbind(-2), strict=True)], -2)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = x / (length * x.shape[-1] ** -0.5).clamp_min(norms[0].eps ** 0.5)
    return unit * torch.stack([norm.weight for norm in norms])


def _project(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of x, normed and side by side [..., 2, dim], and its value [..., 1, dim].

    After `MotionTransformer.fuse_projections` with one matrix product.
    """
    if hasattr(attn, "to_qkv"):
        parts = attn.to_qkv(x).unflatten(-1, (3, -1))
    else:
        parts = torch.stack([attn.to_q(x), attn.to_k(x), attn.to_v(x)], -2)
    return _normed(parts[..., :2, :], attn.norm_q, attn.norm_k), parts[..., 2:, :]


class _Processor:
    _attention_backend = None  # set by diffusers' `set_attention_backend`
    _parallel_config = None
    bounded = False  # whether `most_score` is known to be below LEAST_POWER

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The one place where attention is computed: by diffusers' dispatcher, unless that is known to be slow."""
        if self._attention_backend is None and query.device.type == "cpu" and value.dtype == torch.bfloat16:
            out = matmul_attention(query.to(value.dtype), key.to(value.dtype), value, self.bounded)
        else:
            out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return out.flatten(2).type_as(query)


class SelfAttention(_Processor):
    """Full attention over the tokens at hand and, with a cache, over the chunks it holds."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb: Place = None):
        place = rotary_emb
        both, values = (x.reshape(place.batch, place.table.shape[0], -1, attn.inner_dim // attn.heads)
                        for x in _project(attn, hidden_states))
        query, keys = rotate(both, place.table).chunk(2, 2)  # heads of the query, then those of the key
        if place.cache is not None:
            unrotated = both[:, :, attn.heads :] if place.writes else None
            keys, values = place.cache.extend(place.stored, keys, values, unrotated)
        if place.last:
            return hidden_states
        out = self._attention(query, keys, values)
        return attn.to_out[1](attn.to_out[0](out)).view_as(hidden_states)


class CrossAttention(_Processor):
    """Attention to the text's (and the image's) keys and values of a `Context`."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        text_key, text_value, *image = encoder_hidden_states
        query = _normed(attn.to_q(hidden_states).unsqueeze(-2), attn.norm_q)
        query = query.reshape(text_key.shape[0], -1, *text_key.shape[2:])
        out = self._attention(query, text_key, text_value)
        if image:
            out = out + self._attention(query, *image)
        return attn.to_out[1](attn.to_out[0](out)).view_as(hidden_states)


class MotionBlock(WanTransformerBlock):
    """diffusers' block on rows of tokens [R, L, dim], with norm, scale and shift as one kernel where R is 1."""

    def forward(self, x: Tensor, context: tuple[Tensor, ...], modulation: Tensor, place: Place) -> Tensor:
        """modulation: shifts, scales and gates of both halves, [R, 6, dim]."""
        parts = self.scale_shift_table + modulation.float()
        parts[:, 1::3].add_(1)  # scales are told as what differs from 1
        parts = (parts if len(x) > 1 else parts.type_as(x)).chunk(6, dim=1)
        change = self.attn1(_modulated(x, self.norm1, *parts[:2]), None, None, place)
        if place.last:
            return x
        x = _gated(x, change, parts[2])
        x = x + self._told(x, context)
        return _gated(x, self.ffn(_modulated(x, self.norm3, *parts[3:5])), parts[5])

    def _told(self, x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """What text (and image) add to x. Attention to a single token is its value, whatever asks."""
        if len(context) > 2 or context[1].shape[1] > 1:
            return self.attn2(_layer_normed(x, self.norm2), context, None, None)
        value = self.attn2.to_out[0](context[1].flatten(2))
        return value.expand(-1, len(x) // len(value), -1).reshape(len(x), 1, -1)  # rows of one sample get the same


def _layer_normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x) in float32, which a CPU's kernel does by itself in x's precision."""
    if x.device.type != "cpu":
        return norm(x.float()).type_as(x)
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _modulated(x: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * scale + shift; x [R, L, dim], shift and scale [R, 1, dim]."""
    if len(x) > 1:
        return (norm(x.float()) * scale + shift).type_as(x)
    scale, shift = scale.flatten().type_as(x), shift.flatten().type_as(x)
    return F.layer_norm(x, norm.normalized_shape, scale, shift, norm.eps).type_as(x)


def _gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + change * gate, in the precision of x."""
    return torch.addcmul(x, change.type_as(x), gate.type_as(x))


class Roll(nn.Module):
    """`LayerCache.roll`, compiled by itself: together with the attention that reads the same memory, all of the cache
    would be copied."""

    def forward(self, layer: LayerCache, table: Tensor) -> None:
        layer.roll(table)


class MotionTransformer(WanTransformer3DModel):
    """`diffusers.WanTransformer3DModel` (same configuration, same weight names) that can also run chunk by chunk."""

    _no_split_modules = ["MotionBlock"]
    _repeated_blocks = ["MotionBlock", "Roll"]

    @functools.wraps(WanTransformer3DModel.__init__)  # keeps the signature, from which diffusers reads the config keys
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            block.__class__ = MotionBlock  # diffusers makes the list itself
            block.attn1.set_processor(SelfAttention())
            block.attn2.set_processor(CrossAttention())
        self.roll = Roll()

    def fuse_projections(self) -> None:
        """One matrix product for query, key and value of the self-attention. For inference: their own weights go, and
        scores stay within the bounds that norms set them now."""
        for attn in (block.attn1 for block in self.blocks if not block.attn1.fused_projections):
            attn.fuse_projections()
            del attn.to_q, attn.to_k, attn.to_v
        for attn in (attn for block in self.blocks for attn in (block.attn1, block.attn2)):
            attn.processor.bounded = most_score(attn) < LEAST_POWER

    def encode_context(self, text: Tensor, image: Tensor | None = None) -> Context:
        """Text embeddings [B, L, text_dim] and CLIP image tokens [B, N, image_dim] -> keys and values of all layers."""
        embedder, layers = self.condition_embedder, []
        with own_precision(self.patch_embedding.weight, text) as text:
            image = None if image is None else embedder.image_embedder(image.type_as(text))
            text = embedder.text_embedder(text)
            for attn in (block.attn2 for block in self.blocks):
                parts = (attn.norm_k(attn.to_k(text)), attn.to_v(text))
                if image is not None:
                    parts += (attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image))
                layers.append(tuple(part.unflatten(2, (attn.heads, -1)) for part in parts))
        return Context(tuple(layers))

    def rotary_table(self, frames: int, height: int, width: int) -> Tensor:
        """Rotary table [L, 1, head_dim / 2, 2] (see `rotate`) of a latent grid (latent frames, height and width)."""
        longest = max(self._grid(frames, height, width))
        if longest > self.config.rope_max_seq_len:
            raise ValueError(f"{longest} rotary positions along one axis; at most {self.config.rope_max_seq_len}")
        cos, sin = self.rope(torch.empty(1, 1, frames, height, width, device="meta"))
        return torch.stack([cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float()], dim=-1)

    def new_cache(self, batch: int, frames: int, height: int, width: int, *, sink: int, window: int) -> RollingCache:
        """An empty cache for chunks of `frames` latent frames of latent size height x width."""
        table = self.rotary_table((sink + window + 1) * frames, height, width)
        device = table.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        tokens = table.shape[0] // (sink + window + 1)
        shape = (batch, tokens, self.config.num_attention_heads, self.config.attention_head_dim)
        return RollingCache(len(self.blocks), shape, table, sink=sink, window=window, dtype=dtype)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | Context,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict | None = None,
        cache: RollingCache | None = None,
        write: bool = False,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The stock forward pass, and with a cache the one of the present chunk.

        Args:
            hidden_states: [B, in_channels, T, H, W].
            timestep: 0..1000, [B] or [B, G] where each of the G equal runs of a sample's tokens has its own: G = T
                for one per latent frame, G = number of tokens for one per token.
            encoder_hidden_states: text embeddings [B, L, text_dim], or the `Context` made of them once.
            encoder_hidden_states_image: CLIP image tokens [B, N, image_dim] (part of the `Context`, if that is given).
            cache: earlier chunks to attend to; hidden_states is then exactly one chunk.
            write: stores this (clean) chunk in the cache and moves that on, without gradients; nothing is predicted.

        Returns: [B, out_channels, T, H, W], or nothing ([0]) of a writing pass.
        """
        if torch.is_grad_enabled() and self.gradient_checkpointing and cache is not None:
            raise ValueError("gradient checkpointing would read the cache again after it has rolled; switch one off")
        context = encoder_hidden_states
        if not isinstance(context, Context):
            context = self.encode_context(context, encoder_hidden_states_image)
        learns = torch.is_grad_enabled() and not write
        with torch.set_grad_enabled(learns), own_precision(self.patch_embedding.weight, hidden_states) as inputs:
            output = self._run(inputs, timestep, context, cache, write)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _run(
        self, latents: Tensor, timestep: Tensor, context: Context, cache: RollingCache | None, write: bool
    ) -> Tensor:
        """All blocks, between patching and unpatching."""
        batch, _, *size = latents.shape
        grid = self._grid(*size)
        tokens = math.prod(grid)
        place = self._place(batch, size, tokens, cache, write)

        x = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        rows = timestep.numel()  # tokens of one timestep form a row
        x = x.reshape(rows, batch * tokens // rows, -1)
        temb, modulation = self._embed_timestep(timestep.flatten(), x)
        settled = cache is None or cache.full
        for layer, block in enumerate(self.blocks):
            last = write and layer + 1 == len(self.blocks)
            here = place if cache is None else replace(place, cache=cache.layers[layer], last=last)
            inputs = (x, context.layers[layer], modulation, here)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *inputs)
            else:
                compiled = settled and not last
                x = block(*inputs) if compiled else block._call_impl(*inputs)  # the latter never is
        if write:
            for layer in cache.layers if cache.full else ():
                self.roll(layer, cache.table)
            cache.advance()
            return x.new_empty(0)

        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out(_modulated(x, self.norm_out, shift, 1 + scale))
        x = x.reshape(batch, *grid, *self.config.patch_size, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _grid(self, *size: int) -> list[int]:
        """Latent frames, height, width -> tokens along each axis."""
        return [side // patch for side, patch in zip(size, self.config.patch_size, strict=True)]

    def _place(self, batch: int, size: list[int], tokens: int, cache: RollingCache | None, write: bool) -> Place:
        if cache is None:
            return Place(batch, self.rotary_table(*size))
        if cache.shape[:2] != (batch, tokens):
            raise ValueError(f"chunk of {batch} x {tokens} tokens does not fit the cache's {cache.shape[:2]}")
        return Place(batch, cache.positions, None, cache.stored, write)

    def _embed_timestep(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [rows] -> embedding [rows, dim] and the blocks' shifts, scales and gates [rows, 6, dim]."""
        embedder = self.condition_embedder
        weight = embedder.time_embedder.linear_1.weight
        temb = embedder.time_embedder(embedder.timesteps_proj(timestep).to(weight.dtype)).type_as(like)
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))
