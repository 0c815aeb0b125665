"""What a Mac's GPU refuses, emulated: the meta device stands for it, and operators that MPS does not have raise as they do there.

Nothing is computed, so every SDXL size costs nothing. It shows that no refused operator is reached, not what a driver does.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latent_clip.methods.classify import classify
from latent_clip.methods.concepts import concept_directions
from latent_clip.methods.features import encode_latents, encode_pixels, encode_windows
from latent_clip.methods.gate import blurred, extra_views
from latent_clip.methods.guidance import ConceptMonitor
from latent_clip.methods.reno import RenoSettings, _NoiseOptimizer, norm_prior
from latent_clip.methods.rewards import Reward, Term, avoid_reward, combine, text_reward
from latent_clip.models.concepts import shipped_concepts
from latent_clip.models.fit import FITS, fit_latents
from latent_clip.models.latent_spaces import LATENT_SPACES
from latent_clip.models.shapes_world import load_latent_clip, load_pixel_clip
from latent_clip.tests.emulated_gpu import MOVES, refuse_as_mps, tensors
from latent_clip.tests.sizes import SDXL_SIZES

MPS = torch.device("meta")
by_size = pytest.mark.parametrize("size", SDXL_SIZES, ids="{0[0]}x{0[1]}".format)


class RefuseAsMps(TorchDispatchMode):
    """Raise what MPS raises (PyTorch 2.11): ATen/native/mps/operations/Pooling.mm and AdaptivePooling.mm, missing kernels, float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name == "aten::_to_copy" and args[0].device == MPS and (kwargs or {}).get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # read back: any numbers do
        result = function(*args, **(kwargs or {}))
        before, after = tensors((args, kwargs)), tensors(result)
        if any(tensor.device == MPS for tensor in (*before, *after)):
            refuse_as_mps(name, before, [tensor for tensor in after if tensor.device == MPS])
            if name not in MOVES and any(tensor.device != MPS and tensor.ndim for tensor in before):
                raise RuntimeError(f"{name}: expected all tensors on the same device, but found mps and cpu.")
        return result


@pytest.fixture
def mps():
    with RefuseAsMps():
        yield


def latents(size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    return torch.empty(batch, 4, size[1] // 8, size[0] // 8, device=MPS, requires_grad=True)


@by_size
@pytest.mark.parametrize("fit", FITS)
def test_every_size_can_be_judged_and_climbed(mps, fit, size):
    raw = latents(size)
    views = fit_latents(raw, 64, fit)
    assert views.device == MPS
    assert torch.autograd.grad(views.sum(), raw)[0].shape == raw.shape


@by_size
def test_every_size_can_be_blurred_and_looked_at_again(mps, size):
    raw = latents(size).detach()
    assert blurred(raw).shape == raw.shape
    assert extra_views(raw, 3).shape == (3, *raw.shape)


@pytest.mark.parametrize(
    "size", [(1216, 832), (1024, 1024), (64, 64), (96, 64), (640, 1536)], ids="{0[0]}x{0[1]}".format
)
def test_pictures_of_every_size_can_be_judged_and_climbed(mps, size):
    clip = load_pixel_clip()
    tower = clip.model.visual.to(MPS)
    pixels = torch.empty(1, 3, size[1], size[0], device=MPS, requires_grad=True)
    features = encode_pixels(tower, pixels, clip.image_size, torch.tensor(clip.mean), torch.tensor(clip.std))
    assert torch.autograd.grad(features.sum(), pixels)[0].shape == pixels.shape


class Cells:
    """All numbers of a latent as its features."""

    space, reads_clips = LATENT_SPACES["shapes-world"], False

    def __call__(self, raw_latents, noise_level=None):
        return raw_latents.flatten(1)


class Encoder:
    space, reads_clips = LATENT_SPACES["shapes-world"], False

    def __init__(self):
        model, _ = load_latent_clip()
        self.tower = model.visual.to(MPS)

    def __call__(self, raw_latents, noise_level=None):
        return encode_latents(self.tower, raw_latents, 8, "tiles")

    @property
    def plain(self):
        return self

    def encode_windows(self, raw_latents, noise_level=None):
        return encode_windows(self.tower, raw_latents, 8, "tiles", closer=True)


def test_rewards_concepts_and_classes_stay_in_what_the_device_has(mps):
    encoder, text = Encoder(), torch.randn(96)
    concepts = concept_directions(lambda texts: torch.randn(len(texts), 96), shipped_concepts(), 20.0)
    reward = combine([text_reward(encoder, "text", text, -text), avoid_reward(encoder, concepts)])
    raw = latents((104, 64), 2)
    value = reward.weigh(reward.evaluate(raw, check=False))
    assert torch.autograd.grad(value.sum(), raw)[0].shape == raw.shape
    assert classify(encoder(raw), torch.randn(3, 96), 20.0).shape == (2, 3)
    flags = ConceptMonitor(encoder, concepts).check(raw)
    assert flags.scores.device == MPS and flags.categories.device == torch.device("cpu")


def test_reno_step_stays_in_what_the_device_has(mps):
    noise = latents((104, 64), 2)
    run = _NoiseOptimizer(noise, RenoSettings(), None)
    generated = noise * 2
    leaf = generated.detach().requires_grad_()
    reward = Reward((Term("mean", Cells(), lambda f: f.mean(dim=1)),))
    norms = run._step(generated, leaf, reward.weigh(reward.evaluate(leaf, check=False)), [0, 1])
    assert norms.device == MPS
    assert norm_prior(noise.detach()).dtype == torch.float32


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: torch.nn.functional.adaptive_avg_pool2d(x, (64, 94)), "must be divisible"),
        (lambda x: x.double(), "float64"),
        (lambda x: x @ torch.ones(x.shape[-1], 3), "same device"),
        (
            lambda x: torch.nn.functional.interpolate(x, (9, 9), mode="bicubic", antialias=True).sum().backward(),
            "not currently implemented for the MPS device",
        ),
    ],
    ids=["pool", "float64", "devices", "bicubic"],
)
def test_emulation_refuses(mps, act, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        act(latents((1216, 832)))
