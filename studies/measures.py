"""Abilities of the shipped models, measured through the host's own loader and sampler, by the analytic judge."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor

from ..demo.captions import THINGS, Caption
from ..demo.corpus import pick_caption, sample_corpus
from ..demo.false_accepts import false_cases
from ..demo.judge import judge
from ..demo.scenes import Scene, render
from ..evaluation.statistics import Rate, mcnemar
from ..host.scorers import shapes_world

CHUNK = 100


class World:
    """The shipped models as host objects, with batched helpers. Latents are raw (B, 4, 8, 8), pictures (B, 3, 64, 64) in [0, 1]."""

    def __init__(self) -> None:
        self.model, self.clip = shapes_world.load_generator()
        self.vae = shapes_world.load_vae()
        self.latent_clip = shapes_world.load_latent_clip()
        self.pixel_clip = shapes_world.load_pixel_clip()

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.vae.decode(chunk) for chunk in latents.split(CHUNK)]).movedim(-1, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.vae.encode(chunk) for chunk in pictures.movedim(1, -1).split(CHUNK)])

    def condition(self, texts: Sequence[str]) -> list:
        """CONDITIONING of a batch with one prompt per latent."""
        unique = {text: self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in dict.fromkeys(texts)}
        return [[torch.cat([unique[text] for text in texts]), {}]]

    def generate(self, texts: Sequence[str], noise: Tensor, steps: int, cfg: float, sampler: str = "euler") -> Tensor:
        """The stock sampler: raw latents for one prompt and one noise (4, 8, 8) each."""
        made = []
        for at in range(0, len(texts), CHUNK):
            part, start = texts[at : at + CHUNK], noise[at : at + CHUNK]
            made.append(
                comfy.sample.sample(
                    self.model, start, steps, cfg, sampler, "normal", self.condition(part), self.condition([""] * len(part)),
                    torch.zeros_like(start), disable_pbar=True,
                )
            )  # fmt: skip
        return torch.cat(made)

    def latent_features(self, latents: Tensor) -> Tensor:
        return torch.cat(
            [
                torch.nn.functional.normalize(self.latent_clip.image.model(c).float(), dim=-1)
                for c in latents.split(CHUNK)
            ]
        )

    def pixel_features(self, pictures: Tensor) -> Tensor:
        mean, std = (value.view(3, 1, 1) for value in (self.pixel_clip.mean, self.pixel_clip.std))
        return torch.cat(
            [
                torch.nn.functional.normalize(self.pixel_clip.image.model((c - mean) / std).float(), dim=-1)
                for c in pictures.split(CHUNK)
            ]
        )


def noise_for(seed: int, count: int) -> Tensor:
    """Seeded unit noise (count, 4, 8, 8)."""
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------- judge and autoencoder


def measure_judge(count: int) -> dict[str, Rate]:
    """Accepted true captions, and accepted false ones by kind ("another scene", "wrong colour", ...)."""
    scenes = sample_corpus("evaluate judge", 2 * count, held_out=None, single=1 / 3)
    rng = random.Random("evaluate judge")
    rates = {"true": Rate.of(judge(render(scenes), [pick_caption(rng, scene, 0.5, False) for scene in scenes]))}
    false = {
        name: judge(pictures, captions)
        for name, (pictures, captions) in false_cases("evaluate false", count // 4).items()
    }
    rates |= {name: Rate.of(verdicts) for name, verdicts in false.items()}
    return rates | {"all false": Rate.of([verdict for verdicts in false.values() for verdict in verdicts])}


def measure_vae(world: World, count: int) -> dict[str, Rate]:
    """Round trips that the judge still reads as their caption, by number of things."""
    rates = {}
    for name, single in (("single", 1.0), ("two", 0.0)):
        scenes = sample_corpus(f"evaluate vae {name}", count, held_out=None, single=single)
        pictures = world.decode(world.encode(render(scenes)))
        captions = [scene.captions()["single" if single else "relation"][0] for scene in scenes]
        rates[name] = Rate.of(judge(pictures, captions))
    return rates


# ----------------------------------------------------------------------------------------------- the two CLIPs


def _prefers(
    text: Callable[[list[str]], Tensor], images: Tensor, right: list[Caption], wrong: list[Caption]
) -> list[bool]:
    true, false = text([str(c) for c in right]), text([str(c) for c in wrong])
    return ((images * true).sum(-1) > (images * false).sum(-1)).tolist()


def _clip_tasks(
    text: Callable[[list[str]], Tensor], features: Callable[[list[Scene]], Tensor], count: int
) -> dict[str, Rate]:
    return {task: Rate.of(right) for task, right in clip_verdicts(text, features, count).items()}


def clip_verdicts(
    text: Callable[[list[str]], Tensor], features: Callable[[list[Scene]], Tensor], count: int, seed: str = "evaluate"
) -> dict[str, list[bool]]:
    """Verdicts on a CLIP by task: right or wrong for each of `count` scenes, which are the same for every CLIP.

    Args:
        text: captions → unit features. features: scenes → unit features.
    """
    singles = sample_corpus(f"{seed} clip single", count, single=1.0)
    table = text([str(Caption((thing,))) for thing in THINGS])
    best = (features(singles) @ table.T).argmax(-1).tolist()
    rates = {"single, of 30": [THINGS[i] == scene.things[0] for i, scene in zip(best, singles)]}
    for name, held_out in (("", False), (", held-out pairs", True)):
        scenes = sample_corpus(f"{seed} clip pairs {held_out}", count, held_out=held_out, single=0.0)
        images, rng = features(scenes), random.Random(f"{seed} clip")
        joined = [rng.choice(scene.captions()["and"]) for scene in scenes]
        related = [rng.choice(scene.captions()["relation"]) for scene in scenes]
        rates[f"colours swapped{name}"] = _prefers(text, images, joined, [c.swapped() for c in joined])
        rates[f"relation reversed{name}"] = _prefers(text, images, related, [c.reversed() for c in related])
    return rates


def measure_clips(world: World, count: int) -> dict[str, dict[str, Rate]]:
    """The same tasks for both: the pixel CLIP on renders, as it was trained, and on what the VAE makes of them."""

    def round_trip(scenes: list[Scene]) -> Tensor:
        return world.pixel_features(world.decode(world.encode(render(scenes))))

    return {
        "Latent-CLIP": _clip_tasks(
            world.latent_clip.encode_text, lambda s: world.latent_features(world.encode(render(s))), count
        ),
        "pixel CLIP": _clip_tasks(world.pixel_clip.text.encode, lambda s: world.pixel_features(render(s)), count),
        "pixel CLIP, decoded": _clip_tasks(world.pixel_clip.text.encode, round_trip, count),
    }


# ----------------------------------------------------------------------------------------------- the generator


def sample_prompts(seed: str, count: int, category: str, held_out: bool = False) -> list[Caption]:
    """Captions of one category from scenes of an evaluation seed, "and" in either order."""
    scenes = sample_corpus(seed, count, held_out=held_out, single=1.0 if category == "single" else 0.0)
    rng = random.Random(seed)
    return [rng.choice(scene.captions()[category]) for scene in scenes]


def measure_generator(world: World, count: int) -> dict[str, dict[str, Rate]]:
    """Judged success of one step (cfg 1) and of 8 steps of euler (cfg 3)."""
    sets = {name: sample_prompts(f"evaluate {name}", count, name) for name in ("single", "and", "relation")}
    sets |= {
        f"{name}, held-out pairs": sample_prompts(f"evaluate held {name}", count, name, True)
        for name in ("and", "relation")
    }
    rates: dict[str, dict[str, Rate]] = {}
    for label, steps, cfg in (("1 step", 1, 1.0), ("8 steps", 8, 3.0)):
        rates[label] = {}
        for number, (name, captions) in enumerate(sets.items()):
            latents = world.generate([str(c) for c in captions], noise_for(1000 + number, count), steps, cfg)
            rates[label][name] = Rate.of(judge(world.decode(latents), captions))
    return rates


# ----------------------------------------------------------------------------------------------- best of eight


@dataclass(frozen=True)
class BestOf:
    """Judged success of each way to choose one of eight, paired by prompt and seed."""

    rates: dict[str, Rate]
    p_values: dict[str, float]
    seconds: dict[str, float]


def measure_best_of(world: World, prompts: int, seeds: int, of: int = 8) -> BestOf:
    """One-step candidates, picked by Latent-CLIP, by the pixel CLIP after decoding all, at random; and the oracle."""
    third = prompts // 3
    captions = [
        c for name in ("single", "and", "relation") for c in sample_prompts(f"evaluate best {name}", third, name)
    ]
    verdicts: dict[str, list[bool]] = {"random": [], "Latent-CLIP": [], "pixel CLIP": [], "oracle": []}
    for seed in range(seeds):
        texts = [str(c) for c in captions for _ in range(of)]
        latents = world.generate(texts, noise_for(5000 + seed, len(texts)), 1, 1.0)
        pictures = world.decode(latents)
        right = torch.tensor(judge(pictures, [c for c in captions for _ in range(of)])).view(-1, of)
        unique = [str(c) for c in captions]
        by_latent = (
            world.latent_features(latents).unflatten(0, (-1, of)) @ world.latent_clip.encode_text(unique)[..., None]
        )[..., 0]
        by_pixel = (
            world.pixel_features(pictures).unflatten(0, (-1, of)) @ world.pixel_clip.text.encode(unique)[..., None]
        )[..., 0]
        rows = torch.arange(len(captions))
        verdicts["random"] += right[:, 0].tolist()
        verdicts["Latent-CLIP"] += right[rows, by_latent.argmax(1)].tolist()
        verdicts["pixel CLIP"] += right[rows, by_pixel.argmax(1)].tolist()
        verdicts["oracle"] += right.any(1).tolist()
    pairs = (("random", "Latent-CLIP"), ("random", "pixel CLIP"), ("pixel CLIP", "Latent-CLIP"))
    return BestOf(
        {name: Rate.of(values) for name, values in verdicts.items()},
        {f"{a} / {b}": mcnemar(verdicts[a], verdicts[b]) for a, b in pairs},
        _choice_seconds(world, of),
    )


def _choice_seconds(world: World, of: int) -> dict[str, float]:
    """Median seconds from eight latents to the chosen picture, the prompt already encoded; both ways in turn."""
    latents = world.generate(["a red circle"] * of, noise_for(1, of), 1, 1.0)
    text, pixel_text = (
        world.latent_clip.encode_text(["a red circle"])[0],
        world.pixel_clip.text.encode(["a red circle"])[0],
    )

    def by_latent() -> Tensor:
        best = (world.latent_features(latents) @ text).argmax()
        return world.decode(latents[best : best + 1])

    def by_pixel() -> Tensor:
        pictures = world.decode(latents)
        return pictures[(world.pixel_features(pictures) @ pixel_text).argmax()]

    times: dict[str, list[float]] = {"Latent-CLIP": [], "pixel CLIP": []}
    for _ in range(25):
        for name, choose in (("Latent-CLIP", by_latent), ("pixel CLIP", by_pixel)):
            began = time.perf_counter()
            choose()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[5:]) for name, values in times.items()}
