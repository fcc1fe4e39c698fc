"""The motion prior's geometry against closed forms, and its state against one pass over the same tracks."""

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
from motionstream.model.elastic import pulled
from motionstream.model.frames import in_motion, trend_of
from motionstream.model.grids import ALIKE, GRID, idling, straddling
from motionstream.model.least_squares import GOES, decided_motion, least_squares_motion, most_go
from motionstream.model.limbs import borne, limbs, with_rims
from motionstream.model.motion_prior import Cells, Grips, Looked, MotionPrior, as_seen
from motionstream.model.pieces import attached, connect, numbered, pieces, together, undivided
from motionstream.model.presets import PRESETS
from motionstream.model.warping import (
    BEHIND,
    BESIDE,
    CELL,
    HEM,
    IN_FRONT,
    MISSED,
    PARTS,
    SEEN,
    behind,
    between,
    cell_centres,
    cell_numbers,
    cells_of,
    close_gaps,
    enlarged_motion,
    fill_holes,
    in_the_first_frame,
    meet,
    mirrored,
    on_top,
    outlines,
    seen_through,
    settle,
    splat,
    surely,
    whole,
    with_hem,
    without_seams,
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


def spider() -> torch.Tensor:
    """How far in front cells [30, 40] lie: a body (rows 10 to 19, columns 10 to 19), and a leg to column 30."""
    front = torch.zeros(30, 40)
    front[10:20, 10:20] = 1
    front[14:16, 20:30] = 0.8
    return front


def bearers(front: torch.Tensor, anchors: list[tuple[float, float]]) -> np.ndarray:
    return limbs(front, torch.tensor(anchors).reshape(-1, 2)).view(front.shape).numpy()


def inside_of_spider(cells: np.ndarray) -> bool:
    row, column = np.divmod(cells, 40)
    return bool((12 <= row).all() and (row < 18).all() and (12 <= column).all() and (column < 18).all())


OWN = np.arange(1200).reshape(30, 40)


def test_a_limb_goes_with_the_thing_that_it_hangs_on():
    bearer = bearers(spider(), [(30.0, 30.0)])
    assert inside_of_spider(bearer[14:16, 20:30])
    bearer[14:16, 20:30] = OWN[14:16, 20:30]
    assert np.array_equal(bearer, OWN)


def test_the_rim_of_a_limb_goes_with_it_and_no_other():
    front = spider()
    rim, foremost = outlines(front)[1:]
    bearer = with_rims(limbs(front, torch.zeros(0, 2)), rim, foremost).view(30, 40).numpy()
    assert inside_of_spider(bearer[12:18, 23:30])
    assert rim[:, :18].any() and np.array_equal(bearer[:, :18], OWN[:, :18])


def test_a_limb_is_seen_as_its_thing_is():
    """Be it one that only a closer look shows."""
    front, body = spider(), spider() == 1
    weights = torch.stack([1 - 0.9 * body, 0.9 * body], 2).flatten(0, 1)
    for far, near in ((front, None), (torch.where(body, front, 0.0), front)):
        seen, _ = as_seen(weights, far, torch.tensor([1.0]), torch.tensor([[30.0, 30.0]]), near)
        assert (seen[0, 14:16, 20:30] == 1).all()
        torch.testing.assert_close(seen[1, 14:16, 20:30], torch.full((2, 10), 0.9))
        assert seen.sum() == pytest.approx((100 + 20) * 1.9)


def test_a_limb_with_a_track_goes_as_it_likes():
    assert np.array_equal(bearers(spider(), [(30.0, 30.0), (54.0, 29.0)]), OWN)


def test_what_is_thin_but_hangs_on_nothing_goes_as_it_likes():
    front = spider()
    front[10:20, 10:26] = 0
    assert np.array_equal(bearers(front, []), OWN)


@given(st.integers(0, 2**32 - 1))
def test_what_hangs_on_a_thing_goes_with_what_does_not_hang_itself(seed):
    rng = np.random.default_rng(seed)
    front = torch.from_numpy(cv2.resize(rng.random((8, 10), np.float32), (40, 30), interpolation=cv2.INTER_CUBIC))
    front = (front + 0.8 * (torch.from_numpy(rng.random((30, 40))) < 0.05)).float().clamp(0, 1)
    bearer = bearers(front, rng.uniform(0, 60, (3, 2)).tolist()).ravel()
    assert np.array_equal(bearer[bearer], bearer)


def test_a_limb_that_would_stay_behind_goes_along_with_its_bearer():
    motion, share, bearer = torch.zeros(12, 20, 2), torch.full((12, 20), 0.1), torch.arange(240).view(12, 20)
    motion[:, :8, 0], share[:, :8] = 10.0, 0.9
    motion[2, 16, 0] = 10.0
    limb, speck = np.s_[4:7, 8:14], np.s_[10, 16]
    bearer[limb] = bearer[speck] = 5 * 20 + 4
    bearer[:, 0] = 5 * 20 + 18  # goes by itself, though what it hangs on stays
    moved, follows = (part[0] for part in borne(motion.view(1, -1, 2), share.view(1, -1), bearer.flatten(), 12))
    wanted = torch.zeros(12, 20)
    wanted[:, :8] = 10.0
    wanted[4:7, 8:13] = 10.0
    wanted[5, 13] = wanted[[3, 7], 8:10] = wanted[[2, 8], 8] = 10.0  # medians round the corners off
    assert torch.equal(moved[:, 0].view(12, 20), wanted) and not moved[:, 1].any()
    assert (follows.view(12, 20)[limb] == 0.9).all() and (follows.view(12, 20)[:, 8:][:4] == 0.1).all()


def test_limbs_go_along_frame_by_frame():
    """So that a stream is the same however it is cut into chunks."""
    rng = np.random.default_rng(0)
    motion = torch.from_numpy(rng.normal(0, 3, (5, 240, 2)).astype(np.float32)).cumsum(0)
    motion[2] = 0  # nothing goes along
    share = torch.linspace(0, 1, 1200).view(5, 240)
    bearer = torch.from_numpy(np.where(rng.random(240) < 0.1, 50, np.arange(240)))
    whole = borne(motion, share, bearer, 12)
    for t in range(5):
        for part, all_of_them in zip(borne(motion[t : t + 1], share[t : t + 1], bearer, 12), whole, strict=True):
            assert torch.equal(part[0], all_of_them[t])
    assert torch.equal(whole[0][2], motion[2]) and not torch.equal(whole[0][3], motion[3])


def test_tracks_on_the_background_are_not_seen_as_a_thing():
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 1.0]])
    seen, _ = as_seen(weights, torch.tensor([[0.7, 0.2]]), torch.tensor([1.0, 0.0]), torch.zeros(0, 2))
    torch.testing.assert_close(seen, torch.tensor([[[0.7, 0.2]], [[0.6, 0.0]]]))


def test_outlines_lie_between_front_and_back():
    front = torch.zeros(12, 20)
    front[:, 10:] = 0.9
    near, rim, foremost = outlines(front)
    assert near[0].nonzero().flatten().tolist() == [*range(6, 14)] and rim[0].nonzero().flatten().tolist() == [8, 9]
    assert (front.flatten()[foremost].view(12, 20)[:, 8:] == 0.9).all()
    assert not outlines(torch.full((12, 20), 0.4))[0].any()


def test_motion_of_pixels_is_never_between_two_things():
    cells = np.zeros((2, 8, 12), np.float32)
    cells[0, :, 6:] = -30.0
    pixels = enlarged_motion(cells, np.ones((8, 12), np.float32))
    assert pixels.shape == (2, 16, 24) and np.array_equal(np.unique(pixels[0]), [-30.0, 0.0])
    assert (pixels[0, :, 12:] == -30).all() and (pixels[0, :, :12] == 0).all() and not pixels[1].any()
    smooth = np.linspace(0, 5, 12, dtype=np.float32).repeat(8).reshape(12, 8).T[None].repeat(2, 0)
    pixels = enlarged_motion(smooth.copy(), np.ones((8, 12), np.float32))
    np.testing.assert_allclose(pixels[0], cv2.resize(smooth[0], None, fx=2, fy=2), atol=1e-5)
    pixels = enlarged_motion(cells, np.ones((8, 12), np.float32), 6)
    assert (pixels[0, :, 36:] == -30).all() and (pixels[0, :, :36] == 0).all() and pixels.shape == (2, 48, 72)
    known = np.ones((8, 12), np.float32)
    known[:, 6:] = 0  # of what is not known nothing is taken over
    assert not enlarged_motion(cells, known)[0, :, :12].any()


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


@pytest.mark.parametrize("goes", [True, False])
def test_what_moves_as_a_visible_track_lies_in_front(goes):
    """The left part slides over the right one, which stays: a track says which of them is seen where they meet."""
    centres = cell_centres(HEIGHT, WIDTH).numpy()
    shift = np.array([20, 0], np.float32)
    displacement = shift * (centres[:, :1] < 20)
    point, moved = np.array([[31.0, 25.0]], np.float32), shift[None] * goes

    def surely(visible):
        return on_top(displacement, point, moved, np.array([visible]), HEIGHT, WIDTH)

    near = np.linalg.norm(centres + displacement - point, axis=1) < BESIDE - 2
    agrees = (displacement[:, 0] > 0) == goes
    assert surely(True)[near & agrees].min() > 0.99 and surely(True)[~agrees].max() < 1e-6
    far = np.linalg.norm(centres + displacement - point, axis=1) > BESIDE + 4
    assert not surely(False).any() and not surely(True)[far].any()
    backward, _ = splat(displacement, 0.5 + 0.25 * surely(True), HEIGHT, WIDTH)
    np.testing.assert_allclose(backward[:, 12, 15], -moved[0], atol=1e-2)


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
    idle = idling(gone, pairs)
    assert idle.nonzero().tolist() == [[1, 1], [1, 2], [2, 2]]  # what stands still is a pin
    columns, rows = np.meshgrid(np.arange(2, 64, 4), np.arange(2, 48, 4))
    everywhere = torch.tensor(np.stack([columns, rows], -1).reshape(-1, 2), dtype=torch.float32)
    assert straddling(everywhere, everywhere, front).numel() == 0
    assert straddling(torch.zeros(0, 2), torch.zeros(0, 2), front).shape == (2, 0)


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


def test_what_is_filled_behind_a_thing_stays_right_up_to_it():
    """The picture brightens from left to right; so does what lies behind a thing that moves right, with its rim."""
    rows, columns = HEIGHT // 2, WIDTH // 2
    ramp = np.broadcast_to(np.linspace(-0.8, 0.8, WIDTH, dtype=np.float32), (HEIGHT, WIDTH))
    things = np.zeros((rows, columns), bool)
    things[6:18, 6:16] = True
    inner = np.zeros_like(things)
    inner[8:16, 8:14] = True
    front = np.where(inner, np.float32(1), np.float32(0))
    displacement = np.where(things.ravel()[:, None], np.float32([12, 0]), np.float32(0))
    picture = between(np.dstack([ramp] * 3 + [cv2.resize(front, (WIDTH, HEIGHT))]))
    plate = between(np.dstack([ramp] * 3 + [np.ones_like(ramp)]))
    nowhere = np.zeros_like(ramp)
    shown, _, guessed, *_ = in_motion(picture, plate, nowhere, nowhere, things, displacement, front)
    seen = guessed > 0.9
    assert seen.sum() > 24 * 8
    assert np.abs(shown[0] - ramp)[seen].max() < 0.05
    partly = (guessed > 0.3) & ~seen
    assert partly.any() and np.abs(shown[0] - ramp)[partly].max() < 0.25


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


@pytest.mark.parametrize("shrunk", [0.3, 0.15])
def test_how_most_of_a_picture_shrinks_is_told_whatever_some_of_it_does(shrunk):
    rng, places = np.random.default_rng(0), cell_numbers(14, 22)
    away = (places - places.mean(1, keepdims=True)) / places.shape[1] ** 0.5
    growth = 100 * (1 / shrunk - 1)
    gone = growth * away.T + rng.normal(0, 1, away.T.shape)
    basis = np.vstack([np.ones(len(gone)), away])
    np.testing.assert_allclose(most_go(basis, gone)[1:] / growth, np.eye(2), atol=0.01)
    gone[rng.random(len(gone)) < 0.3] = -20, 5
    np.testing.assert_allclose(most_go(basis, gone)[1:] / growth, np.eye(2), atol=0.2)


@pytest.mark.parametrize("seen", [True, False])
def test_what_lags_behind_does_not_tell_how_the_picture_goes_on_beyond_its_edge(seen):
    """The camera turns right, so that the picture goes left, but for a thing at its left, which it follows."""
    rows, columns = HEIGHT // 2, WIDTH // 2
    thing = np.zeros((rows, columns), bool)
    thing[slice(1, 23) if seen else slice(4, 20), 14:24] = True  # more of what is in sight than all else
    displacement = np.where(thing.ravel()[:, None], np.float32([-3, 0]), np.float32([-24, 0]))
    displacement += np.float32([0.02, 0.01]) * cell_centres(HEIGHT, WIDTH).numpy()  # a little nearer, too
    backward, sure = close_gaps(*splat(displacement, thing.ravel().astype(np.float32), HEIGHT, WIDTH))
    trend = trend_of(backward, sure, thing & seen)
    assert np.abs(trend[0, :, -4:] - 24).max() < 3


@pytest.mark.parametrize("taken, stays", [(12, 1), (22, 0.5625), (29, 0)])
def test_ground_that_goes_along_leaves_itself_behind_unless_nearly_all_of_it_does(taken, stays):
    """Of a picture without any thing, of 32 columns of cells, the last ones go to the right: as many as are `taken`."""
    rows, columns = HEIGHT // 2, WIDTH // 2
    colours = np.random.default_rng(0).uniform(-0.8, 0.8, (HEIGHT, WIDTH, 3)).astype(np.float32)
    goes = np.tile(np.arange(columns) >= columns - taken, rows)
    displacement = np.where(goes[:, None], np.float32([12, 0]), np.float32(0))
    front, nothing = np.zeros((rows, columns), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)
    still, plate = (between(np.dstack([colours, nothing])) for _ in range(2))
    shown, _, guessed, beyond, _, under, _ = in_motion(
        still, plate, nothing + 1, nothing, front > 1, displacement, front
    )
    begins = WIDTH - 2 * taken
    hole = (slice(None), slice(begins + 4, begins + 10))
    assert (guessed + beyond)[hole].min() > 0.98 and guessed[hole].any()  # it is ground in any case, not a blur
    moved = under[0, :, begins // 2 + 3 : begins // 2 + 4]
    if stays == 1:
        assert np.abs(moved).max() < 0.1 and np.abs(shown.transpose(1, 2, 0) - colours)[hole].max() < 0.02
    elif stays == 0:
        assert moved.max() < -6 and shown[(slice(None), *hole)].std() > 0.8 * colours.std()
    else:
        assert np.abs(moved).mean() > 0.5


def test_splatting_a_translation_gives_its_inverse_and_an_uncovered_strip():
    cells = HEIGHT // 2 * (WIDTH // 2)
    backward, coverage = splat(np.tile(np.float32([8, 0]), (cells, 1)), np.zeros(cells, np.float32), HEIGHT, WIDTH)
    assert backward.shape == (2, HEIGHT // 2, WIDTH // 2) and not coverage[:, :4].any()
    assert (coverage[:, 4:] == 1).all() and (backward[0, :, 4:] == -8).all() and not backward[1].any()
    _, confidence = close_gaps(backward, coverage)
    assert not confidence[:, :3].any() and confidence[:, 5:].min() == 1


def test_what_is_in_front_hides_what_is_behind():
    left = cell_centres(HEIGHT, WIDTH).numpy()[:, 0] < 20
    displacement = np.where(left[:, None], np.float32([20, 0]), np.float32([0, 0]))
    for front, wanted in ((left, -20), (~left, 0)):
        backward, _ = splat(displacement, front.astype(np.float32), HEIGHT, WIDTH)
        np.testing.assert_allclose(backward[0, :, 10:20], wanted, atol=1e-2)


@given(seed=st.integers(0, 999), shift=st.floats(-30, 30), rise=st.floats(-20, 20))
def test_what_lies_between_two_motions_is_no_motion(seed, shift, rise):
    rng = np.random.default_rng(seed)
    centres = cell_centres(HEIGHT, WIDTH).numpy()
    goes = np.linalg.norm(centres - rng.uniform(10, 50, 2), axis=1) < rng.uniform(4, 16)
    displacement = np.where(goes[:, None], np.float32([shift, rise]), np.float32([0, 0]))
    front = rng.uniform(0.4, 0.41, len(goes)).astype(np.float32)  # neither is much in front of the other
    backward, coverage = splat(displacement, front, HEIGHT, WIDTH)
    filled, confidence = close_gaps(backward, coverage)
    for motion, seen in ((backward, coverage > 0), (filled, confidence > 0)):
        at = motion[:, seen].T
        off = [np.linalg.norm(at - wanted, axis=1) for wanted in ([0, 0], [-shift, -rise])]
        assert np.minimum(*off).max() <= PARTS + 1e-3  # and not half of how far they are apart


@given(seed=st.integers(0, 999), shift=st.floats(-30, 30), rise=st.floats(-20, 20))
def test_where_something_is_seen_no_hole_beside_it_changes_its_motion(seed, shift, rise):
    """A thing and its rim go along, as far in front as nothing else."""
    rng = np.random.default_rng(seed)
    centres, size = cell_centres(HEIGHT, WIDTH).numpy(), (HEIGHT // 2, WIDTH // 2)
    goes = np.linalg.norm(centres - rng.uniform(10, 50, 2), axis=1) < rng.uniform(4, 16)
    displacement = np.where(goes[:, None], np.float32([shift, rise]), np.float32([0, 0]))
    nowhere, things = np.zeros((HEIGHT, WIDTH), np.float32), goes.reshape(size)
    picture = between(np.zeros((HEIGHT, WIDTH, 4), np.float32))
    *_, flow, _, sure = in_motion(picture, picture, nowhere, nowhere, things, displacement, np.float32(things))
    at = flow[:, sure >= 0.5].T
    off = [np.linalg.norm(at - wanted, axis=1) for wanted in ([0, 0], [-shift, -rise])]
    assert np.minimum(*off).max() <= PARTS + 1e-3


def test_what_lands_by_a_hair_is_not_seen_there():
    thing = cell_centres(HEIGHT, WIDTH).numpy()[:, 0] < 20
    for hair, seen in ((1e-4, 14), (0.4, 15)):  # it ends at column 10, and moves by four more
        displacement = np.where(thing[:, None], np.float32([8 + hair, 0]), np.float32(0))
        backward, _ = splat(displacement, thing.astype(np.float32), HEIGHT, WIDTH)
        assert (backward[0, :, seen - 1] < -7).all() and (backward[0, :, seen:] == 0).all()


def test_magnifying_leaves_no_gaps():
    centres = cell_centres(HEIGHT, WIDTH).numpy()
    away = (centres - np.float32([32, 24])) * np.float32(0.9)
    backward, coverage = splat(away, np.zeros(len(away), np.float32), HEIGHT, WIDTH)
    assert coverage.min() > 0.05
    _, confidence = close_gaps(backward, coverage)
    assert confidence.min() > 0.9


def test_holes_take_the_colour_around_them():
    picture, confidence = np.full((3, 32, 32), 0.5, np.float32), np.ones((32, 32), np.float32)
    confidence[10:20, 10:20] = 0
    picture[:, 10:20, 10:20] = -1
    np.testing.assert_allclose(fill_holes(picture, confidence), 0.5, atol=1e-3)


def test_beyond_the_edge_the_picture_is_mirrored():
    picture = np.linspace(-1, 1, WIDTH, dtype=np.float32)[:, None].repeat(4, 1)[None].repeat(HEIGHT, 0)
    motion = np.zeros((2, HEIGHT // 2, WIDTH // 2), np.float32)
    motion[0] = 20  # every pixel shows what was 20 px to its right
    places = in_the_first_frame(enlarged_motion(motion, np.ones(motion.shape[1:], np.float32)))
    seen, beyond = seen_through(between(picture), *places), mirrored(*places)
    assert beyond[:, : WIDTH - 21].max() == 0 and beyond[:, WIDTH - 19 :].min() == 1
    assert not mirrored(places[0] - 20.9, places[1] + 0.9).any()  # less than a pixel beyond is still the edge
    np.testing.assert_allclose(seen[:, 30], picture[:, 50], atol=1e-6)
    np.testing.assert_allclose(seen[:, 60], picture[:, 2 * (WIDTH - 1) - 80], atol=1e-6)


def test_a_picture_seen_at_other_places_is_as_sharp_as_bicubic_interpolation_makes_it():
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    picture = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    columns, rows = (x.astype(np.float32) for x in np.meshgrid(np.arange(2 * WIDTH), np.arange(2 * HEIGHT)))
    assert np.array_equal(seen_through(between(picture), columns, rows), picture)
    for step in (0.1, 1 / 6, 0.25, 0.5):
        seen = seen_through(between(picture), columns + step, rows + step).astype(float)
        cubic, linear = (
            cv2.remap(picture, columns + step, rows + step, kind, borderMode=cv2.BORDER_REFLECT_101)
            for kind in (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
        )
        assert np.square(seen - cubic).mean() < 0.2 * np.square(linear.astype(float) - cubic).mean(), step


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


def test_holes_are_filled_however_far_what_is_known_lies():
    picture, confidence = np.zeros((3, 40, 96), np.float32), np.zeros((40, 96), np.float32)
    picture[..., :8], confidence[..., :8] = 0.75, 1
    np.testing.assert_allclose(fill_holes(picture, confidence), 0.75, rtol=1e-5)


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


NEAR = torch.ones(HEIGHT // 2, WIDTH // 2)


def test_what_looks_like_the_dragged_object_elsewhere_stays():
    follow = torch.zeros(2, HEIGHT // 2, WIDTH // 2)
    follow[0, 4:10, 4:10] = 0.9  # the object of track 0 ...
    follow[0, 4:10, 20:26] = 0.8  # ... and its twin, which is not connected to it
    follow[1, 16:22, 4:30] = 0.9  # the object of track 1, of which track 0 claims a part
    follow[:, 16:22, 12:20] = 0.45
    weights = torch.cat([1 - follow.sum(0, keepdim=True), follow]).flatten(1).T
    anchors = torch.tensor([[12.0, 12.0], [20.0, 36.0]])
    kept = connect(weights, NEAR, anchors).T.unflatten(1, (HEIGHT // 2, WIDTH // 2))
    torch.testing.assert_close(kept.sum(0), torch.ones(HEIGHT // 2, WIDTH // 2))
    assert (kept[0, 4:10, 20:26] == 1).all() and (kept[1, 4:10, 4:10] > 0.89).all()
    torch.testing.assert_close(kept[2, 16:22, 4:30], torch.full((6, 26), 0.9))


def test_a_pin_on_the_sky_does_not_take_the_basket_from_the_balloon():
    rows, columns = HEIGHT // 2, WIDTH // 2
    balloon, ropes, basket, away = (np.zeros((rows, columns), bool) for _ in range(4))
    balloon[2:12, 6:16], ropes[12:15, 11], basket[15:19, 10:13] = True, True, True
    away[:, 4:18] = True
    weights = np.zeros((rows, columns, 3), np.float32)
    weights[...] = [0.05, 0, 0.95]  # all follows the pin on the sky,
    weights[balloon | ropes | basket] = [0.05, 0.9, 0.05]  # but for the balloon and what hangs on it
    weights[away & ~(balloon | ropes | basket) & (np.arange(rows)[:, None] < 14)] = [0.9, 0, 0.1]  # and around it
    front = torch.from_numpy(np.where(balloon | basket, np.float32(0.9), np.float32(0.1)))
    anchors = torch.tensor([[20.0, 12.0], [56.0, 30.0]])
    kept = connect(torch.from_numpy(weights).flatten(0, 1), front, anchors).view(rows, columns, 3).numpy()
    assert (kept[balloon | basket][:, 1] > 0.8).all() and not kept[~(balloon | basket | ropes)][:, 1].any()
    assert (kept[:, 24:][..., 2] > 0.9).all()
    # A track on the basket itself takes the balloon along, and the basket's rim, which the prior does not see in front.
    rim = cv2.dilate(basket.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool) & ~basket & ~ropes
    weights[rim] = [0.05, 0.9, 0.05]
    anchors[0] = torch.tensor([23.0, 34.0])
    kept = connect(torch.from_numpy(weights).flatten(0, 1), front, anchors).view(rows, columns, 3).numpy()
    assert (kept[balloon | basket | rim][:, 1] > 0.8).all()


def test_ropes_follow_as_what_they_join_does():
    rows, columns = HEIGHT // 2, WIDTH // 2
    balloon, ropes, basket = (np.zeros((rows, columns), bool) for _ in range(3))
    balloon[2:12, 6:16], ropes[12:15, 9:12], basket[15:18, 9:12] = True, True, True
    weights = np.where((balloon | basket)[..., None], np.float32([0.1, 0.9]), np.float32([0.9, 0.1]))
    front, thin = np.where(balloon | basket, np.float32(0.9), np.float32(0.2)), np.zeros((rows, columns), np.float32)
    thin[ropes] = 0.8
    given = torch.from_numpy(weights).flatten(0, 1), torch.from_numpy(front), torch.tensor([[20.0, 12.0]])
    for closer, follow in ((None, False), (torch.zeros(rows, columns), False), (torch.from_numpy(thin), True)):
        kept = connect(*given, closer).view(rows, columns, 2).numpy()[..., 1]
        assert (kept[balloon | basket] > 0.8).all() and (kept[ropes] > 0.8).all() == follow
        assert not kept[~(balloon | basket | ropes)].any()
    assert np.array_equal(given[0].view(rows, columns, 2).numpy(), weights)


def test_a_thing_that_nobody_holds_goes_as_a_whole_or_stays():
    size = rows, columns = HEIGHT // 2, WIDTH // 2
    one, other, held = (np.zeros(size, bool) for _ in range(3))
    one[2:10, 2:10], other[2:10, 17:25], held[16:22, 4:16] = True, True, True
    follows = np.full(size, 0.7, np.float32)
    follows[one], follows[other], follows[held] = 0.1, 0.8, 0.9
    follows[2, 2:10] = 0.95  # a rim of the one that goes with the sky
    follows[5:7, 17:25] = 0.2  # a stripe of the other that does not
    follows[18:, 4:16] = 0.3
    front = np.where(one | other | held, np.float32(0.9), np.float32(0.2))
    front[10, 2:10], follows[10, 2:10] = 0.6, 0.95  # a soft edge
    weights = torch.from_numpy(np.stack([1 - follows, follows], 2)).flatten(0, 1)
    number = numbered(torch.from_numpy(front))
    assert np.array_equal(number > 0, one | other | held | (front == np.float32(0.6))) and number.max() == 3
    found = undivided(weights, number, number[[17], [10]]).view(*size, 2)[..., 1].numpy()
    assert not found[one].any() and not found[10, 2:10].any()
    assert found[other] == pytest.approx(follows[other].mean(), abs=1e-5)
    assert np.array_equal(found[held], follows[held]) and np.array_equal(found[number == 0], follows[number == 0])
    closer = numbered(torch.from_numpy(front), torch.from_numpy(np.where(front > 0.5, front, np.float32(0))))
    assert np.array_equal(closer, number)


def test_what_is_of_a_thing_goes_with_it_if_it_is_not_sure_to_stay():
    size = HEIGHT // 2, WIDTH // 2
    number, follows = np.zeros(size, int), np.full(size, 0.05, np.float32)
    number[4:16, 4:16], number[4:16, 20:30] = 1, 2  # one that mostly goes, and one that mostly stays
    follows[4:16, 4:16], follows[4:8, 20:30] = 0.9, 0.8
    follows[4:6, 4:16] = follows[14:16, 20:30] = follows[20, 4:16] = 0.2  # hair; a foot; some of the background
    follows[6, 4] = 0.01
    shares = np.stack([1 - follows, follows / 4, 3 * follows / 4], 2)  # the second track is on another thing
    weights = torch.from_numpy(shares).flatten(0, 1)
    connected = weights.clone()
    connected[(weights[:, 0] > 0.5), 1:], connected[(weights[:, 0] > 0.5), 0] = 0, 1
    found = together(connected, weights, number, np.array([1, 2])).view(*size, 3).numpy()
    hair = np.zeros(size, bool)
    hair[4:6, 4:16] = True
    assert (found[hair, 1] > 0.5).all() and not found[hair, 2].any()
    assert found.sum(2) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(found[~hair], connected.view(*size, 3).numpy()[~hair])


def test_crumbs_that_no_track_is_attached_to_stay():
    size = rows, columns = HEIGHT // 2, WIDTH // 2
    motion = np.zeros((2, *size, 2), np.float32)
    motion[:, 8:16, 8:16] = motion[:, 17:19, 10:14] = motion[1, 4:6, 25:28] = [9, 0]  # a basket under it; a crumb
    motion[:, 8:16, 16] = [0.5, 0]  # what is stretched
    motion[:, 10:13, 18:20] = [9, 0]  # near, but no thing
    solid = torch.zeros(size, dtype=torch.bool)
    solid[:20, :16] = True
    motion[:, 8:10, 6] = [9, 0]  # neither is a speck
    given, anchors = torch.from_numpy(motion).flatten(1, 2), torch.tensor([[22.0, 22.0], [60.0, 40.0]])
    found = attached(given, anchors, solid, rows).view(2, *size, 2).numpy()
    motion[1, 4:6, 25:28] = motion[:, 10:13, 18:20] = motion[:, 8:10, 6] = 0
    assert np.array_equal(found, motion)
    assert torch.equal(attached(given, anchors[1:], solid, rows), given)  # its track has left what it was on


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


def dragged_ground(reach: int, pins: tuple = ()) -> tuple[np.ndarray, ...]:
    """Motion [h, w, 2] of cells of which only a square goes, to the right by 12 pixels, before and after it has pulled
    what is around it; share [h, w] after it; things: bool [h, w], two of `reach` cells beside it."""
    size = 40, 80
    motion, things = np.zeros((*size, 2), np.float32), np.zeros(size, bool)
    motion[16:24, 20:30, 0] = 12
    things[4 : 4 + reach, 22:28] = things[16:24, 33 : 33 + reach] = True
    anchors, moved = [[50.0, 40.0], *pins], [[12.0, 0.0]] + [[0.0, 0.0]] * len(pins)
    given = torch.from_numpy(motion).flatten(0, 1)[None], torch.from_numpy(motion[..., 0] / 12).flatten()[None]
    found, share = pulled(*given, things, ~things, torch.tensor(anchors), torch.tensor([moved]))
    return motion, found.view(*size, 2).numpy(), share.view(size).numpy(), things


def test_background_that_is_dragged_stretches_what_is_around_it():
    before, after, share, _ = dragged_ground(0)
    assert np.array_equal(after[16:24, 20:30], before[16:24, 20:30]) and not after[..., 1].any()
    went = after[..., 0]
    assert np.abs(np.diff(went, axis=1)).max() < 1.1 * CELL  # or it would fold
    assert went.min() == 0 and not went[:, 60:].any() and (went[20, 30:36] > 1).all()
    assert share == pytest.approx(went / 12, abs=0.2) and share[20, 25] == 1
    assert went[20, 10:20] == pytest.approx(went[20, 39:29:-1], abs=0.5)


def test_what_stays_is_not_pulled_along():
    _, after, _, things = dragged_ground(6)
    assert not after[things].any() and (after[things.any(1), 31][:, 0] > 0).any()
    free, pinned = (dragged_ground(0, pins)[1][..., 0] for pins in ((), ((68.0, 40.0),)))
    assert pinned[20, 34] < 0.5 * free[20, 34] and (pinned <= free + 1e-4).all()
    assert pinned[20, 16] > 0.7 * free[20, 16]  # on the other side


def test_a_thing_that_is_dragged_pulls_no_background_along():
    motion = torch.zeros(1, 40, 80, 2)
    motion[0, 16:24, 20:30] = torch.tensor([12.0, 0.0])
    background = ~(motion[0, ..., 0] > 0).numpy()
    given = motion.flatten(1, 2), (motion[..., 0] / 12).flatten(1)
    anchors, moved = torch.tensor([[50.0, 40.0], [140.0, 70.0]]), torch.tensor([[[12.0, 0.0], [0.0, 0.0]]])
    for one, other in zip(pulled(*given, ~background, background, anchors, moved), given, strict=True):
        assert torch.equal(one, other)


def test_the_hem_of_a_thing_pulls_no_background_along():
    """Also where some other track lies on the background."""
    motion = torch.zeros(1, 40, 80, 2)
    motion[0, 16:24, 20:30] = torch.tensor([12.0, 0.0])
    things = np.zeros((40, 80), bool)
    things[18:22, 22:28] = True
    given = motion.flatten(1, 2), (motion[..., 0] / 12).flatten(1)
    anchors, moved = torch.tensor([[50.0, 40.0], [140.0, 70.0]]), torch.tensor([[[12.0, 0.0], [12.0, 0.0]]])
    for one, other in zip(pulled(*given, things, ~things, anchors, moved), given, strict=True):
        assert torch.equal(one, other)


def test_what_is_pulled_goes_along_steadily():
    """While the drag goes on, nothing jumps when it has come a certain way."""
    generator = torch.Generator().manual_seed(0)
    share = F.avg_pool2d(torch.rand(1, 1, 44, 84, generator=generator), 5, 1) ** 2 * 4
    share = share.clamp(0, 1).flatten()
    way = torch.linspace(0, 30, 61)[:, None, None] * torch.tensor([1.0, 0.0])
    motion = share[None, :, None] * way
    anchor = torch.tensor([[2.0 * (share.argmax() % 80) + 1, 2.0 * (share.argmax() // 80) + 1]])
    found, _ = pulled(motion, share.expand(61, -1), *(np.full((40, 80), on) for on in (False, True)), anchor, way)
    assert found[..., 0].diff(dim=0).abs().max() < 3 * 0.5
    assert found[-1].norm(dim=1).mean() > motion[-1].norm(dim=1).mean()


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


def test_connecting_changes_nothing_where_everything_moves_together():
    weights = torch.rand(HEIGHT // 2 * WIDTH // 2, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = weights / weights.sum(1, keepdim=True)
    anchors = torch.tensor([[3.0, 3.0], [60.0, 40.0], [-5.0, 99.0]])  # one begins outside the frame
    torch.testing.assert_close(connect(weights, NEAR, anchors), weights)


def test_a_patch_of_background_that_a_neck_joins_is_a_piece_of_its_own():
    follows, front = np.zeros((40, 60), bool), np.ones((40, 60), np.float32)
    follows[4:16, 4:20] = follows[24:36, 30:50] = True  # two bodies,
    follows[8:11, 20:50] = follows[11:24, 44:47] = True  # which something thin joins,
    follows[28:31, 5:25] = True  # and something thin that no body is joined to
    found = pieces(follows, front)[0]
    assert np.array_equal(found > 0, follows) and len(np.unique(found)) == 3  # a head and a trunk are one
    front[22:] = 0.2
    found = pieces(follows, front)[0]
    assert np.array_equal(found > 0, follows) and len(np.unique(found)) == 4
    own, other = found[10, 10], found[30, 40]
    assert own != other and (found[4:16, 4:20] == own).all() and (found[24:36, 30:50] == other).all()
    assert (found[8:11, 20:30] == own).all() and (found[18:24, 44:47] == other).all()
    front[26:30, 34:38] = 0.9  # what lies in front on it is of both
    found, besides = pieces(follows, front)
    assert (found[26:30, 34:38] == other).all() and (besides[26:30, 34:38] == own).all()
    assert np.array_equal(besides[front < 0.5], found[front < 0.5])
    follows[4:36, 20:30] = True  # a wide one makes them one
    assert len(np.unique(pieces(follows, front)[:, [10, 30], [10, 40]])) == 1


def test_what_hangs_in_front_across_a_small_gap_is_of_one_piece():
    follows = np.zeros((60, 60), bool)
    follows[10:30, 20:40] = True  # a balloon,
    basket, across = np.s_[34:40, 27:33], np.s_[34:40, 50:56]
    follows[basket] = follows[across] = True  # its basket, and one of another
    for lies, joined in ((0.9, True), (0.1, False)):
        front = np.full(follows.shape, lies)
        found = pieces(follows, front)[0]
        assert found[10:30, 20:40].min() == found[10:30, 20:40].max() > 0
        assert (found[20, 30] == found[36, 30]) == joined and found[36, 53] not in (0, found[20, 30])
        assert not found[~follows].any()



def test_nothing_that_follows_is_no_piece():
    shape = (8, 9)
    assert not pieces(np.zeros(shape, bool), np.ones(shape)).any()
    assert len(np.unique(pieces(np.ones(shape, bool), np.zeros(shape)))) == 1


@pytest.mark.parametrize("seed", range(40))
def test_shares_stay_shares_however_they_are_rounded(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 12 * torch.randn(HEIGHT // 2 * WIDTH // 2, 6, generator=generator)
    anchors = torch.rand(5, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    kept = connect(logits.softmax(1), torch.rand(HEIGHT // 2, WIDTH // 2, generator=generator), anchors)
    assert kept.min() >= 0 and kept.max() <= 1 + 1e-6


def test_a_track_whose_place_stays_moves_nothing():
    weights = torch.tensor([[0.9, 0.1]]).repeat(HEIGHT // 2 * WIDTH // 2, 1)
    weights[:40] = torch.tensor([0.2, 0.8])  # looks like the dragged object, and is not attached to the track
    kept = connect(weights, NEAR, torch.tensor([[32.0, 32.0]]))
    assert torch.equal(kept, torch.tensor([[1.0, 0.0]]).expand_as(kept))


def test_no_tracks_are_connected_to_nothing():
    stays = torch.ones(HEIGHT // 2 * WIDTH // 2, 1)
    assert torch.equal(connect(stays, NEAR, torch.zeros(0, 2)), stays)


def test_a_hole_is_filled_with_what_lies_behind_the_object_that_left_it():
    red, green = (np.float32(colour)[:, None, None] for colour in ((1, -1, -1), (-1, 1, -1)))
    picture = np.tile(green, (1, 48, 64))
    picture[:, 16:32, 8:20] = red
    front, known = np.zeros((48, 64), np.float32), np.ones((48, 64), np.float32)
    front[16:32, 8:20], known[16:32, 20:40] = 1, 0
    filled = fill_holes(picture, known, behind(front, known))
    assert np.array_equal(filled[:, 16:32, 8:20], picture[:, 16:32, 8:20])
    assert np.abs(filled[:, 16:32, 20:40] - green).max() < 0.15
    assert np.abs(fill_holes(picture, known)[:, 16:32, 20:40] - green).max() > 0.5


def test_the_soft_rim_of_a_hole_tells_nothing_of_what_lies_behind():
    known = np.ones((48, 64), np.float32)
    known[16:32, 20:40] = 0
    told, rim = behind(np.zeros_like(known), known), np.zeros(known.shape, bool)
    rim[13:35, 17:43] = True
    assert told[rim].max() < 0.01 and (told[~rim] == 1).all()


def test_what_lies_behind_does_not_move_with_a_thing_that_is_nearly_surely_in_front():
    motion, known = np.zeros((2, 48, 64), np.float32), np.ones((48, 64), np.float32)
    front = np.zeros_like(known)
    motion[0, 8:40, 8:20], front[8:40, 8:20], known[8:40, 20:40] = 30, 0.9, 0  # dragged to the left
    flow = fill_holes(motion, known, surely(behind(front, known)))
    assert flow[0, 8:40, 24:40].max() < 1 and (flow[0, 8:40, 8:20] == 30).all()


def test_what_lies_behind_is_not_sure_along_a_hole():
    confidence, beyond, front = (np.full((24, 24), value, np.float32) for value in (1, 0, 0))
    confidence[8:16, 8:16] = 0
    front[:, 16:] = 1  # right of the hole
    confidence[:2], beyond[:2] = 0, 1
    sure = without_seams(confidence, beyond, front)
    assert not sure[6:18, 6:16].any()
    sure[6:18, 6:16] = confidence[6:18, 6:16]
    assert np.array_equal(sure, confidence)


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


STRIPES = np.sin(np.arange(WIDTH, dtype=np.float32) / 3)[None, :, None]


def panned(shift: float, front: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """All of a striped picture moved to the right, see `in_motion`."""
    size = HEIGHT // CELL, WIDTH // CELL
    front = np.zeros(size, np.float32) if front is None else front
    picture = between(np.dstack([np.tile(STRIPES, (HEIGHT, 1, 3)), np.zeros((HEIGHT, WIDTH), np.float32)]))
    displacement = np.tile(np.float32([shift, 0]), (front.size, 1))
    nowhere = np.zeros((HEIGHT, WIDTH), np.float32)
    return in_motion(picture, np.zeros_like(picture), nowhere, nowhere, front > 1, displacement, front)


@pytest.mark.parametrize("shift", [5, 20, 50])
def test_beyond_the_edges_of_what_has_moved_away_motion_is_that_of_what_is_beside(shift):
    """The sharp copy is moved by it: else it would show there what has not moved."""
    shown, _, _, beyond, flow, under, sure = panned(shift)
    assert beyond[:, : shift - 2].all() and not beyond[:, shift + 2 :].any()
    for motion in (flow, under):
        np.testing.assert_allclose(motion[0], -shift, atol=0.01)
    picture = between(np.tile(STRIPES, (HEIGHT, 1, 3)))
    again = seen_through(picture, *in_the_first_frame(enlarged_motion(flow, sure)))
    assert (np.abs(again.transpose(2, 0, 1) - shown) < 0.01).mean() > 0.94  # but for three columns at the seam


def test_what_leaves_the_frame_altogether_does_not_jump():
    before, after = panned(WIDTH - 1), panned(WIDTH + 1)
    assert after[3].all() and np.abs(after[0] - before[0]).mean() < 0.4 and after[0].std() > 0.3


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


def test_a_thing_that_the_edge_cuts_off_is_not_mirrored_below_itself():
    """It is drawn up from the lower edge; what lies behind it is known, and seen there."""
    size = HEIGHT // CELL, WIDTH // CELL
    thing = np.zeros(size, bool)
    thing[14:, 10:22] = True
    shade = cv2.resize(np.where(thing, np.float32(1), np.float32(-1)), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    picture = between(np.dstack([shade] * 3 + [(shade > 0).astype(np.float32)]))
    plate = between(np.dstack([np.full_like(shade, -1)] * 3 + [np.ones_like(shade)]))
    displacement = np.where(thing.ravel()[:, None], np.float32([0, -12]), np.float32(0))
    front, nowhere = thing.astype(np.float32), np.zeros_like(shade)
    shown, _, guessed, beyond, *_ = in_motion(picture, plate, nowhere, nowhere, thing, displacement, front)
    below = np.s_[-9:, 24:40]
    assert not beyond[below].any() and guessed[below].min() > 0.9 and shown[0][below].max() < -0.9


@pytest.mark.parametrize("turn", [0.0, 0.5])
@pytest.mark.parametrize("growth", [1.6, 2.2, 3.0, 6.0, 8.0])
def test_a_thing_that_grows_or_turns_stays_whole(growth, turn):
    """Before a background that stays: nothing of that is seen through it, and pixels move as the thing does."""
    size = rows, columns = 48, 64
    centres = cell_centres(2 * rows, 2 * columns).numpy()
    thing = (np.abs(centres - (columns, rows)) < 16).all(1)
    to = growth * np.float32([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    away = (centres - (columns, rows)) @ (to.T - np.eye(2, dtype=np.float32))
    displacement = np.where(thing[:, None], away, 0).astype(np.float32)
    flow, sure = close_gaps(*splat(displacement, thing.astype(np.float32), 2 * rows, 2 * columns))
    back = (centres - (columns, rows)) @ np.linalg.inv(to).T
    inside = (np.abs(back) < 12).all(1).reshape(size)
    wanted = (back - (centres - (columns, rows))).T.reshape(2, *size)
    off = np.abs(flow - wanted).max(0)[inside]
    assert sure[inside].min() > 0.9 and (off > 3).mean() < 0.02
    motion = enlarged_motion(flow, sure)
    around = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)).repeat(2, 0).repeat(2, 1) > 0
    change = np.abs(np.diff(motion, axis=2)).max(0)[around[:, 1:] & around[:, :-1]]
    assert np.quantile(change, 0.98) < 1.5 * growth  # no blocks


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


@pytest.mark.parametrize("alone", [True, False])
def test_beyond_the_edge_of_a_picture_one_sees_what_is_behind_things_and_not_them_once_more(alone):
    rows, columns = HEIGHT // 2, WIDTH // 2
    thing = np.zeros((rows, columns), bool)
    thing[6:18, -8:-4] = True
    here = cv2.resize(thing.astype(np.float32), (WIDTH, HEIGHT))
    filled = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    shown = np.where(here[..., None] > 0.5, np.float32(-0.9), filled)
    picture, plate = between(np.dstack([shown, here])), between(np.dstack([filled, here]))
    displacement = np.float32([-24, 0]) + np.zeros((thing.size, 2), np.float32)  # its mirror image lands right of it
    around = cv2.dilate(here, np.ones((7, 7)))
    image, _, guessed, beyond, *_ = in_motion(
        picture, plate, 1 - around, alone * around, thing & False, displacement, thing.astype(np.float32)
    )
    again = np.s_[16:32, WIDTH - 16 + 2 : WIDTH - 8 - 2]  # eight pixels beyond the edge, which is at 40
    assert image[0][16:32, 26:30].max() < -0.8 and (image[0][again].min() > 0.4) == alone
    assert (image[0][again].max() < -0.8) == (not alone)
    assert (guessed[again] == alone).all() and (beyond[again] == (not alone)).all()
    assert (beyond[:8, WIDTH - 20 :] == 1).all()


@pytest.mark.parametrize("left", [0.6, 0.3, 0.15])
def test_beyond_a_picture_that_shrinks_its_mirror_image_goes_on(left):
    centres = cell_centres(HEIGHT, WIDTH).numpy()
    displacement = ((centres - (WIDTH / 2, HEIGHT / 2)) * (left - 1)).astype(np.float32)
    front, nowhere = np.zeros((HEIGHT // 2, WIDTH // 2), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)
    picture = between(np.dstack([np.tile(STRIPES, (HEIGHT, 1, 3)), nowhere]))
    *_, flow, under, _ = in_motion(
        picture, np.zeros_like(picture), nowhere, nowhere, front > 1, displacement, front
    )
    wanted = ((centres - (WIDTH / 2, HEIGHT / 2)) * (1 / left - 1)).T.reshape(flow.shape)
    off = np.abs(flow - wanted) / np.abs(wanted).max()  # the smaller, the fewer cells tell
    assert off.max() < (0.12 if left == 0.6 else 0.25)
    assert off.mean() < (0.015 if left == 0.6 else 0.12)
