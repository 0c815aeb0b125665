"""The demo: sixteen one-step images in latent space, scored before any is decoded, in a real ComfyUI.

    ./dev demo [--prompt "a green cross above a yellow circle"] [--seed 1] [--comfyui PATH] [--gpu]

It queues the same graph as a user would through POST /prompt, on Shapes World, whose images an independent judge can
check. It leaves the kept pictures and a ranked contact sheet in output/demo/, and prints what it measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from ..demo.captions import RELATIONS, Caption, parse
from ..demo.judge import judge
from ..demo.scenes import sample_things
from .comfy_server import PACK_ROOT, ComfyError, ComfyServer, make_base
from .contact_sheet import Entry, draw_sheet

OUTPUT = PACK_ROOT / "output" / "demo"
BATCH, KEEP, MORE_PROMPTS = 16, 4, 5
FIRST_PROMPT = "a blue star left of a red circle"


def graph(text: str, seed: int, batch: int) -> dict:
    """The API prompt: sample a batch in one step, score it, keep the best, decode those; decode all only to show them."""

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "world": node("LatentCLIPShapesWorld"),
        "positive": node("CLIPTextEncode", clip=["world", 1], text=text),
        "negative": node("CLIPTextEncode", clip=["world", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
        "sample": node(
            "KSampler", model=["world", 0], positive=["positive", 0], negative=["negative", 0], latent_image=["empty", 0],
            seed=seed, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "reward": node("LatentCLIPTextReward", latent_clip=["world", 3], text=text, weight=1.0, fit="tiles"),
        "score": node("LatentCLIPScore", latent=["sample", 0], reward=["reward", 0]),
        "select": node(
            "LatentCLIPSelect", latent=["score", 0], reward=["reward", 0], keep=KEEP, use_threshold=False, threshold=0.0,
        ),
        "kept": node("VAEDecode", samples=["select", 0], vae=["world", 2]),
        "save": node("SaveImage", images=["kept", 0], filename_prefix="kept"),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["world", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


class NodeClock(threading.Thread):
    """Listener for the front end's messages that keeps the seconds of each node."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.client_id = uuid.uuid4().hex
        self.url = f"{url}/ws?clientId={self.client_id}"
        self.ready, self.finished = threading.Event(), threading.Event()
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Thread body."""
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        running, since = None, 0.0
        async with aiohttp.ClientSession() as session, session.ws_connect(self.url, max_msg_size=0) as socket:
            async for message in socket:
                self.ready.set()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue  # binary ones are previews
                event = json.loads(message.data)
                if event["type"] != "executing":
                    continue
                now = time.perf_counter()
                if running:
                    self.seconds[running] = now - since
                running, since = event["data"]["node"], now
                if running is None:
                    self.finished.set()


@dataclass(frozen=True)
class Batch:
    """Result of one prompt, in batch order; seconds by node of the graph."""

    text: str
    scores: list[float]
    kept: list[int]
    pictures: list[Image.Image]
    right: list[bool]
    seconds: dict[str, float]


def run_batch(server: ComfyServer, clock: NodeClock, caption: Caption, seed: int, batch: int = BATCH) -> Batch:
    """Queue one prompt and read its results."""
    clock.seconds.clear()
    clock.finished.clear()
    result = server.run(graph(str(caption), seed, batch), client_id=clock.client_id)
    clock.finished.wait(5)
    report = result.outputs["select"]["latent_clip"][0]
    pictures = []
    for image in result.outputs["show"]["images"]:
        with Image.open(server.base / image["type"] / image["subfolder"] / image["filename"]) as picture:
            pictures.append(picture.convert("RGB"))
    right = judge(torch.stack([to_tensor(picture) for picture in pictures]), [caption] * len(pictures))
    return Batch(str(caption), report["scores"], report["kept"], pictures, right, dict(clock.seconds))


def more_captions(count: int) -> list[Caption]:
    """Further prompts, drawn once and for all: pairs that no training caption shows, with and without a relation."""
    chance = random.Random(0)
    kinds = [None, *RELATIONS]
    return [Caption(sample_things(chance, held_out=True), kinds[i % len(kinds)]) for i in range(count)]


def percent(hits: list[bool]) -> str:
    """62 %."""
    return f"{100 * sum(hits) / len(hits):.0f} %"


def milliseconds(batches: list[Batch], node: str) -> str:
    """Median over the batches of a node's time per image."""
    times = [1000 * batch.seconds[node] / len(batch.scores) for batch in batches if node in batch.seconds]
    return f"{statistics.median(times):.1f} ms"


def show(batch: Batch, timing: str) -> Path:
    """Write the contact sheet of one batch."""
    order = sorted(range(len(batch.scores)), key=lambda i: -batch.scores[i])
    ranked = [Entry(batch.pictures[i], batch.scores[i], batch.right[i]) for i in order]
    verdict = (
        f"{sum(batch.right)} of {len(batch.right)} are right, and so are {sum(batch.right[i] for i in batch.kept)}"
    )
    notes = [
        f"Tick and cross: an independent judge of the pixels, no part of the score: {verdict} of the {len(batch.kept)} kept.",
        timing,
        "Shapes World is a tiny trained world. It shows that the machinery works, not what SDXL will look like.",
    ]
    subtitle = f"{len(ranked)} latents from one-step sampling, ranked by Latent-CLIP before any was decoded"
    path = OUTPUT / "contact-sheet.png"
    draw_sheet(f"“{batch.text}”", subtitle, notes, ranked, len(batch.kept)).save(path)
    return path


def run_demo(server: ComfyServer, caption: Caption, seed: int) -> None:
    """Everything that needs the running server."""
    if "LatentCLIPShapesWorld" not in server.object_info():
        raise ComfyError(
            f"this ComfyUI has no Shapes World node: did the pack load? Its log ends with:\n{server.tail(25)}"
        )
    clock = NodeClock(server.url)
    clock.start()
    clock.ready.wait(10)
    print("loading Shapes World and making a first image …", flush=True)
    started = time.perf_counter()
    run_batch(server, clock, caption, seed, batch=1)
    loading = time.perf_counter() - started
    batches = []
    for prompt in [caption, *more_captions(MORE_PROMPTS)]:
        batches.append(batch := run_batch(server, clock, prompt, seed))
        best = "right" if batch.right[batch.kept[0]] else "wrong"
        print(f"  {batch.text:<48} {sum(batch.right):>2} of {BATCH} right, the best pick is {best}", flush=True)
    report(server, batches, loading)


def report(server: ComfyServer, batches: list[Batch], loading: float) -> None:
    """Write the contact sheet of the first batch, and print what was measured over all of them."""
    first = batches[0]
    per = {node: milliseconds(batches, node) for node in ("sample", "score", "decode")}
    device = "GPU" if "--cpu" not in server.arguments else f"{os.cpu_count()} CPU cores"
    timing = f"Per image: {per['sample']} to sample, {per['score']} to score the latent, {per['decode']} to decode it"
    sheet = show(first, f"{timing} ({device}).")
    everything = [hit for batch in batches for hit in batch.right]
    best = [batch.right[batch.kept[0]] for batch in batches]
    rows = [
        ("load the models, first image", f"{loading:.1f} s"),
        ("sample in one step", f"{per['sample']} per image"),
        ("score with Latent-CLIP", f"{per['score']} per latent"),
        ("decode with the VAE", f"{per['decode']} per image"),
        (f"scores of “{first.text}”", f"{min(first.scores):.3f} to {max(first.scores):.3f}"),
        ("judged right: all images", f"{percent(everything)} of {len(everything)}"),
        (f"judged right: best pick of {BATCH}", f"{percent(best)} of {len(best)}"),
    ]
    version = server.get("/system_stats")["system"]["comfyui_version"]
    print(f"\nShapes World in ComfyUI {version}, Python {platform.python_version()}, {device}")
    for name, value in rows:
        print(f"  {name:<50} {value:>16}")
    print(f"\nLook at {sheet.relative_to(PACK_ROOT)}; the kept pictures are beside it.")


def main() -> None:
    """Read the command line, start the server, run, stop the server."""
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--gpu", action="store_true", help="leave the device to ComfyUI instead of using the CPU")
    parser.add_argument("--prompt", default=FIRST_PROMPT, help='like "a green cross above a yellow circle"')
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        caption = parse(options.prompt)
    except ValueError as error:
        sys.exit(f"--prompt: {error}")
    # A plain SIGTERM would leave the server behind; as an exception it runs the context manager's end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    arguments = ("--output-directory", str(OUTPUT), *(() if options.gpu else ("--cpu",)))
    started = time.perf_counter()
    print(f"starting ComfyUI in {options.tree} …", flush=True)
    try:
        with ComfyServer(options.tree, make_base(PACK_ROOT / ".cache" / "demo"), arguments=arguments) as server:
            print(f"  answers on {server.url} after {time.perf_counter() - started:.1f} s", flush=True)
            run_demo(server, caption, options.seed)
    except ComfyError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"Finished and stopped ComfyUI after {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
