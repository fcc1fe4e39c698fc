"""The bundled small student without a motion prior, on pictures: what the paper's own parts do with real weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from motionstream.evaluation.ablations import streamed
from motionstream.evaluation.metrics import psnr
from motionstream.model.checkpoint import Model, load_model
from motionstream.tracks import Tracks
from motionstream.video import fit_image, read_image

EXAMPLES = Path(__file__).parent.parent / "examples"
SIDE = 80


@pytest.fixture(scope="module")
def plain() -> Model:
    return load_model("embedded-plain")


def swaying_grid(frames: int, period: int) -> Tracks:
    """A point in every latent cell; all sway by 6 pixels."""
    places = np.arange(4, SIDE, 8)
    points = np.stack(np.meshgrid(places, places), -1).reshape(1, -1, 2).repeat(frames, axis=0).astype(np.float32)
    points[..., 0] += 6 * np.sin(2 * np.pi * np.arange(frames) / period)[:, None]
    inside = ((points >= 0) & (points < SIDE)).all(-1)
    return Tracks(points, inside, np.random.default_rng(0).choice(10_000, points.shape[1], replace=False))


@pytest.mark.parametrize("name", ["boat", "koi"])
def test_the_sink_keeps_the_picture_that_a_stream_without_one_loses(plain, name):
    image = fit_image(read_image(EXAMPLES / f"{name}.jpg"), SIDE, SIDE)
    tracks = swaying_grid(frames=129, period=64)  # at home in the last frame
    kept, _ = streamed(plain, image, tracks, seed=0)
    lost, _ = streamed(replace(plain, preset=replace(plain.preset, sink=0)), image, tracks, seed=0)
    assert psnr(kept[-1:], image[None]) > 18
    assert psnr(kept[-1:], image[None]) > psnr(lost[-1:], image[None]) + 5
