"""The model is the authors' model: same names and shapes, same numbers as the formulas, same traps."""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from latent_clip.methods.features import encode_latents
from latent_clip.models.checkpoint import expected_shapes, original_to_custom_text, read_checkpoint
from latent_clip.models.config import infer_config, latent_grid, name_of_config, published_configs
from latent_clip.models.latent_clip import LatentCLIP, load_latent_clip
from latent_clip.tests import reference_clip
from latent_clip.tests.original_layout import MINUTE, TINY, original_shapes, random_weights, save_original

FACTS = json.loads((Path(__file__).parent.parent / "data" / "original_state_dict.json").read_text())["models"]
RAW_STD = 7.7  # of SDXL's raw latents: 1 / 0.13025
TEXTS = ["a photo of a cat", "red square !; on blue", "", "a " * 100]
BOTH = pytest.mark.parametrize("name", FACTS)

# full width, the second published architecture, cut down to one block
WIDE = copy.deepcopy(published_configs()["Latent-ViT-B-4-512-plus"])
WIDE["vision_cfg"]["layers"] = WIDE["text_cfg"]["layers"] = 1


def variant(vision: dict, text: dict, **top) -> dict:
    """MINUTE with other numbers."""
    return {**MINUTE, **top, "vision_cfg": MINUTE["vision_cfg"] | vision, "text_cfg": MINUTE["text_cfg"] | text}


FAMILY = {
    "tiny": TINY,
    "minute": MINUTE,
    "16 channels": variant({"latent_n_channels": 16}, {}),
    "256 px": variant({"image_size": 256, "patch_size": 8}, {}),
    "wide mlp": variant({"mlp_ratio": 8.0}, {"mlp_ratio": 2.0}),
    "many heads": variant({"width": 192, "layers": 3}, {"width": 128, "heads": 2}, embed_dim=24),
}


@dataclass(frozen=True)
class Loaded:
    """A model loaded from a file, beside the weights that were written to it."""

    weights: dict[str, torch.Tensor]
    model: LatentCLIP
    image_heads: int
    text_heads: int

    @cached_property
    def expected_image(self):
        """Unit-length features of `LATENTS`, by the formulas."""
        return self.reference_image(LATENTS)

    @cached_property
    def expected_text(self):
        """Unit-length features of `TEXTS`, by the formulas."""
        return self.reference_text(tokens(TEXTS))

    def reference_image(self, latents):
        return F.normalize(reference_clip.image_features(self.weights, latents, self.image_heads), dim=-1)

    def reference_text(self, ids):
        return F.normalize(reference_clip.text_features(self.weights, ids, self.text_heads), dim=-1)

    def image(self, latents):
        return F.normalize(self.model.encode_image(latents), dim=-1)

    def text(self, texts):
        return F.normalize(self.model.encode_text(tokens(texts)), dim=-1)


def load(path: Path, config: dict, **options) -> Loaded:
    weights = save_original(path, config, **options)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == config  # nothing but the shapes told it
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    return Loaded(weights, model, config["vision_cfg"]["width"] // 64, config["text_cfg"]["heads"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Loaded:
    return load(tmp_path_factory.mktemp("tiny") / "epoch_34.pt", TINY)


@pytest.fixture(scope="module", params=["tiny", "wide"])
def loaded(request, tiny, tmp_path_factory) -> Loaded:
    if request.param == "tiny":
        return tiny
    return load(tmp_path_factory.mktemp("wide") / "epoch_34.pt", WIDE, optimizer=False)


def tokens(texts: list[str]) -> torch.Tensor:
    return SimpleTokenizer(context_length=77)(texts)


def raw_latents(batch: int = 2, size: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(seed)) * RAW_STD


LATENTS = raw_latents()


# Names and shapes


@BOTH
def test_written_down_layout_is_the_published_one(name):
    shapes = original_shapes(FACTS[name]["config"])
    listed = json.dumps([[key, list(shape)] for key, shape in shapes.items()], separators=(",", ":"))
    assert hashlib.sha256(listed.encode()).hexdigest() == FACTS[name]["sha256_of_keys"]
    assert len(shapes) == FACTS[name]["keys"]
    assert {key: list(shapes[key]) for key in FACTS[name]["examples"]} == FACTS[name]["examples"]


@BOTH
def test_model_has_the_published_names_and_shapes(name):
    published = {
        key: torch.empty(shape, device="meta") for key, shape in original_shapes(FACTS[name]["config"]).items()
    }
    converted = {key: tuple(tensor.shape) for key, tensor in original_to_custom_text(published).items()}
    assert converted == expected_shapes(published_configs()[name])


@BOTH
def test_model_has_the_published_size_and_heads(name):
    with torch.device("meta"):
        model = LatentCLIP(published_configs()[name])
    for tower, module in (("image", model.visual), ("text", model.text)):
        assert sum(weight.numel() for weight in module.parameters()) == FACTS[name]["parameters"][tower]
        assert module.transformer.resblocks[0].attn.num_heads == FACTS[name][f"{tower}_heads"]
    assert latent_grid(published_configs()[name]) == 64


@BOTH
def test_published_architecture_is_read_off_its_shapes(name):
    config = infer_config(expected_shapes(published_configs()[name]))
    assert config == published_configs()[name]
    assert name_of_config(config) == name


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
def test_other_sizes_of_the_family(config):
    """Built from a config, read back off the shapes, and the same numbers as the formulas."""
    weights = random_weights(original_shapes(config, (8, 8)))
    state_dict = original_to_custom_text(weights)
    assert infer_config({key: tuple(tensor.shape) for key, tensor in state_dict.items()}) == config
    model = load_latent_clip(config, state_dict)
    grid, channels = latent_grid(config), config["vision_cfg"]["latent_n_channels"]
    latents = torch.randn(2, channels, grid, grid, generator=torch.Generator().manual_seed(0)) * RAW_STD
    expected = reference_clip.image_features(weights, latents, config["vision_cfg"]["width"] // 64)
    torch.testing.assert_close(model.encode_image(latents).double(), expected, atol=1e-5, rtol=1e-5)


def test_head_width_comes_from_the_config():
    config = variant({"head_width": 16}, {})
    model = load_latent_clip(config, original_to_custom_text(random_weights(original_shapes(config, (8, 8)))))
    assert model.visual.transformer.resblocks[0].attn.num_heads == 4


# Numbers: unit-length features, the model in float32 against the formulas in float64


@torch.no_grad()
def test_image_features_equal_the_formulas(loaded):
    assert (loaded.image(LATENTS) - loaded.expected_image).abs().max() < 1e-6


@torch.no_grad()
def test_text_features_equal_the_formulas(loaded):
    assert (loaded.text(TEXTS) - loaded.expected_text).abs().max() < 5e-6


@torch.no_grad()
def test_logits_equal_the_formulas(loaded):
    logits = loaded.model.logit_scale.exp() * loaded.image(LATENTS) @ loaded.text(TEXTS).T
    expected = 100 * loaded.expected_image @ loaded.expected_text.T
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def test_gradient_on_the_latents_equals_the_formulas(loaded):
    latents, reference = LATENTS[:1].clone().requires_grad_(), LATENTS[:1].double().requires_grad_()
    (loaded.image(latents) @ loaded.expected_text[0].float()).sum().backward()
    (loaded.reference_image(reference) @ loaded.expected_text[0]).sum().backward()
    assert reference.grad.norm() > 0
    assert (latents.grad - reference.grad).norm() < 1e-5 * reference.grad.norm()


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.float16, 1 - 1e-5), (torch.bfloat16, 1 - 1e-3)], ids=str)
@torch.no_grad()
def test_half_precision_keeps_the_direction(tiny, dtype, cosine):
    """Eight bits of mantissa in bfloat16, eleven in float16: cosines within 1e-3 and 1e-5 of exact."""
    half = copy.deepcopy(tiny.model).to(dtype)
    image = F.normalize(half.encode_image(LATENTS[:1].to(dtype)).double(), dim=-1)
    text = F.normalize(half.encode_text(tokens(TEXTS[:2])).double(), dim=-1)
    assert (image * tiny.expected_image[:1]).sum(dim=-1).min() > cosine
    assert (text * tiny.expected_text[:2]).sum(dim=-1).min() > cosine


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def other_eps(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def without_mask(w, name, x, heads, causal, attention=reference_clip.attention):
    return attention(w, name, x, heads, causal=False)


def half_the_heads(w, name, x, heads, causal, attention=reference_clip.attention):
    return attention(w, name, x, heads // 2, causal)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [("gelu", tanh_gelu), ("layer_norm", other_eps), ("attention", without_mask), ("attention", half_the_heads)],
)
@torch.no_grad()
def test_parity_would_notice_a_wrong_formula(tiny, monkeypatch, part, wrong):
    monkeypatch.setattr(reference_clip, part, wrong)
    wrong_features = tiny.reference_text(tokens(TEXTS[:2]))
    assert (tiny.text(TEXTS[:2]) - wrong_features).abs().max() > 10 * 5e-6


# Traps


@torch.no_grad()
def test_scaled_latents_give_other_features(tiny):
    """The tower reads raw latents. Nothing in the numbers says so, hence the space in every Checkpoint."""
    assert (tiny.image(LATENTS) - tiny.image(LATENTS * 0.13025)).norm(dim=-1).min() > 0.01


@torch.no_grad()
def test_id_zero_is_a_word_and_not_only_padding(tiny):
    ids = tokens(["a !; b"])[0]
    assert ids[:6].tolist() == [49406, 320, 0, 282, 321, 49407]  # the text goes on after the zero
    features = tiny.text(["a !; b", "a"])
    assert (features[0] - features[1]).norm() > 0.01


@torch.no_grad()
def test_literal_end_of_text_ends_the_text(tiny):
    features = tiny.text(["a cat", "a cat<end_of_text> and a dog", "a cat and a dog"])
    torch.testing.assert_close(features[0], features[1])
    assert (features[1] - features[2]).norm() > 0.01


@torch.no_grad()
def test_tower_takes_its_grid_only_and_fit_takes_any_size(tiny):
    with pytest.raises(RuntimeError):
        tiny.model.encode_image(raw_latents(size=128))
    features = encode_latents(tiny.model.visual, raw_latents(size=128), 64, "tiles")
    reduced = F.avg_pool2d(raw_latents(size=128), 2)
    torch.testing.assert_close(features, tiny.image(reduced))


def test_loaded_model_is_frozen_and_built_without_copies(tiny, tmp_path):
    save_original(tmp_path / "epoch_34.pt", MINUTE)
    checkpoint = read_checkpoint(tmp_path / "epoch_34.pt")
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(model.state_dict()[key].data_ptr() == tensor.data_ptr() for key, tensor in checkpoint.state_dict.items())
