"""CLIP's tokenizer for texts of any length."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from .texts import cut_text


class CLIPTokenizer(SimpleTokenizer):
    """open_clip's tokenizer, which takes milliseconds for a text of any length (`texts.cut_text`)."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that mark its ends, at least as many as fit where it has so many."""
        return super().encode(cut_text(text, self.context_length))


def encode_texts(network: nn.Module, tokenize: Callable[[list[str]], Tensor], texts: list[str], chunk: int = 256) -> Tensor:
    """Features of texts: (N, D) float32 of unit length, on the CPU.

    Args:
        network: token ids (n, context_length) → (n, D). tokenize: texts → token ids.
        chunk: texts that are encoded at once.
    """
    device = next(network.parameters()).device
    features = [network(tokens.to(device)).float().cpu() for tokens in tokenize(texts).split(chunk)]
    return F.normalize(torch.cat(features), dim=-1)
