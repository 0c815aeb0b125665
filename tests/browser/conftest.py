"""The real page in headless Chromium, in both of its renderers."""

import os
import shutil
from pathlib import Path

import pytest

from latent_clip.tests.browser_page import ComfyPage

HERE = Path(__file__).parent
QUIET = ("quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-sandbox", "--no-first-run", "--disable-gpu", *(f"--disable-{feature}" for feature in QUIET)]


def pytest_collection_modifyitems(items):
    """A page on a busy machine gets a second chance, which the last line of the run counts."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="module")  # its event loop must not outlive the file: other tests of the process have their own
def chromium():
    """A browser process; ./dev test says where it is in $CHROMIUM."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("no Chromium on this machine: install chromium, or set CHROMIUM to a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def opened_page(request, chromium, comfy):
    """The page, opened once for each renderer and file: the canvas, and Nodes 2.0 in Vue."""
    page = ComfyPage(chromium, comfy, renderer=request.param)
    yield page
    page.close()


@pytest.fixture
def page(opened_page):
    """The page with an empty graph and a clean list of console errors; the test fails when it left any."""
    opened_page.reset()
    yield opened_page
    assert not opened_page.errors, "errors in the browser's console:\n" + "\n".join(opened_page.errors)
