"""The trace of a run of Optimize Noise as data, and its thumbnails."""

from dataclasses import asdict

from ...methods.reno import Iteration, RenoSettings, RenoState
from ...methods.rewards import Reward
from ...models.latent_spaces import LatentSpace
from ..front_end.json_values import numbers, reward_terms, rounded
from ..sampling.reservation import MemoryUse
from ..scorers.latents import MAX_THUMBNAILS, thumbnails


def reno_trace(
    state: RenoState, reward: Reward, settings: RenoSettings, memory: MemoryUse, validation: Reward | None = None
) -> dict:
    """A ReNO run as data: settings, every iteration, and how each item ended."""
    return {
        "kind": "reno",
        "settings": asdict(settings),
        "terms": reward_terms(reward),
        "watch": reward_terms(validation),
        "checkpointed_blocks": memory.checkpointed_blocks,
        "offloaded_bytes": memory.offloaded_bytes,
        "cuda_graphs": memory.cuda_graphs,
        "iterations": [iteration_as_dict(iteration) for iteration in state.iterations],
        "best": rounded(state.rewards),
        "best_iteration": state.best_iteration,
        "stop_reasons": state.stop_reasons,
    }


def iteration_as_dict(iteration: Iteration) -> dict:
    """One iteration for JSON."""
    return {
        "index": iteration.index,
        "items": iteration.items,
        "rewards": numbers(iteration.rewards),
        "terms": {name: numbers(values) for name, values in iteration.terms.items()},
        "norms": numbers(iteration.norms),
        "gradient_norms": numbers(iteration.gradient_norms),
        "watch": numbers(iteration.validation),
        "seconds": round(iteration.seconds, 4),
    }


def reno_pictures(state: RenoState, space: LatentSpace) -> dict[str, list[str]]:
    """Thumbnails of the best and of the first latents, for the curves on the node."""
    return {
        "thumbnails": thumbnails(state.latents[:MAX_THUMBNAILS].cpu(), space),
        "first_thumbnails": thumbnails(state.first_latents[:MAX_THUMBNAILS].cpu(), space),
    }
