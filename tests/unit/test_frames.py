"""Latents with a time axis: one frame is an image everywhere, and what counts of several is their mean or the worst."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.augmentations import Augmentations
from latent_clip.methods.capture import CudaRecording, captured_reward
from latent_clip.methods.concepts import ConceptDirections
from latent_clip.methods.features import WindowFeatures
from latent_clip.methods.gate import reasons_to_block_clips
from latent_clip.methods.guidance import AvoidConcepts, ClimbReward, ConceptMonitor, GuidanceSettings, correction
from latent_clip.methods.rewards import Reward, Term, text_reward
from latent_clip.models.frames import by_clip, clips_of, frames_in, pictures_of
from latent_clip.models.latent_spaces import LATENT_SPACES

RIGHT = torch.tensor([1.0, 0.0])
CLIPS = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class FakeEncoder:
    """Features of a picture: means of two of its channels."""

    space, reads_clips = LATENT_SPACES["wan21"], False

    def __call__(self, raw, noise_level=None):
        assert raw.ndim == 4
        return F.normalize(raw[:, :2].mean(dim=(2, 3)), dim=-1)

    @property
    def plain(self):
        return self

    def encode_windows(self, raw, noise_level=None):
        return WindowFeatures(self(raw), self(raw)[:, None])


@dataclass(frozen=True)
class ClipEncoder(FakeEncoder):
    """Reads clips as they are."""

    reads_clips = True

    def __call__(self, raw, noise_level=None):
        assert raw.ndim == 5
        return FakeEncoder()(pictures_of(raw))


def each_frame(reward):
    return torch.stack([reward(CLIPS[:, :, [t]]) for t in range(3)], dim=1)


def test_frames_become_pictures_and_clips_again():
    pictures = pictures_of(CLIPS)
    assert pictures.shape == (6, 16, 4, 4) and torch.equal(pictures[4], CLIPS[1, :, 1])
    assert torch.equal(clips_of(pictures, CLIPS), CLIPS)
    assert torch.equal(by_clip(pictures, 3)[1, 2], CLIPS[1, :, 2])
    image = CLIPS[:, :, 0]
    assert pictures_of(image) is image and clips_of(image, image) is image
    assert (frames_in(CLIPS.shape), frames_in(image.shape)) == (3, 1)


def test_one_frame_is_an_image():
    reward = text_reward(FakeEncoder(), "right", RIGHT)
    image = CLIPS[:, :, 0]
    assert torch.equal(reward.evaluate(CLIPS[:, :, :1])["right"], reward.evaluate(image)["right"])


@pytest.mark.parametrize("encoder", [FakeEncoder(), ClipEncoder()], ids=["pictures", "clips"])
def test_value_of_a_clip_is_the_mean_or_the_worst_of_its_frames(encoder):
    reward = text_reward(encoder, "right", RIGHT)
    frames = each_frame(text_reward(FakeEncoder(), "right", RIGHT))
    torch.testing.assert_close(reward(CLIPS), frames.mean(dim=1))
    torch.testing.assert_close(replace(reward, frames="worst")(CLIPS), frames.amin(dim=1))


@pytest.mark.parametrize("encoder", [FakeEncoder(), ClipEncoder()], ids=["pictures", "clips"])
def test_captured_reward_reads_clips_and_frames_as_the_reward_itself(encoder):
    """Without a gradient nothing is recorded, so this needs no GPU."""
    reward = replace(text_reward(encoder, "right", RIGHT), frames="worst")
    captured, _ = captured_reward(reward, CudaRecording)
    assert torch.equal(captured(CLIPS), reward(CLIPS))


def test_worst_frame_is_that_of_the_sum_and_its_terms_add_up():
    encoder = FakeEncoder()
    both = Reward((Term("a", encoder, lambda f: f[:, 0], 1.0), Term("b", encoder, lambda f: f[:, 1], -2.0)), "worst")
    values = both.evaluate(CLIPS)
    torch.testing.assert_close(both.weigh(values), each_frame(both).amin(dim=1))
    singles = {name: torch.stack([both.evaluate(CLIPS[:, :, [t]])[name] for t in range(3)], dim=1) for name in ("a", "b")}
    place = each_frame(both).argmin(dim=1)
    for name, value in values.items():
        torch.testing.assert_close(value, singles[name][torch.arange(2), place])


def test_frame_that_cannot_be_judged_is_the_worst():
    clips = CLIPS.clone()
    clips[0, :, 1] = math.nan
    reward = text_reward(FakeEncoder(), "right", RIGHT)
    for frames in ("mean", "worst"):
        values = replace(reward, frames=frames).evaluate(clips, check=False)["right"]
        assert values[0].isnan() and values[1].isfinite()


def test_another_word_for_frames_is_refused():
    with pytest.raises(ValueError, match="Got 'best' of the frames, expected one of mean, worst"):
        replace(text_reward(FakeEncoder(), "right", RIGHT), frames="best")


def concepts(threshold=0.0):
    return ConceptDirections(("right",), (threshold,), (RIGHT[None],), -RIGHT[None], 10.0)


def test_clip_shows_what_its_worst_frame_shows():
    watch = ConceptMonitor(FakeEncoder(), concepts())
    flags = watch.check(CLIPS)
    frames = torch.stack([ConceptMonitor(FakeEncoder(), concepts()).check(CLIPS[:, :, [t]]).scores for t in range(3)], dim=1)
    torch.testing.assert_close(flags.scores, frames.amax(dim=1))
    assert torch.equal(watch.flagged, (frames >= 0).any(dim=1))


@pytest.mark.parametrize("frames", ["mean", "worst"])
def test_guidance_climbs_a_clip_and_no_frame_gets_more_than_its_share(frames):
    reward = replace(text_reward(FakeEncoder(), "right", RIGHT), frames=frames)
    settings = GuidanceSettings(strength=0.3)
    change, _ = correction(ClimbReward(reward), CLIPS, lambda x: x, 0.5, settings)
    rms = change.pow(2).mean(dim=(1, 3, 4)).sqrt()
    assert (rms <= 0.15 * (1 + 1e-5)).all() and (rms.amax(dim=1) > 0.1).all()
    assert (reward(CLIPS + change) > reward(CLIPS)).all()
    touched = (change.abs().amax(dim=(1, 3, 4)) > 0).sum(dim=1)
    assert touched.tolist() == ([3, 3] if frames == "mean" else [1, 1])


def test_gradient_of_a_clip_equals_finite_differences():
    objective = AvoidConcepts(ConceptMonitor(FakeEncoder(), concepts(-5.0)))
    clips = CLIPS.double().requires_grad_()

    def value(x):
        objective.start()
        return objective(x)[0]

    torch.autograd.gradcheck(value, clips, atol=1e-3, rtol=1e-3, eps=1e-4)


def test_gate_blocks_a_clip_when_any_frame_is_over():
    scores = torch.tensor([[[-2.0], [-1.0], [3.0], [-1.0]], [[-2.0], [-2.0], [-2.0], [-2.0]], [[math.nan], [-1.0], [-1.0], [-1.0]]])
    reasons, clean = reasons_to_block_clips(scores, ["right"], [1.0])
    assert reasons[0] == "right: log-odds 3.00, threshold 1.00 (in 1 of 4 frames, from frame 3 on)"
    assert reasons[1] == "" and "could not be judged" in reasons[2]
    assert clean == [2, 4, 0]


def test_gate_tells_no_frames_of_an_image():
    reasons, clean = reasons_to_block_clips(torch.tensor([[[3.0]], [[0.0]]]), ["right"], [1.0])
    assert reasons == ["right: log-odds 3.00, threshold 1.00", ""] and clean == [0, 1]


def test_view_of_a_still_image_of_a_video_model_is_that_of_the_picture():
    image = CLIPS[:, :, :1]
    assert torch.equal(Augmentations(seed=3)(image, 2)[:, :, 0], Augmentations(seed=3)(image[:, :, 0], 2))
