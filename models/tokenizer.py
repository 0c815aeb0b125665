"""CLIP's byte-pair tokenizer: the ids that every CLIP of this field was trained on, as open_clip and OpenAI make them."""

import html
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import regex
import torch
from torch import Tensor

MERGES = Path(__file__).with_name("bpe_merges.txt")  # OpenAI's, MIT licence; one pair per line, the commonest first
START, END = "<start_of_text>", "<end_of_text>"
WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
# what people paste: typographic quotes, ligatures and full-width letters, written plainly
PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))},
        "\u3000": " ",
        # characters that are not shown at all
        **dict.fromkeys((*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))),
    }
)  # fmt: skip


def clean(text: str) -> str:
    """Lower case, single spaces, HTML entities resolved, typography written plainly."""
    text = unicodedata.normalize("NFC", text.translate(PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


@cache
def byte_letters() -> dict[int, str]:
    """A printable letter for each of the 256 bytes, so that merges are text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def tables() -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
    """(token → id, merge → rank)."""
    merges = [tuple(line.split()) for line in MERGES.read_text(encoding="utf-8").splitlines()]
    letters = list(byte_letters().values())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(vocabulary)}, {pair: rank for rank, pair in enumerate(merges)}


@cache
def split_word(word: str) -> tuple[str, ...]:
    """The tokens of one word, whose bytes are written as letters."""
    if word in (START, END):
        return (word,)
    ranks = tables()[1]
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            hit = tuple(parts[i : i + 2]) == pair
            merged.append("".join(pair) if hit else parts[i])
            i += 2 if hit else 1
        parts = merged
    return tuple(parts)


class Tokenizer:
    """Texts → ids (N, context_length) int64, padded with 0; longer texts are cut and still end in the end-of-text token."""

    def __init__(self, context_length: int = 77):
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start and end, however long."""
        ids, letters = tables()[0], byte_letters()
        words = ("".join(letters[byte] for byte in word.encode("utf-8")) for word in WORDS.findall(clean(text)))
        return [ids[token] for word in words for token in split_word(word)]

    def __call__(self, texts: list[str]) -> Tensor:
        ids = tables()[0]
        result = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(result, texts):
            tokens = [ids[START], *self.encode(text)[: self.context_length - 2], ids[END]]
            row[: len(tokens)] = torch.tensor(tokens)
        return result
