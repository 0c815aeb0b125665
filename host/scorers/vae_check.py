"""Compare a VAE with the one whose latents a Latent-CLIP reads, also where the shapes are equal."""

import logging
from pathlib import Path

import comfy.sd

from ...models.latent_spaces import LatentSpace, LatentSpaceError
from ...models.vae_signature import TOLERANCE, Signature, difference, is_another, signature_of

LOGGER = logging.getLogger(__name__)
REMEDY = "Wire the VAE that it was made for, or make a Latent-CLIP for this one: latent-clip embed, then latent-clip train"


def loaded_signature(vae: comfy.sd.VAE) -> Signature | None:
    """Signature of a loaded VAE; None where it has no encoder."""
    return None if vae.first_stage_model is None else signature_of(vae.first_stage_model.state_dict())


def check_vae(clip: str, space: LatentSpace, recorded: dict, vae: comfy.sd.VAE, name: str = "") -> None:
    """Compare the encoders if the Latent-CLIP's file records its own; otherwise the shapes of latents, with a warning.

    Args:
        clip: name of the Latent-CLIP. space: that it reads. recorded: VAE metadata of its file: name, sha256, signature.
        name: of the VAE; default: of its file, where the host keeps it.

    Raises:
        LatentSpaceError: it is another VAE; names both and says what to do.
    """
    vae.throw_exception_if_invalid()
    name, own = name or name_of(vae), recorded.get("name") or f"of the {space.name} space"
    shape = (vae.latent_channels, vae.spacial_compression_encode())
    if shape != (space.channels, space.downscale):
        raise LatentSpaceError(
            f"Got the VAE {name}, whose latents have {_shape(*shape)}; {clip} reads those of the VAE {own}, with "
            f"{_shape(space.channels, space.downscale)}. {REMEDY}."
        )
    apart = difference(recorded, {"signature": loaded_signature(vae)})
    if apart is None:
        LOGGER.warning(
            "%s cannot be compared with the VAE %s: its file does not record the weights of its own, %s. The shapes of their latents are "
            "the same, which says little.", clip, name, own,
        )  # fmt: skip
    elif is_another(apart):
        raise LatentSpaceError(
            f"Got the VAE {name}; {clip} reads the latents of the VAE {own}, which is another: {_how_far(apart)}. Its scores would mean "
            f"nothing, though the shapes are the same. {REMEDY}."
        )


def check_vae_if_recorded(scorer, vae: comfy.sd.VAE) -> None:
    """Check `vae` against the VAE recorded in the model file; do nothing if none is recorded.

    Raises:
        LatentSpaceError: it is another; as `check_vae`.
    """
    recorded = getattr(scorer, "vae_info", {})
    if recorded.get("signature"):
        check_vae(scorer.name, scorer.space, recorded, vae)


def name_of(vae: comfy.sd.VAE) -> str:
    """Name of the VAE's file if the host keeps it; otherwise the class of its network."""
    _, arguments, *_ = getattr(vae.patcher, "cached_patcher_init", None) or (None, ())
    files = [Path(value).name for value in arguments if isinstance(value, str | Path) and Path(value).suffix]
    return next(iter(files), f"that was wired ({type(vae.first_stage_model).__name__})")


def _how_far(apart: float) -> str:
    if apart == float("inf"):
        return "their encoders are not of one kind"
    return f"a layer of its encoder is {100 * apart:.2g} % off, where rounding explains {100 * TOLERANCE:.1g} %"


def _shape(channels: int, downscale: int) -> str:
    return f"{channels} channels of {downscale} pixels a cell"
