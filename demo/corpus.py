"""The training corpus: seeded scenes without held-out pairs, their raw latents, and batches of captions.

A quarter of the scenes show one thing, the rest two. Evaluation uses other seeds, and reports held-out pairs apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .captions import THINGS, Caption
from .scenes import Scene, sample_scene, sample_things

CONTEXT = 16  # tokens per caption; the longest has 10
END_OF_TEXT = 49407


def sample_corpus(seed: str, count: int, held_out: bool | None = False, single: float = 0.25) -> list[Scene]:
    """`count` scenes of which a fraction `single` shows one thing; the pairs of the others obey `held_out`."""
    rng = random.Random(seed)
    return [
        sample_scene(rng, (rng.choice(THINGS),) if rng.random() < single else sample_things(rng, held_out))
        for _ in range(count)
    ]


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT)


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer()([text])[0].tolist())


def tokenize(texts: list[str]) -> Tensor:
    """open_clip's ids (B, 16), zero-padded."""
    return torch.tensor([_ids(text) for text in texts])


def tokenize_for_host(texts: list[str]) -> Tensor:
    """The same ids as the host's tokenizer pads them, with end-of-text: (B, 16)."""
    ids = tokenize(texts)
    return torch.where(ids == 0, END_OF_TEXT, ids)


@dataclass(frozen=True)
class Corpus:
    """Scenes and their raw latents (N, 4, 8, 8)."""

    scenes: list[Scene]
    latents: Tensor

    def rows(self, rng: random.Random, count: int, single: float) -> Tensor:
        """Indices (count,) of scenes, of which a fraction `single` shows one thing."""
        return torch.tensor([rng.choice(self._by_count[rng.random() >= single]) for _ in range(count)])

    @cached_property
    def _by_count(self) -> tuple[list[int], list[int]]:
        one = [i for i, scene in enumerate(self.scenes) if len(scene.shapes) == 1]
        return one, [i for i, scene in enumerate(self.scenes) if len(scene.shapes) > 1]


def pick_caption(rng: random.Random, scene: Scene, and_share: float, reading_order: bool) -> Caption:
    """One true caption; two things are joined by "and" with probability `and_share`, else by their relation.

    With `reading_order` an "and" names the left or upper thing first, as the corpus of the generator always does.
    """
    captions = scene.captions()
    if "single" in captions:
        return captions["single"][0]
    if rng.random() >= and_share:
        return rng.choice(captions["relation"])
    return captions["and"][0] if reading_order else rng.choice(captions["and"])
