"""Tracks to condition channels (paper section 3.1, equation 1).

Each track carries the sinusoidal code of its ID number; the code is written on the latent grid wherever the track is
visible. The head packs four frames' codes into channels, as the autoencoder packs four frames into one latent frame,
and mixes them with one 1x1x1 convolution.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from motionstream.model.device import upload
from motionstream.tracks import Tracks


def embed_ids(ids: Tensor, dim: int = 64) -> Tensor:
    """Sinusoidal encoding of ID numbers [..., N] -> [..., N, dim]: sines in the first half, cosines in the second."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=ids.device) / (dim // 2))
    angles = ids.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def track_map(tracks: Tracks, width: int, height: int, stride: int, dim: int = 64, device="cpu") -> Tensor:
    """Equation 1: `c[t, floor(y / s), floor(x / s)] = v[t, n] * phi_n`, zero elsewhere.

    width, height: frame size in pixels; stride: pixels per latent cell. A point that is invisible or outside the frame
    is not written (never clamped to the border). Where several tracks meet in one cell the last one stays.

    Returns: float32 [T, height // stride, width // stride, dim].
    """
    return track_maps([tracks], width, height, stride, dim, device)[0]


def track_maps(
    clips: Sequence[Tracks], width: int, height: int, stride: int, dim: int = 64, device="cpu"
) -> Tensor:
    """`track_map` of several clips of one length: [B, T, height // stride, width // stride, dim]."""
    points, visible, ids = (upload(part, device) for part in _together(clips))
    (batch, frames, most), rows, columns = visible.shape, height // stride, width // stride
    column, row = points.div(stride).floor().unbind(-1)  # still floats: far outside they would not fit an integer
    written = visible & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    column, row = (torch.where(written, place, 0).long() for place in (column, row))
    frame = torch.arange(batch * frames, device=device).view(batch, frames, 1)
    nowhere = batch * frames * rows * columns  # not left out: how many there are would have to be asked of a GPU
    cell = torch.where(written, (frame * rows + row) * columns + column, nowhere)
    # Scatter with repeated targets has no defined order: which track owns a cell is settled first, by the highest n.
    owner = torch.full((nowhere + 1,), -1, device=device)
    owner.scatter_reduce_(0, cell.flatten(), torch.arange(most, device=device).expand_as(cell).flatten(), "amax")
    owner = owner[:-1].view(batch, -1) % (most + 1)  # nobody's: the last row, of zeros
    codes = F.pad(embed_ids(ids, dim), (0, 0, 0, 1)).flatten(0, 1)
    owner = owner + (most + 1) * torch.arange(batch, device=device)[:, None]
    return codes.index_select(0, owner.flatten()).view(batch, frames, rows, columns, dim)


def _together(clips: Sequence[Tracks]) -> tuple[Tensor, Tensor, Tensor]:
    """Points [B, T, N, 2], visible [B, T, N] and IDs [B, N], N that of the clip with most; rows it lacks never show."""
    shape = len(clips), clips[0].T, max(one.N for one in clips)
    points, visible = torch.zeros(*shape, 2), torch.zeros(shape, dtype=torch.bool)
    ids = torch.zeros(shape[0], shape[2], dtype=torch.int64)
    for n, one in enumerate(clips):
        points[n, :, : one.N], visible[n, :, : one.N] = torch.tensor(one.points), torch.tensor(one.visible)
        ids[n, : one.N] = torch.tensor(one.ids)
    return points, visible, ids


def pack_time(x: Tensor, stride: int, first: bool) -> Tensor:
    """Packs time into channels as the autoencoder does: [B, C, T, H, W] -> [B, stride * C, t, H, W].

    first: whether x begins with frame 0, which is alone in its latent frame (it is repeated `stride` times):
    T = 1 + stride * (t - 1). Otherwise T = stride * t.
    """
    if first:
        x = torch.cat([x[:, :, :1].expand(-1, -1, stride - 1, -1, -1), x], dim=2)
    if x.shape[2] % stride:
        raise ValueError(f"frames in groups of {stride} expected (frame 0 alone if it is there), got {list(x.shape)}")
    return x.unflatten(2, (-1, stride)).transpose(2, 3).flatten(1, 2)


class TrackHead(ModelMixin, ConfigMixin):
    """4x temporal compression by packing time into channels, then one 1x1x1 convolution.

    Args:
        track_dim: length d of the ID code.
        out_channels: condition channels given to the transformer.
        temporal_stride: frames per latent frame.
    """

    @register_to_config
    def __init__(self, track_dim: int = 64, out_channels: int = 16, temporal_stride: int = 4):
        super().__init__()
        self.conv = nn.Conv3d(temporal_stride * track_dim, out_channels, kernel_size=1)

    def forward(self, maps: Tensor, first: bool) -> Tensor:
        """Track maps [B, T, h, w, track_dim] -> [B, out_channels, t, h, w]; first: see `pack_time`.

        Chunk by chunk equals all at once: 9 frames give 3 latent frames, every later 12 give 3.
        """
        packed = pack_time(maps.movedim(-1, 1), self.config.temporal_stride, first)
        # As a matrix product: on a CPU, PyTorch's bfloat16 gradient of such a convolution is garbage at some sizes.
        return F.linear(packed.movedim(1, -1), self.conv.weight.flatten(1), self.conv.bias).movedim(-1, 1)
