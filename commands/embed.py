"""Turn pictures into shards of latents, to train a Latent-CLIP from.

    latent-clip embed pictures/ shards/ --vae ae.safetensors --space flux --side 512 \\
        --teacher open_clip_model.safetensors --licence "CC0"

Pictures come from a folder or from WebDataset tars, here or at an address of fsspec; captions from files beside them, from metadata.jsonl, .csv
or .parquet, from --captions FILE, or from nowhere. Started again, it does what is left. With --ray it runs on all cores and GPUs, or on a cluster.

Into the target go dataset.json, and NAME.tar with NAME.index.json where NAME is 16 hexadecimal digits; no other file there is opened,
changed or removed. One process writes into a target at a time; others may read what is finished. A target in which the tars of the
source lie is refused.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from .comfyui import find_host

ERRORS = (ValueError, OSError)
SHAPES_WORLD = "shapes-world"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add = parser.add_argument
    add(
        "source",
        help="a folder of pictures, a .tar, a pattern of tars such as 'tars/*.tar' or 'tars/{000..041}.tar', or several with ::; or an fsspec address",
    )
    add("target", type=Path, help="the folder of shards, new or of an earlier run")
    add("--vae", required=True, help="file of the VAE, or shapes-world")
    add(
        "--space",
        default="",
        help="latent space of that VAE, such as sdxl or flux; default: one of its own, named after the file",
    )
    add("--side", type=int, default=512, help="pixels of a view; default 512")
    add("--views", default="centre", help="of centre, flip, random and random-flip, with commas; default centre")
    add("--captions", help="a .jsonl, .csv, .tsv, .parquet or .json that names pictures and captions, in place of those found by themselves")
    add("--require-captions", action="store_true", help="leave out pictures without a caption, and count them")
    add("--teacher", help="file of a pixel CLIP in open_clip's layout, or shapes-world; its features are stored")
    add("--teacher-licence", default="", help="for the card")
    add("--licence", default="", help="of the pictures, for the card")
    add(
        "--patch-grid",
        type=int,
        default=8,
        help="patches along a side of the new tower; default 8; 0: store none for its start",
    )
    add(
        "--moments",
        action="store_true",
        help="store mean and std of the VAE's posterior instead of what a LATENT wire carries",
    )
    add(
        "--predictions",
        help="checkpoint of a diffusion model, whose predictions at noise levels are stored for a noise-aware tower",
    )
    add("--levels", type=int, default=8, help="with --predictions: how many of each picture; default 8")
    add("--cfg", type=float, default=1.0, help="with --predictions: guidance of every second one; default 1")
    add("--batch", type=int, default=8, help="pictures encoded at once; default 8")
    add("--shard", type=int, default=1000, help="samples of a shard; default 1000")
    add("--ray", nargs="?", const="local", help="run on Ray: alone on this machine, or at this ADDRESS of a cluster")
    add(
        "--ray-encoders",
        type=int,
        default=1,
        help="encoders that work at once on Ray, each with a GPU where there is one",
    )
    add("--comfyui", type=Path, help="folder of ComfyUI; default: the one that this pack is installed in")
    add("--cpu", action="store_true", help="do not use a GPU")


def run(options: argparse.Namespace) -> str:
    """Embed the pictures; return the report."""
    from ..training.embed import Settings, embed
    from ..training.matching import examples
    from ..training.pictures import VIEWS
    from ..training.shard_folder import finished
    from ..training.sources import read_source

    views = tuple(options.views.split(","))
    if unknown := set(views) - set(VIEWS):
        raise ValueError(f"Got the view {sorted(unknown)[0]!r}, expected some of {', '.join(VIEWS)}.")
    source = read_source(options.source, options.captions, options.require_captions)
    records = source.records
    for note in source.notes:
        _log(note)
    find_host(options.comfyui, options.cpu)
    from ..host.offline.embed import HostVAE

    settings = Settings(options.side, views, options.batch, options.shard, options.patch_grid if options.teacher else 0)
    encoder = HostVAE(options.vae, options.moments)
    dataset = _dataset(encoder, settings, options)
    if options.ray:
        from ..training.ray_embed import embed_on_ray

        counts = embed_on_ray(
            records, options.target, dataset, settings, (_tools, (options,)), options.ray, options.ray_encoders, _log
        )
    else:
        counts = embed(records, options.target, dataset, settings, _tools(options, encoder), _log)
    left_out = source.left_out + Counter({reason: n for reason, n in counts.items() if reason not in ("written", "there")})
    if not counts["written"] + counts["there"]:
        reasons = ", ".join(f"{number} × {reason}" for reason, number in sorted(left_out.items()))
        raise ValueError(f"{options.target}: none of {len(records)} pictures could be embedded ({reasons}). Check the source.")
    names: dict[str, list[str]] = {}
    for name, reason in finished(options.target).skipped.items():
        names.setdefault(reason, []).append(name)
    lines = [
        f"  left out, {reason}: {number}" + (f", such as {examples(sorted(names[reason]))}" if reason in names else "")
        for reason, number in sorted(left_out.items())
    ] + [f"  {note}" for note in source.notes]
    return "\n".join([
        f"{options.target}: {counts['written']} pictures embedded, {counts['there']} were there before",
        *lines,
        f"  latents of the {json.dumps(dataset.space['name'])} space; VAE {dataset.vae['sha256'][:16]}",
    ])  # fmt: skip


def _tools(options: argparse.Namespace, encoder=None):
    """Load VAE, teacher and diffusion model; every worker of Ray loads its own."""
    find_host(options.comfyui, options.cpu)
    from ..host.offline.embed import HostVAE
    from ..host.offline.predictions import DiffusionPredictor
    from ..training.embed import Tools

    return Tools(
        encoder or HostVAE(options.vae, options.moments),
        _teacher(options.teacher) if options.teacher else None,
        DiffusionPredictor(options.predictions, options.levels, options.cfg) if options.predictions else None,
    )


def _teacher(name: str):
    from comfy.model_management import get_torch_device

    from ..models.pixel_clip import read_pixel_clip
    from ..models.shapes_world import load_pixel_clip
    from ..training.teachers import PixelTeacher

    return PixelTeacher(load_pixel_clip() if name == SHAPES_WORLD else read_pixel_clip(name), get_torch_device())


def _dataset(encoder, settings, options: argparse.Namespace):
    from ..host.offline.embed import space_of
    from ..models.checkpoint import sha256_of
    from ..models.own_spaces import space_as_dict
    from ..models.shapes_world import FOLDER
    from ..training.shards import Dataset

    if settings.side % encoder.downscale:
        raise ValueError(f"Got --side {settings.side}, expected a multiple of {encoder.downscale}, this VAE's cell.")
    teacher = None
    if options.teacher:
        path = FOLDER / "pixel_clip.safetensors" if options.teacher == SHAPES_WORLD else Path(options.teacher)
        teacher = {"name": path.name, "sha256": sha256_of(path), "licence": options.teacher_licence}
    return Dataset(
        space=space_as_dict(space_of(options.space, encoder)), vae=encoder.vae_info,
        views={"names": list(settings.views), "side": settings.side}, teacher=teacher, source=_shown(options.source),
        licence=options.licence, moments=encoder.moments, predictions=_predictions(options),
    )  # fmt: skip


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _predictions(options: argparse.Namespace) -> dict | None:
    if not options.predictions:
        return None
    return {"checkpoint": Path(options.predictions).name, "levels": options.levels, "cfg": options.cfg}


def _shown(source: str) -> str:
    """Return the name of a source for shards and card, without folders of this machine."""
    return source if "://" in source else Path(source).name
