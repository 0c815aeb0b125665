"""`latent-clip evaluate` end to end on Shapes World: GenEval-style prompts, several arms, the analytic judge, and the controls.

    ./dev evaluate [--prompts 4] [--images 6] [--pictures 4] [--server ADDRESS]

It writes a run into output/evaluate, as one would with a real model, and prints its tables. Figures of Shapes World show that the
machinery works, not how good a real model will look.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from ..commands import main as latent_clip
from ..demo.captions import THINGS
from ..demo.geneval import metadata, results
from ..demo.scenes import render, sample_scene
from ..evaluation import EvaluationError
from ..evaluation.benchmarks import generated, geneval
from ..evaluation.generate import generate
from ..evaluation.plan import Arm, RunPlan
from ..evaluation.records import append_records
from ..evaluation.scorers import CONTRAST, ScorerInfo, clip, read_picture
from ..evaluation.scoring import REWARD, keep_results, keep_rewards, score_run
from ..evaluation.servers import Server
from ..evaluation.summary import drift_table, summarise_run
from ..evaluation.workflow import workflow_of
from .comfy_server import PACK_ROOT, ComfyError, ComfyServer, make_base
from .shapes_arms import ARMS, noised, plain

OUTPUT = PACK_ROOT / "output" / "evaluate"
SWEEP = (1.0, 1.5, 2.0, 3.0)
JUDGE = "shapes-world judge"
JUDGED = ScorerInfo(JUDGE, "the analytic judge of Shapes World by GenEval's rule, which nothing optimises", verdicts=True)


def make_plan(prompts: int, images: int, folder: Path, scales: tuple[float, ...] = SWEEP) -> RunPlan:
    """Write the list, read it as GenEval's, and put the arms and a sweep of guidance beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"shapes-world-{prompts}.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in metadata(prompts)), encoding="utf-8")
    arms = [Arm(name, workflow_of(make())) for name, make in ARMS.items()]
    slots = ["cfg=sample.cfg"]
    sweep = [Arm(f"plain_cfg={v:g}", workflow_of(plain(cfg=v), slots), (("cfg", v),)) for v in scales]
    return RunPlan(geneval.BENCHMARK, geneval.read(source), [*arms, *sweep], images, source=source.name)


def judge_run(folder: Path, plan: RunPlan) -> None:
    """Have the analytic judge write results.jsonl for every arm, in GenEval's form, and read them back."""
    for arm in plan.arms:
        places = [(prompt, geneval.picture(prompt, k, plan.images)) for prompt in plan.prompts for k in range(plan.images)]
        pictures = torch.stack([read_picture(folder / arm.name / place) for _, place in places])
        file = folder / arm.name / "results.jsonl"
        file.unlink(missing_ok=True)
        append_records(file, results(pictures, [str(place) for _, place in places], [prompt.about for prompt, _ in places]))
        keep_results(folder, arm.name, geneval.results(file, plan.prompts, plan.images), JUDGED)


def evaluate(plan: RunPlan, folder: Path, servers: list[Server]) -> str:
    """Generate, score and sum up."""
    print(generate(plan, folder, servers, lambda line: print(f"  {line}", flush=True) if line.split()[0].endswith("0") else None))
    score_run(folder, CONTRAST)
    score_run(folder, clip.load("shapes-world"))
    keep_rewards(folder)
    judge_run(folder, plan)
    return summarise_run(folder, "plain", REWARD, JUDGE) + "\n\n" + drift_table(folder, "plain")


def name_pictures(folder: Path, servers: list[Server], tree: Path, count: int) -> str:
    """Zero-shot on `count` pictures of each single shape, and on what the generator makes of them, as the paper does with ImageNet."""
    real = folder / "shapes"
    chance = random.Random("zero-shot")
    for thing in THINGS:
        place = real / f"{thing.colour}_{thing.kind}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            to_pil_image(render([sample_scene(chance, (thing,))])[0]).save(place / f"{number:03d}.png")
    (real / "zeroshot_classification_templates.txt").write_text("a {c}\nan {c}\n", encoding="utf-8")
    plan = RunPlan(generated.BENCHMARK, generated.read(real), [Arm("noised", workflow_of(noised()))], 1, source=real.name)
    print(generate(plan, folder / "generated", servers))
    lines = []
    for name, data in (("pictures", real), ("generated", folder / "generated" / "noised")):
        options = ["--clip", "shapes-world", "--vae", "shapes-world", "--comfyui", str(tree), "--cpu"]
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            latent_clip(["evaluate", "zero-shot", str(data), str(folder / f"{name}.json"), *options])
        lines.append(f"{name}: {text.getvalue().splitlines()[-1]}")
    return "## Zero-shot with the demo's Latent-CLIP\n\n" + "\n".join(lines)


def main() -> None:
    """Read the command line, start the server, run, stop the server."""
    parser = argparse.ArgumentParser(prog="./dev evaluate", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--tree", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, default=4, help="for each of the five tasks; default 4")
    parser.add_argument("--images", type=int, default=6, help="pictures per prompt and arm; default 6")
    parser.add_argument("--pictures", type=int, default=4, help="for zero-shot, of each of the 30 shapes; default 4")
    parser.add_argument("--server", action="append", help="ComfyUIs that run the pack; default: one is started")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    began, folder = time.perf_counter(), OUTPUT / f"geneval-{options.prompts}x{options.images}"

    def both(servers: list[Server]) -> str:
        naming = folder.with_name(f"zero-shot-{options.pictures}")
        return "\n\n".join([evaluate(plan, folder, servers), name_pictures(naming, servers, options.tree, options.pictures)])

    try:
        plan = make_plan(options.prompts, options.images, OUTPUT)
        if options.server:
            text = both([Server(address) for address in options.server])
        else:
            with ComfyServer(options.tree, make_base(PACK_ROOT / ".cache" / "evaluate")) as server:
                text = both([Server(server.url)])
    except (EvaluationError, ComfyError) as error:
        sys.exit(f"evaluate: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{folder.relative_to(PACK_ROOT)}/summary.md, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
