"""Latents of several frames, and of video with sound, on a small Wan 2.1: judged frame by frame, steered, gated, cut."""

import importlib
import json

import pytest
import torch

from latent_clip.tests.host.test_families import JUDGES, Lab

FRAMES = 3


@pytest.fixture(scope="module")
def lab(host_env, tmp_path_factory):
    return Lab(host_env, "wan21", tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def clips(lab) -> torch.Tensor:
    """Two clips that the stock sampler made."""
    return lab.plain(lab.empty(2, FRAMES), 2)


def each_frame(lab, judge: str, clips: torch.Tensor) -> torch.Tensor:
    """Scores (B, T) of the frames of clips, each as a picture alone: what a latent judge must find."""
    reward = lab.reward(judge)
    score = lab.module("host.scorers.scoring").score_frames
    with torch.inference_mode():
        return torch.stack([score(reward, clips[:, :, [t]])["match"] for t in range(clips.shape[2])], dim=1)


def test_frames_of_a_latent_judge_are_judged_as_pictures(lab, clips):
    expected = each_frame(lab, "latent", clips)
    nodes = importlib.import_module(f"{lab.module('nodes').__name__}.score")
    for frames, value in (("mean", expected.mean(dim=1)), ("worst", expected.amin(dim=1))):
        with torch.inference_mode():
            output = nodes.LatentCLIPScore.execute({"samples": clips}, lab.reward("latent"), frames)
        latent, scores, report = output.args
        torch.testing.assert_close(torch.tensor(scores), value)
        report = json.loads(report)
        torch.testing.assert_close(torch.tensor(report["frames"]), expected, atol=1e-5, rtol=0)
        assert report["of_frames"] == frames and latent["samples"] is clips


@pytest.mark.parametrize("judge", JUDGES)
def test_select_and_classify_take_a_clip_as_one_item(lab, clips, judge):
    reports, select = lab.module("host.scorers.reports"), lab.module("nodes.score").LatentCLIPSelect
    with torch.inference_mode():
        best, rest, indices, scores = select.execute({"samples": clips}, lab.reward(judge), 1, False, 0.0, 0.5, "worst").args
        labels = reports.classify_report({"samples": clips}, lab.judges[judge], ["a cat", "a dog"], ["{}"], "tiles")
    assert torch.equal(best["samples"], clips[indices]) and len(rest["samples"]) == 1 and len(scores) == 1
    assert labels.frames.shape == (2, FRAMES, 2)
    torch.testing.assert_close(labels.table, labels.frames.mean(dim=1))
    assert len(labels.as_dict()["frames"][0]) == FRAMES and len(labels.thumbnails) == 2


def log_odds(lab, judge: str, clips: torch.Tensor) -> torch.Tensor:
    """(B, T)."""
    with torch.inference_mode():
        directions = lab.module("host.scorers.concepts").directions(lab.judges[judge], lab.concepts(0.0))
        return lab.module("host.scorers.log_odds").log_odds_of_frames(clips, lab.judges[judge].window_encoder(), directions)[..., 0]


def with_one_bad_frame(lab, judge: str, clips: torch.Tensor, place: int) -> tuple[dict, float]:
    """A clip of which one frame alone is over a threshold: the frame that scores highest, put at a place among copies of another."""
    scores = log_odds(lab, "latent", clips)[0]
    worst, best = clips[:1, :, [scores.argmax()]], clips[:1, :, [scores.argmin()]]
    frames = [best] * FRAMES
    frames[place] = worst
    made = torch.cat(frames, dim=2)
    found = log_odds(lab, judge, made)[0]
    return {"samples": made}, ((found[place] + found[[t for t in range(FRAMES) if t != place]].max()) / 2).item()


def test_gate_blocks_a_clip_when_any_frame_is_over_and_says_which(lab, clips):
    latent, threshold = with_one_bad_frame(lab, "latent", clips, 1)
    with torch.inference_mode():
        safe, report = lab.gate(latent, "latent", threshold, "grey")
    assert report.blocked == [True] and not safe["samples"].any() and safe["samples"].shape == latent["samples"].shape
    assert "in 1 of 3 frames, from frame 2 on" in report.reasons[0]
    assert len(report.as_dict()["frames"][0]) == FRAMES and report.cut == ""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_gate_cuts_a_clip_to_its_clean_beginning_if_asked(lab, clips, place):
    from comfy_execution.graph_utils import ExecutionBlocker

    latent, threshold = with_one_bad_frame(lab, "latent", clips, place)
    latent["noise_mask"] = torch.ones(1, 1, FRAMES, 8, 8)
    with torch.inference_mode():
        safe, report = lab.gate(latent, "latent", threshold, "drop", cut_clips=True)
    if place == 0:
        assert report.blocked == [True] and isinstance(safe, ExecutionBlocker)
        return
    assert report.blocked == [False] and report.cut.startswith(f"cut to its first {place} of 3 frames. odd: log-odds")
    assert torch.equal(safe["samples"], latent["samples"][:, :, :place]) and safe["noise_mask"].shape[2] == place
    assert len(report.thumbnails) == 1 and json.dumps(report.as_ui(), allow_nan=False)


def test_several_clips_are_blocked_one_by_one_and_never_cut(lab, clips):
    latent, threshold = with_one_bad_frame(lab, "latent", clips, 2)
    good = latent["samples"][:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    batch = {"samples": torch.cat([good, latent["samples"]])}
    with torch.inference_mode():
        safe, report = lab.gate(batch, "latent", threshold, "drop", cut_clips=True)
    assert report.blocked == [False, True] and torch.equal(safe["samples"], good) and report.cut == ""


def test_frame_that_is_not_finite_is_blocked_or_cut_off(lab, clips):
    broken = {"samples": clips[:1].clone()}
    broken["samples"][0, 0, 2, 0, 0] = torch.nan
    with torch.inference_mode():
        blurred, report = lab.gate(broken, "latent", 1000, "blur")
        cut, cut_report = lab.gate(broken, "latent", 1000, "blur", cut_clips=True)
    assert report.blocked == [True] and "could not be judged" in report.reasons[0] and blurred["samples"].isfinite().all()
    assert cut_report.blocked == [False] and torch.equal(cut["samples"], clips[:1, :, :2])


def test_what_cannot_be_logged_is_not_cut_but_blocked(lab, clips, monkeypatch):
    latent, threshold = with_one_bad_frame(lab, "latent", clips, 2)
    gate = lab.module("host.safety.gate")

    def full(_record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate, "write_record", full)
    with torch.inference_mode():
        safe, report = gate.run_gate(
            latent, lab.judges["latent"], lambda: lab.concepts(threshold), gate.GateSettings(audit=True, cut_clips=True)
        )
    assert report.blocked == [True] and not safe["samples"].any()


def test_clip_whose_verdicts_cannot_be_read_is_not_cut_but_blocked(lab, clips):
    """An error after the scores blocks the clip, although its first frames were found clean."""
    latent, threshold = with_one_bad_frame(lab, "latent", clips, 2)

    class Torn:
        def of(self, _samples):
            raise RuntimeError("torn")

    with torch.inference_mode():
        safe, report = lab.gate(latent, "latent", threshold, "grey", cut_clips=True, looks=Torn())
    assert report.blocked == [True] and "torn" in report.reasons[0] and not safe["samples"].any()


def test_pixel_judge_decodes_a_clip_as_a_whole(lab, clips):
    """Three frames are nine pictures; the first alone is what a still image is."""
    whole = log_odds(lab, "pixel", clips)
    torch.testing.assert_close(whole[:, :1], log_odds(lab, "pixel", clips[:, :, :1]), atol=1e-4, rtol=1e-4)
    assert whole.shape == (2, FRAMES)
    with torch.inference_mode():
        safe, report = lab.gate({"samples": clips}, "pixel", -1000, "blur")
    assert all(report.blocked) and safe["samples"].shape == clips.shape


@pytest.mark.parametrize("frames", ["mean", "worst"])
@pytest.mark.parametrize("judge", JUDGES)
def test_guidance_steers_a_clip_by_mean_or_worst(lab, clips, judge, frames):
    guide = lab.module("nodes.guide").LatentCLIPGuideModel
    with torch.inference_mode():
        (model,) = guide.execute(lab.model, lab.reward(judge), 0.5, 0.0, 1.0, 1, 0.0, frames).args
    steered = lab.plain(lab.empty(2, FRAMES), 2, lab.guider(model))
    assert steered.shape == clips.shape and steered.isfinite().all() and not torch.equal(steered, clips)


@pytest.mark.parametrize("judge", JUDGES)
def test_safety_guidance_watches_every_frame(lab, clips, judge):
    with torch.inference_mode():
        innocent, guilty = (lab.safe(judge, threshold, lab.other) for threshold in (1000, -1000))
    assert torch.equal(lab.plain(lab.empty(2, FRAMES), 2, lab.guider(innocent)), clips)
    assert not torch.equal(lab.plain(lab.empty(2, FRAMES), 2, lab.guider(guilty)), clips)


@pytest.mark.parametrize("judge", JUDGES)
def test_look_ahead_drafts_clips_and_redirects_the_suspect_alone(lab, judge):
    latent = lab.empty(2, FRAMES)
    plain, wanted = lab.plain(latent, 3), lab.following(lab.other, 3, latent)
    looks = lab.module("host.safety.verdicts").Verdicts()

    def made(draft: float, **more) -> torch.Tensor:
        return lab.plain(latent, 3, lab.guider(lab.looking(judge, draft, lab.other, looks=looks, **more)))

    assert torch.equal(made(1000), plain)
    for clips in (made(-1000), made(1000, late="redirect", threshold=-1000)):
        torch.testing.assert_close(clips, wanted, atol=2e-3 * wanted.std().item(), rtol=1e-2)
        assert all(verdict.redirected for verdict in looks.of(clips))
    mixed = made(1000, suspects=[1])
    assert torch.equal(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], wanted[1], atol=2e-3 * wanted.std().item(), rtol=1e-2)


@pytest.mark.parametrize("steps", [2, 3])
def test_what_is_said_of_a_drafted_clip_is_of_its_worst_frame(lab, steps):
    """A sampling of two steps is its own draft, so its log-odds are those of the clip that comes out."""
    looks = lab.module("host.safety.verdicts").Verdicts()
    model = lab.looking("latent", 1000, lab.other, looks=looks)
    made = lab.plain(lab.empty(2, FRAMES), steps, lab.guider(model))
    draft = made if steps == 2 else lab.plain(lab.empty(2, FRAMES), 2)
    assert [verdict.scores for verdict in looks.of(made)] == [
        [pytest.approx(clip.max().item(), abs=0.01)] for clip in log_odds(lab, "latent", draft)
    ]


def test_gate_behind_looks_knows_clips_and_does_not_cut_what_was_suspected_late(lab):
    looks = lab.module("host.safety.verdicts").Verdicts()
    with torch.inference_mode():
        made = lab.plain(lab.empty(1, FRAMES), 3, lab.guider(lab.looking("latent", 1000, lab.other, looks=looks)))
        _, known = lab.gate({"samples": made}, "latent", 1000, "grey", True, looks)
        changed = made.clone()
        changed[:, :, -1] *= 1.001
        _, unknown = lab.gate({"samples": changed}, "latent", 1000, "grey", True, looks)
        reported = lab.looking("latent", 1000, lab.other, "report", -1000, looks)
        late = lab.plain(lab.empty(1, FRAMES), 3, lab.guider(reported))
        safe, blocked = lab.gate({"samples": late}, "latent", 1000, "grey", True, looks)
    assert torch.equal(late, made), "it was only reported"
    assert known.blocked == [False] and unknown.blocked == [True] and "did not look at this" in unknown.reasons[0]
    assert blocked.blocked == [True] and "not in its draft" in blocked.reasons[0] and blocked.cut == ""
    assert safe["samples"].shape == made.shape and not safe["samples"].any()


def test_clip_that_a_gate_behind_looks_may_pass_is_cut_like_any_other(lab):
    looks = lab.module("host.safety.verdicts").Verdicts()
    batch = lab.plain(lab.empty(4, FRAMES), 3, lab.guider(lab.looking("latent", 1000, lab.other, looks=looks)))
    scores = log_odds(lab, "latent", batch)
    item = int((scores[:, 1:].amax(dim=1) - scores[:, 0]).argmax())  # whose later frames are worse than its first
    made, scores = batch[[item]], scores[item]
    clean = next(t for t in range(1, FRAMES) if scores[t] > scores[:t].max())
    threshold = ((scores[clean] + scores[:clean].max()) / 2).item()
    with torch.inference_mode():
        safe, report = lab.gate({"samples": made}, "latent", threshold, "grey", True, looks)
    assert report.blocked == [False] and report.cut and torch.equal(safe["samples"], made[:, :, :clean])


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_search_takes_clips_as_candidates(lab, judge, look):
    found = lab.search(
        lab.reward(judge), 6, lab.empty(1, FRAMES), look=look, cuts="50% → 1" if look == "cuts" else ""
    )
    full = lab.plain(lab.empty(3, FRAMES), 6)
    torch.testing.assert_close(
        found.best["samples"], full[found.best["batch_index"]], atol=2e-3 * full.std().item(), rtol=1e-2
    )
    assert found.rest["samples"].shape == (2, *full.shape[1:])


@pytest.mark.parametrize("judge", JUDGES)
def test_search_of_clips_chooses_the_best_of_those_that_it_finished(lab, judge):
    """By the score that Score Latents gives to the stock batch."""
    found = lab.search(lab.reward(judge), 3, lab.empty(1, FRAMES), look="cuts", cuts="60% → 2")
    alive = found.report["rounds"][0]["kept"]
    full = lab.plain(lab.empty(3, FRAMES), 3)
    with torch.inference_mode():
        scores = lab.module("host.scorers.reports").score_report({"samples": full}, lab.reward(judge)).scores
    assert found.best["batch_index"] == [max(alive, key=lambda item: scores[item].item())]


def test_noise_of_a_clip_is_not_optimised_and_the_reason_is_said(lab):
    with pytest.raises(ValueError, match=r"clip of 3 frames, expected one.*3 times the memory.*Search Best Images"):
        lab.reno(lab.reward("latent"), latent=lab.empty(1, FRAMES))


@pytest.fixture
def with_sound(clips):
    """Video with sound, as the host carries it: two latents as one."""
    from comfy.nested_tensor import NestedTensor

    sound = torch.randn(2, 8, 25, 16, generator=torch.Generator().manual_seed(3))
    return {"samples": NestedTensor([clips, sound]), "batch_index": [3, 4]}


def test_picture_part_of_video_with_sound_is_judged_and_the_sound_goes_along(lab, clips, with_sound):
    reports, latents = lab.module("host.scorers.reports"), lab.module("host.scorers.latents")
    video, sound = with_sound["samples"].unbind()
    with torch.inference_mode():
        report = reports.score_report(with_sound, lab.reward("latent"))
        alone = reports.score_report({"samples": clips}, lab.reward("latent"))
        picked = latents.select_items(with_sound, [1])
        passed, _ = lab.gate(with_sound, "latent", 1000)
        grey, blocked = lab.gate(with_sound, "latent", -1000, "grey", cut_clips=True)
    assert torch.equal(report.scores, alone.scores)
    assert [torch.equal(part, whole[[1]]) for part, whole in zip(picked["samples"].unbind(), (video, sound))] == [True] * 2
    assert picked["batch_index"] == [4] and passed is with_sound and blocked.cut == ""
    assert all(blocked.blocked) and not any(part.any() for part in grey["samples"].unbind()), "nor is the sound of a blocked clip heard"


def test_sampler_of_video_with_sound_is_not_steered_in_silence(lab, with_sound):
    steering = lab.module("host.sampling.steering")
    packed = torch.zeros(1, 1, 4000)

    class Packed(steering.Steering):
        name = "Guide Model by Reward"

    judge = Packed(None, lab.module("host.sampling.steering").Window(0.0, 1.0))
    judge.run = steering.Run(torch.tensor([1.0, 0.0]), [0])
    with pytest.raises(ValueError, match=r"as of video with sound.*put Safety Gate or Select"):
        judge.prediction(lambda *_: packed, packed, torch.tensor([1.0]), {})
    with pytest.raises(ValueError, match=r"without sound.*Select Best Latents"):
        lab.module("host.search.inputs").candidates_of(lab.model, with_sound, 2)
    with pytest.raises(ValueError, match="without sound"):
        lab.module("host.reno.checks").check_one_frame(with_sound["samples"])


def test_latents_without_frames_are_not_those_of_a_video_model(lab):
    """16 channels are Flux's too: a picture of it must not get a score in silence."""
    with torch.inference_mode(), pytest.raises(ValueError, match=r"without frames.*the wan21 space.*another model"):
        lab.module("host.scorers.reports").score_report({"samples": torch.randn(1, 16, 8, 8)}, lab.reward("latent"))
