"""Thresholds of a concept set for the Safety Gate, from your own images.

    latent-clip calibrate ours.json --clip latent-clip-b-8.safetensors --concepts i2p \\
        --category violence ok/ violent/ --rate 0.01

For every category it takes two folders: images that may pass, and images that must not. They hold .latent files, as the
host's Save Latent writes them, or pictures, which --vae turns into latents. The result is a concept set with thresholds
and with what is known about them; put it into ComfyUI/models/latent_clip/concepts. A file that cannot be read is left out
and named, and the folder refused where that is more than one in twenty. A target or plot that is there already is left
as it is, unless --force is given.
"""

import argparse
import json
import math
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..methods.calibration import Calibration, CalibrationError, Share, calibrate, least_provable_rate, roc
from ..models.concepts import SHIPPED, ConceptSet, read_concepts
from ..models.files import check_new, replacing
from .comfyui import find_host

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("target", type=Path, help="the concept set to write, .json")
    parser.add_argument(
        "--category", nargs=3, action="append", required=True, metavar=("NAME", "ALLOWED", "UNWANTED"),
        help="a category of the set and its two folders; again for more categories",
    )  # fmt: skip
    parser.add_argument("--clip", required=True, help="file of a Latent-CLIP, or shapes-world")
    parser.add_argument("--concepts", default="i2p", help="a concept set, .json; default: the shipped i2p")
    parser.add_argument("--vae", help="file of a VAE, for folders of pictures, or shapes-world")
    parser.add_argument(
        "--rate", type=float, default=0.01, help="share of allowed images that may be blocked; default 0.01"
    )
    parser.add_argument(
        "--views", type=int, default=0, help="as on the Safety Gate; scores with views need thresholds of their own"
    )
    parser.add_argument("--fit", choices=("tiles", "crop", "squash"), default="tiles", help="as on the Safety Gate")
    parser.add_argument("--closer-look", action="store_true", help="as on the Safety Gate; needs thresholds of its own")
    parser.add_argument("--plot", type=Path, help="also draw the ROC curves into this PNG; needs matplotlib")
    parser.add_argument("--force", action="store_true", help="replace the target and the plot if they are there")
    parser.add_argument(
        "--comfyui", type=Path, help="folder of ComfyUI; default: the one that this pack is installed in"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(options: argparse.Namespace) -> str:
    """Calibrate and write the concept set; return the report."""
    if options.target.suffix != ".json":
        raise CalibrationError(f"{options.target.name}: the target must end in .json.")
    _check_places(options)
    if options.plot:
        _pyplot()  # before the hours of scoring, not after
    names = [name for name, _, _ in options.category]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise CalibrationError(f"The category {repeated[0]!r} is given twice. Put its images into one pair of folders.")
    source = SHIPPED / "i2p.json" if options.concepts == "i2p" else Path(options.concepts)
    concepts = read_concepts(source)
    for name in names:
        concepts.only(name)
    find_host(options.comfyui, options.cpu)
    from ..host.offline.calibrate import CalibrationScorer

    scorer, curves, found = CalibrationScorer(options.clip, options.vae, options.fit, options.views, options.closer_look), {}, {}
    with torch.no_grad():
        for name, allowed, unwanted in options.category:
            one = concepts.only(name)
            curves[name] = (scorer.column(Path(allowed), one), scorer.column(Path(unwanted), one))
            found[name] = calibrate(*curves[name], options.rate)
    about = {
        "date": datetime.now(timezone.utc).date().isoformat(), **scorer.scorer_id().as_dict(), "wanted_false_block_rate": options.rate,
        "left_out": len(set(scorer.left_out)), "intervals": "95 %, Clopper-Pearson; of the area, Newcombe",
    }  # fmt: skip
    result = calibrated(replace(concepts, name=options.target.stem), found, about)
    _write(options.target, result)
    if options.plot:
        plot(options.plot, curves, found)
    lines = [f"left out, cannot be read: {reason}" for reason in dict.fromkeys(scorer.left_out)]
    return "\n".join([*lines, *(report(name, c, options.rate) for name, c in found.items())])


def _check_places(options: argparse.Namespace) -> None:
    """Raise ValueError if a file would be overwritten or a folder is missing, before the hours of scoring."""
    for path in (options.target, options.plot):
        if path is not None:
            check_new(path, options.force)
            if not path.absolute().parent.is_dir():
                raise CalibrationError(f"{path.parent}: no such folder. Make it first.")


def _write(path: Path, concepts: ConceptSet) -> None:
    """Raise CalibrationError if the set does not read back; nothing is written then."""

    def check(part: Path) -> None:
        if read_concepts(part) != concepts:
            raise CalibrationError(f"{path} does not read back as it was written.")

    with replacing(path, check) as part:
        part.write_text(json.dumps(concepts.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def calibrated(concepts: ConceptSet, found: dict[str, Calibration], about: dict) -> ConceptSet:
    """Return the set with the new thresholds, and their calibration in its provenance."""
    categories = tuple(
        replace(category, threshold=found[category.name].threshold) if category.name in found else category
        for category in concepts.categories
    )
    rates = {
        name: {
            "false_blocks": c.false_blocks.as_dict(), "missed": c.missed.as_dict(), "auc": round(c.auc, 6),
            "auc_interval": [round(end, 6) for end in c.auc_interval], **({"doubt": c.doubt} if c.doubt else {}),
        }
        for name, c in found.items()
    }  # fmt: skip
    provenance = {**concepts.provenance, "calibration": {**about, "categories": rates}}
    return replace(concepts, categories=categories, provenance=provenance)


def report(name: str, found: Calibration, rate: float) -> str:
    """Format the report: thresholds, and error rates as far as the numbers of images support them."""
    low, high = found.auc_interval
    lines = [
        f"{name}: threshold {found.threshold:.4f}, area under the ROC curve {found.auc:.4f} (95 %: {low:.4f} to {high:.4f})",
        *([f"  DO NOT RELY ON IT: {found.doubt}."] if found.doubt else []),
        f"  allowed images blocked  {_share(found.false_blocks)}",
        f"  unwanted images missed  {_share(found.missed)}",
    ]
    least = least_provable_rate(found.false_blocks.n)
    if least > rate:
        lines.append(
            f"  {found.false_blocks.n} allowed images cannot show a rate below {100 * least:.2g} % (about 3/n); "
            f"for {100 * rate:g} % take at least {math.ceil(3 / rate) if rate else 'infinitely many'}."
        )
    least = least_provable_rate(found.missed.n)
    return "\n".join(
        [*lines, f"  {found.missed.n} unwanted images cannot show that fewer than {100 * least:.2g} % are missed."]
    )


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.hits} of {share.n}: {100 * share.value:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f})"


def plot(path: Path, curves: dict[str, tuple[list[float], list[float]]], found: dict[str, Calibration]) -> None:
    """Plot the ROC curves with the chosen points, as PNG."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(6, 5), layout="constrained")
    for name, (allowed, unwanted) in curves.items():
        points = roc(allowed, unwanted)
        (line,) = axis.plot([p[1] for p in points], [p[2] for p in points], label=f"{name}, area {found[name].auc:.3f}")
        chosen = found[name]
        axis.plot(chosen.false_blocks.value, 1 - chosen.missed.value, "o", color=line.get_color())
    axis.set(
        xlabel="share of allowed images blocked",
        ylabel="share of unwanted images blocked",
        title="Dots: the thresholds",
    )
    axis.legend(loc="lower right")
    with replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")
    pyplot.close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise CalibrationError("--plot needs matplotlib: pip install matplotlib, or leave --plot out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
