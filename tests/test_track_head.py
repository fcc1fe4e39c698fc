"""The track map is equation 1, and the head packs time as the autoencoder does, chunk by chunk or at once."""

import math

import numpy as np
import pytest
import torch

from motionstream.model.track_head import TrackHead, embed_ids, pack_time, track_map, track_maps
from motionstream.tracks import Tracks


def by_the_book(tracks: Tracks, width: int, height: int, s: int, d: int) -> torch.Tensor:
    """Equation 1, one point at a time."""
    c = torch.zeros(tracks.T, height // s, width // s, d)
    for t in range(tracks.T):
        for n in range(tracks.N):
            x, y = (math.floor(v / s) for v in tracks.points[t, n].tolist())
            if tracks.visible[t, n] and 0 <= x < width // s and 0 <= y < height // s:
                c[t, y, x] = embed_ids(torch.tensor([tracks.ids[n]]), d)[0]
    return c


@pytest.mark.parametrize("width, height, count", [(48, 32, 40), (32, 48, 3), (16, 16, 300)])
def test_track_map_is_equation_1(width, height, count):
    rng = np.random.default_rng(count)
    points = rng.uniform(-20, 70, (5, count, 2))
    points[0, 0], points[1, 0] = (0, 0), (width, height)  # the first pixel's corner is in the frame, the far corner not
    tracks = Tracks(points, rng.random((5, count)) < 0.8, rng.integers(0, 10_000, count))
    got = track_map(tracks, width, height, 8)
    assert got.shape == (5, height // 8, width // 8, 64) and got.dtype == torch.float32
    assert torch.equal(got, by_the_book(tracks, width, height, 8, 64))


def test_maps_of_several_clips_are_each_clips_own():
    rng = np.random.default_rng(0)
    clips = [
        Tracks(rng.uniform(-9, 60, (5, n, 2)), rng.random((5, n)) < 0.8, rng.integers(0, 999, n)) for n in (7, 0, 40)
    ]
    maps = track_maps(clips, 48, 32, 8)
    assert torch.equal(maps, torch.stack([by_the_book(one, 48, 32, 8, 64) for one in clips])) and not maps[1].any()


@pytest.mark.parametrize("point", [(-0.5, 4), (4, -1e-3), (48, 4), (4, 32), (1e30, 4), (4, -1e30)])
def test_a_point_outside_is_not_written_and_never_clamped(point):
    tracks = Tracks(np.array([[point]]), np.ones((1, 1), bool), np.array([5]))
    assert not track_map(tracks, 48, 32, 8).any()


def test_a_visible_point_is_written_once_and_an_invisible_one_is_not():
    tracks = Tracks(np.full((2, 1, 2), 20.0), np.array([[True], [False]]), np.array([123]))
    got = track_map(tracks, 48, 32, 8)
    assert torch.equal(got[0, 2, 2], embed_ids(torch.tensor([123]))[0])
    assert got.any(-1).sum() == 1


def test_no_tracks_no_control():
    assert torch.equal(track_map(Tracks.empty(9), 48, 32, 8), torch.zeros(9, 4, 6, 64))


def test_id_codes_are_sinusoidal_and_distinct():
    codes = embed_ids(torch.arange(10_000))
    assert codes.shape == (10_000, 64)
    frequency = 10_000 ** (-5 / 32)
    assert codes[77, 5] == pytest.approx(math.sin(77 * frequency), abs=1e-5)
    assert codes[77, 32 + 5] == pytest.approx(math.cos(77 * frequency), abs=1e-5)
    assert len(torch.unique(codes.mul(1e3).round(), dim=0)) == 10_000


def test_time_is_packed_with_the_first_frame_alone():
    x = torch.arange(9.0).view(1, 1, 9, 1, 1)
    assert pack_time(x, 4, first=True)[0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert pack_time(x[:, :, 1:], 4, first=False)[0, :, :, 0, 0].T.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(ValueError, match="groups of 4"):
        pack_time(x, 4, first=False)


def test_head_chunk_by_chunk_equals_at_once_and_learns():
    head, maps = TrackHead(64, 16), torch.randn(2, 33, 4, 6, 64)
    whole = head(maps, first=True)
    chunks = [head(maps[:, a:b], first=a == 0) for a, b in ((0, 9), (9, 21), (21, 33))]
    assert [c.shape[2] for c in chunks] == [3, 3, 3]
    assert whole.shape == (2, 16, 9, 4, 6)
    assert torch.allclose(torch.cat(chunks, 2), whole, atol=1e-6)
    whole.sum().backward()
    assert head.conv.weight.grad.abs().sum() > 0
    assert head.conv.kernel_size == (1, 1, 1)


@pytest.mark.parametrize("frames, first", [(9, True), (12, False)])
def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(frames, first):
    """A convolution's were garbage at this size."""
    torch.manual_seed(0)
    head, maps = TrackHead(), torch.randn(4, frames, 20, 36, 64)
    head(maps, first).square().mean().backward()
    expected = head.conv.weight.grad.clone()
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        head(maps, first).float().square().mean().backward()
    torch.testing.assert_close(head.conv.weight.grad, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
