"""Linear layers whose weights lie in memory as a CPU's kernels want them, with what follows in one kernel.

Otherwise each call lays them out anew, and copies its bias to where the result is summed: a tenth of the time of the
embedded student's small matrices in bfloat16. In float32 PyTorch leaves them to MKL, which on a processor that is not
Intel's takes up to twice as long. oneDNN through PyTorch, as its compiler uses it.
"""

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """Stands in for `linear`, and for the activation after it ("none", "gelu"). For inference; cannot be saved."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias, self.activation = linear.bias, activation
        self.kind = ""
        if activation == "gelu":  # in bfloat16 the exact one differs from the one with tanh by less than rounding does
            self.kind = "none" if weight.dtype == torch.bfloat16 else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.kind)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] transposed, float32 on a CPU; without gradients."""
    if not can_pack(x.dtype):
        return x @ weight.mT
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def pack(transformer: nn.Module) -> None:
    """Replaces the linear layers that run in every pass, in a network on a CPU; see `can_pack`.

    The patches' convolution, which cannot be packed so, has its weights in the order that its kernel reads them in.
    """
    transformer.patch_embedding.to(memory_format=torch.channels_last_3d)
    for parent in [module for block in transformer.blocks for module in block.modules()]:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, GELU):
                setattr(parent, name, PackedLinear(layer.proj, "gelu"))
            elif isinstance(layer, nn.Linear) and not isinstance(parent, GELU):
                setattr(parent, name, PackedLinear(layer))


def can_pack(dtype: torch.dtype) -> bool:
    """Whether PyTorch here has these kernels for float32 or bfloat16."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
