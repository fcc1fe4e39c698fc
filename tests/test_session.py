"""Live sessions: the mailbox across threads and forks, back-pressure, pause, stop, bad messages, replay."""

import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from motionstream.errors import InputError
from motionstream.model.checkpoint import random_model
from motionstream.model.presets import PRESETS
from motionstream.session import (
    MAX_LOG_BYTES,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Inbox,
    Mailbox,
    Record,
    Sessions,
    check_prompt,
    decode_message,
    replay,
    run_session,
)
from motionstream.streaming import Chunk
from motionstream.tracks import ChunkRequest

MODEL = SimpleNamespace(preset=SimpleNamespace(name="fake"))
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
STOP = {"kind": "stop"}


def fake_stream(
    model, image, source, *, prompt: Callable[[], str], seed: int, sharp: None = None, asked: list | None = None
) -> Iterator[Chunk]:
    """The contract of `streaming.stream` without a network: every frame depends on tracks, prompt, seed and history."""
    frame, start, index = image, 0, 0
    while True:
        count = 12 if index else 9
        request = ChunkRequest(index, start, count, image.shape[1], image.shape[0], 16.0, {max(start - 1, 0): frame})
        tracks = source.tracks_for(request)
        if asked is not None:
            asked.append(index)
        salt = hash((prompt(), seed, index)) % 7
        moved = [np.roll(frame, int(p.sum()) + salt, axis=1) for p in tracks.points]
        yield Chunk(index, start, np.stack(moved), tracks, {"total": 0.0})
        frame, start, index = moved[-1], start + count, index + 1


def session(mailbox, asked=None, **settings):
    """A session of the fake model; asked: takes the numbers of the chunks that were begun."""
    return run_session(MODEL, IMAGE, mailbox.address, stream=partial(fake_stream, asked=asked), **settings)


def pin(key, x=5.0, y=5.0, frame=0):
    return {"kind": "pin", "id": key, "x": x, "y": y, "frame": frame}


def ack(chunk):
    return {"kind": "ack", "chunk": chunk}


def move(x, key=1):
    return {"kind": "drag", "id": key, "phase": "move", "samples": [{"x": x, "y": 5, "t": x, "frame": 0}]}


def start(x, key=1):
    return move(x, key) | {"phase": "start"}


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def settled(condition, timeout=5.0):
    """Whether the condition becomes true soon."""
    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def receive(inbox, count):
    """The next `count` messages."""
    messages = []
    assert settled(lambda: messages.extend(inbox.drain(0.1)) or len(messages) >= count)
    return messages


@pytest.fixture(params=["abstract", "file"])
def each_kind_of_socket(request, monkeypatch):
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    monkeypatch.setattr("motionstream.session.ABSTRACT", request.param == "abstract")


def test_messages_sent_before_the_worker_came_are_there_at_once():
    with Mailbox() as mailbox:
        for i in range(50):
            mailbox.send({"kind": "n", "i": i})
        inbox = Inbox(mailbox.address)
        assert [m["i"] for m in inbox.drain()] == list(range(50))
        assert inbox.drain() == []
        mailbox.send({"kind": "n", "i": 50})
        assert receive(inbox, 1) == [{"kind": "n", "i": 50}]
        inbox.close()


@pytest.mark.usefixtures("each_kind_of_socket")
def test_messages_reach_a_forked_worker():
    with Mailbox() as other, Mailbox() as mailbox:
        mailbox.send(pin(1))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # the worker: it has nothing but the address, and copies of every socket of the parent
            try:
                inbox = Inbox(mailbox.address)
                while (message := receive(inbox, 1)[0]) != STOP:
                    os.write(write, json.dumps(message).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert json.loads(pipe.readline()) == pin(1)
            mailbox.send(pin(2))
            assert json.loads(pipe.readline()) == pin(2)
            neighbour = Inbox(other.address)
            other.close()  # although the child holds a copy of this socket
            assert neighbour.drain(5.0) == [STOP]
            neighbour.close()
            mailbox.send(STOP)
            assert pipe.read() == ""
        os.waitpid(child, 0)


def test_a_socket_that_is_a_file_is_private_and_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("motionstream.session.ABSTRACT", False)
    (long := tmp_path / ("x" * 120)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))  # longer than a socket's path may be on macOS, and on Linux
    mailbox = Mailbox()
    folder = Path(mailbox.address).parent
    assert folder.stat().st_mode & 0o777 == 0o700 and Path(mailbox.address).is_socket()
    mailbox.close()
    mailbox.close()
    assert not folder.exists()


@pytest.mark.usefixtures("each_kind_of_socket")
def test_closing_the_mailbox_stops_the_worker():
    mailbox = Mailbox()
    inbox = Inbox(mailbox.address)
    waiting = in_thread(lambda: receive(inbox, 1))
    mailbox.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert inbox.drain() == [STOP]
    inbox.close()
    mailbox.send(STOP)
    mailbox.close()


def test_a_busy_worker_gets_every_start_and_end_and_the_newest_moves():
    with Mailbox() as mailbox:
        mailbox.send(start(0))
        for i in range(3 * MAX_PENDING):
            mailbox.send(move(i))
        mailbox.send(move(9) | {"phase": "end"})
        inbox = Inbox(mailbox.address)
        messages = inbox.drain()
        assert len(messages) == MAX_PENDING
        assert messages[0]["phase"] == "start" and messages[-1]["phase"] == "end"
        assert [m["samples"][0]["x"] for m in messages[1:-1]] == list(range(2 * MAX_PENDING + 2, 3 * MAX_PENDING))
        inbox.close()


def test_a_full_mailbox_says_so_and_still_takes_a_stop():
    with Mailbox() as mailbox:
        for i in range(MAX_PENDING):
            mailbox.send(pin(i))
        with pytest.raises(InputError, match="1000 control messages wait"):
            mailbox.send(pin(0))
        mailbox.send(STOP)
        inbox = Inbox(mailbox.address)
        assert inbox.drain() == [STOP]
        inbox.close()


def test_webcam_pictures_make_room_and_never_fill_the_memory():
    with Mailbox() as mailbox:
        mailbox.send(start(0))
        for i in range(100):
            mailbox.send({"kind": "webcam", "i": i, "jpeg": "x" * 500_000})
        inbox = Inbox(mailbox.address)
        messages = inbox.drain()
        assert messages[0] == start(0) and messages[-1]["i"] == 99
        assert sum(len(json.dumps(m)) for m in messages) <= MAX_PENDING_BYTES + 500_100
        inbox.close()


def test_sending_never_blocks_and_a_dead_worker_is_no_error():
    with Mailbox() as mailbox:
        inbox = Inbox(mailbox.address)
        filler = {"kind": "drag", "phase": "move", "text": "x" * 10_000}
        for _ in range(2_000):  # 20 MB: far more than a socket takes
            mailbox.send(filler)
        inbox.close()
        assert settled(lambda: not mailbox._thread.is_alive())
        for _ in range(2 * MAX_PENDING):
            mailbox.send(pin(1))


def test_closing_while_the_worker_does_not_read():
    mailbox = Mailbox()
    inbox = Inbox(mailbox.address)
    for _ in range(2_000):
        mailbox.send({"kind": "drag", "phase": "move", "text": "x" * 10_000})
    closing = in_thread(mailbox.close)
    closing.join(5)
    assert not closing.is_alive()
    inbox.close()


@pytest.mark.usefixtures("each_kind_of_socket")
def test_a_worker_that_comes_too_late_stops():
    mailbox = Mailbox()
    mailbox.close()
    record = Record()
    assert list(session(mailbox, record=record)) == [] and record.end == "stopped"


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_no_more_chunks_than_allowed_are_unshown(ahead):
    asked = []
    with Mailbox() as mailbox:
        mailbox.send(ack(10**30))  # nobody has seen what is not there yet
        chunks = session(mailbox, ahead=ahead, idle_s=0.2, asked=asked)
        for _ in range(ahead):
            next(chunks)
        for shown in range(4):
            mailbox.send(ack(shown))
            assert next(chunks).index == shown + ahead
        assert next(chunks, None) is None and len(asked) == ahead + 4


def test_messages_that_arrive_during_a_chunk_apply_to_the_next():
    with Mailbox() as mailbox:
        mailbox.send(pin(1))
        chunks = session(mailbox, ahead=None)
        assert next(chunks).tracks.N == 1
        mailbox.send(pin(2))
        mailbox.send({"kind": "prompt", "text": "fog"})
        assert settled(lambda: not mailbox._pending)
        time.sleep(0.05)
        assert next(chunks).tracks.N == 2
        chunks.close()


def test_pause_stops_generation_and_takes_controls():
    asked = []
    with Mailbox() as mailbox:
        mailbox.send({"kind": "pause", "value": True})
        chunks = session(mailbox, ahead=None, asked=asked)
        first = []
        thread = in_thread(lambda: first.append(next(chunks)))
        time.sleep(0.1)
        assert not asked
        for key in range(3):
            mailbox.send(pin(key))
        mailbox.send({"kind": "pause", "value": False})
        thread.join(5)
        assert first[0].tracks.N == 3
        chunks.close()


def test_a_silent_visitor_is_not_waited_for_for_ever():
    record = Record()
    with Mailbox() as mailbox:
        assert len(list(session(mailbox, idle_s=0.05, record=record))) == 1
    assert record.end == "idle"


@pytest.mark.parametrize("paused", [False, True])
def test_a_session_that_runs_or_waits_ends_at_its_limit(paused):
    record, began = Record(), time.monotonic()
    with Mailbox() as mailbox:
        mailbox.send({"kind": "pause", "value": paused})
        chunks = list(session(mailbox, ahead=None, idle_s=10, limit_s=0.1, record=record))
    assert bool(chunks) != paused and record.end == "limit"
    assert 0.1 <= time.monotonic() - began < 5 and record.recipe()["chunks"] == len(chunks)


def test_bad_messages_end_nothing_and_are_told():
    record = Record()
    bad = [{"kind": "fly"}, pin("x"), {"kind": "prompt", "text": "x" * 10_000}, {"kind": "pause"}, {"kind": "ack"}, {}]
    with Mailbox() as mailbox:
        for message in [*bad, pin(1)]:
            mailbox.send(message)
        chunks = session(mailbox, ahead=None, record=record)
        assert next(chunks).tracks.N == 1
        errors = record.take_errors()
        assert len(errors) == len(bad) and "10000 characters; at most 2000" in errors[2]
        assert record.take_errors() == []
        mailbox.send(STOP)
        assert settled(lambda: next(chunks, None) is None)
    assert record.end == "stopped" and [json.loads(text) for _, text in record.controls] == [pin(1)]


def test_the_log_of_controls_has_an_end():
    record, long = Record(), {"kind": "prompt", "text": "fog", "junk": "x" * 2**20}
    for _ in range(MAX_LOG_BYTES // 2**20 - 1):
        record.log(long)
    assert record.recipe()["complete"]
    for _ in range(3):
        record.log(long)
        record.log(pin(1))  # a recipe with a gap would be no use
    assert not record.recipe()["complete"]
    assert len(json.dumps(record.recipe())) < MAX_LOG_BYTES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "not JSON"),
        ("[1]", "must be an object, not list"),
        ("[" * 200_000, "not JSON"),
        ('{"a":' * 20 + "1" + "}" * 20, "nested more than 4 levels"),
        (b"\xff\xff", "not JSON"),
        ("x" * (2**20 + 1), "1048577 bytes; at most 1048576"),
    ],
)
def test_wire_messages_are_checked(data, message):
    with pytest.raises(InputError, match=message):
        decode_message(data)


def test_a_mailbox_takes_only_what_the_worker_can_read():
    deep = {"kind": "clear", "x": [[[[1]]]]}
    with Mailbox() as mailbox:
        for message, text in ((deep, "nested"), ([1], "must be an object"), ({"text": "x" * 2**20}, "at most 1048576")):
            with pytest.raises(InputError, match=text):
                mailbox.send(message)


def test_wire_messages_are_read():
    assert decode_message(json.dumps(start(3))) == start(3)


def test_prompts_are_checked():
    assert check_prompt("dusk") == "dusk"
    with pytest.raises(InputError, match="10000 characters; at most 2000: shorten it"):
        check_prompt("x" * 10_000)
    with pytest.raises(InputError, match="must be text, not int"):
        check_prompt(7)


def play(messages_at, record, length=5):
    """A session whose visitor sends messages_at[k] before chunk k -> its chunks."""
    with Mailbox() as mailbox:
        for message in messages_at.get(0, []):
            mailbox.send(message)
        chunks, shown = [], session(mailbox, prompt="fog", seed=5, record=record)
        for chunk in shown:
            chunks.append(chunk)
            messages = messages_at.get(chunk.index + 1, []) if chunk.index + 1 < length else [STOP]
            for message in [*messages, ack(chunk.index)]:
                mailbox.send(message)
        return chunks


def test_replay_gives_the_same_pixels():
    messages = {
        0: [{"kind": "grid", "spacing": 8, "size": 2}, start(5, key=1), move(20), pin(9)],
        2: [move(30), {"kind": "fly"}, {"kind": "prompt", "text": "fog"}],
        3: [move(44) | {"phase": "end"}, {"kind": "remove", "id": 9}],
    }
    record = Record()
    chunks = play(messages, record)
    recipe = json.loads(json.dumps(record.recipe()))
    assert recipe["chunks"] == 5 and recipe["complete"]
    assert [c["chunk"] for c in recipe["controls"]] == [0, 0, 0, 0, 2, 2, 3, 3]
    again = list(replay(MODEL, IMAGE, recipe, stream=fake_stream))
    assert len(again) == 5
    for a, b in zip(chunks, again, strict=True):
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.tracks.ids, b.tracks.ids)
    without = list(replay(MODEL, IMAGE, recipe | {"controls": []}, stream=fake_stream))
    assert not np.array_equal(without[4].frames, chunks[4].frames)


def test_replay_of_a_real_stream():
    torch.set_num_threads(1)
    row = PRESETS["embedded"]
    shape = dict(row.transformer) | dict(num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=16)
    model, record = random_model(dataclasses.replace(row, transformer=shape)), Record()
    large = np.kron(IMAGE, np.ones((2, 2, 1), np.uint8))
    with Mailbox() as mailbox:
        for message in (start(5), {"kind": "prompt", "text": "fog"}):
            mailbox.send(message)
        chunks = []
        for chunk in run_session(model, IMAGE, mailbox.address, seed=2, record=record, sharp=large):
            chunks.append(chunk)
            for message in (move(20 + 9 * chunk.index), ack(chunk.index) if chunk.index < 3 else STOP):
                mailbox.send(message)
    recipe = json.loads(json.dumps(record.recipe()))
    with pytest.raises(InputError, match="made with sharp"):
        next(replay(model, IMAGE, recipe))
    again = list(replay(model, IMAGE, recipe, sharp=large))
    assert len(again) == len(chunks) == 4 and again[0].frames.shape[1:] == large.shape
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(chunks, again, strict=True))
    assert again[3].tracks.points[-1, 0].tolist() == [38, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a recipe"),
        ({"version": 2}, "not a recipe"),
        ({"model": "wan"}, "made with model wan, not with fake"),
        ({"image": {"sha256": "0"}}, "made with image"),
        ({"controls": [{}]}, "the recipe is damaged: 'chunk'"),
        ({"controls": 3}, "the recipe is damaged"),
        ({"tracks": {"sha256": "0"}}, "made with a track file"),
        ({"prompt": None}, "the prompt must be text"),
        ({"release": "drop"}, "release mode 'drop'"),
        ({"controls": [{"chunk": 0, "message": {"kind": "fly"}}]}, "unknown kind"),
    ],
)
def test_replay_refuses_what_does_not_belong_together(change, message):
    record = Record()
    play({}, record, length=1)
    with pytest.raises(InputError, match=message):
        list(replay(MODEL, IMAGE, record.recipe() | change, stream=fake_stream))


def test_a_visitor_has_one_session_and_the_server_a_limit():
    sessions = Sessions(limit=2)
    with sessions.open("a") as mailbox:
        inbox = Inbox(mailbox.address)
        with pytest.raises(InputError, match="running already: stop it first"), sessions.open("a"):
            pass
        with sessions.open("b"):
            assert len(sessions) == 2
            with pytest.raises(InputError, match="2 streams are running"), sessions.open("c"):
                pass
        sessions.send("a", pin(1))
        sessions.send("nobody", pin(1))
        assert receive(inbox, 1) == [pin(1)]
    assert len(sessions) == 0 and inbox.drain(1.0) == [STOP]
    inbox.close()


@pytest.mark.usefixtures("each_kind_of_socket")
def test_twenty_sessions_leave_nothing_behind():
    def count():
        gc.collect()
        return threading.active_count(), len(os.listdir("/dev/fd"))

    sessions, before = Sessions(), count()
    for i in range(20):
        with sessions.open(i) as mailbox:
            mailbox.send(pin(1))
            if i % 4 == 0:
                continue  # no worker ever came
            chunks = session(mailbox, ahead=None)
            next(chunks)
            if i % 4 == 1:
                chunks.close()  # the visitor's tab is gone
            elif i % 4 == 2:
                mailbox.send(STOP)
                assert settled(lambda chunks=chunks: next(chunks, None) is None)
        if i % 4 == 3:
            assert settled(lambda chunks=chunks: next(chunks, None) is None)  # the mailbox closed first
    assert len(sessions) == 0
    # Each end was taken five times, so what it leaves behind would be there five times. Others open and close a few.
    assert settled(lambda: all(now - then < 5 for then, now in zip(before, count(), strict=True))), (before, count())
