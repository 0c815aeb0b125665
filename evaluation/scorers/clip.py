"""Similarity of picture and prompt by a CLIP or SigLIP on pixels, from a local file: never the official score of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...methods.features import encode_pixels
from ...models import shapes_world
from ...models.pixel_clip import PixelCLIP, read_pixel_clip
from ...models.texts import cut_text
from .. import EvaluationError
from ..benchmarks import Prompt
from ..records import sha256_of
from . import PictureScorer, ScorerInfo

NOTE = "cosine of picture and prompt; not the official scorer of any benchmark, and of little use for counts and positions"


def load(words: str) -> PictureScorer:
    """Load a scorer: "FILE" (a CLIP in open_clip's layout), "ARCHITECTURE:FILE" (any of open_clip's, SigLIP too) or "shapes-world".

    Raises:
        EvaluationError: no such file or architecture.
    """
    if words == "shapes-world":
        return of_pixel_clip(shapes_world.load_pixel_clip(), "shapes-world")
    architecture, _, file = words.rpartition(":") if not Path(words).is_file() else ("", "", words)
    path = Path(file)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file, expected weights of a CLIP: clip:FILE or clip:ARCHITECTURE:FILE.")
    label = f"{path.stem}@{sha256_of(path)[:12]}"
    return _of_architecture(architecture, path, label) if architecture else of_pixel_clip(read_pixel_clip(path), label)


def of_pixel_clip(clip: PixelCLIP, label: str) -> PictureScorer:
    """Make a scorer of a loaded CLIP, with open_clip's preprocessing."""
    from ...models.tokenizer import CLIPTokenizer, encode_texts

    tokenizer = CLIPTokenizer(clip.config["text_cfg"]["context_length"])
    mean, std = torch.tensor(clip.mean), torch.tensor(clip.std)
    texts: dict[str, Tensor] = {}

    def score(picture: Tensor, prompt: Prompt) -> float:
        with torch.inference_mode():
            if prompt.text not in texts:
                (texts[prompt.text],) = encode_texts(clip.model.text, tokenizer, [prompt.text])
            features = encode_pixels(clip.model.visual, picture[None], clip.image_size, mean, std)
            return float((features * texts[prompt.text]).sum())

    return PictureScorer(ScorerInfo(f"clip:{label}", NOTE), score)


def labeller(labels: Sequence[str], words: str) -> Callable[[Tensor], str]:
    """Make a function that labels a picture with the most similar of `labels`.

    Args:
        words: CLIP, as for `load`.
    """
    scorer = load(words)
    texts = [Prompt(0, label) for label in labels]
    return lambda picture: max(texts, key=lambda text: scorer.score(picture, text)).text


def _of_architecture(architecture: str, path: Path, label: str) -> PictureScorer:
    import open_clip
    from torchvision.transforms.functional import to_pil_image

    if architecture not in open_clip.list_models():
        raise EvaluationError(f"Got the architecture {architecture!r}, expected one of open_clip.list_models(), such as ViT-B-32.")
    model, prepare = open_clip.create_model_from_pretrained(architecture, pretrained=str(path), return_transform=True)
    tokenizer = open_clip.get_tokenizer(architecture)
    model.train(False)

    def score(picture: Tensor, prompt: Prompt) -> float:
        with torch.inference_mode():
            image = model.encode_image(prepare(to_pil_image(picture))[None], normalize=True)
            return float((image * model.encode_text(tokenizer([cut_text(prompt.text, tokenizer.context_length)]), normalize=True)).sum())

    return PictureScorer(ScorerInfo(f"clip:{architecture}:{label}", NOTE), score)
