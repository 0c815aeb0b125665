"""Which items of a batch to keep."""

from torch import Tensor


def rank(scores: Tensor) -> list[int]:
    """Indices from the best score to the worst; equal scores keep their order. (B,) → B indices.

    Raises:
        ValueError: a score is NaN, so that no order exists.
    """
    if scores.isnan().any():
        raise ValueError(
            f"Got scores {[round(s, 4) for s in scores.tolist()]}, expected numbers. A reward returned NaN for these latents."
        )
    return sorted(range(len(scores)), key=lambda i: -scores[i].item())


def keep_best(scores: Tensor, keep: int, threshold: float | None = None) -> tuple[list[int], list[int]]:
    """Split a batch into the best and the rest, both from best to worst.

    Args:
        scores: (B,).
        keep: at most this many are kept, at least 1.
        threshold: if given, only scores of at least this much are kept.

    Raises:
        ValueError: `keep` below 1, or NaN scores.
    """
    if keep < 1:
        raise ValueError(f"Got keep = {keep}, expected at least 1.")
    order = rank(scores)
    best = [i for i in order[:keep] if threshold is None or scores[i].item() >= threshold]
    return best, [i for i in order if i not in best]
