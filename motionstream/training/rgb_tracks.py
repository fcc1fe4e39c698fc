"""Tracks as other methods give them to a video model: points of a colour each on a canvas, encoded as a video.

The paper's table 3 compares this with the track head; `train teacher --rgb-tracks` learns from it.
"""

import torch
from torch import Tensor, nn


class RgbTracks(nn.Module):
    """Stands in a teacher's network for the `TrackHead`; learns nothing.

    vae: encodes the canvas, and stays as it is. stride: pixels per latent cell, which is also the size of a point.
    """

    def __init__(self, vae: nn.Module, stride: int):
        super().__init__()
        self.vae, self.stride = vae.requires_grad_(False), stride

    @torch.no_grad()
    def forward(self, maps: Tensor, first: bool) -> Tensor:
        """Track maps [B, T, h, w, track_dim] of whole clips -> [B, latent_channels, t, h, w].

        The first three numbers of an ID's code are its colour: sines, as good as random. The rest is grey.
        """
        if not first:
            raise ValueError("tracks as RGB are encoded as whole clips, from frame 0 on")
        canvas = maps[..., :3].movedim(-1, 1)
        return self.vae.encode(canvas.repeat_interleave(self.stride, 3).repeat_interleave(self.stride, 4))
