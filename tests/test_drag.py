"""Drag control: what the pointer did becomes tracks that start at the object and end under the pointer."""

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionstream.controls.drag import MAX_CONTROLS, MAX_SAMPLES, DragSource, carry
from motionstream.errors import InputError
from motionstream.tracks import MAX_ID, ChunkRequest

WIDTH, HEIGHT, SPRITE = 288, 160, 40
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def request(index, history=None):
    """The request of chunk `index` (9 frames, then 12)."""
    start, frames = (9 + 12 * (index - 1), 12) if index else (0, 9)
    return ChunkRequest(index, start, frames, WIDTH, HEIGHT, 16.0, history or {max(start - 1, 0): IMAGE})


def sample(x, y, t=0.0, frame=0):
    return {"x": x, "y": y, "t": t, "frame": frame}


def drag(key, phase, *samples):
    return {"kind": "drag", "id": key, "phase": phase, "samples": list(samples)}


def texture(rng, width, height):
    coarse = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def film(place, frames, seed=0):
    """A textured square over a textured background; place(f) is its centre -> frames by stream index."""
    rng = np.random.default_rng(seed)
    background, sprite = texture(rng, WIDTH, HEIGHT), texture(rng, SPRITE, SPRITE)
    history = {}
    for f in range(frames):
        x, y = np.array(place(f)) - SPRITE / 2
        shift = np.float32([[1, 0, x], [0, 1, y]])
        moved = cv2.warpAffine(sprite, shift, (WIDTH, HEIGHT))
        cover = cv2.warpAffine(np.ones((SPRITE, SPRITE), np.float32), shift, (WIDTH, HEIGHT))[..., None]
        history[f] = (background * (1 - cover) + moved * cover).astype(np.uint8)
    return history


def path(key, *points, seconds=0.25):
    return {"kind": "path", "id": key, "points": [list(point) for point in points], "frame": 0, "seconds": seconds}


def test_what_is_held_is_given_up_where_its_thing_is_grabbed_again():
    def things(points):
        return np.tile(np.digitize(points[:, 0], [150, 250]) % 3, (2, 1))  # background on the left of two things

    def chunk(index):
        return source.tracks_for(replace(request(index), things=things))

    source = DragSource()
    for key, x in ((1, 20), (2, 160), (3, 260)):
        source.apply(drag(key, "start", sample(x, 50)))
        source.apply(drag(key, "end", sample(x + 10, 50, t=50)))
    source.apply({"kind": "pin", "id": 4, "x": 170, "y": 60, "frame": 0})
    source.apply(path(5, (180, 60), (190, 60)))
    source.apply(path(6, (200, 60), (210, 60), seconds=9.0))
    assert chunk(0).N == 6 and source.take_given_up() == []
    source.apply({"kind": "pin", "id": 7, "x": 170, "y": 90, "frame": 0})  # holds what is there, too
    source.apply(drag(8, "start", sample(30, 90)))  # background is no thing
    assert chunk(1).N == 8 and source.take_given_up() == []
    source.apply(drag(9, "start", sample(220, 90)))
    assert chunk(2).N == 7  # not what is on the other thing, pinned or still under way
    assert source.take_given_up() == [2, 5] and source.take_given_up() == []
    source.apply(path(10, (280, 90), (270, 90)))
    assert chunk(3).N == 7 and source.take_given_up() == [3]


@pytest.mark.parametrize("size, x, on_it", [(2, 85, 1), (3, 72, 0), (3, 95, 1), (2, 60, 0), (3, 5, 0)])
def test_a_grid_is_on_what_half_of_its_points_in_the_frame_are_on(size, x, on_it):
    """The thing begins at 90, and points are 20 pixels apart: of two columns one is on it, of three one or two. What
    is said of points out of the frame does not count."""
    def chunk(index):
        things = 1 - np.digitize(np.arange(-50, WIDTH + 50), [0, 90]) % 2
        return source.tracks_for(
            replace(request(index), things=lambda at: np.tile(things[at[:, 0].astype(int) + 50], (2, 1)))
        )

    source = DragSource()
    source.apply({"kind": "grid", "spacing": 20, "size": 2})
    source.apply(drag(1, "start", sample(88, 50)))
    source.apply(drag(1, "end", sample(95, 50, t=50)))
    chunk(0)
    source.apply({"kind": "grid", "spacing": 20, "size": size})
    source.apply(path(2, (x, 90), (x + 10, 90)))
    assert chunk(1).N == size**2 + 4 * (1 - on_it) and source.take_given_up() == [1] * on_it


def test_what_a_drag_takes_along_is_given_up_with_it():
    def chunk(index):
        return source.tracks_for(replace(request(index), things=lambda points: np.ones((2, len(points)), int)))

    source = DragSource()
    source.apply(path(1, (20, 20), (30, 20)))
    chunk(0)
    source.apply(drag(2, "start", sample(30, 20)) | {"takes": [1]})
    assert chunk(1).N == 2 and not source.take_given_up()  # it is in that hand
    source.apply(drag(2, "end", sample(60, 20, t=90)))
    assert chunk(2).N == 2
    source.apply(drag(3, "start", sample(90, 90)))
    assert chunk(3).N == 1 and source.take_given_up() == [1, 2]


def one_body(points):
    return np.ones((2, len(points)), int)


def two_bodies_of_one_thing(points):
    return np.stack([np.ones(len(points), int), 1 + (points[:, 0] > 140)])


def arc(turn, about=(140, 80), far=40):
    """Where to, so many pixels from a place, in 13 steps from the right of it."""
    steps = np.linspace(0, turn, 13)
    return np.array(about) + far * np.stack([np.cos(steps), np.sin(steps)], axis=1)


def turned_about_a_pin(things, turn=2.0, far=40, chunks=1):
    """A pin and a drag that goes about it, grids of four points: points of both in each chunk's frames, [T, 8, 2]."""
    source, found = DragSource(), []
    source.apply({"kind": "grid", "spacing": 10, "size": 2})
    source.apply({"kind": "pin", "id": 1, "x": 140, "y": 80, "frame": 0})
    way = [sample(x, y, 40 * step) for step, (x, y) in enumerate(arc(turn, far=far))]
    source.apply(drag(2, "start", way[0]))
    for index in range(chunks):
        first, last = (1 + 12 * at // chunks for at in (index, index + 1))
        source.apply(drag(2, "move", *way[first:last]))
        found.append(source.tracks_for(replace(request(index), things=things)).points)
    return source, found


@pytest.mark.parametrize("chunks", [1, 3])
def test_grids_that_hold_one_body_turn_as_it_is_turned_between_them(chunks):
    source, found = turned_about_a_pin(one_body, chunks=chunks)
    points = np.concatenate(found)
    pin, hand = points[:, :4], points[:, 4:]
    np.testing.assert_allclose(pin.mean(1), [(140, 80)] * len(points), atol=1e-4)  # where it was put
    np.testing.assert_allclose(hand[-1].mean(0), arc(2.0)[-1], atol=1e-4)
    far = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    np.testing.assert_allclose(far, np.broadcast_to(far[0], far.shape), atol=1.0)  # the hand cuts corners
    turn = [np.arctan2(*(grid[-1] - grid[-1].mean(0))[3, ::-1]) - np.pi / 4 for grid in (pin, hand)]
    assert turn == pytest.approx([2.0, 2.0], abs=0.01)
    told = source.turned()
    assert {key: len(angles) for key, angles in told.items()} == {1: len(found[-1]), 2: len(found[-1])}
    for key, grid in ((1, pin), (2, hand)):  # of the newest chunk's frames
        away = (grid - grid.mean(1, keepdims=True))[-len(found[-1]) :, 3]
        np.testing.assert_allclose(np.unwrap(np.arctan2(*away.T[::-1])) - np.pi / 4, told[key], atol=1e-4)
    assert np.abs(np.diff(points, axis=0)).max() < 40 * 2.0 / len(points) + 12  # nothing jumps from chunk to chunk
    source.apply({"kind": "remove", "id": 2})
    left = source.tracks_for(replace(request(chunks), things=one_body)).points
    np.testing.assert_allclose(left, np.broadcast_to(pin[-1], left.shape), atol=1e-4)
    assert source.turned().keys() == {1}  # still, in every frame
    np.testing.assert_allclose(source.turned()[1], np.full(len(left), told[1][-1]))


@pytest.mark.parametrize("things, far", [(two_bodies_of_one_thing, 40), (None, 40), (one_body, 6)])
def test_grids_do_not_turn_where_they_hold_two_bodies_or_none_or_one_place(things, far):
    things = things or ChunkRequest.things
    source, (points,) = turned_about_a_pin(things, far=far)
    assert source.turned() == {}
    for grid in (points[:, :4], points[:, 4:]):
        away = grid - grid.mean(1, keepdims=True)
        np.testing.assert_allclose(away, np.broadcast_to(away[0], away.shape), atol=1e-4)


@pytest.mark.parametrize("pin", [True, False])
def test_of_a_grid_that_moves_a_third_is_enough_to_hold_a_body_and_half_of_one_that_stays(pin):
    def things(points):  # to the left of it there is nothing
        return np.tile(points[:, 0] > 127, (2, 1)).astype(int)

    source = DragSource()
    source.apply({"kind": "grid", "spacing": 10, "size": 3})  # a column of three is on it
    still = {"kind": "pin", "id": 1, "x": 120, "y": 80, "frame": 0}
    source.apply(still if pin else path(1, (120, 80), (120, 90)))
    source.apply(path(2, (200, 80), (200, 40)))
    grid = source.tracks_for(replace(request(0), things=things)).points[-1, :9]
    assert (np.abs(np.diff(grid[:3, 1])).max() > 1) == (not pin)


@pytest.mark.parametrize(("seed", "speed"), [(0, (3, 0)), (1, (-2, 1)), (2, (1.3, -2.2)), (3, (4, 1))])
def test_anchor_follows_the_object_through_the_delay(seed, speed):
    def place(f):
        return 140 + speed[0] * (f - 10), 80 + speed[1] * (f - 10)

    history = film(place, 21, seed)  # chunks 0 and 1; the visitor still sees frame 8
    grip = np.array([5.0, -4.0])  # not the very middle of the object
    seen, newest = np.array(place(8)) + grip, np.array(place(20)) + grip
    source = DragSource()
    source.apply(drag(1, "start", sample(*seen, frame=8)))
    tracks = source.tracks_for(request(2, history))
    assert np.linalg.norm(seen - newest) > 10
    assert np.linalg.norm(tracks.points[0, 0] - newest) < 2  # what the model sees there is what was grabbed
    assert np.linalg.norm(tracks.points[-1, 0] - seen) < 1e-3  # the object ends under the pointer


def test_anchors_of_pins_and_paths_are_carried_too():
    history = film(lambda f: (80 + 3 * f, 80), 9)
    source = DragSource()
    source.apply({"kind": "pin", "id": 1, "x": 80, "y": 80, "frame": 0})
    source.apply({"kind": "path", "id": 2, "points": [[80, 80], [80, 20]], "frame": 0, "seconds": 0.75})
    source.apply({"kind": "path", "id": 3, "points": [[80, 80], [80, 20]], "frame": 0, "seconds": 0.25})
    tracks = source.tracks_for(request(1, history))
    assert np.abs(tracks.points[:, 0] - [104, 80]).max() < 1  # a pin holds the object where it is now
    assert np.abs(tracks.points[0, 1] - [104, 80]).max() < 1
    assert tracks.points[-1, 1].tolist() == [80, 25]  # it began in this chunk's first frame: one of twelve is left
    assert np.abs(tracks.points[0, 2] - [104, 80]).max() < 1 and (tracks.points[4:, 2] == [80, 20]).all()
    assert source.tracks_for(request(2, history)).points[0, 1].tolist() == [80, 20]


def test_anchor_is_the_pointer_where_the_flow_is_lost():
    rng = np.random.default_rng(0)
    history = {f: rng.integers(0, 256, IMAGE.shape).astype(np.uint8) for f in range(5)}
    anchors = np.array([[100.0, 50.0], [-40.0, 500.0], [0.0, 0.0]])
    assert np.array_equal(carry(history, anchors, [0, 0, 0]), anchors)


@pytest.mark.parametrize(("found", "moves"), [(6, 0), (7, 3)])
def test_an_anchor_moves_with_a_quarter_of_its_points_or_stays(found, moves, monkeypatch):
    def follow(before, after, points):
        return points + 3 * np.float32([1, 0]), np.arange(len(points)) < found  # of 25

    monkeypatch.setattr("motionstream.controls.drag._follow", follow)
    anchor = np.array([[50.0, 40.0]])
    assert np.array_equal(carry({0: IMAGE, 1: IMAGE}, anchor, [0]), anchor + [moves, 0])


def test_anchors_of_different_frames_are_carried_together():
    history = film(lambda f: (60 + 3 * f, 80), 20)
    places = np.array([[60 + 3 * f, 80] for f in (0, 7, 19)])
    assert np.abs(carry(history, places, [0, 7, 19]) - [117, 80]).max() < 0.5


@pytest.mark.parametrize("frame", [-5, 3, 40, 10**12])
def test_a_frame_that_is_not_known_counts_as_the_nearest(frame):
    history = {f: image for f, image in film(lambda f: (60 + 3 * f, 80), 20).items() if f >= 10}
    nearest = min(max(frame, 10), 19)
    found = carry(history, np.array([[60.0 + 3 * nearest, 80]]), [frame])
    assert np.abs(found - [117, 80]).max() < 0.5


def test_pointer_motion_is_resampled_by_the_samples_times():
    source = DragSource()
    source.apply(drag(1, "start", sample(10, 20, 1000)))
    source.apply(drag(1, "move", sample(18, 20, 1040), sample(18, 60, 1080)))
    tracks = source.tracks_for(request(0))
    assert tracks.points[:, 0].tolist() == [[10, 20], [12, 20], [14, 20], [16, 20], [18, 20]] + [
        [18, y] for y in (30, 40, 50, 60)
    ]
    assert tracks.visible.all() and tracks.N == 1


def test_a_rest_of_the_pointer_does_not_squeeze_what_follows():
    source = DragSource()
    source.apply(drag(1, "start", sample(10, 20, 0)))
    source.tracks_for(request(0))
    source.apply(drag(1, "move", sample(20, 20, 60_000), sample(40, 20, 60_100)))
    x = source.tracks_for(request(1)).points[:, 0, 0]
    assert np.diff(np.concatenate([[10], x])).max() < 4 and x[-1] == 40


def test_consecutive_chunks_join():
    rng = np.random.default_rng(0)
    source, before, t = DragSource(), None, 0.0
    source.apply({"kind": "grid", "spacing": 8, "size": 2})
    source.apply(drag(1, "start", sample(100, 80, t)))
    pointer = np.array([100.0, 80.0])
    for index in range(6):
        for _ in range(20):
            t += 16
            pointer += rng.uniform(-2, 2, 2)
            source.apply(drag(1, "move", sample(*pointer, t, frame=index)))
        tracks = source.tracks_for(request(index))
        assert np.abs(tracks.points[-1].mean(axis=0) - pointer).max() < 1e-3
        if before is not None:
            assert np.array_equal(tracks.ids, before.ids)
            step = np.linalg.norm(tracks.points[0] - before.points[-1], axis=-1).max()
            assert step <= 20 / 12 * np.hypot(2, 2)  # as fast as the pointer, no faster
        before = tracks


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)))
def test_order_of_arrival_does_not_matter(order):
    samples = [sample(10 + 5 * i, 20 + i, 16 * i) for i in range(1, 13)]
    paths = []
    for sequence in (range(12), order):
        source = DragSource()
        source.apply(drag(1, "start", sample(10, 20, 0)))
        for i in sequence:
            source.apply(drag(1, "move", samples[i]))
        paths.append(source.tracks_for(request(1)).points)
    assert np.array_equal(*paths)


def test_late_samples_of_a_chunk_that_is_done_are_dropped():
    source = DragSource()
    source.apply(drag(1, "start", sample(10, 20, 0)))
    source.apply(drag(1, "move", sample(50, 20, 100)))
    source.tracks_for(request(0))
    source.apply(drag(1, "move", sample(30, 20, 50)))
    assert (source.tracks_for(request(1)).points[:, 0] == [50, 20]).all()


def test_5000_samples_in_one_chunk_are_quick_and_end_under_the_pointer():
    source = DragSource()
    source.apply(drag(1, "start", sample(0, 80, 0)))
    begun = time.perf_counter()
    for i in range(1, 5001):
        source.apply(drag(1, "move", sample(i / 25, 80, i * 0.1)))
    tracks = source.tracks_for(request(1))
    assert time.perf_counter() - begun < 5
    np.testing.assert_allclose(tracks.points[:, 0, 0], 200 * np.arange(12) / 11, atol=0.1)
    many = [sample(i / 50, 80, 500 + i) for i in range(10_000)]
    source.apply(drag(1, "move", *many))
    source.apply(drag(1, "move", *many))  # more than are kept: thinned out, the newest stays
    assert source.tracks_for(request(2)).points[-1, 0, 0] == pytest.approx(9_999 / 50)


def test_same_time_on_every_sample_spreads_them_evenly():
    source = DragSource()
    source.apply(drag(1, "start", sample(0, 0, 5)))
    source.apply(drag(1, "move", *(sample(x, 0, 5) for x in (2, 4, 6, 8))))
    assert source.tracks_for(request(0)).points[:, 0, 0].tolist() == list(range(9))


def test_a_drag_out_of_the_frame_is_invisible_not_clamped():
    source = DragSource()
    source.apply(drag(1, "start", sample(250, 80, 0)))
    source.apply(drag(1, "move", sample(330, 80, 100)))
    tracks = source.tracks_for(request(0))
    assert tracks.points[-1, 0, 0] == 330
    assert tracks.visible[:, 0].tolist() == (tracks.points[:, 0, 0] < WIDTH).tolist()
    assert tracks.visible[0, 0] and not tracks.visible[-1, 0]
    source.apply(drag(1, "move", sample(250, 80, 200)))
    assert source.tracks_for(request(1)).visible[-1, 0]  # and back


def test_of_a_grid_across_the_frames_edge_only_the_points_inside_hold_something():
    source = DragSource()
    source.apply({"kind": "grid", "spacing": 16, "size": 3})
    source.apply(drag(1, "start", sample(4, 80, 0)))
    source.apply(drag(1, "move", sample(60, 80, 100)))
    first = source.tracks_for(request(0))
    assert first.visible[0].sum() == 6 and (first.points[-1, :, 0] > 0).all()
    source.apply(drag(1, "move", sample(120, 80, 200)))
    later = source.tracks_for(request(1))
    for tracks in (first, later):
        assert (tracks.visible == first.visible[0]).all()


def test_release_holds_or_lets_go():
    source = DragSource(release="hold")
    source.apply(drag(1, "start", sample(10, 20, 0)))
    source.apply(drag(1, "end", sample(30, 20, 50)))
    source.apply(drag(1, "move", sample(90, 90, 80)))  # after the end: nothing
    source.apply({"kind": "release", "mode": "let_go"})
    source.apply(drag(2, "start", sample(60, 60, 0)))
    source.apply(drag(2, "end", sample(80, 60, 50)))
    first = source.tracks_for(request(0))
    assert first.points[-1].tolist() == [[30, 20], [80, 60]]  # a drag that ended before the chunk still moves it
    later = source.tracks_for(request(1))
    assert (later.points == [[30, 20]]).all() and later.ids.tolist() == first.ids[:1].tolist()


@pytest.mark.parametrize("release", ["hold", "let_go"])
def test_a_path_moves_a_grid_once(release):
    source = DragSource(release=release)
    source.apply({"kind": "grid", "spacing": 10, "size": 3})
    source.apply({"kind": "path", "id": 4, "points": [[50, 50], [66, 50], [66, 58]], "frame": 0, "seconds": 1.5})
    first, second = source.tracks_for(request(0)), source.tracks_for(request(1))
    assert first.N == 9 and first.points[:, 4].tolist() == [[50 + f, 50] for f in range(9)]
    assert second.points[:, 4].tolist() == [[59 + f, 50] for f in range(8)] + [[66, y] for y in (51, 52, 53, 54)]
    third = source.tracks_for(request(2))
    assert third.points[:5, 4].tolist() == [[66, y] for y in (55, 56, 57, 58, 58)]
    assert third.visible[:4].all() and third.visible[4:].all() == (release == "hold")
    fourth = source.tracks_for(request(3))
    assert (fourth.N, release) in ((9, "hold"), (0, "let_go"))


def test_grid_settings_apply_to_controls_made_afterwards():
    source = DragSource()
    source.apply({"kind": "pin", "id": 1, "x": 50, "y": 50, "frame": 0})
    source.apply({"kind": "grid", "spacing": 20, "size": 2})
    source.apply({"kind": "pin", "id": 2, "x": 100, "y": 50, "frame": 0})
    tracks = source.tracks_for(request(0))
    assert tracks.points[0].tolist() == [[50, 50], [90, 40], [110, 40], [90, 60], [110, 60]]


def test_remove_and_clear():
    source = DragSource()
    for key in range(3):
        source.apply({"kind": "pin", "id": key, "x": 10 * key, "y": 5, "frame": 0})
    source.apply({"kind": "remove", "id": 1})
    assert source.tracks_for(request(0)).points[0].tolist() == [[0, 5], [20, 5]]
    source.apply({"kind": "clear"})
    assert source.tracks_for(request(1)).N == 0


def test_unknown_ids_are_controls_that_are_gone():
    source = DragSource()
    source.apply(drag(5, "move", sample(1, 1)))
    source.apply(drag(5, "end"))
    source.apply({"kind": "remove", "id": 5})
    source.apply({"kind": "pin", "id": 6, "x": 1, "y": 1, "frame": 0})
    source.apply(drag(6, "move", sample(50, 50)))  # not a drag
    assert source.tracks_for(request(0)).points[:, 0].max() == 1


def test_ids_are_seeded_and_never_shared():
    drawn = []
    for seed in (3, 3, 4):
        source = DragSource(seed=seed)
        source.apply({"kind": "grid", "spacing": 4, "size": 5})
        for key in range(20):
            source.apply({"kind": "pin", "id": key, "x": 50, "y": 50, "frame": 0})
        drawn.append(source.tracks_for(request(0)).ids.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 500


def test_an_endless_stream_does_not_run_out_of_ids():
    source = DragSource(reserved=range(200))
    source.apply({"kind": "grid", "spacing": 4, "size": 10})
    source.apply({"kind": "pin", "id": 0, "x": 50, "y": 50, "frame": 0})
    for key in range(1, 110):
        source.apply({"kind": "pin", "id": key, "x": 50, "y": 50, "frame": 0})
        ids = source.tracks_for(request(1)).ids.tolist()
        assert len(set(ids)) == 200 and min(ids) >= 200
        source.apply({"kind": "remove", "id": key})


PIN = {"kind": "pin", "id": 1, "x": 1, "y": 1, "frame": 0}
PATH = {"kind": "path", "id": 1, "points": [[1, 1]], "frame": 0, "seconds": 1}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({}, "unknown kind"),
        ([], "unknown kind"),
        ({"kind": "fly"}, "unknown kind 'fly'"),
        ({"kind": ["drag"]}, "unknown kind"),
        ({"kind": "x" * 1000}, "unknown kind 'xxx"),
        (PIN | {"x": float("nan")}, '"x" is nan'),
        (PIN | {"x": 1e9}, '"x" is 1000000000.0; expected a number from -100000 to 100000'),
        (PIN | {"y": "7"}, "\"y\" is '7'"),
        (PIN | {"y": True}, '"y" is True'),
        (PIN | {"y": [[1]]}, '"y" is of type list'),
        (PIN | {"id": -1}, '"id" is -1'),
        (PIN | {"id": 1.5}, '"id" is 1.5'),
        (PIN | {"frame": 0.5}, '"frame" is 0.5'),
        (drag(1, "start"), "at least one sample"),
        (drag(1, "hover", sample(1, 1)), "phase 'hover'"),
        (drag(1, "start", {"x": 1}), '"t" is of type NoneType'),
        (drag(1, "start", 7), "must be a list of"),
        ({"kind": "drag", "id": 1, "phase": "start"}, "must be a list of"),
        (drag(1, "move", *[sample(1, 1)] * (MAX_SAMPLES + 1)), "10001 pointer samples in one message; at most 10000"),
        (PATH | {"points": []}, "list of 1 to"),
        (PATH | {"points": [[1, 2, 3]]}, "must be .x, y. pairs"),
        (PATH | {"points": [[1, None]]}, '"y" is of type NoneType'),
        (PATH | {"seconds": 1e9}, '"seconds" is 1000000000.0; expected a number from 0 to 600'),
        ({"kind": "grid", "spacing": 0, "size": 3}, '"spacing" is 0'),
        ({"kind": "grid", "spacing": 5, "size": 11}, '"size" is 11; expected a whole number from 1 to 10'),
        ({"kind": "release", "mode": "drop"}, "release mode 'drop'"),
    ],
)
def test_bad_messages_are_named_and_change_nothing(message, text):
    source = DragSource()
    with pytest.raises(InputError, match=text):
        source.apply(message)
    source.apply(PIN)
    tracks = source.tracks_for(request(0))
    assert tracks.points[0].tolist() == [[1, 1]]


def test_bounds_on_live_controls_and_duplicate_ids():
    source = DragSource()
    for key in range(MAX_CONTROLS):
        source.apply(PIN | {"id": key})
    with pytest.raises(InputError, match="100 controls are live"):
        source.apply(PIN | {"id": 1000})
    source.apply({"kind": "clear"})
    source.apply(PIN)
    with pytest.raises(InputError, match="control 1 exists already"):
        source.apply(drag(1, "start", sample(1, 1)))
    source.apply({"kind": "grid", "spacing": 2, "size": 10})
    for key in range(10, 34):
        source.apply(PIN | {"id": key})
    with pytest.raises(InputError, match="2501 points would be live; at most 2500"):
        source.apply(PIN | {"id": 99})


def test_release_mode_of_the_constructor_is_checked():
    with pytest.raises(InputError, match="release mode 'keep'"):
        DragSource(release="keep")


def carried(release):
    """Three paths; a drag takes the first two along in chunk 1."""
    source = DragSource(release=release)
    for key, x, way in ((1, 100, 24), (2, 140, 24), (3, 200, -24)):
        source.apply({"kind": "path", "id": key, "points": [[x, 80], [x + way, 80]], "frame": 0, "seconds": 1.5})
    source.tracks_for(request(0))  # the two are at 108 and 148
    source.apply(drag(7, "start", sample(130, 80, 0, 8), sample(130, 110, 500, 8)) | {"takes": [1, 2, 99]})
    return source


def test_paths_that_a_drag_takes_along_move_as_it_does():
    source = carried("hold")
    free, hand, *led = source.tracks_for(request(1)).points[-1]
    np.testing.assert_allclose(hand, (130, 110))
    np.testing.assert_allclose(free, (180, 80), atol=0.01)  # the third goes its own way
    np.testing.assert_allclose(led, [(108, 110), (148, 110)], atol=0.01)
    source.apply(drag(7, "end", sample(120, 110, 900, 20)))
    np.testing.assert_allclose(source.tracks_for(request(2)).points[-1, 2:], [(98, 110), (138, 110)], atol=0.01)
    source.apply(drag(8, "start", sample(110, 110, 2000, 32), sample(110, 90, 2500, 32)) | {"takes": [1]})
    points = source.tracks_for(request(3)).points[-1]
    np.testing.assert_allclose(points[1:], [(120, 110), (110, 90), (98, 90), (138, 110)], atol=0.01)


def test_what_a_drag_took_along_ends_with_it_or_stays_without_it():
    source = carried("let_go")
    source.apply(drag(7, "end"))
    source.tracks_for(request(1))
    assert source.tracks_for(request(2)).N == 1  # only the path that nobody took
    source = carried("hold")
    before = source.tracks_for(request(1)).points[-1, 2:]
    source.apply({"kind": "remove", "id": 7})
    np.testing.assert_allclose(source.tracks_for(request(2)).points[-1, 1:], before)


@pytest.mark.parametrize("takes", ["1", [1.5], [-1], list(range(MAX_CONTROLS + 1)), None])
def test_what_a_drag_takes_along_must_be_ids(takes):
    source = DragSource()
    with pytest.raises(InputError):
        source.apply(drag(7, "start", sample(1, 2)) | {"takes": takes})
    assert not source.tracks_for(request(0)).N


def test_numbers_of_a_drag_that_has_just_ended_are_not_given_out_again():
    source = DragSource(release="let_go", reserved=range(MAX_ID - 600))
    source.apply({"kind": "grid", "size": 10, "spacing": 4})
    before = set()
    for key in range(40):
        source.apply({"kind": "drag", "id": key, "phase": "start", "samples": [{"x": 50, "y": 50, "t": 0, "frame": 0}]})
        ids = set(source.tracks_for(request(key)).ids.tolist())
        source.apply({"kind": "drag", "id": key, "phase": "end", "samples": [{"x": 50, "y": 50, "t": 1, "frame": 0}]})
        source.tracks_for(request(key))
        assert len(ids) == 100 and not ids & before and min(ids) >= MAX_ID - 600
        before = ids
