"""Train the encoder of a VAE together with a Latent-CLIP for it, with regularisers that keep its diffusion model working (research).

    latent-clip finetune-vae pictures/ --vae ae.safetensors --clip my-clip.safetensors --distil 1 --teacher open_clip_model.safetensors \\
        --output-vae my-vae.safetensors --output my-clip-2.safetensors

Two files come out, which belong together: the old Latent-CLIP misjudges latents of the new VAE, and the new one those of the old. A run
that was stopped goes on from its last checkpoint when it is started again. Pictures are only read. What is written are the two outputs,
and checkpoints and logs in a folder that one training has for itself (--logs); files of others are left as they are.
"""

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

from .comfyui import find_host
from .embed import SHAPES_WORLD, _log, _shown, _teacher

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line; flags are those of embed and train."""
    parts = _parts()
    if parts is None:
        parser.epilog = "This needs the package webdataset."
        return
    default = parts.FinetuneOptions(output=Path(), output_vae=Path(), logs=Path())
    weights, add = default.regularisers, parser.add_argument
    add("source", help="a folder of pictures, a .tar, or a pattern of tars such as 'tars/*.tar'; or an fsspec address")
    add("--vae", required=True, help="file of the VAE, or shapes-world")
    add("--clip", required=True, help="file of the Latent-CLIP that reads this VAE's latents, or shapes-world")
    add("--output-vae", type=Path, required=True, help="the .safetensors file of the new VAE")
    parts.add_common_arguments(parser, default, parts.PRECISIONS)
    add("--held-out", help="other pictures, for figures before and after; default: some of the pictures trained on")
    add("--captions", help="a .jsonl, .csv, .tsv, .parquet or .json that names pictures and captions")
    add("--licence", default="", help="of the pictures, for the card")
    add("--teacher", help="file of the pixel CLIP that the Latent-CLIP was distilled from, or shapes-world")
    add("--teacher-licence", default="", help="for the card")
    add("--decoder", action="store_true", help="train the decoder too; default: only the encoder")
    add("--l1", type=float, default=weights.l1, help=f"regulariser: weight of the round trip's mean absolute error, pixels 0 to 1; default {weights.l1:g}")
    add("--lpips", type=float, default=weights.lpips, help="regulariser: weight of the round trip's LPIPS; needs the package lpips; default 0")
    add("--lpips-vgg", type=Path, help="with --lpips: torchvision's vgg16-397923af.pth")
    add("--kl", type=float, default=weights.kl, help=f"regulariser: weight of the posterior's divergence from the unit normal; default {weights.kl:g}")
    add("--distance", type=float, default=weights.distance, help=f"regulariser: weight of the latents' squared distance to the old, in variances of each channel; default {weights.distance:g}")  # fmt: skip
    add("--views", default="centre", help="kinds of views, of which a picture shows one at random: centre, flip, random and random-flip, with commas; default centre")
    add("--vae-lr", type=float, default=default.vae_lr, help=f"learning rate of the VAE, which has no weight decay; default {default.vae_lr:g}")
    add("--comfyui", type=Path, help="folder of ComfyUI; default: the one that this pack is installed in")
    add("--cpu", action="store_true", help="do not use a GPU")


def run(arguments: argparse.Namespace) -> str:
    """Train; return the report."""
    parts = _parts()
    if parts is None:
        raise ValueError("Training needs webdataset, which is not installed. Install that package")
    _check(arguments)
    from ..training.pictures import VIEWS
    from ..training.sources import read_source, records_of

    views = tuple(arguments.views.split(","))
    if unknown := set(views) - set(VIEWS):
        raise ValueError(f"Got the view {sorted(unknown)[0]!r}, expected some of {', '.join(VIEWS)}.")
    source = read_source(arguments.source, arguments.captions)
    records = source.records
    for note in (*source.notes, *_left_out_of(source.left_out)):
        _log(note)
    held_out = records_of(arguments.held_out) if arguments.held_out else None
    find_host(arguments.comfyui, arguments.cpu)
    from comfy.model_management import get_torch_device

    from ..host.offline.finetune_vae import load_trainable_vae
    from ..training.picture_batches import PictureBatches

    named = {field.name: getattr(arguments, field.name) for field in fields(parts.FinetuneOptions) if hasattr(arguments, field.name)}
    weights = parts.RegulariserWeights(arguments.l1, arguments.lpips, arguments.kl, arguments.distance)
    logs = arguments.logs or arguments.output.with_suffix(".logs")
    options = parts.FinetuneOptions(**named | {"regularisers": weights, "logs": logs, "device": str(get_torch_device())})
    vae, vae_info, channels, downscale = load_trainable_vae(arguments.vae, arguments.grad_checkpointing)
    start, side = _start(parts, arguments, views, vae_info, channels, downscale)
    if options.contrastive:
        records = _with_captions(records)
    pictures = PictureBatches(records, side, options.batch_size, options.steps_of(), options.seed, views, arguments.workers)
    others = PictureBatches(held_out, side, min(len(held_out), options.batch_size), 1) if held_out else None
    lines: list[str] = []
    parts.finetune(
        options, vae, start, pictures, others, _teacher(arguments.teacher) if arguments.teacher else None, lines.append
    )
    return "\n".join([*lines, *_left_out(pictures.skipped)])


def _parts():
    """Return what the training offers, or None where a package that it needs is missing."""
    try:
        from ..training import base_options, finetune_options, finetune_vae, regularisers
    except ImportError as error:
        if error.name not in ("webdataset", "open_clip_train"):
            raise
        return None
    return SimpleNamespace(
        finetune=finetune_vae.finetune, Start=finetune_vae.Start, FinetuneOptions=finetune_options.FinetuneOptions,
        PRECISIONS=finetune_options.PRECISIONS, RegulariserWeights=regularisers.RegulariserWeights,
        add_common_arguments=base_options.add_common_arguments,
    )  # fmt: skip


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError if an output would overwrite an input, or is not named .safetensors."""
    for path in (arguments.output, arguments.output_vae):
        if path.suffix != ".safetensors":
            raise ValueError(f"{path.name}: the output must end in .safetensors.")
        if path.resolve() in (Path(arguments.vae).resolve(), Path(arguments.clip).resolve()):
            raise ValueError(f"{path.name}: would be written over what it is made from. Choose another name.")
    if arguments.output.resolve() == arguments.output_vae.resolve():
        raise ValueError(f"{arguments.output.name}: Got one name for the VAE and the Latent-CLIP, expected two.")


def _start(parts, arguments: argparse.Namespace, views: tuple[str, ...], vae: dict, channels: int, downscale: int):
    """Load the Latent-CLIP to start from; return it with the side of its pictures in pixels.

    Raises:
        ValueError: the Latent-CLIP reads the latents of another VAE.
    """
    from ..models import shapes_world
    from ..models.checkpoint import read_checkpoint, sha256_of
    from ..models.config import latent_grid
    from ..models.file_metadata import object_of, vae_of
    from ..models.latent_clip import LatentCLIP
    from ..models.latent_spaces import LATENT_SPACES
    from ..models.own_spaces import space_as_dict
    from ..models.vae_signature import difference, is_another
    from ..training.shards import Dataset

    metadata: dict[str, str] = {}
    if arguments.clip == SHAPES_WORLD:
        (weights, config), space, name = shapes_world.load_weights("latent_clip"), LATENT_SPACES[SHAPES_WORLD], SHAPES_WORLD
    else:
        checkpoint = read_checkpoint(arguments.clip)
        weights, config, space, metadata = checkpoint.state_dict, checkpoint.config, checkpoint.space, checkpoint.metadata
        name = Path(arguments.clip).name
    known = vae_of(metadata)
    apart = difference(known, vae)
    another = is_another(apart) or (apart is None and known.get("sha256") not in (None, "", vae["sha256"]))
    if (space.channels, space.downscale) != (channels, downscale) or another:
        raise ValueError(
            f"Got {name}, which reads the latents of {known.get('name', space.name)} ({space.channels} channels, {space.downscale} pixels "
            f"a cell), but --vae is {vae['name']} ({channels}, {downscale}), another one. Name the VAE that this Latent-CLIP was made for."
        )
    model = LatentCLIP(config)
    model.load_state_dict(weights)
    teacher = object_of(metadata, "teacher") or None
    if arguments.teacher:
        path = shapes_world.FOLDER / "pixel_clip.safetensors" if arguments.teacher == SHAPES_WORLD else Path(arguments.teacher)
        teacher = {"name": path.name, "sha256": sha256_of(path), "licence": arguments.teacher_licence}
    side = latent_grid(config) * downscale
    about = {"names": list(views), "side": side}
    dataset = Dataset(space_as_dict(space), vae, about, teacher, _shown(arguments.source), arguments.licence)
    return parts.Start(name, model, config, dataset), side


def _with_captions(records: list) -> list:
    kept = [record for record in records if record.captions]
    if len(kept) < len(records):
        _log(f"{len(records) - len(kept)} of {len(records)} pictures have no caption and are left out")
    return kept


def _left_out(skipped: dict[str, str]) -> list[str]:
    return _left_out_of(Counter(skipped.values()))


def _left_out_of(counts: Counter[str]) -> list[str]:
    return [f"left out, {reason}: {number}" for reason, number in sorted(counts.items())]
