"""What every tab with a live canvas does: a picture, a start, a stream.

`CanvasTab` is the server's side of its canvas: it answers the canvas's WebSocket (`live.Tab`) and runs its streams in
the Gradio event that the Start button fires, which is what a Space counts against the visitor's GPU quota. A tab of its
own is a subclass, and maybe a panel: files PANEL.html, PANEL.css and PANEL.js beside this one (see canvas.js).
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from contextlib import closing
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import gradio as gr
import numpy as np
from gradio.route_utils import API_PREFIX

from motionstream.controls.drag import MAX_CONTROLS
from motionstream.controls.layers import SourceRecipe
from motionstream.errors import InputError
from motionstream.machine import shown_size
from motionstream.session import Mailbox, check_prompt, decode_message
from motionstream.tracks import Tracks
from motionstream.ui.canvas import LiveCanvas
from motionstream.ui.clip import ClipEncoder, jpeg
from motionstream.ui.engine import Engine, News
from motionstream.ui.live import Live, Seat
from motionstream.video import MAX_SIDE, fit_image, read_image

MAX_UPLOAD = 15 * 2**20  # bytes; the server closes a WebSocket that sends a message above 16 MiB
MAX_STARTING = 1_000  # control messages that may come with a start
POSTER_SIDE = 1_280  # pixels: before the stream the picture is as sharp as the visitor's photo allows
THUMBNAIL = (176, 132)  # pixels
CLIP = "motionstream.mp4"  # in a folder of its own
TAG = re.compile("<[^>]*>")  # of HTML, which the canvas does not read
FAILED = "The stream ended because of an error in the program: press Start to try again"


@dataclass(frozen=True)
class Example:
    """A picture with controls drawn in advance, read from NAME.json and the image it names (see examples/README.md)."""

    name: str
    title: str
    prompt: str
    picture: np.ndarray
    grid: dict
    paths: list[dict]
    pins: list[list[float]]

    @classmethod
    def read(cls, path: Path) -> Example:
        """path: of the JSON file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        picture = read_image(path.with_name(data["image"]))
        return cls(path.stem, data["title"], data["prompt"], picture, data["grid"], data["paths"], data["pins"])

    def controls(self, width: int, height: int) -> dict:
        """Grid, paths and pins in pixels of the picture fitted to `width` x `height`."""
        own = self.picture.shape[1::-1]
        scale = max(width / own[0], height / own[1])
        paths = [{**path, "points": _fit_points(path["points"], own, (width, height))} for path in self.paths]
        pins = _fit_points(self.pins, own, (width, height))
        grid = {"spacing": max(1, round(self.grid["spacing"] * scale)), "size": self.grid["size"]}
        return {"grid": grid, "paths": paths, "pins": pins}


class CanvasTab:
    """A tab, its canvas and its streams.

    examples: pictures for a click; the first one is there when the page opens.

    A subclass sets title (on the tab), seat (name on the WebSocket route), panel (name of its own files, or None) and,
    if its panel sends commands, `commands`; it overrides `command`, `base`, `facts` and `picture_facts` as it needs.
    """

    title: str
    seat: str
    panel: str | None = None
    commands: tuple[str, ...] = ("example", "read")

    def __init__(self, engine: Engine, examples: list[Example]):
        self.engine = engine
        self.examples = {example.name: example for example in examples}
        # Of shown pictures: a canvas that connects again knows its own, and a server started anew gives others.
        self._numbers = itertools.count(round(1000 * time.time()))

    # --- what a subclass may override

    def facts(self) -> dict:
        """More for the canvas to know when it connects, JSON types."""
        return {}

    def picture_facts(self, seat: Seat, example: Example | None) -> dict:
        """More for the canvas to know when the seat's new picture is shown, JSON types. Called before it is shown."""
        return {"prompt": example.prompt} if example else {}

    def command(self, seat: Seat, message: dict | bytes) -> None:
        """One of the panel's own commands, or a binary message: a picture, if nothing else was agreed."""
        self.change_picture(seat, read_image(message, max_bytes=MAX_UPLOAD))

    def base(self, seat: Seat, data: object) -> SourceRecipe | None:
        """What the drags of the stream that starts now are laid on; data: what the panel's `starting` returned.

        Raises `InputError` to refuse the start.
        """
        return None

    # --- what is the same for all tabs

    def build(self, live: Live) -> LiveCanvas:
        """Puts the canvas into the Gradio context that is open."""
        self.live = live
        self.canvas = LiveCanvas(self.seat, self.panel)
        self.canvas.start(
            self.start,
            show_progress="hidden",
            concurrency_limit=None,  # `Live` limits the streams, and says so where the visitor looks
            trigger_mode="multiple",
            api_visibility="private",
        )
        return self.canvas

    def welcome(self, seat: Seat) -> None:
        """What the page needs to know, and the seat's picture: at first an example."""
        encoder = self.engine.model.text_encoder
        vocabulary = {effect: encoder.words(effect) for effect in getattr(encoder, "vocabulary", ())}
        shown = [{"name": e.name, "title": e.title, "thumbnail": _thumbnail(e.picture)} for e in self.examples.values()]
        facts = {"text": self.engine.describe(), "fps": self.engine.model.preset.fps}
        facts |= {"max_bytes": MAX_UPLOAD, "max_side": MAX_SIDE, "max_controls": MAX_CONTROLS} | self.facts()
        seat.send({"kind": "welcome", "vocabulary": vocabulary, "examples": shown, **facts})
        self._offer_clip(seat)
        if seat.shown is not None:
            return seat.send(*seat.shown)
        example = next(iter(self.examples.values()))
        self.show(seat, example.picture, example)

    def receive(self, seat: Seat, message: dict | bytes) -> None:
        """{"kind": "read", "text": prompt}, {"kind": "example", "name": ...}, or what `command` takes."""
        kind = None if isinstance(message, bytes) else message["kind"]
        if kind == "read":
            self._read(seat, check_prompt(message.get("text")))
        elif kind != "example":
            self.command(seat, message)
        else:
            name = message.get("name")
            example = self.examples.get(name) if isinstance(name, str) else None
            self.change_picture(seat, example and example.picture, example)

    def start(self, event: gr.EventData, request: gr.Request) -> None:
        """The Start button's event: streams until the visitor stops or leaves, or it breaks."""
        try:
            seat = self.live.seat(request.session_hash, self.seat)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        run = event._data.get("run") if isinstance(event._data, dict) else None
        text, failed = FAILED, True
        try:
            prompt, messages = _starting(event._data)
            self.live.end_others(request.session_hash, seat)
            with seat.stream(run) as mailbox:
                base = self.base(seat, event._data.get("panel"))
                for message in messages:
                    mailbox.send(message)
                seat.send({"kind": "begun", "run": run})  # what the page has held back may come
                self._stream(seat, run, mailbox, prompt, base)
            text, failed = seat.stopped_for, False
        except InputError as error:
            text = str(error)
        except gr.Error as error:  # ZeroGPU's way of saying that the visitor's quota is used up, and the like
            text = unescape(TAG.sub("", error.message))  # it links to where more quota can be had
        finally:  # numbered: a second start is refused while the first one's stream goes on
            seat.send({"kind": "ended", "run": run, "text": text, "failed": failed})

    def change_picture(self, seat: Seat, picture: np.ndarray | None, example: Example | None = None) -> None:
        """`show`, unless a stream runs; None: an example was asked for that is not there."""
        if seat.streaming:
            raise InputError("a stream is running: stop it before you change the picture")
        if picture is None:
            raise InputError(f"there is no example of that name; there are {', '.join(self.examples)}")
        self.show(seat, picture, example)

    def show(self, seat: Seat, picture: np.ndarray, example: Example | None = None) -> None:
        """Makes `picture` the seat's: cropped to the generated shape, sent sharp, kept at generation size."""
        seat.picture, seat.sharp = self.engine.fit(picture)
        height, width = seat.picture.shape[:2]
        detail = min(picture.shape[1] / width, picture.shape[0] / height, POSTER_SIDE / max(width, height))
        poster = fit_image(picture, round(width * max(1, detail)), round(height * max(1, detail)))
        times = shown_size(seat.picture, seat.sharp)[0] // width
        header = {"kind": "picture", "width": width, "height": height, "times": times}
        header["number"] = next(self._numbers)
        if example is not None:
            header["name"] = example.name
        seat.shown = header | self.picture_facts(seat, example), jpeg(poster)
        seat.send(*seat.shown)

    def _stream(
        self, seat: Seat, run: int | None, mailbox: Mailbox, prompt: str, base: SourceRecipe | None
    ) -> None:
        """Runs one stream to its end, or until it breaks; the clip of what was made is the seat's."""
        cache = Path(self.canvas.GRADIO_CACHE)  # the one folder that Gradio serves files from
        cache.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=cache)
        width, height = shown_size(seat.picture, seat.sharp)
        path = Path(folder.name, CLIP)
        try:
            with (
                ClipEncoder(seat, run, path, width, height, self.engine.model.preset.fps) as encoder,
                closing(self.engine.run(seat.picture, seat.sharp, mailbox.address, prompt, base)) as reports,
            ):
                for news in reports:
                    self._pass_on(news, seat, encoder)
        finally:
            if path.exists():
                seat.clip = folder
                self._offer_clip(seat)

    def _offer_clip(self, seat: Seat) -> None:
        """To whoever is there: a page that was loaded anew while the stream came to its end, maybe."""
        if (folder := seat.clip) is not None:
            url = f"{API_PREFIX}/file={quote(str(Path(folder.name, CLIP)))}"
            seat.send({"kind": "download", "url": url, "name": CLIP})

    def _pass_on(self, news: News, seat: Seat, encoder: ClipEncoder) -> None:
        for text in news.errors:
            seat.send({"kind": "error", "text": text})
        if news.given_up:
            seat.send({"kind": "gone", "ids": news.given_up})
        if news.chunk is not None:
            began = time.monotonic() - news.chunk.timings["total"]  # what came later is for the next chunk
            encoder.put(news.chunk, news.turned, seat.newest_input(began))
        else:
            encoder.recipe = news.recipe
            seat.stopped_for = seat.stopped_for or news.end

    def _read(self, seat: Seat, prompt: str) -> None:
        """Says which words of the prompt the model passes over, "" if none: what was said of the last one is over then.

        A model that reads any text has no vocabulary.
        """
        encoder, text = self.engine.model.text_encoder, ""
        if hasattr(encoder, "vocabulary") and (unknown := encoder.unknown(prompt)):
            known = f"{', '.join(encoder.vocabulary)}, {encoder.config.length} at once"
            text = f"this model passes over {', '.join(unknown)[:80]}; it knows {known}"
        seat.send({"kind": "read", "text": text})


def read_examples(folder: Path) -> list[Example]:
    """All examples of a folder, by name."""
    return [Example.read(path) for path in sorted(folder.glob("*.json"))]


def _starting(data: object) -> tuple[str, list[dict]]:
    """What came with a start: the prompt and the control messages made before it."""
    if not isinstance(data, dict) or not isinstance(messages := data.get("messages"), list):
        raise InputError("the start was not understood: reload the page")
    if len(messages) > MAX_STARTING:
        raise InputError(f"{len(messages)} control messages came with the start; at most {MAX_STARTING}: clear some")
    return check_prompt(data.get("prompt")), [decode_message(json.dumps(m)) for m in messages]


def _fit_points(points: list, from_size: tuple[int, int], to_size: tuple[int, int]) -> list[list[float]]:
    """[[x, y], ...] of a picture after `fit_image`."""
    count = len(points)
    tracks = Tracks(np.reshape(points, (1, count, 2)), np.ones((1, count), bool), np.zeros(count))
    return tracks.fit(from_size, to_size).points[0].round(1).tolist()


def _thumbnail(picture: np.ndarray) -> str:
    """A small JPEG as a data URL: no file is served for it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(fit_image(picture, *THUMBNAIL))).decode()
