"""Consistency of one sample's tensors: names, shapes, types and finite numbers, before anything is computed with them."""

from __future__ import annotations

from torch import Tensor


def check_tensors(latent: dict[str, Tensor], teacher: dict[str, Tensor], predictions: dict[str, Tensor]) -> None:
    """Refuse tensors that are not as `training.shards` describes them, or do not fit each other.

    Raises:
        ValueError: says which tensor it is, and what was expected.
    """
    if "latent" not in latent and not {"mean", "std"} <= latent.keys():
        raise ValueError(f"its latent holds {sorted(latent)}, expected latent, or mean and std")
    for name, tensor in latent.items():
        _expect(name, tensor, (None,) * 4)
    views, *cells = latent["mean" if "mean" in latent else "latent"].shape
    if "mean" in latent:
        if "std" not in latent:
            raise ValueError(f"its latent holds {sorted(latent)}, expected std beside mean")
        _expect("std", latent["std"], (views, *cells))
        if (latent["std"] < 0).any():
            raise ValueError("its std is below 0, expected standard deviations")
    if "features" in teacher:
        _expect("the teacher's features", teacher["features"], (views, None))
    if "patches" in teacher:
        _expect("the teacher's patches", teacher["patches"], (None, None))
    if predictions:
        _check_predictions(predictions, cells)


def _check_predictions(predictions: dict[str, Tensor], cells: list[int]) -> None:
    if lacking := {"x0", "levels"} - predictions.keys():
        raise ValueError(f"its predictions are without {' and '.join(sorted(lacking))}, expected x0 and levels")
    levels = predictions["levels"]
    _expect("levels", levels, (None,))
    _expect("x0", predictions["x0"], (len(levels), *cells))
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError("its levels are outside 0 to 1, expected shares of noise")


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuse a tensor that is not of finite floating-point numbers of a shape; None stands for any length above 0."""
    fits = tensor.ndim == len(shape) and all(
        size > 0 and wanted in (None, size) for size, wanted in zip(tensor.shape, shape)
    )
    if not fits or not tensor.is_floating_point():
        wanted = " × ".join("any" if size is None else str(size) for size in shape)
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)} in {kind}, expected {wanted} in floating point")
    if not tensor.float().isfinite().all():  # as it is read
        raise ValueError(f"{name} has NaN or infinity in it, expected finite numbers")
