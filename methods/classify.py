"""Zero-shot classification, as CLIP does it: one direction per label, softmax under the model's logit scale."""

from collections.abc import Callable

import torch
from torch import Tensor

from .features import average_unit


def label_directions(encode_text: Callable[[list[str]], Tensor], labels: list[str], templates: list[str]) -> Tensor:
    """One unit-length direction per label, its features averaged over the templates.

    Args:
        encode_text: N texts → (N, D).
        labels: L of them; templates: T texts with `{}` where the label goes.

    Returns:
        (L, D).

    Raises:
        ValueError: no labels, a label twice, or a template without `{}`.
    """
    if len(labels) < 2:
        raise ValueError(
            f"Got {len(labels)} label(s), expected at least two: a probability needs an alternative. Write one label per line."
        )
    if repeated := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(
            f"Got a label more than once: {', '.join(sorted(repeated))}. Every label must be its own line."
        )
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(
            f"Got the template {wrong[0]!r}, expected {{}} where the label goes, such as 'a photo of {{}}'."
        )
    templates = templates or ["{}"]
    features = encode_text([template.replace("{}", label) for label in labels for template in templates])
    return average_unit(features.view(len(labels), len(templates), -1))


def classify(features: Tensor, directions: Tensor, logit_scale: float) -> Tensor:
    """Probability of every label: (B, D) unit-length features, (L, D) directions → (B, L); every image's probabilities sum to 1."""
    return torch.softmax(logit_scale * features @ directions.to(features).T, dim=-1)
