"""LATENT dictionaries that leave Safety Gate: the checked samples, and nothing that was not checked."""

import logging
import numbers
from collections.abc import Sequence
from typing import Any

import comfy.sampler_helpers
import torch
from torch import Tensor

from ...methods.gate import blurred
from ...models.frames import clips_of, frames_in, pictures_of
from ...models.latent_spaces import LatentSpace
from ..scorers.latents import image_part

LOGGER = logging.getLogger(__name__)
SOUND = (8, 16)  # channels and frequency bins of sound in LTX-2: (batch, 8, length, 16), a shape that no image VAE reads
SOUND_PER_FRAME = 64  # longest sound: that of a clip of four frames a second
HOLE = 1.0  # of a noise mask: everything is sampled


def parts_of(samples) -> list:
    """The parts of a latent of several parts; the samples themselves where there is one."""
    return [*samples.unbind()] if getattr(samples, "is_nested", False) else [samples]


def pictures_in(samples, space: LatentSpace) -> list:
    """The parts that must be judged: all but the sound of a video, which no image VAE can decode.

    A part of any other kind counts as a picture, so that nothing passes because nobody knew what it is.
    """
    first, *others = parts_of(samples)
    return [first, *(part for part in others if not _is_sound(part, first, space))]


def _is_sound(part, video, space: LatentSpace) -> bool:
    if not (isinstance(part, Tensor) and isinstance(video, Tensor) and part.ndim == 4 and video.ndim == 5):
        return False
    fits = (part.shape[1], part.shape[3]) == SOUND and len(part) == len(video) and part.is_floating_point()
    return fits and space.channels != SOUND[0] and part.shape[2] <= SOUND_PER_FRAME * frames_in(video.shape)


def without_side_doors(latent: dict) -> tuple[dict, list[str]]:
    """A latent with what samplers and decoders read beside the samples, and the names of what was left out.

    A noise mask leaves in one channel of the latent's own size, as the sampler would make it. Of the rest only single values and
    numbers of items stay: a tensor there might be a picture that nobody has judged.

    Raises:
        ValueError: the samples are no tensor, and none of several parts of the host's own kind.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) and type(samples).__module__ != "comfy.nested_tensor":
        raise ValueError(f"got {type(samples).__name__} as samples, expected a latent. Connect a sampler")
    size = _items(latent)
    kept = {key: value for key, value in latent.items() if key == "samples" or _is_small(value, size)}
    if (mask := latent.get("noise_mask")) is not None and (tidy := _tidy_mask(mask, samples)) is not None:
        kept["noise_mask"] = tidy
    left_out = [str(key)[:100] for key in latent if key not in kept]
    if left_out:
        LOGGER.warning("Safety Gate: %s left out of the latent, which nobody can judge.", ", ".join(left_out))
    return (latent if len(kept) == len(latent) and mask is None else kept), left_out


def _items(latent: dict) -> int:
    samples = image_part(latent.get("samples"))
    return len(samples) if isinstance(samples, Tensor) and samples.ndim else 0


def _is_small(value, size: int) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= size and all(isinstance(entry, numbers.Real) for entry in value)
    return value is None or isinstance(value, numbers.Real) or (isinstance(value, str) and len(value) <= 100)


def _tidy_mask(mask, samples):
    """The mask as the sampler reads it, in one channel; None where it is none: other numbers than 0 to 1, or another shape."""
    if getattr(mask, "is_nested", False):
        masks, parts = mask.unbind(), parts_of(samples)
        tidy = [_tidy_mask(*pair) for pair in zip(masks, parts)]
        fits = len(masks) == len(parts) and not any(one is None for one in tidy)
        return type(mask)(tidy) if fits else None
    part = image_part(samples)
    if not isinstance(part, Tensor) or part.ndim not in (4, 5) or not isinstance(mask, Tensor):
        return None
    if not 2 <= mask.ndim <= part.ndim or 0 in mask.shape or mask.is_complex():
        return None
    values = mask.float()
    if not bool(((values >= 0) & (values <= 1)).all()):  # NaN too
        return None
    if mask.ndim == 4 == part.ndim and mask.shape[1] > 1:  # the host would take channels for items
        if not torch.equal(values, values[:, :1].expand_as(values)):
            return None
        values = values[:, :1]
    read = comfy.sampler_helpers.prepare_mask(values, part.shape, mask.device)
    return read[:, :1].clone() if torch.equal(read, read[:, :1].expand_as(read)) else None


def hidden(latent: dict, blocked: Sequence[int], blur: bool) -> dict:
    """A latent of which the blocked items are flat or blurred, in every part, and their masks empty."""
    samples, size = latent["samples"], _items(latent)

    def places(part: Tensor) -> list[int]:
        return [*blocked] if len(part) == size else [*range(len(part))]  # a part of another batch is nobody's

    parts = parts_of(samples)
    covered = [_hidden_part(part, places(part), blur and place == 0) for place, part in enumerate(parts)]
    safe = {**latent, "samples": _like(samples, covered)}
    if (mask := latent.get("noise_mask")) is not None:
        masks = [one.clone() for one in parts_of(mask)]
        for one in masks:
            one[places(one)] = HOLE
        safe["noise_mask"] = _like(mask, masks)
    return safe


def _like(samples, parts: list) -> Any:
    return type(samples)(parts) if getattr(samples, "is_nested", False) else parts[0]


def _hidden_part(part: Tensor, places: list[int], blur: bool) -> Tensor:
    if blur and part.ndim in (4, 5) and part.numel():
        cover = clips_of(blurred(pictures_of(part[places].float())), part).to(part.dtype)
        cover[~cover.float().isfinite().flatten(1).all(dim=1)] = 0
    else:
        cover = torch.zeros_like(part[places])  # zero is what the VAE decodes to a flat, greyish field
    safe = part.clone()
    safe[places] = cover
    return safe


def can_be_cut(latent: dict) -> bool:
    """Return true for one clip without sound: several would get different lengths, and sound has a clock of its own."""
    samples = latent["samples"]
    return isinstance(samples, Tensor) and len(samples) == 1 and frames_in(samples.shape) > 1


def cut(latent: dict, frames: int) -> dict:
    """The first frames of a clip, and of its mask."""
    before = frames_in(latent["samples"].shape)
    keys = [key for key in ("samples", "noise_mask") if isinstance(latent.get(key), Tensor)]
    return {**latent, **{key: latent[key][:, :, :frames] for key in keys if frames_in(latent[key].shape) == before}}
