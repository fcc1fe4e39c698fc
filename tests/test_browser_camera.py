"""The Camera tab: what its panel does in Chromium, and what its server makes of all that a page could send."""

import base64
import io
import json
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from app_kit import Site, Visitor, wait_for
from PIL import Image
from playwright.sync_api import Page, expect

from motionstream.controls.layers import BASE_IDS
from motionstream.controls.paths import Keyframes
from motionstream.controls.pinhole import Camera
from motionstream.controls.planes import ScenePlanes, Standing
from motionstream.errors import InputError
from motionstream.ui import camera

PLAN = {"route": "truck", "ends": "on", "speed": 1.0, "focal": 28.0}


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


CAMERAS = Keyframes([Camera.facing(320, 192, f) for f in (250, 500)], np.array([0.0, 1.0]), (320, 192)).to_json()


# --- without a browser ---------------------------------------------------------------------------------------------


class Guest(Visitor):
    """A `Visitor` at the Camera tab's seat."""

    seat = "camera"

    def depth(self):
        """The next depth message: header and picture."""
        header, body = self.expect("depth", binary=True)
        return header, np.asarray(Image.open(io.BytesIO(body)).convert("L")).astype(int)


@pytest.fixture
def guest(site):
    guest = Guest(site)
    yield guest
    guest.close()


def test_the_depth_follows_the_handles_and_the_uploads(guest):
    header, picture = guest.depth()
    assert header["method"] == "planes" and len(header["planes"]) == 4
    assert picture[-4:].mean() > picture[:20].mean() + 50  # the floor is near
    guest.say({"kind": "planes", "sides": [0.3, 0.3, 0.7, 0.7]})
    header, room = guest.depth()
    assert header["planes"] == [0.3, 0.3, 0.7, 0.7] and header["vanishing"] == [0.5, 0.5]
    assert room[:, :4].mean() > room[room.shape[0] // 2, room.shape[1] // 2] + 50  # the walls are near
    ramp = np.tile(np.linspace(0, 255, 160).astype(np.uint8), (96, 1))
    guest.say({"kind": "upload", "what": "depth"})
    guest.say(png(ramp))
    header, first = guest.depth()
    assert header["method"] == "upload"
    guest.say({"kind": "depth", "method": "upload", "bright_is_near": not header["bright_is_near"]})
    header, second = guest.depth()
    assert np.sign(np.diff(first.mean(axis=0)[[5, -5]])) == -np.sign(np.diff(second.mean(axis=0)[[5, -5]]))
    guest.say(npy(ramp[:, ::-1] + 1.0))  # can be nothing but a depth map
    assert guest.depth()[0]["method"] == "upload"
    guest.say(png(np.zeros((50, 70, 3), np.uint8)))  # a picture again: its depth begins anew
    assert guest.expect("picture", binary=True)[0]["width"] > 0
    assert guest.depth()[0]["method"] == "planes"


class Coming(ScenePlanes):
    """Depth whose weights are not there before `arrived` is set."""

    arrived = threading.Event()
    fetches: ClassVar[list[str]] = []
    package = "numpy"

    def ready(self):
        return self.arrived.is_set()

    def fetch(self):
        self.fetches.append(threading.current_thread().name)
        return self.arrived.wait(20)


@pytest.fixture
def coming(monkeypatch):
    monkeypatch.setattr(Coming, "arrived", threading.Event())
    monkeypatch.setattr(Coming, "fetches", [])
    monkeypatch.setitem(camera.LEARNED, camera.BEST, Coming())
    yield Coming
    Coming.arrived.set()


def test_weights_are_fetched_when_the_tab_is_first_opened(coming, site):
    visitors = [Guest(site) for _ in range(2)]
    for visitor in visitors:
        assert visitor.depth()[0]["method"] == "planes" and visitor.quiet(0.3)
    coming.arrived.set()
    for visitor in visitors:
        assert visitor.expect("ready")["method"] == camera.BEST
    assert len(coming.fetches) == 1  # for both of them
    visitors[0].say({"kind": "depth", "method": camera.BEST, "bright_is_near": False})
    assert visitors[0].depth()[0]["method"] == camera.BEST
    late = Guest(site)
    assert late.depth()[0]["method"] == camera.BEST and late.quiet(0.3)
    for visitor in (*visitors, late):
        visitor.close()


def test_a_download_that_breaks_off_is_tried_again_for_the_next_visitor(coming, site, monkeypatch):
    def breaks(self):
        self.fetches.append("")
        raise RuntimeError("the Hub is gone")

    monkeypatch.setattr(threading, "excepthook", lambda what: None)
    monkeypatch.setattr(Coming, "fetch", breaks)
    for count in (1, 2):
        one = Guest(site)
        assert one.depth()[0]["method"] == "planes"
        wait_for(lambda count=count: len(coming.fetches) == count, "another try")
        one.close()


def test_planes_do_where_the_weights_turn_out_to_be_of_no_use(coming, site, monkeypatch):
    def fails(*args):
        raise InputError("the weights are damaged")

    monkeypatch.setattr(Coming, "estimate", fails)
    coming.arrived.set()
    one = Guest(site)
    assert one.depth()[0]["method"] == "planes"
    one.say({"kind": "depth", "method": camera.BEST, "bright_is_near": False})
    assert one.depth()[0]["method"] == "planes"  # as before the choice
    assert one.expect("error")["text"] == "the weights are damaged"
    one.say(png(np.zeros((50, 70, 3), np.uint8)))
    assert one.depth()[0]["method"] == "planes"
    one.close()


def test_the_fan_shows_where_the_tracks_will_go(guest):
    guest.depth()
    guest.say({"kind": "fan", "plan": PLAN})
    lines = [np.reshape(line, (-1, 2)) for line in guest.expect("fan")["lines"]]
    assert len(lines) > 50 and max(len(line) for line in lines) > 10
    moved = np.array([line[-1] - line[0] for line in lines if len(line) > 5])
    assert (moved[:, 0] < -1).all() and np.abs(moved[:, 1]).max() < 0.2  # a truck to the right


def test_a_start_waits_for_the_depth_of_its_picture(site, guest, monkeypatch):
    guest.depth()
    there, made = threading.Event(), np.full((4, 4), 3, np.float32)
    monkeypatch.setattr(Standing, "estimate", lambda *args: there.wait(10) and made)
    guest.say(png(np.zeros((70, 50, 3), np.uint8)))
    guest.expect("picture")
    guest.start(panel=PLAN)
    wait_for(lambda: len(site.live.sessions), "the start")
    assert not site.paste.chunks
    there.set()
    guest.chunk()
    assert site.live._visitors[guest.session].seats["camera"].own.recipe.first is made


def test_a_start_without_a_depth_is_refused(site, guest, monkeypatch):
    def fails(*args):
        raise InputError("nothing is seen in it")

    guest.depth()
    guest.say({"kind": "depth", "method": "planes", "bright_is_near": False})
    guest.depth()
    monkeypatch.setattr(Standing, "estimate", fails)
    guest.say(png(np.zeros((70, 50, 3), np.uint8)))
    assert guest.expect("error")["text"] == "nothing is seen in it"
    guest.start(panel=PLAN)
    assert "no depth of this picture" in guest.expect("ended")["text"] and not site.paste.chunks


def test_camera_files_in_and_out(guest):
    guest.depth()
    guest.say({"kind": "upload", "what": "cameras"})
    guest.say(CAMERAS.encode())
    assert guest.expect("keyframes")["count"] == 2
    guest.say({"kind": "save", "plan": PLAN | {"route": "keyframes"}})
    saved = Keyframes.from_json(guest.expect("cameras")["text"])
    assert saved.cameras[0].focal[0] == pytest.approx(250) and saved.cameras[-1].focal[0] == pytest.approx(500)
    assert saved.times[-1] == pytest.approx(4.0) and saved.size == (guest.picture["width"], guest.picture["height"])


def test_a_camera_file_can_be_chosen_while_another_path_is_running(site, guest):
    guest.depth()
    guest.say({"kind": "upload", "what": "cameras"})
    guest.say(CAMERAS.encode())
    guest.expect("keyframes")
    guest.start(panel=PLAN | {"route": "still"})
    guest.chunk()
    guest.say({"kind": "camera", "route": "keyframes"})
    for _ in range(4):
        guest.chunk()
    went = [np.abs(chunk.tracks.points[-1] - chunk.tracks.points[0]).max() for chunk in site.paste.chunks]
    assert went[0] < 0.01 and max(went) > 5  # the file zooms


def test_a_stream_of_a_steered_camera_and_its_cameras_afterwards(site, guest):
    guest.depth()
    guest.start(panel=PLAN | {"route": "still"})
    guest.chunk()
    guest.say({"kind": "steer", "move": [1, 0, 0]})
    for _ in range(3):
        guest.chunk()
    drag = {"kind": "drag", "id": 1, "phase": "start", "samples": [{"x": 99, "y": 88, "t": 1, "frame": 20}]}
    guest.say(drag)
    for _ in range(3):
        guest.chunk()
    guest.say({"kind": "stop"})
    assert not guest.expect("ended")["failed"]
    chunks = site.paste.chunks
    base = chunks[0].tracks
    assert base.N > 200 and np.abs(base.points[-1] - base.points[0]).max() < 0.01
    assert any((c.tracks.points[-1, :, 0] < c.tracks.points[0, :, 0] - 1).sum() > 200 for c in chunks[1:])
    mixed = next(c.tracks for c in chunks if c.tracks.N > base.N)
    near = np.linalg.norm(mixed.points[0] - mixed.points[0, -1], axis=1) < 8
    assert near.sum() > 1 and not mixed.visible[0, near][:-1].any() and mixed.visible[0, -1]  # the drag wins
    guest.say({"kind": "save", "plan": PLAN})
    saved = Keyframes.from_json(guest.expect("cameras")["text"])
    assert len(saved.cameras) == sum(len(c.frames) for c in chunks)
    assert saved.cameras[0].pose.tolist() == np.eye(4).tolist() and saved.cameras[-1].pose[0, 3] > 0.05


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "planes", "sides": [0, 0, 0, 0]}, {"kind": "planes", "sides": "abc"}, {"kind": "planes"},
        {"kind": "planes", "sides": [0, 0, 1, "1"]}, {"kind": "depth", "method": "upload"}, {"kind": "depth"},
        {"kind": "depth", "method": ["planes"]}, {"kind": "fan"}, {"kind": "fan", "plan": PLAN | {"speed": "1"}},
        {"kind": "fan", "plan": PLAN | {"route": ["orbit"]}}, {"kind": "fan", "plan": PLAN | {"route": "keyframes"}},
        {"kind": "save", "plan": PLAN | {"more": 1}}, {"kind": "fan", "plan": PLAN | {"focal": 1e9}},
        npy(np.zeros((3, 3))), npy(np.zeros((2, 2, 2, 2))), b"", b"\x93NUMPY\x01\x00\xff\xff",
    ],
    ids=lambda message: str(message)[:40],
)
def test_what_is_wrong_comes_back_as_a_sentence_and_changes_nothing(guest, message):
    before = guest.depth()
    guest.say(message)
    assert len(guest.expect("error")["text"]) > 20
    guest.say({"kind": "fan", "plan": PLAN})
    guest.expect("fan")
    again = Guest(guest.site)
    after = again.depth()
    again.close()
    assert before[0] == after[0]


@pytest.mark.parametrize("what", ["depth", "cameras"])
def test_an_upload_that_is_not_what_was_said_is_refused(guest, what):
    guest.depth()
    guest.say({"kind": "upload", "what": what})
    guest.say(b"{}")
    assert guest.expect("error")["text"]
    guest.say({"kind": "fan", "plan": PLAN})
    guest.expect("fan")


@pytest.mark.parametrize("panel", [None, {}, {"route": "orbit"}, PLAN | {"speed": None}])
def test_a_start_without_a_plan_is_refused(site, guest, panel):
    guest.depth()
    guest.start(panel=panel)
    ended = guest.expect("ended")
    assert "plan" in ended["text"] or "speed" in ended["text"]
    assert not site.paste.chunks


def test_depth_stays_as_it_is_while_a_stream_runs(guest):
    guest.depth()
    guest.start(panel=PLAN)
    guest.chunk()
    for message in ({"kind": "planes", "sides": [0.3, 0.3, 0.7, 0.7]}, npy(np.ones((4, 4)))):
        guest.say(message)
        assert "stream is running" in guest.expect("error")["text"]
    guest.say({"kind": "steer", "move": [5, 0, 0]})  # the stream's own messages are checked too
    while (header := guest.hear()[0])["kind"] != "error":
        if header["kind"] == "frame" and header["index"] == header["count"] - 1:
            guest.say({"kind": "ack", "chunk": header["chunk"]})
    assert "steer" in header["text"]


def test_a_stream_ends_in_order_also_where_its_visitor_was_forgotten(guest, site, monkeypatch):
    ended, stream, pass_on = [], camera.CameraTab._stream, camera.CameraTab._pass_on

    def watched(*args):
        stream(*args)
        ended.append(True)

    def forgotten(tab, news, *args):
        if news.chunk is not None:
            site.live.forget(guest.session)
        pass_on(tab, news, *args)

    monkeypatch.setattr(camera.CameraTab, "_stream", watched)
    monkeypatch.setattr(camera.CameraTab, "_pass_on", forgotten)
    guest.start(panel=PLAN)
    wait_for(lambda: ended, "the stream's end in order")


# --- in Chromium ---------------------------------------------------------------------------------------------------


def part(page: Page, name: str):
    return page.locator(f'.ms:visible [data-ms="{name}"]')


def in_state(page: Page, state: str) -> None:
    expect(page.locator(".ms:visible")).to_have_attribute("data-state", state, timeout=20_000)


def open_camera(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.get_by_role("tab", name="Camera").click()
    in_state(page, "idle")
    wait_for(lambda: page.wait_for_timeout(50) or part(page, "depth").evaluate("i => i.naturalWidth") > 0, "the depth")


def painted(page: Page, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the overlay has a colour, [N, 2] shares of its sides."""
    url = part(page, "overlay").evaluate("canvas => canvas.toDataURL('image/png')")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA")).astype(int)
    height, width = pixels.shape[:2]
    y, x = ((np.abs(pixels[..., :3] - colour).max(axis=-1) < 14) & (pixels[..., 3] > 120)).nonzero()
    return np.stack([x / width, y / height], axis=-1)


WALL, FAN = (56, 189, 248), (250, 204, 21)


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    box = part(page, "picture").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def motion(site: Site, number: int = -1) -> np.ndarray:
    tracks = site.paste.chunks[number].tracks
    return (tracks.points[-1] - tracks.points[0])[tracks.visible.all(axis=0)]


def reach_chunks(page: Page, site: Site, count: int) -> None:
    wait_for(lambda: page.wait_for_timeout(50) or len(site.paste.chunks) >= count, f"{count} chunks", 30)


def test_a_stream_ends_when_its_tab_is_left(page, site, monkeypatch):
    monkeypatch.setattr(site.live.sessions, "limit", 1)
    page.goto(site.url)
    in_state(page, "idle")
    part(page, "start").click()
    in_state(page, "live")
    page.get_by_role("tab", name="Camera").click()
    wait_for(lambda: page.wait_for_timeout(20) or not len(site.live.sessions), "the end of the hidden stream", 5)
    in_state(page, "idle")
    wait_for(lambda: page.wait_for_timeout(50) or part(page, "depth").evaluate("i => i.naturalWidth") > 0, "the depth")
    part(page, "start").click()
    in_state(page, "live")


def test_handles_fan_path_keys_and_drag(page, site):
    open_camera(page, site)
    wait_for(lambda: page.wait_for_timeout(100) or len(painted(page, FAN)) > 300, "the fan of tracks")
    before, handles = part(page, "depth").get_attribute("src"), painted(page, WALL)
    rows, counts = np.unique(handles[handles[:, 0] > 0.96, 1].round(2), return_counts=True)
    page.mouse.move(*at(page, 0.985, float(rows[counts.argmax()])))  # where the box's edge is widest
    page.mouse.down()
    page.mouse.move(*at(page, 0.8, 0.7), steps=4)
    page.mouse.up()
    wait_for(lambda: page.wait_for_timeout(50) or part(page, "depth").get_attribute("src") != before, "a new depth")
    wall = painted(page, WALL)
    assert (np.linalg.norm(wall - (0.8, 0.7), axis=1) < 0.02).sum() > 20  # the handle is where it was put
    part(page, "route").select_option("still")
    part(page, "start").click()
    in_state(page, "live")
    reach_chunks(page, site, 2)
    assert np.abs(motion(site)).max() < 0.01 and not len(painted(page, FAN))
    page.evaluate("addEventListener('keydown', event => { window.kept = !event.defaultPrevented; })")
    for key in ("ArrowDown", "ArrowDown", " ", " ", " "):  # held down: they steer and pause, and do not scroll
        page.keyboard.down(key)
        assert not page.evaluate("kept")
    in_state(page, "paused")
    page.keyboard.up("ArrowDown")
    page.keyboard.up(" ")
    page.keyboard.press(" ")
    in_state(page, "live")
    page.keyboard.down("d")
    count = len(site.paste.chunks)
    reach_chunks(page, site, count + 3)
    assert (motion(site)[:, 0] < -0.5).all()  # the camera goes right, so the picture goes left
    page.keyboard.up("d")
    count = len(site.paste.chunks)
    reach_chunks(page, site, count + 5)
    assert np.abs(motion(site)).max() < 0.1
    part(page, "route").select_option("zoom")  # while it runs
    reach_chunks(page, site, len(site.paste.chunks) + 3)
    assert np.abs(motion(site)).max() > 1 and site.paste.chunks[-1].tracks.ids.max() < BASE_IDS
    page.mouse.move(*at(page, 0.4, 0.4))
    page.mouse.down()
    page.mouse.move(*at(page, 0.5, 0.5), steps=5)
    reach_chunks(page, site, len(site.paste.chunks) + 2)
    assert site.paste.chunks[-1].tracks.ids.max() >= BASE_IDS  # a drag on top
    page.mouse.up()
    part(page, "start").click()
    in_state(page, "idle")
    expect(part(page, "strip")).not_to_have_attribute("data-tone", "error")


def test_a_better_depth_is_taken_once_it_is_there_unless_one_was_chosen(coming, page, site, tmp_path):
    page.goto(site.url)
    in_state(page, "idle")
    assert not coming.fetches  # the other tabs need nothing of it
    open_camera(page, site)
    expect(part(page, "method")).to_have_value("planes")
    coming.arrived.set()
    expect(part(page, "method")).to_have_value(camera.BEST)
    coming.arrived.clear()
    open_camera(page, site)
    (tmp_path / "depth.png").write_bytes(png(np.tile(np.linspace(0, 255, 160).astype(np.uint8), (96, 1))))
    part(page, "depth-file").set_input_files(tmp_path / "depth.png")
    expect(part(page, "method")).to_have_value("upload")
    coming.arrived.set()
    page.wait_for_timeout(500)
    expect(part(page, "method")).to_have_value("upload")


def test_files_in_and_out(page, site, tmp_path):
    open_camera(page, site)
    depth, cameras = tmp_path / "depth.png", tmp_path / "cameras.json"
    depth.write_bytes(png(np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (96, 1))))
    cameras.write_text(CAMERAS)
    part(page, "depth-file").set_input_files(depth)
    expect(part(page, "method")).to_have_value("upload")
    before = part(page, "bright").get_attribute("aria-pressed")
    part(page, "bright").click()
    expect(part(page, "bright")).not_to_have_attribute("aria-pressed", before)
    part(page, "cameras-file").set_input_files(cameras)
    expect(part(page, "route")).to_have_value("keyframes")
    with page.expect_download() as download:
        part(page, "cameras-save").click()
    saved = Keyframes.from_json(Path(download.value.path()).read_text())
    assert saved.cameras[-1].focal[0] == pytest.approx(500)
    cameras.write_text(json.dumps({"format": "other"}))
    part(page, "cameras-file").set_input_files(cameras)
    expect(part(page, "message")).to_contain_text("no camera file")


def open_with_cameras(page: Page, site: Site, folder: Path) -> None:
    """The tab, with a camera file chosen."""
    open_camera(page, site)
    cameras = folder / "cameras.json"
    cameras.write_text(CAMERAS)
    part(page, "cameras-file").set_input_files(cameras)
    expect(part(page, "route")).to_have_value("keyframes")


def test_the_path_outlives_a_lost_connection(page, site, tmp_path):
    open_with_cameras(page, site, tmp_path)
    for chosen in ("keyframes", "dolly"):
        part(page, "route").select_option(chosen)
        list(site.live._visitors.values())[-1].seats["camera"].close()
        expect(part(page, "message")).to_contain_text("reconnecting")
        in_state(page, "idle")
        page.wait_for_timeout(500)
        expect(part(page, "route")).to_have_value(chosen)
        expect(part(page, "route").locator("[value=keyframes]")).to_have_text("Camera file, 2 keyframes")


@pytest.mark.parametrize("chosen", ["keyframes", "dolly"])
def test_a_page_that_is_loaded_anew_has_the_path_and_its_settings(page, site, tmp_path, chosen):
    open_with_cameras(page, site, tmp_path)
    part(page, "route").select_option(chosen)
    part(page, "speed").fill("0.5")
    page.locator(".ms:visible [data-ends=once]").click()
    page.reload()
    in_state(page, "idle")
    expect(part(page, "route").locator("[value=keyframes]")).to_have_text("Camera file, 2 keyframes")
    expect(part(page, "route")).to_have_value(chosen)
    expect(part(page, "speed-value")).to_have_text("0.50 ×")
    expect(page.locator(".ms:visible [data-ends=once]")).to_have_attribute("aria-pressed", "true")


def test_latency_is_of_what_a_visitor_does(page, site):
    open_camera(page, site)
    part(page, "start").click()
    in_state(page, "live")
    reach_chunks(page, site, 4)
    expect(part(page, "latency")).to_have_text("–")
    page.keyboard.down("d")
    expect(part(page, "latency")).to_contain_text("s", timeout=20_000)
    page.keyboard.up("d")
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_keys_steer_after_the_path_was_chosen_with_the_pointer(page, site):
    open_camera(page, site)
    part(page, "start").click()
    in_state(page, "live")
    part(page, "route").click()
    part(page, "route").select_option("dolly")
    expect(part(page, "picture")).to_be_focused()  # in the list, D would choose "dolly-zoom"
    page.keyboard.press("d")
    page.wait_for_timeout(300)
    expect(part(page, "route")).to_have_value("dolly")


def test_two_fingers_have_a_handle_each_on_a_phone_that_stays_as_it_is(phone, site):
    open_camera(phone, site)
    part(phone, "picture").scroll_into_view_if_needed()
    for name in ("prompt", "route", "method"):
        size = part(phone, name).evaluate("element => parseFloat(getComputedStyle(element).fontSize)")
        assert size >= 16  # pixels; below, iPhones zoom in on what is typed or chosen
    view, touch = list(site.live._visitors.values())[-1].seats["camera"].own, phone.context.new_cdp_session(phone)
    planes = view.planes
    assert (planes.left, planes.top, planes.right) == (0, 0, 1)  # so the handles are at the picture's edge
    hands = (0.03, 0.05, 0.97, planes.bottom), (0.2, 0.2, 0.8, 0.6)
    for kind, hand in (("touchStart", hands[0]), ("touchMove", hands[1]), ("touchEnd", ())):
        places = [at(phone, *hand[i : i + 2]) for i in range(0, len(hand), 2)]
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait_for(lambda: phone.wait_for_timeout(50) or view.planes != planes, "the new planes")
    found = [getattr(view.planes, side) for side in ("left", "top", "right", "bottom")]
    assert np.abs(np.subtract(found, hands[1])).max() < 0.02


def test_a_finger_on_the_stick_steers(phone, site):
    open_camera(phone, site)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    part(phone, "route").select_option("still")
    part(phone, "start").tap()
    in_state(phone, "live")
    stick = part(phone, "stick-move")
    stick.scroll_into_view_if_needed()
    box = stick.bounding_box()
    touch = phone.context.new_cdp_session(phone)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, points in (("touchStart", [(x, y)]), ("touchMove", [(x - 60, y)])):
        touch.send("Input.dispatchTouchEvent", {
            "type": kind, "touchPoints": [{"x": px, "y": py} for px, py in points]})
    reach_chunks(phone, site, len(site.paste.chunks) + 3)
    assert (motion(site)[:, 0] > 0.5).all()  # the camera goes left
    stick.evaluate("stick => stick.style.display = 'none'")  # as by another finger on Pause
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x - 30, "y": y}]})
    reach_chunks(phone, site, len(site.paste.chunks) + 3)
    expect(part(phone, "message")).not_to_contain_text("numbers")
    stick.evaluate("stick => stick.style.display = ''")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    reach_chunks(phone, site, len(site.paste.chunks) + 5)
    assert np.abs(motion(site)).max() < 0.1


@pytest.mark.parametrize("width, height", [(844, 390), (390, 844)])
def test_the_sticks_keep_clear_of_each_other_on_a_narrow_picture(phone, site, tmp_path, width, height):
    (tmp_path / "tall.png").write_bytes(png(np.full((1600, 500, 3), 99, np.uint8)))
    phone.set_viewport_size({"width": width, "height": height})
    open_camera(phone, site)
    part(phone, "file").set_input_files(tmp_path / "tall.png")
    expect(phone.locator(".ms:visible .ms-example[aria-pressed=true]")).to_have_count(0)
    part(phone, "start").tap()
    in_state(phone, "live")
    left, right, stage = (part(phone, name).bounding_box() for name in ("stick-move", "stick-look", "stage"))
    assert left["x"] + left["width"] < right["x"]
    assert stage["x"] < left["x"] and right["x"] + right["width"] < stage["x"] + stage["width"]
    for name in ("stick-move", "stick-look"):  # within reach all over, also beside the picture
        part(phone, name).tap()
