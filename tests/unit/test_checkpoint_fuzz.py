"""Hundreds of damaged files of both formats: each is refused with a CheckpointError or is still a whole checkpoint."""

import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from latent_clip.models.checkpoint import CheckpointError, read_checkpoint, safetensors_metadata
from latent_clip.models.latent_clip import load_latent_clip
from latent_clip.tests.original_layout import MINUTE, rewrite_pickle, save_original

FILES_PER_KIND = 24
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Each takes a random generator and the bytes of a sound file. Most damage goes where the structure is: to the ends.


def somewhere(rng: random.Random, data: bytes) -> int:
    zone = rng.choice([range(len(data)), range(min(len(data), 8192)), range(max(0, len(data) - 8192), len(data))])
    return rng.choice(zone)


def flip_bits(rng, data):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 64])):
        changed[somewhere(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng, data):
    at = somewhere(rng, data)
    junk = rng.choice([rng.randbytes(rng.randrange(1, 32)), b"\0" * 16, b"\xff" * 8])
    return (data[:at] + junk + data[at + len(junk) :])[: len(data)]


def truncate(rng, data):
    return data[: somewhere(rng, data)]


def insert(rng, data):
    at = somewhere(rng, data)
    return data[:at] + rng.randbytes(rng.randrange(1, 64)) + data[at:]


def cut_out(rng, data):
    at = somewhere(rng, data)
    return data[:at] + data[at + rng.randrange(1, 256) :]


def repeat(rng, data):
    at = somewhere(rng, data)
    return data[:at] + data[at : at + rng.randrange(1, 4096)] + data[at:]


def header_numbers(rng, data):
    """Other shapes, offsets and layer counts, the header's length kept."""
    end = 8 + int.from_bytes(data[:8], "little")
    numbers = list(re.finditer(rb"\d+", data[8:end]))
    changed = bytearray(data)
    for number in rng.sample(numbers, rng.choice([1, 1, 3])):
        width = number.end() - number.start()
        changed[8 + number.start() : 8 + number.end()] = str(rng.randrange(10**width)).zfill(width).encode()
    return bytes(changed)


def header_length(rng, data):
    return rng.choice([rng.randrange(2000), 1 << rng.randrange(64), (1 << 64) - 1]).to_bytes(8, "little") + data[8:]


def header_names(rng, data):
    old, new = rng.choice(
        [(b"visual.", b"module."), (b"F32", b"F16"), (b"F32", b"I32"), (b"text.", b"\xfftext"), (b"sdxl", b"flux")]
    )
    return data.replace(old, new, rng.choice([1, 5, -1]))


def zip_fields(rng, data):
    """A field of some local or central header: sizes, offsets, methods, checksums, names."""
    signature = rng.choice([b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6"])
    places = [match.start() for match in re.finditer(re.escape(signature), data)]
    at = rng.choice(places) + rng.randrange(4, 46)
    return data[:at] + rng.choice([rng.randbytes(1), rng.randbytes(4), b"\xff\xff\xff\xff"]) + data[at + 4 :]


ANY = [flip_bits, overwrite, truncate, insert, cut_out, repeat]
KINDS = [(kind, "ours") for kind in [*ANY, header_numbers, header_length, header_names]]
KINDS += [(kind, "original") for kind in [*ANY, zip_fields]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """One sound file of each format."""
    folder = tmp_path_factory.mktemp("sound")
    original, ours = folder / "clip.pt", folder / "clip.safetensors"
    save_original(original, MINUTE, vae_widths=(4, 4))
    checkpoint = read_checkpoint(original)
    save_file(checkpoint.state_dict, ours, safetensors_metadata(checkpoint, original))
    return {"original": original, "ours": ours}


@pytest.fixture(scope="module")
def shapes(sound) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in read_checkpoint(sound["ours"]).state_dict.items()}


FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.", "pickle.find_class", "os.remove")
_events: list[str] = []
_watching = False


def _watch(event: str, _) -> None:
    if _watching and event.startswith(FORBIDDEN):
        _events.append(event)


sys.addaudithook(_watch)


def outcome(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Read a file, and build the model if it can be read; whatever else is raised fails the test."""
    global _watching
    _events.clear()
    _watching = True
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError:
        return "refused"
    finally:
        _watching = False
        assert not _events
    assert {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()} == shapes
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    assert model.visual.conv1.weight.isfinite().all()
    return "read"


@pytest.mark.parametrize(("kind", "which"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_damaged_files(sound, shapes, tmp_path, kind: Callable[[random.Random, bytes], bytes], which):
    data, outcomes = sound[which].read_bytes(), []
    for seed in range(FILES_PER_KIND):
        path = tmp_path / f"{seed}"
        path.write_bytes(kind(random.Random(f"{kind.__name__} {which} {seed}"), data))
        outcomes.append(outcome(path, shapes))
        path.unlink()
    assert "refused" in outcomes  # the damage was real


@pytest.mark.parametrize("evil", [b"", b"cos\nsystem\n(X\x04\x00\x00\x00truetR0"], ids=["sound", "evil"])
def test_damaged_pickles_in_sound_zips(sound, shapes, tmp_path, evil):
    """Opcodes and arguments change under checksums that are right, so every one reaches the unpickler."""
    outcomes = []
    for seed in range(2 * FILES_PER_KIND):
        rng = random.Random(seed)

        def edit(data: bytes, rng=rng) -> bytes:
            changed = bytearray(data[:2] + evil + data[2:])
            for _ in range(rng.choice([1, 2, 8])):
                changed[rng.randrange(2 + len(evil), len(changed))] = rng.randrange(256)
            return bytes(changed)

        rewrite_pickle(sound["original"], tmp_path / "clip.pt", edit)
        outcomes.append(outcome(tmp_path / "clip.pt", shapes))
        (tmp_path / "clip.pt").unlink()
    assert outcomes.count("refused") > FILES_PER_KIND
    assert not (evil and "read" in outcomes)


def test_watch_would_notice(tmp_path):
    global _watching
    _watching = True
    try:
        pickle.loads(pickle.dumps(Path))  # noqa: S301
    finally:
        _watching = False
    assert "pickle.find_class" in _events
