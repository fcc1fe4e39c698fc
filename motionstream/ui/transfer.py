"""The Motion transfer tab: a clip, or the visitor's camera, moves another picture.

A clip comes over the canvas's WebSocket in parts and is kept in a temporary folder for as long as the visitor is there.
The visitor's thread tracks the piece that was chosen last and sends its frames with the tracks on them; a stream may
start meanwhile, then the stream's own source goes on. Commands of the panel:

    {"kind": "clip", "bytes": N}       once that is answered by "send", the next N bytes of binary messages are a clip
    {"kind": "track", "settings": {...}, "image": "clip" | "own", "previews": true, "number": N}    see `Settings`; what
                                       is animated: the clip's first frame, or the picture that was there before;
                                       whether the page has no previews yet; N comes back with "tracked", when the job
                                       is over
    {"kind": "cancel"}                 stop tracking; drop an upload that is not complete
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np

from motionstream.controls.layers import SourceRecipe
from motionstream.controls.trackers import LICENCES
from motionstream.controls.transfer import MAX_SECONDS, ClipRecipe, Settings, WebcamRecipe, track_clip
from motionstream.errors import InputError
from motionstream.tracks import Tracks
from motionstream.ui.clip import jpeg
from motionstream.ui.live import FAILED, Seat
from motionstream.ui.tab import CanvasTab, Example
from motionstream.video import Clip, fit_image

MAX_CLIP = 200 * 2**20  # bytes
MAX_CLIPS = 2 * 2**30  # bytes, of all visitors' clips together
PREVIEW_SIDE = 320  # pixels
PREVIEW_QUALITY = 70
MAX_BACKLOG = 60  # previews that may wait for a slow connection
STALL_SECONDS = 10.0  # that a connection may take none of them
TRACKING_AT_ONCE = 2  # clips of all visitors together
SHOWING_AT_ONCE = 2  # first frames of them, apart: nobody waits for another visitor's tracking to see a picture


class Desk:
    """One visitor's clip: its upload, its file, what has been tracked of it and the thread that tracks."""

    def __init__(self):
        self.clip: Clip | None = None
        self.tracked: tuple[tuple, tuple[Tracks, ...]] | None = None  # `Settings.tracking`, and that piece's blocks
        self.shown: float | None = None  # second of the clip whose frame is the seat's picture, if it is one
        self.own: tuple | None = None  # the seat's `picture`, `sharp` and `shown` before a clip's frame replaced them
        self.size = 0  # bytes of the clip, also while it comes
        self.missing = 0  # of them still to come
        self.cancelled = threading.Event()  # of the newest job
        self.waiting: Job | None = None  # the newest job, until the thread takes it
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()  # held to change the two above, and to show another picture
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


@dataclass(frozen=True)
class Job:
    """A piece of a clip to be tracked.

    show: whether the visitor wants its first frame for the picture; previews: whether the page has none yet, though the
    piece may have been tracked for the page before; before: `Seat.shown` when that was said; number: the panel's own of
    this job.
    """

    seat: Seat
    desk: Desk
    clip: Clip
    settings: Settings
    show: bool
    previews: bool
    before: tuple[dict, bytes] | None
    number: object
    cancelled: threading.Event

    def over(self) -> bool:
        """Whether nobody waits for it any more: then never again, also if the visitor comes back."""
        if not self.seat.connected:
            self.cancelled.set()
        return self.cancelled.is_set()

    def end(self, **facts) -> None:
        """Says what has come of it."""
        self.seat.send({"kind": "tracked", "number": self.number, **facts})

    def may_show(self) -> bool:
        """Whether another picture is still wanted, and the visitor has chosen none. Asked with the desk's lock."""
        return not self.over() and not self.seat.streaming and self.seat.shown is self.before


class TransferTab(CanvasTab):
    """See the module's docstring."""

    title = "Motion transfer"
    seat = panel = "transfer"
    commands = (*CanvasTab.commands, "clip", "track", "cancel")

    def __init__(self, *args):
        super().__init__(*args)
        self._tracking = threading.Semaphore(TRACKING_AT_ONCE)
        self._showing = threading.Semaphore(SHOWING_AT_ONCE)
        self._desks: WeakSet[Desk] = WeakSet()  # all of them
        self._lock = threading.Lock()

    def facts(self) -> dict:
        return {"max_clip_bytes": MAX_CLIP, "max_seconds": MAX_SECONDS, "trackers": LICENCES}

    def welcome(self, seat: Seat) -> None:
        desk = self._desk(seat)
        if desk.missing:  # the rest was for the connection that was lost
            desk.drop()
        if desk.clip is not None:
            _describe(seat, desk.clip, again=True)
        super().welcome(seat)

    def picture_facts(self, seat: Seat, example: Example | None) -> dict:
        return super().picture_facts(seat, example) | {"image": "own" if self._desk(seat).shown is None else "clip"}

    def change_picture(self, seat: Seat, *args) -> None:
        desk = self._desk(seat)
        with desk.lock:
            before = desk.shown, desk.own
            desk.shown = desk.own = None
            try:
                super().change_picture(seat, *args)
            except InputError:
                desk.shown, desk.own = before
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
                _describe(seat, desk.open())
        elif isinstance(message, bytes):
            super().command(seat, message)
        elif message["kind"] == "clip":
            self._expect(desk, message.get("bytes"))
            seat.send({"kind": "send"})
        else:
            self._track(seat, desk, message)

    def base(self, seat: Seat, data: object) -> SourceRecipe:
        """data: {"source": "clip" | "webcam", "settings": {...}}."""
        data = data if isinstance(data, dict) else {}
        settings, desk = Settings.from_json(data.get("settings")), self._desk(seat)
        if data.get("source") == "webcam":
            return WebcamRecipe(settings)
        if desk.clip is None:
            raise InputError("there is no clip yet: upload one, or choose the webcam")
        with desk.lock:  # from here on the picture stays
            desk.cancelled.set()
        key, blocks = desk.tracked or (None, None)
        blocks = blocks if key == settings.tracking else None
        return ClipRecipe(str(desk.clip.path), settings, self.engine.model.preset.fps, blocks, desk.shown is None)

    def _desk(self, seat: Seat) -> Desk:
        if seat.own is None:
            seat.own = Desk()
            with self._lock:
                self._desks.add(seat.own)
        return seat.own

    def _expect(self, desk: Desk, size: object) -> None:
        """Has the desk expect a clip, if there is room for it."""
        if size == 0:
            raise InputError("the clip is an empty file: choose another one")
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

    def _track(self, seat: Seat, desk: Desk, message: dict) -> None:
        """Leaves a job to the desk's thread, in the place of the one before."""
        settings, number = Settings.from_json(message.get("settings")), message.get("number")
        show, previews = message.get("image") == "clip", message.get("previews") is True
        if desk.clip is None:
            raise InputError("there is no clip yet: upload one")
        with desk.lock:
            desk.cancelled.set()
            desk.cancelled = threading.Event()
            job = Job(seat, desk, desk.clip, settings, show, previews, seat.shown, number, desk.cancelled)
            before, desk.waiting = desk.waiting, job
            if desk.thread is None or not desk.thread.is_alive():
                desk.thread = threading.Thread(target=self._work, args=(desk,), name="tracking", daemon=True)
                desk.thread.start()
        if before is not None:
            self._run(before)  # it is cancelled: this only says so

    def _work(self, desk: Desk) -> None:
        """The desk's thread: lives while there are jobs."""
        while True:
            with desk.lock:
                job, desk.waiting = desk.waiting, None
                if job is None:
                    desk.thread = None
                    return
            self._run(job)

    def _run(self, job: Job) -> None:
        """Tracks a piece, shows the picture that is wanted, and says how it goes."""
        seat, desk, settings = job.seat, job.desk, job.settings
        fps = self.engine.model.preset.fps
        try:
            last = job.show and settings.reverse  # known once all is tracked
            if not last and not (self._show_frame(job, settings.start) if job.show else self._show_own(job)):
                seat.send({"kind": "unchanged"})  # the canvas waits for an answer
            tracked = desk.tracked
            if job.previews or tracked is None or tracked[0] != settings.tracking:
                with _turn(self._tracking, job) as had:
                    blocks = self._preview(job, fps) if had else None
                if blocks is None:
                    return job.end(cancelled=True)
                tracked = desk.tracked = settings.tracking, blocks
            blocks = tracked[1]
            count = sum(block.T for block in blocks)
            if last:
                self._show_frame(job, settings.start + (count - 1) / fps)
            points = len(set().union(*(block.ids.tolist() for block in blocks)))
            job.end(frames=count, tracks=points)
        except (InputError, RuntimeError) as error:  # PyTorch's are of the latter kind: no memory, above all
            job.end(cancelled=True)
            if not isinstance(error, InputError):
                logging.getLogger(__name__).exception("a clip could not be tracked")
            if not job.over():  # else its clip may be gone, and nobody asks for it
                seat.send({"kind": "error", "text": str(error) if isinstance(error, InputError) else FAILED})

    def _show_frame(self, job: Job, time: float) -> bool:
        """Makes the clip's frame at `time` the picture; False: it is, or the visitor has turned to something else."""
        desk, clip, frame = job.desk, job.clip, None
        if desk.shown != time:
            with _turn(self._showing, job) as had:
                if had:
                    fps = self.engine.model.preset.fps  # at which the last frame was counted
                    frame = next(clip.frames(fps, (clip.width, clip.height), time, job.over), None)
            if frame is None and not job.over():
                raise InputError(f"the clip has no frame at {time:g} seconds: start earlier")
        with desk.lock:
            if frame is None or not job.may_show():
                return False
            desk.shown, desk.own = time, desk.own or (job.seat.picture, job.seat.sharp, job.seat.shown)
            self.show(job.seat, frame)
            return True

    def _show_own(self, job: Job) -> bool:
        """Shows the visitor's own picture again in the place of the clip's frame; False as in `_show_frame`."""
        seat, desk = job.seat, job.desk
        with desk.lock:
            if desk.own is None or not job.may_show():
                return False
            (seat.picture, seat.sharp, seat.shown), desk.shown, desk.own = desk.own, None, None
            seat.send(*seat.shown)
            return True

    def _preview(self, job: Job, fps: float) -> tuple[Tracks, ...] | None:
        """Tracks the piece and sends it frame by frame -> all its tracks, None if the job is over before."""
        seat, clip, settings = job.seat, job.clip, job.settings
        total = settings.seconds if clip.seconds is None else min(settings.seconds, clip.seconds - settings.start)
        total, begun, index = max(1, round(total * fps)), time.monotonic(), 0
        pending, blocks, tracker = [], [], settings.open_tracker()
        seat.send({"kind": "tracking", "done": 0, "total": total, "left": None, "tracker": tracker.name})
        for frames, tracks in track_clip(clip, settings, fps, tracker, job.over):
            pending += list(frames)
            blocks.append(tracks)
            for row in range(tracks.T):
                seat.send(*_preview_message(pending.pop(0), tracks, row, index))
                index += 1
            left = (time.monotonic() - begun) * max(0, total - index) / max(1, index)
            seat.send({"kind": "tracking", "done": index, "total": max(total, index), "left": round(left, 1)})
            _await_previews(job)
        return None if job.over() else tuple(blocks)


def _describe(seat: Seat, clip: Clip, **more: bool) -> None:
    """Says that the clip is here, with again=True if it has been for a while: a page that was loaded anew lacks it."""
    facts = {"width": clip.width, "height": clip.height, "seconds": clip.seconds, "fps": clip.fps}
    seat.send({"kind": "clip", **facts, **more})


@contextmanager
def _turn(places: threading.Semaphore, job: Job) -> Iterator[bool]:
    """Has one of the places, once there is one; False if the job is over before."""
    had = False
    while not (had or job.over()):
        had = places.acquire(timeout=0.1)
    try:
        yield had
    finally:
        if had:
            places.release()


def _await_previews(job: Job) -> None:
    """Waits for a browser that is behind, while the job goes on; `InputError` if it takes nothing."""
    least, since = job.seat.backlog, time.monotonic()
    while (backlog := job.seat.backlog) > MAX_BACKLOG and not job.over():
        if backlog < least:
            least, since = backlog, time.monotonic()
        if time.monotonic() - since > STALL_SECONDS:
            raise InputError(
                f"the browser has taken no preview for {STALL_SECONDS:g} seconds: try again on a faster connection"
            )
        job.cancelled.wait(0.05)


def _preview_message(frame: np.ndarray, tracks: Tracks, row: int, index: int) -> tuple[dict, bytes]:
    """A frame made small, and its visible tracks as [id, x, y, id, x, y, ...] in pixels of that."""
    scale = min(1.0, PREVIEW_SIDE / max(frame.shape[:2]))
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    seen = tracks.visible[row]
    points = np.concatenate([tracks.ids[seen, None], tracks.points[row, seen] * scale], axis=1)
    header = {"kind": "preview", "index": index, "width": size[0], "height": size[1]}
    header["points"] = points.round().astype(int).ravel().tolist()
    return header, jpeg(fit_image(frame, *size), PREVIEW_QUALITY)
