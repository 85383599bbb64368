"""The structure of the program, read from its import statements: the order of packages, and the home of libraries."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mirror"
MAX_LINES = 350

# Every package has a place of its own, the lowest first, and so has every module that is in no package. A module
# belongs to the longest name that it begins with. It imports from its own place and from places before it.
ORDER = (
    "errors",
    "util",
    "output.report",
    "output",
    "oci",
    "limits",
    "store",
    "selection",
    "registry.http",
    "registry.auth",
    "registry",
    "registry.convert",
    "registry.v1",
    "layout",
    "layout.bundle",
    "serve",
    "transfer",
    "state",
    "sync",
    "config",
    "commands",
    "cli",
    "__main__",
)
# These do not know each other: they meet in `sync` and `commands`, by way of the protocols in mirror/store.py.
SIBLINGS = ("registry", "layout", "transfer", "state")
# Modules in no package, `__init__` and `__main__` among them.
MOST_LOOSE = 8
# Folders of tests that are beside those of the packages.
TEST_FOLDERS = {"end_to_end", "registries", "support"}

# Outside library -> the modules (or packages) of which exactly one may import it, or that may share it.
HOMES = {
    "requests": ("mirror.registry.http.one_off",),
    "httptools": ("mirror.registry.http.protocol",),
    "urllib3": ("mirror.registry.http.one_off", "mirror.registry.http.tls"),
    "yaml": ("mirror.config",),
    "jsonschema": ("mirror.config",),
    "platformdirs": ("mirror.config",),
    "concurrent_log_handler": ("mirror.output.log_file",),
    "sqlite3": ("mirror.state",),
    "publicsuffixlist": ("mirror.registry.http.url_policy",),
    "rich": ("mirror.output.progress",),
    "msgspec": ("mirror.util.structs",),
    "socks": ("mirror.registry.http.proxy",),
    "re2": ("mirror.selection.patterns",),
}
MAY_PRINT = ("mirror.output.console",)
# Runs other people's work: as with a future, whatever that raises is kept for who waits for it (a name is bound).
KEEP_FAILURES = ("mirror.transfer.tasks", "mirror.registry.http.lookups")
# The writing half of the seam.
WRITERS = {"Target", "UploadSession"}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module. name: what was taken from it, if anything; runtime: not only for the type checker."""

    importer: str
    module: str
    name: str
    line: int
    at_top: bool
    runtime: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}{f' ({self.name})' if self.name else ''}"


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the program."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for module in modules() for found in _imports_of(module, tree(module), True, True))


def _imports_of(importer: str, node: ast.AST, at_top: bool, runtime: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(importer, alias.name, "", child.lineno, at_top, runtime)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                module, name = _resolved(importer, child, alias.name)
                yield Import(importer, module, name, child.lineno, at_top, runtime)
        else:
            inside = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports_of(importer, child, inside, runtime and not types_only)


def _resolved(importer: str, node: ast.ImportFrom, name: str) -> tuple[str, str]:
    """`from mirror.oci import digest` imports the module mirror.oci.digest, not a name."""
    module = node.module or ""
    if node.level:
        package = importer.split(".") if modules()[importer].name == "__init__.py" else importer.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        module = ".".join([*base, module] if module else base)
    whole = f"{module}.{name}"
    return (whole, "") if whole in modules() else (module, name)


def place_of(module: str) -> str:
    """`mirror.registry.http.tls` -> `registry.http`; the package `mirror` itself is ``."""
    name = module.partition(".")[2]
    return max((place for place in ORDER if within(name, (place,))), key=len, default="")


def sibling_of(module: str) -> str:
    return next((one for one in SIBLINGS if within(module, (f"mirror.{one}",))), "")


def packages(folder: Path) -> set[str]:
    """The packages below a folder: `registry.http`."""
    return {
        ".".join(path.parent.relative_to(folder).parts) for path in folder.rglob("__init__.py") if path.parent != folder
    }


def within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def our_imports() -> list[Import]:
    return [found for found in imports() if found.importer != "mirror" and found.module.startswith("mirror.")]


def test_every_package_and_every_loose_module_has_a_place() -> None:
    loose = {module.removeprefix("mirror.") for module in modules() if module.count(".") == 1}
    assert set(ORDER) == packages(PACKAGE) | loose


def test_imports_go_one_way() -> None:
    assert [] == [
        str(found)
        for found in our_imports()
        if ORDER.index(place_of(found.module)) > ORDER.index(place_of(found.importer))
    ]


def test_registries_layouts_transfers_and_state_do_not_know_each_other() -> None:
    among = [found for found in our_imports() if sibling_of(found.importer) and sibling_of(found.module)]
    assert [] == [str(found) for found in among if sibling_of(found.importer) != sibling_of(found.module)]


def test_few_modules_are_in_no_package() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_LOOSE


def test_tests_mirror_the_tree_of_the_program() -> None:
    beside = {name for name in packages(ROOT / "tests") if name.split(".")[0] in TEST_FOLDERS}
    assert packages(PACKAGE) == packages(ROOT / "tests") - beside


def test_the_transfer_manager_knows_neither_registries_nor_layouts_nor_http() -> None:
    unknown = ("mirror.registry", "mirror.layout", "http", "urllib", "urllib3", "requests", "ssl", "socket")
    mine = [found for found in imports() if within(found.importer, ("mirror.transfer",))]
    assert [] == [str(found) for found in mine if within(found.module, unknown)]


def test_values_do_no_input_or_output() -> None:
    outside = (
        "socket",
        "ssl",
        "http",
        "urllib.request",
        "subprocess",
        "tempfile",
        "threading",
        "shutil",
        "os",
        "pathlib",
    )
    mine = [
        found
        for found in imports()
        if within(found.importer, ("mirror.oci", "mirror.errors", "mirror.selection.patterns"))
    ]
    assert [] == [str(found) for found in mine if within(found.module, outside)]


def test_planning_is_typed_on_the_reading_half_of_a_store() -> None:
    mine = [
        found for found in imports() if within(found.importer, ("mirror.sync.planner", "mirror.selection.tag_rules"))
    ]
    assert [] == [str(found) for found in mine if found.name in WRITERS]


@pytest.mark.parametrize(
    "module",
    [
        "mirror.sync.image_copier",
        "mirror.sync.planner",
        "mirror.sync.copy_queue",
        "mirror.sync.image_reader",
        "mirror.sync.manifest_graph",
    ],
)
def test_nothing_behind_the_seam_knows_that_there_is_an_old_protocol(module: str) -> None:
    text = modules()[module].read_text(encoding="utf-8").lower()
    assert [] == [word for word in ("v1", "fallback", "convert") if word in text]
    mine = [found for found in imports() if found.importer == module]
    assert [] == [str(found) for found in mine if within(found.module, ("mirror.registry",))]


def test_no_module_takes_part_in_a_circle_of_imports() -> None:
    after = {module: set[str]() for module in modules()}
    for found in imports():
        # A package's own first lines run before its modules: that arrow is Python's, not ours.
        if found.runtime and found.at_top and found.module in after and found.module != found.importer:
            after[found.importer].add(found.module)
    while done := {module for module, needs in after.items() if not needs}:
        after = {module: needs - done for module, needs in after.items() if module not in done}
    assert {} == after


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_an_outside_library_is_imported_in_one_place(library: str, homes: tuple[str, ...]) -> None:
    importers = {found.importer for found in imports() if found.module.split(".")[0] == library}
    assert [] == sorted(importer for importer in importers if not within(importer, homes))


def test_every_outside_library_has_a_home() -> None:
    known = set(sys.stdlib_module_names) | {"mirror", "_typeshed"} | set(HOMES)
    assert [] == [str(found) for found in imports() if found.module.split(".")[0] not in known]


def test_a_module_is_one_idea_of_at_most_350_lines() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert {} == {module: lines for module, lines in lengths.items() if lines > MAX_LINES}


def test_there_is_no_module_for_leftovers() -> None:
    """The package `util` is none: each of its modules has one idea."""
    leftovers = {"utils", "util", "common", "misc"}
    assert {"mirror.util"} == {module for module in modules() if module.split(".")[-1] in leftovers}


def test_nothing_catches_everything() -> None:
    assert [] == [place for module in modules() for place in _catches_everything(module)]


def _catches_everything(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(kind) if kind else "" for kind in caught}
            # What is raised again after cleaning up was not swallowed, so BaseException may be caught for that.
            raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            kept = node.name is not None and within(module, KEEP_FAILURES)
            if names & {"", "Exception"} or ("BaseException" in names and not raises and not kept):
                yield f"{module}:{node.lineno}"


def test_only_the_command_line_and_the_report_print() -> None:
    printing = [
        f"{module}:{node.lineno}"
        for module in modules()
        if not within(module, MAY_PRINT)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [] == printing
