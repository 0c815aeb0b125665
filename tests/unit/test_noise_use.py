"""Optimize Noise says which samplers behind it draw over the noise that it hands on."""

import logging

import pytest

from latent_clip.host.sampling.noise_use import samplers_that_lose_it


def graph(**nodes) -> dict:
    """Optimize Noise as node 9, three samplers, and `nodes`."""
    samplers = {name: {"class_type": "KSamplerSelect", "inputs": {"sampler_name": name}} for name in ("euler", "lcm", "ddpm")}
    return {"9": {"class_type": "LatentCLIPOptimizeNoise", "inputs": {"sigmas": ["s", 0]}}, **samplers, **nodes}


def sampling(sampler, noise=("9", 1), sigmas=("t", 0)) -> dict:
    inputs = {"noise": list(noise), "sampler": [sampler, 0], "sigmas": list(sigmas)}
    return {"class_type": "SamplerCustomAdvanced", "inputs": inputs}


@pytest.mark.parametrize(
    ("nodes", "steps", "expected"),
    [
        ({}, 4, []),
        ({"a": sampling("euler")}, 4, []),
        ({"a": sampling("lcm"), "b": sampling("ddpm"), "c": sampling("euler")}, 4, ["ddpm", "lcm"]),
        ({"a": sampling("lcm", noise=("9", 0))}, 4, []),
        ({"a": sampling("lcm", noise=("8", 1))}, 4, []),
        ({"a": sampling("lcm")}, 1, ["lcm"]),
        ({"a": sampling("lcm", sigmas=("s", 0))}, 1, []),
        ({"a": sampling("lcm", sigmas=("s", 0))}, 2, ["lcm"]),
        ({"a": sampling("gone")}, 4, []),
        ({"a": {"class_type": "X", "inputs": {"noise": ["9", 1], "sampler": "lcm"}}, "b": {}, "c": {"inputs": None}}, 4, []),
        ({"lcm": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": ["p", 0]}}, "a": sampling("lcm")}, 4, []),
    ],
)  # fmt: skip
def test_samplers_are_found_in_the_graph(nodes, steps, expected, caplog):
    with caplog.at_level(logging.WARNING):
        assert samplers_that_lose_it(graph(**nodes), "9", steps) == expected
    assert [name in caplog.text for name in expected] == [True] * len(expected) and bool(caplog.text) == bool(expected)


def test_without_a_graph_nothing_is_known():
    assert samplers_that_lose_it(None, "9", 4) == []
