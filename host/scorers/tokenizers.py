"""Tokenizer that a CLIP's text tower was trained with: open_clip's own, or a tokenizer.json beside the weights."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...models.texts import cut_text

CLIP_VOCABULARY = 49408  # open_clip ships this one
GEMMA_VOCABULARY = (
    256000  # of SigLIP 2, whose texts are filled up with a token of its own; SigLIP's are with that of their end
)
MOST_BYTES = 64_000_000  # of a tokenizer.json; Gemma's has half of that
ENDS = ("</s>", "<eos>")
FILL = "<pad>"
AGAIN = "Download tokenizer.json from where the weights come from, and put it there under that name."


class Tokenizer(Protocol):
    """Texts → token ids (N, context_length).

    Attributes:
        context_length: tokens of a text, those that mark its ends included.
        ends: how many of them do.
    """

    context_length: int
    ends: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end tokens and not cut."""
        ...

    def __call__(self, texts: list[str]) -> Tensor: ...


class SigLIPTokenizer:
    """SigLIP's words, from a tokenizer.json as the library tokenizers reads it, which the host has."""

    ends = 1

    def __init__(self, path: Path, context_length: int, vocabulary: int):
        """Args:
        vocabulary: size of the text tower's token embedding.

        Raises:
            ValueError: the file cannot be read, or is of another vocabulary.
        """
        from open_clip.tokenizer import get_clean_fn

        self.context_length, self.clean = context_length, get_clean_fn("canonicalize")  # no case, no punctuation
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{path.name}: it has {size} bytes, expected a tokenizer of at most {MOST_BYTES}. {AGAIN}")
        try:
            from tokenizers import Tokenizer as Pieces

            self.pieces = Pieces.from_file(str(path))
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{path.name}: no tokenizer can be read from it ({error!s:.200}). {AGAIN}") from error
        self.pieces.no_truncation()
        self.pieces.no_padding()
        end = next((found for name in ENDS if (found := self.pieces.token_to_id(name)) is not None), None)
        if end is None or self.pieces.get_vocab_size() > vocabulary:
            raise ValueError(
                f"{path.name}: it has {self.pieces.get_vocab_size()} tokens, expected those of SigLIP, at most {vocabulary}. {AGAIN}"
            )
        self.end: int = end
        self.fill: int = self.pieces.token_to_id(FILL) or 0 if vocabulary == GEMMA_VOCABULARY else end

    def encode(self, text: str) -> list[int]:
        return self.pieces.encode(self.clean(cut_text(text, self.context_length)), add_special_tokens=False).ids

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.full((len(texts), self.context_length), self.fill)
        for line, text in zip(ids, texts):
            tokens = [*self.encode(text)[: self.context_length - 1], self.end]
            line[: len(tokens)] = torch.tensor(tokens)
        return ids


def tokenizer_of(path: str | Path, text_cfg: dict, vocabulary: int) -> Tokenizer | None:
    """The tokenizer of the weights in `path`, `<stem>.tokenizer.json` beside them; None for open_clip's own.

    Raises:
        ValueError: they need one of their own, and there is none, or it is of a kind that is not known here.
    """
    path, name = Path(path), text_cfg.get("hf_tokenizer_name", "")
    if vocabulary == CLIP_VOCABULARY and not name:
        return None
    if name and "siglip" not in name.lower():
        raise ValueError(
            f"{path.name}: its words are those of {name}, expected CLIP's or SigLIP's. Take a model that reads these."
        )
    beside = path.with_name(f"{path.stem}.tokenizer.json")
    if not beside.is_file():
        where = f" ({name} on Hugging Face)" if name else ""
        raise ValueError(
            f"{path.name}: its text tower reads {vocabulary} tokens of its own, so it needs its tokenizer. Download tokenizer.json from where the "
            f"weights come from{where}, and put it beside them as {beside.name}."
        )
    return SigLIPTokenizer(beside, text_cfg.get("context_length", 77), vocabulary)
