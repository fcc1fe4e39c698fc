"""What is shown: the picture's own detail in the light that the student puts on it, elsewhere the student itself."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from motionstream.model.completion import Completion, Plate
from motionstream.model.composite import FILLING, Light, Sharp, composite, fade, find_light, sharpened
from motionstream.model.prior_state import Moved

CELL = 16
GREY = torch.full((3, 3), 1 / 3)
LIGHTS = {
    "its own": lambda x: x,
    "night": lambda x: (x + 1) / 2 - 1,
    "bright": lambda x: x + 0.4,
    "fog": lambda x: torch.lerp(x, torch.full_like(x, 0.7), 0.6),
    "monochrome": lambda x: torch.einsum("ij,tjhw->tihw", GREY, x),
}
each_light = pytest.mark.parametrize("light", LIGHTS.values(), ids=LIGHTS)


@pytest.fixture
def moved():
    """A moved picture of fine detail, its coarse colours, which the student's decoder knows, and confidence."""
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator) - 0.5, size=(64, 64), mode="bilinear")
    fine = 0.4 * torch.rand(coarse.shape, generator=generator) - 0.2
    return coarse + fine - F.interpolate(F.avg_pool2d(fine, CELL), 64), coarse, torch.ones(1, 1, 64, 64)


def shown(decoded, moved, falling=False):
    warped, coarse, sure = moved
    light = find_light(decoded, warped, sure, CELL)
    return composite(decoded, warped, sure, CELL, light, coarse if falling else None)


@each_light
@pytest.mark.parametrize("falling", (False, True))
def test_where_the_prior_is_sure_the_picture_keeps_its_detail_and_takes_the_students_light(falling, light, moved):
    warped, coarse, _ = moved
    torch.testing.assert_close(shown(light(coarse), moved, falling), light(warped), atol=0.03, rtol=0)
    noise = 0.15 * (2 * torch.rand(coarse.shape, generator=torch.Generator().manual_seed(1)).round() - 1)
    torch.testing.assert_close(shown(light(coarse) + noise, moved, falling), light(warped), atol=0.08, rtol=0)


@pytest.mark.parametrize("falling", (False, True))
def test_a_picture_of_one_colour_keeps_its_detail_whatever_the_light(falling, moved):
    detail = moved[0] - moved[1]
    grey = torch.zeros_like(detail)
    made = shown(grey - 0.5, (detail, grey, moved[2]), falling)
    torch.testing.assert_close(made, detail - 0.5, atol=0.01, rtol=0)


@each_light
def test_light_is_found_in_what_is_sure_alone(light, moved):
    warped, coarse, sure = moved
    sure = sure.clone()
    sure[..., 32:] = 0
    decoded = light(coarse)
    decoded[..., 32:] = 0.9
    found = find_light(decoded, warped, sure, CELL).on(warped)
    torch.testing.assert_close(found[..., :32], light(warped)[..., :32], atol=0.08, rtol=0)


def test_blotches_are_no_light(moved):
    warped, coarse, _ = moved
    blotch = torch.zeros_like(coarse)
    blotch[..., 16:32, 16:32] = 0.3
    assert (shown(coarse + blotch, moved) - warped).abs().max() < 0.15


def test_the_students_flakes_show_where_the_prior_is_sure_if_something_falls(moved):
    warped, coarse, _ = moved
    snowing = coarse.clone()
    snowing[..., 20:25, 30:35] += 0.5
    dry, wet = (shown(snowing, moved, falling) - warped for falling in (False, True))
    assert dry.abs().max() < 0.1
    assert wet[..., 21:24, 31:34].min() > 0.8 and wet[..., 20:25, 30:35].min() > 0.5
    wet[..., 20:25, 30:35] = 0
    assert wet.abs().max() < 0.1


def test_where_no_light_was_asked_for_the_picture_keeps_its_own(moved):
    warped, coarse, sure = moved
    torch.testing.assert_close(composite(coarse - 0.2, warped, sure, CELL), warped)


def test_where_the_prior_is_unsure_the_student_is_shown_in_the_light_of_what_is_beside(moved):
    warped, coarse, sure = moved
    sure = sure.clone()
    sure[..., :32] = 0
    made = composite(coarse - 0.2, warped, sure, CELL)  # its light errs by 0.2 everywhere
    torch.testing.assert_close(made[..., 32:], warped[..., 32:])
    half = torch.lerp(coarse, warped, FILLING)
    torch.testing.assert_close(made[..., :32], half[..., :32], atol=0.05, rtol=0)


@each_light
def test_in_another_light_the_moved_picture_is_shown_everywhere(light, moved):
    warped, coarse, sure = moved
    found = find_light(light(coarse), warped, sure, CELL)
    torch.testing.assert_close(composite(light(coarse) - 0.2, warped, 0 * sure, CELL, found), found.on(warped))


def test_where_nothing_is_sure_the_students_light_counts(moved):
    warped, coarse, sure = moved
    made = composite(coarse - 0.3, warped, 0 * sure, CELL)
    torch.testing.assert_close(made, torch.lerp(coarse - 0.3, warped, FILLING))
    own = find_light(coarse - 0.3, warped, 0 * sure, CELL)  # nothing is known of the light
    torch.testing.assert_close(own.on(warped), warped, atol=1e-4, rtol=0)


def test_what_is_guessed_to_lie_behind_is_shown_as_it_is(moved):
    warped, coarse, sure = moved
    sure, guessed = sure.clone(), torch.zeros_like(sure)
    sure[..., :32], guessed[..., :32] = 0, 1
    made = composite(coarse, warped, sure, CELL, guessed=guessed)
    torch.testing.assert_close(made[..., 32:], warped[..., 32:])
    torch.testing.assert_close(made[..., :32], warped[..., :32], atol=0.01, rtol=0)


def test_what_falls_makes_nothing_darker(moved):
    warped, coarse, sure = moved
    edged = coarse.clone()
    edged[..., 20:25, 30:35] += 0.9
    edged[:, 2, 20:25, 30:35] -= 1.2  # a flake without blue
    made = shown(edged, moved, falling=True) - find_light(edged, warped, sure, CELL).on(warped)
    assert made.min() > -1e-6 and made[:, :2, 21:24, 31:34].min() > 1


def test_one_light_for_all_frames_is_the_mean_of_theirs(moved):
    warped, coarse, sure = (x.expand(2, -1, -1, -1) for x in moved)
    decoded = coarse + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    found = find_light(decoded, warped, sure, CELL)
    assert len(found.matrix) == len(found.offset) == 1
    torch.testing.assert_close(found.on(warped), warped + 0.2, atol=1e-3, rtol=0)


def test_light_fades_from_one_to_another_and_away(moved):
    warped, coarse, sure = moved
    night, fog = (find_light(LIGHTS[name](coarse), warped, sure, CELL) for name in ("night", "fog"))
    frames = warped.expand(5, -1, -1, -1)
    own = torch.eye(3)[None], torch.zeros_like(night.offset)
    for before, after in itertools.permutations((None, night, fog), 2):
        made = fade(before, after, 5).on(frames)
        ends = [(light or Light(*own)).on(warped)[0] for light in (before, after)]
        torch.testing.assert_close(made[0], ends[0])
        torch.testing.assert_close(made[4], ends[1])
        torch.testing.assert_close(made[2], (ends[0] + ends[1]) / 2)
    assert fade(None, None, 5) is None


# ---------------------------------------------------------------- frames larger than the student's


@pytest.fixture
def photo() -> np.ndarray:
    """Three times as large as the student's frames, uint8 [96, 144, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    return cv2.resize(coarse, (144, 96), interpolation=cv2.INTER_CUBIC)


def small(photo: np.ndarray, frames: int = 1) -> torch.Tensor:
    """The photo as the student's frames have it, [T, 3, 32, 48] in [-1, 1]."""
    shrunk = cv2.resize(photo, (48, 32), interpolation=cv2.INTER_AREA)
    return (torch.tensor(shrunk) / 127.5 - 1).permute(2, 0, 1).expand(frames, -1, -1, -1)


def at_rest(picture: torch.Tensor, sure: float = 1.0) -> Moved:
    picture = picture.transpose(0, 1)[None]
    confidence = torch.full_like(picture[:, :1], sure)
    return Moved(picture, confidence, *[torch.zeros_like(confidence)] * 2)


def test_what_is_sure_is_as_sharp_as_the_photo(photo):
    frames = small(photo, 2)
    assert np.array_equal(sharpened(frames, at_rest(frames), None, Sharp(photo)), np.stack([photo, photo]))


def test_what_moves_is_as_sharp_as_the_photo(photo):
    backward, sure = np.zeros((1, 2, 16, 24), np.float32), np.ones((1, 16, 24), np.float32)
    backward[:, 0] = -4  # everything has moved right by four of the student's pixels
    frames = small(np.roll(photo, 12, axis=1))
    moved = dataclasses.replace(at_rest(frames), backward=backward, under=backward, sure=sure)
    made = sharpened(frames, moved, None, Sharp(photo))
    assert np.array_equal(made[0, :, 12:], photo[:, :-12])


def test_what_is_not_sure_is_the_small_frame_enlarged(photo):
    frames = small(photo) * 0.5
    made = sharpened(frames, at_rest(small(photo), 0.0), None, Sharp(photo))
    wanted = F.interpolate(127.5 * (frames + 1), size=(96, 144), mode="bilinear", align_corners=False)
    assert np.abs(made.transpose(0, 3, 1, 2) - wanted.numpy()).max() <= 1


@each_light
def test_the_photo_is_shown_in_the_light_of_each_frame(light, photo):
    own = torch.eye(3) - 1
    matrix = torch.stack([light((own + 1)[None, :, :, None])[0, :, :, 0] - light(torch.zeros(1, 3, 1, 1))[0, :, :, 0]])
    found = Light(matrix, light(torch.zeros(1, 3, 2, 3)))
    frames = small(photo, 2)
    made = sharpened(found.on(frames), at_rest(frames), found, Sharp(photo))
    wanted = found.on((torch.tensor(photo) / 127.5 - 1).permute(2, 0, 1)[None])
    wanted = (127.5 * (wanted + 1)).clamp(0, 255)
    assert len(made) == 2 and np.abs(made.transpose(0, 3, 1, 2) - wanted.numpy()).max() <= 1


def test_what_falls_stays_on_top(photo):
    frames, dark = small(photo // 2), photo // 2
    flake = torch.zeros_like(frames)
    flake[..., 10:14, 20:24] = 0.8
    made = sharpened(frames + flake, at_rest(frames), None, Sharp(dark))[0].astype(int)
    assert np.array_equal(made[33:39, 63:69], dark[33:39, 63:69] + 102)
    assert np.array_equal(made[:24], dark[:24])


def test_a_light_of_which_nothing_is_left_to_add_is_on_the_photo():
    white = np.full((96, 144, 3), 255, np.uint8)
    light = Light(0.5 * torch.eye(3)[None], torch.full((1, 3, 2, 3), -0.5))  # half of all colours
    made = sharpened(light.on(small(white)), at_rest(small(white)), light, Sharp(white))
    assert np.abs(made - white / 2).max() <= 1


@pytest.mark.parametrize("lit", (False, True))
def test_what_is_guessed_to_lie_behind_is_as_sharp_as_the_photo(lit, photo):
    behind = Completion.empty(16, 24)
    behind.filled[4:8, 4:12], behind.shift[4:8, 4:12] = True, (6, 8)
    plate = Plate(photo).update(behind)
    still = dict.fromkeys(("backward", "under"), np.zeros((1, 2, 16, 24), np.float32))
    still["sure"] = np.ones((1, 16, 24), np.float32)
    frames, guessed = small(plate), torch.zeros(1, 1, 1, 32, 48)
    guessed[..., 8:16, 8:24] = 1
    moved = dataclasses.replace(at_rest(frames), guessed=guessed, behind=behind, **still)
    moved = dataclasses.replace(moved, confidence=1 - guessed)
    light = Light(torch.eye(3)[None], torch.zeros(1, 3, 2, 3)) if lit else None
    made = sharpened(frames, moved, light, Sharp(photo))[0].astype(int)
    assert np.abs(made - plate)[27:45, 27:69].max() <= 3
    assert np.array_equal(made[60:], photo[60:])
    assert np.array_equal(plate[24:48, 24:72], photo[60:84, 72:120])


@pytest.mark.parametrize("lit", (False, True))
def test_a_mirror_image_at_the_edge_is_as_sharp_as_the_photo_by_its_share(lit, photo):
    frames, beyond = small(photo), torch.zeros(1, 1, 1, 32, 48)
    beyond[..., :16] = 1
    moved = dataclasses.replace(at_rest(frames), confidence=1 - beyond, beyond=beyond)
    light = Light(torch.eye(3)[None], torch.zeros(1, 3, 2, 3)) if lit else None
    made = sharpened(frames, moved, light, Sharp(photo))[0].astype(float)
    blurred = cv2.resize(cv2.resize(photo, (48, 32), interpolation=cv2.INTER_AREA), (144, 96))
    share = 1 if lit else FILLING
    assert np.abs(made - share * photo - (1 - share) * blurred)[:, :42].max() <= 2
    assert np.array_equal(made[:, 54:], photo[:, 54:])


@pytest.mark.parametrize("lit", (False, True))
def test_a_photo_of_one_colour_is_shown_in_it_whatever_is_sure(lit):
    """What is taken out of the small frames is what is put in of the photo, pixel for pixel."""
    photo, rng = np.full((96, 144, 3), (200, 120, 60), np.uint8), np.random.default_rng(0)
    behind = Completion.empty(16, 24)
    behind.filled[4:8, 4:12], behind.shift[4:8, 4:12] = True, (6, 8)
    still = dict.fromkeys(("backward", "under"), np.zeros((1, 2, 16, 24), np.float32))
    still["sure"] = np.ones((1, 16, 24), np.float32)
    sure, guessed = torch.ones(1, 1, 1, 32, 48), torch.zeros(1, 1, 1, 32, 48)
    sure[..., 8:17, 9:30] = torch.tensor(0.9 * rng.random((9, 21)), dtype=torch.float32)
    guessed[..., 8:15, 9:20] = (1 - sure)[..., 8:15, 9:20]
    parts = dict(confidence=sure, guessed=guessed, beyond=1 - sure - guessed, behind=behind)
    light = Light(0.5 * torch.eye(3)[None], torch.zeros(1, 3, 2, 3)) if lit else None
    frames = small(photo) if light is None else light.on(small(photo))
    made = sharpened(frames, dataclasses.replace(at_rest(small(photo)), **parts, **still), light, Sharp(photo))
    wanted = 127.5 + 0.5 * (photo - 127.5) if lit else photo
    assert np.abs(made[0] - wanted).max() <= 1


@pytest.mark.parametrize("unsure", [8, 24, 40])
def test_light_reaches_as_far_as_the_picture_does(unsure):
    """Also where nothing is sure, however far: a mirror image beside a picture at night is not in daylight."""
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 4, 6), (32, 48), mode="bicubic").clamp(0, 1) * 1.6 - 0.8
    confidence = torch.ones(1, 1, 32, 48)
    confidence[..., :unsure] = 0
    night = 0.5 * picture - 0.4
    assert (find_light(night, picture, confidence, 4).on(picture) - night).abs().max() < 0.08
