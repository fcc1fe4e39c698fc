"""Other people's checkpoints -> our folder: `python -m motionstream convert SOURCE [SOURCE ...] -o FOLDER`.

A source is a folder or a file, and gives the parts of a model that it has; a later one replaces an earlier one's:

    convert Wan2.1-Fun-1.3B-InP self_forcing_dmd.pt taew2_1.safetensors -o my-model

Understood are folders in diffusers' layout, Wan's original checkpoints (transformer, `Wan2.x_VAE.pth`, T5, CLIP,
tokenizer), VideoX-Fun's Wan2.1-Fun (InP, Control) and the `.pt` files of Self-Forcing and CausVid, whose averaged
weights are taken where there are any. A file is recognised by the names in it, not by its own. Pickles are read with
`weights_only`, which runs no code.

Only the patch embedding changes: it is widened to our channels. Noise, mask and image keep the columns that they had in
the source; the others begin at zero, so that the network computes what it did in the source. What a text-to-video
source has not got (image tokens) begins without effect, and the track head at random: such a model is to be trained.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor

from motionstream.errors import InputError, one_line, writing
from motionstream.model import checkpoint
from motionstream.model.lora import Weights, merge_lora
from motionstream.model.presets import PRESETS, Preset

MARKS = {  # a name that only this part has -> the part
    "patch_embedding.weight": "transformer",
    "decoder.conv_in.weight": "vae",
    "shared.weight": "text_encoder",
    "pre_layrnorm.weight": "image_encoder",
    "vision_model.pre_layrnorm.weight": "image_encoder",
    "decoder.3.conv.0.weight": "tiny_vae",
    "conv.weight": "track_head",
}
FILE = "diffusion_pytorch_model.safetensors"
WRAPPERS = ("generator_ema", "generator", "model", "state_dict", "module")  # of which the first that is there is taken
PREFIX = re.compile(r"^(?:(?:model|generator|module|diffusion_model|_fsdp_wrapped_module|_orig_mod)\.)+")
PICKLED = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # begins files of PyTorch before 1.6; later ones are zip archives
INNER = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
TEXT_NAMES = (  # Wan's T5 -> transformers'
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
     r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
IMAGE_NAMES = (  # open_clip's vision tower as Wan keeps it -> transformers'
    (r"^visual\.cls_embedding$", "embeddings.class_embedding"),
    (r"^visual\.pos_embedding$", "embeddings.position_embedding.weight"),
    (r"^visual\.patch_embedding\.", "embeddings.patch_embedding."),
    (r"^visual\.pre_norm\.", "pre_layrnorm."),
    (r"^visual\.post_norm\.", "post_layernorm."),
    (r"^visual\.transformer\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^visual\.transformer\.(\d+)\.norm2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^visual\.transformer\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^visual\.transformer\.(\d+)\.attn\.to_qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^visual\.transformer\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^visual\.transformer\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
)
VAE_NAMES = (  # Wan's autoencoders -> diffusers'; 2.2 nests its levels, 2.1 counts through
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"\.conv1\.", ".conv_in."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.downsamples\.(\d+)\.downsamples\.(\d+)\.(residual|shortcut)", r".down_blocks.\1.resnets.\2.\3"),
    (r"\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)", r".down_blocks.\1.downsampler.\2"),
    (r"\.upsamples\.(\d+)\.upsamples\.(\d+)\.(residual|shortcut)", r".up_blocks.\1.resnets.\2.\3"),
    (r"\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)", r".up_blocks.\1.upsampler.\2"),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
IMAGE_ONLY = re.compile(r"\.(?:add_[kv]_proj|norm_added_k)\.|\.image_embedder\.")


@dataclass
class Report:
    """What became of the names: placed, dropped (in no part of ours), made up (in no source), and remarks in words."""

    placed: int = 0
    dropped: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"placed {self.placed} weights", *self.remarks]
        for text, names in (("in no part of ours, dropped", self.dropped), ("in no source, made", self.made)):
            lines += [f"{text}: {len(names)}"] * bool(names) + [f"  {name}" for name in names]
        return "\n".join(lines)


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    preset: Preset | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    seed: int = 0,
) -> Report:
    """Writes the folder `out`, which `load_model` reads; it is complete or not there.

    preset: None for the one whose sizes the transformer has. loras: files and strengths, merged into the transformer.
    seed: of the weights that no source has. Raises `InputError` naming what is missing, misshapen or unknown.
    """
    out, report = Path(out), Report()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty: name a new folder")
    whole = out.resolve()  # "." has no name of its own
    unfinished = whole.with_name(whole.name + ".tmp")
    if unfinished.exists():  # perhaps somebody's own: not ours to remove
        raise InputError(f"{unfinished} is there: remove it, if a conversion was cut short, or name another folder")
    parts: dict[str, Weights] = {}
    for source in map(Path, sources):
        parts |= _read(source)
    if "transformer" not in parts:
        raise InputError(f"no transformer in {', '.join(map(str, sources))}")
    preset = preset or _recognise(parts["transformer"])
    if loras:
        _merge_loras(parts["transformer"], preset, loras, report)
    parts["transformer"] = _widen(parts["transformer"], preset, report)
    try:
        with writing(out):
            for name, (kind, keywords) in _recipes(preset).items():
                if name in parts or name == "track_head":
                    _write(unfinished / name, kind, keywords, parts.get(name, {}), report, seed)
                elif name != "tiny_vae":
                    missing = f"no {name} in any source: the folder cannot be loaded before one is put into it"
                    report.remarks.append(missing)
            checkpoint.follow_umask(*unfinished.glob("*/*.safetensors"))
            _copy_tokenizer(map(Path, sources), unfinished, report)
            index = {"_class_name": checkpoint.INDEX_CLASS, "preset": asdict(preset)}
            (unfinished / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
            unfinished.rename(whole)
    finally:  # after the last line there is nothing of that name
        shutil.rmtree(unfinished, ignore_errors=True)
    report.dropped.sort()
    return report


def _recipes(preset: Preset) -> dict[str, tuple[str, Mapping]]:
    """Part -> class and keywords."""
    kinds = {name: getattr(preset, name) for name in ("vae", "text_encoder", "image_encoder", "tiny_vae")}
    recipes = {name: (kind, preset.configs.get(name, {})) for name, kind in kinds.items() if kind}
    return {"transformer": ("MotionTransformer", preset.transformer_config()),
            "track_head": checkpoint.track_head(preset)} | recipes


# ---------------------------------------------------------------- reading


def _read(source: Path) -> dict[str, Weights]:
    """All parts of a file or folder, under the names of our classes."""
    if source.is_file():
        return dict([_identify(_load(source), source)])
    if not source.is_dir():
        raise InputError(f"{source} is neither a file nor a folder here")
    found = {}
    for name in ("transformer", "track_head", "vae", "text_encoder", "image_encoder", "tiny_vae"):
        if files := sorted((source / name).glob("*.safetensors")):
            found |= dict([_identify(_load(*files), source / name)])
    checkpoints: dict[str, list[Path]] = {}  # a checkpoint's name without its shard's number -> its files
    for ending in ("safetensors", "pt", "pth"):
        for file in sorted(source.glob(f"*.{ending}")):
            checkpoints.setdefault(re.sub(r"-\d+-of-\d+(?=\.)", "", file.name), []).append(file)
    for files in checkpoints.values():
        found |= dict([_identify(_load(*files), files[0])])
    if not found:
        raise InputError(f"{source} holds no .safetensors, .pth or .pt file, nor a folder of diffusers' layout")
    return found


def _load(*files: Path) -> Weights:
    """The tensors of one checkpoint, which may lie in several files, without the wrappings of training."""
    weights: Weights = {}
    for file in files:
        if file.suffix == ".safetensors":
            weights |= checkpoint.read_weights(file)[0]
            continue
        try:
            zipped = zipfile.is_zipfile(file)
            known = zipped or _begins(file, PICKLED)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped) if known else None
        except OSError as error:
            raise InputError(f"cannot read {file}: {one_line(error)}") from error
        except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:  # PyTorch's advice is to run the code
            remedy = "it is opened no other way, since it could run code: look for its weights as .safetensors"
            raise InputError(f"{file} holds more than tensors, or is damaged; {remedy}") from error
        if not known:
            raise InputError(f"{file} is no checkpoint of PyTorch's, or half of one: fetch it again")
        weights |= _unwrap(content, file)
    return {INNER.sub("", PREFIX.sub("", name)): tensor for name, tensor in weights.items()}


def _begins(file: Path, mark: bytes) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(mark)) == mark


def _unwrap(content: object, file: Path) -> Weights:
    while isinstance(content, dict):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {name: x for name, x in content.items() if isinstance(x, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise InputError(f"{file} holds no tensors under names; known wrappings are {', '.join(WRAPPERS)}")
    return tensors


def _identify(weights: Weights, source: Path) -> tuple[str, Weights]:
    """(part, its weights under our names)."""
    if scaled := next((name for name in weights if name.endswith((".scale_weight", ".weight_scale"))), None):
        raise InputError(f"{source} has weights in 8 bit with scales, such as {scaled}: take the file in 16 bit")
    if "blocks.0.self_attn.q.weight" in weights:
        weights = _transformer_names(weights)
    elif "token_embedding.weight" in weights:
        weights = _rename(weights, TEXT_NAMES)
    elif "visual.patch_embedding.weight" in weights:
        weights = _image_names(weights)
    elif "decoder.conv1.weight" in weights:
        weights = _rename(weights, VAE_NAMES, _count_through)
    part = next((part for mark, part in MARKS.items() if mark in weights), None)
    if part == "image_encoder":
        weights = {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    if part is None:
        raise InputError(f"{source} is no part of a Wan model; it begins with {', '.join(sorted(weights)[:3])}")
    return part, weights


def _rename(weights: Weights, table: Sequence[tuple[str, str]], last: Callable[[str], str] = str) -> Weights:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[last(name)] = tensor
    return renamed


def _transformer_names(weights: Weights) -> Weights:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers(dict(weights))


def _image_names(weights: Weights) -> Weights:
    """Also cuts the joint query, key and value, and drops the dimensions that are written as 1."""
    renamed = {}
    for name, tensor in _rename(weights, IMAGE_NAMES).items():
        if ".qkv." in name:
            renamed |= {name.replace(".qkv.", f".{x}_proj."): t for x, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif name.endswith(("class_embedding", "position_embedding.weight")):
            renamed[name] = tensor.squeeze()
        else:
            renamed[name] = tensor
    return renamed


def _count_through(name: str) -> str:
    """Wan 2.1's decoder: layer 4i + j of "upsamples" is residual block j of level i, or for j = 3 its upsampling."""
    match = re.match(r"(.*\.)upsamples\.(\d+)\.(.*)", name)
    if not match:
        return name
    level, place = divmod(int(match[2]), 4)
    inner = "upsamplers.0" if place == 3 else f"resnets.{place}"
    return f"{match[1]}up_blocks.{level}.{inner}.{match[3]}"


# ---------------------------------------------------------------- placing


def _recognise(weights: Weights) -> Preset:
    """The preset whose transformer has these sizes."""
    width = weights["patch_embedding.weight"].shape[0]
    layers = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
    sizes = {}
    for preset in PRESETS.values():
        network = preset.transformer
        sizes[preset.name] = network["num_attention_heads"] * network["attention_head_dim"], network["num_layers"]
        if sizes[preset.name] == (width, layers):
            return preset
    known = ", ".join(f"{name} {width}x{layers}" for name, (width, layers) in sizes.items())
    raise InputError(f"the transformer is {width} wide and has {layers} layers; the presets are {known}")


def _merge_loras(weights: Weights, preset: Preset, loras: Sequence[tuple[str | Path, float]], report: Report) -> None:
    config = preset.transformer_config() | {"in_channels": weights["patch_embedding.weight"].shape[1]}  # not yet ours
    for file, strength in loras:
        file = Path(file)
        changed, unused = merge_lora(weights, config, file, strength)
        report.remarks.append(f"{file.name}: merged into {changed} weights at strength {strength:g}")
        report.dropped += [f"{file.name}: {name}" for name in unused]


def _widen(weights: Weights, preset: Preset, report: Report) -> Weights:
    """The patch embedding with our input channels; see the module's docstring."""
    old = weights["patch_embedding.weight"]
    config, latents = preset.transformer_config(), preset.latent_channels
    given, wanted = old.shape[1], config["in_channels"]
    image = latents + preset.temporal_stride  # mask and image latents
    layouts = {  # input channels -> [(first column in the source, first column of ours, how many)]
        # noise, control, mask, image; of Wan 2.2 only: Wan 2.1's would be as many as ours, which are meant then
        2 * latents + image: [(0, 0, latents), (2 * latents, latents, image)],
        wanted: [(0, 0, wanted)],
        latents: [(0, 0, latents)],
        latents + image: [(0, 0, latents + image)],
        # noise, control, image
        3 * latents: [(0, 0, latents), (2 * latents, latents + preset.temporal_stride, latents)],
    }
    if given not in layouts:
        raise InputError(f"the patch embedding takes {given} channels; known are {', '.join(map(str, layouts))}")
    pieces = layouts[given]
    if preset.image_conditioning != "channel_concat" and given != wanted:
        pieces = [(0, 0, latents)]
    new = old.new_zeros(old.shape[0], wanted, *old.shape[2:])
    for source, place, count in pieces:
        new[:, place : place + count] = old[:, source : source + count]
    used = sum(count for *_, count in pieces)
    if given != wanted:
        report.remarks.append(f"patch embedding: {used} of {given} channels kept, widened with zeros to {wanted}")
    return weights | {"patch_embedding.weight": new}


def _write(folder: Path, kind: str, keywords: Mapping, weights: Weights, report: Report, seed: int) -> None:
    """One part: every weight that our class has, from the source or made, checked before anything is written."""
    cls = checkpoint.class_of(kind)
    with checkpoint.weightless():
        part = cls(**keywords)
    expected = part.state_dict(keep_vars=True)
    ignored = getattr(part, "_keys_to_ignore_on_load_unexpected", None) or []
    state, name = {}, folder.name
    for key, tensor in weights.items():
        if key not in expected:
            if not any(re.search(pattern, key) for pattern in ignored):
                report.dropped.append(f"{name}: {key}")
        elif tensor.shape != expected[key].shape:
            given, needed = list(tensor.shape), list(expected[key].shape)
            raise InputError(f"{name}: {key} has the shape {given}; the preset needs {needed}")
        else:
            state[key] = tensor.contiguous()
    have = {id(expected[key]) for key in state}
    missing = [key for key, tensor in expected.items() if id(tensor) not in have]
    unknown = [key for key in missing if name != "track_head" and not IMAGE_ONLY.search(key)]
    if unknown:
        raise InputError(f"{name}: {len(unknown)} weights are in no source, the first is {unknown[0]}")
    report.placed += len(state)
    report.made += [f"{name}: {key}" for key in missing]
    state |= _made({key: expected[key] for key in missing}, seed)
    taken = set()
    for key, tensor in state.items():  # one under two names is written twice; the others stay in their files' memory
        if tensor.data_ptr() in taken:
            state[key] = tensor.clone()
        taken.add(tensor.data_ptr())
    folder.mkdir(parents=True)
    if hasattr(part, "save_config"):
        part.save_config(folder)
        save_file(state, folder / FILE)
        return
    config = part.config.to_dict() | {"architectures": [kind]}  # transformers adds the class when it saves the weights
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _made(missing: Mapping[str, Tensor], seed: int) -> Weights:
    """Weights that no source has: gains of 1, values of the image tokens of 0 (no effect), else small and random."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, like in missing.items():
        gain = "norm" in name and name.endswith("weight")
        value = torch.ones(like.shape) if gain else torch.zeros(like.shape)
        if not gain and name.endswith("weight") and "add_v_proj" not in name:
            value.normal_(std=like[0].numel() ** -0.5, generator=generator)
        made[name] = value
    return made


def _copy_tokenizer(sources, out: Path, report: Report) -> None:
    """The vocabulary of the text encoder, as diffusers ("tokenizer") or Wan ("google/umt5-xxl") lay it out."""
    for source in sources:
        for folder in (source / "tokenizer", source / "google" / "umt5-xxl"):
            if (folder / "tokenizer.json").is_file():
                shutil.copytree(folder, out / "tokenizer", dirs_exist_ok=True,
                                ignore=lambda _, names: [name for name in names if not name.endswith(".json")])
    if (out / "text_encoder").is_dir() and not (out / "tokenizer").is_dir():
        report.remarks.append("no tokenizer in any source: put its tokenizer.json into the sub-folder tokenizer")
