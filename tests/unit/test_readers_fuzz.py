"""Damaged and lying files for every reader of weights: each is read, or refused in one line that begins with the file's name."""

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latent_clip.host.scorers.tokenizers import tokenizer_of
from latent_clip.models.checkpoint import CheckpointError, read_checkpoint, read_tensor_bytes
from latent_clip.models.convert import convert
from latent_clip.models.file_metadata import statistics_of, unlike, vae_of
from latent_clip.models.latent_clip import identity, load_latent_clip
from latent_clip.models.pixel_clip import read_pixel_clip
from latent_clip.models.strict_json import read_json
from latent_clip.models.vae_signature import difference
from latent_clip.tests import hostile_files as hostile
from latent_clip.tests.unit.test_checkpoint_fuzz import ANY, header_length, header_numbers, zip_fields

pytestmark = pytest.mark.filterwarnings("ignore")
FILES_PER_KIND = 8


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    return hostile.sound_files(tmp_path_factory.mktemp("sound"))


def use_latent_clip(path: Path) -> None:
    """All that the host does with a file's content until the first score."""
    checkpoint = read_checkpoint(path)
    identity(load_latent_clip(checkpoint.config, checkpoint.state_dict))
    latents = torch.randn(1, checkpoint.space.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    assert checkpoint.space.to_raw(latents).isfinite().all()
    difference(vae_of(checkpoint.metadata), {"signature": {"encoder.conv_in.weight": [0.1] * 8}})
    if statistics := statistics_of(checkpoint.metadata, checkpoint.space.channels):
        unlike(latents, statistics)


def use_pixel_clip(path: Path) -> None:
    clip = read_pixel_clip(path)
    identity(clip.model)
    assert torch.tensor([*clip.mean, *clip.std, clip.logit_scale, clip.logit_bias or 0]).isfinite().all()
    assert clip.image_size > 0


USES = {"original": use_latent_clip, "ours": use_latent_clip}  # of any other kind: use_pixel_clip


def outcome(use: Callable[[Path], object], path: Path, case: object = "") -> str:
    try:
        use(path)
    except CheckpointError as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f"{case}: raised {error!r}") from error
    else:
        return "read"
    assert refusal.startswith(f"{path.name}: "), f"{case}: {refusal}"
    assert "\n" not in refusal and len(refusal) < 1200, f"{case}: {refusal}"
    return "refused"


def copied(source: Path, folder: Path, name: str) -> Path:
    """Path for a changed copy, with the config that lies beside the file."""
    path = folder / f"{name}{source.suffix}"
    if source.with_suffix(".json").exists():
        shutil.copy(source.with_suffix(".json"), path.with_suffix(".json"))
    return path


BYTES = [*ANY]
KINDS = [(kind, which) for kind in [*BYTES, zip_fields] for which in ("torchscript", "torch", "original")]
KINDS += [
    (kind, which)
    for kind in [*BYTES, header_numbers, header_length, hostile.header_changed]
    for which in ("ours", "safetensors", "transformers")
]


@pytest.mark.parametrize(("kind", "which"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_damaged_files(sound, tmp_path, kind, which):
    """Truncated, flipped, cut, doubled; names, shapes, dtypes, offsets and sizes that are others."""
    outcomes = []
    for seed in range(FILES_PER_KIND):
        path = copied(sound[which], tmp_path, f"m{seed}")
        path.write_bytes(kind(random.Random(f"{kind.__name__} {which} {seed}"), sound[which].read_bytes()))
        outcomes.append(outcome(USES.get(which, use_pixel_clip), path, seed))
    assert "refused" in outcomes  # the damage was real


@pytest.mark.parametrize("which", ["torchscript", "torch", "original"])
def test_changed_instructions(sound, tmp_path, which):
    outcomes = []
    for seed in range(4 * FILES_PER_KIND):
        path, rng = copied(sound[which], tmp_path, f"m{seed}"), random.Random(f"{which} {seed}")
        hostile.rewritten(
            sound[which], path,
            lambda name, data, rng=rng: hostile.instructions_changed(rng, data) if name.endswith("/data.pkl") else data,
        )  # fmt: skip
        outcomes.append(outcome(USES.get(which, use_pixel_clip), path, seed))
    assert "refused" in outcomes


@pytest.mark.parametrize("which", ["torchscript", "torch", "original"])
def test_swapped_members(sound, tmp_path, which):
    """Every storage has another one's bytes, or a byte too many or too few."""
    with zipfile.ZipFile(sound[which]) as archive:
        contents = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    for seed in range(FILES_PER_KIND):
        path, rng = copied(sound[which], tmp_path, f"m{seed}"), random.Random(f"{which} {seed}")

        def change(name: str, data: bytes, rng=rng) -> bytes:
            return rng.choice([*contents, data[:-1], data + b"x", b""]) if "/data/" in name else data

        assert outcome(use_pixel_clip, hostile.rewritten(sound[which], path, change), seed) == "refused"


PLAIN = hostile.tensor("0", 4, (2, 2), (2, 1))
LYING_TENSORS = {
    "more numbers than the storage": hostile.tensor("0", 4, (2, 3), (3, 1)),
    "strides of zero": hostile.tensor("0", 4, (2**15, 2**14), (0, 0)),
    "a stride that leaves it": hostile.tensor("0", 4, (2, 2), (9, 1)),
    "a negative stride": hostile.tensor("0", 4, (2, 2), (-2, 1)),
    "an offset that leaves it": hostile.tensor("0", 4, (2, 2), (2, 1), 1),
    "a negative offset": hostile.tensor("0", 4, (2, 2), (2, 1), -1),
    "a count that the member lacks": hostile.tensor("0", 2**40, (2, 2), (2, 1)),
    "a count that is less": hostile.tensor("0", 2, (2,), (1,)),
    "a negative count": hostile.tensor("0", -4, (2, 2), (2, 1)),
    "a kind of no torch": hostile.tensor("0", 4, (2, 2), (2, 1), storage="system"),
    "quantised": hostile.tensor("0", 4, (2, 2), (2, 1), storage="QInt8Storage"),
    "a member outside": hostile.tensor("../../etc/passwd", 4, (2, 2), (2, 1)),
    "a thousand dimensions": hostile.tensor("0", 4, (1,) * 1000, (1,) * 1000),
}


@pytest.mark.parametrize("made", LYING_TENSORS.values(), ids=LYING_TENSORS)
@pytest.mark.parametrize("program", [True, False], ids=["torchscript", "torch"])
def test_tensors_that_lie(tmp_path, made, program):
    path = hostile.torch_file(tmp_path / "m.pt", hostile.state_dict({"visual.x": made}), {"0": bytes(16)}, program)
    with pytest.raises(CheckpointError, match=r"^m.pt: ") as caught:
        read_pixel_clip(path)
    assert "got keys such as" not in str(caught.value), "it was read as a sound tensor"
    content = hostile.torch_file(tmp_path / "one.pt", b"\x80\x02" + made + b".", {"0": bytes(16)}).read_bytes()
    with pytest.raises(CheckpointError, match=r"^latent.pt: "):
        read_tensor_bytes(content, "latent.pt")


def test_plain_tensor_is_read(tmp_path):
    numbers = torch.arange(4.0)
    members = {"0": numbers.numpy().tobytes()}
    made = hostile.tensor("0", 4, (2, 1), (2, 1), 1)
    content = hostile.torch_file(tmp_path / "one.pt", b"\x80\x02" + made + b".", members)
    assert read_tensor_bytes(content.read_bytes(), "latent.pt").tolist() == [[1.0], [3.0]]


ODD_NUMBERS = ["NaN", "Infinity", "-Infinity", "0", "1e-320", "1e300", hostile.HUGE, "null", "true", '"1"', "[]", "[1,2]", "[1,1,1,0]"]
RECORD = '{{"name": "mine", "channels": {}, "downscale": {}, "scale": {}, "shift": {}}}'
METADATA = [
    *({"latent_space_record": RECORD.format(4, 8, value, 0)} for value in ODD_NUMBERS),
    *({"latent_space_record": RECORD.format(4, 8, 1, value)} for value in ODD_NUMBERS if value not in ("0", "1e-320", "[1,1,1,0]")),
    *({"latent_space_record": RECORD.format(value, 8, 1, 0)} for value in (0, -1, 3, 4.0, "true", "null", hostile.HUGE)),
    *({"latent_space_record": RECORD.format(4, value, 1, 0)} for value in (0, -8, 8.5, "true", "null", hostile.HUGE)),
    *({"latent_space_record": value} for value in (hostile.DEEP, "[" * 900 + "]" * 900, "5", "", '{"name": 5}', '{"name": "other"}')),
    *({"channels": value} for value in (hostile.DEEP, '{"mean": [1, 2], "std": [1, 1]}', '{"mean": "1234", "std": "1234"}')),
    *({"channels": f'{{"mean": [0, 0, 0, {value}], "std": [1, 1, 1, 1]}}'} for value in ODD_NUMBERS if value not in ("0", "1e-320")),
    *({"channels": f'{{"mean": [0, 0, 0, 0], "std": [1, 1, 1, {value}]}}'} for value in (*ODD_NUMBERS[:4], "-1")),
    *({"vae": value} for value in (hostile.DEEP, '{"signature": [1]}', '{"signature": "x"}', '{"signature": {"a": 5}}')),
    *({"vae": f'{{"signature": {{"encoder.conv_in.weight": [{value},1,1,1,1,1,1,1]}}}}'} for value in (*ODD_NUMBERS[:3], "1e200", hostile.HUGE)),
    *({"config": value} for value in (hostile.DEEP, "5", "null", '{"vision_cfg": {}, "text_cfg": {}}', "9" * 5000)),
]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA, ids=lambda metadata: "{} {:.60}".format(*next(iter(metadata.items()))))
def test_metadata_that_is_refused(sound, tmp_path, metadata):
    path = hostile.with_metadata(sound["ours"], tmp_path / "m.safetensors", metadata)
    assert outcome(use_latent_clip, path, metadata) == "refused"
    assert outcome(lambda path: convert(path, tmp_path / "converted.safetensors"), path, metadata) == "refused"
    assert not (tmp_path / "converted.safetensors").exists()


def test_sound_files_are_read(sound, tmp_path):
    for kind, path in sound.items():
        assert outcome(USES.get(kind, use_pixel_clip), path, kind) == "read"
    assert convert(sound["original"], tmp_path / "c.safetensors").cosine_change < 1e-6
    assert read_checkpoint(sound["ours"]).space.scale == (1.0, 1.0, 1.0, 2.0)


VALUES = [
    0, -1, 2, 1001, 10**9, 2**63, 10**30, 10**400, 0.5, 1e400, True, None, "x", [], [1], [3, 4, 6, 3], [10**6] * 4, {}, {"a": 1},
    "hf-hub:a/b", "vit_base_patch16_224", {"mean": [1, "2", 3]}, {"mean": [1, 2, 1e400]}, "clip",
]  # fmt: skip
KEYS = [
    "layers", "width", "heads", "mlp_ratio", "patch_size", "image_size", "timm_model_name", "hf_model_name", "context_length", "vocab_size",
    "pool_type", "attentional_pool", "block_type", "pos_embed_type", "preprocess_cfg", "model_cfg", "model_type", "embed_dim", "quick_gelu",
    "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("which", ["torch", "transformers", "original"])
def test_changed_configs(sound, tmp_path, which):
    """The JSON beside the weights, with parts that are missing, others, huge, or of another type."""
    beside = sound[which].with_suffix(".json")
    base = json.loads(beside.read_text()) if beside.exists() else read_checkpoint(sound[which]).config
    outcomes = []
    for seed in range(5 * FILES_PER_KIND):
        rng, config = random.Random(f"{which} {seed}"), json.loads(json.dumps(base))
        for _ in range(rng.choice([1, 1, 2])):
            part = rng.choice([config, *(value for value in config.values() if isinstance(value, dict))])
            part[rng.choice([*part, *KEYS])] = rng.choice(VALUES)
        path = copied(sound[which], tmp_path, f"m{seed}")
        shutil.copy(sound[which], path)
        path.with_suffix(".json").write_text(json.dumps(config))
        outcomes.append(outcome(USES.get(which, use_pixel_clip), path, f"{seed} {config}"[:500]))
    assert {"refused", "read"} <= set(outcomes)


SIZES = [
    ("original", {"text_cfg": {"context_length": 40_000}}),
    ("original", {"vision_cfg": {"image_size": 10**6}}),
    ("original", {"vision_cfg": {"mlp_ratio": 10**6}}),
    ("torch", {"text_cfg": {"context_length": 40_000}}),
    ("torch", {"vision_cfg": {"image_size": 10**6, "pos_embed_type": "sin_cos_2d"}}),
    ("torch", {"vision_cfg": {"image_size": []}}),
]


@pytest.mark.parametrize(("which", "change"), SIZES, ids=str)
def test_sizes_that_no_tower_has_are_named(sound, tmp_path, which, change):
    beside = sound[which].with_suffix(".json")
    config = json.loads(beside.read_text()) if beside.exists() else read_checkpoint(sound[which]).config
    config = {key: value | change.get(key, {}) if isinstance(value, dict) else value for key, value in config.items()}
    path = copied(sound[which], tmp_path, "m")
    shutil.copy(sound[which], path)
    path.with_suffix(".json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"^m.pt: .*(expected at most|expected positive)"):
        USES.get(which, use_pixel_clip)(path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("logit_scale", torch.zeros(2)), ("logit_scale", torch.tensor(1e30)), ("logit_scale", torch.tensor(float("nan"))),
        ("logit_bias", torch.zeros(3)), ("logit_bias", torch.tensor(float("inf"))), ("logit_bias", torch.zeros(1, dtype=torch.complex64)),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", torch.zeros(3, 3)),
        ("vision_model.encoder.layers.0.self_attn.k_proj.bias", torch.zeros(())),
        ("vision_model.encoder.layers.0.self_attn.v_proj.bias", torch.zeros(64, dtype=torch.int32)),
        ("vision_model.head.attention.in_proj_weight", torch.zeros(2)), ("vision_model.head.attention.in_proj_bias", torch.zeros(())),
    ],
    ids=lambda value: value if isinstance(value, str) else str(tuple(value.shape)),
)  # fmt: skip
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_tensors_of_odd_shapes_are_named(sound, tmp_path, name, tensor, dtype):
    """In the layout of transformers, whose tensors are joined and split."""
    tensors = hostile.transformers_tensors() | {name: tensor if tensor.dtype is not torch.float32 else tensor.to(dtype or torch.float32)}
    torch.save(tensors, copied(sound["transformers"].with_suffix(".json"), tmp_path, "m").with_suffix(".pt"))
    (tmp_path / "m.json").write_text(json.dumps(hostile.TRANSFORMERS))
    assert outcome(use_pixel_clip, tmp_path / "m.pt") == "refused"


JSON_TEXTS = [hostile.DEEP, "[" * 900 + "]" * 900, "9" * 5000, '{"a": NaN}', '{"a": 1, "a": 2}', "", "\0", "{", " " * 5_000_000, "\ud800"]


@pytest.mark.parametrize("content", JSON_TEXTS, ids=lambda content: f"{content[:12]!r} {len(content)}")
def test_json_that_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"^its? ") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("content", ["", "{}", hostile.DEEP, '{"model": ' + hostile.DEEP, "\0" * 100, '{"version": "1.0"}'], ids=lambda c: c[:12])
def test_tokenizers_that_are_refused(tmp_path, content):
    (tmp_path / "siglip.tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^siglip.tokenizer.json: ") as caught:
        tokenizer_of(tmp_path / "siglip.safetensors", {"hf_tokenizer_name": "siglip", "context_length": 8}, 32000)
    assert "\n" not in str(caught.value)


def test_tokenizer_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "siglip.tokenizer.json").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ValueError, match=r"^siglip.tokenizer.json: it has 4294967296 bytes"):
        tokenizer_of(tmp_path / "siglip.safetensors", {"hf_tokenizer_name": "siglip", "context_length": 8}, 32000)


def test_flipped_bit_in_a_program_is_noticed(sound, tmp_path):
    """Its checksums are compared, as OpenAI's files have always been read."""
    data = bytearray(sound["torchscript"].read_bytes())
    with zipfile.ZipFile(sound["torchscript"]) as archive:
        member = next(info for info in archive.infolist() if "/data/" in info.filename and info.file_size > 1000)
    data[member.header_offset + 600] ^= 1
    copied(sound["torchscript"], tmp_path, "m").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"m.pt: .*do not have their checksum"):
        read_pixel_clip(tmp_path / "m.pt")
