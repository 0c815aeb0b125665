"""Files that lie, for tests of readers: pickles, zip archives and safetensors files with parts of one's own, and small sound ones."""

import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from .original_layout import MINUTE, save_original

TINY_PIXEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 1, "layers": 1},
}
TRANSFORMERS = {
    "model_type": "clip", "projection_dim": 8,
    "vision_config": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 6,
        "vocab_size": 20,
    },
}  # fmt: skip
OWN = {
    "latent_space": "mine",
    "latent_space_record": json.dumps({"name": "mine", "channels": 4, "downscale": 8, "scale": [1.0, 1.0, 1.0, 2.0]}),
    "channels": json.dumps({"mean": [0.0] * 4, "std": [1.0] * 4}),
    "vae": json.dumps({"name": "v.safetensors", "signature": {"encoder.conv_in.weight": [0.1] * 8}}),
}
DEEP = "[" * 100_000
HUGE = "1" + "0" * 400


class Program(torch.nn.Module):
    """A CLIP as OpenAI's file has it."""

    def __init__(self, clip: CLIP):
        super().__init__()
        for name in ("visual", "transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(clip, name))

    def forward(self, image):
        return self.visual(image)


def sound_files(folder: Path) -> dict[str, Path]:
    """One small sound file for each reader, by its kind."""
    from ..models.checkpoint import read_checkpoint, safetensors_metadata

    names = {
        "original": "original.pt", "ours": "ours.safetensors", "torch": "pixel.pt", "safetensors": "pixel.safetensors",
        "transformers": "hf.safetensors", "torchscript": "openai.pt",
    }  # fmt: skip
    files = {kind: folder / name for kind, name in names.items()}
    save_original(files["original"], MINUTE, vae_widths=(4, 4))
    checkpoint = read_checkpoint(files["original"])
    metadata = safetensors_metadata(checkpoint, files["original"]) | OWN
    save_file(checkpoint.state_dict, files["ours"], metadata)
    torch.manual_seed(0)
    clip = CLIP(**TINY_PIXEL, quick_gelu=True).train(False).requires_grad_(False)
    torch.save(clip.state_dict(), files["torch"])
    save_file(clip.state_dict(), files["safetensors"], {"config": json.dumps(TINY_PIXEL)})
    torch.jit.trace(Program(clip), torch.rand(1, 3, 16, 16)).save(str(files["torchscript"]))
    save_file(transformers_tensors(), files["transformers"])
    for kind, config in (("torch", TINY_PIXEL), ("torchscript", TINY_PIXEL), ("transformers", TRANSFORMERS)):
        files[kind].with_suffix(".json").write_text(json.dumps(config))
    return files


def transformers_tensors() -> dict[str, torch.Tensor]:
    """A CLIP of `TRANSFORMERS`."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "visual_projection.weight": (8, 64), "text_projection.weight": (8, 16),
        "vision_model.embeddings.class_embedding": (64,), "vision_model.embeddings.patch_embedding.weight": (64, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (5, 64), "text_model.embeddings.token_embedding.weight": (20, 16),
        "text_model.embeddings.position_embedding.weight": (6, 16),
    }  # fmt: skip
    norms = [("vision_model.pre_layrnorm", 64), ("vision_model.post_layernorm", 64), ("text_model.final_layer_norm", 16)]
    for tower, width in (("vision_model", 64), ("text_model", 16)):
        block = f"{tower}.encoder.layers.0"
        norms += [(f"{block}.layer_norm1", width), (f"{block}.layer_norm2", width)]
        layers = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        shapes |= {f"{block}.{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {f"{name}.{part}": (width,) for name, width in norms for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# Pickles


def number(value: int) -> bytes:
    """The instruction that makes a number."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def text(value: str) -> bytes:
    """The instruction that makes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key: str, count: int, size: tuple, stride: tuple, offset: int = 0, storage: str = "FloatStorage") -> bytes:
    """The instructions that make a tensor of a storage of `count` numbers."""
    place = text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(count)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + place + b"tQ" + number(offset) + numbers(size) + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def state_dict(tensors: dict[str, bytes]) -> bytes:
    """The instructions that make a dict of tensors."""
    return b"\x80\x02}(" + b"".join(text(name) + made for name, made in tensors.items()) + b"u."


def laughs(deep: int) -> bytes:
    """Dicts that name the one before twice: 2 to the power of `deep` paths."""
    made = b"\x80\x02}"
    for place in range(deep):
        again = bytes([place])
        made += b"q" + again + b"}(" + text("a") + b"h" + again + text("b") + b"h" + again + b"u"
    return made + b"."


def instructions_changed(rng: random.Random, data: bytes) -> bytes:
    """Instructions left out, doubled, swapped, and numbers replaced."""
    ends = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    parts = [data[start:end] for start, end in pairwise(ends)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        one, other = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
        choice = rng.randrange(5)
        if choice == 0:
            parts[one] = b""
        elif choice == 1:
            parts.insert(one, parts[other])
        elif choice == 2:
            parts[one], parts[other] = parts[other], parts[one]
        elif choice == 3:
            parts.insert(one, rng.choice([b"0", b"(", b"t", b"R", b"b", b"s", b"u", b"a", b"N", b"}", b"]", b"\x85", b"Q", b"\x81", b"."]))
        else:
            places = [place for place, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J", b"\x8a")]
            parts[rng.choice(places)] = number(rng.choice([-1, 0, 1, 7, 2**31, 2**40, 2**63, -(2**63), 2**70]))
    return b"".join(parts)


# Archives


def torch_file(path: Path, instructions: bytes, members: dict[str, bytes] | None = None, program: bool = False) -> Path:
    """An archive as torch writes them, with instructions of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", instructions)
        archive.writestr("a/version", "3\n")
        if program:
            archive.writestr("a/code/x.py", "x")
        for name, content in (members or {}).items():
            archive.writestr(f"a/data/{name}", content)
    return path


def add_zeros(path: Path, name: str, size: int) -> Path:
    """Add a member of `size` zeros, compressed."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(size >> 22):
            member.write(bytes(1 << 22))
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """An archive whose members are changed, under sizes and checksums that are right."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            other.writestr(name, change(name, archive.read(name)))
    return target


# safetensors


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and numbers of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | bytes, data: bytes) -> bytes:
    """A safetensors file."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def with_metadata(source: Path, target: Path, metadata: dict[str, str]) -> Path:
    """A safetensors file that says something else of itself."""
    header, data = split(source.read_bytes())
    target.write_bytes(joined(header | {"__metadata__": header.get("__metadata__", {}) | metadata}, data))
    return target


def header_changed(rng: random.Random, data: bytes) -> bytes:
    """Other shapes, dtypes, offsets and names of tensors."""
    header, numbers = split(data)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice([1, 2, 5])):
        name, other = rng.choice(names), rng.choice(names)
        entry = header[name]
        choice = rng.randrange(5)
        if choice == 0:
            entry["shape"] = rng.choice([[], [0], [-1], [2**63], [1] * 70, [*entry["shape"], 1], entry["shape"][::-1], None, [1.5], ["a"]])
        elif choice == 1:
            entry["dtype"] = rng.choice(["F16", "F64", "I32", "BOOL", "F8_E4M3", "F4", "C64", "X", None])
        elif choice == 2:
            entry["data_offsets"] = rng.choice([[0, 0], [5, 1], [0, 2**63], [0], None, header[other]["data_offsets"]])
        elif choice == 3:
            header[name], header[other] = header[other], header[name]
        else:
            header[rng.choice(["visual.more", "module." + name, "x" * 5000, "\n"])] = entry
    return joined(header, numbers)
