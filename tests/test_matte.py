"""Along outlines of what moves one sees two layers: the thing, as opaque as it is, and what lies behind, unmoved."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from motionstream.model import composite
from motionstream.model.completion import Completion, Plate
from motionstream.model.composite import Light, Sharp, sharpened
from motionstream.model.matte import Matte, told, whole, with_colours, without_slits
from motionstream.model.prior_state import Moved
from motionstream.model.warping import beneath, seen_through

ROWS, COLUMNS, TIMES = 24, 40, 2  # cells, and how many times as large as 2 pixels to a cell the sharp copy is
SHIFT = 8  # pixels by which the thing has moved right


@pytest.fixture
def photo():
    coarse = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    return cv2.resize(coarse, (2 * TIMES * COLUMNS, 2 * TIMES * ROWS), interpolation=cv2.INTER_CUBIC)


def square(top, left, height, width):
    cells = np.zeros((ROWS, COLUMNS), bool)
    cells[top : top + height, left : left + width] = True
    return cells


THING, LANDED = square(8, 10, 8, 10), square(8, 10 + SHIFT // 2, 8, 10)


def flow():
    return np.where(LANDED, np.float32([-SHIFT, 0])[:, None, None], np.float32(0))


def moved(photo):
    """The thing has moved right; all of what one sees is sure."""
    small = cv2.resize(photo, (2 * COLUMNS, 2 * ROWS), interpolation=cv2.INTER_AREA)
    picture = (torch.tensor(small) / 127.5 - 1).permute(2, 0, 1)[None, :, None]
    sure = torch.ones_like(picture[:, :1])
    return Moved(
        picture,
        sure,
        torch.zeros_like(sure),
        torch.zeros_like(sure),
        flow()[None],
        np.zeros((1, 2, ROWS, COLUMNS), np.float32),
        np.ones((1, ROWS, COLUMNS), np.float32),
        cells=np.stack([THING, THING, THING]).astype(np.float32),
        things=THING[None],
        anchors=np.zeros((0, 2), np.float32),
    )


def frame(photo, opaque, light=None):
    parts, sharp = moved(photo), Sharp(photo)
    sharp.opaque = opaque
    return sharpened(parts.picture[0].transpose(0, 1), parts, light, sharp)[0]


def pixels(cells, times=TIMES):
    return np.kron(cells, np.ones((2 * times, 2 * times), bool))


def test_beneath_a_thing_lies_what_moves_as_its_surroundings():
    assert not beneath(flow(), np.ones((ROWS, COLUMNS), np.float32), THING).any()


def test_beneath_a_thing_lies_what_moves_as_what_tells_of_it():
    left, moves = square(0, 0, ROWS, 10), flow() + np.float32(2) * square(0, 0, ROWS, 10)
    under = beneath(moves, left.astype(np.float32), THING)
    np.testing.assert_allclose(under, 2, atol=1e-4)


def test_beneath_what_is_all_of_the_picture_lies_what_moves_with_it():
    everywhere = np.ones((ROWS, COLUMNS), bool)
    assert np.array_equal(beneath(flow(), np.ones((ROWS, COLUMNS), np.float32), everywhere), flow())


def test_an_opaque_thing_hides_all(photo):
    assert np.array_equal(frame(photo, np.ones(photo.shape[:2], np.float32)), frame(photo, None))


@pytest.mark.parametrize("lit", (False, True))
def test_through_what_is_clear_one_sees_the_background_where_it_is(lit, photo):
    light = Light(0.5 * torch.eye(3)[None], torch.zeros(1, 3, 2, 3)) if lit else None
    made = frame(photo, np.zeros(photo.shape[:2], np.float32), light).astype(float)
    inside = cv2.erode(pixels(LANDED).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    small = cv2.resize(moved(photo).picture[0, :, 0].permute(1, 2, 0).numpy(), photo.shape[1::-1])
    # What `frames` had on top of the moved picture stays: here they are that picture in its own light.
    on_top = (127.5 * (small + 1) - 127.5 - 63.75 * small) if lit else 0
    wanted = (127.5 + 0.5 * (photo - 127.5) if lit else photo) + on_top
    assert np.abs(made - wanted)[inside].max() <= 2


def test_half_opaque_is_half_of_both(photo):
    half, all_, none = (frame(photo, np.full(photo.shape[:2], o, np.float32)).astype(float) for o in (0.5, 1, 0))
    assert np.abs(half - (all_ + none) / 2).max() <= 1
    assert np.abs(all_ - none).max() > 50


def test_opacity_travels_with_the_thing(photo):
    """Clear in the left half of the thing: so it is where the left half has come to."""
    opaque = np.ones(photo.shape[:2], np.float32)
    opaque[pixels(square(8, 10, 8, 5))] = 0
    made, solid = frame(photo, opaque), frame(photo, None)
    left = cv2.erode(pixels(square(8, 10 + SHIFT // 2, 8, 5)).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    elsewhere = cv2.dilate(pixels(square(8, 10 + SHIFT // 2, 8, 5)).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert np.abs(made.astype(int) - photo)[left].max() <= 1
    assert np.array_equal(made[elsewhere], solid[elsewhere])


def test_what_has_been_filled_behind_is_seen_through_it(photo):
    parts, sharp = moved(photo), Sharp(photo)
    behind = Completion.empty(ROWS, COLUMNS)
    behind.filled[8:16, 10:20], behind.shift[8:16, 10:20] = True, (-8, 0)
    sharp.hides = pixels(THING).astype(np.float32)
    sharp.opaque = 1 - sharp.hides  # so that one sees through all of it
    made = sharpened(parts.picture[0].transpose(0, 1), dataclasses.replace(parts, behind=behind), None, sharp)[0]
    inside = cv2.erode(pixels(LANDED).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert np.abs(made.astype(int) - Plate(photo).update(behind))[inside].max() <= 1
    assert np.abs(Plate(photo).update(behind).astype(int) - photo)[inside].max() > 50


def test_only_what_changes_is_made_anew(photo, monkeypatch):
    """As much as if all of the picture were looked at, although no more is than the thing's way and what is beside."""
    rim = torch.from_numpy(square(8, 14, 8, 3)).float().repeat_interleave(2, 0).repeat_interleave(2, 1)
    parts, sharp = dataclasses.replace(moved(photo), confidence=(1 - rim / 2)[None, None, None]), Sharp(photo)
    sharp.opaque, looked_at, made = np.full(photo.shape[:2], 0.5, np.float32), [], []

    def look(thirds, columns, rows):
        looked_at.append(columns.size / photo[..., 0].size)
        return seen_through(thirds, columns, rows)

    monkeypatch.setattr(composite, "seen_through", look)
    for unseen in (composite.UNSEEN, -1.0):
        monkeypatch.setattr(composite, "UNSEEN", unseen)
        made.append(sharpened(parts.picture[0].transpose(0, 1), parts, None, sharp)[0])
    assert np.array_equal(*made)
    elsewhere = cv2.dilate(pixels(LANDED).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert np.array_equal(made[0][elsewhere], photo[elsewhere])
    assert np.abs(made[0].astype(int) - photo)[~elsewhere].max() > 50
    assert looked_at[0] < 0.3 and max(looked_at) == 1


@pytest.mark.parametrize("known", (0.0, 0.5))
def test_what_is_guessed_behind_a_thing_does_not_go_along_with_it(known, photo):
    """Where the thing's rim is only half there, or not at all, the filling is seen at rest."""
    parts, behind = moved(photo), Completion.empty(ROWS, COLUMNS)
    behind.filled[8:16, 10:24], behind.shift[8:16, 10:24] = True, (-8, 0)
    rim = torch.from_numpy(square(8, 14, 8, 3)).float().repeat_interleave(2, 0).repeat_interleave(2, 1)
    sure = (1 - (1 - known) * rim)[None, None, None]
    parts = dataclasses.replace(parts, confidence=sure, guessed=1 - sure, behind=behind)
    sharp = Sharp(photo)
    sharp.opaque = np.zeros(photo.shape[:2], np.float32)
    made = sharpened(parts.picture[0].transpose(0, 1), parts, None, sharp)[0].astype(int)
    inside = cv2.erode(pixels(square(8, 14, 8, 3)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert np.abs(made - Plate(photo).update(behind))[inside].max() <= 2


def test_where_a_thing_is_clear_nothing_behind_it_is_guessed(photo):
    behind = Completion.empty(ROWS, COLUMNS)
    behind.filled[8:16, 10:20], behind.shift[8:16, 10:20] = True, (-8, 0)
    sharp, right = Sharp(photo), square(8, 15, 8, 5)
    sharp.hides = pixels(right).astype(np.float32)
    sharp.fill(behind)
    rows, columns = np.indices(photo.shape[:2], np.float32)
    seen = sharp.seen(columns, rows, behind=True)
    surely = pixels(square(8, 10, 8, 4))  # a few pixels from the thing, so that nothing of its edge is seen
    assert np.array_equal(seen[surely], photo[surely])
    assert np.array_equal(seen[pixels(right)], Plate(photo).update(behind)[pixels(right)])


def test_the_matte_is_found_once_for_each_look(photo):
    class Counting:
        looks = 0

        def of(self, picture, cells):
            self.looks += 1
            return np.full(picture.shape[:2], self.looks, np.float32)

    matte, sharp, first = Counting(), Sharp(photo), moved(photo)
    for parts, looks in ((dataclasses.replace(first, cells=None), 0), (first, 1), (first, 1), (moved(photo), 2)):
        sharp.cut_out(parts, matte)
        assert matte.looks == looks
        assert sharp.opaque is None if not looks else (sharp.opaque == looks).all()


@pytest.mark.parametrize("times", (1, 2, 3))
def test_before_it_has_learned_a_matte_is_what_the_prior_sees(times):
    matte = Matte(widths=(8, 8))
    for weight in matte.net.parameters():
        weight.data.zero_()
    picture = np.zeros((2 * times * ROWS, 2 * times * COLUMNS, 3), np.uint8)
    found = matte.of(picture, np.stack([THING, THING, THING]).astype(np.float32))
    assert found.shape == picture.shape[:2] and found.dtype == np.float32
    seen, near = pixels(THING, times).astype(np.uint8), np.ones((8 * times + 1, 8 * times + 1), np.uint8)
    assert (found[cv2.erode(seen, near) > 0] > 0.5).all() and (found[cv2.dilate(seen, near) == 0] < 0.5).all()
    assert found.min() < 0.05 and found.max() > 0.95


def test_what_the_prior_takes_for_a_thing_is_filled_though_the_matte_finds_it_clear(photo):
    class Half:
        def of(self, picture, cells):
            return pixels(square(8, 10, 8, 5)).astype(np.float32)

    sharp, behind = Sharp(photo), Completion.empty(ROWS, COLUMNS)
    behind.filled[4:20, 6:24], behind.shift[4:20, 6:24] = True, (-4, 0)
    sharp.cut_out(moved(photo), Half())
    sharp.fill(behind)
    rows, columns = np.indices(photo.shape[:2], np.float32)
    seen, far = sharp.seen(columns, rows, behind=True), pixels(square(4, 6, 16, 2) | square(4, 22, 16, 2))
    assert np.array_equal(seen[pixels(THING)], Plate(photo).update(behind)[pixels(THING)])
    assert np.array_equal(seen[far], photo[far])


def test_opacities_change_where_colours_do():
    """A jagged outline, two pixels off here and there, along an edge between two colours."""
    picture = np.full((96, 160, 3), 40, np.uint8)
    picture[:, 80:] = (90, 60, 50)
    edge = 80 + np.random.default_rng(0).integers(-1, 2, 24).repeat(4) * 2
    jagged = (np.arange(160) >= edge[:, None]).astype(np.float32)
    matte = Matte(widths=(8, 8))
    matte.forward = lambda picture, seen: 20 * torch.from_numpy(jagged)[None, None] - 10
    cells = np.tile(np.float32(np.arange(40) >= 20), (3, 24, 1))
    off = [np.square(found - (np.arange(160) >= 80)).mean() for found in (jagged, matte.of(picture, cells))]
    assert off[1] < 0.5 * off[0]
    same = np.full((96, 160), 0.3, np.float32)
    np.testing.assert_allclose(with_colours(same, picture, 2), same, atol=1e-4)
    plain = with_colours(jagged, np.full_like(picture, 40), 2)  # colours that tell nothing smooth it
    assert np.abs(np.diff(plain, axis=0)).max() < 0.5 and plain[:, :60].max() < 1e-3 and plain[:, 100:].min() > 0.999


def test_tracks_tell_how_what_lies_behind_moves():
    """Of the thing's own track and one beside it, each tells of what is nearer to it; the thing's needs no telling."""
    opaque = pixels(THING).astype(np.float32)
    on_thing, beside = np.float32([[30, 24]]), np.float32([[50, 24]])
    assert not told(opaque, np.zeros((0, 2), np.float32), ROWS, COLUMNS).any()
    assert not told(opaque, on_thing, ROWS, COLUMNS).any()
    found = told(opaque, np.concatenate([on_thing, beside]), ROWS, COLUMNS)
    assert found.shape == opaque.shape and found.dtype == np.float32
    row, at = 24 * TIMES, [x * TIMES for x in (20, 37, 43, 50, 58, 66)]
    assert found[row, at].tolist() == [0, 0, 1, 1, 1, 0]
    outside = told(opaque, np.float32([[-90, 24], [500, 900]]), ROWS, COLUMNS)  # they count where the picture ends
    assert outside[row, 0] == 1 and outside[-1, -1] == 1


def test_dense_tracks_tell_everything():
    opaque = pixels(THING).astype(np.float32)
    for spacing, everything in ((4, True), (8, True), (16, False), (48, False)):
        grid = np.stack(np.meshgrid(np.arange(spacing / 2, 80, spacing), np.arange(spacing / 2, 48, spacing)), -1)
        assert told(opaque, grid.reshape(-1, 2).astype(np.float32), ROWS, COLUMNS).all() == everything


def test_where_tracks_tell_the_picture_is_as_without_a_matte(photo):
    class Clear:
        def of(self, picture, cells):
            return np.zeros(picture.shape[:2], np.float32)

    parts, sharp = moved(photo), Sharp(photo)
    everywhere = np.stack(np.meshgrid(np.arange(2, 80, 4), np.arange(2, 48, 4)), -1).reshape(-1, 2).astype(np.float32)
    sharp.cut_out(parts, Clear())  # tracks may come after the prior has looked for the last time
    sharp.cut_out(dataclasses.replace(parts, anchors=everywhere), Clear())
    made = sharpened(parts.picture[0].transpose(0, 1), parts, None, sharp)[0]
    assert np.array_equal(made, frame(photo, None))


def pierced():
    """Opacities of a thing with three soft holes, and how far in front its cells lie: all, all, none at a hole."""
    opaque, front = np.zeros((96, 160), np.float32), np.zeros((24, 40), np.float32)
    opaque[16:80, 20:140], front[4:20, 5:35] = 1, 1
    holes = np.zeros((3, 96, 160), bool)
    for hole, (row, column) in zip(holes, ((30, 34), (50, 70), (40, 110)), strict=True):
        hole[row : row + 16, column : column + 14] = True
    opaque[holes.any(0)] = 0
    front[10:14, 27:31] = 0  # the third one is a hole for the prior, too
    return cv2.GaussianBlur(opaque, (0, 0), 0.8), front, holes


def test_what_looks_like_the_background_within_a_thing_is_of_the_thing():
    opaque, front, holes = pierced()
    found = whole(opaque, front)
    assert (found[holes[:2].any(0)] == 1).all()
    rims = cv2.dilate(holes[:2].any(0).view(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (found[rims] == 1).all()
    elsewhere = cv2.dilate(rims.view(np.uint8), np.ones((5, 5), np.uint8)) == 0
    np.testing.assert_array_equal(found[elsewhere], opaque[elsewhere])
    assert (found[holes[2]] < 0.6).all()


def test_what_is_open_to_a_side_is_no_hole():
    opaque, front, _ = pierced()
    opaque[:40, 38:44] = 0  # the first hole is a bay now
    np.testing.assert_array_equal(whole(opaque, front)[:46, 20:60], opaque[:46, 20:60])
    at_the_edge = np.ones((96, 160), np.float32)
    at_the_edge[:20, :20] = 0
    np.testing.assert_array_equal(whole(at_the_edge, np.ones((24, 40), np.float32)), at_the_edge)
    assert (whole(np.ones((8, 8), np.float32), np.ones((2, 2), np.float32)) == 1).all()


def test_a_narrow_slit_deep_in_a_thing_is_of_the_thing():
    opaque, things = np.zeros((96, 160), np.float32), square(4, 5, 16, 30).astype(np.float32)
    opaque[16:80, 20:140] = 1
    opaque[:60, 40:52] = opaque[:60, 80:110] = opaque[60:, 120:128] = 0  # two slits, and a gap between them
    things[14:, 28:] = 0  # one slit is none for the prior
    found = without_slits(opaque, things)
    assert (found[26:54, 41:51] == 1).all()  # as far as it is deep
    assert not found[:22].any(where=opaque[:22] == 0) and not found[:50, 84:106].any()
    np.testing.assert_array_equal(found[60:], opaque[60:])
    np.testing.assert_array_equal(without_slits(opaque, np.zeros_like(things)), opaque)


def test_specks_that_are_no_part_of_a_thing_are_clear():
    opaque, front = np.zeros((96, 160), np.float32), np.zeros((24, 40), np.float32)
    opaque[16:80, 20:100], front[4:20, 5:20] = 1, 1  # to the right of what the prior sees, it goes on
    opaque[30:36, 103:110] = opaque[50:60, 130:150] = 1  # beside it, and far away
    found = whole(cv2.GaussianBlur(opaque, (0, 0), 0.8), front)
    opaque[:, 101:] = 0
    assert np.abs(found - opaque)[:, 106:].max() == 0
    np.testing.assert_array_equal(found[:, :99], cv2.GaussianBlur(opaque, (0, 0), 0.8)[:, :99])


def test_the_matte_fills_holes_and_slits(photo):
    matte, cells = Matte(widths=(8, 8)), np.ones((3, ROWS, COLUMNS), np.float32)
    with torch.no_grad():
        logits = torch.full((1, 1, *photo.shape[:2]), 4.0)
        logits[..., 40:52, 60:72] = -4.0
        logits[..., 20:26, 30:36] = 1.0  # a thing, but not quite
        logits[..., :60, 120:134] = -4.0  # no hole, since it is open above
    matte.forward = lambda picture, seen: logits
    assert (matte.of(photo, cells) > 0.9).all()
    without = matte.of(photo, np.stack([*cells[:2], 0 * cells[2]]))
    assert (without[:58, 122:132] < 0.5).all() and (np.delete(without, range(112, 142), 1) > 0.9).all()
    assert (matte.of(photo, 0 * cells)[40:52, 60:72] < 0.1).all()
