"""The device that stands for a GPU refuses what a GPU refuses, computes what the CPU computes, and notices when it is waited for."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from latent_clip.tests import emulated_gpu
from latent_clip.tests.emulated_gpu import EmulatedGPU

pytestmark = pytest.mark.skipif(not emulated_gpu.AVAILABLE, reason="this torch lets no test register a device")


@pytest.fixture
def gpu():
    with EmulatedGPU("mps") as active:
        yield active


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(emulated_gpu.device())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: x + torch.ones(8, 8), "same device"),
        (lambda x: torch.nn.functional.conv2d(x, torch.ones(4, 4, 3, 3)), "same device"),
        (lambda x: torch.cat([x, torch.ones(1, 4, 8, 8)]), "same device"),
        (lambda x: x.double(), "float64"),
        (lambda x: torch.zeros(3, dtype=torch.float64, device=x.device), "float64"),
        (lambda x: torch.nn.functional.adaptive_avg_pool2d(x, (3, 3)), "must be divisible"),
    ],
    ids=["add", "conv", "cat", "double", "zeros", "pool"],
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_it_refuses(gpu, act, message, mode):
    with mode(), pytest.raises((RuntimeError, TypeError), match=message):
        act(on_gpu(1, 4, 8, 8))


def test_it_gives_the_cpus_numbers_there_and_back():
    """With views, writes into views, attention and checkpoints."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)

    def gradient(module, x):
        leaf = x.clone().requires_grad_()
        y = checkpoint(lambda z: module(z, z, z, need_weights=False)[0], leaf, use_reentrant=False)
        written = torch.zeros_like(y)
        written[:, 1:].add_(y[:, 1:] * 2)
        written[[0]] = 1.0
        return torch.autograd.grad(written.square().sum(), leaf)[0]

    expected = gradient(attention, x)
    with EmulatedGPU():
        there = emulated_gpu.device()
        found = gradient(attention.to(there), x.to(there))
        assert found.device == there
        torch.testing.assert_close(found.cpu(), expected)


def test_waiting_is_counted(gpu):
    x = on_gpu(4)
    assert not gpu.waits
    for wait in (
        lambda: x.sum().item(),
        lambda: bool((x > 0).any()),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: x[x > 0],
    ):
        before = gpu.waits.total()
        wait()
        assert gpu.waits.total() > before
    x * 2 + 1
    assert gpu.waits.total() == before + 1


def test_outside_it_nothing_has_changed():
    with EmulatedGPU("mps"):
        pass
    leaf = torch.ones(2, requires_grad=True)
    assert torch.autograd.grad((leaf.double() ** 2).sum(), leaf)[0].tolist() == [2.0, 2.0]
