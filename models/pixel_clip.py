"""Read CLIP checkpoints of pixel images, for the baseline that decodes before it scores.

Known are open_clip's layout (OpenCLIP, LAION, SigLIP, HPSv2.1), that of transformers (openai/clip-vit-*, PickScore_v1,
google/siglip-*) and OpenAI's own TorchScript files. Shapes do not show head widths and the activation, so the architecture is
found among open_clip's own configs.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

from . import known_files
from .checkpoint import check_keys, check_logit_scale, check_weights, original_to_custom_text
from .config import MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH, check_input
from .file_metadata import decode
from .own_spaces import is_number
from .pixel_layouts import config_of_transformers, transformers_to_open_clip
from .strict_json import read_json
from .tensor_files import CheckpointError, naming, read_tensors
from .torchscript import is_torchscript, read_torchscript

LOGGER = logging.getLogger(__name__)
OPENAI_MEAN = open_clip.OPENAI_DATASET_MEAN
OPENAI_STD = open_clip.OPENAI_DATASET_STD
_TEXT_SHAPES = ("text.token_embedding.weight", "text.positional_embedding")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI wrote beside them


@dataclass(frozen=True)
class Preparation:
    """Preparation of a tower's images, as in its training.

    Attributes:
        mean, std: (3,) pixel normalisation.
        resize: `shortest` scales the shorter side and takes the centre, `squash` scales both.
        interpolation: of that.
    """

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True)
class PixelCLIP:
    """A loaded pixel CLIP.

    Attributes:
        name: open_clip's architecture name, or the file's stem.
        model: both towers, frozen. config: open_clip model config.
        preparation: of the pictures.
        logit_scale, logit_bias: of the logits, scale × cosine + bias; the bias is that of a sigmoid, None where there is none (CLIP).
    """

    name: str
    model: CustomTextCLIP
    config: dict
    preparation: Preparation = Preparation()
    logit_scale: float = 100.0
    logit_bias: float | None = None

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.preparation.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.preparation.std

    @property
    def image_size(self) -> int:
        size = self.config["vision_cfg"].get("image_size", 224)
        return size[0] if isinstance(size, list | tuple) else size


def read_pixel_clip(path: str | Path, quick_gelu: bool = False) -> PixelCLIP:
    """Load a checkpoint with an image and a text tower.

    Args:
        quick_gelu: OpenAI's own weights were trained with this activation; tensors do not show it, but OpenAI's own file and a
            config.json of transformers do.

    Raises:
        CheckpointError: missing, damaged, not a pixel CLIP, or of an architecture that open_clip does not list.
    """
    path = Path(path)
    with naming(path):
        return _read_pixel_clip(path, quick_gelu)


def _read_pixel_clip(path: Path, quick_gelu: bool) -> PixelCLIP:
    state_dict, metadata, published_by_openai = _read(path)
    _refuse_other_models(path, state_dict)
    bias = _number(path, "logit_bias", state_dict.pop("logit_bias", None))
    if (scale := state_dict.get("logit_scale")) is not None:
        check_logit_scale(path, scale)
        state_dict["logit_scale"] = scale.reshape(())
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    name, config, preparation = _find_config(path, metadata, shapes)
    config = {**config, "quick_gelu": quick_gelu or published_by_openai or config.get("quick_gelu", False)}
    model = _build_from_file(path, config)
    check_keys(path, state_dict, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    check_weights(path, {key: tensor for key, tensor in state_dict.items() if not key.endswith("num_batches_tracked")})
    model = _with_weights(model, config, state_dict)
    return PixelCLIP(
        name,
        model.train(False).requires_grad_(False),
        config,
        preparation,
        float(model.logit_scale.float().exp()),
        bias or None,
    )


def _number(path: Path, name: str, tensor: Tensor | None) -> float | None:
    if tensor is None:
        return None
    if tensor.numel() != 1 or tensor.is_complex() or not math.isfinite(value := float(tensor.float())):
        raise CheckpointError(
            f"{path.name}: its {name} of the shape {tuple(tensor.shape)} is not one finite number. Download it again."
        )
    return value


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Tensors in open_clip's custom-text layout, metadata of the file, and whether OpenAI published it."""
    metadata: dict[str, str] = {}
    published_by_openai = is_torchscript(path)
    if published_by_openai:
        try:
            tensors = read_torchscript(path)
        except ValueError as error:
            raise CheckpointError(f"{path.name}: a TorchScript program, and {error}. Download it again.") from error
        tensors = {key: tensor for key, tensor in tensors.items() if key not in _NOT_WEIGHTS}
    else:
        tensors, metadata = read_tensors(path)
    return original_to_custom_text(transformers_to_open_clip(tensors)), metadata, published_by_openai


def _refuse_other_models(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    if known := known_files.of_tensors(state_dict):
        raise CheckpointError(f"{path.name}: expected a CLIP with both towers, got {known}")
    has_image = any(name.startswith("visual.") and tensor.ndim == 4 for name, tensor in state_dict.items())
    conv1, tokens = state_dict.get("visual.conv1.weight"), state_dict.get("text.token_embedding.weight")
    if conv1 is not None and conv1.ndim == 4 and conv1.shape[1] != 3:
        raise CheckpointError(
            f"{path.name}: reads {conv1.shape[1]} channels, so it is a Latent-CLIP. Use 'Load Latent-CLIP' for it."
        )
    if not has_image or tokens is None or tokens.ndim != 2 or "text.positional_embedding" not in state_dict:
        raise CheckpointError(
            f"{path.name}: expected a CLIP in open_clip's layout or that of transformers, with both towers (visual.*, "
            f"token_embedding.weight), got keys such as {', '.join(list(state_dict)[:3])}. Get {known_files.OPEN_CLIPS}."
        )


def _find_config(
    path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, dict, Preparation]:
    """Find the config in the file's metadata, in `<stem>.json` beside it, or the open_clip architecture with exactly these shapes."""
    beside = path.with_suffix(".json")
    try:
        if "config" in metadata or beside.is_file():
            config = decode(metadata, "config") if "config" in metadata else read_json(beside)
            if "model_type" not in config:
                return path.stem, dict(config.get("model_cfg", config)), _preparation(config.get("preprocess_cfg", {}))
            if config["model_type"] == "clip":
                return path.stem, config_of_transformers(config), Preparation()
    except (ValueError, AttributeError, TypeError, KeyError, ArithmeticError, OSError) as error:
        raise CheckpointError(
            f"{path.name}: its config cannot be read ({error!s:.300}). Repair or remove {beside.name}."
        ) from error
    found = [(name, config) for name, config in _candidates(_fingerprint(shapes)) if _shapes_of(config) == shapes]
    if found and all(_computes(config) == _computes(found[0][1]) for _, config in found):
        name, config = found[0]
        if not config.get("quick_gelu") and any("gelu" in twin.rpartition("-")[2] for twin, _ in found[1:]):
            LOGGER.info(
                "%s: the shapes of %s, whose weights come with two activations; quick_gelu chooses.", path.name, name
            )
        return name, config, _usual_preparation(name)
    if found:
        raise CheckpointError(
            f"{path.name}: its shapes are those of {' and '.join(name for name, _ in found)}, which differ. Put its "
            f"open_clip_config.json beside it as {beside.name}."
        )
    image = next(key for key in shapes if key.startswith("visual.") and len(shapes[key]) == 4)
    raise CheckpointError(
        f"{path.name}: no architecture of open_clip has its shapes ({image} {shapes[image]}, "
        f"tokens {shapes['text.token_embedding.weight']}). Put its open_clip_config.json beside it as {beside.name}."
    )


def _preparation(config: Mapping) -> Preparation:
    """Raises: ValueError: an open_clip preprocess_cfg of another kind."""
    found = Preparation(
        tuple(config.get("mean", OPENAI_MEAN)),
        tuple(config.get("std", OPENAI_STD)),
        config.get("resize_mode", "shortest"),
        config.get("interpolation", "bicubic"),
    )
    if found.resize not in ("shortest", "squash") or found.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"it asks for pictures resized by {found.resize!r} and {found.interpolation!r}, expected shortest or squash, and bicubic or bilinear"
        )
    sound = all(len(values) == 3 and all(map(is_number, values)) for values in (found.mean, found.std))
    if not sound or not min(found.std) > 0:
        raise ValueError(f"its mean {found.mean!r:.100} and std {found.std!r:.100} are not those of three colours")
    return found


def _usual_preparation(name: str) -> Preparation:
    """Preparation of most weights that open_clip lists for an architecture, for a file that does not name its own."""
    listed = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    return Counter(map(_preparation, listed)).most_common(1)[0][0] if listed else Preparation()


def _fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> tuple:
    """Features that distinguish architectures without building them: the text tower's sizes, and which kind of image tower it is."""
    kinds = ("visual.trunk.", "visual.layer1.", "visual.conv1.")
    kind = next((kind for kind in kinds if any(key.startswith(kind) for key in shapes)), "")
    return kind, *(shapes.get(key, ()) for key in _TEXT_SHAPES), shapes.get("visual.conv1.weight", ())


@lru_cache(maxsize=8)
def _candidates(fingerprint: tuple) -> list[tuple[str, dict]]:
    """open_clip's architectures with these sizes, the ordinary activation first (a quick_gelu twin has the same shapes)."""
    kind, tokens, positions, conv1 = fingerprint
    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if (
            not isinstance(vision, dict)
            or not isinstance(text, dict)
            or text.get("hf_model_name")
            or "multimodal_cfg" in config
        ):
            continue
        sizes = (text.get("vocab_size", 49408), text["width"]), (text.get("context_length", 77), text["width"])
        if sizes != (tokens, positions):
            continue
        if "timm_model_name" in vision or kind == "visual.trunk.":
            fits = "timm_model_name" in vision and kind == "visual.trunk."
        elif isinstance(vision["layers"], list):
            fits = kind == "visual.layer1."
        else:
            fits = conv1 == (vision["width"], 3, vision["patch_size"], vision["patch_size"])
        if fits:
            found.append((name, config))
    return sorted(found, key=lambda item: (item[1].get("quick_gelu", False), item[0]))


def _shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in _build(config).state_dict().items()}


def _computes(config: dict) -> dict:
    """Part of a config that changes the features, but for the activation, which is asked for."""
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}


def _with_weights(model: CustomTextCLIP, config: dict, state_dict: dict[str, Tensor]) -> CustomTextCLIP:
    """The weights put into a model without any; what is computed and not stored (masks, rotary tables) is computed."""
    stored = model.state_dict().keys()
    computed = [name for name, _ in model.named_buffers() if name not in stored]
    if all(name == "text.attn_mask" for name in computed):
        model.load_state_dict(state_dict, strict=True, assign=True)
        if computed:
            with torch.device("cpu"):
                model.text.attn_mask = model.text.build_causal_mask()
        return model
    with torch.device("cpu"):
        model = _build(config)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model


def _build_from_file(path: Path, config: dict) -> CustomTextCLIP:
    """Build from a config that came with a file, which must not make open_clip fetch anything from the network."""
    for tower in (config.get("vision_cfg"), config.get("text_cfg")):
        if not isinstance(tower, dict) or not _is_offline(tower):
            raise CheckpointError(
                f"{path.name}: its config asks for no tower, or for one from the network, expected open_clip's own, or one of timm by its "
                "plain name."
            )
        layers = tower.get("layers", 1)
        stages = layers if isinstance(layers, list) else [layers]
        if not all(isinstance(number, int) for number in stages) or sum(stages) > MAX_LAYERS:
            raise CheckpointError(
                f"{path.name}: its config asks for {layers!r:.100} layers, expected a ViT's or a ResNet's number."
            )
    _check_sizes(path, config["vision_cfg"], config["text_cfg"])
    try:
        with torch.device("meta"):
            return _build(config)
    except Exception as error:  # whatever open_clip stumbles over, the config is what is wrong
        raise CheckpointError(f"{path.name}: no CLIP can be built from its config: {error!r}.") from error


def _check_sizes(path: Path, vision: Mapping, text: Mapping) -> None:
    """Refuse what takes memory that the file's own tensors do not: masks, and positions that are computed."""
    size = vision.get("image_size", 224)
    sides = size if isinstance(size, list) else [size]
    patch, positions = vision.get("patch_size", 16), text.get("context_length", 77)
    widths = [value for tower in (vision, text) if (value := tower.get("width")) is not None]
    numbers = (*sides, patch, positions, *widths)
    if not sides or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise CheckpointError(
            f"{path.name}: its config asks for sizes of {numbers!r:.100}, expected positive whole numbers."
        )
    if positions > MAX_POSITIONS or max(widths, default=1) > MAX_WIDTH:
        raise CheckpointError(
            f"{path.name}: its config asks for {positions!r:.20} tokens of a text and widths of {widths!r:.100}, expected at most "
            f"{MAX_POSITIONS} and {MAX_WIDTH}."
        )
    check_input(max(sides), patch)


def _is_offline(tower: Mapping) -> bool:
    """Return true if open_clip builds this tower without a download."""
    if tower.get("hf_model_name") or tower.get("timm_model_pretrained"):
        return False
    return not any(sign in str(tower.get("timm_model_name", "")) for sign in ":/\\")  # such as hf-hub:...


def _build(config: dict) -> CustomTextCLIP:
    known = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    return CustomTextCLIP(**{key: config[key] for key in known if key in config})
