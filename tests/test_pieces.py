"""What hangs together goes together: pieces, limbs, and the background that gives way."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from motionstream.model.elastic import pulled
from motionstream.model.limbs import borne, limbs, with_rims
from motionstream.model.motion_prior import as_seen
from motionstream.model.pieces import (
    along_again,
    attached,
    connect,
    left_behind,
    numbered,
    pieces,
    together,
    undivided,
)
from motionstream.model.warping import (
    CELL,
    outlines,
)

WIDTH, HEIGHT = 64, 48


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


def test_a_closer_look_makes_surer_of_what_is_one_thing():
    front, closer = np.zeros((2, HEIGHT // 2, WIDTH // 2), np.float32)
    front[10:20, 8:24], front[4:10, 8:24] = 0.95, 0.75  # a face, and above it dark hair
    front[4:20, 26:34], closer[4:20, 8:34] = 0.5, 0.9  # beside them what might lie in front

    def numbers(closer):
        return numbered(torch.from_numpy(front), closer if closer is None else torch.from_numpy(closer))

    assert not numbers(None)[4, 12] and not numbers(front)[4, 12]  # too far from what is sure
    assert (numbers(closer)[4:20, 8:24] == 1).all()
    assert not numbers(closer)[:, 30:].any()


def test_what_is_of_a_thing_goes_with_it_if_it_is_not_sure_to_stay_or_to_go_with_another():
    size = HEIGHT // 2, WIDTH // 2
    number, own, other = np.zeros(size, int), np.full(size, 0.05, np.float32), np.full(size, 0.02, np.float32)
    number[4:16, 4:16], number[4:16, 20:30] = 1, 2  # one that mostly goes, and one that mostly stays
    own[4:16, 4:16], own[4:8, 20:30] = 0.7, 0.8  # the first track is on the first thing, the other beside it
    own[4:6, 4:16] = own[14:16, 20:30] = own[20, 4:16] = 0.2  # hair; a foot; some of the background
    own[8:16, 4], other[8:16, 4] = 0.1, 0.85  # a rim that a pin beside it takes
    own[6, 4], own[7, 4], other[7, 4] = 0.01, 0.01, 0.97
    weights = torch.from_numpy(np.stack([1 - own - other, own, other], 2)).flatten(0, 1)
    stays = weights[:, :1] > 0.5
    connected = torch.where(stays, F.one_hot(torch.zeros(len(weights)).long(), 3).to(weights), weights)
    found = together(connected, weights, number, np.array([1, 0])).view(*size, 3).numpy()
    left = np.zeros(size, bool)
    left[4:6, 4:16] = left[8:16, 4] = True
    assert (found[left, 1] > 0.5).all() and not found[4:6, 4:16, 2].any()
    assert found.sum(2) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(found[~left], connected.view(*size, 3).numpy()[~left])


@pytest.mark.parametrize("most", [True, False])
def test_what_has_come_along_with_a_thing_comes_again_if_most_of_it_does(most):
    size = HEIGHT // 2, WIDTH // 2
    number, shares, came = np.zeros(size, int), np.zeros((*size, 4), np.float32), np.zeros(size, bool)
    number[4:16, 4:16], number[4:16, 20:30] = 1, 2
    shares[..., 3] = 1  # of a pin that is on none of them
    shares[4:16, 4 : 10 if most else 6, 1:] = 0.8, 0.2, 0  # two tracks on the first thing
    shares[4:16, 10:13] = 0.1, 0.2, 0.7, 0
    came[3, 4:16] = came[14:18, 4:8] = came[16, 22:25] = True  # rims, one of them of the thing that stays
    given = torch.from_numpy(shares).flatten(0, 1)
    found = along_again(given, came, number, np.array([1, 1, 0])).view(*size, 4).numpy()
    again = came & (np.arange(size[1]) < 20) & (shares[..., 3] > 0) & most
    assert np.array_equal(found[~again], shares[~again])
    assert (found[again][:, 3] == 0).all() and (found[14:18, 4:8, 1] == np.float32(0.8)).all() == most
    assert np.array_equal(found[3, 10:13], shares[4, 10:13] if most else shares[3, 10:13])


@pytest.mark.parametrize("turned, grown", [(0, 1), (30, 1), (0, 1.5)])
@pytest.mark.parametrize("crumb", [0.0, 60.0])
def test_crumbs_of_a_thing_that_has_come_stay_where_they_are(turned, grown, crumb):
    number, angle = np.zeros((40, 60), int), np.radians(turned)
    number[10:30, 10:30], number[10:20, 40:50] = 1, 2  # the second has stayed
    rows, columns = np.indices(number.shape)
    away = 2 * np.stack([columns - 20, rows - 20]).astype(np.float32)
    turn = grown * np.float32([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    base = (np.einsum("ij,jhw->ihw", turn, away) - away + np.float32([30, 0])[:, None, None]) * (number == 1)
    cells = np.array([60 * 25 + 15])
    assert not left_behind(base, number, cells).any() and not left_behind(0 * base, number, cells).any()
    base[:, 10:13, 17:21], base[:, 20:22, 28:30] = crumb, crumb
    crumbs = np.zeros(number.shape, bool)
    crumbs[10:13, 17:21] = crumbs[20:22, 28:30] = True
    assert np.array_equal(left_behind(base, number, cells), crumbs)
    crumbs[10:13, 17:21] = False
    assert np.array_equal(left_behind(base, number, np.array([60 * 10 + 18])), crumbs)  # a track is on it


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
