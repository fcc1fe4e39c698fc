"""Trajectory files of other programs: what each means, round trips, and files that want to do harm."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from motionstream.errors import InputError
from motionstream.tracks import Tracks
from motionstream.trajectories import WRITERS, load_tracks, read_trajectories, write_trajectories

SIZE = (200, 100)


def wave(frames=121, count=5) -> Tracks:
    """Points on waves; one is hidden now and then, all but the first are gone at the end."""
    t = np.linspace(0, 1, frames)[:, None]
    x = 20 + 150 * t + np.arange(count)
    points = np.stack([x, 50 + 30 * np.sin(6 * t + np.arange(count))], axis=-1)
    visible = np.ones((frames, count), bool)
    visible[frames // 3 : frames // 2, 1] = False
    visible[frames - 4 :, 1:] = False
    return Tracks(points, visible, np.arange(count))


def npy(array, **settings) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **settings)
    return data.getvalue()


def saved(value, **settings) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **settings)
    return data.getvalue()


def npz(**arrays) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize(
    "name, kind",
    [("a.json", None), ("a.npy", None), ("a_tracks.npy", None), ("a.pth", None), ("a.pt", None), ("a.json", "comfyui")],
)
def test_round_trips(tmp_path, name, kind):
    before = wave()
    write_trajectories(tmp_path / name, before, SIZE, 24.0, kind)
    after = read_trajectories(tmp_path / name)
    np.testing.assert_allclose(after.tracks.points, before.points, atol=1e-4)
    assert np.array_equal(after.tracks.visible, before.visible)
    assert after.size == (SIZE if name == "a.json" and kind is None else None)
    assert after.fps == {"a.json": 24.0, "a.pth": 24.0}.get(name if kind is None else "", 16.0)
    assert not list(tmp_path.glob("*.part"))


def test_splines_keep_points_and_ends(tmp_path):
    before = wave()
    write_trajectories(tmp_path / "a.json", before, SIZE, 16.0, "spline")
    assert json.loads((tmp_path / "a.json").read_text())[0][3] == pytest.approx({"x": 23.75, "y": 54.48}, abs=0.1)
    after = read_trajectories(tmp_path / "a.json").tracks
    assert after.visible.sum(axis=0).tolist() == [121, 117, 117, 117, 117]
    np.testing.assert_allclose(after.points[:117], before.points[:117], atol=1e-4)


def test_ati_has_121_frames_at_24_a_second(tmp_path):
    write_trajectories(tmp_path / "a.pth", wave(frames=49), SIZE, 16.0)  # three seconds
    after = read_trajectories(tmp_path / "a.pth")
    assert after.tracks.T == 121 and after.tracks.visible[72, 0] and not after.tracks.visible[73:].any()
    raw = np.load(io.BytesIO(torch.load(tmp_path / "a.pth", weights_only=True)))["array"]
    assert raw.shape == (5, 121, 1, 3) and raw[0, 0, 0].tolist() == [160, 400, 8]


def test_single_splines_and_pythons_quotes_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[{'x': 1, 'y': 2}, {'x': 3.5, 'y': 4}]")
    assert read_trajectories(path).tracks.points.tolist() == [[[1, 2]], [[3.5, 4]]]


def test_comfyuis_mask_visibility_is_for_all_tracks(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(saved({"track_path": torch.ones(3, 2, 2), "track_visibility": torch.tensor([[1], [0], [1]])}))
    assert read_trajectories(path).tracks.visible.tolist() == [[True, True], [False, False], [True, True]]


def test_boxes_of_sg_i2v_become_rigid_grids(tmp_path):
    path = tmp_path / "traj.npy"
    centres = np.linspace([200.0, 100.0], [300.0, 100.0], 14)
    path.write_bytes(npy(np.concatenate([[[180, 60], [220, 140]], centres])[None]))
    read = read_trajectories(path)
    assert read.size == (1024, 576) and (read.tracks.T, read.tracks.N) == (14, 9)
    np.testing.assert_allclose(read.tracks.points.mean(axis=1), centres, atol=1e-4)
    assert np.ptp(read.tracks.points[0], axis=0).tolist() == [20, 40]


def test_paths_of_tora_last_six_seconds(tmp_path):
    (tmp_path / "a.txt").write_text("128, 64\n128,128\n\n")
    assert load_tracks(tmp_path / "a.txt", (512, 512), (512, 512), 16.0).points[[0, 48, 96], 0].tolist() == [
        [256, 128],
        [256, 192],
        [256, 256],
    ]


def test_load_tracks_maps_the_image_and_the_rate(tmp_path):
    path = tmp_path / "t.json"
    line = np.stack([np.linspace(0, 80, 9), np.full(9, 25)], axis=-1)[:, None]
    path.write_text(Tracks(line, np.ones((9, 1), bool), [0]).to_json(100, 50, 8.0))
    t = load_tracks(path, image_size=(200, 100), size=(50, 50), fps=16.0)
    assert t.T == 17  # one second stays one second
    np.testing.assert_allclose(t.points[[0, 8, 16], 0], [[-25, 25], [15, 25], [55, 25]])
    assert t.visible[[0, 8, 16], 0].tolist() == [False, True, False]
    with pytest.raises(InputError, match="cannot read"):
        load_tracks(tmp_path / "none.json", (1, 1), (1, 1), 16.0)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


def packed(data: bytes) -> bytes:
    """An npz whose "array" is these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("array.npy", data)
    return file.getvalue()


def bomb() -> bytes:
    """An archive that says that it unpacks to 18 x 16 MB."""
    return damaged(npz(array=np.zeros((2, 3))), b"PK\x01\x02", 27, 18)


def pickled(data: bytes) -> bytes:
    """What `torch.save` writes, with `data` for its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3")
    return file.getvalue()


def damaged(archive: bytes, mark: bytes, at: int, value: int) -> bytes:
    """With the byte that is `at` bytes after the beginning of `mark` changed."""
    data = bytearray(archive)
    data[data.index(mark) + at] = value
    return bytes(data)


ENDLESS = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999, 2, 2)}\n"
VAST = torch.ones(1, 1, 1).expand(2**20, 2**36, 1)  # four bytes
ARCHIVE = npz(array=np.zeros((2, 3)))


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.npy", b"\x93NUMPY\x01\x00" + len(ENDLESS).to_bytes(2, "little") + ENDLESS, "not a NumPy file of numbers"),
        ("a.pth", pickled(b"\x80\x02e."), "no file of trajectories"),  # a list that nothing began ends
        ("a.pth", saved(damaged(ARCHIVE, b"array.npy", 29, 255)), "no ATI trajectory"),  # no deflated block
        ("a.pth", saved(damaged(ARCHIVE, b"PK\x01\x02", 8, 1)), "no ATI trajectory"),  # encrypted, it says
        ("a.npy", npy(np.array([Evil()], object), allow_pickle=True), "not a NumPy file of numbers"),
        ("a.pth", pickled(b"\x80\x02J\x00"), "no file of trajectories"),  # half a number
        ("a.pth", pickle.dumps(Evil()), "not a file of trajectories"),
        ("a.pth", saved(ARCHIVE, _use_new_zipfile_serialization=False), "or of PyTorch before 1.6: save it with"),
        ("a.pth", saved(Evil()), "only numbers and bytes"),
        ("a.pth", saved(npz(array=np.array([Evil()], object))), "no ATI trajectory"),
        ("a.pth", saved(b"nonsense"), "damaged"),
        ("a.pth", saved(3), "holds int"),
        ("a.pth", saved(npz(other=np.zeros(3))), "no ATI trajectory"),
        ("a.pth", saved(packed(b"no array")), r"an array \[\]"),
        ("a.pth", saved(npz(array=np.zeros((2, 3)))), r"an array \[2, 3\]"),
        ("a.pth", bomb(), "unpacks to 288 MB; at most 256 MB"),
        ("a.pth", saved(bomb()), "unpacks to 288 MB; at most 256 MB"),
        ("a.pth", b"PK\x03\x04" + bytes(50), "damaged"),
        ("a.npy", npy(np.zeros((2, 2))), r"expected numbers \[frames, tracks, 2\]"),
        ("a.npy", npy(np.zeros((1, 2, 3_000, 2))), "3000 tracks of 2 frames; at most 2500"),
        ("a.pt", saved({"track_path": torch.zeros(1, 1, 1).expand(20_000, 2_000, 2)}), "and 25000000 points in all"),
        ("a.npy", b"\x93NUMPY\x01\x00", "not a NumPy file"),
        ("a.npy", npy(np.zeros((2, 16, 2))).replace(b"(2, 16, 2)", b"(2, 16, 2("), "not a NumPy file"),
        ("a.npy", npy(np.zeros((2, 16, 2), bool)), r"are bool \[2, 16, 2\]; expected numbers"),
        ("a.npy", npy(np.full((2, 16, 2), "a")), "not a NumPy file of numbers"),
        ("a.json", b"[]", "lists of"),
        ("a.json", b"[[1, 2]]", "must be"),
        ("a.json", b'[[{"x": 1}]]', "must be"),
        ("a.json", b'[[{"x": 1, "y": "far"}]]', "must be"),
        ("a.json", b'[[{"x": 1, "y": 1' + b"0" * 400 + b"}]]", "must be"),
        ("a.json", b'{"track_path": [[1], [1, 2]]}', "lists of equal length"),
        ("a.json", b'{"track_path": [[[1, 2]]], "track_visibility": [[1, 1, 1]]}', "visibility has shape"),
        ("a.pt", saved({"track_path": torch.ones(3, 2, 2), "track_visibility": VAST[..., 0]}), "visibility has shape"),
        ("a.pt", saved({"track_path": VAST[:3].expand(-1, -1, 2), "track_visibility": torch.ones(3, 1)}), "tracks"),
        ("a.json", b"{'a", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.txt", b"1,2\nhello", "no trajectory file of a known format"),
        ("a.txt", b"", "has no path"),
        ("a.txt", b"1,2\n3", "no trajectory|must be"),
        ("a.mp4", bytes(range(256)), "no trajectory file of a known format"),
    ],
)
def test_files_that_are_no_trajectories_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_trajectories(tmp_path / name)


def test_a_visibility_file_without_numbers_is_named(tmp_path):
    write_trajectories(tmp_path / "a.npy", wave(), SIZE, 16.0)
    (tmp_path / "a_visibility.npy").write_bytes(npy(np.array(["yes"])))
    with pytest.raises(InputError, match="a_visibility.npy is not a NumPy file of numbers"):
        read_trajectories(tmp_path / "a.npy")


def test_what_is_no_number_is_hidden(tmp_path):
    array = np.ones((1, 3, 2, 2))
    array[0, 1, 0] = np.nan
    (tmp_path / "a.npy").write_bytes(npy(array))
    assert read_trajectories(tmp_path / "a.npy").tracks.visible.tolist() == [[True, True], [False, True], [True, True]]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="one of motionstream, comfyui, spline, wan-move, ati"):
        write_trajectories(tmp_path / "a.avi", wave(), SIZE, 16.0)
    for kind in WRITERS:
        with pytest.raises(InputError, match="cannot write"):
            write_trajectories(tmp_path / "none" / "a.json", wave(), SIZE, 16.0, kind)


def test_a_file_that_is_not_written_to_the_end_is_not_there(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_trajectories(tmp_path / "a.json", wave(), SIZE, 16.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/a.json", f"{'x' * 300}.json"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(InputError, match="cannot write"):
        write_trajectories(tmp_path / name, wave(), SIZE, 16.0)


def test_a_point_is_where_it_was_last_while_nobody_knows_where(tmp_path):
    points = np.full((1, 6, 2, 2), np.nan, np.float32)
    points[0, :3, 0], points[0, 4:, 1] = (30, 40), (50, 20)
    np.save(tmp_path / "a_tracks.npy", points)
    tracks = read_trajectories(tmp_path / "a_tracks.npy").tracks
    assert np.array_equal(tracks.visible, np.isfinite(points[0, ..., 0]))
    assert (tracks.points[:, 0] == (30, 40)).all() and (tracks.points[:, 1] == (50, 20)).all()


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "4,20\n5,20\n6,20"), ("a.json", '[{"x": 4, "y": 20}, {"x": 5, "y": 20}]')]
)
def test_a_byte_order_mark_is_no_part_of_a_file(name, text, tmp_path):
    """Some editors write one."""
    points = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(text, encoding=encoding)
        points.append(read_trajectories(tmp_path / name).tracks.points)
    np.testing.assert_array_equal(*points)
