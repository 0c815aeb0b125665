"""Zero-shot accuracy of a Latent-CLIP: the step zero-shot of `latent-clip evaluate`."""

import argparse
from functools import partial
from pathlib import Path

from ..evaluation import EvaluationError

log = partial(print, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add = parser.add_argument
    add("data", help="a folder of class folders, a data set in CLIP_benchmark's WebDataset layout, or shards made by embed from class folders")
    add("target", type=Path, help="the result, .json in CLIP_benchmark's form")
    add("--clip", required=True, help="file of a Latent-CLIP, or shapes-world")
    add("--vae", help="file of the VAE whose latents it reads, or shapes-world; not for shards")
    add("--split", default="test", help="split of a WebDataset; default test")
    add("--batch", type=int, default=16, help="pictures at once; default 16")
    add("--imagenet", action="store_true", help="use ImageNet's 1,000 names and 80 templates, for folders in the order of its classes")
    add("--clip-benchmark", action="store_true", help="run CLIP_benchmark's own command, with this Latent-CLIP as its model; needs its package")
    add("--comfyui", type=Path, help="folder of ComfyUI, for the VAE; default: the ComfyUI around this pack")
    add("--cpu", action="store_true", help="do not use a GPU")


def run(options: argparse.Namespace) -> str:
    """Classify the data, write the result and return its figures."""
    from ..evaluation.clip_benchmark import run_clip_benchmark
    from ..evaluation.pictures import read_pictures, with_imagenet
    from ..evaluation.zero_shot import check_target, classify, classify_latents, metrics_text, write_result
    from .comfyui import find_host

    if options.target.suffix != ".json":
        raise EvaluationError(f"{options.target.name}: the result must end in .json.")
    find_host(options.comfyui, options.cpu)
    from ..host.offline.zero_shot import load_judge

    data, pretrained = Path(options.data), Path(options.clip).stem
    shards = (data / "dataset.json").is_file()
    if not options.vae and not shards:
        raise EvaluationError("Pictures need the VAE whose latents the Latent-CLIP reads: name it with --vae.")
    encoder = load_judge(options.clip, options.vae)
    check_target(options.target, encoder.name)
    if shards:
        from ..training.shards import read_dataset, read_samples

        found, texts = classify_latents(encoder, data, read_dataset(data), read_samples, options.batch, log)
        write_result(options.target, found, data.name, encoder.name, pretrained)
        return metrics_text(data.name, found, *texts)
    if options.clip_benchmark:
        run_clip_benchmark(encoder, options.data, options.split, options.batch, options.target)
        return f"{options.target}: written by CLIP_benchmark."
    pictures = read_pictures(data, options.split)
    pictures = with_imagenet(pictures) if options.imagenet else pictures
    found = classify(encoder, pictures, options.batch, log)
    write_result(options.target, found, pictures.name, encoder.name, pretrained, pictures.left_out)
    left_out = [f"  left out, {reason}: {number}" for reason, number in sorted(pictures.left_out.items())]
    return "\n".join([metrics_text(pictures.name, found, pictures.classes, pictures.templates), *left_out])
