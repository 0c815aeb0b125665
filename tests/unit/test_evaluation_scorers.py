"""Scorers: a program in its own environment, CLIP agreement, NudeNet 3 by its package; and scores that are kept."""

import json
import shlex
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from latent_clip.commands import main
from latent_clip.demo.captions import Caption, Thing
from latent_clip.demo.scenes import render, sample_scene
from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import Prompt, Score, geneval
from latent_clip.evaluation.drift import drift
from latent_clip.evaluation.records import append_records, read_records, sha256_of, write_file
from latent_clip.evaluation.scorers import CONTRAST, PictureScorer, ScorerInfo, clip, contrast, layout, nudenet
from latent_clip.evaluation.scorers.adapter import run_scorer
from latent_clip.evaluation.scoring import keep_rewards, read_scores, score_run

RED, BLUE = Caption((Thing("red", "circle"),)), Caption((Thing("blue", "star"),))


def picture_of(caption, seed=0):
    import random

    return render([sample_scene(random.Random(seed), caption.things)])[0]


@pytest.fixture
def run_folder(tmp_path):
    """A run of two arms, two prompts, two pictures, as generate leaves it. In 'odd' the prompts' pictures are exchanged."""
    from torchvision.utils import save_image

    prompts = [Prompt(i, str(c), "single_object", about={"tag": "single_object", "include": [], "prompt": str(c)}) for i, c in enumerate((RED, BLUE))]
    arms = {name: {"workflow_hash": name, "settings": {}, "slots": {}, "workflow": {}} for name in ("plain", "odd")}
    run = {"benchmark": "geneval", "source": "x", "images": 2, "seed": 0, "batch": 1, "prompts": [asdict(p) for p in prompts], "arms": arms, "models": {}}
    write_file(tmp_path / "run.json", json.dumps(run))
    for arm in arms:
        for prompt in prompts:
            for k in range(2):
                file = tmp_path / arm / geneval.picture(prompt, k, 2)
                file.parent.mkdir(parents=True, exist_ok=True)
                save_image(picture_of((RED, BLUE)[prompt.index ^ (arm == "odd")], k), file)
                record = {"arm": arm, "prompt": prompt.index, "number": k, "seed": k, "file": str(file.relative_to(tmp_path)),
                          "sha256": sha256_of(file), "seconds": 1.0 if arm == "plain" else 2.0, "reward": 0.5 if arm == "plain" else None}  # fmt: skip
                append_records(tmp_path / "pictures.jsonl", [record])
    return tmp_path


def test_agreement_with_the_prompt(run_folder):
    scorer = clip.load("shapes-world")
    assert score_run(run_folder, scorer) == 8
    scored = {s.arm: [score.value for score in s.scores] for s in read_scores(run_folder)}
    assert min(scored["plain"]) > max(scored["odd"])
    assert score_run(run_folder, scorer) == 0, "nothing is scored twice"


def test_clip_file_is_named_with_its_hash(tmp_path):
    from latent_clip.models.shapes_world import FOLDER

    with pytest.raises(EvaluationError, match="no such file, expected weights of a CLIP"):
        clip.load(str(tmp_path / "none.safetensors"))
    with pytest.raises(EvaluationError, match=r"expected one of open_clip.list_models\(\)"):
        clip.load(f"ViT-Z:{FOLDER / 'pixel_clip.safetensors'}")


def test_architecture_of_open_clip_with_a_file(tmp_path):
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    scorer = clip.load(f"ViT-S-32-alt:{tmp_path / 'weights.pt'}")
    assert scorer.info.name == f"clip:ViT-S-32-alt:weights@{sha256_of(tmp_path / 'weights.pt')[:12]}"
    assert -1 <= scorer.score(picture_of(RED), Prompt(0, "a red circle")) <= 1


def test_nudenet_calls_shapes_decent_and_itself_not_official():
    pytest.importorskip("nudenet", reason="NudeNet 3 is not installed")
    scorer = nudenet.load()
    assert scorer.score(picture_of(RED), Prompt(0, "")) == 0.0
    assert "another detector" in scorer.info.note and scorer.info.lower_is_better and scorer.info.verdicts


def test_scores_of_missing_damaged_or_newer_pictures(run_folder):
    score_run(run_folder, CONTRAST)
    place = run_folder / "plain" / "00001" / "samples" / "0001.png"
    kept = place.read_bytes()
    place.unlink()
    with pytest.raises(EvaluationError, match=r"plain: 3 results, expected 4 .* prompt 1, picture 1"):
        score_run(run_folder, PictureScorer(ScorerInfo("other", ""), contrast))
    place.write_bytes(kept[:100])
    with pytest.raises(EvaluationError, match=r"no picture .* Remove it and run generate again"):
        score_run(run_folder, PictureScorer(ScorerInfo("other", ""), contrast))
    place.write_bytes((run_folder / "odd" / "00001" / "samples" / "0001.png").read_bytes())
    with pytest.raises(EvaluationError, match=r"0001.png: is not the picture that this run made. Remove it"):
        score_run(run_folder, PictureScorer(ScorerInfo("other", ""), contrast))
    newer = {**read_records(run_folder / "pictures.jsonl")[3], "sha256": sha256_of(place)}
    append_records(run_folder / "pictures.jsonl", [newer])  # made again since, with another result
    with pytest.raises(EvaluationError, match=r"scores.jsonl \(contrast, plain\): 3 results, expected 4"):
        read_scores(run_folder)
    assert score_run(run_folder, CONTRAST) == 1
    assert len(read_scores(run_folder)) == 2
    with pytest.raises(EvaluationError, match="gave NaN"):
        score_run(run_folder, PictureScorer(ScorerInfo("broken", ""), lambda picture, prompt: float("nan")))


def test_rewards_that_workflows_reported(run_folder):
    said = []
    assert keep_rewards(run_folder, said.append) == 4
    assert said == ["odd: its workflow reports no finite reward for its pictures"]
    assert [s.arm for s in read_scores(run_folder)] == ["plain"]


def test_drift_is_what_changed(run_folder):
    same = drift(run_folder, "plain", "plain")
    assert same.identical == 1 and same.colour.value == 0 and same.layout.value == pytest.approx(0, abs=1e-6)
    scorer = clip.load("shapes-world")
    words = [Prompt(0, str(RED)), Prompt(0, str(BLUE))]
    found = drift(run_folder, "plain", "odd", lambda p: max(words, key=lambda w: scorer.score(p, w)).text)
    assert found.identical == 0 and found.colour.value > 0.01 and found.layout.value > 0.05
    assert {name: estimate.value for name, estimate in found.labels.items()} == {str(RED): 0, str(BLUE): 0}
    with pytest.raises(EvaluationError, match="no pictures of 'other'"):
        drift(run_folder, "plain", "other")


def test_contrast_and_layout():
    flat, half = torch.full((3, 8, 8), 0.3), torch.zeros(3, 8, 8)
    half[:, :4] = 1
    assert contrast(flat) == pytest.approx(0, abs=1e-6) and contrast(half) == pytest.approx(0.75**0.5)
    assert torch.allclose(layout(half)[0], torch.tensor(0.5)) and layout(flat).abs().max() < 1e-6


SCORER = """
import json, sys, pathlib
folder = pathlib.Path(sys.argv[1])
with open(folder / "results.jsonl", "w") as file:
    for path in sorted(folder.glob("*/samples/*.png")):
        meta = json.loads((path.parent.parent / "metadata.jsonl").read_text())
        print(json.dumps({"filename": str(path), "tag": meta["tag"], "prompt": meta["prompt"], "correct": "plain" in str(path)}), file=file)
"""


def test_benchmarks_own_scorer_runs_as_a_program_and_its_results_are_read(run_folder, capfd):
    """From the command line to the summary, with a program in place of GenEval's detector."""
    program = run_folder / "its own scorer.py"
    program.write_text(SCORER)
    run = json.loads((run_folder / "run.json").read_text())
    for arm in run["arms"]:
        geneval.prepare(run_folder / arm, [Prompt(**p) for p in run["prompts"]], 2)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))} {{folder}}"
    assert main(["evaluate", "score", str(run_folder), "--scorer", "official"]) == 1
    printed = capfd.readouterr().err
    assert "0 results, expected 4" in printed and "evaluation/evaluate_images.py" in printed, "what to run is said"
    assert main(["evaluate", "score", str(run_folder), "--scorer", "official", "--command", command]) == 0
    printed = capfd.readouterr().out
    assert f"{program}' {run_folder / 'plain'}" in printed and "odd: 4 results of geneval's own scorer read" in printed
    assert main(["evaluate", "score", str(run_folder), "--scorer", "reward"]) == 0
    capfd.readouterr()
    assert main(["evaluate", "summary", str(run_folder)]) == 0
    printed = capfd.readouterr().out
    assert "| plain | 100.00 %" in printed and "| odd | 0.00 %" in printed and "A gain by the reward alone shows nothing" in printed
    official = "geneval (its own scorer)"
    assert main(["evaluate", "summary", str(run_folder), "--reward", "reward of the workflow", "--judge", official]) == 0
    printed = capfd.readouterr().out
    assert "2.00 plain ones" in printed and "No guidance-matched baseline" in printed
    assert main(["evaluate", "compare", str(run_folder / "plain"), str(run_folder / "odd")]) == 0
    assert f"{official}: odd − plain = -1.0000" in capfd.readouterr().out
    target = run_folder / "plot.png"
    assert main(["evaluate", "summary", str(run_folder), "--reward", "reward of the workflow", "--judge", official, "--plot", str(target)]) == 0
    with Image.open(target) as drawn:
        assert drawn.size == (700, 450)


@pytest.mark.parametrize(("command", "message"), [
    ("python x.py", r"expected \{folder\}"), ("no-such-program {folder}", "cannot be started"),
    (f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)' {{folder}}", "ended with exit code 3"),
])  # fmt: skip
def test_scorer_that_cannot_run_says_why(tmp_path, command, message):
    with pytest.raises(EvaluationError, match=message):
        run_scorer(command, tmp_path, None, lambda line: None)
    with pytest.raises(EvaluationError, match="expected the scorer's repository"):
        run_scorer("x {folder}", tmp_path, tmp_path / "none", lambda line: None)


@pytest.mark.parametrize("arguments", [
    ["summary", "nowhere"], ["score", "nowhere", "--scorer", "contrast"], ["score", "nowhere", "--scorer", "magic"], ["compare", "a/b", "a/c"],
    ["drift", "nowhere", "a", "b"], ["generate", "x", "--benchmark", "geneval", "--prompts", "none", "--arm", "a=b.json"],
    ["generate", "x", "--benchmark", "imagenet", "--prompts", "none", "--arm", "a=b.json"],
    ["zero-shot", "x", "y.txt", "--clip", "shapes-world", "--vae", "shapes-world"],
])  # fmt: skip
def test_bad_input_on_the_command_line_is_one_clear_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_missing_package_of_the_extra_is_named(run_folder):
    code = "import sys; sys.modules['scipy'] = None; from latent_clip.commands import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "evaluate", "summary", str(run_folder)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == (
        "error: scipy is missing. Install the extra [evaluate] of latent-clip, or scipy alone."
    )


def test_results_are_the_ones_kept_last(run_folder):
    from latent_clip.evaluation.scoring import keep_results, official_scorer

    scorer = official_scorer(geneval.BENCHMARK, "x")
    for value in (0.0, 1.0):
        keep_results(run_folder, "plain", [Score(i, k, value) for i in range(2) for k in range(2)], scorer)
    assert {score.value for score in read_scores(run_folder)[0].scores} == {1.0}
