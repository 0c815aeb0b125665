"""T2I-CompBench++ (arXiv 2307.06350, github.com/Karine-Huang/T2I-CompBench): 300 validation prompts for each of eight categories.

List: `color_val.txt` and the like, one prompt per line. Folder: `samples/PROMPT_000000.png`; picture k of prompt i has the number
images × i + k. Results: `vqa_result.json` in the folder of the category's scorer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ...models.strict_json import short
from .. import EvaluationError
from ..lists import read_lines
from ..names import WINDOWS, unfit
from ..records import write_once
from .base import Benchmark, Prompt, Score, Summary, complete

# category → folder of its official scorer's results
RESULTS = {
    "color": "annotation_blip", "shape": "annotation_blip", "texture": "annotation_blip",
    "spatial": "labels/annotation_obj_detection_2d", "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num", "non_spatial": "annotation_clip", "complex": "annotation_3_in_1",
}  # fmt: skip
SCORERS = (
    'python BLIPvqa_eval/BLIP_vqa.py --out_dir="{folder}"',
    'python UniDet_eval/2D_spatial_eval.py --outpath "{folder}/"',
    'python UniDet_eval/3D_spatial_eval.py --outpath "{folder}/"',
    'python UniDet_eval/numeracy_eval.py --outpath "{folder}/"',
    'python CLIPScore_eval/CLIP_similarity.py --outpath="{folder}/"',
)
FILE = "vqa_result.json"


def category_of(path: Path) -> str:
    """Category of a list by its file name: color_val.txt → color."""
    name = path.stem.removesuffix("_val")
    if name not in RESULTS:
        raise EvaluationError(
            f"{path.name}: no list of T2I-CompBench; expected one of {', '.join(f'{c}_val.txt' for c in RESULTS)}."
        )
    return name


def read(path: Path) -> list[Prompt]:
    """Read the prompts of one category; the file name gives the category."""
    category = category_of(path)
    prompts = [Prompt(index, line.strip(), category) for index, line in enumerate(read_lines(path))]
    if empty := [prompt.index + 1 for prompt in prompts if not prompt.text]:
        raise EvaluationError(
            f"{path.name}: line {empty[0]} is empty, expected a prompt: the numbers of pictures count the lines."
        )
    for prompt in prompts:
        if reason := _unfit(prompt.text):
            raise EvaluationError(
                f"{path.name}: line {prompt.index + 1}, {short(prompt.text)}, {reason}, and a picture's name is its prompt. Change the line."
            )
    return prompts


def _unfit(text: str, windows: bool = WINDOWS) -> str:
    """Reason why a prompt cannot be part of a picture's name, from which the scorers read it; "" if it can."""
    return (
        "holds a _, at which its scorers end the prompt"
        if "_" in text
        else unfit(text, windows=False) or (windows and unfit(f"{text}_0", True)) or ""
    )


def picture(prompt: Prompt, number: int, images: int) -> Path:
    """Path of a picture. The scorers read the prompt and the picture's number (six digits) from its name."""
    return Path("samples", f"{prompt.text}_{prompt.index * images + number:06d}.png")


def results(path: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Read the category's vqa_result.json: the file itself, or from the arm's folder."""
    file = path if path.is_file() else path / RESULTS[prompts[0].task] / FILE
    if not file.is_file() and prompts[0].task == "complex":
        raise EvaluationError(
            f"{file}: not there. Make it from the three scorers' results with: latent-clip evaluate score RUN --scorer official --three-in-one LIST_FOLDER"
        )
    return _scores(_answers(file), prompts, images, file)


def three_in_one(folder: Path, lists: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Combine three scorers' results into the score of complex prompts, as 3_in_1.py does; write annotation_3_in_1/vqa_result.json.

    Attributes by BLIP, relations by UniDet, actions by CLIP: the mean of attributes and relations for a prompt of
    complex_val_spatial.txt, of attributes and actions for one of complex_val_action.txt, of all three for others.

    Args:
        folder: folder of the arm. lists: folder of the two lists.
    """
    spatial, action = (_plain(lists / f"complex_val_{kind}.txt") for kind in ("spatial", "action"))
    places = ("annotation_blip", "labels/annotation_obj_detection_2d", "annotation_clip")
    old = folder / "annotation_obj_detection"  # place of earlier versions
    files = [folder / place / FILE for place in places]
    files[1] = files[1] if files[1].is_file() else old / FILE
    attribute, relation, act = ({s[0]: s[1] for s in _answers(file)} for file in files)
    for found, file in zip((attribute, relation, act), files):
        _scores(list(found.items()), prompts, images, file)
    answers = []
    for prompt in prompts:
        text = prompt.text.split(".")[0].lower()
        for at in range(prompt.index * images, (prompt.index + 1) * images):
            if text in spatial:
                value = (relation[at] + attribute[at]) * 0.5
            elif text in action:
                value = (act[at] + attribute[at]) * 0.5
            else:
                value = (attribute[at] + relation[at] + act[at]) / 3
            answers.append({"question_id": at, "answer": value})
    target = folder / RESULTS["complex"] / FILE
    write_once(target, json.dumps(answers))
    return results(target, prompts, images)


def summarise(prompts: Sequence[Prompt], scores: Sequence[Score]) -> Summary:
    """Mean over all pictures, as printed by each of its scorers."""
    mean = fmean(score.value for score in scores)
    return Summary(mean, {prompts[0].task: mean}, percent=False)


def _answers(file: Path) -> list[tuple[int, float]]:
    try:
        answers = [
            (int(item["question_id"]), float(item["answer"])) for item in json.loads(file.read_text(encoding="utf-8"))
        ]
        if odd := [at for at, answer in answers if not math.isfinite(answer)]:
            raise ValueError(f"the answer of question {odd[0]} is no finite number")
        return answers
    except OSError as error:
        raise EvaluationError(
            f"{file}: cannot be read ({error.strerror}). Run the scorer of this category first."
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise EvaluationError(
            f"{file}: no results of T2I-CompBench ({error!r}), expected a list of question_id and answer. Run its scorer again."
        ) from error


def _scores(answers: list[tuple[int, float]], prompts: Sequence[Prompt], images: int, file: Path) -> list[Score]:
    return complete([Score(*divmod(at, images), value) for at, value in answers], prompts, images, file)


def _plain(path: Path) -> set[str]:
    return {line.split(".")[0].lower() for line in read_lines(path)}


BENCHMARK = Benchmark("t2i-compbench", 10, read, picture, results, summarise, scorers=SCORERS, verdicts=False)
