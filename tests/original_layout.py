"""The authors' checkpoint layout, written down from its facts: names, shapes, and files of any size with random weights.

Nothing here is derived from the pack's own models, so that tests can hold the two against each other.
"""

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
VAE_WIDTHS = (128, 256, 512, 512)  # SDXL's VAE encoder

TINY = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 512,
        "layers": 2,
        "width": 128,
        "patch_size": 8,
        "latent_factor": 8,
        "latent_n_channels": 4,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
# nothing that a test of files needs to be large
MINUTE = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 64,
        "layers": 1,
        "width": 64,
        "patch_size": 4,
        "latent_factor": 8,
        "latent_n_channels": 4,
    },
    "text_cfg": {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 1, "layers": 1},
}


def original_shapes(config: dict, vae_widths: tuple[int, ...] = VAE_WIDTHS) -> Shapes:
    """Name → shape of every tensor of an original checkpoint, in file order, without the DDP prefix."""
    vision, text, embed_dim = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    patches = (vision["image_size"] // vision["latent_factor"] // patch) ** 2
    tower = {
        "class_embedding": (width,),
        "positional_embedding": (patches + 1, width),
        "proj": (width, embed_dim),
        "conv1.weight": (width, vision["latent_n_channels"], patch, patch),
        **_norm("ln_pre", width),
        **_blocks(width, vision["layers"], vision.get("mlp_ratio", 4)),
        **_norm("ln_post", width),
    }
    return {
        "positional_embedding": (text["context_length"], text["width"]),
        "text_projection": (text["width"], embed_dim),
        "logit_scale": (),
        **{f"visual.{key}": shape for key, shape in _vae_encoder(vae_widths).items()},
        **{f"visual.latent_vit.{key}": shape for key, shape in tower.items()},
        **_blocks(text["width"], text["layers"], text.get("mlp_ratio", 4)),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        **_norm("ln_final", text["width"]),
    }


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _blocks(width: int, layers: int, mlp_ratio: float = 4) -> Shapes:
    block = {
        **_norm("ln_1", width),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        **_layer("attn.out_proj", width, width),
        **_norm("ln_2", width),
        **_layer("mlp.c_fc", int(mlp_ratio * width), width),
        **_layer("mlp.c_proj", width, int(mlp_ratio * width)),
    }
    return {f"transformer.resblocks.{i}.{key}": shape for i in range(layers) for key, shape in block.items()}


def _vae_encoder(widths: tuple[int, ...]) -> Shapes:
    shapes = _layer("vae_encoder.conv_in", widths[0], 3, 3, 3)
    previous = widths[0]
    for i, width in enumerate(widths):
        shapes |= _resnet(f"vae_encoder.down_blocks.{i}.resnets.0", previous, width)
        shapes |= _resnet(f"vae_encoder.down_blocks.{i}.resnets.1", width, width)
        if i < len(widths) - 1:
            shapes |= _layer(f"vae_encoder.down_blocks.{i}.downsamplers.0.conv", width, width, 3, 3)
        previous = width
    shapes |= _norm("vae_encoder.mid_block.attentions.0.group_norm", previous)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _layer(f"vae_encoder.mid_block.attentions.0.{name}", previous, previous)
    for i in range(2):
        shapes |= _resnet(f"vae_encoder.mid_block.resnets.{i}", previous, previous)
    shapes |= _norm("vae_encoder.conv_norm_out", previous)
    shapes |= _layer("vae_encoder.conv_out", 8, previous, 3, 3)
    return shapes | _layer("vae_quant_conv", 8, 8, 1, 1)


def _resnet(name: str, width_in: int, width: int) -> Shapes:
    return {
        **_norm(f"{name}.norm1", width_in),
        **_layer(f"{name}.conv1", width, width_in, 3, 3),
        **_norm(f"{name}.norm2", width),
        **_layer(f"{name}.conv2", width, width, 3, 3),
        **(_layer(f"{name}.conv_shortcut", width, width_in, 1, 1) if width_in != width else {}),
    }


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the size that training leaves: no bias is zero and no norm is the identity, so none can get lost."""
    generator = torch.Generator().manual_seed(seed)
    return {key: _random(key, shape, generator) for key, shape in shapes.items()}


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if key == "logit_scale":
        return torch.tensor(100.0).log()
    if key.endswith("bias") or "positional" in key:
        return noise * 0.1
    if len(shape) == 1:  # the scale of a norm, or the class embedding
        return 1 + noise * 0.1
    if key.startswith("token_embedding"):
        return noise * 0.1
    fan_in = shape[0] if key.endswith("proj") or key == "text_projection" else noise[0].numel()
    return noise / fan_in**0.5


def original_checkpoint(weights: dict[str, Tensor], optimizer: bool = True) -> dict:
    """The dict that the authors saved: DDP prefix, epoch, name, AdamW moments of the trainable parameters."""
    content = {
        "epoch": 34,
        "name": "epoch_34",
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
    }
    if optimizer:
        trainable = [value for key, value in weights.items() if "vae_" not in key]
        moments = {
            i: {"step": torch.tensor(80000.0), "exp_avg": value * 1e-3, "exp_avg_sq": value.square() * 1e-6}
            for i, value in enumerate(trainable)
        }
        group = {"lr": numpy.float64(1e-6), "betas": (0.9, 0.98), "weight_decay": 0.2, "params": list(moments)}
        content["optimizer"] = {"state": moments, "param_groups": [group]}
    return content


def save_original(
    path: Path,
    config: dict = TINY,
    seed: int = 0,
    vae_widths: tuple[int, ...] = (8, 8, 16, 16),
    optimizer: bool = True,
) -> dict[str, Tensor]:
    """Write an original-layout file and return its weights, without the DDP prefix."""
    weights = random_weights(original_shapes(config, vae_widths), seed)
    torch.save(original_checkpoint(weights, optimizer), path)
    return weights


def rewrite_pickle(source: Path, target: Path, edit: Callable[[bytes], bytes]) -> None:
    """Copy a torch file with another `data.pkl`; its records, their alignment and checksums stay those of a sound file."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        data = reader.get_record(name)
        if name == "data.pkl":
            data = edit(data)
        if name not in ("version", ".data/serialization_id"):  # the writer adds its own
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
