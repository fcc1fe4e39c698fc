"""`eval camera` on a scene that the test renders itself: two textured planes seen from nine known places."""

import json
from functools import cache
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from motionstream.cli import main
from motionstream.controls.paths import rigid
from motionstream.controls.pinhole import Camera, Surface, pixel_grid
from motionstream.errors import InputError
from motionstream.evaluation import camera as evaluation
from motionstream.model.presets import PRESETS

SIZE = (512, 288)
FOCAL, NEAR, FAR = 420.0, 4.0, 9.0


@cache
def texture(width, height, seed):
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip(128 + smooth / smooth.std() * 50, 0, 255).astype(np.uint8)


def render(camera):
    """A wall at depth FAR, and in front of its left half one at NEAR."""
    views = []
    for depth, seed in ((FAR, 0), (NEAR, 1)):
        corners = np.array([[-10, -6, depth], [10, -6, depth], [10, 6, depth], [-10, 6, depth]])
        corners[:, :2] *= depth / FAR
        corners[1:3, 0] = -0.5 if depth == NEAR else corners[1:3, 0]
        pixels, _ = camera.project(corners)
        picture = texture(800, 480, seed)
        edges = np.float32([[0, 0], [800, 0], [800, 480], [0, 480]])
        view = cv2.getPerspectiveTransform(edges, pixels.astype(np.float32))
        views.append((cv2.warpPerspective(picture, view, SIZE), cv2.warpPerspective(np.ones((480, 800)), view, SIZE)))
    (back, _), (front, cover) = views
    return np.where(cover[..., None] > 0.5, front, back).astype(np.uint8)


def true_depth(camera):
    """[288, 512] of `render`, for cameras that look along z."""
    edge = camera.project(np.array([[-0.5, 0, NEAR]]))[0][0, 0]
    return np.where(np.arange(SIZE[0])[None] + 0.5 < edge, NEAR, FAR) + np.zeros((SIZE[1], 1))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """In LLFF's layout, in a world of its own: turned, shifted, and 2.5 times as large."""
    folder = tmp_path_factory.mktemp("llff") / "walls"
    (folder / "images").mkdir(parents=True)
    world, rows = rigid((0.3, -0.2, 0.5), (4, 5, -6)), []
    first = Camera.facing(*SIZE, FOCAL)
    for number in range(9):
        x, y = (0.2 * (number % 3 - 1), 0.15 * (number // 3 - 1)) if number else (0.35, 0.2)
        camera = first.moved(rigid(shift=(x, y, 0)))
        Image.fromarray(render(camera)).save(folder / "images" / f"{number}.png")
        pose = world @ camera.pose
        right, down, forward = pose[:3, :3].T
        columns = [down, right, -forward, 2.5 * pose[:3, 3], (SIZE[1] * 2, SIZE[0] * 2, FOCAL * 2)]
        rows.append([*np.stack(columns, axis=1).ravel(), 2.5 * NEAR, 2.5 * FAR])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def test_a_scene_is_read_as_it_was_written(scene):
    read = next(evaluation.scenes(scene))
    assert read.name == "walls" and len(read.files) == 9
    assert read.split() == (4, [0, 8]) and set(read.near(4)[:2]) == {1, 7}
    relative = np.linalg.inv(read.cameras[4].pose) @ read.cameras[0].pose
    assert np.abs(relative - rigid(shift=(0.35 * 2.5, 0.2 * 2.5, 0))).max() < 1e-9
    assert read.cameras[0].focal == pytest.approx([FOCAL, FOCAL])
    assert next(evaluation.scenes(scene.parent)).name == "walls"


def test_triangulated_points_find_the_scale(scene):
    read = next(evaluation.scenes(scene))
    points = evaluation.scene_points(read, 4)
    depth = true_depth(Camera.facing(*SIZE, FOCAL))
    known = Surface(Camera.facing(*SIZE, 1.0), depth, *SIZE).depth_at(points[:, :2])
    assert len(points) > 100
    assert np.median(np.abs(points[:, 2] / known / 2.5 - 1)) < 0.02
    for factor in (1.0, 0.01):
        scale = evaluation.depth_scale(depth * factor, points, read.bounds[4])
        assert scale * factor == pytest.approx(2.5, rel=0.02)
        scale = evaluation.depth_scale(depth * factor, points[:3], read.bounds[4])  # too few: by the bounds
        assert scale * factor == pytest.approx(2.5, rel=0.02)


def test_tracks_end_where_the_target_sees_the_same_thing(scene):
    read = next(evaluation.scenes(scene))
    surface = Surface(read.cameras[4], 2.5 * true_depth(Camera.facing(*SIZE, FOCAL)), *SIZE)
    tracks = evaluation.camera_tracks(surface, read.cameras[0], 3, 60)
    assert np.abs(tracks.points[0] - pixel_grid(*SIZE, np.sqrt(SIZE[0] * SIZE[1] / 60))).max() < 1e-3
    shift = tracks.points[-1] - tracks.points[0]
    near = tracks.points[0, :, 0] < SIZE[0] / 2 - FOCAL * 0.5 / NEAR
    assert np.abs(shift[near] + np.array([0.35, 0.2]) * FOCAL / NEAR).max() < 0.01
    assert np.abs(shift[~near] + np.array([0.35, 0.2]) * FOCAL / FAR).max() < 0.01
    most = evaluation.camera_tracks(surface, read.cameras[0], 2, 2_500).points[0]
    assert 2_400 < len(most) <= 2_500 and (most.max(0) > 0.98 * np.array(SIZE)).all()


def test_the_table_from_end_to_end(scene, tmp_path, capsys, monkeypatch):
    class Truth:
        def estimate(self, image, camera, start, known):
            return true_depth(Camera.facing(*SIZE, FOCAL)) * 0.2

    monkeypatch.setattr(evaluation, "pick_depth", lambda name: lambda image: Truth())
    sheet = tmp_path / "sheet.png"
    arguments = ["eval", "camera", str(scene), "--json", "--model", "none", "--frames", "2", "--tracks", "150"]
    assert main([*arguments, "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["table"] == "camera" and result["runs"] == 2
    warp, motionless = (result["methods"][name] for name in ("warp", "motionless"))
    assert warp["psnr"] > motionless["psnr"] + 3 and warp["ssim"] > motionless["ssim"] + 0.1
    assert lines[0].split() == ["psnr", "ssim"] and lines[1].startswith("warp")
    assert Image.open(sheet).size[0] > 4 * 256
    assert main([*arguments, "--sheet", str(tmp_path / "nowhere" / "sheet.png")]) == 2
    assert capsys.readouterr().out == ""  # told before the work


@pytest.mark.parametrize(
    "rows",
    [np.zeros((9, 16)), np.full((9, 17), np.nan), np.zeros((8, 17)), np.array([None] * 9, object), np.zeros((9, 17))],
    ids=["shape", "nan", "count", "pickled", "zeros"],
)
def test_scenes_that_are_wrong_are_refused_with_a_reason(scene, tmp_path, rows, capsys):
    (tmp_path / "images").symlink_to(scene / "images")
    np.save(tmp_path / "poses_bounds.npy", rows, allow_pickle=True)
    assert main(["eval", "camera", str(tmp_path), "--model", "none"]) == 2
    assert "motionstream: " in capsys.readouterr().err


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(InputError, match="poses_bounds"):
        list(evaluation.scenes(tmp_path))


def test_the_model_works_at_its_own_size_and_is_compared_at_that_of_the_table(monkeypatch):
    asked = {}

    def student(model, image, tracks, seed, sharp, prompt):
        asked.update(size=image.shape, prompt=prompt, first=tracks.points[0])
        return np.repeat(sharp[None], tracks.T, axis=0)

    monkeypatch.setattr(evaluation, "student", student)
    image = texture(*SIZE, 0)
    model = SimpleNamespace(preset=PRESETS["embedded"])
    compared = evaluation.methods(model, (288, 160), evaluation.PROMPT.format("fern"))
    surface = Surface(Camera.facing(*SIZE, FOCAL), np.full((2, 2), 3.0), *SIZE)
    tracks = evaluation.camera_tracks(surface, surface.camera, 2, 20)
    video = compared["student"](image, tracks, 0)
    assert video.shape == (2, 288, 512, 3) and asked["size"] == (160, 288, 3)
    assert np.abs(asked["first"] / (288, 160) - tracks.points[0] / SIZE).max() < 1e-6
    assert asked["prompt"] == "static scene, only camera motion, no object is moving, fern"
    assert np.abs(video[0].astype(int) - image).mean() < 3  # the sharper copy
