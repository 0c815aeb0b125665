"""A Latent-CLIP knows its VAE: in the real host, by POST /prompt and inside it."""

import importlib
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("webdataset")

from latent_clip.tests import tiny_vaes
from latent_clip.tests.checkpoints import save_latent_clip, save_pixel_clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 1, "latent_factor": 8, "latent_n_channels": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def pack(host_env):
    """Modules of the pack as the host imported it."""
    return lambda name: importlib.import_module(f"{host_env.pack.__name__}.{name}")


def tuned(state, share=0.005):
    """The encoder's weights moved by that share of their spread, the decoder's left."""
    return {
        name: t + share * t.std() * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) if "encoder" in name and t.ndim > 1 else t
        for name, t in state.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def files(pack, comfy, comfy_tree, tmp_path_factory):
    """A VAE, one that was trained on a little, one of other channels, and a Latent-CLIP that `embed` and `train` made for the first."""
    folder, vaes = tmp_path_factory.mktemp("made"), comfy.models_dir / "vae"
    clips = comfy.models_dir / "latent_clip"
    for path in (vaes, clips, folder / "pictures"):
        path.mkdir(parents=True, exist_ok=True)
    state = tiny_vaes.tiny_state("taesd")
    save_file(state, vaes / "mine.safetensors")
    save_file({name: t.half() for name, t in state.items()}, vaes / "mine-fp16.safetensors")
    save_file(tuned(state), vaes / "tuned.safetensors")
    save_file(tiny_vaes.tiny_state("taesd", 16), vaes / "sixteen.safetensors")
    for number in range(16):
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a red circle")
    embed(pack, comfy_tree, folder, vaes / "mine.safetensors", "shards")
    train(pack, folder / "shards", clips / "own.safetensors", folder)
    save_latent_clip(clips / "untold.safetensors")
    return folder


def embed(pack, comfy_tree, folder, vae, target):
    arguments = [str(folder / "pictures"), str(folder / target), "--vae", str(vae), "--side", "64", "--cpu", "--comfyui", str(comfy_tree)]
    assert pack("commands").main(["embed", *arguments]) == 0


def train(pack, shards, file, folder, **more):
    options = pack("training.options").TrainOptions(
        train_data=shards, output=file, logs=folder / f"{file.stem}-logs", model=CONFIG, contrastive=1.0, batch_size=8, train_num_samples=16, warmup=1,
        precision="fp32", workers=0, shuffle=8, **more,
    )  # fmt: skip
    return pack("training.run").train(options, lambda text: None)


def prompt(file, vae=None):
    """Score an empty latent with the file, its VAE wired or not."""
    return ({"vae": {"class_type": "VAELoader", "inputs": {"vae_name": vae}}} if vae else {}) | {
        "clip": {"class_type": "LatentCLIPLoader",
                 "inputs": {"file": file, "dtype": "fp32", **({"vae": ["vae", 0]} if vae else {})}},
        "reward": {"class_type": "LatentCLIPTextReward",
                   "inputs": {"latent_clip": ["clip", 0], "text": "a red circle", "text_to_avoid": "", "weight": 1.0, "fit": "tiles"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "score": {"class_type": "LatentCLIPScore", "inputs": {"latent": ["latent", 0], "reward": ["reward", 0]}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["score", 1]}},
    }  # fmt: skip


def test_vae_that_it_was_made_for_passes_in_any_precision(files, comfy):
    for vae in (None, "mine.safetensors", "mine-fp16.safetensors"):
        result = comfy.run(prompt("own.safetensors", vae))
        assert result.ok, result.error
    assert "cannot be compared" not in comfy.log()


@pytest.mark.parametrize(
    ("vae", "why"),
    [("tuned.safetensors", r"which is another: a layer of its encoder is [\d.]+ % off"), ("sixteen.safetensors", "16 channels .* with 4 channels")],
)
def test_another_vae_is_refused_with_both_names(files, comfy, vae, why):
    result = comfy.run(prompt("own.safetensors", vae), expect_failure=True)
    assert not result.ok and re.search(why, result.error)
    assert "own.safetensors" in result.error and "mine.safetensors" in result.error and "latent-clip embed" in result.error
    assert "TAESD" in result.error or vae in result.error
    assert comfy.run(prompt("own.safetensors", "mine.safetensors")).ok, "the queue goes on"


def test_file_that_does_not_tell_its_vae_is_loaded_with_a_warning(files, comfy):
    result = comfy.run(prompt("untold.safetensors", "tuned.safetensors"))
    assert result.ok, result.error
    assert "untold.safetensors cannot be compared with the VAE" in comfy.log()
    result = comfy.run(prompt("untold.safetensors", "sixteen.safetensors"), expect_failure=True)
    assert "of the sdxl space" in result.error


def test_safety_guidance_decodes_drafts_with_the_vae_that_its_judge_reads(files, comfy):
    def look_ahead(vae, **more):
        guidance = {
            "model": ["world", 0], "latent_clip": ["clip", 0], "concepts": "typed below", "typed": "red: a red circle", "categories": "",
            "thresholds": "3", "strength": 1.0, "start": 0.1, "end": 1.0, "every_n": 1, "momentum": 0.0, "fit": "tiles", "instead": ["text", 0],
            "look_ahead": "draft only", "vae": ["vae", 0], "pixel_clip": "second.safetensors", "pixel_thresholds": "3",
        }  # fmt: skip
        return comfy.run({
            "world": {"class_type": "LatentCLIPShapesWorld", "inputs": {}},
            "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": "a green circle"}},
            "vae": {"class_type": "VAELoader", "inputs": {"vae_name": vae}},
            "clip": {"class_type": "LatentCLIPLoader", "inputs": {"file": "own.safetensors", "dtype": "fp32"}},
            "guide": {"class_type": "LatentCLIPSafetyGuidance", "inputs": guidance},
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["guide", 0]}},
        }, **more)  # fmt: skip

    (comfy.models_dir / "open_clip").mkdir(exist_ok=True)
    save_pixel_clip(comfy.models_dir / "open_clip" / "second.safetensors")
    result = look_ahead("mine.safetensors")
    assert result.ok, result.error
    assert "which is another: a layer of its encoder" in look_ahead("tuned.safetensors", expect_failure=True).error


def test_shards_of_another_vae_are_not_measured_on(files, pack, comfy, comfy_tree):
    from latent_clip.training.shards import read_dataset

    embed(pack, comfy_tree, files, comfy.models_dir / "vae" / "tuned.safetensors", "other")
    embed(pack, comfy_tree, files, comfy.models_dir / "vae" / "mine-fp16.safetensors", "half")
    assert len(read_dataset(files / "other").vae["signature"]) > 10
    with pytest.raises(ValueError, match=r"of the VAE tuned\.safetensors .* holds those of mine\.safetensors"):
        train(pack, files / "shards", files / "x.safetensors", files, val_data=files / "other")
    assert train(pack, files / "shards", files / "y.safetensors", files, val_data=files / "half").exists()


def test_calibration_and_zero_shot_refuse_it_too(files, pack, comfy):
    clip, vaes = comfy.models_dir / "latent_clip" / "own.safetensors", comfy.models_dir / "vae"
    load_judge = pack("host.offline.zero_shot").load_judge
    assert load_judge(str(clip), str(vaes / "mine.safetensors")).vae["name"] == "mine.safetensors"
    with pytest.raises(ValueError, match=r"Got the VAE tuned\.safetensors; own reads the latents of the VAE mine\.safetensors"):
        load_judge(str(clip), str(vaes / "tuned.safetensors"))


# ------------------------------------------------------------------------------------------------- the full-size layout


@pytest.fixture(scope="module")
def large(host_env):
    """Weights of an SD VAE in the host's layout, of full size: older hosts take no other."""
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

    network = torch.nn.Module()
    sizes = {
        "ch": 128, "out_ch": 3, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3, "resolution": 256,
        "z_channels": 4,
    }  # fmt: skip
    network.encoder, network.decoder = Encoder(**sizes, double_z=True), Decoder(**sizes)
    network.post_quant_conv = torch.nn.Conv2d(4, 4, 1)
    network.quant_conv = torch.nn.Conv2d(8, 8, 1)
    generator = torch.Generator().manual_seed(0)
    return {name: tiny_vaes.seeded(name, tensor, generator) for name, tensor in network.state_dict().items()}


def as_diffusers(state):
    """The same under diffusers' names, as the host's own table has them."""
    from comfy.diffusers_convert import vae_conversion_map

    found = {}
    for name, tensor in state.items():
        for ours, theirs in vae_conversion_map:
            name = name.replace(ours, theirs)
        if "attentions" in name:
            for ours, theirs in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
                name = re.sub(rf"\.0\.{ours}\.", f".0.{theirs}.", name)
            tensor = tensor[..., 0, 0] if tensor.ndim == 4 else tensor
        found[name] = tensor
    return found


def test_vae_is_the_same_in_every_precision_and_layout_and_another_after_a_little_training(pack, large):
    import comfy.sd

    check, signature = pack("models.vae_signature"), pack("host.scorers.vae_check").loaded_signature

    def loaded(state, dtype=None):
        with torch.inference_mode():
            return {"signature": signature(comfy.sd.VAE(sd=dict(state), dtype=dtype))}

    first, diffusers = loaded(large), as_diffusers(large)
    assert "encoder.down_blocks.0.resnets.0.conv1.weight" in diffusers and "encoder.mid_block.attentions.0.to_q.weight" in diffusers
    assert check.difference(first, loaded(diffusers)) == 0
    for dtype in (torch.float16, torch.bfloat16):
        in_a_file = loaded({name: t.to(dtype) for name, t in large.items()})
        in_memory = loaded(diffusers, dtype)
        assert 0 < check.difference(first, in_a_file) < check.TOLERANCE and not check.is_another(check.difference(in_memory, in_a_file))
    for share in (0.005, 0.05):
        assert check.is_another(check.difference(first, loaded(tuned(large, share), torch.bfloat16)))


def test_vae_that_only_decodes_is_not_taken_for_it(pack, host_env, caplog):
    """What the host has in the place of an encoder that the file lacks is no weights."""
    import comfy.sd

    def check(state):
        with torch.inference_mode():
            pack("host.scorers.vae_check").check_vae("own", pack("models.latent_spaces").LATENT_SPACES["sdxl"], told, comfy.sd.VAE(sd=state))

    whole = tiny_vaes.tiny_state("taesd")
    told = {"name": "mine.safetensors", "signature": pack("host.scorers.vae_check").loaded_signature(tiny_vaes.tiny_vae("taesd"))}
    with caplog.at_level(logging.WARNING):
        check(dict(whole))
    assert not caplog.messages
    with pytest.raises(ValueError, match="which is another"):
        check({name: t for name, t in whole.items() if "encoder" not in name})
