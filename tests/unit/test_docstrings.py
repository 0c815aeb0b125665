"""Docstrings: plain first lines, and references that lead to something. Read off the syntax trees."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("bench", "commands", "demo", "evaluation", "host", "methods", "models", "nodes", "studies", "tools", "training")
PLAIN_ROOMS = ("bench", "commands", "demo", "evaluation", "host", "methods", "models", "nodes", "studies", "tools", "training")
RELATIVE = re.compile(r"(What|Who|Whose|Whom|Of|Where|How|Whether)\b")  # no imperative or noun phrase begins with these
NAME = re.compile(r"`(?:[\w.]*\.)?(\w+)\.(\w+)(?:\(.*?\))?`")  # `module.name` or `Class.name`
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(ROOMS)}|docs|tests)/[\w/.-]*\w\.(?:py|md|json))(?::(\w[\w.]*))?")  # room/file.py:name
SUFFIXES = {"json", "jsonl", "md", "npz", "py", "safetensors", "txt"}
ELSEWHERE = {"training/trainer.py"}  # files of other repositories that docstrings cite
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> list[str]:
    """Docstrings of a module and of every class and function in it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree(path)) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def names_in(node: ast.AST) -> set[str]:
    """Names that a module or class defines or imports, at any depth, with attributes set on objects."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(inner.name)
        elif isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            found.add(inner.id if isinstance(inner, ast.Name) else inner.attr)
        elif isinstance(inner, ast.alias):
            found.add((inner.asname or inner.name).split(".")[-1])
    return found


@cache
def known() -> dict[str, set[str]]:
    """Module or class name → names that may follow its dot; of modules and classes with one name, together."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        package = path.name == "__init__.py"
        beside = {child.stem for child in path.parent.iterdir()} if package else set()
        found.setdefault(path.parent.name if package else path.stem, set()).update(names_in(tree(path)) | beside)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                inherited = {"__bases__"} if node.bases else set()
                found.setdefault(node.name, set()).update(names_in(node) | inherited)
    return found


def dead_references(text: str) -> list[str]:
    """Find the references of a docstring that lead nowhere."""
    dead = [
        f"{owner}.{name}"
        for owner, name in NAME.findall(text)
        if owner != "latent_clip" and name not in SUFFIXES | known().get(owner, {name}) and "__bases__" not in known()[owner]
    ]
    for path, name in PATH.findall(text):
        file = ROOT / path
        if path not in ELSEWHERE and not (file.is_file() and (not name or set(name.rstrip(".").split(".")) <= names_in(tree(file)))):
            dead.append(f"{path}:{name}")
    return dead


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_of_docstrings_lead_somewhere(path):
    assert not [dead for text in docstrings(path) for dead in dead_references(text)]


@pytest.mark.parametrize("text", [
    "`scoring.no_such_name`", "`RunPlan.no_such_name`", "`Reward.no_such()`", "evaluation/nowhere.py has it", "training/run.py:no_such_name",
])  # fmt: skip
def test_dead_reference_is_found(text):
    assert dead_references(text)


@pytest.mark.parametrize("text", [
    "`scoring.score_run`", "`RunPlan.tasks`", "`evaluation.plan`", "evaluation/plan.py has it", "training/run.py:train.", "`torch.Tensor`",
])  # fmt: skip
def test_true_reference_passes(text):
    assert not dead_references(text)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.relative_to(ROOT).parts[0] in PLAIN_ROOMS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_first_lines_are_plain(path):
    """Every first line is an imperative or a noun phrase, no relative clause."""
    assert not [text.splitlines()[0] for text in docstrings(path) if RELATIVE.match(text)]
