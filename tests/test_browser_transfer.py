"""The Motion transfer tab in Chromium, and its server's side without a browser."""

import base64
import re
import threading
import time
from contextlib import contextmanager
from weakref import WeakSet

import cv2
import numpy as np
import pytest
from app_kit import Site, Visitor, wait_for
from playwright.sync_api import Page, expect
from test_transfer import FRAMES, SHIFT, WIDTH, panned, shown, write

from motionstream.controls.layers import BASE_IDS
from motionstream.ui import live
from motionstream.ui import transfer as transfer_module
from motionstream.ui.transfer import MAX_CLIP, TransferTab
from motionstream.video import fit_image


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "pan.mp4", panned(40), options={"crf": "8"})


def part(page: Page, name: str):
    """A part of this tab: the tab that was open first stays on the page, hidden."""
    return page.locator(f'.ms:has(.ms-motion) [data-ms="{name}"]')


def in_state(page: Page, state: str) -> None:
    expect(page.locator(".ms:has(.ms-motion)")).to_have_attribute("data-state", state, timeout=20_000)


def open_tab(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.get_by_role("tab", name="Motion transfer").click()
    in_state(page, "idle")


def draw(page: Page, name: str, *places: tuple[float, float], release: bool = True) -> None:
    """Presses at the first place of a canvas, given as shares of its sides, and moves through the others."""
    box = part(page, name).bounding_box()
    for step, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4 if step else 1)
        if not step:
            page.mouse.down()
    if release:
        page.mouse.up()


def upload(page: Page, path) -> None:
    part(page, "clip-file").set_input_files(path)


def test_a_clip_moves_its_first_frame_and_drags_lie_on_top(page, site, clip):
    open_tab(page, site)
    part(page, "start").click()
    expect(part(page, "message")).to_contain_text("Choose a video first")
    upload(page, clip)
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)
    expect(page.locator("button[data-image=clip]")).to_have_attribute("aria-pressed", "true")
    expect(part(page, "tracker-note")).to_contain_text("Lucas-Kanade")
    corners = (0.2, 0.2), (0.5, 0.15), (0.8, 0.2), (0.85, 0.5), (0.8, 0.8), (0.5, 0.85), (0.2, 0.8), (0.15, 0.5)
    draw(page, "clip", *corners)
    expect(part(page, "region-clear")).to_be_visible()
    expect(part(page, "progress")).to_be_hidden(timeout=20_000)
    draw(page, "clip", (0.5, 0.5))  # clicks draw nothing, and nothing is lost
    part(page, "clip").click(button="right")
    expect(part(page, "region-clear")).to_be_visible()
    expect(part(page, "progress")).to_be_hidden()
    part(page, "start").click()
    in_state(page, "live")
    wait_for(lambda: page.wait_for_timeout(50) or len(site.paste.chunks) > 1, "the second chunk", 20)
    first = site.paste.chunks[0].tracks
    width = site.paste.chunks[0].frames.shape[2]
    steps = np.diff(first.points, axis=0)[..., 0][first.visible[1:]]
    assert first.N > 10 and abs(np.median(steps) - SHIFT * width / WIDTH) < 0.5
    shares = first.points[0] / (width, site.paste.chunks[0].frames.shape[1])
    assert shares.min() > 0.1 and shares.max() < 0.9  # of the region only
    draw(page, "picture", (0.5, 0.5), (0.6, 0.5), release=False)
    chunks = site.paste.chunks
    wait_for(lambda: page.wait_for_timeout(50) or (chunks[-1].tracks.ids >= BASE_IDS).any(), "the drag's tracks")
    page.mouse.up()
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_reverse_and_loop_stay_as_they_are_where_the_prompt_changes(page, site):
    open_tab(page, site)
    for name in ("reverse", "loop"):
        part(page, name).click()
    part(page, "prompt").fill("snow")
    part(page, "prompt").press("Enter")
    expect(page.locator(".ms:visible .ms-chips .ms-chip", has_text="snow")).to_have_attribute("aria-pressed", "true")
    for name in ("reverse", "loop"):
        expect(part(page, name)).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("image", ["clip", "own"])
def test_a_page_that_is_loaded_anew_still_has_the_clip_and_its_settings(page, site, clip, tmp_path, image):
    def drawn() -> float:
        return part(page, "clip").evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data[0]")

    open_tab(page, site)
    upload(page, clip)
    expect(part(page, "message")).to_contain_text("the clip moves the picture")
    for name, value in (("clip-start", "0.5"), ("clip-seconds", "1.2"), ("amplify", "1.5"), ("clip-grid", "14")):
        part(page, name).fill(value)
    part(page, "loop").click()
    page.locator("[data-fit=stretch]").click()
    if image == "own":
        page.locator("[data-image=own]").click()
    draw(page, "clip", (0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.25, 0.3))
    expect(part(page, "region-clear")).to_be_visible()
    expect(part(page, "progress")).to_be_hidden()
    seat = list(site.live._visitors.values())[-1].seats["transfer"]
    wait_for(lambda: seat.own.tracked and seat.own.tracked[0][0] == 0.5 and not seat.own.thread, "the tracks")
    blocks, number = seat.own.tracked[1], seat.shown[0]["number"]
    part(page, "start").click()
    in_state(page, "live")
    first = site.paste.chunks[0].tracks
    assert first.N > 5
    assert ((first.visible[1] & ~first.visible[0]).mean() > 0.1) == (image == "own")  # see `ClipRecipe`
    page.reload()
    in_state(page, "idle")  # of the tab that was open
    wait_for(lambda: page.wait_for_timeout(50) or drawn() > 0, "a preview")
    wait_for(lambda: seat.own.tracked[1] is not blocks and not seat.own.thread, "the tracks anew")
    texts = {"clip-start": "0.5 s", "clip-seconds": "1.2 s", "amplify": "1.50 ×", "clip-grid": "14 wide"}
    for name, text in texts.items():
        expect(part(page, f"{name}-value")).to_have_text(text)
    for chosen in ("[data-ms=loop]", "[data-fit=stretch]", f"[data-image={image}]"):
        expect(page.locator(f".ms-motion {chosen}")).to_have_attribute("aria-pressed", "true")
    expect(part(page, "region-clear")).to_be_visible()
    assert seat.shown[0]["number"] == number
    before, site.paste.chunks = site.paste.chunks[0].tracks.N, []
    part(page, "start").click()
    in_state(page, "live")
    assert site.paste.chunks[0].tracks.N == before


def test_two_points_are_aligned_by_their_handles(page, site, clip):
    open_tab(page, site)
    upload(page, clip)
    expect(part(page, "progress")).to_be_hidden(timeout=20_000)
    page.locator("button[data-fit=align]").click()
    draw(page, "picture", (0.3, 0.5), (0.5, 0.5))
    part(page, "start").click()
    in_state(page, "live")
    chunk = site.paste.chunks[0]
    steps = np.diff(chunk.tracks.points, axis=0)[..., 0][chunk.tracks.visible[1:]]
    scale = (0.7 - 0.5) / (0.7 - 0.3)
    assert abs(np.median(steps) - scale * SHIFT * chunk.frames.shape[2] / WIDTH) < 0.5
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_two_fingers_have_a_handle_each(phone, site, clip):
    phone.set_viewport_size({"width": 1280, "height": 900})
    open_tab(phone, site)
    upload(phone, clip)
    expect(part(phone, "progress")).to_be_hidden(timeout=20_000)
    phone.locator("button[data-fit=align]").click()
    box, touch = part(phone, "picture").bounding_box(), phone.context.new_cdp_session(phone)
    for kind, hands in (("touchStart", (0.3, 0.7)), ("touchMove", (0.4, 0.6)), ("touchEnd", ())):
        places = [(box["x"] + hand * box["width"], box["y"] + box["height"] / 2) for hand in hands]
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    part(phone, "start").click()
    in_state(phone, "live")
    chunk = site.paste.chunks[0]
    steps = np.diff(chunk.tracks.points, axis=0)[..., 0][chunk.tracks.visible[1:]]
    assert abs(np.median(steps) - 0.5 * SHIFT * chunk.frames.shape[2] / WIDTH) < 0.3


def test_a_bad_clip_is_explained(page, site, tmp_path):
    open_tab(page, site)
    for data, sentence in ((b"not a video", "cannot be read"), (b"", "empty file")):
        (tmp_path / "bad.mp4").write_bytes(data)
        upload(page, tmp_path / "bad.mp4")
        expect(part(page, "message")).to_contain_text(sentence)
        expect(part(page, "progress")).to_be_hidden()


def test_the_webcam_moves_the_picture(page, site):
    page.context.grant_permissions(["camera"])
    open_tab(page, site)
    page.locator("button[data-source=webcam]").click()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    part(page, "start").click()
    in_state(page, "live")
    wait_for(lambda: page.wait_for_timeout(50) or site.paste.chunks[-1].tracks.visible.any(), "the camera's tracks", 20)
    page.keyboard.press("Enter")
    in_state(page, "idle")


def test_a_region_of_the_webcam_can_be_taken_away(page, site):
    page.context.grant_permissions(["camera"])
    open_tab(page, site)
    page.locator("button[data-source=webcam]").click()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    draw(page, "clip", (0.2, 0.2), (0.8, 0.3), (0.5, 0.8))
    part(page, "region-clear").click()
    expect(part(page, "region-clear")).to_be_hidden()
    draw(page, "clip", (0.2, 0.2), (0.8, 0.3), (0.5, 0.8))
    expect(part(page, "region-clear")).to_be_visible()
    page.locator("button[data-source=clip]").click()  # where nothing was drawn
    expect(part(page, "region-clear")).to_be_hidden()


def test_webcam_pictures_do_not_pile_up_before_a_slow_network(anew, page, site):
    page.context.grant_permissions(["camera"])
    page.add_init_script(
        """window.pictures = 0; window.full = false;
           const send = WebSocket.prototype.send;
           WebSocket.prototype.send = function (data) {
             pictures += String(data).startsWith('{"kind":"webcam"'); return send.call(this, data); };
           Object.defineProperty(WebSocket.prototype, 'bufferedAmount', { get: () => full ? 1e6 : 0 });"""
    )
    open_tab(page, site)
    page.locator("button[data-source=webcam]").click()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    part(page, "start").click()
    in_state(page, "live")
    page.wait_for_function("pictures > 3")
    page.evaluate("full = true")
    before = page.evaluate("pictures")
    page.wait_for_timeout(500)
    assert page.evaluate("pictures") <= before + 1
    page.evaluate("full = false")
    page.wait_for_function(f"pictures > {before + 3}")


def test_a_stream_begins_with_the_newest_picture_of_the_webcam(anew, page, site, monkeypatch):
    page.context.grant_permissions(["camera"])
    page.add_init_script(
        """window.ages = []; const send = WebSocket.prototype.send;
           WebSocket.prototype.send = function (data) {
             const { kind, t } = typeof data === 'string' ? JSON.parse(data) : {};
             if (kind === 'webcam') ages.push(performance.now() - t);
             return send.call(this, data); };"""
    )
    made = threading.Event()
    monkeypatch.setattr(site.live, "end_others", lambda *args: made.wait(10))  # a start that takes its time
    open_tab(page, site)
    page.locator("button[data-source=webcam]").click()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    part(page, "start").click()
    page.wait_for_timeout(1_000)
    made.set()
    page.wait_for_function("ages.length > 2")
    assert page.evaluate("Math.max(...ages)") < 500


def test_the_webcam_is_off_once_it_was_left(anew, page, site):
    page.context.grant_permissions(["camera"])
    page.add_init_script(
        """window.streams = []; const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
           navigator.mediaDevices.getUserMedia = async wanted => {
             await new Promise(resolve => setTimeout(resolve, 300));
             streams.push(await open(wanted)); return streams.at(-1); }"""
    )
    open_tab(page, site)
    tracks = "streams.map(stream => stream.getTracks().map(track => track.readyState).join()).join()"
    page.locator("button[data-source=webcam]").dblclick()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    page.wait_for_timeout(400)
    assert page.evaluate(tracks) == "live"  # asked for once
    page.locator("button[data-source=clip]").click()
    assert page.evaluate(tracks) == "ended"
    page.locator("button[data-source=webcam]").click()
    page.locator("button[data-source=clip]").click()  # before the permission is given
    page.wait_for_function("streams.length === 2")
    page.wait_for_function(f"{tracks} === 'ended,ended'")


def test_the_webcam_is_on_again_when_the_visitor_comes_back(page, site):
    page.context.grant_permissions(["camera"])
    open_tab(page, site)
    page.locator("button[data-source=webcam]").click()
    expect(part(page, "message")).to_contain_text("the picture moves with you")
    page.get_by_role("tab", name="Drag").click()
    page.wait_for_timeout(300)
    page.get_by_role("tab", name="Motion transfer").click()
    page.wait_for_timeout(1_000)
    part(page, "start").click()
    in_state(page, "live")
    wait_for(lambda: page.wait_for_timeout(50) or site.paste.chunks[-1].tracks.visible.any(), "the camera's tracks", 20)


def test_a_start_waits_for_the_frame_that_was_chosen_last(page, site, clip):
    open_tab(page, site)
    upload(page, clip)
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)
    desk = list(site.live._visitors.values())[-1].seats["transfer"].own
    assert desk.shown == 0
    said = part(page, "clip-start").evaluate("""slider => {
        const part = name => slider.closest('.ms').querySelector(`[data-ms="${name}"]`);
        slider.value = 1;
        slider.dispatchEvent(new Event('change', { bubbles: true }));
        part('start').click();
        return part('message').textContent; }""")
    assert "on its way" in said
    in_state(page, "idle")
    wait_for(lambda: page.wait_for_timeout(50) or desk.shown == 1, "the frame at one second")
    part(page, "start").click()
    in_state(page, "live")


def test_a_start_in_reverse_waits_for_the_clips_last_frame(page, site, clip):
    open_tab(page, site)
    with taken(site.live._tabs["transfer"]._tracking, transfer_module.TRACKING_AT_ONCE):
        upload(page, clip)
        desk = list(site.live._visitors.values())[-1].seats["transfer"].own
        wait_for(lambda: page.wait_for_timeout(50) or desk.shown == 0, "the first frame")
        part(page, "reverse").click()
        for cancel in (False, True):
            if cancel:
                part(page, "progress-cancel").evaluate("button => button.click()")
                wait_for(lambda: page.wait_for_timeout(50) or desk.thread is None, "the end of the job")
                page.wait_for_timeout(200)
            part(page, "start").click()
            expect(part(page, "message")).to_contain_text("on its way")
            in_state(page, "idle")
    wait_for(lambda: page.wait_for_timeout(50) or desk.shown > 2, "the last frame", 20)
    expect(part(page, "message")).to_contain_text("the clip moves the picture")
    part(page, "start").click()
    in_state(page, "live")


def test_a_clip_is_tracked_again_where_a_start_came_first(page, site, clip):
    open_tab(page, site)
    with taken(site.live._tabs["transfer"]._tracking, transfer_module.TRACKING_AT_ONCE):
        upload(page, clip)
        desk = list(site.live._visitors.values())[-1].seats["transfer"].own
        wait_for(lambda: page.wait_for_timeout(50) or desk.shown == 0, "the first frame")
        part(page, "start").click()
        in_state(page, "live")
        page.keyboard.press("Enter")
        in_state(page, "idle")
    wait_for(lambda: page.wait_for_timeout(50) or desk.tracked, "the clip's tracks", 20)
    expect(part(page, "progress")).to_be_hidden()
    expect(part(page, "message")).to_contain_text("The clip is ready")


def test_nothing_gets_into_a_clip_that_is_being_uploaded(page, site, clip, tmp_path, monkeypatch):
    open_tab(page, site)
    seen, expect_clip = threading.Event(), TransferTab._expect
    monkeypatch.setattr(TransferTab, "_expect", lambda *args: (seen.wait(10), expect_clip(*args)))
    upload(page, clip)
    expect(part(page, "progress")).to_be_visible()
    (tmp_path / "photo.png").write_bytes(cv2.imencode(".png", FRAMES[0])[1].tobytes())
    part(page, "file").set_input_files(tmp_path / "photo.png")
    expect(part(page, "message")).to_contain_text("wait for it, or cancel it")
    part(page, "progress-cancel").click()
    expect(part(page, "progress")).to_be_hidden()
    seen.set()
    upload(page, clip)
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)
    seen.clear()
    upload(page, clip)
    list(site.live._visitors.values())[-1].seats["transfer"].close()
    seen.set()
    expect(part(page, "message")).to_contain_text("lost during the upload", timeout=10_000)
    expect(part(page, "progress")).to_be_hidden()


def test_a_photo_that_was_brought_is_what_a_clip_moves(page, site, clip, tmp_path):
    open_tab(page, site)
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((300, 300, 3), 99, np.uint8))
    part(page, "file").set_input_files(tmp_path / "photo.png")
    square = re.compile(r"picture (\d+) × \1\b")
    expect(part(page, "facts")).to_have_text(square)
    (tmp_path / "empty.mp4").write_bytes(b"")
    upload(page, tmp_path / "empty.mp4")
    expect(part(page, "message")).to_contain_text("empty file")
    with taken(site.live._tabs["transfer"]._tracking, transfer_module.TRACKING_AT_ONCE):
        upload(page, clip)
        expect(part(page, "strip")).to_have_attribute("data-tone", "hint")  # what was wrong is over
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)
    own, first = (page.locator(f"button[data-image={name}]") for name in ("own", "clip"))
    expect(own).to_have_attribute("aria-pressed", "true")
    expect(part(page, "facts")).to_have_text(square)
    first.click()
    expect(part(page, "facts")).not_to_have_text(square)
    expect(part(page, "start")).to_be_enabled()
    own.click()
    expect(part(page, "facts")).to_have_text(square)
    part(page, "start").click()
    in_state(page, "live")
    assert np.ptp(site.paste.chunks[0].frames.shape[1:3]) == 0
    for name in ("reverse", "loop", "clip-grid", "tracker"):  # what a running stream does not hear
        expect(part(page, name)).to_be_disabled()
    expect(first).to_be_disabled()
    page.keyboard.press("Enter")
    in_state(page, "idle")
    expect(first).to_be_enabled()


def test_an_animation_chosen_as_a_photo_is_a_photo(page, site, tmp_path):
    open_tab(page, site)
    animation = write(tmp_path / "a.gif", FRAMES, codec="gif", pixels="rgb8")
    part(page, "file").set_input_files(animation)
    expect(page.locator(".ms:has(.ms-motion) .ms-example[aria-pressed=true]")).to_have_count(0)
    expect(part(page, "message")).to_contain_text("Choose a video")
    upload(page, animation)
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)


def test_a_clip_stays_where_another_is_refused(page, site, clip, tmp_path):
    open_tab(page, site)
    upload(page, clip)
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)
    (tmp_path / "empty.mp4").write_bytes(b"")
    upload(page, tmp_path / "empty.mp4")
    expect(part(page, "message")).to_contain_text("empty file")
    part(page, "start").click()
    in_state(page, "live")


def test_a_clip_is_still_tracked_where_another_is_refused(page, site, clip, tmp_path):
    open_tab(page, site)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with taken(site.live._tabs["transfer"]._tracking, transfer_module.TRACKING_AT_ONCE):
        upload(page, clip)
        expect(part(page, "clip-other")).to_be_visible(timeout=20_000)
        expect(part(page, "start")).to_be_enabled()  # its first frame is here, and what is said to that
        upload(page, tmp_path / "empty.mp4")
        expect(part(page, "message")).to_contain_text("empty file")
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)


def test_a_video_is_dropped_beside_the_picture_and_a_photo_is_no_video(page, site, clip, tmp_path):
    open_tab(page, site)
    expect(part(page, "message")).to_contain_text("Choose a video")
    cv2.imwrite(str(tmp_path / "photo.jpg"), FRAMES[0])
    upload(page, tmp_path / "photo.jpg")
    expect(part(page, "message")).to_contain_text("That is a picture")
    files = page.evaluate_handle(
        """data => { const files = new DataTransfer(), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                     files.items.add(new File([bytes], 'pan.mp4', { type: 'video/mp4' })); return files; }""",
        base64.b64encode(clip.read_bytes()).decode(),
    )
    frame, over = part(page, "clip-upload"), "{ bubbles: true, cancelable: true, dataTransfer: files }"
    # Cancelled: else the browser would open the file in this page's place.
    assert not frame.evaluate(f"(at, files) => at.dispatchEvent(new DragEvent('dragover', {over}))", files)
    frame.dispatch_event("drop", {"dataTransfer": files})
    expect(part(page, "message")).to_contain_text("the clip moves the picture", timeout=20_000)


def test_a_clip_without_motion_is_explained_in_reverse_too(page, site, tmp_path):
    open_tab(page, site)
    part(page, "reverse").click()
    flat = np.full((20, 96, 160, 3), 128, np.uint8)
    for frames, sentence in ((flat, "nothing to follow"), (FRAMES[:1], "only one frame and no motion")):
        upload(page, write(tmp_path / "still.mp4", frames))
        expect(part(page, "message")).to_contain_text(sentence, timeout=20_000)
        page.wait_for_timeout(500)
        expect(part(page, "message")).to_contain_text(sentence)
        assert part(page, "strip").get_attribute("data-tone") == "error"


def test_tab_fits_the_screen(page, site):
    open_tab(page, site)
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert part(page, "start").bounding_box()["y"] < height - 40


# --- without a browser -----------------------------------------------------------------------------------------------


class TransferVisitor(Visitor):
    """A page at the Motion transfer tab."""

    seat = "transfer"

    def send_clip(self, data: bytes, part=5_000) -> None:
        self.say({"kind": "clip", "bytes": len(data)})
        for place in range(0, len(data), part):
            self.say(data[place : place + part])


@pytest.fixture
def transfer(site):
    visitor = TransferVisitor(site)
    yield visitor
    visitor.close()


def test_a_clip_in_parts_is_tracked_with_previews_and_streams(site, transfer, clip):
    transfer.send_clip(clip.read_bytes())
    assert transfer.expect("clip")["seconds"] == pytest.approx(2.5, abs=0.1)
    transfer.say({"kind": "track", "settings": {"grid": 12, "seconds": 1.0}, "image": "clip"})
    picture, _ = transfer.expect("picture", binary=True)
    assert picture["image"] == "clip" and picture["width"] > picture["height"]
    header, jpeg = transfer.expect("preview", binary=True)
    assert header["index"] == 0 and len(header["points"]) % 3 == 0 and header["points"] and jpeg[:2] == b"\xff\xd8"
    while (progress := transfer.expect("tracking"))["done"] < 16:
        assert progress["total"] == 16
    assert progress["left"] == 0
    done = transfer.expect("tracked")
    assert done["frames"] == 16 and done["tracks"] > 20
    panel = {"source": "clip", "settings": {"grid": 12, "seconds": 1.0}}
    transfer.start(panel=panel)
    transfer.chunk()
    transfer.say({"kind": "track", "settings": {}, "image": "clip"})
    assert "stop it before" in transfer.expect("error")["text"]
    transfer.say({"kind": "stop", "run": 1})
    assert not transfer.expect("ended")["failed"]
    assert site.paste.chunks[0].tracks.N > 20


def test_in_reverse_the_last_frame_is_animated(transfer, clip):
    transfer.send_clip(clip.read_bytes())
    transfer.expect("clip")
    posters = {}
    for reverse in (False, True):
        settings = {"grid": 12, "seconds": 2.0, "reverse": reverse}
        transfer.say({"kind": "track", "settings": settings, "image": "clip"})
        _, posters[reverse] = transfer.expect("picture", binary=True)
    for reverse, frame in ((False, 0), (True, 31)):
        seen = cv2.imdecode(np.frombuffer(posters[reverse], np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(float)
        wanted = fit_image(panned(32)[frame], seen.shape[1], seen.shape[0])
        assert np.abs(seen - wanted).mean() < 12


def test_in_reverse_the_last_frame_of_a_clip_of_any_rate_is_found(transfer, tmp_path):
    """At 16 frames a second there is one at second 1, though this clip's last one is shown half a frame before."""
    transfer.send_clip(write(tmp_path / "fast.mp4", panned(60, SHIFT / 4), fps=60).read_bytes())
    transfer.expect("clip")
    transfer.say({"kind": "track", "settings": {"grid": 12, "seconds": 2.0, "reverse": True}, "image": "clip"})
    assert transfer.expect("picture", binary=True)[0]["image"] == "clip"
    assert transfer.expect("tracked")["frames"] == 17


def test_tracking_can_be_cancelled(transfer, tmp_path):
    path = write(tmp_path / "long.mp4", np.tile(FRAMES, (40, 1, 1, 1)))
    transfer.send_clip(path.read_bytes())
    transfer.expect("clip")
    transfer.say({"kind": "track", "settings": {"seconds": 25, "grid": 30}, "image": "own", "number": 7})
    transfer.expect("tracking")
    transfer.say({"kind": "cancel"})
    assert transfer.expect("tracked") == {"kind": "tracked", "number": 7, "cancelled": True}


@contextmanager
def taken(places, count):
    """By other visitors, all of them."""
    for _ in range(count):
        assert places.acquire(timeout=10)
    try:
        yield
    finally:
        for _ in range(count):
            places.release()


def test_jobs_of_a_visitor_take_turns_in_one_thread(site, transfer, clip):
    """However many there are: each is answered, the newest is done."""
    transfer.send_clip(clip.read_bytes())
    transfer.expect("clip")
    threads, heard = threading.active_count(), []
    with taken(site.live._tabs["transfer"]._tracking, transfer_module.TRACKING_AT_ONCE):
        for number in range(100):
            transfer.say({"kind": "track", "settings": {"start": number / 100, "seconds": 0.5}, "image": "clip"})
        while heard.count("picture") + heard.count("unchanged") < 100:
            heard.append(transfer.hear()[0]["kind"])
        assert threading.active_count() < threads + 8  # with those that receive the messages
        assert heard.count("tracked") == 99
    assert transfer.expect("tracked")["frames"] == 8


def test_a_browser_that_takes_no_previews_gives_its_place_up(transfer, clip, monkeypatch):
    transfer.send_clip(clip.read_bytes())
    transfer.expect("clip")
    monkeypatch.setattr(transfer_module, "STALL_SECONDS", 0.3)
    for backlog, sentence in ((100, "taken no preview for 0.3 seconds"), (0, "")):
        monkeypatch.setattr(live.Seat, "backlog", backlog)
        transfer.say({"kind": "track", "settings": {"grid": 12}, "image": "own"})
        assert ("cancelled" in transfer.expect("tracked")) == bool(sentence)
        assert not sentence or sentence in transfer.expect("error")["text"]


def test_a_picture_chosen_while_the_clips_frame_is_sought_is_kept(site, transfer, clip):
    transfer.send_clip(clip.read_bytes())
    transfer.expect("clip")
    with taken(site.live._tabs["transfer"]._showing, transfer_module.SHOWING_AT_ONCE):
        transfer.say({"kind": "track", "settings": {"seconds": 0.5}, "image": "clip"})
        transfer.say({"kind": "example", "name": transfer.picture["name"]})
        assert transfer.expect("picture")["image"] == "own"
    transfer.expect("unchanged")
    assert transfer.expect("tracked")["frames"] == 8
    assert site.live.seat(transfer.session, "transfer").shown[0]["image"] == "own"


def test_an_upload_ends_with_its_connection_or_when_it_is_cancelled(site, transfer, clip):
    data, photo = clip.read_bytes(), cv2.imencode(".png", FRAMES[0])[1].tobytes()
    for end in ("cancel", "connection"):
        transfer.say({"kind": "clip", "bytes": len(data)})
        transfer.say(data[: len(data) // 2])
        transfer.expect("send")
        if end == "cancel":
            transfer.say({"kind": "cancel"})
        else:
            transfer.socket.close()
            transfer.socket = transfer.connect()
            transfer.expect("picture")
        transfer.say(photo)
        assert transfer.expect("picture")["image"] == "own"
    transfer.send_clip(data)
    assert transfer.expect("clip")["width"] == WIDTH


def test_the_clips_of_all_visitors_together_have_a_limit(site, transfer, clip, monkeypatch):
    size = clip.stat().st_size
    monkeypatch.setattr(transfer_module, "MAX_CLIPS", 2 * size - 1)
    own = WeakSet([site.live.seat(transfer.session, "transfer").own])  # without those of other tests
    monkeypatch.setattr(site.live._tabs["transfer"], "_desks", own)
    for _ in range(2):  # the second one replaces the first
        transfer.send_clip(clip.read_bytes())
        transfer.expect("clip")
    other = TransferVisitor(site)
    other.say({"kind": "clip", "bytes": size})
    assert "clips of all visitors" in other.expect("error")["text"]
    site.live.forget(transfer.session)
    other.send_clip(clip.read_bytes())
    other.expect("clip")
    other.close()


def test_the_clip_is_gone_when_its_visitor_is(site, transfer, clip, monkeypatch):
    monkeypatch.setattr(live, "FORGET_SECONDS", 0.2)
    transfer.send_clip(clip.read_bytes())
    transfer.expect("clip")
    path = site.live.seat(transfer.session, "transfer").own.clip.path
    assert path.read_bytes() == clip.read_bytes()
    transfer.close()
    wait_for(lambda: not path.parent.exists(), "the end of the folder")


def test_webcam_pictures_drive_the_stream(site, transfer):
    transfer.start(panel={"source": "webcam", "settings": {"grid": 12, "tracker": "lucas-kanade"}})
    transfer.chunk(ack=False)
    for t, frame in enumerate(panned(12)):
        transfer.say(shown(frame, t=100.0 + t))
    time.sleep(0.2)
    transfer.say({"kind": "ack", "chunk": 0})
    assert transfer.chunk()["input"] == 111.0
    tracks = site.paste.chunks[1].tracks
    assert tracks.N > 15 and np.median(tracks.points[-1] - tracks.points[0], axis=0)[0] > 10


@pytest.mark.parametrize(
    "message, sentence",
    [
        ({"kind": "track", "settings": {}}, "there is no clip yet"),
        ({"kind": "track", "settings": {"grid": 1_000}}, '"grid" is 1000'),
        ({"kind": "clip", "bytes": MAX_CLIP + 1}, "at most 200 MB"),
        ({"kind": "clip", "bytes": "many"}, "at most 200 MB"),
        ({"kind": "clip"}, "at most 200 MB"),
        (b"neither clip nor picture", "not an image"),
    ],
)
def test_bad_commands_are_answered(transfer, message, sentence):
    transfer.say(message)
    assert sentence in transfer.expect("error")["text"]


@pytest.mark.parametrize(
    "panel, sentence",
    [
        (None, "must be an object"),
        ({"source": "clip", "settings": {}}, "there is no clip yet"),
        ({"source": "webcam", "settings": {"amplify": 99}}, '"amplify" is 99'),
    ],
)
def test_bad_starts_are_refused(transfer, panel, sentence):
    transfer.start(panel=panel)
    ended = transfer.expect("ended")
    assert ended["failed"] and sentence in ended["text"]
