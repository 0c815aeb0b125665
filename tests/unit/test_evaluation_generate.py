"""What a run plans and notes, without a server."""

import hashlib

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import Prompt, i2p, prompts
from latent_clip.evaluation.dispatch import Outcome
from latent_clip.evaluation.generate import Report, model_hashes
from latent_clip.evaluation.plan import Arm, PictureTask, RunPlan
from latent_clip.evaluation.run_folder import pack_version
from latent_clip.evaluation.workflow import workflow_of

GRAPH = {
    "1": {"class_type": "Loader", "inputs": {"ckpt_name": "a.safetensors", "other": "none.safetensors"}, "_meta": {"title": "x"}},
    "2": {"class_type": "Text", "inputs": {"text": "1.5 of them"}, "_meta": {"title": "prompt"}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 0}, "_meta": {"title": "seed"}},
}
ARMS = [Arm("a", workflow_of(GRAPH)), Arm("b", workflow_of(GRAPH))]
LIST = [Prompt(0, "x"), Prompt(1, "y", seed=77)]


def test_arms_take_turns_with_the_same_seeds():
    tasks = RunPlan(prompts.BENCHMARK, LIST, ARMS, 2, seed=5).tasks()
    assert [(t.prompt, t.first, t.arm, t.seed) for t in tasks] == [
        (0, 0, "a", 5), (0, 0, "b", 5), (0, 1, "a", 6), (0, 1, "b", 6), (1, 0, "a", 77), (1, 0, "b", 77), (1, 1, "a", 78), (1, 1, "b", 78),
    ]  # fmt: skip


def test_batches_leave_nothing_out():
    graph = GRAPH | {"4": {"class_type": "Empty", "inputs": {"batch_size": 1}, "_meta": {"title": "batch"}}}
    tasks = RunPlan(i2p.BENCHMARK, LIST[:1], [Arm("a", workflow_of(graph))], 10, batch=4).tasks()
    assert [(t.first, t.count, t.seed) for t in tasks] == [(0, 4, 0), (4, 4, 4), (8, 2, 8)]


@pytest.mark.parametrize(("settings", "message"), [
    ({"images": 0}, "Got 0 pictures"), ({"batch": 2}, "no slot 'batch'"), ({"arms": [ARMS[0], ARMS[0]]}, "'a' is given twice"),
    ({"arms": [Arm("../x", ARMS[0].workflow)]}, "it names a folder"),
])  # fmt: skip
def test_plan_that_cannot_be_kept_is_refused(settings, message):
    with pytest.raises(EvaluationError, match=message):
        RunPlan(prompts.BENCHMARK, LIST, **{"arms": ARMS, "images": 2, **settings})


def test_models_are_noted_with_their_hashes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.safetensors").write_bytes(b"weights")
    assert model_hashes([ARMS[0].workflow], tmp_path) == {"checkpoints/a.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert model_hashes([ARMS[0].workflow], None) == {}
    with pytest.raises(EvaluationError, match="expected the models folder"):
        model_hashes([], tmp_path / "none")


def test_what_failed_is_said_once_for_each_reason():
    failed = [Outcome(PictureTask("a", i, 0, 2, i), "s", error="no such model") for i in range(30)]
    text = str(Report(4, 5, [*failed, Outcome(PictureTask("b", 3, 0, 1, 9), "s", error="out of memory")]))
    assert text.splitlines() == [
        "4 pictures made, 5 were there.", "61 pictures could not be made; the same command tries them again:",
        "  a, 60 of them, such as prompt 0, seed 0: no such model", "  b, 1 of them, such as prompt 3, seed 9: out of memory",
    ]  # fmt: skip


def test_packs_version_is_known():
    assert pack_version().count(".") == 2
