"""`eval things`: what goes along with a drag, on a library that the test makes itself."""

import json
from threading import Lock
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from motionstream.cli import main
from motionstream.evaluation import things
from motionstream.machine import Choice
from motionstream.model.checkpoint import load_model
from motionstream.model.motion_prior import MotionPrior
from motionstream.model.presets import PRESETS


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A photo of a grey field with one thing, a bright disc with a stalk, and one that is too small."""
    folder = tmp_path_factory.mktemp("library")
    noise = np.random.default_rng(0).normal(0, 4, (384, 640, 3))
    photo = np.clip(90 + cv2.GaussianBlur(noise, (0, 0), 1.5), 0, 255).astype(np.uint8)
    mask, dot = np.zeros((384, 640), np.uint8), np.zeros((384, 640), np.uint8)
    cv2.circle(mask, (220, 190), 70, 255, cv2.FILLED)
    cv2.rectangle(mask, (280, 180), (420, 200), 255, cv2.FILLED)
    cv2.circle(dot, (560, 60), 6, 255, cv2.FILLED)
    photo[mask > 0] = (210, 60, 40)
    (folder / "photos").mkdir()
    (folder / "objects").mkdir()
    Image.fromarray(photo).save(folder / "photos/field.jpg", quality=95)
    for number, alpha in enumerate((mask, dot)):
        Image.fromarray(np.dstack([photo, alpha])).save(folder / f"objects/field-{number}.png")
    return folder


@pytest.fixture(scope="module")
def thing(library):
    (found,) = things.outlined(SimpleNamespace(preset=PRESETS["embedded"]), Choice(240), library)
    return found


def test_things_are_seen_at_the_size_of_the_stream(thing):
    assert thing.picture.shape == (192, 320, 3) and thing.share.shape == (96, 160)
    assert thing.whole[47, 55] and thing.whole[47, 100] and not thing.whole[47, 110] and thing.sure.mean() > 0.95
    assert thing.whole.mean() == pytest.approx((np.pi * 70**2 + 20 * 130) / (384 * 640), rel=0.05)


def test_a_thing_is_grabbed_in_its_middle_anywhere_and_at_points(thing):
    found = list(things.grabs(thing, np.random.default_rng(0)))
    assert [way for way, _ in found] == [things.WAYS[0]] + [way for way in things.WAYS[1:] for _ in range(4)]
    for way, tracks in found:
        assert tracks.N == 1 if way == things.WAYS[2] else 1 <= tracks.N <= 9
        columns, rows = (tracks.points[0] / things.CELL).astype(int).T
        assert thing.whole[rows, columns].all() and tracks.T == 2
        start = tracks.points[0, tracks.N // 2]
        aside = tracks.points[1] - tracks.points[0]
        np.testing.assert_allclose(np.abs(aside), [things.DRAG] * tracks.N, atol=1e-4)
        assert aside[0, 0] > 0 or start[0] > 130
    np.testing.assert_allclose(found[0][1].points[0].mean(0), (110, 95), atol=4)
    assert found[0][1].N == 9 and len({tuple(tracks.points[0].mean(0)) for _, tracks in found}) > 6


def test_ends_are_what_is_farthest_along_a_thing(thing):
    ends = things.far_ends(thing.whole)
    assert len(ends) == things.ENDS and all(thing.whole[end] for end in ends)
    assert ends[0][1] > 100  # the stalk's end
    assert min(np.hypot(*np.subtract(a, b)) for i, a in enumerate(ends) for b in ends[:i]) > 5
    fork = np.zeros((34, 40), bool)
    fork[24:] = True
    fork[5:24, 5:8] = fork[5:24, 9:12] = True
    tips = [column for row, column in things.far_ends(fork, 3) if row == 5]
    assert {column < 8 for column in tips} == {True, False}  # both, though they are near each other through the air


def test_scores_of_known_followers(thing):
    everything = np.ones_like(thing.whole)
    size = (thing.whole & thing.sure).sum()
    assert things.score(thing.whole, thing) == {"overlap": 1, "follows": 1, "ends": 1, "along": 0}
    assert set(things.score(~everything, thing).values()) == {0}
    all_of_it = things.score(everything, thing)
    assert all_of_it["follows"] == all_of_it["ends"] == 1
    assert all_of_it["overlap"] == pytest.approx(size / thing.sure.sum())
    assert all_of_it["along"] == pytest.approx((thing.sure.sum() - size) / size)
    disc = thing.whole.copy()
    disc[:, 80:] = False  # without the stalk
    assert 0.7 < things.score(disc, thing)["follows"] < 0.95 and 0.5 < things.score(disc, thing)["ends"] < 0.9


def test_what_moves_half_as_far_as_the_drag_follows(thing):
    share = torch.linspace(0, 1, 96 * 160)

    class Prior:
        def start(self, image, sharp):
            assert image.shape == (3, 192, 320) and sharp.shape == (3, 384, 640)
            assert all(-1 <= picture.min() < picture.max() <= 1 for picture in (image, sharp))
            return "state"

        def motion(self, state, tracks):
            return torch.tensor(tracks.points[1] - tracks.points[0]).mean(0) * share[None, :, None]

    model = SimpleNamespace(motion_prior=Prior(), dtype=torch.float32, device=torch.device("cpu"), turn=Lock())
    tracks = next(things.grabs(thing, np.random.default_rng(0)))[1]
    follows = things.following(model, thing, tracks)
    np.testing.assert_array_equal(follows.ravel(), share.numpy() >= 0.5)


def test_the_bundled_student_takes_the_thing_along_and_leaves_the_field(library, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["eval", "things", str(library), "--json", "--sheet", str(sheet)]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["table"] == "things" and out["runs"] == 1 and list(out["methods"]) == list(things.WAYS)
    grid = out["methods"][things.WAYS[0]]
    assert grid["overlap"] > 0.6 and grid["follows"] > 0.8 and grid["along"] < 0.4
    assert np.asarray(Image.open(sheet)).shape[1] == 4 * 260


def test_a_folder_without_things_is_refused(library, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "things", str(tmp_path)]) == 2
    assert "no photos in" in capsys.readouterr().err
    (tmp_path / "photos").symlink_to(library / "photos")
    assert main(["eval", "things", str(tmp_path)]) == 2
    assert "no outlined thing" in capsys.readouterr().err


def test_a_model_without_a_motion_prior_is_refused(library, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_model("embedded")
    model.motion_prior = None
    monkeypatch.setattr(things, "load_model", lambda *_: model)
    assert main(["eval", "things", str(library)]) == 2
    assert "embedded has no motion prior" in capsys.readouterr().err


def test_another_prior_can_be_measured(library, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    MotionPrior(widths=(8, 8), features=4).save_pretrained(tmp_path / "motion_prior")
    results = []
    for options in ([], ["--prior", str(tmp_path)]):
        assert main(["eval", "things", str(library), "--json", *options]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1])["methods"])
    assert results[0] != results[1]
    assert main(["eval", "things", str(library), "--prior", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
