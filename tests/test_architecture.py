"""docs/architecture.md names every package and module, and no others."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mirror"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

_LINE = re.compile(r"^( *)(\S+(?:/|\.py))(?: {1,}(\S.*))?$")
# `store.py: Source`, in backticks, or in a diagram.
_NAMED = re.compile(r"(?<![\w/.])([a-z_0-9/]+\.py): ([A-Za-z_]\w*(?:\.\w+)?)")
_PATH = re.compile(r"`((?:tests/|mirror/)?[a-z_0-9]+/[a-z_0-9/]+\.(?:py|json))`")


def tree() -> dict[str, str]:
    """Return the text of each line of the tree, by path below mirror/."""
    block = re.search(r"```text\nmirror/\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        match = _LINE.match(line)
        assert match is not None, line
        depth = len(match[1]) // 2 - 1
        folders[depth:] = [match[2].rstrip("/")]
        found["/".join(folders)] = match[3] or ""
    return found


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the classes, functions and methods (`Class.method`) of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return frozenset(found)


def test_the_tree_has_every_package_and_module_and_no_other() -> None:
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    packages = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("__init__.py")} - {"."}
    nested = {module for module in modules if module.endswith("/__init__.py")}  # described with their packages
    assert (modules - nested) | packages == set(tree())


def test_every_line_of_the_tree_has_a_description() -> None:
    assert [] == [path for path, text in tree().items() if not text]


def test_every_name_in_the_document_is_in_its_file() -> None:
    named = _NAMED.findall(TEXT)
    assert len(named) > 50
    missing = [
        f"{path}: {name}"
        for path, name in named
        if not (PACKAGE / path).exists() or name not in names_in(PACKAGE / path)
    ]
    assert [] == missing


def test_every_path_in_the_document_exists() -> None:
    missing = [path for path in _PATH.findall(TEXT) if not (ROOT / path).exists() and not (PACKAGE / path).exists()]
    assert [] == missing
