"""Pictures, clips and MP4s: odd and hostile files that the tests make themselves."""

import gc
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageCms

from motionstream.errors import InputError
from motionstream.video import Clip, Mp4Writer, fit_image, pictures_in, read_clip, read_image

RNG = np.random.default_rng(0)


def quadrants(width, height):
    """Red, green / blue, gray: tells every rotation and flip apart."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = (200, 30, 30), (30, 200, 30)
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = (30, 30, 200), (128, 128, 128)
    return image


def corners(image):
    h, w = image.shape[:2]
    return [image[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def assert_like(image, expected, tolerance=12):
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert np.abs(np.array(corners(image), int) - np.array(expected, int)).max() <= tolerance


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bar(frame, width=96, height=64):
    """Frame number as a vertical bar, 2 px a frame."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, 2 * frame : 2 * frame + 8] = 220
    return image


def bar_number(image):
    return (np.argmax(image[..., 0].mean(axis=0) > 120) * 96 / image.shape[1]) / 2


def make_clip(path, frames, *, rate=10, times=None, codec="libx264", pixels="yuv420p", format=None, **stream_settings):
    """Encodes frames [n, H, W, 3]; times: presentation times in thousandths of a second."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for name, value in stream_settings.items():
            setattr(stream, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# --- pictures


def test_plain_images_are_exact():
    image = RNG.integers(0, 256, (37, 51, 3)).astype(np.uint8)
    for kind, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(read_image(encoded(Image.fromarray(image), kind, **options)), image)


def test_image_from_a_path(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(quadrants(64, 48)), "JPEG"))
    assert_like(read_image(tmp_path / "a.jpg"), corners(quadrants(64, 48)))
    assert_like(read_image(str(tmp_path / "a.jpg")), corners(quadrants(64, 48)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = quadrants(64, 48)
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    image = read_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert image.shape == upright.shape
    assert_like(image, corners(upright))


@pytest.mark.parametrize("tag, kind, value", [
    (0x010F, 5, struct.pack(">II", 1, 2)), (0x0100, 1, b"\7\0\0\0"), (0x011A, 1, b"\7\0\0\0"), (0x0132, 5, bytes(8)),
    (0xA005, 4, struct.pack(">I", 2**31)),
], ids=["maker a ratio", "width a byte", "resolution a byte", "date a ratio", "interoperability nowhere"])  # fmt: skip
def test_a_turned_photo_with_other_tags_amiss_is_read(tag, kind, value):
    held = value if len(value) == 4 else struct.pack(">I", 38)
    tags = [(0x0112, 3, 1, struct.pack(">HH", 6, 0)), (tag, kind, 1, held)]
    entries = b"".join(struct.pack(">HHI", *entry) + data for *entry, data in sorted(tags))
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4) + value
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(quadrants(64, 48))))
    assert_like(read_image(encoded(stored, "JPEG", exif=exif, quality=95)), corners(quadrants(64, 48)))


def test_alpha_goes_over_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (10, 20, 30, 255)
    rgba[:, 4:] = (0, 0, 0, 51)  # a fifth of black
    image = read_image(encoded(Image.fromarray(rgba), "PNG"))
    assert image[0, 0].tolist() == [10, 20, 30] and image[0, 7].tolist() == [204, 204, 204]
    gray = read_image(encoded(Image.fromarray(rgba[..., 2:]), "PNG"))
    assert gray[0, 0].tolist() == [30, 30, 30] and gray[0, 7].tolist() == [204, 204, 204]


def test_palette_with_transparency():
    image = Image.fromarray(quadrants(16, 16)).quantize(4)
    clear = image.getpixel((0, 0))
    pixels = read_image(encoded(image, "PNG", transparency=clear))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert_like(pixels, [(255, 255, 255), *corners(quadrants(16, 16))[1:]])


def test_cmyk_gray_bilevel_and_16_bit():
    assert_like(
        read_image(encoded(Image.fromarray(quadrants(64, 64)).convert("CMYK"), "JPEG", quality=95)),
        corners(quadrants(64, 64)),
    )
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(4, axis=0)
    for kind, array in (("PNG", ramp.astype(np.uint16) * 257), ("TIFF", ramp.astype(np.float32) / 255), ("PNG", ramp)):
        image = read_image(encoded(Image.fromarray(array), kind))
        assert np.array_equal(image, ramp[..., None].repeat(3, axis=2))
    assert read_image(encoded(Image.fromarray(ramp > 127), "PNG"))[0, [0, 63]].tolist() == [[0] * 3, [255] * 3]


def srgb_and_swapped():
    """The profile of sRGB, and one of which the first two colours are swapped."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile, profile.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")


@pytest.mark.parametrize("kind", ("PNG", "JPEG", "WEBP", "TIFF"))
def test_colours_are_those_of_the_profile(kind):
    profile, swapped = srgb_and_swapped()
    image = quadrants(64, 64)
    for mode in ("RGB", "RGBA") if kind != "JPEG" else ("RGB",):
        stored = Image.fromarray(image[..., [1, 0, 2]]).convert(mode)
        assert_like(read_image(encoded(stored, kind, icc_profile=swapped)), corners(image))
    for harmless in (profile, b"no profile", profile[:300]):
        assert_like(read_image(encoded(Image.fromarray(image), kind, icc_profile=harmless)), corners(image))


def test_a_picture_whose_profile_is_srgb_is_not_converted(monkeypatch):
    converted, convert = [], ImageCms.applyTransform
    monkeypatch.setattr(ImageCms, "applyTransform", lambda im, by: converted.append(im.size) or convert(im, by))
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    for profile, wanted in zip(srgb_and_swapped(), (False, True), strict=True):
        converted.clear()
        same = np.array_equal(read_image(encoded(Image.fromarray(image), "PNG", icc_profile=profile)), image)
        assert ((60, 40) in converted) is wanted and same is not wanted


def test_first_picture_of_an_animation():
    frames = [Image.fromarray(bar(i)) for i in (5, 20)]
    for kind in ("GIF", "WEBP"):
        image = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert bar_number(image) == 5


def bomb(width, height):
    """A PNG that says it is enormous and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def far_strip():
    """A TIFF whose pixels begin further on than any file is long."""
    data = bytearray(encoded(Image.fromarray(quadrants(8, 8)), "TIFF"))
    at = data.index(struct.pack("<HHI", 273, 4, 1))  # StripOffsets: one 32-bit number; made one of 64 bits, elsewhere
    data[at : at + 12] = struct.pack("<HHII", 273, 16, 1, len(data))
    return bytes(data) + b"\xff" * 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (far_strip(), "damaged"),
        (b"hello, I am a text file", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known format"),
        (bomb(12_000, 9_000), "image is 12000x9000; at most 4096 pixels a side: resize it"),
        (bomb(4097, 1), "image is 4097x1"),
        (bomb(100_000, 100_000), "at most 4096 pixels a side"),
        (bomb(100, 100), "damaged"),
        (encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "PNG")[:3000], "damaged"),
        (encoded(Image.fromarray(quadrants(64, 64)), "JPEG")[:700], "damaged"),
    ],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(InputError, match=message):
        read_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_damaged_images_raise_nothing_else(kind):
    rng = np.random.default_rng(1)
    good = np.frombuffer(encoded(Image.fromarray(quadrants(40, 30)), kind), np.uint8)
    for _ in range(100):
        bad = good.copy()
        at = rng.integers(0, len(bad), 8)
        bad[at] = rng.integers(0, 256, 8)
        try:
            image = read_image(bad.tobytes())
        except InputError:
            continue
        assert image.dtype == np.uint8 and image.shape[2] == 3


def test_image_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read .*none.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path)
    large = encoded(Image.fromarray(RNG.integers(0, 256, (800, 800, 3), np.uint8)), "PNG")
    (tmp_path / "large.png").write_bytes(large)
    for source in (large, tmp_path / "large.png"):
        with pytest.raises(InputError, match="image has 1 MB; at most 1 MB"):
            read_image(source, max_bytes=2**20)
    assert read_image(large).shape == (800, 800, 3)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (1, 1), (4096, 1), (1, 300), (639, 357)])
def test_fit_image_has_the_size_asked_for(size):
    width, height = size
    assert fit_image(np.full((height, width, 3), 7, np.uint8), 96, 64).tolist() == [[[7] * 3] * 96] * 64


def test_fit_image_cuts_the_centre():
    wide = np.concatenate([np.zeros((40, 30, 3), np.uint8), quadrants(60, 40), np.zeros((40, 30, 3), np.uint8)], axis=1)
    for scale in (1, 2, 0.5):
        assert_like(fit_image(wide, int(60 * scale), int(40 * scale)), corners(quadrants(60, 40)), tolerance=0)
    image = quadrants(60, 40)
    assert np.array_equal(fit_image(image, 60, 40), image)


# --- MP4


def test_mp4_holds_the_frames_and_where_they_come_from(tmp_path):
    recipe = {"seed": 3, "prompt": "snow ☃", "controls": [{"chunk": i} for i in range(20_000)]}
    path = tmp_path / "out.mp4"
    shades = np.stack([np.roll(quadrants(96, 64), 4 * i, axis=1) for i in range(21)])
    with Mp4Writer(path, 96, 64, fps=16) as writer:
        writer.write(shades[:9])
        writer.write(shades[9:])
        assert not path.exists() and writer.frames == 21
        writer.recipe = recipe  # known at the end of a session
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        assert json.loads(container.metadata["comment"]) == recipe
        assert "Generated by MotionStream" in container.metadata["description"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is all there
    frames, fps = read_clip(path)
    assert fps == 16 and frames.shape == shades.shape
    assert np.abs(frames.astype(int) - shades).mean() < 4  # the colours too, not only the shapes
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("size", [(97, 63), (96, 63), (1, 1)])
def test_odd_sizes_become_even(tmp_path, size):
    width, height = size
    with Mp4Writer(tmp_path / "odd.mp4", width, height, fps=23.976) as writer:
        writer.write(np.full((3, height, width, 3), 128, np.uint8))
    frames, fps = read_clip(tmp_path / "odd.mp4")
    assert frames.shape == (3, height + height % 2, width + width % 2, 3)
    assert fps == pytest.approx(23.976, abs=0.01) and np.abs(frames.astype(int) - 128).max() <= 3


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt), Mp4Writer(path, 32, 32, fps=16) as writer:
        writer.write(np.zeros((9, 32, 32, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no frames to save"), Mp4Writer(path, 32, 32, fps=16):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="cannot write to .*nowhere: No such file"):
        Mp4Writer(tmp_path / "nowhere" / "out.mp4", 32, 32, fps=16)


def test_an_interrupt_as_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def mkdir(folder, mode):
        os.mkdir(folder, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(KeyboardInterrupt) as caught:
        Mp4Writer(tmp_path / "out.mp4", 32, 32, fps=16)
    del caught  # its frames know the writer
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_as_the_folder_is_removed_leaves_the_file_alone(tmp_path, monkeypatch):
    def rmtree(*args, **options):
        raise KeyboardInterrupt

    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt) as caught, Mp4Writer(path, 32, 32, fps=16) as writer:
        writer.write(np.zeros((9, 32, 32, 3), np.uint8))
        monkeypatch.setattr(shutil, "rmtree", rmtree)
    del caught, writer
    gc.collect()
    assert list(tmp_path.iterdir()) == [path] and len(read_clip(path)[0]) == 9


@pytest.mark.parametrize("count", [1, 40])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, count):
    """With few frames it is full only when the file is completed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write .*out.mp4: .*; make room"):
            with Mp4Writer(tmp_path / "out.mp4", 192, 192, fps=16) as writer:
                for _ in range(count):
                    writer.write(RNG.integers(0, 256, (3, 192, 192, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="cannot write to .*too long"):
        Mp4Writer(tmp_path / f"{'x' * 300}.mp4", 32, 32, fps=16)


def test_names_with_colons_are_no_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "12:30/12:31 clip.mp4"
    (tmp_path / "12:30").mkdir()
    with Mp4Writer(name, 32, 32, fps=16) as writer:
        writer.write(np.zeros((2, 32, 32, 3), np.uint8))
    assert len(read_clip(name)[0]) == 2
    assert len(list(Clip.open(name).frames(16, (32, 32)))) == 2


def test_an_existing_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with Mp4Writer(path, 32, 32, fps=16) as writer:
        writer.write(np.zeros((1, 32, 32, 3), np.uint8))
        assert path.read_bytes() == b"old"
    assert read_clip(path)[0].shape == (1, 32, 32, 3)


def test_wrong_frames_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"float64 \[1, 32, 32, 3\]; expected uint8 \[n, 32, 32, 3\]"):
        with Mp4Writer(tmp_path / "out.mp4", 32, 32, fps=16) as writer:
            writer.write(np.zeros((1, 32, 32, 3)))


# --- clips

BARS = np.stack([bar(i) for i in range(20)])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mov", {"codec": "libx265"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mkv", {"codec": "libx264", "pixels": "yuv444p"}),
        ("a.mp4", {"codec": "libx265", "pixels": "yuv420p10le"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.ts", {"codec": "mpeg2video", "rate": 25}),
        ("a.gif", {"codec": "gif", "pixels": "rgb8"}),
    ],
)
def test_clips_of_every_kind(tmp_path, name, settings):
    make_clip(tmp_path / name, BARS, **settings)
    frames, fps = read_clip(tmp_path / name)
    assert frames.shape == BARS.shape and fps == settings.get("rate", 10)
    assert np.abs([bar_number(f) - i for i, f in enumerate(frames)]).max() <= 1


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("start", [0.0, 0.9])
def test_reordered_frames_of_an_avi_come_in_their_order(tmp_path, codec, start):
    """AVI keeps no times at which frames are shown."""
    video = np.stack([bar(i) for i in np.arange(60) % 20])
    make_clip(tmp_path / "a.avi", video, codec=codec, options={"bf": "3", "g": "30"})
    read, _ = read_clip(tmp_path / "a.avi")
    found = Clip.open(tmp_path / "a.avi").frames(10, (96, 64), start)
    for frames in (read, np.stack(list(found))):
        skipped = 60 - len(frames)
        assert skipped == (0 if frames is read else round(10 * start))
        numbers = [bar_number(frame) for frame in frames]
        assert np.abs(np.array(numbers) - np.arange(skipped, 60) % 20).max() <= 1


def test_odd_sizes_and_still_clips(tmp_path):
    odd = RNG.integers(0, 256, (1, 57, 63, 3)).astype(np.uint8)
    make_clip(tmp_path / "one.mp4", odd, pixels="yuv444p")
    frames, _ = read_clip(tmp_path / "one.mp4")
    assert frames.shape == (1, 57, 63, 3)


@pytest.mark.parametrize("fps", [5, 10, 16, 24])
def test_clips_are_resampled_in_time(tmp_path, fps):
    make_clip(tmp_path / "a.mp4", BARS, rate=10)
    frames, rate = read_clip(tmp_path / "a.mp4", fps=fps)
    numbers = [bar_number(f) for f in frames]
    assert rate == fps
    assert len(frames) == pytest.approx(1.9 * fps + 1, abs=1)
    assert np.abs(np.array(numbers) - np.arange(len(frames)) * 10 / fps).max() <= 1


def test_variable_rate_comes_out_even(tmp_path):
    times = np.cumsum([0] + [20, 20, 200, 40, 40, 150, 30, 10, 90] * 2)
    frames = np.stack([bar(int(t // 30)) for t in times])  # the bar's place is the time
    make_clip(tmp_path / "vfr.mp4", frames, rate=1000, times=times.tolist())
    resampled, _ = read_clip(tmp_path / "vfr.mp4", fps=20)
    for k, frame in enumerate(resampled):
        nearest = times[np.abs(times - k * 50).argmin()]
        assert abs(bar_number(frame) - nearest // 30) <= 1
    assert len(resampled) == 25  # 1.2 seconds and the frame at 0


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx"), ("a.mkv", "libx264")])
def test_a_recording_that_declares_no_rate_is_not_taken_for_one_of_a_thousand_frames_a_second(tmp_path, name, codec):
    path, times = tmp_path / name, np.cumsum([0, *RNG.integers(21, 46, 59)])
    make_clip(path, np.stack([bar(i % 40) for i in range(60)]), rate=1000, times=times.tolist(), codec=codec)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x23\xe3\x83")  # its element of that: made void, as long as it was
    data[at : at + 2] = 0xEC, 0x80 | (data[at + 3] & 0x7F) + 2
    path.write_bytes(data)
    assert Clip.open(path).fps == 25
    frames, rate = read_clip(path)
    assert len(frames) == pytest.approx(times[-1] / 1000 * rate, abs=2)


SHOWN = {  # first two rows and columns of the matrix by which a frame is shown -> how
    (0, 1, -1, 0): lambda a: np.rot90(a, -1), (-1, 0, 0, -1): lambda a: np.rot90(a, 2), (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr, (1, 0, 0, -1): np.flipud, (0, 1, 1, 0): lambda a: a.swapaxes(0, 1),
    (0, -1, -1, 0): lambda a: np.rot90(a.swapaxes(0, 1), 2),
}


@pytest.mark.parametrize("matrix", SHOWN)
def test_a_clip_is_turned_and_mirrored_as_it_says(tmp_path, matrix):
    stored = quadrants(64, 48)
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    make_clip(plain, stored[None])
    data = bytearray(plain.read_bytes())
    at = data.index(b"\x00\x01\x00\x00" + bytes(12) + b"\x00\x01\x00\x00", data.index(b"tkhd"))
    for i, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + i : at + i + 4] = struct.pack(">i", 65536 * value)
    turned.write_bytes(data)
    frames, _ = read_clip(turned)
    upright = SHOWN[matrix](stored)
    assert frames.shape[1:] == upright.shape
    assert_like(frames[0], corners(upright), tolerance=20)


def test_pixels_become_square(tmp_path):
    make_clip(tmp_path / "wide.mp4", quadrants(64, 48)[None], sample_aspect_ratio=Fraction(2, 1))
    frames, _ = read_clip(tmp_path / "wide.mp4")
    assert frames.shape == (1, 24, 64, 3)
    assert_like(frames[0], corners(quadrants(64, 48)), tolerance=20)


def test_clips_are_fitted_while_they_are_read(tmp_path):
    make_clip(tmp_path / "a.mp4", quadrants(96, 32)[None].repeat(3, axis=0))
    frames, _ = read_clip(tmp_path / "a.mp4", size=(32, 32))
    assert frames.shape == (3, 32, 32, 3)
    assert_like(frames[2], corners(quadrants(32, 32)), tolerance=20)


def test_limits_of_clips_are_named(tmp_path):
    path = tmp_path / "a.mp4"
    make_clip(path, BARS, rate=10)
    for limits, message in (
        ({"max_frames": 19}, "more than 19 frames at 10 a second: cut it"),
        ({"max_frames": 30, "fps": 60}, "more than 30 frames at 60 a second"),
        ({"max_seconds": 1.5}, "longer than 1.5 seconds"),
        ({"max_side": 95}, "the video is 96x64; at most 95 pixels a side"),
        ({"max_bytes": 100}, "video has 0 MB; at most 0 MB"),
        ({"max_pixels": 16 * 96 * 64}, "too large after 16 frames of 96x64"),
    ):
        with pytest.raises(InputError, match=message):
            read_clip(path, **limits)
    assert len(read_clip(path, max_frames=20, max_seconds=1.9)[0]) == 20


def test_one_frame_costs_no_more_than_so_many_pixels_and_can_be_cancelled(tmp_path, monkeypatch):
    make_clip(tmp_path / "a.mp4", BARS, rate=5)  # one key frame, at the beginning
    clip, asked = Clip.open(tmp_path / "a.mp4"), []
    assert next(clip.frames(5, (96, 64), 3.0, lambda: len(asked) > 4 or asked.append(1)), None) is None
    monkeypatch.setattr("motionstream.video.MAX_SOUGHT_PIXELS", 12 * 96 * 64)
    assert len(list(clip.frames(5, (96, 64)))) == 20
    assert bar_number(next(clip.frames(5, (96, 64), 2.0))) == pytest.approx(10, abs=0.6)
    with pytest.raises(InputError, match="million pixels .* start earlier, or make it smaller"):
        next(clip.frames(5, (96, 64), 3.0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mov", {"codec": "png", "pixels": "rgb24"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mkv", {"codec": "ffv1"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.ts", {"codec": "mpeg2video", "rate": 25}),
        ("a.flv", {}),
        ("a.gif", {"codec": "gif", "pixels": "rgb8"}),
    ],
)
def test_sizes_that_decoders_refuse_are_named(tmp_path, name, settings):
    make_clip(tmp_path / name, BARS, **settings)
    for read in (read_clip, Clip.open):
        with pytest.raises(InputError, match="the video is 96x64; at most 50 pixels a side"):
            read(tmp_path / name, max_side=50)


def test_pictures_larger_than_the_container_says_are_not_decoded(tmp_path):
    picture = encoded(Image.fromarray(bar(0)), "PNG")
    with av.open(str(tmp_path / "lie.mov"), "w") as container:
        stream = container.add_stream("png", 10)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        for i in range(3):
            packet = av.Packet(picture)
            packet.pts = packet.dts = i
            packet.is_keyframe, packet.time_base, packet.stream = True, Fraction(1, 10), stream
            container.mux(packet)
    assert read_clip(tmp_path / "lie.mov")[0].shape == (3, 64, 96, 3)
    for read in (read_clip, Clip.open):
        # Who knows the true size, 96x64, has decoded a picture.
        with pytest.raises(InputError, match="cannot be read .* of at most 50 pixels a side"):
            read(tmp_path / "lie.mov", max_side=50)


@pytest.mark.parametrize("read", ["read_clip", "Clip.open"])
def test_an_unknown_codec_is_named(tmp_path, read):
    make_clip(tmp_path / "a.mp4", BARS)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at : at + 4] = b"zzzz"
    (tmp_path / "a.mp4").write_bytes(data)
    code = f"import sys; from motionstream.video import Clip, read_clip; {read}(sys.argv[1])"
    # In a process of its own: where this goes wrong, it does so with a segmentation fault.
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.mp4"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "InputError: the video's codec is not known here" in run.stderr


def silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    return frame


def test_a_cover_picture_is_no_clip(tmp_path):
    song, film = make_song(tmp_path / "a.mp4", moving=False), make_song(tmp_path / "b.mp4", moving=True)
    for read in (read_clip, Clip.open):
        with pytest.raises(InputError, match="sound with a cover picture, and has no video in it"):
            read(song)
    assert read_clip(film)[0].shape == (4, 32, 32, 3) and Clip.open(film).width == 32


def make_song(path, moving):
    """-> path: sound with a cover of 64x48, beside a video of 4 frames of 32x32 where it is `moving`."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", width=64, height=48, pix_fmt="yuvj420p")
        cover.disposition = Disposition.attached_pic
        streams = [(cover, [av.VideoFrame.from_ndarray(quadrants(64, 48), "rgb24")])]
        if moving:
            film = container.add_stream("libx264", 10, width=32, height=32, pix_fmt="yuv420p")
            streams.append((film, [av.VideoFrame.from_ndarray(quadrants(32, 32), "rgb24")] * 4))
        streams.append((container.add_stream("aac", 44100), [silence()]))
        for stream, frames in streams:
            for frame in (*frames, None):
                container.mux(stream.encode(frame))
    return path


def test_what_is_no_clip_is_named(tmp_path):
    path = tmp_path / "a.mp4"
    make_clip(path, BARS)
    whole = path.read_bytes()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        container.mux(stream.encode(silence()))
        container.mux(stream.encode())
    for data, message in (
        (b"", "empty file"),
        (b"not a video at all" * 100, "cannot be read"),
        (whole[: len(whole) // 2], "cannot be read"),
        (encoded(Image.fromarray(quadrants(64, 48)), "PNG"), "cannot be read"),
        ((tmp_path / "sound.mp4").read_bytes(), "no video in it"),
        (b"#EXTM3U\n#EXTINF:1,\nfile://" + bytes(path) + b"\n#EXT-X-ENDLIST\n", "cannot be read"),
        (b"ffconcat version 1.0\nfile " + bytes(path) + b"\n", "cannot be read"),
    ):
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_clip(bad)
    with pytest.raises(InputError, match="cannot read"):
        read_clip(tmp_path / "none.mp4")


def test_damaged_clips_give_frames_or_a_message(tmp_path):
    make_clip(tmp_path / "a.webm", BARS, codec="libvpx")
    good = np.frombuffer((tmp_path / "a.webm").read_bytes(), np.uint8)
    rng, read = np.random.default_rng(0), 0
    begun = time.perf_counter()
    for _ in range(20):
        bad = good.copy()
        at = rng.integers(300, len(bad), 5)
        bad[at] = rng.integers(0, 256, 5)
        (tmp_path / "bad.webm").write_bytes(bad.tobytes())
        try:
            frames, _ = read_clip(tmp_path / "bad.webm", size=(96, 64))
        except InputError:
            continue
        read += 1
        assert frames.shape[1:] == (64, 96, 3)
    assert read and time.perf_counter() - begun < 20


def test_numbered_pictures_need_no_leading_zeros(tmp_path):
    names = ["1.png", "2.png", "10.jpg", "a2b1.png", "a2b12.png", "a10b3.png", "b.PNG"]
    for name in [*reversed(names), "11.txt"]:
        (tmp_path / name).touch()
    assert [file.name for file in pictures_in(tmp_path)] == names
