"""Cost of the evaluation harness: beside the generation of a picture, and for ten thousand results."""

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

from ..demo.geneval import metadata
from ..evaluation.benchmarks import Prompt, geneval
from ..evaluation.generate import generate
from ..evaluation.plan import Arm, RunPlan
from ..evaluation.records import append_records, write_file
from ..evaluation.servers import Server
from ..evaluation.summary import summarise_run
from ..evaluation.workflow import workflow_of
from ..tools.comfy_server import ComfyServer, make_base
from ..tools.shapes_arms import plain
from .timing import device_name

STEPS, PROMPTS, IMAGES = 50, 1, 2  # a picture of a second or two, which is as short as real ones get
ROUNDS = 4


def run() -> dict:
    """The same pictures through the harness and queued by hand all at once, in turn; and seconds of a summary."""
    with tempfile.TemporaryDirectory() as name:
        return {"device": device_name(), **_overhead(Path(name)), **_summary(Path(name) / "many")}


def _overhead(folder: Path) -> dict:
    listed = folder / "list.jsonl"
    listed.write_text("".join(json.dumps(line) + "\n" for line in metadata(PROMPTS)))
    arm, prompts = Arm("plain", workflow_of(plain(STEPS, 3.0))), geneval.read(listed)
    clock: dict[str, list[float]] = {"harness": [], "by hand": []}
    used: dict[str, list[float]] = {"harness": [], "by hand": []}
    alone: list[float] = []
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), make_base(folder / "base")) as server:
        assert server.process is not None
        for turn in range(ROUNDS + 1):
            for way in clock:
                plan = RunPlan(geneval.BENCHMARK, prompts, [arm], IMAGES, seed=10**6 * (2 * turn + (way == "harness")))
                wall, own, its = time.perf_counter(), time.process_time(), _cpu_seconds(server.process.pid)
                if way == "harness":
                    generate(plan, folder / f"run-{turn}", [Server(server.url)])
                else:
                    _queue_by_hand(server, plan, arm)
                if turn:  # the first loads the models
                    clock[way].append(time.perf_counter() - wall)
                    used[way].append(time.process_time() - own + _cpu_seconds(server.process.pid) - its)
                    if way == "harness":
                        alone.append(time.process_time() - own)
    count = len(prompts) * IMAGES
    return {
        "pictures": count,
        "seconds per picture": {way: round(median(values) / count, 4) for way, values in clock.items()},
        "CPU seconds per picture, server and harness": {way: round(median(values) / count, 4) for way, values in used.items()},
        "of it the harness": round(median(alone) / count, 4),
        "more CPU than by hand": round(median(used["harness"]) / median(used["by hand"]) - 1, 4),
        "more time than by hand": round(median(clock["harness"]) / median(clock["by hand"]) - 1, 4),
    }


def _queue_by_hand(server: ComfyServer, plan: RunPlan, arm: Arm) -> None:
    """POST every prompt, then wait: the least that these pictures can cost."""
    texts = {prompt.index: prompt.text for prompt in plan.prompts}
    for task in plan.tasks():
        graph = arm.workflow.filled({"prompt": texts[task.prompt], "seed": task.seed, "batch": 1})
        status, answer = server.post("/prompt", {"prompt": graph})
        assert status == 200, answer
    server.wait(answer["prompt_id"], poll=lambda: time.sleep(1))


def _cpu_seconds(pid: int) -> float:
    """Processor seconds that a process has used so far; Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
