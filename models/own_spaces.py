"""Latent spaces that a file brings along: those of VAEs that the table of known ones does not have."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from .latent_spaces import LATENT_SPACES, LatentSpace

OWN_SPACE = "latent_space_record"  # of a file's metadata, beside `latent_space`, its name


def space_as_dict(space: LatentSpace) -> dict:
    """What a file must tell of a space that may be unknown where it is read."""
    keys = ("name", "channels", "downscale", "scale", "shift", "description", "video")
    return {key: getattr(space, key) for key in keys}


def space_of_dict(record: object) -> LatentSpace:
    """The known space of that name, else one of its own.

    Raises:
        ValueError: a part is missing or no such thing.
    """
    if not isinstance(record, dict) or not isinstance(record.get("name"), str) or not record["name"]:
        raise ValueError(f"Got {record!r:.100} as a latent space, expected its name, channels and downscale.")
    if record["name"] in LATENT_SPACES:
        return LATENT_SPACES[record["name"]]
    for key in ("channels", "downscale"):
        value = record.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 100_000:
            raise ValueError(f"Got {value!r:.100} as the {key} of a latent space, expected a positive whole number.")
    scale, shift = (_numbers(record, key, default) for key, default in (("scale", 1.0), ("shift", 0.0)))
    return LatentSpace(
        name=record["name"], channels=record["channels"], downscale=record["downscale"], scale=scale, shift=shift,
        description=str(record.get("description") or "those of the VAE that this file names"),
        video=record.get("video") is True,
    )  # fmt: skip


def _numbers(record: dict, key: str, default: float) -> float | tuple[float, ...]:
    """A number, or one for each channel."""
    value = record.get(key, default)
    several = isinstance(value, list)
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in (value if several else [value])):
        raise ValueError(f"Got {value!r:.100} as the {key} of a latent space, expected a number, or one for each channel.")
    if several and len(value) != record["channels"]:
        raise ValueError(f"Got {len(value)} numbers as the {key} of a latent space of {record['channels']} channels.")
    return tuple(map(float, value)) if several else float(value)


def space_of_metadata(metadata: dict[str, str]) -> LatentSpace:
    """The space of a Latent-CLIP file: SDXL's where it tells none, as the authors' files.

    Raises:
        ValueError: it names an unknown one and tells no more of it.
    """
    name = metadata.get("latent_space", "sdxl")
    if name in LATENT_SPACES:
        return LATENT_SPACES[name]
    if OWN_SPACE not in metadata:
        raise ValueError(f"reads the unknown latent space {name!r}; known: {', '.join(LATENT_SPACES)}")
    space = space_of_dict(json.loads(metadata[OWN_SPACE]))
    if space.name != name:
        raise ValueError(f"names two latent spaces, {name!r} and {space.name!r}")
    return space


def statistics_of(metadata: dict[str, str]) -> dict[str, list[float]] | None:
    """Mean and std of every channel of what a file's tower was trained on, where it tells them in full."""
    try:
        told = json.loads(metadata.get("channels", "null"))
        mean, std = ([float(value) for value in told[key]] for key in ("mean", "std"))
    except (ValueError, TypeError, KeyError):
        return None
    return {"mean": mean, "std": std} if len(mean) == len(std) > 0 and min(std) > 0 else None


def vae_of(metadata: dict[str, str]) -> dict:
    """What a file tells of the VAE whose latents its tower reads: `name`, `sha256`, `signature`; {} where it tells nothing of use."""
    try:
        told = json.loads(metadata.get("vae", "{}"))
        signature = {name: [float(value) for value in values] for name, values in (told.get("signature") or {}).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
    return {**told, "signature": signature or None}


FAR = 2.5  # standard deviations of a channel's mean, or ratio of its spread, that no picture of that VAE is likely to have


def unlike(raw_latents: Tensor, statistics: dict[str, list[float]]) -> str:
    """What is odd about raw latents (B, C, H, W) or (B, C, T, H, W) for a tower that was trained on latents of these statistics; "" for nothing.

    A VAE of the same shape may write other numbers. That two spaces are alike in these does not show that they are one.

    Args:
        statistics: mean and std of every channel, as `training` writes them.
    """
    mean, std = (torch.tensor(statistics[key], device=raw_latents.device) for key in ("mean", "std"))
    values = raw_latents.detach().float().movedim(1, 0).flatten(1)
    shift = ((values.mean(1) - mean) / std).abs().amax().item()
    spread = (values.std(1, correction=0) / std).amax().item()
    if max(shift, spread) < FAR:
        return ""
    return f"a channel's mean is {shift:.1f} standard deviations off, and the widest spread is {spread:.1f} times what it was"
