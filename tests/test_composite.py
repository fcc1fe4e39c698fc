"""What is shown: the picture's own detail in the light that the student puts on it, elsewhere the student itself."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from motionstream.model.composite import FILLING, Light, composite, fade, find_light

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
