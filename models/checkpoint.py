"""Read Latent-CLIP checkpoints, the authors' pickles and our safetensors, and trust neither.

Two layouts are known. The *original* (`epoch_34.pt`) is a torch pickle with the optimizer and the frozen VAE encoder
beside the two towers, every key behind the DDP prefix `module.`. *Ours* is a safetensors file with the towers alone, in
open_clip's custom-text layout (`visual.*`, `text.*`, `logit_scale`) and the architecture in its metadata.
Both are memory-mapped, so what is not needed is never read.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import known_files
from .config import check_config, infer_config, name_of_config
from .file_metadata import decode, latent_clip_metadata, space_of_metadata, statistics_of, vae_of
from .latent_spaces import LatentSpace
from .strict_json import read_json
from .tensor_files import CheckpointError, first_names, naming, read_tensors, renamed
from .tensor_files import read_tensor_bytes as read_tensor_bytes

LOGGER = logging.getLogger(__name__)

LARGEST_LOGIT_SCALE = 10
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A verified Latent-CLIP.

    Attributes:
        name: published architecture name, or the file's stem.
        config: open_clip model config with the latent keys.
        space: the latent space that the image tower reads.
        state_dict: tensors in the layout and with the shapes of `LatentCLIP(config)`, mapped from the file.
        dropped: number of tensors of the file that were not kept (VAE, optimizer aside).
        metadata: what else a safetensors file says of itself.
    """

    name: str
    config: dict
    space: LatentSpace
    state_dict: dict[str, Tensor]
    dropped: int
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a Latent-CLIP checkpoint of either layout.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, holds more than tensors, or holds another architecture.
    """
    path = Path(path)
    with naming(path):
        return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> Checkpoint:
    tensors, metadata = read_tensors(path)
    state_dict = original_to_custom_text(tensors)
    _refuse_other_models(path, state_dict)
    space = space_of_metadata(metadata)
    statistics_of(metadata, space.channels)
    vae_of(metadata)
    config = _find_config(path, metadata, state_dict, space.downscale)
    check_keys(path, state_dict, expected_shapes(config))
    check_weights(path, state_dict)
    check_logit_scale(path, state_dict["logit_scale"])
    if config["vision_cfg"]["latent_n_channels"] != space.channels:
        raise CheckpointError(
            f"{path.name}: its patch convolution takes {config['vision_cfg']['latent_n_channels']} channels, "
            f"but {space.name} latents have {space.channels}. Either the file's latent_space is wrong, or it is a variant that reads decoded features."
        )
    name = name_of_config(config) or path.stem
    return Checkpoint(name, config, space, state_dict, len(tensors) - len(state_dict), metadata)


def original_to_custom_text(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original layout to open_clip's custom-text layout and leave out the frozen VAE encoder.

    A state_dict that already has that layout comes back unchanged.

    Raises:
        CheckpointError: a tensor is there under both names.
    """
    text_roots = ("positional_embedding", "text_projection", "transformer", "token_embedding", "ln_final")

    def rename(key: str) -> str:
        if key.split(".")[0] in text_roots:
            return f"text.{key}"
        return key.replace("visual.latent_vit.", "visual.", 1)

    vae = ("visual.vae_encoder.", "visual.vae_quant_conv.")
    return renamed({key: tensor for key, tensor in state_dict.items() if not key.startswith(vae)}, rename)


def _refuse_other_models(path: Path, state_dict: dict[str, Tensor]) -> None:
    conv1 = state_dict.get("visual.conv1.weight")
    if conv1 is not None and conv1.ndim == 4 and conv1.shape[1] == 3:
        raise CheckpointError(
            f"{path.name}: a CLIP that reads pixels, expected one that reads latents. Use it with 'Reward: Pixel CLIP'."
        )
    if conv1 is None and (known := known_files.of_tensors(state_dict)):
        raise CheckpointError(f"{path.name}: expected a Latent-CLIP, got {known}")


def _find_config(path: Path, metadata: dict[str, str], state_dict: dict[str, Tensor], downscale: int) -> dict:
    """Find the architecture in the file's metadata, else from `<stem>.json` beside it, else from the shapes."""
    beside = path.with_suffix(".json")
    try:
        if "config" in metadata:
            config = decode(metadata, "config")
        elif beside.is_file():
            config = read_json(beside)
            config = config.get("model_cfg", config)
        else:
            shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
            config = infer_config(shapes, downscale)
            LOGGER.info("%s: architecture read off its shapes: %s", path.name, name_of_config(config) or config)
        decoding_layers = config["vision_cfg"].get("latent_n_decoding_layers", 0)
        config["vision_cfg"].pop("latent_encoder_name", None)
        config["vision_cfg"].setdefault("latent_factor", downscale)
        config["vision_cfg"].setdefault("latent_n_channels", state_dict["visual.conv1.weight"].shape[1])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError, OSError) as error:
        raise CheckpointError(
            f"{path.name}: not a Latent-CLIP checkpoint, no architecture can be read from it ({error!r:.300}); "
            f"its first keys are {first_names(state_dict)}."
        ) from error
    if decoding_layers:
        raise CheckpointError(
            f"{path.name}: this variant reads features of {decoding_layers} VAE decoder layers, not latents, and is not supported. "
            "Use Latent-ViT-B-8-512 or Latent-ViT-B-4-512-plus."
        )
    try:
        check_config(config)
    except ValueError as error:
        raise CheckpointError(f"{path.name}: its architecture cannot be a Latent-CLIP. {error}") from error
    return config


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Key → shape of every tensor of `LatentCLIP(config)`.

    Raises:
        CheckpointError: open_clip cannot build such a model.
    """
    from .latent_clip import LatentCLIP

    try:
        with torch.device("meta"):
            return {key: tuple(tensor.shape) for key, tensor in LatentCLIP(config).state_dict().items()}
    except Exception as error:  # whatever open_clip stumbles over, the config is what is wrong
        raise CheckpointError(
            f"No Latent-CLIP can be built from this config: {error!r}. Config: {json.dumps(config)[:400]}"
        ) from error


def check_keys(path: Path, state_dict: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compare names and shapes strictly.

    Raises:
        CheckpointError: names the first missing, unexpected and misshapen keys.
    """
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    misshapen = [
        f"{key} {tuple(state_dict[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in state_dict and tuple(state_dict[key].shape) != shape
    ]
    problems = [
        f"{len(keys)} {what} (first: {first_names(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path.name}: its tensors do not fit the architecture: {'; '.join(problems)}.")


def check_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Refuse tensors that do not hold finite floating-point numbers.

    Raises:
        CheckpointError: names the first that does not.
    """
    for key, tensor in state_dict.items():
        if tensor.dtype not in _WEIGHT_DTYPES:
            raise CheckpointError(f"{path.name}: {key} is {tensor.dtype}, expected float32, float16 or bfloat16.")
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path.name}: {key} holds NaN or infinite values; the file is damaged. Download it again."
            )


def check_logit_scale(path: Path, tensor: Tensor) -> None:
    """Refuse a temperature that is not one plausible number: its exponential multiplies cosines; published ones are 4.6 to 4.8.

    Raises:
        CheckpointError: it is another kind of tensor, or so large that logits are no numbers.
    """
    if tensor.numel() != 1 or not abs(float(tensor.float())) <= LARGEST_LOGIT_SCALE:
        got = f"{float(tensor.float()):g}" if tensor.numel() == 1 else f"the shape {tuple(tensor.shape)}"
        raise CheckpointError(
            f"{path.name}: its logit_scale has {got}, expected one number of at most {LARGEST_LOGIT_SCALE}."
        )


def safetensors_metadata(checkpoint: Checkpoint, source: Path) -> dict[str, str]:
    """Return the metadata of a converted file: that of the source, with the sha256 of the file it was made from."""
    own = latent_clip_metadata(checkpoint.name, checkpoint.config, checkpoint.space)
    return {**checkpoint.metadata, **own, "source_file": source.name, "source_sha256": sha256_of(source)}


def sha256_of(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
