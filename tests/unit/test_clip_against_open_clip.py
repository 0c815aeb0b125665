"""Our CLIP is open_clip's: same names, same features, same gradients, same start of training, same tokens."""

import json

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer

from latent_clip_pack.models import pixel_clip
from latent_clip_pack.models.clip import CLIP
from latent_clip_pack.models.tokenizer import Tokenizer, clean

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16, "mlp_ratio": 3.3},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3, "mlp_ratio": 2.0},
}
TEXTS = [
    "a photo of a cat",
    "A Red CIRCLE, left of   a blue square!",
    "it's the dog's; don't they've I'll we're I'd 'em",
    "",
    "   \n\t ",
    "!!! ??? ... --- ((masterpiece:1.2)), <lora:x:0.8>",
    "12345 and 3.14159 ½ ² Ⅷ",
    "“a dog’s ‘life’„ ﬁne ﬂower ＡＢＣ　１２３",
    "naïve café résumé Über straße ŒUVRE İstanbul",
    "cafe\u0301 de\u0301ja\u0300",
    "&lt;b&gt; &amp;amp; fish &amp; chips &quot;x&quot;",
    "一只红色的猫 собака と犬 🐈‍⬛👩🏽‍🚀 ελληνικά עברית",
    "<start_of_text> a <end_of_text> b <END_OF_TEXT>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 200,
    "\u00a0non\u00a0breaking\u2003spaces\u200bzero\ufeffwidth",
    "snake_case kebab-case path/to/file.png http://x.y/z?a=b#c",
]


def pair(quick_gelu: bool = False, seed: int = 0) -> tuple[CLIP, CustomTextCLIP]:
    """Ours and open_clip's with the same weights."""
    torch.manual_seed(seed)
    theirs = CustomTextCLIP(**CONFIG, quick_gelu=quick_gelu).train(False)
    ours = CLIP(**CONFIG, quick_gelu=quick_gelu).train(False)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_the_same_numbers(quick_gelu, dtype):
    ours, theirs = (model.to(dtype) for model in pair(quick_gelu))
    images, ids = torch.randn(3, 3, 32, 32, dtype=dtype), Tokenizer(20)(TEXTS)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=0, atol=0)
            torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=0)


def test_gradients_are_the_same_numbers():
    grads = []
    for model in pair():
        images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).requires_grad_()
        (gradient,) = torch.autograd.grad(model.encode_image(images).square().sum(), images)
        grads.append(gradient)
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


def test_training_starts_from_the_same_distribution():
    torch.manual_seed(1)
    wide = {
        **CONFIG,
        "text_cfg": CONFIG["text_cfg"] | {"width": 128},
        "vision_cfg": CONFIG["vision_cfg"] | {"width": 128},
    }
    ours, theirs = CLIP(**wide).state_dict(), CustomTextCLIP(**wide).state_dict()
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape
        if tensor.numel() > 1000:
            assert ours[key].std().item() == pytest.approx(tensor.std().item(), rel=0.1), key
        elif tensor.numel() == 1 or not tensor.std() > 0:
            torch.testing.assert_close(ours[key], tensor)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_the_published_architectures_have_the_same_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = (kind(**open_clip.get_model_config(name)) for kind in (CLIP, CustomTextCLIP))
    expected = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()} == expected


def test_the_listed_architectures_are_open_clips():
    for name, config in pixel_clip.known_configs().items():
        assert config == open_clip.get_model_config(name)
    assert {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"} <= set(
        pixel_clip.known_configs()
    )


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: json.dumps(text[:20]))
@pytest.mark.parametrize("length", [8, 77])
def test_tokens_are_the_same(text, length):
    assert torch.equal(Tokenizer(length)([text]), SimpleTokenizer(context_length=length)([text]))


def test_every_word_of_the_vocabulary_has_the_same_tokens():
    words = [token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.isascii()][::37]
    theirs = SimpleTokenizer(context_length=16)(words)
    assert torch.equal(Tokenizer(16)(words), theirs)


def test_mended_encodings_are_the_one_thing_left_out():
    """open_clip runs ftfy, which also guesses at text that was decoded wrongly; a prompt is not."""
    assert clean("schÃ¶n") == "schã¶n"
