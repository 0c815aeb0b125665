"""A Shapes World CLIP that trains quickly on a processor, as studies need that train several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..demo.train import used_ids

LONGEST = 10  # tokens of the longest caption


class UsedWords(nn.Module):
    """The rows of an embedding table that captions use; training the others would do nothing but take time."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.cat([torch.zeros(1, dtype=torch.long), used_ids()]), persistent=False)
        self.weight = nn.Parameter(table.detach()[self.ids].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(torch.searchsorted(self.ids, tokens.contiguous()), self.weight)

    def table(self, words: int) -> Tensor:
        """The whole table (words, W), zero in the rows that are not used."""
        whole = self.weight.new_zeros(words, self.weight.shape[1])
        return whole.index_copy(0, self.ids, self.weight.detach())


class Quick(nn.Module):
    """A CLIP that trains twice as fast on a processor: in bfloat16, over the tokens and words that captions have.

    PyTorch's fused attention in bfloat16 is slow on processors, above all backwards, so attention is spelt out. Features come in
    float32.

    Args:
        clip: the model, which is changed. read: applied to what its image tower is given.
    """

    def __init__(self, clip: CustomTextCLIP, read: Callable[[Tensor], Tensor] = lambda encoded: encoded) -> None:
        super().__init__()
        clip.text.token_embedding = UsedWords(clip.text.token_embedding.weight)
        clip.text.attn_mask = clip.text.attn_mask[:LONGEST, :LONGEST]
        self.clip, self.read = clip, read

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        return self._run(self.clip.text, tokens[:, :LONGEST])

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        return self._run(self.clip.visual, self.read(images))

    def _run(self, tower: nn.Module, given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training), sdpa_kernel(SDPBackend.MATH):
            return F.normalize(tower(given).float(), dim=-1)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in float32 meanwhile."""
        self.train(False)
        try:
            yield
        finally:
            self.train(True)

    def state(self, words: int) -> dict[str, Tensor]:
        """Weights as open_clip's model has them, with the whole vocabulary."""
        state = {key: value.detach().clone() for key, value in self.clip.state_dict().items()}
        return state | {"text.token_embedding.weight": self.clip.text.token_embedding.table(words)}
