"""latent-clip finetune-vae with the host's own VAEs: both files open in the real nodes and give what the run saw."""

import importlib
import json
import shutil

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("webdataset")

from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.demo.training import initialise
from latent_clip.tests.tiny_vaes import tiny_state

COUNT = 24
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks, for which threads only cost where others work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pack(host_env):
    """Modules of the pack as the host imported it."""
    return lambda name: importlib.import_module(f"{host_env.pack.__name__}.{name}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    scenes = sample_corpus("test finetune vae", COUNT, single=1.0)
    for number, (scene, picture) in enumerate(zip(scenes, render(scenes))):
        Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy()).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(str(scene.captions()["single"][0]))
    (folder / "notes.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("nothing")
    return folder


@pytest.fixture(scope="module")
def finetune(pack, pictures, comfy_tree):
    def run(folder, *more, vae="shapes-world", clip="shapes-world", samples=8 * 6):
        return pack("commands").main([
            "finetune-vae", str(pictures), "--vae", str(vae), "--clip", str(clip), "--output", str(folder / "clip.safetensors"),
            "--output-vae", str(folder / "vae.safetensors"), "--train-num-samples", str(samples), "--batch-size", "8", "--warmup", "1",
            "--ema", "0.5", "--precision", "fp32", "--workers", "0", "--cpu", "--comfyui", str(comfy_tree), *more,
        ])  # fmt: skip

    return run


@pytest.fixture(scope="module")
def made(finetune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert finetune(folder, "--contrastive", "1", "--decoder") == 0
    return folder


def pixels_of(pictures, count):
    from latent_clip.training.pictures import cut, read_upright, views_of

    read = [read_upright((pictures / f"{number:02}.png").read_bytes()) for number in range(count)]
    return torch.stack([cut(picture, views_of(picture.size, ["centre"], "")[0], 64) for picture in read])


def host_vae(pack, path):
    with torch.inference_mode():
        return pack("host.offline.embed").HostVAE(str(path))


def score(host_env, latent, clip, text="a red circle"):
    """A prompt's nodes with a Latent-CLIP file and what gives the LATENT; the scores."""
    prompt = latent | {
        "clip": {"class_type": "LatentCLIPLoader", "inputs": {"file": clip, "dtype": "fp32"}},
        "reward": {"class_type": "LatentCLIPTextReward",
                   "inputs": {"latent_clip": ["clip", 0], "text": text, "text_to_avoid": "", "weight": 1.0, "fit": "squash"}},
        "score": {"class_type": "LatentCLIPScore", "inputs": {"latent": ["latent", 0], "reward": ["reward", 0]}},
        "keep": {"class_type": "TestDump", "inputs": {"value": ["score", 1], "name": "finetuned"}},
    }  # fmt: skip
    executor = host_env.execute(prompt)
    assert executor.success, executor.status_messages
    return torch.load(host_env.base / "output" / "finetuned.pt")


def test_both_files_open_in_the_host_and_give_what_the_run_saw(pack, host_env, pictures, made):
    checkpoint = pack("models.checkpoint").read_checkpoint(made / "clip.safetensors")
    training, told = json.loads(checkpoint.metadata["training"]), json.loads(checkpoint.metadata["vae"])
    new, old = host_vae(pack, made / "vae.safetensors"), host_vae(pack, "shapes-world")
    check = pack("models.vae_signature")
    assert check.is_another(check.difference(told, old.vae_info)), "of the old VAE's latents it would be told apart"
    assert checkpoint.space.name == "shapes-world" and told == new.vae_info and training["vae trained"] == "encoder and decoder"
    pixels = pixels_of(pictures, COUNT)
    with torch.inference_mode():
        before, after = (vae(pixels)["latent"].float() for vae in (old, new))
        decoded = new.vae.decode(after)
    spread = before.std((0, 2, 3)).view(1, -1, 1, 1)
    figures = training["figures"]
    assert figures["distance, after"] == pytest.approx(((after - before) / spread).square().mean().item(), rel=0.1)
    assert figures["distance, after"] > 0
    assert figures["reconstruction l1, after"] == pytest.approx((decoded - pixels).abs().mean().item(), rel=0.02)
    (host_env.base / "models" / "latent_clip").mkdir(parents=True, exist_ok=True)
    shutil.copy(made / "clip.safetensors", host_env.base / "models" / "latent_clip" / "tuned.safetensors")
    latent = {"latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}}}
    assert len(score(host_env, latent, "tuned.safetensors")) == 2


def test_without_captions_a_teacher_leads(pack, finetune, tmp_path):
    """From a tower with the pixel CLIP's own texts; where the texts are others it is refused."""
    world, starts = pack("models.shapes_world"), pack("training.starts")
    teacher, shipped = world.load_pixel_clip(), world.load_weights("latent_clip")[1]
    mean, std = torch.zeros(4), torch.full((4,), 7.7)
    model = starts.from_clip(teacher.model, shipped, mean, std, 0)
    told = pack("models.own_spaces").space_as_dict(pack("models.latent_spaces").LATENT_SPACES["shapes-world"])
    dataset = pack("training.shards").Dataset(told, {}, {})
    pack("training.release").write_latent_clip(tmp_path / "start.safetensors", model, shipped, dataset, (mean, std), {})
    asked = ("--distil", "1", "--teacher", "shapes-world", "--views", "centre,flip")
    assert finetune(tmp_path, *asked, clip=tmp_path / "start.safetensors", samples=16) == 0
    card = pack("training.release").model_card(tmp_path / "clip.safetensors")
    assert "pixel_clip.safetensors" in card and "teacher, after" in card
    assert finetune(tmp_path / "other", *asked) == 1


def test_files_of_other_vaes_and_what_cannot_be_are_refused(finetune, made, tmp_path, capsys):
    def said(*more, **files):
        assert finetune(tmp_path, *more, **files) == 1
        return capsys.readouterr().err

    assert "another one" in said("--contrastive", "1", clip=made / "clip.safetensors")  # made for the new VAE, not for the old
    assert "no objective" in said()
    assert "without a --teacher" in said("--distil", "1")
    assert "text tower is not that of shapes-world" in said("--distil", "1", "--teacher", "shapes-world")
    assert "written over" in said("--contrastive", "1", "--output", str(made / "vae.safetensors"), vae=made / "vae.safetensors")
    assert "expected two" in said("--contrastive", "1", "--output-vae", str(tmp_path / "clip.safetensors"))
    for family, words in (("taesd", "without a posterior (TAESD"), ("wan", "for video or sound (WanVAE"), ("kl", "no encoder")):
        save_file(tiny_state(family), tmp_path / f"{family}.safetensors")
        assert words in said("--contrastive", "1", vae=tmp_path / f"{family}.safetensors")
    assert not (tmp_path / "vae.safetensors").exists()


# ------------------------------------------------------------------------------------------- the network as it is trained


@pytest.mark.parametrize("folds", [False, True], ids=["sdxl", "flux2"])
def test_latents_are_those_of_the_host_also_where_they_are_folded(pack, folds):
    import comfy.ldm.models.autoencoder as autoencoder

    sizes = pack("host.scorers.shapes_world")._AUTOENCODER | {"batch_norm_latent": folds}
    network = autoencoder.AutoencoderKL(embed_dim=4, ddconfig=sizes)
    initialise(network, 5)
    if folds:
        network.bn.running_var.fill_(4.0)
    pixels = torch.rand(2, 32, 32, 3)
    with torch.no_grad():
        expected = network.encode(pixels.movedim(-1, 1) * 2 - 1)
        vae = pack("host.offline.finetune_vae").TrainableVAE(network)
        alone = vae.encode(pixels)
        drawn = vae.encode(pixels, lambda *shape: torch.ones(shape))
        torch.testing.assert_close(alone["raw"], expected)
        torch.testing.assert_close(drawn["raw"], expected, atol=1e-4, rtol=1e-4)
        spread = (drawn["log_variance"] / 2).exp() / (2.0 if folds else 1.0)
        assert drawn["sample"].shape == expected.shape == ((2, 16, 2, 2) if folds else (2, 4, 4, 4))
        torch.testing.assert_close((drawn["sample"] - drawn["raw"]).sum(), spread.sum(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(vae.decode(expected), (network.decode(expected).movedim(1, -1) + 1) / 2)


def test_half_precision_inference_weights_become_trainable_ones(pack):
    shapes, trainable = pack("host.scorers.shapes_world"), pack("host.offline.finetune_vae")
    with torch.inference_mode():
        network = shapes.load_vae().first_stage_model.half()
    vae = trainable.TrainableVAE(network, grad_checkpointing=True)
    pixels = torch.rand(1, 64, 64, 3)
    encoder, decoder = vae.halves()
    vae.decode(vae.encode(pixels, torch.ones)["sample"]).mean().backward()
    again = [parameter.grad for parameter in encoder + decoder]
    assert all(parameter.dtype == torch.float32 for parameter in encoder + decoder)
    vae.zero_grad()
    vae.grad_checkpointing = False
    vae.decode(vae.encode(pixels, torch.ones)["sample"]).mean().backward()
    for gradient, parameter in zip(again, encoder + decoder):
        torch.testing.assert_close(gradient, parameter.grad)
        assert gradient is not None


def test_vae_of_the_field_goes_through_load_vae(pack, host_env, pictures, tmp_path):
    """SDXL's own layout and sizes, with random weights: the stock loader opens what comes out, and VAE Encode gives what was trained on."""
    import comfy.ldm.models.autoencoder as autoencoder

    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
             "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    network = autoencoder.AutoencoderKL(embed_dim=4, ddconfig=sizes)
    initialise(network, 7)
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / "sdxl.safetensors")
    finetune_vae, starts = pack("training.finetune_vae"), pack("training.starts")
    vae, told, channels, downscale = pack("host.offline.finetune_vae").load_trainable_vae(str(tmp_path / "sdxl.safetensors"))
    assert (channels, downscale) == (4, 8)
    pixel = {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "head_width": 16}, "text_cfg": TEXT}
    config = starts.config_for_latents(pixel, 4, 4, 1, 8)
    model = starts.from_nothing(config, torch.zeros(4), torch.ones(4), 0)
    space = pack("models.own_spaces").space_as_dict(pack("models.latent_spaces").LATENT_SPACES["sdxl"])
    start = finetune_vae.Start("tiny", model, config, pack("training.shards").Dataset(space, told, {"names": ["centre"], "side": 32}))
    models = host_env.base / "models"
    options = finetune_vae.FinetuneOptions(
        output=models / "latent_clip" / "sdxl-tuned.safetensors", output_vae=models / "vae" / "sdxl-tuned.safetensors", logs=tmp_path / "logs", contrastive=1.0,
        train_num_samples=4, batch_size=2, lr=1e-3, vae_lr=1e-3, warmup=0, ema=0.0, precision="fp32",
    )  # fmt: skip
    rows = pack("training.sources").records_of(str(pictures))[:4]
    shown = pack("training.picture_batches").PictureBatches(rows, 32, 2, 2)
    figures = finetune_vae.finetune(options, vae, start, shown, log=lambda text: None)
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "sdxl.safetensors").unlink()
    assert figures["distance, after"] > 0
    picture = torch.rand(1, 32, 32, 3)
    Image.fromarray((picture[0] * 255).round().byte().numpy()).save(host_env.base / "input" / "noise.png")
    latent = {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "sdxl-tuned.safetensors"}},
        "image": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["vae", 0]}},
    }
    with torch.no_grad():
        raw = vae.encode((picture * 255).round() / 255)["raw"]
        features = torch.nn.functional.normalize(model.visual(raw), dim=-1)
        tokens = SimpleTokenizer(context_length=8)(["a red circle"])
        expected = (features * torch.nn.functional.normalize(model.text(tokens), dim=-1)).sum()
    assert score(host_env, latent, "sdxl-tuned.safetensors") == pytest.approx([expected.item()], abs=2e-3)
    options.output_vae.unlink()
