"""Draw js/docs/images/*.jpg, a picture of every node for its help page: python . -m tools.node_pictures

Builds one graph with all nodes on the demo world, runs it in the real front end, and cuts each node out of a screenshot. Needs
what `./dev test browser` sets up.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ..tests.browser_page import ComfyPage
from ..tests.host_server import TestServer
from .comfy_server import PACK_ROOT
from .workflow_graph import Graph
from .workflows import encode, shapes_world

FLAGS = ["--no-sandbox", "--no-first-run", "--disable-gpu"]
IMAGES = PACK_ROOT / "js" / "docs" / "images"
SCALE, MARGIN, CORNER = 1.25, 5, (420, 160)  # of the node on the screen, clear of the front end's own bars


def gallery(info: dict) -> Graph:
    """Every node of the pack, wired as a user would."""
    graph = Graph(info)
    world, text = shapes_world(graph, "a blue star left of a red circle")
    positive, negative = encode(graph, 1, world[1], text[0]), encode(graph, 1, world[1], "", "Negative")
    graph.add(0, "LatentCLIPLoader", 110)
    graph.add(0, "LatentCLIPPixelLoader", 170, vae=world[2])
    empty = graph.add(1, "EmptyLatentImage", 110, width=64, height=64, batch_size=4)
    instead = graph.add(1, "CLIPTextEncode", 110, clip=world[1], text="a green circle")
    stars = {"latent_clip": world[3], "concepts": "shapes-world-stars"}
    guide = graph.add(2, "LatentCLIPSafetyGuidance", 560, model=world[0], **stars, thresholds="3", instead=instead[0])
    match = graph.add(2, "LatentCLIPTextReward", 260, latent_clip=world[3], text=text[0])
    avoid = graph.add(2, "LatentCLIPAvoidReward", 390, **stars, weight=0.05)
    graph.add(2, "LatentCLIPPixelReward", 260, vae=world[2], text="a blue star left of a red circle")
    graph.add(2, "LatentCLIPGuideModel", 260, model=guide[0], reward=match[0])

    def sample(model: tuple, steps: int) -> tuple:
        return graph.add(
            3, "KSampler", 270, model=model, positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=steps,
            cfg=1.0 if steps == 1 else 3.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        )[0]  # fmt: skip

    latent = sample(world[0], 1)
    like = graph.add(3, "LatentCLIPLatentReward", 260, latent_clip=world[3], reference=latent, weight=0.2)
    combined = graph.add(
        3, "LatentCLIPCombineRewards", 200, **{f"rewards.reward_{i}": term[0] for i, term in enumerate((match, avoid, like))}
    )  # fmt: skip
    best = graph.add(4, "LatentCLIPSelect", 420, latent=latent, reward=match[0], keep=2)
    score = graph.add(4, "LatentCLIPScore", 460, latent=latent, reward=combined[0])
    labels = "a blue star left of a red circle\na red circle left of a blue star\na green cross"
    classify = graph.add(
        4, "LatentCLIPClassify", 560, latent=latent, latent_clip=world[3], labels=labels, templates="{}"
    )
    sigmas = graph.add(5, "BasicScheduler", 120, model=world[0], scheduler="simple", steps=1, denoise=1.0)
    noise = graph.add(5, "RandomNoise", 90, noise_seed=1)
    guider = graph.add(5, "BasicGuider", 60, model=world[0], conditioning=positive[0])
    optimised = graph.add(
        5, "LatentCLIPOptimizeNoise", 640, noise=noise[0], guider=guider[0], sigmas=sigmas[0], latent_image=empty[0],
        reward=combined[0], iterations=20,
    )  # fmt: skip
    steps = graph.add(6, "BasicScheduler", 120, model=world[0], scheduler="normal", steps=16, denoise=1.0)
    both = graph.add(6, "CFGGuider", 110, model=world[0], positive=positive[0], negative=negative[0], cfg=3.0)
    euler = graph.add(6, "KSamplerSelect", 60, sampler_name="euler")
    found = graph.add(
        6, "LatentCLIPSearch", 640, noise=noise[0], guider=both[0], sampler=euler[0], sigmas=steps[0], latent_image=empty[0],
        reward=match[0], keep=1,
    )  # fmt: skip
    gate = graph.add(6, "LatentCLIPSafetyGate", 600, latent=latent, **stars, on_block="grey")
    ends = [best[0], score[0], classify[3], optimised[0], found[0], gate[0], sample(guide[0], 8)]
    for end in ends:
        graph.add(7, "PreviewImage", 200, images=graph.add(7, "VAEDecode", 60, samples=end, vae=world[2])[0])
    return graph


def main() -> None:
    """Draw all of them."""
    tree = Path(os.environ.get("COMFYUI_PATH", PACK_ROOT / ".cache" / "comfyui" / "0.30.0"))
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    folder = Path(tempfile.mkdtemp())
    IMAGES.mkdir(exist_ok=True)
    with TestServer(tree, folder) as server, sync_playwright() as playwright:
        server.offer_workflow_files()
        with urllib.request.urlopen(f"{server.url}/object_info") as response:
            graph = gallery(json.load(response))
        graph.save("gallery", folder)
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = ComfyPage(browser, server, "classic")
        page.page.set_viewport_size({"width": 1400, "height": 1400})
        page.js("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
        page.load(folder / "gallery.json")
        page.run(timeout=300)
        for node in graph.nodes:
            if node.type.startswith("LatentCLIP"):
                picture = cut_out(page, node.id)
                picture.save(IMAGES / f"{node.type}.jpg", quality=82, optimize=True)
                print(node.type, picture.size, flush=True)
        browser.close()


def cut_out(page: ComfyPage, node_id: int) -> Image.Image:
    """Cut out one node as the front end shows it, moved away from all others."""
    width, height = page.js(
        """([id, scale, corner]) => {
            const node = app.graph.getNodeById(id), { ds } = app.canvas;
            node.pos = [1e5 + 1e4 * id, 0];
            app.canvas.draw(true, true);
            const [x, y, width, height] = node.getBounding();
            ds.scale = scale;
            ds.offset[0] = corner[0] / scale - x;
            ds.offset[1] = corner[1] / scale - y;
            app.canvas.deselectAll();
            app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
            app.canvas.setDirty(true, true);
            return [width, height];
        }""",
        [node_id, SCALE, CORNER],
    )
    page.page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    left, top = (corner - MARGIN for corner in CORNER)
    size = (width, height)
    return picture.crop((left, top, *(round(c + SCALE * s + MARGIN) for c, s in zip(CORNER, size))))


if __name__ == "__main__":
    main()
