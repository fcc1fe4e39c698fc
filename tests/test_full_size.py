"""The full-size students' code at small sizes: they stream, decode with either VAE, and run as a GPU needs them to."""

import contextlib
import dataclasses
import json
import platform
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import create_autospec

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HTTPError
from torch import nn

from motionstream import machine, streaming
from motionstream.cli import main
from motionstream.errors import InputError
from motionstream.evaluation import speed
from motionstream.model import checkpoint, device, fp8
from motionstream.model.checkpoint import load_component, load_model, random_model, save_model
from motionstream.model.device import Download, beside, own_precision, stream_bytes, upload, visiting, weight_bytes
from motionstream.model.fp8 import use_fp8
from motionstream.model.packed import can_pack, pack
from motionstream.model.presets import PRESETS
from motionstream.model.transformer import MotionTransformer, SelfAttention
from motionstream.model.wan_vae import WanVAE
from motionstream.streaming import blank_chunks, stream
from motionstream.tracks import StaticTracks, Tracks

NETWORK = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, text_dim=16, freq_dim=16)
CLIP = dict(hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
CLIP |= dict(image_size=28, patch_size=14)
VAE = dict(base_dim=4, dim_mult=(1, 2, 2, 2), num_res_blocks=1)


def small(name: str):
    """A full-size row with everything about it but its width and depth."""
    row = PRESETS[name]
    shape = dict(row.transformer) | NETWORK | (dict(image_dim=20, added_kv_proj_dim=24) if row.image_encoder else {})
    vae = dict(row.configs.get("vae", {})) | VAE | (dict(decoder_base_dim=4) if "vae" in row.configs else {})
    tiny = dict(row.configs["tiny_vae"]) | dict(widths=(8, 8, 8, 8))
    configs = dict(row.configs) | dict(vae=vae, image_encoder=CLIP, tiny_vae=tiny)
    return dataclasses.replace(row, transformer=shape, configs=configs, budgets=(6,))


@pytest.fixture(scope="module", params=["wan2.1-1.3b", "wan2.2-5b"])
def model(request):
    return random_model(small(request.param), 1)


@pytest.fixture(scope="module")
def wan21():
    return random_model(small("wan2.1-1.3b"), 1)


def picture(model) -> np.ndarray:
    side = 2 * model.preset.cell
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def play(model, count, prompt="") -> list:
    path = np.linspace(8, 24, 60)[:, None].repeat(2, 1)
    source = StaticTracks(Tracks.rigid_grid(path, 0, 1, np.array([3])))
    with contextlib.closing(stream(model, picture(model), source, prompt=prompt, seed=2)) as chunks:
        return [next(chunks) for _ in range(count)]


def test_they_stream_with_the_tiny_and_with_the_full_vae(model, tmp_path):
    assert model.decoder is model.tiny_vae
    tiny = play(model, 3)
    assert [len(chunk.frames) for chunk in tiny] == [9, 12, 12]
    save_model(dataclasses.replace(model, text_encoder=model.text_encoder), tmp_path)
    full = load_model(str(tmp_path), vae="full")
    assert full.preset == model.preset and full.tiny_vae is None
    other = play(full, 2)
    assert other[1].frames.shape == tiny[1].frames.shape and not np.array_equal(other[1].frames, tiny[1].frames)
    again = play(load_model(str(tmp_path), vae="tiny"), 3)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(tiny, again, strict=True))


def test_with_random_weights_every_prompt_is_as_long_as_umt5_makes_it(model):
    """Else what is measured would lack most of the attention to text."""
    width = model.preset.transformer["text_dim"]
    assert {tuple(model.text_encoder.encode(prompt).shape) for prompt in ("", "fog")} == {(1, 512, width)}


def test_a_folder_without_a_tiny_vae_says_so(model, tmp_path):
    save_model(dataclasses.replace(model, tiny_vae=None), tmp_path)
    with pytest.raises(InputError, match="no sub-folder tiny_vae"):
        load_model(str(tmp_path), vae="tiny")
    for made in (lambda: random_model(PRESETS["embedded"], vae="tiny"), lambda: load_model("embedded", vae="tiny")):
        with pytest.raises(InputError, match="embedded has no tiny VAE"):
            made()


@pytest.mark.parametrize("chunk_size", [3, 1])
def test_blank_frames_are_encoded_until_they_no_longer_change(chunk_size, wan21, monkeypatch):
    """The image condition of a long stream is that of encoding all its blank frames, at no cost once it has settled."""
    encoded, conditions = [], []
    step = wan21.vae._encode_step

    def count(frames, memory):
        encoded.append(frames)
        return step(frames, memory)

    monkeypatch.setattr(wan21.vae, "_encode_step", count)
    original = streaming.image_channels
    monkeypatch.setattr(streaming, "image_channels", lambda x, *a: conditions.append(x) or original(x, *a))
    size = 4 * chunk_size
    model = dataclasses.replace(wan21, preset=dataclasses.replace(wan21.preset, chunk_size=chunk_size))
    blank = blank_chunks(model.preset)
    play(model, blank + 3)
    assert len(encoded) == blank and [x.shape[2] for x in encoded] == [size - 3] + [size] * (blank - 1)
    assert encoded[0][:, :, 0].any() and not torch.cat(encoded, 2)[:, :, 1:].any()
    monkeypatch.undo()
    everything = torch.cat([*encoded, torch.zeros(1, 3, 3 * size, *encoded[0].shape[3:])], 2)
    with torch.no_grad():
        expected = wan21.vae.encode(everything)
    assert (torch.cat(conditions, 2) - expected[:, :, : chunk_size * len(conditions)]).abs().max() <= 1e-5


def test_loading_allocates_nothing_before_shapes_are_checked(model, tmp_path):
    save_model(model, tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ffn_dim": 2**40, "num_layers": 3}))
    with pytest.raises(InputError, match="ffn.net.0.proj.bias of shape .* needs .1099511627776"):
        load_component(tmp_path / "transformer")


def test_encoders_visit_the_device_and_the_rest_stays(wan21):
    class Elsewhere(nn.Linear):
        visits = True

        def to(self, place, *args):
            seen.append(str(place))
            self.weight.data = self.weight.data.clone()
            return self

    seen, part = [], Elsewhere(2, 2)
    home = part.bias.data_ptr()
    with visiting(part, torch.device("meta")):
        assert seen == ["meta"]
    assert seen == ["meta", "cpu"] and part.bias.data_ptr() == home  # which need not be copied
    with visiting(nn.Linear(2, 2), torch.device("meta")) as resident:
        assert resident.weight.device.type == "cpu"
    assert wan21.image_encoder.visits and not getattr(wan21.transformer, "visits", False)
    assert weight_bytes(wan21.image_encoder) == 0 < weight_bytes(wan21.transformer)


def test_an_encoder_that_does_not_get_in_goes_home_whole():
    class Large(nn.Linear):
        visits = True

        def to(self, place):
            places.append(str(place))
            if place != home:
                raise torch.OutOfMemoryError("after half of it")

    places, home = [], torch.device("cpu")
    with pytest.raises(torch.OutOfMemoryError), visiting(Large(2, 2), torch.device("meta")):
        pass
    assert places == ["meta", "cpu"]


def test_uploads_and_downloads_are_nothing_on_the_cpu():
    x = torch.randn(3)
    assert upload(x, "cpu") is x and Download(x).wait() is x
    with beside(None):
        pass


@pytest.mark.parametrize("weight, given, inside", [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float32, torch.bfloat16),
])  # fmt: skip
def test_autocast_reaches_no_network_in_reduced_precision(weight, given, inside):
    """On a GPU it would send norms and enlargements through float32, and keys of text would not fit their values."""
    ones = torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16), own_precision(torch.ones(1, dtype=weight), ones) as x:
        assert x.dtype == given and (ones @ ones).dtype == inside


# ---------------------------------------------------------------- attention, compilation, 8 bit


@pytest.mark.parametrize("backend", [None, "native", "_native_math"])
def test_attention_is_softmax_of_scores_times_values(backend):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 16) for n in (20, 50, 50))
    processor = SelfAttention()
    processor._attention_backend = backend
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 4
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.exp() / scores.exp().sum(-1, keepdim=True), value).flatten(2)
    assert (processor._attention(query, key, value) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_block_is_compiled_once_the_cache_is_full_and_never_again(dtype, error, monkeypatch):
    """Whole graphs, the same results, not one for each layer or stream: to read the cache, to write it, to roll it."""
    monkeypatch.setattr("motionstream.model.transformer.SCORES_AT_ONCE", 200)  # several blocks of queries
    torch.manual_seed(0)
    network = dict(NETWORK, in_channels=4, out_channels=4)
    plain, compiled = (MotionTransformer(**network).to(dtype).eval() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    graphs, counts, text = [], [], torch.randn(1, 5, 16)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled.compile_repeated_blocks(fullgraph=True, backend=backend, dynamic=False)
    with torch.inference_mode():
        for _ in range(2):
            caches = [m.new_cache(1, 3, 4, 4, sink=1, window=1) for m in (plain, compiled)]
            for write in (False, True) * 4:
                x, t = torch.randn(1, 4, 3, 4, 4), torch.zeros(1)
                networks = zip((plain, compiled), caches, strict=True)
                expected, got = (network(x, t, text, cache=cache, write=write).sample for network, cache in networks)
                torch.testing.assert_close(got, expected, atol=error, rtol=0)
                counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts == [0, 0, 0, 0, 1, 3, 3, 3] + [3] * 8


def test_linear_layers_in_8_bit_stay_close():
    shape = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=64)
    preset = small("wan2.2-5b")
    preset = dataclasses.replace(preset, transformer=dict(preset.transformer) | shape)
    plain, model = (random_model(preset, 3) for _ in range(2))
    assert use_fp8(model.transformer) == 2 * 10  # in each block four and four of attention, two of the feed-forward net
    x, t, text = torch.randn(1, 96, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 16)
    with torch.no_grad():
        expected, got = (m.transformer(x, t, text).sample for m in (plain, model))
    assert 0 < (got - expected).norm() / expected.norm() < 0.1


def test_no_layer_is_kept_in_both_precisions(monkeypatch):
    """Else a GPU would have to hold the network one and a half times."""
    transformer, alive = random_model(small("wan2.2-5b"), 3).transformer, []
    layers = [weakref.ref(m) for m in transformer.blocks.modules() if isinstance(m, nn.Linear)]

    def stand_in(linear):
        alive.append(sum(ref() is not None for ref in layers))
        return nn.Identity()

    monkeypatch.setattr(fp8, "Fp8Linear", stand_in)
    monkeypatch.setattr(fp8, "MULTIPLE", 1)
    assert use_fp8(transformer) == len(layers)
    assert alive == list(range(len(layers), 0, -1))


def test_a_gpu_without_8_bit_products_is_told(monkeypatch):
    gpu = type("", (), {"device": torch.device("cuda"), "in_8_bits": False})()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"--fp8 needs .* capability 8.9 .*, this one has 8.0: leave it out"):
        machine.tune(gpu, fp8=True)


def test_tuning_in_float32_on_the_cpu_changes_no_more_than_the_last_digits():
    plain, tuned = (random_model(small("wan2.1-1.3b"), 3) for _ in range(2))
    assert machine.tune(tuned) == "attention native"
    assert tuned.transformer.blocks[0].attn1.processor._attention_backend is None
    x = torch.linspace(-4, 4, 64 * 24).reshape(64, 24)
    with torch.no_grad():
        before, after = (model.transformer.blocks[0].ffn(x) for model in (plain, tuned))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_tuning_in_bfloat16_on_the_cpu_changes_no_more_than_rounding_does():
    exact = random_model(small("wan2.1-1.3b"), 3)
    plain, tuned = (random_model(small("wan2.1-1.3b"), 3, dtype=torch.bfloat16) for _ in range(2))
    machine.tune(tuned)
    blocks = [model.transformer.blocks[0].ffn for model in (exact, plain, tuned)]
    x = torch.linspace(-4, 4, 64 * 24).reshape(64, 24).bfloat16()
    with torch.no_grad():
        right, before, after = blocks[0](x.float()), blocks[1](x).float(), blocks[2](x).float()
    assert 0 < (after - right).norm() < 1.05 * (before - right).norm()


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_packed_layers_are_the_same_function_and_count_as_much(dtype, error):
    if not can_pack(dtype):
        pytest.skip("this processor has no such kernels")
    plain, packed = (random_model(small("wan2.1-1.3b"), 3, dtype=dtype).transformer for _ in range(2))
    pack(packed)
    assert not any(isinstance(layer, nn.Linear) for layer in packed.blocks.modules())
    assert weight_bytes(packed) == weight_bytes(plain)
    x, t = torch.randn(1, plain.config.in_channels, 3, 4, 4).to(dtype), torch.tensor([500.0])
    told, found, counted = (torch.randn(1, 5, 16), torch.randn(1, 7, 20)), [], []
    for network in (plain, packed):
        with torch.no_grad():
            found.append(network(x, t, *told).sample.float())
            passes = (network(x, t, *told) for _ in range(1))
            counted.append(speed.count_flops(passes, network, 3))
    assert (found[1] - found[0]).norm() < error * found[0].norm()
    assert counted[1] == counted[0]


@pytest.mark.parametrize("fastest, backend", [("native", "native"), ("by matrix products", None)])
def test_attention_in_bfloat16_on_the_cpu_is_what_was_measured_to_be_faster(fastest, backend, monkeypatch):
    pause = dict.fromkeys(["by matrix products", "native"], 0.02) | {fastest: 0.0}
    for name, function in (("by matrix products", "matmul_attention"), ("native", "dispatch_attention_fn")):
        monkeypatch.setattr(machine, function, lambda *_, seconds=pause[name]: time.sleep(seconds))
    model = random_model(small("wan2.1-1.3b"), 3, dtype=torch.bfloat16)
    assert machine.tune(model) == f"attention {fastest}"
    processors = [attn.processor for block in model.transformer.blocks for attn in (block.attn1, block.attn2)]
    assert {processor._attention_backend for processor in processors} == {backend}


def test_a_fused_network_is_the_same_function():
    plain, fused = (random_model(small("wan2.1-1.3b"), 3).transformer for _ in range(2))
    names = {name for name, _ in plain.named_parameters()}
    for _ in range(2):  # the second time there is nothing left to do
        fused.fuse_projections()
    x, t = torch.randn(1, plain.config.in_channels, 3, 4, 4), torch.tensor([500.0])
    told = torch.randn(1, 5, 16), torch.randn(1, 7, 20)
    outputs = []
    for network in (plain, fused):
        cache = network.new_cache(1, 3, 4, 4, sink=1, window=1)
        for _ in range(3):  # until the cache is full
            network(x, t, *told, cache=cache, write=True)
        outputs.append(network(x, t, *told, cache=cache).sample)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert "blocks.0.attn1.to_q.bias" in names - {name for name, _ in fused.named_parameters()}


FREED = """
import numpy as np
from motionstream.machine import keep_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def kept():
    before, picture = resident(), np.ones(2**23)
    del picture
    return resident() - before

print(kept(), keep_memory(), kept())
"""


def test_freed_memory_is_kept_once_asked_for():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    before, _, after = done.stdout.split()
    assert int(before) < 2**24
    assert (int(after) > 2**25) == (platform.libc_ver()[0] == "glibc")  # others cannot be told


@pytest.mark.parametrize("cores, expected", [(1, 1), (2, 2), (64, 3)])
def test_a_container_that_may_have_fewer_cores_than_it_sees_gets_no_more_threads(monkeypatch, wan21, cores, expected):
    before, found = torch.get_num_threads(), []
    monkeypatch.setattr(cv2, "getNumberOfCPUs", lambda: cores)
    try:
        torch.set_num_threads(3)
        machine.tune(wan21)
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))  # as a session's
        later.start()
        later.join()
        assert [torch.get_num_threads(), *found] == [expected, expected]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("capability, kernels, expected", [
    ((9, 0), True, ("FlashAttention 3", "_flash_3_hub")),
    ((9, 0), False, ("cuDNN", "_native_cudnn")),
    ((8, 6), True, ("cuDNN", "_native_cudnn")),
    ((7, 5), False, ("native", None)),
])  # fmt: skip
def test_the_attention_kernel_follows_the_gpu(capability, kernels, expected, monkeypatch):
    chosen = []
    transformer = type("", (), {"set_attention_backend": chosen.append, "reset_attention_backend": chosen.clear})()
    transformer.fuse_projections = lambda: None
    gpu = SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.bfloat16, transformer=transformer, in_8_bits=False
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: kernels or None)
    assert machine.tune(gpu) == f"attention {expected[0]}" and (chosen or [None]) == [expected[1]]
    gpu.dtype, known = torch.float32, len(chosen)  # of which those kernels know nothing
    assert machine.tune(gpu) == "attention native" and len(chosen) == known


def test_attention_does_without_a_kernel_that_cannot_be_fetched(monkeypatch):
    def unreachable(backend):
        if backend == "_flash_3_hub":
            raise HTTPError("no network")
        chosen.append(backend)

    chosen = []
    transformer = type("", (), {"set_attention_backend": staticmethod(unreachable)})()
    transformer.reset_attention_backend = transformer.fuse_projections = lambda: None
    gpu = SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.bfloat16, transformer=transformer, in_8_bits=False
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: True)
    assert machine.tune(gpu) == "attention cuDNN" and chosen == ["_native_cudnn"]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("name, gigabytes", [("wan2.1-1.3b", 12), ("wan2.2-5b", 24)])
def test_one_stream_fits_where_it_should(name, gigabytes):
    preset = PRESETS[name]
    with torch.device("meta"):
        network = checkpoint.class_of("MotionTransformer")(**preset.transformer_config())
        vae = checkpoint.class_of(preset.vae)(**preset.configs.get("vae", {}))
    weights = 2 * sum(p.numel() for part in (network, vae) for p in part.parameters())
    size = dict(zip(("width", "height"), (832, 480) if name == "wan2.1-1.3b" else (1280, 704), strict=True))
    assert weights + stream_bytes(preset, **size, tiny=True) < gigabytes * 1e9
    assert stream_bytes(preset, **size, tiny=False, latents_at_once=1) < stream_bytes(preset, **size, tiny=False)


def test_no_room_says_what_would_fit(wan21, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    preset = dataclasses.replace(wan21.preset, budgets=(4,))
    tight = dataclasses.replace(wan21, preset=preset)
    monkeypatch.setattr(streaming, "free_bytes", lambda device: 0.9 * stream_bytes(preset, 32, 32, tiny=True))
    words = r"no room for a stream of 32x32.*--resolution \d+ would fit.*--low-memory"
    later = stream(tight, picture(tight), StaticTracks(Tracks.empty(0)))
    next(later)
    monkeypatch.setattr(streaming._Stream, "denoise", full)
    for chunks in (stream(tight, picture(tight), StaticTracks(Tracks.empty(0))), later):
        with pytest.raises(InputError, match=words):
            next(chunks)
    alone = dataclasses.replace(tight, preset=dataclasses.replace(preset, tiny_vae=""), tiny_vae=None)
    with pytest.raises(InputError, match=r"--resolution \d+ would fit, --low-memory"):  # there is no smaller VAE
        next(stream(alone, picture(alone), StaticTracks(Tracks.empty(0))))
    low = random_model(preset, 1, vae="tiny", low_memory=True)
    with pytest.raises(InputError, match=r"--resolution \d+ would fit, a smaller model needs less$"):
        next(stream(low, picture(low), StaticTracks(Tracks.empty(0))))


def test_low_memory_halves_the_transformer_and_still_streams():
    preset = small("wan2.2-5b")
    plain, low = (random_model(preset, 1, vae="full", low_memory=low) for low in (False, True))
    assert (plain.vae.latents_at_once, low.vae.latents_at_once) == (None, 1)
    assert low.transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert weight_bytes(low.transformer.blocks) < 0.5 * weight_bytes(plain.transformer.blocks)
    for options in ({"fp8": True}, {"compile": True}):
        with pytest.raises(InputError, match="--low-memory widens"):
            machine.tune(low, **options)
    machine.tune(low)
    with pytest.raises(InputError, match="--fp8 is for GPUs"):
        machine.tune(plain, fp8=True)
    a, b = (play(m, 2)[1].frames.astype(int) for m in (plain, low))
    assert 0 < np.abs(a - b).mean() < 0.2 * np.abs(a - 127).mean() + 10


def test_compiled_blocks_keep_their_graphs_whatever_thread_runs_them():
    """PyTorch's own setting holds in the thread that made it alone: the limit goes along with what is compiled."""
    asked = {}
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, in_8_bits=False, tiny_vae=None)
    model.transformer = SimpleNamespace(
        fuse_projections=lambda: None, compile_repeated_blocks=lambda **options: asked.update(blocks=options)
    )
    model.vae = create_autospec(WanVAE, instance=True)
    machine.tune(model, compile=True)
    assert asked["blocks"]["recompile_limit"] == machine.MAX_GRAPHS
    model.vae.compile_blocks.assert_called_once_with(recompile_limit=machine.MAX_VAE_GRAPHS)


def test_low_memory_streams_in_bfloat16_on_a_cpu():
    low = random_model(small("wan2.2-5b"), 1, dtype=torch.bfloat16, vae="full", low_memory=True)
    machine.tune(low)
    assert low.in_8_bits and play(low, 2)[1].frames.std() > 0


def test_low_memory_narrows_weights_before_they_go_to_the_gpu(monkeypatch):
    def go(transformer, place):
        went.append({weight.dtype for weight in transformer.blocks[0].attn1.to_q.parameters()})

    went, model = [], random_model(small("wan2.2-5b"), 1)
    monkeypatch.setattr(MotionTransformer, "to", go)
    checkpoint.assemble(model.preset, model.components(), "cpu", torch.bfloat16, low_memory=True)
    assert went == [{torch.float8_e4m3fn}]


def test_weights_that_do_not_fit_are_told(wan21, monkeypatch):
    def full(part, place):
        raise torch.OutOfMemoryError("CUDA out of memory")

    other = random_model(wan21.preset, 1)
    monkeypatch.setattr(device, "free_bytes", lambda place: 3 * 2**30)
    monkeypatch.setattr(MotionTransformer, "to", full)
    with pytest.raises(InputError, match="weights do not fit into the 3.0 GiB .* free some, or use --low-memory"):
        checkpoint.assemble(wan21.preset, wan21.components(), "cpu", None)
    with pytest.raises(InputError, match="weights do not fit into the 3.0 GiB .* free some, or use a smaller model$"):
        checkpoint.assemble(other.preset, other.components(), "cpu", None, low_memory=True)


def test_streams_at_once_do_not_get_at_each_others_weights():
    """8-bit weights are widened while a layer runs: another stream must not find or leave them so."""
    low = random_model(small("wan2.2-5b"), 1, vae="full", low_memory=True)
    alone = play(low, 3)
    with ThreadPoolExecutor(3) as pool:
        for chunks in pool.map(lambda _: play(low, 3), range(3)):
            assert all(np.array_equal(a.frames, b.frames) for a, b in zip(alone, chunks, strict=True))


# ---------------------------------------------------------------- the benchmark


def test_bench_runs_a_preset_with_random_weights(monkeypatch, capsys):
    monkeypatch.setitem(speed.PRESETS, "wan2.1-1.3b", small("wan2.1-1.3b"))
    monkeypatch.setattr(machine, "_fastest", lambda probes: [*probes][-1])  # what is faster depends on the processor
    options = ["bench", "--model", "wan2.1-1.3b", "--random-weights", "--device", "cpu", "--vae", "tiny"]
    assert main([*options, "--chunks", "15", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["vae"] == "TinyVAE" and figures["tuned"] == "attention native" and figures["gpu_peak_mb"] == 0
    assert 0 < figures["latency_s"] <= figures["chunk_s_p95"] and figures["denoise_utilisation"] > 0
    assert figures["weights_mb"] > 0 and figures["jpeg_s"] > 0
    assert main(["bench", "--model", "nothing", "--random-weights"]) == 2
