"""The pack's own socket types."""

from dataclasses import fields

from comfy_api.latest import io

LATENT_CLIP = io.Custom("LATENT_CLIP")
LATENT_REWARD = io.Custom("LATENT_REWARD")

CATEGORY = "latent_clip"

# For nodes that show something and run only when another node needs them. An output node would also run in the branch
# that a lazy switch has left out. The flag puts their report into the history and onto the page also when their result
# comes from the cache; hosts before 0.20 do not have it.
SHOWS = {name: True for name in ("has_intermediate_output",) if name in {field.name for field in fields(io.Schema)}}


def weight_input() -> io.Float.Input:
    """Weight of a reward's term."""
    return io.Float.Input(
        "weight",
        default=1.0,
        min=-100.0,
        max=100.0,
        step=0.05,
        tooltip="Factor of this reward in a sum. 1 is the usual choice; 0 only reports it; negative values seek the opposite.",
    )


def fit_input() -> io.Combo.Input:
    """How latents that are not square are read."""
    return io.Combo.Input(
        "fit",
        options=["tiles", "crop", "squash"],
        default="tiles",
        tooltip="How a latent that is not square meets the square tower. tiles: overlapping windows, averaged. "
        "crop: the centre only, fastest. squash: all of it, distorted. The same for square images.",
        advanced=True,
    )


def safety_fit_input() -> io.Combo.Input:
    """The same choices for nodes that must not overlook anything."""
    return io.Combo.Input(
        "fit",
        options=["tiles", "crop", "squash"],
        default="tiles",
        tooltip="How a latent that is not square meets the square tower. tiles: overlapping windows, of which the worst counts. "
        "crop: the same here, because the centre alone would miss the sides. squash: the windows, and all of it at once, distorted.",
        advanced=True,
    )


def dtype_input() -> io.Combo.Input:
    """Precision of a loaded network."""
    return io.Combo.Input(
        "dtype",
        options=["auto", "fp16", "bf16", "fp32"],
        default="auto",
        tooltip="Precision of the weights. auto: what ComfyUI would choose for this device. fp32 is the most exact and costs twice the memory.",
        advanced=True,
    )
