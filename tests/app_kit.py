"""The app on a free port of this process, a stand-in for its model, and a visitor without a browser."""

from __future__ import annotations

import json
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import cv2
import gradio as gr
import httpx
import numpy as np
import torch
from websockets.sync.client import ClientConnection, connect

import app
from motionstream.machine import Choice
from motionstream.model.checkpoint import load_model
from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.session import run_session
from motionstream.streaming import Chunk
from motionstream.tracks import ChunkRequest
from motionstream.ui.engine import Engine
from motionstream.ui.live import SUBPROTOCOL, Live

FPS = PRESETS["embedded"].fps
PATCH = 12  # half the side of what `paste` moves with a track, pixels


@dataclass
class Paste:
    """A stand-in for `streaming.stream`, done in milliseconds: it pastes a patch of the picture where each track goes.

    seconds: that a chunk takes, and claims to take; fail: raised instead of the second chunk; chunks: all that were
    generated; prompts: one for each; live: how many streams are open; things: see `ChunkRequest`.
    """

    seconds: float = 0.01
    fail: Exception | None = None
    chunks: list[Chunk] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    live: int = 0
    things: Callable[[np.ndarray], np.ndarray] = lambda points: np.zeros((2, len(points)), int)

    def __call__(self, model, image, source, *, prompt, seed, sharp=None) -> Iterator[Chunk]:
        frame, start = image, 0
        self.live += 1
        try:
            while True:
                index = (start + 3) // 12
                if index and self.fail:
                    raise self.fail
                count, (height, width) = (12 if index else 9), image.shape[:2]
                history = {max(start - 1, 0): frame}
                request = ChunkRequest(index, start, count, width, height, FPS, history, self.things)
                tracks = source.tracks_for(request)
                frames = np.stack([moved(frame, tracks.points[0], points) for points in tracks.points])
                time.sleep(self.seconds)
                self.prompts.append(prompt())
                size = (image if sharp is None else sharp).shape[1::-1]
                shown = np.stack([cv2.resize(one, size) for one in frames])
                self.chunks.append(Chunk(index, start, shown, tracks, {"total": self.seconds}))
                yield self.chunks[-1]
                frame, start = frames[-1], start + count
        finally:
            self.live -= 1


def moved(frame: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`frame` with a patch around every source point cut out and pasted around its target, where both are inside."""
    result, limit = frame.copy(), np.array(frame.shape[1::-1]) - PATCH
    pairs = np.stack([sources, targets], axis=1).round().astype(int)
    pairs = pairs[((pairs >= PATCH) & (pairs < limit)).all(axis=(1, 2))]
    windows = [[tuple(slice(v - PATCH, v + PATCH) for v in point[::-1]) for point in pair] for pair in pairs]
    blank = frame.mean(axis=(0, 1))
    for source, _ in windows:
        result[source] = blank
    for source, target in windows:
        result[target] = frame[source]
    return result


def fake_engine(paste: Paste, budget: int = 240) -> Engine:
    """The app's engine with `paste` in the model's place."""
    model = SimpleNamespace(
        preset=PRESETS["embedded"], device=torch.device("cpu"), dtype=torch.float32, text_encoder=EffectTextEncoder()
    )
    return Engine(model, Choice(budget, fps=40.0), partial(run_session, stream=paste))


def student_engine() -> Engine:
    """The app's engine with the model that comes with the repository, at its smallest size."""
    return Engine(load_model("embedded"), Choice(min(PRESETS["embedded"].budgets)))


@dataclass
class Site:
    """A running app."""

    url: str
    demo: gr.Blocks
    live: Live
    paste: Paste | None

    def make_ready(self) -> None:
        """Waits for the end of the last test's streams, and forgets them."""
        wait_for(lambda: not len(self.live.sessions) and not self.paste.live, "the end of the last test's streams")
        self.paste.__init__()

    def visit(self) -> Visitor:
        return Visitor(self)

    def function(self, name: str, seat: str) -> int:
        """Number of the Gradio event whose handler is called `name`, of that seat's tab if every tab has one."""
        numbers = [number for number, fn in self.demo.fns.items() if fn.name == name]
        return numbers[list(self.live._tabs).index(seat) if len(numbers) > 1 else 0]


class Visitor:
    """A page without a browser: admitted by the load event, connected to one tab's seat."""

    seat = "drag"

    def __init__(self, site: Site):
        self.site, self.session, self.open = site, uuid.uuid4().hex, ExitStack()
        # Nothing is encrypted: to load the certificates would take longer than all the rest.
        self.http = httpx.Client(base_url=site.url + "gradio_api/", timeout=20, verify=False)
        self.token = self.event("run/predict", "admit", {})["data"][0]["token"]
        self.socket = self.connect()
        self.welcome = self.expect("welcome")
        self.picture, self.poster = self.expect("picture", binary=True)

    def event(self, route: str, handler: str, data: dict) -> dict:
        body = {"data": [], "event_data": data, "session_hash": self.session}
        body["fn_index"] = self.site.function(handler, self.seat)
        return self.http.post(route, json=body).raise_for_status().json()

    def connect(self, seat: str | None = None, **settings) -> ClientConnection:
        url = self.site.url.replace("http", "ws") + f"motionstream/live/{seat or self.seat}"
        settings = {"subprotocols": [SUBPROTOCOL, self.token], "max_size": None} | settings
        return self.open.enter_context(connect(url, **settings))

    def start(self, messages: tuple[dict, ...] = (), **data) -> None:
        """Presses Start: the event is queued; what comes of it comes over the socket."""
        self.event("queue/join", "start", {"run": 1, "prompt": "", "messages": list(messages)} | data)

    def say(self, message: dict | bytes | str) -> None:
        self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    def hear(self, timeout: float = 10) -> tuple[dict, bytes]:
        """The next message: header and, of a binary one, the JPEG."""
        message = self.socket.recv(timeout)
        if isinstance(message, str):
            return json.loads(message), b""
        length = 4 + int.from_bytes(message[:4], "little")
        return json.loads(message[4:length]), message[length:]

    def expect(self, kind: str, binary: bool = False, timeout: float = 10):
        """Passes over messages until one of `kind`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                header, body = self.hear(deadline - time.monotonic())
            except TimeoutError as error:
                raise TimeoutError(f"no {kind} within {timeout} s; {at_work()}") from error
            if header["kind"] == kind:
                return (header, body) if binary else header

    def chunk(self, ack: bool = True) -> dict:
        """Waits for a whole chunk -> header of its last frame; `ack`: as shown."""
        while (frame := self.expect("frame"))["index"] < frame["count"] - 1:
            pass
        if ack:
            self.say({"kind": "ack", "chunk": frame["chunk"]})
        return frame

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for a while."""
        try:
            self.hear(seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self.open.close()
        self.http.close()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Until `condition` holds; fails with `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}; {at_work()}"
        time.sleep(0.01)


def at_work() -> str:
    """Where each thread is, for a test that has waited in vain."""
    stacks = ("".join(traceback.format_stack(frame)[-3:]) for frame in sys._current_frames().values())
    return "\n---\n".join(["the threads are at", *stacks])


def open_site(engine: Engine, paste: Paste | None = None, limit: int = 2) -> Site:
    demo, live = app.build(engine, app.read_examples(app.EXAMPLES), limit)
    return Site(app.serve(demo, live), demo, live, paste)
