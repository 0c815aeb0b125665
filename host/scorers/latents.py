"""LATENT wires: take tensors out, keep metadata with its item, draw thumbnails without a decode."""

import base64
import io
from inspect import signature

import comfy.latent_formats
import comfy.sample
from comfy_execution.graph_utils import ExecutionBlocker
from latent_preview import Latent2RGBPreviewer, LatentPreviewer
from torch import Tensor

from ...models.latent_spaces import (
    PIXEL_JUDGE,
    LatentSpace,
    LatentSpaceError,
    check_raw_latents,
    space_of_channels,
    what_format_is,
)

THUMBNAIL_SIDE = 96  # pixels
MAX_THUMBNAILS = 64  # a node is no place for more

def image_part(samples):
    """Picture part of a LATENT: its samples, or the first of several parts for video with sound."""
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def raw_latents_of(latent: dict, space: LatentSpace) -> Tensor:
    """The checked samples of a LATENT: (B, C, H, W) float32, or (B, C, T, H, W) of a VAE for video.

    Raises:
        LatentSpaceError: not raw latents of `space`; says what came and what to do.
    """
    samples = image_part(latent["samples"])
    if not isinstance(samples, Tensor):
        raise LatentSpaceError(f"Got {type(samples).__name__} as samples, expected {space.name} latents. Connect a sampler.")
    if space.named and space.video and samples.ndim == 4:
        raise LatentSpaceError(
            f"Got latents without frames, shape {tuple(samples.shape)}, expected (batch, {space.channels}, frames, height, width) "
            f"of the {space.name} space ({space.description}). They are of another model: {PIXEL_JUDGE}."
        )
    return check_raw_latents(samples, space).float()


def finite_items(latent: dict, space: LatentSpace) -> tuple[Tensor, list[int]]:
    """Checked samples of the items of a LATENT that are finite, (b, C, ...) float32, and their places.

    One item that overflowed says nothing about the others of its batch.

    Raises:
        LatentSpaceError: no item is finite, or these are not raw latents of `space`.
    """
    samples = image_part(latent["samples"])
    if not isinstance(samples, Tensor) or samples.ndim < 2:
        raw_latents = raw_latents_of(latent, space)
        return raw_latents, list(range(len(raw_latents)))
    places = samples.flatten(1).isfinite().all(dim=1).nonzero().flatten().tolist()
    return raw_latents_of({"samples": samples[places] if places else samples}, space), places


def latents_for(patcher, latent: dict) -> Tensor:
    """Return the samples that a sampler of this MODEL starts from: an empty latent gets its channels, size, frames.

    Raises:
        LatentSpaceError: clips of frames for a model of images.
    """
    known = signature(comfy.sample.fix_empty_latent_channels).parameters  # hosts before 0.27 have no ratio of time
    ratios = {name: latent[name] for name in known if name in latent}
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], **ratios)
    if samples.ndim == 5 and patcher.get_model_object("latent_format").latent_dimensions == 2:
        raise LatentSpaceError(
            f"Got clips of frames of shape {tuple(samples.shape)} for a model that makes images, expected images (batch, channels, height, "
            "width). Connect an Empty Latent Image, or a model of videos."
        )
    return samples


def check_model_space(patcher, space: LatentSpace) -> None:
    """Refuse a MODEL whose latents a reward cannot read.

    Raises:
        LatentSpaceError: names both spaces and what to do.
    """
    latent_format = patcher.get_model_object("latent_format")
    name = type(latent_format).__name__
    known = space.named and space.formats
    fits = name in space.formats if known else latent_format.latent_channels == space.channels
    if not fits:
        raise LatentSpaceError(
            f"Got a model that makes {what_format_is(name)}, but the scorer reads those of the {space.name} space "
            f"({space.description}). Use a model and a Latent-CLIP of the same VAE, or {PIXEL_JUDGE}."
        )


def select_items(latent: dict, indices: list[int]) -> dict:
    """Return the items `indices` of a LATENT, in that order, with the metadata of each.

    Tensors and lists with one entry per item follow their item, in every part of a latent of several parts; so does a noise_mask, as
    the sampler would read it for that item; `batch_index` keeps the seed's noise of every item.
    """
    samples = latent["samples"]
    size = len(image_part(samples))
    picked = {key: _pick(value, indices, size) for key, value in latent.items() if key != "noise_mask"}
    if "noise_mask" in latent:
        picked["noise_mask"] = _pick_masks(latent["noise_mask"], samples, indices)
    if "batch_index" not in latent:
        picked["batch_index"] = list(indices)
    return picked


def _pick_masks(mask, samples, indices: list[int]):
    """Select the noise_mask of these items: a single one stays, of several the one that the sampler uses for each.

    The host reads a mask of images as a sequence of pictures (..., H, W), whatever stands before them, and repeats it over the batch. Of
    clips only a mask of five dimensions has items: fewer dimensions are frames.
    """
    if getattr(mask, "is_nested", False):
        parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
        return type(mask)([_pick_masks(*pair, indices) for pair in zip(mask.unbind(), parts)])
    of = image_part(samples)
    if not isinstance(mask, Tensor) or mask.ndim < 2 or 0 in mask.shape:
        return _pick(mask, indices, len(of))
    if of.ndim == 4:
        masks = mask if mask.ndim == 4 and mask.shape[1] == 1 else mask.reshape(-1, *mask.shape[-2:])
    else:
        masks = mask if mask.ndim == of.ndim else mask[None]
    return mask if len(masks) == 1 else masks[[i % len(masks) for i in indices]]


def items_or_blocker(latent: dict, indices: list[int]) -> dict | ExecutionBlocker:
    """Return the items, or the host's silent stop if there are none: an empty batch crashes most nodes."""
    return select_items(latent, indices) if indices else ExecutionBlocker(None)


def values_or_blocker(values: list) -> list:
    """Return the values of a list output, or the silent stop alone: the host fails on an empty list."""
    return values or [ExecutionBlocker(None)]


def _pick(value, indices: list[int], size: int):
    if getattr(value, "is_nested", False):
        return type(value)([_pick(part, indices, size) for part in value.unbind()])
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == size:
        return value[indices]
    if isinstance(value, list | tuple) and len(value) == size:
        return type(value)(value[i] for i in indices)
    return value


def thumbnails(
    raw_latents: Tensor, space: LatentSpace, previewer: LatentPreviewer | None = None, side: int = THUMBNAIL_SIDE
) -> list[str]:
    """A JPEG data URL per latent (B, C, H, W), of the middle one of several frames; "" where no previewer is given or known.

    Args:
        previewer: by default the latent format's linear latent-to-RGB map.
        side: of a picture, in pixels, at most.
    """
    latent_format = _latent_format(space)
    if latent_format is None or (previewer is None and latent_format.latent_rgb_factors is None):
        return [""] * len(raw_latents)
    previewer = previewer or Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )
    pictures = raw_latents[:, :, raw_latents.shape[2] // 2] if raw_latents.ndim == 5 else raw_latents
    if latent_format.latent_dimensions == 3:
        pictures = pictures.unsqueeze(2)
    model_latents = latent_format.process_in(pictures)
    return [_data_url(previewer.decode_latent_to_preview(item[None]), side) for item in model_latents]


def _latent_format(space: LatentSpace) -> comfy.latent_formats.LatentFormat | None:
    """Latent format of a space in the host; for an unnamed space, the usual one of its shape; None if unknown."""
    if space.name == "shapes-world":
        from .shapes_world import ShapesWorldLatent

        return ShapesWorldLatent()
    formats = space.formats or space_of_channels(space.channels, space.downscale, space.video).formats
    names = [name for name in formats if hasattr(comfy.latent_formats, name)]
    return getattr(comfy.latent_formats, names[0])() if names else None


def _data_url(image, side: int) -> str:
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
