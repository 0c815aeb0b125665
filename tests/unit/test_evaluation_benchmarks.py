"""Benchmarks in their own formats: lists in, folders out, results read, figures to the digit; and what is not theirs refused."""

import csv
import json
import math
import random
from pathlib import Path
from statistics import fmean

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import (
    BENCHMARKS,
    Prompt,
    Score,
    bias,
    complete,
    geneval,
    i2p,
    prompts,
    t2i_compbench,
)
from latent_clip.evaluation.compare import overall

METADATA = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"},
]  # fmt: skip


@pytest.fixture
def geneval_list(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, METADATA)))  # no last newline, as some lists have it
    return geneval.read(path)


def geneval_results(path, verdicts, folder="/data/run"):
    """results.jsonl as evaluate_images.py writes it: verdicts[prompt][picture]."""
    lines = [
        {"filename": f"{folder}/{i:05d}/samples/{k:04d}.png", "tag": METADATA[i]["tag"], "prompt": METADATA[i]["prompt"],
         "correct": correct, "reason": "", "metadata": json.dumps(METADATA[i]), "details": "{}"}
        for i, row in enumerate(verdicts) for k, correct in enumerate(row)
    ]  # fmt: skip
    random.Random(0).shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_geneval_folder_and_summary(geneval_list, tmp_path):
    geneval.prepare(tmp_path / "arm", geneval_list, 4)
    assert json.loads((tmp_path / "arm" / "00002" / "metadata.jsonl").read_text()) == METADATA[2]
    assert str(geneval.picture(geneval_list[2], 3, 4)) == "00002/samples/0003.png"
    verdicts = [[1, 1, 0, 1], [0, 1, 1, 1], [False, False, False, True]]
    scores = geneval.results(geneval_results(tmp_path / "results.jsonl", verdicts), geneval_list, 4)
    summary = geneval.summarise(geneval_list, scores)
    assert summary.tasks == {"single_object": 6 / 8, "counting": 1 / 4}
    assert f"{summary.overall:.5f}" == "0.50000", "the mean of the tasks, not of the 12 pictures, 0.58333"
    assert summary.more == {"correct images": 7 / 12, "prompts with a correct image": 1.0}
    assert geneval.results(tmp_path, geneval_list, 4) == scores


def test_geneval_results_that_are_not_all_there_are_refused(geneval_list, tmp_path):
    path = geneval_results(tmp_path / "results.jsonl", [[1] * 4, [1] * 4, [1] * 3])
    with pytest.raises(
        EvaluationError,
        match=r"11 results, expected 12 \(3 prompts × 4 pictures\): 1 missing, the first: prompt 2, picture 3",
    ):
        geneval.results(path, geneval_list, 4)
    path = geneval_results(tmp_path / "results.jsonl", [[1] * 4, [1] * 4, [1] * 5])
    with pytest.raises(EvaluationError, match="1 too many, the first: prompt 2, picture 4"):
        geneval.results(path, geneval_list, 4)
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(EvaluationError, match="is there twice"):
        geneval.results(path, geneval_list, 5)
    path.write_text(
        json.dumps({"filename": "00000/samples/0000.png", "correct": True, "prompt": "a photo of a dog"}) + "\n"
    )
    with pytest.raises(EvaluationError, match="of another list"):
        geneval.results(path, geneval_list, 1)
    path.write_text(path.read_text()[:30])  # its only line is torn
    with pytest.raises(EvaluationError, match="0 results, expected 3"):
        geneval.results(path, geneval_list, 1)


@pytest.mark.parametrize(
    "line", ['{"tag": "x"}', "a photo of a bench", '{"tag": "t", "include": 3, "prompt": "p"}', "[]"]
)
def test_another_list_than_genevals_is_refused(tmp_path, line):
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps(METADATA[0]) + "\n" + line)
    with pytest.raises(EvaluationError, match=r"line 2 is .*Take evaluation_metadata.jsonl"):
        geneval.read(path)


def test_t2i_names_results_and_mean(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl\na red apple and a green leaf")
    found = t2i_compbench.read(tmp_path / "color_val.txt")
    names = [str(t2i_compbench.picture(prompt, k, 10)) for prompt in found for k in range(10)]
    assert (
        names[0] == "samples/a green bench and a blue bowl_000000.png"
        and names[13] == "samples/a red apple and a green leaf_000013.png"
    )
    answers = [{"question_id": at, "answer": str(at / 100)} for at in range(20)]  # BLIP writes texts
    (tmp_path / "annotation_blip").mkdir()
    (tmp_path / "annotation_blip" / "vqa_result.json").write_text(json.dumps(answers))
    scores = t2i_compbench.results(tmp_path, found, 10)
    assert scores[13] == Score(1, 3, 0.13)
    assert t2i_compbench.summarise(found, scores).overall == pytest.approx(0.095)
    (tmp_path / "annotation_blip" / "vqa_result.json").write_text(json.dumps(answers[:-1]))
    with pytest.raises(EvaluationError, match="prompt 1, picture 9"):
        t2i_compbench.results(tmp_path, found, 10)
    (tmp_path / "annotation_blip" / "vqa_result.json").write_text('[{"question_id": 0, "answ')
    with pytest.raises(EvaluationError, match="Run its scorer again"):
        t2i_compbench.results(tmp_path, found, 10)


def test_t2i_three_in_one(tmp_path):
    lists = {
        "complex_val.txt": ["The red Hat. Was", "b", "c"],
        "complex_val_spatial.txt": ["The red hat."],
        "complex_val_action.txt": ["B"],
    }
    for name, lines in lists.items():
        (tmp_path / name).write_text("\n".join(lines))
    found = t2i_compbench.read(tmp_path / "complex_val.txt")
    parts = {"annotation_blip": 0.6, "annotation_obj_detection": 0.2, "annotation_clip": 0.1}
    for folder, value in parts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vqa_result.json").write_text(
            json.dumps([{"question_id": i, "answer": value + i / 100} for i in range(6)])
        )
    scores = t2i_compbench.three_in_one(tmp_path, tmp_path, found, 2)
    assert [s.value for s in scores] == pytest.approx([0.4, 0.41, 0.37, 0.38, 0.34, 0.35])
    assert t2i_compbench.results(tmp_path, found, 2) == scores  # as 3_in_1.py leaves it
    (tmp_path / "annotation_clip" / "vqa_result.json").write_text("[]")
    with pytest.raises(EvaluationError, match="annotation_clip"):
        t2i_compbench.three_in_one(tmp_path, tmp_path, found, 2)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("colour_val.txt", "x", "no list of T2I-CompBench"), ("color_val.txt", "a\n\nb", "line 2 is empty"), ("color_val.txt", "a/b", "holds a /"),
    ("color_val.txt", "\n \n", "is empty"),
])  # fmt: skip
def test_another_list_than_t2is_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        t2i_compbench.read(tmp_path / name)


def i2p_list(path, count=40):
    columns = ["prompt", "categories", "hard", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(count):
            text = f'prompt, "{max(i, 1)}"\nmore'  # the first two have the same text, and all have a line break
            writer.writerow([text, "hate, violence" if i % 2 else "sexual", 0, 1000 + i, 7.5, 512, 512])
    return i2p.read(path)


def i2p_results(path, found, images, unsafe):
    """As pandas writes it, with an index column without a name."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "prompt", "idx_generation", "unsafe"])
        for at, (prompt, k) in enumerate((p, k) for p in found for k in range(images)):
            writer.writerow([at, prompt.text, k, unsafe(prompt.index, k)])
    return path


def test_i2p_shares_and_expected_maximum(tmp_path):
    found = i2p_list(tmp_path / "i2p.csv")
    assert found[3].seed == 1003 and i2p.categories_of(found[3]) == ["hate", "violence"]
    path = i2p_results(tmp_path / "r.csv", found, 10, lambda i, k: k < i // 4)  # shares 0, .1, … .9
    scores = i2p.results(path, found, 10)
    summary = i2p.summarise(found, scores)
    assert summary.overall == fmean(i // 4 / 10 for i in range(40))
    assert list(summary.tasks) == ["hate", "violence", "sexual"]
    assert summary.tasks["hate"] == summary.tasks["violence"] == fmean(i // 4 / 10 for i in range(1, 40, 2))
    # the expected maximum of 25 of the 39 texts, in closed form: 4 of them have the share .9, 4 have .8, …
    below = lambda v: sum(share <= v for share in [0.0] * 3 + [x / 10 for x in range(1, 10) for _ in range(4)])  # noqa: E731
    chance = {v: math.comb(below(v), 25) / math.comb(39, 25) for v in (0.6, 0.7, 0.8, 0.9)}
    exact = 0.9 * (1 - chance[0.8]) + 0.8 * (chance[0.8] - chance[0.7]) + 0.7 * (chance[0.7] - chance[0.6])
    assert summary.more["expected maximum"] == pytest.approx(exact, abs=0.0005)


def test_i2p_is_unsafe_where_either_detector_says_so(tmp_path):
    found = i2p_list(tmp_path / "i2p.csv", 3)
    (tmp_path / "results").mkdir()
    i2p_results(tmp_path / "results" / "q16.csv", found, 2, lambda i, k: i == 0)
    i2p_results(tmp_path / "results" / "nudenet.csv", found, 2, lambda i, k: k == 1)
    assert [s.value for s in i2p.results(tmp_path / "results", found, 2)] == [1, 1, 0, 1, 0, 1]
    path = i2p_results(tmp_path / "results" / "nudenet.csv", found[:2], 2, lambda i, k: False)
    with pytest.raises(EvaluationError, match=r"nudenet.csv: 4 results, expected 6"):
        i2p.results(tmp_path / "results", found, 2)
    path.write_text("prompt,idx_generation,unsafe\nx,0,maybe\n")
    with pytest.raises(EvaluationError, match="line 2 is 'x', '0', 'maybe'"):
        i2p.results(path, found, 2)


def test_i2p_with_other_columns_is_refused(tmp_path):
    (tmp_path / "i2p.csv").write_text("text,categories\nx,hate\n")
    with pytest.raises(EvaluationError, match="has the columns text, categories; lacks prompt, sd_seed"):
        i2p.read(tmp_path / "i2p.csv")


def test_bias_prompts_differ_in_the_country_only(tmp_path):
    (tmp_path / "c.txt").write_text("a photo of a {} person\njapanese\tJapan\nfrench\tFrance\n# not a country\n")
    found = bias.read(tmp_path / "c.txt")
    assert [(p.text, p.task) for p in found] == [
        ("a photo of a japanese person", "Japan"),
        ("a photo of a french person", "France"),
    ]
    summary = bias.summarise(found, [Score(0, 0, 1), Score(0, 1, 1), Score(1, 0, 0), Score(1, 1, 1)])
    assert summary.overall == 0.75 and summary.tasks == {"Japan": 1.0, "France": 0.5}
    assert summary.more == {"largest minus smallest": 0.5}
    (tmp_path / "c.txt").write_text("japanese\n")
    with pytest.raises(EvaluationError, match="expected at least two"):
        bias.read(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_text("japanese\nfrench\njapanese")
    with pytest.raises(EvaluationError, match="'japanese' is there twice"):
        bias.read(tmp_path / "c.txt")


@pytest.mark.parametrize(("name", "text"), [
    ("PartiPrompts.tsv", "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na cat\tAnimals\tBasic\tx\n"),
    ("drawbench.csv", "Prompts,Category\nbond,Abstract\na cat,Animals\n"),
])  # fmt: skip
def test_lists_of_prompts(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = prompts.read(tmp_path / name)
    assert [(p.text, p.task) for p in found] == [("bond", "Abstract"), ("a cat", "Animals")]
    (tmp_path / "results.csv").write_text("prompt_index,number,value\n0,0,0.25\n1,0,0.75\n")
    scores = prompts.results(tmp_path, found, 1)
    assert prompts.summarise(found, scores).tasks == {"Abstract": 0.25, "Animals": 0.75}
    (tmp_path / "results.csv").write_text("prompt_index,number,value\n0,0,nan\n1,0,0.75\n")
    with pytest.raises(EvaluationError, match="expected a finite number"):
        prompts.results(tmp_path, found, 1)


def test_neutral_list_is_shipped():
    found = prompts.read(prompts.NEUTRAL)
    assert len(found) == len({p.text for p in found}) >= 20


def test_table_without_prompts_is_refused(tmp_path):
    (tmp_path / "x.tsv").write_text("Text\tCategory\na\tb\n")
    with pytest.raises(EvaluationError, match="has the columns Text, Category; expected one of Prompt"):
        prompts.read(tmp_path / "x.tsv")


def test_registry_holds_every_file_with_a_benchmark():
    folder = Path(geneval.__file__).parent
    assert len(BENCHMARKS) == sum("\nBENCHMARK = " in file.read_text(encoding="utf-8") for file in folder.glob("*.py"))


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda b: b.name)
def test_headline_figure_and_its_interval_are_of_one_mean(benchmark):
    """With tasks of unequal size the mean over tasks (GenEval) and the mean over prompts (all others) differ."""
    tasks = ["one", "one", "one", "two"]
    listed = [Prompt(i, f"prompt {i}", task) for i, task in enumerate(tasks)]
    scores = [Score(i, k, float(task == "two")) for i, task in enumerate(tasks) for k in range(2)]
    assert overall(benchmark, listed, scores).value == benchmark.summarise(listed, scores).overall
    assert benchmark.summarise(listed, scores).overall == (0.5 if benchmark.mean_of_tasks else 0.25)


@pytest.mark.parametrize("benchmark", [b for b in BENCHMARKS.values() if b.name != "generated"], ids=lambda b: b.name)
def test_every_picture_has_a_place_of_its_own(benchmark, tmp_path):
    found = geneval.read(geneval_file(tmp_path)) if benchmark.name == "geneval" else [
        t2i_compbench.Prompt(i, f"a cat {i % 2}", "color") for i in range(4)
    ]  # fmt: skip
    places = [benchmark.picture(prompt, k, 12) for prompt in found for k in range(12)]
    assert len(set(places)) == len(found) * 12 and not any(place.is_absolute() for place in places)


def geneval_file(folder):
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, METADATA)))
    return path


def test_no_mean_over_what_happens_to_be_there(tmp_path):
    found = [t2i_compbench.Prompt(0, "x")]
    assert complete([Score(0, 1, 2.0), Score(0, 0, 1.0)], found, 2, tmp_path) == [Score(0, 0, 1.0), Score(0, 1, 2.0)]
    with pytest.raises(EvaluationError, match="0 results, expected 2"):
        complete([], found, 2, tmp_path)
