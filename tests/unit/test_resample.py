"""Area averages and bicubic resizing as matrix products: torch's own numbers, in and out of inference mode."""

import pytest
import torch
import torch.nn.functional as F

from latent_clip.models import resample as module
from latent_clip.models.fit import fit_latents
from latent_clip.models.resample import area_average, resample
from latent_clip.tests.sizes import SDXL_SIZES

EPS = torch.finfo(torch.float32).eps
by_size = pytest.mark.parametrize("size", SDXL_SIZES, ids="{0[0]}x{0[1]}".format)


def latents(width: int, height: int) -> torch.Tensor:
    """With the spread of SDXL's raw latents."""
    return torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(width + height)) * 7.7


def targets(size: tuple[int, int]) -> set[tuple[int, int]]:
    """What `fit_latents` reduces a latent of so many pixels to."""
    width, height = size[0] // 8, size[1] // 8
    short = min(width, height)
    return {(64, 64), (max(64, round(height * 64 / short)), max(64, round(width * 64 / short)))}


@by_size
def test_area_averages_are_as_exact_as_torchs(size):
    """Sums in another order: at most 3 eps of a window's mean magnitude apart, and within 2.2 eps of the true mean."""
    x = latents(*size)
    for target in targets(size):
        torchs, ours = F.adaptive_avg_pool2d(x, target), area_average(x, *target)
        truth, magnitude = F.adaptive_avg_pool2d(x.double(), target), F.adaptive_avg_pool2d(x.abs(), target)
        assert ((ours - torchs).abs() <= 3 * EPS * magnitude).all()
        assert ((ours - truth).abs() <= 2.2 * EPS * magnitude).all()


@pytest.mark.parametrize("pixels", [512, 1024, 1536, 2048])
def test_sizes_that_divide_keep_every_bit(pixels):
    x = latents(pixels, pixels)
    for fit in ("tiles", "crop", "squash"):
        assert torch.equal(fit_latents(x, 64, fit)[:, 0], F.adaptive_avg_pool2d(x, (64, 64)))


@pytest.mark.parametrize("size", [(64, 64), (47, 40), (37, 90), (20, 24), (31, 33)], ids=str)
@pytest.mark.parametrize("target", [(32, 32), (33, 47)], ids=str)
def test_bicubic_is_torchs_with_antialias(size, target):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, target, mode="bicubic", antialias=True)
    torch.testing.assert_close(resample(x, *target, "bicubic"), expected, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("method", ["area", "bicubic"])
def test_gradients_are_exact(method):
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, 3, 4, method), x)


@pytest.mark.parametrize("method", ["area", "bicubic"])
def test_weights_made_in_inference_mode_serve_gradients(method):
    module._matrix.cache_clear()
    with torch.inference_mode():
        first = resample(torch.ones(1, 1, 7, 5), 3, 4, method)
    x = torch.ones(1, 1, 7, 5, requires_grad=True)
    second = resample(x, 3, 4, method)
    second.sum().backward()
    assert module._matrix.cache_info().hits == 2
    assert torch.equal(first, second)
    assert x.grad.sum().item() == pytest.approx(12, rel=1e-5)
    with torch.inference_mode():
        assert torch.equal(resample(torch.ones(1, 1, 7, 5), 3, 4, method), first)


def test_estimate_with_fake_tensors_leaves_none_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    module._matrix.cache_clear()
    with FakeTensorMode():
        assert resample(torch.ones(1, 1, 7, 5), 3, 4, "area").shape == (1, 1, 3, 4)
    torch.testing.assert_close(resample(torch.ones(1, 1, 7, 5), 3, 4, "area"), torch.ones(1, 1, 3, 4))


def test_half_precision_stays_half():
    x = torch.ones(1, 1, 7, 5, dtype=torch.bfloat16)
    assert resample(x, 3, 4, "area").dtype == torch.bfloat16
