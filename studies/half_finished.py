"""A Latent-CLIP of Shapes World that may be told the noise level: made by training/, and measured on half-finished images.

It starts from the shipped one, which is also its teacher: of what the generator predicts on its way from noise to a picture it learns to
say what the shipped one says of the finished picture. Only what a told level uses is trained, so that finished images are read bit for
bit as before.
"""

from __future__ import annotations

import json
import random
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..demo.captions import Caption
from ..demo.corpus import pick_caption, sample_corpus
from ..demo.scenes import render
from ..host.latent_clip import LoadedLatentCLIP
from ..host.shapes_world import LATENT_SCALE
from ..models.checkpoint import read_checkpoint
from ..models.config import NOISE_READER
from ..models.latent_clip import LatentCLIP, load_latent_clip
from ..models.latent_spaces import LATENT_SPACES
from ..models.noise_level import NoiseReader, bands
from ..models.own_spaces import space_as_dict
from ..models.shapes_world import NOISE_LEVEL, load_weights, save_weights
from ..training.loop import Draw, Recipe, fit
from ..training.run import Options, train
from ..training.shards import Dataset, Sample, finished, read_samples, write_shard
from .measures import CHUNK, World, noise_for
from .second_vae import FOLDER_OF


@dataclass(frozen=True)
class Way:
    """Trajectories to learn from: `prompts` of `OF` noises each, which begin at `seed`."""

    steps: int
    cfg: float
    prompts: int
    seed: int


OF, SHARD = 4, 200
WAYS = {"pilot train": Way(8, 3.0, 3000, 500_000), "pilot low": Way(16, 1.0, 750, 700_000)}  # how most pictures are made, and Search's study
BANDS, HIDDEN, STEPS = 16, 64, 600
READER, READER_STEPS = 320, 2600  # units; steps of 192 rows
SAMPLING, CFG = 8, 3.0  # "a quarter of the steps" is after the second


def shipped_file() -> Path:
    """The shipped Latent-CLIP as a file that a run can start from."""
    path = FOLDER_OF / "shipped.safetensors"
    if not path.exists():
        weights, config = load_weights("latent_clip")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, {"config": json.dumps(config), "latent_space": "shapes-world"})
    return path


def is_fresh(caption: Caption) -> bool:
    """Whether a caption of two things is in the fifth of them that the tower never learns from, and that is measured with."""
    return caption.category != "single" and zlib.crc32(str(caption).encode()) % 5 == 0


def prompts_to_learn(name: str, count: int) -> list[str]:
    """Captions for trajectories: a tenth of one thing, none that `is_fresh`."""
    rng, scenes = random.Random(name), sample_corpus(name, 2 * count, single=0.1)
    captions = [pick_caption(rng, scene, 0.4, reading_order=False) for scene in scenes]
    return [str(caption) for caption in captions if not is_fresh(caption)][:count]


@torch.no_grad()
def make_shards(world: World, folder: Path) -> Path:
    """Shards of the finished latents of every way, each with what the generator predicted on the way to it."""
    header = Dataset(
        space_as_dict(LATENT_SPACES["shapes-world"]), {"name": "shapes-world", "sha256": ""}, {"names": ["centre"], "side": 64},
        {"name": "Shapes World Latent-CLIP"}, "Shapes World", predictions={name: [way.steps, way.cfg] for name, way in WAYS.items()},
    )  # fmt: skip
    header.write(folder)
    done = finished(folder).ids
    for name, way in WAYS.items():
        texts = [text for text in prompts_to_learn(name, way.prompts) for _ in range(OF)]
        noise = noise_for(way.seed, len(texts))
        for start in range(0, len(texts), SHARD):
            part = slice(start, start + SHARD)
            if f"{name} {start:06}" not in done:
                followed = follow(world, texts[part], noise[part], way.steps, way.cfg)
                write_followed(folder, f"{name} {{:06}}".format, start, texts[part], world.latent_features(followed[0]), followed)
    return folder


def write_followed(
    folder: Path, identity, start: int, texts: list[str], features: Tensor, followed: tuple[Tensor, list[Tensor], list[float]]
) -> None:  # fmt: skip
    """One shard of what `follow` returned, with the teacher's features of the finished latents."""
    latents, steps, levels = followed
    write_shard(folder, [
        Sample(
            identity(start + i), {"latent": latents[i : i + 1]}, [text], {}, {"features": features[i : i + 1]},
            {"x0": torch.stack([x0[i] for x0 in steps]), "levels": torch.tensor(levels)},
        )
        for i, text in enumerate(texts)
    ])  # fmt: skip


def level_of(sigma: float) -> float:
    """The share of noise, as host.guidance tells a judge."""
    return sigma / (1 + sigma * sigma) ** 0.5


@torch.enable_grad()
def train_aware(shards: Path) -> tuple[Path, float]:
    """The file, and the processor seconds that it took."""
    options = Options(
        shards, FOLDER_OF / "noise_path.safetensors", FOLDER_OF / "noise_path", start=str(shipped_file()), patch_size=1, distil=1.0, affinity=0.05,
        noise_bands=BANDS, noise_hidden=HIDDEN, noise_only=True, noised=1.0, batch_size=96, train_num_samples=96 * STEPS, lr=3e-3, wd=0.05,
        warmup=50, ema=0.99, precision="fp32", workers=0, shuffle=2000, save_every=100,
    )  # fmt: skip
    began = time.process_time()
    return train(options), time.process_time() - began


@torch.enable_grad()
def train_reader(shards: Path, path: Path) -> tuple[Path, float]:
    """The file of `train_aware` with a reader of all cells added, and the processor seconds that it took."""
    checkpoint, samples = read_checkpoint(path), list(read_samples(shards))
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
        rows = draw.rows(len(samples), 192).tolist()
        chosen = [(row, draw.python.randrange(len(levels[row]))) for row in rows]
        latents = torch.stack([x0[row][step] for row, step in chosen]).float()
        told = bands(torch.stack([levels[row][step] for row, step in chosen]), BANDS)
        return (1 - (F.normalize(reader(latents, told), dim=-1) * features[rows]).sum(-1)).mean(), {}

    began = time.process_time()
    recipe = Recipe("reader", READER_STEPS, 1.5e-3, warmup=20, weight_decay=0.1, save_every=500, log_every=500)
    fit(reader, recipe, loss_of, FOLDER_OF / "noise_path" / "reader.safetensors")
    tensors = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    made = FOLDER_OF / "noise_aware_read.safetensors"
    save_file(tensors, made, dict(checkpoint.metadata) | {"config": json.dumps(config)})
    return made, time.process_time() - began


def ship(made: Path) -> Path:
    """Write what a told level uses of the trained one to demo/weights/, from where Load Shapes World adds it to the shipped one."""
    checkpoint = read_checkpoint(made)
    added = {key: value for key, value in checkpoint.state_dict.items() if key.startswith("visual.noise_")}
    return save_weights(NOISE_LEVEL, added, torch.empty(0, dtype=torch.long), checkpoint.config)


def aware_model(path: Path) -> tuple[LatentCLIP, LoadedLatentCLIP]:
    """The trained one, bare and as the host has it."""
    checkpoint = read_checkpoint(path)
    model, again = (load_latent_clip(checkpoint.config, dict(checkpoint.state_dict)) for _ in range(2))
    return model, LoadedLatentCLIP(again, checkpoint.config, checkpoint.space, checkpoint.name)


# --------------------------------------------------------------------------------------------------------- measured


@torch.no_grad()
def follow(
    world: World, texts: list[str], noise: Tensor, count: int = SAMPLING, cfg: float = CFG
) -> tuple[Tensor, list[Tensor], list[float]]:  # fmt: skip
    """Sample in `count` steps and look at each: final latents (N, 4, 8, 8), predictions per step, noise levels per step."""
    import comfy.samplers

    sampler = comfy.samplers.KSampler(world.model, count, "cpu", "euler", "normal", 1.0)
    sigmas = sampler.sigmas
    finals: list[Tensor] = []
    steps: list[list[Tensor]] = [[] for _ in range(count)]
    for start in range(0, len(texts), CHUNK):
        part, own = texts[start : start + CHUNK], noise[start : start + CHUNK]
        finals.append(
            comfy.sample.sample_custom(
                world.model, own, cfg, comfy.samplers.sampler_object("euler"), sigmas, world.condition(part),
                world.condition([""] * len(part)), torch.zeros_like(own),
                callback=lambda step, x0, x, total: steps[step].append(x0 / LATENT_SCALE), disable_pbar=True,
            )
        )  # fmt: skip
    return torch.cat(finals), [torch.cat(parts) for parts in steps], [level_of(s.item()) for s in sigmas[:-1]]


def features_of(tower, latents: Tensor, level: float | None = None) -> Tensor:
    """Unit features (N, D)."""
    told = {} if level is None else {"noise_level": level}
    return F.normalize(torch.cat([tower(part, **told).float() for part in latents.split(CHUNK)]), dim=-1)


def score(tower, latents: Tensor, text: Tensor, level: float | None = None) -> Tensor:
    """Cosines (N,) with one text feature per latent (N, D)."""
    return (features_of(tower, latents, level) * text).sum(-1)


def within_prompt(early: Tensor, final: Tensor) -> list[float]:
    """Spearman's correlation of each prompt: early, final (P, N)."""
    from scipy.stats import spearmanr

    return [float(spearmanr(a, b).statistic) for a, b in zip(early.tolist(), final.tolist())]


@torch.no_grad()
def measure(world: World, aware: LatentCLIP, seed: str, prompts: int, of: int) -> dict:
    """Per step and way to look early: correlations of each prompt, and mean cosine, with what the shipped Latent-CLIP says at the end."""
    from .measures import sample_prompts

    half = prompts // 2
    captions = [
        caption for name in ("and", "relation") for caption in [c for c in sample_prompts(f"{seed} {name}", 20 * half, name) if is_fresh(c)][:half]
    ]  # fmt: skip
    texts = [str(caption) for caption in captions for _ in range(of)]
    latents, steps, levels = follow(world, texts, noise_for(830_000, len(texts)))
    text = world.latent_clip.encode_text([str(c) for c in captions]).repeat_interleave(of, 0)
    shipped, features = world.latent_clip.image.model, world.latent_features(latents)
    final = (features * text).sum(-1).view(-1, of)
    found: dict = {"levels": levels, "rows": {}, "cosines": {}}
    for name, tower, tells in (("unaware", shipped, False), ("aware", aware.visual, True)):
        read = [features_of(tower, x0, level if tells else None) for x0, level in zip(steps, levels)]
        found["rows"][name] = [within_prompt((early * text).sum(-1).view(-1, of), final) for early in read]
        found["cosines"][name] = [(early * features).sum(-1).mean().item() for early in read]
    return found


@torch.no_grad()
def reads_alike(world: World, aware: LatentCLIP, scenes: int) -> bool:
    """Whether finished images are read bit for bit as by the shipped tower, the level not told."""
    latents = world.encode(render(sample_corpus("half finished clean", scenes, held_out=None)))
    return all(torch.equal(aware.visual(part), world.latent_clip.image.model(part)) for part in latents.split(CHUNK))
