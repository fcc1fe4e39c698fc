"""How a frame is made of cells that have moved: where they land, what is seen, and what is filled."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionstream.model.frames import FOLDS, Scene, folded, in_motion, trend_of
from motionstream.model.least_squares import most_go
from motionstream.model.silhouettes import cut_through
from motionstream.model.splatting import close_gaps, laid_out, splat
from motionstream.model.warping import (
    BESIDE,
    CELL,
    PARTS,
    behind,
    between,
    cell_centres,
    cell_numbers,
    enlarged_motion,
    fill_holes,
    in_the_first_frame,
    mirrored,
    on_top,
    seen_through,
    surely,
    without_seams,
)

WIDTH, HEIGHT = 64, 48


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
    shown, _, guessed, *_ = in_motion(
        Scene(picture, plate, nowhere, nowhere, *[things & False] * 2), things, displacement, front
    )
    seen = guessed > 0.9
    assert seen.sum() > 24 * 8
    assert np.abs(shown[0] - ramp)[seen].max() < 0.05
    partly = (guessed > 0.3) & ~seen
    assert partly.any() and np.abs(shown[0] - ramp)[partly].max() < 0.25


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
        Scene(still, plate, nothing + 1, nothing, *[front > 1] * 2), front > 1, displacement, front
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
    scene = Scene(picture, picture, nowhere, nowhere, *[things & False] * 2)
    *_, flow, _, sure = in_motion(scene, things, displacement, np.float32(things))
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


def test_holes_are_filled_however_far_what_is_known_lies():
    picture, confidence = np.zeros((3, 40, 96), np.float32), np.zeros((40, 96), np.float32)
    picture[..., :8], confidence[..., :8] = 0.75, 1
    np.testing.assert_allclose(fill_holes(picture, confidence), 0.75, rtol=1e-5)


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


STRIPES = np.sin(np.arange(WIDTH, dtype=np.float32) / 3)[None, :, None]


def panned(shift: float, front: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """All of a striped picture moved to the right, see `in_motion`."""
    size = HEIGHT // CELL, WIDTH // CELL
    front = np.zeros(size, np.float32) if front is None else front
    picture = between(np.dstack([np.tile(STRIPES, (HEIGHT, 1, 3)), np.zeros((HEIGHT, WIDTH), np.float32)]))
    displacement = np.tile(np.float32([shift, 0]), (front.size, 1))
    nowhere = np.zeros((HEIGHT, WIDTH), np.float32)
    scene = Scene(picture, np.zeros_like(picture), nowhere, nowhere, *[front > 1] * 2)
    return in_motion(scene, front > 1, displacement, front)


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


@pytest.mark.parametrize("across", [False, True])
def test_a_thing_that_the_edge_cuts_off_is_not_mirrored_below_itself_unless_it_is_the_ground(across):
    """It is drawn up from the lower edge; what lies behind it is known, and seen there."""
    size = HEIGHT // CELL, WIDTH // CELL
    thing = np.zeros(size, bool)
    thing[14:, 10:22] = True
    shade = cv2.resize(np.where(thing, np.float32(1), np.float32(-1)), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    picture = between(np.dstack([shade] * 3 + [(shade > 0).astype(np.float32)]))
    plate = between(np.dstack([np.full_like(shade, -1)] * 3 + [np.ones_like(shade)]))
    displacement = np.where(thing.ravel()[:, None], np.float32([0, -12]), np.float32(0))
    front, nowhere = thing.astype(np.float32), np.zeros_like(shade)
    scene = Scene(picture, plate, nowhere, nowhere, thing & across, thing & False)
    shown, _, guessed, beyond, *_ = in_motion(scene, thing, displacement, front)
    below = np.s_[-8:, 27:37]
    if across:
        assert beyond[below].all() and not guessed[below].any() and shown[0][below].min() > 0.9
    else:
        assert not beyond[below].any() and guessed[below].min() > 0.9 and shown[0][below].max() < -0.9


@pytest.mark.parametrize("aside", [-12, 0, 12])
def test_a_thing_that_the_edge_cuts_through_goes_on_as_it_is_near_the_edge(aside):
    """It is drawn up from the lower edge, and aside; it is bright for only as far as folds reach, and goes on so."""
    size = HEIGHT // CELL, WIDTH // CELL
    thing = np.zeros(size, bool)
    thing[10:, 10:22] = True
    shade = cv2.resize(np.where(thing, np.float32(0), np.float32(-1)), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    shade[-round(FOLDS * HEIGHT) - 1 :][shade[-1:].repeat(round(FOLDS * HEIGHT) + 1, 0) == 0] = 1
    picture = between(np.dstack([shade] * 3 + [(shade >= 0).astype(np.float32)]))
    plate = between(np.dstack([np.full_like(shade, -1)] * 3 + [np.ones_like(shade)]))
    displacement = np.where(thing.ravel()[:, None], np.float32([aside, -16]), np.float32(0))
    scene = Scene(picture, plate, *[np.zeros_like(shade)] * 2, thing & False, cut_through([thing], np.float32(thing)))
    shown, confidence, guessed, beyond, *_ = in_motion(scene, thing, displacement, thing.astype(np.float32))
    below, beside = np.s_[-14:, 24 + aside : 40 + aside], np.s_[-14:, [*range(10 + aside), *range(54 + aside, WIDTH)]]
    assert beyond[below].all() and not guessed[below].any() and not confidence[below].any()
    assert shown[0][below].min() > 0.9
    assert not beyond[beside].any() and shown[0][beside].mean() < -0.95


@given(st.floats(-70, 70), st.floats(-70, 70), st.floats(0.5, 1.5))
def test_motion_is_folded_at_edges_only_and_without_a_tear(x, y, size):
    height, width = 20, 30
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    flow = (np.float32([x, y])[:, None, None] + (size - 1) * CELL * grid).astype(np.float32)
    found, beyond = folded(flow)
    before, after = (grid + motion / CELL for motion in (flow, found))
    sides = np.array([width, height])[:, None, None]
    was_out = (before < -0.5) | (before > sides - 0.5)
    assert np.array_equal(was_out.any(0), beyond) and np.array_equal(found[~was_out], flow[~was_out])
    near = np.minimum(after + 0.5, sides - 0.5 - after)
    assert near.min() >= -1e-4 and (not was_out.any() or near[was_out].max() <= FOLDS * height + 1e-4)
    assert max(np.abs(np.diff(after[0], axis=1)).max(), np.abs(np.diff(after[1], axis=0)).max()) <= size + 1e-3


def test_cells_are_laid_finer_only_where_they_are_stretched():
    """To the left a third of the picture stays, to the right it grows to 1.8 times."""
    h, w = 20, 30
    column = np.tile(np.arange(w, dtype=np.float32), (h, 1))
    motion = np.stack([np.maximum(column - 10, 0) * 1.6, np.zeros((h, w), np.float32)])
    laid = laid_out(motion, column)
    assert laid.shape == (6, 10 * h + 4 * 20 * h) and laid[4].sum() == h * w
    finer = laid[4] < 1
    assert set(np.rint(laid[5, ~finer])) == set(range(10)) and set(np.rint(laid[5, finer])) == set(range(10, 30))
    np.testing.assert_array_equal(laid[0, ~finer], laid[5, ~finer])  # as they lay
    columns = np.unique(laid[0, finer].round(2))
    assert np.diff(columns).max() < 1 and columns[-1] > 29 * 1.8 - 9
    assert laid_out(0.3 * motion, column).shape == (6, h * w)


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
    scene = Scene(picture, plate, 1 - around, alone * around, *[thing & False] * 2)
    image, _, guessed, beyond, *_ = in_motion(scene, thing & False, displacement, thing.astype(np.float32))
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
    scene = Scene(picture, np.zeros_like(picture), nowhere, nowhere, *[front > 1] * 2)
    *_, flow, under, _ = in_motion(scene, front > 1, displacement, front)
    wanted = ((centres - (WIDTH / 2, HEIGHT / 2)) * (1 / left - 1)).T.reshape(flow.shape)
    off = np.abs(flow - wanted) / np.abs(wanted).max()  # the smaller, the fewer cells tell
    assert off.max() < (0.12 if left == 0.6 else 0.25)
    assert off.mean() < (0.015 if left == 0.6 else 0.12)
