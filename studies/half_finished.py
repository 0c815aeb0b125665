"""A Latent-CLIP of Shapes World that may be told the noise level: made by training/, and measured on half-finished images.

It starts from the shipped one, which is also its teacher: of what the generator predicts on its way from noise to a picture it learns to
say what the shipped one says of the finished picture. Half of what it reads is finished, so that such pictures are read as before.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.corpus import pick_caption, sample_corpus
from ..demo.scenes import render
from ..host.shapes_world import LATENT_SCALE
from ..models.checkpoint import read_checkpoint
from ..models.latent_clip import LatentCLIP, load_latent_clip
from ..models.latent_spaces import LATENT_SPACES
from ..models.own_spaces import space_as_dict
from ..models.shapes_world import load_weights
from ..training.run import Options, train
from ..training.shards import Dataset, Sample, finished, write_shard
from .measures import CHUNK, World, noise_for
from .second_vae import FOLDER_OF

SAMPLED, DRAWN, STEPS, BANDS = 1200, 1200, 400, 16
SAMPLING = 8  # steps; "a quarter of the steps" is after the second
CFG = 3.0


def shipped_file() -> Path:
    """The shipped Latent-CLIP as a file that a run can start from."""
    from safetensors.torch import save_file

    path = FOLDER_OF / "shipped.safetensors"
    if not path.exists():
        weights, config = load_weights("latent_clip")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, {"config": json.dumps(config), "latent_space": "shapes-world"})
    return path


@torch.no_grad()
def make_shards(world: World, name: str, sampled: int, drawn: int) -> Path:
    """Shards of `sampled` latents of the generator, with what it predicted on the way to each, and of `drawn` scenes without."""
    folder = FOLDER_OF / name
    header = Dataset(
        space_as_dict(LATENT_SPACES["shapes-world"]), {"name": "shapes-world", "sha256": ""}, {"names": ["centre"], "side": 64},
        {"name": "Shapes World Latent-CLIP"}, "Shapes World", predictions={"steps": SAMPLING, "cfg": CFG},
    )  # fmt: skip
    header.write(folder)
    done, rng = finished(folder).ids, random.Random(name)
    scenes = sample_corpus(f"half finished {name}", sampled + drawn)
    captions = [str(pick_caption(rng, scene, 0.4, reading_order=False)) for scene in scenes]
    for start in range(0, len(scenes), 200):
        if f"{start:06}" in done:
            continue
        part = slice(start, min(start + 200, len(scenes)))
        texts = captions[part]
        steps: list[Tensor] = []
        if start < sampled:
            latents, steps, levels = follow(world, texts, noise_for(40_000 + start, len(texts)))
        else:
            latents = world.encode(render(scenes[part]))
        features = world.latent_features(latents)
        write_shard(folder, [
            Sample(
                f"{start + i:06}", {"latent": latents[i : i + 1]}, [texts[i]], {}, {"features": features[i : i + 1]},
                {"x0": torch.stack([x0[i] for x0 in steps]), "levels": torch.tensor(levels)} if steps else {},
            )
            for i in range(len(texts))
        ])  # fmt: skip
    return folder


def level_of(sigma: float) -> float:
    """The share of noise, as host.guidance tells a judge."""
    return sigma / (1 + sigma * sigma) ** 0.5


@torch.enable_grad()
def train_aware(shards: Path, held_out: Path) -> tuple[Path, float]:
    """The file, and the processor seconds that it took."""
    options = Options(
        shards, FOLDER_OF / "noise_aware_sampled.safetensors", FOLDER_OF / "noise_aware_sampled", val_data=held_out, start=str(shipped_file()),
        patch_size=1, distil=1.0, noise_bands=BANDS, noised=0.8, batch_size=96, train_num_samples=96 * STEPS, lr=1.5e-4, wd=0.05, warmup=50,
        ema=0.995, precision="fp32", workers=0, shuffle=2000, save_every=250, probe_every=250,
    )  # fmt: skip
    began = time.process_time()
    return train(options), time.process_time() - began


def aware_model(path: Path) -> LatentCLIP:
    """The trained one."""
    checkpoint = read_checkpoint(path)
    return load_latent_clip(checkpoint.config, checkpoint.state_dict)


# --------------------------------------------------------------------------------------------------------- measured


@torch.no_grad()
def follow(world: World, texts: list[str], noise: Tensor) -> tuple[Tensor, list[Tensor], list[float]]:
    """Sample and look at every step: final latents (N, 4, 8, 8), predictions per step, noise levels per step."""
    import comfy.samplers

    sampler = comfy.samplers.KSampler(world.model, SAMPLING, "cpu", "euler", "normal", 1.0)
    sigmas = sampler.sigmas
    finals: list[Tensor] = []
    steps: list[list[Tensor]] = [[] for _ in range(SAMPLING)]
    for start in range(0, len(texts), CHUNK):
        part, own = texts[start : start + CHUNK], noise[start : start + CHUNK]
        finals.append(
            comfy.sample.sample_custom(
                world.model, own, CFG, comfy.samplers.sampler_object("euler"), sigmas, world.condition(part),
                world.condition([""] * len(part)), torch.zeros_like(own),
                callback=lambda step, x0, x, total: steps[step].append(x0 / LATENT_SCALE), disable_pbar=True,
            )
        )  # fmt: skip
    return torch.cat(finals), [torch.cat(parts) for parts in steps], [level_of(s.item()) for s in sigmas[:-1]]


def score(tower, latents: Tensor, text: Tensor, level: float | None = None) -> Tensor:
    """Cosines (N,) with one text feature per latent (N, D)."""
    told = {} if level is None else {"noise_level": level}
    features = torch.cat([tower(part, **told).float() for part in latents.split(CHUNK)])
    return (F.normalize(features, dim=-1) * text).sum(-1)


def within_prompt(early: Tensor, final: Tensor) -> list[float]:
    """Spearman's correlation of each prompt: early, final (P, N)."""
    from scipy.stats import spearmanr

    return [float(spearmanr(a, b).statistic) for a, b in zip(early.tolist(), final.tolist())]


@torch.no_grad()
def measure(world: World, aware: LatentCLIP, seed: str, prompts: int, of: int) -> dict:
    """Per step: correlations of each prompt with the final score of the shipped Latent-CLIP, by each way to look early."""
    from .measures import sample_prompts

    captions = [c for name in ("and", "relation") for c in sample_prompts(f"{seed} {name}", prompts // 2, name)]
    texts = [str(caption) for caption in captions for _ in range(of)]
    latents, steps, levels = follow(world, texts, noise_for(abs(hash_of(seed)) % 10_000, len(texts)))
    text = world.latent_clip.encode_text([str(c) for c in captions]).repeat_interleave(of, 0)
    shipped = world.latent_clip.image.model
    final = score(shipped, latents, text).view(-1, of)
    found: dict = {"levels": levels, "rows": {}}
    for name, tower, tells in (
        ("unaware", shipped, False),
        ("aware", aware.visual, True),
        ("aware, not told", aware.visual, False),
    ):
        found["rows"][name] = [
            within_prompt(score(tower, x0, text, level if tells else None).view(-1, of), final) for x0, level in zip(steps, levels)
        ]  # fmt: skip
    return found


def hash_of(text: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(text.encode()[-4:], "big")
