"""Check that a model, its hooks and conditioning can be differentiated.

Everything that would raise deep inside autograd, or silently give a wrong gradient, is made to work or refused by name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.hooks
import torch
from torch import Tensor, nn

from ...models.frames import frames_in
from ...models.latent_spaces import LatentSpaceError
from ..memory.oom import is_oom
from ..sampling.conditioning import map_conds

MAX_STEPS = 4  # every step keeps its activations for the backward pass
# Keep what an earlier evaluation gave: across iterations that is the answer to another noise.
CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
# Autograd's messages for an operation without a derivative, and for an overwritten tensor.
NOT_DIFFERENTIABLE = (
    "inplace operation",
    "a second time",
    "does not require grad",
    "is not implemented",
    "no autograd formula",
    "Inference tensors",
    "used in the graph",
)
SAME = 0.01  # standard deviations by which two answers to one noise may differ (kernels that add in any order)


def check_sigmas(sigmas: Tensor) -> int:
    """Return the number of steps.

    Raises:
        ValueError: none, too many, or an end where noise is left.
    """
    steps = len(sigmas) - 1
    if steps < 1:
        raise ValueError(
            "Got no sampling steps, which is what a denoise of 0 gives, expected at least one. Set denoise above 0."
        )
    if steps > MAX_STEPS:
        raise ValueError(
            f"Got {steps} sampling steps, expected 1 to {MAX_STEPS}. Use a few-step model and a scheduler of so many steps."
        )
    if sigmas[-1] != 0:
        raise ValueError(
            f"Got sigmas that end at {sigmas[-1]:.3g}, as the high half of Split Sigmas does, expected 0: a reward cannot score "
            "an image with noise in it. Connect all sigmas."
        )
    return steps


def check_one_frame(samples: Tensor) -> None:
    """Refuse what is no image: (B, C, H, W), or (B, C, 1, H, W) of a model of videos.

    Raises:
        LatentSpaceError: says why, and what to do.
    """
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise LatentSpaceError(
            f"Got a latent of shape {tuple(samples.shape)}, expected images (batch, channels, height, width) without sound. Use a "
            "latent of one frame, or several seeds and Select Best Latents."
        )
    if (frames := frames_in(samples.shape)) > 1:
        raise LatentSpaceError(
            f"Got a clip of {frames} frames, expected one: the gradient would have to keep what the model computes for every frame, "
            f"{frames} times the memory of an image. Set the length to 1, or use Search Best Images or Guide Model by Reward."
        )


def check_noise(noise: Tensor) -> None:
    """Refuse empty noise."""
    if not noise.any():
        raise ValueError("Got no noise, as from Disable Noise, expected some to optimise. Connect Random Noise.")


def check_model(patcher) -> None:
    """Refuse models known to answer from a cache, or on another device.

    Raises:
        ValueError: names the node and says what to do.
    """
    keys = {key for by_key in patcher.wrappers.values() for key in by_key}
    for key, node in CACHES.items():
        if key in keys:
            raise ValueError(
                f"Got a model with {node}, which answers one noise with what it kept of another, so its gradient is "
                f"that of nothing. Bypass {node} for Optimize Noise; the sampler behind it may keep it."
            )
    if patcher.additional_models.get("multigpu"):
        raise ValueError(
            "Got a model that is spread over several GPUs, whose threads lose the gradient. Bypass MultiGPU for Optimize Noise."
        )


def check_hooks(conds: dict[str, list[dict]], skips_negative: bool, steps: int) -> None:
    """Refuse weight hooks that change the weights between two evaluations of one pass.

    The host writes them into the weights in place, where the backward pass then finds those of the last evaluation.

    Args:
        conds: the guider's, name → entries.

    Raises:
        ValueError: says which hooks, and what to do.
    """
    entries = [e for name, group in conds.items() if not (skips_negative and name == "negative") for e in group]
    groups = [_weight_hooks(entry) for entry in entries]
    if any(set(group) != set(groups[0]) for group in groups):
        raise ValueError(
            "Got a hook LoRA on one side of the prompt only, expected the same hooks on all: the host changes the weights between "
            "the two, and the gradient would be that of neither. Set it on both with Set CLIP Hooks or Cond Pair Set Props."
        )
    changing = any(len(hook.hook_keyframe.keyframes) > 1 for hook in next(iter(groups), []))
    if changing and steps > 1:
        raise ValueError(
            f"Got hook keyframes and {steps} steps: the weights change between the steps, and the gradient would be wrong. "
            "Use one step, or one strength for all of them."
        )


def _weight_hooks(entry: dict) -> list[comfy.hooks.Hook]:
    groups = [entry.get("hooks"), *(entry["control"].get_extra_hooks() if "control" in entry else [])]
    hooks = [hook for group in groups if group is not None for hook in group.hooks]
    return [hook for hook in hooks if hook.hook_type == comfy.hooks.EnumHookType.Weight]


def restart_hooks(conds: dict[str, list[dict]]) -> None:
    """Set keyframes back to their first, as at the start of a sampling."""
    for entry in (entry for group in conds.values() for entry in group or []):
        if entry.get("hooks") is not None:
            entry["hooks"].reset()


def check_repeats(generate: Callable[[Tensor, list[int]], Tensor], noise: Tensor, patches: list[str]) -> None:
    """Refuse a model that gives different images for one noise: no gradient means anything then.

    Raises:
        ValueError: names what is on the model.
    """
    items = [*range(len(noise))]
    with torch.no_grad():
        first, _, again = generate(noise, items), generate(-noise, items), generate(noise, items)
    if not bool(((first - again).abs().amax() <= SAME * first.std()).item()):
        raise ValueError(
            f"Got a model that gives another image when it is asked again for the same noise. On it: {', '.join(patches)}. "
            "One of these keeps state or draws random numbers: bypass it for Optimize Noise."
        )


@contextmanager
def named_failures(patches: list[str]) -> Iterator[None]:
    """Turn an error of autograd into a sentence that names the patches (FreeU, NAG write into saved activations).

    Raises:
        ValueError: instead of autograd's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if is_oom(error) or not any(words in str(error) for words in NOT_DIFFERENTIABLE):
            raise
        on_it, advice = f"On it: {', '.join(patches)}.", "Bypass what is not needed for Optimize Noise."
        if not patches:
            on_it = "No other node has patched it, so its own code is the reason."
            advice = "Use Search Best Images or Guide Model by Reward, which need no gradient of the model."
        raise ValueError(
            f"Got a model that cannot be differentiated. {on_it} {advice} PyTorch says: {str(error).splitlines()[0][:200]}"
        ) from error


@contextmanager
def gradient_cuts(network: nn.Module) -> Iterator[list[str]]:
    """Yield a list that fills with the types of modules through which no gradient passes, the innermost first."""
    found: list[str] = []

    def record(module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        if torch.is_grad_enabled() and _any_grad((args, kwargs)) and not _any_grad(output):
            name = type(module).__name__
            if name not in found and _reads_values(module, args, kwargs, output):
                found.append(name)

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in network.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _reads_values(module: nn.Module, args: tuple, kwargs: dict, output) -> bool:
    """Return True if other input values would change the output: some modules only use an input's dtype."""

    def other(tensor: Tensor) -> Tensor:
        return 1.5 * tensor + 1 if tensor.requires_grad else tensor

    with torch.no_grad():
        again = module.forward(*map_conds(args, other), **map_conds(kwargs, other))
    return not _same(output, again)


def _same(value, other) -> bool:
    if isinstance(value, Tensor):
        return isinstance(other, Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return all(_same(item, other[key]) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(map(_same, value, other))


def _any_grad(value) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, dict):
        return any(map(_any_grad, value.values()))
    return isinstance(value, list | tuple) and any(map(_any_grad, value))


def refuse_cut(found: list[str], latents: Tensor) -> None:
    """Refuse a model, or modules of it, through which no gradient passes."""
    if found or not latents.requires_grad:
        layers = f"whose layers of type {', '.join(found[:3])} have" if found else "that has"
        raise ValueError(
            f"Got a model {layers} no gradient, so noise cannot be optimised through it. Quantised formats with kernels of "
            "their own (Nunchaku, INT4) are such: use the fp16, bf16 or fp8 file of the model."
        )
