"""Rewards: weighted terms, each a head on the features of an encoder.

Terms that share an encoder share its forward pass, so five prompts on one Latent-CLIP cost as much as one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

from torch import Tensor

from ...models.frames import FRAMES, Frames, by_clip, frames_in, pictures_of
from ...models.latent_spaces import LatentSpace, check_raw_latents, common_space
from ..features import WindowFeatures


class Encoder(Protocol):
    """Map raw latents (B, C, H, W) of one space to features (B, D). Equal encoders give equal features; hashable.

    Attributes:
        space: the latent space that it reads.
        reads_clips: it encodes several frames together: (B, C, T, H, W) → T features for each clip, (B·T, D), clip by clip. An
            encoder that does not gets every frame as an image.
    """

    @property
    def space(self) -> LatentSpace: ...

    @property
    def reads_clips(self) -> bool: ...

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> Tensor:
        """Encode latents.

        Args:
            noise_level: share of noise, 0 (clean) to 1, in the noisy latents from which these were predicted; None for latents
                that are no predictions. An encoder that is not conditioned on it ignores it.
        """
        ...


class WindowEncoder(Encoder, Protocol):
    """Encoder that also gives the features of every window, so that nothing is overlooked.

    Attributes:
        plain: the encoder without windows, whose features `encode_windows(...).average` are.
    """

    @property
    def plain(self) -> Encoder: ...

    def encode_windows(self, raw_latents: Tensor, noise_level: float | None = None) -> WindowFeatures: ...


def seen_by(encoder: Encoder, raw_latents: Tensor) -> Tensor:
    """Flatten clips (B, C, T, H, W) to images (B·T, C, H, W), unless the encoder reads clips."""
    return raw_latents if encoder.reads_clips else pictures_of(raw_latents)


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
    def space(self) -> LatentSpace:
        """The latent space that every term reads."""
        return common_space([encoder.space for encoder in self.encoders])

    def evaluate(self, raw_latents: Tensor, noise_level: float | None = None, check: bool = True) -> dict[str, Tensor]:
        """Evaluate every term, unweighted: name → (B,) float32.

        Args:
            noise_level: see `Encoder`.
            check: refuse wrong latents; False in loops that must not wait for the device.

        Raises:
            LatentSpaceError: these latents cannot be of the space that the reward reads.
        """
        if check:
            check_raw_latents(raw_latents, self.space)
        return self.reduce_frames(self.evaluate_frames(raw_latents, noise_level)[0], frames_in(raw_latents.shape))

    def evaluate_frames(
        self, raw_latents: Tensor, noise_level: float | None = None
    ) -> tuple[dict[str, Tensor], dict[Encoder, Tensor]]:
        """Evaluate every term, unweighted, for every frame, without a check.

        Returns:
            (values (B·T,) by name of the term, features (B·T, D) by encoder), both clip by clip.
        """
        needs_windows = {t.encoder: cast(WindowEncoder, t.encoder) for t in self.terms if t.every_window}
        windows = {e: w.encode_windows(seen_by(e, raw_latents), noise_level) for e, w in needs_windows.items()}
        features = {
            e: windows[e].average if e in windows else e(seen_by(e, raw_latents), noise_level) for e in self.encoders
        }
        values = {
            term.name: term.head(windows[term.encoder].windows if term.every_window else features[term.encoder])
            for term in self.terms
        }
        # an encoder may live on another device than the latents, or have been moved meanwhile
        return {name: value.to(raw_latents.device) for name, value in values.items()}, features

    def reduce_frames(self, values: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
        """Reduce the values of `evaluate_frames` to one value per clip: (B·T,) → (B,).

        Of the worst frame, which has the lowest weighted sum, every term keeps its own value, so that they still add up.
        """
        if frames == 1:
            return dict(values)
        if self.frames == "mean":
            return {name: by_clip(value, frames).mean(dim=1) for name, value in values.items()}
        worst = by_clip(self.weigh(values), frames).argmin(dim=1, keepdim=True)
        return {name: by_clip(value, frames).gather(1, worst).squeeze(1) for name, value in values.items()}

    def weigh(self, values: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms' values: (B,)."""
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
    # a window encoder gives the features of its plain encoder too, so that one forward pass serves both
    with_windows = {cast(WindowEncoder, t.encoder).plain: t.encoder for t in terms if t.every_window}
    return Reward(tuple(replace(t, encoder=with_windows.get(t.encoder, t.encoder)) for t in terms))
