"""Train the encoder of a VAE together with the Latent-CLIP that reads its latents, on a leash (`leash.py`).

The gradient of the Latent-CLIP's own objectives reaches the encoder through the latents. What comes out are two files that belong
together: the VAE, and a Latent-CLIP for it. On one device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.checkpoint import sha256_of
from ..models.file_metadata import encode
from ..models.files import replacing
from ..models.latent_clip import LatentCLIP
from ..models.tokenizer import CLIPTokenizer
from ..models.vae_signature import signature_of, without_signature
from .leash import Held, Leash, distance, kl_to_normal, perceptual, psnr
from .log import RunLog, plot
from .loop import Draw, Group, fit
from .objectives import Batch, Objectives, Task, limit_temperature
from .picture_batches import Shown
from .probe import probe
from .release import write_latent_clip
from .run import CosineRecipe
from .run_folder import RunFolder, run_folder
from .shards import Dataset, Sample, stack_views
from .starts import channel_statistics, layered_groups
from .states import save_synced

PRECISIONS = {"fp32": None, "amp_bf16": torch.bfloat16}  # float16 overflows in SDXL's VAE
STATISTICS = 64  # pictures that channel statistics are taken from
FIGURES = 256  # pictures that figures before and after are of


@dataclass(frozen=True)
class Options:
    """What a run is asked for; named as `run.Options`.

    Attributes:
        output, output_vae: the two files. decoder: whether the decoder is trained too.
        train_text: whether the text tower is, with captions. vae_lr: learning rate of the VAE; `lr` is that of the towers.
        force: write over outputs that this training has not made.
    """

    output: Path
    output_vae: Path
    logs: Path
    contrastive: float = 0.0
    siglip: bool = False
    distil: float = 0.0
    leash: Leash = field(default_factory=Leash)
    lpips_vgg: Path | None = None
    decoder: bool = False
    train_text: bool = False
    train_num_samples: int = 100_000
    batch_size: int = 32
    lr: float = 1e-4
    vae_lr: float = 1e-4
    wd: float = 0.05
    warmup: int = 100
    layer_decay: float = 1.0
    grad_clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "amp_bf16"
    grad_checkpointing: bool = False
    seed: int = 0
    save_every: int = 500
    device: str = "cpu"
    force: bool = False

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.vae_lr >= 0):
            raise ValueError(f"Got learning rates of {self.lr:g} and {self.vae_lr:g} for the VAE, expected them above 0.")

    @property
    def steps(self) -> int:
        """Raises: ValueError: not even one."""
        if self.train_num_samples < self.batch_size:
            raise ValueError(
                f"Got {self.train_num_samples} samples for batches of {self.batch_size}, expected at least one batch."
            )
        return self.train_num_samples // self.batch_size


class Source(Protocol):
    """Pictures: `picture_batches.Pictures`, or whatever else gives the same batch for the same step."""

    def batch(self, step: int) -> Shown: ...

    def some(self, count: int) -> Iterator[Shown]: ...


class Teacher(Protocol):
    """A pixel CLIP, see `teachers.PixelTeacher`."""

    def features(self, pixels: Tensor) -> Tensor: ...


@dataclass
class Start:
    """The Latent-CLIP to begin with, and what is told of it: `dataset` has its space, and the VAE's name and sha256."""

    name: str
    model: LatentCLIP
    config: dict
    dataset: Dataset


class Joint(nn.Module):
    """A VAE and a Latent-CLIP with the losses of both."""

    def __init__(self, vae: nn.Module, task: Task, held: Held) -> None:
        super().__init__()
        self.vae, self.task, self.held = vae, task, held

    def forward(self, pixels: Tensor, normal: Callable[..., Tensor], tokens: Tensor | None, teacher: Tensor | None) -> dict[str, Tensor]:  # fmt: skip
        """Weighted losses by name, each a scalar.

        Args:
            pixels: (B, side, side, 3) in 0..1. normal: sizes → unit noise. tokens: (B, context). teacher: unit features (B, D).
        """
        encoded = self.vae.encode(pixels, normal)
        losses = self.task(Batch(encoded["raw"], tokens, teacher))
        return losses | self.held(self.vae, pixels, encoded)


def finetune(
    options: Options, vae: nn.Module, start: Start, pictures: Source, held_out: Source | None = None,
    teacher: Teacher | None = None, say: Callable[[str], None] = print,
) -> dict[str, float]:  # fmt: skip
    """Train both and write both files; a run that was stopped goes on from its last checkpoint.

    Args:
        vae: a `leash.Autoencoder`, as it is before. held_out: pictures for the figures; default: some of those trained on.

    Returns:
        Figures before and after.

    Raises:
        ValueError: the options do not fit each other, the pictures or the teacher; or a file of others would be written over.
    """
    with run_folder(options.logs, [options.output, options.output_vae], options.force) as folder:
        return _finetune(options, vae, start, pictures, held_out, teacher, say, folder)


def _finetune(
    options: Options, vae: nn.Module, start: Start, pictures: Source, held_out: Source | None, teacher: Teacher | None,
    say: Callable[[str], None], folder: RunFolder,
) -> dict[str, float]:  # fmt: skip
    objectives = Objectives(options.contrastive, options.distil, options.siglip)
    context, device = start.config["text_cfg"]["context_length"], torch.device(options.device)
    if options.distil:
        _check_teacher(teacher, start, options)
    vae.requires_grad_(False).to(device)
    start.model.requires_grad_(False).to(device)
    looked_at, began = held_out or pictures, time.monotonic()
    old = _raw_latents(vae, pictures, STATISTICS)
    variance = channel_statistics(old)[1].square().to(device)
    before = _figures(vae, start.model, looked_at, teacher, context, variance)
    limit_temperature(start.model)
    joint = _joint(options, vae, start.model, objectives, variance)
    draw_losses = _losses(options, joint, pictures, teacher, context)
    recipe = CosineRecipe(
        "joint", options.steps, options.lr, options.seed, min(options.warmup, options.steps // 2), options.wd, options.ema,
        clip=options.grad_clip_norm, save_every=options.save_every,
    )  # fmt: skip
    log = RunLog(options.logs, recipe, writes=True)
    groups = groups_of(joint, options, start.config["vision_cfg"]["layers"])
    fit(joint, recipe, draw_losses, options.logs / "joint.safetensors", groups=groups, log=log, constrain=lambda: limit_temperature(start.model))
    log.close()
    after = _figures(vae, start.model, looked_at, teacher, context, variance, before.latents)
    figures = {f"{key}, {when}": value for when, found in (("before", before), ("after", after)) for key, value in found.told.items()}  # fmt: skip
    about = {
        "objectives": {key: value for key, value in asdict(objectives).items() if value}, "start": start.name,
        "vae trained": "encoder and decoder" if options.decoder else "encoder", "start vae": without_signature(start.dataset.vae),
        "regularisers": asdict(options.leash), "samples": options.steps * options.batch_size, "batch": options.batch_size, "lr": options.lr,
        "vae lr": options.vae_lr, "seed": options.seed, "training seconds (last session)": round(time.monotonic() - began),
        "figures of": "held-out pictures" if held_out else "pictures that it was trained on", "figures": figures,
    }  # fmt: skip
    _write(options, vae, start, channel_statistics(_raw_latents(vae, pictures, STATISTICS)), about, folder)
    plot(options.logs, ["joint"])
    for key in before.told:
        say(f"{key}: {before.told[key]:.4g} before, {after.told[key]:.4g} after")
    return figures


def trained(model: LatentCLIP, objectives: Objectives, train_text: bool) -> set[str]:
    """Names of the Latent-CLIP's parameters that are trained."""
    names = {name for name, _ in model.named_parameters()}
    chosen = names if objectives.contrastive and train_text else {name for name in names if name.startswith("visual.")}
    return chosen | {"logit_scale"} if objectives.contrastive else chosen - {"logit_scale"}


def _joint(options: Options, vae: nn.Module, model: LatentCLIP, objectives: Objectives, variance: Tensor) -> Joint:
    device = torch.device(options.device)
    lpips = perceptual(options.lpips_vgg, device) if options.leash.lpips else None
    joint = Joint(vae, Task(model, objectives), Held(options.leash, vae, variance, lpips)).to(device)
    encoder, decoder = vae.halves()
    for parameter in encoder + (decoder if options.decoder else []):
        parameter.requires_grad_(True)
    chosen = trained(model, objectives, options.train_text)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    model.visual.set_grad_checkpointing(options.grad_checkpointing)
    return joint


def groups_of(joint: Joint, options: Options, layers: int) -> list[Group]:
    """The towers' groups as `latent-clip train` has them; the VAE's weights have their own rate and no decay towards zero."""
    towers = {name: p for name, p in joint.task.named_parameters() if p.requires_grad}
    learning = [p for p in joint.vae.parameters() if p.requires_grad]
    vae = [Group(learning, options.vae_lr / options.lr, 0.0)] if learning else []
    return layered_groups(towers, layers, options.layer_decay, options.wd) + vae


def _losses(options: Options, joint: Joint, pictures: Source, teacher: Teacher | None, context: int):
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


def _check_teacher(teacher: Teacher | None, start: Start, options: Options) -> None:
    """Images that come to agree with a teacher must be compared with texts of the same space.

    Raises:
        ValueError: there is none, or the Latent-CLIP reads texts in another way.
    """
    if teacher is None:
        raise ValueError("Got --distil without a --teacher, expected the pixel CLIP whose features are to be met.")
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


@torch.no_grad()
def _raw_latents(vae: nn.Module, pictures: Source, count: int) -> Tensor:
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(shown.pixels.to(device))["raw"].float().cpu() for shown in pictures.some(count)])


@dataclass
class _Figures:
    told: dict[str, float]
    latents: Tensor


@torch.no_grad()
def _figures(
    vae: nn.Module, model: LatentCLIP, pictures: Source, teacher: Teacher | None, context: int, variance: Tensor,
    old: Tensor | None = None,
) -> _Figures:  # fmt: skip
    """Round trip, posterior, distance to the `old` latents, and what the Latent-CLIP can do."""
    device = next(vae.parameters()).device
    numbers: list[Tensor] = []
    samples: list[Sample] = []
    for shown in pictures.some(FIGURES):
        pixels = shown.pixels.to(device)
        encoded = vae.encode(pixels)
        decoded = vae.decode(encoded["raw"]).clamp(0, 1)
        kl = [kl_to_normal(mean, log_variance) for mean, log_variance in zip(encoded["mean"], encoded["log_variance"])]
        l1 = (decoded - pixels).abs().flatten(1).mean(1)
        numbers.append(torch.stack([l1, psnr(decoded, pixels), torch.stack(kl)]).float().cpu())
        agreed = None if teacher is None else F.normalize(teacher.features(pixels).float().cpu(), dim=-1)
        for number, (raw, captions) in enumerate(zip(encoded["raw"].float().cpu(), shown.captions)):
            taught = {} if agreed is None else {"features": agreed[number, None]}
            samples.append(Sample(str(len(samples)), {"latent": raw[None]}, captions, {}, taught))
    latents, means = stack_views(samples), torch.cat(numbers, 1).mean(1).tolist()
    told = dict(zip(("reconstruction l1", "reconstruction PSNR", "kl"), means))
    told["distance"] = distance(latents, latents if old is None else old, variance.cpu()).item()
    return _Figures(told | probe(model, samples, context), latents)


def _write(options: Options, vae: nn.Module, start: Start, statistics: tuple[Tensor, Tensor], about: dict, folder: RunFolder) -> None:  # fmt: skip
    """The VAE first: the Latent-CLIP names it by its hash, and by the signature of its encoder."""
    path = options.output_vae
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.weights().items()}
    old = without_signature(start.dataset.vae)
    with replacing(path, lambda part: folder.keep(path, part)) as part:
        save_synced(tensors, part, encode({"finetuned_from": old, "training": about}))
    dataset = replace(start.dataset, vae={"name": path.name, "sha256": sha256_of(path), "signature": signature_of(tensors)})
    write_latent_clip(options.output, start.model, start.config, dataset, statistics, about, folder.keep)
