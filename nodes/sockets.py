"""The pack's own socket types, and the inputs and outputs that several nodes share: each stands here once."""

from dataclasses import fields

from comfy_api.latest import io

LATENT_CLIP = io.Custom("LATENT_CLIP")
LATENT_REWARD = io.Custom("LATENT_REWARD")
LATENT_LOOKS = io.Custom("LATENT_LOOKS")

CATEGORY = "latent_clip"

# For nodes that show something and run only when another node needs them. An output node would also run in the branch
# that a lazy switch has left out. The flag puts their report into the history and onto the node also when their result
# comes from the cache; hosts before 0.20 do not have it.
SHOWS = {name: True for name in ("has_intermediate_output",) if name in {field.name for field in fields(io.Schema)}}


def whole(id: str, default: int, low: int, high: int, tooltip: str, **more) -> io.Int.Input:
    """A whole number from `low` to `high`."""
    return io.Int.Input(id, default=default, min=low, max=high, tooltip=tooltip, **more)


def number(id: str, default: float, low: float, high: float, step: float, tooltip: str, **more) -> io.Float.Input:
    """A number from `low` to `high`; `step` is that of the widget's arrows."""
    return io.Float.Input(id, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


def choice(id: str, options: list[str], tooltip: str, **more) -> io.Combo.Input:
    """One of `options`; the first is the default."""
    return io.Combo.Input(id, options=options, default=next(iter(options), None), tooltip=tooltip, **more)


def switch(id: str, tooltip: str, **more) -> io.Boolean.Input:
    """A switch that is off by default."""
    return io.Boolean.Input(id, default=False, tooltip=tooltip, **more)


def text(id: str, tooltip: str, default: str = "", **more) -> io.String.Input:
    """A line, or several with `multiline`."""
    return io.String.Input(id, default=default, tooltip=tooltip, **more)


def variety_input(**more) -> io.Float.Input:
    """Weight of a group's differences beside its scores."""
    return number("variety", 0.0, 0.0, 10.0, 0.05,
        "How much the kept ones are to differ. 0: only the score counts. 0.5 parts images that are nearly alike; 1 weighs difference as much "
        "as the score; far more keeps odd ones.", **more)  # fmt: skip


def reward_input() -> io.Custom:
    """Reward input of nodes that score latents."""
    return LATENT_REWARD.Input(
        "reward", tooltip="What to judge by: any Reward node, or several through Combine Rewards."
    )


def reward_output() -> io.Custom:
    """The socket that all reward nodes end in."""
    return LATENT_REWARD.Output(
        display_name="REWARD", tooltip="For Score, Select and every other node that takes a reward."
    )


def latent_clip_input() -> io.Custom:
    """LATENT_CLIP input of nodes that score latents."""
    return LATENT_CLIP.Input(
        "latent_clip", tooltip="From Load Latent-CLIP. It must read the latents that will be judged."
    )


def weight_input() -> io.Float.Input:
    """Weight of a reward's term."""
    return number("weight", 1.0, -100.0, 100.0, 0.05,
               "Factor of this reward in a sum. 1 is the usual choice; 0 only reports it; negative values seek the opposite.")  # fmt: skip


def fit_input() -> io.Combo.Input:
    """Choice of how latents that are not square are read."""
    return choice("fit", ["tiles", "crop", "squash"],
               "How a latent that is not square meets the square tower. tiles: overlapping windows, averaged. crop: the centre only, fastest. "
               "squash: all of it, distorted. The same for square images.", advanced=True)  # fmt: skip


def safety_fit_input() -> io.Combo.Input:
    """The same choices for nodes that must not overlook anything."""
    return choice("fit", ["tiles", "crop", "squash"],
               "How a latent that is not square meets the square tower. tiles: overlapping windows, of which the worst counts. crop: the same "
               "here, because the centre alone would miss the sides. squash: the windows, and all of it at once, distorted.", advanced=True)  # fmt: skip


def frames_input() -> io.Combo.Input:
    """Reduction over the frames of a clip. Optional, as it came after version 0.1."""
    return choice("frames", ["mean", "worst"],
               "For latents of several frames (video models). mean: the average of all frames. worst: the frame with the lowest score, so that "
               "one bad moment counts. An image is one frame.", optional=True, advanced=True)  # fmt: skip


def dtype_input() -> io.Combo.Input:
    """Precision of a loaded network."""
    return choice("dtype", ["auto", "fp16", "bf16", "fp32"],
               "Precision of the weights. auto: what ComfyUI would choose for this device. fp32 is the most exact and costs twice the memory.", advanced=True)  # fmt: skip
