"""Figures: what a G3D model looks like from any side, and what is no model."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionstream.training import figures, photos

QUAD = np.float32([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
ON_TEXTURE = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
TWO = np.uint32([0, 1, 2, 0, 2, 3])
COLOURS = {
    "right": (1, 0, 0), "left": (0, 1, 0), "top": (0, 0, 1), "bottom": (1, 1, 0), "front": (1, 0, 1), "back": (0, 1, 1),
}
SIDES = {
    "front": QUAD + (0, 0, 1), "back": QUAD - (0, 0, 1),
    "right": QUAD[:, [2, 1, 0]] + (1, 0, 0), "left": QUAD[:, [2, 1, 0]] - (1, 0, 0),
    "top": QUAD[:, [0, 2, 1]] + (0, 1, 0), "bottom": QUAD[:, [0, 2, 1]] - (0, 1, 0),
}


def mesh(frames, colour=(1, 1, 1), texture=None, corners=TWO):
    """A mesh as a G3D file has it; frames [F, 4, 3]."""
    frames = np.float32(frames)
    numbers = (len(frames), 4, len(corners), *colour, 0, 0, 0, 1, 1, 0, int(texture is not None))
    data = struct.pack("<64s3I8f2I", b"part", *numbers)
    if texture is not None:
        data += texture.encode().ljust(64, b"\0")
    data += frames.tobytes() + np.zeros_like(frames).tobytes()
    return data + (b"" if texture is None else ON_TEXTURE.tobytes()) + np.uint32(corners).tobytes()


def model(*meshes):
    return struct.pack("<3sBHB", b"G3D", 4, len(meshes), 0) + b"".join(meshes)


def read(tmp_path, data):
    path = tmp_path / "model.g3d"
    path.write_bytes(data)
    return figures.read_model(path)


def wedge(places):
    """How much wider these places lie apart, the lower the more."""
    return np.stack([1.5 - places[:, 1], *np.ones((2, len(places)))], 1)


def drawn(meshes, seed, side=64):
    return figures.draw(meshes, np.random.default_rng(seed), side)


def test_what_is_nearer_hides_what_is_farther(tmp_path):
    cube = read(tmp_path, model(*(mesh([SIDES[name]], COLOURS[name]) for name in SIDES)))
    seen = set()
    for seed in range(16):
        figure = drawn(cube, seed, 120)
        colours = figure[figure[..., 3] == 255][:, :3] > 40  # lit more or less, but never of another colour
        shown = {name for name, colour in COLOURS.items() if (colours == np.array(colour, bool)).all(1).mean() > 0.02}
        assert 1 <= len(shown) <= 3
        assert not any(pair <= shown for pair in ({"front", "back"}, {"left", "right"}, {"top", "bottom"}))
        seen |= shown
    assert seen >= set(COLOURS) - {"bottom"}  # turned all around, and never seen from far below


def test_a_figure_fills_its_picture_and_has_soft_edges(tmp_path):
    figure = drawn(read(tmp_path, model(mesh([QUAD]))), 3, 80)
    assert max(figure.shape[:2]) == 80 and figure.dtype == np.uint8
    assert all(figure[..., 3].any(axis)[:-1].all() for axis in (0, 1))
    assert ((figure[..., 3] > 0) & (figure[..., 3] < 255)).any()
    assert figure[figure[..., 3] > 0][:, :3].min() > 100  # no dark rim


def test_a_texture_is_upright_and_lets_its_party_through(tmp_path):
    texture = np.zeros((16, 16, 4), np.uint8)
    texture[:8] = 255, 255, 255, 255  # BGRA: white above, nothing below
    cv2.imwrite(str(tmp_path / "cloth.png"), texture)
    meshes = read(tmp_path, model(mesh([QUAD], texture="cloth.png")))
    below = []
    for seed in range(8):
        figure = drawn(meshes, seed)
        opaque = figure[..., 3] == 255
        rows = np.nonzero(opaque.any(1))[0]
        top, *_, bottom = np.array_split(rows[2:-2], 4)  # at its edges a texture begins anew
        above = figure[top][opaque[top]][:, :3]
        assert (np.ptp(above.astype(int), axis=1) <= 1).all() and above.min() > 100
        below.append(figure[bottom][opaque[bottom]][:, :3].mean(0))
    assert np.std(below, axis=0).min() > 10  # another party each time


def test_a_texture_is_looked_for_beside_the_model_only(tmp_path):
    cv2.imwrite(str(tmp_path / "secret.png"), np.full((4, 4, 3), 255, np.uint8))
    folder = tmp_path / "unit"
    folder.mkdir()
    (found,) = read(folder, model(mesh([QUAD], (1, 0, 0), texture="../secret.png")))
    assert found.texture is None
    assert drawn([found], 0)[..., 1:3].max() == 0


def test_figures_are_drawn_at_any_moment_of_their_motion(tmp_path):
    meshes = read(tmp_path, model(mesh([QUAD * (1, 4, 1), QUAD * (4, 0.2, 4)])))
    tall = [figure.shape[0] > figure.shape[1] for figure in (drawn(meshes, seed) for seed in range(20))]
    assert any(tall) and not all(tall)


def test_normals_that_are_no_numbers_leave_a_figure_in_the_shade(tmp_path):
    data = model(mesh([QUAD]))
    places = 7 + struct.calcsize("<64s3I8f2I")
    blank = data[: places + 48] + np.full(12, np.nan, np.float32).tobytes() + data[places + 96 :]
    with np.errstate(all="raise"):
        assert np.array_equal(drawn(read(tmp_path, blank), 1), drawn(read(tmp_path, data), 1))


@given(end=st.integers(0, 1000), junk=st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_damaged_model_is_none(tmp_path_factory, end, junk):
    whole = model(mesh([QUAD]), mesh([QUAD, QUAD], texture="cloth.png"))
    folder = tmp_path_factory.mktemp("models")
    assert read(folder, whole) is not None
    assert read(folder, whole[: min(end, len(whole) - 1)]) is None
    assert read(folder, b"G3D\3" + whole[4:]) is None
    found = read(folder, whole[:7] + junk + whole[7 + len(junk) :])
    assert found is None or drawn(found, 0).shape[2] == 4


@pytest.mark.parametrize("data", [
    b"", model(), model(mesh([QUAD], corners=TWO[:0])), model(mesh([QUAD], corners=TWO + 1)),
    model(mesh([QUAD * np.nan])), model(mesh(np.zeros((0, 4, 3)))),
], ids=["no file", "no mesh", "no triangle", "a corner too many", "nowhere", "no frame"])  # fmt: skip
def test_a_model_without_anything_to_draw_is_none(tmp_path, data):
    assert read(tmp_path, data) is None


def test_a_package_of_models_becomes_cutouts_with_their_licence(tmp_path):
    root = tmp_path / "unpacked"
    folder = root / "usr/share/units/ox/models"
    folder.mkdir(parents=True)
    cloth = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    cv2.imwrite(str(folder / "cloth.png"), cloth)
    box = [mesh([SIDES[name] * wedge(SIDES[name])], texture="cloth.png") for name in SIDES]
    (folder / "ox_walking.g3d").write_bytes(model(*box))
    (folder / "ox_broken_walking.g3d").write_bytes(model(*box)[:-9])
    (folder / "ox_dying.g3d").write_bytes(model(*box))
    package = photos.Package("herd", "CC-BY-SA-3.0", models=("*/units/*/models/*walk*.g3d",))

    manifest = photos.collect(root, package, tmp_path, [], set())

    assert {row["origin"].rpartition("/")[2] for row in manifest.values()} == {"ox_walking.g3d"}
    assert {row["licence"] for row in manifest.values()} == {"CC-BY-SA-3.0"}
    assert len(manifest) == photos.FIGURES == len({path.read_bytes() for path in tmp_path.glob("cutouts/*.png")})
    assert photos.collect(root, package, tmp_path, [], set()) == manifest
