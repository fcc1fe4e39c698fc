"""The app without a browser: who may connect, what streams, what bad input does, and that nothing leaks."""

import dataclasses
import gc
import io
import itertools
import json
import math
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from app_kit import Paste, Site, Visitor, fake_engine, open_site, wait_for
from PIL import Image
from websockets.exceptions import ConnectionClosed

import app
from motionstream import machine
from motionstream.errors import InputError
from motionstream.machine import (
    Choice,
    fit_pictures,
    parse_resolution,
    pick_again,
    pick_dtype,
    pick_size,
    shown_size,
    time_size,
)
from motionstream.model.presets import PRESETS, SHARP_PIXELS
from motionstream.session import Mailbox
from motionstream.streaming import Chunk
from motionstream.tracks import Tracks
from motionstream.ui import live as live_module
from motionstream.ui.clip import ClipEncoder
from motionstream.ui.engine import Engine, on_gpu
from motionstream.video import read_clip

PRESET = PRESETS["embedded"]


def picture_file(width=64, height=48, mode="RGB", format="PNG", **settings) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (width, height), 99).save(data, format, **settings)
    return data.getvalue()


def pixels(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


# --- who may connect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocols", [["motionstream", "guessed"], ["motionstream"], None])
def test_page_without_token_is_turned_away(visitor, subprotocols):
    with pytest.raises(ConnectionClosed) as closed:
        visitor.connect(subprotocols=subprotocols).recv(5)
    assert closed.value.rcvd.code == live_module.UNKNOWN_VISITOR


def test_token_is_worthless_once_the_page_is_forgotten(site, visitor):
    site.live.forget(visitor.session)
    with pytest.raises(ConnectionClosed):
        visitor.socket.recv(5)
    with pytest.raises(ConnectionClosed) as closed:
        visitor.connect().recv(5)
    assert closed.value.rcvd.code == live_module.UNKNOWN_VISITOR


def test_newer_socket_of_a_page_replaces_the_older(visitor):
    older, visitor.socket = visitor.socket, visitor.connect()
    with pytest.raises(ConnectionClosed) as closed:
        older.recv(5)
    assert closed.value.rcvd.code == live_module.REPLACED
    visitor.expect("welcome")


def test_page_that_is_lost_for_a_moment_keeps_its_picture(site, visitor):
    visitor.say(picture_file(100, 100))
    shown, _ = visitor.expect("picture", binary=True)
    visitor.start()
    visitor.chunk(ack=False)
    site.live.leave(visitor.session)  # Gradio's heartbeat has ended, as at any break of the connection
    assert "interrupted" in visitor.expect("ended")["text"]
    visitor.socket.close()
    visitor.socket = visitor.connect()
    assert visitor.expect("picture", binary=True)[0] == shown


def test_page_without_a_socket_is_forgotten_after_a_while(site, visitor, monkeypatch):
    monkeypatch.setattr(live_module, "FORGET_SECONDS", 0.3)
    visitor.socket.close()
    time.sleep(0.1)
    visitor.socket = visitor.connect()
    visitor.expect("picture")
    time.sleep(0.5)  # longer than that after the first socket
    assert visitor.session in site.live._visitors
    visitor.socket.close()
    wait_for(lambda: visitor.session not in site.live._visitors, "the end of what was remembered", 3)


def test_gradio_takes_no_uploads(site, cache):
    before = sum(len(files) for _, _, files in os.walk(cache))
    answer = httpx.post(f"{site.url}gradio_api/upload", files={"files": ("a.bin", b"x")})
    assert answer.status_code == 413 and sum(len(files) for _, _, files in os.walk(cache)) == before


def test_frames_are_not_deflated(visitor):
    assert visitor.socket.protocol.extensions == []


@pytest.mark.parametrize("path", ["/etc/passwd", str(app.EXAMPLES / "README.md"), app.__file__])
def test_only_files_of_the_cache_are_served(site, path):
    assert httpx.get(f"{site.url}gradio_api/file={path}").status_code == 403


def test_oldest_pages_without_socket_are_forgotten(monkeypatch):
    monkeypatch.setattr(live_module, "MAX_VISITORS", 3)
    live = live_module.Live({}, 1)
    for number in range(5):
        live.admit(f"page {number}")
    for forget in (live.leave, live.forget):
        forget("page 4")
        forget("never seen")
    with pytest.raises(InputError, match="reload"):
        live.seat("page 1", "drag")


# --- streaming -------------------------------------------------------------------------------------------------------


def test_page_opens_with_an_example_and_its_controls(visitor):
    assert visitor.welcome["fps"] == PRESET.fps and len(visitor.welcome["examples"]) >= 4
    assert "fog" in visitor.welcome["vocabulary"] and "embedded" in visitor.welcome["text"]
    width, height = visitor.picture["width"], visitor.picture["height"]
    for name in (example["name"] for example in visitor.welcome["examples"]):
        visitor.say({"kind": "example", "name": name})
        shown, _ = visitor.expect("picture", binary=True)
        points = [point for path in shown["paths"] for point in path["points"]] + shown["pins"]
        assert shown["name"] == name and points
        assert all(0 <= x < shown["width"] and 0 <= y < shown["height"] for x, y in points)
    assert pixels(visitor.poster).shape[1] > width and width * height <= max(PRESET.budgets) * PRESET.cell**2


def test_stream_starts_with_the_picture_and_follows_controls_made_before(site, visitor):
    grid, pin = {"kind": "grid", "spacing": 8, "size": 2}, {"kind": "pin", "id": 1, "x": 50, "y": 60, "frame": 0}
    visitor.start((grid, pin))
    header, first = visitor.expect("frame", binary=True)
    assert (header["frame"], header["chunk"], header["index"], header["count"]) == (0, 0, 0, 9)
    small = cv2.resize(pixels(visitor.poster), pixels(first).shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(pixels(first).astype(int) - small).mean() < 8
    assert site.paste.chunks[0].tracks.N == 4
    assert np.allclose(site.paste.chunks[0].tracks.points.mean(axis=(0, 1)), [50, 60])
    visitor.say({"kind": "stop", "run": 1})
    assert visitor.expect("ended") == {"kind": "ended", "run": 1, "text": "", "failed": False}


def test_only_one_chunk_is_ahead_of_the_visitor(site, visitor):
    visitor.start()
    visitor.chunk(ack=False)
    assert visitor.quiet(0.4) and len(site.paste.chunks) == 1
    visitor.say({"kind": "ack", "chunk": 0})
    assert visitor.chunk(ack=False)["frame"] == 20
    assert visitor.quiet(0.4) and len(site.paste.chunks) == 2


def test_pause_stops_generation(site, visitor):
    visitor.start()
    visitor.chunk(ack=False)
    visitor.say({"kind": "pause", "value": True})
    visitor.say({"kind": "ack", "chunk": 0})
    assert visitor.quiet(0.4) and len(site.paste.chunks) == 1
    visitor.say({"kind": "pause", "value": False})
    assert visitor.chunk()["chunk"] == 1


def test_frames_tell_which_pointer_sample_they_follow(site, visitor):
    visitor.start()
    assert visitor.chunk(ack=False)["input"] is None
    sample = {"x": 40.0, "y": 40.0, "t": 123.5, "frame": 3}
    visitor.say({"kind": "drag", "id": 1, "phase": "start", "samples": [sample]})
    visitor.say({"kind": "drag", "id": 1, "phase": "move", "samples": [sample | {"x": 70.0, "t": 150.25}]})
    time.sleep(0.1)
    visitor.say({"kind": "ack", "chunk": 0})
    assert visitor.chunk()["input"] == 150.25
    assert visitor.chunk()["input"] is None
    assert np.ptp(site.paste.chunks[1].tracks.points[..., 0]) > 20


def test_second_start_is_refused_and_the_first_goes_on(visitor):
    visitor.start()
    visitor.chunk(ack=False)
    visitor.start(run=2)
    refused = visitor.expect("ended")
    assert refused["run"] == 2 and refused["failed"] and "running already" in refused["text"]
    visitor.say({"kind": "ack", "chunk": 0})
    assert visitor.chunk()["chunk"] == 1


def test_stop_may_overtake_its_start_and_does_not_touch_the_next(visitor):
    visitor.say({"kind": "stop", "run": 1})
    assert visitor.expect("ended")["failed"]  # it has arrived: the start comes by another way, which may be faster
    visitor.start()
    assert visitor.expect("ended") == {"kind": "ended", "run": 1, "text": live_module.STOPPED_EARLY, "failed": True}
    visitor.start(run=2)
    assert visitor.chunk()["chunk"] == 0


def test_a_late_stop_does_not_end_the_next_stream(visitor):
    visitor.start()
    visitor.chunk()
    visitor.say({"kind": "stop", "run": 1})
    visitor.expect("ended")
    visitor.start(run=2)
    visitor.chunk()
    visitor.say({"kind": "stop", "run": 1})
    for _ in range(3):
        visitor.chunk()


def test_too_many_streams_are_refused_in_a_sentence(site):
    visitors = [site.visit() for _ in range(site.live.sessions.limit + 1)]
    for visitor in visitors[:-1]:
        visitor.start()
        visitor.chunk(ack=False)
    visitors[-1].start()
    ended = visitors[-1].expect("ended")
    assert ended["failed"] and "try again" in ended["text"]
    for visitor in visitors:
        visitor.close()


def test_start_ends_what_the_visitor_left_running_in_another_tab(site, visitor, monkeypatch):
    monkeypatch.setattr(site.live.sessions, "limit", 1)
    visitor.start()
    visitor.chunk(ack=False)
    data = {"run": 1, "prompt": "", "messages": [], "panel": {"source": "webcam", "settings": {}}}
    with visitor.connect(seat="transfer") as transfer:
        while json.loads(transfer.recv(5))["kind"] != "welcome":
            pass
        number = site.function("start", "transfer")
        body = {"data": [], "event_data": data, "fn_index": number, "session_hash": visitor.session}
        visitor.http.post("queue/join", json=body).raise_for_status()
        assert "another tab" in visitor.expect("ended")["text"]
        wait_for(lambda: len(site.paste.chunks) > 1, "the other tab's stream")


def test_closed_socket_ends_the_session_at_once(site, visitor):
    visitor.start()
    visitor.chunk()
    visitor.socket.close()
    wait_for(lambda: not len(site.live.sessions) and not site.paste.live, "the session of a closed socket", seconds=3)


def test_start_after_a_lost_connection_waits_for_the_old_stream(site, visitor):
    site.paste.seconds = 0.5
    visitor.start()
    visitor.chunk()
    visitor.socket.close()
    visitor.socket = visitor.connect()
    visitor.start(run=2)
    while (frame := visitor.expect("frame"))["run"] != 2:
        pass  # the old stream's last chunk
    assert frame["frame"] == 0


def test_what_a_page_that_comes_back_asks_for_waits_for_the_old_stream(site, visitor):
    site.paste.seconds = 1.0
    visitor.start()
    visitor.chunk()
    visitor.socket.close()
    visitor.socket = visitor.connect()
    assert "name" in visitor.expect("picture")
    visitor.say(picture_file())
    while (header := visitor.hear()[0])["kind"] != "picture":
        assert header["kind"] != "error", header
    assert "name" not in header and not site.paste.live


def test_left_page_ends_a_paused_session(site, visitor):
    visitor.start()
    visitor.chunk()
    visitor.say({"kind": "pause", "value": True})
    site.live.leave(visitor.session)  # while its socket is still there
    wait_for(lambda: not len(site.live.sessions), "the session of a page that was left", seconds=3)


def test_untouched_stream_makes_room(visitor, monkeypatch):
    monkeypatch.setattr(live_module, "IDLE_SECONDS", 0.4)
    visitor.socket = visitor.connect()
    visitor.expect("picture")
    visitor.start()
    run = 1
    while (message := visitor.hear()[0])["kind"] != "ended" or message["run"] != 1:
        if message["kind"] == "frame" and message["index"] == 0:
            visitor.say({"kind": "ack", "chunk": message["chunk"]})
            visitor.start(run=(run := run + 1))  # a start that is refused touches nothing
            assert run < 50
    assert "nobody touched" in message["text"] and not message["failed"] and run > 2


@pytest.mark.parametrize(
    "error, sentence",
    [
        (RuntimeError("boom"), "error in the program"),
        (InputError("no webcam"), "no webcam"),
        (gr.Error("GPU task aborted"), "task aborted"),
        (gr.Error('No quota. <a style="x: y" href="https://h/join">Join</a> &amp; win.'), "No quota. Join & win."),
    ],
)
def test_what_breaks_a_stream_is_told_and_the_clip_until_then_is_there(site, visitor, tmp_path, error, sentence):
    site.paste.fail = error
    visitor.start()
    visitor.chunk()
    offer, ended = visitor.expect("download"), visitor.expect("ended")
    assert ended["failed"] and sentence in ended["text"]
    assert len(downloaded(site, offer, tmp_path)) == 9
    site.paste.fail = None
    visitor.start(run=2)
    assert visitor.chunk()["chunk"] == 0


def downloaded(site: Site, offer: dict, folder: Path) -> np.ndarray:
    """The frames of a clip that was offered."""
    answer = httpx.get(site.url.rstrip("/") + offer["url"]).raise_for_status()
    (folder / offer["name"]).write_bytes(answer.content)
    return read_clip(folder / offer["name"])[0]


@pytest.mark.parametrize("late", [False, True])
def test_the_clip_of_a_page_that_was_lost_is_offered_to_the_next_one(site, visitor, tmp_path, late):
    site.paste.seconds = 1.0 if late else 0.01
    visitor.start()
    visitor.chunk()  # another one is made until the stream ends: the next page may be there before
    visitor.socket.close()
    wait_for(lambda: late or not site.paste.live, "the end of the stream")
    heir = site.visit()
    heir.socket.close()
    wait_for(lambda: not site.live._visitors[heir.session].connected, "the end of its socket")
    heir.socket = heir.connect(subprotocols=["motionstream", heir.token, visitor.token])
    offer = heir.expect("download")
    assert len(downloaded(site, offer, tmp_path)) in (9, 21)
    site.live.forget(heir.session)
    assert httpx.get(site.url.rstrip("/") + offer["url"]).status_code == 403
    heir.close()


def test_every_frame_tells_how_far_grids_have_turned_in_it(tmp_path):
    sent, frames = [], np.zeros((9, 48, 64, 3), np.uint8)
    seat = SimpleNamespace(send=lambda header, _: sent.append(header["turned"]))
    with ClipEncoder(seat, 1, tmp_path / "clip.mp4", 64, 48, 16) as encoder:
        encoder.put(Chunk(0, 0, frames, Tracks.empty(9), {"total": 0.1}), {7: np.arange(9) / 4, 8: np.ones(9)}, None)
    assert sent == [{7: index / 4, 8: 1.0} for index in range(9)]


def test_clip_of_a_stream_that_broke_has_all_frames_made_until_then(tmp_path):
    seat, path = SimpleNamespace(send=lambda *_: None), tmp_path / "clip.mp4"
    for count in (0, 9):
        with pytest.raises(RuntimeError, match="boom"), ClipEncoder(seat, 1, path, 64, 48, 16) as encoder:
            if count:
                frames = np.zeros((count, 48, 64, 3), np.uint8)
                encoder.put(Chunk(0, 0, frames, Tracks.empty(count), {"total": 0.1}), {}, None)
            raise RuntimeError("boom")
        assert os.listdir(tmp_path) == [path.name] * bool(count)  # nothing half-finished
    assert read_clip(path)[0].shape == (9, 48, 64, 3)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, sentence",
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "must be an object"),
        ("[" * 100_000, "not JSON"),
        ('{"kind": "fly"}', "unknown kind"),
        ('{"x": 1}', "unknown kind"),
        ('{"kind": ["drag"]}', "unknown kind"),
        ('{"kind": "pin", "id": 1, "x": NaN, "y": 1, "frame": 0}', '"x" is nan'),
        ('{"kind": "drag", "id": 1, "phase": "start", "samples": []}', "at least one sample"),
        ('{"kind": "grid", "spacing": 1e9, "size": 3}', "spacing"),
        ('{"kind": "ack"}', "ack"),
        ('{"kind": "example", "name": "../../etc/passwd"}', "stop it"),
        ('{"kind": "prompt", "text": 5}', "must be text"),
        (json.dumps({"kind": "prompt", "text": "x" * 10_000}), "10000 characters"),
    ],
)
def test_malformed_message_is_answered_and_the_stream_lives_on(visitor, message, sentence):
    visitor.start()
    visitor.chunk()
    visitor.say(message)
    answer = None
    while answer is None:
        header, _ = visitor.hear()
        if header["kind"] == "frame" and header["index"] == 0:
            visitor.say({"kind": "ack", "chunk": header["chunk"]})
        answer = header["text"] if header["kind"] == "error" else None
    assert sentence in answer
    assert visitor.chunk()["kind"] == "frame"


def test_mistake_of_ours_in_a_message_is_told_and_logged_and_the_connection_lives_on(visitor, monkeypatch, caplog):
    monkeypatch.setattr("motionstream.ui.tab.read_image", lambda *args, **settings: {}["boom"])
    visitor.say(b"a picture")
    assert "error in the program" in visitor.expect("error")["text"]
    assert "boom" in caplog.text and "Traceback" in caplog.text
    visitor.start()
    assert visitor.chunk()["chunk"] == 0


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "empty"),
        (b"GIF89a nonsense", "image"),
        (b"%PDF-1.7 hello", "not an image"),
        (picture_file(64, 48)[:60], "image"),
        (picture_file(5000, 10), "4096 pixels"),
    ],
)
def test_bad_picture_is_refused_in_a_sentence(visitor, data, sentence):
    visitor.say(data)
    assert sentence in visitor.expect("error")["text"]
    visitor.start()
    assert visitor.chunk()["chunk"] == 0


def test_picture_above_the_websocket_limit_closes_the_socket(visitor):
    with pytest.raises(ConnectionClosed):
        visitor.socket.send(bytes(17 * 2**20))
        visitor.socket.recv(5)


@pytest.mark.parametrize("width, height", [(640, 360), (300, 300), (240, 420), (1000, 30)])
def test_pictures_of_any_shape_are_fitted(visitor, width, height):
    visitor.say(picture_file(width, height))
    shown, _ = visitor.expect("picture", binary=True)
    assert shown["width"] % PRESET.cell == shown["height"] % PRESET.cell == 0
    assert shown["width"] * shown["height"] <= 240 * PRESET.cell**2
    assert (shown["width"] > shown["height"]) == (width > height)
    assert "paths" not in shown
    visitor.start()
    size = tuple(shown["times"] * shown[side] for side in ("height", "width"))
    assert pixels(visitor.expect("frame", binary=True)[1]).shape[:2] == size
    assert size[0] * size[1] <= SHARP_PIXELS and size[1] < 2 * max(width, shown["width"])


@pytest.mark.parametrize(
    "data",
    [
        picture_file(mode="RGBA"),
        picture_file(mode="CMYK", format="JPEG"),
        picture_file(mode="I;16"),
        picture_file(format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    ],
    ids=["alpha", "cmyk", "16 bit", "turned"],
)
def test_odd_pictures_are_taken(visitor, data):
    visitor.say(data)
    shown, poster = visitor.expect("picture", binary=True)
    turned = pixels(poster).shape[0] > pixels(poster).shape[1]
    assert turned == (shown["height"] > shown["width"]) == (b"Exif" in data)


def test_picture_outlives_a_lost_connection(visitor):
    visitor.say(picture_file(100, 100))
    shown, poster = visitor.expect("picture", binary=True)
    visitor.socket.close()
    visitor.socket = visitor.connect()
    assert visitor.expect("picture", binary=True) == (shown, poster)


def test_picture_is_not_changed_under_a_running_stream(visitor):
    visitor.start()
    visitor.chunk()
    visitor.say(picture_file())
    assert "stop it before" in visitor.expect("error")["text"]


@pytest.mark.parametrize(
    "data, sentence",
    [
        ({"prompt": "x" * 10_000}, "10000 characters"),
        ({"prompt": None}, "must be text"),
        ({"messages": None}, "not understood"),
        ({"messages": ["drag"]}, "must be an object"),
        ({"messages": [{"kind": "clear"}] * 2_000}, "2000 control messages"),
    ],
)
def test_bad_start_is_refused_in_a_sentence(visitor, data, sentence):
    visitor.event("queue/join", "start", {"run": 1, "prompt": "", "messages": []} | data)
    ended = visitor.expect("ended")
    assert ended["failed"] and sentence in ended["text"]
    visitor.start(run=2)
    assert visitor.chunk()["chunk"] == 0


def test_words_that_the_model_passes_over_are_named(visitor):
    visitor.say({"kind": "read", "text": "dragons in the fog"})
    text = visitor.expect("read")["text"]
    assert "dragons" in text and "it knows" in text and "sepia" in text
    visitor.say({"kind": "read", "text": "fog at night"})
    assert visitor.expect("read")["text"] == ""


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_sessions_leave_no_threads_files_or_folders(site, cache):
    def session(ending: str) -> None:
        visitor = site.visit()
        visitor.start()
        visitor.chunk()
        if ending == "stop":
            visitor.say({"kind": "stop", "run": 1})
            visitor.expect("ended")
        visitor.close()
        wait_for(lambda: not len(site.live.sessions), "the end of the session")
        site.live.forget(visitor.session)

    def count() -> tuple[int, int, int, int]:
        workers = [thread for thread in threading.enumerate() if "AnyIO" not in thread.name]  # a pool that idles
        return len(workers), len(os.listdir("/proc/self/fd")), site.paste.live, len(site.live._visitors)

    for ending in ("stop", "close"):  # pools and caches fill
        session(ending)
    gc.collect()
    before, clips = count(), len(os.listdir(cache))
    for _ in range(3):
        session("stop")
        session("close")
    gc.collect()
    wait_for(lambda: all(now <= then for now, then in zip(count(), before, strict=True)), f"{before} -> {count()}", 5)
    assert len(os.listdir(cache)) <= clips


def test_an_app_that_is_asked_to_end_leaves_nothing_of_its_visitors(site, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, app.__file__, "--resolution", "100"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            address = next(line for line in program.stdout if "runs on" in line).split()[-1]
            visitor, other = (Visitor(dataclasses.replace(site, url=address)) for _ in range(2))
            visitor.start()
            visitor.chunk()
            visitor.say({"kind": "stop", "run": 1})
            visitor.expect("download")
            other.start()
            other.chunk()
            visitor.socket = visitor.connect(seat="transfer")
            visitor.say({"kind": "clip", "bytes": 9})
            visitor.expect("send")
            visitor.say(b"a part")
            wait_for(lambda: [*tmp_path.rglob("upload")] and [*tmp_path.rglob("encoded.mp4")], "files of both")
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
        finally:
            program.kill()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    visitor.close()
    other.close()


# --- machine and engine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed, budget", [(5.0, 100), (35.0, 100), (50.0, 140), (70.0, 180), (98.0, 240)])
def test_largest_size_that_keeps_up_is_picked(speed, budget):
    def run(picture, sharp):
        assert sharp.size > 4 * picture.size
        for index in range(3):
            frames = np.zeros((12, *sharp.shape), np.uint8)
            yield Chunk(index, 0, frames, Tracks.empty(12), {"total": 12 / speed + shown, "sharpen": shown})

    shown = 0.0
    choice = pick_size(PRESET, run)
    assert choice.budget == budget and choice.fps <= speed
    shown = 12 / 24  # what is shown takes as long at any size, here nearly all the time there is
    slower = pick_size(PRESET, run)
    assert slower.budget <= budget and slower.fps < speed


@pytest.mark.parametrize("seconds, times", [(0.03, 3), (0.05, 2), (0.09, 1)])
def test_frames_are_shown_less_sharp_where_even_the_smallest_size_would_not_keep_up(seconds, times):
    """20 frames a second are needed: of 0.05 s a frame, 0.019 are spent before a frame is made sharp."""

    def run(picture, sharp):
        for index in range(3):
            frames = np.zeros((12, *sharp.shape), np.uint8)
            yield Chunk(index, 0, frames, Tracks.empty(12), {"total": 12 * (0.019 + seconds), "sharpen": 12 * seconds})

    choice = pick_size(PRESET, run)
    assert choice.budget == 100 and choice.fps >= 20
    image, sharp = fit_pictures(PRESET, choice, np.zeros((1200, 2000, 3), np.uint8))
    assert shown_size(image, sharp)[0] == times * image.shape[1]


@pytest.mark.parametrize(
    "fps, chunks, budget",  # of a stream at 180 tokens that should make 16 frames a second
    [(9, 12, 100), (15, 12, 140), (17, 12, 180), (21, 12, 180), (40, 12, 240), (9, 6, 180), (40, 6, 180)],
)
def test_a_stream_tells_the_size_of_the_next_picture(fps, chunks, budget):
    """Slower than playback: a smaller one; time for the next size to spare: that; the first chunks tell nothing."""

    def run_session(model, image, address, *, sharp, **_):
        for index in range(chunks):
            timings = {"total": 12 / fps if index > 2 else 100.0, "control": 0.1, "sharpen": 0.05}
            yield Chunk(index, 0, np.zeros((12, *sharp.shape), np.uint8), Tracks.empty(12), timings)

    engine = Engine(fake_engine(Paste()).model, Choice(180, fps=22.0), run_session)
    with closing(engine.run(*engine.fit(np.zeros((1200, 2000, 3), np.uint8)), "", "")) as reports:
        assert sum(news.chunk is not None for news in reports) == chunks
    assert engine.choice.budget == budget
    assert engine.choice.fps == pytest.approx(22.0 if chunks < 8 else fps, rel=0.01) or budget != 180
    fixed = Engine(engine.model, Choice(180), run_session)
    list(fixed.run(*fixed.fit(np.zeros((1200, 2000, 3), np.uint8)), "", ""))
    assert fixed.choice == Choice(180)


@pytest.mark.parametrize("generated, times", [(0.035, None), (0.04, 2), (0.05, 1)])
def test_a_stream_that_shows_what_it_generates_tells_how_much_sharper_the_next_may_be(generated, times):
    """20 frames a second are needed. Twice as sharp takes 2.6 times as long, not four times: much is for each frame."""
    image = np.zeros((112, 192, 3), np.uint8)
    choice = pick_again(PRESET, Choice(100, fps=20.0, times=1), image, None, [(generated, 0.003)] * 8)
    assert (choice.budget, choice.times) == (100, times)


def test_a_visitor_who_leaves_tells_it_too():
    def run_session(model, image, address, *, sharp, **_):
        for index in itertools.count():
            yield Chunk(index, 0, np.zeros((12, *sharp.shape), np.uint8), Tracks.empty(12), {"total": 2.0})

    engine = Engine(fake_engine(Paste()).model, Choice(180, fps=22.0), run_session)
    with closing(engine.run(*engine.fit(np.zeros((1200, 2000, 3), np.uint8)), "", "")) as reports:
        for news in reports:
            if news.chunk.index == 12:
                break
    assert engine.choice.budget == 100 and engine.choice.times == 1


@pytest.mark.parametrize("choice", [Choice(240), Choice(None, (160, 96))])
def test_a_size_is_timed_once_its_chunks_cost_the_same(choice):
    def run(picture, sharp):
        assert picture.shape[1::-1] == (choice.size or (320, 192))
        for index in range(7):
            frames = np.zeros((12, *sharp.shape), np.uint8)
            yield Chunk(index, 0, frames, Tracks.empty(12), {"total": [0.1, 0.1, 0.1, 0.1, 0.4, 0.3, 0.2][index]})

    assert time_size(PRESET, choice, run) == dataclasses.replace(choice, fps=pytest.approx(40))


def test_faster_number_format_is_picked(monkeypatch):
    assert pick_dtype("cuda") == torch.bfloat16
    assert pick_dtype("cpu") in (torch.bfloat16, torch.float32)
    for fast, slow in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        seconds = {fast: 0.001, slow: 0.01}
        monkeypatch.setattr(machine, "_probe", lambda dtype, seconds=seconds: lambda: time.sleep(seconds[dtype]))
        assert pick_dtype("cpu") == fast


@pytest.mark.parametrize(
    "text, choice", [("140", Choice(140)), ("320x192", Choice(None, (320, 192))), (None, Choice(max(PRESET.budgets)))]
)
def test_resolution_is_read(text, choice):
    assert parse_resolution(text, PRESET) == choice


@pytest.mark.parametrize("text", "0 big 320x 320x190 -16x16 0x16 99999 9999x9999 16000x16000".split() + [""])
def test_bad_resolution_is_named(text):
    with pytest.raises(InputError, match="resolution"):
        parse_resolution(text, PRESET)


def test_bad_command_line_ends_with_a_sentence():
    assert app.parse_arguments(["--resolution", "240", "--port", "7000"]).port == 7000
    with pytest.raises(SystemExit) as ended:
        app.parse_arguments(["--port", "many"])
    assert ended.value.code == 2


@pytest.mark.parametrize("port", ["taken", 0, 70_000])
def test_port_that_cannot_be_had_is_named(site, port):
    with socket.socket() as taken, gr.Blocks() as demo:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if port == "taken" else port
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            app.serve(demo, site.live, port)


@pytest.mark.parametrize("port", ["abc", "0", "", "70000"])
def test_port_of_the_environment_that_is_none_is_named(port):
    environment = os.environ | {"GRADIO_SERVER_PORT": port}
    done = subprocess.run([sys.executable, app.__file__], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"app.py: GRADIO_SERVER_PORT is {port!r}, no port: set it to a free one from 1024 to 65535, or unset it"
    ]


def test_a_folder_that_clips_cannot_be_put_into_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"  # whoever runs the tests may write into any that is there
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(app.__file__, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"app.py: cannot write {folder}: Not a directory; set GRADIO_TEMP_DIR to a folder that can be written to"
    ]


def test_engine_runs_on_zero_gpu_only_where_it_is_on(monkeypatch):
    wrapped = []

    def gpu(duration):
        return lambda function: wrapped.append(duration) or partial(function)

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert on_gpu(picture_file) is picture_file and not wrapped
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert on_gpu(picture_file) is not picture_file and wrapped == [120]


def test_the_model_is_loaded_where_a_gpu_is_believed_in(monkeypatch, tmp_path):
    """`spaces` makes PyTorch take a GPU for there in the one thread that imports it, and from then on."""
    (tmp_path / "spaces.py").write_text("import threading\nimporter = threading.get_ident()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    monkeypatch.setattr(app, "load_engine", lambda _: (threading.get_ident(), "spaces" in sys.modules))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    thread, believed = app.loaded(app.parse_arguments([]))
    assert thread != threading.get_ident() and not believed
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert app.loaded(app.parse_arguments([])) == (threading.get_ident(), True)
    assert sys.modules.pop("spaces").importer == threading.get_ident()


@pytest.fixture(params=[False, True], ids=["own machine", "ZeroGPU"])
def lent(request, monkeypatch) -> bool:
    """Whether the GPU is lent: then what goes in and out is pickled, and errors but `gr.Error` come as a class name."""

    def gpu(duration):
        return lambda function: lambda *args: forked(function, *pickle.loads(pickle.dumps(args)))

    def forked(function, *args):
        try:
            yield from (pickle.loads(pickle.dumps(news)) for news in function(*args))
        except (InputError, RuntimeError) as error:  # as `spaces` does with all but its own
            raise gr.Error(type(error).__name__) from error

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    monkeypatch.setenv("SPACES_ZERO_GPU", str(request.param).lower())
    return request.param


def test_bad_input_that_ends_a_stream_is_told_in_its_own_words(lent):
    engine, reports = fake_engine(Paste(fail=InputError("the webcam is off: switch it on"))), []
    with Mailbox() as mailbox, pytest.raises(InputError, match="^the webcam is off: switch it on$"):
        mailbox.send({"kind": "fly"})
        for news in engine.run(*engine.fit(np.zeros((120, 200, 3), np.uint8)), mailbox.address, ""):
            reports.append(news)
            mailbox.send({"kind": "ack", "chunk": 0})
    assert len(reports) == 2 and "unknown kind" in reports[0].errors[0] and reports[1].recipe["chunks"] == 1


def test_stream_ends_before_zero_gpu_would_end_it(lent):
    def run_session(model, image, address, *, limit_s, record, **_):
        yield Chunk(0, 0, np.zeros((9, *image.shape), np.uint8), Tracks.empty(9), {"total": 1.0})
        limits.append(limit_s)
        record.end = "limit" if lent else "stopped"

    limits, model = [], fake_engine(Paste()).model
    *_, last = Engine(model, Choice(180), run_session).run(np.zeros((96, 160, 3), np.uint8), None, "", "")
    assert limits == [105 if lent else math.inf]
    assert ("120 seconds" in last.end and "download" in last.end) if lent else last.end == ""


def test_stream_limit_follows_the_machine():
    paste = Paste()
    fast, slow = fake_engine(paste), fake_engine(paste)
    slow = Engine(slow.model, Choice(180, fps=5.0))
    assert (app.stream_limit(fast), app.stream_limit(slow)) == (2, 1)


def test_a_gpu_has_no_more_visitors_than_it_has_room_for(monkeypatch):
    def limit(fps: float, streams: float) -> int:
        monkeypatch.setattr(app, "free_bytes", lambda device: streams * 5e9)
        model = SimpleNamespace(preset=PRESET, device=torch.device("cuda"))
        return app.stream_limit(Engine(model, Choice(240, fps=fps)))

    monkeypatch.setattr(app, "room_for_stream", lambda model, width, height: 5e9 * width / 320)
    assert (limit(50, 9), limit(50, 2.5), limit(50, 0.5), limit(10, 9)) == (3, 2, 1, 1)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: function))
    assert limit(0, 0) == 16


def test_fixed_resolution_crops_every_picture(cache):
    engine = fake_engine(Paste())
    site = open_site(Engine(engine.model, Choice(None, (160, 96))))
    visitor = site.visit()
    visitor.say(picture_file(100, 300))
    shown, poster = visitor.expect("picture", binary=True)
    visitor.close()
    site.demo.close()
    assert (shown["width"], shown["height"]) == (160, 96) and pixels(poster).shape[1] >= 160
