"""Read CLIP checkpoints that look at pixels, in open_clip's layout: the decode-and-judge baseline.

OpenCLIP and LAION weights and HPSv2.1 (`HPS_v2.1_compressed.pt`) have this layout; PickScore_v1 has that of transformers. Its
shapes do not tell head widths and the activation, so the architecture is looked up among open_clip's own configs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from open_clip.model import CustomTextCLIP

from . import known_files
from .checkpoint import CheckpointError, check_keys, check_weights, original_to_custom_text, read_tensors
from .config import MAX_LAYERS

OPENAI_MEAN = open_clip.OPENAI_DATASET_MEAN
OPENAI_STD = open_clip.OPENAI_DATASET_STD


@dataclass(frozen=True)
class PixelCLIP:
    """A loaded pixel CLIP.

    Attributes:
        name: open_clip's architecture name, or the file's stem.
        model: both towers, frozen. config: open_clip model config.
        mean, std: (3,) pixel normalisation.
    """

    name: str
    model: CustomTextCLIP
    config: dict
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @property
    def image_size(self) -> int:
        return self.config["vision_cfg"]["image_size"]


def read_pixel_clip(path: str | Path, quick_gelu: bool = False) -> PixelCLIP:
    """Load an open_clip-layout checkpoint with an image and a text tower.

    Args:
        quick_gelu: OpenAI's own weights were trained with this activation; the tensors cannot tell.

    Raises:
        CheckpointError: missing, damaged, not a pixel CLIP, or of an architecture that open_clip does not list.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    state_dict = original_to_custom_text(tensors)
    state_dict.pop("logit_bias", None)
    conv1, tokens = state_dict.get("visual.conv1.weight"), state_dict.get("text.token_embedding.weight")
    if conv1 is None and (known := known_files.of_tensors(state_dict)):
        raise CheckpointError(f"{path.name}: expected a CLIP in open_clip's layout, got {known}")
    if conv1 is None or conv1.ndim != 4 or tokens is None or tokens.ndim != 2:
        raise CheckpointError(
            f"{path.name}: expected a CLIP in open_clip's layout with both towers (visual.conv1.weight, token_embedding.weight), "
            f"got keys such as {', '.join(list(state_dict)[:3])}. Download the open_clip version of the weights."
        )
    if conv1.shape[1] != 3:
        raise CheckpointError(
            f"{path.name}: reads {conv1.shape[1]} channels, so it is a Latent-CLIP. Use 'Load Latent-CLIP' for it."
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    name, config = _find_config(path, metadata, shapes)
    config = {**config, "quick_gelu": quick_gelu or config.get("quick_gelu", False)}
    model = _build_from_file(path, config)
    check_keys(path, state_dict, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    check_weights(path, state_dict)
    model.load_state_dict(state_dict, strict=True, assign=True)
    with torch.device("cpu"):
        model.text.attn_mask = model.text.build_causal_mask()
    return PixelCLIP(name, model.train(False).requires_grad_(False), config)


def _find_config(path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict]:
    """From the file's metadata, `<stem>.json` beside it, or the open_clip architecture with exactly these shapes."""
    beside = path.with_suffix(".json")
    try:
        if "config" in metadata or beside.is_file():
            config = json.loads(metadata["config"] if "config" in metadata else beside.read_text(encoding="utf-8"))
            return path.stem, dict(config.get("model_cfg", config))
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name}: its open_clip config cannot be read ({error}). Repair or remove {beside.name}."
        ) from error
    for name, config in _candidates(_fingerprint(shapes)):
        with torch.device("meta"):
            expected = _build(config).state_dict()
        if {key: tuple(tensor.shape) for key, tensor in expected.items()} == shapes:
            return name, config
    raise CheckpointError(
        f"{path.name}: no architecture of open_clip has its shapes (patch {shapes['visual.conv1.weight']}, "
        f"tokens {shapes['text.token_embedding.weight']}). Put its open_clip_config.json beside it as {beside.name}."
    )


def _fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    return width, patch, shapes["text.token_embedding.weight"][1], shapes.get("visual.proj", (0, 0))[1]


@lru_cache(maxsize=8)
def _candidates(fingerprint: tuple[int, ...]) -> list[tuple[str, dict]]:
    """open_clip's plain CLIP ViTs with these widths, the ordinary activation first (a quick_gelu twin has the same shapes)."""
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if (
            not isinstance(vision, dict)
            or not isinstance(text, dict)
            or "patch_size" not in vision
            or text.get("hf_model_name")
        ):
            continue
        if (vision["width"], vision["patch_size"], text["width"], config["embed_dim"]) == fingerprint:
            found.append((name, config))
    return sorted(found, key=lambda item: (item[1].get("quick_gelu", False), item[0]))


def _build_from_file(path: Path, config: dict) -> CustomTextCLIP:
    """Build from a config that came with a file, which must not make open_clip fetch anything from the network."""
    for tower in (config.get("vision_cfg"), config.get("text_cfg")):
        if not isinstance(tower, dict) or any(key.startswith(("hf_", "timm_")) for key in tower):
            raise CheckpointError(
                f"{path.name}: its config asks for a timm or Hugging Face tower, expected open_clip's own ViT."
            )
        if not isinstance(tower.get("layers", 1), int) or tower.get("layers", 1) > MAX_LAYERS:
            raise CheckpointError(
                f"{path.name}: its config asks for {tower['layers']} layers, expected a ViT's number."
            )
    try:
        with torch.device("meta"):
            return _build(config)
    except Exception as error:  # whatever open_clip stumbles over, the config is what is wrong
        raise CheckpointError(f"{path.name}: no CLIP can be built from its config: {error!r}.") from error


def _build(config: dict) -> CustomTextCLIP:
    known = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    return CustomTextCLIP(**{key: config[key] for key in known if key in config})
