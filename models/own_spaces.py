"""Latent spaces of VAEs that are not in the table of known ones: their record in a file, written and read."""

from __future__ import annotations

from .latent_spaces import LATENT_SPACES, LatentSpace

SMALLEST, LARGEST = 1e-6, 1e6  # of a scale, apart from its sign; known ones are 0.1 to 1.6
LARGEST_FLOAT = 3e38


def space_as_dict(space: LatentSpace) -> dict:
    """Return the record of a latent space for a file's metadata, complete enough for a reader that does not know the space."""
    keys = ("name", "channels", "downscale", "scale", "shift", "description", "video")
    return {key: getattr(space, key) for key in keys}


def space_of_dict(record: object) -> LatentSpace:
    """Return the latent space of a record: the known one of that name, else a new one.

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
    """Return a number, or a tuple with a number for each channel."""
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
    """Return true for a value from JSON that is a finite number and fits in a float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
