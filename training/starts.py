"""Start weights of a new Latent-CLIP, from nothing, a pixel CLIP, or another Latent-CLIP; and the layers' learning rates.

Its tower reads raw latents: their normalisation, mean and standard deviation of every channel, is folded into the patch
convolution and the positions, so that nobody has to scale latents later.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.config import NOISE_BANDS, NOISE_HIDDEN, latent_grid
from ..models.latent_clip import LatentCLIP
from ..models.noise_level import NOISE_PATH
from .loop import Group


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of raw latents (N, C, h, w): each (C,)."""
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3)).clamp_min(1e-6)


@torch.no_grad()
def fold_normalisation(model: LatentCLIP, mean: Tensor, std: Tensor) -> None:
    """Make a tower that reads (raw - mean) / std read raw latents.

    The convolution has no bias, so what `mean` adds to every patch goes into the positions of the patches.
    """
    weight = model.visual.conv1.weight
    weight /= std.to(weight)[None, :, None, None]
    _fold_mean(model, mean)


def _fold_mean(model: LatentCLIP, mean: Tensor) -> None:
    weight = model.visual.conv1.weight
    model.visual.positional_embedding[1:] -= (weight * mean.to(weight)[None, :, None, None]).sum((1, 2, 3))


def from_nothing(config: dict, mean: Tensor, std: Tensor, seed: int) -> LatentCLIP:
    """Return a new tower with open_clip's own initialisation, seeded, for latents of these statistics."""
    torch.manual_seed(seed)
    model = LatentCLIP(config)
    fold_normalisation(model, mean, std)
    return model


def config_for_latents(
    source: dict, channels: int, grid: int, patch_size: int, factor: int, noise_bands: int = 0, noise_hidden: int = 0
) -> dict:  # fmt: skip
    """The config of a Latent-CLIP with the blocks and the text tower of a CLIP's config.

    Args:
        grid: latent cells along a side of what it reads. factor: pixels of a cell.
        noise_bands, noise_hidden: as `models.noise_level.make_noise_aware` takes them; without bands there is no branch.
    """
    vision = {
        key: value for key, value in source["vision_cfg"].items()
        if key in ("layers", "width", "head_width", "mlp_ratio")
    }  # fmt: skip
    vision |= {
        "image_size": grid * factor,
        "patch_size": patch_size,
        "latent_factor": factor,
        "latent_n_channels": channels,
    }
    if noise_bands:
        vision |= {NOISE_BANDS: noise_bands} | ({NOISE_HIDDEN: noise_hidden} if noise_hidden else {})
    config = {"embed_dim": source["embed_dim"], "vision_cfg": vision, "text_cfg": copy.deepcopy(source["text_cfg"])}
    return config | ({"quick_gelu": True} if source.get("quick_gelu") else {})


@torch.no_grad()
def from_clip(
    source: nn.Module, config: dict, mean: Tensor, std: Tensor, seed: int, pairs: tuple[Tensor, Tensor] | None = None
) -> LatentCLIP:
    """Return a Latent-CLIP with the weights of a CLIP, of pixels or latents; the patch convolution is new unless it fits, and positions are resized.

    Args:
        source: open_clip's CustomTextCLIP or a LatentCLIP. config: see `config_for_latents`.
        pairs: latents and the source's patches for `fit_patch_convolution`; without them a new convolution is random.

    Raises:
        ValueError: the towers differ in more than what they read.
    """
    model = from_nothing(config, mean, std, seed)
    state, own = source.state_dict(), model.state_dict()
    convolution = state.pop("visual.conv1.weight")
    state.pop("logit_bias", None)
    if fits := convolution.shape == own["visual.conv1.weight"].shape:  # a Latent-CLIP of as many channels
        state["visual.conv1.weight"] = convolution
    grid = latent_grid(config) // config["vision_cfg"]["patch_size"]
    state["visual.positional_embedding"] = _resized(state["visual.positional_embedding"], grid)
    problems = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    new = ("visual.conv1.weight", *(f"visual.{part}." for part in NOISE_PATH))
    lacking = [key for key in own if key not in state and not key.startswith(new)]
    if problems or lacking:
        raise ValueError(
            f"Got a CLIP whose towers differ from the new one's, first in {(problems + lacking)[0]}; expected the same layers and "
            "widths. Start from another file, or from nothing."
        )
    model.load_state_dict(state, strict=False)
    if pairs is not None and not fits:
        fit_patch_convolution(model, *pairs)
    elif not fits:
        _fold_mean(model, mean)
    return model


def _resized(positions: Tensor, grid: int) -> Tensor:
    """Positions (1 + g², W) of another grid, bicubic, the class token's as it is."""
    old = round((len(positions) - 1) ** 0.5)
    if old == grid:
        return positions
    square = positions[1:].T.reshape(1, -1, old, old)
    square = F.interpolate(square.float(), (grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], square.flatten(2)[0].T.to(positions)])


@torch.no_grad()
def fit_patch_convolution(model: LatentCLIP, latents: Tensor, patches: Tensor, ridge: float = 1e-3) -> float:
    """Fit the patch convolution by least squares so that it maps latents to the teacher's patch embeddings of the same images.

    The convolution has no bias, so the constant goes into the positions of the patches.

    Args:
        latents: raw (N, C, grid, grid). patches: (N, T, W) of the other convolution, T in reading order.
        ridge: pull towards zero, as a share of the mean square of what is read.

    Returns:
        Share of the variance of `patches` that is explained, 0 to 1.

    Raises:
        ValueError: the numbers of patches or widths differ.
    """
    tower = model.visual
    size, width = tower.conv1.kernel_size[0], tower.conv1.out_channels
    read = F.unfold(latents.double(), size, stride=size).movedim(1, 2)  # (N, T, C·p·p)
    if patches.shape != (len(latents), read.shape[1], width):
        raise ValueError(
            f"Got patches of shape {tuple(patches.shape)} for a tower of {read.shape[1]} patches of width {width}. "
            "Embed again with this --patch-grid and a teacher of the same width."
        )
    x, y = read.flatten(0, 1), patches.double().flatten(0, 1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    solution = torch.linalg.solve(
        gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), x.T @ y
    )
    tower.conv1.weight.copy_(solution.T.reshape(tower.conv1.weight.shape))
    tower.positional_embedding[1:] += (y_mean - x_mean @ solution).to(tower.positional_embedding)
    return 1 - ((y - x @ solution).square().sum() / y.square().sum()).item()


def only_patches(model: LatentCLIP) -> list[str]:
    """Return the names of the parameters of the first stage: patch convolution and positions."""
    return [
        name
        for name in ("visual.conv1.weight", "visual.positional_embedding")
        if name in dict(model.named_parameters())
    ]


def layered_groups(
    parameters: Mapping[str, nn.Parameter], layers: int, decay: float, weight_decay: float
) -> list[Group]:
    """Groups of parameters for layer-wise learning rates: `decay` to the power of the distance from the top of the image tower.

    As in open_clip, gains, biases and the temperature have no weight decay.

    Args:
        parameters: by name, as `named_parameters` gives them. layers: of the image tower.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        plain = parameter.ndim < 2 or name.endswith(("logit_scale", "logit_bias"))
        groups.setdefault((_depth(name, layers), plain), []).append(parameter)
    return [
        Group(members, decay ** (layers + 1 - depth), 0.0 if plain else weight_decay)
        for (depth, plain), members in groups.items()
    ]


def _depth(name: str, layers: int) -> int:
    if block := re.search(r"visual\.transformer\.resblocks\.(\d+)\.", name):
        return int(block[1]) + 1
    if branch := re.search(r"visual\.noise_branches\.(\d+)\.", name):
        return int(branch[1]) + 1
    bottom = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "noise_projection")
    return 0 if re.search(rf"visual\.({'|'.join(bottom)})", name) else layers + 1
