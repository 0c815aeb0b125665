"""Samplers behind Optimize Noise that draw so much noise of their own that the optimised noise decides nothing."""

import logging

from .evaluations import NOISE_OF_THEIR_OWN

LOGGER = logging.getLogger(__name__)
NOISE_OUTPUT = 1  # of Optimize Noise


def samplers_that_lose_it(prompt: dict | None, node_id: str, steps: int) -> list[str]:
    """Names of samplers with noise of their own that get a node's optimised noise, as far as the graph shows it.

    Args:
        prompt: the graph that the host executes, node id → `class_type` and `inputs`.
        node_id: of Optimize Noise. steps: of its sigmas; a sampler with the same sigmas and one step adds no noise.
    """
    graph = prompt or {}
    own_sigmas = _inputs(graph, node_id).get("sigmas")
    found = set()
    for other in graph:
        inputs = _inputs(graph, other)
        if [node_id, NOISE_OUTPUT] not in inputs.values():
            continue
        one_step = steps == 1 and inputs.get("sigmas") == own_sigmas
        sampler = inputs.get("sampler")
        name = _inputs(graph, sampler[0]).get("sampler_name") if isinstance(sampler, list) else None
        if isinstance(name, str) and name in NOISE_OF_THEIR_OWN and not one_step:
            found.add(name)
    if found:
        LOGGER.warning(
            "Optimize Noise: %s draws noise of its own at every step, so that after more than one step little is left of what was "
            "optimised. Use a sampler without, such as euler or dpmpp_2m, or the output best.",
            ", ".join(sorted(found)),
        )
    return sorted(found)


def _inputs(graph: dict, node_id: str) -> dict:
    inputs = graph.get(node_id, {}).get("inputs")
    return inputs if isinstance(inputs, dict) else {}
