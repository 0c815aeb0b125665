"""What a reward is: weighted terms, each a head on the features of an encoder.

Terms that share an encoder share its forward pass, so five prompts on one Latent-CLIP cost as much as one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from ...models.frames import FRAMES, Frames, by_clip, frames_in, pictures_of
from ...models.latent_spaces import LatentSpace, check_raw_latents, common_space
from ..features import WindowFeatures, average_unit

Seen = TypeVar("Seen")


class Encoder(Protocol):
    """Turns raw latents (B, C, H, W) of one space into features (B, D). Equal encoders give equal features; hashable.

    One whose attribute `reads_noise_level` is true is also told, as the keyword `noise_level`, what share of noise there was in
    what the latents were predicted from, 0 (clean) to 1. It is left out for latents that are no predictions.

    One whose attribute `reads_clips` is true gets several frames as they are, (B, C, T, H, W), and gives T features for each clip,
    (B·T, D), clip by clip; all others get every frame as a picture.
    """

    @property
    def space(self) -> LatentSpace: ...

    def __call__(self, raw_latents: Tensor) -> Tensor: ...


class WindowEncoder(Encoder, Protocol):
    """An encoder that overlooks nothing: `look` also gives the features of every window.

    Attributes:
        plain: the encoder without that, whose features `look(...).average` are.
    """

    @property
    def plain(self) -> Encoder: ...

    def encode_windows(self, raw_latents: Tensor) -> WindowFeatures: ...


def told(judge: object, function: Callable[..., Seen], noise_level: float | None) -> Callable[[Tensor], Seen]:
    """A judge's function of raw latents, told the noise level: itself where that is not known, or the judge does not read it."""
    if noise_level is None or not getattr(judge, "reads_noise_level", False):
        return function
    return partial(function, noise_level=noise_level)


def seen_by(encoder: object, raw_latents: Tensor) -> Tensor:
    """Raw latents (B, C, H, W) or (B, C, T, H, W) as an encoder reads them: pictures, for all but those that read clips."""
    return raw_latents if getattr(encoder, "reads_clips", False) else pictures_of(raw_latents)


@dataclass(frozen=True)
class Term:
    """One number per image.

    Attributes:
        name: what reports, traces and plots call it; a reward makes it unique.
        encoder: raw latents → features (B, D).
        head: features → (B,), higher is better.
        weight: factor of this term in the reward's sum.
        every_window: the encoder is a `WindowEncoder`, and the head takes the features of every window (B, T, D).
    """

    name: str
    encoder: Encoder
    head: Callable[[Tensor], Tensor]
    weight: float = 1.0
    every_window: bool = False

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(f"Got the weight {self.weight} for {self.name!r}, expected a finite number; 1 is usual.")


@dataclass(frozen=True)
class Reward:
    """A weighted sum of terms; calling it gives (B,) float32 for raw latents (B, C, H, W) or, frame by frame, (B, C, T, H, W).

    Values are kept by name, so a name that comes again gets a number.

    Attributes:
        frames: what counts of several frames: their mean, or the worst by the weighted sum.

    Raises:
        ValueError: no term at all, or another word for `frames`.
    """

    terms: tuple[Term, ...]
    frames: Frames = "mean"

    def __post_init__(self):
        if self.frames not in FRAMES:
            raise ValueError(f"Got {self.frames!r} of the frames, expected one of {', '.join(FRAMES)}.")
        if not self.terms:
            raise ValueError("Got a reward without terms, expected at least one.")
        terms: dict[str, Term] = {}
        for term in self.terms:
            name, count = term.name, 2
            while name in terms:
                name, count = f"{term.name} ({count})", count + 1
            terms[name] = term if name == term.name else replace(term, name=name)
        object.__setattr__(self, "terms", tuple(terms.values()))

    @property
    def encoders(self) -> list[Encoder]:
        """The distinct encoders, in order of first use."""
        return list(dict.fromkeys(term.encoder for term in self.terms))

    @property
    def reads_noise_level(self) -> bool:
        """Whether any encoder wants to be told; see `Encoder`."""
        return any(getattr(encoder, "reads_noise_level", False) for encoder in self.encoders)

    @property
    def space(self) -> LatentSpace:
        """The latent space that every term reads."""
        return common_space([encoder.space for encoder in self.encoders])

    def evaluate(self, raw_latents: Tensor, noise_level: float | None = None) -> dict[str, Tensor]:
        """Value of every term, unweighted: name → (B,) float32.

        Args:
            noise_level: see `Encoder`.

        Raises:
            LatentSpaceError: these latents cannot be of the space that the reward reads.
        """
        check_raw_latents(raw_latents, self.space)
        return self.values(raw_latents, noise_level)

    def values(self, raw_latents: Tensor, noise_level: float | None = None) -> dict[str, Tensor]:
        """`evaluate` without its check, for loops that must not wait for the device."""
        return self.over_frames(self.of_frames(raw_latents, noise_level)[0], frames_in(raw_latents.shape))

    def values_and_features(
        self, raw_latents: Tensor, noise_level: float | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """`values`, and the features of all encoders as one: (B, D) of unit length, for what tells images apart."""
        frames = frames_in(raw_latents.shape)
        values, features = self.of_frames(raw_latents, noise_level)
        parts = [part.to(raw_latents.device) for part in features.values()]
        if frames > 1:
            parts = [average_unit(by_clip(part, frames)) for part in parts]
        return self.over_frames(values, frames), torch.cat(parts, dim=1) / math.sqrt(len(parts))

    def of_frames(
        self, raw_latents: Tensor, noise_level: float | None = None
    ) -> tuple[dict[str, Tensor], dict[Encoder, Tensor]]:
        """Value of every term, unweighted, and features of every encoder, for every frame: (B·T,) and (B·T, D), clip by clip."""
        watchers = {term.encoder: cast(WindowEncoder, term.encoder) for term in self.terms if term.every_window}
        looks = {e: told(e, watcher.encode_windows, noise_level)(seen_by(e, raw_latents)) for e, watcher in watchers.items()}
        features = {
            e: looks[e].average if e in looks else told(e, e, noise_level)(seen_by(e, raw_latents))
            for e in self.encoders
        }
        values = {
            term.name: term.head(looks[term.encoder].windows if term.every_window else features[term.encoder])
            for term in self.terms
        }
        # a judge may live on another device than the latents, or have been moved meanwhile
        return {name: value.to(raw_latents.device) for name, value in values.items()}, features

    def over_frames(self, values: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
        """What `of_frames` found, as one value for each clip: (B·T,) → (B,).

        Of the worst frame, the one with the lowest weighted sum, every term keeps its own value, so that they still add up.
        """
        if frames == 1:
            return dict(values)
        if self.frames == "mean":
            return {name: by_clip(value, frames).mean(dim=1) for name, value in values.items()}
        worst = by_clip(self.weigh(values), frames).argmin(dim=1, keepdim=True)
        return {name: by_clip(value, frames).gather(1, worst).squeeze(1) for name, value in values.items()}

    def weigh(self, values: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the values that `evaluate` returned: (B,)."""
        total = self.terms[0].weight * values[self.terms[0].name]
        for term in self.terms[1:]:
            total = total + term.weight * values[term.name]
        return total

    def __call__(self, raw_latents: Tensor) -> Tensor:
        return self.weigh(self.evaluate(raw_latents))


def combine(rewards: list[Reward]) -> Reward:
    """Sum of rewards. Terms keep their names, as far as `Reward` can let them.

    Raises:
        ValueError: no reward at all.
        LatentSpaceError: they read different latent spaces.
    """
    if not rewards:
        raise ValueError("Got no rewards to combine, expected at least one. Connect a Reward node.")
    common_space([reward.space for reward in rewards])
    terms = [term for reward in rewards for term in reward.terms]
    # a watcher gives the features of its plain encoder too, so that one forward pass serves both
    watchers = {cast(WindowEncoder, t.encoder).plain: t.encoder for t in terms if t.every_window}
    return Reward(tuple(replace(t, encoder=watchers.get(t.encoder, t.encoder)) for t in terms))
