"""Texts of any length, cut to what a text tower can read before its tokenizer sees them.

The time of byte pair encoding grows with the square of a word's length: a caption of one word of 32,000 letters takes 16 s.
"""

import re

WORD = 256  # characters of one word, or of punctuation in a row; it then fills a text tower by itself
TOKEN = 32  # characters of the longest token of CLIP's vocabulary
RAW = 1_000_000  # characters in which white space is looked for; more of it before the first words is no text
LONG_RUN = re.compile(rf"([^\W\d_]{{{WORD}}})[^\W\d_]+|((?:[^\w\s]|_){{{WORD}}})(?:[^\w\s]|_)+")


def cut_text(text: str, context: int) -> str:
    """The part of a text that can matter to a text tower of `context` tokens; a text of up to `WORD` characters comes back as it is.

    Words longer than `WORD` are cut, and so is what comes after `context` times the longest token. White space in a row then counts once.
    """
    if len(text) <= WORD:
        return text
    longest = context * TOKEN
    if len(text) > longest:
        text = " ".join(text[:RAW].split())[:longest]
    return LONG_RUN.sub(lambda run: run[1] or run[2], text)
