"""LoRA adapters, merged into a transformer's weights by diffusers' own loader, which works through PEFT.

What is ours is the names: of PEFT, DiffSynth, VideoX-Fun and kohya's tools, of which diffusers knows a part; and plain
differences of weights and biases ("diff", "diff_b"), which it leaves out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from motionstream.errors import InputError, one_line
from motionstream.model import checkpoint

Weights = dict[str, Tensor]
PARTS = {  # a tool's name for a part of a layer's adapter -> PEFT's
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_magnitude_vector": "lora_magnitude_vector.weight",
}
NAME = re.compile(  # layer, part
    r"(.+)\.((?:lora_A|lora_down|lora_B|lora_up)\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?"
    r"|alpha|diff|diff_b)"
)
DIFFERENCES = {"diff": "weight", "diff_b": "bias"}
PREFIX = re.compile(r"^(?:(?:base_model|model|transformer|diffusion_model)\.)+")
KOHYA_DOTS = re.compile(r"_(?=\d)|(?<=\d)_|(?<=attn)_|(?<=head)_|(?<=img_emb)_")  # that its tools write as underscores
UNCLEAR = ".dora_scale"  # another tool's magnitudes: one for each row, or for each column


def merge_lora(weights: Weights, config: Mapping, file: Path, strength: float) -> tuple[int, list[str]]:
    """Merges an adapter into `weights` at a strength; how many of them it changes, and names in the file without use.

    weights, under diffusers' names, are changed in place; config: of the `MotionTransformer` that has them. How
    strong an adapter is, is told by tensors "alpha" in the file, or by PEFT's configuration, in its metadata or in
    adapter_config.json beside it; without any, alpha is the rank.
    """
    stored, metadata = checkpoint.read_weights(file)
    if other := next((name for name in stored if name.endswith(UNCLEAR)), None):
        raise InputError(f"{file} also rescales weights by {other}, which is not read: merge it with its own tool")
    layers: dict[str, dict[str, str]] = {}  # layer -> part -> the file's name for it
    for name in stored:
        if match := NAME.fullmatch(name.replace(".default.", ".")):
            layers.setdefault(layer_name(match[1], weights), {})[PARTS.get(match[2], match[2])] = name
    used = _add_differences(weights, layers, stored, strength)
    changed = len(used)
    adapter, alphas = {}, {}  # layer -> part -> tensor; layer -> alpha
    for layer, names in layers.items():
        matrices = {part: stored[name] for part, name in names.items() if part.startswith("lora_")}
        if not _fits(matrices, weights.get(f"{layer}.weight")):
            continue
        adapter[layer] = matrices
        changed += 1 + ("lora_B.bias" in matrices)
        used += [names[part] for part in (*matrices, "alpha") if part in names]
        if "alpha" in names:
            alphas[layer] = stored[names["alpha"]].item()
    if not used:
        raise InputError(f"{file} adapts no weight of this transformer; it begins with {', '.join(sorted(stored)[:3])}")
    if adapter:
        settings = {} if alphas else _settings(metadata, file)
        _fuse(weights, config, file, adapter, alphas, settings, strength)
    return changed, [name for name in stored if name not in used]


def layer_name(name: str, weights: Iterable[str]) -> str:
    """What diffusers calls a layer, of the names that PEFT, DiffSynth, VideoX-Fun and kohya's tools give it."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    name = PREFIX.sub("", name)
    if name.startswith("lora_unet_"):
        name = KOHYA_DOTS.sub(".", name.removeprefix("lora_unet_").removeprefix("_"))
    if f"{name}.weight" in weights:
        return name
    (ours,) = convert_wan_transformer_to_diffusers({f"{name}.weight": torch.empty(0)})
    return ours.removesuffix(".weight")


def _add_differences(weights: Weights, layers: Mapping, stored: Weights, strength: float) -> list[str]:
    """Adds plain differences, and names those that it added."""
    used = []
    for layer, names in layers.items():
        for part, kind in DIFFERENCES.items():
            old = weights.get(f"{layer}.{kind}")
            if part in names and old is not None and stored[names[part]].numel() == old.numel():
                added = strength * stored[names[part]].float().view_as(old)
                weights[f"{layer}.{kind}"] = (old.float() + added).to(old)
                used.append(names[part])
    return used


def _fits(matrices: Weights, weight: Tensor | None) -> bool:
    """Whether a layer's adapter has both of its matrices, and these are of the sizes of its weight."""
    down, up = matrices.get("lora_A.weight"), matrices.get("lora_B.weight")
    if weight is None or down is None or up is None or {down.ndim, up.ndim} != {weight.ndim}:
        return False
    return (up.shape[0], down.shape[1:], up.shape[1]) == (weight.shape[0], weight.shape[1:], down.shape[0])


def _settings(metadata: Mapping[str, str], file: Path) -> dict:
    """PEFT's configuration of the transformer's adapter, as diffusers' scripts or PEFT itself write it."""
    source, text = "lora_adapter_metadata", metadata.get("lora_adapter_metadata") or "{}"
    try:
        if file.name == "adapter_model.safetensors" and file.with_name("adapter_config.json").is_file():
            source = "adapter_config.json"
            text = file.with_name(source).read_text()
        config = {name.removeprefix("transformer."): value for name, value in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: its {source} is no configuration of PEFT's: {error}") from error
    return {name: value for name, value in config.items() if "." not in name}  # not other networks'


def _ranks(adapter: Mapping[str, Weights]) -> dict[str, int]:
    return {layer: matrices["lora_B.weight"].shape[1] for layer, matrices in adapter.items()}


def _seen_in(adapter: Mapping[str, Weights]) -> dict:
    """What of PEFT's configuration an adapter's tensors tell."""
    ranks = _ranks(adapter)
    parts = {part for matrices in adapter.values() for part in matrices}
    return {"target_modules": sorted(ranks), "rank_pattern": ranks, "lora_bias": "lora_B.bias" in parts,
            "use_dora": "lora_magnitude_vector.weight" in parts}


def _fuse(
    weights: Weights,
    config: Mapping,
    file: Path,
    adapter: Mapping[str, Weights],
    alphas: Mapping[str, float],
    settings: dict,
    strength: float,
) -> None:
    """Lets diffusers load and fuse an adapter: layer -> part -> tensor, and layer -> alpha."""
    with checkpoint.weightless():
        network = checkpoint.class_of("MotionTransformer")(**config)
    network.load_state_dict(weights, strict=False, assign=True)
    alphas = alphas and _ranks(adapter) | alphas
    parts = {f"{layer}.{part}": tensor for layer, matrices in adapter.items() for part, tensor in matrices.items()}
    given = {
        "network_alphas": _prefixed({f"{layer}.alpha": alpha for layer, alpha in alphas.items()}) or None,
        "metadata": _prefixed(settings | _seen_in(adapter)) if settings else None,
    }
    try:
        network.load_lora_adapter(_prefixed(parts), **given)
        network.fuse_lora(lora_scale=strength, safe_fusing=True)
    except (TypeError, ValueError, RuntimeError, re.error) as error:
        raise InputError(f"{file} cannot be merged, says PEFT: {one_line(error)}") from error
    network.unload_lora()
    weights |= {name: tensor for name, tensor in network.state_dict().items() if name in weights}


def _prefixed(values: Mapping) -> dict:
    return {f"transformer.{name}": value for name, value in values.items()}
