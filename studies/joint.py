"""Does it pay to train a VAE's encoder with its Latent-CLIP? Shapes World's shipped VAE and Latent-CLIP go on together, on leashes.

All arms go on from the shipped weights with the loss that the shipped Latent-CLIP was trained with, on the same scenes in the same
order, text tower frozen. The arm that it must beat trains the image tower alone: for as many steps, and, beside an arm of fewer steps,
for as much time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import comfy.sample
import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.captions import THINGS, Caption
from ..demo.corpus import pick_caption, sample_corpus, tokenize
from ..demo.judge import judge
from ..demo.scenes import Scene, render, sample_scene, sample_things
from ..demo.train_clip import LATENT_NOISE, STAGES, contrastive_loss, near_misses, true_captions
from ..demo.training import CACHE, Draw, Recipe
from ..host import shapes_world
from ..host.trainable_vae import TrainableVAE
from ..models import shapes_world as shipped
from ..models.latent_clip import LatentCLIP
from ..training.finetune_vae import Joint, Options, groups_of
from ..training.leash import Held, Leash, distance, psnr
from ..training.loop import fit
from ..training.objectives import Objectives, Task
from ..training.starts import channel_statistics
from .measures import CHUNK, World, noise_for, sample_prompts

STEPS, BATCH, MIX = 150, 32, STAGES[0]
FOLDER_OF = CACHE / "training_study"


@dataclass(frozen=True)
class Arm:
    """What is trained, how long, on which leash; `vae` is "", "encoder" or "encoder and decoder"."""

    vae: str = ""
    leash: Leash = field(default_factory=lambda: Leash(0, 0, 0, 0))
    steps: int = STEPS
    lr: float = 3e-4
    vae_lr: float = 1e-3


ARMS: dict[str, Arm | None] = {
    "shipped": None,
    "frozen": Arm(),
    "tight": Arm("encoder", Leash(1, 0, 1e-6, 1)),
    "middle": Arm("encoder", Leash(0.1, 0, 1e-6, 0.1)),
    "tight, equal time": Arm("encoder", Leash(1, 0, 1e-6, 1), steps=60, vae_lr=3e-4),
    "loose": Arm("encoder", Leash(0.01, 0, 1e-6, 0.001)),
    "middle, decoder too": Arm("encoder and decoder", Leash(0.1, 0, 1e-6, 0.1)),
}


class Pair:
    """A VAE and a Latent-CLIP that belong together, for measuring; captions and scenes in, unit features out.

    Attributes:
        seconds: of the processor, that training took.
    """

    def __init__(self, vae: TrainableVAE, model: LatentCLIP, seconds: float = 0.0) -> None:
        self.vae, self.model, self.seconds = vae.requires_grad_(False), model.requires_grad_(False), seconds

    def encode(self, scenes: list[Scene]) -> Tensor:
        pixels = render(scenes).movedim(1, -1)
        return torch.cat([self.vae.encode(part)["raw"] for part in pixels.split(CHUNK)])

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, 64, 64) in 0..1."""
        return torch.cat([self.vae.decode(part) for part in latents.split(CHUNK)]).clamp(0, 1).movedim(-1, 1)

    def images(self, latents: Tensor) -> Tensor:
        return torch.cat([F.normalize(self.model.visual(part), dim=-1) for part in latents.split(CHUNK)])

    def texts(self, texts: list[str]) -> Tensor:
        return F.normalize(self.model.text(tokenize(texts)), dim=-1)


def shipped_pair() -> Pair:
    """Shapes World's, in float32."""
    weights, config = shipped.load_weights("latent_clip")
    model = LatentCLIP(config)
    model.load_state_dict(weights)
    return Pair(TrainableVAE(shapes_world.load_vae().first_stage_model), model.train(False))


@torch.enable_grad()
def trained_pair(name: str, arm: Arm) -> Pair:
    """Run or resume an arm."""
    pair, began = shipped_pair(), time.process_time()
    latents = pair.encode(sample_corpus("joint statistics", 200))
    options = Options(Path(), Path(), Path(), lr=arm.lr, vae_lr=arm.vae_lr, batch_size=BATCH)
    held = Held(arm.leash, pair.vae, channel_statistics(latents.detach())[1].square())
    joint = Joint(pair.vae, Task(pair.model, Objectives(contrastive=1.0)), held)
    encoder, decoder = pair.vae.halves()
    pair.model.visual.requires_grad_(True), pair.model.logit_scale.requires_grad_(True)
    for parameter in (encoder if arm.vae else []) + (decoder if "decoder" in arm.vae else []):
        parameter.requires_grad_(True)
    recipe = Recipe(f"joint {name}", arm.steps, arm.lr, seed=31, weight_decay=options.wd, ema=0.99)
    groups = groups_of(joint, options, pair.model.visual.transformer.layers)
    fit(joint, recipe, lambda draw: _loss(joint, draw, bool(arm.vae)), FOLDER_OF / f"joint_{name}.safetensors", groups=groups)
    return Pair(pair.vae, pair.model, time.process_time() - began)


def _loss(joint: Joint, draw: Draw, trains_vae: bool) -> tuple[Tensor, dict[str, float]]:
    """The shipped Latent-CLIP's own loss, with its noise on the latents, and the leash."""
    rng, model = draw.python, joint.task.model
    scenes = [sample_scene(rng, (rng.choice(THINGS),) if rng.random() < MIX.single else sample_things(rng, False)) for _ in range(BATCH)]  # fmt: skip
    captions = [pick_caption(rng, scene, MIX.and_share, reading_order=False) for scene in scenes]
    misses = [miss for caption in captions for miss in near_misses(rng, caption, MIX.reversals, MIX.swaps)]
    texts, truths = [str(caption) for caption in captions], [true_captions(scene) for scene in scenes]
    also_true = torch.tensor([[text in truth for text in texts] for truth in truths])
    pixels = render(scenes).movedim(1, -1)
    with torch.no_grad():
        words = F.normalize(model.text(tokenize(texts + [str(miss) for miss in misses])), dim=-1)
    with torch.set_grad_enabled(trains_vae), torch.autocast("cpu", torch.bfloat16, enabled=trains_vae):
        encoded = joint.vae.encode(pixels, draw.normal)
        terms = joint.held(joint.vae, pixels, encoded) if trains_vae else {}
    latents = encoded["raw"].float()
    noise = draw.normal(*latents.shape) * draw.uniform(BATCH, 1, 1, 1) * LATENT_NOISE
    image = F.normalize(model.visual(latents + noise), dim=-1)
    near = words[BATCH:].unflatten(0, (BATCH, 3))
    scale = model.logit_scale.exp().clamp(max=100)
    symmetric, hard = contrastive_loss(image, words[:BATCH], near, also_true, scale)
    told = {"contrastive": symmetric.item(), "hard": hard.item(), **{key: value.item() for key, value in terms.items()}}
    return symmetric + hard + sum(terms.values()), told


# --------------------------------------------------------------------------------------------------------- measured


def round_trip(pair: Pair, before: Pair, seed: str, count: int) -> dict:
    """PSNR of each picture, whether the judge still reads it right, and how far its latents went, in variances."""
    scenes = sample_corpus(f"{seed} joint round trip", count, held_out=None, single=1 / 3)
    captions = [scene.captions()["single" if len(scene.shapes) == 1 else "relation"][0] for scene in scenes]
    latents, old, pictures = pair.encode(scenes), before.encode(scenes), render(scenes)
    decoded = pair.decode(latents)
    return {
        "psnr": psnr(decoded, pictures).tolist(),
        "read right": judge(decoded, captions),
        "distance": distance(latents, old, channel_statistics(old)[1].square()).item(),
    }


def generated(world: World, seed: str, prompts: int, of: int) -> tuple[list[Caption], Tensor]:
    """Prompts of three kinds, and raw latents (P · of, 4, 8, 8) of the unchanged generator in one step."""
    captions = [c for name in ("single", "and", "relation") for c in sample_prompts(f"{seed} joint {name}", prompts // 3, name)]
    many = [str(caption) for caption in captions for _ in range(of)]
    return captions, world.generate(many, noise_for(7400, len(many)), 1, 1.0)


def best_of(pair: Pair, captions: list[Caption], latents: Tensor) -> dict[str, list[bool]]:
    """Whether the first picture, and the one that the tower chooses of several, shows its prompt, decoded by the pair's own decoder."""
    of = len(latents) // len(captions)
    right = torch.tensor(judge(pair.decode(latents), [c for c in captions for _ in range(of)])).view(-1, of)
    scores = pair.images(latents).unflatten(0, (-1, of)) @ pair.texts([str(c) for c in captions])[..., None]
    best = scores[..., 0].argmax(1)
    return {"first": right[:, 0].tolist(), "best": right[torch.arange(len(right)), best].tolist()}


def redrawn(pair: Pair, world: World, seed: str, count: int) -> list[bool]:
    """Image to image: whether the unchanged generator, begun from a picture as this VAE encodes it, still draws its caption."""
    scenes = sample_corpus(f"{seed} joint redrawn", count, single=1 / 3)
    captions = [scene.captions()["single" if len(scene.shapes) == 1 else "relation"][0] for scene in scenes]
    condition, empty = world.condition([str(c) for c in captions]), world.condition([""] * count)
    latents = comfy.sample.sample(
        world.model, noise_for(7500, count), 4, 3.0, "euler", "normal", condition, empty, pair.encode(scenes), denoise=0.5,
        disable_pbar=True,
    )  # fmt: skip
    return judge(pair.decode(latents), captions)
