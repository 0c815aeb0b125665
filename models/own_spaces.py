"""Latent spaces that a file brings along: those of VAEs that the table of known ones does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from .latent_spaces import LATENT_SPACES, LatentSpace
from .strict_json import parse_json
from .vae_signature import DIRECTIONS

SMALLEST, LARGEST = 1e-6, 1e6  # of a scale, apart from its sign; known ones are 0.1 to 1.6
LARGEST_FLOAT = 3e38
LARGEST_PROJECTION = 1000.0  # those of a tensor of unit length are at most 256
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
    scale, shift = _numbers(record, "scale", 1.0, SMALLEST), _numbers(record, "shift", 0.0)
    return LatentSpace(
        name=record["name"], channels=record["channels"], downscale=record["downscale"], scale=scale, shift=shift,
        description=str(record.get("description") or "those of the VAE that this file names"),
        video=record.get("video") is True,
    )  # fmt: skip


def _numbers(record: dict, key: str, default: float, smallest: float = 0.0) -> float | tuple[float, ...]:
    """A number, or one for each channel."""
    value = record.get(key, default)
    several = isinstance(value, list)
    if several and len(value) != record["channels"]:
        raise ValueError(f"Got {len(value)} numbers as the {key} of a latent space of {record['channels']} channels.")
    if not all(is_number(one) and smallest <= abs(one) <= LARGEST for one in (value if several else [value])):
        raise ValueError(
            f"Got {value!r:.100} as the {key} of a latent space, expected a number, or one for each channel, of {smallest:g} to {LARGEST:g}."
        )
    return tuple(map(float, value)) if several else float(value)


def is_number(value: object) -> bool:
    """Whether a value from JSON is a finite number that a tensor can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT


def space_of_metadata(metadata: dict[str, str]) -> LatentSpace:
    """The space of a Latent-CLIP file: SDXL's where it tells none, as the authors' files.

    Raises:
        ValueError: it names an unknown one and tells no more of it, or its record is damaged.
    """
    name = metadata.get("latent_space", "sdxl")
    if name in LATENT_SPACES:
        return LATENT_SPACES[name]
    if OWN_SPACE not in metadata:
        raise ValueError(f"reads the unknown latent space {name!r}; known: {', '.join(LATENT_SPACES)}")
    space = space_of_dict(_parsed(metadata, OWN_SPACE))
    if space.name != name:
        raise ValueError(f"names two latent spaces, {name!r} and {space.name!r}")
    return space


def _parsed(metadata: dict[str, str], key: str) -> object:
    try:
        return parse_json(metadata.get(key, "null"))
    except ValueError as error:
        raise ValueError(f"Its metadata has a {key!r} that cannot be read: {error}. Make the file again") from error


def statistics_of(metadata: dict[str, str], channels: int) -> dict[str, list[float]] | None:
    """Mean and std of every channel of what a file's tower was trained on, where the file has them.

    Raises:
        ValueError: they are not finite, or those of another number of channels.
    """
    record = _parsed(metadata, "channels")
    if not isinstance(record, dict) or not {"mean", "std"} <= record.keys():
        return None
    mean, std = record["mean"], record["std"]
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list) or len(values) != channels or not all(map(is_number, values)):
            raise ValueError(
                f"Got {values!r:.100} as the {name} of its channels, expected {channels} finite numbers. Make the file again."
            )
    if not min(std) > 0:
        raise ValueError(f"Got {min(std)} as the std of a channel, expected a positive number. Make the file again.")
    return {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}


def vae_of(metadata: dict[str, str]) -> dict:
    """The file's record of the VAE whose latents its tower reads: `name`, `sha256`, `signature`; {} where it has none.

    Raises:
        ValueError: its signature is none.
    """
    record = _parsed(metadata, "vae")
    if not isinstance(record, dict):
        return {}
    signature = record.get("signature") or None
    if signature is not None and not _is_signature(signature):
        raise ValueError(
            f"Got {signature!r:.100} as the signature of its VAE, expected {DIRECTIONS} numbers for each of its tensors. Make the file again."
        )
    return {**record, "signature": signature}


def _is_signature(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(values, list)
        and len(values) == DIRECTIONS
        and all(is_number(one) and abs(one) <= LARGEST_PROJECTION for one in values)
        for values in value.values()
    )


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
