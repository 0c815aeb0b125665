"""Metadata of safetensors files: every record is JSON in a string. All records are written and read here.

A Latent-CLIP file has `config`, `latent_space` with `latent_space_record`, and, where `latent-clip train` made it, `vae`, `channels`,
`teacher`, `data` and `training`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .latent_spaces import LATENT_SPACES, LatentSpace
from .own_spaces import is_number, space_as_dict, space_of_dict
from .strict_json import parse_json
from .vae_signature import DIRECTIONS

FORMAT_VERSION = "1"
SPACE_RECORD = "latent_space_record"  # beside `latent_space`, the space's name
LARGEST_PROJECTION = 1000.0  # those of a tensor of unit length are at most 256
RENAMED = {"seconds of the last sitting": "training seconds (last session)", "leash": "regularisers"}  # of `training`, in files of 0.2


def encode(records: Mapping[str, object]) -> dict[str, str]:
    """Return records as a safetensors file stores them: JSON text by name."""
    return {key: json.dumps(record) for key, record in records.items()}


def decode(metadata: Mapping[str, str], key: str) -> Any:
    """Return one record of a file; None where the file has none.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return parse_json(metadata.get(key, "null"))
    except ValueError as error:
        raise ValueError(f"Its metadata has a {key!r} that cannot be read: {error}. Make the file again") from error


def latent_clip_metadata(name: str, config: dict, space: LatentSpace, records: Mapping[str, object] | None = None) -> dict[str, str]:
    """Return the metadata of a Latent-CLIP file: format version, name, architecture, latent space, and further records."""
    return {
        "format": "latent-clip",
        "format_version": FORMAT_VERSION,
        "name": name,
        "latent_space": space.name,
        **encode({"config": config, SPACE_RECORD: space_as_dict(space), **(records or {})}),
    }


def space_of_metadata(metadata: Mapping[str, str]) -> LatentSpace:
    """Return the latent space of a Latent-CLIP file: SDXL's where the file names none, as the authors' files.

    Raises:
        ValueError: it names an unknown space and has no record of it, or its record is damaged.
    """
    name = metadata.get("latent_space", "sdxl")
    if name in LATENT_SPACES:
        return LATENT_SPACES[name]
    if SPACE_RECORD not in metadata:
        raise ValueError(f"reads the unknown latent space {name!r}; known: {', '.join(LATENT_SPACES)}")
    space = space_of_dict(decode(metadata, SPACE_RECORD))
    if space.name != name:
        raise ValueError(f"names two latent spaces, {name!r} and {space.name!r}")
    return space


def statistics_of(metadata: Mapping[str, str], channels: int) -> dict[str, list[float]] | None:
    """Return mean and std of every channel of the latents that a file's tower was trained on; None where the file has none.

    Raises:
        ValueError: they are not finite, or those of another number of channels.
    """
    record = decode(metadata, "channels")
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


def vae_of(metadata: Mapping[str, str]) -> dict:
    """Return the record of the VAE whose latents a file's tower reads: `name`, `sha256`, `signature`; {} where the file has none.

    Raises:
        ValueError: its signature is none.
    """
    record = decode(metadata, "vae")
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


def object_of(metadata: Mapping[str, str], key: str) -> dict:
    """Return a record that is a JSON object, such as `teacher` or `data`; {} where the file has none or null.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    record = decode(metadata, key)
    if record is not None and not isinstance(record, dict):
        raise ValueError(f"Got {record!r:.100} as the {key!r} of its metadata, expected a JSON object. Make the file again.")
    return record or {}


def training_of(metadata: Mapping[str, str]) -> dict:
    """Return the record of the training that made a file, with today's names of its keys; {} where the file has none.

    Raises:
        ValueError: as `object_of`.
    """
    return {RENAMED.get(key, key): value for key, value in object_of(metadata, "training").items()}


FAR = 2.5  # standard deviations of a channel's mean, or ratio of its spread, that no picture of that VAE is likely to have


def unlike(raw_latents: Tensor, statistics: dict[str, list[float]]) -> str:
    """Describe how the channel statistics of raw latents (B, C, H, W) or (B, C, T, H, W) differ from `statistics`; "" if they do not.

    A VAE of the same shape may write other numbers. Equal statistics do not prove that two latent spaces are the same.

    Args:
        statistics: mean and std of every channel, as `statistics_of` returns them.
    """
    mean, std = (torch.tensor(statistics[key], device=raw_latents.device) for key in ("mean", "std"))
    values = raw_latents.detach().float().movedim(1, 0).flatten(1)
    shift = ((values.mean(1) - mean) / std).abs().amax().item()
    spread = (values.std(1, correction=0) / std).amax().item()
    if max(shift, spread) < FAR:
        return ""
    return f"a channel's mean is {shift:.1f} standard deviations off, and the widest spread is {spread:.1f} times what it was"
