"""Train the latent diffusion model and distil a one-step generator into the same weights.

1. Teacher: v-prediction with 10 % empty captions, more often at high noise, where the layout is decided.
2. Pairs: deterministic DDIM with classifier-free guidance maps noise to a latent.
3. Student, from the teacher's weights: at t = 999 one step must land on the pair's latent (pseudo-Huber on x0), while
   a quarter of each batch goes on denoising at t <= 980, so that ordinary samplers keep working.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..host.scorers.shapes_world import LATENT_SCALE, build_text_encoder, build_unet
from .corpus import Corpus, pick_caption, tokenize_for_host
from .diffusion import LAST, add_noise, ddim, x0_from_v
from .training import Draw, Recipe, cached, fit, initialise

TEACHER = Recipe("teacher", steps=1800, lr=1.2e-3, seed=3, warmup=100, ema=0.998)
DETAIL = Recipe("teacher_detail", steps=1200, lr=1.0e-3, seed=9, warmup=50, ema=0.998)
STUDENT = Recipe("student", steps=3600, lr=8e-4, seed=4, ema=0.997)
LONGER = Recipe("student_longer", steps=2400, lr=6e-4, seed=11, ema=0.997)
BATCH, ONE_STEP = 64, 48  # of a student's batch so many learn the one step, the others go on denoising
AND_SHARE = 0.55
SINGLE = 0.4  # large single shapes show every flaw of an outline, and 30 captions cover them: they get more than their share of the corpus
PAIRS, SINGLE_PAIRS, PAIR_STEPS, PAIR_CFG = 16_000, 8_000, 8, 3.0
DENOISE_UP_TO = 980


def softmax_attention(
    func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: object, **kwargs: object
) -> Tensor:
    """Explicit attention over (B, N, heads * d): on a CPU its backward is twice as fast as the fused kernel's."""
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Generator(nn.Module):
    """The host's U-Net and text tower, joined for training; `velocity` is what the host calls the model output."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text = build_text_encoder()
        self.requires_grad_(True)

    def context(self, ids: Tensor) -> Tensor:
        """Hidden states (B, 16, 128) for the host's token ids; the host's own forward adds in place, which autograd forbids."""
        model = self.text.text_model
        x = model.embeddings.token_embedding(ids) + model.embeddings.position_embedding.weight
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu_(1)
        for layer in model.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, _masked_attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        return model.final_layer_norm(x)

    def velocity(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(
            x, t.float(), context=context, transformer_options={"optimized_attention_override": softmax_attention}
        )


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def new_generator() -> Generator:
    """A Generator with seeded weights whose residual branches start as the identity."""
    model = Generator()
    # the last convolution of a ResBlock and the projection after attention, by their names in the host
    initialise(model, seed=3, zero=("out_layers.3", "proj_out", "unet.out.2"))
    return model


def _captions(draw: Draw, corpus: Corpus, rows: Tensor) -> list[str]:
    """True captions; one in ten is empty."""
    return [
        ""
        if draw.python.random() < 0.1
        else str(pick_caption(draw.python, corpus.scenes[row], AND_SHARE, reading_order=True))
        for row in rows.tolist()
    ]


def denoising_loss(
    model: Generator, draw: Draw, corpus: Corpus, count: int, up_to: int, single: float = SINGLE, bias: float = 1.0
) -> Tensor:
    """Mean squared error of v on `count` fresh samples with t <= `up_to`.

    Args:
        single: fraction of scenes of one thing. bias: 1 spreads t evenly, larger values favour high noise.
    """
    rows = corpus.rows(draw.python, count, single)
    t = ((1 - draw.uniform(count) ** bias) * (up_to + 1)).long().clamp(max=up_to)
    captions = _captions(draw, corpus, rows)
    x_t, v = add_noise(corpus.latents[rows] * LATENT_SCALE, draw.normal(count, 4, 8, 8), t)
    return (model.velocity(x_t, t, model.context(tokenize_for_host(captions))) - v).square().mean()


def sample_guided(model: Generator, noise: Tensor, captions: list[str], steps: int, cfg: float) -> Tensor:
    """DDIM with classifier-free guidance: model-space latents shaped as `noise`."""
    with torch.no_grad():
        context = model.context(tokenize_for_host(captions + [""] * len(captions)))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            cond, uncond = model.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), context).chunk(2)
            return uncond + cfg * (cond - uncond)

        return ddim(velocity, noise, steps)


def make_pairs(model: Generator, corpus: Corpus, seed: int, count: int, single: float) -> dict[str, Tensor]:
    """Noise, the teacher's guided latents, and token ids of `count` training captions, a fraction `single` of one thing."""
    rng, torch_rng = random.Random("pairs"), torch.Generator().manual_seed(seed)
    scenes = [corpus.scenes[row] for row in corpus.rows(rng, count, single).tolist()]
    captions = [str(pick_caption(rng, scene, AND_SHARE, reading_order=True)) for scene in scenes]
    noise = torch.randn(count, 4, 8, 8, generator=torch_rng)
    chunks = range(0, count, 250)
    latents = [sample_guided(model, noise[i : i + 250], captions[i : i + 250], PAIR_STEPS, PAIR_CFG) for i in chunks]
    return {"noise": noise, "latents": torch.cat(latents), "ids": tokenize_for_host(captions)}


def distillation_loss(model: Generator, draw: Draw, pairs: dict[str, Tensor], count: int) -> Tensor:
    """Pseudo-Huber distance of the one-step x0 to the teacher's, after Song and Dhariwal 2023, c = 0.1 per sample element."""
    rows = draw.rows(len(pairs["noise"]), count)
    noise, t = pairs["noise"][rows], torch.full((count,), LAST)
    x0 = x0_from_v(noise, model.velocity(noise, t, model.context(pairs["ids"][rows])), t)
    c = 0.1 * x0[0].numel() ** 0.5
    distance = (x0 - pairs["latents"][rows]).flatten(1).square().sum(1)
    return ((distance + c * c).sqrt() - c).mean() / x0[0].numel() ** 0.5


def train_generator(corpus: Corpus) -> Generator:
    """Run or resume teacher, pairs and student; returns the one-step and multi-step generator."""
    model = new_generator()

    def teach(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        return denoising_loss(model, draw, corpus, BATCH, LAST, single=0.25, bias=2), {}

    def teach_detail(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        return denoising_loss(model, draw, corpus, BATCH, LAST), {}

    fit(model, TEACHER, teach)
    fit(model, DETAIL, teach_detail)
    pairs = cached("pairs", lambda: make_pairs(model, corpus, 5, PAIRS, SINGLE))
    singles = cached("pairs_single", lambda: make_pairs(model, corpus, 6, SINGLE_PAIRS, 1.0))
    every = {key: torch.cat([pairs[key], singles[key]]) for key in pairs}

    def distil(draw: Draw, pairs: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        one_step = distillation_loss(model, draw, pairs, ONE_STEP)
        denoising = denoising_loss(model, draw, corpus, BATCH - ONE_STEP, DENOISE_UP_TO)
        return one_step + denoising, {"one step": one_step.item(), "denoising": denoising.item()}

    fit(model, STUDENT, lambda draw: distil(draw, pairs))
    fit(model, LONGER, lambda draw: distil(draw, every))  # single shapes stay behind the longest
    return model
