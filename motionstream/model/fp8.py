"""Linear layers in 8-bit floating point, for GPUs that multiply it faster (Hopper, Ada, Blackwell).

Weights are rounded once, inputs as they come, each row with a scale of its own; products are summed in float32 and
leave in the number format of the input. About 3 % error a layer, half the memory. PyTorch's own kernel.
"""

import torch
from torch import Tensor, nn

FORMAT = torch.float8_e4m3fn
MULTIPLE = 16  # sides of a matrix that the kernel takes


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [M, K] -> the same in 8 bit, and the scales [M, 1] that undo their scaling."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / torch.finfo(FORMAT).max
    return (x.float() / scale).to(FORMAT), scale


class Fp8Linear(nn.Module):
    """Stands in for `linear`, whose weight it rounds."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = _rounded(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = _rounded(x.flatten(0, -2))
        options = dict(out_dtype=torch.bfloat16, use_fast_accum=True)
        out = torch._scaled_mm(rows, self.weight.T, scale_a=scale, scale_b=self.scale, **options)
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1]).type_as(x)


def use_fp8(transformer: nn.Module) -> int:
    """Replaces the linear layers that run in every pass -> how many. For inference only; cannot be saved afterwards."""
    found = [
        (parent, name)
        for block in transformer.blocks
        for parent in block.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
    ]
    for parent, name in found:  # each layer goes before the next one comes: a GPU may not hold both networks
        setattr(parent, name, Fp8Linear(getattr(parent, name)))
    return len(found)
