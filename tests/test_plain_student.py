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


def moving_grid(way: np.ndarray) -> Tracks:
    """A point in every latent cell; all go the same way [T, 2], px."""
    places = np.arange(4, SIDE, 8)
    points = (np.stack(np.meshgrid(places, places), -1).reshape(1, -1, 2) + way[:, None]).astype(np.float32)
    inside = ((points >= 0) & (points < SIDE)).all(-1)
    return Tracks(points, inside, np.random.default_rng(0).choice(10_000, points.shape[1], replace=False))


@pytest.mark.parametrize(("columns", "rows"), [(16, 0), (0, -16)])
@pytest.mark.parametrize("name", ["balloon", "boat", "koi"])
def test_a_picture_goes_where_the_ids_of_its_tracks_go(plain, name, columns, rows):
    image = fit_image(read_image(EXAMPLES / f"{name}.jpg"), SIDE, SIDE)
    way = np.clip(np.arange(45) / 16, 0, 1)[:, None] * [columns, rows]
    video, _ = streamed(plain, image, moving_grid(way), seed=0)
    there = np.index_exp[max(rows, 0) : SIDE + min(rows, 0), max(columns, 0) : SIDE + min(columns, 0)]
    before = np.index_exp[max(-rows, 0) : SIDE + min(-rows, 0), max(-columns, 0) : SIDE + min(-columns, 0)]
    seen = video[-1:][(slice(None), *there)]
    moved, stayed = psnr(seen, image[before][None]), psnr(seen, image[there][None])
    assert moved > 19 and moved > stayed + 5


def test_other_ids_at_the_end_than_at_the_start_move_nothing(plain):
    """It is by their IDs that it knows what tracks carry, not by where they begin or lie."""
    image = fit_image(read_image(EXAMPLES / "koi.jpg"), SIDE, SIDE)
    tracks = moving_grid(np.clip(np.arange(45) / 16, 0, 1)[:, None] * [16, 0])
    kept, _ = streamed(plain, image, tracks, seed=0)
    start = np.arange(45)[:, None] == 0  # every point is seen by one ID in frame 0, and by another later
    ids = np.random.default_rng(1).choice(10_000, 2 * tracks.N, replace=False)
    visible = np.concatenate([tracks.visible & start, tracks.visible & ~start], axis=1)
    strangers = Tracks(np.concatenate([tracks.points] * 2, axis=1), visible, ids)
    lost, _ = streamed(plain, image, strangers, seed=0)
    moved = [psnr(video[-1:, :, 16:], image[None, :, :-16]) for video in (kept, lost)]
    assert moved[0] > moved[1] + 3


@pytest.mark.parametrize("name", ["boat", "koi"])
def test_the_sink_keeps_the_picture_that_a_stream_without_one_loses(plain, name):
    image = fit_image(read_image(EXAMPLES / f"{name}.jpg"), SIDE, SIDE)
    way = np.stack([6 * np.sin(2 * np.pi * np.arange(129) / 64), np.zeros(129)], 1)  # at home in the last frame
    tracks = moving_grid(way)
    kept, _ = streamed(plain, image, tracks, seed=0)
    lost, _ = streamed(replace(plain, preset=replace(plain.preset, sink=0)), image, tracks, seed=0)
    assert psnr(kept[-1:], image[None]) > 18
    assert psnr(kept[-1:], image[None]) > psnr(lost[-1:], image[None]) + 5
