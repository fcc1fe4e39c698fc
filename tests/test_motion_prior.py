"""How tracks move the cells of a picture, against closed forms, and the state against one pass over the same tracks."""

import itertools

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from motionstream.model import motion_prior
from motionstream.model.checkpoint import assemble
from motionstream.model.frames import in_motion
from motionstream.model.grids import ALIKE, GRID, idling, straddling
from motionstream.model.least_squares import GOES, _farthest, decided_motion, least_squares_motion
from motionstream.model.motion_prior import Cells, Grips, Looked, MotionPrior
from motionstream.model.presets import PRESETS
from motionstream.model.warping import (
    BEHIND,
    HEM,
    IN_FRONT,
    MISSED,
    PARTS,
    SEEN,
    cell_centres,
    cells_of,
    meet,
    outlines,
    settle,
    whole,
    with_hem,
)
from motionstream.tracks import Tracks

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return MotionPrior(widths=(8, 8, 8), features=4).eval()


def tracks(points, ids=None, visible=None):
    points = np.asarray(points, np.float32)
    return Tracks(
        points,
        np.ones(points.shape[:2], bool) if visible is None else visible,
        np.arange(points.shape[1]) if ids is None else np.asarray(ids),
    )


def image():
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_an_affine_motion_is_reproduced_from_few_tracks():
    centres = cell_centres(HEIGHT, WIDTH)
    anchors = torch.tensor([[5.0, 5.0], [60.0, 8.0], [30.0, 44.0], [50.0, 30.0]])
    linear, shift = torch.tensor([[0.1, -0.2], [0.15, 0.05]]), torch.tensor([3.0, -2.0])
    weights = torch.full((len(centres), 4), 0.25)
    moved = (anchors @ linear.T + shift)[None]
    motion = least_squares_motion(
        weights, centres, anchors, moved, torch.ones(1, 4, dtype=torch.bool), torch.tensor(1e-3)
    )
    torch.testing.assert_close(motion[0], centres @ linear.T + shift, atol=2e-3, rtol=1e-3)


def test_one_track_is_a_translation():
    centres = cell_centres(HEIGHT, WIDTH)
    motion = least_squares_motion(
        torch.rand(len(centres), 1) + 0.01,
        centres,
        torch.tensor([[10.0, 10.0]]),
        torch.tensor([[[7.0, -3.0]]]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.tensor(20.0),
    )
    torch.testing.assert_close(motion[0], torch.tensor([7.0, -3.0]).expand_as(motion[0]))


def field(motion):
    """Motion [h, w] to the right as [1, P, 2]."""
    return torch.stack([motion, torch.zeros_like(motion)], -1).flatten(0, 1)[None]


def test_settling_removes_specks_and_keeps_whole_regions():
    centres = cell_centres(HEIGHT, WIDTH)
    off = (centres - torch.tensor([30.0, 24.0])).abs().amax(1)
    motion = 6.0 * (off < 12).float()
    motion[-20] = 6.0  # a lone cell far away
    motion[(centres - torch.tensor([31.0, 25.0])).square().sum(1).argmin()] = 0.0  # a lone hole
    flat = outlines(torch.zeros(HEIGHT // 2, WIDTH // 2))
    moved = settle(field(motion.view(HEIGHT // 2, WIDTH // 2)), *flat)[0]
    assert torch.equal(moved[off < 8, 0].unique(), torch.tensor([6.0]))
    assert moved[off > 18].abs().max() == 0


def test_motion_is_cut_along_outlines_and_stretches_elsewhere():
    ramp = (torch.arange(WIDTH // 2).float() - 11).clamp(0, 4) * 5  # 0 ... 20 pixels within five cells
    motion = field(ramp.expand(HEIGHT // 2, -1))
    flat = settle(motion, *outlines(torch.full((HEIGHT // 2, WIDTH // 2), 0.5)))
    torch.testing.assert_close(flat, motion)
    front = (torch.arange(WIDTH // 2) >= 15).float().expand(HEIGHT // 2, -1)
    cut = settle(motion, *outlines(front))[0, :, 0].view(HEIGHT // 2, -1)
    assert cut.unique().tolist() == [0.0, 20.0]
    assert (cut[:, 13:] == 20).all() and (cut[:, :13] == 0).all()  # two cells of rim go along with what is in front
    small = settle(0.02 * motion, *outlines(front))[0, :, 0].view(HEIGHT // 2, -1)
    torch.testing.assert_close(small, 0.02 * cut)  # no less when it has just begun
    gentle = field((torch.arange(WIDTH // 2).float() * 0.9).expand(HEIGHT // 2, -1))  # all of it stretches alike
    kept = settle(gentle, *outlines(front))[0, :, 0].view(HEIGHT // 2, -1)
    assert (kept.diff(dim=1) >= 0).all() and len(kept.unique()) > WIDTH // 2 - 6
    torch.testing.assert_close(kept, settle(gentle, *outlines(0 * front))[0, :, 0].view(HEIGHT // 2, -1))


def test_outlines_lie_between_front_and_back():
    front = torch.zeros(12, 20)
    front[:, 10:] = 0.9
    near, rim, foremost = outlines(front)
    assert near[0].nonzero().flatten().tolist() == [*range(6, 14)] and rim[0].nonzero().flatten().tolist() == [8, 9]
    assert (front.flatten()[foremost].view(12, 20)[:, 8:] == 0.9).all()
    assert not outlines(torch.full((12, 20), 0.4))[0].any()


def test_a_hidden_track_hardly_counts_beside_a_visible_one():
    centres = cell_centres(HEIGHT, WIDTH)
    weights = torch.full((len(centres), 2), 0.5)
    moved = torch.tensor([[[4.0, 0.0], [100.0, 100.0]]])
    anchors, ridge = torch.tensor([[10.0, 10.0], [40.0, 20.0]]), torch.tensor(1e6)
    motion = least_squares_motion(weights, centres, anchors, moved, torch.tensor([[True, False]]), ridge)
    torch.testing.assert_close(motion[0], torch.tensor([4.0, 0.0]).expand_as(motion[0]), atol=0.2, rtol=0)
    alone = least_squares_motion(weights, centres, anchors, moved, torch.tensor([[False, False]]), ridge)
    torch.testing.assert_close(alone[0], torch.tensor([52.0, 50.0]).expand_as(motion[0]), atol=0.2, rtol=0)


def met(missed, share=1.0, visible=(True, True, True)):
    """What becomes of no motion at three tracks, on cells of their own, that moved by `missed` [3, 2]."""
    centres = cell_centres(HEIGHT, WIDTH)
    cells = torch.tensor([100, 333, 650])
    shares, seen = torch.full((len(centres),), share), torch.tensor(visible)[None]
    motion = meet(torch.zeros(1, len(centres), 2), shares, centres[cells], missed[None], seen, HEIGHT // 2)[0]
    return motion, motion[cells]


def test_motion_meets_the_tracks_by_the_share_that_a_cell_takes_in_it():
    missed = torch.tensor([[3.0, -1.0], [-2.0, 2.0], [0.5, 4.0]])
    motion, there = met(missed)
    torch.testing.assert_close(there, missed)
    assert (motion.amin(0) >= missed.amin(0) - 1e-4).all() and (motion.amax(0) <= missed.amax(0) + 1e-4).all()
    torch.testing.assert_close(met(missed, share=0.25)[0], 0.25 * motion)
    far = torch.tensor([[3.0, 4.0]]) / 5 * 40
    torch.testing.assert_close(met(far.expand(3, 2))[1], (far / 40 * MISSED).expand(3, 2))  # 40 px off: not believed


def test_motion_meets_hidden_tracks_only_where_none_is_visible():
    missed = torch.tensor([[3.0, -1.0], [-2.0, 2.0], [0.5, 4.0]])
    one, _ = met(missed, visible=(False, True, False))
    torch.testing.assert_close(one, missed[1:2].expand_as(one), atol=1e-4, rtol=0)
    torch.testing.assert_close(met(missed, visible=(False, False, False))[1], missed)


def test_a_track_on_the_last_row_of_a_thing_is_met_and_one_on_what_stretches_between_cells():
    rows, columns = HEIGHT // 2, WIDTH // 2
    anchors, moved = torch.tensor([[20.0, 19.8]]), torch.tensor([[[12.0, 0.0]]])  # on row 9, nearly on row 10
    goes, share = torch.zeros(1, rows, columns, 2), torch.ones(1, rows * columns)
    goes[:, 4:10, 6:16, 0] = 12
    found = meet(goes.flatten(1, 2), share, anchors, moved, torch.ones(1, 1, dtype=torch.bool), rows)
    torch.testing.assert_close(found.view_as(goes), goes)  # nothing has been missed
    stretched = torch.arange(rows).float()[:, None, None].expand(1, rows, columns, 2).contiguous()
    exact = torch.full((1, 1, 2), (19.8 - 1) / 2)
    found = meet(stretched.flatten(1, 2), share, anchors, exact, torch.ones(1, 1, dtype=torch.bool), rows)
    torch.testing.assert_close(found.view_as(stretched), stretched)


def decided(weights, moved):
    """Motion [P, 2] and share [P] of cells in one frame, under weights [P, 1 + N] of staying and of tracks."""
    anchors = torch.rand(weights.shape[1] - 1, 2, generator=torch.Generator().manual_seed(1)) * 50
    visible = torch.ones(1, len(anchors), dtype=torch.bool)
    centres = cell_centres(HEIGHT, WIDTH)[: len(weights)]
    motion, share = decided_motion(weights, centres, anchors, moved[None], visible, torch.tensor(1e6))
    return motion[0], share[0]


def test_where_tracks_part_a_cell_goes_with_the_motion_that_most_of_its_share_has():
    weights = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.6, 0.2, 0.1, 0.1], [0.1, 0.5, 0.2, 0.2]])
    _, share = decided(weights, torch.zeros(3, 2))
    odds = ((1 - weights[:, 0]) / weights[:, 0]) ** GOES  # nothing moves: but for whether they go, nothing is decided
    torch.testing.assert_close(share, odds / (1 + odds))
    motion, share = decided(weights, torch.tensor([[40.0, 0.0]]).repeat(3, 1))
    assert share[0] > 0.8 and share[1] < 0.2 and share[2] > 0.999  # three tracks of one thing do not compete
    torch.testing.assert_close(motion, torch.tensor([[40.0, 0.0]]).repeat(3, 1))
    motion, share = decided(weights, torch.tensor([[40.0, 0.0], [0.0, 40.0], [-40.0, 0.0]]))
    assert share[0] < 0.2 and share[2] > 0.99  # but each goes its own way now
    assert (motion[2] - torch.tensor([40.0, 0.0])).norm() < 2  # not 12 pixels, as the mean would


def test_tracks_that_hold_one_body_turn_or_stretch_it_and_others_part():
    anchors, moved = torch.tensor([[10.0, 20.0], [50.0, 20.0]]), torch.tensor([[[0.0, 20.0], [0.0, -20.0]]])
    centres = F.pad(torch.arange(10.0, 51)[:, None], (0, 1), value=20.0)
    near = 1 / (torch.cdist(centres, anchors).square() + 16)
    weights = F.pad(0.98 * near / near.sum(1, keepdim=True), (1, 0), value=0.02)
    given = weights, centres, anchors, moved, torch.ones(1, 2, dtype=torch.bool), torch.tensor(1e6)
    both, everywhere = torch.ones(2, 2, dtype=torch.bool), torch.ones(len(centres), dtype=torch.bool)
    turned, share = decided_motion(*given, (both, everywhere))
    along = turned[0, :, 1].diff()
    assert along.max() < 0 and along.abs().max() < 3 and share.min() > 0.99 and turned[0, 20].abs().max() < 0.1
    parted, _ = decided_motion(*given)
    assert parted[0, :, 1].diff().abs().max() > 10
    for bodies in ((torch.eye(2, dtype=torch.bool), everywhere), (both, ~everywhere)):
        for one, other in zip(decided_motion(*given, bodies), decided_motion(*given), strict=True):
            assert torch.equal(one, other)
    pinned = moved * torch.tensor([1.0, 0.0])[:, None]
    bent, _ = decided_motion(*given[:3], pinned, *given[4:], (both, everywhere))
    assert bent[0, :, 1].diff().abs().max() < 2 and bent[0, 0, 1] > 19 and bent[0, -1, 1] < 1


def test_tracks_hold_what_looks_alike_where_each_is_to_the_other_almost_as_itself(prior):
    looks = torch.tensor([[3.0, 0, 0, 0], [2.8, 0.5, 0, 0], [0, 0, 3.0, 0]])[None]
    found = prior.alike(Grips(20 * looks, *torch.zeros(2, 1, 3), looks))[0]
    assert found.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]


@given(seed=st.integers(0, 999), far=st.floats(6, 60))
def test_decided_motion_changes_little_where_tracks_of_one_thing_do(seed, far):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(20, 6, generator=rng).softmax(1)
    moved = far * F.normalize(torch.randn(1, 2, generator=rng)) + torch.randn(5, 2, generator=rng)
    motion, share = decided(weights, moved)
    assert share.min() >= 0 and share.max() <= 1
    after, shared = decided(weights, moved + 0.01)
    assert (after - motion).abs().max() < 0.1 and (shared - share).abs().max() < 0.05


def test_the_background_does_not_follow_what_lies_in_front_of_it(prior):
    centres, cells = cell_centres(HEIGHT, WIDTH), HEIGHT * WIDTH // 4
    thing = (centres - 32).abs().amax(1) < 8
    anchors, valid = torch.tensor([[32.0, 32.0], [4.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)

    def odds(front, held):
        """Of following each of the two tracks, over staying, where features tell nothing but what lies in front."""
        told = Cells(torch.zeros(1, cells, 4), torch.zeros(1, cells), front[None])
        grips = Grips(torch.zeros(1, 2, 4), torch.tensor([held]), *torch.zeros(2, 1, 2))
        weights = prior.weigh(centres[None], told, anchors[None], grips, valid)[0]
        torch.testing.assert_close(weights.sum(1), torch.ones(cells))
        return weights[:, 1:] / weights[:, :1]

    flat = odds(torch.zeros(cells), [0.0, 0.0])
    layered = odds(torch.where(thing, 20.0, -20.0), [20.0, -20.0])
    torch.testing.assert_close(layered[thing], flat[thing])
    against = torch.nn.functional.softplus(prior.layered)
    torch.testing.assert_close(layered[~thing, 0], flat[~thing, 0] * torch.exp(-against))
    torch.testing.assert_close(layered[~thing, 1], flat[~thing, 1])


def seeing_a_thing(prior, monkeypatch, held):
    """A prior to which cells look alike, but for a thing in the middle that lies in front, as what tracks hold may."""
    centres, cells = cell_centres(HEIGHT, WIDTH), HEIGHT * WIDTH // 4
    thing = (centres - 32).abs().amax(1) < 8
    stay, front = torch.where(thing, 0.0, 4.0)[None], torch.where(thing, 20.0, -20.0)[None]
    alike = torch.zeros(1, len(held), 4)
    grips = Grips(alike, torch.tensor([held]), torch.full((1, len(held)), 5.0), alike)
    monkeypatch.setattr(motion_prior, "LOOK", HEIGHT * WIDTH)
    monkeypatch.setattr(prior, "read", lambda *given: (Cells(torch.zeros(1, cells, 4), stay, front), grips))
    return thing.view(HEIGHT // 2, WIDTH // 2)


@given(seed=st.integers(0, 999), ways=st.integers(1, 3))
def test_motions_that_tracks_share_are_told_apart_once(seed, ways):
    """Those are taken first that are farthest from the others: as many as differ, in the frame that has most."""
    rng = np.random.default_rng(seed)
    motions = torch.tensor(rng.uniform(-40, 40, (3, ways, 2)), dtype=torch.float32)
    motions[0] = motions[0, :1]
    points = motions.repeat_interleave(4, 1) + torch.tensor(rng.uniform(-1e-5, 1e-5, (3, 4 * ways, 2)))
    taken = _farthest(points.float(), 4)
    assert taken.shape == (3, ways, 2)
    assert torch.cdist(motions[1:], taken[1:]).amin(2).max() < 1e-3
    assert _farthest(points.float(), 1).shape == (3, 1, 2)


@pytest.mark.parametrize("together", [True, False])
def test_of_a_grid_across_the_edge_of_a_thing_only_what_is_on_it_leads(together, prior, monkeypatch):
    thing = seeing_a_thing(prior, monkeypatch, [20.0, 20.0, -20.0, 0.0])  # the last one never counts
    starts, gone = np.float32([[30, 30], [30, 36], [44, 33]]), np.linspace(0, 9, 21)[:, None, None] * [1.0, 0.0]
    path = tracks(starts + gone * np.float32([1, 1, 1 if together else -1])[:, None])
    state = prior.start(image())
    motion = torch.cat([prior.motion(state, path.rows(a, b)) for a, b in ((0, 1), (1, 9), (9, 21))])
    torch.testing.assert_close(motion, prior.motion(prior.start(image()), path))
    last = motion[-1].unflatten(0, thing.shape)
    assert (last[thing][:, 0] > 8).float().mean() > 0.8
    beside = last[14:19, 22:25, 0]  # around where the third one starts, but for the thing's rim
    assert beside.abs().max() < 0.5 if together else beside.min() < -8
    if together:  # grabbed again where it is now
        again = tracks(starts + [9, 0] + gone[..., :1] * np.float32([0, 1]), ids=[5, 6, 7])
        motion = prior.motion(state, again)[-1]
        last = motion.unflatten(0, thing.shape)
        assert (last[thing][:, 1] > 8).float().mean() > 0.8 and last[14:19, 26:29].abs().max() < 0.5


def test_tracks_of_one_grid_are_near_and_go_alike():
    front = torch.zeros(24, 32)
    front[10:20, 5:15] = 0.9
    front[10:20, 15:18] = 0.6  # nobody knows
    places = [20, 30], [20, 50], [40, 30], [62, 4], [20, 32], [32, 30]  # the first and the fifth are on it
    anchors = torch.tensor(places, dtype=torch.float32)
    pairs = straddling(anchors, anchors, front)
    assert sorted(map(tuple, pairs.T.tolist())) == [(1, 0), (1, 4), (2, 0), (2, 4)]
    assert straddling(anchors, anchors + torch.arange(6)[:, None] * GRID, front).numel() == 0  # wherever that began
    gone = torch.zeros(4, 6, 2)
    gone[1:] = torch.tensor([3.0, -2.0])
    gone[2, 1] += torch.tensor([1.1 * ALIKE, 0.0])
    gone[3, [0, 4]] = 0.0
    idle = idling(gone, anchors, anchors, pairs)
    assert idle.nonzero().tolist() == [[1, 1], [1, 2], [2, 2]]  # what stands still is a pin
    columns, rows = np.meshgrid(np.arange(2, 64, 4), np.arange(2, 48, 4))
    everywhere = torch.tensor(np.stack([columns, rows], -1).reshape(-1, 2), dtype=torch.float32)
    assert straddling(everywhere, everywhere, front).numel() == 0
    assert straddling(torch.zeros(0, 2), torch.zeros(0, 2), front).shape == (2, 0)


@pytest.mark.parametrize("wide", [True, False])
def test_ground_that_is_drawn_up_goes_on_below_and_so_does_a_thing_that_the_edge_cuts_through(prior, monkeypatch, wide):
    centres, cells = cell_centres(HEIGHT, WIDTH), HEIGHT * WIDTH // 4
    ground = (centres[:, 1] > HEIGHT / 2) & (wide | ((centres[:, 0] - WIDTH / 2).abs() < WIDTH / 5))
    told = Cells(torch.zeros(1, cells, 4), torch.where(ground, 0.0, 60.0)[None], torch.where(ground, 20.0, -20.0)[None])
    alike = torch.zeros(1, 2, 4)
    grips = Grips(alike, torch.tensor([[20.0, -20.0]]), torch.full((1, 2), 30.0), alike)
    monkeypatch.setattr("motionstream.model.motion_prior.LOOK", HEIGHT * WIDTH)
    monkeypatch.setattr(prior, "read", lambda *given: (told, grips))
    from_here = [WIDTH / 2, HEIGHT - 8.0]
    moved = prior.step(prior.start(image()), tracks(np.linspace([from_here], [[WIDTH / 2, HEIGHT - 20.0]], 9)))
    below, beside = (moved.beyond[0, 0, -1, -8:, at - 4 : at + 4] for at in (WIDTH // 2, 4))
    assert below.all() and (beside.mean() > 0.8 if wide else not beside.any())


def test_beside_what_moves_the_background_is_put_behind_unless_it_goes_along(prior, monkeypatch):
    centres, cells, seen = cell_centres(HEIGHT, WIDTH), HEIGHT * WIDTH // 4, []
    thing = (centres - 32).abs().amax(1) < 8
    told = Cells(torch.zeros(1, cells, 4), torch.zeros(1, cells), torch.where(thing, 20.0, 0.0)[None])
    alike = torch.zeros(1, 2, 4)
    grips = Grips(alike, torch.tensor([[20.0, 0.0]]), torch.full((1, 2), 5.0), alike)
    monkeypatch.setattr("motionstream.model.motion_prior.LOOK", HEIGHT * WIDTH)
    monkeypatch.setattr(prior, "read", lambda *given: (told, grips))
    monkeypatch.setattr(motion_prior, "in_motion", lambda *given: seen.append(given[-1]) or in_motion(*given))
    state = prior.start(image())
    prior.step(state, tracks(np.linspace([[32.0, 32.0]], [[44.0, 32.0]], 9)))
    rim = state.outlines[1].flatten()
    assert 0 < rim.sum() and not (rim & thing).any()
    torch.testing.assert_close(state.front, torch.where(thing, 1.0, torch.where(rim, 0.5 - BEHIND, 0.5)))
    first, last = (torch.from_numpy(frame).float().flatten() for frame in (seen[0], seen[-1]))
    goes = rim & (state.latest.norm(dim=1) > PARTS)
    assert goes.sum() > 20 and torch.equal(first[rim], state.front[rim]) and (last[goes] == IN_FRONT).all()
    assert torch.equal(last[rim & ~goes], state.front[rim & ~goes])  # no track brings it to the front
    assert (last[thing] > 1 + 0.99 * SEEN).sum() > 20  # what the track shows
    state.dense = True  # there is no matte under such tracks
    prior.step(state, tracks(np.linspace([[44.0, 32.0]], [[50.0, 32.0]], 9)))
    assert torch.equal(torch.from_numpy(seen[-1]).float().flatten()[rim], state.front[rim])


def drifting(count: int, from_frame: int, frames: int = 8) -> np.ndarray:
    """Paths [frames, count, 2] of a tracker's tracks: all go to the right, and a little apart."""
    rng = np.random.default_rng(count)
    starts, own = rng.uniform(4, 28, (count, 2)), rng.uniform(0.2, 0.6, (count, 1)) * [1, 0]
    return np.float32(starts + own * np.arange(from_frame, from_frame + frames)[:, None, None])


def test_a_trackers_tracks_make_up_for_what_was_missed_and_things_are_what_was_first_seen(prior, monkeypatch):
    def led(state, count, begin):
        nonlocal thing
        thing = seeing_a_thing(prior, monkeypatch, [20.0] * (count + 1))
        prior.motion(state, tracks(drifting(40, begin)[:, :count], ids=range(count)))
        state.latest[:] = 0  # nothing has moved, whatever the tracks say

    thing, clips, hands = None, prior.start(image()), prior.start(image())
    led(clips, 20, 0)
    led(hands, 2, 0)
    assert not clips.tracked and np.array_equal(clips.number > 0, thing)
    number, first = clips.number, (clips.found, clips.cells)
    before = hands.found, hands.cells
    monkeypatch.setattr(motion_prior, "numbered", lambda *given: 1 - number)
    led(clips, 40, 8)
    led(hands, 3, 8)
    assert clips.tracked and clips.number is number and not clips.held.any()
    assert not hands.tracked and np.array_equal(hands.number, 1 - number)
    missed = drifting(40, 7)[0] - drifting(40, 0)[0]
    torch.testing.assert_close(hands.held, torch.tensor(np.vstack([missed[:2], [[0, 0]]]), dtype=torch.float32))
    led(clips, 30, 16)
    assert clips.tracked and clips.number is number
    assert (clips.found, clips.cells) == first  # the very same: the networks that make them do not run again
    assert hands.found is not before[0] and hands.cells is not before[1]


def test_a_drag_under_a_moving_camera_leaves_what_was_missed_to_be_made_up_for(prior, monkeypatch):
    places = torch.cartesian_prod(torch.arange(2, WIDTH, 4.0), torch.arange(2, HEIGHT, 4.0)).numpy()
    paths = np.concatenate([places, [[33, 33]]]) + np.arange(16)[:, None, None] * np.float32([0.5, 0])
    state = prior.start(image())
    for count, chunk in ((len(places), paths[:8]), (len(places) + 1, paths[8:])):
        seeing_a_thing(prior, monkeypatch, [20.0] * (count + 1))
        prior.motion(state, tracks(chunk[:, :count]))
        state.latest[:] = 0
    assert state.dense and not state.tracked and not state.held.any()


def test_what_comes_into_sight_within_a_chunk_shows_that_tracks_are_a_trackers(prior, monkeypatch):
    paths, seen = drifting(40, 0, 16), np.ones((16, 40), bool)
    seen[:11, 30:] = False
    pieces, whole = [], motion_prior.in_one_piece
    monkeypatch.setattr(motion_prior, "in_one_piece", lambda *given: pieces.append(given[1]) or whole(*given))
    seeing_a_thing(prior, monkeypatch, [20.0] * 31)
    state = prior.start(image())
    for begin in (0, 8):
        prior.motion(state, tracks(paths[begin : begin + 8], visible=seen[begin : begin + 8]))
        assert state.tracked == (begin == 8) and len(state.ids) == 30  # they count from the next chunk on
    assert len(pieces) == 1 and pieces[0] is state.parts and not state.dense


def test_a_trackers_tracks_do_not_tell_where_a_thing_ends(prior, monkeypatch):
    state = prior.start(image())
    for count, begin in ((30, 0), (40, 8)):
        seeing_a_thing(prior, monkeypatch, [20.0] * (count + 1))
        moved = prior.step(state, tracks(drifting(40, begin)[:, :count], ids=range(count)))
        assert state.tracked == (count == 40) and moved.anchors.shape == (0 if state.tracked else count, 2)


def test_under_a_moving_camera_what_goes_along_with_the_background_uncovers_nothing(prior, monkeypatch):
    places = torch.cartesian_prod(torch.arange(2, WIDTH, 4.0), torch.arange(2, HEIGHT, 4.0)).numpy()
    seeing_a_thing(prior, monkeypatch, [20.0] * (len(places) + 1))
    state = prior.start(image())
    prior.step(state, tracks(places + np.arange(8)[:, None, None] * np.float32([2, 0])))
    assert state.dense and not state.behind.filled.any()


def test_a_new_track_beside_a_thing_that_has_moved_is_attached_to_what_is_behind(prior, monkeypatch):
    thing = seeing_a_thing(prior, monkeypatch, [20.0] * 31).flatten()
    state = prior.start(image())
    prior.motion(state, tracks(drifting(30, 0)))
    state.tracked = True
    state.latest = torch.where(thing[:, None], torch.tensor([12.0, 0.0]), torch.zeros(2))
    uncovered, on = [29.0, 32.0], [40.0, 32.0]  # where it was, and where it is
    seeing_a_thing(prior, monkeypatch, [20.0] * 3)
    prior.motion(state, tracks(np.float32([[uncovered, on]]).repeat(8, 0), ids=[70, 71]))
    cells = cells_of(torch.stack([state.anchors[70], state.anchors[71]]), HEIGHT // 2, WIDTH // 2)
    assert thing[cells].tolist() == [False, True]
    torch.testing.assert_close(state.anchors[70] + state.held[0], torch.tensor(uncovered))
    torch.testing.assert_close(state.anchors[71] + state.held[1], torch.tensor(on))


@pytest.mark.parametrize("begin", [0, 8])  # the chunk that shows that tracks are a tracker's: the first, or the second
def test_a_track_that_was_taken_to_be_of_a_thing_is_put_back_when_tracks_are_known_to_be_a_trackers(
    begin, prior, monkeypatch
):
    def looks(strays: bool) -> list:
        seeing_a_thing(prior, monkeypatch, [20.0] * 31)
        read, looked, paths = prior.read, [], drifting(40, 0, 16)
        paths[:, :5] = [[[30, 30], [32, 32], [34, 30], [30, 36], [36, 36]]]  # on the thing, which stays
        paths[:, 5] = np.float32([25.5, 25.5]) + np.arange(16)[:, None] * [0.5 * strays, 0]
        paths[:, 6:] += [0, -paths[0, 6:, 1].max() + 20]
        paths[:, 6:30] = paths[0, 6:30] + 0.5 * np.arange(16)[:, None, None] * [1, 0]  # what is behind it goes
        seen = np.ones((16, 40), bool)
        seen[: begin + 1, 30:] = seen[1:begin, 5] = seen[8 : begin + 1, 5] = False
        monkeypatch.setattr(prior, "read", lambda *given: looked.append(given[1][0]) or read(*given))
        state = prior.start(image())
        for chunk in range(0, begin + 1, 8):
            prior.motion(state, tracks(paths[chunk : chunk + 8], visible=seen[chunk : chunk + 8]))
        assert state.tracked and torch.equal(torch.stack([*state.anchors.values()]), looked[-1][:30])
        if strays:  # it counts from where it is seen first now
            began = paths[begin + bool(begin), 5]
            torch.testing.assert_close(state.anchors[5] + state.held[5], torch.tensor(began))
        return looked

    assert len(looks(False)) == 1 + begin // 8
    first, second = looks(True)
    assert (first != second).any(1).nonzero().tolist() == [[5]]


def test_cells_of_a_thing_follow_a_trackers_tracks_on_it_and_what_was_dense_stays_so(prior, monkeypatch):
    rows, columns = HEIGHT // 2, WIDTH // 2
    front = torch.zeros(rows, columns)
    front[8:16, 10:20] = 1
    weights = torch.tensor([0.1, 0.7, 0.2]).expand(rows * columns, 3)  # of a track beside it, and one on it
    same = torch.ones(2, 2, dtype=torch.bool)
    looks = Looked(weights, torch.stack([front, front]), torch.arange(rows * columns), same, torch.zeros(0))
    monkeypatch.setattr(prior, "look", lambda *given: looks)
    for tracked in (False, True):
        state, anchors = prior.start(image()), torch.tensor([[50.0, 24.0], [30.0, 24.0]])
        state.tracked = state.dense = tracked
        state.firsts = dict(enumerate(anchors))
        prior._look_anew(state, anchors)
        on = state.weights[front.flatten() > 0]
        assert state.dense == tracked and bool((on[:, 1] == 0).all()) == tracked
        torch.testing.assert_close(on.sum(1), torch.ones(len(on)))
        rim = state.outlines[1].numpy()
        assert rim.any() and not state.number[rim].any() and (state.parts[rim] == 1).all()  # else it would fall off
        assert np.array_equal(state.parts[~rim], state.number[~rim])


def test_what_a_thing_has_left_behind_is_no_rim_of_it_when_it_is_dragged_again(prior, monkeypatch):
    rows, columns = HEIGHT // 2, WIDTH // 2
    front = torch.zeros(rows, columns)
    front[8:16, 10:20] = 1
    weights = torch.stack([1 - front, front], 2).flatten(0, 1)
    same = torch.ones(1, 1, dtype=torch.bool)
    looks = Looked(weights, torch.stack([front, front]), torch.arange(rows * columns), same, torch.zeros(0))
    monkeypatch.setattr(prior, "look", lambda *given: looks)
    state, anchors = prior.start(image()), torch.tensor([[30.0, 24.0]])
    prior._look_anew(state, anchors)
    rim = state.outlines[1]
    assert rim[12, 20] and rim[12, 9] and not rim[front > 0].any()
    came = front > 0
    came[:, :10] |= rim[:, :10]  # the rim to the left came along, the others were left behind
    state.base[came.flatten()] = torch.tensor([9.0, 0.0])
    prior._look_anew(state, anchors)
    assert torch.equal(state.outlines[1], rim & came) and (rim & came).any()


def test_what_a_thing_takes_along_does_not_tell_how_the_ground_behind_it_moves(prior, monkeypatch):
    """The ground stays, also in what one sees through the thing's edges."""
    size = rows, columns = HEIGHT // 2, WIDTH // 2
    thing, motion = torch.zeros(size), torch.zeros(9, rows * columns, 2)
    thing[8:16, 6:14] = 1
    goes = F.max_pool2d(thing[None], 5, 1, 2)[0].flatten() > 0
    motion[:, goes, 0] = torch.linspace(0, 16, 9)[:, None]
    state = prior.start(image())
    prior.motion(state, tracks(np.full((9, 1, 2), 20.0)))
    state.front, state.outlines = thing.flatten(), outlines(torch.zeros(size))
    monkeypatch.setattr(prior, "motion", lambda *given: motion)
    moved = prior.step(state, tracks(np.full((9, 1, 2), 20.0)))
    assert np.abs(moved.under[-1]).max() < 1 and moved.backward[-1][0].min() < -15
    assert np.array_equal(moved.things[-1].flatten(), goes.numpy()) and moved.things[0].sum() == 64


def test_it_is_known_where_the_picture_is_a_mirror_image(monkeypatch):
    prior = MotionPrior(widths=(8, 8, 8), features=4).eval()
    state, pan = prior.start(image()), tracks(np.linspace([[40, 20]], [[60, 20]], 4))
    prior.motion(state, pan)
    monkeypatch.setattr(prior, "motion", lambda state, tracks: torch.tensor([16.0, 0.0]).expand(4, len(state.base), 2))
    moved = prior.step(state, pan)
    mirrored, sure = moved.beyond[0, 0, :, :, :12], moved.confidence[0, 0, :, :, 20:]
    torch.testing.assert_close(mirrored, torch.ones_like(mirrored))
    torch.testing.assert_close(sure, torch.ones_like(sure))
    assert not moved.confidence[..., :12].any() and not moved.beyond[..., 20:].any()
    torch.testing.assert_close(moved.picture[0, :, 0, :, 4], state.image[:, :, 12], atol=2e-2, rtol=0)


def test_nothing_moves_when_a_pin_is_added_or_taken_away(prior):
    """Whatever the motion missed at the tracks that were there."""
    state, still = prior.start(image()), np.float32([[20, 20], [32, 20], [26, 30], [40, 34]])
    gone = np.linspace(0, 1, 9)[:, None, None] * np.float32([[12, 4], [0, 0], [-5, 6], [0, 0]])
    before = prior.motion(state, tracks(still + gone))[-1]
    assert before.norm(dim=1).max() > 5
    missed = before.view(HEIGHT // 2, WIDTH // 2, 2)[10, 10] - torch.tensor([12.0, 4.0])
    there = [*(still + gone[-1]), [55, 5], [8, 40]]
    for ids in ([0, 1, 2, 3, 7], [0, 1, 2, 3, 7, 8], [0, 1, 2, 3], [0, 2, 8]):
        places = np.float32([there[n if n < 4 else n - 3] for n in ids])
        motion = prior.motion(state, tracks(np.repeat(places[None], 12, 0), ids=ids))
        torch.testing.assert_close(motion, before.expand(12, -1, -1), atol=1e-3, rtol=0, msg=f"missed {missed}")
    further = there[0] + np.linspace(0, 1, 12)[:, None, None] * np.float32([[6, 0]])
    assert (prior.motion(state, tracks(further, ids=[0]))[-1] - before).norm(dim=1).max() > 3


def test_a_drag_beside_pins_moves_by_little_what_it_moves_by_much():
    """Tracks that part, be it by a pixel, are not one thing that stretches: what lies beyond would go farther."""
    centres, anchors = cell_centres(HEIGHT, WIDTH), torch.tensor([[8.0, 24.0], [32.0, 24.0], [56.0, 24.0]])
    near = torch.exp(-torch.cdist(centres, anchors) / 16)
    weights = F.pad(near, (1, 0), value=0.02) / (near.sum(1, keepdim=True) + 0.02)
    seen, ridge = torch.ones(1, 3, dtype=torch.bool), torch.tensor(4.0)
    for pinned in ([0], [0, 2], [2]):
        goes = torch.tensor([float(n not in pinned) for n in range(3)])[None, :, None] * torch.tensor([0.8, 0.6])
        long, share = decided_motion(weights, centres, anchors, 64 * goes, seen, ridge)
        for far in (1, 2, 8):
            motion, little = decided_motion(weights, centres, anchors, far * goes, seen, ridge)
            assert (motion.norm(dim=2) * little).max() < 1.1 * far, (pinned, far)
            torch.testing.assert_close(motion * little[..., None] / far, long * share[..., None] / 64, atol=0.2, rtol=0)


def test_what_is_dragged_out_of_the_frame_beside_a_pin_goes_on(prior):
    """Its tracks are not seen there, but it is known where they are."""
    path = np.stack([np.linspace([50, 20], [110, 20], 21), np.full((21, 2), [20, 20])], axis=1)
    seen = tracks(path).in_frame(WIDTH, HEIGHT)
    assert not seen.visible[-1, 0] and seen.visible[0].all()
    motion = prior.motion(prior.start(image()), seen)
    speed = motion.diff(dim=0).norm(dim=2).amax(1)
    assert speed.max() < 2 * speed.median()


def test_what_is_hidden_stays_where_it_was_last_seen(prior):
    path = np.linspace([[20, 20]], [[32, 20]], 9)
    seen = np.ones((9, 1), bool)
    seen[5:] = False
    path[5:] = [3, 40]  # a tracker's guess about what it has lost
    motion = prior.motion(prior.start(image()), tracks(path, visible=seen))
    torch.testing.assert_close(motion[5:], motion[4:5].expand(4, -1, -1))


def test_a_track_counts_from_when_it_is_first_seen(prior):
    """Before, nobody knows where it is: files give such points any place."""
    path = np.concatenate([np.zeros((4, 1, 2)), np.full((8, 1, 2), 25.0)])
    seen = np.arange(12)[:, None] >= 4
    still, state = tracks(np.full((12, 1, 2), 40.0), ids=[5]), prior.start(image())
    for start, stop in ((0, 4), (4, 8), (8, 12)):
        both = Tracks.concatenate([still, tracks(path, ids=[6], visible=seen)]).rows(start, stop)
        torch.testing.assert_close(prior.motion(state, both), torch.zeros_like(state.base).expand(4, -1, -1))
    torch.testing.assert_close(state.anchors[6], torch.tensor([25.0, 25.0]))


def test_beside_a_gpu_the_motion_prior_stays_on_the_cpu(prior):
    parts = {"motion_prior": prior, "vae": torch.nn.Linear(2, 2)}
    model = assemble(PRESETS["embedded"], parts, "meta", torch.float32)
    assert {p.device.type for p in model.motion_prior.parameters()} == {"cpu"}
    assert model.vae.weight.device.type == "meta"


def test_without_motion_the_picture_stays_exactly(prior):
    state = prior.start(image())
    pinned = tracks(np.full((9, 1, 2), 20.0))
    for idle in (Tracks.empty(9), pinned.resample(12)):
        moved = prior.step(state, idle)
        warped, confidence = moved.picture, moved.confidence
        assert warped.shape == (1, 3, idle.T, HEIGHT, WIDTH) and confidence.shape == (1, 1, idle.T, HEIGHT, WIDTH)
        assert torch.equal(warped, state.image[None, :, None].expand_as(warped)) and confidence.min() == 1


def test_steps_of_any_length_equal_one_step(prior):
    rng = np.random.default_rng(0)
    path = tracks(rng.uniform(5, 40, (1, 6, 2)) + np.linspace(0, 9, 21)[:, None, None] * rng.normal(0, 1, (1, 6, 2)))
    whole = prior.motion(prior.start(image()), path)
    state = prior.start(image())
    parts = [prior.motion(state, path.rows(a, b)) for a, b in ((0, 9), (9, 10), (10, 21))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-3, rtol=1e-3)


def test_motion_so_far_is_kept_when_tracks_end_and_others_begin(prior):
    state = prior.start(image())
    dragged = prior.motion(state, tracks(np.linspace([[20, 20]], [[32, 20]], 9)))[-1]
    assert dragged[:, 0].max() > 1
    torch.testing.assert_close(prior.motion(state, Tracks.empty(4))[-1], dragged)
    newcomer = tracks(np.full((4, 1, 2), 25.0), ids=[7])
    torch.testing.assert_close(prior.motion(state, newcomer)[-1], dragged, atol=1e-3, rtol=0)


def test_a_track_that_starts_on_a_moved_part_grabs_that_part(prior):
    state = prior.start(image())
    prior.motion(state, tracks(np.linspace([[20, 20]], [[32, 24]], 9)))
    moved = cell_centres(HEIGHT, WIDTH) + state.latest
    cell = int((cell_centres(HEIGHT, WIDTH) - torch.tensor([20.0, 20.0])).square().sum(1).argmin())
    prior.motion(state, tracks(moved[cell].expand(3, 1, 2).numpy(), ids=[9]))
    assert (state.anchors[9] - cell_centres(HEIGHT, WIDTH)[cell]).norm() < 3


@pytest.mark.parametrize("ahead", [False, True])
def test_where_two_cells_have_landed_the_one_in_front_is_grabbed(ahead, prior):
    state, centres = prior.start(image()), cell_centres(HEIGHT, WIDTH)
    left = centres[:, 0] < 20
    state.latest = left[:, None] * torch.tensor([20.0, 0.0])  # and there it covers, or is covered by, what stayed
    state.front = (left == ahead).float()
    prior.motion(state, tracks(np.full((3, 1, 2), (35.0, 25.0)), ids=[4]))
    torch.testing.assert_close(state.anchors[4], torch.tensor([15.0 if ahead else 35.0, 25.0]))


def test_nothing_jumps_when_something_is_grabbed_where_motion_is_cut(prior):
    state, centres = prior.start(image()), cell_centres(HEIGHT, WIDTH)
    state.latest = (centres[:, :1] < 20) * torch.tensor([-8.0, 0.0])
    motion = prior.motion(state, tracks(np.full((3, 1, 2), (11.25, 25.0)), ids=[4]))  # the last that moved: 19.25
    torch.testing.assert_close(motion, state.base.expand_as(motion))


def test_of_tracks_that_look_alike_the_nearer_is_followed(prior):
    centres, anchors = cell_centres(HEIGHT, WIDTH), torch.tensor([[10.0, 10.0], [50.0, 30.0], [30.0, 20.0]])
    told = Cells(torch.zeros(1, len(centres), 4), torch.zeros(1, len(centres)), torch.zeros(1, len(centres)))
    grips = Grips(torch.zeros(1, 3, 4), *torch.zeros(3, 1, 3))
    weights = prior.weigh(centres[None], told, anchors[None], grips, torch.tensor([[True, True, False]]))[0]
    squared = torch.cdist(centres, anchors[:2]).square() + prior.reach**2
    odds = (squared.amin(1, keepdim=True) / squared) ** torch.nn.functional.softplus(prior.nearness)
    odds = torch.cat([torch.ones(len(centres), 1), odds, torch.zeros(len(centres), 1)], 1)
    torch.testing.assert_close(weights, odds / odds.sum(1, keepdim=True))


def test_a_track_always_moves_what_it_is_attached_to():
    for seed in range(5):
        torch.manual_seed(seed)
        untrained = MotionPrior(widths=(8, 8, 8), features=4).eval()
        motion = untrained.motion(untrained.start(image()), tracks(np.linspace([[20, 20]], [[32, 20]], 9)))
        at = (cell_centres(HEIGHT, WIDTH) - torch.tensor([20.0, 20.0])).square().sum(1).argmin()
        assert 11 < motion[-1, at, 0] < 13


def test_state_does_not_grow(prior):
    state = prior.start(image())
    for number in range(30):
        prior.step(state, tracks(np.full((4, 2, 2), 20.0) + number / 10, ids=[number, number + 1]))
    assert len(state.anchors) == 2


def test_what_is_dragged_out_of_the_frame_does_not_come_back(prior):
    state = prior.start(image())
    path = np.linspace([[50, 20]], [[90, 20]], 9)
    leaving = tracks(path).in_frame(WIDTH, HEIGHT)
    assert not leaving.visible[-1].any()
    motion = prior.motion(state, leaving)
    torch.testing.assert_close(motion, prior.motion(prior.start(image()), tracks(path)))
    assert motion[-1, :, 0].max() > motion[4, :, 0].max()


def test_a_hem_is_narrow_lies_beside_a_thing_and_goes_as_that_does():
    things = np.zeros((40, 60), bool)
    things[10:20, 10:20] = things[30:36, 40:50] = True  # one that goes, one that stays
    motion = np.zeros((40, 60, 2), np.float32)
    motion[8:22, 8:23] = [9, 3]
    assert np.array_equal(with_hem(things, motion.reshape(-1, 2)), things | (motion[..., 0] > 0))
    motion[8:22, 23 : 23 + 4 * HEM] = [9, 3]  # to this side it is wide
    found = with_hem(things, motion.reshape(-1, 2))
    assert found[8:22, 8:10].all() and not (found & ~things)[12:18, 20:].any()
    motion[:] = 0
    motion[10:20, 10:20], motion[9:21, 20:22], motion[30:36, 50:52] = [9, 3], [-9, 0], [9, 3]
    assert np.array_equal(with_hem(things, motion.reshape(-1, 2)), things)


def test_medians_do_not_eat_what_lies_in_front():
    size = rows, columns = 24, 32
    going = torch.zeros(1, *size, 2)
    going[0, 4:9, 6:11] = going[0, 16, 20] = torch.tensor([6.0, 0.0])  # a basket, and a speck
    solid, (near, rim, foremost) = torch.zeros(size, dtype=torch.bool), outlines(torch.zeros(size))
    solid[4:9, 6:11] = True
    going = going.flatten(1, 2)
    eaten = settle(going, near, rim, foremost)
    kept = whole(eaten, going, solid.flatten(), rim, foremost).view(*size, 2)
    assert not eaten.view(*size, 2)[4, 6].any() and not kept[:4].any()
    assert torch.equal(kept[4:9, 6:11, 0], torch.full((5, 5), 6.0)) and not kept[16, 20].any()


def test_what_medians_would_eat_goes_with_its_rim():
    """A basket that is four cells wide; beside one that they leave whole, nothing changes."""
    front = torch.zeros(24, 32)
    front[8:12, 6:10] = front[4:20, 18:28] = 0.9
    solid, (near, rim, foremost) = (front > 0).flatten(), outlines(front)
    going = torch.tensor([6.0, 0.0]) * solid[None, :, None]
    settled = settle(going, near, torch.zeros_like(rim), foremost)  # as when they were eaten before their rims came
    kept = whole(settled, going, solid, rim, foremost).view(24, 32, 2)[..., 0]
    assert not settled.view(24, 32, 2)[8, 6].any() and (kept[8:12, 6:10] == 6).all()
    around = rim.clone()
    around[:, 13:] = False
    assert around.sum() == 48 and (kept[around] == 6).float().mean() > 0.9
    beside = torch.zeros_like(rim)
    beside[10:14, 14:18] = True
    assert not kept[beside].any()


def test_the_rim_of_a_thing_that_stays_does_not_go_with_what_is_behind_it():
    """A closer look sees it in front, too."""
    front = torch.zeros(24, 32)
    front[8:16, 10:20] = 0.9
    near, rim, foremost = outlines(front)
    going = torch.tensor([6.0, 0.0]).expand(1, 24, 32, 2) * (front == 0)[None, ..., None]
    going, solid = going.flatten(1, 2), (front > 0).flatten() | rim.flatten()
    settled = settle(going, near, rim, foremost)
    assert (settled[0].norm(dim=1) == 0)[rim.flatten()].float().mean() > 0.2
    assert torch.equal(whole(settled, going, solid, rim, foremost), settled)


def thing_on_waves(prior):
    """A stream of 96x160 pixels whose track, at 44, moves a square of 24 over columns [W] that repeat themselves."""
    height, width = 96, 160
    wave = 0.6 * torch.sin(2 * torch.pi * torch.arange(width).float() / 8)
    picture = wave.expand(3, height, -1).contiguous()
    picture[:, 32:56, 32:56] = 1.0
    state, there = prior.start(picture), torch.zeros(height // 2, width // 2)
    there[16:28, 16:28] = 1
    prior.motion(state, tracks(np.full((1, 1, 2), 44.0)))
    state.front, state.weights = there.flatten(), torch.stack([1 - there.flatten(), there.flatten()], 1)
    state.outlines, state.number, state.parts = outlines(there), *[(there > 0).numpy().astype(int)] * 2
    return state, there, wave


def test_what_lies_behind_stays_while_the_thing_is_beside_it(prior):
    state, _, wave = thing_on_waves(prior)
    moved = prior.step(state, tracks(np.linspace([[44.0, 44.0]], [[60.0, 44.0]], 13)[1:]))  # to columns 48 to 72
    hole = np.s_[..., 36:52, 32:40]
    assert moved.guessed[0, 0, -1][hole].mean() > 0.9
    assert (moved.picture[0, :, -1][hole] - wave[32:40]).abs().mean() < 0.15 < wave.abs().mean() / 2


def test_behind_a_thing_that_leaves_the_picture_goes_on_and_stays(prior):
    state, there, wave = thing_on_waves(prior)
    path = np.linspace([[44.0, 44.0]], [[80.0, 44.0]], 13)[1:]
    first, second = (prior.step(state, tracks(part)) for part in (path, path[-1:].repeat(4, axis=0)))
    assert first.behind.filled[16:28, 16:28].all() and first.behind.things.sum() == 144
    assert second.behind is first.behind and np.array_equal(second.behind.things, there.numpy() > 0)
    hole = np.s_[..., 38:50, 38:50]
    assert first.guessed[0, 0, -1][hole].min() > 0.999 and first.confidence[0, 0, -1][hole].max() == 0
    assert first.guessed[..., 120:].max() == 0 and (first.guessed + first.confidence).max() <= 1
    shown = first.picture[0, :, -1][hole]
    assert (shown - wave[38:50]).abs().mean() < 0.1 < wave[38:50].abs().mean() / 3
    torch.testing.assert_close(second.picture[0, :, 0], second.picture[0, :, -1])
    torch.testing.assert_close(second.picture[0, :, 0][hole], shown)


def test_where_things_part_a_cell_goes_with_one_of_them():
    anchors, moved = torch.tensor([[10.0, 10.0], [30.0, 10.0]]), torch.tensor([[[40.0, 0.0], [0.0, 40.0]]])
    weights, here = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.4, 0.5]]), torch.tensor([[20.0, 10.0]]).expand(2, -1)
    visible, ridge = torch.ones(1, 2, dtype=torch.bool), torch.tensor(20.0)
    motion, share = decided_motion(weights, here, anchors, moved, visible, ridge)
    assert (motion - moved).norm(dim=2).max() < 1 and share.min() > 0.99


def test_what_moves_more_and_more_is_no_number_of_things():
    """Tracks that differ little from one to the next are a few motions here, and nothing tears between these."""
    along = torch.arange(0.0, 164, 4)
    anchors, moved = F.pad(along[:, None], (0, 1), value=10.0), F.pad(along[:, None] - 80, (0, 1))
    centres = F.pad(torch.arange(20.0, 140)[:, None], (0, 1), value=10.0)
    weights, visible = (-torch.cdist(centres, anchors).square() / 64).softmax(1), torch.ones(1, len(along)) > 0
    motion, _ = decided_motion(F.pad(weights, (1, 0)), centres, anchors, moved[None], visible, torch.tensor(1e6))
    steps = motion[0, :, 0].diff()
    assert 0 < steps.min() and steps.max() < 6


def test_a_lone_track_that_comes_into_the_frame_moves_nothing_before(prior):
    x = np.arange(-30, 24, 6)[:, None]
    path = tracks(np.stack([x, np.full_like(x, 20)], -1), visible=(x >= 0))
    whole = prior.motion(prior.start(image()), path)
    state = prior.start(image())
    parts = torch.cat([prior.motion(state, path.rows(0, 5)), prior.motion(state, path.rows(5, 9))])
    assert not whole[:5].any() and whole[-1].any()
    torch.testing.assert_close(whole, parts)


def test_a_track_that_comes_in_later_goes_with_those_that_move_alike(prior):
    """Two of a rigid grid, of which one begins outside: however the stream is cut, they do not part."""
    ways = np.linspace(0, 30, 10)[:, None] + [-20, 12]
    path = tracks(np.stack([ways, np.full_like(ways, 20)], -1), visible=(ways >= 0))
    for cuts in ((0, 10), (0, 6, 10), (0, 8, 10)):
        state = prior.start(image())
        for a, b in itertools.pairwise(cuts):
            moved = prior.motion(state, path.rows(a, b))[-1]
        moved = prior.motion(state, path.rows(9, 10))[-1]
        assert (moved[:, 0] > 20).any() and moved[moved[:, 0] > 5, 0].min() > 25


@pytest.mark.parametrize("left, alone", [(20, True), (1, False)])
def test_only_what_no_edge_cuts_off_is_known_to_be_alone(left, alone, prior, monkeypatch):
    front = torch.zeros(HEIGHT // 2, WIDTH // 2)
    front[6:18, left : left + 6] = 1
    same = torch.ones(1, 1, dtype=torch.bool)
    weights, cells = torch.full((front.numel(), 2), 0.5), torch.arange(front.numel())
    looks = Looked(weights, torch.stack([front] * 2), cells, same, same)
    monkeypatch.setattr(prior, "look", lambda *given: looks)
    state = prior.start(image())
    prior._look_anew(state, torch.tensor([[30.0, 24.0]]))
    on = cv2.resize(front.numpy(), state.size[::-1]) > 0.5
    assert (state.alone[on] == alone).all() and not state.ground[on].any() and not state.alone[state.ground == 1].any()
