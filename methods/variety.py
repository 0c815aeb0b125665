"""Choose a group that is good and not all alike, instead of the best of the same (after Scalable Group Inference, arXiv 2508.15773)."""

import math

import torch
from torch import Tensor

STARTS = 16


def rank(scores: Tensor) -> list[int]:
    """Indices from the best score to the worst; equal scores keep their order, NaN comes last. (B,) → B indices."""
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i].item()))


def choose(scores: Tensor, keep: int, features: Tensor | None = None, variety: float = 0.0) -> list[int]:
    """Choose the candidates to keep, from the best score to the worst. A candidate without a score (NaN) is never kept.

    With variety 0, or without features, these are the best. Else they are the group of `best_group` for scores counted in their
    own standard deviations, and distances in their mean: whatever the reward's scale, variety 1 weighs how good an image is as
    much as how far it is from the other chosen ones.

    Args:
        scores: (B,).
        features: (B, D) of unit length.
    """
    judged = [i for i in rank(scores) if not math.isnan(scores[i])]
    if variety == 0 or features is None or len(judged) <= keep:
        return judged[:keep]
    quality, distances = scores[judged].double(), pairwise_distances(features[judged])
    quality = (quality - quality.mean()) / quality.std().clamp_min(1e-12)
    mean = distances.sum() / (len(judged) * (len(judged) - 1))
    distances = distances / mean.clamp_min(1e-12) * 2 / max(1, keep - 1)  # the mean to the others, for every chosen one
    return [judged[i] for i in best_group(quality, distances, keep, variety)]


def pairwise_distances(features: Tensor) -> Tensor:
    """1 − cosine of unit-length features (B, D) → (B, B) float64."""
    features = features.double()
    return (1 - features @ features.T).clamp_min(0).fill_diagonal_(0)


def best_group(quality: Tensor, distances: Tensor, keep: int, variety: float) -> list[int]:
    """The `keep` items that make Σ quality + variety · Σ distance over their pairs largest, best quality first.

    Greedy from each of the `STARTS` items that promise most, then exchanges of one member while any gains: the optimum of small
    sets (a test tries all), and found at once in large ones.

    Args:
        quality: (B,). distances: (B, B), symmetric.
    """
    gain = variety * distances
    promise = quality + gain.mean(dim=1) * max(0, keep - 1)
    groups = [_local_optimum(quality, gain, keep, start) for start in promise.argsort(descending=True)[:STARTS].tolist()]
    best = max(groups, key=lambda group: (quality[group].sum() + gain[group][:, group].sum() / 2).item())
    return sorted(best, key=lambda i: -quality[i].item())


def _local_optimum(quality: Tensor, gain: Tensor, keep: int, start: int) -> list[int]:
    """Group that greedy choices and then exchanges reach from one item."""
    chosen = [start]
    while len(chosen) < keep:
        score = quality + gain[:, chosen].sum(dim=1)
        score[chosen] = -math.inf
        chosen.append(int(score.argmax()))
    while (swap := _best_swap(quality, gain, chosen)) is not None:
        chosen[swap[0]] = swap[1]
    return chosen


def _best_swap(quality: Tensor, gain: Tensor, chosen: list[int]) -> tuple[int, int] | None:
    """(place in `chosen`, item to put there) of the exchange that gains most; None where none gains."""
    members = torch.tensor(chosen)
    worth = quality + gain[:, chosen].sum(dim=1)  # of every item beside all members
    # out goes members[j], in comes i: i's worth without its pair with members[j], less the worth of members[j]
    change = worth[:, None] - gain[:, chosen] - worth[members][None, :]
    change[members] = -math.inf
    best = int(change.argmax())
    item, place = divmod(best, len(chosen))
    return (place, item) if change[item, place] > 1e-9 else None
