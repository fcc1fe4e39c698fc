"""The frames of a running stream on their way out: JPEG to the canvas, H.264 into the clip for download.

Both are encoded on a thread of their own, so that the generator goes on with the next chunk meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from motionstream.streaming import Chunk
from motionstream.ui.live import Seat
from motionstream.video import Mp4Writer

JPEG_QUALITY = 88
MAX_CLIP_SECONDS = 600  # an endless stream must not fill the disk; the clip ends here, the stream does not


def jpeg(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """uint8 RGB [H, W, 3] -> JPEG file."""
    return cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


class ClipEncoder:
    """Takes chunks, sends their frames to `seat` and writes them to `path`.

        with ClipEncoder(seat, run, path, 320, 192, 16) as encoder:
            encoder.put(chunk, turned, newest_input)

    The file is there after the block, also one that raised, unless there was no frame. run: the canvas's number of this
    stream, which tells its frames from those of the stream before; recipe: for the file's metadata.
    """

    def __init__(self, seat: Seat, run: int | None, path: Path, width: int, height: int, fps: float):
        self.recipe: dict | None = None
        self._seat, self._run, self._max_frames = seat, run, MAX_CLIP_SECONDS * fps
        self._writer = Mp4Writer(path, width, height, fps)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clip")
        self._pending: Future | None = None

    def put(self, chunk: Chunk, turned: Mapping[int, np.ndarray], newest_input: float | None) -> None:
        """Hands one chunk over; waits for the chunk before it, and raises what went wrong with that one.

        turned: see `DragSource.turned`; newest_input: browser's clock (ms) of the newest pointer sample that the chunk
        follows, if it is news.
        """
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._encode, chunk, turned, newest_input)

    def __enter__(self) -> ClipEncoder:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True)
        if self._writer.frames:  # whatever ended the stream: what was made until then is the visitor's
            self._writer.recipe = self.recipe
            self._writer.close()
        else:
            self._writer.discard()

    def _encode(self, chunk: Chunk, turned: Mapping[int, np.ndarray], newest_input: float | None) -> None:
        header = {
            "kind": "frame",
            "run": self._run,
            "chunk": chunk.index,
            "count": len(chunk.frames),
            "seconds": round(chunk.timings["total"], 4),
            "input": newest_input,
        }
        for index, frame in enumerate(chunk.frames):
            now = {key: round(float(angles[index]), 3) for key, angles in turned.items()}
            self._seat.send(header | {"frame": chunk.start + index, "index": index, "turned": now}, jpeg(frame))
        if self._writer.frames < self._max_frames:
            self._writer.write(chunk.frames)
