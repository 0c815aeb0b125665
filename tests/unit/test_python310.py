"""Python 3.10, which pyproject promises: nothing that came later, read off the syntax trees; and where there is a 3.10, it compiles every file."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NOT_SHIPPED = {".venv", ".cache", "node_modules", "output", "build", "tests", "tools", "bench"}  # ./dev and its tests need 3.11, and say so
FILES = [path for path in sorted(ROOT.rglob("*.py")) if not NOT_SHIPPED & set(path.relative_to(ROOT).parts)]
LATER_MODULES = {"tomllib", "wsgiref.types"}
LATER_NAMES = {  # module → what came with 3.11 or later
    "datetime": {"UTC"}, "contextlib": {"chdir"}, "hashlib": {"file_digest"}, "itertools": {"batched"}, "operator": {"call"},
    "math": {"cbrt", "exp2", "sumprod", "fma"}, "enum": {"StrEnum", "ReprEnum", "verify", "EnumCheck", "member", "nonmember", "global_enum"},
    "asyncio": {"TaskGroup", "Runner", "timeout", "timeout_at", "Barrier"}, "logging": {"getLevelNamesMapping", "getHandlerByName"},
    "typing": {
        "Self", "Never", "LiteralString", "assert_never", "assert_type", "reveal_type", "Required", "NotRequired", "Unpack", "TypeVarTuple",
        "override", "dataclass_transform", "get_overloads", "clear_overloads", "TypeAliasType", "ReadOnly", "TypeIs",
    },
    "inspect": {"getmembers_static"}, "os": {"process_cpu_count"}, "copy": {"replace"}, "warnings": {"deprecated"}, "sys": {"exception"},
}  # fmt: skip
LATER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}
LATER_METHODS = {"add_note", "full_match", "from_uri", "is_junction"}  # of exceptions and paths
LATER_ARGUMENTS = {  # method → keywords that 3.10 does not take
    "glob": {"case_sensitive", "recurse_symlinks"}, "rglob": {"case_sensitive", "recurse_symlinks"}, "match": {"case_sensitive"},
    "exists": {"follow_symlinks"}, "is_file": {"follow_symlinks"}, "is_dir": {"follow_symlinks"}, "relative_to": {"walk_up"},
    "read_text": {"newline"}, "extractall": {"filter"}, "extract": {"filter"}, "rmtree": {"onexc", "dir_fd"}, "fromdict": {"total"},
    "NamedTemporaryFile": {"delete_on_close"}, "catch_warnings": {"action", "category"}, "as_completed": {"loop"}, "sleep_until": set(),
}  # fmt: skip


def later_than_310(source: str) -> list[str]:
    """Uses in a file of what Python 3.10 lacks or does otherwise."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found += [f"{line}: import {alias.name}" for alias in node.names if alias.name in LATER_MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            later = LATER_NAMES.get(node.module, set())
            found += [f"{line}: {node.module}.{alias.name}" for alias in node.names if alias.name in later or node.module in LATER_MODULES]
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            found += [f"{line}: {owner}.{node.attr}"] * (node.attr in LATER_NAMES.get(owner, set()) or node.attr in LATER_METHODS)
        elif isinstance(node, ast.Name) and node.id in LATER_BUILTINS:
            found.append(f"{line}: {node.id}")
        elif isinstance(node, ast.Call):
            found += [f"{line}: {fault}" for fault in _call(node)]
        elif type(node).__name__ in ("TryStar", "TypeAlias", "TemplateStr") or getattr(node, "type_params", None):
            found.append(f"{line}: {type(node).__name__}")
    return found


def _call(node: ast.Call) -> list[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
    found = [f"{name}({keyword.arg}=)" for keyword in node.keywords if keyword.arg in LATER_ARGUMENTS.get(name, set())]
    if name in ("glob", "rglob") and node.args and isinstance(node.args[0], ast.Constant) and str(node.args[0].value).endswith("/"):
        found.append(f"{name}({node.args[0].value!r}) gives files too before 3.11")
    if name == "walk" and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        found.append("Path.walk")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_newer_than_python_310(path):
    assert not later_than_310(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "Path('.').glob('*/')", "from datetime import UTC", "import datetime\ndatetime.UTC", "import tomllib", "raise ExceptionGroup('a', [])",
        "try:\n    pass\nexcept* OSError:\n    pass", "from typing import Self", "import enum\nclass A(enum.StrEnum): pass",
        "import contextlib\ncontextlib.chdir('.')", "tar.extractall('.', filter='data')", "Path('a').walk()", "error.add_note('x')",
        "import hashlib\nhashlib.file_digest(f, 'md5')",
    ],
)  # fmt: skip
def test_lint_sees(source):
    assert later_than_310(source)


def test_python_310_compiles_every_file():
    found = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python"))]
    python = next((each for each in found if each and not subprocess.run([each, "-c", ""], capture_output=True).returncode), None)
    if python is None:
        pytest.skip("no Python 3.10 here")
    program = "import ast, sys\nfor path in sys.stdin.read().split('\\n'):\n    compile(open(path, encoding='utf-8').read(), path, 'exec')"
    done = subprocess.run([python, "-c", program], input="\n".join(map(str, FILES)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
