"""Benchmarks of your own workflows, in the field's own formats: generate, score, summary, compare, drift, zero-shot.

    latent-clip evaluate generate run/ --benchmark geneval --prompts evaluation_metadata.jsonl \\
        --arm plain=turbo.json --arm reno=turbo-reno.json --server 127.0.0.1:8188 --server 10.0.0.2:8188
    latent-clip evaluate score run/ --scorer official
    latent-clip evaluate summary run/

Workflows are exported with Workflow → Export (API); the nodes that hold prompt, seed and batch size are titled prompt, seed, batch.
Every step continues where it was stopped.
"""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..evaluation import EvaluationError
from ..evaluation.generate import generate, model_hashes
from ..evaluation.plan import RunPlan, read_arm, sweep
from ..evaluation.servers import Server
from . import evaluate_zero_shot as zero_shot

ERRORS = (ValueError, OSError)
EXTRA = ("scipy", "matplotlib", "PIL")  # modules that the extra [evaluate] installs


RAY = "ask the servers from the machines of this Ray cluster, such as HEAD:6379; a --server of 127.0.0.1 is then one on each machine"
SCORERS = (
    "official: results of the benchmark's own scorer; clip:FILE, clip:ARCHITECTURE:FILE or clip:shapes-world; nudenet; contrast; "
    "reward: rewards reported by nodes of this pack in the workflow"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, (add, run_step, about) in {
        "generate": (_generate_arguments, _generate, "make the pictures"),
        "score": (_score_arguments, _score, "score them"),
        "summary": (_summary_arguments, _summary, "tables and controls"),
        "compare": (_compare_arguments, _compare, "compare two arms of one or two runs, paired by prompt"),
        "drift": (_drift_arguments, _drift, "side effects: differences between two arms on neutral prompts"),
        "zero-shot": (zero_shot.add_arguments, zero_shot.run, "zero-shot accuracy of a Latent-CLIP"),
    }.items():
        step = steps.add_parser(name, help=about, description=about)
        add(step)
        step.set_defaults(run_step=run_step)


def run(options: argparse.Namespace) -> str:
    """Run one step; return its report."""
    try:
        return options.run_step(options)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRA:
            raise
        raise EvaluationError(f"{name} is missing. Install the extra [evaluate] of latent-clip, or {name} alone.") from error


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="folder of the run; the same folder again continues it")
    add("--benchmark", required=True, help="geneval, t2i-compbench, i2p, bias, prompts or generated")
    add("--prompts", type=Path, required=True, help="the benchmark's list as published; generated: a folder of class folders; prompts: `neutral` is our list for drift")
    add("--arm", action="append", required=True, metavar="NAME=WORKFLOW.json", help="a workflow in API form; repeat for more")
    add("--slot", action="append", default=[], metavar="[ARM:]NAME=NODE.INPUT", help="input of a slot, if no node has its title")
    add("--sweep", metavar="SLOT=V,V,V", help="more arms: the first arm with other values in a slot, such as cfg=1,2,4,8")
    add("--server", action="append", default=[], metavar="ADDRESS", help="a running ComfyUI; repeat for more; default 127.0.0.1:8188")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=RAY)
    add("--images", type=int, help="pictures per prompt; default: the benchmark's number")
    add("--batch", type=int, default=1, help="pictures from one seed; needs a slot batch; default 1")
    add("--seed", type=int, default=0, help="seed of the first picture; default 0, or the benchmark's own seeds")
    add("--limit", type=int, help="only the first prompts, for a quick test")
    add("--models", type=Path, help="ComfyUI's models folder, to record the hashes of the files that the workflows name")


def _generate(options: argparse.Namespace) -> str:
    from ..evaluation.benchmarks import benchmark_of

    benchmark = benchmark_of(options.benchmark)
    source = benchmark.lists.get(str(options.prompts), options.prompts)
    prompts = benchmark.read(source)[: options.limit]
    arms = [read_arm(words, options.slot, options.batch) for words in options.arm]
    arms += sweep(arms[0], options.sweep) if options.sweep else []
    hashes = model_hashes([arm.workflow for arm in arms], options.models)
    images = benchmark.images if options.images is None else options.images
    plan = RunPlan(benchmark, prompts, arms, images, options.seed, options.batch, source.name, hashes)
    try:
        with _servers(options.server or ["127.0.0.1:8188"], options.ray) as servers:
            report = generate(plan, options.folder, servers, _log)
    except KeyboardInterrupt:
        raise EvaluationError("Stopped. The same command continues from here.") from None
    if report.failed:
        raise EvaluationError(str(report))
    return str(report)


def _servers(addresses: list[str], cluster: str | None) -> AbstractContextManager[Sequence[Server]]:
    if cluster is None:
        return nullcontext([Server(address) for address in addresses])
    from ..evaluation.ray_servers import ray_servers

    return ray_servers(addresses, cluster, _log)


def _log(line: str) -> None:
    print(line, flush=True)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run")
    add("--scorer", required=True, help=SCORERS)
    add("--arm", action="append", default=[], help="only this arm; repeat for more")
    add("--command", dest="program", help="official: command line of the scorer with {folder}, to run first; default: it was run by hand")
    add("--directory", type=Path, help="official: working directory of the command, the scorer's repository")
    add("--results", help="official: results file or folder, with {arm}; default: the arm's folder")
    add("--three-in-one", type=Path, metavar="LISTS", help="official: for T2I-CompBench's complex prompts, combine its three scorers' results; LISTS: folder of its two lists")


def _score(options: argparse.Namespace) -> str:
    from ..evaluation.official import read_official
    from ..evaluation.scorers import CONTRAST, clip, nudenet
    from ..evaluation.scoring import REWARD, keep_rewards, score_run

    kind, _, words = options.scorer.partition(":")
    if kind == "reward":
        return f"{REWARD}: {keep_rewards(options.folder, _log)} pictures."
    if kind == "official":
        return read_official(
            options.folder, options.arm, options.program or "", options.directory, options.results or "", options.three_in_one, _log
        )
    loaders = {"clip": lambda: clip.load(words), "nudenet": nudenet.load, "contrast": lambda: CONTRAST}
    if kind not in loaders:
        raise EvaluationError(f"Got --scorer {options.scorer}, expected official, reward, {', '.join(loaders)}.")
    scorer = loaders[kind]()
    count = score_run(options.folder, scorer, options.arm, _log)
    return f"{scorer.info.name}: {count} pictures scored now ({scorer.info.note})."


def _summary_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run")
    add("--plain", default="", help="baseline arm; default: the first")
    add("--reward", default="", help="scorer that the arms optimised or chose by")
    add("--judge", default="", help="scorer that no arm optimised")
    add("--drift", action="store_true", help="also the drift of each arm from the plain arm; reads all pictures")
    add("--plot", type=Path, help="also plot the judge's figures against cost into this PNG; needs matplotlib")


def _summary(options: argparse.Namespace) -> str:
    from ..evaluation.summary import drift_table, plot, summarise_run

    text = summarise_run(options.folder, options.plain, options.reward, options.judge)
    if options.drift:
        text += "\n\n" + drift_table(options.folder, options.plain)
    if options.plot:
        if not options.judge:
            raise EvaluationError("--plot draws the judge's figures: name it with --judge.")
        plot(options.folder, options.plot, options.judge)
    return text


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="FOLDER/ARM")
    parser.add_argument("second", type=Path, help="FOLDER/ARM")


def _compare(options: argparse.Namespace) -> str:
    from ..evaluation.compare import compare_runs

    first, second = options.first, options.second
    return "\n".join(map(str, compare_runs(first.parent, second.parent, first.name, second.name)))


def _drift_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run on neutral prompts")
    parser.add_argument("first", help="arm before")
    parser.add_argument("second", help="arm after")
    parser.add_argument("--labels", help="labels with commas, such as 'a man, a woman', whose shares are compared")
    parser.add_argument("--clip", default="", help="for --labels: FILE, ARCHITECTURE:FILE or shapes-world")


def _drift(options: argparse.Namespace) -> str:
    from ..evaluation.drift import drift, drift_text
    from ..evaluation.scorers import clip

    labels = [label.strip() for label in (options.labels or "").split(",") if label.strip()]
    label = clip.labeller(labels, options.clip) if options.labels else None
    return drift_text(drift(options.folder, options.first, options.second, label), options.first, options.second)
