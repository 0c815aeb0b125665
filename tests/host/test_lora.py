"""LoRA on Shapes World, through the stock loaders, in the key layouts that files come in."""

import pytest
import torch
from safetensors.torch import save_file

# the U-Net's attention on the 4×4 grid, and the second layer of the text encoder
BLOCK = "input_blocks.3.1.transformer_blocks.0"
DIFFUSERS = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYOUTS = {
    "kohya": (f"lora_unet_{DIFFUSERS.replace('.', '_')}_attn2_to_v", ".lora_down.weight", ".lora_up.weight"),
    "kohya, original names": (
        f"lora_unet_{BLOCK.replace('.', '_')}_attn2_to_v",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "diffusers": (f"unet.{DIFFUSERS}.attn2.processor.to_v", "_lora.down.weight", "_lora.up.weight"),
    "peft": (f"diffusion_model.{BLOCK}.attn2.to_v", ".lora_A.weight", ".lora_B.weight"),
}
TEXT = {
    "kohya": ("lora_te_text_model_encoder_layers_1_mlp_fc1", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": (
        "text_encoder.text_model.encoder.layers.1.mlp.fc1",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def save_lora(comfy, name: str, key: tuple[str, str, str], inside: int, outside: int) -> str:
    """A LoRA of rank 2 for one weight of (outside, inside); returns the file's name."""
    generator = torch.Generator().manual_seed(0)
    prefix, down, up = key
    weights = {
        f"{prefix}{down}": torch.randn(2, inside, generator=generator) * 0.3,
        f"{prefix}{up}": torch.randn(outside, 2, generator=generator) * 0.3,
    }
    folder = comfy.models_dir / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"
    save_file(weights, folder / file)
    return file


def picture(comfy, loader: dict | None, name: str) -> torch.Tensor:
    """The latent of one sampling step with a LoRA between the world and the sampler."""
    model, clip = (["world", 0], ["world", 1]) if loader is None else (["lora", 0], ["lora", 1])
    if loader and loader["class_type"] == "LoraLoaderModelOnly":
        clip = ["world", 1]
    prompt = {
        "world": node("LatentCLIPShapesWorld"),
        "pos": node("CLIPTextEncode", clip=clip, text="a red circle"),
        "neg": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "ks": node(
            "KSampler", model=model, positive=["pos", 0], negative=["neg", 0], latent_image=["empty", 0], seed=3,
            steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "dump": node("TestDump", value=["ks", 0], name=name),
    } | ({"lora": loader} if loader else {})  # fmt: skip
    comfy.run(prompt)
    return comfy.dump(name)[0]["samples"]


@pytest.fixture(scope="module")
def plain(comfy):
    return picture(comfy, None, "lora_plain")


def change(picture: torch.Tensor, plain: torch.Tensor) -> float:
    return ((picture - plain).norm() / plain.norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["LoraLoader", "LoraLoaderModelOnly"])
def test_lora_for_the_model_changes_the_picture(comfy, plain, layout, kind):
    file = save_lora(comfy, layout, LAYOUTS[layout], inside=128, outside=128)
    inputs = {"model": ["world", 0], "lora_name": file}
    if kind == "LoraLoader":
        inputs |= {"clip": ["world", 1], "strength_clip": 1.0}
    log = len(comfy.log())
    changed = picture(comfy, node(kind, strength_model=1.0, **inputs), "lora_with")
    assert "lora key not loaded" not in comfy.log()[log:]
    assert 0.005 < change(changed, plain) < 10
    off = picture(comfy, node(kind, strength_model=0.0, **inputs), "lora_off")
    assert torch.equal(off, plain), "strength 0 changes nothing"


@pytest.mark.parametrize("layout", TEXT)
def test_lora_for_the_text_encoder_changes_the_picture(comfy, plain, layout):
    file = save_lora(comfy, f"text {layout}", TEXT[layout], inside=128, outside=512)
    loader = node(
        "LoraLoader", model=["world", 0], clip=["world", 1], lora_name=file, strength_model=1.0, strength_clip=1.0
    )
    assert change(picture(comfy, loader, "lora_text"), plain) > 0.001


def test_every_layout_gives_the_same_picture(comfy):
    pictures = []
    for layout, key in LAYOUTS.items():
        file = save_lora(comfy, layout, key, inside=128, outside=128)
        loader = node("LoraLoaderModelOnly", model=["world", 0], lora_name=file, strength_model=1.0)
        pictures.append(picture(comfy, loader, "lora_same"))
    assert all(torch.equal(other, pictures[0]) for other in pictures[1:])
