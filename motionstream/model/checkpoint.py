"""A model is a folder in diffusers layout: loading, saving, and random weights.

    model_index.json          which row of sizes (`Preset`) the model has
    transformer/ track_head/ vae/ text_encoder/ [motion_prior/] [matte/] [image_encoder/] [tiny_vae/] [tokenizer/]
        config.json           the class (`_class_name`, or transformers' `architectures`) and its configuration
        *.safetensors         weights; no other format is ever opened

Names, shapes and the preset are checked before any weight is loaded or allocated, so that a wrong folder is named, not
half loaded. Where a tiny VAE is there, it decodes.
"""

import contextlib
import functools
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from motionstream.errors import InputError, one_line
from motionstream.model.device import holding_weights, usable_device
from motionstream.model.fp8 import FORMAT
from motionstream.model.presets import Preset

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
CLASSES = {  # the only classes a folder may name, and where they are
    "AutoencoderKLWan": "motionstream.model.wan_vae:WanVAE",
    "CLIPImageEncoder": "motionstream.model.encoders:CLIPImageEncoder",
    "CLIPVisionModel": "motionstream.model.encoders:CLIPImageEncoder",
    "EffectTextEncoder": "motionstream.model.text:EffectTextEncoder",
    "EmbeddedVAE": "motionstream.model.vae:EmbeddedVAE",
    "Matte": "motionstream.model.matte:Matte",
    "MotionPrior": "motionstream.model.motion_prior:MotionPrior",
    "MotionTransformer": "motionstream.model.transformer:MotionTransformer",
    "TinyVAE": "motionstream.model.tiny_vae:TinyVAE",
    "TrackHead": "motionstream.model.track_head:TrackHead",
    "UMT5EncoderModel": "motionstream.model.encoders:UMT5TextEncoder",
    "UMT5TextEncoder": "motionstream.model.encoders:UMT5TextEncoder",
    "WanTransformer3DModel": "motionstream.model.transformer:MotionTransformer",
    "WanVAE": "motionstream.model.wan_vae:WanVAE",
}
REQUIRED = ("transformer", "track_head", "vae", "text_encoder")
OPTIONAL = ("motion_prior", "matte", "image_encoder", "tiny_vae")
DECODERS = ("full", "tiny")
INDEX_CLASS = "MotionStream"

Device = str | torch.device


@dataclass
class Model:
    """All parts of one model, on one device, in evaluation mode.

    dtype: of the transformer's weights and of the autocast that everything runs under. turn: whoever computes with the
    parts holds it: encoders come and go, and weights in 8 bits are widened and narrowed again. texts: the newest
    prompts as the text encoder, which may be large and away, has read them.
    """

    preset: Preset
    transformer: nn.Module
    track_head: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    motion_prior: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    matte: nn.Module | None = None
    image_encoder: nn.Module | None = None
    tiny_vae: nn.Module | None = None
    turn: Lock = field(default_factory=Lock, repr=False, compare=False)
    texts: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def decoder(self) -> nn.Module:
        """What turns latents into frames: the tiny VAE where there is one, else the VAE."""
        return self.tiny_vae or self.vae

    @property
    def in_8_bits(self) -> bool:
        """Whether the transformer's weights are, to save memory or time."""
        return FORMAT in {weight.dtype for weight in self.transformer.state_dict().values()}

    @functools.cached_property
    def beside(self) -> torch.cuda.Stream:
        """Where a GPU makes pixels, before the cache that is written meanwhile. One for all of the model's streams:
        memory that PyTorch keeps for a stream of the GPU serves no other."""
        return torch.cuda.Stream(self.device, priority=-1)

    def components(self) -> dict[str, nn.Module]:
        """The parts that are there, by the name of their sub-folder."""
        parts = {name: getattr(self, name) for name in REQUIRED + OPTIONAL}
        return {name: part for name, part in parts.items() if part is not None}


def load_model(
    name_or_path: str = "embedded",
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    vae: str | None = None,
    low_memory: bool = False,
) -> Model:
    """Loads a model that comes with the repository ("embedded"), a local folder, or a Hub repository ("owner/name").

    dtype: None for float32 on the CPU and bfloat16 elsewhere. vae: what decodes, "full" or "tiny"; None for tiny where
    there is one. low_memory: see `assemble`. Raises `InputError` naming what is missing or does not fit: folder,
    sub-folder, weight, shape; or the device, if it is not here.
    """
    device = usable_device(device)
    folder = _find(name_or_path)
    index = read_json(folder / "model_index.json")
    preset = _preset(index, folder)
    _check_decoder(vae, preset)
    optional = [name for name in OPTIONAL if (folder / name).is_dir() and (name, vae) != ("tiny_vae", "full")]
    needed = {"motion_prior": preset.motion_prior, "image_encoder": preset.image_encoder, "tiny_vae": vae == "tiny"}
    for name, is_needed in needed.items():
        if is_needed and name not in optional:
            raise InputError(f"{folder} has no sub-folder {name}, which its preset {preset.name} needs")
    config = read_json(folder / "transformer" / "config.json")
    for key, value in preset.transformer_config().items():
        if (given := _tuples(config.get(key))) != value:
            raise InputError(f"{folder / 'transformer'} has {key} = {given}; its preset {preset.name} has {value}")
    wanted = default_dtype(device, dtype)
    # The prior stays on the CPU: beside a GPU no autocast is in force there.
    own = {} if device.type == "cpu" else dict.fromkeys(("motion_prior", "matte"))
    parts = {name: load_component(folder / name, own.get(name, wanted)) for name in (*REQUIRED, *optional)}
    return assemble(preset, parts, device, wanted, low_memory)


def _check_decoder(vae: str | None, preset: Preset) -> None:
    if vae == "tiny" and not preset.tiny_vae:
        raise InputError(f"the preset {preset.name} has no tiny VAE beside its own: leave --vae out")


def random_model(
    preset: Preset,
    seed: int = 0,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    vae: str | None = None,
    low_memory: bool = False,
) -> Model:
    """A model of the preset's sizes that has learned nothing: for tests and for measuring speed.

    Instead of UMT5, whose vocabulary is a download, it reads prompts with a small table that gives the same shape.
    vae, low_memory: as in `load_model`.
    """
    _check_decoder(vae, preset)
    recipes = {"transformer": ("MotionTransformer", preset.transformer_config()), "track_head": track_head(preset)}
    recipes["vae"] = (preset.vae, preset.configs.get("vae", {}))
    text_dim = preset.transformer["text_dim"]
    shape = {} if preset.text_encoder == "EffectTextEncoder" else {"length": 512, "full": True}
    recipes["text_encoder"] = ("EffectTextEncoder", {"text_dim": text_dim} | shape)
    optional = {
        "motion_prior": "MotionPrior" if preset.motion_prior else "",
        "image_encoder": preset.image_encoder,
        "tiny_vae": "" if vae == "full" else preset.tiny_vae,
    }
    recipes |= {name: (kind, preset.configs.get(name, {})) for name, kind in optional.items() if kind}
    device = usable_device(device)
    classes = {name: class_of(recipe[0]) for name, recipe in recipes.items()}  # all known before a large one is built
    devices = [device] if device.type == "cuda" else []
    with holding_weights(device, low_memory), torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        parts = {name: classes[name](**keywords) for name, (_, keywords) in recipes.items()}
    return assemble(preset, parts, device, dtype, low_memory)


def track_head(preset: Preset) -> tuple[str, dict[str, Any]]:
    """Class and keywords of the preset's track head."""
    return "TrackHead", dict(
        track_dim=preset.track_dim, out_channels=preset.track_channels, temporal_stride=preset.temporal_stride
    )


def default_dtype(device: Device, dtype: torch.dtype | None) -> torch.dtype:
    """The given number format, or float32 on the CPU and bfloat16 elsewhere."""
    return dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)


def assemble(
    preset: Preset,
    parts: Mapping[str, nn.Module],
    device: Device,
    dtype: torch.dtype | None,
    low_memory: bool = False,
) -> Model:
    """Puts parts together: evaluation mode, on the device, large ones in the given dtype.

    Encoders that run once per prompt or picture stay in the CPU's memory, and so does the motion prior. low_memory: the
    transformer's weights are kept in 8 bits and widened layer by layer, and latent frames are decoded one at a time;
    slower.
    """
    device, dtype = torch.device(device), default_dtype(device, dtype)
    with holding_weights(device, low_memory):
        for name, part in parts.items():
            part.eval()
            visits = getattr(part, "visits", False)
            if visits or name in ("transformer", "track_head") or getattr(part, "follows_dtype", False):
                cast(part, dtype)
            if low_memory and name == "transformer":  # before it goes to a GPU that may not hold it otherwise
                part.enable_layerwise_casting(FORMAT, dtype)
            part.to("cpu" if visits or getattr(part, "stays_on_cpu", False) else device)
    if low_memory:
        parts["vae"].latents_at_once = 1
    return Model(preset=preset, device=device, dtype=dtype, **{name: parts.get(name) for name in REQUIRED + OPTIONAL})


def save_model(model: Model, folder: str | Path) -> None:
    """Writes the folder that `load_model` reads."""
    folder = Path(folder)
    for name, part in model.components().items():
        part.save_pretrained(folder / name)
    follow_umask(*folder.glob("*/*.safetensors"))
    index = {"_class_name": INDEX_CLASS, "preset": asdict(model.preset)}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def follow_umask(*files: Path) -> None:
    """Weight files for whoever may read any other new file: safetensors writes them for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in files:
        mode = file.stat().st_mode
        if lacking := 0o666 & ~mask & ~mode:  # where files have no modes of their own, nothing does
            file.chmod(mode | lacking)


def load_component(folder: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """One sub-folder: the class its config names, with its weights. Shapes are checked before anything is allocated.

    dtype: of the weights where that class lives in reduced precision; None for the class's own, float32.
    """
    config = read_json(folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    cls = class_of(name, folder)
    with torch.device("meta"):
        places = _places(folder, cls.from_config(config))
    with weightless():
        part = cls.from_config(config)
    expected, weights = part.state_dict(keep_vars=True), {}
    for file, names in places.items():
        with open_weights(file) as stored:
            for name, stored_name in names.items():
                like = expected[name]  # keeps the memory format, which decides how fast convolutions are
                weight = torch.empty_like(like, dtype=_dtype_of(part, name, like, dtype), device="cpu")
                weights[name] = weight.copy_(stored.get_tensor(stored_name))
    same = {id(expected[name]): weight for name, weight in weights.items()}
    part.load_state_dict({name: same[id(tensor)] for name, tensor in expected.items()}, assign=True)
    if hasattr(part, "load_beside"):
        part.load_beside(folder)
    return part


def _places(folder: Path, part: nn.Module) -> dict[Path, dict[str, str]]:
    """File -> the weights of `part` that lie in it -> their names there.

    `InputError` on a name or shape that does not fit, or a weight that is missing.
    """
    expected = part.state_dict(keep_vars=True)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no .safetensors file; other formats are never opened")
    ignored = getattr(part, "_keys_to_ignore_on_load_unexpected", None) or []
    prefix = getattr(part, "stored_prefix", "")
    places: dict[Path, dict[str, str]] = {}
    for file in files:
        with open_weights(file) as stored:
            for stored_name in stored.keys():
                name = stored_name.removeprefix(prefix)
                if name not in expected and any(re.search(pattern, name) for pattern in ignored):
                    continue
                shape = stored.get_slice(stored_name).get_shape()
                needed = list(expected[name].shape) if name in expected else "no such weight"
                if shape != needed:
                    raise InputError(f"{file} has {name} of shape {shape}; {folder.name} needs {needed}")
                places.setdefault(file, {})[name] = stored_name
    # A weight under two names need be there under one only.
    found = {id(expected[name]) for names in places.values() for name in names}
    missing = sorted(name for name, tensor in expected.items() if id(tensor) not in found)
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")
    return places


@contextlib.contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """A .safetensors file, as `safe_open` gives it; `InputError` if it is none, or not all of it is there."""
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        why = one_line(error)
        raise InputError(f"{file} is no whole .safetensors file ({why}): fetch or write it again") from error


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """All that is in a .safetensors file, and its metadata."""
    with open_weights(file) as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Modules made inside have parameters on the meta device, which cost nothing to fill; their buffers are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        real = parameter is not None and not parameter.is_meta  # one that is not stays the same: it may be shared
        register(module, name, nn.Parameter(parameter.to("meta")) if real else parameter)

    with patch.object(nn.Module, "register_parameter", on_meta):
        yield


def _find(name_or_path: str) -> Path:
    for folder in (Path(name_or_path), WEIGHTS / name_or_path):
        if folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        raise InputError(f"{name_or_path} is neither a folder, nor in {WEIGHTS}, nor a Hub repository (owner/name)")
    folder = _fetch(name_or_path, "model_index.json")
    _preset(read_json(folder / "model_index.json"), folder)  # before gigabytes of something else are fetched
    return _fetch(name_or_path, "*.json", "*.safetensors")


def _fetch(repository: str, *patterns: str) -> Path:
    """The folder that has the files of a Hub repository which match these patterns."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HTTPError, OSError, ValueError) as error:  # a download that breaks off is the first of these alone
        why = one_line(error)
        raise InputError(f"{repository} is no folder here, and the Hub does not give it: {why}") from error


def _preset(index: dict[str, Any], folder: Path) -> Preset:
    given = index.get("preset")
    if not isinstance(given, dict):
        whose = index.get("_class_name", "elsewhere")
        raise InputError(f"{folder / 'model_index.json'} has no preset: it is of {whose}; `python -m motionstream "
                         "convert` makes a folder of ours of such a model")
    known = {field.name for field in fields(Preset)}
    optional = {f.name for f in fields(Preset) if f.default is not MISSING or f.default_factory is not MISSING}
    wrong = ", ".join(sorted((known ^ given.keys()) - (optional - given.keys())))
    if wrong:
        raise InputError(f"{folder / 'model_index.json'}: preset needs exactly the fields of Preset; check {wrong}")
    return Preset(**_tuples(given))


def _tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def class_of(name: str, folder: Path | None = None) -> type[nn.Module]:
    if name not in CLASSES:
        where = f"{folder / 'config.json'} names" if folder else "the preset needs"
        raise InputError(f"{where} the class {name}; known are {', '.join(CLASSES)}")
    module, attribute = CLASSES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights, except for those that diffusers and transformers keep in float32 beside bfloat16."""
    for name, weight in part.named_parameters():
        weight.data = weight.data.to(_dtype_of(part, name, weight, dtype))


def _dtype_of(part: nn.Module, name: str, weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    usual = getattr(part, "_keep_in_fp32_modules", None)  # transformers' own count beside float16 only
    keep = set(getattr(part, "_keep_in_fp32_modules_strict", usual) or ())
    if dtype is None or not isinstance(weight, nn.Parameter) or keep & set(name.split(".")):
        return weight.dtype
    return dtype


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `InputError` if it is not there, is none or torn."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}: is it a model folder?")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected an object")
    return content
