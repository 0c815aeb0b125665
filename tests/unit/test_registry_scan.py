"""What the registry's scanner flags, looked for in every file that its archive would hold; and that the archive is whole.

The scanner reads words, not meanings, so words are what is looked for here: also in comments and strings.
"""

import ast
import re
import sys
from pathlib import Path

import pytest
import tomllib
from PIL import Image

from latent_clip.tools.package import LARGEST, node_ids, shipped_files

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = shipped_files(ROOT)
TEXTS = [path for path in SHIPPED if path.suffix in {".py", ".js", ".txt"}]

PYTHON = {
    "runs text as code": r"(?<![\w.])(eval|exec|compile|__import__)\s*\(",
    "looks like eval": r"\.eval\s*\(",
    "imports by a computed name": r"importlib\.import_module|importlib\.util|SourceFileLoader",
    "starts programs": r"\bsubprocess\b|os\.(system|popen|exec\w*|spawn\w*|startfile)\b|\bpty\b|shell\s*=\s*True",
    "opens pickles": r"\b(c?[pP]ickle|dill|joblib|marshal|shelve)\b\s*[.(,]|import\s+(pickle|dill|joblib|marshal|shelve)|torch\.load|weights_only\s*=\s*False|allow_pickle",
    "talks to the network": r"\b(requests|urllib|httpx|aiohttp|socket|ftplib|smtplib|paramiko|websockets?)\b\s*[.(]|import\s+(requests|urllib|httpx|aiohttp|socket|http)\b|urlopen|urlretrieve|hf_hub_download|snapshot_download|load_state_dict_from_url|from_pretrained|torch\.hub|wget|curl\b",
    "installs at run time": r"\bpip3?[ \"',]+install|\bensurepip\b|pip\.main|pip\._internal",
    "hides code": r"b64decode|b32decode|bytes\.fromhex|unhexlify|codecs\.decode|zlib\.decompress|rot13|(\\x[0-9a-f]{2}){4}",
    "reads secrets": r"\b(getpass|keyring|win32crypt|sqlite3)\b|os\.environ|os\.getenv|\.ssh/|api_key|password",
    "reaches into other packs": r"\bctypes\b|sys\.modules\[|setattr\(\s*(comfy|nodes|server|execution)\b|NODE_CLASS_MAPPINGS\s*\[|__builtins__|sys\.settrace",
    "changes sys.path": r"sys\.path\.(insert|append|extend)|site\.addsitedir",
}
SCRIPT = {
    "runs text as code": r"\beval\s*\(|new\s+Function\b|set(Timeout|Interval)\s*\(\s*[\"'`]",
    "looks like a socket": r"\.connect\s*\(|\.bind\s*\(|\.listen\s*\(|WebSocket|RTCPeerConnection",
    "talks to the network": r"\bfetch\s*\(|XMLHttpRequest|sendBeacon|https?://(?!www\.w3\.org/)|import\s*\(\s*[^\"'./]",
    "puts text into the page as code": r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createElement\(\s*[\"']script",
    "hides code": r"\batob\s*\(|fromCharCode|unescape\s*\(|(\\x[0-9a-f]{2}){4}",
    "reads secrets": r"document\.cookie|localStorage|sessionStorage|clipboard\.read",
}
# (file, finding): why it is there, and what a reviewer finds on looking
REVIEWED = {
    (
        "models/tensor_files.py",
        "opens pickles",
    ): "words of docstrings: models/pickles.py follows a pickle's instructions and calls nothing",
    ("training/tars.py", "hides code"): "the first bytes of compressed files, which are refused by name",
    (
        "__main__.py",
        "reaches into other packs",
    ): "the command line, which registers this folder under one name; ComfyUI never runs it",
    ("commands/comfyui.py", "changes sys.path"): "the command line, which needs the ComfyUI that the user names",
    ("commands/calibrate.py", "installs at run time"): "the words of a message; nothing is installed",
    ("host/front_end/requirements.py", "installs at run time"): "the words of a message; nothing is installed",
    (
        "host/front_end/requirements.py",
        "imports by a computed name",
    ): "find_spec only looks whether a package is there; nothing is imported",
}


def findings(text: str, patterns: dict[str, str]) -> dict[str, list[str]]:
    """Finding → the lines it is on."""
    found = {
        name: [line.strip() for line in text.splitlines() if re.search(pattern, line)]
        for name, pattern in patterns.items()
    }
    return {name: lines for name, lines in found.items() if lines}


def patterns_for(path: Path) -> dict[str, str]:
    return SCRIPT if path.suffix == ".js" else PYTHON


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_nothing_is_flagged(path):
    found = findings((ROOT / path).read_text(encoding="utf-8"), patterns_for(path))
    new = {name: lines for name, lines in found.items() if (str(path), name) not in REVIEWED}
    assert not new


def test_what_was_reviewed_is_still_there_and_no_more_than_that():
    for path, name in REVIEWED:
        lines = findings((ROOT / path).read_text(encoding="utf-8"), patterns_for(Path(path)))[name]
        assert len(lines) <= 3, f"{path}: {lines}"
    shipped = [path for path in SHIPPED if path.suffix == ".py"]
    assert not [path for path in shipped if "torch.load(" in (ROOT / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("line", "expected", "patterns"),
    [
        ("eval(text)", "runs text as code", PYTHON),
        ("model.eval()", "looks like eval", PYTHON),
        ("os.system('ls')", "starts programs", PYTHON),
        ("import subprocess", "starts programs", PYTHON),
        ("torch.load(path)", "opens pickles", PYTHON),
        ("import pickle", "opens pickles", PYTHON),
        ("import urllib.request", "talks to the network", PYTHON),
        ("requests.get(url)", "talks to the network", PYTHON),
        ("run([python, '-m', 'pip', 'install', name])", "installs at run time", PYTHON),
        ("exec(base64.b64decode(blob))", "hides code", PYTHON),
        ("importlib.import_module(name)", "imports by a computed name", PYTHON),
        ("nodes.NODE_CLASS_MAPPINGS['KSampler'] = Mine", "reaches into other packs", PYTHON),
        ("sys.path.insert(0, here)", "changes sys.path", PYTHON),
        ("output.connect(0, node, 0)", "looks like a socket", SCRIPT),
        ("this.draw.bind(this)", "looks like a socket", SCRIPT),
        ("fetch('/prompt')", "talks to the network", SCRIPT),
        ("element.innerHTML = text", "puts text into the page as code", SCRIPT),
    ],
)
def test_each_pattern_finds_what_it_is_for(line, expected, patterns):
    assert expected in findings(line, patterns)


def test_ordinary_code_is_not_flagged():
    text = "re.compile(x)\nmodel.train(False)\ntorch.compile(model)\nfrom ..models.fit import Fit\nevaluate(reward)\n"
    assert findings(text, PYTHON) == {}


def test_no_program_archive_or_pickle_is_shipped():
    kinds = {path.suffix for path in SHIPPED}
    assert kinds <= {"", ".py", ".js", ".css", ".json", ".md", ".toml", ".txt", ".jpg", ".safetensors", ".gz", ".typed"}
    assert all("LICENSE" in path.name for path in SHIPPED if not path.suffix)


def test_archive_has_what_the_nodes_need_and_not_what_developers_do():
    names = {str(path) for path in SHIPPED}
    assert {"__init__.py", "README.md", "LICENSE", "pyproject.toml", "requirements.txt"} <= names
    assert {
        "models/shapes_world.py",
        "demo/weights/generator.safetensors",
        "commands/convert.py",
        "__main__.py",
    } <= names
    assert {f"js/docs/{node}.md" for node in node_ids(ROOT)} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "workflows").iterdir()} <= names
    assert not [
        name
        for name in names
        if name.startswith(("tests/", "bench/", "docs/", "output/", "studies/", "demo/train", "."))
    ]
    assert sum((ROOT / path).stat().st_size for path in SHIPPED) <= LARGEST


def relative_imports(path: Path):
    """(file, folder) candidates of every relative import of a module, at any depth in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield [base.with_suffix(".py"), base / "__init__.py"], [base / f"{alias.name}.py" for alias in node.names]


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.suffix == ".py"], ids=str)
def test_what_a_shipped_module_imports_is_shipped_too(path):
    for module, submodules in relative_imports(path):
        assert {*module, *submodules} & set(SHIPPED), f"{module[0]} is not in the archive"


# what ComfyUI itself has, what our requirements.txt names, and torch
THERE = {
    "torch",
    "numpy",
    "PIL",
    "aiohttp",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "nodes",
}
THERE |= {"einops", "open_clip", "safetensors", "latent_clip"}
OPTIONAL = {  # a message where it is missing, or no more than a plot that is not drawn
    "commands/calibrate.py": {"matplotlib"},
    "training/regularisers.py": {"lpips"},
    "training/reader.py": {"webdataset"},  # the extra [train]; commands/train.py says so
    "training/log.py": {"matplotlib"},
    "training/base_options.py": {"open_clip_train"},  # comes with open_clip
    "training/captions.py": {"pyarrow"},
    "training/folders.py": {"fsspec"},
    "training/sources.py": {"fsspec"},
    "training/tars.py": {"braceexpand", "fsspec"},  # of the extra [train]; the message says so
    "training/ray_embed.py": {"ray"},
    "host/scorers/tokenizers.py": {"tokenizers"},  # comes with transformers, which ComfyUI asks for
}


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.suffix == ".py"], ids=str)
def test_shipped_module_imports_no_package_that_may_be_missing(path):
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    missing = {name.split(".")[0] for name in names} - THERE - set(sys.stdlib_module_names)
    assert missing <= OPTIONAL.get(str(path), set())


class TestProject:
    """pyproject.toml as the registry wants it."""

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy = project["tool"]["comfy"]
    repository = project["project"]["urls"]["Repository"]

    def test_name_and_version(self):
        assert re.fullmatch(r"[a-z](?:[._-]?[a-z0-9])*", self.project["project"]["name"])
        assert "comfyui" not in self.project["project"]["name"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", self.project["project"]["version"])

    def test_changelog_knows_the_version(self):
        headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
        assert next(name for name in headings if name != "Unreleased") == self.project["project"]["version"]
        assert headings.index("Unreleased") == 0 if "Unreleased" in headings else True

    def test_icon_is_square_and_at_most_400_pixels(self):
        path = ROOT / self.comfy["Icon"].split("/main/")[1]
        with Image.open(path) as icon:
            assert icon.width == icon.height <= 400

    def test_links_lead_into_the_repository(self):
        for link in [self.comfy["Icon"]]:
            assert link.startswith(self.repository.replace("github.com", "raw.githubusercontent.com"))
            assert (ROOT / link.split("/main/")[1]).is_file()
        for link in self.project["project"]["urls"].values():
            assert link.startswith(self.repository)
            if "/blob/main/" in link:
                assert (ROOT / link.split("/blob/main/")[1]).exists()

    def test_requirements_pin_nothing_and_leave_the_hosts_packages_alone(self):
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
        assert not [line for line in lines if re.search(r"==|<|~=|@|git\+", line)]
        assert not {"torch", "torchvision", "transformers", "timm", "numpy"} & {
            re.split(r"\W", line)[0] for line in lines
        }
