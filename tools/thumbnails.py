"""Draw workflows/*.jpg, the pictures in the template browser: python . -m tools.thumbnails

Opens every workflow in the real page, runs those that need no download, and takes a picture of the graph. Needs what
`./dev test browser` sets up.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ..tests.browser_page import ComfyPage
from ..tests.host_server import TestServer
from .comfy_server import PACK_ROOT

FLAGS = ["--no-sandbox", "--no-first-run", "--disable-gpu"]
SIZE = (800, 450)


def main() -> None:
    """Draw all of them."""
    tree = Path(os.environ.get("COMFYUI_PATH", PACK_ROOT / ".cache" / "comfyui" / "0.30.0"))
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with TestServer(tree, Path(tempfile.mkdtemp())) as server, sync_playwright() as playwright:
        server.offer_workflow_files()
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = ComfyPage(browser, server, "classic")
        page.page.set_viewport_size({"width": 2800, "height": 1575})
        page.js("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
        for path in sorted((PACK_ROOT / "workflows").glob("*.json")):
            draw(page, path)
            print(path.with_suffix(".jpg").name, flush=True)
        browser.close()


def draw(page: ComfyPage, path: Path) -> None:
    """One workflow, run if it can be run without a download."""
    page.reset()
    page.load(path)
    if "try-it-now" in path.stem:
        page.run(timeout=300)
    page.js("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.page.wait_for_timeout(2500)
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    left, top = 64, 100  # the page's own bars
    picture.crop((left, top, left + 2560, top + 1440)).resize(SIZE, Image.Resampling.LANCZOS).save(
        path.with_suffix(".jpg"), quality=85
    )


if __name__ == "__main__":
    main()
