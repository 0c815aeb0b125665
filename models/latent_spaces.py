"""The latent spaces that the field's VAEs write, and the check that stands before every score.

A Latent-CLIP reads one space only. Raw latents are the VAE's posterior sample, as a LATENT wire carries them:
`model_latents = (raw_latents - shift) * scale`, as in the host's latent formats.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentSpace:
    """One VAE family's latent space.

    Attributes:
        name: key in `LATENT_SPACES`, and the word that error messages use.
        channels: C of a raw latent (B, C, H, W).
        downscale: pixels per latent cell along each side.
        scale, shift: from raw latents to the diffusion model's space.
        description: which models use it.
        named: False where only the channel count is known, as for a VAE that does not say which one it is.
    """

    name: str
    channels: int
    downscale: int
    scale: float
    shift: float
    description: str
    named: bool = True


class LatentSpaceError(ValueError):
    """A latent that the loaded network cannot read."""


LATENT_SPACES = {
    space.name: space
    for space in (
        LatentSpace("sdxl", 4, 8, 0.13025, 0.0, "SDXL, SDXL-Turbo, Hyper-SDXL, Pony, Illustrious"),
        LatentSpace("sd1", 4, 8, 0.18215, 0.0, "Stable Diffusion 1.x and 2.x"),
        LatentSpace("sd3", 16, 8, 1.5305, 0.0609, "Stable Diffusion 3 and 3.5"),
        LatentSpace("flux", 16, 8, 0.3611, 0.1159, "FLUX.1"),
        LatentSpace("shapes-world", 4, 8, 0.13025, 0.0, "the demo world of this pack"),
    )
}


def space_of_channels(channels: int, downscale: int) -> LatentSpace:
    """The unnamed space of a VAE of which no more is known."""
    return LatentSpace(
        f"{channels}-channel", channels, downscale, 1.0, 0.0, "those that the connected VAE decodes", named=False
    )


def common_space(spaces: list[LatentSpace]) -> LatentSpace:
    """The one space that all can read: the named one, where there is one.

    Raises:
        LatentSpaceError: they differ.
    """
    space = next((space for space in spaces if space.named), spaces[0])
    for other in spaces:
        if other.channels != space.channels or (other.named and other.name != space.name):
            raise LatentSpaceError(
                f"Got rewards on the {space.name} and the {other.name} latent space, expected one space for all. "
                "Use models that read the same latents."
            )
    return space


def check_raw_latents(raw_latents: Tensor, space: LatentSpace) -> Tensor:
    """Return `raw_latents` unchanged if they can be latents of `space`.

    Checks what a tensor can tell: rank, channel count, emptiness, finiteness. Two spaces with the same channel
    count (SD 1.5 and SDXL) cannot be told apart here; where a MODEL is at hand its latent format is checked too.

    Args:
        raw_latents: expected (B, C, H, W) with C = `space.channels`.

    Raises:
        LatentSpaceError: says what came, what was expected and what to do.
    """
    shape = tuple(raw_latents.shape)
    expected = (
        f"expected (batch, {space.channels}, height, width) latents of the {space.name} space ({space.description})"
    )
    if raw_latents.ndim != 4:
        kind = "a video latent" if raw_latents.ndim == 5 else f"{raw_latents.ndim} dimensions"
        raise LatentSpaceError(f"Got {kind}, shape {shape}; {expected}. Pick single frames or use an image model.")
    if shape[1] != space.channels:
        raise LatentSpaceError(
            f"Got latents of {_spaces_with_channels(shape[1])}, shape {shape}; {expected}. "
            "Use a Latent-CLIP that was trained for that VAE, or latents from a matching checkpoint."
        )
    if 0 in shape:
        raise LatentSpaceError(f"Got an empty latent batch, shape {shape}; {expected}. Connect at least one latent.")
    if not raw_latents.isfinite().all():
        raise LatentSpaceError(
            f"Got latents with NaN or infinite values, shape {shape}; expected finite numbers. "
            "The sampler overflowed: try another dtype, a lower cfg or another sampler."
        )
    return raw_latents


def _spaces_with_channels(channels: int) -> str:
    if channels == 3:
        return "pixel space (3 channels)"
    names = [
        space.name for space in LATENT_SPACES.values() if space.channels == channels and space.name != "shapes-world"
    ]
    return (
        f"the {' or '.join(names)} space ({channels} channels)" if names else f"an unknown space ({channels} channels)"
    )
