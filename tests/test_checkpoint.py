"""A model folder round-trips, and a wrong one is named."""

import dataclasses
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file

from motionstream.errors import InputError
from motionstream.model import checkpoint
from motionstream.model.checkpoint import load_component, load_model, random_model, save_model
from motionstream.model.presets import PRESETS
from motionstream.streaming import stream
from motionstream.tracks import StaticTracks, Tracks

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    row = PRESETS["embedded"]
    shape = dict(row.transformer) | dict(num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=16)
    return random_model(dataclasses.replace(row, transformer=shape, window=2), seed=3)


@pytest.fixture
def folder(model, tmp_path):
    save_model(model, tmp_path)
    return tmp_path


def first_frames(model) -> np.ndarray:
    return next(stream(model, np.full((32, 32, 3), 90, np.uint8), StaticTracks(Tracks.empty(0)))).frames


def test_a_saved_model_is_the_same_model(model, folder):
    again = load_model(str(folder))
    assert again.preset == model.preset
    for name, part in model.components().items():
        for key, value in part.state_dict().items():
            assert torch.equal(again.components()[name].state_dict()[key], value)
    assert np.array_equal(first_frames(model), first_frames(again))
    assert not again.transformer.training


def test_random_weights_depend_on_the_seed_and_leave_the_global_one_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    other, same = (random_model(model.preset, seed) for seed in (4, 3))
    assert torch.equal(torch.rand(3), expected)
    weights = [m.transformer.proj_out.weight for m in (model, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_stock_transformer_weights_load_as_they_are(tmp_path):
    config = dict(num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=16, text_dim=8, in_channels=4)
    stock = WanTransformer3DModel(**config, image_dim=6, added_kv_proj_dim=12)
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["blocks.0.attn2.norm_added_q.weight"] = torch.ones(12)  # in some published files, used by nobody
    save_file(weights, tmp_path / WEIGHTS)
    ours = load_component(tmp_path)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in stock.state_dict().items())


def test_published_presets_have_the_published_sizes():
    for name, millions in (("wan2.1-1.3b", 1564), ("wan2.2-5b", 5000)):
        with torch.device("meta"):
            network = checkpoint.class_of("MotionTransformer")(**PRESETS[name].transformer_config())
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_beside_a_gpu_the_motion_prior_stays_in_float32(monkeypatch):
    monkeypatch.setattr(checkpoint, "usable_device", torch.device)  # there is none here
    monkeypatch.setattr(checkpoint, "assemble", lambda preset, parts, *_: parts)
    parts = load_model("embedded", "cuda")
    dtypes = {name: {weight.dtype for weight in part.parameters()} for name, part in parts.items()}
    assert dtypes["motion_prior"] == dtypes["matte"] == {torch.float32} and torch.bfloat16 in dtypes["transformer"]


def test_reduced_precision_keeps_what_diffusers_keeps(model):
    half = random_model(model.preset, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in half.transformer.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32
    assert first_frames(half).shape == (9, 32, 32, 3)


# ---------------------------------------------------------------- what is wrong is named


def refused(path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(str(path))


def test_no_folder(tmp_path):
    refused("no-such-model", "no-such-model is neither a folder")
    refused(tmp_path / "gone", "gone is neither a folder")


def test_no_index(tmp_path):
    refused(tmp_path, "has no model_index.json: is it a model folder")


def test_broken_index(folder):
    (folder / "model_index.json").write_text("{")
    refused(folder, "model_index.json is not valid JSON")
    (folder / "model_index.json").write_text("[]")
    refused(folder, "holds a list")
    (folder / "model_index.json").write_text(json.dumps({"preset": {"name": "x"}}))
    refused(folder, "preset needs exactly the fields.*budgets")


@pytest.mark.parametrize("part", ["track_head", "motion_prior"])
def test_missing_part(folder, part):
    (folder / part).rename(folder / "elsewhere")
    refused(folder, part)


def test_other_formats_are_not_opened(folder):
    (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    refused(folder, "vae has no .safetensors file; other formats are never opened")


def test_missing_and_misshapen_weights(folder):
    path = folder / "track_head" / WEIGHTS
    weights = load_file(path)
    save_file({"conv.bias": weights["conv.bias"]}, path)
    refused(folder, "track_head lacks 1 weights, the first is conv.weight")
    save_file(weights | {"conv.bias": torch.zeros(3)}, path)
    refused(folder, r"conv.bias of shape \[3\]; track_head needs \[16\]")
    save_file(weights | {"conv.extra": torch.zeros(3)}, path)
    refused(folder, "conv.extra of shape .* needs no such weight")


@pytest.mark.parametrize("kept", [0, 20, -100])
def test_damaged_weights_are_named(folder, kept):
    path = folder / "track_head" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, f"track_head/{WEIGHTS} is no whole .safetensors file")


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "no CUDA device here: PyTorch sees 0, cuda was asked for"), ("cuda:1", "no CUDA device"),
     ("foo", "no device is called 'foo': it is cpu, cuda")],
)  # fmt: skip
def test_a_device_that_is_not_here_is_named(device, message, model, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for make in (lambda: load_model(str(folder), device), lambda: random_model(model.preset, device=device)):
        with pytest.raises(InputError, match=message):
            make()


def test_unknown_class(folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "os.system"}))
    refused(folder, "names the class os.system; known are")


def test_transformer_of_another_preset(folder):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["preset"]["track_channels"] = 20
    path.write_text(json.dumps(index))
    refused(folder, "in_channels = 116; its preset embedded has 120")


def test_a_hub_repository(folder, model, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_model("someone/some-model").preset == model.preset
    everything = ("someone/some-model", "*.json", "*.safetensors")
    assert asked == [("someone/some-model", "model_index.json"), everything]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    refused("someone/some-model", "has no preset: it is of WanPipeline; .*motionstream convert")
    assert asked.count(everything) == 1  # its weights were not fetched


@pytest.mark.parametrize("kind", [OSError, HTTPError, ValueError])
def test_a_hub_that_does_not_answer_as_it_should(kind, monkeypatch):
    def missing(name, **_):
        raise kind("no network\n\n" + "Please make sure of this. " * 20)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    refused("someone/some-model", "some-model is no folder here, and the Hub does not give it: no network Ple.{,200}$")
