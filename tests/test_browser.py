"""The Drag tab in Chromium: what a visitor does, and what the canvas shows for it."""

import base64
import io
import re
import threading
import time

import av
import cv2
import numpy as np
import pytest
from app_kit import Site, Visitor, wait_for
from conftest import watched
from PIL import Image
from playwright.sync_api import Page, expect

from motionstream.controls import drag as drag_module
from motionstream.controls.drag import MAX_CONTROLS
from motionstream.ui.drag import DragTab
from motionstream.ui.live import Seat

COLOURS = {"green": (34, 197, 94), "red": (239, 68, 68), "blue": (59, 130, 246)}


def part(page: Page, name: str):
    return page.locator(f'[data-ms="{name}"]')


def open_page(page: Page, site: Site) -> None:
    """The page as it opens, also where it is open."""
    if page.url != site.url:
        page.goto(site.url)
    in_state(page, "idle")
    page.mouse.move(5, 5)
    for button in ("button[data-tool=drag]", "[data-release=hold]", ".ms-example >> nth=0"):
        page.locator(button).click()
        expect(page.locator(button)).to_have_attribute("aria-pressed", "true")
    expect(part(page, "start")).to_be_enabled()
    for name, value in (("size", "3"), ("spacing", "14")):  # the example's own grid is for its own object
        part(page, name).fill(value)


def in_state(page: Page, state: str) -> None:
    expect(part(page, "root")).to_have_attribute("data-state", state, timeout=20_000)


def start(page: Page) -> None:
    part(page, "start").click()
    in_state(page, "live")


def frame_number(page: Page) -> int:
    return int(part(page, "counter").inner_text())


def reach_frame(page: Page, number: int) -> None:
    wait_for(lambda: page.wait_for_timeout(50) or frame_number(page) >= number, f"frame {number}", 30)


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Page coordinates of a place on the canvas, given as shares of its sides."""
    box = part(page, "picture").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Page, *places: tuple[float, float], seconds: float = 0.6, release: bool = True) -> None:
    """Presses at the first place and moves through the others."""
    page.mouse.move(*at(page, *places[0]))
    page.mouse.down()
    for before, after in zip(places[:-1], places[1:], strict=True):
        for step in np.linspace(0, 1, 12)[1:]:
            page.mouse.move(*at(page, *(np.array(before) * (1 - step) + np.array(after) * step)))
            page.wait_for_timeout(1000 * seconds / 12 / (len(places) - 1))
    if release:
        page.mouse.up()


def pixels(page: Page, name: str = "picture") -> np.ndarray:
    """What is painted on a canvas, uint8 [H, W, RGBA]."""
    url = page.evaluate(f"document.querySelector('[data-ms=\"{name}\"]').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def colours(page: Page) -> set[str]:
    """Which of the controls' colours the overlay shows, by a dot's worth at least."""
    overlay = pixels(page, "overlay").astype(int)
    solid = overlay[overlay[..., 3] > 240][:, :3]
    near = {name: (np.abs(solid - colour).max(axis=-1) < 12).sum() for name, colour in COLOURS.items()}
    return {name for name, count in near.items() if count > 15}


def wait_for_colours(page: Page, *names: str) -> None:
    wait_for(lambda: page.wait_for_timeout(50) or colours(page) == set(names), f"only {names} on the overlay")


def newest_seat(site: Site) -> Seat:
    """The Drag tab's, of the page that was opened last."""
    return [visitor for visitor in site.live._visitors.values() if visitor.connected][-1].seats["drag"]


def track_counts(site: Site) -> list[int]:
    return [chunk.tracks.N for chunk in site.paste.chunks]


def photo(path, width: int = 500, height: int = 300):
    """A picture file: a speckled red disc on a grey-blue ground with some texture; the disc at 40 % and 50 %."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(90, 150, (30, 50), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.stack([ground, ground + 20, ground + 50], axis=-1)
    cv2.circle(picture, (int(0.4 * width), height // 2), height // 7, (220, 40, 40), -1)
    speckles = rng.integers(0, 2, (height // 10, width // 10), np.uint8).repeat(10, 0).repeat(10, 1)[..., None]
    disc = (picture[..., :1] == 220) & (speckles > 0)
    Image.fromarray(np.where(disc, np.uint8([150, 20, 20]), picture)).save(path)
    return path


def disc_at(picture: np.ndarray) -> np.ndarray:
    """Where the red is, as shares of the picture's sides."""
    colours = picture.astype(int)
    red = (colours[..., 0] - np.maximum(colours[..., 1], colours[..., 2]) > 50).nonzero()
    assert len(red[0]) > 50, "the disc has vanished"
    return np.array([np.median(red[1]) / picture.shape[1], np.median(red[0]) / picture.shape[0]])


def test_whole_loop_with_the_embedded_student(anew, page, student_site, tmp_path):
    """Upload, start, drag, pause, resume, stop, download: the painted pixels and the clip show the drag."""
    arrivals = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: arrivals.append(time.monotonic())))
    open_page(page, student_site)
    part(page, "file").set_input_files(photo(tmp_path / "disc.png"))
    expect(part(page, "facts")).to_contain_text("picture")
    page.wait_for_function("document.querySelectorAll('.ms-example[aria-pressed=true]').length === 0")
    start(page)
    before = disc_at(pixels(page))
    assert np.abs(before - [0.4, 0.5]).max() < 0.03
    drag(page, (0.4, 0.5), (0.6, 0.45), seconds=1.0)
    reach_frame(page, frame_number(page) + 36)
    after = disc_at(pixels(page))
    assert after[0] - before[0] > 0.1 and abs(after[1] - before[1]) < 0.12
    assert re.fullmatch(r"\d\.\d\d s", part(page, "latency").inner_text())
    assert int(part(page, "fps").inner_text()) > 0

    page.keyboard.press("Space")
    in_state(page, "paused")
    # A chunk may be under way.
    wait_for(lambda: page.wait_for_timeout(100) or time.monotonic() - arrivals[-1] > 2, "the end of what arrives", 20)
    shown = frame_number(page)
    page.wait_for_timeout(500)
    assert frame_number(page) == shown
    page.keyboard.press("Space")
    reach_frame(page, shown + 15)

    page.keyboard.press("Enter")
    in_state(page, "idle")
    last = disc_at(pixels(page))
    with page.expect_download() as download:
        part(page, "download").click()
    download.value.save_as(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        stream = clip.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p" and stream.average_rate == 16
        assert "MotionStream" in clip.metadata["description"] and '"controls"' in clip.metadata["comment"]
    assert len(frames) >= shown and np.abs(disc_at(frames[0]) - before).max() < 0.03
    assert np.abs(disc_at(frames[-1]) - last).max() < 0.1


def test_chunks_that_come_in_bursts_are_played_evenly(anew, page, site):
    open_page(page, site)
    page.clock.install()  # the page's own clock, so that a busy machine changes nothing
    start(page)
    page.clock.pause_at(time.time() + 3600)
    page.evaluate(
        """() => { window.paints = []; const counter = document.querySelector('[data-ms="counter"]');
           const note = () => window.paints.push([Number(counter.textContent), performance.now()]);
           new MutationObserver(note).observe(counter, { childList: true }); }"""
    )
    while frame_number(page) < 45:
        page.clock.run_for(100)
        time.sleep(0.02)  # real time for the next chunk to come
    frames, times = np.array(page.evaluate("window.paints")).T
    page.clock.resume()
    gaps = np.diff(times)[(frames[1:] > 21) & ((frames[1:] - 9) % 12 > 0)]  # within chunks: between them it may wait
    assert (np.diff(frames) == 1).all() and len(gaps) >= 20
    assert gaps.min() >= 30 and 60 <= np.median(gaps) <= 66


def test_pins_and_paths_made_before_the_start_act_from_the_first_chunk(page, site):
    open_page(page, site)
    part(page, "clear").click()
    wait_for_colours(page)
    page.locator("[data-tool=pin]").click()
    page.mouse.click(*at(page, 0.25, 0.3))
    page.mouse.click(*at(page, 0.75, 0.7))
    page.locator("[data-tool=path]").click()
    drag(page, (0.3, 0.6), (0.5, 0.5), (0.6, 0.6))
    page.mouse.move(5, 5)
    wait_for_colours(page, "red", "blue")
    part(page, "undo").click()
    wait_for_colours(page, "red")
    start(page)
    tracks = site.paste.chunks[0].tracks
    assert tracks.N == 18 and not np.ptp(tracks.points, axis=0).any()
    page.keyboard.press("Enter")
    in_state(page, "idle")


def paused(page, site) -> int:
    """Pauses, and waits for a chunk that may be under way: how many there are."""
    part(page, "pause").click()
    in_state(page, "paused")
    page.wait_for_timeout(500)
    return len(site.paste.chunks)


def test_controls_made_while_paused_act_together(page, site):
    open_page(page, site)
    part(page, "clear").click()
    start(page)
    generated = paused(page, site)
    page.locator("[data-tool=pin]").click()
    page.mouse.click(*at(page, 0.25, 0.3))
    page.locator("[data-tool=path]").click()
    drag(page, (0.3, 0.6), (0.6, 0.6))
    page.locator("[data-tool=drag]").click()
    drag(page, (0.7, 0.3), (0.8, 0.4), release=False)
    wait_for_colours(page, "green", "red", "blue")
    assert len(site.paste.chunks) == generated
    page.mouse.up()
    part(page, "pause").click()
    wait_for(lambda: page.wait_for_timeout(50) or len(site.paste.chunks) > generated, "a chunk after resuming")
    assert site.paste.chunks[generated].tracks.N == 27


def test_drags_made_near_each_other_while_paused_act_together(page, site):
    open_page(page, site)
    part(page, "clear").click()
    start(page)
    generated = paused(page, site)
    drag(page, (0.3, 0.4), (0.4, 0.4))
    drag(page, (0.45, 0.45), (0.5, 0.5))
    part(page, "pause").click()
    wait_for(lambda: page.wait_for_timeout(50) or len(site.paste.chunks) > generated, "a chunk after resuming")
    assert site.paste.chunks[generated].tracks.N == 18


def test_enter_held_on_a_button_presses_it_once(page, site):
    open_page(page, site)
    part(page, "start").focus()
    page.keyboard.down("Enter")
    for _ in range(5):
        page.keyboard.down("Enter")  # repeats
        page.wait_for_timeout(40)
    page.keyboard.up("Enter")
    in_state(page, "live")
    reach_frame(page, 20)
    in_state(page, "live")


def test_a_drag_between_paths_that_move_alike_takes_their_whole_object_along(page, site):
    open_page(page, site)  # six paths carry the balloon; four pins hold the rest
    start(page)
    reach_frame(page, 60)
    before = site.paste.chunks[-1].tracks
    drag(page, (0.52, 0.35), (0.62, 0.4), release=False)
    reach_frame(page, frame_number(page) + 36)
    after = site.paste.chunks[-1].tracks
    blue = pixels(page, "overlay")[..., :3].astype(int)
    page.mouse.up()
    size = [int(side) for side in re.search(r"picture (\d+) × (\d+)", part(page, "facts").inner_text()).groups()]
    ends = [dict(zip(tracks.ids.tolist(), tracks.points[-1], strict=True)) for tracks in (before, after)]
    shift = np.array([ends[1][number] - point for number, point in ends[0].items()]) / size
    assert (np.abs(shift - [0.1, 0.05]).max(axis=1) < 0.02).sum() == 24  # six paths of four points
    assert (np.abs(shift).max(axis=1) < 1e-6).sum() == 16  # the pins
    columns = (np.abs(blue - COLOURS["blue"]).max(axis=-1) < 12).nonzero()[1] / blue.shape[1]
    assert 0.52 < columns.min() and columns.max() < 0.73  # painted where they are now, without their lines


def test_let_go_frees_what_was_dragged(page, site):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-release=let_go]").click()
    start(page)
    drag(page, (0.3, 0.5), (0.5, 0.5))
    wait_for(lambda: page.wait_for_timeout(50) or 9 in (counts := track_counts(site)) and counts[-1] == 0, "no tracks")
    wait_for_colours(page)


def test_a_path_that_has_let_go_is_painted_no_more(page, site):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-release=let_go]").click()
    page.locator("[data-tool=path]").click()
    drag(page, (0.3, 0.6), (0.6, 0.6))
    page.locator("[data-release=hold]").click()
    drag(page, (0.3, 0.3), (0.6, 0.3))
    page.locator("[data-release=let_go]").click()
    page.mouse.move(5, 5)
    start(page)  # both let go: the mode is that of the start
    wait_for_colours(page, "blue")
    wait_for(lambda: page.wait_for_timeout(50) or not track_counts(site)[-1], "the end of the paths")
    wait_for_colours(page)
    page.locator("[data-release=hold]").click()
    drag(page, (0.3, 0.6), (0.6, 0.6))
    page.mouse.move(5, 5)
    reach_frame(page, frame_number(page) + 50)
    assert track_counts(site)[-1] == 9 and colours(page) == {"blue"}
    page.keyboard.press("Enter")
    in_state(page, "idle")
    part(page, "undo").click()
    wait_for_colours(page, "blue")  # as they were before the start


@pytest.mark.parametrize("tool, held", [("pin", "red"), ("path", "blue")])
def test_the_dots_of_grids_that_turn_a_thing_are_painted_as_they_have_turned(page, site, tool, held):
    site.paste.things = lambda points: np.ones((2, len(points)), int)
    open_page(page, site)
    part(page, "clear").click()
    start(page)
    page.locator(f"[data-tool={tool}]").click()
    if tool == "pin":
        page.mouse.click(*at(page, 0.4, 0.5))
    else:
        drag(page, (0.4, 0.5), (0.4, 0.52), seconds=3)  # hardly moves, and goes on doing so during the drag
    page.locator("[data-tool=drag]").click()
    drag(page, (0.7, 0.5), (0.66, 0.7), (0.58, 0.84), release=False)
    steps = 14 * (np.mgrid[:3, :3].reshape(2, -1).T[:, ::-1] - 1)

    def painted(overlay: np.ndarray, places: np.ndarray, colour: str) -> list[bool]:
        x, y = (places * overlay.shape[1] / newest_seat(site).picture.shape[1]).round().astype(int).T
        return ((np.abs(overlay[y, x, :3] - COLOURS[colour]).max(-1) < 12) & (overlay[y, x, 3] > 240)).tolist()

    for colour in ("green", "red"):  # under the pointer, and where it was left
        reach_frame(page, frame_number(page) + 40)
        overlay, dots = pixels(page, "overlay").astype(int), site.paste.chunks[-1].tracks.points[-1]
        for grid, shown in ((dots[:9], held), (dots[9:], colour)):
            assert painted(overlay, grid, shown) == [True] * 9
            assert painted(overlay, grid.mean(0) + steps, shown) == [False] * 4 + [True] + [False] * 4
        page.mouse.up()
        page.mouse.move(5, 5)


def test_a_thing_that_is_grabbed_again_is_held_there_alone(page, site):
    site.paste.things = lambda points: np.ones((2, len(points)), int)
    open_page(page, site)
    part(page, "clear").click()
    start(page)
    drag(page, (0.2, 0.3), (0.3, 0.3), seconds=0.3)
    page.mouse.move(5, 5)  # where nothing is painted for it
    wait_for_colours(page, "red")
    drag(page, (0.8, 0.7), (0.7, 0.7), seconds=0.3, release=False)
    wait_for_colours(page, "green")
    assert max(track_counts(site)) == 9


def test_keys_start_pause_and_stop_even_after_a_click_on_a_button(page, site):
    open_page(page, site)
    page.locator("[data-tool=pin]").click()
    page.keyboard.press("Enter")
    in_state(page, "live")
    part(page, "undo").click()
    page.keyboard.press("Space")
    in_state(page, "paused")
    page.keyboard.press("Space")
    in_state(page, "live")
    part(page, "prompt").fill("fog")
    page.keyboard.press("Space")
    assert part(page, "prompt").input_value() == "fog "
    in_state(page, "live")
    part(page, "picture").focus()
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_keys_are_for_the_stream_again_after_a_slider_was_set_with_the_pointer(page, site):
    open_page(page, site)
    start(page)
    part(page, "spacing").click()
    page.keyboard.press("Space")
    in_state(page, "paused")
    part(page, "spacing").focus()
    before = int(part(page, "spacing").input_value())
    for _ in range(2):  # who sets it with the keys goes on doing so
        page.keyboard.press("ArrowRight")
    assert int(part(page, "spacing").input_value()) == before + 2


@pytest.mark.parametrize("button", ["start", "play"])
def test_a_double_click_starts_and_leaves_nothing_behind(page, site, monkeypatch, button):
    monkeypatch.setattr(site.paste, "seconds", 0.2)
    open_page(page, site)
    part(page, "clear").click()
    part(page, button).dblclick()
    in_state(page, "live")
    reach_frame(page, 12)
    assert site.paste.chunks[-1].tracks.N == 0 and not colours(page)
    part(page, "start").dblclick()
    in_state(page, "idle")
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false", timeout=20_000)
    in_state(page, "idle")


def test_two_fingers_are_two_drags(phone, site):
    open_page(phone, site)
    part(phone, "clear").tap()
    part(phone, "start").tap()
    in_state(phone, "live")
    part(phone, "picture").scroll_into_view_if_needed()
    devtools = phone.context.new_cdp_session(phone)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [dict(zip("xy", at(phone, *place), strict=True)) | {"id": n} for n, place in enumerate(places)]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0.3, 0.3), (0.7, 0.7))
    for step in range(20):
        touch("touchMove", (0.3 + 0.01 * step, 0.3), (0.7 - 0.01 * step, 0.7))
        phone.wait_for_timeout(40)
    wait_for(lambda: phone.wait_for_timeout(50) or site.paste.chunks[-1].tracks.N == 18, "tracks of both fingers")
    points = np.concatenate([chunk.tracks.points for chunk in site.paste.chunks if chunk.tracks.N == 18])
    assert (points[-1, :9] - points[0, :9])[:, 0].min() > 5 and (points[-1, 9:] - points[0, 9:])[:, 0].max() < -5
    touch("touchEnd")


def test_prompt_works_mid_stream_and_names_unknown_words(page, site):
    open_page(page, site)
    start(page)
    page.locator(".ms-chip", has_text="fog").click()
    wait_for(lambda: page.wait_for_timeout(50) or site.paste.prompts[-1] == "fog", "the prompt in the stream")
    part(page, "prompt").fill("fog, drag")
    for sign in ("isComposing: true", "keyCode: 229"):  # Enter ends a composition, as of Chinese: it is not ready yet
        part(page, "prompt").evaluate(
            "field => field.dispatchEvent(new KeyboardEvent('keydown', "
            f"{{ key: 'Enter', {sign}, bubbles: true, cancelable: true }}))"
        )
    page.wait_for_timeout(300)
    expect(part(page, "message")).not_to_contain_text("passes over")
    part(page, "prompt").fill("fog, dragons")
    part(page, "prompt").press("Enter")
    expect(part(page, "message")).to_contain_text("passes over dragons")
    in_state(page, "live")
    part(page, "prompt").fill("fog")
    part(page, "prompt").press("Enter")
    expect(part(page, "message")).to_have_text("Drag the picture")


def test_the_chips_show_what_the_prompt_does_and_take_it_back(page, site):
    open_page(page, site)
    for prompt, pressed, without in (
        ("Snow", ["snow"], ""),
        ("a snowy castle, heavy fog", ["fog", "snow"], "a castle, heavy fog"),
        ("night snow; Snow", ["night", "snow"], "night"),
        ("снег,  snowman", [], "снег, snowman, snow"),
    ):
        part(page, "prompt").fill(prompt)
        part(page, "prompt").press("Enter")
        expect(page.locator(".ms-chip[aria-pressed=true]")).to_have_text(pressed)
        page.locator(".ms-chip", has_text="snow").click()
        expect(part(page, "prompt")).to_have_value(without)


def test_example_is_one_click_and_ends_the_running_stream(page, site):
    open_page(page, site)
    start(page)
    page.locator(".ms-example").nth(1).click()
    expect(page.locator(".ms-example").nth(1)).to_have_attribute("aria-pressed", "true")
    in_state(page, "idle")
    wait_for(lambda: "blue" in colours(page), "the example's path")
    start(page)
    assert site.paste.chunks[-1].tracks.N >= 9


def test_start_waits_for_the_picture_that_was_asked_for(page, site, monkeypatch):
    open_page(page, site)
    asked, show = threading.Event(), DragTab.show
    monkeypatch.setattr(DragTab, "show", lambda *args: (asked.wait(10), show(*args)))
    page.locator(".ms-example").nth(1).click()
    expect(part(page, "start")).to_be_disabled()
    page.keyboard.press("Enter")
    expect(part(page, "message")).to_contain_text("on its way")
    in_state(page, "idle")
    asked.set()
    start(page)
    assert len(site.live.sessions) == 1
    tab, seat = site.live._tabs["drag"], newest_seat(site)
    tab.show(seat, np.zeros((90, 160, 3), np.uint8))  # a picture that nobody asked for ends the stream
    in_state(page, "idle")
    wait_for(lambda: not len(site.live.sessions), "the end of the stream")


def test_controls_made_before_the_stream_has_begun_are_kept(page, site, monkeypatch):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-tool=pin]").click()
    made = threading.Event()
    monkeypatch.setattr(site.live, "end_others", lambda *args: made.wait(10))  # a start that takes its time
    part(page, "start").click()
    in_state(page, "starting")
    page.mouse.click(*at(page, 0.25, 0.3))
    page.wait_for_timeout(300)
    made.set()
    wait_for(lambda: page.wait_for_timeout(50) or 9 in track_counts(site), "the pin in the stream")
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_bad_upload_is_explained_on_the_canvas(page, site, tmp_path):
    open_page(page, site)
    for name, data, sentence in (
        ("empty.jpg", b"", "empty"),
        ("notes.txt", b"not a picture", "not an image"),
        ("huge.png", bytes(15 * 2**20 + 1), "at most 15 MB"),
    ):
        (tmp_path / name).write_bytes(data)
        part(page, "file").set_input_files(tmp_path / name)
        expect(part(page, "message")).to_contain_text(sentence)
        expect(part(page, "strip")).to_have_attribute("data-tone", "error")
        start(page)
        part(page, "start").click()
        in_state(page, "idle")


def test_a_photo_larger_than_the_server_takes_is_shrunk_first(page, site, tmp_path):
    open_page(page, site)
    photo(tmp_path / "camera.jpg", 6000, 3600)
    part(page, "file").set_input_files(tmp_path / "camera.jpg")
    wait_for(lambda: page.wait_for_timeout(50) or "name" not in newest_seat(site).shown[0], "the photo", 20)
    assert np.allclose(disc_at(newest_seat(site).picture), (0.4, 0.5), atol=0.02)


def test_a_photo_that_takes_its_time_gives_way_to_what_is_chosen_next(anew, page, site, tmp_path):
    page.add_init_script(
        """const decode = createImageBitmap, shown = new Promise(resolve => { window.decodeFiles = resolve; });
           window.createImageBitmap = async data => { if (data instanceof File) await shown; return decode(data); };"""
    )
    open_page(page, site)
    part(page, "file").set_input_files(photo(tmp_path / "slow.png"))
    expect(part(page, "message")).to_have_text("Reading the picture …")
    expect(part(page, "start")).to_be_disabled()
    page.keyboard.press("Enter")  # nor is there a start that it would end
    in_state(page, "idle")
    example = page.locator(".ms-example").nth(1)
    example.click()
    expect(example).to_have_attribute("aria-pressed", "true")
    page.evaluate("decodeFiles()")
    start(page)
    assert newest_seat(site).shown[0]["name"] == example.get_attribute("data-name")


def test_a_photo_that_only_the_browser_may_read_is_sent_as_jpeg(page, site, monkeypatch, tmp_path):
    sent, command = [], DragTab.command
    monkeypatch.setattr(DragTab, "command", lambda tab, seat, data: (sent.append(data), command(tab, seat, data)))
    open_page(page, site)
    file = {"name": "a.heic", "mimeType": "image/heic", "buffer": photo(tmp_path / "disc.png").read_bytes()}
    part(page, "file").set_input_files(file)
    expect(page.locator(".ms-example[aria-pressed=true]")).to_have_count(0)
    assert [data[:2] for data in sent] == [b"\xff\xd8"]


def test_more_controls_than_there_can_be_are_refused_at_once(page, site):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-tool=pin]").click()
    box = part(page, "picture").bounding_box()
    for n in range(MAX_CONTROLS):
        page.mouse.click(box["x"] + 20 + 5 * (n % 50), box["y"] + 20 + 9 * (n // 50))
    assert part(page, "strip").get_attribute("data-tone") == "hint"
    page.mouse.click(*at(page, 0.5, 0.5))
    expect(part(page, "message")).to_contain_text("100 pins, paths and drags, the most there can be")
    part(page, "undo").click()
    assert part(page, "strip").get_attribute("data-tone") == "hint"  # what was wrong is over
    start(page)
    page.locator("[data-tool=drag]").click()
    drag(page, (0.6, 0.7), (0.6, 0.75), seconds=0.1)
    drag(page, (0.2, 0.7), (0.2, 0.75), seconds=0.1)
    expect(part(page, "message")).to_contain_text("100 pins, paths and drags")
    drag(page, (0.6, 0.75), (0.6, 0.7), seconds=0.1)  # what is held may be grabbed again
    reach_frame(page, frame_number(page) + 18)
    assert part(page, "strip").get_attribute("data-tone") == "hint"
    assert site.paste.chunks[-1].tracks.N == 9 * MAX_CONTROLS


def test_what_was_refused_with_the_start_is_not_painted_over(page, site, monkeypatch):
    open_page(page, site)
    monkeypatch.setattr(drag_module, "MAX_CONTROLS", 1)
    start(page)
    reach_frame(page, 5)
    expect(part(page, "message")).to_contain_text("1 controls are live")
    drag(page, (0.5, 0.5), (0.6, 0.5), seconds=0.1)


def test_undo_after_a_stream_shows_what_it_took_back(page, site):
    open_page(page, site)
    start(page)
    page.keyboard.press("Enter")
    in_state(page, "idle")
    expect(part(page, "poster")).to_be_hidden()
    part(page, "undo").click()
    expect(part(page, "poster")).to_be_visible()


def test_the_clip_is_ready_also_where_it_comes_before_the_end(page, site, monkeypatch):
    late, send = threading.Event(), Seat.send

    def hold_back(seat, header, *picture):
        if header["kind"] != "ended":
            return send(seat, header, *picture)
        threading.Thread(target=lambda: (late.wait(20), send(seat, header)), daemon=True).start()

    monkeypatch.setattr(Seat, "send", hold_back)
    open_page(page, site)
    start(page)
    page.keyboard.press("Enter")
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false")
    in_state(page, "stopping")
    late.set()
    in_state(page, "idle")
    expect(part(page, "message")).to_contain_text("The clip is ready")


def test_long_prompt_is_explained_on_the_canvas(page, site):
    open_page(page, site)
    part(page, "prompt").fill("x" * 10_000)
    part(page, "start").click()
    expect(part(page, "message")).to_contain_text("10000 characters")
    in_state(page, "idle")


@pytest.mark.parametrize("claim", [{"X-Forwarded-Host": "127.0.0.1"}, {"X-Forwarded-Proto": "https"}])
def test_a_proxy_that_hides_port_or_scheme_from_the_server_does_no_harm(anew, page, site, claim):
    """Gradio's own script goes by the page's address then, and so must the canvas."""
    page.set_extra_http_headers(claim)
    open_page(page, site)
    start(page)
    page.keyboard.press("Enter")
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false")
    assert part(page, "download").get_attribute("href").startswith(f"{site.url}gradio_api/file=/")


@pytest.mark.parametrize("leave", ["reload", "close"])
def test_leaving_the_page_ends_the_session(profile, site, leave):
    page = profile.new_page()
    open_page(page, site)
    start(page)
    assert len(site.live.sessions) == 1
    page.reload() if leave == "reload" else page.close()
    wait_for(lambda: not len(site.live.sessions) and not site.paste.live, "the end of the session", 5)
    page.close()


def test_lost_connection_is_explained_and_mended(page, site):
    open_page(page, site)
    start(page)
    newest_seat(site).close()
    expect(part(page, "message")).to_contain_text("connection was lost")
    in_state(page, "idle")
    start(page)


def test_prompt_and_controls_outlive_a_lost_connection(page, site):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-tool=pin]").click()
    page.mouse.click(*at(page, 0.25, 0.3))
    part(page, "prompt").fill("fog")
    newest_seat(site).close()
    expect(part(page, "message")).to_contain_text("reconnecting")
    in_state(page, "idle")
    expect(page.locator(".ms-chip", has_text="fog")).to_have_attribute("aria-pressed", "true")
    start(page)
    assert part(page, "prompt").input_value() == site.paste.prompts[0] == "fog"
    assert track_counts(site)[0] == 9


def test_start_that_does_not_reach_the_server_can_be_stopped(anew, page, site):
    open_page(page, site)
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "busy"}))
    part(page, "start").click()
    in_state(page, "starting")
    part(page, "start").click()
    in_state(page, "idle")
    expect(part(page, "message")).to_contain_text("Stopped before the first picture")
    page.unroute("**/queue/join*")
    start(page)


def test_page_out_of_sight_makes_room_after_a_while(anew, page, site):
    page.clock.install()
    open_page(page, site)
    start(page)

    def turn(hidden: str) -> None:
        page.evaluate(f"Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    for _ in range(2):
        turn("true")
        page.clock.fast_forward(9_000)
        turn("false")
    page.clock.fast_forward(20_000)
    shown = frame_number(page)
    reach_frame(page, shown + 12)
    turn("true")
    page.clock.fast_forward(16_000)
    in_state(page, "idle")
    wait_for(lambda: not len(site.live.sessions), "the end of the stream")


def test_a_file_that_cannot_be_read_is_explained_and_costs_nothing(page, site, tmp_path):
    open_page(page, site)
    keep = "input => input.addEventListener('change', () => { window.file = input.files[0]; }, { capture: true })"
    part(page, "file").evaluate(keep)
    part(page, "file").set_input_files(photo(tmp_path / "gone.png"))
    expect(page.locator(".ms-example[aria-pressed=true]")).to_have_count(0)
    (tmp_path / "gone.png").unlink()  # as a folder, it has a name and no bytes
    start(page)
    part(page, "stage").evaluate("""stage => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(file);
        stage.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true })); }""")
    expect(part(page, "message")).to_contain_text("cannot be read")
    reach_frame(page, frame_number(page) + 12)
    in_state(page, "live")


def test_what_is_pasted_into_the_prompt_is_no_picture(page, site, tmp_path):
    open_page(page, site)
    data = base64.b64encode(photo(tmp_path / "disc.png").read_bytes()).decode()
    paste = """async (target, data) => {
        const picture = await (await fetch('data:image/png;base64,' + data)).blob(), clipboardData = new DataTransfer();
        clipboardData.items.add(new File([picture], 'a.png', { type: 'image/png' }));
        target.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true })); }"""
    example = page.locator(".ms-example[aria-pressed=true]")
    part(page, "prompt").evaluate(paste, data)
    page.wait_for_timeout(500)
    expect(example).to_have_count(1)
    part(page, "spacing").evaluate(paste, data)
    expect(example).to_have_count(0)


def test_page_that_was_forgotten_is_told_to_reload(anew, page, site):
    open_page(page, site)
    for session in list(site.live._visitors):
        site.live.forget(session)
    expect(part(page, "message")).to_contain_text("reload the page")


def test_a_visitor_sees_that_the_machine_is_busy_and_keeps_the_clip(page, site):
    open_page(page, site)
    start(page)
    part(page, "start").click()
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false")
    others = [site.visit() for _ in range(site.live.sessions.limit)]
    for other in others:
        other.start()
        other.chunk(ack=False)
    part(page, "start").click()
    expect(part(page, "message")).to_contain_text("try again")
    in_state(page, "idle")
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false")
    for other in others:
        Visitor.close(other)


def test_page_fits_the_screen(page, site):
    open_page(page, site)
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        stage = part(page, "stage").bounding_box()
        assert stage["width"] > 0.6 * width and stage["y"] + stage["height"] < height
        assert part(page, "start").bounding_box()["y"] < height - 40


@pytest.mark.parametrize("width, height, mobile", [(1280, 600, False), (390, 667, True), (844, 390, True)])
def test_a_tall_picture_and_its_buttons_are_seen_at_once_on_a_space(
    profile, phones_profile, site, tmp_path, width, height, mobile
):
    """A Space's page lies in a frame that is made as tall as what is on it."""
    host = """<meta name="viewport" content="width=device-width"><body style="margin: 0">
        <iframe src="/" style="width: 100%; height: 900px; border: 0"></iframe><script>
        const frame = document.querySelector('iframe');
        setInterval(() => {
          const page = frame.contentDocument.querySelector('.gradio-container');
          if (page) frame.style.height = Math.ceil(page.getBoundingClientRect().height) + 'px';
        }, 20); </script>"""
    with watched(phones_profile if mobile else profile) as page:
        page.set_viewport_size({"width": width, "height": height})
        page.route("**/host.html", lambda route: route.fulfill(body=host, content_type="text/html"))
        page.goto(site.url + "host.html")
        inner, heights = page.frames[1], [0.0]
        in_state(inner, "idle")
        part(inner, "file").set_input_files(photo(tmp_path / "tall.png", 300, 600))
        expect(inner.locator(".ms-example[aria-pressed=true]")).to_have_count(0)
        while np.ptp(heights[-4:]) or len(heights) < 5:  # it stops growing, if only at the frame's full width
            page.wait_for_timeout(50)
            heights.append(page.locator("iframe").bounding_box()["height"])
        frame, start = part(inner, "frame").bounding_box(), part(inner, "start").bounding_box()
        assert frame["height"] > 0.4 * height and start["y"] + start["height"] - frame["y"] < height


def luminance(colour: str) -> float:
    """Of a CSS colour "rgb(r, g, b)", 0 to 1, as WCAG has it."""
    shares = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    return np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(anew, page, site, theme):
    page.goto(f"{site.url}?__theme={theme}")
    in_state(page, "idle")
    for selector in ("[role=tab][aria-selected=true]", ".ms-prompt::placeholder", ".ms-facts", ".ms-primary"):
        selector, _, pseudo = selector.partition("::")
        colours = page.locator(selector).first.evaluate(
            """(element, pseudo) => {
                 const { color } = getComputedStyle(element, pseudo && `::${pseudo}`);
                 const ground = () => getComputedStyle(element).backgroundColor;
                 while (ground() === 'rgba(0, 0, 0, 0)') element = element.parentElement;
                 return [color, ground()]; }""",
            pseudo,
        )
        low, high = sorted(luminance(colour) for colour in colours)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, colours)


def test_the_numbers_keep_clear_of_the_state(page, site):
    open_page(page, site)
    start(page)
    page.keyboard.press("Space")
    in_state(page, "paused")
    for name, text in (("fps", "16"), ("latency", "12.34 s"), ("counter", "123456")):
        part(page, name).evaluate("(element, text) => { element.textContent = text; }", text)
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(200)
        badge, numbers = (page.locator(f".ms:visible .ms-{name}").bounding_box() for name in ("badge", "numbers"))
        stage = part(page, "stage").bounding_box()
        assert badge["x"] + badge["width"] < numbers["x"]
        assert numbers["x"] + numbers["width"] < stage["x"] + stage["width"]


def test_a_pause_is_no_latency(page, site):
    open_page(page, site)
    start(page)
    page.keyboard.press("Space")
    in_state(page, "paused")
    drag(page, (0.5, 0.5), (0.6, 0.5), seconds=0.2)
    page.wait_for_timeout(1000)
    page.keyboard.press("Space")
    reach_frame(page, frame_number(page) + 30)
    expect(part(page, "latency")).to_have_text("–")


def test_a_page_that_is_loaded_anew_is_as_it_was(anew, page, site):
    open_page(page, site)
    part(page, "clear").click()
    page.locator("[data-tool=pin]").click()
    page.mouse.click(*at(page, 0.25, 0.3))
    page.locator("[data-tool=path]").click()
    drag(page, (0.3, 0.6), (0.6, 0.6))
    part(page, "prompt").fill("fog, and more")
    part(page, "size").fill("2")
    page.locator("[data-release=let_go]").click()
    start(page)
    page.locator("[data-tool=pin]").click()
    page.mouse.click(*at(page, 0.8, 0.8))  # belongs to the stream
    reach_frame(page, 30)
    page.reload()
    in_state(page, "idle")
    wait_for_colours(page, "red", "blue")
    expect(part(page, "message")).to_contain_text("Start")  # what comes next, or that the stream's clip is ready
    expect(part(page, "message")).not_to_contain_text("connection broke")  # by the visitor: nothing to explain
    expect(page.locator(".ms-chip", has_text="fog")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[data-release=let_go]")).to_have_attribute("aria-pressed", "true")
    expect(part(page, "size-value")).to_have_text("2 × 2")
    before = track_counts(site)[0]
    site.paste.__init__()
    start(page)
    assert site.paste.prompts[0] == "fog, and more" and track_counts(site)[0] == before == 18
    page.locator(".ms-example").nth(1).click()
    expect(page.locator(".ms-example").nth(1)).to_have_attribute("aria-pressed", "true")
    site.live.forget(list(site.live._visitors)[-1])
    page.reload()  # the server has forgotten the picture: what was drawn on it is for no other
    in_state(page, "idle")
    expect(page.locator(".ms-example").first).to_have_attribute("aria-pressed", "true")
    expect(part(page, "prompt")).not_to_have_value("fog, and more")


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_page_that_is_loaded_anew_for_the_network_says_so_at_the_tab_where_it_was(anew, page, site, forgotten):
    here = page.locator(".ms:visible")
    page.goto(site.url)
    page.get_by_role("tab", name="Camera").click()
    expect(here.locator("[data-ms=route]")).to_be_visible()  # else the other tab's state may be seen
    expect(here).to_have_attribute("data-state", "idle")
    here.locator("[data-ms=prompt]").fill("snow")
    session, visitor = list(site.live._visitors.items())[-1]
    page.evaluate("window.before = true")
    here.locator("[data-ms=start]").click()
    expect(here).to_have_attribute("data-state", "live", timeout=15_000)
    visitor.seats["camera"].close()
    expect(here.locator("[data-ms=message]")).to_contain_text("reconnecting")
    if forgotten:
        site.live.forget(session)
    page.evaluate("location.reload()")  # as Gradio's script does
    page.wait_for_function("!window.before")
    sentence = "the picture could not be kept" if forgotten else "all is as it was"
    expect(here.locator("[data-ms=message]")).to_contain_text("The connection broke and the page was loaded anew")
    expect(here.locator("[data-ms=message]")).to_contain_text(sentence)
    expect(page.get_by_role("tab", name="Camera")).to_have_attribute("aria-selected", "true")
    clip = here.locator("[data-ms=download]")
    expect(clip).to_have_attribute("aria-disabled", str(forgotten).lower())
    if not forgotten:
        expect(here.locator("[data-ms=prompt]")).to_have_value("snow")
        assert page.request.get(clip.get_attribute("href")).body()[4:8] == b"ftyp"


@pytest.mark.parametrize("tab, reloads", [("Drag", 1), ("Camera", 2)])
def test_a_page_that_is_loaded_anew_keeps_its_photo(anew, page, site, tmp_path, tab, reloads):
    here = page.locator(".ms:visible")
    page.goto(site.url)
    page.get_by_role("tab", name=tab).click()
    expect(here.locator(".ms-example[aria-pressed=true]")).to_have_count(1)  # before, none is
    here.locator("[data-ms=file]").set_input_files(photo(tmp_path / "disc.png"))
    expect(here.locator(".ms-example[aria-pressed=true]")).to_have_count(0)
    if tab == "Drag":
        start(page)  # the next page's starts must not be taken for those of before
        part(page, "start").click()
    page.get_by_role("tab", name="Drag").click()
    for _ in range(reloads):  # without a look at the tab
        page.reload()
        expect(here).to_have_attribute("data-state", "idle")
    page.get_by_role("tab", name=tab).click()
    expect(here).to_have_attribute("data-state", "idle")
    expect(here.locator(".ms-example[aria-pressed=true]")).to_have_count(0)
    here.locator("[data-ms=start]").click()
    expect(here).to_have_attribute("data-state", "live")
    assert disc_at(site.paste.chunks[-1].frames[0]) == pytest.approx((0.4, 0.5), abs=0.1)
