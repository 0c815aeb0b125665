"""Whether a VAE that is at hand is the one whose latents a Latent-CLIP reads, also where the shapes are equal."""

import logging
from pathlib import Path

import comfy.sd

from ...models.latent_spaces import LatentSpace, LatentSpaceError
from ...models.vae_signature import TOLERANCE, Signature, difference, is_another, signature_of

LOGGER = logging.getLogger(__name__)
REMEDY = "Wire the VAE that it was made for, or make a Latent-CLIP for this one: latent-clip embed, then latent-clip train"


def loaded_signature(vae: comfy.sd.VAE) -> Signature | None:
    """Of a VAE in the host's care; None where it has no encoder."""
    return None if vae.first_stage_model is None else signature_of(vae.first_stage_model.state_dict())


def check_vae(clip: str, space: LatentSpace, told: dict, vae: comfy.sd.VAE, name: str = "") -> None:
    """Compare the encoders, where the Latent-CLIP's file tells of its own; else the shapes of latents, with a warning that this is all.

    Args:
        clip: name of the Latent-CLIP. space: that it reads. told: of its VAE, as the file has it: name, sha256, signature.
        name: of the VAE; default: of its file, where the host keeps it.

    Raises:
        LatentSpaceError: it is another VAE; names both and says what to do.
    """
    vae.throw_exception_if_invalid()
    name, own = name or name_of(vae), told.get("name") or f"of the {space.name} space"
    shape = (vae.latent_channels, vae.spacial_compression_encode())
    if shape != (space.channels, space.downscale):
        raise LatentSpaceError(
            f"Got the VAE {name}, whose latents have {_shape(*shape)}; {clip} reads those of the VAE {own}, with "
            f"{_shape(space.channels, space.downscale)}. {REMEDY}."
        )
    apart = difference(told, {"signature": loaded_signature(vae)})
    if apart is None:
        LOGGER.warning(
            "%s cannot be compared with the VAE %s: its file does not tell the weights of its own, %s. The shapes of their latents are "
            "the same, which says little.", clip, name, own,
        )  # fmt: skip
    elif is_another(apart):
        raise LatentSpaceError(
            f"Got the VAE {name}; {clip} reads the latents of the VAE {own}, which is another: {_how_far(apart)}. Its scores would mean "
            f"nothing, though the shapes are the same. {REMEDY}."
        )


def check_beside(judge, vae: comfy.sd.VAE) -> None:
    """Of a judge on a LATENT_CLIP wire whose file tells its VAE: whether this is the one. Of any other, nothing.

    Raises:
        LatentSpaceError: it is another; as `check_vae`.
    """
    told = getattr(judge, "vae_info", {})
    if told.get("signature"):
        check_vae(judge.name, judge.space, told, vae)


def name_of(vae: comfy.sd.VAE) -> str:
    """The name of its file, where the host keeps how it was loaded; else the class of its network."""
    _, arguments, *_ = getattr(vae.patcher, "cached_patcher_init", None) or (None, ())
    files = [Path(value).name for value in arguments if isinstance(value, str | Path) and Path(value).suffix]
    return next(iter(files), f"that was wired ({type(vae.first_stage_model).__name__})")


def _how_far(apart: float) -> str:
    if apart == float("inf"):
        return "their encoders are not of one kind"
    return f"a layer of its encoder is {100 * apart:.2g} % off, where rounding explains {100 * TOLERANCE:.1g} %"


def _shape(channels: int, downscale: int) -> str:
    return f"{channels} channels of {downscale} pixels a cell"
