"""Architectures as data: open_clip JSON configs, and the inference of a config from the shapes of a checkpoint."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

CONFIG_DIR = Path(__file__).parent / "configs"
HEAD_WIDTH = 64  # open_clip's default; shapes do not show it
MAX_LAYERS = 200  # published towers have up to 64
NOISE_BANDS = "latent_noise_bands"  # in a vision_cfg: how many cosines encode a noise level for the tower
NOISE_HIDDEN = "latent_noise_hidden"  # beside it: units of the branch that each block has for the noise level
NOISE_READER = "latent_noise_reader"  # and units of the network that reads all cells at once
MAX_POSITIONS = 4096  # tokens of a text; the causal mask is as many numbers squared. Published towers have 77
MAX_SIDE = 4096  # cells or pixels along a side of a tower's input; published ones have 64 and 560
MAX_PATCHES = 16_384  # of an image; published ones have 4,096
MAX_WIDTH = 16_384
MAX_INPUT = 1 << 24  # numbers of one latent
_MOST = {
    "embed_dim": MAX_WIDTH, "width": MAX_WIDTH, "heads": MAX_WIDTH, "head_width": MAX_WIDTH, "layers": MAX_LAYERS, "mlp_ratio": 64,
    "context_length": MAX_POSITIONS, "vocab_size": 1 << 22, "patch_size": MAX_SIDE, "latent_factor": MAX_SIDE,
}  # fmt: skip
_KNOWN = {
    "vision_cfg": {
        "image_size",
        "layers",
        "width",
        "head_width",
        "mlp_ratio",
        "patch_size",
        "latent_factor",
        "latent_n_channels",
        NOISE_BANDS,
        NOISE_HIDDEN,
        NOISE_READER,
    },
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def latent_grid(config: dict) -> int:
    """Latent cells along one side of the image tower's input, 64 for the published models."""
    return config["vision_cfg"]["image_size"] // config["vision_cfg"]["latent_factor"]


def published_configs() -> dict[str, dict]:
    """The architectures that ship with the pack, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CONFIG_DIR.glob("*.json"))}


def name_of_config(config: dict) -> str | None:
    """The published name of an architecture, or None."""
    return next((name for name, published in published_configs().items() if published == config), None)


def check_config(config: dict) -> None:
    """Refuse what is no config of this family; open_clip knows more keys, and would fetch some of them from the network.

    Raises:
        ValueError: a part is missing, unknown, or not a positive number.
    """
    for tower, known in _KNOWN.items():
        part = config.get(tower)
        if not isinstance(part, dict) or (unknown := part.keys() - known):
            odd = f"the unknown {', '.join(sorted(unknown))}" if isinstance(part, dict) else f"{part!r:.100}"
            raise ValueError(f"Got {odd} in its {tower}, expected some of {', '.join(sorted(known))}.")
    for key, value in [
        ("embed_dim", config.get("embed_dim")),
        *config["vision_cfg"].items(),
        *config["text_cfg"].items(),
    ]:
        kinds = (int, float) if key == "mlp_ratio" else int
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ValueError(f"Got {key} = {value!r:.100}, expected a positive number.")
        if value > _MOST.get(key, float("inf")):
            raise ValueError(f"Got {key} = {value!r:.20}, expected at most {_MOST[key]}.")
    vision = {"latent_factor": 8, "latent_n_channels": 4, "patch_size": 16, "image_size": 224, **config["vision_cfg"]}
    grid = vision["image_size"] // vision["latent_factor"]
    check_input(grid, vision["patch_size"])
    if vision["latent_n_channels"] * grid**2 > MAX_INPUT:
        raise ValueError(f"Got latents of {vision['latent_n_channels']} × {grid} × {grid} numbers, more than {MAX_INPUT}.")


def check_input(side: int, patch_size: int) -> None:
    """Refuse a tower whose input no memory holds, though its weights may be few.

    Raises:
        ValueError: the input has too long a side, or too many patches.
    """
    if side > MAX_SIDE or (side // patch_size) ** 2 > MAX_PATCHES:
        raise ValueError(
            f"Got an input of {side!r:.20} × {side!r:.20} in patches of {patch_size!r:.20}, expected at most {MAX_SIDE} × {MAX_SIDE} and "
            f"{MAX_PATCHES} patches."
        )


def infer_config(shapes: Mapping[str, tuple[int, ...]], latent_factor: int = 8) -> dict:
    """Read the architecture off the shapes of a state_dict in open_clip's custom-text layout.

    Args:
        shapes: key → shape, with `visual.*` and `text.*` keys.
        latent_factor: pixels per latent cell; shapes do not show it, and nothing is computed from it but `image_size`.

    Raises:
        KeyError: a key that every model of the family has is missing.
    """
    vision_width, channels, patch_size, _ = shapes["visual.conv1.weight"]
    patches = shapes["visual.positional_embedding"][0] - 1
    grid = round(patches**0.5) * patch_size
    vocab_size, text_width = shapes["text.token_embedding.weight"]
    config: dict = {
        "embed_dim": shapes["visual.proj"][1],
        "vision_cfg": {
            "image_size": grid * latent_factor,
            "layers": _count_blocks(shapes, "visual."),
            "width": vision_width,
            "patch_size": patch_size,
            "latent_factor": latent_factor,
            "latent_n_channels": channels,
        },
        "text_cfg": {
            "context_length": shapes["text.positional_embedding"][0],
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": max(1, text_width // HEAD_WIDTH),
            "layers": _count_blocks(shapes, "text."),
        },
    }
    if noise := shapes.get("visual.noise_projection.weight"):
        config["vision_cfg"][NOISE_BANDS] = noise[1]
        if branch := shapes.get("visual.noise_branches.0.up.weight"):
            config["vision_cfg"][NOISE_HIDDEN] = branch[1]
        if reader := shapes.get("visual.noise_reader.mix.weight"):
            config["vision_cfg"][NOISE_READER] = reader[0]
    _add_mlp_ratios(config, shapes)
    return config


def _add_mlp_ratios(config: dict, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for tower in ("vision_cfg", "text_cfg"):
        prefix = "visual." if tower == "vision_cfg" else "text."
        mlp_ratio = shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0] / config[tower]["width"]
        if mlp_ratio != 4:
            config[tower]["mlp_ratio"] = mlp_ratio


def _count_blocks(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    return len({match[1] for key in shapes if (match := pattern.match(key))})
