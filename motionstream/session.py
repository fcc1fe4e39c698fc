"""Live control of a stream: messages from a browser to a generator that may run in a forked process.

The web server owns a `Sessions`, which holds one `Mailbox` for every running session. A mailbox has an address, a plain
string that survives forking and pickling. The worker connects an `Inbox` to it, and `run_session` empties the inbox
before every chunk: messages that arrive while a chunk is being generated apply to the next one.

    sessions = Sessions()
    with sessions.open(key) as mailbox:                 # web server; mailbox.send(message) from any thread
        record = Record()                               # worker: process or thread
        for chunk in run_session(model, image, mailbox.address, prompt="fog", record=record):
            ...                                         # show chunk.frames, record.take_errors()
        record.recipe()                                 # replay(model, image, recipe) gives the same pixels

`run_session(..., base=recipe)` lays the drags on top of another source of motion (`motionstream.controls.layers`). Its
own live messages come through the same mailbox.

Messages are JSON objects: those of `motionstream.controls.drag` and of the base source, and

    {"kind": "prompt", "text": "fog"}    {"kind": "pause", "value": true}    {"kind": "stop"}
    {"kind": "ack", "chunk": 3}           the visitor has seen the beginning of chunk 3
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Client, Connection, Listener
from socket import SHUT_RDWR, socket

import numpy as np

from motionstream.controls.drag import DragSource
from motionstream.controls.layers import Layers, SourceRecipe, make_source
from motionstream.errors import InputError
from motionstream.model.checkpoint import Model
from motionstream.streaming import Chunk, stream

MAX_MESSAGE_BYTES = 2**20
MAX_PENDING = 1_000  # messages that wait for a busy worker
MAX_PENDING_BYTES = 16 * 2**20  # of them together
MAX_DEPTH = 4  # levels of nesting in a message
MAX_PROMPT = 2_000  # characters
MAX_LOG = 100_000  # messages in a recipe: half an hour of dragging without a pause
MAX_LOG_BYTES = 32 * 2**20  # of them together
MAX_ERRORS = 100  # error texts kept until they are taken
STOP = {"kind": "stop"}
ABSTRACT = sys.platform == "linux"  # has Unix sockets with a name and no file
RECIPE_FORMAT, RECIPE_VERSION = "motionstream-recipe", 1


def check_prompt(text: object) -> str:
    """The prompt itself; `InputError` if it is no text or longer than MAX_PROMPT characters."""
    if not isinstance(text, str):
        raise InputError(f"the prompt must be text, not {type(text).__name__}")
    if len(text) > MAX_PROMPT:
        raise InputError(f"the prompt has {len(text)} characters; at most {MAX_PROMPT}: shorten it")
    return text


def decode_message(data: str | bytes) -> dict:
    """One message as it comes over a wire -> the message; `InputError` if it is too large or no JSON object."""
    _check_size(data)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"control message is not JSON: {error}") from error
    _check_shape(message)
    return message


def _check_size(data: str | bytes) -> None:
    if len(data) > MAX_MESSAGE_BYTES:
        raise InputError(f"control message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES}: send less at once")


def _check_shape(message: object) -> None:
    if not isinstance(message, dict):
        raise InputError(f"a control message must be an object, not {type(message).__name__}")
    if _depth(message) > MAX_DEPTH:
        raise InputError(f"control message is nested more than {MAX_DEPTH} levels deep; no message needs that")


def _depth(value: object) -> int:
    """Levels of nesting, counted no further than MAX_DEPTH + 1, so that no later step runs out of stack."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inside = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level, depth = list(chain.from_iterable(inside)), depth + bool(inside)
    return depth


class Mailbox:
    """The sending end. Any thread may `send`; nothing blocks; messages wait until the worker has connected.

    address: what `Inbox` and `run_session` take, for one worker. While the worker is too busy to read, at most
    MAX_PENDING messages of MAX_PENDING_BYTES wait: the oldest pointer moves and webcam pictures make room, never a
    start or an end. A stop overtakes them all.
    """

    def __init__(self):
        self._folder: tempfile.TemporaryDirectory | None = None
        self.address = f"\0motionstream-{uuid.uuid4().hex}"  # no file, gone with its last owner
        if not ABSTRACT:
            # Nobody else can enter it. In /tmp: a socket's path has at most 103 bytes, and TMPDIR may be longer.
            self._folder = tempfile.TemporaryDirectory(prefix="motionstream-", dir="/tmp")
            self.address = f"{self._folder.name}/socket"
        self._listener = Listener(self.address, "AF_UNIX", backlog=8)
        self._connection: Connection | None = None
        self._pending: list[tuple[dict, str]] = []  # messages and the same as JSON
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._deliver, name="mailbox", daemon=True)
        self._thread.start()

    def send(self, message: dict) -> None:
        """Queues one message; after the session's end it is lost.

        `InputError` if it is no JSON object, too large or too deep, or if the queue is full.
        """
        _check_shape(message)
        text = json.dumps(message)
        _check_size(text)
        with self._changed:
            if not (self._open and self._thread.is_alive()):
                return
            if message.get("kind") == "stop":
                self._pending.clear()
            while len(self._pending) >= MAX_PENDING or sum(len(t) for _, t in self._pending) > MAX_PENDING_BYTES:
                self._make_room()
            self._pending.append((message, text))
            self._changed.notify()

    def close(self) -> None:
        """Ends the worker's session and frees the mailbox's thread and sockets. Any thread, any number of times."""
        with self._changed:
            self._open = False
            self._changed.notify()
            if self._connection is not None:
                _hang_up(self._connection)
            elif self._thread.is_alive():
                Client(self.address, "AF_UNIX").close()  # nothing else wakes a thread out of accept()
        self._thread.join()
        with self._changed:
            self._listener.close()
            if self._folder is not None:
                self._folder.cleanup()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _make_room(self) -> None:
        for i, (waiting, _) in enumerate(self._pending):
            if (waiting.get("kind"), waiting.get("phase")) in (("drag", "move"), ("webcam", None)):
                del self._pending[i]
                return
        raise InputError(f"{MAX_PENDING} control messages wait for the generator already: send fewer")

    def _deliver(self) -> None:
        """The mailbox's thread: waits for the worker, then passes messages on until either side ends."""
        connection = self._listener.accept()
        with self._changed:
            self._connection = connection
        # The first batch goes out at once, empty or not: a worker does not begin without what was sent before it came.
        batch = self._take()
        while batch is not None:
            try:
                connection.send_bytes(batch)
            except OSError:  # the worker has ended
                return
            with self._changed:
                self._changed.wait_for(lambda: self._pending or not self._open)
            batch = self._take()

    def _take(self) -> bytes | None:
        """All waiting messages as one JSON list; None once the mailbox is closed."""
        with self._changed:
            texts = [text for _, text in self._pending]
            self._pending.clear()
            return f"[{','.join(texts)}]".encode() if self._open else None


def _hang_up(connection: Connection) -> None:
    """Both ends see the end of the stream, even where a forked process has inherited a copy of either."""
    with socket(fileno=os.dup(connection.fileno())) as end, suppress(OSError):  # the other end may be gone already
        end.shutdown(SHUT_RDWR)


class Inbox:
    """The receiving end, for the worker. What was sent before it came is there at once.

    Raises `ConnectionRefusedError` or `FileNotFoundError` if the mailbox is closed.
    """

    def __init__(self, address: str):
        self._connection = Client(address, "AF_UNIX")
        self._arrived = self._receive()

    def drain(self, wait: float = 0.0) -> list[dict]:
        """All messages that have arrived, after at most `wait` seconds for the first; a lost mailbox says "stop"."""
        messages, self._arrived = self._arrived, []
        while len(messages) < MAX_PENDING and self._connection.poll(0 if messages else wait):
            batch = self._receive()
            messages += batch
            if batch == [STOP]:
                break
        return messages

    def close(self) -> None:
        """Frees the connection; messages sent from now on are lost."""
        self._connection.close()

    def _receive(self) -> list[dict]:
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return [STOP]


class Sessions:
    """The running sessions of one server, by a key of the visitor. limit: how many may run at once."""

    def __init__(self, limit: int = 8):
        self.limit = limit
        self._live: dict[Hashable, Mailbox] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._live)

    @contextmanager
    def open(self, key: Hashable) -> Iterator[Mailbox]:
        """The mailbox of a new session, closed at the end of the block.

        `InputError` if the visitor has a session that runs, or if `limit` sessions run.
        """
        with self._lock:
            if key in self._live:
                raise InputError("a stream of yours is running already: stop it first")
            if len(self._live) >= self.limit:
                running = "1 stream is" if self.limit == 1 else f"{self.limit} streams are"
                raise InputError(f"{running} running, the most there can be: try again in a minute")
            mailbox = self._live[key] = Mailbox()
        try:
            yield mailbox
        finally:
            with self._lock:
                del self._live[key]
            mailbox.close()

    def send(self, key: Hashable, message: dict) -> None:
        """Sends to the visitor's session; without one, nothing happens."""
        with self._lock:
            mailbox = self._live.get(key)
        if mailbox is not None:
            mailbox.send(message)


@dataclass
class Record:
    """What a session leaves besides its chunks.

    head: model, image, prompt, seed and release mode at the start; controls: (number of the first chunk that a message
    applied to, message as JSON); chunks: how many were generated; end: why the session is over ("stopped", "idle",
    "limit"); given_up: see `DragSource.take_given_up`; turned: see `DragSource.turned`.
    """

    head: dict = field(default_factory=dict)
    controls: list[tuple[int, str]] = field(default_factory=list)
    chunks: int = 0
    end: str = ""
    complete: bool = True
    given_up: list[int] = field(default_factory=list)
    turned: dict[int, np.ndarray] = field(default_factory=dict)
    _bytes: int = 0  # of the messages in `controls`
    _errors: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_ERRORS))

    def take_errors(self) -> list[str]:
        """What was wrong with messages since the last call, oldest first, for the visitor to read."""
        return [self._errors.popleft() for _ in range(len(self._errors))]

    def recipe(self) -> dict:
        """All that reproduces the session so far, as JSON types; not "complete" beyond MAX_LOG messages, MAX_LOG_BYTES
        of them, or the first private one."""
        controls = [{"chunk": chunk, "message": json.loads(text)} for chunk, text in self.controls]
        return {**self.head, "chunks": self.chunks, "complete": self.complete, "controls": controls}

    def log(self, message: dict, private: bool = False) -> None:
        """Notes a message that applies to the next chunk; of a private one, only that it is missing."""
        text = json.dumps(message) if self.complete and not private else ""
        self._bytes += len(text)
        self.complete = bool(text) and len(self.controls) < MAX_LOG and self._bytes <= MAX_LOG_BYTES
        if self.complete:
            self.controls.append((self.chunks, text))

    def error(self, text: str) -> None:
        """Notes what was wrong with a message."""
        self._errors.append(text)


class _State:
    """What messages change: the tracks, the prompt, and whether and how far the stream may run."""

    def __init__(self, prompt: str, seed: int, release: str, base: SourceRecipe | None):
        self.prompt = check_prompt(prompt)
        self.source = make_source(base, seed, release)
        self.paused = self.stopped = False
        self.shown = -1  # newest chunk that the visitor has seen

    def apply(self, message: dict) -> bool:
        """Takes in one message; whether it can change pixels, and so belongs to the recipe."""
        match message:
            case {"kind": "stop"}:
                self.stopped = True
            case {"kind": "pause", "value": bool(value)}:
                self.paused = value
            case {"kind": "ack", "chunk": int(chunk)}:
                self.shown = max(self.shown, chunk)
            case {"kind": "pause" | "ack"}:
                raise InputError('a pause needs "value" true or false, an ack needs "chunk", a whole number')
            case {"kind": "prompt"}:
                self.prompt = check_prompt(message.get("text"))
                return True
            case _:
                self.source.apply(message)
                return True
        return False

    def private(self, message: dict) -> bool:
        """Whether a message that was taken in must not be written down."""
        return isinstance(self.source, Layers) and message["kind"] in self.source.base.unrecorded

    @property
    def drags(self) -> DragSource:
        return self.source.drags if isinstance(self.source, Layers) else self.source

    def close(self) -> None:
        """Frees the base source, if there is one."""
        if isinstance(self.source, Layers):
            self.source.base.close()


def run_session(
    model: Model,
    image: np.ndarray,
    inbox: str | Inbox,
    *,
    prompt: str = "",
    seed: int = 0,
    release: str = "hold",
    base: SourceRecipe | None = None,
    ahead: int | None = 1,
    idle_s: float = 600.0,
    limit_s: float = math.inf,
    record: Record | None = None,
    sharp: np.ndarray | None = None,
    stream: Callable[..., Iterator[Chunk]] = stream,
) -> Iterator[Chunk]:
    """Chunks of a live session, until a stop, the end of the mailbox, `idle_s` seconds of waiting for a message, or
    `limit_s` seconds in all: no chunk begins after them.

    image: uint8 RGB [H, W, 3] at generation size; inbox: a mailbox's address, or an `Inbox`, closed at the end;
    prompt, seed, sharp: see `streaming.stream`; release: see `DragSource`; base: what the drags are laid on;
    ahead: chunk k is generated once the visitor has seen chunk k - ahead (None: do not wait for acknowledgements);
    record: filled while the session runs. A message that is wrong ends nothing: what is wrong with it goes to the
    record. Raises `InputError` where the base source cannot be had, or breaks.
    """
    record = Record() if record is None else record
    record.head = recipe_head(model, image, prompt, seed, release, base, sharp)
    over = time.monotonic() + limit_s
    try:
        inbox = Inbox(inbox) if isinstance(inbox, str) else inbox
    except (ConnectionRefusedError, FileNotFoundError):  # the visitor left before the worker was there
        record.end = "stopped"
        return
    with (
        closing(inbox),
        closing(_State(prompt, seed, release, base)) as state,
        closing(stream(model, image, state.source, prompt=lambda: state.prompt, seed=seed, sharp=sharp)) as chunks,
    ):
        while _may_go_on(state, inbox, record, ahead, idle_s, over) and (chunk := next(chunks, None)):
            record.chunks += 1
            record.given_up += state.drags.take_given_up()
            record.turned = state.drags.turned()
            yield chunk


def _may_go_on(state: _State, inbox: Inbox, record: Record, ahead: int | None, idle_s: float, over: float) -> bool:
    """Empties the inbox, then waits while the session is paused or too far ahead of the visitor; until `over`."""
    messages = inbox.drain()
    deadline = time.monotonic() + idle_s
    while True:
        for message in messages:
            try:
                if state.apply(message):
                    record.log(message, state.private(message))
            except InputError as error:
                record.error(str(error))
        state.shown = min(state.shown, record.chunks - 1)  # nobody has seen what is not there yet
        if state.stopped:
            record.end = "stopped"
            return False
        if time.monotonic() >= over:
            record.end = "limit"
            return False
        if not state.paused and (ahead is None or record.chunks - state.shown <= ahead):
            return True
        if messages:
            deadline = time.monotonic() + idle_s
        elif time.monotonic() >= deadline:
            record.end = "idle"
            return False
        messages = inbox.drain(max(0.0, min(deadline, over) - time.monotonic()))


def replay(
    model: Model,
    image: np.ndarray,
    recipe: dict,
    base: SourceRecipe | None = None,
    sharp: np.ndarray | None = None,
    stream: Callable[..., Iterator[Chunk]] = stream,
) -> Iterator[Chunk]:
    """The chunks of a recorded session again: same model, image and machine, same pixels.

    image, base, sharp: as given to `run_session`; recipe: `Record.recipe()`. `InputError` if these differ from then, or
    if not all that moved the picture is in the recipe.
    """
    if not isinstance(recipe, dict) or (recipe.get("format"), recipe.get("version")) != (RECIPE_FORMAT, RECIPE_VERSION):
        raise InputError(f"this is not a recipe of format {RECIPE_FORMAT}, version {RECIPE_VERSION}")
    try:
        prompt, seed, release, length = (recipe[key] for key in ("prompt", "seed", "release", "chunks"))
        messages = defaultdict(list)
        for entry in recipe["controls"]:
            messages[entry["chunk"]].append(entry["message"])
        given = {key: recipe[key] for key in ("model", "image")} | {key: recipe.get(key) for key in ("base", "sharp")}
        if "tracks" in recipe:
            raise InputError("the recipe was made with a track file: generate with those tracks instead")
    except (KeyError, TypeError) as error:
        raise InputError(f"the recipe is damaged: {error}") from error
    if not recipe.get("complete", True):
        raise InputError("the recipe lacks some of the controls, so nobody can make the same pixels of it again")
    head = recipe_head(model, image, prompt, seed, release, base, sharp)
    for key, value in ({"base": None, "sharp": None} | head).items():
        if given.get(key, value) != value:
            raise InputError(f"the recipe was made with {key} {given[key]}, not with {value}")
    with (
        closing(_State(prompt, seed, release, base)) as state,
        closing(stream(model, image, state.source, prompt=lambda: state.prompt, seed=seed, sharp=sharp)) as chunks,
    ):
        for index in range(length):
            for message in messages[index]:
                state.apply(message)
            yield next(chunks)


def recipe_head(
    model: Model,
    image: np.ndarray,
    prompt: str,
    seed: int,
    release: str = "hold",
    base: SourceRecipe | None = None,
    sharp: np.ndarray | None = None,
) -> dict:
    """What every recipe begins with. Images are named by their pixels: SHA-256 of the array's bytes."""
    head = {"format": RECIPE_FORMAT, "version": RECIPE_VERSION, "model": model.preset.name, "image": _named(image)}
    head |= {"prompt": prompt, "seed": seed, "release": release}
    head |= {} if sharp is None else {"sharp": _named(sharp)}
    return head if base is None else head | {"base": base.describe()}


def _named(image: np.ndarray) -> dict:
    height, width = image.shape[:2]
    return {"sha256": hashlib.sha256(image.tobytes()).hexdigest(), "width": width, "height": height}
