"""Trajectories as other programs write them, in and out.

| name | file | what is in it |
|---|---|---|
| motionstream | .json | `Tracks.to_json`: size, rate, IDs and visibility included |
| comfyui | .json, .pt | ComfyUI's TRACKS: "track_path" [T, N, 2] and "track_visibility" [T, N] |
| spline | .json | KJ SplineEditor, also Wan-Move's and ATI's nodes: lists of {"x", "y"}, one list a track |
| wan-move | .npy | tracks [1, T, N, 2]; NAME_visibility.npy [1, T, N] beside NAME_tracks.npy or NAME.npy |
| ati | .pth | `torch.save` of the bytes of an npz: "array" [N, 121, 1, 3], 8 x, 8 y, 8 visible, at 24 fps |
| sg-i2v | .npy | [N, 16, 2]: two corners of a box, then its centre in 14 frames, pixels of a 1024x576 frame (in only) |
| tora | .txt | a line "x,y" for each point of one path, on a 256x256 canvas (in only) |

What a file does not say is taken from its program: the rate it generates at; no size means pixels of the image that the
trajectories were drawn on. A file is known by what is in it, not by its name. Nothing is ever unpickled: .pth and .pt
are read with `weights_only=True`, .npy and .npz with `allow_pickle=False`, and of none are more than MAX_FILE_BYTES
unpacked.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from motionstream.errors import InputError
from motionstream.tracks import MAX_FRAMES, MAX_TRACKS, Tracks, draw_ids, held

MAX_POINTS = 25_000_000  # a file of a few bytes may claim any number
MAX_FILE_BYTES = 256 * 2**20  # MAX_TRACKS tracks of a minute at 30 frames a second have 204 MB as our JSON
ZIP = b"PK\x03\x04"  # how an archive begins
WAN_FPS, ATI_FPS, SVD_FPS = 16.0, 24.0, 7.0
ATI_FRAMES, ATI_SCALE = 121, 8
SG_I2V_FRAMES, SG_I2V_SIZE = 14, (1024, 576)
TORA_SIZE, TORA_SECONDS = (256, 256), 6.0  # 49 frames at 8 fps
# Of damaged files; there is no common class. PyTorch reads what is pickled on a stack of its own, and trusts it.
NPY_ERRORS = (ValueError, EOFError, OSError, MemoryError, SyntaxError, TokenError, OverflowError)
PTH_ERRORS = (
    RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError, struct.error
)
NPZ_ERRORS = (*NPY_ERRORS, RuntimeError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
Writer = Callable[[Path, Tracks, "tuple[float, float] | None", float], "dict[Path, bytes]"]  # file contents by name


@dataclass(frozen=True)
class Trajectories:
    """tracks: in pixels of a frame of `size` (width, height), None: of the image itself; fps: 1 / seconds a row."""

    tracks: Tracks
    size: tuple[float, float] | None
    fps: float


def load_tracks(path: str | Path, image_size: tuple[int, int], size: tuple[int, int], fps: float) -> Tracks:
    """Reads a file of any format above for a stream of `size` (width, height) pixels at `fps` frames per second.

    The file's frame is taken for the whole image of `image_size`, which `fit_image` cuts to `size`.
    """
    read = read_trajectories(path)
    tracks = read.tracks.retime(read.fps, fps)
    return tracks.scale(read.size or image_size, image_size).fit(image_size, size)


def read_trajectories(path: str | Path) -> Trajectories:
    """Reads a file of any format above. Raises `InputError` naming what is wrong."""
    path = Path(path)
    data = _read(path)
    if data[:6] == b"\x93NUMPY":
        return _from_npy(_load_npy(data, path.name), path)
    if data[:4] == ZIP or path.suffix in (".pth", ".pt"):
        return _from_torch(data, path.name)
    text = data.decode("utf-8-sig", "replace").strip()
    return _from_json(text) if text[:1] in ("{", "[") else _from_lines(text, path.name)


def write_trajectories(
    path: str | Path, tracks: Tracks, size: tuple[float, float] | None, fps: float, kind: str | None = None
) -> None:
    """Writes tracks of a `size` (width, height) frame at `fps`. kind: one of WRITERS, None: by the name's ending.

    The formats other than ours keep no size (None) and no rate: see RATES; ATI's has its own, and room for ATI_FRAMES.
    IDs are lost; spline keeps no visibility but a track's end. `InputError` if the format is not known, or the file
    cannot be written, or not be read again.
    """
    for name, data in WRITERS[pick_format(path, kind)](Path(path), tracks, size, fps).items():
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{name} would be {len(data) >> 20} MB large; at most {MAX_FILE_BYTES >> 20} are read"
                             " again: thin the tracks out, cut the clip, or write .npy")
        unfinished = name.with_name(f".{name.name}.part")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(name)
        except OSError as error:
            raise InputError(f"cannot write {name}: {error.strerror}") from error
        finally:  # after the last line there is nothing of that name
            with suppress(OSError):  # where there is no such folder, there is nothing to clean up either
                unfinished.unlink(missing_ok=True)


def pick_format(path: str | Path, kind: str | None) -> str:
    """The format of a file of that name, or `kind`; `InputError` if neither is known."""
    kind = kind or ENDINGS.get(Path(path).suffix.lower())
    if kind not in WRITERS:
        raise InputError(f"cannot write {path}: the format is one of {', '.join(WRITERS)}; .json, .npy, .pth or .pt")
    return kind


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB; thin the tracks out")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _make(points: np.ndarray, visible: np.ndarray | None = None) -> Tracks:
    """points [T, N, 2], visible (above 0) [T, N] or all -> Tracks with IDs drawn.

    What is no number is hidden, and where the point was last; so is what is hidden at (0, 0), which stands for nowhere.
    """
    points = np.asarray(points)
    if points.ndim != 3 or points.shape[2] != 2 or points.dtype.kind not in "iuf":
        given = f"{points.dtype} {list(points.shape)}"
        raise InputError(f"the trajectories are {given}; expected numbers [frames, tracks, 2]")
    frames, count = points.shape[:2]
    if frames > MAX_FRAMES or count > MAX_TRACKS or frames * count > MAX_POINTS:
        raise InputError(f"{count} tracks of {frames} frames; at most {MAX_TRACKS} of {MAX_FRAMES}, and {MAX_POINTS}"
                         " points in all: thin the tracks out, or cut them")
    visible = np.ones(points.shape[:2], bool) if visible is None else visible
    if visible.shape != points.shape[:2]:  # before anything is made of it: a few bytes may claim any shape
        raise InputError(f"the visibility has shape {list(visible.shape)}; the points need {list(points.shape[:2])}")
    known = np.isfinite(points).all(axis=-1)
    points = np.where(known[..., None], points, 0)
    points = held(points, known & ((visible > 0) | points.any(axis=-1)))
    return Tracks(points, (visible > 0) & known, draw_ids(points.shape[1], np.random.default_rng(0)))


def _load_npy(data: bytes, name: str) -> np.ndarray:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except NPY_ERRORS as error:
        raise InputError(f"{name} is not a NumPy file of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} is not a NumPy file of numbers, but of {array.dtype}")
    return array


def _from_npy(array: np.ndarray, path: Path) -> Trajectories:
    if array.dtype != bool and array.ndim == 3 and array.shape[1:] == (SG_I2V_FRAMES + 2, 2):
        return _from_boxes(array)
    visible = None
    beside = path.with_name(path.stem.removesuffix("tracks").removesuffix("_") + "_visibility.npy")
    if beside != path and beside.exists():
        visible = _load_npy(_read(beside), beside.name)
        visible = visible[0] if visible.ndim == 3 and len(visible) == 1 else visible
    return Trajectories(_make(array[0] if array.ndim == 4 and len(array) == 1 else array, visible), None, WAN_FPS)


def _from_boxes(array: np.ndarray) -> Trajectories:
    """SG-I2V: each box becomes 3 x 3 points that move with its centre."""
    corners, path = array[:, :2], array[:, 2:].swapaxes(0, 1)  # [N, 2, 2], [T, N, 2]
    steps = np.stack(np.meshgrid([-0.25, 0, 0.25], [-0.25, 0, 0.25]), axis=-1).reshape(9, 2)
    offsets = steps[None] * (corners[:, 1] - corners[:, 0])[:, None]  # [N, 9, 2]
    return Trajectories(_make((path[:, :, None] + offsets).reshape(len(path), -1, 2)), SG_I2V_SIZE, SVD_FPS)


def _from_lines(text: str, name: str) -> Trajectories:
    """Tora: one path."""
    try:
        path = np.array([[float(value) for value in line.split(",")] for line in text.splitlines() if line.strip()])
    except ValueError as error:
        raise InputError(f'{name} is no trajectory file of a known format; a text file has lines "x,y"') from error
    if not len(path) or path.ndim != 2 or path.shape[1] != 2:
        raise InputError(f'{name} has no path: every line must be "x,y"')
    return Trajectories(_make(path[:, None]), TORA_SIZE, max(len(path) - 1, 1) / TORA_SECONDS)


def _from_json(text: str) -> Trajectories:
    try:
        data = _parse(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tracks are not JSON: {error}") from error
    if isinstance(data, dict) and "track_path" in data:
        return _from_comfyui(data)
    if isinstance(data, dict):
        return Trajectories(*Tracks.from_json(text))
    paths = [data] if data and isinstance(data[0], dict) else data
    if not paths or not all(isinstance(path, list) and path for path in paths):
        raise InputError('the tracks must be lists of {"x", "y"} points, one list a track')
    length = max(len(path) for path in paths)
    if length * len(paths) > MAX_FRAMES * 100 or length > MAX_FRAMES:
        raise InputError(f"{len(paths)} tracks of up to {length} frames are too many: thin them out")
    try:
        lists = [[(float(point["x"]), float(point["y"])) for point in path] for path in paths]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise InputError(f'every point of a track must be {{"x": number, "y": number}}: {error}') from error
    points = np.array([path + path[-1:] * (length - len(path)) for path in lists]).swapaxes(0, 1)
    visible = np.array([[t < len(path) for path in lists] for t in range(length)])
    return Trajectories(_make(points, visible), None, WAN_FPS)


def _parse(text: str) -> object:
    """JSON; the nodes that hand splines on also take Python's way to quote."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text.replace("'", '"'))


def _from_comfyui(data: dict) -> Trajectories:
    points = _array(data.get("track_path"), "track_path")
    visible = data.get("track_visibility")
    if visible is not None:
        visible = _array(visible, "track_visibility")
        if visible.ndim == 2 and visible.shape[1] == 1 and points.ndim == 3:  # from a mask: one for all tracks
            visible = np.broadcast_to(visible, (len(visible), points.shape[1]))
    return Trajectories(_make(points, visible), None, WAN_FPS)


def _array(value: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f'"{name}" must be numbers in lists of equal length') from error
    if array.dtype.kind not in "biuf":
        raise InputError(f'"{name}" must be numbers in lists of equal length')
    return array


def _from_torch(data: bytes, name: str) -> Trajectories:
    """ATI's .pth, or ComfyUI's TRACKS as saved by torch."""
    import torch

    if data[:4] != ZIP:  # its reader of older files gives way in too many places for files of strangers
        raise InputError(f"{name} is not a file of trajectories, or of PyTorch before 1.6: save it with a newer one")
    _check_unpacked(data, name)
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except PTH_ERRORS as error:
        raise InputError(f"{name} is no file of trajectories: only numbers and bytes are read from it") from error
    if isinstance(value, dict) and "track_path" in value:
        return _from_comfyui(value)
    if not isinstance(value, bytes):
        raise InputError(f"{name} holds {type(value).__name__}; expected ATI's bytes or ComfyUI's track_path")
    _check_unpacked(value, name)
    try:
        with np.load(io.BytesIO(value), allow_pickle=False) as packed:
            array = np.asarray(packed["array"])  # bytes where it is no array
    except NPZ_ERRORS as error:
        raise InputError(f"{name} is no ATI trajectory: {error}") from error
    if array.ndim == 4 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{name} has an array {list(array.shape)}; expected [tracks, {ATI_FRAMES}, 1, 3]")
    array = array.swapaxes(0, 1).astype(np.float32) / ATI_SCALE
    return Trajectories(_make(array[..., :2], array[..., 2] > 0.5), None, ATI_FPS)


def _check_unpacked(data: bytes, name: str) -> None:
    """A small archive may unpack to terabytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{name} is not a file of trajectories, or damaged: {error}") from error
    if size > MAX_FILE_BYTES:
        raise InputError(f"{name} unpacks to {size >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB: thin the tracks out")


def _npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _to_motionstream(path: Path, tracks: Tracks, size: tuple[float, float] | None, fps: float) -> dict[Path, bytes]:
    if size is None:
        raise InputError(f"{path} is to say how large the picture is that the tracks were drawn on: add --size WxH")
    return {path: tracks.to_json(*size, fps).encode()}


def _to_comfyui(path: Path, tracks: Tracks, size: tuple[float, float] | None, fps: float) -> dict[Path, bytes]:
    arrays = {"track_path": tracks.points, "track_visibility": tracks.visible}
    if path.suffix == ".json":
        return {path: json.dumps({name: array.tolist() for name, array in arrays.items()}).encode()}
    import torch

    data = io.BytesIO()
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, data)
    return {path: data.getvalue()}


def _to_spline(path: Path, tracks: Tracks, size: tuple[float, float] | None, fps: float) -> dict[Path, bytes]:
    ends = [int(seen.nonzero()[0][-1]) + 1 if seen.any() else 0 for seen in tracks.visible.T]
    lists = [
        [{"x": x, "y": y} for x, y in points[:end].tolist()]
        for points, end in zip(tracks.points.swapaxes(0, 1), ends, strict=True)
        if end
    ]
    return {path: json.dumps(lists).encode()}


def _to_wan_move(path: Path, tracks: Tracks, size: tuple[float, float] | None, fps: float) -> dict[Path, bytes]:
    beside = path.with_name(path.stem.removesuffix("tracks").removesuffix("_") + "_visibility.npy")
    return {path: _npy(tracks.points[None]), beside: _npy(tracks.visible[None])}


def _to_ati(path: Path, tracks: Tracks, size: tuple[float, float] | None, fps: float) -> dict[Path, bytes]:
    import torch

    tracks = tracks.retime(fps, ATI_FPS)
    array = np.zeros((tracks.N, ATI_FRAMES, 1, 3), np.float32)
    length = min(tracks.T, ATI_FRAMES)
    array[:, :length, 0, :2] = tracks.points[:length].swapaxes(0, 1) * ATI_SCALE
    array[:, :length, 0, 2] = tracks.visible[:length].T * ATI_SCALE
    packed, data = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, array=array)
    torch.save(packed.getvalue(), data)
    return {path: data.getvalue()}


WRITERS: dict[str, Writer] = {
    "motionstream": _to_motionstream,
    "comfyui": _to_comfyui,
    "spline": _to_spline,
    "wan-move": _to_wan_move,
    "ati": _to_ati,
}
# At which the programs generate, frames a second: what `read_trajectories` takes files for that do not say any.
RATES = {"comfyui": WAN_FPS, "spline": WAN_FPS, "wan-move": WAN_FPS, "ati": ATI_FPS}
ENDINGS = {".json": "motionstream", ".npy": "wan-move", ".pth": "ati", ".pt": "comfyui"}
