"""latent-clip finetune-vae without a host: regularisers, which weights are trained, resume to the bit, pictures by step, refusals."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("webdataset")

from latent_clip.models.checkpoint import read_checkpoint, sha256_of
from latent_clip.models.latent_clip import LatentCLIP
from latent_clip.models.latent_spaces import LatentSpace
from latent_clip.models.own_spaces import space_as_dict
from latent_clip.models.vae_signature import signature_of
from latent_clip.training import loop
from latent_clip.training.finetune_options import FinetuneOptions
from latent_clip.training.finetune_vae import Start, finetune
from latent_clip.training.picture_batches import PictureBatches, Shown
from latent_clip.training.regularisers import Regulariser, RegulariserWeights, distance, kl_to_normal, perceptual, psnr
from latent_clip.training.release import model_card
from latent_clip.training.shards import Dataset
from latent_clip.training.sources import SourceError, records_of
from latent_clip.training.starts import config_for_latents

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PIXEL = {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "image_size": 16, "patch_size": 4}, "text_cfg": TEXT}
CONFIG = config_for_latents(PIXEL, channels=5, grid=4, patch_size=1, factor=4)
NAMES = ["a red cat", "a blue dog", "one green fish", "two old birds"]
SPACE = LatentSpace("odd", 5, 4, 1.0, 0.0, "of a test")


class PatchVAE(nn.Module):
    """Pictures of 16×16 pixels to 5×4×4 and back, each by one convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.decoder = nn.Conv2d(3, 10, 4, 4), nn.ConvTranspose2d(5, 3, 4, 4)

    def encode(self, pixels, normal=None):
        mean, log_variance = self.encoder(pixels.movedim(-1, 1)).chunk(2, 1)
        found = {"raw": mean, "mean": mean, "log_variance": log_variance}
        return found if normal is None else found | {"sample": mean + (log_variance / 2).exp() * normal(*mean.shape)}

    def decode(self, raw):
        return self.decoder(raw).movedim(1, -1)

    def halves(self):
        return list(self.encoder.parameters()), list(self.decoder.parameters())

    def weights(self):
        return self.state_dict()


class Kinds:
    """Pictures of four kinds with noise on them, and their names."""

    def batch(self, step):
        return self._shown(8, step)

    def some(self, count):
        return iter([self._shown(8, -1), self._shown(8, -2)])

    def _shown(self, count, seed):
        generator = torch.Generator().manual_seed(seed % 1000)
        kinds = torch.arange(count) % 4
        base = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(99))
        pixels = base[kinds] * 0.8 + 0.2 * torch.rand(count, 16, 16, 3, generator=generator)
        return Shown(pixels, [[NAMES[kind]] for kind in kinds.tolist()])


class Teacher:
    """Mean colours, as unit features of as many numbers as the tower has."""

    def features(self, pixels):
        return nn.functional.normalize(nn.functional.pad(pixels.mean((1, 2)), (0, 13), value=0.1), dim=-1)


def start():
    torch.manual_seed(0)
    dataset = Dataset(space_as_dict(SPACE), {"name": "odd.safetensors", "sha256": "ab12"}, {"names": ["centre"], "side": 16}, source="kinds")
    return Start("mine.safetensors", LatentCLIP(CONFIG), CONFIG, dataset)


def options(folder, **changes):
    base = FinetuneOptions(
        output=folder / "clip.safetensors", output_vae=folder / "vae.safetensors", logs=folder / "logs", contrastive=1.0, train_num_samples=8 * 12,
        batch_size=8, lr=3e-3, vae_lr=3e-3, warmup=2, ema=0.5, precision="fp32", save_every=4,
    )  # fmt: skip
    return replace(base, **changes)


def changed(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ------------------------------------------------------------------------------------------------------- regularisers


def test_kl_is_that_of_torch_and_zero_at_the_prior():
    mean, log_variance = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_normal(mean, log_variance), expected)
    assert kl_to_normal(torch.zeros(3), torch.zeros(3)) == 0


def test_distance_counts_in_variances_of_each_channel():
    old = torch.zeros(2, 2, 3, 3)
    new = torch.stack([torch.full((2, 3, 3), 2.0), torch.full((2, 3, 3), 5.0)], 1)
    assert distance(new, old, torch.tensor([4.0, 25.0])) == 1
    assert distance(new, old, torch.tensor([4.0, 2.5])) == pytest.approx((1 + 10) / 2)


def test_psnr_of_each_picture():
    found = psnr(torch.zeros(2, 4, 4, 3), torch.stack([torch.full((4, 4, 3), 0.1), torch.ones(4, 4, 3)]))
    torch.testing.assert_close(found, torch.tensor([20.0, 0.0]))


def test_at_step_0_nothing_pulls_but_what_the_round_trip_lacks():
    vae, pixels = PatchVAE(), Kinds().batch(0).pixels
    encoded = vae.encode(pixels, lambda *shape: torch.zeros(shape))
    terms = Regulariser(RegulariserWeights(l1=2.0, kl=0.5, distance=3.0), vae, torch.ones(5))(vae, pixels, encoded)
    assert terms["distance"] == 0
    torch.testing.assert_close(terms["l1"], 2 * (vae.decode(encoded["raw"]) - pixels).abs().mean())
    torch.testing.assert_close(terms["kl"], 0.5 * kl_to_normal(encoded["mean"], encoded["log_variance"]))
    with torch.no_grad():
        vae.encoder.bias.add_(1)  # every mean by 1
    held = Regulariser(RegulariserWeights(distance=3.0), PatchVAE(), torch.full((5,), 4.0))
    assert held(vae, pixels, vae.encode(pixels, torch.randn))["distance"].item() == pytest.approx(3 / 4, rel=1e-5)
    assert set(Regulariser(RegulariserWeights(1.0, 0, 0, 0), vae, torch.ones(5))(vae, pixels, vae.encode(pixels, torch.randn))) == {"l1"}
    with pytest.raises(ValueError, match="negative weight of kl"):
        RegulariserWeights(kl=-1)


def test_lpips_is_refused_by_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="package lpips is not installed"):
        perceptual(tmp_path / "vgg.pth", "cpu")
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=None))
    with pytest.raises(ValueError, match="no file for its VGG"):
        perceptual(None, "cpu")


def test_lpips_reads_torchvisions_vgg_and_has_a_gradient(tmp_path):
    pytest.importorskip("lpips")
    from torchvision.models import vgg16

    vgg = vgg16(weights=None)
    torch.save({f"features.{name}": tensor for name, tensor in vgg.features.state_dict().items()}, tmp_path / "vgg.pth")
    measure = perceptual(tmp_path / "vgg.pth", "cpu")
    assert torch.equal(measure.net.slice5[-2].weight, vgg.features[28].weight)
    vae, pixels = PatchVAE(), torch.rand(2, 32, 32, 3)
    terms = Regulariser(RegulariserWeights(0, 0.5, 0, 0), vae, torch.ones(5), measure)(vae, pixels, vae.encode(pixels, torch.randn))
    terms["lpips"].backward()
    assert set(terms) == {"lpips"} and vae.encoder.weight.grad.abs().sum() > 0
    assert measure(pixels.movedim(-1, 1), pixels.movedim(-1, 1)).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------------- the run


def test_encoder_learns_from_the_captions_and_the_decoder_stays(tmp_path):
    vae, clip = PatchVAE(), start()
    vae_before, clip_before = copied(vae), copied(clip.model)
    figures = finetune(options(tmp_path, regularisers=RegulariserWeights(0, 0, 0, 0)), vae, clip, Kinds(), log=lambda text: None)
    assert changed(vae, vae_before) == {"encoder.weight", "encoder.bias"}  # no regularisers: the captions' gradient alone
    assert not any(name.startswith("text.") for name in changed(clip.model, clip_before))
    assert "visual.conv1.weight" in changed(clip.model, clip_before)
    assert figures["distance, before"] == 0 < figures["distance, after"]
    assert {"reconstruction PSNR, after", "top1, after", "kl, before"} <= set(figures)


@pytest.mark.parametrize(("more", "expected"), [({"decoder": True}, "decoder.weight"), ({"train_text": True}, "encoder.weight")])
def test_what_else_is_trained_on_request(tmp_path, more, expected):
    vae, clip = PatchVAE(), start()
    vae_before, clip_before = copied(vae), copied(clip.model)
    finetune(options(tmp_path, **more), vae, clip, Kinds(), log=lambda text: None)
    assert expected in changed(vae, vae_before)
    assert ("decoder.weight" in changed(vae, vae_before)) == ("decoder" in more)
    assert any(name.startswith("text.") for name in changed(clip.model, clip_before)) == ("train_text" in more)


def test_strong_regulariser_keeps_the_latents(tmp_path):
    moved = {}
    for weight in (0.0, 1000.0):
        weights = RegulariserWeights(0, 0, 0, weight)
        figures = finetune(options(tmp_path / str(weight), regularisers=weights), PatchVAE(), start(), Kinds(), log=lambda text: None)
        moved[weight] = figures["distance, after"]
    assert moved[1000.0] < moved[0.0] / 10


def test_teacher_reaches_the_encoder_without_captions(tmp_path):
    vae, clip = PatchVAE(), start()
    before = copied(vae)
    asked = options(tmp_path, contrastive=0.0, distil=1.0, regularisers=RegulariserWeights(0, 0, 0, 0), train_num_samples=8 * 40)
    figures = finetune(asked, vae, clip, Kinds(), teacher=Teacher(), log=lambda text: None)
    assert changed(vae, before) == {"encoder.weight", "encoder.bias"}
    assert figures["teacher, after"] > figures["teacher, before"] + 0.2
    with pytest.raises(ValueError, match="without a --teacher"):
        finetune(asked, vae, clip, Kinds(), log=lambda text: None)


def test_teacher_whose_texts_are_others_is_refused(tmp_path):
    clip, teacher = start(), Teacher()
    teacher.clip = SimpleNamespace(model=LatentCLIP(CONFIG))
    asked = options(tmp_path, contrastive=0.0, distil=1.0)
    with pytest.raises(ValueError, match=r"text tower is not that of mine.safetensors"):
        finetune(asked, PatchVAE(), clip, Kinds(), teacher=teacher, log=lambda text: None)
    teacher.clip.model.text.load_state_dict(clip.model.text.state_dict())
    finetune(asked, PatchVAE(), clip, Kinds(), teacher=teacher, log=lambda text: None)


def test_two_files_tell_of_each_other_and_of_what_was_done(tmp_path):
    vae, clip, said = PatchVAE(), start(), []
    asked = options(tmp_path, regularisers=RegulariserWeights(l1=2.0, distance=0.5))
    figures = finetune(asked, vae, clip, Kinds(), Kinds(), log=said.append)
    checkpoint = read_checkpoint(asked.output)
    told, training = json.loads(checkpoint.metadata["vae"]), json.loads(checkpoint.metadata["training"])
    assert told.pop("signature") == signature_of(load_file(asked.output_vae))
    assert told == {"name": "vae.safetensors", "sha256": sha256_of(asked.output_vae)}
    assert checkpoint.space.name == "odd" and training["figures"] == figures
    assert training["regularisers"] == {"l1": 2.0, "lpips": 0.0, "kl": 1e-6, "distance": 0.5} and training["start vae"]["sha256"] == "ab12"
    assert training["figures of"] == "held-out pictures" and any("PSNR" in line for line in said)
    with safe_open(asked.output_vae, "pt") as file:
        assert json.loads(file.metadata()["finetuned_from"])["sha256"] == "ab12"
        for name, tensor in vae.state_dict().items():
            assert torch.equal(file.get_tensor(name), tensor)
    card = model_card(asked.output)
    assert "start vae" in card and "distance, after" in card


def test_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    asked = options(tmp_path / "whole", decoder=True)
    finetune(asked, PatchVAE(), start(), Kinds(), log=lambda text: None)
    torn, step = options(tmp_path / "torn", decoder=True), loop._step
    calls = iter(range(100))

    def killed(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(torn, PatchVAE(), start(), Kinds(), log=lambda text: None)
    monkeypatch.setattr(loop, "_step", step)
    finetune(torn, PatchVAE(), start(), Kinds(), log=lambda text: None)
    for name in ("output_vae", "output"):
        with safe_open(getattr(asked, name), "pt") as one, safe_open(getattr(torn, name), "pt") as other:
            assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118


def test_less_than_a_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="7 samples for batches of 8"):
        finetune(options(tmp_path, train_num_samples=7), PatchVAE(), start(), Kinds())
    with pytest.raises(ValueError, match="learning rates of 0 and"):
        options(tmp_path, lr=0.0)


# ------------------------------------------------------------------------------------------------------- pictures by step


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        Image.new("RGB", (40 + number, 32), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"shade {number}")
    return tmp_path


def shades(shown):
    """Which picture each is, by its colour; it must be the one that its caption names."""
    found = [round(value * 255 / 20) for value in shown.pixels[:, 0, 0, 0].tolist()]
    assert [[f"shade {number}"] for number in found] == shown.captions
    return found


def test_every_picture_comes_once_before_any_comes_again(folder):
    pictures = PictureBatches(records_of(str(folder)), 16, 4, 10, seed=1)
    seen = [number for step in range(5) for number in shades(pictures.batch(step))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert shades(pictures.batch(2)) == seen[8:12] and pictures.batch(0).pixels.shape == (4, 16, 16, 3)
    assert [n for shown in pictures.some(6, 3) for n in shades(shown)] == [n for shown in pictures.some(6) for n in shades(shown)]
    with pytest.raises(SourceError, match="10 pictures for batches of 11"):
        PictureBatches(records_of(str(folder)), 16, 11, 1)


def test_workers_read_what_one_process_reads_from_any_step_on(folder):
    alone, ahead = (PictureBatches(records_of(str(folder)), 16, 4, 6, 1, ("random", "random-flip"), workers) for workers in (0, 1))
    for step in (2, 3, 5):
        torch.testing.assert_close(ahead.batch(step).pixels, alone.batch(step).pixels, atol=0, rtol=0)


def test_broken_pictures_are_replaced_and_counted(folder):
    (folder / "broken.png").write_bytes(b"no")
    pictures = PictureBatches(records_of(str(folder)), 16, 11, 1)
    assert len(shades(pictures.batch(0))) == 11
    assert pictures.skipped == {"broken.png": "no picture"}
    for number in range(10):
        (folder / f"{number}.png").write_bytes(b"no")
    with pytest.raises(SourceError, match="50 pictures in a row cannot be read"):
        pictures.batch(0)


def test_figures_stay_finite_for_a_perfect_round_trip():
    assert math.isfinite(psnr(torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, 3)).item())
