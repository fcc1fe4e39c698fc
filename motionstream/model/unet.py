"""The U-Net of the motion prior and of the matte."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, incoming: int, channels: int, stride: int = 1):
        super().__init__()
        self.enter = nn.Conv2d(incoming, channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return x + self.inner(F.silu(self.norm(x)))


class Residual(nn.Module):
    """Changes nothing when it is new."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convs[1].weight)
        nn.init.zeros_(self.convs[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(norm(y)))
        return x + y


def _residuals(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels) for _ in range(number)))


class UNet(nn.Module):
    """[B, incoming, h, w] -> [B, outgoing, h, w]; any h and w.

    depths: residual blocks more at each width, on the way down and on the way up; none if it is empty.
    """

    def __init__(self, incoming: int, widths: tuple[int, ...], outgoing: int, depths: tuple[int, ...] = ()):
        super().__init__()
        depths = depths or (0,) * len(widths)
        self.deeper_down = nn.ModuleList(map(_residuals, widths, depths))
        self.deeper_up = nn.ModuleList(map(_residuals, reversed(widths[:-1]), reversed(depths[:-1])))
        self.enter = Block(incoming, widths[0])
        self.down = nn.ModuleList(Block(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(
            Block(a + b, b) for a, b in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.leave = nn.Conv2d(widths[0], outgoing, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.deeper_down[0](self.enter(x))]
        for block, deeper in zip(self.down, self.deeper_down[1:], strict=True):
            levels.append(deeper(block(F.silu(levels[-1]))))
        x = levels.pop()
        for block, deeper in zip(self.up, self.deeper_up, strict=True):
            skip = levels.pop()
            x = torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], dim=1)
            x = deeper(block(F.silu(x)))
        return self.leave(F.silu(x))
