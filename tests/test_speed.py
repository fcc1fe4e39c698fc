"""The benchmark counts what it says it counts, and runs on a small model from end to end."""

import dataclasses
import itertools
import json
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from motionstream.errors import InputError
from motionstream.evaluation import speed
from motionstream.model.checkpoint import random_model
from motionstream.model.presets import PRESETS
from motionstream.tracks import ChunkRequest

KEYS = {"model", "device", "dtype", "tuned", "vae", "width", "height", "shown", "params_m", "fps", "first_chunk_s",
        "latency_s", "chunk_s_median", "chunk_s_p95", "chunk_s_last_over_first", "jpeg_s", "peak_rss_mb", "gpu_peak_mb",
        "weights_mb", "flops_per_chunk", "peak_tflops", "utilisation", "denoise_utilisation"}


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    row = PRESETS["embedded"]
    shape = dict(row.transformer) | dict(num_layers=1, num_attention_heads=2, attention_head_dim=12, ffn_dim=32)
    preset = dataclasses.replace(row, transformer=shape, budgets=(15,))
    return random_model(preset, 0, "cpu", torch.float32)


def test_bench_reports_every_figure(small, capsys):
    figures = speed.bench_model(small, "small", chunks=9)
    text = capsys.readouterr().out
    assert figures.keys() == KEYS
    assert (figures["model"], figures["device"], figures["dtype"]) == ("small", "cpu", "float32")
    assert (figures["width"] // 16) * (figures["height"] // 16) <= 15
    assert 0.05 < figures["fps"] * figures["chunk_s_median"] / 12 <= 2  # mean against median of few, on a busy machine
    assert figures["chunk_s_median"] <= figures["chunk_s_p95"]
    assert figures["params_m"] * 1e6 == speed.count_parameters(small)
    assert 0 < figures["utilisation"] < 1 and figures["flops_per_chunk"] > 1e6
    assert 50 < figures["peak_rss_mb"] < 100_000
    for stage in speed.STAGES:
        assert stage in text


def test_a_stream_that_gets_slower_is_told_from_a_machine_that_does(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def chunks(seconds, growth):
        for n in itertools.count():
            now[0] += seconds * (1 + growth * n) * (1 + now[0] / 50)  # the machine gets slower all the time
            yield n

    def ratio(growth):
        now[0] = 0.0
        old = chunks(0.5, growth)
        for _ in range(100):
            next(old)
        return speed.compare_ages(old, chunks(0.5, growth), 2, 20)

    assert ratio(0) == pytest.approx(1, abs=0.02)
    assert ratio(0.001) == pytest.approx(1.1, abs=0.02)


def test_too_few_chunks_are_refused(small):
    with pytest.raises(InputError, match="9 or more"):
        speed.bench_model(small, "small", chunks=6)


def test_random_weights_need_the_name_of_a_preset():
    with pytest.raises(InputError, match="embedded"):
        speed.bench("some/folder", random_weights=True)


def test_operations_are_counted_by_hand():
    class Block(torch.nn.Module):
        def forward(self, a, b, last):
            return a @ b if last else a @ b @ b.T @ b

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, a, b, write):
            for layer, block in enumerate(self.blocks):
                block(a, b, write and layer == 1)

    network = Network()

    def work():
        a, b = torch.zeros(7, 11), torch.zeros(11, 13)
        heads = torch.zeros(1, 2, 5, 8)
        with torch.inference_mode():
            for write in (False, False, False, True):
                network(a, b, write)
            torch.nn.functional.linear(a, b.T)
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        yield

    product, attention = 2 * 7 * 11 * 13, 2 * (2 * 2 * 5 * 5 * 8)
    assert speed.count_flops(work(), network, 3) == ((3 * 6 + 4 + 1) * product + attention, 3 * 6 * product)


def test_the_drag_goes_round_without_a_jump():
    def tracks(index, start, frames):
        request = ChunkRequest(index, start, frames, 320, 192, 16.0, {})
        return speed.MovingDrag().tracks_for(request)

    points = np.concatenate([tracks(0, 0, 9).points, tracks(1, 9, 12).points])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    assert np.allclose(steps[:, :9], steps[0, 0]) and steps[0, 0] > 1
    assert not steps[:, 9].any()


def test_matmul_peak_is_a_rate_this_machine_can_have():
    assert 1e8 < speed.matmul_peak("cpu", torch.float32, seconds=0.1) < 1e15


def test_a_machine_without_git_keeps_its_figures(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "commit unknown" in import_module("benchmarks.gpu")._text({}, [], 30)


@pytest.mark.parametrize(("minutes", "measured"), [(1.5, 2), (0, 0)])
def test_runs_that_are_left_out_are_named(minutes, measured, tmp_path, monkeypatch, capsys):
    """Every run takes half a minute."""
    gpu, now, path = import_module("benchmarks.gpu"), [0.0], tmp_path / "table.md"
    path.write_text("old")

    def run(model, options, args, seconds):
        now[0] += 35
        return dict.fromkeys(gpu.COLUMNS, 1.0) | {"tuned": "as it is"}, "log"

    monkeypatch.setattr(gpu, "_run", run)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))  # not the servers' clock
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--minutes", str(minutes), "--write", str(path)])
    assert gpu.main() == 0
    *printed, last = capsys.readouterr().out.splitlines()
    text = "\n".join(printed)
    names = [" ".join([model, *options]) for options in gpu.RUNS for model in gpu.MODELS]
    assert list(json.loads(last)) == names[:measured] and "old" not in printed
    assert all(f"{name}: no time left" in printed for name in names[measured:])
    assert path.read_text() in text if measured else path.read_text() == "old"
