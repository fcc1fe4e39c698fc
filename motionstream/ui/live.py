"""The WebSocket beside Gradio: pictures to the browser's canvases, control messages back.

A page load is admitted by a Gradio event and gets a secret token (`Live.admit`). The page's canvases open
/motionstream/live/SEAT with that token as second WebSocket subprotocol; who has none is turned away with code 4401.
A third one may be the token of the page before, which has gone: its seats are then those of the new page. Gradio's
script loads a page anew by itself where the network breaks during a stream.
A `Seat` is one visitor's place at one canvas. Its socket's end is its stream's end: nothing is generated for nobody.
What is on a seat outlives a connection that is lost; a visitor without any socket is forgotten after a while.

Down: text messages are JSON; binary ones are a little-endian uint32, that many bytes of JSON header, then a JPEG.
Up: text messages are control messages (see `motionstream.session`) or the tab's commands; binary ones are pictures.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from motionstream.errors import InputError
from motionstream.session import Mailbox, Sessions, decode_message

SUBPROTOCOL = "motionstream"
UNKNOWN_VISITOR, REPLACED = 4401, 4409  # WebSocket close codes
MAX_VISITORS = 200  # page loads remembered; of those without a socket the oldest are forgotten first
FORGET_SECONDS = 120.0  # that a visitor without a socket is remembered: connections break, and mend
MAX_WAITING = 400  # messages that a socket has not taken yet; an honest canvas acknowledges long before
MAX_WAITING_BYTES = 32 * 2**20  # of them together
MAX_INPUTS = 1_000  # pointer messages remembered until a chunk has used them
ENDING_SECONDS = 10.0  # that a stream which was told to stop may take for the chunk it is at
IDLE_SECONDS = 180.0  # a stream that nobody touches for so long makes room for others
STOPPED_EARLY = "stopped before the first picture"
FAILED = "That went wrong because of an error in the program: try again, or reload the page"


class Tab(Protocol):
    """What a canvas's tab does for its visitors. Its methods run in a worker thread and may raise `InputError`.

    commands: kinds of JSON messages that are the tab's own; all others are control messages of the running stream.
    """

    commands: tuple[str, ...]

    def welcome(self, seat: Seat) -> None:
        """A canvas has connected: send it what it needs to know, and its picture."""

    def receive(self, seat: Seat, message: dict | bytes) -> None:
        """One of the tab's commands, or an uploaded picture."""


class _Outbox(asyncio.Queue):
    """The messages that a socket has not taken yet.

    delivery: takes them out; ends with the socket, or when that is given up; bytes: of all messages together.
    """

    delivery: asyncio.Task
    given_up = False
    bytes = 0

    def post(self, message: str | bytes | None) -> None:
        """Puts a message in, in the loop's thread; None: the socket is to be closed. A socket that leaves too much
        waiting is given up."""
        self.given_up |= self.qsize() >= MAX_WAITING or self.bytes >= MAX_WAITING_BYTES
        while (self.given_up or message is None) and not self.empty():
            self.get_nowait()
        if self.given_up:
            self.delivery.cancel()
        else:
            self.put_nowait(message)

    def _put(self, item: str | bytes | None) -> None:
        super()._put(item)
        self.bytes += len(item or "")

    def _get(self) -> str | bytes | None:
        item = super()._get()
        self.bytes -= len(item or "")
        return item


class Seat:
    """One visitor's place at one canvas. Any thread may call its methods.

    picture: uint8 RGB [H, W, 3] at generation size, what the next stream starts from; sharp: a larger copy of it or
    None, see `stream`; shown: the message that showed it, for a canvas that connects again; own: whatever else the tab
    remembers of this visitor; clip: folder of the newest stream's MP4, deleted with the last who knows it; all set by
    the tab. stopped_for: why the newest stream was stopped, if not by the visitor: a sentence or "".
    """

    def __init__(self, tab: Tab, sessions: Sessions):
        self.picture: np.ndarray | None = None
        self.sharp: np.ndarray | None = None
        self.shown: tuple[dict, bytes] | None = None
        self.own: object | None = None
        self.clip: TemporaryDirectory | None = None
        self.stopped_for = ""
        self._tab, self._sessions = tab, sessions
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: _Outbox | None = None  # of the newest socket; None while there is none
        self._place, self._stopping = threading.Lock(), False  # held by the running stream; whether it was told to stop
        self._touched, self._watched = 0.0, False  # when a control message came; whether that matters: a stream runs
        self._run: int | None = None  # number of the start whose stream runs
        self._cancelled = 0  # number of the newest start that a stop was meant for
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

        run: the canvas's number of this start, larger than those before; a stop for it may have come first. Where the
        last stream was told to stop, as by a connection that was lost, its end is waited for.
        """
        if not self._place.acquire(timeout=ENDING_SECONDS if self._stopping else 0):
            raise InputError("a stream of yours is running already: stop it first")
        self._run = run  # before the look at `_cancelled` below: `_note` writes that, then looks at this
        self._touched, self._watched = time.monotonic(), True  # in this order: `_watch` looks at both
        try:
            with self._sessions.open(self) as mailbox:
                if not self.connected or self.picture is None:
                    raise InputError("the canvas is not connected: reload the page")
                if isinstance(run, int) and run <= self._cancelled:
                    raise InputError(STOPPED_EARLY)
                self.stopped_for, self._stopping = "", False
                self._inputs.clear()
                yield mailbox
        finally:
            self._watched, self._run = False, None
            self._place.release()

    def stop(self, reason: str = "") -> None:
        """Ends the running stream, if any, before its next chunk."""
        self.stopped_for, self._stopping = reason, True
        self._sessions.send(self, {"kind": "stop"})

    def end(self, reason: str) -> None:
        """Stops the running stream, if any, and waits for its end."""
        if self.streaming:
            self.stop(reason)
            self._await_end()

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
        outbox = _Outbox()
        self.close()
        outbox.delivery, watch = (asyncio.create_task(w) for w in (self._deliver(socket, outbox), self._watch()))
        with self._lock:
            self._outbox, self._loop = outbox, asyncio.get_running_loop()
        try:
            with self._answering():
                await run_in_threadpool(self._tab.welcome, self)
            while (message := await _next_message(socket, outbox.delivery)) is not None:
                await self._take(message)
        finally:
            outbox.delivery.cancel()
            watch.cancel()
            with self._lock:
                replaced = self._outbox is not outbox
                self._outbox = self._outbox if replaced else None
            if not replaced:
                self.stop()

    def _post(self, message: str | bytes | None) -> None:
        with self._lock:
            if self._outbox is not None:
                self._loop.call_soon_threadsafe(self._outbox.post, message)

    async def _deliver(self, socket: WebSocket, outbox: _Outbox) -> None:
        with suppress(WebSocketDisconnect):
            while (message := await outbox.get()) is not None:
                await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))
            await socket.close(REPLACED, "this canvas has another connection, or its page was left")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 20)
            if self._watched and time.monotonic() - self._touched > IDLE_SECONDS:
                self.stop(f"Stopped: nobody touched the canvas for {IDLE_SECONDS / 60:g} minutes")

    async def _take(self, message: dict) -> None:
        """One WebSocket message."""
        with self._answering():
            data = message["bytes"] if message.get("bytes") is not None else decode_message(message["text"])
            if isinstance(data, bytes) or data.get("kind") in self._tab.commands:
                await run_in_threadpool(self._receive, data)
            else:
                self._note(data)
                if not self._is_late(data):
                    self._sessions.send(self, data)

    def _receive(self, message: dict | bytes) -> None:
        """One of the tab's messages. Where the last stream was told to stop, as by a page that is loaded anew, its end
        is waited for: this page knows of no stream."""
        if self._stopping:
            self._await_end()
        self._tab.receive(self, message)

    def _await_end(self) -> None:
        """Waits for the end of a stream that was told to stop, if there is one."""
        if self._place.acquire(timeout=ENDING_SECONDS):
            self._place.release()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """What goes wrong in the block goes back as a sentence, and the connection lives on."""
        try:
            yield
        except InputError as error:
            self.send({"kind": "error", "text": str(error)})
        except Exception:  # a mistake of ours in one message must not cost the visitor the connection
            logging.getLogger(__name__).exception("a message of the browser could not be handled")
            self.send({"kind": "error", "text": FAILED})

    def _is_late(self, message: dict) -> bool:
        """Whether it would stop another stream than the one that runs."""
        return message.get("kind") == "stop" and message.get("run", self._run) != self._run

    def _note(self, message: dict) -> None:
        if message.get("kind") == "ack":
            return
        self._touched = time.monotonic()
        match message:
            case {"kind": "stop", "run": int(run)}:
                self._cancelled = max(run, self._cancelled)
                if run != self._run:  # its start is still to come, or is lost: the canvas must not wait for it
                    self.send({"kind": "ended", "run": run, "text": STOPPED_EARLY, "failed": True})
            case {"kind": "drag", "samples": [*_, {"t": int() | float() as stamp}]} | {"t": int() | float() as stamp}:
                self._inputs.append((self._touched, stamp))


async def _next_message(socket: WebSocket, delivery: asyncio.Task) -> dict | None:
    """The next WebSocket message; None once the browser has left, or ours are delivered no more."""
    receiving = asyncio.create_task(socket.receive())
    try:
        await asyncio.wait((receiving, delivery), return_when=asyncio.FIRST_COMPLETED)
    finally:
        receiving.cancel()
    if delivery.done() or receiving.result()["type"] == "websocket.disconnect":
        return None
    return receiving.result()


@dataclass
class _Visitor:
    """One page load. timer: until it is forgotten; runs while no seat has a socket."""

    token: str
    seats: dict[str, Seat]
    timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        return any(seat.connected for seat in self.seats.values())


class Live:
    """All visitors of one running app.

    tabs: by seat name; limit: streams that may run at once.
    """

    def __init__(self, tabs: Mapping[str, Tab], limit: int):
        self.sessions = Sessions(limit)
        self._tabs = tabs
        self._lock = threading.Lock()
        self._visitors: OrderedDict[str, _Visitor] = OrderedDict()  # by session hash

    @property
    def route(self) -> WebSocketRoute:
        """For the app's `routes`."""
        return WebSocketRoute("/motionstream/live/{seat}", self._connect)

    def admit(self, session: str) -> str:
        """A page was loaded: the secret token that its sockets must show. session: Gradio's session hash."""
        self.forget(session)
        seats = {name: Seat(tab, self.sessions) for name, tab in self._tabs.items()}
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._visitors[session] = _Visitor(token, seats)
            oldest = list(self._visitors)[: max(0, len(self._visitors) - MAX_VISITORS)]
        for old in oldest:
            self._forget_unless_connected(old)
        return token

    def leave(self, session: str) -> None:
        """Gradio has lost a page, for good or for a moment: ends its streams. May be called for unknown ones."""
        for seat in self._seats(session):
            seat.stop("Stopped: the connection to the server was interrupted")

    def forget(self, session: str) -> None:
        """Ends a page's streams and sockets, and drops all that it left here. May be called for unknown ones."""
        with self._lock:
            visitor = self._visitors.pop(session, None)
        for seat in visitor.seats.values() if visitor else ():
            seat.close()
            seat.own = seat.clip = None  # now, whoever still holds the seat: there are files

    def seat(self, session: str | None, name: str) -> Seat:
        """A visitor's seat. `InputError` if the page was never admitted, or forgotten."""
        with self._lock:
            if session not in self._visitors:
                raise InputError("the server does not know this page: reload it")
            return self._visitors[session].seats[name]

    def end_others(self, session: str, seat: Seat) -> None:
        """Ends what the visitor of `seat` left running at other canvases, so that it does not take this one's place."""
        for other in self._seats(session):
            if other is not seat:
                other.end("Stopped: a stream was started in another tab")

    def _seats(self, session: str) -> list[Seat]:
        with self._lock:
            return list(self._visitors[session].seats.values()) if session in self._visitors else []

    def _forget_unless_connected(self, session: str) -> None:
        with self._lock:
            visitor = self._visitors.get(session)
        if visitor is not None and not visitor.connected:
            self.forget(session)

    async def _connect(self, socket: WebSocket) -> None:
        offered = socket.scope["subprotocols"]
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        session, visitor = self._find(offered[1] if len(offered) in (2, 3) else "")
        seat = visitor.seats.get(socket.path_params["seat"]) if visitor else None
        if seat is None:
            return await socket.close(UNKNOWN_VISITOR, "the server does not know this page: reload it")
        if len(offered) == 3:
            self._take_over(visitor, offered[2])
            seat = visitor.seats[socket.path_params["seat"]]
        if visitor.timer is not None:
            visitor.timer.cancel()
        try:
            await seat.serve(socket)
        finally:
            if not visitor.connected:
                loop = asyncio.get_running_loop()
                visitor.timer = loop.call_later(FORGET_SECONDS, self._forget_unless_connected, session)

    def _take_over(self, visitor: _Visitor, offered: str) -> None:
        """Gives a page that has just been opened the seats of the page before, if that one's token was offered. All
        of them at once: a tab may not be opened again before the page after the next."""
        session, before = self._find(offered)
        with self._lock:  # a page's canvases connect together, and the first one does it for all
            if before is None or before is visitor or visitor.connected or self._visitors.pop(session, None) is None:
                return
            visitor.seats = before.seats
        for seat in visitor.seats.values():
            seat.close()  # a network that broke may leave the server with sockets that nobody holds any more

    def _find(self, offered: str) -> tuple[str, _Visitor] | tuple[None, None]:
        """The visitor whose token was offered."""
        with self._lock:
            visitors = list(self._visitors.items())
        for session, visitor in visitors:
            if secrets.compare_digest(visitor.token.encode(), offered.encode()):
                return session, visitor
        return None, None
