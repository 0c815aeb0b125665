"""The model that a training begins with: a new tower, or one with the blocks and the text tower of a CLIP's file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.checkpoint import CheckpointError, read_checkpoint
from ..models.config import latent_grid
from ..models.latent_clip import LatentCLIP, load_latent_clip
from ..models.own_spaces import space_of_dict
from ..models.pixel_clip import read_pixel_clip
from ..models.shapes_world import load_pixel_clip
from .objectives import limit_temperature, start_temperature
from .options import TrainOptions
from .samples import point_of, usual, usual_width
from .shards import Dataset, Sample
from .starts import config_for_latents, from_clip, from_nothing

SHAPES_WORLD = "shapes-world"


def cells_of(dataset: Dataset) -> tuple[int, int]:
    """Return the channels of a data set's latents, and their cells along a side."""
    space = space_of_dict(dataset.space)
    return space.channels, dataset.views["side"] // space.downscale


def start_model(
    options: TrainOptions, dataset: Dataset, samples: list[Sample], patched: list[Sample], statistics: tuple[Tensor, Tensor]
) -> tuple[LatentCLIP, dict]:
    """Return the model of step 0 and its config.

    Args:
        samples: the first samples. patched: the first samples of the shards that have the teacher's patches.
        statistics: mean and standard deviation of every channel.

    Raises:
        ValueError: the options do not fit the data.
    """
    space, (_, grid) = space_of_dict(dataset.space), cells_of(dataset)
    if not options.start:
        if not options.model:
            raise ValueError(
                "Got neither --model nor --start, expected one: the config of a new tower, or a CLIP's file."
            )
        config = options.model
        if (config["vision_cfg"]["latent_n_channels"], latent_grid(config)) != (space.channels, grid):
            raise ValueError(
                f"Got a --model for {config['vision_cfg']['latent_n_channels']} channels of {latent_grid(config)} cells, but the shards "
                f"hold {space.channels} channels of {grid}. Change the config, or embed again with its --side."
            )
        _check_teacher(options, samples, config["embed_dim"])
        model = from_nothing(config, *statistics, options.seed)
        start_temperature(model, options.siglip)
        return model, config
    source, source_config = load_start(options.start)
    _check_teacher(options, samples, source_config["embed_dim"])
    config = config_for_latents(
        source_config, space.channels, grid, options.patch_size, space.downscale, options.noise_bands,
        options.noise_hidden,
    )  # fmt: skip
    model = from_clip(source, config, *statistics, options.seed, _pairs(patched))
    limit_temperature(model)
    return model, config


def _pairs(patched: list[Sample]) -> tuple[Tensor, Tensor] | None:
    """Return latents and the teacher's patches of the same first views; None where no sample has any."""
    size = usual(sample.teacher["patches"].shape for sample in patched if "patches" in sample.teacher)
    known = [s for s in patched if "patches" in s.teacher and s.teacher["patches"].shape == size]
    if not known:
        return None
    latents = torch.stack([point_of(sample)[0].float() for sample in known])
    return latents, torch.stack([sample.teacher["patches"].float() for sample in known])


def _check_teacher(options: TrainOptions, samples: list[Sample], size: int) -> None:
    """Refuse features that do not belong to the tower's space.

    Raises:
        ValueError: the teacher's features have another width than the tower's, or there are none.
    """
    if not options.distil and not options.affinity:
        return
    width, own = usual_width(samples), Path(options.start).name or "--model"
    if not width:
        raise ValueError(
            f"{options.train_data}: no sample has a teacher's features, expected them for --distil and --affinity. Embed again with --teacher."
        )
    if width != size:
        raise ValueError(
            f"Got features of a teacher with {width} numbers, but {own} has {size}. Start from the teacher's own file, "
            "whose text tower is kept, or embed again with that one as the --teacher."
        )


def load_start(name: str) -> tuple[nn.Module, dict]:
    """Return a pixel CLIP or a Latent-CLIP as a module, with its config; "shapes-world": the shipped pixel CLIP."""
    if name == SHAPES_WORLD:
        clip = load_pixel_clip()
        return clip.model, clip.config
    path = Path(name)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        if "reads pixels" not in str(error):
            raise
        clip = read_pixel_clip(path)
        return clip.model, clip.config
    return load_latent_clip(checkpoint.config, checkpoint.state_dict), checkpoint.config
