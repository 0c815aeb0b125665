"""Score a LATENT and report it twice: as JSON for a graph, and as data for the bars on the node."""

import math
from dataclasses import dataclass

from torch import Tensor

from ...methods.classify import classify, label_directions
from ...methods.rewards import Reward
from ...models.fit import Fit
from ...models.frames import by_clip, frames_in
from ...models.latent_spaces import LatentSpace
from ..front_end.json_values import rounded, rounded_table
from .latent_clip import LoadedLatentCLIP
from .latents import MAX_THUMBNAILS, finite_items, image_part, thumbnails
from .scoring import encode, features_of_clips, score_frames, score_frames_with_features


@dataclass(frozen=True)
class ScoreReport:
    """Scores (B,) of a batch, the unweighted value of every term (B,), and the data that draws them.

    An item that could not be scored has NaN, which is null in JSON, and no picture.

    Attributes:
        features: (B, D) of unit length, to compare the items by; None unless requested.
        frames: weighted scores of every frame (B, T), of clips.
    """

    reward: Reward
    scores: Tensor
    terms: dict[str, Tensor]
    thumbnails: list[str]
    features: Tensor | None = None
    frames: Tensor | None = None

    def as_dict(self) -> dict:
        clips = {} if self.frames is None else {"frames": rounded_table(self.frames), "of_frames": self.reward.frames}
        return {
            **clips,
            "scores": rounded(self.scores),
            "terms": [
                {"name": term.name, "weight": term.weight, "values": rounded(self.terms[term.name])}
                for term in self.reward.terms
            ],
        }

    def as_ui(self, kept: list[int] | None = None) -> dict:
        """Return the node's message; `kept`: indices that a selection keeps, None where nothing is selected."""
        return {**self.as_dict(), "kind": "scores", "thumbnails": self.thumbnails, "kept": kept}


@dataclass(frozen=True)
class ClassifyReport:
    """Top label and its probability per item, and the whole table (B, L).

    An item that could not be scored has the empty label, NaN for every probability, and no picture.

    Attributes:
        frames: the table of every frame (B, T, L), of clips, whose mean `table` is.
    """

    names: list[str]
    table: Tensor
    thumbnails: list[str]
    frames: Tensor | None = None

    @property
    def labels(self) -> list[str]:
        return ["" if line.isnan().any() else self.names[line.argmax()] for line in self.table]

    @property
    def probabilities(self) -> list[float]:
        return self.table.amax(dim=1).tolist()

    def as_dict(self) -> dict:
        clips = {} if self.frames is None else {"frames": [self._named(table) for table in self.frames]}
        return {**clips, "labels": self.labels, "probabilities": self._named(self.table)}

    def _named(self, table: Tensor) -> list[dict[str, float | None]]:
        return [dict(zip(self.names, rounded(line))) for line in table]

    def as_ui(self) -> dict:
        return {**self.as_dict(), "kind": "classes", "thumbnails": self.thumbnails}


def score_report(latent: dict, reward: Reward, with_features: bool = False) -> ScoreReport:
    """Score every finite item of a LATENT.

    Raises:
        ValueError: no score is a number.
    """
    raw_latents, places = finite_items(latent, reward.space)
    size, frames = len(image_part(latent["samples"])), frames_in(raw_latents.shape)
    features, of_frames = None, None
    if with_features:
        values, found = score_frames_with_features(reward, raw_latents)
        features = _in_places(features_of_clips(found, frames), places, size)
    else:
        values = score_frames(reward, raw_latents)
    if frames > 1:
        of_frames = _in_places(by_clip(reward.weigh(values), frames), places, size)
    terms = {name: _in_places(v, places, size) for name, v in reward.reduce_frames(values, frames).items()}
    scores = reward.weigh(terms)
    _refuse_all_nan(scores, "score")
    pictures = _pictures(raw_latents, places, size, reward.space)
    return ScoreReport(reward, scores, terms, pictures, features, of_frames)


def classify_report(
    latent: dict, clip: LoadedLatentCLIP, names: list[str], templates: list[str], fit: Fit
) -> ClassifyReport:
    """Classify every finite item of a LATENT: zero-shot probabilities.

    Raises:
        ValueError: no probability is a number.
    """
    raw_latents, places = finite_items(latent, clip.space)
    size, frames = len(image_part(latent["samples"])), frames_in(raw_latents.shape)
    directions = label_directions(clip.encode_text, names, templates)
    tables = by_clip(classify(encode(clip.encoder(fit), raw_latents), directions, clip.logit_scale), frames)
    table = _in_places(tables.mean(dim=1), places, size)
    _refuse_all_nan(table, "probability")
    of_frames = _in_places(tables, places, size) if frames > 1 else None
    return ClassifyReport(names, table, _pictures(raw_latents, places, size, clip.space), of_frames)


def _in_places(values: Tensor, places: list[int], size: int) -> Tensor:
    """Spread values (b, ...) of the scored items to (size, ...), NaN for the others."""
    spread = values.new_full((size, *values.shape[1:]), math.nan)
    spread[places] = values
    return spread


def _pictures(raw_latents: Tensor, places: list[int], size: int, space: LatentSpace) -> list[str]:
    """Pictures of the first `MAX_THUMBNAILS` items, "" for those without a score."""
    drawn = [place for place in places if place < MAX_THUMBNAILS]
    pictures = dict(zip(drawn, thumbnails(raw_latents[: len(drawn)], space)))
    return [pictures.get(place, "") for place in range(min(size, MAX_THUMBNAILS))]


def _refuse_all_nan(values: Tensor, what: str) -> None:
    if values.isnan().all():
        raise ValueError(
            f"Got NaN as {what} of every latent, expected numbers. The scorer overflowed: try another dtype in its loader."
        )
