"""Generated ImageNet, as in the Latent-CLIP paper: labelled pictures, noised and denoised with their class as prompt, then classified.

List: a folder of class folders, as `latent-clip evaluate zero-shot` reads it. Workflow: Load Image (titled picture) → VAE Encode →
a few-step sampler with denoise 0.66 → Save Image. Folder: class folders with the same names, so that zero-shot reads it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import EvaluationError
from ..pictures import labelled_files, read_pictures
from ..records import write_once
from .base import Benchmark, Prompt, Score, Summary, means_by_task


def read(path: Path) -> list[Prompt]:
    """Make one prompt per picture: the first template with its class name."""
    data = read_pictures(path)
    if data.shards:
        raise EvaluationError(f"{path}: a WebDataset, expected class folders: every picture is uploaded as a file. Unpack its tars by class.")
    about = {"classes": data.classes, "templates": data.templates}
    return [
        Prompt(index, data.templates[0].replace("{c}", data.classes[label]), data.classes[label],
               about={"picture": str(file.resolve()), "place": f"{file.parent.name}/{file.stem}", **(about if index == 0 else {})})
        for index, (file, label) in enumerate(labelled_files(path))
    ]  # fmt: skip


def picture(prompt: Prompt, number: int, images: int) -> Path:
    """Path of a picture: in the folder of its class."""
    return Path(f"{prompt.about['place']}_{number:02d}.png")


def prepare(folder: Path, prompts: Sequence[Prompt], images: int) -> None:
    """Write class names and templates beside the pictures, for zero-shot."""
    about = prompts[0].about
    write_once(folder / "classnames.txt", "\n".join(about["classes"]) + "\n", parts=folder.parent)
    write_once(folder / "zeroshot_classification_templates.txt", "\n".join(about["templates"]) + "\n", parts=folder.parent)


def results(path: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Refuse: this benchmark has no scorer of its own."""
    raise EvaluationError(f"{path}: generated pictures are named, not scored. Run: latent-clip evaluate zero-shot {path} RESULT.json")


def summarise(prompts: Sequence[Prompt], scores: Sequence[Score]) -> Summary:
    """Mean score of one of our scorers, overall and by class."""
    return Summary(sum(score.value for score in scores) / len(scores), means_by_task(prompts, scores), percent=False)


BENCHMARK = Benchmark("generated", 1, read, picture, results, summarise, prepare, verdicts=False)
