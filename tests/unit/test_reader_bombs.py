"""Small files that ask for much memory or time: readers refuse each in a second, and take hardly any memory.

Every file is read in a process of its own, under a limit of address space that is larger than what the file would have cost, so that memory
is what fails the test and not an error of the allocator.
"""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latent_clip.models.checkpoint import read_checkpoint, read_tensor_bytes
from latent_clip.models.config import published_configs
from latent_clip.models.convert import convert
from latent_clip.models.latent_clip import LatentCLIP, load_latent_clip
from latent_clip.models.pixel_clip import read_pixel_clip
from latent_clip.models.strict_json import read_json
from latent_clip.tests import hostile_files as hostile
from latent_clip.tests.original_layout import MINUTE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
LARGE = 512 << 20  # bytes that a bomb asks for
MOST_MEMORY = 320 << 20
MOST_SECONDS = 10
SPACE = 2 << 30  # of addresses, beyond what the process has
UNIT = hostile.tensor("0", 4, (1,), (1,))


def load(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    load_latent_clip(checkpoint.config, checkpoint.state_dict)


def read_one(path: Path) -> None:
    read_tensor_bytes(path.read_bytes(), path.name)


def convert_it(path: Path) -> None:
    convert(path, path.with_name("converted.safetensors"))


def archive(instructions: bytes, members: dict[str, bytes] | None = None, program: bool = True) -> Callable[[Path], object]:
    return lambda path: hostile.torch_file(path, instructions, members or {"0": bytes(16)}, program)


def with_zeros(name: str, instructions: bytes, size: int) -> Callable[[Path], object]:
    return lambda path: hostile.add_zeros(hostile.torch_file(path, instructions, program=True), name, size)


def packed_instructions(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/code/x.py", "x")
    hostile.add_zeros(path, "a/data.pkl", LARGE)


def calls(name: str, arguments: bytes) -> bytes:
    """A state_dict beside which something is called."""
    return b"\x80\x02}(" + hostile.text("a") + UNIT + hostile.text("b") + f"c{name}\n".encode() + arguments + b"Ru."


def latent_clip(text: dict, vision: dict | None = None, metadata: bool = True) -> Callable[[Path], object]:
    """A whole Latent-CLIP of odd sizes, whose weights are few."""

    def make(path: Path) -> None:
        config = MINUTE | {"vision_cfg": MINUTE["vision_cfg"] | (vision or {}), "text_cfg": MINUTE["text_cfg"] | text}
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in LatentCLIP(config).state_dict().items()}
        told = {"config": json.dumps(config)} if metadata else None
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path, told)

    return make


def layers_of_nothing(path: Path) -> None:
    config = json.loads(json.dumps(next(iter(published_configs().values()))))
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 10**6
    save_file({"visual.conv1.weight": torch.zeros(64, 4, 4, 4)}, path, {"config": json.dumps(config)})


def many_names(path: Path) -> None:
    entries = ",".join(f'"k{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(250_000))
    path.write_bytes(hostile.joined(f"{{{entries}}}".encode(), b""))


def long_header(path: Path) -> None:
    content = b'{"__metadata__":{"config":"' + b"x" * 90_000_000 + b'"}}'
    path.write_bytes(struct.pack("<Q", len(content)) + content)


def many_members(path: Path) -> None:
    """A table of contents of 25 MB, repeated from a small one."""
    hostile.torch_file(path, hostile.state_dict({"a": UNIT}), {"0": bytes(16)}, program=True)
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    table = data[start:end] * (25_000_000 // (end - start))
    path.write_bytes(data[:start] + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(table), start, 0))


def large_json(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGE)


SHARED = {
    f"vision_model.encoder.layers.{layer}.self_attn.{part}_proj.weight": hostile.tensor("0", 1 << 20, (1 << 10, 1 << 10), (1 << 10, 1))
    for layer in range(50) for part in "qkv"
}  # fmt: skip
MIB = {"0": bytes(4 << 20)}
BOMBS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a member that is larger than its tensor": (with_zeros("a/data/0", hostile.state_dict({"visual.x": UNIT}), LARGE), read_pixel_clip),
    "one packed member for ninety tensors": (
        with_zeros("a/data/0", hostile.state_dict({f"visual.{n}": UNIT for n in range(90)}), 32 << 20), read_pixel_clip,
    ),
    "one member for many tensors that are joined": (archive(hostile.state_dict(SHARED | {"text_model.x": UNIT}), MIB), read_pixel_clip),
    "instructions that are packed": (packed_instructions, read_pixel_clip),
    "strides of zero": (
        archive(hostile.state_dict({
            f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight": hostile.tensor("0", 4, (2**13, 2**13), (0, 0)) for part in "qkv"
        } | {"text_model.x": UNIT})), read_pixel_clip,
    ),
    "dicts that name each other twice": (archive(hostile.laughs(40)), read_pixel_clip),
    "dicts that name each other twice, in a checkpoint": (archive(hostile.laughs(40), program=False), load),
    "a dict in itself": (archive(b"\x80\x02}q\0" + hostile.text("visual") + b"h\0s."), read_pixel_clip),
    "dicts a million deep": (archive(b"\x80\x02" + (b"}" + hostile.text("a")) * 10**6 + b"}" + b"s" * 10**6 + b"."), read_pixel_clip),
    "a tuple a million deep as a name": (archive(b"\x80\x02})" + b"\x85" * 10**6 + b"Ns."), read_pixel_clip),
    "a tuple a million deep as a name, in a checkpoint": (archive(b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.", program=False), load),
    "tuples above a long stack": (archive(b"\x80\x02" + b"N" * 300_000 + b"(t" * 300_000 + b"."), read_pixel_clip),
    "bytearray": (archive(calls("builtins\nbytearray", b"(" + hostile.number(LARGE) + b"t"), program=False), load),
    "bytearray, in a latent": (archive(b"\x80\x02" + calls("builtins\nbytearray", b"(" + hostile.number(LARGE) + b"t")[2:], program=False), read_one),
    "a text encoded again and again": (
        archive(
            b"\x80\x02](" + hostile.text("x" * 10**6) + b"q\x01"
            + (b"c_codecs\nencode\nh\x01" + hostile.text("latin1") + b"\x86R") * 700 + b"e.", program=False,
        ), load,
    ),
    "text positions": (latent_clip({"context_length": 12_000, "width": 1, "heads": 1}), load),
    "text positions, without a config": (latent_clip({"context_length": 12_000, "width": 1, "heads": 1}, metadata=False), load),
    "a grid, converted": (latent_clip({}, {"image_size": 8 * 5000, "patch_size": 1000, "width": 1, "head_width": 1}), convert_it),
    "a million layers": (layers_of_nothing, load),
    "many names": (many_names, load),
    "a long header": (long_header, load),
    "a long table of contents": (many_members, load),
    "a long table of contents, in a program": (many_members, read_pixel_clip),
    "a large JSON": (large_json, read_json),
}  # fmt: skip


def in_a_process(use: Callable[[Path], object], path: Path) -> dict:
    """The outcome of `use` in a copy of this process: message or error, bytes, seconds."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        os.write(sender, json.dumps(measured(use, path)).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"error": f"the process ended with {status}"}


def measured(use: Callable[[Path], object], path: Path) -> dict:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends a process that takes too long
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    before = memory("VmRSS")
    limit = memory("VmSize") + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start, found = time.process_time(), {"error": "it was read"}
    try:
        use(path)
    except ValueError as error:
        found = {"message": str(error)}
    except BaseException as error:
        found = {"error": repr(error)[:200]}
    return found | {"bytes": memory("VmHWM") - before, "seconds": time.process_time() - start}


def memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def read_all(folder: Path) -> dict[str, dict]:
    outcomes = {}
    for place, (name, (make, use)) in enumerate(BOMBS.items()):
        path = folder / f"bomb{place}.{'safetensors' if make in (many_names, long_header) else 'pt'}"
        make(path)
        outcomes[name] = in_a_process(use, path) | {"path": path.name}
        path.unlink()
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """Outcome of every bomb, from a process that shares no threads and memory with this one."""
    folder = tmp_path_factory.mktemp("bombs")
    code = (
        "import json, sys; from pathlib import Path; from latent_clip.tests.unit.test_reader_bombs import read_all; "
        "print(json.dumps(read_all(Path(sys.argv[1]))))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-c", code, str(folder)]
    done = subprocess.run(command, check=True, timeout=300, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_take_memory(outcomes, name):
    found = outcomes[name]
    assert "error" not in found, found
    assert found["bytes"] < MOST_MEMORY and found["seconds"] < MOST_SECONDS, found
    assert "\n" not in found["message"] and len(found["message"]) < 1200
    assert found["message"].startswith(f"{found['path']}: ") or BOMBS[name][1] is read_json
