"""The Motion transfer tab: a clip, or the visitor's camera, moves another picture.

A clip comes over the canvas's WebSocket in parts and is kept in a temporary folder for as long as the visitor is there.
A thread tracks the chosen piece and sends its frames with the tracks on them; a stream may start meanwhile, then the
stream's own source goes on. Commands of the panel:

    {"kind": "clip", "bytes": N}       once that is answered by "send", the next N bytes of binary messages are a clip
    {"kind": "track", "settings": {...}, "image": "clip" | "own"}    see `Settings`; whose first frame is animated
    {"kind": "cancel"}                 stop tracking; drop an upload that is not complete
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from weakref import WeakSet

import numpy as np

from motionstream.controls.layers import SourceRecipe
from motionstream.controls.trackers import LICENCES
from motionstream.controls.transfer import MAX_SECONDS, ClipRecipe, Settings, WebcamRecipe, track_clip
from motionstream.errors import InputError
from motionstream.tracks import Tracks
from motionstream.ui.clip import jpeg
from motionstream.ui.live import Seat
from motionstream.ui.tab import CanvasTab, Example
from motionstream.video import Clip, fit_image

MAX_CLIP = 200 * 2**20  # bytes
MAX_CLIPS = 2 * 2**30  # bytes, of all visitors' clips together
PREVIEW_SIDE = 320  # pixels
PREVIEW_QUALITY = 70
MAX_BACKLOG = 60  # previews that may wait for a slow connection
TRACKING_AT_ONCE = 2  # clips of all visitors together


class Desk:
    """One visitor's clip: its upload, its file, what has been tracked of it and the thread that tracks."""

    def __init__(self):
        self.clip: Clip | None = None
        self.tracked: tuple[tuple, tuple[Tracks, ...]] | None = None  # `Settings.tracking`, and that piece's blocks
        self.shown: float | None = None  # second of the clip whose frame is the seat's picture, if it is one
        self.size = 0  # bytes of the clip, also while it comes
        self.missing = 0  # of them still to come
        self.cancelled = threading.Event()  # of the newest thread
        self._folder = tempfile.TemporaryDirectory(prefix="motionstream-")  # gone with the last who knows this desk
        self._path = Path(self._folder.name, "upload")

    def expect(self, size: int) -> None:
        """An upload of `size` bytes begins."""
        self.drop()
        self.size = self.missing = size

    def drop(self) -> None:
        """Forgets the clip, or what has come of it."""
        self.cancelled.set()
        self.clip = self.tracked = self.shown = None
        self.size = self.missing = 0
        self._path.unlink(missing_ok=True)  # who still reads the old file keeps it

    def take(self, part: bytes) -> bool:
        """One part of the upload; whether it was the last."""
        with self._path.open("ab") as file:
            file.write(part[: self.missing])
        self.missing = max(0, self.missing - len(part))
        return not self.missing

    def open(self) -> Clip:
        """The uploaded file, looked at. `InputError` if it is no video; it is dropped then."""
        try:
            self.clip = Clip.open(self._path, max_bytes=MAX_CLIP)
        except InputError:
            self.drop()
            raise
        return self.clip


class TransferTab(CanvasTab):
    """See the module's docstring."""

    title = "Motion transfer"
    seat = panel = "transfer"
    commands = (*CanvasTab.commands, "clip", "track", "cancel")

    def __init__(self, *args):
        super().__init__(*args)
        self._turn = threading.Semaphore(TRACKING_AT_ONCE)
        self._desks: WeakSet[Desk] = WeakSet()  # all of them
        self._lock = threading.Lock()

    def facts(self) -> dict:
        return {"max_clip_bytes": MAX_CLIP, "max_seconds": MAX_SECONDS, "trackers": LICENCES}

    def welcome(self, seat: Seat) -> None:
        desk = self._desk(seat)
        if desk.missing:  # the rest was for the connection that was lost
            desk.drop()
        super().welcome(seat)

    def picture_facts(self, seat: Seat, example: Example | None) -> dict:
        return super().picture_facts(seat, example) | {"image": "own" if self._desk(seat).shown is None else "clip"}

    def change_picture(self, seat: Seat, *args) -> None:
        shown, self._desk(seat).shown = self._desk(seat).shown, None
        try:
            super().change_picture(seat, *args)
        except InputError:
            self._desk(seat).shown = shown
            raise

    def command(self, seat: Seat, message: dict | bytes) -> None:
        desk = self._desk(seat)
        if isinstance(message, dict) and message["kind"] == "cancel":
            desk.cancelled.set()
            if desk.missing:
                desk.drop()
        elif seat.streaming:
            raise InputError("a stream is running: stop it before you change the clip or the picture")
        elif isinstance(message, bytes) and desk.missing:
            if desk.take(message):
                clip = desk.open()
                facts = {"width": clip.width, "height": clip.height, "seconds": clip.seconds, "fps": clip.fps}
                seat.send({"kind": "clip", **facts})
        elif isinstance(message, bytes):
            super().command(seat, message)
        elif message["kind"] == "clip":
            self._expect(desk, message.get("bytes"))
            seat.send({"kind": "send"})
        else:
            self._track(seat, desk, Settings.from_json(message.get("settings")), message.get("image") == "clip")

    def base(self, seat: Seat, data: object) -> SourceRecipe:
        """data: {"source": "clip" | "webcam", "settings": {...}}."""
        data = data if isinstance(data, dict) else {}
        settings, desk = Settings.from_json(data.get("settings")), self._desk(seat)
        if data.get("source") == "webcam":
            return WebcamRecipe(settings)
        if desk.clip is None:
            raise InputError("there is no clip yet: upload one, or choose the webcam")
        desk.cancelled.set()
        key, blocks = desk.tracked or (None, None)
        fps = self.engine.model.preset.fps
        return ClipRecipe(str(desk.clip.path), settings, fps, blocks if key == settings.tracking else None)

    def _desk(self, seat: Seat) -> Desk:
        if seat.own is None:
            seat.own = Desk()
            with self._lock:
                self._desks.add(seat.own)
        return seat.own

    def _expect(self, desk: Desk, size: object) -> None:
        """Has the desk expect a clip, if there is room for it."""
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_CLIP:
            raise InputError(f"the clip has {str(size)[:20]} bytes; at most {MAX_CLIP >> 20} MB: cut or shrink it")
        with self._lock:
            total = size + sum(other.size for other in self._desks if other is not desk)
            if total > MAX_CLIPS:
                raise InputError(
                    f"with this one, the clips of all visitors would have {total >> 20} MB; at most"
                    f" {MAX_CLIPS >> 20} MB: shrink it, or try again in a few minutes"
                )
            desk.expect(size)

    def _track(self, seat: Seat, desk: Desk, settings: Settings, show: bool) -> None:
        """Shows the first frame if wanted, and starts the thread."""
        if desk.clip is None:
            raise InputError("there is no clip yet: upload one")
        desk.cancelled.set()
        desk.cancelled = threading.Event()
        if show and not settings.reverse:
            self._show_frame(seat, desk, settings.start)
        arguments = (seat, desk, desk.clip, settings, show, desk.cancelled)
        threading.Thread(target=self._run, args=arguments, name="tracking", daemon=True).start()

    def _show_frame(self, seat: Seat, desk: Desk, time: float) -> None:
        """Makes the clip's frame at `time` the picture, if it is not."""
        clip = desk.clip
        if desk.shown == time:
            return seat.send({"kind": "unchanged"})
        frame = next(clip.frames(clip.fps, (clip.width, clip.height), time), None)
        if frame is None:
            raise InputError(f"the clip has no frame at {time:g} seconds: start earlier")
        desk.shown = time
        self.show(seat, frame)

    def _run(
        self, seat: Seat, desk: Desk, clip: Clip, settings: Settings, show: bool, cancelled: threading.Event
    ) -> None:
        """The thread: tracks the piece, and says how it goes."""
        fps = self.engine.model.preset.fps
        try:
            if desk.tracked is None or desk.tracked[0] != settings.tracking:
                with self._turn:
                    blocks = None if cancelled.is_set() else self._preview(seat, clip, settings, fps, cancelled)
                if blocks is None:
                    return seat.send({"kind": "tracked", "cancelled": True})
                desk.tracked = settings.tracking, blocks
            blocks = desk.tracked[1]
            count = sum(block.T for block in blocks)
            if show and settings.reverse and not (cancelled.is_set() or seat.streaming):
                self._show_frame(seat, desk, settings.start + (count - 1) / fps)
            points = len(set().union(*(block.ids.tolist() for block in blocks)))
            seat.send({"kind": "tracked", "frames": count, "tracks": points})
        except InputError as error:
            seat.send({"kind": "tracked", "cancelled": True})
            seat.send({"kind": "error", "text": str(error)})

    def _preview(
        self, seat: Seat, clip: Clip, settings: Settings, fps: float, cancelled: threading.Event
    ) -> tuple[Tracks, ...] | None:
        """Tracks the piece and sends it frame by frame -> all its tracks, None if it was cancelled."""
        total = settings.seconds if clip.seconds is None else min(settings.seconds, clip.seconds - settings.start)
        total, begun, index = max(1, round(total * fps)), time.monotonic(), 0
        pending, blocks, tracker = [], [], settings.open_tracker()
        seat.send({"kind": "tracking", "done": 0, "total": total, "left": None, "tracker": tracker.name})
        for frames, tracks in track_clip(clip, settings, fps, tracker):
            pending += list(frames)
            blocks.append(tracks)
            for row in range(tracks.T):
                seat.send(*_preview_message(pending.pop(0), tracks, row, index))
                index += 1
            left = (time.monotonic() - begun) * max(0, total - index) / max(1, index)
            seat.send({"kind": "tracking", "done": index, "total": max(total, index), "left": round(left, 1)})
            while seat.backlog > MAX_BACKLOG and not cancelled.wait(0.05):
                pass
            if cancelled.is_set() or not seat.connected:
                return None
        return tuple(blocks)


def _preview_message(frame: np.ndarray, tracks: Tracks, row: int, index: int) -> tuple[dict, bytes]:
    """A frame made small, and its visible tracks as [id, x, y, id, x, y, ...] in pixels of that."""
    scale = min(1.0, PREVIEW_SIDE / max(frame.shape[:2]))
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    seen = tracks.visible[row]
    points = np.concatenate([tracks.ids[seen, None], tracks.points[row, seen] * scale], axis=1)
    header = {"kind": "preview", "index": index, "width": size[0], "height": size[1]}
    header["points"] = points.round().astype(int).ravel().tolist()
    return header, jpeg(fit_image(frame, *size), PREVIEW_QUALITY)
