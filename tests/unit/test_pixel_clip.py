"""CLIPs that read pixels: found among open_clip's architectures, and the same numbers as open_clip itself."""

import json
from pathlib import Path

import numpy
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from latent_clip.methods.features import encode_pixel_windows, encode_pixels
from latent_clip.models import pixel_clip
from latent_clip.models.checkpoint import CheckpointError, original_to_custom_text
from latent_clip.models.config import MAX_LAYERS
from latent_clip.models.pixel_clip import Preparation, read_pixel_clip

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    """open_clip's own model, whose state_dict has the layout of published weights: text keys at the top."""
    torch.manual_seed(0)
    return CLIP(**TINY).train(False).requires_grad_(False)


def with_config(path: Path, config=TINY) -> Path:
    path.with_suffix(".json").write_text(json.dumps({"model_cfg": config}))
    return path


# Every way that weights come


def bare(state_dict, path):
    torch.save(state_dict, with_config(path))


def like_hps(state_dict, path):
    torch.save({"epoch": 1, "state_dict": state_dict}, with_config(path))


def like_ddp(state_dict, path):
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state_dict.items()}}, with_config(path))


def with_bias(state_dict, path):
    save_file({**state_dict, "logit_bias": torch.zeros(1)}, with_config(path))


def with_metadata(state_dict, path):
    save_file(state_dict, path, {"config": json.dumps(TINY)})


def custom_text(state_dict, path):
    save_file(original_to_custom_text(state_dict), with_config(path))


@pytest.mark.parametrize("write", [bare, like_hps, like_ddp, with_bias, with_metadata, custom_text])
@torch.no_grad()
def test_every_layout_gives_open_clips_features(tiny, tmp_path, write):
    write(tiny.state_dict(), tmp_path / "clip.weights")
    clip = read_pixel_clip(tmp_path / "clip.weights")
    pixels, ids = torch.rand(2, 3, 32, 32), SimpleTokenizer()(["a cat", "two dogs"])
    torch.testing.assert_close(clip.model.encode_image(pixels), tiny.encode_image(pixels))
    torch.testing.assert_close(clip.model.encode_text(ids), tiny.encode_text(ids))
    assert (clip.name, clip.image_size) == ("clip", 32)
    assert not any(weight.requires_grad for weight in clip.model.parameters())


@torch.no_grad()
def test_quick_gelu_is_asked_for_because_tensors_cannot_tell(tiny, tmp_path):
    bare(tiny.state_dict(), tmp_path / "clip.pt")
    quick = CLIP(**TINY, quick_gelu=True).train(False)
    quick.load_state_dict(tiny.state_dict())
    pixels = torch.rand(1, 3, 32, 32)
    features = read_pixel_clip(tmp_path / "clip.pt", quick_gelu=True).model.encode_image(pixels)
    torch.testing.assert_close(features, quick.encode_image(pixels))
    assert not torch.allclose(features, tiny.encode_image(pixels))


# The picture goes the way that it goes in open_clip


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 64), (47, 33), (40, 97), (35, 32), (20, 24)], ids="{0[0]}x{0[1]}".format
)
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@torch.no_grad()
def test_pictures_are_prepared_as_open_clip_does(tiny, size, resize, interpolation):
    """Against its transform on PIL pictures, which rounds to 8 bits twice: pixels within half a level on average."""
    generator = torch.Generator().manual_seed(1)
    smooth = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size, mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round() / 255
    picture = Image.fromarray((pixels[0] * 255).round().permute(1, 2, 0).numpy().astype(numpy.uint8))
    config = PreprocessCfg(size=32, resize_mode=resize, interpolation=interpolation)
    prepared = image_transform_v2(config, is_train=False)(picture)[None]
    seen = []

    def tower(x):
        seen.append(x)
        return tiny.encode_image(x)

    mean, std = torch.tensor(pixel_clip.OPENAI_MEAN), torch.tensor(pixel_clip.OPENAI_STD)
    features = encode_pixels(tower, pixels, 32, mean, std, resize=resize, interpolation=interpolation)
    assert ((seen[0] - prepared).abs().mean(dim=(0, 2, 3)) * std).max() < 0.5 / 255
    assert (features * F.normalize(tiny.encode_image(prepared), dim=-1)).sum() > 1 - 1e-3


@pytest.mark.parametrize(("size", "windows"), [((64, 64), 1), ((32, 96), 4), ((97, 40), 3)], ids=str)
@torch.no_grad()
def test_look_shows_the_sides_that_the_centre_crop_leaves_out(tiny, size, windows):
    pixels, ones = torch.rand(2, 3, *size), torch.ones(3)
    look = encode_pixel_windows(tiny.encode_image, pixels, 32, 0 * ones, ones)
    torch.testing.assert_close(look.average, encode_pixels(tiny.encode_image, pixels, 32, 0 * ones, ones))
    assert look.windows.shape[:2] == (2, windows)
    short = min(size)
    ends = [pixels[..., :short, :short], pixels[..., -short:, -short:]]
    for window, end in zip((0, -1), ends):
        torch.testing.assert_close(look.windows[:, window], encode_pixels(tiny.encode_image, end, 32, 0 * ones, ones))


def test_gradients_reach_the_pixels(tiny):
    pixels = torch.rand(1, 3, 40, 64).requires_grad_()
    encode_pixels(tiny.encode_image, pixels, 32, torch.zeros(3), torch.ones(3)).sum().backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().sum() > 0


def test_pixels_beside_white_keep_their_gradient():
    """Bicubic weights overshoot beside an edge; a clamp there would say that nothing can be changed."""
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., 32:] = 1
    pixels.requires_grad_()
    seen = []

    def tower(x):
        seen.append(x)
        return torch.stack([x[0, 0, 16, 17], x.new_ones(())])[None]

    features = encode_pixels(tower, pixels, 32, torch.zeros(3), torch.ones(3))
    assert seen[0][0, 0, 16, 17] > 1.01
    features[0, 0].backward()
    assert pixels.grad.abs().sum() > 0.1


# Architectures without a config are looked up by their shapes


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = CLIP(**open_clip.get_model_config(name))
    return {key: tuple(tensor.shape) for key, tensor in original_to_custom_text(model.state_dict()).items()}


def shapes_of_timm(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = pixel_clip._build(open_clip.get_model_config(name))
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-H-14", "RN50", "ViT-B-16-SigLIP", "MobileCLIP-B", "PE-Core-B-16", "EVA02-B-16"]
)
def test_published_architectures_are_found_by_their_shapes(name):
    config = open_clip.get_model_config(name)
    shapes = shapes_of_timm(name) if config.get("custom_text") else shapes_of(name)
    found, config_found, _ = pixel_clip._find_config(Path("weights.bin"), {}, shapes)
    assert found == name
    assert config_found == config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32", Preparation()),
        ("ViT-B-16-SigLIP", Preparation((0.5,) * 3, (0.5,) * 3, "squash")),
        ("PE-Core-B-16", Preparation((0.5,) * 3, (0.5,) * 3, "squash", "bilinear")),
        ("MobileCLIP2-B", Preparation((0.0,) * 3, (1.0,) * 3, interpolation="bilinear")),
    ],
)
def test_pictures_are_prepared_as_most_weights_of_the_architecture_want_them(name, expected):
    assert pixel_clip._usual_preparation(name) == expected


def test_file_says_how_its_pictures_are_prepared(tiny, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / "clip.pt")
    preparation = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "resize_mode": "squash",
        "interpolation": "bilinear",
    }
    (tmp_path / "clip.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preparation}))
    assert read_pixel_clip(tmp_path / "clip.pt").preparation == Preparation(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash", "bilinear"
    )


def test_twins_that_compute_something_else_are_not_guessed():
    """A convolutional tower has the same shapes for every size of its pictures."""
    with pytest.raises(
        CheckpointError, match=r"those of convnext_base_w and convnext_base_w_320, which differ.*as weights.json"
    ):
        pixel_clip._find_config(Path("weights.bin"), {}, shapes_of_timm("convnext_base_w"))


def test_near_misses_are_not_found():
    shapes = {**shapes_of("ViT-B-32"), "visual.positional_embedding": (51, 768)}
    with pytest.raises(
        CheckpointError, match=r"no architecture of open_clip has its shapes.*beside it as weights.json"
    ):
        pixel_clip._find_config(Path("weights.bin"), {}, shapes)


# What is refused


def changed(vision=None, text=None, **top) -> dict:
    return {
        **TINY,
        "vision_cfg": TINY["vision_cfg"] | (vision or {}),
        "text_cfg": TINY["text_cfg"] | (text or {}),
        **top,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "config cannot be read"),
        ("words", "config cannot be read"),
        ({"model_cfg": 3}, "config cannot be read"),
        ({}, "asks for no tower, or for one from the network, expected open_clip's own"),
        (changed(text={"hf_model_name": "roberta-base"}), "asks for no tower, or for one from the network"),
        (changed({"timm_model_name": "hf-hub:someone/vit"}), "asks for no tower, or for one from the network"),
        (
            changed({"timm_model_name": "vit", "timm_model_pretrained": True}),
            "asks for no tower, or for one from the network",
        ),
        (changed({"timm_model_name": "no_such_model"}), "no CLIP can be built from its config"),
        ({**TINY, "model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "config cannot be read.*activations"),
        (
            {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": "longest"}},
            "resized by 'longest'.*expected shortest or squash",
        ),
        ({"model_cfg": TINY, "preprocess_cfg": {"std": [1, 0, 1]}}, "not those of three colours"),
        (changed({"layers": [500, 600]}), "layers, expected a ViT's or a ResNet's number"),
        (changed({"layers": MAX_LAYERS + 1}), f"asks for {MAX_LAYERS + 1} layers"),
        (changed({"layers": 3}), r"12 missing \(first: visual.transformer.resblocks.2"),
        (changed({"nonsense": 1}), "no CLIP can be built from its config"),
        (changed(embed_dim="24"), "no CLIP can be built from its config"),
    ],
)
def test_wrong_configs_are_named(tiny, tmp_path, config, message):
    torch.save(tiny.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "clip.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_pixel_clip(tmp_path / "clip.pt")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"visual.conv1.weight": torch.zeros(64, 4, 8, 8)}, "reads 4 channels, so it is a Latent-CLIP. Use 'Load Latent-CLIP'"),
        ({"visual.conv1.weight": torch.zeros(64)}, "expected a CLIP in open_clip's layout or that of transformers"),
        ({"token_embedding.weight": torch.zeros(64)}, "expected a CLIP in open_clip's layout or that of transformers"),
        ({"visual.proj": torch.zeros(64, 24) * float("nan")}, "visual.proj holds NaN"),
        ({"visual.proj": torch.zeros(64, 24).int()}, "visual.proj is torch.int32"),
        ({"visual.more": torch.zeros(1)}, r"1 unexpected \(first: visual.more\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_tensors_are_named(tiny, tmp_path, tensors, message):
    torch.save({**tiny.state_dict(), **tensors}, with_config(tmp_path / "clip.pt"))
    with pytest.raises(CheckpointError, match=message):
        read_pixel_clip(tmp_path / "clip.pt")


def test_other_layouts_are_told_what_is_expected(tmp_path):
    save_file(
        {"vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 2, 2)}, tmp_path / "clip.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"expected a CLIP with both towers.*the layout of transformers"):
        read_pixel_clip(tmp_path / "clip.safetensors")


def test_tiny_custom_text_clip_is_the_same_class(tiny, tmp_path):
    bare(tiny.state_dict(), tmp_path / "clip.pt")
    assert isinstance(read_pixel_clip(tmp_path / "clip.pt").model, CustomTextCLIP)
