"""Train the noise-level part of the Shapes World Latent-CLIP: an image encoder conditioned on the noise level of an x0 prediction.

The shipped Latent-CLIP is both start and teacher. From the predictions that the generator makes on its way from noise to a
picture, the new part learns the features that the shipped one has for the finished picture. Only weights that a noise level
uses are trained, so features of finished images stay equal to the bit.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..models.checkpoint import read_checkpoint
from ..models.config import NOISE_READER
from ..models.file_metadata import encode
from ..models.latent_clip import LatentCLIP
from ..models.latent_spaces import LATENT_SPACES
from ..models.noise_level import NoiseReader, bands
from ..models.own_spaces import space_as_dict
from ..models.shapes_world import NOISE_LEVEL, load_weights, save_weights
from .captions import Caption
from .corpus import pick_caption, sample_corpus
from .training import CACHE

FOLDER = CACHE / "noise_level"
CHUNK = 100


@dataclass(frozen=True)
class Trajectories:
    """Samplings to learn from: `prompts` captions of `OF` noises each, from `seed` on."""

    steps: int
    cfg: float
    prompts: int
    seed: int


OF, SHARD = 4, 200
TRAJECTORIES = {"pilot train": Trajectories(8, 3.0, 3000, 500_000), "pilot low": Trajectories(16, 1.0, 750, 700_000)}
BANDS, HIDDEN, STEPS = 16, 64, 600
READER, READER_STEPS = 320, 2600  # units; steps of 192 predictions


def train_noise_level() -> Path:
    """Make the data, train both parts, and write demo/weights/noise_level/. Every stage goes on where it stopped."""
    return ship(train_reader(make_shards(FOLDER / "shards"), train_branches(FOLDER / "shards")))


def is_held_out(caption: Caption) -> bool:
    """Return true for a caption of two things that belongs to the fifth of them that is never trained on."""
    return caption.category != "single" and zlib.crc32(str(caption).encode()) % 5 == 0


def prompts_to_learn(name: str, count: int) -> list[str]:
    """Captions for trajectories: a tenth of one thing, none held out."""
    rng, scenes = random.Random(name), sample_corpus(name, 2 * count, single=0.1)
    captions = [pick_caption(rng, scene, 0.4, reading_order=False) for scene in scenes]
    return [str(caption) for caption in captions if not is_held_out(caption)][:count]


@torch.no_grad()
def make_shards(folder: Path) -> Path:
    """Shards of finished latents, each with the generator's predictions on the way to it and the teacher's features."""
    from ..host.scorers import shapes_world
    from ..training.shards import Dataset, Sample, finished, write_shard

    settings = {name: [t.steps, t.cfg] for name, t in TRAJECTORIES.items()}
    Dataset(
        space_as_dict(LATENT_SPACES["shapes-world"]), {"name": "shapes-world", "sha256": ""}, {"names": ["centre"], "side": 64},
        {"name": "Shapes World Latent-CLIP"}, "Shapes World", predictions=settings,
    ).write(folder)  # fmt: skip
    model, clip = shapes_world.load_generator()
    tower = shapes_world.load_latent_clip().image.model
    done = finished(folder).ids
    for name, way in TRAJECTORIES.items():
        texts = [text for text in prompts_to_learn(name, way.prompts) for _ in range(OF)]
        noise = torch.randn(len(texts), 4, 8, 8, generator=torch.Generator().manual_seed(way.seed))
        for start in range(0, len(texts), SHARD):
            if f"{name} {start:06}" in done:
                continue
            part = slice(start, start + SHARD)
            latents, steps, levels = sample_and_record(model, clip, texts[part], noise[part], way.steps, way.cfg)
            features = F.normalize(torch.cat([tower(chunk).float() for chunk in latents.split(CHUNK)]), dim=-1)
            write_shard(folder, [
                Sample(
                    f"{name} {start + i:06}", {"latent": latents[i : i + 1]}, [text], {}, {"features": features[i : i + 1]},
                    {"x0": torch.stack([x0[i] for x0 in steps]), "levels": torch.tensor(levels)},
                )
                for i, text in enumerate(texts[part])
            ])  # fmt: skip
    return folder


def sample_and_record(
    model, clip, texts: Sequence[str], noise: Tensor, count: int, cfg: float
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Sample with Euler in `count` steps: final latents (N, 4, 8, 8), x0 predictions per step, and the noise level of each step."""
    import comfy.sample
    import comfy.samplers

    from ..host.scorers.shapes_world import LATENT_SCALE

    def condition(part: Sequence[str]) -> list:
        unique = {text: clip.encode_from_tokens(clip.tokenize(text)) for text in dict.fromkeys(part)}
        return [[torch.cat([unique[text] for text in part]), {}]]

    sigmas = comfy.samplers.KSampler(model, count, "cpu", "euler", "normal", 1.0).sigmas
    finals: list[Tensor] = []
    steps: list[list[Tensor]] = [[] for _ in range(count)]
    for start in range(0, len(texts), CHUNK):
        part, own = texts[start : start + CHUNK], noise[start : start + CHUNK]
        finals.append(
            comfy.sample.sample_custom(
                model, own, cfg, comfy.samplers.sampler_object("euler"), sigmas, condition(part), condition([""] * len(part)),
                torch.zeros_like(own), callback=lambda step, x0, x, total: steps[step].append(x0 / LATENT_SCALE), disable_pbar=True,
            )
        )  # fmt: skip
    levels = [sigma / (1 + sigma * sigma) ** 0.5 for sigma in sigmas[:-1].tolist()]
    return torch.cat(finals), [torch.cat(parts) for parts in steps], levels


@torch.enable_grad()
def train_branches(shards: Path) -> Path:
    """Train the narrow branch beside each block, and return the checkpoint."""
    from ..training.options import TrainOptions
    from ..training.run import train

    weights, config = load_weights("latent_clip")
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = FOLDER / "start.safetensors"
    save_file(weights, start, encode({"config": config}) | {"latent_space": "shapes-world"})
    return train(TrainOptions(
        train_data=shards, output=FOLDER / "branches.safetensors", logs=FOLDER / "branches", start=str(start), patch_size=1, distil=1.0, affinity=0.05,
        noise_bands=BANDS, noise_hidden=HIDDEN, noise_only=True, noised=1.0, batch_size=96, train_num_samples=96 * STEPS, lr=3e-3, wd=0.05,
        warmup=50, ema=0.99, precision="fp32", workers=0, shuffle=2000, save_every=100,
    ))  # fmt: skip


@torch.enable_grad()
def train_reader(shards: Path, branches: Path) -> Path:
    """Train the network over all cells, add it to the checkpoint of `train_branches`, and return the new one."""
    from ..training.loop import Draw, Recipe, fit
    from ..training.shards import read_samples

    checkpoint, samples = read_checkpoint(branches), list(read_samples(shards))
    x0 = [sample.predictions["x0"] for sample in samples]
    levels = [sample.predictions["levels"].float() for sample in samples]
    features = torch.stack([sample.teacher["features"][0].float() for sample in samples])
    config = checkpoint.config | {"vision_cfg": checkpoint.config["vision_cfg"] | {NOISE_READER: READER}}
    torch.manual_seed(0)
    model = LatentCLIP(config)
    model.load_state_dict(dict(checkpoint.state_dict), strict=False)
    reader: NoiseReader = model.visual.noise_reader.train()
    reader.scale.fill_(1 / torch.stack([sample.latent["latent"][0].float() for sample in samples[:1000]]).std())

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        items = draw.rows(len(samples), 192).tolist()
        chosen = [(item, draw.python.randrange(len(levels[item]))) for item in items]
        latents = torch.stack([x0[item][step] for item, step in chosen]).float()
        given = bands(torch.stack([levels[item][step] for item, step in chosen]), BANDS)
        return (1 - (F.normalize(reader(latents, given), dim=-1) * features[items]).sum(-1)).mean(), {}

    recipe = Recipe("reader", READER_STEPS, 1.5e-3, warmup=20, weight_decay=0.1, save_every=500, log_every=500)
    fit(reader, recipe, loss_of, FOLDER / "reader.safetensors")
    tensors = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    made = FOLDER / "with_reader.safetensors"
    save_file(tensors, made, checkpoint.metadata | encode({"config": config}))
    return made


def ship(made: Path) -> Path:
    """Write the weights that only a noise level uses to demo/weights/; Load Shapes World adds them to the shipped tower."""
    checkpoint = read_checkpoint(made)
    added = {key: value for key, value in checkpoint.state_dict.items() if key.startswith("visual.noise_")}
    return save_weights(NOISE_LEVEL, added, torch.empty(0, dtype=torch.long), checkpoint.config)
