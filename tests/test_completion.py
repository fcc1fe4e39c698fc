"""What lies behind things: copied from where the surroundings are alike, in the colours around, once."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionstream.model.completion import (
    LEVEL,
    SQUARE,
    THIN,
    TINT,
    Completion,
    Hole,
    Plate,
    complete,
    covered,
    seen_behind,
    seen_mirrored,
)
from motionstream.model.silhouettes import RIM, cut_off, lying_across, things_in_front, with_rim
from motionstream.model.warping import CELL

H, W = 60, 90
NOWHERE = np.zeros((H, W), bool)


def stripes(period: float = 10, ramp: float = 0.0) -> np.ndarray:
    """Cells of a picture that repeats itself, and may get brighter to the right: float32 [H, W, 3] of 255."""
    y, x = np.mgrid[:H, :W]
    wave = 40 * np.sin(2 * np.pi * x / period) + 30 * np.sin(2 * np.pi * y / period) + 90 + ramp * x
    return np.repeat(wave[..., None], 3, axis=2).astype(np.float32)


def box(top=20, bottom=40, left=30, right=50) -> np.ndarray:
    hole = np.zeros((H, W), bool)
    hole[top:bottom, left:right] = True
    return hole


def hole_in(cells: np.ndarray, hole: np.ndarray, source: np.ndarray) -> Hole:
    return Hole.behind(cells, hole, hole.astype(np.float32), source)


def filled(cells: np.ndarray, hole: np.ndarray, source: np.ndarray | None = None) -> tuple[Completion, np.ndarray]:
    found, damaged = Completion.empty(H, W), cells.copy()
    damaged[hole] = (255, 0, 0)
    complete(found, hole_in(damaged, hole, ~hole if source is None else source), hole)
    return found, Plate(damaged.round().astype(np.uint8)).update(found).astype(float)


@pytest.mark.parametrize("ramp", (0.0, 1.0))
def test_a_pattern_goes_on_in_the_colours_around_it(ramp):
    cells, hole = stripes(ramp=ramp), box()
    found, made = filled(cells, hole)
    assert np.array_equal(found.filled, hole) and np.array_equal(made[~hole], cells.round().clip(0, 255)[~hole])
    blur = np.abs(cells[hole] - cells[hole].mean()).mean()
    assert np.abs(made - cells)[hole].mean() < (0.1 if ramp == 0 else 0.15) * blur


def test_light_goes_on_without_seams():
    y, x = np.mgrid[:H, :W]
    cells = np.repeat((60 + 0.03 * (x - 40) ** 2 + 0.05 * (y - 30) ** 2)[..., None], 3, axis=2).astype(np.float32)
    hole = box(15, 45, 25, 60)
    _, made = filled(cells, hole)
    assert np.abs(made - cells)[hole].mean() < 2 and np.abs(made - cells)[hole].max() < 10


def test_of_places_alike_one_at_the_same_height_is_copied_though_others_are_nearer():
    found, _ = filled(np.full((H, W, 3), 120, np.float32), box(top=26, bottom=34, left=35, right=55))
    assert found.filled.any() and not found.shift[found.filled][:, 0].any()


def test_another_thing_is_not_copied_however_alike_its_surroundings_are():
    cells = np.random.default_rng(0).normal(120, 4, (H, W, 3)).astype(np.float32)
    hole, elsewhere = box(24, 37, 14, 27), (slice(10, 51), slice(48, 89))
    cells[elsewhere] = cells[10:51, 0:41]
    cells[27:34, 65:72] = 250  # where the hole is, there
    _, made = filled(cells, hole)
    assert 100 < made[hole].min() < made[hole].max() < 140


def test_detail_comes_from_as_sharp_a_picture_as_there_is():
    hole = box()
    found, made = filled(stripes(), hole)
    large = cv2.resize(stripes().astype(np.uint8), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    large[::2] += 20  # what cells cannot hold
    wanted, within = Plate(large).update(found).astype(int), np.kron(hole, np.ones((4, 4), bool))
    assert np.array_equal(wanted[~within], large[~within])
    assert 15 < (wanted[80:160:2, 120:200] - wanted[81:160:2, 120:200]).mean() < 25
    small = cv2.resize(wanted.astype(np.float32) - 10, (W, H), interpolation=cv2.INTER_AREA)
    assert np.abs(small - made)[hole].mean() < 2


def two_copies() -> tuple[Completion, np.ndarray]:
    """A hole whose left half is copied from a dark place, its right half from a bright one; and the picture."""
    found, picture = Completion.empty(H, W), np.full((4 * H, 4 * W, 3), 200, np.uint8)
    picture[: 4 * 10] = 100
    found.filled[20:40, 30:50] = True
    found.shift[20:40, 30:40], found.shift[20:40, 40:50] = (-20, 0), (20, 0)
    found.shift[30:40, 30:40] = (-30, 0)
    found.source[:] = ~found.filled
    return found, picture


def test_where_two_copies_meet_one_fades_into_the_other():
    found, picture = two_copies()
    across = Plate(picture).update(found)[4 * 25, 4 * 30 : 4 * 50, 0].astype(int)
    assert (across[: 4 * 8] == 100).all() and (across[4 * 12 :] == 200).all()
    steps = np.diff(across)
    assert (steps >= 0).all() and steps.max() < 40


def test_no_copy_fades_into_what_may_not_be_copied():
    found, picture = two_copies()
    picture[4 * 45 : 4 * 60, 4 * 38 : 4 * 40] = 0  # it would be seen left of the seam
    found.source[45:60, 38:40] = False
    assert Plate(picture).update(found)[4 * 20 : 4 * 40, 4 * 30 : 4 * 50].min() >= 100


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_only_what_may_be_copied_is_copied(seed):
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, H - 15), rng.integers(0, W - 15)
    hole, source = box(top, top + rng.integers(3, 15), left, left + rng.integers(3, 15)), np.zeros((H, W), bool)
    source[:, : rng.integers(0, W)] = True
    source &= ~hole
    found, _ = filled(rng.uniform(0, 255, (H, W, 3)).astype(np.float32), hole, source)
    assert not found.filled[~hole].any()
    rows, columns = (np.argwhere(found.filled) + found.shift[found.filled]).T
    assert (rows >= 0).all() and (columns >= 0).all() and source[rows, columns].all()


@pytest.mark.parametrize("way, seen", [
    ((-20, 0), np.s_[:, -10:]), ((20, 0), np.s_[:, :10]), ((0, -20), np.s_[-10:]), ((0, 20), np.s_[:10]),
    ((2, -2), np.s_[:0]), ((-4 * W, 0), np.s_[:]), ((-CELL * (W + 5), 0), np.s_[:]),
])
def test_a_picture_that_goes_out_of_the_frame_is_seen_mirrored_beside_the_edge_that_comes_in(way, seen):
    wanted = np.zeros((H, W), bool)
    wanted[seen] = True
    found = seen_mirrored(np.stack([np.zeros((H, W, 2)), np.broadcast_to(np.float32(way), (H, W, 2))]))
    assert not (wanted & ~found).any() and (found == with_rim(wanted)).all()  # a little more: it is about to be


def test_of_a_picture_that_shrinks_more_is_seen_mirrored_than_there_is_room_for():
    y, x = np.mgrid[:H, :W]
    away = -0.5 * CELL * np.stack([x - (W - 1) / 2, y - (H - 1) / 2], -1)
    assert seen_mirrored(away[None]).all()  # half as large: a quarter is free at each side, and shows a half of it
    part = seen_mirrored(0.4 * away[None])  # a tenth, an eighth of it
    assert not part[H // 4 : -H // 4, W // 4 : -W // 4].any() and part[: H // 10].all() and part[:, -W // 10 :].all()


@pytest.mark.parametrize("top, is_cut_off", [(20, False), (1, True)])
def test_what_is_behind_a_thing_that_would_be_seen_mirrored_is_filled_unless_an_edge_cuts_it_off(top, is_cut_off):
    thing, moved = box(top, 40, 60, 80), np.zeros((4, H, W, 2), np.float32)
    assert cut_off(thing) == is_cut_off and not cut_off(box(RIM, H - RIM, RIM, W - RIM))
    picture, found = stripes().astype(np.uint8), Completion.empty(H, W)
    moved[..., 0] = np.linspace(0, -50, 4)[:, None, None]  # all goes left together, by 25 cells
    assert found.uncover(picture, thing.astype(np.float32), thing, NOWHERE, moved, dense=True) == (not is_cut_off)
    if not is_cut_off:
        assert found.filled[:, -25:][thing[:, -25:]].all()
        before = found.filled.copy()
        moved[..., 0] *= 2
        anew = found.uncover(picture, thing.astype(np.float32), thing, NOWHERE, moved, dense=True)
        assert anew or before[thing].all()
        assert found.filled[thing].all()


def test_one_sees_behind_a_thing_but_not_behind_parts_of_it_that_stay():
    whole, thin, thick = box(10, 50, 10, 80), box(30, 30 + THIN - 1, 10, 80), box(10, 50, 10, 10 + THIN)
    for stays in (np.zeros_like(whole), thin):
        assert np.array_equal(seen_behind(whole, stays), with_rim(whole).astype(np.float32))
    seen = seen_behind(whole, thick)
    edge = 10 + THIN - 1
    assert seen[30, edge] == 0 < seen[30, edge + 1] < seen[30, edge + 2] < 1 == seen[30, edge + RIM]
    assert seen[30, 10:edge].max() == 0 == seen[30, 80 + RIM :].max() and seen[30, edge + RIM : 80 + RIM].min() == 1


def test_each_thing_that_leaves_is_looked_behind_once():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((2, H, W, 2), np.float32)
    found, picture = Completion.empty(H, W), cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    assert not found.uncover(picture, front, front > 0.5, NOWHERE, moved) and not found.filled.any()
    moved[:, 20:26, 30:50] = 80.0  # a third of it
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved)  # one sees behind that, and behind nothing else
    assert found.things[20:26, 30:50].all() and found.things.sum() == 6 * 20
    assert found.seen[17:24, 30:50].min() > 0 and not found.seen[26:, 30:50].any()
    moved[:, 20:38, 30:50] = 80.0
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and np.array_equal(found.things, box())
    assert np.array_equal(found.filled, with_rim(box())) and found.seen.max() == 1
    assert not found.uncover(picture, front, front > 0.5, NOWHERE, moved)


@pytest.mark.parametrize("part", [np.s_[24:36, 34:46], np.s_[20:30, 38:42], np.s_[20:22, 30:35]])
def test_what_leaves_from_inside_a_thing_or_is_a_speck_of_it_leaves_no_hole(part):
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((1, H, W, 2), np.float32)
    found, picture = Completion.empty(H, W), cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    moved[(slice(None), *part)] = 80.0
    assert not found.uncover(picture, front, front > 0.5, NOWHERE, moved) and not found.things.any()


def test_a_part_that_goes_less_than_half_as_far_counts_as_one_that_stays():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((1, H, W, 2), np.float32)
    picture = cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    moved[:, 20:40, 30:50, 0] = 80.0
    for slow, seen_there in ((35.0, False), (45.0, True)):
        moved[:, 20:40, 30 : 30 + THIN, 0], found = slow, Completion.empty(H, W)
        assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and np.array_equal(found.things, box())
        assert found.seen[25:35, 30 + THIN - 1 + RIM :].max() == 1
        assert found.seen[25:35, 30 : 30 + THIN].any() == seen_there


@pytest.mark.parametrize("also", ["stays", "goes", "goes apart", "is of it"])
def test_behind_a_thing_other_things_go_on_if_they_stay(also):
    """It lies half before the ground, which is dark, and half before a bright thing, a fence."""
    fence, thing = box(4, 14 if also == "goes apart" else 30, 0, W), box(20, 44, 30, 50)
    picture = np.where(fence, np.uint8(200), np.uint8(60))[..., None].repeat(3, 2)
    picture[thing] = 255, 0, 0
    front = np.where(thing | fence, 0.9, 0.1).astype(np.float32)
    number = np.where(thing, 2, np.where(fence, 2 if also == "is of it" else 1, 0))
    moved = np.zeros((1, H, W, 2), np.float32)
    moved[0][thing | fence & also.startswith("goes")] = 60.0, 0.0
    found = Completion.empty(H, W)
    assert found.uncover(cv2.resize(picture, None, fx=2, fy=2), front, number, NOWHERE, moved)
    assert found.source[fence].any() == (also == "stays")
    above = found.filled & box(21, 26, 33, 47)
    copied = fence[tuple((found.shift[above] + np.argwhere(above)).T)]
    assert copied.all() == copied.any() == (also == "stays") and len(copied)


@pytest.mark.parametrize("wide", [True, False])
def test_behind_a_thing_that_stands_on_it_ground_goes_on_however_far_in_front_it_is(wide):
    """But only if it lies across an edge: else it may be more of the thing, which has stayed behind."""
    ground, thing = box(34, H if wide else 50, 0 if wide else 20, W if wide else 60), box(15, 44, 30, 50)
    picture = np.where(ground, np.uint8(60), np.uint8(200))[..., None].repeat(3, 2)
    picture[thing] = 255, 0, 0
    moved = np.zeros((1, H, W, 2), np.float32)
    moved[0][thing] = 60.0, 0.0
    front, found = np.where(thing | ground, 0.9, 0.1).astype(np.float32), Completion.empty(H, W)
    across = lying_across(things_in_front(front), front.shape)
    assert found.uncover(cv2.resize(picture, None, fx=2, fy=2), front, thing.astype(int), across, moved)
    below = found.filled & box(38, 43, 33, 47)
    copied = ground[tuple((found.shift[below] + np.argwhere(below)).T)]
    assert copied.all() == copied.any() == wide and len(copied)


def test_of_places_that_are_alike_the_nearest_is_copied():
    hole = box(26, 34, 41, 49)
    found, _ = filled(np.full((H, W, 3), 120, np.float32), hole)
    assert np.array_equal(found.filled, hole)
    assert 4 <= np.abs(found.shift[hole]).max() <= 8 + 2 * SQUARE  # beside the hole, wherever in it one begins


def test_what_a_thing_still_covers_waits():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((3, H, W, 2), np.float32)
    found, picture = Completion.empty(H, W), cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    moved[..., 0] = 2 * 3 * front.round()  # three cells to the right
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved)
    hidden = box(20 + RIM, 40 - RIM, 33 + RIM, 53 - RIM)
    assert np.array_equal(covered(box(), box(), moved), hidden)
    assert found.filled[with_rim(box()) & ~hidden].all() and not found.filled[hidden & box(right=46)].all()
    assert not found.seen[~found.filled].any() and found.seen[found.filled].min() == 1
    pan = np.float32([2 * 5, -2 * 4])  # that everything moves along with
    assert np.array_equal(covered(box(), box(), moved + pan), hidden)
    seen = found.filled.copy()
    before = found.shift[seen], found.colour[seen]
    moved[0, ..., 0] = 80 * front.round()  # in one frame of the next chunk it is far away
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and np.array_equal(found.filled, with_rim(box()))
    assert all(np.array_equal(*pair) for pair in zip((found.shift[seen], found.colour[seen]), before, strict=True))


def test_through_a_ring_one_sees_what_is_behind_it():
    thing, inside = box(10, 50, 20, 60), box(26, 34, 36, 44)
    front, moved = np.where(thing & ~inside, 0.9, 0.1).astype(np.float32), np.zeros((1, H, W, 2), np.float32)
    moved[0][thing] = 2.0 * 4, 0.0  # what is seen in the ring goes along, too
    found, picture = Completion.empty(H, W), cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and np.array_equal(found.things, thing)
    assert found.filled[box(26, 34, 40, 48)].all() and not found.filled[thing].all()


def test_ground_that_goes_along_does_not_make_a_thing_cover_its_place():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((1, H, W, 2), np.float32)
    moved[:, 10:50, 28:70] = 2.0 * 12, 0.0  # most of what is around it, too
    assert not covered(box(), box(), moved)[:, :42].any()
    found, picture = Completion.empty(H, W), cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and found.filled[box(right=42)].all()


def test_background_that_goes_uncovers_what_lies_behind_a_thing_that_stays():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((2, H, W, 2), np.float32)
    picture = cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    moved[1, ..., 0] = 2.0 * 8 * (1 - front.round())
    found = Completion.empty(H, W)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved)
    assert np.array_equal(found.things, box()) and found.filled[box(left=42)].all()
    # Under dense tracks, what goes past may be a part of it, unless it goes past all of it.
    found = Completion.empty(H, W)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved, dense=True)
    assert np.array_equal(found.things, box()) and found.filled[box(left=42)].all()
    moved[1, 30:40, ..., 0] = 2.0 * 8  # half of it goes along
    assert not Completion.empty(H, W).uncover(picture, front, front > 0.5, NOWHERE, moved, dense=True)
    assert Completion.empty(H, W).uncover(picture, front, front > 0.5, NOWHERE, moved)


def test_what_goes_along_with_the_background_has_not_left_under_a_moving_camera():
    front, moved = np.where(box(), 0.9, 0.1).astype(np.float32), np.zeros((2, H, W, 2), np.float32)
    picture = cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    moved[1] = 2.0 * 8, 0.0
    assert not Completion.empty(H, W).uncover(picture, front, front > 0.5, NOWHERE, moved, dense=True)
    # Few tracks: a part of the ground may have gone along.
    assert Completion.empty(H, W).uncover(picture, front, front > 0.5, NOWHERE, moved)
    moved[1, ..., 0] += 2.0 * 8 * front.round()
    found = Completion.empty(H, W)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved, dense=True)
    assert np.array_equal(found.things, box())


def test_colours_of_copies_do_not_add_up():
    """Of letters, which are bright where a copy's surroundings are and dark where it is wanted, or the reverse."""
    rng = np.random.default_rng(3)
    cells = np.float32(rng.random((H, W, 3)) < 0.5) * 255
    hole = box(4, 56, 0, 60)
    found, _ = filled(cells, hole)
    assert found.filled.sum() > 0.9 * hole.sum() and np.abs(found.colour).max() == TINT
    assert (np.abs(found.colour) == TINT).mean() < 0.25  # 0.34 if they did


def test_ground_is_not_copied_into_the_sky_unless_there_is_nothing_else():
    rng = np.random.default_rng(3)
    cells, hole = np.full((H, W, 3), 120, np.float32), box(15, 22, 35, 55)
    cells[10:30, 30:60] += rng.uniform(-60, 60, (20, 30, 3)).astype(np.float32)
    cells[40:] = cells[8:28]  # as what is around the hole
    found, _ = filled(cells, hole)
    assert found.filled[hole].all() and np.abs(found.shift[hole][:, 0]).max() <= LEVEL * H
    found, _ = filled(cells, hole, box(40, H, 0, W))
    assert found.filled[hole].all() and found.shift[hole][:, 0].min() > LEVEL * H


def test_where_nothing_fits_nothing_is_filled():
    found, made = filled(stripes(), box(), np.zeros((H, W), bool))
    assert not found.filled.any() and (made[box()] == (255, 0, 0)).all()


def test_a_plate_that_is_filled_bit_by_bit_is_as_one_filled_at_once():
    rng = np.random.default_rng(3)
    cells, hole = stripes() + rng.uniform(-40, 40, (H, W, 3)).astype(np.float32), box(10, 50, 10, 80)
    picture = cv2.resize(cells, None, fx=3, fy=3).clip(0, 255).astype(np.uint8)
    found, plate, left = Completion.empty(H, W), Plate(picture), hole_in(cells, hole, ~hole)
    np.logical_or(found.source, ~hole, out=found.source)
    for bottom, left_end in ((12, 30), (30, 33), (30, 34), (30, 60), (50, 80)):
        if bottom == 50:
            found.source[20:30, 60:80] = True  # copies may reach into what is no hole any more
        complete(found, left, hole & box(0, bottom, 0, left_end))
        assert np.array_equal(plate.update(found), Plate(picture).update(found)), (bottom, left_end)


def test_what_was_guessed_before_stays():
    found, cells, first, second = Completion.empty(H, W), stripes(), box(), box(25, 45, 60, 80)
    complete(found, hole_in(cells, first, ~first), first)
    plate = Plate(cells.astype(np.uint8))
    before = plate.update(found).copy()
    complete(found, hole_in(cells, second, ~(first | second)), second)
    assert np.array_equal(plate.update(found)[first], before[first]) and found.filled[second].all()
    third, kept = box(30, 50, 40, 70), (found.shift.copy(), found.colour.copy())  # behind which the others reach
    complete(found, hole_in(cells, third, ~(first | second | third)), third)
    assert all(np.array_equal(now[first | second], was[first | second]) for now, was in zip(
        (found.shift, found.colour), kept, strict=True)) and found.filled[third].all()


def test_a_hole_about_an_earlier_one_knows_what_that_was_filled_with():
    """A part of a thing leaves, then all of it: nothing of the thing's colours is left behind."""
    cells = stripes()
    at_once, _ = filled(cells, box())
    damaged = cells.copy()
    damaged[box()] = (255, 0, 0)
    found = Completion.empty(H, W)
    for hole in (box(right=38), box()):
        complete(found, Hole.behind(damaged, hole, box().astype(np.float32), ~box()), hole)
    shown = Plate(damaged.round().astype(np.uint8)).update(found).astype(float)[box()]
    assert found.filled[box()].all() and (shown[:, 0] - shown[:, 1]).max() < 20


def test_what_comes_back_within_a_chunk_was_away_all_the_same():
    picture = cv2.resize(stripes(), None, fx=2, fy=2).astype(np.uint8)
    front, moved = box().astype(np.float32), np.zeros((3, H, W, 2), np.float32)
    moved[1][box()] = (2 * W, 0)
    found = Completion.empty(H, W)
    assert found.uncover(picture, front, front > 0.5, NOWHERE, moved) and found.filled[box()].all()
