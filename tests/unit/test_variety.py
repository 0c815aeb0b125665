"""The choice of a group: exact on small sets, and the best where no variety is asked for."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.variety import best_group, choose, pairwise_distances

NAN = float("nan")


def value(group, quality, distances, variety) -> float:
    pairs = sum(distances[i, j].item() for i, j in combinations(group, 2))
    return sum(quality[i].item() for i in group) + variety * pairs


@pytest.mark.parametrize("variety", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("keep", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(12))
def test_group_is_the_best_of_all_groups(seed, keep, variety):
    generator = torch.Generator().manual_seed(seed)
    quality = torch.randn(9, generator=generator).double()
    distances = pairwise_distances(F.normalize(torch.randn(9, 6, generator=generator), dim=-1))
    found = best_group(quality, distances, keep, variety)
    best = max(value(group, quality, distances, variety) for group in combinations(range(9), keep))
    assert len(set(found)) == keep
    assert value(found, quality, distances, variety) == pytest.approx(best, abs=1e-9)
    assert [quality[i].item() for i in found] == sorted((quality[i].item() for i in found), reverse=True)


def test_swaps_mend_a_greedy_choice():
    """The best single item is none of the best pair."""
    quality = torch.tensor([1.0, 0.9, 0.9]).double()
    distances = torch.tensor([[0, 0.1, 0.1], [0.1, 0, 2.0], [0.1, 2.0, 0]]).double()
    assert sorted(best_group(quality, distances, 2, 1.0)) == [1, 2]


def test_without_variety_the_best_are_kept():
    scores = torch.tensor([0.1, NAN, 0.4, 0.2])
    features = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert choose(scores, 2) == choose(scores, 2, features, 0.0) == [2, 3]
    assert choose(scores, 4, features, 1.0) == [2, 3, 0]


def test_variety_parts_twins():
    scores = torch.tensor([1.0, 0.99, 0.5, 0.1])
    features = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    assert choose(scores, 2, features) == [0, 1]
    assert choose(scores, 2, features, 1.0) == [0, 2]


def test_scale_of_a_reward_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(12, generator=generator)
    features = F.normalize(torch.randn(12, 6, generator=generator), dim=-1)
    assert choose(scores, 4, features, 0.7) == choose(100 * scores + 5, 4, features, 0.7)


def test_all_alike_is_no_division_by_zero():
    assert choose(torch.zeros(4), 2, torch.ones(4, 3) / 3**0.5, 1.0) == [0, 1]
