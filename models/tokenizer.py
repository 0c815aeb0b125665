"""CLIP's tokenizer for texts of any length."""

from open_clip.tokenizer import SimpleTokenizer

from .texts import cut_text


class CLIPTokenizer(SimpleTokenizer):
    """open_clip's tokenizer, which takes milliseconds for a text of any length (`texts.cut_text`)."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that mark its ends, at least as many as fit where it has so many."""
        return super().encode(cut_text(text, self.context_length))
