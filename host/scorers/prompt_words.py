"""Words of a prompt as the host's own text encoders read them, without the syntax around them."""

import re

from comfy.sd1_clip import escape_important, token_weights, unescape_important

NETWORK = re.compile(r"<(?:lora|lyco|hypernet|lbw)[^<>]*>", re.IGNORECASE)  # of packs and other programs
CHUNK = re.compile(r"\bBREAK\b")
EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:[^\s<\[]+")  # as SDTokenizer splits them
SQUARE = re.compile(
    r"(?<!\\)\[([^\[\]]*?)(?::[\d.]+)?(?<!\\)\]"
)  # less weight, or a switch during sampling, in other programs

LONGEST = 20_000  # characters of a prompt that are read; the host's parser takes seconds over more brackets
DEEPEST = 100  # square brackets in each other that are taken off


def words_of(prompt: str) -> tuple[str, list[str]]:
    """The words of a prompt, and what was left out.

    Weights `(x:1.3)` and `[x]` are taken off and escaped brackets `\\(` unescaped, with the host's own parser; embeddings,
    `<lora:…>` and BREAK go. A text without any of these comes back unchanged, to the bit.

    Returns:
        (words, kinds of syntax that were left out, such as "weights").

    Raises:
        ValueError: brackets are nested deeper than the host's parser can follow.
    """
    left_out = [f"text after {LONGEST:,} characters"] if len(prompt) > LONGEST else []

    def drop(pattern: re.Pattern, replacement: str, text: str, kind: str) -> str:
        text, count = pattern.subn(replacement, text)
        if count and kind not in left_out:
            left_out.append(kind)
        return text

    text = drop(NETWORK, " ", prompt[:LONGEST], "LoRA tags")
    text = drop(CHUNK, " ", text, "BREAK")
    for _ in range(DEEPEST):  # from the innermost brackets outwards
        inner, text = text, drop(SQUARE, r"\1", text, "weights")
        if inner == text:
            break
    text = text.replace(r"\[", "[").replace(r"\]", "]")
    escaped = escape_important(text)
    try:
        segments = [segment for segment, _ in token_weights(escaped, 1.0)]
    except RecursionError as error:
        raise ValueError("Got a prompt with hundreds of brackets in each other, expected fewer. Remove some.") from error
    if segments not in ([], [escaped]) and "weights" not in left_out:
        left_out.append("weights")
    words = [drop(EMBEDDING, " ", unescape_important(segment), "embeddings") for segment in segments]
    return " ".join(words), left_out
