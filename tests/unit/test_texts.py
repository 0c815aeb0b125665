"""Texts of any length are cut before they are tokenised, and texts of ordinary length are tokenised as before."""

import random
from time import process_time

import pytest
from open_clip.tokenizer import SimpleTokenizer

from latent_clip.models.texts import WORD, cut_text
from latent_clip.models.tokenizer import CLIPTokenizer

OPEN_CLIP = SimpleTokenizer(context_length=77)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(length, letters=LETTERS):
    return "".join(random.Random(length).choices(letters, k=length))


def sentences(count):
    """Prose with punctuation, numbers, accents, emoji, other scripts, HTML entities and odd white space, of all lengths."""
    parts = ["a red fox", "f/1.8", "“night”", "50%", "naïve café", "🦊🦊", "紅い狐、", "&amp;quot;", "\n\t ", "it's", "supercalifragilistic", "1girl,solo,",
             "https://example.org/a_b?c=d", "---", "รูปภาพ", "e\u0301", "A B"]  # fmt: skip
    rng = random.Random(5)
    return [rng.choice(["", " ", "  "]).join(rng.choices(parts, k=rng.randint(1, 300))) for _ in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        word(32_000), word(3_000_000), "!?" * 1_000_000, "é" * 1_000_000, "紅" * 1_000_000, "e\u0301" * 500_000, "&#97;" * 300_000,
        "x" + " " * 3_000_000 + "y", (word(900) + " ") * 1000, "_" * 1_000_000, "a1" * 1_000_000,
    ],
    ids=lambda text: f"{text[:3]}-{len(text)}",
)  # fmt: skip
def test_text_of_any_length_takes_milliseconds(text):
    tokenizer = CLIPTokenizer(77)
    began = process_time()
    tokens = tokenizer([text])
    assert process_time() - began < 0.5
    assert tokens.shape == (1, 77)


@pytest.mark.parametrize("context", [8, 77, 248])
def test_ordinary_texts_have_the_tokens_that_open_clip_gives_them(context):
    ours, theirs = CLIPTokenizer(context), SimpleTokenizer(context_length=context)
    texts = [*sentences(300), "", " ", word(WORD), "<start_of_text> a <end_of_text>"]
    assert max(map(len, texts)) > 2 * WORD
    for text in texts:
        assert ours([text]).tolist() == theirs([text]).tolist(), text[:80]


def test_short_text_comes_back_as_it_is_and_a_long_one_keeps_its_beginning():
    for text in ("", "a  cat\n", word(WORD), "!" * WORD):
        assert cut_text(text, 77) is text
    assert cut_text("a cat " + word(1000) + " b", 77) == "a cat " + word(1000)[:WORD] + " b"
    assert len(cut_text("a cat " * 100_000, 77)) <= 77 * 32
    assert cut_text("a" + " " * 100_000 + "b " * 5000, 77).startswith("a b b")
