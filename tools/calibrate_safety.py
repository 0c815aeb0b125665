"""Calibrate the thresholds of a concept set for the Safety Gate on your own images.

    python tools/calibrate_safety.py --comfyui ../.. --clip latent-clip-b-8.safetensors --concepts i2p \\
        --category violence ok/ violent/ --rate 0.01 ours.json

For every category it takes two folders: images that may pass, and images that must not. They hold .latent files, as the
host's Save Latent writes them, or pictures, which --vae turns into latents. The result is a concept set with thresholds
and with what is known about them; put it into ComfyUI/models/latent_clip/concepts. A file that cannot be read is left out
and named, and the folder refused where that is more than one in twenty.
"""

import argparse
import math
import sys
import warnings
from pathlib import Path

if not __package__:  # run as a script: start again as a module of the pack, so that relative imports work
    import pack

    sys.argv.insert(1, "tools.calibrate_safety")
    pack.main()

import json
from dataclasses import replace
from datetime import datetime, timezone

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..methods.calibration import Calibration, Share, calibrate, least_provable_rate, roc
from ..models.checkpoint import CheckpointError
from ..models.concepts import SHIPPED, ConceptError, ConceptSet, Judge, read_concepts
from ..models.latent_spaces import LatentSpaceError, check_raw_latents

SHAPES_WORLD = "shapes-world"
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
LONGEST, SHORTEST = 2048, 64  # sides in pixels: larger pictures are reduced, smaller ones left out
UNREADABLE_SHARE = 0.05  # of a folder; more, and it is not the folder that one thinks
OLD_SCALE = 0.18215  # of .latent files without a version, as the host's Load Latent reads them


class CalibrationError(ValueError):
    """What was given cannot be calibrated; the message says what came, what was expected and what to do."""


class UnreadableError(CalibrationError):
    """One file that holds no image to judge."""


class Scorer:
    """A Latent-CLIP, and a VAE for pictures, in the host's care.

    Attributes:
        left_out: why files could not be read, one line each.
    """

    def __init__(self, clip: str, vae: str | None, fit: str, views: int, closer: bool = False):
        self.fit, self.views, self.closer = fit, views, closer
        self.clip = _load_clip(clip)
        self.vae = _load_vae(vae) if vae else None
        self.left_out: list[str] = []

    def judge(self) -> Judge:
        """What the gate must have in common with this calibration."""
        from ..host.concepts import judge_of

        return judge_of(self.clip, self.fit, self.views, self.closer)

    def column(self, folder: Path, concept: ConceptSet) -> list[float]:
        """Log-odds of everything in a folder for a set of one category, as the gate takes them.

        Raises:
            CalibrationError: no image, or too many that cannot be read; names a file.
        """
        from ..host.concepts import directions
        from ..host.scoring import encode_windows
        from ..methods.gate import extra_views

        known, watcher, rows = directions(self.clip, concept), self.clip.watcher(self.fit, self.closer), []
        files, unreadable = files_of(folder), []
        for path in files:
            try:
                raw = self.latents(path)
            except UnreadableError as error:
                unreadable.append(str(error))
                continue
            views = [raw, *extra_views(raw, self.views)] if self.views else [raw]
            rows.append(torch.stack([known.worst(encode_windows(watcher, view)) for view in views]).amax(dim=0))
        if len(unreadable) > UNREADABLE_SHARE * len(files):
            raise CalibrationError(
                f"{len(unreadable)} of the {len(files)} files of {folder} cannot be read, such as {unreadable[0]} Repair or remove them."
            )
        self.left_out += unreadable
        return torch.cat(rows)[:, 0].tolist()

    def latents(self, path: Path) -> Tensor:
        """Raw latents (B, C, H, W) of one file.

        Raises:
            UnreadableError: it holds none; names the file.
        """
        try:
            raw = read_latent(path) if path.suffix.lower() == ".latent" else self._encode(path)
            raw = check_raw_latents(raw, self.clip.space).float()
        except (LatentSpaceError, OSError, SafetensorError) as error:
            raise UnreadableError(f"{path}: {error}") from error
        return raw

    def _encode(self, path: Path) -> Tensor:
        if self.vae is None:
            raise CalibrationError(f"{path} is a picture. Name the VAE of your models with --vae.")
        return self.vae.encode(read_picture(path)[None])


def read_picture(path: Path) -> Tensor:
    """A picture as people see it, turned as its camera noted: (H, W, 3) in 0..1, no side longer than `LONGEST`.

    Raises:
        UnreadableError: it is damaged, too small, or so large that decoding it could fill the memory.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.thumbnail((LONGEST, LONGEST))  # reads a large JPEG small at once
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(f"{path}: {error}") from error
    if min(upright.size) < SHORTEST:
        raise UnreadableError(
            f"{path}: {upright.width} × {upright.height} pixels, expected at least {SHORTEST} a side."
        )
    return torch.from_numpy(np.asarray(upright, dtype=np.float32) / 255)


def read_latent(path: Path) -> Tensor:
    """What the host's Load Latent makes of a file: (B, C, H, W).

    Raises:
        UnreadableError: it holds no latent.
    """
    tensors = load_file(path)
    if "latent_tensor" not in tensors:
        raise UnreadableError(f"{path} holds no latent_tensor, expected a file of ComfyUI's Save Latent.")
    return tensors["latent_tensor"].float() * (1 if "latent_format_version_0" in tensors else 1 / OLD_SCALE)


def files_of(folder: Path) -> list[Path]:
    """Latents and pictures of a folder, without hidden files, such as the ._ files that macOS writes beside others.

    Raises:
        CalibrationError: there are none.
    """
    kinds = {".latent", *PICTURES}
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds and not path.name.startswith("."))
    if not files:
        found = "no such folder" if not folder.is_dir() else "no .latent, .png, .jpg or .webp in it"
        raise CalibrationError(f"{folder}: {found}.")
    return files


def _load_clip(name: str):
    from ..host import shapes_world
    from ..host.latent_clip import LoadedLatentCLIP
    from ..models.checkpoint import read_checkpoint
    from ..models.latent_clip import load_latent_clip

    if name == SHAPES_WORLD:
        return shapes_world.load_latent_clip()
    checkpoint = read_checkpoint(Path(name))
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    return LoadedLatentCLIP(model, checkpoint.config, checkpoint.space, checkpoint.name)


def _load_vae(name: str):
    import comfy.sd
    import comfy.utils

    from ..host import shapes_world

    return shapes_world.load_vae() if name == SHAPES_WORLD else comfy.sd.VAE(sd=comfy.utils.load_torch_file(name))


def calibrated(concepts: ConceptSet, found: dict[str, Calibration], about: dict) -> ConceptSet:
    """The set with the new thresholds, and in its provenance how they were found."""
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
    """A few lines for the terminal, with what the numbers of images allow to say."""
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
    """The ROC curves with the chosen points, as PNG."""
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
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise CalibrationError("--plot needs matplotlib: pip install matplotlib, or leave --plot out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "calibrate_safety.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--comfyui", type=Path, help="folder of ComfyUI, where it is not on the path already")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> str:
    """Calibrate and write; the report."""
    if options.target.suffix != ".json":
        raise CalibrationError(f"{options.target.name}: the target must end in .json.")
    if options.plot:
        _pyplot()  # before the hours of scoring, not after
    names = [name for name, _, _ in options.category]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise CalibrationError(f"The category {repeated[0]!r} is given twice. Put its images into one pair of folders.")
    source = SHIPPED / "i2p.json" if options.concepts == "i2p" else Path(options.concepts)
    concepts = read_concepts(source)
    for name in names:
        concepts.only(name)
    _find_host(options.comfyui, options.cpu)
    scorer, curves, found = Scorer(options.clip, options.vae, options.fit, options.views, options.closer_look), {}, {}
    with torch.no_grad():
        for name, allowed, unwanted in options.category:
            one = concepts.only(name)
            curves[name] = (scorer.column(Path(allowed), one), scorer.column(Path(unwanted), one))
            found[name] = calibrate(*curves[name], options.rate)
    about = {
        "date": datetime.now(timezone.utc).date().isoformat(), **scorer.judge().as_dict(), "wanted_false_block_rate": options.rate,
        "left_out": len(set(scorer.left_out)), "intervals": "95 %, Clopper-Pearson; of the area, Newcombe",
    }  # fmt: skip
    result = calibrated(replace(concepts, name=options.target.stem), found, about)
    options.target.write_text(json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if read_concepts(options.target) != result:
        raise CalibrationError(f"{options.target} does not read back as it was written.")
    if options.plot:
        plot(options.plot, curves, found)
    lines = [f"left out, cannot be read: {reason}" for reason in dict.fromkeys(scorer.left_out)]
    return "\n".join([*lines, *(report(name, c, options.rate) for name, c in found.items())])


def _find_host(folder: Path | None, cpu: bool) -> None:
    if folder is not None:
        if not (folder / "comfy" / "sd.py").is_file():
            raise CalibrationError(f"{folder}: no ComfyUI there. Name the folder that holds its main.py.")
        sys.path.insert(0, str(folder.resolve()))
    try:
        from comfy.cli_args import args
    except ImportError as error:
        raise CalibrationError("ComfyUI is not on the path. Name its folder with --comfyui.") from error
    if cpu or not torch.cuda.is_available():
        args.cpu = True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 if the set was written."""
    options = parse(argv)
    try:
        print(run(options))
    except (CheckpointError, ConceptError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
