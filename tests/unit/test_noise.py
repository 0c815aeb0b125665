"""The NOISE of Optimize Noise finds the items of a batch again, as the host's own noise does."""

import pytest
import torch

from latent_clip.host.sampling.noise import OptimizedNoise


def numbered(count: int, batch_index: list[int] | None = None) -> OptimizedNoise:
    """Noise whose item i is full of i."""
    return OptimizedNoise(torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 4, 8, 8), 0, batch_index)


def taken(noise: OptimizedNoise, size: int, batch_index=None) -> list[int]:
    """Which of the numbered items a latent of `size` images gets."""
    latent = {"samples": torch.zeros(size, 4, 8, 8)}
    given = noise.generate_noise(latent if batch_index is None else {**latent, "batch_index": batch_index})
    assert given.shape == (size, 4, 8, 8)
    return [int(item[0, 0, 0]) for item in given]


@pytest.mark.parametrize(
    ("optimised", "wanted", "expected"),
    [
        (None, [2], [2]),
        (None, [3, 0], [3, 0]),
        (None, [1, 1, 1], [1, 1, 1]),
        ([10, 12, 2, 3], [2], [2]),
        ([10, 12, 2, 3], [12, 10], [1, 0]),
        ([5, 5, 5, 7], [7, 5, 5, 5, 5], [3, 0, 1, 2, 0]),
        (torch.tensor([4, 5, 6, 7]), torch.tensor([6, 4]), [2, 0]),
    ],
)
def test_items_are_found_by_their_index(optimised, wanted, expected):
    assert taken(numbered(4, optimised), len(wanted), wanted) == expected


def test_latent_without_indices_takes_them_in_order():
    assert taken(numbered(4), 4) == [0, 1, 2, 3]
    assert taken(numbered(1, [2]), 1) == [0]


def test_what_is_given_is_a_copy():
    noise = numbered(2)
    noise.generate_noise({"samples": torch.zeros(2, 4, 8, 8)}).fill_(9)
    assert taken(noise, 2) == [0, 1]


@pytest.mark.parametrize(
    ("shape", "batch_index", "message"),
    [
        ((1, 4, 8, 16), None, r"\(1, 4, 8, 16\).*was optimised for \(4, 4, 8, 8\)"),
        ((1, 16, 8, 8), None, "same model"),
        ((1, 4, 2, 8, 8), None, "was optimised for"),
        ((5, 4, 8, 8), None, "batch of 5.*4 images"),
        ((1, 4, 8, 8), [4], r"items \[4\].*optimised for \[0, 1, 2, 3\]"),
        ((2, 4, 8, 8), [0, -1], r"items \[-1\]"),
        ((2, 4, 8, 8), [1], "2 images whose batch_index names 1"),
    ],
)
def test_what_was_not_optimised_is_refused_in_words(shape, batch_index, message):
    latent = {"samples": torch.zeros(shape)}
    if batch_index is not None:
        latent["batch_index"] = batch_index
    with pytest.raises(ValueError, match=message):
        numbered(4).generate_noise(latent)
