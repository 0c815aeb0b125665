"""CLIPs as people have them: transformers' CLIP, PickScore and SigLIP, and OpenAI's TorchScript, with the numbers of their own libraries."""

import json
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from latent_clip.host.scorers.tokenizers import SigLIPTokenizer, tokenizer_of
from latent_clip.methods.rewards import log_odds_reward
from latent_clip.models import pixel_clip
from latent_clip.models.checkpoint import CheckpointError, original_to_custom_text
from latent_clip.models.latent_spaces import LATENT_SPACES
from latent_clip.models.pixel_clip import read_pixel_clip
from latent_clip.models.pixel_layouts import transformers_to_open_clip
from latent_clip.models.torchscript import is_torchscript, read_torchscript
from latent_clip.tests.checkpoints import words
from latent_clip.tests.unit.test_pixel_clip import TINY

transformers = pytest.importorskip("transformers")
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3}


# A CLIP of transformers, which PickScore is too


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def clip_of_transformers(request):
    torch.manual_seed(0)
    vision, text = {**VISION, "hidden_act": request.param}, {**TEXT, "hidden_act": request.param, "eos_token_id": 49407}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    return transformers.CLIPModel(config).train(False), {
        "model_type": "clip",
        "projection_dim": 24,
        "vision_config": vision,
        "text_config": text,
    }


@torch.no_grad()
def test_clip_of_transformers_has_its_features(clip_of_transformers, tmp_path):
    model, config = clip_of_transformers
    state = {**model.state_dict(), "text_model.embeddings.position_ids": torch.arange(77)[None]}  # as older files have
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "pick.safetensors")
    (tmp_path / "pick.json").write_text(json.dumps(config))
    clip = read_pixel_clip(tmp_path / "pick.safetensors")
    pixels, ids = torch.rand(2, 3, 32, 32), SimpleTokenizer()(["a cat", "two dogs"])
    outputs = model(pixel_values=pixels, input_ids=ids)
    torch.testing.assert_close(
        F.normalize(clip.model.encode_image(pixels), dim=-1), outputs.image_embeds, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        F.normalize(clip.model.encode_text(ids), dim=-1), outputs.text_embeds, atol=1e-5, rtol=1e-4
    )
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.exp())) and clip.logit_bias is None


def test_published_clips_of_transformers_are_found_by_their_shapes():
    """PickScore_v1 is a ViT-H-14; its heads are 80 wide, which shapes cannot tell."""
    with torch.device("meta"):
        config = transformers.CLIPConfig(
            projection_dim=1024,
            vision_config={
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
            text_config={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
        )
        state = transformers.CLIPModel(config).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in transformers_to_open_clip(state).items()}
    name, found, _ = pixel_clip._find_config(Path("pick.safetensors"), {}, shapes)
    assert name == "ViT-H-14" and found["vision_cfg"]["head_width"] == 80


def test_part_that_is_missing_is_named(clip_of_transformers, tmp_path):
    model, config = clip_of_transformers
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    del state["text_model.encoder.layers.1.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "pick.safetensors")
    (tmp_path / "pick.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"1 missing.*in_proj_weight"):
        read_pixel_clip(tmp_path / "pick.safetensors")


# SigLIP


@torch.no_grad()
def test_siglip_of_transformers_has_its_features():
    """Against a timm tower and a text tower as open_clip builds them, as small as no published one is."""
    from open_clip.transformer import TextTransformer
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 100, "max_position_embeddings": 16, "projection_size": 64, "hidden_act": "gelu"}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(vision_config={**VISION, "hidden_act": "gelu"}, text_config=text)
    ).train(False)
    for tensor in model.parameters():
        tensor.add_(0.02 * torch.randn_like(tensor))  # biases and norms that are no longer 0 and 1
    converted = transformers_to_open_clip(model.state_dict())
    image_tower = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_ratio=1.5, class_token=False, global_pool="map",
        num_classes=0, norm_layer=lambda dim, **_: torch.nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    text_tower = TextTransformer(
        context_length=16, vocab_size=100, width=48, heads=3, layers=2, mlp_ratio=64 / 48, output_dim=64, no_causal_mask=True,
        proj_bias=True, pool_type="last", norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    for prefix, tower in (("visual.trunk.", image_tower), ("text.", text_tower)):
        part = {key.removeprefix(prefix): tensor for key, tensor in converted.items() if key.startswith(prefix)}
        tower.load_state_dict(part, strict=True)
        tower.train(False)
    assert {key for key in converted if not key.startswith(("visual.trunk.", "text."))} == {"logit_scale", "logit_bias"}
    pixels, ids = torch.rand(2, 3, 32, 32), torch.randint(0, 100, (2, 16))
    outputs = model(pixel_values=pixels, input_ids=ids)
    image, words = F.normalize(image_tower(pixels), dim=-1), F.normalize(text_tower(ids), dim=-1)
    torch.testing.assert_close(image, outputs.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(words, outputs.text_embeds, atol=1e-5, rtol=1e-4)

    class Encoder:
        space, reads_clips = LATENT_SPACES["sdxl"], False

        def __call__(self, raw_latents, noise_level=None):
            return image

    scale, bias = float(model.logit_scale.exp()), float(model.logit_bias)
    reward = log_odds_reward(Encoder(), "log-odds", words[0], scale, bias)
    torch.testing.assert_close(reward(torch.zeros(2, 4, 8, 8)), outputs.logits_per_image[:, 0], atol=1e-4, rtol=1e-4)


def test_published_siglips_of_transformers_are_found_by_their_shapes():
    with torch.device("meta"):
        state = transformers.SiglipModel(transformers.SiglipConfig()).state_dict()  # google/siglip-base-patch16-224
    shapes = {key: tuple(tensor.shape) for key, tensor in transformers_to_open_clip(state).items()}
    shapes.pop("logit_bias")
    shapes["logit_scale"] = ()
    assert pixel_clip._find_config(Path("siglip.safetensors"), {}, shapes)[0] == "ViT-B-16-SigLIP"


@pytest.mark.parametrize(("vocabulary", "end", "fill"), [(32000, "</s>", 1), (250000, "</s>", 1), (256000, "<eos>", 0)])
def test_siglips_words(tmp_path, vocabulary, end, fill):
    """Without case and punctuation, an end, and filled up as open_clip fills them up."""
    tokenizer = SigLIPTokenizer(words(tmp_path / "x.tokenizer.json", end), 6, vocabulary)
    ids = tokenizer(["A red, red cat!", "a a a a a a a a", ""])
    assert ids.tolist() == [[3, 4, 4, 5, 1, fill], [3, 3, 3, 3, 3, 1], [1, *[fill] * 5]]
    assert tokenizer.encode("A red cat") == [3, 4, 5] and tokenizer.ends == 1


def test_siglip_without_its_words_is_told_which_file_to_get(tmp_path):
    config = open_clip.get_model_config("ViT-B-16-SigLIP")["text_cfg"]
    path = tmp_path / "siglip.safetensors"
    with pytest.raises(
        ValueError, match=r"32000 tokens of its own.*timm/ViT-B-16-SigLIP on Hugging Face.*as siglip.tokenizer.json"
    ):
        tokenizer_of(path, config, 32000)
    words(tmp_path / "siglip.tokenizer.json")
    assert tokenizer_of(path, config, 32000).context_length == 64
    (tmp_path / "siglip.tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer can be read from it.*Download tokenizer.json"):
        tokenizer_of(path, config, 32000)
    words(tmp_path / "siglip.tokenizer.json", "<end>")
    with pytest.raises(ValueError, match="it has 6 tokens, expected those of SigLIP, at most 32000"):
        tokenizer_of(path, config, 32000)
    assert tokenizer_of(path, {}, 49408) is None
    with pytest.raises(ValueError, match="its words are those of bert-base-uncased, expected CLIP's or SigLIP's"):
        tokenizer_of(path, open_clip.get_model_config("ViT-L-14-CLIPA")["text_cfg"], 32000)


def test_sigmoid_is_known_by_its_bias(tmp_path):
    torch.manual_seed(0)
    state = CLIP(**TINY).state_dict()
    for bias, expected in ((-12.5, -12.5), (0.0, None)):
        save_file(
            {**state, "logit_bias": torch.tensor([bias])}, tmp_path / "clip.safetensors", {"config": json.dumps(TINY)}
        )
        assert read_pixel_clip(tmp_path / "clip.safetensors").logit_bias == expected


# OpenAI's TorchScript


class Published(torch.nn.Module):
    """As OpenAI's file: a CLIP in half precision with three numbers beside its weights."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.visual, self.transformer = clip.visual, clip.transformer
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.logit_scale = clip.logit_scale
        self.register_buffer("input_resolution", torch.tensor(32))
        self.context_length, self.vocab_size = 77, 49408

    def forward(self, image):
        return self.visual(image)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[CLIP, Path]:
    torch.manual_seed(0)
    clip = CLIP(**TINY, quick_gelu=True).train(False).requires_grad_(False)
    clip.logit_scale.data[...] = 4.6052
    path = tmp_path_factory.mktemp("openai") / "ViT-tiny.pt"
    torch.jit.trace(Published(clip).half().float(), torch.rand(1, 3, 32, 32)).save(str(path))
    return clip, path


@torch.no_grad()
def test_openais_file_has_the_features_of_its_program(published, monkeypatch):
    clip, path = published
    path.with_suffix(".json").write_text(json.dumps(TINY))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the program was opened"))
    read = read_pixel_clip(path)
    pixels, ids = torch.rand(2, 3, 32, 32), SimpleTokenizer()(["a cat", "two dogs"])
    torch.testing.assert_close(read.model.encode_image(pixels), clip.encode_image(pixels), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(read.model.encode_text(ids), clip.encode_text(ids), atol=1e-3, rtol=1e-3)
    assert read.config["quick_gelu"] is True and read.logit_scale == pytest.approx(100, rel=1e-3)


def test_tensors_of_an_archive_are_those_that_torch_reads(published):
    _, path = published
    assert is_torchscript(path)
    found, expected = read_torchscript(path), torch.jit.load(str(path)).state_dict()
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def rewritten(path: Path, target: Path, change) -> Path:
    """The archive with its data.pkl changed."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, change(content) if name.endswith("/data.pkl") else content)
    return target


def test_archive_that_asks_for_more_runs_nothing(published, tmp_path):
    """Its instructions may name any function: it is never called, and what would need it is not read."""
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    _, path = published
    evil = rewritten(path, tmp_path / "evil.pt", lambda _: pickle.dumps({"visual": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt: expected a CLIP"):
        read_pixel_clip(evil)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "change", [lambda c: c[: len(c) // 2], lambda c: b"\x80\x04\x8f.", lambda c: b"", lambda c: b"\x80\x02]."]
)
def test_damaged_archive_is_said_to_be_one(published, tmp_path, change):
    _, path = published
    with pytest.raises(
        CheckpointError, match=r"broken.pt: (a TorchScript program, and its archive cannot be read|expected a CLIP)"
    ):
        read_pixel_clip(rewritten(path, tmp_path / "broken.pt", change))


def test_tensor_that_is_cut_short_is_not_made_up(published, tmp_path):
    _, path = published
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "short.pt", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, content[:4] if "/data/" in name else content)
    with pytest.raises(CheckpointError, match="cut short"):
        read_pixel_clip(tmp_path / "short.pt")
    assert not is_torchscript(Path(__file__))


def test_other_layouts_stay_what_they_are():
    state = original_to_custom_text(CLIP(**TINY).state_dict())
    assert transformers_to_open_clip(state).keys() == state.keys()
