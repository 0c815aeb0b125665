"""The shipped weights: complete, small, and good enough that a broken file shows in seconds."""

import json

import pytest
import torch
from safetensors import safe_open

from latent_clip.demo.captions import THINGS, Caption
from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.models import shapes_world as weights

NAMES = ("vae", "latent_clip", "pixel_clip", "generator", weights.NOISE_LEVEL)


def test_files_fit_in_sixteen_megabytes():
    sizes = {name: (weights.FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES}
    assert sum(sizes.values()) <= 16 * 2**20, sizes


@pytest.mark.parametrize("name", NAMES)
def test_file_holds_finite_half_precision(name):
    with safe_open(weights.FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, tensor in tensors.items():
        assert tensor.dtype == (torch.int32 if key.endswith(weights.IDS) else torch.float16), key
        assert tensor.isfinite().all(), key


def test_vocabulary_survives_compaction():
    table, ids = torch.zeros(weights.VOCABULARY, 4), torch.tensor([7, 320, 49406, 49407])
    table[ids] = torch.randn(4, 4)
    compact = weights.compact_vocabulary({"embedding": table, "other": torch.ones(2)}, ids)
    assert sum(tensor.numel() for tensor in compact.values()) < 30
    full = weights.expand_vocabulary(compact)
    assert full.keys() == {"embedding", "other"}
    assert torch.equal(full["embedding"], table)


def test_missing_file_is_explained():
    with pytest.raises(ValueError, match=r"dev train"):
        weights.load_weights("nowhere")


def test_pixel_clip_names_shapes():
    clip = weights.load_pixel_clip()
    scenes = sample_corpus("weights test", 120, single=1.0)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (clip.mean, clip.std))
    assert accuracy(clip.model, (render(scenes) - mean) / std, scenes) >= 0.9


def accuracy(model, images, scenes) -> float:
    from latent_clip.demo.corpus import tokenize

    with torch.no_grad():
        image = model.encode_image(images, normalize=True)
        text = model.encode_text(tokenize([str(Caption((thing,))) for thing in THINGS]), normalize=True)
    best = (image @ text.T).argmax(-1).tolist()
    return sum(THINGS[i] == scene.things[0] for i, scene in zip(best, scenes)) / len(scenes)


def test_latent_clip_reads_latents_of_its_grid():
    model, config = weights.load_latent_clip()
    assert config["vision_cfg"]["latent_n_channels"] == 4
    features = model.encode_image(7.7 * torch.randn(2, 4, 8, 8))
    assert features.shape == (2, config["embed_dim"])
    assert not features.requires_grad


def test_results_in_the_card_are_those_of_the_json():
    """The README's table is written by studies.world; a rate typed by hand would differ from the stored results."""
    card = (weights.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    results = json.loads((weights.FOLDER.parent.parent / "studies/world/results.json").read_text(encoding="utf-8"))
    rates = [rate for column in results["generator"].values() for rate in column.values()]
    assert len(rates) >= 10
    for rate in rates:
        assert f"{100 * rate['rate']:.1f} % (" in card
