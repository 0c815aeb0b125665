"""A differentiable sampler: k-diffusion's are decorated with no_grad."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, clean: bool | None = None) -> Tensor:
    """Euler steps of the probability-flow ODE (Karras et al. 2022, algorithm 1 without the second-order correction).

    The denoiser hides whether the network predicts eps, v or flow, so the same line serves them all. With one step to
    sigma 0 the result is the denoiser's x0.

    Args:
        denoise: (x (B, C, H, W), sigma (B,)) → x0 prediction (B, C, H, W).
        x: at noise level sigmas[0].
        sigmas: (steps + 1,), falling.
        clean: whether the last of them is 0; default: looked up, for which the CPU waits for the device.
    """
    ends_clean = bool(sigmas[-1] == 0) if clean is None else clean
    clean_at = len(sigmas) - 1 if ends_clean else 0
    for place, (sigma, next_sigma) in enumerate(pairwise(sigmas), start=1):
        denoised = denoise(x, sigma.expand(x.shape[0]))
        if place == clean_at:
            x = denoised
        else:
            x = x + (x - denoised) / sigma * (next_sigma - sigma)
    return x
