"""Other people's checkpoints become a folder that loads and computes what they computed; what has no place is named."""

import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, UMT5EncoderModel

from motionstream.cli import main
from motionstream.errors import InputError
from motionstream.model import convert as module
from motionstream.model.checkpoint import load_component, load_model
from motionstream.model.convert import convert
from motionstream.model.encoders import PROMPT_TOKENS, CLIPImageEncoder, UMT5TextEncoder
from motionstream.model.presets import PRESETS
from motionstream.model.tiny_vae import TinyVAE
from motionstream.streaming import stream
from motionstream.tracks import StaticTracks, Tracks

NETWORK = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, text_dim=16, freq_dim=16)
CLIP = dict(hidden_size=20, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
CLIP |= dict(image_size=28, patch_size=14)
UMT5 = dict(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
VAES = {
    "wan2.1-1.3b": dict(base_dim=4, z_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=2),
    "wan2.2-5b": dict(PRESETS["wan2.2-5b"].configs["vae"])
    | dict(base_dim=4, decoder_base_dim=4, dim_mult=(1, 2, 2, 2)),
}
ORIGINAL = (  # our names -> those of Wan's own transformer, written down independently of the converter
    (r"condition_embedder\.time_embedder\.linear_(\d)", lambda m: f"time_embedding.{2 * int(m[1]) - 2}"),
    (r"condition_embedder\.text_embedder\.linear_(\d)", lambda m: f"text_embedding.{2 * int(m[1]) - 2}"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^scale_shift_table", "head.modulation"),
    (r"scale_shift_table", "modulation"),
    (r"^proj_out", "head.head"),
)


def small(name: str):
    row = PRESETS[name]
    shape = dict(row.transformer) | NETWORK
    if row.image_encoder:
        shape |= dict(image_dim=20, added_kv_proj_dim=24)
    tiny = dict(row.configs["tiny_vae"]) | dict(widths=(8, 8, 8, 8))
    configs = dict(vae=VAES[name], text_encoder=UMT5, image_encoder=CLIP, tiny_vae=tiny)
    return dataclasses.replace(row, transformer=shape, configs=configs, budgets=(6,))


def network(channels: int, preset, image: bool) -> WanTransformer3DModel:
    torch.manual_seed(0)
    config = preset.transformer_config() | dict(in_channels=channels)
    config |= {} if image else dict(image_dim=None, added_kv_proj_dim=None)
    return WanTransformer3DModel(**config).eval().requires_grad_(False)


def stock_vae(name: str) -> AutoencoderKLWan:
    return AutoencoderKLWan(**{key: list(x) if isinstance(x, tuple) else x for key, x in VAES[name].items()})


def original(model: WanTransformer3DModel) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in ORIGINAL:
            name = re.sub(pattern, replacement, name)
        weights[name] = tensor.clone()
    return weights


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "fox"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def diffusers_folder(folder, preset, image: bool):
    """What the Hub has: diffusers' and transformers' own classes, saved by themselves."""
    channels = preset.latent_channels + (preset.latent_channels + 4 if image else 0)
    network(channels, preset, image).save_pretrained(folder / "transformer")
    stock_vae(preset.name).save_pretrained(folder / "vae")
    UMT5EncoderModel(UMT5TextEncoder(**UMT5).config).save_pretrained(folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    if image:
        CLIPVisionModel(CLIPImageEncoder(**CLIP).config).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    preset = small("wan2.1-1.3b")
    return preset, diffusers_folder(tmp_path_factory.mktemp("hub"), preset, image=True)


@pytest.fixture(scope="module")
def converted(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "wan"
    return out, convert([hub[1]], out, preset=hub[0])


def test_a_diffusers_folder_becomes_a_model_that_streams(hub, converted):
    out, report = converted
    assert report.dropped == [] and [name.split(":")[0] for name in report.made] == ["track_head"] * 2
    modes = {file.stat().st_mode for part in ("transformer", "text_encoder") for file in (out / part).iterdir()}
    assert len(modes) == 1  # whoever may read the settings may read the weights
    model = load_model(str(out))
    assert model.preset == hub[0] and model.tiny_vae is None
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    chunks = stream(model, image, StaticTracks(Tracks.empty(0)), prompt="a red fox")
    assert [next(chunks).frames.shape[0] for _ in range(3)] == [9, 12, 12]


@pytest.mark.parametrize("kind", ["I2V", "T2V", "control"])
def test_the_widened_network_computes_what_the_source_computed(kind, tmp_path):
    preset = small("wan2.1-1.3b")
    channels = {"I2V": 36, "T2V": 16, "control": 48}[kind]
    source = network(channels, preset, image=kind != "T2V")
    save_file(original(source), tmp_path / "source.safetensors")
    report = convert([tmp_path / "source.safetensors"], tmp_path / "out", preset=preset)
    ours = load_component(tmp_path / "out" / "transformer").eval()

    noise, control, image = torch.randn(3, 1, 16, 2, 4, 4)
    mask, tracks = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 16, 2, 4, 4)
    blank = torch.zeros_like(control)
    given = {"I2V": (noise, mask, image), "T2V": (noise,), "control": (noise, blank, image)}[kind]
    text, seen = torch.randn(1, 512, 16), torch.randn(1, 5, 20)
    t = torch.tensor([700.0])
    with torch.no_grad():
        expected = source(torch.cat(given, 1), t, text, None if kind == "T2V" else seen).sample
        got = ours(torch.cat([noise, mask, image, tracks], 1), t, text, seen).sample
    assert expected.abs().max() > 0.01 and (got - expected).abs().max() <= 1e-5
    of_image = [name for name in report.made if "track_head" not in name]
    assert bool(of_image) == (kind == "T2V") and all(re.search("add_|added|image", name) for name in of_image)
    assert f"of {channels} channels kept, widened with zeros to 52" in str(report)


def test_first_latent_models_keep_the_columns_of_the_noise_only(tmp_path):
    preset = small("wan2.2-5b")
    for channels in (48, 100, 144, 148):
        source = network(channels, preset, image=False)
        save_file(source.state_dict(), tmp_path / f"{channels}.safetensors")
        convert([tmp_path / f"{channels}.safetensors"], tmp_path / f"out{channels}", preset=preset)
        weight = load_file(tmp_path / f"out{channels}" / "transformer" / module.FILE)["patch_embedding.weight"]
        assert torch.equal(weight[:, :48], source.patch_embedding.weight[:, :48]) and not weight[:, 48:].any()


@pytest.mark.parametrize("wrapped", ["generator_ema", "generator", "model"])
def test_checkpoints_of_training_are_unwrapped(wrapped, tmp_path):
    preset = small("wan2.1-1.3b")
    weights = original(network(16, preset, image=False))
    other = {f"model.{name}": torch.zeros_like(x) for name, x in weights.items()}
    inner = {f"model._fsdp_wrapped_module.{name}": x for name, x in weights.items()}
    beside = {} if wrapped == "model" else {"generator": other}
    torch.save({"critic": other, "step": 600} | beside | {wrapped: inner}, tmp_path / "checkpoint.pt")
    convert([tmp_path / "checkpoint.pt"], tmp_path / "out", preset=preset)
    stored = load_file(tmp_path / "out" / "transformer" / module.FILE)
    expected = network(16, preset, image=False).state_dict()
    assert all(torch.equal(stored[name], x) for name, x in expected.items() if name != "patch_embedding.weight")


def test_later_sources_replace_parts(hub, tmp_path):
    preset, folder = hub
    weights = original(network(16, preset, image=False))
    torch.save({"generator": {f"model.{name}": 0 * x for name, x in weights.items()}}, tmp_path / "self_forcing.pt")
    tiny = TinyVAE(**preset.configs["tiny_vae"])
    community = {name: x.contiguous() for name, x in tiny.state_dict().items()} | {"encoder.0.weight": torch.zeros(2)}
    save_file(community, tmp_path / "taew2_1.safetensors")
    convert([folder, tmp_path / "self_forcing.pt", tmp_path / "taew2_1.safetensors"], tmp_path / "out", preset=preset)
    model = load_model(str(tmp_path / "out"))
    assert not model.transformer.proj_out.weight.any() and model.decoder is model.tiny_vae
    assert all(torch.equal(x, tiny.state_dict()[name]) for name, x in model.tiny_vae.state_dict().items())
    assert load_model(str(tmp_path / "out"), vae="full").tiny_vae is None


def test_wans_own_folder_with_all_encoders(hub, tmp_path):
    """Names of Wan's release, made from the classes of the Hub's folder: both must become the same model."""
    preset, folder = hub
    load = {name: load_file(next((folder / name).glob("*.safetensors"))) for name in ("text_encoder", "image_encoder")}
    source = tmp_path / "Wan2.1"
    (source / "google" / "umt5-xxl").mkdir(parents=True)
    tokenizer().save_pretrained(source / "google" / "umt5-xxl")
    save_file(original(network(36, preset, image=True)), source / "diffusion_pytorch_model.safetensors")
    torch.save(wan_text(load["text_encoder"]), source / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(wan_image(load["image_encoder"]), source / "models_clip.pth")
    report = convert([source], tmp_path / "out", preset=preset)
    assert {name.split(":")[0] for name in report.made} == {"track_head"}
    assert report.dropped == ["image_encoder: textual.x", "image_encoder: visual.head"]
    assert "no vae in any source" in str(report)
    for name, kind in (("text_encoder", UMT5EncoderModel), ("image_encoder", CLIPVisionModel)):
        ours, theirs = (kind.from_pretrained(place / name).state_dict() for place in (tmp_path / "out", folder))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()


def wan_text(weights: dict) -> dict:
    layers = {"SelfAttention.relative_attention_bias": "pos_embedding.embedding", "SelfAttention": "attn",
              "0.layer_norm": "norm1", "1.layer_norm": "norm2", "DenseReluDense.wi_0": "ffn.gate.0",
              "DenseReluDense.wi_1": "ffn.fc1", "DenseReluDense.wo": "ffn.fc2"}
    names = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    for block in range(UMT5["num_layers"]):
        for layer in range(2):
            for ours, theirs in layers.items():
                ours = ours if ours[0].isdigit() else f"{layer}.{ours}"
                for rest in ("", ".q", ".k", ".v", ".o"):
                    names[f"encoder.block.{block}.layer.{ours}{rest}.weight"] = f"blocks.{block}.{theirs}{rest}.weight"
    return {names[name]: x for name, x in weights.items() if name in names}


def wan_image(weights: dict) -> dict:
    weights = {name.removeprefix("vision_model."): x for name, x in weights.items()}
    names = {"embeddings.patch_embedding": "patch_embedding", "pre_layrnorm": "pre_norm", "post_layernorm": "post_norm"}
    result = {"visual.cls_embedding": weights["embeddings.class_embedding"].view(1, 1, -1),
              "visual.pos_embedding": weights["embeddings.position_embedding.weight"][None],
              "visual.head": torch.zeros(3), "textual.x": torch.zeros(3)}
    for block in range(CLIP["num_hidden_layers"]):
        ours, theirs = f"encoder.layers.{block}", f"transformer.{block}"
        names |= {f"{ours}.layer_norm1": f"{theirs}.norm1", f"{ours}.layer_norm2": f"{theirs}.norm2",
                  f"{ours}.mlp.fc1": f"{theirs}.mlp.0", f"{ours}.mlp.fc2": f"{theirs}.mlp.2",
                  f"{ours}.self_attn.out_proj": f"{theirs}.attn.proj"}
        for kind in ("weight", "bias"):
            parts = [weights[f"{ours}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            result[f"visual.{theirs}.attn.to_qkv.{kind}"] = torch.cat(parts)
    for name, x in weights.items():
        stem, kind = name.rsplit(".", 1)
        if stem in names:
            result[f"visual.{names[stem]}.{kind}"] = x
    return result


@pytest.mark.parametrize("name", VAES)
def test_wans_own_autoencoder_names(name, tmp_path):
    """Every weight of diffusers' class is reached, each by one name of Wan's, in the layout of that release."""
    vae = stock_vae(name)
    weights = {wan_vae_name(key): x for key, x in vae.state_dict().items()}
    assert len(weights) == len(vae.state_dict())
    part, renamed = module._identify(weights, tmp_path)
    assert part == "vae" and renamed.keys() == vae.state_dict().keys()
    assert all(renamed[key] is x or torch.equal(renamed[key], x) for key, x in vae.state_dict().items())


def wan_vae_name(name: str) -> str:
    plain = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    head, rest = name.split(".", 1)
    if head in plain:
        return f"{plain[head]}.{rest}"
    inner = [("conv_in.", "conv1."), ("norm_out.", "head.0."), ("conv_out.", "head.2.")]
    inner += [("mid_block.resnets.0.", "middle.0."), ("mid_block.resnets.1.", "middle.2.")]
    inner += [("mid_block.attentions.0.", "middle.1."), ("conv_shortcut.", "shortcut.")]
    last = [("norm1.", "residual.0."), ("conv1.", "residual.2."), ("norm2.", "residual.3."), ("conv2.", "residual.6.")]
    if re.search(r"resnets|down_blocks\.\d+\.(norm|conv)\d", rest):
        for ours, theirs in last:
            rest = re.sub(rf"(^|\.){re.escape(ours)}", rf"\1{theirs}", rest)
    for ours, theirs in inner:
        rest = re.sub(rf"(^|\.){re.escape(ours)}", rf"\1{theirs}", rest)
    rest = re.sub(r"down_blocks\.(\d+)\.(resnets\.(\d+)|downsampler)\.",
                  lambda m: f"downsamples.{m[1]}.downsamples.{m[3] or 2}.", rest)
    rest = re.sub(r"down_blocks\.", "downsamples.", rest)
    rest = re.sub(r"up_blocks\.(\d+)\.upsampler\.", r"upsamples.\1.upsamples.3.", rest)
    nested = name.startswith("decoder") and "upsamples" in rest
    if not nested:
        rest = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"upsamples.{4 * int(m[1]) + 3}.", rest)
    return f"{head}.{rest}"


def test_the_vocabulary_is_read_as_its_file_has_it(tmp_path):
    """Published folders name a class that splits characters which are not in it in another way."""
    words = ["<pad>", "</s>", "<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "\u2581"]
    inner = Tokenizer(models.Unigram([(word, -float(n)) for n, word in enumerate(words)], unk_id=3, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.add_special_tokens(words[:4])
    (tmp_path / "tokenizer").mkdir()
    inner.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = UMT5TextEncoder(**UMT5)
    encoder.load_beside(tmp_path / "text_encoder")
    expected = inner.encode("a \U0001f98a").ids
    assert encoder.tokenizer("a \U0001f98a").input_ids == expected and len(expected) > 5


def test_an_adapter_is_merged(hub, tmp_path):
    preset, folder = hub
    down, up = torch.randn(4, 24), torch.randn(24, 4)
    lora = {"diffusion_model.blocks.1.self_attn.q.lora_A.weight": down,
            "diffusion_model.blocks.1.self_attn.q.lora_B.weight": up}
    save_file(lora, tmp_path / "style.safetensors")
    report = convert([folder], tmp_path / "out", preset=preset, loras=[(tmp_path / "style.safetensors", 0.5)])
    stored = load_file(tmp_path / "out" / "transformer" / module.FILE)
    plain = load_file(folder / "transformer" / module.FILE)
    name = "blocks.1.attn1.to_q.weight"
    assert torch.allclose(stored[name], plain[name] + 0.5 * up @ down, atol=1e-6)
    assert torch.equal(stored["blocks.0.attn1.to_q.weight"], plain["blocks.0.attn1.to_q.weight"])
    assert "style.safetensors: merged into 1 weights at strength 0.5" in str(report)
    save_file({"something": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="odd.safetensors"):
        convert([folder], tmp_path / "again", preset=preset, loras=[(tmp_path / "odd.safetensors", 1.0)])


def adapter(tmp_path, metadata: object = None, alpha: float | None = None):
    """A file for two weights, rank 4, and what it adds to them at a scale of 1."""
    torch.manual_seed(1)
    start = "transformer.blocks.1.attn1" if alpha is None else "diffusion_model.blocks.1.self_attn"
    names = ("to_q", "to_k") if alpha is None else ("q", "k")
    matrices = {name: (torch.randn(4, 24), torch.randn(24, 4)) for name in names}
    weights = {f"{start}.{name}.lora_A.weight": down for name, (down, _) in matrices.items()}
    weights |= {f"{start}.{name}.lora_B.weight": up for name, (_, up) in matrices.items()}
    if alpha is not None:
        weights |= {f"{start}.{name}.alpha": torch.tensor(alpha) for name in names}
    head = {"format": "pt"} | ({} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)})
    save_file(weights, tmp_path / "adapter.safetensors", head)
    return tmp_path / "adapter.safetensors", [up @ down for down, up in matrices.values()]


def add_to(file, weights):
    with safe_open(file, "pt") as stored:
        save_file(load_file(file) | weights, file, stored.metadata())


@pytest.mark.parametrize(
    ("metadata", "alpha", "scales"),
    [
        (None, None, (1, 1)),
        (None, 2.0, (0.5, 0.5)),
        ({"transformer.r": 4, "transformer.lora_alpha": 1}, None, (0.25, 0.25)),
        ({"r": 4, "lora_alpha": 8}, None, (2, 2)),
        ({"transformer.lora_alpha": 1, "transformer.alpha_pattern": {r"attn1\.to_k": 2}}, None, (0.25, 0.5)),
        ({"transformer.lora_alpha": 1, "transformer.use_rslora": True}, None, (0.5, 0.5)),
        ({"transformer_2.lora_alpha": 1}, None, (1, 1)),
    ],
)
def test_an_adapter_is_merged_at_its_alpha(metadata, alpha, scales, hub, tmp_path):
    preset, folder = hub
    file, added = adapter(tmp_path, metadata, alpha)
    report = convert([folder], tmp_path / "out", preset=preset, loras=[(file, 1.0)])
    stored, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", folder))
    for name, scale, product in zip(("to_q", "to_k"), scales, added, strict=True):
        name = f"blocks.1.attn1.{name}.weight"
        assert torch.allclose(stored[name], plain[name] + scale * product, atol=1e-5)
    assert report.dropped == []


@pytest.mark.parametrize("metadata", [[1], {"lora_alpha": "much"}, {"lora_alpha": 1, "alpha_pattern": {"(": 1}}])
def test_an_adapter_of_senseless_metadata_is_named(metadata, hub, tmp_path):
    file, _ = adapter(tmp_path, metadata)
    with pytest.raises(InputError, match="adapter.safetensors(: its lora_adapter_metadata| cannot be merged)"):
        convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])


@pytest.mark.parametrize(
    "start, modules, end",
    [
        ("base_model.model.blocks.1.attn1.", ("to_q", "to_k"), ".weight"),  # PEFT
        ("transformer.blocks.1.attn1.", ("to_q", "to_k"), ".default.weight"),
        ("blocks.1.self_attn.", ("q", "k"), ".default.weight"),  # DiffSynth
    ],
)
def test_an_adapter_is_known_by_the_names_of_other_tools(start, modules, end, hub, tmp_path):
    file, added = adapter(tmp_path)
    stored, names = load_file(file), dict(zip(("to_q", "to_k"), modules, strict=True))
    renamed = {f"{start}{theirs}.lora_{part}{end}": stored[f"transformer.blocks.1.attn1.{ours}.lora_{part}.weight"]
               for ours, theirs in names.items() for part in "AB"}
    save_file(renamed, file)
    merged_into_queries_and_keys(file, added, hub, tmp_path)


def test_an_adapter_of_videox_fun_is_merged(hub, tmp_path):
    """Such files have every linear layer, or those that were asked for, each with its alpha."""
    file, added = adapter(tmp_path)
    stored, renamed = load_file(file), {}
    sizes = {f"{attn}_attn_{part}": (24, 24) for attn in ("self", "cross") for part in "qkvo"}
    sizes |= {"cross_attn_k_img": (24, 24), "cross_attn_v_img": (24, 24)}
    layers = {f"blocks_{block}_{name}": size for block, (name, size) in itertools.product((0, 1), sizes.items())}
    layers |= {"text_embedding_0": (24, 16), "time_embedding_2": (24, 24), "time_projection_1": (144, 24)}
    layers |= {"img_emb_proj_1": (20, 20), "img_emb_proj_3": (24, 20), "head_head": (64, 24)}
    for name, (rows, columns) in layers.items():
        down, up = torch.zeros(4, columns), torch.zeros(rows, 4)
        if name in ("blocks_1_self_attn_q", "blocks_1_self_attn_k"):
            down, up = (stored[f"transformer.blocks.1.attn1.to_{name[-1]}.lora_{part}.weight"] for part in "AB")
        parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(4.0)}
        renamed |= {f"lora_unet__{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(renamed, file)
    merged_into_queries_and_keys(file, added, hub, tmp_path)


def test_an_adapter_of_kohyas_tools_may_have_a_few_layers_only(hub, tmp_path):
    file, added = adapter(tmp_path)
    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    save_file({f"lora_unet_blocks_1_self_attn_{name}.{theirs}": tensor for name in "qk" for ours, theirs in ends.items()
               for key, tensor in load_file(file).items() if key.endswith(f"to_{name}.{ours}")}, file)
    merged_into_queries_and_keys(file, added, hub, tmp_path)


def test_an_adapter_may_change_the_patch_embedding(hub, tmp_path):
    """A convolution's matrices are one as well."""
    down, up = torch.randn(4, 36, 1, 2, 2), torch.randn(24, 4, 1, 1, 1)
    for start in ("transformer", "diffusion_model"):
        file = tmp_path / f"{start}.safetensors"
        save_file({f"{start}.patch_embedding.lora_A.weight": down, f"{start}.patch_embedding.lora_B.weight": up}, file)
        report = convert([hub[1]], tmp_path / start, preset=hub[0], loras=[(file, 1.0)])
        result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / start, hub[1]))
        expected = plain["patch_embedding.weight"] + torch.einsum("orxyz,rcthw->octhw", up, down)
        assert torch.allclose(result["patch_embedding.weight"][:, :36], expected, atol=1e-5)
        assert report.dropped == []


def test_an_adapter_may_also_rescale_rows(hub, tmp_path):
    """DoRA: each row of the weight gets the length that the adapter names."""
    file, (added, _) = adapter(tmp_path, {"r": 4, "lora_alpha": 2, "use_dora": True})
    names = (f"transformer.blocks.1.attn1.{name}.lora_magnitude_vector" for name in ("to_q", "to_k"))
    lengths = {name: torch.rand(24) + 0.5 for name in names}
    add_to(file, lengths)
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    turned = plain["blocks.1.attn1.to_q.weight"] + 0.5 * added
    length = lengths["transformer.blocks.1.attn1.to_q.lora_magnitude_vector"][:, None]
    expected = length * turned / turned.norm(dim=1, keepdim=True)
    assert torch.allclose(result["blocks.1.attn1.to_q.weight"], expected, atol=1e-5)
    assert report.dropped == []


def test_an_adapter_whose_magnitudes_may_be_of_columns_is_refused(hub, tmp_path):
    file, _ = adapter(tmp_path, alpha=4.0)
    save_file(load_file(file) | {"diffusion_model.blocks.1.self_attn.q.dora_scale": torch.ones(24)}, file)
    with pytest.raises(InputError, match="also rescales weights by .*dora_scale.* merge it with its own tool"):
        convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])


def test_ranks_may_differ_between_layers(hub, tmp_path):
    file, (added, _) = adapter(tmp_path, {"r": 4, "lora_alpha": 4})
    down, up = torch.randn(2, 24), torch.randn(24, 2)
    start = "transformer.blocks.0.attn1.to_v"
    add_to(file, {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up})
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    for key, value in {"blocks.1.attn1.to_q.weight": added, "blocks.0.attn1.to_v.weight": 2 * up @ down}.items():
        assert torch.allclose(result[key], plain[key] + value, atol=1e-5)
    assert report.dropped == [] and "merged into 3 weights" in str(report)


def test_a_layer_without_an_alpha_has_its_rank_as_alpha(hub, tmp_path):
    file, (added, _) = adapter(tmp_path, alpha=2.0)
    down, up = torch.randn(4, 24), torch.randn(24, 4)
    start = "diffusion_model.blocks.0.self_attn.v"
    add_to(file, {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up})
    convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    for key, value in {"blocks.1.attn1.to_q.weight": 0.5 * added, "blocks.0.attn1.to_v.weight": up @ down}.items():
        assert torch.allclose(result[key], plain[key] + value, atol=1e-5)


def test_an_adapter_of_nothing_finite_is_refused(hub, tmp_path):
    file, _ = adapter(tmp_path)
    stored = load_file(file)
    stored["transformer.blocks.1.attn1.to_q.lora_B.weight"][0, 0] = torch.nan
    save_file(stored, file)
    with pytest.raises(InputError, match="adapter.safetensors cannot be merged, says PEFT: NaNs"):
        convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    assert not (tmp_path / "out").exists()


def merged_into_queries_and_keys(file, added, hub, tmp_path):
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    for name, product in zip(("to_q", "to_k"), added, strict=True):
        key = f"blocks.1.attn1.{name}.weight"
        assert torch.allclose(result[key], plain[key] + product, atol=1e-5)
    assert report.dropped == []


def test_an_adapter_changes_norms_too(hub, tmp_path):
    file, _ = adapter(tmp_path, alpha=2.0)
    block = "diffusion_model.blocks.1"
    norms = {"norm3.diff": "norm2.weight", "norm3.diff_b": "norm2.bias"}
    norms |= {"cross_attn.norm_k_img.diff": "attn2.norm_added_k.weight"}
    save_file(load_file(file) | {f"{block}.{name}": torch.ones(24) for name in norms}, file)
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 0.5)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    for name in norms.values():
        assert torch.allclose(result[f"blocks.1.{name}"], plain[f"blocks.1.{name}"] + 0.5)
    assert report.dropped == [] and "merged into 5 weights" in str(report)


def test_what_does_not_fit_of_an_adapter_is_told(hub, tmp_path):
    file, _ = adapter(tmp_path, alpha=4.0)
    lost = {"diffusion_model.time_projection.1.diff_b": torch.ones(24), "lora_te_text.lora_up.weight": torch.ones(2, 2),
            "diffusion_model.blocks.1.self_attn.v.alpha": torch.ones(())}
    save_file(load_file(file) | lost, file)
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    assert report.dropped == sorted(f"adapter.safetensors: {name}" for name in lost)
    assert "merged into 2 weights" in str(report)


def test_an_adapter_changes_biases_too(hub, tmp_path):
    file, _ = adapter(tmp_path, alpha=2.0)
    block = "diffusion_model.blocks.1.self_attn"
    save_file(load_file(file) | {f"{block}.{name}.diff_b": torch.ones(24) for name in "qv"}, file)
    report = convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 0.5)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    for name in ("to_q", "to_v"):  # with and without matrices; they have no alpha
        assert torch.allclose(result[f"blocks.1.attn1.{name}.bias"], plain[f"blocks.1.attn1.{name}.bias"] + 0.5)
    assert report.dropped == [] and "merged into 4 weights" in str(report)


def test_the_bias_of_a_matrix_is_scaled_with_it(hub, tmp_path):
    """PEFT's `lora_bias`, unlike a difference of biases."""
    file, _ = adapter(tmp_path)
    save_file(load_file(file) | {"transformer.blocks.1.attn1.to_q.lora_B.bias": torch.ones(24)}, file,
              {"lora_adapter_metadata": json.dumps({"lora_alpha": 1})})
    convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    key = "blocks.1.attn1.to_q.bias"
    assert torch.allclose(result[key], plain[key] + 0.25)


def test_the_alpha_of_an_adapter_may_lie_beside_it(hub, tmp_path):
    file, added = adapter(tmp_path)
    file = file.rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    convert([hub[1]], tmp_path / "out", preset=hub[0], loras=[(file, 1.0)])
    result, plain = (load_file(place / "transformer" / module.FILE) for place in (tmp_path / "out", hub[1]))
    key = "blocks.1.attn1.to_q.weight"
    assert torch.allclose(result[key], plain[key] + 2 * added[0], atol=1e-5)
    (tmp_path / "adapter_config.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="adapter_config.json is no configuration"):
        convert([hub[1]], tmp_path / "again", preset=hub[0], loras=[(file, 1.0)])


# ---------------------------------------------------------------- what is wrong is named


def refused(sources, out, message, preset=None):
    with pytest.raises(InputError, match=message):
        convert(sources, out, preset=preset)


def test_wrong_sources_are_named(hub, tmp_path):
    preset, folder = hub
    out = tmp_path / "out"
    refused([tmp_path / "nowhere"], out, "nowhere is neither a file nor a folder")
    refused([tmp_path], out, "holds no .safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors")
    refused([tmp_path / "odd.safetensors"], out, "is no part of a Wan model; it begins with a")
    refused([folder], out, "24 wide and has 2 layers; the presets are embedded 256x6")
    weights = original(network(36, preset, image=True))
    save_file({n: x for n, x in weights.items() if "blocks.1.ffn.0" not in n}, tmp_path / "part.safetensors")
    refused([tmp_path / "part.safetensors"], out, r"2 weights are in no source, the first is blocks.1.ffn", preset)
    save_file(weights | {"head.head.weight": torch.zeros(3, 3)}, tmp_path / "shape.safetensors")
    refused([tmp_path / "shape.safetensors"], tmp_path / "o2", r"proj_out.weight has the shape \[3, 3\]", preset)
    save_file(weights | {"patch_embedding.weight": torch.zeros(24, 20, 1, 2, 2)}, tmp_path / "wide.safetensors")
    refused([tmp_path / "wide.safetensors"], tmp_path / "o3", "takes 20 channels; known are 52, 16, 36, 48", preset)
    refused([folder], folder, "is there already and not empty", preset)
    save_file(weights | {"blocks.0.self_attn.q.scale_weight": torch.ones(1)}, tmp_path / "scaled.safetensors")
    refused([tmp_path / "scaled.safetensors"], tmp_path / "o4", "scaled.*in 8 bit with scales.*file in 16 bit", preset)
    save_file({"patch_embedding.weight": torch.zeros(24, 16, 1, 2, 2)}, tmp_path / "alone.safetensors")
    refused([tmp_path / "alone.safetensors"], tmp_path / "o5", "24 wide and has 0 layers")


def test_what_lies_beside_the_new_folder_stays(hub, tmp_path):
    preset, folder = hub
    mine = tmp_path / "out.tmp"
    shutil.copytree(folder, mine)
    refused([mine], tmp_path / "out", "out.tmp is there: remove it, if", preset)
    assert (mine / "transformer" / module.FILE).is_file() and not (tmp_path / "out").exists()


def test_files_of_one_folder_are_checkpoints_of_their_own_unless_they_are_shards(hub, tmp_path):
    preset, _ = hub
    weights, tiny = original(network(36, preset, image=True)), TinyVAE(**preset.configs["tiny_vae"]).state_dict()
    (tmp_path / "Wan").mkdir()
    for n in (0, 1):
        shard = {name: x for name, x in weights.items() if n == ("blocks.1" in name)}
        save_file(shard, tmp_path / "Wan" / f"diffusion_pytorch_model-0000{n + 1}-of-00002.safetensors")
    save_file({name: x.contiguous() for name, x in tiny.items()}, tmp_path / "Wan" / "taew2_1.safetensors")
    report = convert([tmp_path / "Wan"], tmp_path / "out", preset=preset)
    assert report.dropped == [] and (tmp_path / "out" / "tiny_vae" / module.FILE).is_file()


def test_every_name_without_a_place_is_told(hub, tmp_path):
    preset, _ = hub
    weights = original(network(36, preset, image=True)) | {"ref_conv.weight": torch.zeros(2), "extra": torch.zeros(1)}
    save_file(weights, tmp_path / "fun.safetensors")
    report = convert([tmp_path / "fun.safetensors"], tmp_path / "out", preset=preset)
    assert report.dropped == ["transformer: extra", "transformer: ref_conv.weight"]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", None])
def test_damaged_files_are_named(content, hub, tmp_path):
    preset, folder = hub
    whole = (folder / "transformer" / module.FILE).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100] if content is None else content)
    message = r"cut.safetensors is no whole .safetensors file"
    refused([tmp_path / "cut.safetensors"], tmp_path / "out", message, preset)
    with pytest.raises(InputError, match=message):
        convert([folder], tmp_path / "out", preset=preset, loras=[(tmp_path / "cut.safetensors", 1.0)])


def test_a_part_that_does_not_fit_leaves_nothing_behind(hub, tmp_path):
    preset, folder = hub
    encoder = {"shared.weight": torch.zeros(3, 3)}
    save_file(encoder, tmp_path / "text.safetensors")
    (tmp_path / "models" / "out").mkdir(parents=True)  # an empty folder may be there
    out = tmp_path / "models" / "out"
    refused([folder, tmp_path / "text.safetensors"], out, "text_encoder: shared.weight has the shape", preset)
    assert list(out.parent.iterdir()) == [out] and not list(out.iterdir())
    convert([folder], out, preset=preset)
    assert list(out.parent.iterdir()) == [out] and load_model(str(out)).preset == preset
    (tmp_path / "file").write_text("")
    refused([folder], tmp_path / "file", "is there already", preset)


def test_a_full_disk_leaves_nothing_behind(hub, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    preset, folder = hub
    refused([folder], "/proc/nowhere", "cannot write /proc/nowhere: No such file", preset)
    monkeypatch.setattr(module, "save_file", full)
    refused([folder], tmp_path / "out", "cannot write .*out: .*No space left on device; make room", preset)
    assert not list(tmp_path.iterdir())


class Trap:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_checkpoint_that_holds_code_is_not_opened(tmp_path, capsys):
    torch.save({"generator": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="trap.pt holds more than tensors, or is damaged; it is opened") as told:
        convert([tmp_path / "trap.pt"], tmp_path / "out")
    assert "\n" not in str(told.value) and "weights_only" not in str(told.value)
    assert "never" not in capsys.readouterr().out
    (tmp_path / "text.pt").write_text("hello")
    refused([tmp_path / "text.pt"], tmp_path / "out", "text.pt is no checkpoint of PyTorch's, or half of one: fetch it")
    torch.save({"generator": {"step": 3}}, tmp_path / "empty.pt")
    refused([tmp_path / "empty.pt"], tmp_path / "out", "holds no tensors under names")


def test_checkpoints_of_old_and_new_pytorch_are_read_and_halves_are_told(tmp_path):
    weights = {"generator": {"conv.weight": torch.arange(6.0)}}
    for name, zipped in (("old.pth", False), ("new.pth", True)):
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
        [(key, value)] = module._load(tmp_path / name).items()
        assert key == "conv.weight" and torch.equal(value, weights["generator"][key])
    whole = (tmp_path / "new.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    refused([tmp_path / "half.pth"], tmp_path / "out", "half.pth is no checkpoint of PyTorch's, or half of one: fetch")
    torch.save({"generator": Trap()}, tmp_path / "trap.pth", _use_new_zipfile_serialization=False)
    refused([tmp_path / "trap.pth"], tmp_path / "out", "trap.pth holds more than tensors")


def test_the_command(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(module.PRESETS, hub[0].name, hub[0])
    assert main(["convert", str(hub[1]), "-o", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["placed"] > 50 and result["dropped"] == []
    assert main(["convert", str(tmp_path / "none"), "-o", str(tmp_path / "other")]) == 2
    assert "neither a file nor a folder" in capsys.readouterr().err
    for strength in ("abc", "nan"):
        arguments = ["convert", str(hub[1]), "-o", str(tmp_path / "other"), "--lora", f"a.safetensors={strength}"]
        assert main(arguments) == 2
        assert f"--lora a.safetensors={strength}: '{strength}' is no number" in capsys.readouterr().err


# ---------------------------------------------------------------- the encoders


def test_a_prompt_is_read_as_diffusers_reads_it(converted):
    encoder = load_model(str(converted[0])).text_encoder
    tokens = encoder.tokenizer("a red fox", padding="max_length", max_length=PROMPT_TOKENS, return_tensors="pt")
    with torch.no_grad():
        padded = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        got = encoder.encode("  a red\n fox ")
    length = int(tokens.attention_mask.sum())
    assert got.shape == (1, PROMPT_TOKENS, 16) and length == 4
    assert (got[:, :length] - padded[:, :length]).abs().max() <= 1e-5 and not got[:, length:].any()


def test_the_image_encoder_sees_the_whole_picture_one_layer_before_the_end(converted):
    encoder = load_model(str(converted[0])).image_encoder
    picture = torch.rand(3, 32, 48) * 2 - 1
    square = F.interpolate(picture[None], size=(28, 28), mode="bicubic", align_corners=False) / 2 + 0.5
    mean, deviation = torch.tensor(
        [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        expected = encoder(((square - mean) / deviation), output_hidden_states=True).hidden_states[2]
        assert torch.equal(encoder.encode(picture), expected) and expected.shape == (1, 5, 20)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", b'{"version": ', b"\xff"])
def test_a_vocabulary_that_is_not_whole_is_refused(name, content, tmp_path):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_bytes(content)
    with pytest.raises(InputError, match="tokenizer is not whole .*: fetch its .json files again"):
        UMT5TextEncoder(**UMT5).load_beside(tmp_path / "text_encoder")


def test_a_text_encoder_without_its_vocabulary_is_refused(converted, tmp_path):
    (converted[0] / "tokenizer").rename(tmp_path / "tokenizer")
    try:
        with pytest.raises(InputError, match="tokenizer has no tokenizer.json"):
            load_model(str(converted[0]))
    finally:
        (tmp_path / "tokenizer").rename(converted[0] / "tokenizer")
