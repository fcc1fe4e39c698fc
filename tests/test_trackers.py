"""Point trackers: exactness on synthetic motion, points lost and found, and CoTracker's call signature."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from motionstream.controls import trackers
from motionstream.controls.layers import BASE_IDS
from motionstream.controls.trackers import CoTracker3, LucasKanade, Seeds, _Points, open_tracker
from motionstream.errors import InputError
from motionstream.tracks import Tracks, join

WIDTH, HEIGHT = 160, 96


def texture(width=WIDTH, height=HEIGHT, seed=0) -> np.ndarray:
    """Smooth random colours: something to follow everywhere."""
    rough = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def moving(affines: list[np.ndarray]) -> np.ndarray:
    """A texture larger than the frame under one affine map [2, 3] a frame."""
    picture = texture(2 * WIDTH, 2 * HEIGHT)
    centred = np.array([[1.0, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2]])
    frames = []
    for affine in affines:
        whole = np.vstack([affine, [0, 0, 1]]) @ np.vstack([centred, [0, 0, 1]])
        frames.append(cv2.warpAffine(picture, whole[:2], (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC))
    return np.stack(frames)


def turned(t: int) -> np.ndarray:
    """Rotation by half a degree and zoom by half a per cent a frame, about (80, 48), and a drift."""
    matrix = cv2.getRotationMatrix2D((80, 48), 0.5 * t, 1.005**t)
    return matrix + [[0, 0, 0.7 * t], [0, 0, -0.4 * t]]


MOTIONS = {
    "shift": [np.array([[1, 0, 1.3 * t], [0, 1, -0.8 * t]]) for t in range(24)],
    "fast": [np.array([[1, 0, 6.5 * t], [0, 1, 0]]) for t in range(10)],
    "turn": [turned(t) for t in range(24)],
}


def run(tracker, frames: np.ndarray, block=12) -> Tracks:
    blocks = [tracker.follow(frames[at : at + block]) for at in range(0, len(frames), block)]
    whole = join([*blocks, tracker.finish()])
    assert whole.T == len(frames)
    return whole


def errors(tracks: Tracks, affines: list[np.ndarray]) -> np.ndarray:
    """Distances, pixels, of all visible points from where the true motion takes them since they were first seen."""
    found = []
    for n in range(tracks.N):
        seen = tracks.visible[:, n].nonzero()[0]
        if len(seen) < 2:
            continue
        start = np.linalg.inv(np.vstack([affines[seen[0]], [0, 0, 1]])) @ [*tracks.points[seen[0], n], 1]
        true = np.stack([affines[t] @ start for t in seen[1:]])
        found.append(np.linalg.norm(tracks.points[seen[1:], n] - true, axis=1))
    return np.concatenate(found)


@pytest.mark.parametrize("motion", MOTIONS)
def test_known_motion_is_followed_to_a_fraction_of_a_pixel(motion):
    tracks = run(LucasKanade(Seeds(16)), moving(MOTIONS[motion]))
    error = errors(tracks, MOTIONS[motion])
    assert tracks.visible[0].sum() > 60 and len(error) > 500
    assert np.median(error) < 0.3 and np.quantile(error, 0.95) < 1.0


def test_points_of_an_object_that_moves_over_another_are_its_own():
    frames, patch = np.repeat(texture()[None], 16, axis=0), texture(48, 48, seed=1)
    for t, frame in enumerate(frames):
        frame[24:72, 20 + 3 * t : 68 + 3 * t] = patch
    tracks = run(LucasKanade(Seeds(20)), frames)
    first = tracks.points[0]
    inside = tracks.visible.all(axis=0) & ((first > [28, 32]) & (first < [60, 64])).all(axis=1)
    behind = tracks.visible[0] & (first[:, 0] > 72) & (first[:, 0] < 100) & ((first[:, 1] > 30) & (first[:, 1] < 66))
    moved = (tracks.points[-1] - first)[inside]
    assert inside.sum() > 5 and np.abs(moved - [45, 0]).max() < 1
    assert behind.sum() > 5 and tracks.visible[-1, behind].mean() < 0.3  # covered now, and lost


def test_lost_points_are_replaced_and_numbers_are_not_reused():
    affines = [np.array([[1, 0, 2.5 * t], [0, 1, 0]]) for t in range(30)]
    tracks = run(LucasKanade(Seeds(16)), moving(affines), block=6)
    left = tracks.points[..., 0] < 40
    assert (tracks.visible & left)[-1].sum() > 8  # what came in from the left has tracks too
    assert len(set(tracks.ids.tolist())) == tracks.N > tracks.visible[0].sum()
    assert tracks.ids.max() < BASE_IDS
    assert np.median(errors(tracks, affines)) < 0.3


def test_blocks_of_any_length_give_the_same_first_points():
    frames = moving(MOTIONS["shift"])
    one, many = run(LucasKanade(Seeds(12)), frames, 24), run(LucasKanade(Seeds(12)), frames, 5)
    first = one.ids[one.visible[0]]
    for n in first:
        a, b = (t.points[:4, t.ids == n] for t in (one, many))
        np.testing.assert_array_equal(a, b)


def test_nothing_is_followed_where_there_is_nothing_to_see():
    assert run(LucasKanade(Seeds()), np.full((5, 64, 64, 3), 99, np.uint8)).N == 0
    assert LucasKanade(Seeds()).follow(np.zeros((0, 64, 64, 3), np.uint8)).T == 0


def test_a_region_limits_the_points_and_travels_along():
    square = ((0.1, 0.2), (0.4, 0.2), (0.4, 0.8), (0.1, 0.8))
    affines = [np.array([[1, 0, 2.0 * t], [0, 1, 0]]) for t in range(30)]
    tracks = run(LucasKanade(Seeds(20, square)), moving(affines), block=6)
    low, high = np.array([0.1, 0.2]) * (WIDTH, HEIGHT) - 2, np.array([0.4, 0.8]) * (WIDTH, HEIGHT) + 2
    for t in range(30):
        seen = tracks.points[t, tracks.visible[t]]
        assert len(seen) > 10 and ((seen > low + [2 * t, 0]) & (seen < high + [2 * t, 0])).all()


class StandIn(nn.Module):
    """CoTracker's online and offline predictors as far as their callers can see: same calls, shapes and demands.

    Its points drift by `drift` pixels a frame from where they were asked for.
    """

    def __init__(self, live: bool, drift=(1.0, 0.5)):
        super().__init__()
        self.live, self.step, self.drift = live, 8, torch.tensor(drift)
        self.queries, self.seen, self.starts, self.windows = None, 0, 0, []

    def forward(self, video=None, queries=None, *, video_chunk=None, is_first_step=False, grid_size=5):
        video = video_chunk if self.live else video
        batch, frames, channels, *_ = video.shape
        assert (batch, channels, video.dtype) == (1, 3, torch.float32) and 1 < video.max() <= 255
        assert queries is None or (queries.shape[0], queries.shape[2]) == (1, 3) and not queries[0, :, 0].any()
        self.windows.append(frames)
        if not self.live:
            self.starts += 1
            return self.answer(queries, frames)
        if is_first_step:
            self.queries, self.seen, self.starts = queries, 0, self.starts + 1
            return None, None
        assert frames == 2 * self.step and queries is None
        self.seen = self.seen + self.step if self.seen else frames
        return self.answer(self.queries, self.seen)  # of all frames since the first step

    def answer(self, queries, frames):
        points = queries[:, None, :, 1:] + torch.arange(frames)[None, :, None, None] * self.drift
        return points, torch.ones(points.shape[:3], dtype=torch.bool)


def picture_stream(count: int) -> np.ndarray:
    return np.repeat(texture()[None], count, axis=0)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("count", [1, 7, 16, 17, 61, 130])
def test_cotracker_gives_every_frame_once(live, count):
    stand_in = StandIn(live)
    tracks = run(CoTracker3(stand_in, Seeds(8), live=live), picture_stream(count))
    first = tracks.ids[tracks.visible[0]]
    assert len(first) == 8 * 5 and len(stand_in.windows) >= 1
    for n in first:
        track = tracks.visible[:, tracks.ids == n][:, 0]
        points = tracks.points[track][:, tracks.ids == n][:, 0]
        np.testing.assert_allclose(np.diff(points, axis=0), np.tile([1, 0.5], (len(points) - 1, 1)), atol=1e-4)
        assert not track[track.argmin() :].any() or track.all()  # once it has left the frame, it is over


def test_a_point_that_is_hidden_for_a_while_stays_one_track_of_frames_seen_together():
    class Covered(StandIn):
        def answer(self, queries, frames):
            points, visible = super().answer(queries, frames)
            visible[:, 50:65, :20] = False
            return points, visible

    count = 81
    together = CoTracker3(Covered(False, drift=(0.0, 0.0)), Seeds(8), live=False, window=count + 1)
    whole = run(together, picture_stream(count))
    assert together._predictor.windows == [count] and whole.N == 8 * 5
    hidden = ~whole.visible[50:65].any(axis=0)
    assert hidden.sum() == 20 and whole.visible[:, ~hidden].all()
    assert whole.visible[:50].all() and whole.visible[65:].all()
    pieces = run(CoTracker3(Covered(False, drift=(0.0, 0.0)), Seeds(8), live=False), picture_stream(count))
    assert pieces.N > whole.N  # a window ends while they are hidden: others are followed in their places


def test_cotracker_streams_with_bounded_memory_and_fills_its_grid_up():
    stand_in = StandIn(live=True, drift=(4.0, 0.0))
    tracker = CoTracker3(stand_in, Seeds(8), live=True)
    settled, lag = 0, []
    for _ in range(10):
        settled += tracker.follow(picture_stream(12)).T
        lag.append(len(tracker._pending))
    assert settled + lag[-1] == 120 and max(lag) < 16
    assert stand_in.starts > 2  # points have left the frame: begun anew with others in their places
    assert set(stand_in.windows) == {16}


def test_cotracker_needs_a_cell_in_the_region():
    corner = ((0.0, 0.0), (0.01, 0.0), (0.0, 0.01))
    assert run(CoTracker3(StandIn(True), Seeds(8, corner)), picture_stream(20)).N == 0


def test_trackers_are_picked_by_name(monkeypatch):
    monkeypatch.delenv(trackers.CHECKOUT, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_tracker("auto", Seeds(), live=True).name == "lucas-kanade"
    with pytest.raises(InputError, match="there are auto, cotracker3, lucas-kanade"):
        open_tracker("magic", Seeds(), live=True)


@pytest.mark.parametrize(
    ("lends", "lent", "name"),
    [("", False, "cotracker3"), ("true", False, "lucas-kanade"), ("true", True, "cotracker3")],
)
def test_a_gpu_counts_once_work_can_go_to_it(lends, lent, name, monkeypatch):
    """Where GPUs are lent call by call, PyTorch is made to say that there is one between calls too."""
    monkeypatch.delenv(trackers.CHECKOUT, raising=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", lends)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: lent)
    monkeypatch.setattr(trackers, "load_cotracker", lambda live: (StandIn(live), "cpu"))
    assert open_tracker("auto", Seeds(), live=True).name == name


HUBCONF = """
import torch
def {name}(*, pretrained):
    assert not pretrained
    predictor = torch.nn.Module()
    predictor.model, predictor.step = torch.nn.Linear(2, 2), 8
    return predictor
"""


@pytest.mark.parametrize("live, kind", [(True, "online"), (False, "offline")])
def test_cotracker_is_loaded_from_a_checkout(monkeypatch, tmp_path, live, kind):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "hubconf.py").write_text(HUBCONF.format(name=f"cotracker3_{kind}"))
    weights = {"weight": torch.full((2, 2), 7.0), "bias": torch.zeros(2)}
    torch.save(weights, tmp_path / "checkpoints" / f"scaled_{kind}.pth")
    monkeypatch.setenv(trackers.CHECKOUT, str(tmp_path))
    tracker = open_tracker("auto", Seeds(), live)
    assert tracker.name == "cotracker3" and tracker._predictor.model.weight[0, 0] == 7
    torch.save({"foreign": torch.zeros(1)}, tmp_path / "checkpoints" / f"scaled_{kind}.pth")
    with pytest.raises(InputError, match=f"cannot be loaded.*lucas-kanade, or set {trackers.CHECKOUT}"):
        open_tracker("cotracker3", Seeds(), live)
    assert open_tracker("auto", Seeds(), live).name == "lucas-kanade"


def test_numbers_run_out_and_those_given_up_longest_ago_come_again():
    points, since = _Points(Seeds(50), seed=0), {}
    points.add(np.zeros((100, 2)))
    stays = points.ids.copy()
    for turn in range(12):
        begun = len(points.ids)
        points.add(np.zeros((1_000, 2)))
        again = [turn - since[number] for number in points.ids[begun:].tolist() if number in since]
        assert len(points.ids) == len(set(points.ids.tolist())) and min(again, default=9) >= 6
        since |= dict.fromkeys(points.ids[begun:].tolist(), turn)
        points.move(points.at, np.arange(len(points.ids)) < 100)
    assert np.array_equal(points.ids, stays) and len(since) == BASE_IDS - 100


def test_points_lost_at_a_cut_stay_where_they_were_seen():
    """What flow finds of them then may be anywhere, and who follows them would go there."""
    frames = np.concatenate([np.repeat(texture(seed=seed)[None], 6, axis=0) for seed in (0, 1)])
    tracks = LucasKanade(Seeds(12)).follow(frames)
    lost = ~tracks.visible[6]
    assert lost.mean() > 0.5
    assert np.abs(tracks.points[6:, lost] - tracks.points[5, lost]).max() < 3
