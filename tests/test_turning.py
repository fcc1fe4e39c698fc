"""Things turn: exactly, whole and sharp, about any place and as far as they are turned, and again after that."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motionstream import load_model
from motionstream.controls.drag import DragSource
from motionstream.machine import Choice, fit_pictures
from motionstream.model.completion import Completion
from motionstream.model.grids import ALIKE, GRID, holding
from motionstream.model.prior_state import PriorState
from motionstream.model.splatting import laid_out, splat
from motionstream.model.turning import APART, bodies, straightened, turning, turns
from motionstream.model.warping import CELL, cell_centres, cell_numbers
from motionstream.tracks import ChunkRequest, Tracks, angles
from motionstream.video import read_image

EXAMPLES = Path(__file__).parents[1] / "examples"
NO_PAIRS = torch.zeros(2, 0, dtype=torch.long)
TURN = st.floats(-3.1, 3.1).filter(lambda turn: abs(turn) > 0.3)
PLACE = st.tuples(*[st.floats(-50, 50)] * 2)


def rotation(turn: float | np.ndarray) -> np.ndarray:
    """[..., 2, 2], of column vectors, clockwise as y points down."""
    return np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], -1).reshape(*np.shape(turn), 2, 2)


def spun(points: np.ndarray, turn: float | np.ndarray, about: np.ndarray) -> np.ndarray:
    """Points [K, 2] turned about a place, [..., K, 2]."""
    return (points - about) @ rotation(turn).swapaxes(-1, -2) + about


@given(turn=st.floats(-3.1, 3.1), about=PLACE, goes=PLACE, seed=st.integers(0, 99))
def test_points_that_turn_are_found_to_have_turned(turn, about, goes, seed):
    points = np.random.default_rng(seed).uniform(-40, 40, (4, 2))
    end = np.stack([spun(points, turn, about) + goes, points + goes])
    np.testing.assert_allclose(angles(points, end), [turn if abs(turn) > 1e-6 else 0, 0], atol=1e-5)


def test_what_turning_does_not_explain_is_no_turning():
    """A fish that goes while a fin is held turns nothing; nor does what is drawn away from a pin."""
    fish = np.array([[x, 0.0] for x in range(0, 64, 4)] + [[40.0, 16.0]])
    sideways = np.array([[0.0, -30.0]] * 16 + [[0.0, 0.0]])
    assert angles(fish, (fish + sideways)[None]) == 0
    pin, ends = np.zeros(2), np.linspace([40, 30], [70, 0], 400)  # beside the pin, and away from it
    found = angles(np.array([pin, [40, 0]]), np.stack([np.zeros_like(ends), ends], 1))
    assert found[0] == pytest.approx(np.arctan(3 / 4)) and found[-1] == 0
    assert np.abs(np.diff(found)).max() < 0.02  # nothing jumps on the way


def test_a_grid_turns_about_its_middle():
    path = np.array([[50.0, 50.0], [53.0, 49.0]])
    grid = Tracks.rigid_grid(path, 10, 3, np.arange(9), np.array([0.0, np.pi / 2]))
    still = Tracks.rigid_grid(path, 10, 3, np.arange(9)).points
    np.testing.assert_array_equal(grid.points[0], still[0])
    np.testing.assert_allclose(grid.points[1], spun(still[1], np.pi / 2, path[1]), atol=1e-4)
    np.testing.assert_allclose(grid.points[1, 0], (63, 39), atol=1e-4)  # its top left corner is the right one now


def test_bodies_are_what_looks_alike_on_one_thing():
    alike = np.eye(5, dtype=bool)
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 4)):
        alike[[a, b], [b, a]] = True
    found = bodies(alike, np.array([2, 2, 2, 3, 0]))
    assert len(set(found[:3])) == 1 and found[3] not in (0, found[0]) and found[4] == 0
    alike[0, 1] = alike[1, 0] = False
    assert len(set(bodies(alike, np.array([2, 2, 2, 3, 0]))[:3])) == 2
    assert bodies(np.zeros((0, 0), bool), np.zeros(0, int)).shape == (0,)


@given(turn=TURN, about=PLACE, goes=PLACE)
def test_tracks_of_what_turns_go_alike_in_its_frame_and_cells_come_where_it_turns_them(turn, about, goes):
    """One thing turns as it goes, and with it one that nothing holds; another stays, and so does the ground."""
    rng, share = np.random.default_rng(0), np.linspace(0, 1, 5)
    places = torch.tensor(rng.uniform(10, 50, (6, 2))).float()
    number = np.zeros((30, 40), int)
    number[2:20, 2:20], number[2:20, 30:38], number[20:24, 5:15] = 1, 2, 4
    held = np.array([1, 1, 1, 1, 2, 2])
    end = spun(places[:4].numpy(), turn * share, np.array(about)) + share[:, None, None] * goes
    moved = torch.zeros(5, 6, 2)
    moved[:, :4] = torch.tensor(end).float() - places[:4]
    found = turns(places, moved, held, held)
    assert [one.thing for one in found] == [1]
    straight, _ = straightened(places, moved, held, NO_PAIRS, found)
    torch.testing.assert_close(straight[:, :4], straight[:, :1].expand(-1, 4, -1), atol=1e-3, rtol=0)
    assert straight[-1, 0].norm() > APART - 1e-3 and not straight[:, 4:].any()
    centres = cell_centres(60, 80)
    own = np.isin(number, (1, 4)).ravel()
    cells = straight[:, :1] * torch.from_numpy(own)[:, None]
    motion = cells + turning(centres, cells, number, held, found)
    wanted = spun(centres[own].numpy(), turn * share, np.array(about)) + share[:, None, None] * goes
    np.testing.assert_allclose((centres + motion)[:, own], wanted, atol=5e-3)
    assert not motion[:, ~own].any()


def test_what_hardly_turns_and_what_only_goes_is_told_as_it_is():
    places, held = torch.tensor([[10.0, 10.0], [30.0, 10.0], [20.0, 30.0]]), np.array([1, 1, 1])
    gone = torch.tensor([[5.0, -3.0]]).expand(1, 3, 2)
    assert turns(places, gone, held, held) == []
    hardly = torch.tensor(spun(places.numpy(), 0.01, np.zeros(2)) - places.numpy())[None].float()
    assert turns(places, hardly, held, held) == []
    assert turns(places, 5 * hardly, np.zeros(3, int), held) == []  # they hold no body
    motion = torch.rand(1, 1200, 2)
    assert not turning(cell_centres(60, 80), motion, np.ones((30, 40), int), held, []).any()


def test_a_track_that_stays_on_a_thing_that_turns_without_it_stays():
    """As a pin in front of it does, of which one point is on its rim."""
    places, held = torch.tensor([[10.0, 10.0], [30.0, 10.0], [20.0, 30.0], [32.0, 20.0]]), np.array([1, 1, 1, 1])
    moved = torch.zeros(1, 4, 2)
    moved[0, :3] = torch.tensor(spun(places[:3].numpy(), 2.0, np.array([20.0, 16.0]))).float() - places[:3]
    found = turns(places, moved, np.array([1, 1, 1, 0]), held)
    straight, together = straightened(places, moved, held, NO_PAIRS, found)
    assert not straight[0, 3].any() and straight[0, :3].norm(dim=1).min() > 15
    torch.testing.assert_close(together, straight)


def test_a_point_beside_a_thing_is_told_as_of_its_grid_if_it_is():
    places, held = torch.tensor([[10.0, 10.0], [30.0, 10.0], [36.0, 10.0]]), np.array([1, 1, 0])
    moved = (torch.tensor(spun(places.numpy(), 1.0, np.array([20.0, 12.0]))).float() - places)[None]
    found = turns(places, moved, held, held)
    straight, together = straightened(places, moved, held, torch.tensor([[2], [1]]), found)
    torch.testing.assert_close(straight[0, 2], moved[0, 2])
    torch.testing.assert_close(together[0, 2], straight[0, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("on, moves, holds", [(3, True, False), (4, True, True), (4, False, False), (5, False, True)])
def test_a_grid_holds_what_enough_of_it_is_on(on, moves, holds):
    grid = torch.tensor(Tracks.rigid_grid(np.array([[20.0, 20.0]]), 6, 3, np.arange(9)).points[0])
    beside = torch.tensor([[30.0, 24.0]])  # of no grid, since it goes elsewhere
    held = np.array([1] * on + [0] * (9 - on) + [1])
    moved = torch.cat([torch.full((9, 2), 2 * ALIKE if moves else 0.0), torch.tensor([[5.0, 0.0]])])
    found = holding(held, torch.cat([grid, beside]), moved)
    assert found[:on].tolist() == [holds] * on and found[9]


def test_many_single_points_hold_what_they_are_on():
    places = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 300
    held = np.arange(40) % 2 + 1
    assert holding(np.ones(40, int), places, torch.zeros(40, 2)).all()
    apart = torch.stack([torch.arange(40.0) * 2 * GRID, torch.full((40,), 300.1)], 1)
    assert holding(held, apart, torch.zeros(40, 2)).all() and holding(held, apart, apart / 7).all()


@pytest.mark.parametrize("turn", [0.7, 2.5, 3.1])
def test_what_is_turned_over_is_seen_where_it_is_not_half_a_cell_beside(turn):
    h, w = 40, 50
    centres = cell_centres(CELL * h, CELL * w).numpy()
    displacement = spun(centres, turn, np.array([51.3, 38.9])) - centres
    backward, coverage = splat(displacement.astype(np.float32), np.zeros(h * w, np.float32), CELL * h, CELL * w)
    wanted = spun(centres, -turn, np.array([51.3, 38.9])) - centres
    inside = (np.abs(wanted + centres - [50, 40]) < [46, 36]).all(1) & (coverage.ravel() > 0.5)
    assert inside.sum() > 1000
    np.testing.assert_allclose(backward.reshape(2, -1).T[inside], wanted[inside], atol=0.2)


def test_motion_is_followed_between_cells_only_where_it_is_turned_over():
    x, y = cell_numbers(20, 30).reshape(2, 20, 30)
    assert len(laid_out(np.stack([0.8 * x, 0.8 * y]), x)) == 6
    turned_over = laid_out(np.stack([-4 * x, -4 * y]), x)
    assert len(turned_over) == 10
    np.testing.assert_allclose(turned_over[6:, 0], [2, 0, 0, 2])  # a pixel further on it shows what lies one before
    folded = np.stack([-2 * x, -4 * y])  # onto one column
    assert len(laid_out(folded, x)) == 10 and not laid_out(folded, x)[6:].any()


def test_behind_what_a_thing_turns_about_is_filled_as_the_rest_is():
    """Else it would be a blur when the thing goes elsewhere after that."""
    rng, (h, w) = np.random.default_rng(0), (40, 60)
    picture = rng.integers(0, 255, (2 * h, 2 * w, 3), np.uint8)
    front, nowhere = np.zeros((h, w), np.float32), np.zeros((h, w), bool)
    front[12:28, 10:30] = 1
    centres = cell_centres(CELL * h, CELL * w).numpy()
    middle, on, goes = (20, 20), (front > 0).ravel()[:, None], np.float32([20.0, 0.0])
    known, unknown = Completion.empty(h, w), Completion.empty(h, w)
    for far in (0, 50):
        turned = spun(centres, 1.0, centres[middle[0] * w + middle[1]])
        moved = np.float32(on * (turned + (far, 0) - centres)).reshape(1, h, w, 2)
        alone = moved - np.float32(on * (goes + (far, 0))).reshape(1, h, w, 2)
        known.uncover(picture, front, front > 0, nowhere, moved, turned=alone)
        unknown.uncover(picture, front, front > 0, nowhere, moved)
    assert known.seen[middle] > 0.99 > 0.5 > unknown.seen[middle]


@pytest.fixture(scope="module")
def student():
    return load_model("embedded")


class Held:
    """An example whose main thing a visitor's hands hold; times are chunks of nine frames."""

    def __init__(self, student, name: str, budget: int):
        pictures = fit_pictures(student.preset, Choice(budget), read_image(EXAMPLES / f"{name}.jpg"))
        self.image, self.prior = pictures[0], student.motion_prior
        self.height, self.width = self.image.shape[:2]
        shown = (torch.tensor(picture).permute(2, 0, 1) / 127.5 - 1 for picture in pictures)
        self.state: PriorState = self.prior.start(*shown)
        self.source, self.index = DragSource(), 0
        self.source.apply({"kind": "grid", "spacing": self.height / 14, "size": 3})

    def at(self, x: float, y: float) -> np.ndarray:
        return np.array([x * self.width, y * self.height])

    def path(self, key: int, points: np.ndarray, seconds: float) -> None:
        self.source.apply({"kind": "path", "id": key, "points": points.tolist(), "frame": 0, "seconds": seconds})

    def chunk(self) -> np.ndarray:
        """Where cells have come to, [h, w, 2]; also seen: `Moved`."""
        start, self.index = 9 * self.index, self.index + 1
        history, things = {start: self.image}, partial(self.prior.things_at, self.state)
        request = ChunkRequest(self.index - 1, start, 9, self.width, self.height, 16.0, history, things)
        self.seen = self.prior.step(self.state, self.source.tracks_for(request))
        came = cell_centres(self.height, self.width) + self.state.latest
        return came.view(*self.state.number.shape, 2).numpy()


THINGS = {
    "balloon": ((0.36, 0.25), (0.36, 0.6), ((0.375, 0.16), (0.3, 0.3), (0.45, 0.4), (0.375, 0.72)), (0.7, 0.9)),
    "car": ((0.38, 0.64), (0.65, 0.64), ((0.3, 0.65), (0.55, 0.5), (0.45, 0.42), (0.7, 0.66)), (0.8, 0.2)),
    "planet": ((0.62, 0.45), (0.78, 0.4), ((0.7, 0.25), (0.65, 0.5), (0.5, 0.52), (0.9, 0.3)), (0.3, 0.9)),
}


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("budget", [100, 240])
@pytest.mark.parametrize("name", THINGS)
def test_a_thing_that_is_held_at_two_places_turns_whole_as_far_as_it_is_turned(student, name, budget, pinned):
    """By 150 degrees, about its middle or, held by a pin, about that; and its surroundings stay."""
    first, second, parts, beside = THINGS[name]
    held = Held(student, name, budget)
    ends = np.stack([held.at(*first), held.at(*second)])
    about, turn = ends[0] if pinned else ends.mean(0), np.deg2rad(150)
    arcs = spun(ends, turn * np.linspace(0, 1, 37), about).swapaxes(0, 1)
    if pinned:
        held.source.apply({"kind": "pin", "id": 0, "x": ends[0, 0], "y": ends[0, 1], "frame": 0})
    else:
        held.path(0, arcs[0], 36 / 16)
    held.path(1, arcs[1], 36 / 16)
    for _ in range(5):
        came = held.chunk()
    for part in parts:
        place = held.at(*part)
        column, row = (place / CELL).astype(int)
        centre = CELL * (np.array([column, row]) + 0.5)
        assert np.linalg.norm(came[row, column] - spun(centre[None], turn, about)[0]) < 2.5
    column, row = (held.at(*beside) / CELL).astype(int)
    np.testing.assert_allclose(came[row, column], CELL * (np.array([column, row]) + 0.5), atol=0.1)


def test_a_drag_that_turns_a_pinned_thing_is_no_trackers(student):
    """It comes while the pin is there, and its points go each another way."""
    held = Held(student, "planet", 240)
    pin, hand = held.at(0.62, 0.48), held.at(0.78, 0.42)
    held.source.apply({"kind": "pin", "id": 0, "x": pin[0], "y": pin[1], "frame": 0})
    held.chunk()
    held.path(1, spun(hand[None], np.linspace(0, -0.9, 10), pin)[:, 0], 9 / 16)
    held.chunk()
    came = held.chunk()
    assert held.state.by_hand
    column, row = (held.at(0.7, 0.3) / CELL).astype(int)
    centre = CELL * (np.array([[column, row]]) + 0.5)
    assert np.linalg.norm(came[row, column] - spun(centre, -0.9, pin)[0]) < 2.5


@pytest.mark.parametrize("name", ["balloon", "car"])
def test_what_has_turned_is_whole_when_it_is_dragged_and_turned_again(student, name):
    """With its hem, and what lies behind is not taken for a part of it, nor left out about its middle."""
    held = Held(student, name, 190)
    ends = np.stack([held.at(*place) for place in THINGS[name][:2]])
    middle, about = ends.mean(0), np.deg2rad(170) * np.linspace(0, 1, 19)
    for key, way in enumerate(spun(ends, about, middle).swapaxes(0, 1)):
        held.path(key, way, 18 / 16)
    for _ in range(3):
        before = held.chunk()
    straight = (held.state.latest - held.state.turned[-1]).norm(dim=1).view(*held.state.number.shape).numpy()
    came, far = straight > 2, held.at(0.12, 0.05)
    rim = held.state.outlines[1].numpy() & came
    held.path(5, middle + far * np.linspace(0, 1, 9)[:, None], 8 / 16)
    after = held.chunk()
    assert sorted(held.source.take_given_up()) == [0, 1]
    assert came.sum() > (held.state.number == np.median(held.state.number[came])).sum()
    assert rim.sum() > 50 and (held.state.outlines[1].numpy() | ~rim).mean() > 0.99
    np.testing.assert_allclose((after - before)[came], np.tile(far, (came.sum(), 1)), atol=1.0)
    assert np.abs(held.seen.under).max() < 1  # what lies behind stays
    row, column = (middle / CELL).astype(int)[::-1]
    assert held.state.behind.seen[row, column] > 0.9
    pin, hand = spun(ends, about[-1], middle) + far
    held.source.apply({"kind": "pin", "id": 6, "x": pin[0], "y": pin[1], "frame": 0})
    held.path(7, spun(hand[None], -about, pin)[:, 0], 18 / 16)
    for _ in range(3):
        back = held.chunk()
    gone = back - CELL * (cell_numbers(*came.shape).T.reshape(*came.shape, 2) + 0.5)
    assert gone[came].std(0).max() < 1.0  # it has only gone, in all


def test_things_are_the_same_before_anything_has_moved(student):
    """As they are seen when tracks hold them."""
    first, held = (Held(student, "boat", 240) for _ in range(2))
    places = np.concatenate([held.at(*place) + np.mgrid[-12:13:12, -12:13:12].reshape(2, -1).T
                             for place in ((0.4, 0.62), (0.58, 0.62))])
    held.prior.motion(held.state, Tracks(places[None].astype(np.float32), np.ones((1, 18), bool), np.arange(18)))
    found, wanted = (one.prior.things_at(one.state, places) for one in (first, held))
    assert ((found > 0) != (wanted > 0)).mean() < 0.1  # then what is in front counts a little more
    assert (wanted[:, :9] > 0).sum(1).min() > 4 and len(np.unique(found[1, found[1] > 0])) == 1


def test_frames_of_what_turns_do_not_depend_on_how_they_are_asked_for(student):
    held = Held(student, "planet", 100)
    ends = np.stack([held.at(0.62, 0.45), held.at(0.78, 0.4)])
    path = spun(ends, np.linspace(0, 2, 21), ends.mean(0))
    tracks = Tracks(path.astype(np.float32), np.ones((21, 2), bool), np.arange(2))
    whole = held.prior.motion(Held(student, "planet", 100).state, tracks)
    state = Held(student, "planet", 100).state
    parts = [held.prior.motion(state, tracks.rows(a, b)) for a, b in ((0, 9), (9, 10), (10, 21))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-3, rtol=0)
