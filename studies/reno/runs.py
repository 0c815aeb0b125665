"""Ways to make one picture per prompt and noise on Shapes World, for studies.reno_study: batched, through the host's objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...host.memory.gradients import differentiable_attention, gradients
from ...host.scorers.pixel_clip import pixel_encoder
from ...methods.reno import RenoSettings, RenoState, optimize_noise
from ...methods.rewards import Encoder, Reward, Term
from ..measures import World

BATCH = 58  # a quarter of 230 prompts; larger ones gain nothing on a CPU


@dataclass
class Run:
    """Results of one way for every prompt and noise.

    Attributes:
        latents: (N, 4, 8, 8) raw. noise: what they were made of. seconds: of the whole run, spread evenly over the pictures.
        by_iteration: best latents after so many evaluations, for ReNO.
        evaluations: of the generator, per picture.
    """

    latents: Tensor
    noise: Tensor
    seconds: float
    evaluations: list[int]
    by_iteration: dict[int, Tensor] = field(default_factory=dict)


class Maker:
    """The shipped models with everything that the study compares."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.network = world.model.model
        self.sigma = self.network.model_sampling.sigma_max.view(1)
        self.encoders: dict[str, Encoder] = {
            "Latent-CLIP": world.latent_clip.encoder("tiles"),
            "pixel CLIP": pixel_encoder(world.pixel_clip, world.vae),
        }
        self.modules = [
            self.network, world.latent_clip.image.model, world.pixel_clip.image.model, world.vae.first_stage_model
        ]  # fmt: skip

    def text_features(self, judge: str, texts: Sequence[str]) -> Tensor:
        """(N, D) of unit length."""
        tower = self.world.latent_clip.text if judge == "Latent-CLIP" else self.world.pixel_clip.text
        return torch.cat([tower.encode(list(texts[at : at + 256])) for at in range(0, len(texts), 256)])

    def score(self, judge: str, latents: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each picture with its own text: (N,)."""
        features = torch.cat([self.encoders[judge](chunk) for chunk in latents.split(BATCH)])
        return (features * self.text_features(judge, texts)).sum(-1)

    def generate(self, z: Tensor, context: Tensor) -> Tensor:
        """One step from unit noise (b, 4, 8, 8) and context (b, T, D) to raw latents, as the host's euler takes it."""
        x = z * (1 + self.sigma.item() ** 2) ** 0.5
        options = {"optimized_attention_override": differentiable_attention}
        x0 = self.network.apply_model(x, self.sigma.expand(len(z)), c_crossattn=context, transformer_options=options)
        return self.network.process_latent_out(x0.float())

    @torch.no_grad()
    def one_step(self, texts: Sequence[str], noise: Tensor) -> Run:
        """Latents that the generator makes of the noise."""
        contexts, began = self.contexts(texts), time.perf_counter()
        latents = torch.cat([self.generate(z, c) for z, c in zip(noise.split(BATCH), contexts.split(BATCH))])
        return Run(latents, noise, time.perf_counter() - began, [1] * len(noise))

    @torch.no_grad()
    def best_of(self, judge: str, texts: Sequence[str], noise: Tensor, of: int, seed: int) -> Run:
        """The best of the given noise and `of` - 1 more, by one judge."""
        contexts, targets = self.contexts(texts), self.text_features(judge, texts)
        generator = torch.Generator().manual_seed(seed)
        best_noise, best = noise.clone(), torch.zeros_like(noise)
        best_score = torch.full((len(noise),), -torch.inf)
        began = time.perf_counter()
        for number in range(of):
            z = noise if number == 0 else torch.randn(noise.shape, generator=generator)
            for at in range(0, len(noise), BATCH):
                part = slice(at, at + BATCH)
                latents = self.generate(z[part], contexts[part])
                score = (self.encoders[judge](latents) * targets[part]).sum(-1)
                better = score > best_score[part]
                best_score[part] = torch.where(better, score, best_score[part])
                mask = better.view(-1, 1, 1, 1)
                best[part] = torch.where(mask, latents, best[part])
                best_noise[part] = torch.where(mask, z[part], best_noise[part])
        return Run(best, best_noise, time.perf_counter() - began, [of] * len(noise))

    def reno(
        self, judge: str, texts: Sequence[str], noise: Tensor, settings: RenoSettings, keep: Sequence[int] = ()
    ) -> Run:
        """ReNO from each noise, by one judge; `keep` names evaluations after which the best so far is recorded."""
        contexts, targets = self.contexts(texts), self.text_features(judge, texts)
        states: list[RenoState] = []
        kept: dict[int, list[Tensor]] = {k: [] for k in keep}
        began = time.perf_counter()
        for at in range(0, len(noise), BATCH):
            part = slice(at, at + BATCH)
            states.append(self._climb(judge, contexts[part], targets[part], noise[part], settings, kept))
        seconds = time.perf_counter() - began
        counts = [sum(item in i.items for i in s.iterations) for s in states for item in range(len(s.noise))]
        latents = torch.cat([state.latents for state in states])
        return Run(
            latents,
            torch.cat([state.noise for state in states]),
            seconds,
            counts,
            {k: torch.cat(parts) for k, parts in kept.items()},
        )

    def _climb(
        self,
        judge: str,
        contexts: Tensor,
        targets: Tensor,
        noise: Tensor,
        settings: RenoSettings,
        kept: dict[int, list[Tensor]],
    ) -> RenoState:
        now: list[int] = []  # the items that the current evaluation is about: each has a text of its own
        reward = Reward((Term(judge, self.encoders[judge], lambda f: (f * targets[now]).sum(-1)),))

        def generate(z: Tensor, items: list[int]) -> Tensor:
            now[:] = items
            return self.generate(z, contexts[items])

        def record(state: RenoState) -> None:
            if (done := len(state.iterations)) in kept:
                kept[done].append(state.latents.clone())

        with gradients(self.modules):
            state = optimize_noise(generate, reward, noise, settings, record)
        for k, parts in kept.items():
            if k > len(state.iterations):  # every item of this batch had ended before
                parts.append(state.latents.clone())
        return state

    def contexts(self, texts: Sequence[str]) -> Tensor:
        """Conditioning of each text: (N, T, D)."""
        return self.world.condition(texts)[0][0]
