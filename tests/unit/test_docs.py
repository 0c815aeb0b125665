"""What the documentation points at exists: every `path`, every `path:name`, every link."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = [ROOT / "README.md", ROOT / "demo" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = "nodes|host|methods|models|training|evaluation|studies|commands|demo|js|locales|workflows|tools|bench|docs|tests"
REFERENCE = re.compile(rf"`((?:{ROOMS})/[\w./-]*\.(?:py|js|json|md|png))(?::([\w.]+))?`")
HELP = sorted((ROOT / "js" / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def names_of(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and constants of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def references(path: Path) -> list[tuple[str, str]]:
    return REFERENCE.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_it_names_exists(path):
    for file, name in references(path):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert not name or name in names_of(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("path", [*DOCS, *HELP], ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_somewhere(path):
    for link, heading in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        target = (path.parent / link).resolve()
        assert target.exists(), link
        assert target.is_relative_to(ROOT)
        if heading:
            titles = re.findall(r"^#+ (.+)", target.read_text(encoding="utf-8"), re.M)
            assert heading in {title.lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", HELP, ids=lambda path: path.stem)
def test_every_help_page_shows_its_node(path):
    assert f"](images/{path.stem}.jpg)" in path.read_text(encoding="utf-8")
    assert 3_000 < (path.parent / "images" / f"{path.stem}.jpg").stat().st_size < 60_000


def test_every_node_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [
        keyword.value.value
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and {"node_id", "display_name"} <= {keyword.arg for keyword in node.keywords}
        for keyword in node.keywords
        if keyword.arg == "display_name"
    ]
    assert names
    assert not [name for name in names if f"| {name} |" not in text]
