"""Write the final safetensors file with its metadata, for Load Latent-CLIP, and its model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..models.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from ..models.file_metadata import latent_clip_metadata, object_of, training_of, vae_of
from ..models.latent_clip import LatentCLIP
from ..models.own_spaces import space_of_dict
from ..models.tensor_files import naming
from .shards import Dataset
from .states import write_tensors


def write_latent_clip(
    path: Path, model: LatentCLIP, config: dict, dataset: Dataset, statistics: tuple[Tensor, Tensor], about: dict,
    keep: Callable[[Path, Path], None] = lambda path, part: None,
) -> Checkpoint:  # fmt: skip
    """Write a safetensors file and read it back.

    Args:
        statistics: mean and standard deviation of every channel of the raw latents that it was trained on.
        about: the training's record: objectives, start, steps, seconds since it was started or went on, and `figures` measured on held-out samples.
        keep: called with `path` and the file that is whole, before that takes its name; where it raises, nothing is written.

    Raises:
        CheckpointError: the weights are no longer finite. OSError: it cannot be written.
    """
    mean, std = statistics
    records = {
        "vae": dataset.vae,
        "channels": {"mean": mean.tolist(), "std": std.tolist()},
        "teacher": dataset.teacher,
        "data": {"source": dataset.source, "licence": dataset.licence, "views": dataset.views},
        "training": about,
    }
    metadata = latent_clip_metadata(path.stem, config, space_of_dict(dataset.space), records)

    def check(part: Path) -> None:
        read_checkpoint(part)
        keep(path, part)

    write_tensors(path, model.state_dict(), metadata, check)
    return read_checkpoint(path)


def model_card(path: Path) -> str:
    """Return the model card, in Markdown, of a file that `train` made.

    Raises:
        CheckpointError: it is no Latent-CLIP, or has no metadata about its training.
    """
    checkpoint = read_checkpoint(path)
    metadata = checkpoint.metadata
    with naming(path):
        training, data, teacher, vae = training_of(metadata), object_of(metadata, "data"), object_of(metadata, "teacher"), vae_of(metadata)
    if "training" not in metadata:
        raise CheckpointError(f"{path.name}: has no metadata about its training, expected a file of: latent-clip train")
    vision, size = checkpoint.config["vision_cfg"], sum(t.numel() for t in checkpoint.state_dict.values())
    figures = training.get("figures") or {}
    parts = [
        "---\ntags: [latent-clip, comfyui]\nlibrary_name: latent-clip\n---",
        f"# {path.stem}",
        f"A Latent-CLIP: it reads the latents of {vae.get('name', 'a VAE')} without decoding them, and compares them with text. "
        "Put the file into ComfyUI/models/latent_clip and open it with *Load Latent-CLIP*.",
        "## What it reads",
        _list({
            "latent space": f"{checkpoint.space.name}, {checkpoint.space.channels} channels, {checkpoint.space.downscale} pixels a cell",
            "VAE": f"{vae.get('name', '?')}, sha256 {vae.get('sha256', '?')}",
            "size": f"{vision['image_size']} × {vision['image_size']} pixels, patches of {vision['patch_size']} × {vision['patch_size']} cells",
            "noise level": "may be given" if "latent_noise_bands" in vision else "not read; for finished images",
            "parameters": f"{size / 1e6:.1f} M",
        }),
        "Latents of another VAE give wrong scores, also where their shape is the same.",
        "## How it was made",
        _list({
            "pictures": data.get("source") or "not given",
            "licence of the pictures": data.get("licence") or "not given",
            "teacher": f"{teacher['name']}, sha256 {teacher.get('sha256', '?')}" if teacher else "none",
            "licence of the teacher": teacher.get("licence") or ("not given" if teacher else "–"),
            **{key: value for key, value in training.items() if key != "figures"},
        }),
        "## Measured",
        _list(figures) if figures else "Nothing was measured on held-out pictures.",
        "Figures are of held-out samples of the same source, and say nothing of other pictures.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _list(entries: dict) -> str:
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in entries.items()}
    return "\n".join(f"- {key}: {value}" for key, value in texts.items())
