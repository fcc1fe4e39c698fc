"""Tracks: round trips, time and space transforms, and what bad tracks are told."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from motionstream.errors import InputError
from motionstream.tracks import MAX_ID, MAX_TRACKS, ChunkRequest, StaticTracks, Tracks, draw_ids, join

quick = settings(max_examples=50, deadline=None)  # no deadline: the machine may be busy
coordinates = st.floats(-1e6, 1e6, width=32)


@st.composite
def tracks(draw, min_frames=0):
    frames, count = draw(st.integers(min_frames, 6)), draw(st.integers(0, 5))
    points = draw(hnp.arrays(np.float32, (frames, count, 2), elements=coordinates))
    visible = draw(hnp.arrays(bool, (frames, count)))
    return Tracks(points, visible, draw_ids(count, np.random.default_rng(draw(st.integers(0, 99)))))


def line(frames, x0=0.0, x1=10.0, y=5.0):
    points = np.stack([np.linspace(x0, x1, frames), np.full(frames, y)], axis=-1)[:, None]
    return Tracks(points, np.ones((frames, 1), bool), [3])


def same(a, b):
    return (
        np.array_equal(a.points, b.points) and np.array_equal(a.visible, b.visible) and np.array_equal(a.ids, b.ids)
    )


def request(start, frames, width=100, height=100):
    history = {start - 1 if start else 0: np.zeros((height, width, 3), np.uint8)}
    return ChunkRequest(0 if start == 0 else 1, start, frames, width, height, 16.0, history)


@quick
@given(tracks(), st.integers(1, 4096), st.integers(1, 4096), st.floats(1, 120))
def test_json_round_trip_is_exact(t, width, height, fps):
    back, size, rate = Tracks.from_json(t.to_json(width, height, fps))
    assert same(back, t) and size == (width, height) and rate == fps
    assert back.points.dtype == np.float32 and back.visible.dtype == bool and back.ids.dtype == np.int64


@quick
@given(tracks(min_frames=1), st.integers(1, 40))
def test_resample_keeps_ends_and_stays_between_neighbours(t, frames):
    r = t.resample(frames)
    assert (r.T, r.N) == (frames, t.N)
    assert np.array_equal(r.points[0], t.points[0]) and np.array_equal(r.visible[0], t.visible[0])
    if frames > 1:
        assert np.array_equal(r.points[-1], t.points[-1])
    if t.N:
        assert r.points.max() <= t.points.max() and r.points.min() >= t.points.min()


@quick
@given(tracks())
def test_resample_to_own_length_changes_nothing(t):
    assert same(t.resample(t.T), t)


@quick
@given(tracks(), st.integers(1, 2000), st.integers(1, 2000))
def test_scale_back_and_forth(t, width, height):
    there = t.scale((640, 360), (width, height))
    np.testing.assert_allclose(there.scale((width, height), (640, 360)).points, t.points, rtol=1e-5, atol=1e-5)


@quick
@given(tracks(), st.integers(1, 500), st.integers(1, 500))
def test_points_outside_the_frame_are_invisible_and_not_moved(t, width, height):
    cut = t.in_frame(width, height)
    assert np.array_equal(cut.points, t.points)
    x, y = t.points[..., 0], t.points[..., 1]
    assert np.array_equal(cut.visible, t.visible & (x >= 0) & (x < width) & (y >= 0) & (y < height))


@quick
@given(tracks(), tracks())
def test_concatenate_puts_tracks_side_by_side(a, b):
    if a.T != b.T:
        with pytest.raises(InputError, match="same number of frames"):
            Tracks.concatenate([a, b])
        return
    both = Tracks.concatenate([a, b])
    assert both.N == a.N + b.N
    assert np.array_equal(both.points[:, : a.N], a.points) and np.array_equal(both.ids[a.N :], b.ids)


@quick
@given(tracks(), st.data())
def test_rows_of_both_parts_are_the_whole(t, data):
    cut = data.draw(st.integers(0, t.T))
    assert np.array_equal(np.concatenate([t.rows(0, cut).points, t.rows(cut, t.T).points]), t.points)
    with pytest.raises(InputError, match="not within"):
        t.rows(0, t.T + 1)


def test_resample_is_linear_and_hidden_next_to_hidden():
    t = Tracks(line(3).points, [[True], [True], [False]], [0])
    r = t.resample(5)
    np.testing.assert_allclose(r.points[:, 0, 0], [0, 2.5, 5, 7.5, 10])
    assert r.visible[:, 0].tolist() == [True, True, True, False, False]


def test_one_frame_is_held_and_no_frame_is_invisible():
    pin = line(1, x0=7)
    assert np.array_equal(pin.resample(4).points[:, 0], [[7, 5]] * 4) and pin.resample(4).visible.all()
    nothing = pin.rows(0, 0).resample(3)
    assert (nothing.T, nothing.N) == (3, 1) and not nothing.visible.any()


def test_crop_shifts_and_hides():
    cut = line(3).crop(4, 0, 4, 10)
    assert cut.points[:, 0, 0].tolist() == [-4, 1, 6]
    assert cut.visible[:, 0].tolist() == [False, True, False]


def test_fit_cuts_the_centre_then_resizes():
    fitted = line(3, 0, 400, y=50).fit((400, 100), (50, 50))
    assert fitted.points[:, 0].tolist() == [[-75, 25], [25, 25], [125, 25]]
    assert fitted.visible[:, 0].tolist() == [False, True, False]


def test_rigid_grid_moves_as_one():
    grid = Tracks.rigid_grid(np.array([[50, 50], [53, 49]]), spacing=10, size=3, ids=np.arange(9))
    assert grid.points[0, 0].tolist() == [40, 40] and grid.points[0, 5].tolist() == [60, 50]
    assert np.array_equal(grid.points[1] - grid.points[0], np.tile([3, -1], (9, 1)))
    alone = Tracks.rigid_grid(np.array([[1.0, 2.0]]), spacing=10, size=1, ids=[0])
    assert alone.points.tolist() == [[[1, 2]]]


def test_callers_arrays_are_copied_and_frozen():
    points = np.zeros((1, 1, 2), np.float32)
    t = Tracks(points, np.ones((1, 1), bool), [0])
    points += 1
    assert t.points.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        t.points[0] = 1


@settings(quick, max_examples=20)
@given(st.integers(0, 300), st.sets(st.integers(0, MAX_ID - 1), max_size=300))
def test_drawn_ids_are_new(n, taken):
    ids = draw_ids(n, np.random.default_rng(1), taken)
    assert len(set(ids.tolist())) == n and taken.isdisjoint(ids.tolist())
    assert np.array_equal(ids, draw_ids(n, np.random.default_rng(1), taken))


def test_drawn_ids_repeat_only_when_numbers_run_out():
    ids = draw_ids(5, np.random.default_rng(0), taken=range(MAX_ID - 3))
    assert len(set(ids.tolist())) == 5


@pytest.mark.parametrize(
    ("points", "visible", "ids", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 3), bool), [0, 1, 2], r"points have shape \[2, 3\]"),
        (np.zeros((2, 3, 3)), np.ones((2, 3), bool), [0, 1, 2], r"points have shape \[2, 3, 3\]"),
        (np.zeros((2, 1, 2)), np.ones((1, 1), bool), [0], r"visible has shape \[1, 1\].*\[2, 1\]"),
        (np.zeros((2, 1, 2)), np.ones((2, 1), bool), [0, 1], r"ids have shape \[2\]"),
        (np.full((2, 1, 2), np.nan), np.ones((2, 1), bool), [0], r"track 0 .*nan.* in frame 0"),
        (np.full((2, 1, 2), 1e300), np.ones((2, 1), bool), [0], "must be finite"),
        (np.zeros((1, 1, 2)), np.ones((1, 1), bool), [MAX_ID], "10000 is out of range"),
        (np.zeros((1, 1, 2)), np.ones((1, 1), bool), [-1], "-1 is out of range"),
        (np.zeros((1, 1, 2)), np.ones((1, 1), bool), [0.5], "ids must be numbers"),
        (np.zeros((1, 1, 2)), [[2]], [0], "visible must be true or false"),
        ([[["a", "b"]]], [[True]], [0], "points must be numbers"),
        ([[[1, 2]], [[1]]], [[True], [True]], [0], "equal length"),
        (np.zeros((1, 2501, 2)), np.ones((1, 2501), bool), np.arange(2501), "2501 tracks; at most 2500"),
    ],
)
def test_bad_arrays_are_named(points, visible, ids, message):
    with pytest.raises(InputError, match=message):
        Tracks(points, visible, ids)


def file(**changes):
    head = {"format": "motionstream-tracks", "version": 1, "width": 10, "height": 10, "fps": 16.0}
    return json.dumps({**head, "tracks": [{"points": [[1, 2], [3, 4]]}], **changes})


def test_hand_written_file_needs_only_points():
    t, size, fps = Tracks.from_json(file(tracks=[{"points": [[1, 2], [3, 4]]}, {"points": [[5, 6], [7, 8]], "id": 9}]))
    assert t.points[:, 0].tolist() == [[1, 2], [3, 4]] and t.visible.all() and t.ids[1] == 9 != t.ids[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", '"format" must be'),
        (file(version=2), "version 2 is not known"),
        (file(width=0), '"width" of the track file is 0'),
        (file(fps="16"), "\"fps\" of the track file is '16'"),
        (file(height=float("nan")), '"height" of the track file is nan'),
        (file(tracks={}), '"tracks" must be a list'),
        (file(tracks=[{}]), "points of track 0 must be numbers"),
        (file(tracks=[{"points": [[1, float("nan")]]}]), "track 0 is at .*nan.* in frame 0"),
        (file(tracks=[{"points": [[1, float("inf")]]}]), "track 0 is at .*inf.* in frame 0"),
        (file(tracks=[{"points": [[1, 2, 3]]}]), r"points of track 0 have shape \[1, 3\]; expected \[1, 2\]"),
        (file(tracks=[{"points": [[10**400, 2]]}]), "points of track 0 must be numbers"),
        (file(tracks=[{"points": [[1, 2]]}, {"points": [[1, 2], [3, 4]]}]), r"points of track 1 have shape \[2, 2\]"),
        (file(tracks=[{"points": [[1, 2]], "visible": [1, 0]}]), "visible of track 0 has shape"),
        (file(tracks=[{"points": [[1, 2]], "id": "x"}]), "track ID 'x'"),
        (file(tracks=[{"points": [[1, 2]], "id": 10**30}]), "track ID 1000"),
        (file(tracks=[{"points": [[1, 2]], "id": i} for i in (4, 7, 7)]), "track ID 7 is given to more than one"),
        (file(frames=True, tracks=[{"points": [[1, 2]]}]), '"frames" of the track file is True'),
        (file(frames=-1), '"frames" of the track file is -1'),
        (file(frames=10**12), '"frames" of the track file is 1000000000000'),
        (file(tracks=[{"points": [[1, 2]]}] * 2501), "2501 tracks; at most 2500"),
    ],
)
def test_bad_files_are_named(text, message):
    with pytest.raises(InputError, match=message):
        Tracks.from_json(text)


def test_static_tracks_follow_the_stream_then_hold():
    source = StaticTracks(line(11, 0, 20))
    assert source.tracks_for(request(0, 9)).points[:, 0, 0].tolist() == list(range(0, 18, 2))
    assert source.tracks_for(request(9, 12)).points[:, 0, 0].tolist() == [18] + [20] * 11
    assert not source.tracks_for(request(9, 12, width=20)).visible[1:].any()
    assert StaticTracks(Tracks.empty(0)).tracks_for(request(9, 12)).T == 12


def test_most_tracks_allowed_work():
    t = Tracks(np.zeros((1, MAX_TRACKS, 2)), np.ones((1, MAX_TRACKS), bool), np.arange(MAX_TRACKS))
    assert same(Tracks.from_json(t.to_json(1, 1, 1))[0], t)


def test_joined_blocks_keep_their_tracks_and_hide_what_a_block_lacks():
    first = Tracks([[[1, 1], [5, 5]], [[2, 1], [6, 5]]], np.ones((2, 2), bool), [7, 3])
    second = Tracks([[[3, 1], [9, 9]]], [[True, True]], [7, 11])
    whole = join([first, second, Tracks.empty(1)])
    assert whole.ids.tolist() == [3, 7, 11]
    assert whole.visible.T.tolist() == [[True, True, False, False], [True] * 3 + [False], [False, False, True, False]]
    assert whole.points[:, 1, 0].tolist() == [1, 2, 3, 3]
    assert whole.points[:, 0, 0].tolist() == [5, 6, 6, 6] and whole.points[:, 2, 0].tolist() == [9, 9, 9, 9]
    assert join([Tracks.empty(0)]).T == 0


def test_of_too_many_joined_tracks_those_seen_longest_are_left():
    first = Tracks(np.zeros((1, MAX_TRACKS, 2)), np.ones((1, MAX_TRACKS), bool), np.arange(MAX_TRACKS))
    second = Tracks(np.ones((2, 3, 2)), [[True] * 3, [True, False, True]], [MAX_TRACKS + 1, 7, MAX_TRACKS])
    whole = join([first, second])
    assert whole.ids.tolist() == [*range(MAX_TRACKS - 2), MAX_TRACKS, MAX_TRACKS + 1]  # 7 is seen twice
    assert whole.visible.sum(axis=0).tolist() == [1] * 7 + [2] + [1] * (MAX_TRACKS - 10) + [2, 2]


@quick
@given(tracks(), st.data())
def test_blocks_of_one_track_set_join_to_what_they_were_cut_from(t, data):
    cut = data.draw(st.integers(0, t.T))
    whole, order = join([t.rows(0, cut), t.rows(cut, t.T)]), np.argsort(t.ids)
    assert same(whole, Tracks(t.points[:, order], t.visible[:, order], t.ids[order]))
