"""A differentiable sampler: k-diffusion's are decorated with no_grad."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps of the probability-flow ODE (Karras et al. 2022, algorithm 1 without the second-order correction).

    The denoiser hides whether the network predicts eps, v or flow, so the same line serves them all. With one step to
    sigma 0 the result is the denoiser's x0.

    Args:
        denoise: (x (B, C, H, W), sigma (B,)) → x0 prediction (B, C, H, W).
        x: at noise level sigmas[0].
        sigmas: (steps + 1,), falling.
    """
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(x, sigma.expand(x.shape[0]))
        if next_sigma == 0:
            x = denoised
        else:
            x = x + (x - denoised) / sigma * (next_sigma - sigma)
    return x
