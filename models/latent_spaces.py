"""The latent spaces that the field's VAEs write, and the check before every score.

A Latent-CLIP reads one space only. Raw latents are the VAE's posterior sample, as a LATENT wire carries them:
`model_latents = (raw_latents - shift) * scale`, as in the host's latent formats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PIXEL_JUDGE = "score the decoded pictures: Load Pixel Judge, or Reward: Pixel CLIP, with the VAE of that model"


@dataclass(frozen=True)
class LatentSpace:
    """One VAE family's latent space.

    Attributes:
        name: key in `LATENT_SPACES`, and the word that error messages use.
        channels: C of a raw latent (B, C, H, W), or (B, C, T, H, W) of a VAE for video.
        downscale: pixels per latent cell along each side.
        scale, shift: from raw latents to the diffusion model's space; one number, or one for each channel.
        description: which models use it.
        formats: the host's latent formats that share its VAE; the first one draws thumbnails.
        video: its VAE compresses time too, so that latents have frames; a still image is one frame.
        named: False where only the channel count is known, as for a VAE that does not say which one it is.
    """

    name: str
    channels: int
    downscale: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    description: str
    formats: tuple[str, ...] = ()
    video: bool = False
    named: bool = True

    def to_model(self, raw_latents: Tensor) -> Tensor:
        """Convert raw latents (B, C, ...) to the diffusion model's scale."""
        return (raw_latents - _of_channels(self.shift, raw_latents)) * _of_channels(self.scale, raw_latents)

    def to_raw(self, model_latents: Tensor) -> Tensor:
        """Convert latents at the diffusion model's scale (B, C, ...) to raw latents."""
        return model_latents / _of_channels(self.scale, model_latents) + _of_channels(self.shift, model_latents)


def _of_channels(values: float | tuple[float, ...], latents: Tensor) -> float | Tensor:
    """A number, or one for each channel in a shape that broadcasts over latents (B, C, ...)."""
    if isinstance(values, float):
        return values
    return torch.tensor(values).to(latents).view(-1, *[1] * (latents.ndim - 2))


class LatentSpaceError(ValueError):
    """A latent that the loaded network cannot read."""


def _inverse(deviations: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1 / deviation for deviation in deviations)


# mean and deviation of each channel, as published with the VAEs (the host's Wan21 and Wan22 formats)
_WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
)  # fmt: skip
_WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

# In the order in which a number of channels is taken for a space, where a preview is all that depends on it.
LATENT_SPACES = {
    space.name: space
    for space in (
        LatentSpace(
            "sdxl", 4, 8, 0.13025, 0.0, "SDXL, SDXL-Turbo, Hyper-SDXL, Pony, Illustrious", ("SDXL", "SDXL_Playground_2_5")
        ),
        LatentSpace("sd1", 4, 8, 0.18215, 0.0, "Stable Diffusion 1.x and 2.x", ("SD15",)),
        LatentSpace("flux", 16, 8, 0.3611, 0.1159, "FLUX.1, Z-Image, Lumina 2, Chroma, HiDream-I1, OmniGen2", ("Flux",)),
        LatentSpace("sd3", 16, 8, 1.5305, 0.0609, "Stable Diffusion 3 and 3.5", ("SD3",)),
        LatentSpace("flux2", 128, 16, 1.0, 0.0, "FLUX.2 dev and klein, Ernie-Image", ("Flux2",)),
        LatentSpace("hunyuan-image", 64, 32, 0.75289, 0.0, "HunyuanImage 2.1", ("HunyuanImage21",)),
        LatentSpace(
            "wan21", 16, 8, _inverse(_WAN21_STD), _WAN21_MEAN, "Wan 2.1 and 2.2 14B, Qwen-Image, Krea 2, Anima", ("Wan21",),
            video=True,
        ),
        LatentSpace("wan22", 48, 16, _inverse(_WAN22_STD), _WAN22_MEAN, "Wan 2.2 5B", ("Wan22",), video=True),
        LatentSpace("hunyuan-video", 16, 8, 0.476986, 0.0, "HunyuanVideo", ("HunyuanVideo",), video=True),
        LatentSpace("ltxv", 128, 32, 1.0, 0.0, "LTX-Video", ("LTXV",), video=True),
        LatentSpace("ltx2", 128, 32, 1.0, 0.0, "LTX-2, with sound", ("LTXAV",), video=True),
        LatentSpace("shapes-world", 4, 8, 0.13025, 0.0, "the demo world of this pack", ("ShapesWorldLatent",)),
    )
}  # fmt: skip

# Formats of the host that are no image of a VAE that a Latent-CLIP could be made for.
NO_LATENT_IMAGES = {
    "pixels": ("ChromaRadiance", "ZImagePixelSpace", "HiDreamO1Pixel", "PixelDiTPixel"),
    "sound": ("StableAudio1", "StableAudio3", "ACEAudio", "ACEAudio15"),
    "3-D shapes": ("Hunyuan3Dv2", "Hunyuan3Dv2_1", "Hunyuan3Dv2mini", "TripoSplat"),
}


def space_of_format(name: str) -> LatentSpace | None:
    """The space of a latent format of the host; None for those that no Latent-CLIP of ours can name."""
    return next((space for space in LATENT_SPACES.values() if name in space.formats), None)


def what_format_is(name: str) -> str:
    """A latent format in words, for messages."""
    kind = next((kind for kind, names in NO_LATENT_IMAGES.items() if name in names), None)
    if kind is not None:
        return f"{name} ({kind})"
    space = space_of_format(name)
    return f"{name} latents" + (f" (the {space.name} space)" if space else " (a space without a Latent-CLIP)")


def space_of_channels(channels: int, downscale: int, video: bool = False) -> LatentSpace:
    """The unnamed space of a VAE of which no more is known.

    Its `formats` are those of the best known space of this shape: good enough for a preview, and for nothing else.
    """
    shape = (channels, downscale, video)
    alike = (s.formats for s in LATENT_SPACES.values() if (s.channels, s.downscale, s.video) == shape)
    return LatentSpace(
        f"{channels}-channel", channels, downscale, 1.0, 0.0, "those that the connected VAE decodes", next(alike, ()),
        video, named=False,
    )  # fmt: skip


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

    Checks what a tensor shows: rank, channel count, emptiness, finiteness. Two spaces with the same channel
    count (SD 1.5 and SDXL) cannot be distinguished here; where a MODEL is at hand its latent format is checked too.

    Args:
        raw_latents: expected (B, C, H, W) with C = `space.channels`; of a VAE for video also (B, C, T, H, W).

    Raises:
        LatentSpaceError: says what came, what was expected and what to do.
    """
    shape = tuple(raw_latents.shape)
    frames = ", frames" if space.video else ""
    expected = f"expected (batch, {space.channels}{frames}, height, width) latents of the {space.name} space ({space.description})"
    if raw_latents.ndim not in (4, 5) or (raw_latents.ndim == 5 and space.named and not space.video):
        kind = "a video latent" if raw_latents.ndim == 5 else f"{raw_latents.ndim} dimensions"
        raise LatentSpaceError(f"Got {kind}, shape {shape}; {expected}. Use single frames, or {PIXEL_JUDGE}.")
    if shape[1] != space.channels:
        raise LatentSpaceError(
            f"Got latents of {_spaces_with_channels(shape[1], raw_latents.ndim == 5)}, shape {shape}; {expected}. "
            f"Use a Latent-CLIP that was trained for that VAE, or {PIXEL_JUDGE}."
        )
    if 0 in shape:
        raise LatentSpaceError(f"Got an empty latent batch, shape {shape}; {expected}. Connect at least one latent.")
    if not raw_latents.isfinite().all():
        raise LatentSpaceError(
            f"Got latents with NaN or infinite values, shape {shape}; expected finite numbers. "
            "The sampler overflowed: try another dtype, a lower cfg or another sampler."
        )
    return raw_latents


def _spaces_with_channels(channels: int, video: bool) -> str:
    if channels == 3:
        return "pixel space (3 channels)"
    alike = [space for space in LATENT_SPACES.values() if (space.channels, space.video) == (channels, video)]
    names = [space.name for space in alike if space.name != "shapes-world"]
    return (
        f"the {' or '.join(names)} space ({channels} channels)" if names else f"an unknown space ({channels} channels)"
    )
