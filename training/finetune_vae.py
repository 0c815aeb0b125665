"""Train the encoder of a VAE together with the Latent-CLIP that reads its latents; regularisers keep the VAE close to the original.

The gradient of the Latent-CLIP's own objectives reaches the encoder through the latents. The results are two files that belong
together: the VAE, and a Latent-CLIP for it. On one device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..models.checkpoint import sha256_of
from ..models.file_metadata import encode
from ..models.latent_clip import LatentCLIP
from ..models.tokenizer import CLIPTokenizer
from ..models.vae_signature import signature_of, without_signature
from .finetune_figures import FeatureTeacher, PictureSource, measure, raw_latents_of
from .finetune_options import PRECISIONS, FinetuneOptions
from .log import RunLog, plot
from .loop import Draw, Group, fit
from .objectives import Batch, Objectives, TrainTask, limit_temperature
from .regularisers import Regulariser, perceptual
from .release import write_latent_clip
from .run_folder import RunFolder, run_folder
from .shards import Dataset
from .starts import channel_statistics, layered_groups
from .states import write_tensors

STATISTICS = 64  # pictures that channel statistics are taken from


@dataclass
class Start:
    """The Latent-CLIP to begin with; `dataset` has its space, and the name and sha256 of its VAE."""

    name: str
    model: LatentCLIP
    config: dict
    dataset: Dataset


class Joint(nn.Module):
    """A VAE and a Latent-CLIP with the losses of both."""

    def __init__(self, vae: nn.Module, task: TrainTask, regulariser: Regulariser) -> None:
        super().__init__()
        self.vae, self.task, self.regulariser = vae, task, regulariser

    def forward(self, pixels: Tensor, normal: Callable[..., Tensor], tokens: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:  # fmt: skip
        """Return weighted losses by name, each a scalar.

        Args:
            pixels: (B, side, side, 3) in 0..1. normal: sizes → unit noise. tokens: (B, context). teacher: unit features (B, D).
        """
        encoded = self.vae.encode(pixels, normal)
        losses = self.task(Batch(encoded["raw"], tokens, teacher))
        return losses | self.regulariser(self.vae, pixels, encoded)


def finetune(
    options: FinetuneOptions, vae: nn.Module, start: Start, pictures: PictureSource, held_out: PictureSource | None = None,
    teacher: FeatureTeacher | None = None, log: Callable[[str], None] = print,
) -> dict[str, float]:  # fmt: skip
    """Train both and write both files; a run that was stopped goes on from its last checkpoint.

    Args:
        vae: a `regularisers.Autoencoder`, as it is before. held_out: pictures for the figures; default: some of those trained on.

    Returns:
        Figures before and after.

    Raises:
        ValueError: the options do not fit each other, the pictures or the teacher; or a file of others would be written over.
    """
    with run_folder(options.logs, [options.output, options.output_vae], options.force) as folder:
        return _finetune(options, vae, start, pictures, held_out, teacher, log, folder)


def _finetune(
    options: FinetuneOptions, vae: nn.Module, start: Start, pictures: PictureSource, held_out: PictureSource | None, teacher: FeatureTeacher | None,
    log: Callable[[str], None], folder: RunFolder,
) -> dict[str, float]:  # fmt: skip
    objectives = Objectives(options.contrastive, options.distil, options.siglip)
    context, device = start.config["text_cfg"]["context_length"], torch.device(options.device)
    if options.distil:
        _check_teacher(teacher, start, options)
    vae.requires_grad_(False).to(device)
    start.model.requires_grad_(False).to(device)
    measured, began = held_out or pictures, time.monotonic()
    old = raw_latents_of(vae, pictures, STATISTICS)
    variance = channel_statistics(old)[1].square().to(device)
    before = measure(vae, start.model, measured, teacher, context, variance)
    limit_temperature(start.model)
    joint = _joint(options, vae, start.model, objectives, variance)
    draw_losses = _losses(options, joint, pictures, teacher, context)
    recipe = options.recipe("joint", options.steps_of())
    run_log = RunLog(options.logs, recipe, writes=True)
    groups = groups_of(joint, options, start.config["vision_cfg"]["layers"])
    fit(joint, recipe, draw_losses, options.logs / "joint.safetensors", groups=groups, log=run_log, constrain=lambda: limit_temperature(start.model))
    run_log.close()
    after = measure(vae, start.model, measured, teacher, context, variance, before.latents)
    figures = {f"{key}, {when}": value for when, found in (("before", before), ("after", after)) for key, value in found.values.items()}  # fmt: skip
    about = {
        "objectives": {key: value for key, value in asdict(objectives).items() if value}, "start": start.name,
        "vae trained": "encoder and decoder" if options.decoder else "encoder", "start vae": without_signature(start.dataset.vae),
        "regularisers": asdict(options.regularisers), "samples": recipe.steps * options.batch_size, "batch": options.batch_size, "lr": options.lr,
        "vae lr": options.vae_lr, "seed": options.seed, "training seconds (last session)": round(time.monotonic() - began),
        "figures of": "held-out pictures" if held_out else "pictures that it was trained on", "figures": figures,
    }  # fmt: skip
    _write(options, vae, start, channel_statistics(raw_latents_of(vae, pictures, STATISTICS)), about, folder)
    plot(options.logs, ["joint"])
    for key in before.values:
        log(f"{key}: {before.values[key]:.4g} before, {after.values[key]:.4g} after")
    return figures


def trained(model: LatentCLIP, objectives: Objectives, train_text: bool) -> set[str]:
    """Return the names of the Latent-CLIP's parameters that are trained."""
    names = {name for name, _ in model.named_parameters()}
    chosen = names if objectives.contrastive and train_text else {name for name in names if name.startswith("visual.")}
    return chosen | {"logit_scale"} if objectives.contrastive else chosen - {"logit_scale"}


def _joint(options: FinetuneOptions, vae: nn.Module, model: LatentCLIP, objectives: Objectives, variance: Tensor) -> Joint:
    device = torch.device(options.device)
    lpips = perceptual(options.lpips_vgg, device) if options.regularisers.lpips else None
    joint = Joint(vae, TrainTask(model, objectives), Regulariser(options.regularisers, vae, variance, lpips)).to(device)
    encoder, decoder = vae.halves()
    for parameter in encoder + (decoder if options.decoder else []):
        parameter.requires_grad_(True)
    chosen = trained(model, objectives, options.train_text)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    model.visual.set_grad_checkpointing(options.grad_checkpointing)
    return joint


def groups_of(joint: Joint, options: FinetuneOptions, layers: int) -> list[Group]:
    """Return the towers' groups as `latent-clip train` has them; the VAE's weights have their own rate and no weight decay."""
    towers = {name: p for name, p in joint.task.named_parameters() if p.requires_grad}
    learning = [p for p in joint.vae.parameters() if p.requires_grad]
    vae = [Group(learning, options.vae_lr / options.lr, 0.0)] if learning else []
    return layered_groups(towers, layers, options.layer_decay, options.wd) + vae


def _losses(options: FinetuneOptions, joint: Joint, pictures: PictureSource, teacher: FeatureTeacher | None, context: int):
    tokenizer, device, dtype = CLIPTokenizer(context), torch.device(options.device), PRECISIONS[options.precision]  # fmt: skip

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        shown = pictures.batch(draw.step)
        pixels, tokens, features = shown.pixels.to(device), None, None
        if options.contrastive:
            tokens = tokenizer([draw.python.choice(captions) for captions in shown.captions]).to(device)
        if options.distil and teacher is not None:
            with torch.no_grad():
                features = teacher.features(pixels).to(device)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            losses = joint(pixels, draw.normal, tokens, features)
        return torch.stack(list(losses.values())).sum(), {key: value.detach() for key, value in losses.items()}

    return loss_of


def _check_teacher(teacher: FeatureTeacher | None, start: Start, options: FinetuneOptions) -> None:
    """Refuse a teacher whose text tower is another: features that agree with it would not match this one's texts.

    Raises:
        ValueError: there is none, or the Latent-CLIP reads texts in another way.
    """
    if teacher is None:
        raise ValueError("Got --distil without a --teacher, expected the pixel CLIP whose features are learnt.")
    text = getattr(getattr(getattr(teacher, "clip", None), "model", None), "text", None)
    if not isinstance(text, nn.Module) or (options.contrastive and options.train_text):
        return
    own, its = start.model.text.state_dict(), text.state_dict()
    same = own.keys() == its.keys() and all(
        own[key].shape == its[key].shape and torch.allclose(own[key].float().cpu(), its[key].float().cpu(), atol=1e-2)
        for key in own
    )
    if not same:
        raise ValueError(
            f"Got a teacher whose text tower is not that of {start.name}: images that agree with it would not be understood by this text "
            "tower. Start from a Latent-CLIP that was distilled from this teacher, or train the texts with --contrastive and --train-text."
        )


def _write(options: FinetuneOptions, vae: nn.Module, start: Start, statistics: tuple[Tensor, Tensor], about: dict, folder: RunFolder) -> None:  # fmt: skip
    """Write the VAE first: the Latent-CLIP names it by its hash, and by the signature of its encoder."""
    path, tensors = options.output_vae, vae.weights()
    metadata = encode({"finetuned_from": without_signature(start.dataset.vae), "training": about})
    write_tensors(path, tensors, metadata, lambda part: folder.keep(path, part))
    dataset = replace(start.dataset, vae={"name": path.name, "sha256": sha256_of(path), "signature": signature_of(tensors)})
    write_latent_clip(options.output, start.model, start.config, dataset, statistics, about, folder.keep)
