"""The bundled student shows what a prompt asks for: the light that its training clips showed, and things that fall.

Its motion prior takes the whole of a thing along, in the smallest stream too.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from motionstream.controls.drag import DragSource
from motionstream.evaluation.motion import read_drags
from motionstream.machine import Choice, fit_pictures
from motionstream.model.checkpoint import Model, load_model
from motionstream.model.warping import CELL
from motionstream.streaming import stream
from motionstream.tracks import ChunkRequest, Tracks
from motionstream.training.effects import EFFECTS
from motionstream.video import read_image

EXAMPLES = Path(__file__).parent.parent / "examples"


class Nothing:
    """Nobody drags."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        return Tracks.empty(request.frames)


@pytest.fixture(scope="module")
def student() -> Model:
    return load_model("embedded")


def shown(model: Model, name: str, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture, and frames of the third chunk, at the smallest trained size."""
    image, _ = fit_pictures(model.preset, Choice(min(model.preset.budgets)), read_image(EXAMPLES / f"{name}.jpg"))
    for chunk in stream(model, image, Nothing(), prompt=prompt, seed=0):
        if chunk.index == 2:
            return image, chunk.frames


def colours(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame.astype(np.float32), (12, 7), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("effect", ["night", "sunset", "cold", "fog"])
def test_light_is_what_training_showed(student, effect):
    errors, changes = [], []
    for name in ("boat", "koi"):
        image, frames = shown(student, name, effect)
        asked = np.clip(EFFECTS[effect](image[None].astype(np.float32), None)[0], 0, 255)
        errors.append(np.abs(colours(frames[-1]) - colours(asked)).mean())
        changes.append(np.abs(colours(image) - colours(asked)).mean())
    assert np.mean(errors) < 0.25 * np.mean(changes)


@pytest.mark.parametrize("effect", ["snow", "rain"])
def test_bright_things_fall(student, effect):
    (image, dry), (_, wet) = (shown(student, "boat", prompt) for prompt in ("", effect))
    specks = (wet.astype(int).min(-1) > dry.max(-1).astype(int) + 40).any(0)
    found = cv2.connectedComponents(specks.astype(np.uint8))[0] - 1
    assert 5 <= found and specks.mean() < 0.1


def displacement(model: Model, name: str, budget: int) -> tuple[np.ndarray, Tracks]:
    """How far the cells [h, w] of an example are after its own drags, pixels, and these, 45 frames."""
    fit = partial(fit_pictures, model.preset, Choice(budget))
    pictures = fit(read_image(EXAMPLES / f"{name}.jpg"))
    tracks = read_drags(EXAMPLES / f"{name}.json", model.preset, fit).tracks.rows(0, 45)
    with torch.no_grad():
        state = model.motion_prior.start(*(torch.tensor(image).permute(2, 0, 1) / 127.5 - 1 for image in pictures))
        moved = model.motion_prior.motion(state, tracks)[-1].norm(dim=-1)
    return moved.view(*(side // CELL for side in state.size)).numpy(), tracks


@pytest.mark.parametrize("name", ["boat", "car", "koi", "ladybird", "planet"])
def test_nothing_leaves_crumbs_behind(student, name):
    """All of what moves far, and all of what does not, hangs together in pieces of more than a few cells."""
    for budget in (100, 240):
        far, _ = displacement(student, name, budget)
        for side in (far > far.max() / 2, far <= far.max() / 2):
            _, _, pieces, _ = cv2.connectedComponentsWithStats(side.astype(np.uint8), connectivity=4)
            assert pieces[1:, cv2.CC_STAT_AREA].min() > 5


@pytest.mark.parametrize("budget", [100, 140, 240])
def test_a_dragged_fish_takes_its_tail_along(student, budget):
    far, tracks = displacement(student, "koi", budget)
    far /= np.linalg.norm(tracks.points[-1] - tracks.points[0], axis=-1).max()
    rows, columns = far.shape

    def part(x, y):
        row, column = int(y * rows), int(x * columns)
        return far[row - 1 : row + 2, column - 1 : column + 2]

    for body in ((0.35, 0.33), (0.5, 0.45), (0.62, 0.5), (0.73, 0.51)):
        assert part(*body) == pytest.approx(1, abs=0.1)
    for beside in ((0.5, 0.8), (0.2, 0.5), (0.85, 0.2)):  # water, and another fish
        assert part(*beside) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("budget", [140, 240])
def test_a_dragged_ladybird_takes_its_legs_along(student, budget):
    """They are seen in the sharp copy: in the picture that is generated they are no wider than a pixel."""
    far, tracks = displacement(student, "ladybird", budget)
    far /= np.linalg.norm(tracks.points[-1] - tracks.points[0], axis=-1).max()
    rows, columns = far.shape

    def part(x, y):
        row, column = int(y * rows), int(x * columns)
        return far[row - 1 : row + 2, column - 1 : column + 2].max()

    feet = (0.395, 0.38), (0.26, 0.485), (0.24, 0.585), (0.73, 0.475), (0.705, 0.595), (0.59, 0.675)
    assert [part(*foot) for foot in feet] == pytest.approx([1] * 6, abs=0.1)
    for leaf in ((0.2, 0.52), (0.8, 0.53), (0.5, 0.75), (0.3, 0.35)):
        assert part(*leaf) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("budget", [100, 140, 240])
def test_a_balloon_under_one_grid_comes_with_its_basket_however_often_it_is_grabbed(student, budget):
    image, sharp = fit_pictures(student.preset, Choice(budget), read_image(EXAMPLES / "balloon.jpg"))
    height, width = image.shape[:2]
    source, prior, scale = DragSource(), student.motion_prior, width / 800
    source.apply({"kind": "grid", "spacing": 17 * scale, "size": 3})
    state = prior.start(*(torch.tensor(picture).permute(2, 0, 1) / 127.5 - 1 for picture in (image, sharp)))
    moved = torch.zeros(2)
    for index, (begin, end) in enumerate((((300, 170), (380, 150)), ((450, 200), (390, 230)))):
        points = [[x * scale, y * scale] for x, y in (begin, end)]
        source.apply({"kind": "path", "id": index, "points": points, "frame": 0, "seconds": 0.5})
        request = ChunkRequest(index, 9 * index, 9, width, height, 16.0, {9 * index: image})
        displacement = prior.motion(state, source.tracks_for(replace(request, things=partial(prior.things_at, state))))
        moved += torch.tensor(points[1]) - torch.tensor(points[0])
        cells = displacement[-1].view(height // CELL, width // CELL, 2)
        for x, y in ((300, 60), (220, 160), (385, 160), (300, 280), (300, 358), (292, 352), (308, 352)):
            torch.testing.assert_close(cells[int(y * scale / CELL), int(x * scale / CELL)], moved, atol=3.0, rtol=0)
    assert source.take_given_up() == [0]


@pytest.mark.parametrize("budget", [100, 240])
@pytest.mark.parametrize("path", [[(500, 60), (420, 60)], [(500, 60), (560, 85)], [(620, 300), (680, 260)]])
def test_sky_and_hills_that_are_dragged_do_not_tear_the_balloon_nor_what_is_around_them(student, budget, path):
    image, sharp = fit_pictures(student.preset, Choice(budget), read_image(EXAMPLES / "balloon.jpg"))
    (height, width), scale = image.shape[:2], image.shape[1] / 800
    source = DragSource()
    source.apply({"kind": "grid", "spacing": 20 * scale, "size": 2})
    points = [[x * scale, y * scale] for x, y in path]
    source.apply({"kind": "path", "id": 0, "points": points, "frame": 0, "seconds": 1.2})
    with torch.no_grad():
        state = student.motion_prior.start(*(torch.tensor(p).permute(2, 0, 1) / 127.5 - 1 for p in (image, sharp)))
        request = ChunkRequest(0, 0, 21, width, height, 16.0, {0: image})
        moved = student.motion_prior.motion(state, source.tracks_for(request))[-1]
    cells = moved.view(height // CELL, width // CELL, 2).numpy()
    far = np.linalg.norm(np.subtract(*path)) * scale

    def at(x, y):
        return cells[int(y * scale / CELL), int(x * scale / CELL)]

    parts = (300, 60), (220, 160), (385, 160), (300, 280), (300, 358)
    assert max(np.linalg.norm(at(*part) - at(300, 160)) for part in parts) < 2
    assert np.linalg.norm(at(*path[0]) - np.subtract(*path[::-1]) * scale) < 0.1 * far
    hills = cells[int(390 * scale / CELL) :]  # below the balloon, up to the lower edge
    assert np.abs(np.diff(hills, axis=1)).max() < 0.5 * far and np.abs(np.diff(hills, axis=0)).max() < 0.5 * far


class Across:
    """A grid of nine points on the ball, dragged right."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        share = np.clip((request.start + np.arange(request.frames)) / 20, 0, 1)[:, None]
        return Tracks.rigid_grid(np.float32([50, 56]) + share * [70, 0], spacing=12, size=3, ids=np.arange(9))


def ball_on_paper(at: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball in front of paper that is dark on the left and light on the right, [336, 576, 3], and where it is."""
    rng = np.random.default_rng(0)
    columns = np.indices((336, 576))[1]
    paper = np.where(columns < 250, 60, 200)[..., None] + rng.normal(0, 6, (336, 576, 1)) + np.float32([0, 8, -20])
    ball = np.zeros((336, 576), np.float32)
    cv2.circle(ball, (at, 168), 70, 1.0, -1, cv2.LINE_AA)
    shade = 30 * np.cos(np.hypot(columns - at + 25, np.indices((336, 576))[0] - 140) / 40)[..., None]
    return paper + ball[..., None] * (np.float32([200, 60, 40]) + shade - paper), ball > 0.5


def test_a_ball_leaves_the_paper_around_it_where_it_is(student):
    """Without the matte it takes a hem of dark paper along to where the paper is light."""
    (before, _), (after, ball) = ball_on_paper(150), ball_on_paper(150 + 3 * 70)
    image, sharp = fit_pictures(student.preset, Choice(100), before.round().clip(0, 255).astype(np.uint8))
    ring = (cv2.dilate(ball.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0) & ~ball
    error = {}
    for model in (student, replace(student, matte=None)):
        for chunk in stream(model, image, Across(), sharp=sharp, seed=0):
            if chunk.index == 2:
                error[model.matte is None] = np.abs(chunk.frames[-1] - after)[ring].mean()
                break
    assert error[False] < 0.6 * error[True]
