"""How far away everything in a picture is: learned estimates, uploaded maps, or planes (see `planes.py`), one protocol.

| class | what | needs |
|---|---|---|
| `Standing` | the single-view box, with two handles, and things that stand in it | nothing: the embedded default |
| `DepthAnything` | Depth Anything V2 Small (Apache 2.0) | transformers and the weights, from the Hub or its cache |
| `MoGe` | MoGe-2, metric | the package `moge`, if it is installed, and its weights |
| `DepthMap` | an uploaded map: 8/16-bit PNG, NPY, EXR | the file |

Depth is z along the camera's axis, float64 [h, w], above 0 and finite. Where a method has no unit of its own, the
farthest thing is at 1. Learned models are loaded once a process and named in what is pickled, never pickled themselves.
"""

from __future__ import annotations

import importlib.util
import io
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import ClassVar, Protocol

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError

from motionstream.controls.pinhole import Camera
from motionstream.errors import InputError, one_line
from motionstream.video import DAMAGE

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
MOGE = "Ruicheng/moge-2-vits-normal"
FILES = ["*.json", "*.safetensors", "*.pt"]
FETCH_SECONDS = 10.0  # for the Hub to answer
SIDE, PATCH = 518, 14  # pixels: the shorter side that Depth Anything was trained at, and of one of its tokens
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels
RANGE = 20.0  # how many times farther the farthest thing is than the nearest, where only their order is known
MAX_BYTES = 64 * 2**20
MAX_SIDE = 4_096  # pixels
KEPT = 1_024  # samples a side: more than the tracks can tell apart
MAX_RATIO = 1e4  # of the largest to the median depth: sky and errors go no farther


class Depth(Protocol):
    """Where depth comes from. Picklable.

    label: for the visitor, in a few words.
    """

    label: str

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        """Depth [h, w] of `image` uint8 [H, W, 3], which is what `camera` sees.

        start: the camera of the stream's first frame; known: [rows, columns], what is known of the answer from earlier
        views, NaN where nothing is, or None at the start.
        """
        ...


@dataclass(frozen=True)
class Learned:
    """A model whose weights are somewhere else: `name` is a repository on the Hub, or a folder or file in its layout.

    Using it raises `InputError` where package or weights cannot be had.
    """

    name: str
    package: ClassVar[str]
    files: ClassVar[tuple[str, ...]]  # patterns of what `load` needs

    def ready(self) -> bool:
        """Whether it can run without fetching anything."""
        return importlib.util.find_spec(self.package) is not None and self.folder(local=True) is not None

    def fetch(self) -> bool:
        """Has the weights brought into the Hub's cache -> whether they are there now. May take minutes."""
        return self.folder(local=False) is not None

    def folder(self, local: bool) -> Path | None:
        """See `_folder`; None also where a download has broken off, or is under way."""
        folder = _folder(self.name, local)
        if folder is None or Path(self.name).exists() or all(any(folder.glob(file)) for file in self.files):
            return folder
        return None


@dataclass(frozen=True)
class DepthAnything(Learned):
    """Depth Anything V2 (Yang et al. 2024) through transformers: relative inverse depth."""

    name: str = DEPTH_ANYTHING
    label = "Depth Anything V2"
    package = "transformers"
    files = ("config.json", "*.safetensors")

    def load(self, folder: Path) -> torch.nn.Module:
        from transformers import DepthAnythingForDepthEstimation

        return DepthAnythingForDepthEstimation.from_pretrained(folder, use_safetensors=True)

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        rows, columns = image.shape[:2]
        scale = SIDE / min(rows, columns)
        size = tuple(max(1, round(side * scale / PATCH)) * PATCH for side in (rows, columns))
        pixels = F.interpolate(_unit(image)[None], size=size, mode="bicubic", antialias=True)
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        with torch.inference_mode():
            found = _loaded(self)(pixels).predicted_depth[None]
        found = F.interpolate(found, size=(rows, columns), mode="bilinear")[0, 0].double().numpy()
        return aligned(from_nearness(found), known)


@dataclass(frozen=True)
class MoGe(Learned):
    """MoGe-2 (Wang et al. 2025) where the package `moge` is installed: metric depth."""

    name: str = MOGE
    label = "MoGe-2"
    package = "moge"
    files = ("*.pt",)

    def load(self, folder: Path) -> torch.nn.Module:
        from moge.model.v2 import MoGeModel

        return MoGeModel.from_pretrained(folder if folder.is_file() else folder / "model.pt")

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        degrees = math.degrees(2 * math.atan(image.shape[1] / (2 * camera.focal[0])))
        with torch.inference_mode():
            found = _loaded(self).infer(_unit(image), fov_x=degrees)["depth"]
        return aligned(completed(found.double().cpu().numpy()), known)


@dataclass(frozen=True, eq=False)
class DepthMap:
    """A ready-made map of the first frame, [h, w]. Of later views it says what of it is still to be seen, and goes on
    from there at the depth of what is next to it; where nothing is, at its median."""

    depth: np.ndarray
    label = "Uploaded depth map"

    def estimate(self, image: np.ndarray, camera: Camera, start: Camera, known: np.ndarray | None) -> np.ndarray:
        if known is None:
            return self.depth
        return completed(known if np.isfinite(known).any() else np.full(known.shape, np.median(self.depth)))


def aligned(depth: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """`depth` times the one factor (a median) that makes it agree with what is known of it."""
    if known is None or not np.isfinite(known).any():
        return depth
    coarse = cv2.resize(depth, known.shape[::-1], interpolation=cv2.INTER_AREA)
    return depth * np.nanmedian(known / coarse)


def completed(depth: np.ndarray) -> np.ndarray:
    """Where `depth` isn't a finite number above 0, that of the nearest place where it is. `InputError` if it nowhere
    is."""
    good = np.isfinite(depth) & (depth > 0)
    if not good.any():
        raise InputError("the depth map has no value above 0: choose another one")
    far = MAX_RATIO * np.median(depth[good])
    if not good.all():
        _, nearest = cv2.distanceTransformWithLabels(
            (~good).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
        values = np.zeros(nearest.max() + 1)
        values[nearest[good]] = depth[good]
        depth = values[nearest]
    return np.clip(depth, far / MAX_RATIO**2, far).astype(np.float64)


def from_nearness(nearness: np.ndarray) -> np.ndarray:
    """Relative inverse depth (more is nearer) -> depth; the farthest thing is at 1, the nearest at 1 / RANGE."""
    low, high = np.nanmin(nearness), np.nanmax(nearness)
    share = (nearness - low) / (high - low) if high > low else np.zeros_like(nearness)
    return 1 / (1 + np.nan_to_num(share) * (RANGE - 1))


def read_depth(data: bytes) -> np.ndarray:
    """A depth file's bytes -> what it says [h, w], float64, NaN where it says nothing.

    PNG of 8 or 16 bits (its brightness), NPY ([h, w] or [h, w, 1], never unpickled), EXR (one channel, or the first).
    Raises `InputError` where it is none of these, damaged, or larger than MAX_BYTES or MAX_SIDE pixels a side.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"the depth map has {len(data) >> 20} MB; at most {MAX_BYTES >> 20} MB: resize it")
    if data.startswith(b"\x89PNG"):
        values = _read_png(data)
    elif data.startswith(b"\x93NUMPY"):
        values = _read_npy(data)
    elif data.startswith(b"v/1\x01"):
        values = _read_exr(data)
    else:
        raise InputError("this is no depth map of a known kind: choose a PNG of 8 or 16 bits, an NPY or an EXR file")
    values = values.astype(np.float64)
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)  # more is no depth, and overflows


def is_depth_file(data: bytes) -> bool:
    """Whether an upload can only be a depth map, not a picture."""
    return data.startswith((b"\x93NUMPY", b"v/1\x01"))


def depth_from_values(values: np.ndarray, bright_is_near: bool) -> np.ndarray:
    """What `read_depth` gave -> depth: inverse and relative if `bright_is_near`, otherwise depth in its own unit."""
    if not np.isfinite(values).any():
        raise InputError("the depth map has no number in it: choose another one")
    return from_nearness(values) if bright_is_near else completed(values)


def fit_depth(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map of a whole photograph -> what `video.fit_image` keeps of it for a frame of this size: [h, w], at most KEPT
    samples a side."""
    rows, columns = values.shape
    scale = max(width / columns, height / rows)
    w, h = max(1, min(columns, round(width / scale))), max(1, min(rows, round(height / scale)))
    x, y, step = (columns - w) // 2, (rows - h) // 2, -(-max(w, h) // KEPT)
    return values[y : y + h : step, x : x + w : step].copy()


def guess_bright_is_near(values: np.ndarray) -> bool:
    """What is at the bottom of a picture is mostly nearer than what is at its top."""
    third = max(1, len(values) // 3)
    return bool(np.nanmean(values[-third:]) > np.nanmean(values[:third]))


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """Depth [h, w] -> uint8 RGB [h, w, 3]: near is bright and warm, far is dark."""
    nearness = 1 / depth
    low, high = np.quantile(nearness, (0.02, 0.98))
    share = np.clip((nearness - low) / (high - low), 0, 1) if high > low else np.full(depth.shape, 0.5)
    return cv2.applyColorMap(np.round(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()


def _folder(name: str, local: bool) -> Path | None:
    """Where the files of a model are; None where they cannot be had, without asking the Hub if `local`."""
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=local, etag_timeout=FETCH_SECONDS))
    except (HTTPError, OSError, ValueError):  # a download that breaks off is the first of these alone
        return None


@cache
def _loaded(model: DepthAnything | MoGe) -> torch.nn.Module:
    """The model itself, once a process."""
    if importlib.util.find_spec(model.package) is None:
        raise InputError(f"{model.label} needs the package {model.package}: install it, or use another depth")
    folder = model.folder(local=False)
    if folder is None:
        raise InputError(f"the weights of {model.name} cannot be had here: use the scene planes, or upload a depth map")
    try:
        return model.load(folder).eval()
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the weights of {model.name} cannot be read: {one_line(error)}; delete {folder}, or use another depth"
        ) from error


def _unit(image: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] -> [3, H, W] in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255


def _read_png(data: bytes) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        _check_size(*image.size)
        image.load()
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"the depth map is damaged and cannot be read: {error}") from error
    return np.asarray(image if image.mode.startswith("I") else image.convert("L"))


def _read_npy(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)) or kind.kind not in "uif":
            raise InputError(f"the array is {kind} {list(shape)}; expected numbers, [height, width]")
        _check_size(shape[1], shape[0])
        file.seek(0)
        return np.load(file, allow_pickle=False).reshape(shape[:2])
    except InputError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
        raise InputError("the NPY file is damaged and cannot be read: choose another one") from error


def _read_exr(data: bytes) -> np.ndarray:
    """OpenCV is built without OpenEXR; FFmpeg has a decoder of its own."""
    decoder = av.codec.CodecContext.create("exr", "r")
    decoder.options = {"max_pixels": str(MAX_SIDE**2)}
    decoder.thread_count = 1
    try:
        frames = decoder.decode(av.Packet(data)) + decoder.decode(None)
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(
            f"the EXR file is damaged, of a rare kind, or larger than {MAX_SIDE} pixels a side: save it uncompressed or"
            " with ZIP, or choose a PNG or NPY file"
        ) from error
    if not frames:
        raise InputError("the EXR file has no picture in it: choose another one")
    _check_size(frames[0].width, frames[0].height)
    return _first_channel(frames[0])


def _first_channel(frame: av.VideoFrame) -> np.ndarray:
    """[h, w]: PyAV makes no arrays of half floats, which most EXR files hold."""
    channels = frame.format.components
    first, kind = channels[0], "f" if "f" in frame.format.name else "u"
    if first.bits not in (16, 32):
        raise InputError(f"the EXR file's numbers are {frame.format.name}: save it as half or float")
    step = sum(channel.plane == first.plane for channel in channels)  # 1, or as many as lie side by side
    plane = frame.planes[first.plane]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]  # lines are padded
    return rows.view(f"{kind}{first.bits // 8}")[:, : frame.width * step : step]


def _check_size(width: int, height: int) -> None:
    if not 1 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise InputError(f"the depth map is {width}x{height}; 1 to {MAX_SIDE} pixels a side are possible: resize it")
