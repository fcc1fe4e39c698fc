"""The picture library: selection from an unpacked package, trimming, manifest, objects, reading back."""

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from motionstream.errors import InputError
from motionstream.training import photos

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 The Makers
License: GPL-2+

Files: pictures/shore.png
Copyright: 2021 A. Person
License: CC-BY-SA-4.0
 Text of the licence.

Files: pictures/closed.jpg
Copyright: 2022 B. Person
License: CC-BY-NC-4.0
"""
PACKAGE = photos.Package("fake", "GPL-2+", photos=("*/pictures/*",), cutouts=("*/stamps/*",), reject=("*/letters/*",))


def scenery(seed, height=300, width=400):
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(seed + 1).normal(0, 6, smooth.shape)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def stamp(height=120, width=200):
    image = np.dstack([scenery(5, height, width), np.zeros((height, width), np.uint8)])
    cv2.ellipse(alpha := image[..., 3].copy(), (90, 60), (60, 40), 0, 0, 360, 255, cv2.FILLED)
    image[..., 3] = alpha
    return image


@pytest.fixture
def unpacked(tmp_path):
    root = tmp_path / "unpacked" / "fake"
    for folder in ("usr/share/doc/fake", "usr/share/pictures", "usr/share/stamps/letters"):
        (root / folder).mkdir(parents=True)
    (root / "usr/share/doc/fake/copyright").write_text(COPYRIGHT)
    return root


def collect(root, out):
    return photos.collect(root, PACKAGE, out, [], set())


def test_photos_are_selected_resized_and_listed_with_their_own_licence(unpacked, tmp_path):
    folder = unpacked / "usr/share/pictures"
    Image.fromarray(scenery(0, 700, 1100)).save(folder / "shore.jpg")  # the source has it as .png
    Image.fromarray(scenery(0, 700, 1100)[::2, ::2]).save(folder / "shore-small.jpg")  # the same picture again
    Image.fromarray(scenery(1)).save(folder / "hill.png")
    Image.fromarray(scenery(2)).save(folder / "closed.jpg")  # a licence that is not free
    Image.fromarray(scenery(3, 90, 120)).save(folder / "tiny.png")
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(folder / "plain.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")

    manifest = collect(unpacked, tmp_path)

    rows = {row["origin"].rpartition("/")[2]: (name, row) for name, row in manifest.items()}
    assert set(rows) == {"hill.png", "shore-small.jpg"} or set(rows) == {"hill.png", "shore.jpg"}
    assert rows["hill.png"][1] == {"package": "fake", "licence": "GPL-2+", "copyright": "2020 The Makers",
                                   "origin": "usr/share/pictures/hill.png"}
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.glob("photos/*")} == set(manifest)
    assert all(min(Image.open(tmp_path / name).size) <= photos.PHOTO_SIDE for name in manifest)


def test_the_copyright_file_is_matched_on_path_ends_whatever_the_format(unpacked):
    notices = photos.read_notices(unpacked)
    find = lambda path: photos.licence_of(notices, photos.Path(path), "none given")  # noqa: E731
    assert find("usr/share/pictures/shore.webp") == ("CC-BY-SA-4.0", "2021 A. Person")
    assert find("usr/share/other/shore.webp") == ("GPL-2+", "2020 The Makers")
    assert photos.licence_of([], photos.Path("a.png"), "CC0-1.0") == ("CC0-1.0", "")


def test_large_photos_give_tiles_that_do_not_overlap():
    image = np.arange(900 * 1200, dtype=np.int32).reshape(900, 1200)
    whole, *tiles = photos.views(image)
    assert whole is image and len(tiles) == 6
    assert np.array_equal(np.sort(np.concatenate([tile.ravel() for tile in tiles])), image.ravel())
    assert len(list(photos.views(image[:800]))) == 1


def test_cutouts_are_trimmed_to_their_alpha_box_and_shrunk(unpacked, tmp_path):
    Image.fromarray(stamp()).save(unpacked / "usr/share/stamps/egg.png")
    Image.fromarray(stamp()).save(unpacked / "usr/share/stamps/letters/o.png")
    manifest = collect(unpacked, tmp_path)
    assert [row["origin"] for row in manifest.values()] == ["usr/share/stamps/egg.png"]
    image = np.asarray(Image.open(tmp_path / next(iter(manifest))))
    assert image.shape == (81, 121, 4)
    big = photos.trim_cutout(cv2.resize(stamp(), None, fx=5, fy=5))
    assert max(big.shape[:2]) == photos.CUTOUT_SIDE and big[..., 3].max() == 255


def test_hidden_colours_do_not_bleed_into_a_shrunk_cutout():
    image = np.zeros((600, 600, 4), np.uint8)
    image[..., 1] = 255  # green where nothing shows
    cv2.circle(alpha := image[..., 3].copy(), (300, 300), 290, 255, cv2.FILLED)
    image[..., 3] = alpha
    image[alpha > 0, :3] = np.array([200, 0, 90])
    image[:300][alpha[:300] > 0, 0] = 120
    cutout = photos.trim_cutout(image)
    assert cutout[cutout[..., 3] > 0][:, 1].max() == 0


@pytest.mark.parametrize("spoil", [
    lambda image: image[..., 3].fill(0),  # nothing to see
    lambda image: image[..., 3].fill(255),  # a rectangle
    lambda image: image[..., :3].fill(0),  # a silhouette
    lambda image: image[:, 85:100].fill(0),  # two pieces
    lambda image: image[..., :3].__imul__((image[..., :3] > 127) * np.uint8(0)),
])
def test_what_is_no_solid_coloured_object_is_rejected(spoil):
    image = stamp()
    spoil(image)
    assert photos.trim_cutout(image) is None


@pytest.fixture
def egg(tmp_path):
    """A library with one photo: the photo, where its thing is, and an outline of that."""
    photo = (scenery(7, 240, 312) // 4 + 20).astype(np.uint8)
    truth = np.zeros((240, 312), np.uint8)
    cv2.ellipse(truth, (150, 120), (60, 45), 20, 0, 360, 1, cv2.FILLED)
    photo[truth > 0] = scenery(8, 240, 312)[truth > 0] // 4 + np.array([180, 120, 10], np.uint8)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    turn = np.array([[np.cos(0.349), np.sin(0.349)], [-np.sin(0.349), np.cos(0.349)]])
    drawn = np.stack([61.5 * np.cos(angle), 46.5 * np.sin(angle)], 1) @ turn + (150, 120)  # a little outside
    outline = drawn / (312, 240)
    for folder in ("photos", "cutouts"):
        (tmp_path / folder).mkdir()
    Image.fromarray(photo).save(tmp_path / "photos/egg.jpg", quality=95)
    Image.fromarray(stamp()).save(tmp_path / "cutouts/stamp.png")
    return photo, truth > 0, outline


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_what_is_outlined_in_a_photo_is_cut_out_and_read_back(egg, tmp_path):
    _, truth, outline = egg
    assert photos.write_objects(tmp_path, {"egg": [outline], "of a package left out": [outline]}) == 1
    library = photos.load_library(tmp_path)

    (index, mask), = library.objects
    assert index == 0 and mask.dtype == np.uint8 and mask.shape == library.photos[0].shape[:2] == (240, 312)
    assert overlap(mask > 127, truth) > 0.97
    assert [image.shape for image in library.cutouts] == [(120, 200, 4)]


def test_an_outline_is_drawn_to_the_edge_that_is_near(egg):
    photo, truth, outline = egg
    drawn = np.zeros(truth.shape, np.uint8)
    cv2.fillPoly(drawn, [np.round(outline * (312, 240)).astype(np.int32)], 1)
    assert overlap(photos.cut_out(photo, outline), truth) > overlap(drawn > 0, truth)


def test_what_is_thin_stays_as_it_was_drawn():
    photo = scenery(1, 240, 312) // 8 + np.uint8(100)
    cv2.circle(photo, (80, 100), 40, (230, 40, 30), cv2.FILLED)
    outline = cv2.ellipse2Poly((80, 100), (40, 40), 0, 2, 358, 4)
    rope = np.array([[300, 99], [300, 101]])  # of the background's colours
    mask = photos.cut_out(photo, np.concatenate([outline, rope]) / (312, 240))
    assert mask[99:101, 130:290].all() and not mask[90:97, 130:].any() and not mask[104:, 130:].any()
    assert overlap(mask[:, :125], cv2.circle(np.zeros((240, 125), np.uint8), (80, 100), 40, 1, cv2.FILLED) > 0) > 0.95


def test_the_outlines_lie_within_their_photos():
    parts = photos.read_outlines()
    assert set(parts) == {"", photos.HELD_OUT} and len(parts[""]) > 100 and len(parts[photos.HELD_OUT]) > 20
    for outline in (outline for part in parts.values() for things in part.values() for outline in things):
        assert outline.shape[1] == 2 and len(outline) >= 6 and outline.min() >= 0 and outline.max() <= 1
        assert 0.002 < cv2.contourArea(outline.astype(np.float32)) < 0.9


def test_photos_held_out_are_a_library_of_their_own(unpacked, tmp_path, monkeypatch):
    for seed, name in enumerate(("hill", "shore")):
        Image.fromarray(scenery(seed, 960, 1200)).save(unpacked / f"usr/share/pictures/{name}.jpg")
    square = np.array([[0.2, 0.2], [0.6, 0.2], [0.6, 0.7], [0.2, 0.7]])
    names = [f"fake-usr-share-pictures-{name}-0" for name in ("hill", "shore")]
    monkeypatch.setattr(photos, "read_outlines", lambda: {"": {names[0]: [square]}, "held-out": {names[1]: [square]}})
    pictures, objects = photos.write_library(tmp_path, [PACKAGE])
    own, held_out = photos.load_library(tmp_path), photos.load_library(tmp_path / "held-out")
    assert pictures == len(own.photos) + len(held_out.photos) and objects == 2
    assert len(own.objects) == len(held_out.objects) == 1 and len(held_out.photos) > 1  # with its tiles
    assert not any("shore" in path.name for path in tmp_path.glob("photos/*"))
    assert not any("hill" in path.name for path in tmp_path.glob("held-out/photos/*"))
    assert all((tmp_path / name).exists() for name in json.loads((tmp_path / "LICENCES.json").read_text()))
    # Outlines that are others the next time change the library that is there.
    monkeypatch.setattr(photos, "read_outlines", lambda: {"": {names[1]: [square]}, "held-out": {names[0]: [square]}})
    photos.write_library(tmp_path, [PACKAGE])
    own, held_out = photos.load_library(tmp_path), photos.load_library(tmp_path / "held-out")
    assert pictures == len(own.photos) + len(held_out.photos) and len(own.objects) == len(held_out.objects) == 1
    assert not any("hill" in path.name for path in tmp_path.glob("photos/*"))


def test_a_missing_library_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="--out"):
        photos.load_library(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("amiss", "message"),
    [
        ("photos/b.jpg", "b.jpg is damaged or no RGB picture: remove it"),
        ("cutouts/c.png", "c.png is damaged or no RGBA picture"),
        ("objects/a-0.png", "a-0.png is damaged"),
        ("photos/a.jpg", "a-0.png is of no photo in"),
    ],
)
def test_what_is_amiss_in_a_library_is_named(tmp_path, amiss, message):
    for name, channels in (("photos/a.jpg", 3), ("photos/b.jpg", 3), ("cutouts/c.png", 4), ("objects/a-0.png", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, channels), np.uint8)).save(tmp_path / name)
    assert len(photos.load_library(tmp_path).objects) == 1
    whole = (tmp_path / amiss).read_bytes()
    (tmp_path / amiss).write_bytes(whole[: len(whole) // 2])
    if "no photo" in message:
        (tmp_path / amiss).unlink()
    with pytest.raises(InputError, match=message):
        photos.load_library(tmp_path)


def test_without_apt_the_tool_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get is not on this machine"):
        photos.unpack("fake", tmp_path / "unpacked")


def test_a_package_that_did_not_fit_is_unpacked_anew(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (("apt-get", "touch $2.deb"), ("dpkg", "mkdir $3; touch $3/half; test -e ROOM || exit 2")):
        (tools / name).write_text(f"#!/bin/sh\n{script.replace('ROOM', str(tmp_path / 'room'))}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="dpkg.* failed.*make room"):
        photos.unpack("fake", Path("unpacked"))
    assert not list(Path("unpacked").iterdir())
    (tmp_path / "room").touch()
    assert list(photos.unpack("fake", Path("unpacked")).iterdir()) == [tmp_path / "unpacked/fake/half"]


def test_the_command_writes_pictures_objects_and_licences(unpacked, tmp_path, monkeypatch, capsys):
    Image.fromarray(scenery(0)).save(unpacked / "usr/share/pictures/hill.png")
    absent = photos.Package("no-such-package-anywhere", "GPL-2+", photos=("*",))
    monkeypatch.setattr(photos, "PACKAGES", (absent, PACKAGE))
    monkeypatch.setattr(sys, "argv", ["photos", "--out", str(tmp_path)])
    photos.main()
    assert "left out: " in capsys.readouterr().err
    assert list(json.loads((tmp_path / "LICENCES.json").read_text())) == [
        f"photos/{path.name}" for path in tmp_path.glob("photos/*")]
    assert len(photos.load_library(tmp_path).photos) == 1
    gone = {"photos/gone.jpg": {}}  # of a picture that somebody has removed
    (tmp_path / "LICENCES.json").write_text(json.dumps(json.loads((tmp_path / "LICENCES.json").read_text()) | gone))
    other = photos.Package("other", "CC0-1.0", photos=("*/pictures/*",))
    monkeypatch.setattr(photos, "unpack", lambda name, _: unpacked)
    monkeypatch.setattr(photos, "PACKAGES", (other,))
    photos.main()  # pictures that stay keep their licences
    assert sorted(json.loads((tmp_path / "LICENCES.json").read_text())) == sorted(
        f"photos/{path.name}" for path in tmp_path.glob("photos/*"))
    assert len(list(tmp_path.glob("photos/*"))) == 2


def test_the_command_without_apt_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["photos", "--out", str(tmp_path), "--packages", "scratch"])
    with pytest.raises(SystemExit) as stopped:
        photos.main()
    assert stopped.value.code == 2 and "run this tool on Debian" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_the_command_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photos, "unpack", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["photos", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as stopped:
        photos.main()
    assert stopped.value.code == 2 and f"cannot write {tmp_path / 'file'}: " in capsys.readouterr().err


def test_pictures_are_read_out_of_qt_resource_files():
    names, name_at = b"", []
    for name in ("animals", "cat.png", "notes.txt"):
        name_at.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    packed = struct.pack(">I", 3) + zlib.compress(b"cat")
    contents = struct.pack(">I", len(packed)) + packed
    node = lambda name, flags, first, second: struct.pack(">IHII8x", name, flags, first, second)  # noqa: E731
    tree = (node(0, 2, 1, 1) + node(name_at[0], 2, 2, 2) + node(name_at[1], 1, 0, 0) + node(name_at[2], 0, 0, 0))
    head = 20
    data = b"qres" + struct.pack(">4I", 2, head, head + len(tree), head + len(tree) + len(contents)) + tree + contents
    assert list(photos.resources(data + names)) == [("animals/cat.png", b"cat")]
