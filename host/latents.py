"""LATENT wires: take tensors out, keep what belongs to an item with the item, draw thumbnails without a decode."""

import base64
import io

import comfy.latent_formats
from comfy_execution.graph_utils import ExecutionBlocker
from latent_preview import Latent2RGBPreviewer, LatentPreviewer
from torch import Tensor

from ..models.latent_spaces import LatentSpace, LatentSpaceError, check_raw_latents

THUMBNAIL_SIDE = 96  # pixels
MAX_THUMBNAILS = 64  # a node is no place for more

# latent space → the host's latent formats that share its VAE; the first one draws thumbnails
FORMATS = {
    "sdxl": ("SDXL", "SDXL_Playground_2_5"),
    "sd1": ("SD15",),
    "sd3": ("SD3",),
    "flux": ("Flux",),
    "shapes-world": ("ShapesWorldLatent",),
}


def raw_latents_of(latent: dict, space: LatentSpace) -> Tensor:
    """The checked samples of a LATENT: (B, C, H, W) float32.

    Raises:
        LatentSpaceError: not raw latents of `space`; says what came and what to do.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
        raise LatentSpaceError(
            f"Got a latent of several parts (such as video with audio), expected plain {space.name} image latents."
        )
    return check_raw_latents(samples, space).float()


def finite_items(latent: dict, space: LatentSpace) -> tuple[Tensor, list[int]]:
    """The checked samples of those items of a LATENT that hold finite numbers only, (b, C, H, W) float32, and their places.

    One item that overflowed says nothing about the others of its batch.

    Raises:
        LatentSpaceError: no item is finite, or these are not raw latents of `space`.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False) or samples.ndim < 2:
        raw_latents = raw_latents_of(latent, space)
        return raw_latents, list(range(len(raw_latents)))
    places = samples.flatten(1).isfinite().all(dim=1).nonzero().flatten().tolist()
    return raw_latents_of({"samples": samples[places] if places else samples}, space), places


def check_model_space(patcher, space: LatentSpace) -> None:
    """Refuse a MODEL whose latents a reward cannot read.

    Raises:
        LatentSpaceError: names both spaces and what to do.
    """
    latent_format = patcher.get_model_object("latent_format")
    name = type(latent_format).__name__
    known = space.named and space.name in FORMATS
    fits = name in FORMATS[space.name] if known else latent_format.latent_channels == space.channels
    if not fits:
        raise LatentSpaceError(
            f"Got a model that makes {name} latents, but the reward reads those of the {space.name} space "
            f"({space.description}). Use a model and a Latent-CLIP of the same VAE."
        )


def select_items(latent: dict, indices: list[int]) -> dict:
    """The items `indices` of a LATENT, in that order, with the metadata that belongs to each.

    Tensors and lists with one entry per item follow their item; a noise_mask for fewer items is repeated over the
    batch first, as the sampler does; `batch_index` keeps the seed's noise of every item.
    """
    size = len(latent["samples"])
    picked = {key: _pick(value, indices, size) for key, value in latent.items()}
    mask = latent.get("noise_mask")
    if isinstance(mask, Tensor) and 1 < len(mask) != size:
        picked["noise_mask"] = mask[[i % len(mask) for i in indices]]
    if "batch_index" not in latent:
        picked["batch_index"] = list(indices)
    return picked


def items_or_blocker(latent: dict, indices: list[int]) -> dict | ExecutionBlocker:
    """The items, or, where there are none, the host's silent stop for what follows: an empty batch crashes most nodes."""
    return select_items(latent, indices) if indices else ExecutionBlocker(None)


def values_or_blocker(values: list) -> list:
    """What a list output holds; where that is nothing, the silent stop as its one entry: the host fails on an empty list."""
    return values or [ExecutionBlocker(None)]


def _pick(value, indices: list[int], size: int):
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == size:
        return value[indices]
    if isinstance(value, list | tuple) and len(value) == size:
        return type(value)(value[i] for i in indices)
    return value


def thumbnails(
    raw_latents: Tensor, space: LatentSpace, previewer: LatentPreviewer | None = None, side: int = THUMBNAIL_SIDE
) -> list[str]:
    """A JPEG data URL per latent (B, C, H, W), "" where no previewer is given and none is known.

    Args:
        previewer: by default the latent format's linear latent-to-RGB map.
        side: of a picture, in pixels, at most.
    """
    latent_format = _latent_format(space)
    if latent_format is None:
        return [""] * len(raw_latents)
    previewer = previewer or Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    model_latents = latent_format.process_in(raw_latents)
    return [_data_url(previewer.decode_latent_to_preview(item[None]), side) for item in model_latents]


def _latent_format(space: LatentSpace) -> comfy.latent_formats.LatentFormat | None:
    """The host's format of a space; for an unnamed one, the usual one with so many channels."""
    if space.name == "shapes-world":
        from .shapes_world import ShapesWorldLatent

        return ShapesWorldLatent()
    usual = {4: "SDXL", 16: "Flux"}.get(space.channels)
    name = FORMATS.get(space.name, (usual,))[0] if space.named else usual
    return getattr(comfy.latent_formats, name)() if name else None


def _data_url(image, side: int) -> str:
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
