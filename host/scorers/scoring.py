"""Run a reward over a batch: networks loaded by the host, chunks sized to free memory, cancel between chunks."""

import math
from collections.abc import Callable

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ...methods.features import average_unit
from ...methods.rewards import Reward
from ...models.frames import by_clip, frames_in, pictures_of
from ...models.latent_spaces import check_raw_latents
from .encoders import HostEncoder, HostWindowEncoder, forget_limits, host_encoders

FEATURES = "\0features"  # beside the names of terms
MAX_CHUNK = 64  # more gains nothing and only raises the memory peak


def score_frames(reward: Reward, raw_latents: Tensor) -> dict[str, Tensor]:
    """Evaluate every term for every frame, unweighted, clip by clip: name → (B·T,) float32 on the CPU."""
    check_raw_latents(raw_latents, reward.space)
    encoders = host_encoders(reward)
    return _over_chunks(encoders, as_read(encoders, raw_latents), lambda chunk: reward.evaluate_frames(chunk)[0])


def score_frames_with_features(
    reward: Reward, raw_latents: Tensor, noise_level: float | None = None, loaded: bool = False, progress: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """Evaluate as `score_frames` does, and return features that distinguish the frames too: (B·T, D) float32 of unit length.

    Args:
        noise_level: see `methods.rewards.Encoder`.
        loaded: the networks are loaded, as in the middle of a sampling, where nothing else may be moved.
    """

    def values_and_features(chunk: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            values, features = reward.evaluate_frames(chunk, noise_level)
        parts = [part.to(chunk.device) for part in features.values()]
        return {**values, FEATURES: torch.cat(parts, dim=1) / math.sqrt(len(parts))}

    check_raw_latents(raw_latents, reward.space)
    encoders = host_encoders(reward)
    values = _over_chunks(encoders, as_read(encoders, raw_latents), values_and_features, loaded, progress)
    return values, values.pop(FEATURES)


def score_with_features(
    reward: Reward, raw_latents: Tensor, noise_level: float | None = None, loaded: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Evaluate every term, unweighted, name → (B,), and return features that distinguish the latents too: (B, D) of unit length.

    Args:
        noise_level, loaded: see `score_frames_with_features`.
    """
    frames = frames_in(raw_latents.shape)
    values, features = score_frames_with_features(reward, raw_latents, noise_level, loaded, progress=False)
    return reward.reduce_frames(values, frames), features_of_clips(features, frames)


def features_of_clips(features: Tensor, frames: int) -> Tensor:
    """Mean direction of every clip's frames: (B·T, D) → (B, D)."""
    return average_unit(by_clip(features, frames)) if frames > 1 else features


def encode(encoder: HostEncoder, raw_latents: Tensor) -> Tensor:
    """Features of every frame, clip by clip: (B·T, D) float32 on the CPU."""
    seen = as_read([encoder], raw_latents)
    return _over_chunks([encoder], seen, lambda chunk: {"features": encoder(chunk)})["features"]


def window_features(encoder: HostWindowEncoder, raw_latents: Tensor, progress: bool = True) -> Tensor:
    """Features of every window of every frame, clip by clip: (B·T, W, D) float32 on the CPU."""

    def windows(chunk: Tensor) -> dict[str, Tensor]:
        return {"windows": encoder.encode_windows(chunk).windows}

    return _over_chunks([encoder], as_read([encoder], raw_latents), windows, progress=progress)["windows"]


def as_read(encoders: list[HostEncoder], raw_latents: Tensor) -> Tensor:
    """Flatten clips to frames unless an encoder needs whole clips."""
    return raw_latents if any(encoder.reads_clips for encoder in encoders) else pictures_of(raw_latents)


def _over_chunks(
    encoders: list[HostEncoder],
    raw_latents: Tensor,
    function: Callable[[Tensor], dict[str, Tensor]],
    loaded: bool = False,
    progress: bool = True,
) -> dict[str, Tensor]:
    per_item = max(encoder.memory_per_item(raw_latents.shape) for encoder in encoders)
    if not loaded:
        patchers = [patcher for encoder in encoders for patcher in encoder.patchers]
        mm.load_models_gpu(patchers, memory_required=per_item * min(len(raw_latents), MAX_CHUNK))
        forget_limits(encoders)
    free = mm.get_free_memory(mm.get_torch_device())
    chunk_size = max(1, min(MAX_CHUNK, len(raw_latents), int(free * 0.7 / per_item)))
    bar = comfy.utils.ProgressBar(len(raw_latents)) if progress else None
    results = []
    for chunk in raw_latents.split(chunk_size):
        mm.throw_exception_if_processing_interrupted()
        results.append({name: value.float().cpu() for name, value in function(chunk).items()})
        if bar is not None:
            bar.update(len(chunk))
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}
