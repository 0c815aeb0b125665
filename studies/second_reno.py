"""ReNO on the latents of the second VAE: is what the distilled tower likes what its prompt says?

Nobody has trained a generator for that VAE. The one here is a *translated* one: the shipped one-step generator, and a small network
that turns its latents into those that the second VAE has of the decoded pictures, trained by regression. It is differentiable, and
makes latents that the second VAE decodes; how good they are is measured beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.corpus import pick_caption, sample_corpus
from ..demo.judge import judge
from ..demo.scenes import render
from ..demo.training import Draw, Recipe, cached, fit
from ..evaluation.statistics import Rate
from ..methods.features import encode_pixels
from ..methods.reno import RenoSettings
from ..models.checkpoint import read_checkpoint
from ..models.latent_clip import load_latent_clip
from ..models.latent_spaces import LATENT_SPACES, LatentSpace
from . import second_vae as study
from .measures import World, noise_for
from .reno_runs import Maker
from .reno_study import EVALUATIONS, LEARNING_RATE, fresh_prompts
from .report import Kept, difference, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .reno_runs import Run

PAIRS, JITTER, BATCH = 3000, 0.15, 128
TRANSLATOR = Recipe("vae16_translator", steps=500, lr=3e-3, seed=23)
PROMPTS = {"single": 20, "and": 60, "relation": 60}
NOISES = 1
DISTILLED, TEACHER = "distilled tower", "teacher through the second decoder"
PLAIN, RENO, RENO_TEACHER = "one step", f"ReNO, {DISTILLED}", f"ReNO, {TEACHER}"
BEST, BEST_TWICE, BEST_TEACHER = (f"best of {EVALUATIONS}, {DISTILLED}", f"best of {2 * EVALUATIONS}, {DISTILLED}", f"best of {EVALUATIONS}, {TEACHER}")
WAYS = (PLAIN, RENO, BEST, BEST_TWICE, RENO_TEACHER, BEST_TEACHER)
COMPARED = ((RENO, PLAIN), (RENO, BEST), (RENO, BEST_TWICE), (RENO_TEACHER, PLAIN), (RENO, RENO_TEACHER), (BEST, PLAIN))


class Translator(nn.Module):
    """Raw latents of the shipped VAE (B, 4, 8, 8) → of the second (B, 16, 8, 8): a few convolutions with residual branches."""

    def __init__(self, width: int = 48, blocks: int = 3) -> None:
        super().__init__()
        for name, size in (("in", 4), ("out", study.CHANNELS)):
            self.register_buffer(f"mean_{name}", torch.zeros(size, 1, 1))
            self.register_buffer(f"std_{name}", torch.ones(size, 1, 1))
        self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, study.CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(blocks)
        )  # fmt: skip

    def forward(self, raw_latents: Tensor) -> Tensor:
        x = self.first((raw_latents - self.mean_in) / self.std_in)
        for block in self.blocks:
            x = x + block(x)
        return self.last(F.silu(x)) * self.std_out + self.mean_out


@torch.no_grad()
def pairs(world: World, vae: nn.Module, name: str, count: int) -> dict[str, Tensor]:
    """`old` latents and `new`, those of the second VAE of their decoded pictures: half of them generated, half of scenes; of each half a
    half is moved a little, as ReNO moves latents."""
    half, generator = count // 2, torch.Generator().manual_seed(24)
    scenes = sample_corpus(f"translator {name}", count)
    texts = [str(pick_caption(Draw.of(24, n).python, scene, 0.5, False)) for n, scene in enumerate(scenes[:half])]
    made = world.generate(texts, noise_for(2400 if name == "train" else 2401, half), 1, 1.0)
    old = torch.cat([made, world.encode(render(scenes[half:]))]).float()
    moved = (torch.arange(count) % 2 == 0).view(-1, 1, 1, 1)
    old = old + moved * JITTER * old.std() * torch.randn(old.shape, generator=generator)
    return {"old": old, "new": study.encode(vae, world.decode(old))}


@torch.enable_grad()
def translator(data: dict[str, Tensor]) -> Translator:
    """Train or resume it."""
    old, new = data["old"].clone(), data["new"].clone()
    with torch.random.fork_rng():
        torch.manual_seed(TRANSLATOR.seed)
        network = Translator()
    for name, values in (("in", old), ("out", new)):
        getattr(network, f"mean_{name}").copy_(values.mean((0, 2, 3)).view(-1, 1, 1))
        getattr(network, f"std_{name}").copy_(values.std((0, 2, 3)).view(-1, 1, 1))

    def regress(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = draw.rows(len(old), BATCH)
        loss = ((network(old[rows]) - new[rows]) / network.std_out).square().mean()
        return loss, {"error": loss.item()}

    fit(network, TRANSLATOR, regress)
    return network.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Seen:
    """An encoder of the shipped VAE's latents that looks at them as the second VAE's."""

    translator: Translator
    look: nn.Module

    @property
    def space(self) -> LatentSpace:
        return LATENT_SPACES["shapes-world"]

    def __call__(self, raw_latents: Tensor) -> Tensor:
        return F.normalize(self.look(self.translator(raw_latents)), dim=-1)


class ThroughDecoder(nn.Module):
    """Latents of the second VAE → features of the teacher of the decoded pictures."""

    def __init__(self, vae: nn.Module, world: World) -> None:
        super().__init__()
        self.vae, self.tower = vae, world.pixel_clip.image.model
        self.size = world.pixel_clip.image_size
        self.mean, self.std = world.pixel_clip.mean, world.pixel_clip.std

    def forward(self, latents: Tensor) -> Tensor:
        return encode_pixels(self.tower, decoded(self.vae, latents), self.size, self.mean, self.std)


def decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64) in 0..1."""
    return ((vae.decode(latents) + 1) / 2).clamp(0, 1)


class Study:
    """The translated generator, what judges it while it climbs, and the prompts."""

    def __init__(self, world: World, vae: nn.Module, network: Translator) -> None:
        checkpoint = read_checkpoint(study.FOLDER_OF / "distilled.safetensors")
        tower = load_latent_clip(checkpoint.config, checkpoint.state_dict).visual.requires_grad_(False)
        self.world, self.vae, self.translator, self.maker = world, vae, network, Maker(world)
        self.maker.encoders |= {DISTILLED: Seen(network, tower), TEACHER: Seen(network, ThroughDecoder(vae, world))}
        self.maker.modules += [network, tower, vae]
        self.settings = RenoSettings(iterations=EVALUATIONS, learning_rate=LEARNING_RATE)
        prompts = fresh_prompts("reno on the second vae", PROMPTS)
        self.captions = [caption for captions in prompts.values() for caption in captions] * NOISES
        self.noise = noise_for(62_000, len(self.captions))

    def run(self, way: str) -> dict:
        """One of WAYS on every prompt: whether each picture shows it, rewards, and processor seconds a picture."""
        texts, maker, began = [str(caption) for caption in self.captions], self.maker, time.process_time()
        by = TEACHER if TEACHER in way else DISTILLED
        if way == PLAIN:
            made = maker.one_step(texts, self.noise)
        elif way.startswith("ReNO"):
            made = maker.reno(by, texts, self.noise, self.settings)
        else:
            made = maker.best_of(by, texts, self.noise, 2 * EVALUATIONS if way == BEST_TWICE else EVALUATIONS, 72_000)
        seconds = (time.process_time() - began) / len(texts)
        return {"right": self.judged(made), "seconds": seconds, **{j: self.score(j, made, texts) for j in (DISTILLED, TEACHER)}}

    @torch.no_grad()
    def judged(self, made: Run) -> list[bool]:
        return judge(torch.cat([decoded(self.vae, self.translator(part)) for part in made.latents.split(100)]), self.captions)

    @torch.no_grad()
    def score(self, by: str, made: Run, texts: Sequence[str]) -> float:
        return self.maker.score(by, made.latents, texts).mean().item()


def measure(kept: Kept, world: World, vae: nn.Module) -> dict:
    """Make the generator and run every way."""
    began = time.process_time()
    data = cached("vae16_translator_pairs", lambda: pairs(world, vae, "train", PAIRS))
    prepared = time.process_time() - began
    network = translator(data)
    trained = time.process_time() - began - prepared
    seconds = kept.get("second VAE: translator's seconds", lambda: [prepared, trained])
    run = Study(world, vae, network)
    return {
        "seconds": seconds,
        "fit": kept.get("second VAE: translator's fit", lambda: fit_of(world, vae, network, run)),
        "ways": {way: kept.get(f"second VAE: {way}", lambda way=way: run.run(way)) for way in WAYS},
    }


@torch.no_grad()
def fit_of(world: World, vae: nn.Module, network: Translator, run: Study) -> dict:
    """On pictures of its own: the share of the latents' variance that it explains; and what the shipped VAE makes of the same latents."""
    data = pairs(world, vae, "held out", 400)
    error = (network(data["old"]) - data["new"]).square().mean((0, 2, 3)) / data["new"].var((0, 2, 3))
    latents = run.maker.one_step([str(caption) for caption in run.captions], run.noise).latents
    return {"explained": (1 - error.mean()).item(), "own decoder": judge(world.decode(latents), run.captions)}


def report(results: dict) -> str:
    """The section as markdown."""
    ways, captions = results["ways"], sum(PROMPTS.values()) * NOISES
    rows = [
        [name, Rate.of(way["right"]), f"{way[DISTILLED]:.3f}", f"{way[TEACHER]:.3f}", f"{1000 * way['seconds']:.0f}"]
        for name, way in ways.items()
    ]  # fmt: skip
    compared = [[f"{one} − {other}", difference(ways[one]["right"], ways[other]["right"])] for one, other in COMPARED]
    prepared, trained = results["seconds"]
    return "\n\n".join([
        "### ReNO on its latents",
        "Nobody trained a generator for this VAE. The one here is *translated*: the shipped one-step generator, and a network of a few convolutions "
        f"that turns its latents into the second VAE's, trained by regression on {PAIRS:,} pictures in {trained / 60:.1f} processor minutes (the pictures "
        f"{prepared / 60:.1f}). On pictures of its own it explains {100 * results['fit']['explained']:.1f} % of their variance. What it makes is decoded by the "
        f"second VAE; the same latents decoded by the shipped VAE are right in {Rate.of(results['fit']['own decoder'])}.",
        f"{captions} fresh prompts, {EVALUATIONS} evaluations at learning rate {LEARNING_RATE:g}, which were chosen for the shipped VAE; judged success:",
        table(["way", "judged success", "distilled tower's cosine", "teacher's cosine", "processor ms a picture"], rows),
        table(["paired difference", "judged success"], compared),
    ])  # fmt: skip
