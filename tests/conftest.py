"""Shared fixtures: the app, a visitor without a browser, and Chromium.

`site` runs a stand-in for the model (`app_kit.Paste`), `student_site` the model that comes with the repository. What
they need is imported in them: pytest's own process reads this file too, before it starts those that run the tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import motionstream  # noqa: F401  before PyTorch is loaded: how its threads wait

# isort: split
import pytest

if TYPE_CHECKING:
    from app_kit import Site, Visitor

CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()


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
def chromium():
    """Chromium from the system, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium: apt-get install chromium, or put `chromium` on the PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def profile(chromium) -> Iterator:
    """One browser profile for all pages, so that Gradio's own scripts come from its cache."""
    with chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True) as context:
        yield context


@contextmanager
def watched(profile) -> Iterator:
    """A fresh page; what goes wrong in its scripts fails the test."""
    page, errors = profile.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(15_000)
    yield page
    page.close()
    assert not errors, errors


@pytest.fixture
def page(profile) -> Iterator:
    """See `watched`."""
    with watched(profile) as page:
        yield page
