"""Signature of a VAE from the weights of its encoder: a loaded VAE has no file whose hash could be compared.

Latents depend on the encoder alone, so that a VAE with another decoder is the same here. Every tensor of it is projected on a few
fixed directions. Rounding to fp16 or bf16 moves a projection by no more than bf16's own error, layouts and files do not move it, and
training does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

DIRECTIONS = 8
MOST = 65_536  # values of a tensor that are read, evenly spaced
TOLERANCE = 0.004
"""Of the root mean square of what the projections of a tensor of unit length are apart.

bf16 keeps 8 bits: rounding moves weights by 0.0015 of their length (a value within its binade is off by up to 2⁻⁹ of the binade's end,
evenly spread), and eight such numbers exceed 0.004 in two of 10⁹ tensors. Training that moves every weight by 0.5 % stays below it in
one tensor of four, and so in all of an encoder's thirty or more never.
"""

Signature = dict[str, list[float]]


def signature_of(state_dict: Mapping[str, Tensor]) -> Signature | None:
    """Projections of every tensor of two dimensions or more of an encoder, by name.

    Args:
        state_dict: of a VAE, in whatever layout its loader makes of files.

    Returns:
        None where it has no encoder.
    """
    found = {_plain(name): _projections(tensor) for name, tensor in state_dict.items() if _encodes(name) and tensor.ndim >= 2}
    return found or None


def difference(one: dict, other: dict) -> float | None:
    """Distance of two VAEs by their records in a data set or a Latent-CLIP file: 0 for one and the same.

    Args:
        one, other: `sha256` of the file and `signature`, where they are known.

    Returns:
        The root mean square of the tensor that differs most, infinite for encoders of another shape; None where they
        have no figure in common. The same VAE may lie in files of another hash.
    """
    ours, theirs = one.get("signature"), other.get("signature")
    if ours and theirs:
        return max((_apart(ours[name], theirs.get(name)) for name in ours), default=None)
    return 0.0 if one.get("sha256") and one.get("sha256") == other.get("sha256") else None


def is_another(apart: float | None) -> bool:
    """Return true if a `difference` is more than rounding."""
    return apart is not None and not apart <= TOLERANCE


def without_signature(vae: dict) -> dict:
    """Return a record without its signature, for exact comparisons: rounding changes a signature."""
    return {key: value for key, value in vae.items() if key != "signature"}


def _apart(ours: list[float], theirs: list[float] | None) -> float:
    if not theirs or len(theirs) != len(ours):
        return math.inf
    return math.dist(ours, theirs) / math.sqrt(len(ours))  # which squares nothing that would overflow


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")  # what torch.compile puts before the names of what it has compiled


def _encodes(name: str) -> bool:
    first, *rest = _plain(name).split(".")
    return first == "quant_conv" or ("decoder" not in first and any(part.endswith("encoder") for part in (first, *rest)))


def _projections(tensor: Tensor) -> list[float]:
    """Project a tensor scaled to unit length; zeros for a tensor without direction, as uninitialised memory may be."""
    step = -(-tensor.numel() // MOST)
    values = tensor.detach().flatten()[::step].cpu().double().numpy()  # in two steps: Apple's GPUs have no float64
    length = float(np.linalg.norm(values))
    if not (0 < length < math.inf):
        return [0.0] * DIRECTIONS
    return [round(float(value), 5) for value in (values / length) @ _signs(len(values))]


def _signs(count: int) -> np.ndarray:
    """(count, 8) of ±1: the bits of a hash, which are the same on every machine and in every version."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"latent-clip vae").digest(count), np.uint8))
    return bits.reshape(count, DIRECTIONS) * 2.0 - 1.0
