"""What the evaluation harness costs: beside the generation of a picture, and for summing up ten thousand results."""

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from ..demo.geneval import metadata
from ..evaluation.benchmarks import Prompt, geneval
from ..evaluation.generate import Arm, Plan, generate, pictures_of
from ..evaluation.records import append_records, write_file
from ..evaluation.servers import Server
from ..evaluation.summary import summarise_run
from ..evaluation.workflow import workflow_of
from ..tools.comfy_server import ComfyServer, make_base
from ..tools.shapes_arms import plain
from .timing import device_name

STEPS, PROMPTS, IMAGES = 50, 2, 4  # a picture of about a second, which is as short as real ones get


def run() -> dict:
    """Seconds per picture as the server counts them, and by the clock on the wall; and of a summary."""
    with tempfile.TemporaryDirectory() as name:
        return {"device": device_name(), **_overhead(Path(name)), **_summary(Path(name) / "many")}


def _overhead(folder: Path) -> dict:
    listed = folder / "list.jsonl"
    listed.write_text("".join(json.dumps(line) + "\n" for line in metadata(PROMPTS)))
    arm = Arm("plain", workflow_of(plain(STEPS, 3.0)))
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), make_base(folder / "base")) as server:
        plan = Plan(geneval.BENCHMARK, geneval.read(listed), [arm], IMAGES)
        generate(Plan(geneval.BENCHMARK, plan.prompts[:1], [arm], 1), folder / "warm", [Server(server.url)])
        wall, own = time.perf_counter(), time.process_time()
        generate(plan, folder / "run", [Server(server.url)])
        wall, own = time.perf_counter() - wall, time.process_time() - own
    seconds = [record["seconds"] for record in pictures_of(folder / "run")]
    return {
        "pictures": len(seconds),
        "server's seconds per picture": round(sum(seconds) / len(seconds), 4),
        "seconds of the clock per picture": round(wall / len(seconds), 4),
        "share of the clock beside generation": round(1 - sum(seconds) / wall, 4),
        "harness's own CPU seconds per picture": round(own / len(seconds), 4),
    }


def _summary(folder: Path) -> dict:
    prompts = [Prompt(i, f"prompt {i}", f"task {i % 6}") for i in range(2500)]
    arm = {"workflow_hash": "", "settings": {}, "slots": {}, "workflow": {}}
    described = {"benchmark": "geneval", "source": "bench", "images": 4, "seed": 0, "batch": 1, "arms": {"plain": arm}, "models": {}}
    write_file(folder / "run.json", json.dumps({**described, "prompts": [asdict(prompt) for prompt in prompts]}))
    places = [{"arm": "plain", "prompt": i, "number": k, "sha256": f"{i}-{k}"} for i in range(2500) for k in range(4)]
    append_records(folder / "pictures.jsonl", [{**place, "seed": 0, "file": "x.png", "seconds": 1.0} for place in places])
    scorer = {"scorer": "judge", "verdicts": True, "lower_is_better": False, "note": ""}
    append_records(folder / "scores.jsonl", [{**place, **scorer, "value": float(i % 3 == 0)} for i, place in enumerate(places)])
    began = time.process_time()
    summarise_run(folder)
    return {"records": len(places), "CPU seconds to sum them up": round(time.process_time() - began, 3)}
