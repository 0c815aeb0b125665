"""Imports run one way, nodes → host → methods → models, and loading the pack costs nothing. Read off the syntax trees."""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MAY_IMPORT = {  # a room → the rooms that it may import besides itself
    "models": set(),
    "methods": {"models"},
    "host": {"methods", "models"},
    "nodes": {"host", "methods", "models"},
    "training": {"methods", "models"},
    "evaluation": {"methods", "models"},
    "commands": {"evaluation", "host", "methods", "models", "training"},
    "demo": {"host", "methods", "models", "training"},
    "studies": {"demo", "evaluation", "host", "methods", "models", "training"},
    "tools": {"commands", "demo", "evaluation", "host", "methods", "models", "tests", "training"},
    "bench": {"demo", "evaluation", "host", "methods", "models", "studies", "tools", "tests", "training"},
}
LIBRARIES = {"torch", "numpy", "einops", "open_clip", "safetensors", "PIL"}  # all that the mathematics and its readers need
LIGHT = {"comfy_api", "folder_paths"}  # the host has loaded these before it meets a pack


class Import(NamedTuple):
    """`level` dots before `module` (0: absolute); `top`: at module scope."""

    level: int
    module: str
    top: bool


def imports(source: str) -> list[Import]:
    """Every import of a module. `from ..models import fit` counts as ..models.fit."""
    tree = ast.parse(source)
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(0, alias.name, id(node) not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, [node.module, alias.name])) for alias in node.names]
            found += [Import(node.level, name, id(node) not in lazy) for name in names]
    return found


def imports_of(path: Path) -> list[Import]:
    return imports(path.read_text(encoding="utf-8"))


def target(path: Path, item: Import) -> tuple[str, ...]:
    """Where a relative import leads, from the root of the pack: models/config.py → ('models', 'config', 'name')."""
    package = path.relative_to(ROOT).parts[:-1]
    return (*package[: len(package) - item.level + 1], *item.module.split("."))


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


EVERY_FILE = [(room, path) for room in MAY_IMPORT for path in files(room)]
EVERY_PATH = {path for _, path in EVERY_FILE}
every_file = pytest.mark.parametrize(
    ("room", "path"), EVERY_FILE, ids=[str(path.relative_to(ROOT)) for _, path in EVERY_FILE]
)


MAY_IMPORT_IN_HOST = {  # the same for the rooms of host/: four floors, no arrow up
    "memory": set(),
    "front_end": set(),
    "scorers": {"memory", "front_end"},
    "sampling": {"memory", "scorers"},
    "reno": {"memory", "front_end", "scorers", "sampling"},
    "search": {"memory", "front_end", "scorers", "sampling"},
    "safety": {"memory", "scorers", "sampling"},
    "offline": {"memory", "scorers", "sampling"},
}


@pytest.mark.parametrize("path", [path for room, path in EVERY_FILE if room == "host" and path.parent.name != "host"], ids=str)
def test_room_of_the_host_imports_only_what_is_below_it(path):
    room = path.parent.name
    rooms = {parts[1] for item in imports_of(path) if item.level and (parts := target(path, item))[0] == "host"}
    assert rooms <= MAY_IMPORT_IN_HOST[room] | {room}


def test_every_room_of_the_host_is_known_and_none_is_beside_them():
    assert {path.name for path in (ROOT / "host").iterdir() if path.name != "__pycache__"} == {"__init__.py", *MAY_IMPORT_IN_HOST}
    for room in MAY_IMPORT_IN_HOST:
        assert ast.get_docstring(ast.parse((ROOT / "host" / room / "__init__.py").read_text(encoding="utf-8")))


def rooms_in_the_docs(prefix: str) -> dict[str, list[str]]:
    """Rows of the tables of rooms in docs/how-it-works.md: room → the other columns."""
    lines = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(f"| `{prefix}")]
    return {row[0].strip("`/").removeprefix(prefix): row[1:] for row in rows if row[0].count("/") == prefix.count("/") + 1}


@pytest.mark.parametrize(("prefix", "rules"), [("", MAY_IMPORT), ("host/", MAY_IMPORT_IN_HOST)], ids=["repository", "host"])
def test_docs_tables_of_rooms_agree_with_the_import_rules(prefix, rules):
    found = {room: set(cells[-1].split(", ")) - {"nothing"} for room, cells in rooms_in_the_docs(prefix).items()}
    assert found == rules


def test_docs_floors_of_host_agree_with_the_import_rules():
    floors = {room: int(cells[0]) for room, cells in rooms_in_the_docs("host/").items()}
    assert all(floors[below] < floors[room] for room, rooms in MAY_IMPORT_IN_HOST.items() for below in rooms)


@every_file
def test_room_imports_only_what_is_below_it(room, path):
    rooms = {target(path, item)[0] for item in imports_of(path) if item.level}
    assert rooms <= MAY_IMPORT[room] | {room}


def test_every_room_of_the_repository_is_known():
    rooms = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "build"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_says_at_its_door_what_belongs_there(room):
    assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))


def test_no_two_files_import_each_other():
    """But for what is imported inside a function, which Python allows and readers do not expect either."""
    arrows = {}
    for _room, path in EVERY_FILE:
        targets = {target(path, item) for item in imports_of(path) if item.level and item.top}
        arrows[path] = {
            ROOT.joinpath(*parts[:end]).with_suffix(".py") for parts in targets for end in (2, 3)
        } & EVERY_PATH
    circles = [(a.name, b.name) for a in arrows for b in arrows[a] if a < b and a in arrows.get(b, set())]
    assert not circles


@every_file
def test_rooms_are_imported_relatively(room, path):
    """ComfyUI owns a top-level `nodes`, and gives the pack whatever name its folder has."""
    tops = {item.module.split(".")[0] for item in imports_of(path) if not item.level}
    own = {"latent_clip", *(child.name for child in ROOT.iterdir() if any(child.glob("*.py")))}
    assert not tops & (own - {"nodes"} if room == "host" else own)


@every_file
def test_mathematics_knows_nothing_of_the_host(room, path):
    if room in ("methods", "models"):
        tops = {item.module.split(".")[0] for item in imports_of(path) if not item.level}
        assert tops <= LIBRARIES | set(sys.stdlib_module_names)


def loaded_with(path: Path, seen: set[Path]) -> set[str]:
    """Top-level names that importing `path` imports, through every file of the pack that it pulls in."""
    if path in seen or not path.is_file():
        return set()
    seen.add(path)
    tops = set()
    for item in imports_of(path):
        if not item.top:
            continue
        if not item.level:
            tops.add(item.module.split(".")[0])
            continue
        parts = target(path, item)
        for end in range(1, len(parts) + 1):
            module = ROOT.joinpath(*parts[:end])
            for file in (module.with_suffix(".py"), module / "__init__.py"):
                tops |= loaded_with(file, seen)
    return tops


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *files("nodes")], ids=lambda path: str(path.relative_to(ROOT)))
def test_loading_the_pack_loads_no_torch(path):
    assert loaded_with(path, set()) <= LIGHT | set(sys.stdlib_module_names)


def test_entrypoint_imports_nothing_before_it_is_called():
    assert not [item for item in imports_of(ROOT / "__init__.py") if item.top]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", Import(0, "torch.nn", True)),
        ("from ..models import fit", Import(2, "models.fit", True)),
        ("from . import base", Import(1, "base", True)),
        ("def f():\n    from ..host.scorers.reports import score", Import(2, "host.scorers.reports.score", False)),
        ("class A:\n    import comfy", Import(0, "comfy", True)),
        ("if True:\n    import comfy", Import(0, "comfy", True)),
    ],
)
def test_imports_are_found(source, expected):
    assert imports(source) == [expected]


def test_heavy_imports_are_found_through_other_files():
    assert "torch" in loaded_with(ROOT / "host" / "scorers" / "reports.py", set())
    assert "open_clip" in loaded_with(ROOT / "methods" / "features.py", set()) | loaded_with(
        ROOT / "models" / "latent_clip.py", set()
    )


def names_of(path: Path) -> set[str]:
    """Names that a module binds at its top, also inside `if` and `try`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


@every_file
def test_imported_names_exist(room, path):
    """Also those of imports inside a function, which fail only when it is called."""
    for item in imports_of(path):
        if not item.level:
            continue
        *module, name = target(path, item)
        place = ROOT.joinpath(*module)
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        submodule = (place / f"{name}.py").is_file() or (place / name / "__init__.py").is_file()
        assert submodule or (file.is_file() and name in names_of(file)), f"{'.'.join(module)} has no {name}"


def test_class_names_have_one_meaning():
    """In the rooms that users run; private classes may repeat."""
    places: dict[str, set[str]] = {}
    for room, path in EVERY_FILE:
        if room in ("models", "methods", "host", "nodes", "training", "evaluation", "commands"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}
