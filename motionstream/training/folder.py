"""Folders of real clips: their frames, captions and tracks. A bad clip is named and skipped, never fatal.

A clip is a video file or a sub-folder of pictures (at the preset's frame rate). `NAME.txt` beside it is its caption;
its tracks, of a grid over frame 0, are cached in `NAME.FIRST-LAST.TRACKER.DIGEST.tracks.npz` in the cache folder, so
that a tracker runs once; the digest is of the frames, since another clip may have the name (a long one is shortened).
Longer clips are taken in pieces of the length that is asked for, and read piece by piece.
"""

import hashlib
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from motionstream.controls.trackers import Seeds, Tracker
from motionstream.errors import InputError, writing
from motionstream.tracks import Tracks, join
from motionstream.video import VIDEO, Clip, fit_image, pictures_in, read_image

MAX_CAPTION = 4_000  # characters
MAX_NAME = 255  # bytes of a file's name: what file systems take
GRID = 50  # columns and rows: the paper's
CROP_FRAMES = 2_000  # the first ones of a clip, of which crops are cut


def tell(line: str) -> None:
    """Prints a line above a progress bar; in a data worker without tqdm's lock, which others would wait for for ever if
    the worker were stopped meanwhile."""
    if get_worker_info() is None:
        tqdm.write(line)
    else:
        print(line, flush=True)


@dataclass
class RealClips:
    """The clips of a folder, fitted to `size` (width, height) at `fps`.

    report: is told of every clip that is skipped, and why.
    """

    folder: Path
    size: tuple[int, int]
    fps: float
    report: Callable[[str], object] = tell
    bad: set[Path] = field(default_factory=set)
    lengths: dict[Path, int] = field(default_factory=dict)  # in frames, of clips of which crops were cut; 0: unknown

    def __post_init__(self):
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is no folder of clips")
        self.paths = sorted(p for p in self.folder.iterdir() if p.is_dir() or p.suffix.lower() in VIDEO)
        if not self.paths:
            raise InputError(
                f"{self.folder} has no clips: video files ({', '.join(sorted(VIDEO))}) or folders of pictures"
            )

    def frames(self, path: Path, start: int, most: int) -> np.ndarray | None:
        """Up to `most` frames from number `start` on, uint8 [T, H, W, 3]; None where they cannot be read, which is
        reported once."""
        width, height = self.size
        try:
            if path.is_dir():
                files = pictures_in(path)
                if not files:
                    raise InputError("there are no pictures in it")
                found = [fit_image(read_image(file), width, height) for file in files[start : start + most]]
            else:
                found = list(itertools.islice(Clip.open(path).frames(self.fps, self.size, start / self.fps), most))
            return np.stack(found) if found else np.empty((0, height, width, 3), np.uint8)
        except (InputError, OSError) as error:
            self.skip(path, str(error))
            return None

    def skip(self, path: Path, why: str) -> None:
        if path not in self.bad:
            self.bad.add(path)
            self.report(f"skipped {path}: {why}")

    def pieces(self, length: int, paths: Sequence[Path]) -> Iterator[tuple[Path, int, np.ndarray]]:
        """Every whole piece of `length` frames of these of the clips: (clip, its first frame, frames)."""
        for path in paths:
            for start in itertools.count(0, length):
                frames = self.frames(path, start, length)
                if frames is None or len(frames) < length:
                    break
                yield path, start, frames
            if not start and frames is not None:
                self.skip(path, f"it has {len(frames)} frames at {self.fps:g} a second; {length} are needed")

    def crop(self, rng: np.random.Generator, side: int, length: int) -> np.ndarray:
        """A random piece of a random clip: uint8 [length, side, side, 3]."""
        while len(self.bad) < len(self.paths):
            path = self.paths[rng.integers(len(self.paths))]
            frames = self._stretch(path, rng, length)
            if frames is None:
                continue
            if len(frames) < length or min(frames.shape[1:3]) < side:
                self.skip(path, f"it is {list(frames.shape[:3])}; {length} frames of {side} pixels are cut from it")
                continue
            y, x = (int(rng.integers(size - side + 1)) for size in frames.shape[1:3])
            return frames[:, y : y + side, x : x + side]
        raise InputError(f"{self.folder} has no clip of {length} frames and {side} pixels a side")

    def _stretch(self, path: Path, rng: np.random.Generator, length: int) -> np.ndarray | None:
        """`length` frames in a row from anywhere in a clip, or all where it has fewer; None as of `frames`."""
        if path not in self.lengths:
            self.lengths[path] = self._claimed_length(path)
        known = min(self.lengths[path], CROP_FRAMES)
        if known >= length:
            frames = self.frames(path, int(rng.integers(known - length + 1)), length)
            if frames is None or len(frames) == length:
                return frames
        frames = self.frames(path, 0, CROP_FRAMES)  # what it says is not so, or it says nothing
        if frames is None:
            return None
        self.lengths[path] = len(frames)
        start = int(rng.integers(max(0, len(frames) - length) + 1))
        return frames[start : start + length]

    def _claimed_length(self, path: Path) -> int:
        """How many frames a clip says it has; 0 where it says nothing, or cannot be read."""
        try:
            if path.is_dir():
                return len(pictures_in(path))
            return round((Clip.open(path).seconds or 0) * self.fps)
        except (InputError, OSError):
            return 0


def caption(path: Path) -> str:
    """What the text file beside a clip says; empty without one. `InputError` names one that cannot be read."""
    sidecar = path.with_name(f"{path.name}.txt") if path.is_dir() else path.with_suffix(".txt")
    if not os.path.isfile(sidecar):  # nor may a folder's name leave no room for four letters more
        return ""
    try:
        return sidecar.read_text("utf-8-sig", "replace")[:MAX_CAPTION].strip()
    except OSError as error:
        raise InputError(
            f"the caption {sidecar} cannot be read ({error.strerror}): make it readable, or take it away"
        ) from error


def _shortened(name: str, most: int) -> str:
    """A file's name, or as much of its beginning as has so many bytes."""
    whole = os.fsencode(name)
    return name if len(whole) <= most else whole[:most].decode("utf-8", "ignore")


def cached_tracks(
    cache: Path, path: Path, start: int, frames: np.ndarray, name: str, tracker: Callable[[Seeds], Tracker]
) -> Tracks:
    """Tracks of a piece of a clip, from the cache if they are there. A cache that cannot be read is made anew.

    name: of the tracker, as it was asked for; tracker: makes it.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(frames), digest_size=8).hexdigest()
    told = f".{start}-{start + len(frames) - 1}.{name}.{digest}.tracks.npz"
    file = cache / (_shortened(path.name, MAX_NAME - len(told)) + told)
    try:
        with np.load(file, allow_pickle=False) as saved:
            return Tracks(saved["points"], saved["visible"], saved["ids"])
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        pass
    following = tracker(Seeds(GRID, rows=GRID))
    with torch.inference_mode():
        tracks = join([following.follow(frames), following.finish()])
    unfinished = file.with_suffix(".tmp")
    with writing(file, "make room and run the same command again, or name another --cache"):
        cache.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as out:
            np.savez_compressed(out, points=tracks.points, visible=tracks.visible, ids=tracks.ids)
        unfinished.replace(file)
    return tracks
