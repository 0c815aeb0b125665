"""What the loader accepts, what it leaves alone, and what each bad file is told."""

import hashlib
import json
import os
import pickle
import re
import struct
import sys
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from latent_clip.models.checkpoint import (
    CheckpointError,
    original_to_custom_text,
    read_checkpoint,
    read_tensors,
    safetensors_metadata,
)
from latent_clip.models.config import MAX_LAYERS
from latent_clip.models.pixel_clip import read_pixel_clip
from latent_clip.tests.original_layout import (
    MINUTE,
    original_checkpoint,
    original_shapes,
    random_weights,
    rewrite_pickle,
    save_original,
)

WEIGHTS = random_weights(original_shapes(MINUTE, (8, 8)))
STATE_DICT = original_to_custom_text(WEIGHTS)
PROJ = "visual.latent_vit.proj"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant", "ignore:TypedStorage")
NUMPY_NAMES = (b"numpy.core.multiarray", b"numpy._core.multiarray")


def write_original(path: Path, **changed) -> None:
    """An original-layout file with some tensors replaced, added, or left out (None)."""
    weights = {key: value for key, value in {**WEIGHTS, **changed}.items() if value is not None}
    torch.save(original_checkpoint(weights, optimizer=False), path)


def write_ours(path: Path, metadata: dict[str, str] | None = None, **changed) -> None:
    save_file({**STATE_DICT, **changed}, path, metadata)


def config_metadata(vision: dict | None = None, text: dict | None = None, **top) -> dict[str, str]:
    config = {
        **MINUTE,
        "vision_cfg": MINUTE["vision_cfg"] | (vision or {}),
        "text_cfg": MINUTE["text_cfg"] | (text or {}),
    }
    return {"config": json.dumps(config | top)}


# What is accepted


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "epoch_34.pt"
    save_original(path, MINUTE, vae_widths=(8, 8))
    return path


def assert_same_tensors(checkpoint, expected=STATE_DICT):
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("spelling", NUMPY_NAMES)
def test_originals_numpy_scalars_under_both_names(original, tmp_path, spelling):
    path = tmp_path / "epoch_34.pt"
    pickled = []

    def respell(data: bytes) -> bytes:
        for name in NUMPY_NAMES:
            data = data.replace(b"c" + name + b"\nscalar\n", b"c" + spelling + b"\nscalar\n")
        pickled.append(data)
        return data

    rewrite_pickle(original, path, respell)
    assert spelling + b"\nscalar\n" in pickled[0]
    allowed = torch.serialization.get_safe_globals()  # the host, where it is in this process, allows some
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):  # so the file does hold one
            torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert_same_tensors(read_checkpoint(path))


def test_original_loses_prefix_vae_and_optimizer(original):
    checkpoint = read_checkpoint(original)
    assert_same_tensors(checkpoint)
    assert checkpoint.config == MINUTE
    assert checkpoint.space.name == "sdxl"
    assert checkpoint.name == "epoch_34"
    assert checkpoint.dropped == sum("vae_" in key for key in WEIGHTS)


def test_our_format_says_what_it_is(original, tmp_path):
    path = tmp_path / "converted.safetensors"
    metadata = safetensors_metadata(read_checkpoint(original), original)
    assert metadata["source_sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
    write_ours(path, {**metadata, "latent_space": "shapes-world"})
    checkpoint = read_checkpoint(path)
    assert_same_tensors(checkpoint)
    assert checkpoint.config == MINUTE
    assert checkpoint.space.name == "shapes-world"
    assert checkpoint.dropped == 0


def test_half_precision_stays_half(tmp_path):
    write_ours(tmp_path / "half.safetensors", **{"visual.proj": STATE_DICT["visual.proj"].half()})
    assert read_checkpoint(tmp_path / "half.safetensors").state_dict["visual.proj"].dtype == torch.float16


@pytest.mark.parametrize("wrap", [dict, lambda config: {"model_cfg": config}], ids=["bare", "open_clip"])
@pytest.mark.parametrize("write", [write_original, write_ours])
def test_config_beside_the_file_tells_what_shapes_cannot(tmp_path, write, wrap):
    config = json.loads(config_metadata({"head_width": 16, "latent_encoder_name": "some/vae"})["config"])
    (tmp_path / "clip.json").write_text(json.dumps(wrap(config)))
    write(tmp_path / "clip.weights")
    vision = read_checkpoint(tmp_path / "clip.weights").config["vision_cfg"]
    assert vision == {**MINUTE["vision_cfg"], "head_width": 16}


@pytest.mark.parametrize("wrap", [dict, lambda tensors: {"state_dict": tensors, "epoch": 3, "shape": torch.Size([2])}], ids=["bare", "wrapped"])
def test_tensors_of_a_pickle_are_those_that_torch_reads(tmp_path, wrap):
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with_attribute = base.clone()
    with_attribute.note = 1
    tensors = {
        "whole": base, "turned": base.t(), "part": base[1:3, ::2], "row": base[2], "number": torch.tensor(3.5), "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base.clone()), "with an attribute": with_attribute, "flags": torch.tensor([True, False]),
        "half": base.half(), "brain": base.bfloat16(), "double": base.double(), "whole numbers": torch.arange(5),
        "eight bits": base.to(torch.float8_e4m3fn),
    }  # fmt: skip
    torch.save(wrap(tensors), tmp_path / "file")
    found, _ = read_tensors(tmp_path / "file")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(found[name].double(), tensor.double())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_vae_and_optimizer_are_never_read_into_memory(tmp_path):
    megabyte = 1 << 18  # float32 values
    content = original_checkpoint({**WEIGHTS, "visual.vae_encoder.large": torch.ones(64 * megabyte)})
    content["optimizer"]["state"][0]["exp_avg"] = torch.ones(64 * megabyte)
    torch.save(content, tmp_path / "epoch_34.pt")
    del content
    before = resident_bytes()
    checkpoint = read_checkpoint(tmp_path / "epoch_34.pt")
    assert resident_bytes() - before < 16 << 20
    assert_same_tensors(checkpoint)


# What is refused, and what the message says


def sdxl_checkpoint(path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}, path)


def pixel_clip(path):
    write_ours(path, **{"visual.conv1.weight": torch.zeros(64, 3, 4, 4)})


def transformers_clip(path):
    save_file({"vision_model.embeddings.patch_embedding.weight": torch.zeros(768, 3, 32, 32)}, path)


def truncated(write, keep):
    def write_part(path):
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return write_part


def header(entries: dict, data: bytes = b"\0" * 64, length: int | None = None):
    """A safetensors file with a header of one's own."""

    def write(path):
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)

    return write


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zip_of_a_document(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def zip_of_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/model.safetensors", b"")


def torchscript_clip(path):
    """A real TorchScript archive; the file of OpenAI's CLIP has the same form."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def diffusers_folder(path):
    path.mkdir()
    (path / "model_index.json").write_text("{}")


def text(content: str):
    return lambda path: path.write_text(content, encoding="utf-8")


def named(key: str):
    return lambda path: save_file({key: torch.zeros(4)}, path)


def nested(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([tensor])


PLAIN = torch.zeros(64, 8)  # the shape of PROJ
NO_FILES = {
    "a folder": (lambda path: path.mkdir(), "a folder, expected a file"),
    "nothing": (lambda path: None, "no such file"),
    "an empty file": (lambda path: path.touch(), "an empty file"),
    "a text file": (lambda path: path.write_text("my notes"), "neither a safetensors file nor a torch"),
    "an unzipped pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "neither a safetensors file nor"),
    "a torch file of 2019": (
        lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False),
        "neither a safetensors file nor",
    ),
    "a zipped document": (
        zip_of_a_document,
        "a zip archive that starts with 'word/document.xml', not a torch checkpoint",
    ),
    "half a pickle": (truncated(write_original, 0.5), "not a readable torch checkpoint"),
    "nearly a whole pickle": (truncated(write_original, 0.999), "not a readable torch checkpoint"),
    "half a safetensors file": (truncated(write_ours, 0.5), "damaged safetensors file"),
    "seven bytes": (lambda path: path.write_bytes(b"PK\3\4abc"), "not a readable torch checkpoint"),
}
LYING_HEADERS = {
    "offsets beyond the end": (header({"a": entry(0, 4096, [1024])}), "damaged safetensors file"),
    "offsets that overlap": (header({"a": entry(0, 32, [8]), "b": entry(16, 48, [8])}), "damaged safetensors file"),
    "offsets that run backwards": (header({"a": entry(32, 0, [8])}), "damaged safetensors file"),
    "a shape that is too large": (header({"a": entry(0, 64, [1 << 40])}), "damaged safetensors file"),
    "a shape that overflows": (header({"a": entry(0, 64, [1 << 62, 1 << 62])}), "damaged safetensors file"),
    "an unknown dtype": (header({"a": entry(0, 64, [16], "F99")}), "damaged safetensors file"),
    "a huge header length": (header({}, length=1 << 62), "damaged safetensors file"),
    "a header longer than the file": (header({}, length=4096), "damaged safetensors file"),
    "no tensors": (header({}, b""), "holds no tensors"),
    "tensors of no model": (header({"a": entry(0, 64, [16])}), "no architecture can be read.*first keys are a"),
}
OTHER_CONTENT = {
    "a list": (lambda path: torch.save([PLAIN], path), "expected a state_dict of tensors, got list"),
    "a tensor": (lambda path: torch.save(PLAIN, path), "expected a state_dict of tensors, got Tensor"),
    "numbers among the weights": (lambda path: torch.save({"state_dict": {"a": 1}}, path), "with other content"),
    "a whole module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "pickles can run code"),
    "a pixel CLIP": (pixel_clip, "reads pixels, expected one that reads latents. Use it with 'Reward: Pixel CLIP'"),
    "a transformers CLIP": (
        transformers_clip,
        "a CLIP that reads pixels, in the layout of transformers.*'Reward: Pixel CLIP'",
    ),
    "OpenAI's program": (
        torchscript_clip,
        "a TorchScript program, as OpenAI published CLIP.*'Reward: Pixel CLIP' reads it",
    ),
    "an SDXL checkpoint": (sdxl_checkpoint, "a diffusion checkpoint.*'Load Checkpoint'"),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6047313952\n"
# what people put into both folders, and what both loaders say
KNOWN_FILES = {
    "an image tower": (transformers_clip, "a CLIP that reads pixels, in the layout of transformers, as in models/clip_vision"),
    "HPSv3": (named("model.visual.blocks.0.attn.qkv.weight"), "HPSv3, or another reward model built on.*HPS_v2.1_compressed.pt"),
    "MPS": (named("cross_model.layers.0.0.weight"), "MPS, which reads text and picture together.*HPS_v2.1"),
    "CoCa": (named("text_decoder.text_projection"), "a CoCa, which also writes.*laion/CLIP-ViT-L-14"),
    "XLM-RoBERTa": (named("text.transformer.embeddings.word_embeddings.weight"), "a model of transformers.*laion/CLIP-ViT-B-32"),
    "an aesthetic predictor": (named("layers.0.weight"), "an aesthetic predictor, a head that has no image tower"),
    "an LFS pointer": (text(POINTER), "a Git LFS pointer.*git lfs pull"),
    "a web page": (text("<!DOCTYPE html>\n<html><body>Sign in</body></html>"), "a web page.*/resolve/ in it, not /blob/"),
    "a web page after a byte order mark": (text("\ufeff \n<html>404</html>"), "a web page"),
    "a server's answer": (text('{"error": "Repository is gated"}'), "a server's answer.*download again"),
    "a server's refusal": (text("Access to model x is restricted."), "a server's answer"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0" + b"\0" * 64), "a GGUF file.*as .safetensors"),
    "a tar.gz": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + b"\0" * 64), "a packed archive"),
    "a zip of weights": (zip_of_weights, "a zip archive that starts with 'clip/model.safetensors'.*Unpack it"),
    "a diffusers folder": (diffusers_folder, "a diffusers folder.*'Load Checkpoint'"),
    "a diffusers U-Net": (named("down_blocks.0.resnets.0.conv1.weight"), "of a diffusers folder.*'Load Checkpoint'"),
    "a VAE": (named("decoder.conv_in.weight"), "a VAE. Use it with 'Load VAE'"),
    "a text encoder": (named("text_model.embeddings.position_embedding.weight"), "a text encoder.*'Load CLIP'"),
    "a LoRA": (named("lora_unet_down_blocks_0.lora_up.weight"), "a LoRA.*'Load LoRA'"),
    "ImageReward": (named("blip.visual_encoder.cls_token"), "ImageReward, which is a BLIP"),
    "a checkpoint": (sdxl_checkpoint, "a diffusion checkpoint. Use it with 'Load Checkpoint'"),
}  # fmt: skip
WRONG_TENSORS = {
    "one missing": ({PROJ: None}, "no architecture can be read.*visual.proj"),
    "a bias missing": ({"ln_final.bias": None}, r"1 missing \(first: text.ln_final.bias\)"),
    "one more": ({"visual.latent_vit.more": PLAIN}, r"1 unexpected \(first: visual.more\)"),
    "many more": ({f"more.{i}": PLAIN for i in range(9)}, r"9 unexpected \(first: more.0, more.1, more.2\)"),
    "an odd name": ({"a\nb" * 1000: PLAIN}, r"unexpected \(first: a ba b.{0,100}\)\.$"),
    "another shape": ({"ln_final.bias": torch.zeros(3)}, r"1 of another shape \(first: text.ln_final.bias \(3,\) instead of \(16,\)"),
    "the same twice": ({"visual.proj": PLAIN}, "Two tensors of the file are both visual.proj"),
    "decoded features": ({"visual.latent_vit.conv1.weight": torch.zeros(64, 512, 4, 4)}, "takes 512 channels, but sdxl latents have 4"),
    "NaN": ({PROJ: PLAIN * float("nan")}, "visual.proj holds NaN or infinite values"),
    "infinity": ({PROJ: PLAIN + float("inf")}, "visual.proj holds NaN or infinite values"),
    "integers": ({PROJ: PLAIN.int()}, "visual.proj is torch.int32, expected float32"),
    "eight bits": ({PROJ: PLAIN.to(torch.float8_e4m3fn)}, "visual.proj is torch.float8_e4m3fn"),
    "complex": ({PROJ: PLAIN.to(torch.complex64)}, "visual.proj is torch.complex64"),
    "a sparse one": ({PROJ: PLAIN.to_sparse()}, "not a plain dense tensor"),
    "a meta one": ({PROJ: PLAIN.to("meta")}, "not a plain dense tensor"),
    "a quantised one": ({PROJ: torch.quantize_per_tensor(PLAIN, 0.1, 0, torch.qint8)}, "not a plain dense tensor"),
    "a nested one": ({PROJ: nested(PLAIN)}, "not a plain dense tensor"),
    "a petabyte by strides": ({"token_embedding.weight": torch.zeros(1, 1).expand(10**15, 16)}, "not a plain dense tensor"),
    "no patch": ({"visual.latent_vit.conv1.weight": torch.zeros(64, 4, 0, 0)}, "image_size = 0, expected a positive number"),
    "a flat patch": ({"visual.latent_vit.conv1.weight": torch.zeros(64)}, "no architecture can be read"),
}  # fmt: skip
WRONG_METADATA = {
    "broken JSON": ({"config": "{"}, "no architecture can be read"),
    "bottomless JSON": ({"config": "[" * 100_000}, "no architecture can be read.*it is nested too deeply"),
    "a list": ({"config": "[]"}, "no architecture can be read"),
    "no vision tower": ({"config": '{"vision_cfg": null}'}, "no architecture can be read"),
    "no text tower": (config_metadata(text_cfg=None), "Got None in its text_cfg"),
    "no width": (config_metadata(embed_dim=None), "embed_dim = None, expected a positive number"),
    "words for numbers": (config_metadata({"width": "64"}), "width = '64', expected a positive number"),
    "a negative number": (config_metadata(text={"layers": -1}), "layers = -1, expected a positive number"),
    "no number": (config_metadata({"mlp_ratio": float("nan")}), "no architecture can be read.*it has the number NaN, expected a finite one"),
    "a tower of Babel": (config_metadata({"layers": MAX_LAYERS + 1}), f"layers = {MAX_LAYERS + 1}, expected at most {MAX_LAYERS}"),
    "heads that do not divide": (config_metadata(text={"heads": 5}), "No Latent-CLIP can be built from this config"),
    "a tower from the network": (config_metadata(text={"hf_model_name": "roberta-base"}), "the unknown hf_model_name in its text_cfg"),
    "a timm tower": (config_metadata({"timm_model_name": "vit"}), "the unknown timm_model_name in its vision_cfg"),
    "another architecture": (config_metadata({"layers": 2}), r"12 missing \(first: visual.transformer.resblocks.1.ln_1.weight"),
    "decoder layers": (config_metadata({"latent_n_decoding_layers": 2}), "features of 2 VAE decoder layers.*not supported"),
    "an unknown space": ({"latent_space": "sd9"}, "unknown latent space 'sd9'; known: sdxl,"),
    "a space of 16 channels": ({"latent_space": "flux"}, "takes 4 channels, but flux latents have 16"),
}  # fmt: skip


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def table(rows: dict):
    return pytest.mark.parametrize(("content", "message"), rows.values(), ids=rows)


@table(NO_FILES | LYING_HEADERS | OTHER_CONTENT)
def test_no_checkpoint_is_told_what_it_is(tmp_path, content, message):
    content(tmp_path / "file")
    refused(tmp_path / "file", message)


@table(KNOWN_FILES)
def test_known_files_are_told_what_they_are_and_what_to_get(tmp_path, content, message):
    content(tmp_path / "file")
    refused(tmp_path / "file", message)
    with pytest.raises(CheckpointError, match=message):
        read_pixel_clip(tmp_path / "file")


@pytest.mark.parametrize(("extra", "name"), [(os.path.join, "posixpath.join"), (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), (Fraction(1, 2), "fractions.Fraction")])  # fmt: skip
def test_what_a_pickle_asks_for_is_named_in_plain_text(tmp_path, extra, name):
    """Not torch's text, which is coloured for a terminal and advises to load without protection."""
    torch.save({"state_dict": WEIGHTS, "extra": extra}, tmp_path / "file")
    refused(tmp_path / "file", rf"holds more than tensors.*\(it asks for {re.escape(name)}\)")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "file")
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64"])  # fmt: skip
def test_plain_numpy_scalars_in_the_optimizer_are_read(tmp_path, dtype):
    torch.save({"state_dict": WEIGHTS, "optimizer": {"lr": numpy.dtype(dtype).type(1)}}, tmp_path / "file")
    assert_same_tensors(read_checkpoint(tmp_path / "file"))


@pytest.mark.parametrize("value", [numpy.array([1, "a"], dtype=object), numpy.zeros(3), numpy.str_("a")], ids=["objects", "array", "text"])  # fmt: skip
def test_other_numpy_values_stay_refused(tmp_path, value):
    torch.save({"state_dict": WEIGHTS, "optimizer": {"lr": value}}, tmp_path / "file")
    refused(tmp_path / "file", "it asks for numpy")


@table(WRONG_TENSORS)
def test_wrong_tensors_are_named(tmp_path, content, message):
    write_original(tmp_path / "file", **content)
    refused(tmp_path / "file", message)


@table(WRONG_METADATA)
def test_wrong_metadata_is_named(tmp_path, content, message):
    write_ours(tmp_path / "file", content)
    refused(tmp_path / "file", message)


def test_wrong_config_beside_the_file_is_named(tmp_path):
    write_original(tmp_path / "clip.pt")
    (tmp_path / "clip.json").write_bytes(b"\xff\xfe{")
    refused(tmp_path / "clip.pt", "no architecture can be read")


def test_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    refused(tmp_path / "clip.pt", "cannot be read.*Permission denied")


# Pickles can run code. Ours must not.


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


PLACES = {
    "a bare pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    "the file": torch.save,
    "a weight": lambda payload, path: torch.save({"state_dict": {"a": payload}}, path),
    "the optimizer": lambda payload, path: torch.save(
        {**original_checkpoint(WEIGHTS), "optimizer": {"state": payload}}, path
    ),
}


@pytest.mark.parametrize("hide", PLACES.values(), ids=PLACES)
def test_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path, hide):
    marker = tmp_path / "ran"
    hide(Payload(marker), tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", "pickles can run code|neither a safetensors file nor")
    assert not marker.exists()


def test_payload_above_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()
