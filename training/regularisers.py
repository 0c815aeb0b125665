"""Regularisers that keep a VAE close to the original while its encoder learns, so that its decoder and its diffusion model still work."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models.checkpoint import read_tensors

Normal = Callable[..., Tensor]  # sizes → unit noise of that shape


class Autoencoder(Protocol):
    """A VAE that can be trained, an `nn.Module`; pictures are (B, side, side, 3) in 0..1."""

    def encode(self, pixels: Tensor, normal: Normal | None = None) -> dict[str, Tensor]:
        """`raw` (B, C, h, w), the posterior's mean as a LATENT wire carries it; `mean` and `log_variance`, as the network has them.

        With unit noise also `sample`, drawn from the posterior, in the shape of `raw`.
        """
        ...

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Pictures (B, side, side, 3) about 0..1, not clamped, so that values outside of 0..1 still have a gradient."""
        ...

    def halves(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters of the encoder and of the decoder."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors in the layout of the file that the host opens."""
        ...


@dataclass(frozen=True)
class RegulariserWeights:
    """Weights λ of the terms that are added to the loss; 0 leaves a term out.

    Attributes:
        l1: mean absolute difference of a picture and its round trip, of pixels in 0..1.
        lpips: perceptual difference of the two by the package lpips, which must be at hand with its VGG.
        kl: divergence of the posterior from the unit normal, per number: keeps its width, on which a diffusion model may be trained.
        distance: mean squared distance of the new latents to the old, in variances of each channel: the diffusion model was trained on the old ones.
    """

    l1: float = 1.0
    lpips: float = 0.0
    kl: float = 1e-6
    distance: float = 1.0

    def __post_init__(self) -> None:
        if negative := [name for name, value in vars(self).items() if not value >= 0]:
            raise ValueError(f"Got a negative weight of {negative[0]}, expected 0, which leaves it out, or more.")


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) as a mean over all numbers: ½(mean² + variance - 1 - log variance). Kingma & Welling, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def distance(new: Tensor, old: Tensor, variance: Tensor) -> Tensor:
    """Mean squared distance of raw latents (B, C, h, w) in variances (C,) of their channels; a scalar."""
    return ((new.float() - old.float()).square() / variance.view(1, -1, 1, 1)).mean()


def perceptual(vgg: Path | None, device: torch.device | str) -> nn.Module:
    """The field's LPIPS with VGG, frozen: two batches (B, 3, H, W) in -1..1 → (B, 1, 1, 1).

    Args:
        vgg: torchvision's vgg16 weights. Nothing is downloaded.

    Raises:
        ValueError: the package or the weights are missing.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ValueError(
            "Got a weight for LPIPS, but the package lpips is not installed. Install it, or leave --lpips out."
        ) from error
    if vgg is None or not vgg.is_file():
        raise ValueError(
            f"Got a weight for LPIPS and {vgg or 'no file'} for its VGG, expected torchvision's vgg16-397923af.pth. Name it with "
            "--lpips-vgg, or leave --lpips out."
        )
    network, (tensors, _) = LPIPS(net="vgg", pnet_rand=True, verbose=False), read_tensors(vgg)
    # lpips keeps the numbers of torchvision's layers: slice2.7.weight is features.7.weight
    network.net.load_state_dict({
        name: tensors[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()
    })  # fmt: skip
    return network.requires_grad_(False).to(device)


class Regulariser(nn.Module):
    """Terms of the loss that compare a VAE with its original.

    Args:
        vae: the original; a copy is kept where the distance counts. variance: of every channel of its raw latents (C,).
    """

    variance: Tensor

    def __init__(self, weights: RegulariserWeights, vae: nn.Module, variance: Tensor, lpips: nn.Module | None = None) -> None:
        super().__init__()
        self.weights, self.lpips = weights, lpips
        self.old = deepcopy(vae).requires_grad_(False) if weights.distance else None
        self.register_buffer("variance", variance.clone())

    def forward(self, vae: Autoencoder, pixels: Tensor, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weighted terms by name, each a scalar."""
        weights, terms = self.weights, {}
        if weights.l1 or self.lpips is not None:
            decoded = vae.decode(encoded["sample"]).float()
        if weights.l1:
            terms["l1"] = weights.l1 * (decoded - pixels).abs().mean()
        if self.lpips is not None:
            pair = (picture.movedim(-1, 1) * 2 - 1 for picture in (decoded, pixels))
            terms["lpips"] = weights.lpips * self.lpips(*pair).mean()
        if weights.kl:
            terms["kl"] = weights.kl * kl_to_normal(encoded["mean"].float(), encoded["log_variance"].float())
        if self.old is not None:
            with torch.no_grad():
                before = self.old.encode(pixels)["raw"]
            terms["distance"] = weights.distance * distance(encoded["raw"], before, self.variance)
        return terms


def psnr(pictures: Tensor, others: Tensor) -> Tensor:
    """Peak signal to noise of each picture (B, ...) in 0..1, in dB: (B,)."""
    return -10 * (pictures - others).square().flatten(1).mean(1).clamp_min(1e-10).log10()
