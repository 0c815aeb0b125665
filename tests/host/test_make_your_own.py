"""From a folder of pictures to a judge in the real host: latent-clip embed, train, and Load Latent-CLIP."""

import importlib
import logging
import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("webdataset")

from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.training.shards import read_dataset, read_samples

COUNT = 48


@pytest.fixture(scope="module")
def pack(host_env):
    """Modules of the pack as the host imported it."""
    return lambda name: importlib.import_module(f"{host_env.pack.__name__}.{name}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(render(sample_corpus("test make your own", COUNT))):
        Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy()).save(folder / f"{number:02}.png")
    (folder / "notes.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def shards(pack, pictures, comfy_tree, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("shards")
    assert embed(pack, pictures, folder, comfy_tree, "--teacher", "shapes-world", "--views", "centre,flip") == 0
    return folder


def embed(pack, pictures, folder, comfy_tree, *more):
    return pack("commands").main([
        "embed", str(pictures), str(folder), "--vae", "shapes-world", "--side", "64", "--cpu", "--comfyui", str(comfy_tree), *more,
    ])  # fmt: skip


def test_shards_hold_what_a_latent_wire_carries(pack, pictures, shards):
    samples = {sample.id: sample for sample in read_samples(shards)}
    assert len(samples) == COUNT and read_dataset(shards).space["name"] == "shapes-world"
    assert len(read_dataset(shards).vae["sha256"]) == 64
    with torch.inference_mode():
        vae = pack("host.scorers.shapes_world").load_vae()
        pixels = torch.stack([_pixels(pictures / f"{n:02}.png") for n in range(4)])
        expected = vae.encode(pixels)
    stored = torch.stack([samples[f"{n:02}.png"].latent["latent"][0].float() for n in range(4)])
    torch.testing.assert_close(stored, expected.float(), atol=0.02, rtol=1e-3)
    clip = pack("host.scorers.shapes_world").load_pixel_clip()
    features = torch.stack([samples[f"{n:02}.png"].teacher["features"][0].float() for n in range(4)])
    mean, std = (value.view(3, 1, 1) for value in (clip.mean, clip.std))
    with torch.no_grad():
        own = torch.nn.functional.normalize(clip.image.model((pixels.movedim(-1, 1) - mean) / std), dim=-1)
    torch.testing.assert_close(features, own, atol=2e-3, rtol=0)


def _pixels(path):
    import numpy as np

    return torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)


def test_moments_are_those_of_the_posterior(pack, pictures, comfy_tree, tmp_path):
    assert embed(pack, pictures, tmp_path, comfy_tree, "--moments") == 0
    samples = {sample.id: sample for sample in read_samples(tmp_path)}
    with torch.inference_mode():
        expected = pack("host.scorers.shapes_world").load_vae().encode(_pixels(pictures / "00.png")[None])
    torch.testing.assert_close(samples["00.png"].latent["mean"].float(), expected.float(), atol=0.02, rtol=1e-3)
    assert samples["00.png"].latent["std"].min() > 0


def test_predictions_near_the_end_are_the_latent_and_early_ones_are_not(pack, pictures, comfy_tree, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.glob("0[0-5].png")):
        shutil.copy(path, few)
        (few / path.name).with_suffix(".txt").write_text("a red circle")
    more = ("--predictions", "shapes-world", "--levels", "5", "--cfg", "3", "--teacher", "shapes-world")
    assert embed(pack, few, tmp_path / "out", comfy_tree, *more) == 0
    samples = list(read_samples(tmp_path / "out"))
    assert len(samples) == 6
    x0, levels = (torch.stack([s.predictions[name].float() for s in samples]) for name in ("x0", "levels"))
    latents = torch.stack([s.latent["latent"][0].float() for s in samples])
    assert x0.shape == (6, 5, 4, 8, 8) and (levels.diff(dim=1) < 0).all() and 0 < levels.min() < levels.max() < 1
    error = (x0 - latents[:, None]).square().mean((0, 2, 3, 4)).sqrt() / latents.std()
    assert error[-1] < 0.6 < error[0]


def test_other_options_for_the_same_folder_are_refused(pack, pictures, shards, comfy_tree, capsys):
    assert embed(pack, pictures, shards, comfy_tree, "--teacher", "shapes-world") == 1
    assert "another views" in capsys.readouterr().err
    assert embed(pack, pictures, shards / "new", comfy_tree, "--space", "flux") == 1
    assert "16 channels" in capsys.readouterr().err


def test_what_is_trained_loads_and_judges(pack, host_env, shards, tmp_path, caplog):
    file = host_env.base / "models" / "latent_clip" / "own.safetensors"
    options = pack("training.options").TrainOptions(
        train_data=shards, output=file, logs=tmp_path / "logs", start="shapes-world", patch_size=1, distil=1.0, noise_bands=4, batch_size=16,
        train_num_samples=16 * 6, warmup=2, precision="fp32", workers=0, shuffle=32,
    )  # fmt: skip
    pack("training.run").train(options, lambda text: None)
    loaded = pack("host.scorers.latent_clip").load_latent_clip_file(file.name)
    encoder = loaded.encoder()
    assert encoder.reads_noise_level and loaded.space.name == "shapes-world"
    latents = torch.stack([sample.latent["latent"][0].float() for sample in read_samples(shards)])
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        features = encoder(latents)
        assert features.shape == (COUNT, loaded.config["embed_dim"]) and not caplog.messages
        assert (
            not torch.allclose(encoder(latents, noise_level=0.9), features)
            or loaded.image.model.noise_projection.weight.eq(0).all()
        )
        again = pack("host.scorers.latent_clip").load_latent_clip_file(file.name)
        again.encoder()(latents * 6)
        again.encoder()(latents * 6)
    (warning,) = caplog.messages
    assert "not like them" in warning and "shapes-world" in warning
    prompt = {
        "clip": {"class_type": "LatentCLIPLoader", "inputs": {"file": file.name, "dtype": "fp32"}},
        "reward": {"class_type": "LatentCLIPTextReward",
                   "inputs": {"latent_clip": ["clip", 0], "text": "a red circle", "text_to_avoid": "", "weight": 1.0, "fit": "tiles"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "score": {"class_type": "LatentCLIPScore", "inputs": {"latent": ["latent", 0], "reward": ["reward", 0]}},
    }  # fmt: skip
    executor = host_env.execute(prompt)
    assert executor.success, executor.status_messages


@pytest.mark.parametrize(("channels", "fits"), [(4, True), (16, False)])
def test_of_a_model_a_space_of_its_own_knows_the_channels_only(pack, channels, fits):
    space = pack("models.own_spaces").space_of_dict({"name": "mine-1a2b", "channels": channels, "downscale": 8})
    check, (model, _) = pack("host.scorers.latents").check_model_space, pack("host.scorers.shapes_world").load_generator()
    if fits:
        return check(model, space)
    with pytest.raises(ValueError, match="mine-1a2b"):
        check(model, space)
    return None
