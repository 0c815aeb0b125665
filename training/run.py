"""Train a Latent-CLIP from a folder of shards: the stages of one run, on one device or as one of several processes.

python -m latent_clip.training --train-data shards --start teacher.safetensors --distil 1 --output my-latent-clip.safetensors
torchrun --nproc-per-node 8 -m latent_clip.training …
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from open_clip_train.scheduler import cosine_lr
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..models.config import latent_grid
from ..models.latent_clip import LatentCLIP
from ..models.noise_level import NOISE_PATH
from ..models.own_spaces import space_of_dict
from ..models.vae_signature import difference, is_another
from .log import RunLog, plot
from .loop import Draw, Recipe, fit
from .objectives import Objectives, Task, limit_temperature, start_temperature
from .probe import probe
from .reader import Reader, Reading, first_rows
from .release import write_latent_clip
from .run_folder import RunFolder, run_folder
from .samples import point_of, usual, usual_width
from .shards import Dataset, Done, Sample, ShardError, finished, read_dataset
from .starts import channel_statistics, config_for_latents, from_clip, from_nothing, layered_groups, only_patches

PRECISIONS = {"fp32": None, "amp_bf16": torch.bfloat16, "amp": torch.float16}
SHAPES_WORLD = "shapes-world"
STATISTICS = 1000  # samples that channel statistics and the least squares are taken from


@dataclass(frozen=True)
class Options:
    """What a run is asked for; named as open_clip's flags where it has them.

    Attributes:
        model: config of a new tower, or {} with a `start`, whose blocks and text tower it then has.
        start: file of a pixel CLIP or Latent-CLIP to start from; "" for nothing.
        patch_size: latent cells of a patch, with a `start`.
        patch_samples: samples of the first stage, which trains the patch convolution and the positions alone.
        layer_decay: of the learning rate from the top of the image tower down.
        noise_bands, noise_hidden, noised: see `models.noise_level` and `reader.Reading`.
        noise_only: train what only a told noise level uses, and leave all else as the start has it.
        accum_freq: chunks of `batch_size` samples that make one step, see `objectives.Task`.
        force: write over an output that this training has not made.
    """

    train_data: Path
    output: Path
    logs: Path
    val_data: Path | None = None
    model: dict | None = None
    start: str = ""
    patch_size: int = 8
    contrastive: float = 0.0
    distil: float = 0.0
    siglip: bool = False
    affinity: float = 0.0
    train_num_samples: int = 1_000_000
    patch_samples: int = 0
    batch_size: int = 64
    accum_freq: int = 1
    lr: float = 5e-4
    wd: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    warmup: int = 100
    grad_clip_norm: float = 1.0
    layer_decay: float = 1.0
    ema: float = 0.999
    precision: str = "amp_bf16"
    grad_checkpointing: bool = False
    local_loss: bool = True
    gather_with_grad: bool = True
    train_text: bool = False
    noise_bands: int = 0
    noise_hidden: int = 0
    noise_only: bool = False
    noised: float = 0.0
    seed: int = 0
    workers: int = 2
    shuffle: int = 1000
    save_every: int = 500
    probe_every: int = 0
    device: str = "cpu"
    force: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accum_freq < 1:
            raise ValueError(f"Got --batch-size {self.batch_size} and --accum-freq {self.accum_freq}, expected 1 or more of each.")

    @property
    def samples_per_step(self) -> int:
        """Samples of one step in this process."""
        return self.batch_size * self.accum_freq


class CosineRecipe(Recipe):
    """A recipe with open_clip's own schedule: linear warm-up, then a cosine to zero."""

    def lr_at(self, step: int) -> float:
        return cosine_lr(SimpleNamespace(param_groups=[]), self.lr, self.warmup, self.steps)(step)


@dataclass(frozen=True)
class Here:
    """This process among others."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def join() -> Here:
    """Meet the other processes that torchrun started; alone without it."""
    if not dist.is_torchelastic_launched():
        return Here()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Here(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def train(options: Options, say: Callable[[str], None] = print) -> Path:
    """Run every stage that is not finished and write the file.

    Raises:
        ValueError: the options do not fit the data or each other; says which and what to do.
    """
    objectives_of(options)  # refuses what does not go together before anything is read
    here = join()
    if not here.first:
        return _train(options, here, None, say)
    with run_folder(options.logs, [options.output], options.force) as folder:
        return _train(options, here, folder, say)


def _train(options: Options, here: Here, folder: RunFolder | None, say: Callable[[str], None]) -> Path:
    device = _device(options.device)
    dataset, done = read_dataset(options.train_data), finished_shards(options.train_data)
    tars, cells = done.tars, cells_of(dataset)
    samples, patched = (first_rows(some, STATISTICS, *cells) for some in (tars, done.patched))
    statistics = channel_statistics(torch.cat([point_of(sample).float() for sample in samples]))
    model, config = start_model(options, dataset, samples, patched, statistics)
    model.to(device)
    held_out = held_out_rows(options.val_data, dataset) if options.val_data else []
    began, stages = time.monotonic(), stages_of(options, model, here.world_size)
    for name, steps, trained in stages:
        _train_stage(options, name, steps, trained, model, config, tars, held_out, here, device)
    if folder is None:
        return options.output
    figures = probe(model, held_out, config["text_cfg"]["context_length"]) if held_out else {}
    about = {
        "objectives": {k: v for k, v in asdict(objectives_of(options)).items() if v}, "start": Path(options.start).name or "nothing",
        "samples": options.train_num_samples, "batch": options.samples_per_step * here.world_size, "lr": options.lr,
        "seed": options.seed, "training seconds (last session)": round(time.monotonic() - began), "figures": figures,
    }  # fmt: skip
    write_latent_clip(options.output, model.cpu(), config, dataset, statistics, about, folder.keep)
    plot(options.logs, [name for name, _, _ in stages])
    say(f"{options.output}: " + (json.dumps(figures) if figures else "written. Figures need pictures that it has not seen: --val-data"))
    return options.output


def finished_shards(folder: Path) -> Done:
    """The finished shards; embed may write more at the same time.

    Raises:
        ShardError: there are none, or none with a sample in it.
    """
    done = finished(folder)
    if not done.tars:
        left_out = f" ({len(done.skipped)} pictures were left out)" if done.skipped else ""
        raise ShardError(f"{folder}: no finished shards with a sample in them{left_out}. Make some with: latent-clip embed")
    return done


def cells_of(dataset: Dataset) -> tuple[int, int]:
    """Channels of the latents of a data set, and their cells along a side."""
    space = space_of_dict(dataset.space)
    return space.channels, dataset.views["side"] // space.downscale


def held_out_rows(folder: Path, dataset: Dataset) -> list[Sample]:
    """The first samples of shards to measure on.

    Raises:
        ShardError: there are none, or their latents are not of the VAE and the size that the others are of.
    """
    other = read_dataset(folder)
    names = [f"{one.vae.get('name')} ({one.space['name']} space)" for one in (other, dataset)]
    apart = difference(dataset.vae, other.vae)  # one VAE may lie in two files, each with a space of its own name
    if is_another(apart) or (apart is None and space_of_dict(other.space) != space_of_dict(dataset.space)):
        raise ShardError(
            f"{folder}: latents of the VAE {names[0]}, and --train-data holds those of {names[1]}. Measure on shards of the same VAE: embed "
            "the held-out pictures with it."
        )
    tars = finished(folder).tars
    if not tars:
        raise ShardError(f"{folder}: no finished shards to measure on. Make some with: latent-clip embed")
    return first_rows(tars, STATISTICS, *cells_of(dataset))


def objectives_of(options: Options) -> Objectives:
    """The terms of the loss.

    Raises:
        ValueError: an affinity to captions whose tower is not the teacher's.
    """
    if options.affinity and (not options.start or options.train_text):
        raise ValueError(
            "Got --affinity without --start, or with --train-text, expected the teacher's own text tower: it compares with the teacher's "
            "similarities to the captions. Leave --train-text out, and name the teacher's file with --start."
        )
    return Objectives(options.contrastive, options.distil, options.siglip, options.affinity)


def start_model(
    options: Options, dataset: Dataset, samples: list[Sample], patched: list[Sample], statistics: tuple[Tensor, Tensor]
) -> tuple[LatentCLIP, dict]:
    """The model of step 0 and its config.

    Args:
        samples: the first ones. patched: those of the shards that have the teacher's patches.
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
    """Latents and the teacher's patches of the same first views; None where no sample has any."""
    size = usual(sample.teacher["patches"].shape for sample in patched if "patches" in sample.teacher)
    known = [s for s in patched if "patches" in s.teacher and s.teacher["patches"].shape == size]
    if not known:
        return None
    latents = torch.stack([point_of(sample)[0].float() for sample in known])
    return latents, torch.stack([sample.teacher["patches"].float() for sample in known])


def _check_teacher(options: Options, samples: list[Sample], size: int) -> None:
    """Features are only compared with texts of the same space.

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
    """A pixel CLIP or a Latent-CLIP as a module, with its config; "shapes-world": the shipped pixel CLIP."""
    from ..models.checkpoint import CheckpointError, read_checkpoint
    from ..models.latent_clip import load_latent_clip
    from ..models.pixel_clip import read_pixel_clip
    from ..models.shapes_world import load_pixel_clip

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


def stages_of(options: Options, model: LatentCLIP, world_size: int) -> list[tuple[str, int, set[str]]]:
    """(name, steps, names of the parameters) of each stage."""
    batch = options.samples_per_step * world_size
    steps, first = options.train_num_samples // batch, options.patch_samples // batch
    if steps < 1:
        raise ValueError(
            f"Got {options.train_num_samples} samples for batches of {batch}, expected at least one batch."
        )
    names = {name for name, _ in model.named_parameters()}
    read = (
        names
        if options.contrastive and (options.train_text or not options.start)
        else {n for n in names if n.startswith("visual.")}
    )
    if options.contrastive:
        read |= {"logit_scale"}
    told = {n for n in names if any(f".{part}." in n for part in NOISE_PATH)}
    if options.noise_only:
        if not told or not options.start:
            raise ValueError("Got --noise-only without --noise-bands or --start, expected both: nothing else of the start is trained.")
        return [("noise", steps, told)]
    patches = set(only_patches(model)) | told
    return [*([("patches", first, patches)] if first else []), ("all", steps, read)]


def _train_stage(
    options: Options, name: str, steps: int, trained: set[str], model: LatentCLIP, config: dict, tars: list[Path],
    held_out: list[Sample], here: Here, device: torch.device,
) -> None:  # fmt: skip
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    model.visual.set_grad_checkpointing(options.grad_checkpointing)
    task = Task(model, objectives_of(options), here.rank, here.world_size, options.local_loss, options.gather_with_grad, options.accum_freq)
    task.to(device)
    context = config["text_cfg"]["context_length"]
    reading = Reading(
        options.samples_per_step, latent_grid(config), options.seed + (name == "patches"), options.save_every,
        context if options.contrastive or options.affinity else 0, bool(options.distil or options.affinity), options.noised if options.noise_bands else 0.0,
        options.workers, options.shuffle, config["vision_cfg"]["latent_n_channels"], config["embed_dim"],
    )  # fmt: skip
    reader, run = Reader(tars, reading, here.rank), task if here.world_size == 1 else _distributed(task, device)
    dtype = PRECISIONS[options.precision]
    recipe = CosineRecipe(
        name, steps, options.lr, options.seed, min(options.warmup, steps // 2), options.wd, options.ema,
        (options.beta1, options.beta2), options.grad_clip_norm, save_every=options.save_every,
    )  # fmt: skip
    log = RunLog(options.logs, recipe, here.first)

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        batch = reader.batch(draw.step).to(device)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            losses = run(batch)
        return torch.stack(list(losses.values())).sum(), {key: value.detach() for key, value in losses.items()}

    def after(step: int) -> None:
        if options.probe_every and held_out and here.first and step % options.probe_every == 0:
            log({"step": step, **{f"probe {key}": value for key, value in probe(model, held_out, context).items()}})

    parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
    fit(
        task, recipe, loss_of, options.logs / f"{name}.safetensors", log=log, writes=here.first, after=after,
        groups=layered_groups(parameters, config["vision_cfg"]["layers"], options.layer_decay, options.wd),
        scaler=torch.amp.GradScaler(device.type) if options.precision == "amp" else None, constrain=lambda: limit_temperature(model),
    )  # fmt: skip
    log.close()
    model.requires_grad_(True)


def _distributed(task: Task, device: torch.device) -> nn.Module:
    return DistributedDataParallel(task, device_ids=[device] if device.type == "cuda" else None, static_graph=True)


def _device(name: str) -> torch.device:
    if name != "cuda" or not dist.is_initialized():
        return torch.device(name)
    device = torch.device("cuda", dist.get_node_local_rank(0))
    torch.cuda.set_device(device)
    return device
