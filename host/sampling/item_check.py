"""Short sampling of two items before a search: check that a patched model can be evaluated for items apart.

A search drops items and asks about a few at a time. Some patches of other nodes keep what they saw in one evaluation for the
next one, or for a hook that sees the whole batch: they would mix the images of a batch without a word.
"""

import comfy.samplers
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..memory.oom import is_oom
from .active_items import ActiveItems
from .drafts import drafting_copy
from .patches import patches_of
from .steering import KEY as STEERING

NODE = "Search Best Images"
# These decide for a whole batch, by a wrapper around its prediction, which steps to answer from memory.
WHOLE_BATCH_CACHES = {"lazycache": "LazyCache"}
STEPS = 3  # a step-skipping node knows at the third whether to skip
MIDDLE = 0.5  # share of the sampling that is over, where step-skipping nodes are at work
SPACING = 0.999  # of one noise level to the one before: so near that whatever skips steps skips here
DIFFERENCE = 0.05  # standard deviations, root mean square: kernels for another batch size stay far below it
ADVICE = f"Bypass it for {NODE}, or sample the whole batch and connect Select Best Latents."


def check_items(guider, drafter, noise: Tensor, latent: Tensor, seed: int) -> int:
    """Refuse a model whose patches mix the items of a batch when some are left out or evaluated apart.

    Args:
        drafter: MODEL to check in place of the guider's own, at cfg 1; None: the guider's.
        noise, latent: (B, C, H, W) of the candidates, of which the first two are sampled.

    Returns:
        evaluations of the model for one image that this cost; 0 where no other node has patched it.

    Raises:
        ValueError: names what is on the model and says what to do.
    """
    patcher = drafter or guider.model_patcher
    patches = patches_of(patcher)
    if not patches:
        return 0
    keys = {key for by_key in patcher.wrappers.values() for key in by_key}
    if names := [node for key, node in WHOLE_BATCH_CACHES.items() if key in keys]:
        raise ValueError(_skips(", ".join(names), names))
    with torch.random.fork_rng(devices=_devices(patcher)):
        expected, asked = _together(guider, drafter, noise, latent, seed)
        try:
            apart, more = _predictions(guider, drafter, noise[:2], latent[:2], seed, ActiveItems(2, at_once=1))
        except RuntimeError as error:
            if is_oom(error):
                raise
            raise ValueError(_mixes(patches)) from error
    if min(len(expected), len(apart)) < STEPS or asked < STEPS:
        raise ValueError(_skips("a patch", patches))
    for one, two in zip(expected, apart):
        one, two = one.float(), two[: len(one)].float()
        if not bool((one - two).square().mean().sqrt() <= DIFFERENCE * one.std()) and bool(one.isfinite().all()):
            raise ValueError(_mixes(patches))
    return asked * len(expected[0]) + more * 2


def _together(guider, drafter, noise: Tensor, latent: Tensor, seed: int) -> tuple[list[Tensor], int]:
    """Predictions of both items at once; of the first one alone if both do not fit into memory."""
    try:
        active = ActiveItems(2, divisible=False)
        return _predictions(guider, drafter, noise[:2], latent[:2], seed, active)
    except RuntimeError as error:
        if not is_oom(error):
            raise
    return _predictions(guider, drafter, noise[:1], latent[:1], seed, ActiveItems(1))


def _predictions(guider, drafter, noise: Tensor, latent: Tensor, seed: int, active: ActiveItems) -> tuple[list[Tensor], int]:
    """Predictions at each step, (b, C, H, W) in the model's space, and the number of calls of the guider."""
    guider = drafting_copy(guider, drafter)
    _leave_guidance_out(guider.model_patcher)
    active.attach(guider)
    found: list[Tensor] = []
    first = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(MIDDLE)
    torch.manual_seed(seed)  # a patch that adds noise adds the same both times
    guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([first * SPACING**step for step in range(STEPS + 1)]),
        callback=lambda _step, x0, _x, _total: found.append(x0.clone()),
        disable_pbar=True,
        seed=seed,
    )
    return found, active.predictions


def _leave_guidance_out(patcher) -> None:
    """Take this pack's guidance off a copied MODEL: it evaluates items of its own choice, and handles that itself."""
    for kind in patcher.wrappers.values():
        kind.pop(STEERING, None)
    patcher.callbacks.get(CallbacksMP.ON_PRE_RUN, {}).pop(STEERING, None)


def _devices(patcher) -> list[torch.device]:
    device = torch.device(patcher.load_device)
    return [device] if device.type == "cuda" else []


def _skips(what: str, patches: list[str]) -> str:
    return (
        f"Got a model on which {what} answers steps from memory, for the whole batch at once and with the images that were dropped: the "
        f"others would be ruined. On it: {', '.join(patches)}. {ADVICE}"
    )


def _mixes(patches: list[str]) -> str:
    return (
        "Got a model that gives an image another prediction when it is asked about it apart from its batch, so that no image can be "
        f"dropped. On it: {', '.join(patches)}. One of these keeps what it saw of one image for another. {ADVICE}"
    )
