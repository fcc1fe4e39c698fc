"""The rolling key/value cache with attention sinks (paper section 3.2).

Context of a chunk: the first `sink` chunks, the `window` chunks before it, and its own tokens, in that order.
A chunk's place in the cache, not its age, gives its rotary position. Sink keys therefore never turn again and are
stored rotated; window keys are also kept as they were before rotation, and turned to their place whenever they move.
A chunk that is a sink is not in the window as well. Once full, every chunk costs the same for ever, and runs on tensors
of the same shapes at the same addresses: layers see how many chunks are stored, never how many there have been.

Layout is the one of diffusers' attention dispatcher: [batch, tokens, heads, head_dim].
"""

import torch
from torch import Tensor


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary position embedding: turns neighbouring pairs of x [B, L, H, D] by the angles of table [L, 1, D / 2, 2].

    table: float32, cosine and sine of each pair's angle. As complex numbers on a CPU, where that is three times as
    fast; not elsewhere, because they cannot be compiled.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    else:
        (a, b), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        turned = torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1)
    return turned.flatten(-2).type_as(x)


class LayerCache:
    """Keys and values of one layer, preallocated: [sink | window | current chunk]."""

    def __init__(self, shape: tuple[int, int, int, int], sink: int, window: int, dtype, device):
        batch, self.size, heads, head_dim = shape
        self.sink, self.window = sink, window

        def buffer(chunks: int) -> Tensor:  # each head's in one piece, as products of matrices want them
            return torch.zeros(batch, heads, chunks * self.size, head_dim, dtype=dtype, device=device).transpose(1, 2)

        self.keys = buffer(sink + window + 1)  # rotated, as attention reads them
        self.values = buffer(sink + window + 1)
        self.unrotated = buffer(window)  # the window's keys before rotation

    def extend(
        self, stored: int, key: Tensor, value: Tensor, unrotated: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values a chunk attends to: those of the `stored` chunks, then its own (key already rotated).

        unrotated: its key before that, of a clean chunk that is to stay. It has its place then unless the cache is
        full; see `roll`.
        """
        filled = stored * self.size
        if torch.is_grad_enabled():  # autograd keeps what it reads, so it gets a copy that will not be overwritten
            return torch.cat([self.keys[:, :filled], key], 1), torch.cat([self.values[:, :filled], value], 1)
        end = filled + self.size
        self.keys[:, filled:end], self.values[:, filled:end] = key, value
        if unrotated is not None and stored >= self.sink and self.window:
            if stored == self.sink + self.window:
                self._up_one_place(self.unrotated)
            newest = min(stored - self.sink, self.window - 1) * self.size
            self.unrotated[:, newest : newest + self.size] = unrotated
        return self.keys[:, :end], self.values[:, :end]

    @torch.no_grad()
    def roll(self, table: Tensor) -> None:
        """Makes room in a full cache: the window's oldest chunk leaves, the one just written moves up into it.

        Keys turn to their new places. table: all positions.
        """
        first, last = self.sink * self.size, (self.sink + self.window) * self.size
        self._up_one_place(self.values[:, first:])
        self.keys[:, first:last] = rotate(self.unrotated, table[first:last])

    def _up_one_place(self, chunks: Tensor) -> None:
        for end in range(self.size, chunks.shape[1], self.size):
            chunks[:, end - self.size : end] = chunks[:, end : end + self.size]


class RollingCache:
    """The caches of all layers and the rotary positions of their places.

    Args:
        layers: number of transformer layers.
        shape: (batch, tokens of one chunk, heads, head_dim).
        table: rotary table (see `rotate`) of (sink + window + 1) * chunk tokens, temporal position = place.
        sink, window: chunks kept for ever, newest chunks kept.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], table: Tensor, *, sink: int, window: int, dtype):
        if sink < 0 or window < 0:
            raise ValueError(f"sink is {sink} and window is {window} chunks; both must be at least 0")
        if table.shape[0] != (sink + window + 1) * shape[1]:
            raise ValueError(
                f"rotary table has {table.shape[0]} positions; the cache has {sink + window + 1} x {shape[1]} tokens"
            )
        self.shape, self.sink, self.window, self.table = shape, sink, window, table
        self.layers = [LayerCache(shape, sink, window, dtype, table.device) for _ in range(layers)]
        self.chunks = 0  # clean chunks written so far

    @property
    def stored(self) -> int:
        """Cached chunks that the next chunk sees."""
        return min(self.chunks, self.sink + self.window)

    @property
    def filled(self) -> int:
        """Cached tokens that the next chunk sees; also the place of its first token."""
        return self.stored * self.shape[1]

    @property
    def positions(self) -> Tensor:
        """Rotary table of the next chunk's tokens."""
        return self.table[self.filled : self.filled + self.shape[1]]

    @property
    def full(self) -> bool:
        """Whether the next chunk that is written makes an older one leave."""
        return self.chunks >= self.sink + self.window

    def advance(self) -> None:
        """Counts the chunk that a writing pass has stored in every layer."""
        self.chunks += 1
