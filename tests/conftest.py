"""Shared fixtures: the app, a visitor without a browser, and Chromium.

`site` runs a stand-in for the model (`app_kit.Paste`), `student_site` the model that comes with the repository. What
they need is imported in them: pytest's own process reads this file too, before it starts those that run the tests.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import motionstream  # noqa: F401  before PyTorch is loaded: how its threads wait

# isort: split
import pytest

if TYPE_CHECKING:
    from app_kit import Site, Visitor

gc.disable()  # until all is imported, see `pytest_collection_finish`

CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
DESKTOP = {"width": 1280, "height": 900}
# A page that is opened is nobody's, one that is loaded anew goes on as it was.
FORGET = "if (location.protocol === 'http:' && performance.navigation.type === 0) sessionStorage.clear()"


def pytest_collection_finish() -> None:
    """What was imported, half a million objects, is never garbage: looking for it there takes a twentieth of a run."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[Path]:
    """Gradio's folder for files to serve."""
    from motionstream.controls.depth import Learned

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GRADIO_SERVER_PORT", raising=False)
        patch.setattr(Learned, "fetch", lambda self: False)  # tests have no network
        yield Path(os.environ["GRADIO_TEMP_DIR"])


@pytest.fixture(scope="session")
def shared_site(cache) -> Iterator[Site]:
    from app_kit import Paste, fake_engine, open_site

    paste = Paste()
    site = open_site(fake_engine(paste), paste)
    yield site
    site.demo.close()


@pytest.fixture
def site(shared_site) -> Site:
    """The app with the stand-in model, without a running stream."""
    shared_site.make_ready()
    return shared_site


@pytest.fixture
def visitor(site) -> Iterator[Visitor]:
    visitor = site.visit()
    yield visitor
    visitor.close()


@pytest.fixture(scope="session")
def student_site(cache) -> Iterator[Site]:
    """The app with the embedded student, at its smaller size."""
    from app_kit import open_site, student_engine

    site = open_site(student_engine())
    yield site
    site.demo.close()


@pytest.fixture(scope="session")
def browsers(tmp_path_factory) -> Iterator:
    """Opens the system's Chromium with a profile of its own, on the disk as a visitor's is: scripts stay
    compiled there, so that a page opens in two thirds of the time."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium: apt-get install chromium, or put `chromium` on the PATH"
    with sync_playwright() as playwright:
        yield lambda **options: playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=path, args=CHROMIUM_FLAGS, headless=True, **options
        )


@pytest.fixture(scope="session")
def profile(browsers) -> Iterator:
    """One browser profile for all pages, so that Gradio's own scripts come from its cache."""
    with browsers(viewport=DESKTOP, accept_downloads=True) as context:
        yield context


@pytest.fixture(scope="session")
def phones_profile(browsers) -> Iterator:
    with browsers(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as context:
        yield context


@contextmanager
def watched(profile) -> Iterator:
    """A fresh page; what goes wrong in its scripts fails the test."""
    page, errors = profile.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(15_000)
    page.add_init_script(FORGET)
    yield page
    page.close()
    assert not errors, errors


@pytest.fixture(scope="module")
def kept() -> Iterator:
    """What ends the page of the last test, and that page under `page`; it is empty where there is none."""
    with ExitStack() as kept:
        kept.page = None
        yield kept


@pytest.fixture
def page(profile, kept, request) -> Iterator:
    """The page of the test before, see `watched`: its scripts are at hand. One that has failed leaves none."""
    from playwright.sync_api import expect

    kept.page = kept.page or kept.enter_context(watched(profile))
    kept.page.set_viewport_size(DESKTOP)
    failures = request.session.testsfailed
    yield kept.page
    if request.session.testsfailed > failures:
        end_page(kept)
    elif (canvas := kept.page.locator(".ms:visible")).get_attribute("data-state") in ("starting", "live", "paused"):
        kept.page.mouse.up()
        canvas.locator("[data-ms=start]").click()
        expect(canvas).to_have_attribute("data-state", "idle", timeout=20_000)  # its clip is finished first


@pytest.fixture
def anew(kept) -> Iterator:
    """For a test that needs a page which nobody has used, or leaves one that nobody may use after it."""
    end_page(kept)
    yield
    end_page(kept)


def end_page(kept: ExitStack) -> None:
    kept.page = None
    kept.close()


@pytest.fixture
def phone(phones_profile) -> Iterator:
    """A page on a phone."""
    with watched(phones_profile) as page:
        yield page
