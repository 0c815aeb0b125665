"""Read Latent-CLIP checkpoints, the authors' pickles and our safetensors, and trust neither.

Two layouts are known. The *original* (`epoch_34.pt`) is a torch pickle with the optimizer and the frozen VAE encoder
beside the two towers, every key behind the DDP prefix `module.`. *Ours* is a safetensors file with the towers alone, in
open_clip's custom-text layout (`visual.*`, `text.*`, `logit_scale`) and the architecture in its metadata.
Both are memory-mapped, so what is not needed is never read.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import known_files
from .config import check_config, infer_config, name_of_config
from .latent_spaces import LatentSpace
from .own_spaces import OWN_SPACE, space_as_dict, space_of_metadata

FORMAT_VERSION = "1"
LOGGER = logging.getLogger(__name__)

# The optimizer state of an original checkpoint holds numpy scalars; under numpy 1 and 2 their constructor has two names.
# A scalar is its dtype and its bytes: plain numbers only, never objects.
_NUMPY_SCALAR = numpy.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Callable | tuple[Callable, str]] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    numpy.dtype,
    *dict.fromkeys(type(numpy.dtype(code)) for code in "?bhilqBHILQefd"),
]
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckpointError(ValueError):
    """A file that is no checkpoint of the expected kind; the message says what it is and what to do."""


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
    tensors, metadata = read_tensors(path)
    state_dict = original_to_custom_text(tensors)
    _refuse_other_models(path, state_dict)
    space = _find_space(path, metadata)
    config = _find_config(path, metadata, state_dict, space.downscale)
    check_keys(path, state_dict, expected_shapes(config))
    check_weights(path, state_dict)
    if config["vision_cfg"]["latent_n_channels"] != space.channels:
        raise CheckpointError(
            f"{path.name}: its patch convolution takes {config['vision_cfg']['latent_n_channels']} channels, "
            f"but {space.name} latents have {space.channels}. Either the file's latent_space is wrong, or it is a variant that reads decoded features."
        )
    name = name_of_config(config) or path.stem
    return Checkpoint(name, config, space, state_dict, len(tensors) - len(state_dict), metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors of a safetensors file or torch pickle.

    Returns:
        (state_dict without the DDP prefix, safetensors metadata or {}).

    Raises:
        CheckpointError: missing, damaged, neither format, or holding anything but tensors and plain numbers.
    """
    metadata: dict[str, str] = {}
    start = _read_start(path)
    if start.startswith(b"PK\x03\x04"):
        tensors = _read_pickle(path)
    elif start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    elif known := known_files.of_start(start):
        raise CheckpointError(f"{path.name}: {known}")
    else:
        raise CheckpointError(f"{path.name}: neither a safetensors file nor a torch checkpoint. Download it again.")
    if not tensors:
        raise CheckpointError(f"{path.name}: holds no tensors.")
    for key, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"{path.name}: {_names([key])} is not a plain dense tensor with all its values in the file."
            )
    return _renamed(tensors, lambda key: key.removeprefix("module.")), metadata


def _read_start(path: Path) -> bytes:
    if path.is_dir():
        known = known_files.of_folder(path) or "a folder, expected a file. Choose a file in it."
        raise CheckpointError(f"{path.name}: {known}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.name}: no such file. Put Latent-CLIP weights into ComfyUI/models/latent_clip."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error}). Check its permissions and the disk.") from error
    if not start:
        raise CheckpointError(f"{path.name}: an empty file. Download it again.")
    return start


def _is_plain(tensor: Tensor) -> bool:
    """No sparse, quantised, nested or meta tensor, and none whose strides claim more numbers than the file holds."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _renamed(tensors: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if rename(key) in renamed:
            raise CheckpointError(
                f"Two tensors of the file are both {_names([rename(key)])}, expected one. It mixes two layouts."
            )
        renamed[rename(key)] = tensor
    return renamed


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name}: damaged safetensors file ({error}). Download or convert it again."
        ) from error


def _load_tensors_only(source: Path | BinaryIO) -> object:
    """The one place where a pickle is opened: tensors only, no code is run, pages of a file are read when touched."""
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        return torch.load(source, map_location="cpu", mmap=isinstance(source, Path), weights_only=True)


def read_tensor_bytes(content: bytes, name: str) -> Tensor:
    """The one tensor of a small torch file, as the authors' shards of latents hold them.

    Raises:
        CheckpointError: it is damaged, or holds anything but one tensor.
    """
    try:
        tensor = _load_tensors_only(io.BytesIO(content))
    except Exception as error:  # as in _read_pickle
        raise CheckpointError(
            f"{name}: not a readable torch tensor, or it holds more than tensors, which is refused because pickles can run code "
            f"({_what_torch_refused(str(error)) or type(error).__name__})."
        ) from error
    if not isinstance(tensor, Tensor) or not _is_plain(tensor):
        raise CheckpointError(f"{name}: expected one plain tensor, got {type(tensor).__name__}.")
    return tensor


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """See `_load_tensors_only`."""
    if known := known_files.of_zip(path):
        raise CheckpointError(f"{path.name}: {known}")
    try:
        content = _load_tensors_only(path)
    except Exception as error:  # a damaged pickle can fail with nearly any type; every one means the same to the user
        raise CheckpointError(
            f"{path.name}: not a readable torch checkpoint, or it holds more than tensors, which is refused because "
            f"pickles can run code ({_what_torch_refused(str(error)) or type(error).__name__}). Download it again from its authors."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()
    ):
        raise CheckpointError(
            f"{path.name}: expected a state_dict of tensors, got {type(content).__name__} with other content."
        )
    return tensors


def _what_torch_refused(message: str) -> str:
    """The name that torch stumbled over, or the first line. Torch's own text goes on to advise loading without its protection."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    if name := re.search(r"(?:GLOBAL |got <class '|Unsupported class )([\w.]+)", message):
        return f"it asks for {name[1][:100]}"
    first = message.partition("\n")[0][:200]
    return "" if first.startswith("Weights only load failed") else first


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
    return _renamed({key: tensor for key, tensor in state_dict.items() if not key.startswith(vae)}, rename)


def _refuse_other_models(path: Path, state_dict: dict[str, Tensor]) -> None:
    conv1 = state_dict.get("visual.conv1.weight")
    if conv1 is not None and conv1.ndim == 4 and conv1.shape[1] == 3:
        raise CheckpointError(
            f"{path.name}: a CLIP that reads pixels, expected one that reads latents. Use it with 'Reward: Pixel CLIP'."
        )
    if conv1 is None and (known := known_files.of_tensors(state_dict)):
        raise CheckpointError(f"{path.name}: expected a Latent-CLIP, got {known}")


def _find_space(path: Path, metadata: dict[str, str]) -> LatentSpace:
    """What the file says of itself; shapes never decide."""
    try:
        return space_of_metadata(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {error}.") from error


def _find_config(path: Path, metadata: dict[str, str], state_dict: dict[str, Tensor], downscale: int) -> dict:
    """The architecture from the file's metadata, else from `<stem>.json` beside it, else from the shapes."""
    beside = path.with_suffix(".json")
    try:
        if "config" in metadata:
            config = json.loads(metadata["config"])
        elif beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
            config = config.get("model_cfg", config)
        else:
            shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
            config = infer_config(shapes, downscale)
            LOGGER.info("%s: architecture read off its shapes: %s", path.name, name_of_config(config) or config)
        decoding_layers = config["vision_cfg"].get("latent_n_decoding_layers", 0)
        config["vision_cfg"].pop("latent_encoder_name", None)
        config["vision_cfg"].setdefault("latent_factor", downscale)
        config["vision_cfg"].setdefault("latent_n_channels", state_dict["visual.conv1.weight"].shape[1])
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        ZeroDivisionError,
        OSError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path.name}: not a Latent-CLIP checkpoint, no architecture can be read from it ({error!r}); "
            f"its first keys are {_names(state_dict)}."
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
        f"{len(keys)} {what} (first: {_names(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path.name}: its tensors do not fit the architecture: {'; '.join(problems)}.")


def check_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Every tensor must hold finite floating-point numbers.

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


def _names(keys: Iterable[str]) -> str:
    """The first three, as one line however odd they are."""
    return ", ".join(" ".join(key.split())[:100] for key in islice(keys, 3))


def safetensors_metadata(checkpoint: Checkpoint, source: Path) -> dict[str, str]:
    """Metadata of our format: version, architecture, latent space, and the sha256 of the file it was made from."""
    return {
        **checkpoint.metadata,
        "format": "latent-clip",
        "format_version": FORMAT_VERSION,
        "name": checkpoint.name,
        "config": json.dumps(checkpoint.config),
        "latent_space": checkpoint.space.name,
        OWN_SPACE: json.dumps(space_as_dict(checkpoint.space)),
        "source_file": source.name,
        "source_sha256": sha256_of(source),
    }


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
