"""Camera control: projection to the last digit, what hides what, paths, steering, camera files, new grids."""

import json
import math
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionstream.controls.camera import KEYFRAMES, LEFT, CameraRecipe, Plan, pivot_of, recorded
from motionstream.controls.depth import DepthMap
from motionstream.controls.layers import BASE_IDS, make_source
from motionstream.controls.paths import (
    ENDS,
    MAX_ZOOM,
    MOVES,
    ON,
    ONCE,
    RHYTHMIC,
    SWING,
    Keyframes,
    progress,
    rigid,
)
from motionstream.controls.pinhole import UNSURE, Camera, Surface, pixel_grid
from motionstream.controls.planes import ScenePlanes
from motionstream.errors import InputError
from motionstream.tracks import MAX_TRACKS, ChunkRequest

WIDTH, HEIGHT, FOCAL = 96, 64, 80.0
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
FACING = Camera.facing(WIDTH, HEIGHT, FOCAL)
IDS = np.arange(24)
GRID = pixel_grid(WIDTH, HEIGHT, 16)


def request(index, history=None):
    """The request of chunk `index` (9 frames, then 12)."""
    start, frames = (9 + 12 * (index - 1), 12) if index else (0, 9)
    return ChunkRequest(index, start, frames, WIDTH, HEIGHT, 16.0, history or {max(start - 1, 0): IMAGE})


def surface(depth):
    return Surface(FACING, np.broadcast_to(np.asarray(depth, float), (HEIGHT, WIDTH)).copy(), WIDTH, HEIGHT)


def seen(scene, camera, places=GRID):
    """Pixels [N, 2] and visibility [N] of places of the scene's own view, from another camera."""
    tracks = scene.tracks(places, scene.lift(places), [camera], np.arange(len(places)))
    return tracks.points[0].astype(float), tracks.visible[0]


def two_planes(near=1.0, far=4.0):
    """A near square in the middle, in front of a far plane."""
    depth = np.full((HEIGHT, WIDTH), far)
    depth[16:48, 32:64] = near
    return surface(depth), lambda places: ((places > (32, 16)) & (places < (64, 48))).all(axis=1)


# --- projection ----------------------------------------------------------------------------------------------------

angles = st.floats(-math.pi, math.pi)
vectors = st.tuples(*[st.floats(-3, 3)] * 3)


@settings(max_examples=60, deadline=None)
@given(turn=vectors, shift=vectors, depth=st.floats(0.1, 100))
def test_unprojected_points_project_back_to_their_pixels(turn, shift, depth):
    camera = Camera(FACING.intrinsics, rigid(turn, shift))
    pixels, z = camera.project(camera.unproject(GRID, np.full(len(GRID), depth)))
    assert np.abs(pixels - GRID).max() < 1e-9 * (1 + 1 / depth) * 1e3
    assert np.abs(z - depth).max() < 1e-9 * (1 + depth)


def test_identity_camera_gives_the_grid_back_and_hides_nothing_of_it():
    depth = np.random.default_rng(0).uniform(0.5, 20, (HEIGHT, WIDTH))  # edges everywhere
    places = pixel_grid(WIDTH, HEIGHT, 3)
    points, visible = seen(surface(depth), FACING, places)
    assert np.abs(points - places).max() < 1e-5
    assert visible.all()


@settings(max_examples=40, deadline=None)
@given(depth=st.floats(0.5, 50), t=st.floats(-1, 1))
def test_plane_under_truck_moves_by_f_t_over_z(depth, t):
    points, _ = seen(surface(depth), FACING.moved(rigid(shift=(t, 0, 0))))
    assert np.abs(points - (GRID - [FOCAL * t / depth, 0])).max() < 1e-4


def test_zoom_and_roll_are_what_they_are_called():
    middle = np.array([WIDTH, HEIGHT]) / 2
    points, _ = seen(surface(3), FACING.moved(np.eye(4), 2.0))
    assert np.abs(points - (middle + 2 * (GRID - middle))).max() < 1e-4
    points, _ = seen(surface(3), FACING.moved(rigid((0, 0, math.pi / 2))))
    away = GRID - middle
    assert np.abs(points - (middle + np.stack([away[:, 1], -away[:, 0]], axis=1))).max() < 1e-4


def test_a_point_behind_the_camera_or_outside_the_frame_is_invisible_and_finite():
    scene, front = two_planes()
    points, visible = seen(scene, FACING.moved(rigid(shift=(0, 0, 2.0))))
    assert not visible[front(GRID)].any()  # they are behind now
    assert np.isfinite(points).all()
    inside = ((points >= 0) & (points < (WIDTH, HEIGHT))).all(axis=1)
    assert visible[~front(GRID) & inside].all() and (~front(GRID) & inside).any()
    for turn in (math.pi / 2, math.pi):
        points, visible = seen(scene, FACING.moved(rigid((0, turn, 0))))
        assert np.isfinite(points).all() and not visible[points[:, 0] < 0].any()
    assert not visible.any()


# --- what hides what -----------------------------------------------------------------------------------------------


def test_the_near_plane_hides_the_far_one_and_never_the_other_way_round():
    scene, front = two_planes()
    places = pixel_grid(WIDTH, HEIGHT, 4)
    shift = 0.25  # the near square moves by 20 px, the far plane by 5
    points, visible = seen(scene, FACING.moved(rigid(shift=(shift, 0, 0))), places)
    covered = ((points > (12 + 3, 16 + 3)) & (points < (44 - 3, 48 - 3))).all(axis=1) & ~front(places)
    free = ~((points > (12 - 5, 16 - 5)) & (points < (44 + 5, 48 + 5))).all(axis=1)
    free &= ~front(places) & (points[:, 0] >= 0)
    assert covered.sum() > 10 and not visible[covered].any()
    assert visible[free].all() and free.sum() > 50
    assert visible[front(places)].all()


def test_nothing_hides_a_slanted_floor_from_far_or_near():
    floor = ScenePlanes(bottom=0.4).estimate(IMAGE, FACING, FACING, None)
    scene, places = surface(floor), pixel_grid(WIDTH, HEIGHT, 5)
    for z in (-0.8, -0.3, 0.1, 0.3):
        points, visible = seen(scene, FACING.moved(rigid(shift=(0.05, 0, z))), places)
        inside = ((points >= 0) & (points < (WIDTH, HEIGHT))).all(axis=1)
        assert visible[inside].mean() > 0.99 and inside.any()


def test_a_surface_that_comes_near_has_no_gaps():
    scene, front = two_planes(near=1.0, far=1.5)
    places = pixel_grid(WIDTH, HEIGHT, 2)
    points, visible = seen(scene, FACING.moved(rigid(shift=(0.12, 0, 0.65))), places)
    square = seen(scene, FACING.moved(rigid(shift=(0.12, 0, 0.65))), np.array([[33.0, 17.0], [63.0, 47.0]]))[0]
    behind = ((points > square[0] + 6) & (points < square[1] - 6)).all(axis=1) & ~front(places)
    assert behind.sum() > 10 and not visible[behind].any()


@pytest.mark.parametrize("depth", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.zeros((0, 4)), np.ones(4)])
def test_a_depth_map_must_be_a_picture_of_positive_numbers(depth):
    with pytest.raises(InputError, match="depth map"):
        Surface(FACING, depth, WIDTH, HEIGHT)


def test_a_grid_leaves_out_what_may_be_of_either_side_of_an_edge():
    """In steps of any kind, but not at the crease between a wall and a floor, be it ever so steep."""
    grid, reach = pixel_grid(WIDTH, HEIGHT, np.sqrt(WIDTH * HEIGHT / 200)), UNSURE * np.sqrt(WIDTH * HEIGHT / 200)
    size = 15 * WIDTH, 15 * HEIGHT
    for edge, ratio in ((40.3, 0.9), (41.0, 0.5), (WIDTH - 20.0, 1.4)):
        step = np.where((np.arange(size[0]) + 0.5) / 15 < edge, 1.0, ratio)[None].repeat(size[1], 0)
        places = Surface(FACING, step, WIDTH, HEIGHT).places(200)
        assert np.array_equal(places, grid[np.abs(grid[:, 0] - edge) > reach]) and len(places) < len(grid)
    camera = FACING.scaled((WIDTH, HEIGHT), size)
    for bottom in (0.55, 0.7):
        floor = ScenePlanes(bottom=bottom).estimate(np.zeros((*size[::-1], 3), np.uint8), camera, camera, None)
        assert np.array_equal(Surface(FACING, floor, WIDTH, HEIGHT).places(200), grid)
    noise = np.random.default_rng(0).uniform(0.1, 1, (HEIGHT, WIDTH))
    assert len(surface(noise).places(200)) == len(grid)  # rather than none
    assert len(surface(1.0).places(5_000)) == MAX_TRACKS


# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOVES)
def test_every_move_begins_where_the_picture_was_taken_and_stays_rigid(name):
    motion, zoom = MOVES[name](0.0, 2.0)
    assert np.abs(motion - np.eye(4)).max() < 1e-12 and zoom == pytest.approx(1)
    for u in (-30, -1, -0.3, 0.01, 0.5, 1, 2.7, 900):
        motion, zoom = MOVES[name](u, 2.0)
        assert np.abs(motion[:3, :3] @ motion[:3, :3].T - np.eye(3)).max() < 1e-9
        assert zoom > 0 and np.isfinite(zoom)
    if name != "still":
        assert not np.allclose(MOVES[name](0.31, 2.0)[0], np.eye(4)) or MOVES[name](0.31, 2.0)[1] != 1


def test_orbit_and_spiral_keep_the_pivot_in_the_middle_and_dolly_zoom_keeps_its_size():
    pivot = np.array([[0, 0, 3.0], [0.4, 0, 3.0]])
    for name in ("orbit", "spiral"):
        for u in (-1, 0.4, 1.3):
            points, z = FACING.moved(*MOVES[name](u, 3.0)).project(pivot)
            assert np.abs(points[0] - FACING.middle).max() < 1e-9 and z[0] > 0
    for u in (-1, 0.5, 1, 50):
        points, _ = FACING.moved(*MOVES["dolly-zoom"](u, 3.0)).project(pivot)
        assert points[1, 0] - points[0, 0] == pytest.approx(FOCAL * 0.4 / 3)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", MOVES)
def test_no_path_jumps(name, ends):
    depth = np.full((2, 2), 2.0)
    depth[0] = 4  # on a single plane a dolly-zoom is no motion at all
    source = CameraRecipe(Plan(route=name, ends=ends, speed=1.0), DepthMap(depth), count=30).build()
    before = None
    for index in range(4):
        tracks = source.tracks_for(request(index))
        assert before is None or np.abs(tracks.points[0] - before).max() < 4
        assert np.abs(np.diff(tracks.points, axis=0)).max() < 4
        before = tracks.points[-1]
    if name != "still":
        assert np.abs(tracks.points[-1] - GRID_30).max() > 0.3


GRID_30 = pixel_grid(WIDTH, HEIGHT, math.sqrt(WIDTH * HEIGHT / 30))


def test_ways_to_end():
    def x(ends, seconds):
        plan = Plan(route="truck", ends=ends)
        rig = CameraRecipe(plan, DepthMap(np.ones((2, 2)))).rig(WIDTH, HEIGHT, 1.0)
        return rig.frames(int(seconds * 16) + 1, 16.0)[-1].pose[0, 3]

    assert x(ONCE, 4) == x(ONCE, 9) > 0
    assert x(SWING, 4) == pytest.approx(-x(SWING, 12), abs=1e-9) and x(SWING, 8) == pytest.approx(0, abs=1e-9)
    assert x(ON, 40) > 5 * x(ON, 4) > 0


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", sorted(set(MOVES) - RHYTHMIC))
def test_a_negative_speed_runs_the_other_way_in_the_same_manner(name, ends):
    for seconds in (0.5, 3.0, 9.0, 3_600.0):
        there, back = progress(name, ends, seconds), progress(name, ends, -seconds)
        assert back == pytest.approx(-there)
        motion, zoom = MOVES[name](back, 3.0)
        assert np.isfinite(motion).all() and 1 / MAX_ZOOM <= zoom <= max(MAX_ZOOM, 1 - back)


# --- camera files --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    poses=st.lists(st.tuples(vectors, vectors, st.floats(1, 1e4), st.floats(-50, 500)), min_size=1, max_size=5),
    step=st.floats(0.01, 100),
)
def test_camera_files_come_back_to_the_bit(poses, step):
    cameras = [Camera([[f, 0, c], [0, f * 1.01, -c], [0, 0, 1]], rigid(turn, shift)) for turn, shift, f, c in poses]
    given = Keyframes(cameras, np.arange(len(cameras)) * step, (832, 480))
    read = Keyframes.from_json(given.to_json())
    assert read.size == (832, 480) and np.array_equal(read.times, given.times)
    for a, b in zip(read.cameras, cameras, strict=True):
        assert np.array_equal(a.pose, b.pose) and np.array_equal(a.intrinsics, b.intrinsics)


def test_a_zoom_stays_when_keyframes_begin_and_none_of_the_ends_means_anything_to_them():
    keyframes = Keyframes([FACING, FACING.moved(np.eye(4), 2.0)], np.array([0.0, 2.0]), (WIDTH, HEIGHT))
    rig = CameraRecipe(Plan(route=KEYFRAMES), DepthMap(np.ones((2, 2))), keyframes=keyframes).rig(WIDTH, HEIGHT, 1.0)
    rig.apply({"kind": "steer", "zoom": 1.0})
    near = rig.frames(24, 16.0)[-1].focal[0]
    assert near > 1.2 * FOCAL
    rig.apply({"kind": "steer"})
    near = rig.frames(32, 16.0)[-1].focal[0]
    rig.apply({"kind": "camera", "route": KEYFRAMES, "ends": ONCE})
    assert rig.frames(1, 16.0)[0].focal[0] == pytest.approx(near, rel=0.01)
    rig.apply({"kind": "camera", "route": "still"})
    rig.frames(1, 16.0)
    rig.apply({"kind": "camera", "route": KEYFRAMES})
    assert rig.frames(1, 16.0)[0].focal[0] == pytest.approx(near, rel=0.03)
    assert rig.frames(40, 16.0)[-1].focal[0] == pytest.approx(2 * near, rel=0.01)


def test_keyframes_turn_along_the_shortest_way_also_over_the_zenith():
    up, over = rigid((math.radians(80), 0, 0)), rigid((math.radians(100), 0, 0))
    way = Keyframes([Camera(FACING.intrinsics, up), Camera(FACING.intrinsics, over)], np.array([0.0, 1.0]), (96, 64))
    assert np.abs(way.at(0.5).pose - rigid((math.radians(90), 0, 0))).max() < 1e-9  # straight up, no roll, no jump
    half = Keyframes([FACING, FACING.moved(rigid((0, math.pi, 0)), 4.0)], np.array([2.0, 4.0]), (96, 64))
    assert half.at(1.0).focal[0] == pytest.approx(2 * FOCAL)
    assert half.at(-5).pose.tolist() == FACING.pose.tolist() and half.at(99).focal[0] == 4 * FOCAL
    assert abs(half.at(1.0).pose[:3, :3] @ [0, 0, 1.0])[0] == pytest.approx(1)


def test_keyframes_drive_the_tracks():
    cameras = [FACING, FACING.moved(rigid(shift=(0.5, 0, 0)))]
    keyframes = Keyframes(cameras, np.array([0.0, 0.5]), (WIDTH, HEIGHT))
    away = Camera(FACING.intrinsics, rigid((0.3, 0.2, 0.1), (5, 6, 7)))  # the same seen in another world
    moved = Keyframes([Camera(c.intrinsics, away.pose @ c.pose) for c in cameras], keyframes.times, keyframes.size)
    for way in (keyframes, moved):
        recipe = CameraRecipe(Plan(route=KEYFRAMES), DepthMap(np.full((2, 2), 4.0)), keyframes=way, count=30)
        tracks = recipe.build().tracks_for(request(0))
        assert np.abs(tracks.points[8] - (tracks.points[0] - [FOCAL * 0.5 / 4, 0])).max() < 1e-3


def test_files_of_rounded_numbers_drive_the_tracks_too():
    poses = [rigid((0.4, 0.5 * k, -0.3), (k, 1, 2)).round(3) for k in range(3)]
    keyframes = Keyframes([Camera(FACING.intrinsics, pose) for pose in poses], np.arange(3.0), (WIDTH, HEIGHT))
    recipe = CameraRecipe(Plan(route=KEYFRAMES, speed=4), DepthMap(np.full((2, 2), 4.0)), keyframes=keyframes, count=30)
    source = recipe.build()
    for index in range(3):
        source.tracks_for(request(index))


def frame(**change):
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    return {"time": 0.0, "intrinsics": [[9, 0, 1], [0, 9, 1], [0, 0, 1]], "camera_to_world": pose} | change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "colmap"}, "camera file"),
        ({"frames": []}, "1 to"),
        ({"frames": [frame(), frame()]}, "rise"),
        ({"frames": [frame(time="soon")]}, "time"),
        ({"frames": [frame(time=math.inf)]}, "time"),
        ({"frames": [frame(time=10**400)]}, "time"),
        ({"width": 10**400}, "width"),
        ({"frames": [frame(camera_to_world=np.diag([1, 1, -1, 1]).tolist())]}, "mirror"),
        ({"frames": [frame(camera_to_world=np.diag([2, 2, 2, 1]).tolist())]}, "stretch"),
        ({"frames": [frame(camera_to_world=[[1]])]}, "camera_to_world"),
        ({"frames": [frame(intrinsics=[[9, 0, 1], [0, -9, 1], [0, 0, 1]])]}, "intrinsics"),
        ({"frames": [frame(intrinsics=[[9, 1, 1], [0, 9, 1], [0, 0, 1]])]}, "intrinsics"),
        ({"frames": [frame(intrinsics="abc")]}, "intrinsics"),
        ({"frames": [frame(intrinsics=[["1", 0, 0], [0, 1, 0], [0, 0, 1]])]}, "intrinsics"),
        ({"frames": [frame(intrinsics=[[1, 2], [3]])]}, "intrinsics"),
        ({"frames": "abc"}, "list"),
        ({"width": 0}, "width"),
        ({"height": True}, "height"),
    ],
)
def test_camera_files_that_are_wrong_are_refused_with_a_reason(change, says):
    data = {"format": "motionstream-cameras", "version": 1, "width": 96, "height": 64, "frames": [frame()]}
    assert len(Keyframes.from_json(json.dumps(data)).cameras) == 1
    with pytest.raises(InputError, match=says):
        Keyframes.from_json(json.dumps(data | change))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0", '{"format": 1e999}'])
def test_what_is_no_camera_file_is_refused(text):
    with pytest.raises(InputError):
        Keyframes.from_json(text)


# --- the source ----------------------------------------------------------------------------------------------------


def steer(**keys):
    return {"kind": "steer", **keys}


def test_first_frame_is_the_grid_of_the_picture_and_ids_stay_below_those_of_the_drags():
    source = CameraRecipe(Plan(), ScenePlanes(), count=30).build()
    tracks = source.tracks_for(request(0))
    assert np.abs(tracks.points[0] - GRID_30).max() < 1e-4 and tracks.visible[0].all()
    assert tracks.ids.max() < BASE_IDS and len(set(tracks.ids.tolist())) == tracks.N
    assert tracks.T == 9 and source.tracks_for(request(1)).T == 12


def test_steering_moves_the_camera_and_lets_it_come_to_rest():
    source = CameraRecipe(Plan(route="still"), DepthMap(np.full((2, 2), 2.0)), count=30).build()
    source.apply(steer(move=[1, 0, 0]))  # before the first frame is there
    first = source.tracks_for(request(0))
    moved = first.points[-1] - first.points[0]
    assert (moved[:, 0] < -1).all() and np.abs(moved[:, 1]).max() < 0.01
    source.apply(steer())
    for index in range(1, 5):
        rest = source.tracks_for(request(index))
    assert np.abs(rest.points[-1] - rest.points[0]).max() < 0.01
    for keys, check in (
        ({"move": [0, 0, 1]}, lambda d: np.abs(d).max() > 1),
        ({"turn": [0, 1, 0]}, lambda d: (d[:, 0] < -1).all()),
        ({"turn": [1, 0, 0]}, lambda d: (d[:, 1] > 1).all()),
        ({"zoom": 1}, lambda d: np.abs(d).max() > 1),
    ):
        source = CameraRecipe(Plan(route="still"), DepthMap(np.full((2, 2), 2.0)), count=30).build()
        source.apply(steer(**keys))
        tracks = source.tracks_for(request(0))
        assert check(tracks.points[-1] - tracks.points[0])


def test_steering_past_straight_up_goes_on_without_a_jump():
    rig = CameraRecipe(Plan(route="still", speed=4), ScenePlanes()).rig(WIDTH, HEIGHT, 1.0)
    rig.apply(steer(turn=[1, 0.3, 0]))
    ahead = np.array([camera.pose[:3, 2] for camera in rig.frames(180, 16.0)])
    steps = np.linalg.norm(np.diff(ahead, axis=0), axis=1)[40:]  # once it is under way
    assert ahead[:, 1].min() < -0.9 and steps.max() < 1.1 * steps.min()  # over the top, evenly


def test_a_new_path_begins_where_the_camera_is_and_speed_changes_without_a_jump():
    source = CameraRecipe(Plan(route="truck", ends="on"), DepthMap(np.full((2, 2), 4.0)), count=30).build()
    last = source.tracks_for(request(0)).points[-1]
    for index, message in enumerate(({"speed": 0.2}, {"route": "orbit", "ends": "swing"}, {"route": "still"}), 1):
        source.apply({"kind": "camera", **message})
        tracks = source.tracks_for(request(index))
        assert np.abs(tracks.points[0] - last).max() < 1
        last = tracks.points[-1]
    assert np.abs(tracks.points[-1] - tracks.points[0]).max() < 1e-4


@pytest.mark.parametrize(
    "message",
    [
        steer(move=[1, 2]), steer(move=[2, 0, 0]), steer(turn=["a", 0, 0]), steer(turn=None), steer(zoom=math.nan),
        steer(move=[True, 0, 0]), {"kind": "camera", "route": "teleport"}, {"kind": "camera", "route": ["orbit"]},
        {"kind": "camera", "speed": 1e9}, {"kind": "camera", "ends": "never"}, {"kind": "camera", "route": "keyframes"},
        {"kind": "camera", "speed": math.nan}, {"kind": "drag"},
    ],
)
def test_bad_messages_are_refused_and_change_nothing(message):
    made = [CameraRecipe(Plan(), ScenePlanes(), count=30).build() for _ in range(2)]
    with pytest.raises(InputError):
        made[0].apply(message)
    assert np.array_equal(made[0].tracks_for(request(0)).points, made[1].tracks_for(request(0)).points)
    with pytest.raises(InputError):
        made[0].apply(message)
    assert np.array_equal(made[0].tracks_for(request(1)).points, made[1].tracks_for(request(1)).points)


@pytest.mark.parametrize("plan", [{"route": "x"}, {"speed": 9}, {"focal": 1}, {"focal": "a"}, {"ends": ""}])
def test_bad_plans_are_refused(plan):
    with pytest.raises(InputError):
        Plan(**plan)


class Seen:
    """A depth that notes what it was asked about."""

    label = "test"

    def __init__(self):
        self.asked = []

    def estimate(self, image, camera, start, known):
        self.asked.append((image, camera, known))
        return np.full((4, 4), 2.0)


def test_a_new_grid_on_the_newest_frame_when_more_than_half_has_left():
    depth = Seen()
    source = CameraRecipe(Plan(route="pan", ends="on", speed=4.0), depth, count=60).build()
    ids, newest = [], None
    for index in range(8):
        tracks = source.tracks_for(request(index, {max(request(index).start - 1, 0): np.full_like(IMAGE, index)}))
        fresh = not ids or tracks.ids.tolist() != ids[-1]
        if fresh and ids:
            assert newest < 1 - LEFT and not set(tracks.ids.tolist()) & set(ids[-1])
            image, camera, known = depth.asked[-1]
            assert (image == index).all() and known is not None
            assert np.nanmedian(known) == pytest.approx(2, rel=0.5)  # what of the old view is still to be seen
            assert tracks.visible[0].mean() > 0.8
        elif ids:
            assert newest >= 1 - LEFT
        inside = ((tracks.points[-1] >= 0) & (tracks.points[-1] < (WIDTH, HEIGHT))).all(axis=1)
        newest = inside.mean()
        ids.append(tracks.ids.tolist())
    assert 2 <= len(depth.asked) <= 6


def test_a_depth_map_that_is_given_is_not_estimated_again():
    depth = Seen()
    source = CameraRecipe(Plan(route="truck"), depth, first=np.full((2, 2), 4.0), count=30).build()
    tracks = source.tracks_for(request(0))
    assert not depth.asked
    t = source._rig.camera.pose[0, 3]
    focal = source._rig.camera.focal[0]
    assert np.abs(tracks.points[-1] - tracks.points[0] + [focal * t / 4, 0]).max() < 1e-3 and t > 0


def test_a_recipe_crosses_into_a_worker_and_says_what_it_is():
    keyframes = Keyframes([FACING], np.array([0.0]), (WIDTH, HEIGHT))
    recipe = CameraRecipe(Plan(route="orbit"), ScenePlanes(), np.full((4, 4), 2.0), keyframes, count=30)
    other = pickle.loads(pickle.dumps(recipe))
    assert json.loads(json.dumps(other.describe())) == recipe.describe()
    assert recipe.describe() != CameraRecipe(Plan(), ScenePlanes(), np.full((4, 4), 3.0), keyframes, 30).describe()
    a, b = (made.build().tracks_for(request(0)) for made in (recipe, other))
    assert np.array_equal(a.points, b.points) and np.array_equal(a.ids, b.ids)


def test_the_same_cameras_again_from_the_record():
    recipe = CameraRecipe(Plan(route="orbit"), DepthMap(np.full((3, 5), 2.0)), count=30)
    source = recipe.build()
    messages = {1: [steer(move=[0, 0, 1])], 2: [{"kind": "camera", "route": "truck"}]}
    taken = []
    for index in range(3):
        for message in messages.get(index, []):
            source.apply(message)
        taken += list(source.tracks_for(request(index)).points)
    rig = recipe.rig(WIDTH, HEIGHT, pivot_of(np.full((3, 5), 2.0)))
    again = recorded(rig, (WIDTH, HEIGHT), messages, [9, 12, 12], 16.0)
    assert len(again.cameras) == 33
    start = recipe.first_camera(WIDTH, HEIGHT)
    world = start.unproject(GRID_30, np.full(len(GRID_30), 2.0))
    for points, camera in zip(taken, again.cameras, strict=True):
        assert np.abs(camera.project(world)[0] - points).max() < 1e-3


@pytest.mark.parametrize("route, ends", [("dolly", ONCE), ("zoom", ON), ("dolly-zoom", ON), (KEYFRAMES, SWING)])
def test_a_path_that_rests_turns_back_at_once(route, ends):
    keyframes = Keyframes([FACING, FACING.moved(rigid(shift=(0, 0, 1)))], np.array([0.0, 2.0]), (WIDTH, HEIGHT))
    recipe = CameraRecipe(Plan(route=route, ends=ends), DepthMap(np.ones((2, 2))), keyframes=keyframes)
    rig = recipe.rig(WIDTH, HEIGHT, 1.0)
    rest = rig.frames(60 * 16, 16.0)[-1]
    rig.apply({"kind": "camera", "speed": -1.0})
    back = rig.frames(16, 16.0)[-1]
    assert abs(back.pose[2, 3] - rest.pose[2, 3]) + abs(back.focal[0] / rest.focal[0] - 1) > 0.01


def test_a_camera_file_does_not_move_the_picture_when_it_takes_over():
    away = Camera([[FOCAL, 0, WIDTH / 2 + 9], [0, FOCAL, HEIGHT / 2 - 4], [0, 0, 1]], np.eye(4))
    keyframes = Keyframes([away], np.array([0.0]), (WIDTH, HEIGHT))
    rig = CameraRecipe(Plan(route="still"), DepthMap(np.ones((2, 2))), keyframes=keyframes).rig(WIDTH, HEIGHT, 1.0)
    rig.frames(4, 16.0)
    rig.apply({"kind": "camera", "route": KEYFRAMES})
    np.testing.assert_allclose(rig.frames(1, 16.0)[0].middle, FACING.middle)
    rig = CameraRecipe(Plan(route=KEYFRAMES), DepthMap(np.ones((2, 2))), keyframes=keyframes).rig(WIDTH, HEIGHT, 1.0)
    np.testing.assert_allclose(rig.frames(2, 16.0)[1].middle, away.middle)


@dataclass
class LeftOf:
    """`ChunkRequest.things` where all left of `edge` is one thing, and beyond it none."""

    edge: float

    def __call__(self, points):
        return np.int64([points[:, 0] < self.edge] * 2)


def test_a_thing_that_a_drag_holds_goes_with_it_alone():
    layers = make_source(CameraRecipe(Plan(route="truck", ends="on"), ScenePlanes(), count=60), 0, "let_go")

    def visible(index, edge):
        """Of the grid's points in the frame, those that are seen, and where they are."""
        tracks = layers.tracks_for(replace(request(index), things=LeftOf(edge)))
        base = (tracks.ids < BASE_IDS) & ((tracks.points[0] >= 0) & (tracks.points[0] < (WIDTH, HEIGHT))).all(1)
        return dict(zip(tracks.ids[base].tolist(), tracks.visible[0, base].tolist(), strict=True)), tracks

    seen, tracks = visible(0, 48)
    assert all(seen.values())
    layers.apply({"kind": "pin", "id": 1, "x": 80, "y": 30, "frame": 8})  # beside the thing
    seen, _ = visible(1, 48)
    assert sum(seen.values()) > 0.8 * len(seen)
    layers.apply({"kind": "remove", "id": 1})
    assert all(visible(2, 48)[0].values())
    layers.apply({"kind": "pin", "id": 2, "x": 10, "y": 30, "frame": 32})  # on it
    seen, tracks = visible(3, 48)
    at = dict(zip(tracks.ids.tolist(), tracks.points[0, :, 0].tolist(), strict=True))
    on = {track for track in seen if at[track] < 48}
    assert on and not any(seen[track] for track in on)
    assert sum(seen[track] for track in seen.keys() - on) > 0.8 * len(seen.keys() - on)
    seen, _ = visible(4, 10)  # it has gone to the left
    assert not any(seen[track] for track in on & seen.keys())
    seen, tracks = visible(5, 80)  # to the right: what it covers tells nothing of what lies behind
    at = dict(zip(tracks.ids.tolist(), tracks.points[0, :, 0].tolist(), strict=True))
    assert not any(seen[track] for track in seen if at[track] < 80)
    layers.apply({"kind": "remove", "id": 2})
    assert all(visible(6, 48)[0].values())
