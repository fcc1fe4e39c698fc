"""What a tracker's tracks tell: which are of a thing and which of what is behind it, and that things stay whole."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motionstream.controls.transfer import ClipMotion, Settings, WebcamMotion
from motionstream.machine import Choice, fit_pictures
from motionstream.model.checkpoint import load_model
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.presets import PRESETS
from motionstream.model.prior_state import PriorState
from motionstream.model.tracked import (
    BACKGROUND,
    FROM_ALL_SIDES,
    HOLE,
    MANY,
    STEP,
    THING,
    as_their_tracks,
    each_by_itself,
    in_one_piece,
    of_the_background,
    own_tracks,
    strays,
    well_within,
)
from motionstream.model.warping import CELL, cell_centres
from motionstream.tracks import ChunkRequest, Tracks
from motionstream.video import read_image

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS, COLUMNS, FRAMES = 60, 90, 6


def thing() -> np.ndarray:
    """Numbers of cells: 1 of a thing in the middle, 0 around it."""
    number = np.zeros((ROWS, COLUMNS), int)
    number[20:40, 30:60] = 1
    return number


def going(starts, by) -> np.ndarray:
    """Paths [T, N, 2] from places, pixels, each with its own velocity, pixels a frame."""
    return np.float32(starts) + np.arange(FRAMES)[:, None, None] * np.float32(by)


def test_a_trackers_tracks_move_each_by_itself_and_those_of_grids_together():
    starts = np.random.default_rng(0).uniform(0, 100, (200, 2))
    visible = np.ones((FRAMES, 200), bool)
    own = 3 * STEP * np.arange(200)[:, None] * [1, 0] / (FRAMES - 1)
    assert each_by_itself(going(starts, own), visible)
    assert each_by_itself(going(starts[:MANY], own[:MANY]), visible[:, :MANY])
    assert not each_by_itself(going(starts[: MANY - 1], own[: MANY - 1]), visible[:, : MANY - 1])
    assert not each_by_itself(going(starts, own[np.arange(200) % (MANY - 1)]), visible)  # grids
    assert not each_by_itself(going(starts, 0 * own), visible)
    spokes = np.stack([np.cos(turn := np.linspace(0, 2, FRAMES)), -np.sin(turn), np.sin(turn), np.cos(turn)], -1)
    wheel = (starts - 50) @ spokes.reshape(-1, 2, 2) + 50
    assert not each_by_itself(wheel.astype(np.float32), visible)  # one that turns
    wheel += np.random.default_rng(1).normal(0, 0.05, wheel.shape)
    assert each_by_itself(wheel.astype(np.float32), visible)  # as a clip of it is tracked
    visible[:, MANY - 1 :] = False  # what is not seen does not tell
    assert not each_by_itself(going(starts, own), visible)
    assert not each_by_itself(np.zeros((FRAMES, 0, 2)), np.zeros((FRAMES, 0), bool))


def scattered(seed: int, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Places of tracks, pixels, and the number of the thing that each lies on."""
    places = np.random.default_rng(seed).uniform(0, 1, (count, 2)) * (CELL * COLUMNS, CELL * ROWS)
    return places, thing()[tuple((places[:, ::-1] / CELL).astype(int).T)]


@given(st.integers(0, 100), st.floats(-6, 6), st.floats(-6, 6))
def test_a_track_on_a_thing_that_moves_as_the_background_strays_however_the_camera_moves(seed, pan, tilt):
    places, held = scattered(seed)
    asked = np.arange(len(places)) >= 90
    by = np.where(held[:, None] > 0, [4.0, 1.0], [0.0, 0.0])
    behind = asked & (held > 0) & (np.arange(len(places)) % 2 == 0)
    by[behind] = 0
    paths, visible = going(places, by + [pan, tilt]), np.ones((FRAMES, len(places)), bool)
    assert np.array_equal(strays(paths, visible, held, asked, ~asked), behind)
    assert not strays(paths, visible, held, asked & ~behind, ~asked).any()
    assert not strays(paths, visible, held, asked, ~asked & (held == 0)).any()  # of the thing nothing is known
    assert not strays(paths, visible, held, asked, ~asked & (held > 0)).any()


def test_tracks_are_compared_while_both_are_seen():
    places, held = scattered(1)
    asked = np.arange(len(places)) >= 90
    visible = np.ones((FRAMES, len(places)), bool)
    visible[:2, asked] = False  # they are found in the third frame
    paths = going(places, np.where(held[:, None] > 0, [4.0, 0.0], [0.0, 0.0]))
    paths[:2, asked] = 1e4  # nobody knows
    assert not strays(paths, visible, held, asked, ~asked).any()
    paths[2:, asked] = places[asked]  # those on the thing are of what is behind it
    assert np.array_equal(strays(paths, visible, held, asked, ~asked), asked & (held > 0))
    visible[:, ~asked & (held == 0)] = False
    assert not strays(paths, visible, held, asked, ~asked).any()


def test_a_thing_that_stays_still_hardly_differs_from_its_background():
    places, held = scattered(2)
    asked, jitter = np.arange(len(places)) >= 90, np.random.default_rng(2).normal(0, 0.05, (FRAMES, len(places), 2))
    paths = going(places, np.zeros((len(places), 2))) + jitter
    assert not strays(paths, np.ones(paths.shape[:2], bool), held, asked, ~asked).any()


@pytest.mark.parametrize(("goes", "by", "stray"), ((4.0, 0.0, True), (4.0, 1.5, False), (0.2, 0.0, False)))
def test_only_what_is_clearly_less_like_its_thing_strays(goes, by, stray):
    places, held = scattered(3)
    asked = np.arange(len(places)) >= 90
    velocity = np.where(held[:, None] > 0, [goes, 0.0], [0.0, 0.0])
    velocity[asked] = by, 0
    found = strays(going(places, velocity), np.ones((FRAMES, len(places)), bool), held, asked, ~asked)
    assert np.array_equal(found, asked & (held > 0) & stray)


def test_at_first_what_lies_well_within_a_thing_tells_how_that_moves():
    """Most of what lies on it is where it ends, and of what is behind it."""
    inside, edge = [[80, 60], [90, 50], [100, 66]], [[60 + 0.5 * n, 41] for n in range(30)]
    behind = [[20 + 6 * n, 20] for n in range(20)]
    starts = np.float32(inside + edge + behind)
    velocity = np.where(np.arange(len(starts))[:, None] < 3, [4.0, 0.0], [0.0, 0.0])
    tracks = Tracks(going(starts, velocity), np.ones((FRAMES, len(starts)), bool), np.arange(len(starts)))
    cells = (starts[:, 1] // CELL * COLUMNS + starts[:, 0] // CELL).astype(int)
    centres = cell_centres(CELL * ROWS, CELL * COLUMNS).numpy()
    found = dict(of_the_background(tracks, np.zeros(len(starts), bool), starts, cells, thing(), centres))
    assert sorted(found) == list(range(3, 33))
    assert all(thing().flat[cell] == 0 and np.linalg.norm(centres[cell] - starts[n]) < 4 for n, cell in found.items())


def test_what_is_near_the_edge_of_a_thing_tells_nothing():
    within = well_within(thing())
    assert within[22:38, 32:58].all() and within[:18].all() and within[:, :28].all()
    assert not within[18:22, 30:60].any() and not within[20:40, 58:62].any()


def test_what_is_uncovered_beside_a_thing_is_of_the_background():
    number, landed = thing(), cell_centres(CELL * ROWS, CELL * COLUMNS).numpy()
    moved = landed + 20.0 * (number.reshape(-1, 1) > 0) * [1, 0]  # to the right
    left = 20 + ROWS // 4, 30  # row and column of a cell at its left edge
    cell = left[0] * COLUMNS + left[1]
    firsts = np.float32([moved[cell] - [HOLE + 1, 0], moved[cell] - [HOLE - 1, 0], [10, 10]])
    tracks = Tracks(going(firsts, np.zeros((3, 2))), np.ones((FRAMES, 3), bool), np.arange(3))
    cells = np.array([cell, cell, 0])
    given = tracks, np.array([False, False, True]), firsts, cells, number, moved
    ((track, nearest),) = of_the_background(*given)
    assert track == 0 and number.flat[nearest] == 0
    away = np.linalg.norm(moved[number.ravel() == 0] - firsts[0], axis=1)
    assert np.linalg.norm(moved[nearest] - firsts[0]) == away.min()
    unseen = Tracks(tracks.points, tracks.visible & [False, True, True], tracks.ids)
    assert not list(of_the_background(unseen, *given[1:]))
    assert not list(of_the_background(tracks, np.ones(3, bool), *given[2:]))  # those of before stay where they are
    assert not list(of_the_background(*given[:4], np.ones_like(number), moved))  # there is no background


def test_cells_of_a_thing_follow_the_tracks_that_hold_it():
    number, held = np.array([[0, 1, 1, 2]]), np.array([0, 1, 1])
    weights = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.2, 0.6, 0.1, 0.1], [0.3, 0.7, 1e-7, 0.0], [0.0, 0.5, 0.25, 0.25]])
    found = own_tracks(weights, number, held)
    torch.testing.assert_close(found[1], torch.tensor([0.2, 0.0, 0.4, 0.4]))
    assert torch.equal(found[[0, 2, 3]], weights[[0, 2, 3]])  # background, what looks otherwise, what nobody holds
    assert own_tracks(torch.ones(4, 1), number, np.zeros(0, int)).shape == (4, 1)


def together(motion: np.ndarray, number: np.ndarray) -> np.ndarray:
    moved = torch.tensor(motion, dtype=torch.float32).flatten(1, 2)
    return in_one_piece(moved, number).unflatten(1, number.shape).numpy()


@given(st.integers(0, 1000))
def test_a_thing_goes_as_its_own_tracks_do_where_they_go_as_one(seed):
    """The tracks go by an affine map, most of the cells stay where they are, or have left the frame."""
    rng, number = np.random.default_rng(seed), thing()
    rows, columns = np.nonzero(number)
    cells = np.flatnonzero(number)
    centres = CELL * (np.stack([columns, rows], 1) + 0.5)
    on = rng.choice(len(rows), 40, replace=False)
    anchors = np.concatenate([centres[on], rng.uniform(0, 8, (5, 2))])
    held, side = np.array([1] * 40 + [0] * 5), CELL * len(rows) ** 0.5
    affine, by = rng.normal(0, 0.2, (2, 2)), rng.normal(0, 30, 2)
    went = (centres - centres.mean(0)) @ affine + by
    moved = np.zeros((2, 45, 2))
    moved[:, :40] = went[on]
    visible, motion = np.ones((2, 45), bool), torch.from_numpy(rng.normal(0, 1, (2, number.size, 2))) * side

    def off():
        """How far the thing, in each frame, is from its affine map, of what strays at all."""
        found = as_their_tracks(motion, anchors, moved, visible, held, number)
        behind = torch.from_numpy(number.ravel() == 0)
        assert torch.equal(found[:, behind], motion[:, behind])
        changed = (found[:, cells] != motion[:, cells]).any(-1).any(1).tolist()
        return changed, np.linalg.norm(found[:, cells].numpy() - went, axis=2).max(1) / side

    limit = FROM_ALL_SIDES[0]
    changed, far = off()
    assert changed == [True, True] and far.max() < 1.5 * limit
    moved[1, :6] += [2 * side, 0]  # a few stray
    assert off()[0] == [True, True] and off()[1].max() < 1.5 * limit
    moved[1, :20] += rng.normal(0, side, (20, 2))
    assert off()[0] == [True, False]
    visible[1, :20] = False
    assert off()[0] == [True, True] and off()[1].max() < 1.5 * limit
    visible[0, :40] = False  # of which nothing is known
    assert off()[0] == [False, True]


@given(st.integers(0, 1000))
def test_what_moves_as_a_whole_goes_on_doing_so(seed):
    rng, number = np.random.default_rng(seed), thing()
    y, x = np.mgrid[:ROWS, :COLUMNS] - np.array([ROWS / 2, COLUMNS / 2])[:, None, None]
    maps = rng.normal(0, [10, 0.2, 0.2], (2, 2, 3))  # of the background and the thing, each an affine one
    (a, b), c = rng.normal(0, 0.2, 2), THING[2] ** rng.uniform(-0.5, 0.5)
    maps[1, :, 1:] = CELL * (np.array([[1 + a, -b], [b, 1 + a]]) @ np.diag([c, 1 / c]) - np.eye(2))  # it is not sheared
    motion = np.where(number[..., None] > 0, *(np.stack([x * 0 + 1, x, y], -1) @ one.T for one in maps[::-1]))[None]
    assert np.abs(together(motion, number) - motion).max() < 0.02 * np.abs(motion).max()
    assert not together(0 * motion, number).any()


@pytest.mark.parametrize(("part", "limit"), ((slice(20, 25), THING[0]), (slice(0, 8), BACKGROUND[0])))
def test_what_is_torn_off_goes_with_what_is_around_it(part, limit):
    number = thing()
    motion = np.where(number[..., None] > 0, [12.0, 0.0], [-3.0, 2.0])[None].repeat(2, 0)
    size = CELL * (number == number[part.start, 40]).sum() ** 0.5
    off = np.zeros_like(motion)
    off[1, part, 35:42, 1] = 1.5 * limit * size
    found = together(motion + off, number)
    assert np.abs(found - motion).max() < 1  # without it, more than fifteen
    mild = together(motion + off / 3, number)[1, part, 35:42, 1] - motion[1, part, 35:42, 1]
    assert mild.max() > limit * size / 3 and mild.min() > limit * size / 10  # a thing bends


@pytest.mark.parametrize(
    "shear, sides",  # that it should have
    [
        ([[0, 0.8], [0, 0]], (THING[2] ** 0.5, THING[2] ** -0.5)),  # as large as it was
        ([[0.5, 0], [0, 0]], (THING[2], 1)),
        ([[0, 0], [0, -0.4]], (1, 1 / THING[2])),
        ([[1.4, 0], [0, 0.6]], (1.6 * THING[2], 1.6)),  # larger
        ([[0, -0.9], [0.9, -0.5]], (THING[2] ** 0.5, THING[2] ** -0.5)),  # turned
    ],
)
def test_a_thing_is_not_sheared_out_of_shape_but_turned_and_made_larger_the_background_is(shear, sides):
    number = thing()
    y, x = np.mgrid[:ROWS, :COLUMNS] - np.array([ROWS / 2, COLUMNS / 2])[:, None, None]
    motion = CELL * (np.stack([x, y], -1) @ np.array(shear).T)[None]
    found, thin = together(motion, number), number > 0
    inside = cv2.erode(thin.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.abs(found - motion)[0, ~thin].max() < 0.02 * np.abs(motion).max()
    places = np.stack([x, y, 1 + 0 * x], -1)[inside]
    linear = (np.linalg.lstsq(places, found[0, inside], rcond=None)[0][:2] / CELL + np.eye(2)).T
    assert np.linalg.svd(linear)[1] == pytest.approx(sides, rel=0.03)


def test_most_of_a_thing_tells_how_it_moves():
    number = thing()
    motion = np.where(number[..., None] > 0, [12.0, 0.0], [0.0, 0.0])[None]
    torn = motion.copy()
    torn[0, 20:40, 30:42, 0] = -40  # two fifths of it went with something else
    assert np.abs(together(torn, number) - motion)[0, :, 46:].max() < 1.5
    assert np.abs(together(torn, number) - motion).max() < 10


@torch.no_grad()
def begun_with_the_balloon(prior: MotionPrior) -> tuple[PriorState, tuple[int, int], np.ndarray]:
    """A stream of the example at 140 tokens; its height and width; and which cells [h, w] are of the balloon."""
    pictures = fit_pictures(PRESETS["embedded"], Choice(140), read_image(EXAMPLES / "balloon.jpg"))
    state = prior.start(*(torch.tensor(one).permute(2, 0, 1) / 127.5 - 1 for one in pictures))
    height, width = state.size
    rows, columns = np.mgrid[: height // CELL, : width // CELL]
    inside = np.hypot((columns / columns.max() - 0.375) / 0.11, (rows / rows.max() - 0.38) / 0.24) < 1
    return state, state.size, inside


def test_a_clip_that_follows_a_thing_does_not_tear_it():
    """As of a camera that goes along with it: the balloon stays, the land goes by, and each chunk finds new points."""
    prior, rng = load_model("embedded", "cpu", torch.float32).motion_prior, np.random.default_rng(0)
    state, (height, width), inside = begun_with_the_balloon(prior)
    ids, at, parts = np.arange(0), np.zeros((0, 2)), []
    with torch.no_grad():
        for chunk in range(6):
            stays = rng.random(len(at)) < 0.7  # the others are lost
            new = rng.uniform(0, 1, (240 - stays.sum(), 2)) * (width, height)
            at, ids = np.concatenate([at[stays], new]), np.concatenate([ids[stays], 1000 * chunk + np.arange(len(new))])
            balloon = np.hypot(*((at - [0.375 * width, 0.38 * height]) / [0.13 * width, 0.27 * height]).T) < 1
            points = at + np.arange(12)[:, None, None] * np.where(balloon[:, None], 0, [-1.5, 0]) * width / 480
            points += rng.normal(0, 0.1, points.shape)
            visible = ((points >= 0) & (points < (width, height))).all(-1)
            moved = prior.motion(state, Tracks(np.float32(points), visible, ids))
            parts.append(state.parts)
            at = points[-1]
            ids, at = ids[visible.all(0)], at[visible.all(0)]
    assert state.tracked and np.array_equal(parts[1], parts[-1])  # rims are not lost one by one
    moved = moved[-1].unflatten(0, (height // CELL, width // CELL)).numpy()
    assert np.abs(moved[inside]).max() < 0.03 * width
    land = moved[-height // 8 :, width // 3 :]
    assert np.median(land[..., 0]) == pytest.approx(-72 * 1.5 * width / 480, rel=0.1)
    assert cv2.connectedComponents((np.hypot(*moved.T).T < 0.06 * width).astype(np.uint8))[0] <= 3


def test_a_webcam_does_not_tear_a_thing_with_the_first_motion_it_shows():
    """The visitor stands still before some of the balloon, and what is behind them goes by."""
    prior, rng = load_model("embedded", "cpu", torch.float32).motion_prior, np.random.default_rng(0)
    state, (height, width), inside = begun_with_the_balloon(prior)
    blocks = rng.integers(0, 255, (2, 24, 80), np.uint8)
    wall, visitor = (cv2.resize(one, (8 * 80, 8 * 24), interpolation=cv2.INTER_CUBIC) for one in blocks)
    webcam = WebcamMotion(Settings(tracker="lucas-kanade"))
    with torch.no_grad():
        for chunk, pictures in enumerate((1, 16)):
            for number in range(pictures):
                shown = wall[:, 3 * number * chunk :][:, :320].copy()
                shown[:, 20:120] = visitor[:, 20:120]
                jpeg = base64.b64encode(cv2.imencode(".jpg", shown)[1]).decode()
                webcam.apply({"kind": "webcam", "jpeg": jpeg, "t": 0})
            tracks = webcam.tracks_for(ChunkRequest(chunk, 9 * chunk, 9 + 3 * chunk, width, height, 16.0, {}))
            moved = prior.motion(state, tracks)
    moved = moved[-1].unflatten(0, (height // CELL, width // CELL)).numpy()
    assert np.hypot(*moved[:, -20:].T).mean() > 0.08 * width
    assert np.ptp(moved[inside], axis=0).max() < 0.05 * width


def test_a_clip_does_not_tear_a_thing_of_another_picture_at_once():
    """Where the balloon's left half is, the clip stands still; where its right half is, something goes by."""
    prior, rng = load_model("embedded", "cpu", torch.float32).motion_prior, np.random.default_rng(0)
    _, (height, width), inside = begun_with_the_balloon(prior)
    at = rng.uniform(0, 1, (300, 2)) * (width, height)
    points = at + np.arange(9)[:, None, None] * np.where(at[:, :1] > 0.375 * width, [3.0, 0], 0)
    clip = Tracks(np.float32(points + rng.normal(0, 0.1, points.shape)), np.ones((9, 300), bool), np.arange(300))
    bent = {}
    for another in (False, True):
        source = ClipMotion(iter([clip]), (width, height), Settings(), another)
        tracks = source.tracks_for(ChunkRequest(0, 0, 9, width, height, 16.0, {}))
        with torch.no_grad():
            moved = prior.motion(begun_with_the_balloon(prior)[0], tracks)[-1].view(*inside.shape, 2).numpy()
        assert moved[inside.shape[0] // 2, -4:].mean(0) == pytest.approx([24, 0], abs=3)
        bent[another] = np.ptp(moved[inside], axis=0).max()
    assert bent[True] < 0.4 * bent[False]
