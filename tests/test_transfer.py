"""Motion transfer: a clip's or a camera's tracks in the picture, exactly; drags on top; odd clips."""

import base64
import io
import json
import pickle
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from motionstream.cli import main
from motionstream.controls.drag import DragSource
from motionstream.controls.layers import BASE_IDS, Layers, base_ids
from motionstream.controls.trackers import Seeds
from motionstream.controls.transfer import (
    MAX_WAITING,
    Carried,
    ClipMotion,
    ClipRecipe,
    Settings,
    WebcamMotion,
    WebcamRecipe,
    track_clip,
    tracking_size,
)
from motionstream.errors import InputError
from motionstream.session import STOP, Mailbox, Record, replay, run_session
from motionstream.tracks import MAX_TRACKS, ChunkRequest, Tracks, join
from motionstream.trajectories import load_tracks, read_trajectories
from motionstream.video import Clip

WIDTH, HEIGHT, FPS = 96, 64, 16.0
SHIFT = 1.5  # pixels to the right a frame, in the clips made here


def request(start: int, frames: int, width=WIDTH, height=HEIGHT) -> ChunkRequest:
    history = {max(start - 1, 0): np.zeros((height, width, 3), np.uint8)}
    return ChunkRequest((start + 3) // 12, start, frames, width, height, FPS, history)


def chunks(source, count: int, **size) -> list[Tracks]:
    starts = [0] + [9 + 12 * k for k in range(count - 1)]
    return [source.tracks_for(request(at, 12 if at else 9, **size)) for at in starts]


def texture(width=2 * WIDTH, height=HEIGHT, seed=0) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def panned(count: int, shift=SHIFT) -> np.ndarray:
    """Frames of a texture that moves to the right."""
    matrices = [np.float32([[1, 0, shift * t - WIDTH], [0, 1, 0]]) for t in range(count)]
    return np.stack([cv2.warpAffine(texture(), m, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC) for m in matrices])


def write(path, frames, fps=16, codec="libx264", pixels="yuv420p", **settings):
    """Any clip: settings are attributes of the stream; times in milliseconds make the rate variable."""
    times = settings.pop("times", None)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for t, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = times[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "pan.mp4", panned(30), options={"crf": "8"})


def ready(points, visible=None, ids=None) -> Tracks:
    points = np.asarray(points, float)
    visible = np.ones(points.shape[:2], bool) if visible is None else visible
    return Tracks(points, visible, np.arange(points.shape[1]) if ids is None else ids)


def line(frames=20, count=3) -> Tracks:
    """Points side by side that move by (1, 0.5) pixels a frame."""
    start = np.stack([10 + 8 * np.arange(count), np.full(count, 20)], axis=-1)
    return ready(start[None] + np.arange(frames)[:, None, None] * [1.0, 0.5])


def motion(blocks, size=(WIDTH, HEIGHT), **changes) -> ClipMotion:
    return ClipMotion(iter(blocks), size, Settings(**changes))


# --- from the clip to the picture ------------------------------------------------------------------------------------


def test_a_clip_moves_a_picture_of_its_own_size_exactly_as_it_moves():
    source = motion([line().rows(0, 7), line().rows(7, 20)])
    whole = join(chunks(source, 2))
    np.testing.assert_allclose(whole.points[:20], line().points, atol=1e-4)
    np.testing.assert_allclose(whole.points[20], line().points[19], atol=1e-4)  # the end is held


def test_blocks_are_read_when_they_are_due_and_no_sooner():
    read = []

    def blocks():
        for at in range(0, 60, 12):
            read.append(at)
            yield line(60).rows(at, at + 12)

    source = ClipMotion(blocks(), (WIDTH, HEIGHT), Settings())
    source.tracks_for(request(0, 9))
    assert read == [0]
    source.tracks_for(request(9, 12))
    assert read == [0, 12]
    source.close()


@pytest.mark.parametrize("amplify", [1.0, 2.0])
def test_of_the_points_that_move_another_picture_some_come_in_its_second_frame(amplify):
    settings, clip = Settings(amplify=amplify), ready(line(40, 12).points * [0.5, 1])
    own, other = (chunks(ClipMotion(iter([clip]), (WIDTH, HEIGHT), settings, another), 2) for another in (False, True))
    for one, same in zip(own, other, strict=True):
        np.testing.assert_array_equal(one.points, same.points)
        assert one.visible.all() and same.visible[1:].all()
    assert other[1].visible[0].all() and 2 <= (~other[0].visible[0]).sum() <= 6


def test_reverse_begins_at_the_end_and_twice_reversed_is_the_clip():
    clip, backwards = line(21), motion([line(21)], reverse=True)
    rows = join(chunks(backwards, 2))
    np.testing.assert_allclose(rows.points, clip.points[::-1], atol=1e-4)
    again = motion([rows], reverse=True)
    np.testing.assert_allclose(join(chunks(again, 2)).points, clip.points, atol=1e-4)


def test_a_loop_goes_to_and_fro_without_a_jump():
    rows = join(chunks(motion([line(10)], loop=True), 6)).points[:, 0, 0]
    assert np.abs(np.diff(rows)).max() <= 1.0 + 1e-4
    np.testing.assert_allclose(rows[18:28], rows[:10], atol=1e-4)
    assert join(chunks(motion([line(1)], loop=True), 3)).T == 33


@pytest.mark.parametrize("amplify", [0.25, 1.0, 2.0])
def test_amplifying_scales_the_way_from_the_first_frame(amplify):
    rows = join(chunks(motion([line(21)], amplify=amplify), 2)).points
    np.testing.assert_allclose(rows - rows[0], amplify * (line(21).points - line(21).points[0]), atol=1e-4)
    np.testing.assert_allclose(rows[0], line(21).points[0], atol=1e-4)


def test_a_point_found_later_moves_with_its_neighbours_when_amplified():
    clip = line(21, count=4)
    visible = np.ones((21, 4), bool)
    visible[:9, 3] = False
    late = [ready(clip.points[:9, :3]), ready(clip.points[9:])]
    rows = join(chunks(motion(late, amplify=2.0), 2)).points
    np.testing.assert_allclose(rows[9:, 3], rows[9:, 0] + clip.points[0, 3] - clip.points[0, 0], atol=1e-3)


def test_lost_neighbours_tell_nothing_of_where_a_later_point_comes_from():
    still = np.tile(line(1, 4).points, (9, 1, 1))
    lost = still.copy()
    lost[5:, :2] += 20  # where a tracker that has lost them says they are
    visible = np.ones((9, 4), bool)
    visible[5:, :2] = False
    later = ready(still[:, :2], ids=[7, 8])
    later = Tracks(np.concatenate([lost, later.points], 1), np.c_[visible, ~visible[:, :2]], [0, 1, 2, 3, 7, 8])
    rows = chunks(motion([ready(still), later, later], amplify=2.0), 2)[1]
    assert rows.visible[5:9, 2:].all()
    np.testing.assert_allclose(rows.points[5:9, 2:], later.points[5:, 2:], atol=1e-3)


def test_points_that_come_into_sight_when_played_backwards_move_with_the_others_when_amplified():
    shift, count = 4.0, 6
    points = line(1, count).points + np.arange(30)[:, None, None] * [shift, 0]
    visible = np.ones((30, count), bool)
    for first, track in ((15, 3), (18, 4), (25, 5)):  # they leave in mid-block, where they are held
        visible[first:, track], points[first:, track] = False, points[first - 1, track]
    blocks = [ready(points[i : i + 10]) for i in (0, 10, 20)]
    blocks = [Tracks(b.points, v, b.ids) for b, v in zip(blocks, np.split(visible, 3), strict=True)]
    for strength in (1.5, 0.5):
        rows = join(chunks(motion(blocks, reverse=True, amplify=strength), 3))
        plain = join(chunks(motion(blocks, reverse=True), 3))
        extra = (rows.points - plain.points)[:30, :, 0]
        wanted = (strength - 1) * -shift * np.arange(30)
        assert np.abs(extra - wanted[:, None])[plain.visible[:30]].max() < 1e-3


def test_fits_are_what_they_say():
    box = ready([[[0, 0], [100, 0], [0, 50], [100, 50]]])
    square = request(0, 1, 64, 64)
    stretched = Carried(Settings(fit="stretch")).carry(box, (100, 50), square)
    np.testing.assert_allclose(stretched.points[0], [[0, 0], [64, 0], [0, 64], [64, 64]])
    cropped = Carried(Settings(fit="crop")).carry(box, (100, 50), square)
    np.testing.assert_allclose(cropped.points[0], box.fit((100, 50), (64, 64)).points[0], atol=1e-4)
    assert not cropped.visible.any()  # its left and right are cut off


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_align_lays_two_points_on_two_points(numbers):
    a, b = tuple(numbers[:4]), tuple(numbers[4:])
    if np.hypot(a[0] - b[0], a[1] - b[1]) < 0.02:
        with pytest.raises(InputError, match="are the same"):
            Settings(fit="align", pairs=(a, b))
        return
    affine = Settings(fit="align", pairs=(a, b)).fitted((200, 100), (64, 96))
    for x, y, to_x, to_y in (a, b):
        there = affine @ [200 * x, 100 * y, 1]
        np.testing.assert_allclose(there, [64 * to_x, 96 * to_y], atol=1e-6)
    turn = affine[:, :2]
    np.testing.assert_allclose(turn @ turn.T, np.eye(2) * np.linalg.det(turn), atol=1e-9)  # a similarity


def test_what_leaves_the_picture_is_invisible():
    rows = join(chunks(motion([line(60)], amplify=2.0), 5))
    assert rows.visible[0].any() and not rows.visible[-1].any()


# --- drags on top ----------------------------------------------------------------------------------------------------


def test_drags_lie_on_the_clips_motion_and_what_is_near_gives_way():
    grid = np.stack(np.meshgrid(np.arange(4, WIDTH, 8), np.arange(4, HEIGHT, 8)), axis=-1).reshape(-1, 2)
    base = motion([ready(np.repeat(grid[None], 40, axis=0), ids=base_ids(len(grid), np.random.default_rng(0)))])
    layers = Layers(base, DragSource(reserved=range(BASE_IDS)))
    layers.apply({"kind": "pin", "id": 1, "x": 50, "y": 30, "frame": 0})
    tracks = layers.tracks_for(request(0, 9))
    assert tracks.N == len(grid) + 1 and len(set(tracks.ids.tolist())) == tracks.N
    distance = np.linalg.norm(tracks.points[0, :-1] - [50, 30], axis=1)
    hidden = ~tracks.visible[0, :-1]
    assert hidden[distance < 4].all() and hidden.any() and not hidden[distance > 9].any()
    assert tracks.visible[:, -1].all() and tracks.ids[-1] >= BASE_IDS
    layers.apply({"kind": "remove", "id": 1})
    assert layers.tracks_for(request(9, 12)).visible.all()


def test_many_drags_leave_room_by_thinning_the_clip():
    base = motion([ready(np.full((9, 2_400, 2), 20.0))])
    layers = Layers(base, DragSource(reserved=range(BASE_IDS)))
    layers.apply({"kind": "grid", "spacing": 1, "size": 10})
    for key in range(3):
        layers.apply({"kind": "pin", "id": key, "x": 50, "y": 30, "frame": 0})
    tracks = layers.tracks_for(request(0, 9))
    assert tracks.N == MAX_TRACKS and (tracks.ids >= BASE_IDS).sum() == 300


# --- clips -----------------------------------------------------------------------------------------------------------


def test_a_clip_is_tracked_in_blocks_and_its_motion_is_its_motion(clip):
    settings = Settings(grid=12, seconds=1.5, tracker="lucas-kanade")
    parts = list(track_clip(Clip.open(clip), settings, FPS, settings.open_tracker()))
    assert [len(frames) for frames, _ in parts] == [12, 12, 0]
    whole = join([tracks for _, tracks in parts])
    assert (whole.T, tracking_size(WIDTH, HEIGHT)) == (24, (WIDTH, HEIGHT))
    kept = whole.visible.all(axis=0)
    assert kept.sum() > 20
    moved = (whole.points - whole.points[0])[:, kept]
    assert np.median(np.linalg.norm(moved - np.arange(24)[:, None, None] * [SHIFT, 0], axis=-1)) < 0.5


@pytest.mark.parametrize("blocks", [0, 1])
def test_tracking_ends_when_it_is_cancelled(clip, blocks):
    settings, parts = Settings(grid=12), []
    for part in track_clip(Clip.open(clip), settings, FPS, settings.open_tracker(), lambda: len(parts) == blocks):
        parts.append(part)
    assert len(parts) == blocks


def test_a_recipe_survives_a_fork_and_names_its_clip(clip):
    recipe = pickle.loads(pickle.dumps(ClipRecipe(str(clip), Settings(grid=12, seconds=1.5), FPS)))
    source = recipe.build()
    first = source.tracks_for(request(0, 9))
    source.close()
    assert first.N > 20 and recipe.describe()["sha256"] == ClipRecipe(str(clip), Settings(), FPS).describe()["sha256"]
    settings = Settings(grid=12, seconds=1.5, tracker="lucas-kanade")
    blocks = tuple(t for _, t in track_clip(Clip.open(clip), settings, FPS, settings.open_tracker()))
    known = pickle.loads(pickle.dumps(ClipRecipe(str(clip), settings, FPS, blocks))).build()
    again = known.tracks_for(request(0, 9))
    np.testing.assert_array_equal(again.points, first.points)


def still(model, image, source, *, prompt, seed, sharp=None):
    """The contract of `streaming.stream`: nothing but the tracks, drawn as dots."""
    from motionstream.streaming import Chunk

    start = 0
    while True:
        index, frames = (start + 3) // 12, 12 if start else 9
        tracks = source.tracks_for(ChunkRequest(index, start, frames, *image.shape[1::-1], FPS, {0: image}))
        video = np.repeat(image[None], frames, axis=0)
        for t, k in np.argwhere(tracks.visible):
            x, y = tracks.points[t, k].astype(int)
            video[t, y, x] = tracks.ids[k] % 251
        yield Chunk(index, start, video, tracks, {"total": 0.0})
        start += frames


def test_a_session_with_a_clip_can_be_replayed(clip):
    from types import SimpleNamespace

    model, image = SimpleNamespace(preset=SimpleNamespace(name="fake")), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    base, record = ClipRecipe(str(clip), Settings(grid=12, seconds=1.5), FPS), Record()
    with Mailbox() as mailbox:
        mailbox.send({"kind": "pin", "id": 1, "x": 50, "y": 30, "frame": 0})
        made = []
        for chunk in run_session(model, image, mailbox.address, base=base, record=record, stream=still):
            made.append(chunk)
            mailbox.send({"kind": "ack", "chunk": chunk.index} if chunk.index < 2 else STOP)
    recipe = json.loads(json.dumps(record.recipe()))  # as an MP4 keeps it
    assert recipe["base"]["settings"]["grid"] == 12 and recipe["complete"]
    again = list(replay(model, image, recipe, base, stream=still))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(made, again, strict=True)) and len(made) == 3
    for other in (None, ClipRecipe(str(clip), Settings(grid=13, seconds=1.5), FPS)):
        with pytest.raises(InputError, match="made with base"):
            list(replay(model, image, recipe, other, stream=still))
    with pytest.raises(InputError, match="lacks some of the controls"):
        list(replay(model, image, recipe | {"complete": False}, base, stream=still))


@given(st.floats(0.25, 2), st.booleans(), st.sampled_from([None, ((0.1, 0.2), (0.9, 0.2), (0.5, 0.8))]))
def test_settings_come_back_from_json(amplify, reverse, region):
    made = Settings(amplify=amplify, reverse=reverse, region=region)
    assert Settings.from_json(json.loads(json.dumps(made.to_json()))) == made


FRAMES = panned(10)
ODD = {
    "plain.mp4": {},
    "ten-bit.mp4": {"codec": "libx265", "pixels": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "444.mp4": {"pixels": "yuv444p"},
    "odd.avi": {"codec": "mjpeg", "pixels": "yuvj444p", "frames": FRAMES[:, :63, :95]},
    "variable.mkv": {"times": [0, 10, 200, 230, 400, 900, 910, 920, 1500, 1501]},
    "one.mp4": {"frames": FRAMES[:1]},
    "wide-pixels.mp4": {"sample_aspect_ratio": 2},
    "tiny.mp4": {"frames": FRAMES[:, :16, :16]},
    "flat.mp4": {"frames": np.full((5, 32, 32, 3), 128, np.uint8)},
    "animation.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_clips_give_tracks(tmp_path, name):
    made = dict(ODD[name])
    path = write(tmp_path / name, made.pop("frames", FRAMES), **made)
    source = ClipRecipe(str(path), Settings(grid=10, tracker="lucas-kanade"), FPS).build()
    first, second = chunks(source, 2)
    source.close()
    assert (first.T, second.T) == (9, 12)
    assert first.N > 5 or name in ("tiny.mp4", "flat.mp4")


def test_a_turned_clip_is_upright(tmp_path):
    path = write(tmp_path / "a.mp4", FRAMES)
    turned = tmp_path / "turned.mp4"
    with av.open(str(path)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = turned.read_bytes()  # the display matrix of the track header, to 90 degrees
    at = data.index(b"tkhd") + 4 + 40
    matrix = [0, 1, 0, -1, 0, 0, 0, 0, 0x4000]
    fixed = b"".join((m * 65536).to_bytes(4, "big", signed=True) for m in matrix)
    turned.write_bytes(data[:at] + fixed + data[at + 36 :])
    upright = Clip.open(turned)
    assert (upright.width, upright.height) == (HEIGHT, WIDTH)
    frame = next(upright.frames(FPS, (HEIGHT, WIDTH))).astype(int)
    assert np.abs(frame - np.rot90(FRAMES[0], -1)).mean() < 12 < np.abs(frame - np.rot90(FRAMES[0])).mean()  # clockwise


def bad_clips(tmp_path):
    good = write(tmp_path / "good.mp4", FRAMES).read_bytes()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    yield "no video in it", (tmp_path / "sound.mp4").read_bytes()
    yield "cannot be read|no frame", good[: len(good) // 2]
    yield "cannot be read", b"not a video at all"
    yield "empty file", b""


def test_bad_clips_end_in_a_sentence(tmp_path):
    for message, data in bad_clips(tmp_path):
        path = tmp_path / "bad.mp4"
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            ClipRecipe(str(path), Settings(), FPS).build().tracks_for(request(0, 9))


def test_the_command_tracks_clips_and_converts_files(clip, tmp_path, capsys):
    tracks, other = tmp_path / "t.json", tmp_path / "t.pth"
    options = ["--grid", "12", "--tracker", "lucas-kanade", "--json"]
    assert main(["track", str(clip), "-o", str(tracks), *options]) == 0
    told = capsys.readouterr()
    figures = json.loads(told.out.splitlines()[-1])
    assert "Lucas-Kanade" in told.err and figures["tracker"] == "lucas-kanade"
    assert (figures["frames"], figures["width"], figures["height"], figures["fps"]) == (30, WIDTH, HEIGHT, 16.0)
    read = read_trajectories(tracks)
    kept = read.tracks.visible.all(axis=0)
    moved = (read.tracks.points[-1] - read.tracks.points[0])[kept]
    assert kept.sum() > 10 and np.abs(np.median(moved, axis=0) - [29 * SHIFT, 0]).max() < 0.5
    assert main(["track", str(tracks), "-o", str(other)]) == 0
    assert read_trajectories(other).tracks.N == read.tracks.N


def wave(frames: int) -> Tracks:
    """Tracks that swing once a second at 30 frames a second."""
    swing = 20 * np.sin(np.arange(frames) * 2 * np.pi / 30)
    points = np.array([[40.0, 40.0], [60.0, 50.0]]) + swing[:, None, None] * (1.0, 0.5)
    return Tracks(points, np.ones((frames, 2), bool), np.arange(2))


@pytest.mark.parametrize(("name", "rate"), [("t.npy", 16), ("t.pt", 16), ("t.pth", 24)])
def test_a_format_that_keeps_no_rate_is_written_at_its_programs(tmp_path, capsys, name, rate):
    tracks, out = wave(61), tmp_path / name  # 2 s at 30 frames a second
    (tmp_path / "t.json").write_text(tracks.to_json(WIDTH, HEIGHT, 30.0))
    assert main(["track", str(tmp_path / "t.json"), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["frames"], told["fps"]) == (2 * rate + 1, rate)
    after = load_tracks(out, (WIDTH, HEIGHT), (WIDTH, HEIGHT), 30.0)
    np.testing.assert_allclose(after.points[:61], tracks.points, atol=0.5)


def test_what_a_clips_tracks_are_written_at_can_be_asked_for(clip, tmp_path, capsys):
    fast = write(tmp_path / "fast.mp4", FRAMES, fps=30)
    for options, rate in ((), 16), (("--fps", "24"), 24):
        arguments = ["-o", str(tmp_path / "t.npy"), "--grid", "6", "--tracker", "lucas-kanade", "--json", *options]
        assert main(["track", str(fast), *arguments]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["fps"] == rate and told["frames"] == round((len(FRAMES) - 1) / 30 * rate) + 1


def test_what_has_no_room_in_a_format_is_told(tmp_path, capsys):
    for frames, cut in ((81, False), (90, True)):  # 5.06 s have room, 81 and 90 frames at 16 a second
        (tmp_path / "t.json").write_text(wave(frames).to_json(WIDTH, HEIGHT, 16.0))
        assert main(["track", str(tmp_path / "t.json"), "-o", str(tmp_path / "t.pth")]) == 0
        assert ("what comes later is left out" in capsys.readouterr().err) == cut


def test_a_file_that_says_no_size_is_not_given_one(tmp_path, capsys):
    points = np.stack([np.linspace((100, 100), (300, 200), 9), np.linspace((50, 60), (70, 80), 9)], axis=1)
    np.save(tmp_path / "a.npy", points[None].astype(np.float32))
    ours, again = tmp_path / "a.json", tmp_path / "b.npy"
    assert main(["track", str(tmp_path / "a.npy"), "-o", str(ours)]) == 2
    assert "add --size WxH" in capsys.readouterr().err and not ours.exists()
    assert main(["track", str(tmp_path / "a.npy"), "-o", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["width"] is None
    assert main(["track", str(tmp_path / "a.npy"), "-o", str(ours), "--size", "832x480", "--fps", "24"]) == 0
    loaded = load_tracks(ours, (1664, 960), (832, 480), 24.0)
    np.testing.assert_allclose(loaded.points, points, atol=1e-3)
    assert main(["track", str(ours), "-o", str(again), "--size", "832x480"]) == 2
    assert "says that its frames are 832x480" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["none.mp4", "-o", "t.json"], "cannot read none.mp4"),
        (["none.mp4", "-o", "t.avi"], "cannot write t.avi"),
        (["{clip}", "-o", "{folder}/t.json", "--grid", "99"], '"grid" is 99'),
        (["{clip}", "-o", "{folder}/t.json", "--start", "90"], "start earlier"),
        (["{clip}", "-o", "{folder}/none/t.json", "--grid", "4"], "cannot write"),
        (["{clip}", "-o", "{folder}/t.json", "--size", "64x64"], "leave it out"),
        (["t.json", "-o", "{folder}/t.npy", "--grid", "4"], "--grid is of videos"),
        (["t.json", "-o", "{folder}/t.npy", "--start", "0"], "--start is of videos"),
    ],
)
def test_what_the_command_cannot_do_is_a_sentence(clip, tmp_path, capsys, arguments, sentence):
    assert main(["track", *(text.format(clip=clip, folder=tmp_path) for text in arguments)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_start_beyond_the_end_is_named(clip):
    with pytest.raises(InputError, match="no frame at 40 seconds: start earlier"):
        ClipRecipe(str(clip), Settings(start=40.0), FPS).build().tracks_for(request(0, 9))


@pytest.mark.parametrize("start", [0.0, 0.5, 3.0])
def test_a_clip_can_be_read_from_anywhere(tmp_path, start):
    frames = np.repeat(np.arange(0, 250, 3, np.uint8)[:, None, None, None], 32, axis=1).repeat(32, 2).repeat(3, 3)
    path = write(tmp_path / "a.mp4", frames, options={"crf": "1"}, gop_size=20)
    first = next(Clip.open(path).frames(FPS, (32, 32), start))
    assert abs(int(first.mean()) - 3 * 16 * start) <= 2


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_read_as_the_page_sends_them():
    sent = {"start": 1.5, "grid": 12.0, "region": [[0, 0], [1, 0], [0, 1]], "pairs": [[0, 0, 0.5, 0], [1, 1, 1, 1]]}
    read = Settings.from_json(sent | {"fit": "align", "reverse": True, "other": 1})
    assert read.grid == 12 and read.region == ((0, 0), (1, 0), (0, 1)) and read.pairs[0] == (0, 0, 0.5, 0)
    assert Settings.from_json({"region": None}) == Settings()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grid": 100}, '"grid" is 100; expected a number from 4 to 50'),
        ({"grid": "many"}, '"grid" is many'),
        ({"grid": True}, '"grid" is True'),
        ({"grid": float("nan")}, '"grid" is nan'),
        ({"seconds": 1e9}, '"seconds" is'),
        ({"start": -1}, '"start" is -1'),
        ({"start": float("nan")}, '"start" is nan'),
        ({"amplify": 9}, "from 0.25 to 2"),
        ({"fit": "glue"}, "fit 'glue'"),
        ({"tracker": 5}, '"tracker" must be str'),
        ({"reverse": 1}, '"reverse" must be bool'),
        ({"region": [[0, 0]]}, "region has 1 corners"),
        ({"region": [[0, 0, 0]] * 3}, '"region" must be'),
        ({"region": [[0, "x"]] * 3}, '"region" is x'),
        ({"region": [[0, 0]] * 500}, "at most 200"),
        ({"pairs": [[0, 0, 0, 0]]}, "two pairs"),
        ({"pairs": 7}, '"pairs" must be'),
        ({"fit": "align", "pairs": [[0, 0, 0, 0], [0, 0, 1, 1]]}, "are the same"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Settings.from_json(change)


def test_settings_must_be_an_object():
    with pytest.raises(InputError, match="must be an object"):
        Settings.from_json([1])


# --- webcam ----------------------------------------------------------------------------------------------------------


def shown(frame: np.ndarray, t: float = 0.0) -> dict:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=92)
    return {"kind": "webcam", "jpeg": base64.b64encode(data.getvalue()).decode(), "t": t}


def test_a_webcam_moves_the_picture_as_the_visitor_moves():
    webcam = WebcamRecipe(Settings(grid=12, tracker="lucas-kanade")).build()
    assert webcam.tracks_for(request(0, 9)).N == 0  # nothing seen yet
    frames = panned(25)
    blocks = []
    for start in (0, 12):
        for frame in frames[start : start + 12]:
            webcam.apply(shown(frame))
        blocks.append(webcam.tracks_for(request(9 + start, 12)))
    nothing = webcam.tracks_for(request(33, 12))
    whole = join(blocks)
    kept = whole.visible.all(axis=0)
    assert kept.sum() > 15
    steps = np.diff(whole.points[:, kept], axis=0)[..., 0]
    assert np.abs(np.median(steps, axis=1)[12:] - SHIFT).max() < 0.3  # the second chunk goes on where the first ended
    assert not np.ptp(nothing.points, axis=0).any()  # no news: it stands


def test_webcam_pictures_do_not_pile_up():
    webcam = WebcamMotion(Settings(grid=4))
    for _ in range(3 * MAX_WAITING):
        webcam.apply(shown(FRAMES[0]))
    assert len(webcam._waiting) <= MAX_WAITING
    webcam.close()


@pytest.mark.parametrize(
    "message, sentence",
    [
        ({}, 'needs "jpeg"'),
        ({"jpeg": "x" * 300_000}, "at most 200000 bytes"),
        ({"jpeg": "***"}, "not base64"),
        ({"jpeg": base64.b64encode(b"hello").decode()}, "not an image"),
    ],
)
def test_bad_webcam_pictures_are_named(message, sentence):
    webcam = WebcamMotion(Settings(grid=4))
    with pytest.raises(InputError, match=sentence):
        webcam.apply({"kind": "webcam"} | message)


def test_what_the_webcam_shows_is_never_recorded():
    from types import SimpleNamespace

    model, image = SimpleNamespace(preset=SimpleNamespace(name="fake")), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    record = Record()
    with Mailbox() as mailbox:
        mailbox.send(shown(FRAMES[0]))
        for _ in run_session(model, image, mailbox.address, base=WebcamRecipe(Settings()), record=record, stream=still):
            mailbox.send(STOP)
    assert record.recipe()["controls"] == [] and not record.recipe()["complete"] and not record.take_errors()


def test_seeds_cover_the_frame():
    for width, height in ((320, 180), (180, 320), (64, 64)):
        centres = Seeds(10).centres(width, height)
        assert len(centres) == np.prod(Seeds(10).cells(width, height)[:2])
        assert sorted(Seeds(10).number(centres, width, height)) == list(range(len(centres)))


def test_origins_of_tracks_that_have_ended_are_forgotten_by_the_webcam():
    class New:
        """A tracker that finds other points each time, under numbers that come again."""

        name, turn = "new", 0

        def follow(self, frames):
            self.turn += 1
            at = 10.0 * self.turn % 60
            return ready(np.full((len(frames), 3, 2), at), ids=np.arange(3) + 3 * (self.turn % 2))

    source = WebcamMotion(Settings(amplify=2.0), New())
    picture = base64.b64encode(cv2.imencode(".jpg", panned(1)[0])[1]).decode()
    for at in range(0, 96, 12):
        source.apply({"kind": "webcam", "jpeg": picture})
        tracks = source.tracks_for(request(at, 12))
        assert len(source._carried.origins) == 3
        np.testing.assert_allclose(tracks.points[0], tracks.points[-1])
    assert tracks.visible[-1].all()
