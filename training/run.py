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

import torch
from torch import Tensor

from ..models.config import latent_grid
from ..models.latent_clip import LatentCLIP
from ..models.noise_level import NOISE_PATH
from ..models.own_spaces import space_of_dict
from ..models.vae_signature import difference, is_another
from .distributed import Rank, device_of, distributed, init_distributed
from .log import RunLog, plot
from .loop import Draw, fit
from .objectives import TrainTask, limit_temperature
from .options import PRECISIONS, TrainOptions
from .probe import probe
from .reader import Reader, Reading, first_samples
from .release import write_latent_clip
from .run_folder import RunFolder, run_folder
from .samples import point_of
from .shards import Dataset, Done, Sample, ShardError, finished, read_dataset
from .start_model import cells_of, start_model
from .starts import channel_statistics, layered_groups, only_patches

STATISTICS = 1000  # samples that channel statistics and the least squares are taken from


@dataclass(frozen=True)
class Stage:
    """One stage of a training: its name, its steps, and the names of the parameters that are trained."""

    name: str
    steps: int
    trained: set[str]


@dataclass
class TrainRun:
    """One process of a training: the model, the data, and the place to train on.

    Attributes:
        config: of the model. tars: shards with samples. held_out: samples to measure on.
    """

    options: TrainOptions
    model: LatentCLIP
    config: dict
    tars: list[Path]
    held_out: list[Sample]
    rank: Rank
    device: torch.device

    @property
    def context(self) -> int:
        """Tokens of a caption."""
        return self.config["text_cfg"]["context_length"]

    def stages(self) -> list[Stage]:
        """Return the stages in their order.

        Raises:
            ValueError: there is not even one step, or --noise-only without a noise path.
        """
        options, names = self.options, {name for name, _ in self.model.named_parameters()}
        steps, first = options.steps_of(self.rank.world_size), options.patch_samples // (options.samples_per_step * self.rank.world_size)
        everything = options.contrastive and (options.train_text or not options.start)
        trained = names if everything else {name for name in names if name.startswith("visual.")}
        if options.contrastive:
            trained |= {"logit_scale"}
        noise = {name for name in names if any(f".{part}." in name for part in NOISE_PATH)}
        if options.noise_only:
            if not noise or not options.start:
                raise ValueError("Got --noise-only without --noise-bands or --start, expected both: nothing else of the start is trained.")
            return [Stage("noise", steps, noise)]
        patches = [Stage("patches", first, set(only_patches(self.model)) | noise)] if first else []
        return [*patches, Stage("all", steps, trained)]

    def train(self, stage: Stage) -> None:
        """Train one stage; a stage that is finished is read from its checkpoint."""
        options, model = self.options, self.model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in stage.trained)
        model.visual.set_grad_checkpointing(options.grad_checkpointing)
        task = TrainTask(
            model, options.objectives(), self.rank.rank, self.rank.world_size, options.local_loss, options.gather_with_grad,
            options.accum_freq,
        ).to(self.device)  # fmt: skip
        recipe = options.recipe(stage.name, stage.steps)
        log = RunLog(options.logs, recipe, self.rank.first)
        parameters = {name: p for name, p in task.named_parameters() if p.requires_grad}
        fit(
            task, recipe, self._loss(task, self._reader(stage)), options.logs / f"{stage.name}.safetensors", log=log,
            writes=self.rank.first, after=lambda step: self._probe(step, log),
            groups=layered_groups(parameters, self.config["vision_cfg"]["layers"], options.layer_decay, options.wd),
            scaler=torch.amp.GradScaler(self.device.type) if options.precision == "amp" else None,
            constrain=lambda: limit_temperature(model),
        )  # fmt: skip
        log.close()
        model.requires_grad_(True)

    def _reader(self, stage: Stage) -> Reader:
        options, config = self.options, self.config
        reading = Reading(
            options.samples_per_step, latent_grid(config), options.seed + (stage.name == "patches"), options.save_every,
            self.context if options.contrastive or options.affinity else 0, bool(options.distil or options.affinity),
            options.noised if options.noise_bands else 0.0, options.workers, options.shuffle, config["vision_cfg"]["latent_n_channels"],
            config["embed_dim"],
        )  # fmt: skip
        return Reader(self.tars, reading, self.rank.rank)

    def _loss(self, task: TrainTask, reader: Reader) -> Callable[[Draw], tuple[Tensor, dict[str, Tensor]]]:
        """Return the function that computes the loss of a step and its terms."""
        module, device = task if self.rank.world_size == 1 else distributed(task, self.device), self.device
        dtype = PRECISIONS[self.options.precision]

        def loss_of(draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
            batch = reader.batch(draw.step).to(device)
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                losses = module(batch)
            return torch.stack(list(losses.values())).sum(), {key: value.detach() for key, value in losses.items()}

        return loss_of

    def _probe(self, step: int, log: RunLog) -> None:
        every = self.options.probe_every
        if every and self.held_out and self.rank.first and step % every == 0:
            figures = probe(self.model, self.held_out, self.context)
            log({"step": step, **{f"probe {key}": value for key, value in figures.items()}})


def train(options: TrainOptions, log: Callable[[str], None] = print) -> Path:
    """Run every stage that is not finished and write the file.

    Raises:
        ValueError: the options do not fit the data or each other; says which and what to do.
    """
    options.objectives()  # refuses what does not go together before anything is read
    rank = init_distributed()
    if not rank.first:
        return _train(options, rank, None, log)
    with run_folder(options.logs, [options.output], options.force) as folder:
        return _train(options, rank, folder, log)


def _train(options: TrainOptions, rank: Rank, folder: RunFolder | None, log: Callable[[str], None]) -> Path:
    device = device_of(options.device)
    dataset, done = read_dataset(options.train_data), finished_shards(options.train_data)
    samples, patched = (first_samples(tars, STATISTICS, *cells_of(dataset)) for tars in (done.tars, done.patched))
    statistics = channel_statistics(torch.cat([point_of(sample).float() for sample in samples]))
    model, config = start_model(options, dataset, samples, patched, statistics)
    held_out = held_out_samples(options.val_data, dataset) if options.val_data else []
    run, began = TrainRun(options, model.to(device), config, done.tars, held_out, rank, device), time.monotonic()
    stages = run.stages()
    for stage in stages:
        run.train(stage)
    if folder is None:
        return options.output
    figures = probe(model, held_out, run.context) if held_out else {}
    about = {
        "objectives": {k: v for k, v in asdict(options.objectives()).items() if v}, "start": Path(options.start).name or "nothing",
        "samples": options.train_num_samples, "batch": options.samples_per_step * rank.world_size, "lr": options.lr,
        "seed": options.seed, "training seconds (last session)": round(time.monotonic() - began), "figures": figures,
    }  # fmt: skip
    write_latent_clip(options.output, model.cpu(), config, dataset, statistics, about, folder.keep)
    plot(options.logs, [stage.name for stage in stages])
    log(f"{options.output}: " + (json.dumps(figures) if figures else "written. Figures need pictures that it has not seen: --val-data"))
    return options.output


def finished_shards(folder: Path) -> Done:
    """Return the finished shards; embed may write more at the same time.

    Raises:
        ShardError: there are none, or none with a sample in it.
    """
    done = finished(folder)
    if not done.tars:
        left_out = f" ({len(done.skipped)} pictures were left out)" if done.skipped else ""
        raise ShardError(f"{folder}: no finished shards with a sample in them{left_out}. Make some with: latent-clip embed")
    return done


def held_out_samples(folder: Path, dataset: Dataset) -> list[Sample]:
    """Return the first samples of the shards to measure on.

    Raises:
        ShardError: there are none, or their latents are of another VAE or size than `dataset`.
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
    return first_samples(tars, STATISTICS, *cells_of(dataset))
