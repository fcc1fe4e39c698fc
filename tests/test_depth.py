"""Depth: files of every kind in and hostile ones refused, planes as a box, learned models through their own classes."""

import io
import pickle
import struct
import sys
import zlib
from fractions import Fraction
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import av
import cv2
import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from motionstream.controls import depth as depths
from motionstream.controls.depth import (
    RANGE,
    DepthAnything,
    DepthMap,
    MoGe,
    aligned,
    completed,
    depth_from_values,
    depth_picture,
    fit_depth,
    from_nearness,
    guess_bright_is_near,
    read_depth,
)
from motionstream.controls.paths import rigid
from motionstream.controls.pinhole import Camera, Surface, pixel_grid
from motionstream.controls.planes import OPEN, ScenePlanes, Standing, guess_planes, upright
from motionstream.errors import InputError
from motionstream.machine import Choice, fit_pictures
from motionstream.model.presets import PRESETS
from motionstream.video import read_image

WIDTH, HEIGHT = 90, 60
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
FACING = Camera.facing(WIDTH, HEIGHT, 70.0)
RAMP = np.linspace(1, 9, 40 * 51).reshape(40, 51)


def png(values, mode=None):
    file = io.BytesIO()
    Image.fromarray(values, mode).save(file, format="PNG")
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def exr(values, pixel_format="grayf32le", kind="float"):
    encoder = av.codec.CodecContext.create("exr", "w")
    encoder.height, encoder.width = values.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.options = pixel_format, Fraction(1, 25), {"format": kind}
    frame = av.VideoFrame.from_ndarray(values, format=pixel_format)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))


# --- files ---------------------------------------------------------------------------------------------------------


def test_depth_files_say_what_was_written():
    eight, sixteen = (RAMP * 20).astype(np.uint8), (RAMP * 5000).astype(np.uint16)
    assert np.array_equal(read_depth(png(eight)), eight)
    assert np.array_equal(read_depth(png(sixteen)), sixteen)
    assert np.array_equal(read_depth(png(np.stack([eight] * 3, axis=-1))), eight)
    for kind in (np.float16, np.float32, np.float64, np.uint16, np.int32):
        assert np.array_equal(read_depth(npy(RAMP.astype(kind))), RAMP.astype(kind))
    assert np.array_equal(read_depth(npy(RAMP[..., None])), RAMP)


@pytest.mark.parametrize(("kind", "number"), [("float", np.float32), ("half", np.float16)])
def test_exr_files_of_either_kind_say_what_was_written(kind, number):
    single = RAMP.astype(number).astype(np.float32)
    several = np.stack([single, single * 2, single * 3, single * 4], axis=-1)
    for values, pixels in ((single, "grayf32le"), (several[..., :3], "gbrpf32le"), (several, "gbrapf32le")):
        assert np.array_equal(read_depth(exr(values, pixels, kind)), single)


def test_exr_numbers_of_another_kind_are_named():
    with pytest.raises(InputError, match="numbers are rgb24: save it as half or float"):
        depths._first_channel(av.VideoFrame(8, 8, "rgb24"))


def test_what_is_no_number_is_nowhere():
    values = RAMP.copy()
    values[3, 4], values[5, 6], values[7, 8] = np.nan, np.inf, -np.inf
    for data in (npy(values), exr(values.astype(np.float32))):
        read = read_depth(data)
        assert np.isnan(read[[3, 5, 7], [4, 6, 8]]).all() and np.isnan(read).sum() == 3
        depth = depth_from_values(read, bright_is_near=False)
        assert np.isfinite(depth).all() and depth[3, 4] == pytest.approx(RAMP[3, 4], rel=0.2)


def bomb(width, height):
    """A PNG that claims to be large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_chunk(name, data):
    """A PNG with another chunk before its end."""
    whole = png(np.zeros((4, 4), np.uint8))
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return whole[:-12] + chunk + whole[-12:]


def test_weights_whose_download_breaks_off_are_not_there(monkeypatch):
    def broken(*args, **options):
        raise httpx.ReadError("the connection was lost")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert not DepthAnything().fetch()


def test_a_folder_that_a_broken_download_left_is_not_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    model = DepthAnything()
    for name, whole in (("config.json", False), ("preprocessor_config.json", False), ("model.safetensors", True)):
        (tmp_path / name).write_text("{}")
        assert model.ready() == whole
        says = "cannot be read: .*; delete" if whole else "cannot be had here"
        with pytest.raises(InputError, match=f"the weights of depth-anything.* {says}"):
            model.estimate(np.zeros((28, 28, 3), np.uint8), None, None, None)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", png(np.zeros((4, 4), np.uint8))[:45], bomb(60_000, 60_000), bomb(5_000, 10),
        npy(RAMP)[:200], npy(RAMP)[:8], npy(np.zeros(4)), npy(np.zeros((2, 3, 4))), npy(np.zeros((0, 5))),
        npy(np.array([["a"]])), npy(np.zeros((2, 2), complex)), npy(np.array([[Evil()]], object)),
        npy(np.zeros((1, 5000))),
        npy(RAMP).replace(b"(40, 51)", b"(40, 51("), npy(RAMP).replace(b"(40, 51)", b"(99999, )"),
        b"\x93NUMPY\x09\x00" + b"x" * 100,
        with_chunk(b"gAMA", b""), with_chunk(b"tRNS", b""), with_chunk(b"cHRM", b"12345"), with_chunk(b"iCCP", b""),
        exr(RAMP.astype(np.float32))[:300], b"v/1\x01" + b"\0" * 50,
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_damaged_and_hostile_depth_files_are_refused(data):
    with pytest.raises(InputError):
        read_depth(data)


def test_an_exr_that_claims_to_be_huge_is_refused_before_it_is_unpacked():
    data = exr(RAMP.astype(np.float32))
    window = struct.pack("<4i", 0, 0, 50, 39)
    assert data.count(window) == 2
    with pytest.raises(InputError):
        read_depth(data.replace(window, struct.pack("<4i", 0, 0, 200_000, 200_000)))


@pytest.mark.parametrize("values", [np.full((3, 3), np.nan), np.zeros((3, 3)), -np.ones((3, 3))])
def test_a_map_without_any_depth_is_refused(values):
    with pytest.raises(InputError):
        depth_from_values(values, bright_is_near=False)


def test_brightness_can_mean_near_or_far():
    floor = np.repeat(np.linspace(10, 250, 40)[:, None], 50, axis=1)  # bright at the bottom
    assert guess_bright_is_near(floor) and not guess_bright_is_near(floor[::-1])
    near, far = depth_from_values(floor, True), depth_from_values(floor, False)
    assert (np.diff(near[:, 0]) < 0).all() and (np.diff(far[:, 0]) > 0).all()
    assert near.max() == pytest.approx(1) and near.min() == pytest.approx(1 / RANGE)
    assert np.array_equal(far, floor)  # its own unit is kept


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_completing_keeps_what_is_known_and_is_always_a_depth(data):
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    values = np.array(data.draw(st.lists(
        st.one_of(st.floats(0.1, 100), st.sampled_from([0.0, -1.0, np.nan, np.inf])),
        min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape)
    good = np.isfinite(values) & (values > 0)
    if not good.any():
        return
    full = completed(values)
    assert np.array_equal(full[good], values[good]) and np.isin(full, values[good]).all()


def test_one_factor_aligns():
    known = np.full((6, 9), np.nan)
    known[2:, :5] = 3.0
    assert np.allclose(aligned(np.full((HEIGHT, WIDTH), 0.5), known), 3)
    assert np.allclose(aligned(RAMP, np.full((6, 9), np.nan)), RAMP)
    assert from_nearness(np.ones((3, 3))).tolist() == np.ones((3, 3)).tolist()  # no order at all


def test_a_map_of_the_photograph_is_cropped_as_the_photograph_is():
    photo = np.arange(100 * 300, dtype=float).reshape(100, 300)
    assert np.array_equal(fit_depth(photo, 64, 64), photo[:, 100:200])
    assert np.array_equal(fit_depth(photo.T, 64, 64), photo.T[100:200])
    large = np.zeros((2000, 4000))
    large[1000:] = 1
    small = fit_depth(large, 320, 160)
    assert small.shape == (500, 1000) and (small[:250] == 0).all() and (small[250:] == 1).all()


def test_depth_picture_shows_near_bright():
    picture = depth_picture(np.repeat(np.linspace(9, 1, 30)[:, None], 20, axis=1))
    assert picture.shape == (30, 20, 3) and picture.dtype == np.uint8
    assert picture[-1].astype(int).sum() > picture[0].astype(int).sum() + 1000
    assert depth_picture(np.ones((4, 5))).std() == 0 or depth_picture(np.ones((4, 5))).std(axis=(0, 1)).max() == 0


# --- planes --------------------------------------------------------------------------------------------------------


def test_the_box_is_deepest_at_the_back_wall_and_its_planes_are_planes():
    room = ScenePlanes(0.3, 0.25, 0.7, 0.75)
    assert room.vanishing_point == (0.5, 0.5)
    depth = room.estimate(IMAGE, FACING, FACING, None)
    assert np.allclose(depth[16:44, 28:62], 1) and depth.max() == 1
    assert depth[-1, WIDTH // 2] == pytest.approx(0.5, rel=0.05) == depth[0, WIDTH // 2]  # (0.75 - 0.5) / (1 - 0.5)
    places = pixel_grid(WIDTH, HEIGHT, 1)
    floor = places[(places[:, 1] > 48) & (abs(places[:, 0] - 45) < 12)]
    points = Surface(FACING, depth, WIDTH, HEIGHT).lift(floor)
    normal = np.linalg.svd(points - points.mean(axis=0))[2][2]
    assert abs((points - points.mean(axis=0)) @ normal).max() < 1e-9


def test_an_open_scene_has_a_floor_and_nothing_else():
    depth = ScenePlanes(bottom=0.5).estimate(IMAGE, FACING, FACING, None)
    assert np.allclose(depth[:30], 1) and (np.diff(depth[31:, 0]) < 0).all()
    assert np.allclose(depth, depth[:, :1])
    assert 1 / depth[-1, 0] == pytest.approx(OPEN, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(x=st.floats(-0.1, 0.1), y=st.floats(-0.05, 0.1), z=st.floats(-0.3, 0.3), turn=st.floats(-0.4, 0.4))
def test_another_camera_sees_the_same_box(x, y, z, turn):
    """What a moved camera sees at a pixel is where a point of the first view's surface lands, at its depth."""
    room = ScenePlanes(0.3, 0.25, 0.7, 0.7)
    moved = FACING.moved(rigid((0.1 * turn, turn, 0), (x, y, z)))
    places = pixel_grid(WIDTH, HEIGHT, 7)
    world = Surface(FACING, room.estimate(IMAGE, FACING, FACING, None), WIDTH, HEIGHT).lift(
        np.floor(places) + 0.5)  # pixel centres, whose depth the map holds
    pixels, z = moved.project(world)
    inside = (z > 0.1) & ((pixels >= 2) & (pixels < (WIDTH - 2, HEIGHT - 2))).all(axis=1)
    seen = Surface(moved, room.estimate(IMAGE, moved, FACING, None), WIDTH, HEIGHT)
    assert np.abs(seen.depth_at(pixels[inside]) / z[inside] - 1).max(initial=0) < 0.12  # half a pixel of near floor


@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (0.5, 0, 0.51, 1), (-1, 0, 1, 1), (0, 0, 1, np.nan), (0, 0, "1", 1)])
def test_a_back_wall_without_area_is_refused(sides):
    with pytest.raises(InputError, match="back wall"):
        ScenePlanes(*sides)


def test_the_guess_finds_a_horizon_and_a_corridor():
    rng = np.random.default_rng(0)
    beach = np.full((120, 180, 3), (120, 170, 230), np.uint8)
    beach[78:] = (200, 180, 130)
    guess = guess_planes(np.clip(beach + rng.normal(0, 6, beach.shape), 0, 255).astype(np.uint8))
    assert guess.bottom == pytest.approx(0.65, abs=0.02) and (guess.left, guess.top, guess.right) == (0, 0, 1)
    corridor = np.full((160, 240, 3), 128, np.uint8)
    middle = np.array([140, 70])
    for end in ((0, 0), (0, 60), (0, 159), (80, 159), (239, 159), (239, 70), (239, 0), (60, 0), (239, 120), (0, 110)):
        cv2.line(corridor, tuple(int(v) for v in middle + (np.array(end) - middle) * 0.15), end, (20, 20, 20), 2)
    guess = guess_planes(corridor)
    x, y = guess.vanishing_point
    assert abs(x * 240 - 140) < 12 and abs(y * 160 - 70) < 12 and guess.left > 0.2
    assert guess_planes(np.zeros((50, 70, 3), np.uint8)).right == 1  # a flat picture is no error
    few = np.full((160, 160, 3), 128, np.uint8)
    for way in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        cv2.line(few, *((80 + np.array(way) * far).tolist() for far in (15, 50)), (20, 20, 20), 2)
    assert guess_planes(few).left == 0  # a few short lines are no corridor


def test_a_thing_stands_at_the_depth_of_its_foot():
    depth = ScenePlanes(bottom=0.5).estimate(IMAGE, FACING, FACING, None)  # the floor begins at row 30
    number = np.zeros((HEIGHT // 2, WIDTH // 2), int)
    number[10:20, 5:9] = 1  # from above the floor's far edge to row 39
    number[8:19, 31] = 2  # fewer than make a thing
    number[2:9, 18:28] = 3  # in the air
    number[12:, 36:] = 4  # cut off by the picture's edge
    found = upright(depth, number)
    thing = np.kron(number, np.ones((2, 2), int))
    for which, foot in ((1, 38), (4, 58)):  # the upper of the two rows of the lowest cells
        assert np.array_equal(found[thing == which], np.minimum(depth, depth[foot, 0])[thing == which])
    rest = ~np.isin(thing, [1, 4])
    assert np.array_equal(found[rest], depth[rest])
    assert np.array_equal(upright(depth, 0 * number), depth)


def test_a_thing_stays_nearer_where_a_wall_is():
    depth = np.full((40, 40), 1.0)
    depth[:, :10] = 0.3
    number = np.zeros((20, 20), int)
    number[5:15, 3:12] = 1
    assert np.array_equal(upright(depth, number), depth)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 400), (192, 320), (1000, 60)])
def test_things_are_sought_in_pictures_of_all_sizes(size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes, camera = ScenePlanes(), Camera.facing(*size[::-1], 70.0)
    depth, bare = (one.estimate(picture, camera, camera, None) for one in (Standing(planes), planes))
    assert depth.shape == size and (depth > 0).all() and (depth <= bare).all()


def test_the_example_car_stands_on_its_table():
    photo = read_image(Path(__file__).parent.parent / "examples" / "car.jpg")
    image, _ = fit_pictures(PRESETS["embedded"], Choice(240), photo)
    height, width = image.shape[:2]
    planes, camera = guess_planes(image), Camera.facing(width, height, 250.0)
    made = pickle.loads(pickle.dumps(Standing(planes)))
    assert made == Standing(planes)
    depth, bare = (one.estimate(image, camera, camera, None) for one in (made, planes))

    def at(x, y):
        return int(y * height), int(x * width)

    car = [at(0.45, 0.33), at(0.38, 0.6), at(0.6, 0.65), at(0.65, 0.75)]  # luggage, door, bonnet, front wheel
    assert len({depth[place] for place in car}) == 1 and depth[car[0]] < 0.8 * bare[car[0]]
    others = [at(0.1, 0.2), at(0.9, 0.3), at(0.1, 0.9), at(0.9, 0.95)]  # lights and table
    assert all(depth[place] == bare[place] for place in others)


@pytest.mark.parametrize("budget", [84, 190, 240])
@pytest.mark.parametrize("name", ["balloon", "boat", "car", "koi", "ladybird", "planet"])
def test_no_example_is_taken_for_a_corridor(name, budget):
    photo = read_image(Path(__file__).parent.parent / "examples" / f"{name}.jpg")
    pictures = fit_pictures(PRESETS["embedded"], Choice(budget), photo)
    assert [guess_planes(picture).left for picture in (photo, *pictures)] == [0, 0, 0]


# --- uploaded and learned ------------------------------------------------------------------------------------------


def test_an_uploaded_map_goes_on_from_what_is_still_to_be_seen():
    given = DepthMap(RAMP)
    assert given.estimate(IMAGE, FACING, FACING, None) is RAMP
    known = np.full((6, 9), np.nan)
    known[:, :4] = 2.0
    assert (given.estimate(IMAGE, FACING, FACING, known) == 2).all()
    nothing = given.estimate(IMAGE, FACING, FACING, np.full((6, 9), np.nan))  # the camera has turned round
    assert np.allclose(nothing, np.median(RAMP))
    assert np.array_equal(pickle.loads(pickle.dumps(given)).depth, RAMP)


@pytest.fixture(scope="module")
def tiny_depth_anything(tmp_path_factory):
    """Depth Anything's own architecture, a few channels wide, in the layout of its repository."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=518, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth-anything")
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return str(folder)


def test_depth_anything_through_its_own_class(tiny_depth_anything):
    model = DepthAnything(tiny_depth_anything)
    assert model.ready()
    image = np.random.default_rng(0).integers(0, 255, (28, 42, 3)).astype(np.uint8)
    depth = model.estimate(image, FACING, FACING, None)
    assert depth.shape == (28, 42) and depth.dtype == np.float64
    assert depth.max() == pytest.approx(1) and depth.min() >= 1 / RANGE
    again = pickle.loads(pickle.dumps(model)).estimate(image, FACING, FACING, np.full((4, 6), 7.0))
    assert np.median(cv2.resize(again, (6, 4), interpolation=cv2.INTER_AREA)) == pytest.approx(7, rel=1e-3)


def test_depth_that_cannot_be_had_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(depths, "_folder", lambda name, local: None)
    for model in (DepthAnything("nobody/nothing"), MoGe("nobody/nothing")):
        assert not model.ready()
        with pytest.raises(InputError, match="weights|package"):
            model.estimate(IMAGE, FACING, FACING, None)


def test_moge_through_a_stand_in_of_its_package(monkeypatch, tmp_path):
    class MoGeModel:
        @classmethod
        def from_pretrained(cls, path):
            assert path == tmp_path / "model.pt"
            return cls()

        def eval(self):
            return self

        def infer(self, image, fov_x):
            assert image.shape == (3, HEIGHT, WIDTH) and 0 <= image.min() and image.max() <= 1
            assert fov_x == pytest.approx(np.degrees(2 * np.arctan(WIDTH / 2 / 70)))
            depth = torch.full((HEIGHT, WIDTH), 4.0)
            depth[:10] = torch.inf  # its way to say sky
            return {"depth": depth, "mask": torch.isfinite(depth)}

    module = ModuleType("moge.model.v2")
    module.MoGeModel, module.__spec__ = MoGeModel, ModuleSpec("moge", None)
    for name in ("moge", "moge.model", "moge.model.v2"):
        monkeypatch.setitem(sys.modules, name, module)
    depth = MoGe(str(tmp_path)).estimate(IMAGE, FACING, FACING, None)
    assert depth.shape == (HEIGHT, WIDTH) and (depth == 4).all()
