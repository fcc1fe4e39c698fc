"""The WebSocket beside Gradio: pictures to the browser's canvases, control messages back.

A page load is admitted by a Gradio event and gets a secret token (`Live.admit`). The page's canvases open
/motionstream/live/SEAT with that token as second WebSocket subprotocol; who has none is turned away with code 4401.
A `Seat` is one visitor's place at one canvas. Its socket's end is its stream's end: nothing is generated for nobody.

Down: text messages are JSON; binary ones are a little-endian uint32, that many bytes of JSON header, then a JPEG.
Up: text messages are control messages (see `motionstream.session`) or the tab's commands; binary ones are pictures.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from motionstream.errors import InputError
from motionstream.session import Mailbox, Sessions, decode_message

SUBPROTOCOL = "motionstream"
UNKNOWN_VISITOR, REPLACED, TOO_SLOW = 4401, 4409, 4413  # WebSocket close codes
MAX_VISITORS = 200  # page loads remembered; of those without a socket the oldest are forgotten first
MAX_WAITING = 400  # messages that a socket has not taken yet; an honest canvas acknowledges long before
MAX_INPUTS = 1_000  # pointer messages remembered until a chunk has used them
ENDING_SECONDS = 10.0  # that a stream which was told to stop may take for the chunk it is at
IDLE_SECONDS = 180.0  # a stream that nobody touches for so long makes room for others


class Tab(Protocol):
    """What a canvas's tab does for its visitors. Its methods run in a worker thread and may raise `InputError`.

    commands: kinds of JSON messages that are the tab's own; all others are control messages of the running stream.
    """

    commands: tuple[str, ...]

    def welcome(self, seat: Seat) -> None:
        """A canvas has connected: send it what it needs to know, and its picture."""

    def receive(self, seat: Seat, message: dict | bytes) -> None:
        """One of the tab's commands, or an uploaded picture."""


class Seat:
    """One visitor's place at one canvas. Any thread may call its methods.

    picture: uint8 RGB [H, W, 3] at generation size, what the next stream starts from; sharp: a larger copy of it or
    None, see `stream`; shown: the message that showed it, for a canvas that connects again; own: whatever else the tab
    remembers of this visitor; all set by the tab.
    stopped_for: why the newest stream was stopped, if not by the visitor: a sentence or "".
    """

    def __init__(self, tab: Tab, sessions: Sessions):
        self.picture: np.ndarray | None = None
        self.sharp: np.ndarray | None = None
        self.shown: tuple[dict, bytes] | None = None
        self.own: object | None = None
        self.stopped_for = ""
        self._tab, self._sessions = tab, sessions
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: asyncio.Queue | None = None  # of the newest socket; None while there is none
        self._touched = 0.0
        self._place, self._stopping = threading.Lock(), False  # held by the running stream; whether it was told to stop
        self._cancelled: int | None = None  # number of the newest start that a stop was meant for
        self._inputs: deque[tuple[float, float]] = deque(maxlen=MAX_INPUTS)  # (passed on, browser's clock in ms)

    @property
    def connected(self) -> bool:
        """Whether a socket is open."""
        return self._outbox is not None

    @property
    def streaming(self) -> bool:
        """Whether a stream runs."""
        return self._place.locked()

    @property
    def backlog(self) -> int:
        """How many messages the socket has not taken yet."""
        outbox = self._outbox
        return outbox.qsize() if outbox is not None else 0

    def send(self, header: dict, picture: bytes | None = None) -> None:
        """Sends a JSON message, with a JPEG behind it if `picture` is given; nothing happens without a socket."""
        text = json.dumps(header)
        message = text if picture is None else len(text).to_bytes(4, "little") + text.encode() + picture
        self._post(message)

    @contextmanager
    def stream(self, run: int | None = None) -> Iterator[Mailbox]:
        """A running stream's mailbox. `InputError` if this seat or too many others have one, or nobody is watching.

        run: the canvas's number of this start; a stop for it may have come first. Where the last stream was told to
        stop, as by a connection that was lost, its end is waited for.
        """
        self._touched = time.monotonic()  # before the place is taken: `_watch` looks at both
        if not self._place.acquire(timeout=ENDING_SECONDS if self._stopping else 0):
            raise InputError("a stream of yours is running already: stop it first")
        try:
            with self._sessions.open(self) as mailbox:
                if not self.connected or self.picture is None:
                    raise InputError("the canvas is not connected: reload the page")
                if run is not None and run == self._cancelled:
                    raise InputError("stopped before the first picture")
                self.stopped_for, self._stopping = "", False
                self._inputs.clear()
                yield mailbox
        finally:
            self._place.release()

    def stop(self, reason: str = "") -> None:
        """Ends the running stream, if any, before its next chunk."""
        self.stopped_for, self._stopping = reason, True
        self._sessions.send(self, {"kind": "stop"})

    def close(self) -> None:
        """The visitor has left: ends the stream and the socket."""
        self.stop()
        self._post(None)

    def newest_input(self, before: float) -> float | None:
        """Browser's clock (ms) of the newest pointer sample passed on before `before` (time.monotonic), only once."""
        newest = None
        while self._inputs and self._inputs[0][0] <= before:
            newest = self._inputs.popleft()[1]
        return newest

    async def serve(self, socket: WebSocket) -> None:
        """Lives as long as the socket. A newer socket of the same page replaces an older one."""
        outbox: asyncio.Queue = asyncio.Queue()
        self.close()
        with self._lock:
            self._outbox, self._loop = outbox, asyncio.get_running_loop()
        tasks = [asyncio.create_task(self._deliver(socket, outbox)), asyncio.create_task(self._watch())]
        try:
            await run_in_threadpool(self._tab.welcome, self)
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                await self._take(message)
        finally:
            for task in tasks:
                task.cancel()
            with self._lock:
                replaced = self._outbox is not outbox
                self._outbox = self._outbox if replaced else None
            if not replaced:
                self.stop()

    def _post(self, message: str | bytes | None) -> None:
        with self._lock:
            if self._outbox is not None:
                self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    async def _deliver(self, socket: WebSocket, outbox: asyncio.Queue) -> None:
        with suppress(WebSocketDisconnect):  # `serve` hears of it too
            while (message := await outbox.get()) is not None:
                if outbox.qsize() > MAX_WAITING:
                    return await socket.close(TOO_SLOW, "the connection is too slow")
                await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))
            await socket.close(REPLACED, "this canvas has another connection, or its page was left")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 20)
            if self.streaming and time.monotonic() - self._touched > IDLE_SECONDS:
                self.stop(f"Stopped: nobody touched the canvas for {IDLE_SECONDS / 60:g} minutes")

    async def _take(self, message: dict) -> None:
        """One WebSocket message. What is wrong with it goes back as a sentence, and the connection lives on."""
        try:
            data = message["bytes"] if message.get("bytes") is not None else decode_message(message["text"])
            if isinstance(data, bytes) or data.get("kind") in self._tab.commands:
                await run_in_threadpool(self._tab.receive, self, data)
            else:
                self._note(data)
                self._sessions.send(self, data)
        except InputError as error:
            self.send({"kind": "error", "text": str(error)})

    def _note(self, message: dict) -> None:
        if message.get("kind") == "ack":
            return
        self._touched = time.monotonic()
        match message:
            case {"kind": "stop", "run": int(run)}:
                self._cancelled = run
            case {"kind": "drag", "samples": [*_, {"t": int() | float() as stamp}]} | {"t": int() | float() as stamp}:
                self._inputs.append((self._touched, stamp))


class Live:
    """All visitors of one running app.

    tabs: by seat name; limit: streams that may run at once.
    """

    def __init__(self, tabs: Mapping[str, Tab], limit: int):
        self.sessions = Sessions(limit)
        self._tabs = tabs
        self._lock = threading.Lock()
        self._visitors: OrderedDict[str, tuple[str, dict[str, Seat]]] = OrderedDict()  # session hash -> token, seats

    @property
    def route(self) -> WebSocketRoute:
        """For the app's `routes`."""
        return WebSocketRoute("/motionstream/live/{seat}", self._connect)

    def admit(self, session: str) -> str:
        """A page was loaded: the secret token that its sockets must show. session: Gradio's session hash."""
        self.leave(session)
        seats = {name: Seat(tab, self.sessions) for name, tab in self._tabs.items()}
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._visitors[session] = token, seats
            for old in list(self._visitors)[: max(0, len(self._visitors) - MAX_VISITORS)]:
                if not any(seat.connected for seat in self._visitors[old][1].values()):
                    del self._visitors[old]
        return token

    def leave(self, session: str) -> None:
        """A page was closed or reloaded; may be called for unknown ones."""
        with self._lock:
            _, seats = self._visitors.pop(session, (None, {}))
        for seat in seats.values():
            seat.close()

    def seat(self, session: str | None, name: str) -> Seat:
        """A visitor's seat. `InputError` if the page was never admitted, or forgotten."""
        with self._lock:
            if session not in self._visitors:
                raise InputError("the server does not know this page: reload it")
            return self._visitors[session][1][name]

    async def _connect(self, socket: WebSocket) -> None:
        offered = socket.scope["subprotocols"]
        seat = self._seat_for(offered[1] if len(offered) == 2 else "", socket.path_params["seat"])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if seat is None:
            await socket.close(UNKNOWN_VISITOR, "the server does not know this page: reload it")
        else:
            await seat.serve(socket)

    def _seat_for(self, offered: str, name: str) -> Seat | None:
        with self._lock:
            visitors = list(self._visitors.values())
        for token, seats in visitors:
            if secrets.compare_digest(token.encode(), offered.encode()):
                return seats.get(name)
        return None
