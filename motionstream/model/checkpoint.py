"""A model is a folder in diffusers layout: loading, saving, and random weights.

    model_index.json          which row of sizes (`Preset`) the model has
    transformer/ track_head/ vae/ text_encoder/ [motion_prior/] [image_encoder/]
        config.json           `_class_name` and that class's configuration
        *.safetensors         weights; no other format is ever opened

Names, shapes and the preset are checked before any weight is loaded, so that a wrong folder is named, not half loaded.
"""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from motionstream.errors import InputError
from motionstream.model.presets import Preset

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
CLASSES = {  # the only classes a folder may name, and where they are
    "EffectTextEncoder": "motionstream.model.text:EffectTextEncoder",
    "EmbeddedVAE": "motionstream.model.vae:EmbeddedVAE",
    "MotionPrior": "motionstream.model.motion_prior:MotionPrior",
    "MotionTransformer": "motionstream.model.transformer:MotionTransformer",
    "TrackHead": "motionstream.model.track_head:TrackHead",
    "WanTransformer3DModel": "motionstream.model.transformer:MotionTransformer",
}
REQUIRED = ("transformer", "track_head", "vae", "text_encoder")
OPTIONAL = ("motion_prior", "image_encoder")
INDEX_CLASS = "MotionStream"

Device = str | torch.device


@dataclass
class Model:
    """All parts of one model, on one device, in evaluation mode.

    dtype: of the transformer's weights and of the autocast that everything runs under.
    """

    preset: Preset
    transformer: nn.Module
    track_head: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    motion_prior: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    image_encoder: nn.Module | None = None

    def components(self) -> dict[str, nn.Module]:
        """The parts that are there, by the name of their sub-folder."""
        parts = {name: getattr(self, name) for name in REQUIRED + OPTIONAL}
        return {name: part for name, part in parts.items() if part is not None}


def load_model(name_or_path: str = "embedded", device: Device = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Loads a model that comes with the repository ("embedded"), a local folder, or a Hub repository ("owner/name").

    dtype: None for float32 on the CPU and bfloat16 elsewhere. Raises `InputError` naming what is missing or does not
    fit: folder, sub-folder, weight, shape.
    """
    folder = _find(name_or_path)
    index = _read_json(folder / "model_index.json")
    preset = _preset(index, folder)
    optional = [name for name in OPTIONAL if (folder / name).is_dir()]
    if preset.motion_prior and "motion_prior" not in optional:
        raise InputError(f"{folder} has no sub-folder motion_prior, which its preset {preset.name} needs")
    parts = {name: load_component(folder / name) for name in (*REQUIRED, *optional)}
    for key, value in preset.transformer_config().items():
        given = _tuples(parts["transformer"].config[key])
        if given != value:
            raise InputError(f"{folder / 'transformer'} has {key} = {given}; its preset {preset.name} has {value}")
    return assemble(preset, parts, device, dtype)


def random_model(preset: Preset, seed: int = 0, device: Device = "cpu", dtype: torch.dtype | None = None) -> Model:
    """A model of the preset's sizes that has learned nothing: for tests and for measuring speed."""
    head = dict(track_dim=preset.track_dim, out_channels=preset.track_channels, temporal_stride=preset.temporal_stride)
    recipes = {
        "transformer": ("MotionTransformer", preset.transformer_config()),
        "track_head": ("TrackHead", head),
        "vae": (preset.vae, dict(latent_channels=preset.latent_channels)),
        "text_encoder": (preset.text_encoder, dict(text_dim=preset.transformer["text_dim"])),
    }
    if preset.motion_prior:
        recipes["motion_prior"] = ("MotionPrior", {})
    classes = {name: _class(recipe[0]) for name, recipe in recipes.items()}  # all known before a large one is built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {name: classes[name](**keywords) for name, (_, keywords) in recipes.items()}
    return assemble(preset, parts, device, dtype)


def assemble(preset: Preset, parts: Mapping[str, nn.Module], device: Device, dtype: torch.dtype | None) -> Model:
    """Puts parts together: moved to the device, evaluation mode, transformer and track head in the given dtype."""
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for part in parts.values():
        part.to(device).eval()
    for name in ("transformer", "track_head"):
        _cast(parts[name], dtype)
    return Model(preset=preset, device=device, dtype=dtype, **{name: parts.get(name) for name in REQUIRED + OPTIONAL})


def save_model(model: Model, folder: str | Path) -> None:
    """Writes the folder that `load_model` reads."""
    folder = Path(folder)
    for name, part in model.components().items():
        part.save_pretrained(folder / name)
    index = {"_class_name": INDEX_CLASS, "preset": asdict(model.preset)}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_component(folder: Path) -> nn.Module:
    """One sub-folder: the class its config names, with its weights. Shapes are checked before anything is loaded."""
    config = _read_json(folder / "config.json")
    part = _class(config.get("_class_name"), folder).from_config(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no .safetensors file; other formats are never opened")
    expected = {name: list(tensor.shape) for name, tensor in part.state_dict().items()}
    ignored = getattr(part, "_keys_to_ignore_on_load_unexpected", None) or []
    weights = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():
                if name not in expected and any(re.search(pattern, name) for pattern in ignored):
                    continue
                shape, needed = stored.get_slice(name).get_shape(), expected.get(name, "no such weight")
                if shape != needed:
                    raise InputError(f"{file} has {name} of shape {shape}; {folder.name} needs {needed}")
                weights[name] = stored.get_tensor(name)
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")
    part.load_state_dict(weights)
    return part


def _find(name_or_path: str) -> Path:
    for folder in (Path(name_or_path), WEIGHTS / name_or_path):
        if folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        raise InputError(f"{name_or_path} is neither a folder, nor in {WEIGHTS}, nor a Hub repository (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"{name_or_path} is no folder here, and the Hub does not give it: {error}") from error


def _preset(index: dict[str, Any], folder: Path) -> Preset:
    given = index.get("preset")
    known = {field.name for field in fields(Preset)}
    if not isinstance(given, dict) or given.keys() != known:
        wrong = ", ".join(sorted(known ^ given.keys() if isinstance(given, dict) else known))
        raise InputError(f"{folder / 'model_index.json'}: preset needs exactly the fields of Preset; check {wrong}")
    return Preset(**_tuples(given))


def _tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _class(name: str, folder: Path | None = None) -> type[nn.Module]:
    if name not in CLASSES:
        where = f"{folder / 'config.json'} names" if folder else "the preset needs"
        raise InputError(f"{where} the class {name}; known are {', '.join(CLASSES)}")
    module, attribute = CLASSES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights, except for those that diffusers keeps in float32 for precision."""
    keep = set(part._keep_in_fp32_modules or ())
    for name, weight in part.named_parameters():
        if not keep & set(name.split(".")):
            weight.data = weight.data.to(dtype)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}: is it a model folder?")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected an object")
    return content
