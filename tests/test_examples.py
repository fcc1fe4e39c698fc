"""The example pictures and their drags: what the app may rely on, and that they are what the script makes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from motionstream.tracks import ChunkRequest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RENDERER = ROOT / "scripts" / "render_examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))


def drags(name):
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def grid_points(centre, grid):
    offsets = (np.arange(grid["size"]) - (grid["size"] - 1) / 2) * grid["spacing"]
    return np.array([(centre[0] + dx, centre[1] + dy) for dx in offsets for dy in offsets])


def test_there_is_something_for_every_shape():
    shapes = [np.sign(drags(name)["width"] - drags(name)["height"]) for name in NAMES]
    assert len(NAMES) >= 5
    assert {-1, 0, 1} == set(shapes)
    assert {path.stem for path in EXAMPLES.glob("*.jpg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_picture_fits_its_description(name):
    data = drags(name)
    picture = cv2.imread(str(EXAMPLES / data["image"]))
    assert data["version"] == 1 and data["title"]
    assert picture.shape == (data["height"], data["width"], 3)
    assert (EXAMPLES / data["image"]).stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_drags_lie_in_the_picture(name):
    data = drags(name)
    size = np.array([data["width"], data["height"]])
    assert data["paths"] and data["pins"]
    for path in data["paths"]:
        points = np.array(path["points"])
        assert len(points) >= 2 and 0 < path["seconds"] <= 10
        assert np.ptp(points, axis=0).max() > 0.1 * size.max(), "too short to be seen"
        for centre in (points[0], points[-1]):
            held = grid_points(centre, data["grid"])
            assert (held >= 0).all() and (held < size).all()
        away = np.linalg.norm(np.array(data["pins"]) - points[0], axis=1)
        assert (away > data["grid"]["spacing"] * data["grid"]["size"]).all(), "a pin on what is to be moved"
    assert (np.array(data["pins"]) >= 0).all() and (np.array(data["pins"]) < size).all()


def test_script_makes_exactly_these_drags(monkeypatch):
    monkeypatch.syspath_prepend(str(RENDERER))
    for name in NAMES:
        scene = importlib.import_module(name)
        assert scene.DRAGS.items() <= drags(name).items()


def test_script_makes_this_picture(tmp_path):
    subprocess.run([sys.executable, RENDERER, "--only", "planet", "--out", tmp_path], check=True, capture_output=True)
    made, kept = (cv2.imread(str(folder / "planet.jpg")).astype(float) for folder in (tmp_path, EXAMPLES))
    assert np.abs(made - kept).mean() < 1
    assert (tmp_path / "planet.json").read_text() == (EXAMPLES / "planet.json").read_text()


@pytest.mark.parametrize("name", ["balloon", "boat", "car"])
def test_the_preview_goes_along_the_paths_and_ends_where_it_begins(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    data, frames = drags(name), 80
    source = importlib.import_module("render_preview").RoundTrip(data, 0.5, frames)
    tracks = source.tracks_for(ChunkRequest(0, 0, frames + 1, data["width"] // 2, data["height"] // 2, 16, {}))
    held = tracks.points[:, : -len(data["pins"])]
    np.testing.assert_allclose(tracks.points[frames], tracks.points[0], atol=1e-3)
    away = [np.subtract(path["points"][-1], path["points"][0]) / 2 for path in data["paths"]]
    each = data["grid"]["size"] ** 2
    np.testing.assert_allclose(held[frames // 2] - held[0], np.repeat(away, each, axis=0), atol=1e-3)
    assert np.ptp(tracks.points[:, -len(data["pins"]) :], axis=0).max() == 0
    assert len(set(tracks.ids.tolist())) == tracks.N and tracks.visible.all()
    assert (tracks.points >= 0).all() and (tracks.points < (data["width"] / 2, data["height"] / 2)).all()
