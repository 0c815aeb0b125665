"""Benchmarks of your own workflows, in the field's own formats: generate, score, summary, compare, drift, zero-shot.

    latent-clip evaluate generate run/ --benchmark geneval --prompts evaluation_metadata.jsonl \\
        --arm plain=turbo.json --arm reno=turbo-reno.json --server 127.0.0.1:8188 --server 10.0.0.2:8188
    latent-clip evaluate score run/ --scorer official
    latent-clip evaluate summary run/

Workflows are exported with Workflow → Export (API); the nodes that hold prompt, seed and batch size are titled prompt, seed, batch.
Every step goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation import EvaluationError
from ..evaluation.generate import generate, model_hashes
from ..evaluation.plan import Arm, Plan
from ..evaluation.run_folder import prompts_of, read_run
from ..evaluation.servers import Server
from ..evaluation.workflow import read_workflow

if TYPE_CHECKING:
    from ..evaluation.zero_shot import Metrics
    from ..host.offline.zero_shot import ZeroShotModel

ERRORS = (ValueError, OSError)
EXTRA = ("scipy", "matplotlib", "PIL")  # what the extra [evaluate] installs, by its modules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, add, about in (
        ("generate", _generate_arguments, "make the pictures"),
        ("score", _score_arguments, "score them"),
        ("summary", _summary_arguments, "tables and controls"),
        ("compare", _compare_arguments, "two arms, of one run or of two, paired by prompt"),
        ("drift", _drift_arguments, "what changed between two arms that nobody asked for"),
        ("zero-shot", _zero_shot_arguments, "how well a Latent-CLIP names pictures"),
    ):
        add(steps.add_parser(name, help=about, description=about))


def run(options: argparse.Namespace) -> str:
    """Do one step; the report."""
    steps = {
        "generate": _generate, "score": _score, "summary": _summary, "compare": _compare, "drift": _drift, "zero-shot": _zero_shot,
    }  # fmt: skip
    try:
        return steps[options.step](options)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRA:
            raise
        raise EvaluationError(f"{name} is missing. Install the extra [evaluate] of latent-clip, or {name} alone.") from error


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="where the run lies; the same folder again goes on")
    add("--benchmark", required=True, help="geneval, t2i-compbench, i2p, bias, prompts or generated")
    add("--prompts", type=Path, required=True, help="the benchmark's list, as its authors publish it; generated: a folder of class folders; prompts: neutral for ours, for drift")
    add("--arm", action="append", required=True, metavar="NAME=WORKFLOW.json", help="a workflow in API form; again for more")
    add("--slot", action="append", default=[], metavar="[ARM:]NAME=NODE.INPUT", help="where a slot is, if no title says so")
    add("--sweep", metavar="SLOT=V,V,V", help="more arms: the first arm with other values in a slot, such as cfg=1,2,4,8")
    add("--server", action="append", default=[], metavar="ADDRESS", help="a running ComfyUI; again for more; default 127.0.0.1:8188")
    add(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="ask the servers from the machines of this Ray cluster, such as HEAD:6379; a --server of 127.0.0.1 is then one on each machine",
    )  # fmt: skip
    add("--images", type=int, help="pictures per prompt; default: as many as the benchmark asks for")
    add("--batch", type=int, default=1, help="pictures from one seed; needs a slot batch; default 1")
    add("--seed", type=int, default=0, help="of the first picture; default 0, or the benchmark's own seeds")
    add("--limit", type=int, help="only the first prompts, for a quick look")
    add("--models", type=Path, help="ComfyUI's models folder, to note the hashes of the files that the workflows name")


def _generate(options: argparse.Namespace) -> str:
    from ..evaluation.benchmarks.prompts import NEUTRAL
    from ..evaluation.summary import benchmark_of

    benchmark = benchmark_of(options.benchmark)
    listed = NEUTRAL if benchmark.name == "prompts" and str(options.prompts) == "neutral" else options.prompts
    prompts = benchmark.read(listed)[: options.limit]
    arms = [_arm(words, options.slot, options.batch) for words in options.arm]
    arms += _swept(arms[0], options.sweep) if options.sweep else []
    hashes = model_hashes([arm.workflow for arm in arms], options.models)
    images = benchmark.images if options.images is None else options.images
    plan = Plan(benchmark, prompts, arms, images, options.seed, options.batch, listed.name, hashes)
    try:
        with _servers(options.server or ["127.0.0.1:8188"], options.ray) as servers:
            report = generate(plan, options.folder, servers, _say)
    except KeyboardInterrupt:
        raise EvaluationError("Stopped. The same command goes on from here.") from None
    if report.failed:
        raise EvaluationError(str(report))
    return str(report)


def _servers(addresses: list[str], cluster: str | None) -> AbstractContextManager[Sequence[Server]]:
    if cluster is None:
        return nullcontext([Server(address) for address in addresses])
    from ..evaluation.fleet import fleet

    return fleet(addresses, cluster, _say)


def _say(line: str) -> None:
    print(line, flush=True)


def _arm(words: str, slots: list[str], batch: int) -> Arm:
    name, found, path = words.partition("=")
    if not found:
        raise EvaluationError(f"Got --arm {words}, expected NAME=WORKFLOW.json.")
    mine = [s.partition(":")[2] if s.startswith(f"{name}:") else s for s in slots if s.startswith(f"{name}:") or ":" not in s]
    return Arm(name, read_workflow(Path(path), mine, ["batch"] if batch > 1 else []))


def _swept(arm: Arm, words: str) -> list[Arm]:
    slot, found, values = words.partition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        found = ""
    if not found:
        raise EvaluationError(f"Got --sweep {words}, expected SLOT=NUMBER,NUMBER, such as cfg=1,2,4,8.")
    return [Arm(f"{arm.name}_{slot}={value:g}", arm.workflow.with_values({slot: value}), ((slot, value),)) for value in numbers]


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="of a run")
    add(
        "--scorer", required=True,
        help="official: the benchmark's own, whose results are read; clip:FILE, clip:ARCHITECTURE:FILE or clip:shapes-world; nudenet; contrast; "
        "reward: what nodes of this pack in the workflow reported",
    )  # fmt: skip
    add("--arm", action="append", default=[], help="only this arm; again for more")
    add("--command", dest="program", help="official: the scorer's command line with {folder}, to be run first; default: it was run by hand")
    add("--directory", type=Path, help="official: where to run it, the scorer's repository")
    add("--results", help="official: its results file or folder, with {arm}; default: the arm's folder")
    add("--three-in-one", type=Path, metavar="LISTS", help="T2I-CompBench's complex prompts: make annotation_3_in_1 of the three scorers' results")


def _score(options: argparse.Namespace) -> str:
    from ..evaluation.scorers import CONTRAST, clip, nudenet
    from ..evaluation.scoring import REWARD, keep_rewards, score_run

    kind, _, words = options.scorer.partition(":")
    if kind == "reward":
        return f"{REWARD}: {keep_rewards(options.folder, print)} pictures."
    if kind == "official":
        return _official(options)
    loaders = {"clip": lambda: clip.load(words), "nudenet": lambda: nudenet.load(), "contrast": lambda: CONTRAST}
    if kind not in loaders:
        raise EvaluationError(f"Got --scorer {options.scorer}, expected official, reward, {', '.join(loaders)}.")
    scorer = loaders[kind]()
    count = score_run(options.folder, scorer, options.arm, _say)
    return f"{scorer.name}: {count} pictures scored now. It is {scorer.note}."


def _official(options: argparse.Namespace) -> str:
    from ..evaluation.benchmarks import t2i_compbench
    from ..evaluation.scorers.adapter import command_for, run_scorer
    from ..evaluation.scoring import keep_results, official_scorer
    from ..evaluation.summary import benchmark_of

    described = read_run(options.folder)
    benchmark, prompts, images = benchmark_of(described["benchmark"]), prompts_of(described), described["images"]
    lines = []
    for arm in options.arm or described["arms"]:
        folder = options.folder / arm
        if options.program:
            run_scorer(options.program, folder, options.directory, _say)
        source = Path(options.results.replace("{arm}", arm)) if options.results else folder
        try:
            if options.three_in_one:
                scores = t2i_compbench.three_in_one(source, options.three_in_one, prompts, images)
            else:
                scores = benchmark.results(source, prompts, images)
        except EvaluationError as error:
            known = "".join(f"\n  {command_for(command, folder)}" for command in benchmark.scorers)
            raise EvaluationError(f"{error}" + (f"\nIn the scorer's repository and environment, one of:{known}" if known else "")) from error
        keep_results(options.folder, arm, scores, official_scorer(benchmark, source.name))
        lines.append(f"{arm}: {len(scores)} results of {benchmark.name}'s own scorer read")
    return "\n".join(lines)


def _summary_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="of a run")
    add("--plain", default="", help="the arm that others are compared with; default: the first")
    add("--reward", default="", help="scorer that the arms chose by or climbed")
    add("--judge", default="", help="scorer that nothing optimised")
    add("--drift", action="store_true", help="also what each arm changed in the plain arm's pictures; reads all of them")
    add("--plot", type=Path, help="also draw the judge's figures against cost into this PNG; needs matplotlib")


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

    lines = []
    first, second = options.first, options.second
    for found in compare_runs(first.parent, second.parent, first.name, second.name):
        exact = "" if found.mcnemar is None else f", exact McNemar p = {found.mcnemar:.2g}"
        lines.append(
            f"{found.scorer}: {found.second} − {found.first} = {found.difference}, p = {found.difference.p:.2g}{exact}, "
            f"{found.difference.prompts} prompts"
        )
        lines += [f"  {task}: {estimate}, p = {estimate.p:.2g}, {estimate.prompts} prompts" for task, estimate in found.tasks.items()]
    return "\n".join(lines)


def _drift_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of a run on neutral prompts")
    parser.add_argument("first", help="arm before")
    parser.add_argument("second", help="arm after")
    parser.add_argument("--labels", help="words with commas, such as 'a man, a woman': which of them pictures show more often")
    parser.add_argument("--clip", default="", help="for --labels: FILE, ARCHITECTURE:FILE or shapes-world")


def _drift(options: argparse.Namespace) -> str:
    from ..evaluation.benchmarks import Prompt
    from ..evaluation.drift import drift
    from ..evaluation.scorers import clip

    label = None
    if options.labels:
        words = [Prompt(0, word.strip()) for word in options.labels.split(",") if word.strip()]
        scorer = clip.load(options.clip)
        label = lambda picture: max(words, key=lambda word: scorer.score(picture, word)).text  # noqa: E731
    found = drift(options.folder, options.first, options.second, label)
    red, green, blue = found.shift
    return "\n".join(
        [
            f"{options.second} against {options.first}, same prompts and seeds, 95 % over {found.colour.prompts} prompts",
            f"  identical pictures    {100 * found.identical:.1f} %",
            f"  mean colour, distance {found.colour}, on average by red {red:+.4f}, green {green:+.4f}, blue {blue:+.4f}",
            f"  layout, unlikeness    {found.layout}",
            f"  contrast, change      {found.contrast}",
            *(f"  share of {name!r}, change {estimate}, p = {estimate.p:.2g}" for name, estimate in found.labels.items()),
        ]
    )


def _zero_shot_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", help="a folder of class folders, a data set in CLIP_benchmark's WebDataset layout, or shards that embed made of class folders")
    add("target", type=Path, help="the result, .json in CLIP_benchmark's form")
    add("--clip", required=True, help="file of a Latent-CLIP, or shapes-world")
    add("--vae", help="file of the VAE whose latents it reads, or shapes-world; not for shards")
    add("--split", default="test", help="of a WebDataset; default test")
    add("--batch", type=int, default=16, help="pictures at once; default 16")
    add("--imagenet", action="store_true", help="the 1,000 names and 80 templates of ImageNet, for folders in the order of its classes")
    add(
        "--clip-benchmark", action="store_true",
        help="have CLIP_benchmark's own command do it, with this Latent-CLIP as its model; needs its package",
    )  # fmt: skip
    add("--comfyui", type=Path, help="folder of ComfyUI, for the VAE; default: the one that this pack is installed in")
    add("--cpu", action="store_true", help="do not use a GPU")


def _zero_shot(options: argparse.Namespace) -> str:
    from dataclasses import replace

    from ..evaluation.pictures import imagenet, read_pictures
    from ..evaluation.zero_shot import check_target, classify, run_clip_benchmark, write_result
    from .comfyui import find_host

    if options.target.suffix != ".json":
        raise EvaluationError(f"{options.target.name}: the result must end in .json.")
    find_host(options.comfyui, options.cpu)
    from ..host.offline.zero_shot import load_judge

    shards = (Path(options.data) / "dataset.json").is_file()
    if not options.vae and not shards:
        raise EvaluationError("Pictures need the VAE whose latents the Latent-CLIP reads: name it with --vae.")
    judge = load_judge(options.clip, options.vae)
    check_target(options.target, judge.name)
    if shards:
        return _zero_shot_of_shards(options, judge)
    if options.clip_benchmark:
        run_clip_benchmark(judge, options.data, options.split, options.batch, options.target)
        return f"{options.target}: as CLIP_benchmark wrote it."
    pictures = read_pictures(Path(options.data), options.split)
    if options.imagenet:
        names, templates = imagenet()
        if len(names) != len(pictures.classes):
            raise EvaluationError(f"{options.data}: {len(pictures.classes)} classes, expected ImageNet's {len(names)}.")
        pictures = replace(pictures, classes=names, templates=templates)
    found = classify(judge, pictures, options.batch, _say)
    write_result(options.target, found, pictures.name, judge.name, Path(options.clip).stem, pictures.left_out)
    left_out = [f"  left out, {reason}: {number}" for reason, number in sorted(pictures.left_out.items())]
    return "\n".join([_figures(pictures.name, found, pictures.classes, pictures.templates), *left_out])


def _zero_shot_of_shards(options: argparse.Namespace, judge: "ZeroShotModel") -> str:
    """Of latents that were embedded before: the folder in a sample's id is its class."""
    from ..evaluation.pictures import texts_of
    from ..evaluation.zero_shot import classify_rows, write_result
    from ..models.vae_signature import difference, is_another
    from ..training.shards import read_dataset, read_samples

    folder = Path(options.data)
    dataset = read_dataset(folder)
    space = dataset.space["name"]
    if space != judge.space:
        raise EvaluationError(f"{folder}: latents of the {space} space, and {judge.name} reads {judge.space}. Embed with the VAE that it reads.")
    if is_another(difference(judge.vae, dataset.vae)):
        raise EvaluationError(
            f"{folder}: latents of the VAE {dataset.vae.get('name')}, and {judge.name} reads those of {judge.vae.get('name')}, another of the same "
            "shape. Embed with the VAE that it reads."
        )
    names = sorted({Path(sample.id).parent.name for sample in read_samples(folder)})
    if names == [""]:
        raise EvaluationError(f"{folder}: its pictures lay in no class folders, so that nobody knows their classes.")
    texts = texts_of(folder, names)
    label_of = {name: label for label, name in enumerate(names)}
    rows = (
        (sample.latent["mean" if "mean" in sample.latent else "latent"][0].float(), label_of[Path(sample.id).parent.name])
        for sample in read_samples(folder)
    )
    found = classify_rows(judge.encode_latents, judge.encode_text, rows, texts, options.batch, _say)
    write_result(options.target, found, folder.name, judge.name, Path(options.clip).stem)
    return _figures(folder.name, found, *texts)


def _figures(name: str, found: "Metrics", classes: list[str], templates: list[str]) -> str:
    return (
        f"{name}, {len(classes)} classes, {len(templates)} templates: top-1 {100 * found.acc1:.2f} %, "
        f"top-5 {100 * found.acc5:.2f} %, mean of classes {100 * found.mean_per_class_recall:.2f} %"
    )
