"""Resizing as two matrix products, which every device has with its backward.

MPS refuses `adaptive_avg_pool2d` where sizes do not divide, and has no backward of bicubic resizing with antialias. Both
are linear and treat the two sides alike, so one small matrix of weights a side, made on the CPU, does the same.
"""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Method = Literal["area", "bicubic", "bilinear"]


def resample(x: Tensor, height: int, width: int, method: Method) -> Tensor:
    """Resize (..., H, W) to (..., height, width), as torch does but for the last digits.

    Args:
        method: `area` is `adaptive_avg_pool2d`; the others have antialias, and `bicubic` may leave the range of `x`.
    """
    # tensors that are no plain ones (fake tensors of a memory estimate) must not meet the cached ones, nor be cached
    matrix = _matrix if type(x) is Tensor else _matrix.__wrapped__
    down = matrix(method, x.shape[-2], height, x.dtype, x.device)
    across = matrix(method, x.shape[-1], width, x.dtype, x.device)
    return down @ x @ across.mT


def area_average(x: Tensor, height: int, width: int) -> Tensor:
    """Mean over the cells of (..., H, W) that each of (..., height, width) covers: `adaptive_avg_pool2d` on every device."""
    if x.shape[-2] % height or x.shape[-1] % width:
        return resample(x, height, width, "area")
    return F.adaptive_avg_pool2d(x, (height, width))  # the same bits as ever for the usual squares


@lru_cache(maxsize=64)
def _matrix(method: Method, size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights (new_size, size) of one side."""
    # kept between calls, so never an inference tensor, which autograd would refuse to save
    with torch.inference_mode(False), torch.no_grad():
        weights = _area(size, new_size) if method == "area" else _smooth(method, size, new_size, dtype)
        return weights.to(dtype).to(device)


def _area(size: int, new_size: int) -> Tensor:
    cell, new = torch.arange(size, device="cpu"), torch.arange(new_size, device="cpu")[:, None]
    covered = (cell >= new * size // new_size) & (cell < ((new + 1) * size + new_size - 1) // new_size)
    return covered / covered.sum(dim=1, keepdim=True, dtype=torch.float64)


def _smooth(method: Method, size: int, new_size: int, dtype: torch.dtype) -> Tensor:
    """Weights of torch's own resampler, from the unit matrix, rounded as it rounds them for this dtype."""
    unit = torch.eye(size, dtype=torch.promote_types(dtype, torch.float32), device="cpu")[None, None]
    return F.interpolate(unit, (new_size, size), mode=method, antialias=True)[0, 0]
