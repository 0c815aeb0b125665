"""Autograd through networks that overwrite what it keeps."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

# host/ imports ComfyUI, this file of it only torch
_spec = importlib.util.spec_from_file_location("in_place", Path(__file__).resolve().parents[2] / "host" / "memory" / "in_place.py")
in_place = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(in_place)


class Block(nn.Module):
    """As Flux's: the norm keeps its input, which is then overwritten, twice."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, options=None):
        for layer in (self.first, self.second):
            change = layer(nn.functional.layer_norm(x, (8,))).tanh()
            if self.how == "plain":
                x = x + change
            elif self.how == "+=":
                x += change
            elif self.how == "addcmul_":
                x.addcmul_(change, torch.ones_like(change))
            elif self.how == "slice":
                x[:, 1:] += change[:, 1:]
                x[:, :1] += change[:, :1]
            else:
                torch.add(x, change, out=x) if not torch.is_grad_enabled() else x.copy_(x + change)
        return x


def network(how: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleList([Block(how).double(), Block(how).double()])


def gradient(blocks: nn.Module, again: bool = False) -> torch.Tensor:
    noise = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with in_place.writable_activations():
        x = noise * 1
        for block in blocks:
            x = in_place.recomputed(block, (x,), {"options": {"index": [x]}}) if again else block(x)
        return torch.autograd.grad(x.sin().sum(), noise)[0]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("how", ["+=", "addcmul_", "slice", "copy_"])
def test_gradient_is_that_of_the_network_which_overwrites_nothing(how, again):
    torch.testing.assert_close(gradient(network(how), again), gradient(network("plain")), atol=1e-12, rtol=1e-12)


def test_without_it_autograd_refuses():
    noise = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(network("+=")[0](noise * 1).sum(), noise)


def test_what_is_overwritten_unseen_is_an_error_and_no_wrong_gradient():
    noise = torch.randn(4, requires_grad=True)
    with in_place.writable_activations():
        x = noise * 1
        y = x * x
        with torch._C.DisableTorchFunction():
            x.add_(1)  # as a kernel of another library might
        with pytest.raises(RuntimeError, match="inplace operation"):
            torch.autograd.grad(y.sum(), noise)


def test_only_what_is_overwritten_is_copied():
    copies = []
    noise = torch.randn(4, requires_grad=True)
    with in_place.writable_activations():
        a = noise * 2
        b = a * a
        c = b * b
        before, in_place._Kept.copy = in_place._Kept.copy, lambda one: copies.append(one) or before(one)
        try:
            b += 1
        finally:
            in_place._Kept.copy = before
        (found,) = torch.autograd.grad((c + b).sum(), noise)
    assert {one.tensor.data_ptr() for one in copies} and len(copies) <= 2
    x = noise.detach().requires_grad_()
    squares = (2 * x) ** 2
    torch.testing.assert_close(found, torch.autograd.grad((squares * squares + squares + 1).sum(), x)[0])


def test_nothing_is_held_once_the_graph_is_gone():
    mode = in_place._CopyBeforeWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.keep, in_place._Kept.unpack), mode:
        x = torch.randn(4, requires_grad=True) * 1
        loss = (x * x).exp().sum()
        assert any(one() is not None for kept in mode._kept.values() for one in kept)
        del x, loss
        gc.collect()
    assert not any(one() is not None for kept in mode._kept.values() for one in kept)


def test_recomputed_passes_tuples_and_leaves_what_needs_no_gradient():
    layer = nn.Linear(4, 4)
    x, other = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)

    def block(x, other, scale=None):
        return x + layer(x) * scale, other * 2

    out, second = in_place.recomputed(block, (x, other), {"scale": torch.tensor(3.0)})
    (found,) = torch.autograd.grad(out.sum() + second.sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(block(x, other, torch.tensor(3.0))[0].sum(), x)[0])
