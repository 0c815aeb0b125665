"""Cost of a listening front end for Optimize Noise: whole runs in a real server, with a listener and without, in turn.

With a listening front end come our events and thumbnails and the host's own progress messages; its part of reading them is counted too,
where it shares the cores. So this is an upper bound for what the curves cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import threading
from pathlib import Path

import aiohttp

from ..tools.comfy_server import PACK_ROOT, ComfyServer, make_base
from ..tools.ui_to_api import ui_to_api
from .timing import device_name

ITERATIONS = 50
CLIENT = "bench"


def run(rounds: int = 15) -> dict:
    """Medians of the loop's own seconds, as the trace says them."""
    workflow = json.loads((PACK_ROOT / "workflows" / "02 Optimize noise, demo.json").read_text())
    seconds: dict[str, list[float]] = {"without a page": [], "with a page": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Path(os.environ["COMFYUI_PATH"]), make_base(Path(folder))) as server,
    ):
        prompt = ui_to_api(workflow, server.object_info())
        by_type = {node["class_type"]: key for key, node in prompt.items()}
        reno, noise = by_type["LatentCLIPOptimizeNoise"], prompt[by_type["RandomNoise"]]
        prompt[reno]["inputs"]["iterations"] = ITERATIONS
        events = 0
        for turn in range(rounds + 1):
            for name, values in seconds.items():
                noise["inputs"]["noise_seed"] += 1
                with _page(server.url) if name == "with a page" else contextlib.nullcontext([]) as heard:
                    result = server.run(prompt, client_id=CLIENT)
                events = max(events, len(heard))
                if turn:
                    values.append(result.outputs[reno]["latent_clip"][0]["iterations"][-1]["seconds"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "device": device_name(),
        "what": f"Shapes World, batch 4, {ITERATIONS} iterations, median of {rounds}",
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in seconds.items()},
        "events": events,
        "with_over_without": round(medians["with a page"] / medians["without a page"], 3),
    }


@contextlib.contextmanager
def _page(url: str):
    """A websocket that reads everything, in a thread; gives the list of the curves' events."""
    heard: list[str] = []
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def listen() -> None:
        address = f"{url}/ws?clientId={CLIENT}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            ready.set()
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT and '"latent_clip.reno"' in message.data:
                    heard.append(message.data)  # noqa: PERF401 - as they come

    task = loop.create_task(listen())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        if not ready.wait(10):
            raise TimeoutError("the server's websocket did not answer within 10 s")
        yield heard
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()
