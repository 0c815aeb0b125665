"""The Latent-CLIP of Shapes World that also reads half-finished images, as a user gets it."""

import importlib

import pytest
import torch

from latent_clip.models import shapes_world as weights
from latent_clip.models.latent_clip import identity

THRESHOLD = 2.3  # of docs/training-study.md


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(start: float, threshold: float) -> dict:
    """A star that Safety Guidance is to keep out, from early on."""
    return {
        "world": node("LatentCLIPShapesWorld", noise_aware=True),
        "prompt": node("CLIPTextEncode", clip=["world", 1], text="a blue star"),
        "empty": node("CLIPTextEncode", clip=["world", 1], text=""),
        "instead": node("CLIPTextEncode", clip=["world", 1], text="a green circle"),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=4),
        "guided": node(
            "LatentCLIPSafetyGuidance", model=["world", 0], latent_clip=["world", 3], concepts="shapes-world-stars", typed="", categories="",
            thresholds=str(threshold), strength=1.0, start=start, end=1.0, every_n=1, momentum=0.0, fit="tiles", instead=["instead", 0],
        ),
        "sample": node(
            "KSampler", model=["guided", 0], seed=5, steps=8, cfg=3.0, sampler_name="euler", scheduler="normal", positive=["prompt", 0],
            negative=["empty", 0], latent_image=["latent", 0], denoise=1.0,
        ),
        "picture": node("VAEDecode", samples=["sample", 0], vae=["world", 2]),
        "dump": node("TestDump", value=["picture", 0], name="noise_aware"),
    }  # fmt: skip


def test_safety_guidance_keeps_stars_out_from_the_second_step_on(comfy):
    from latent_clip.demo.judge import glimpse

    comfy.run(graph(start=0.1, threshold=THRESHOLD))
    pictures = comfy.dump("noise_aware")[0].movedim(-1, 1)
    assert not any(thing.kind == "star" for picture in pictures for thing in glimpse(picture))


@pytest.fixture(scope="module")
def clips(host_env):
    world = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world")
    with torch.inference_mode():
        return world.load_latent_clip(), world.load_latent_clip(noise_aware=True)


def test_finished_images_are_read_to_the_bit_and_by_the_same_judge(clips):
    plain, aware = clips
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 7.7
    assert torch.equal(plain.encoder()(latents), aware.encoder()(latents)) and plain.identity == aware.identity
    assert not plain.encoder().reads_noise_level and aware.encoder().reads_noise_level
    assert not torch.allclose(aware.encoder()(latents, noise_level=0.9), aware.encoder()(latents))


def test_addition_holds_only_what_a_told_level_uses():
    plain, aware = weights.load_latent_clip()[0], weights.load_latent_clip(noise_aware=True)[0]
    added = aware.state_dict().keys() - plain.state_dict().keys()
    assert added and all(name.startswith("visual.noise_") for name in added)
    assert identity(plain) == identity(aware)


def test_recipe_of_the_shipped_weights_makes_the_same_tensors(host_env, tmp_path, monkeypatch):
    """./dev train in miniature: a few trajectories and steps, and every tensor that ships, with its shape."""
    pytest.importorskip("webdataset")
    recipe = importlib.import_module(f"{host_env.pack.__name__}.demo.train_noise_level")
    for name, value in {"FOLDER": tmp_path, "OF": 2, "STEPS": 2, "READER_STEPS": 2}.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe, "TRAJECTORIES", {"a test": recipe.Trajectories(2, 1.0, 4, 0)})
    monkeypatch.setattr(recipe, "ship", lambda path: path)
    made = importlib.import_module(f"{host_env.pack.__name__}.models.checkpoint").read_checkpoint(recipe.train_noise_level())
    shipped = weights.load_latent_clip(noise_aware=True)[0].state_dict()
    assert {key: value.shape for key, value in made.state_dict.items()} == {key: value.shape for key, value in shipped.items()}


def test_recipe_never_learns_held_out_captions(host_env):
    recipe = importlib.import_module(f"{host_env.pack.__name__}.demo.train_noise_level")
    corpus = importlib.import_module(f"{host_env.pack.__name__}.demo.corpus")
    learnt = set(recipe.prompts_to_learn("a test", 300))
    captions = [c for scene in corpus.sample_corpus("a test", 600, single=0.1) for c in scene.captions().get("and", [])]
    held_out = {str(caption) for caption in captions if recipe.is_held_out(caption)}
    assert len(learnt) > 250 and len(held_out) > 50 and not learnt & held_out
