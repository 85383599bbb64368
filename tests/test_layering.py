"""The structure of the program, read from its import statements: the order of packages, the home of each library."""

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

# The order of packages and of modules outside of packages, the lowest first. A module belongs to the longest name that
# it begins with. It may import from its own place and from places before it.
ORDER = (
    "errors",
    "util",
    "output.report",
    "output",
    "oci",
    "limits",
    "store",
    "signatures",
    "selection",
    "registry.http",
    "registry.auth",
    "registry",
    "registry.catalogs",
    "registry.convert",
    "registry.v1",
    "layout",
    "layout.bundle",
    "serve",
    "transfer",
    "state",
    "sync",
    "config",
    "migration",
    "commands",
    "cli",
    "__main__",
)
# These do not import each other: `sync` and `commands` connect them through the protocols in mirror/store.py.
SIBLINGS = ("registry", "layout", "transfer", "state")
# The maximum of modules outside of packages, including `__init__` and `__main__`.
MOST_LOOSE = 8
# Folders of tests in addition to those of the packages.
TEST_FOLDERS = {"end_to_end", "registries", "support"}

# External library -> the module or package that may import it, or several that may share it.
HOMES = {
    "requests": ("mirror.registry.http.one_off", "mirror.registry.http.requests_adapter"),
    "httptools": ("mirror.registry.http.protocol",),
    "urllib3": ("mirror.registry.http.requests_adapter", "mirror.registry.http.tls"),
    "yaml": ("mirror.config",),
    "jsonschema": ("mirror.config",),
    "platformdirs": ("mirror.config",),
    "concurrent_log_handler": ("mirror.output.log_file",),
    "sqlite3": ("mirror.state",),
    "publicsuffixlist": ("mirror.registry.http.url_policy",),
    "rich": ("mirror.output.progress_display",),
    "prometheus_client": ("mirror.output.metrics",),
    "jinja2": ("mirror.output.html_page",),
    "markupsafe": ("mirror.output.html_page",),
    "msgspec": ("mirror.util.structs",),
    "socks": ("mirror.registry.http.proxy",),
    "cryptography": ("mirror.signatures.keys",),
    "nacl": ("mirror.signatures.keys",),
    "boto3": ("mirror.registry.aws",),
    "botocore": ("mirror.registry.aws",),
    "re2": ("mirror.selection.patterns",),
    "semantic_version": ("mirror.selection.versions",),
}
MAY_PRINT = ("mirror.output.console",)
# Runs callables of others: like a future, it keeps any exception for the caller that waits (a name is bound).
KEEP_FAILURES = ("mirror.transfer.tasks", "mirror.registry.http.lookups")
# The methods of the seam that write.
WRITERS = {"Target", "UploadSession"}


@dataclass(frozen=True, slots=True)
class Import:
    """An imported module. name: the name imported from it, if any; runtime: not only for the type checker."""

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
    """Return the files of all modules of the program, by dotted name."""
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
                module, name = _resolve_import(importer, child, alias.name)
                yield Import(importer, module, name, child.lineno, at_top, runtime)
        else:
            inside = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports_of(importer, child, inside, runtime and not types_only)


def _resolve_import(importer: str, node: ast.ImportFrom, name: str) -> tuple[str, str]:
    """Return the module and name of an import: `from mirror.oci import digest` imports a module, not a name."""
    module = node.module or ""
    if node.level:
        package = importer.split(".") if modules()[importer].name == "__init__.py" else importer.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        module = ".".join([*base, module] if module else base)
    whole = f"{module}.{name}"
    return (whole, "") if whole in modules() else (module, name)


def place_of(module: str) -> str:
    """Return the package of a module: `mirror.registry.http.tls` -> `registry.http`; for `mirror` itself ""."""
    name = module.partition(".")[2]
    return max((place for place in ORDER if is_within(name, (place,))), key=len, default="")


def sibling_of(module: str) -> str:
    return next((one for one in SIBLINGS if is_within(module, (f"mirror.{one}",))), "")


def packages(folder: Path) -> set[str]:
    """Return the packages below a folder, such as `registry.http`."""
    return {
        ".".join(path.parent.relative_to(folder).parts) for path in folder.rglob("__init__.py") if path.parent != folder
    }


def is_within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def our_imports() -> list[Import]:
    return [found for found in imports() if found.importer != "mirror" and found.module.startswith("mirror.")]


def test_every_package_and_every_module_outside_of_packages_has_a_place() -> None:
    loose = {module.removeprefix("mirror.") for module in modules() if module.count(".") == 1}
    assert set(ORDER) == packages(PACKAGE) | loose


def test_imports_go_one_way() -> None:
    assert [] == [
        str(found)
        for found in our_imports()
        if ORDER.index(place_of(found.module)) > ORDER.index(place_of(found.importer))
    ]


def test_registries_layouts_transfers_and_state_do_not_import_each_other() -> None:
    among = [found for found in our_imports() if sibling_of(found.importer) and sibling_of(found.module)]
    assert [] == [str(found) for found in among if sibling_of(found.importer) != sibling_of(found.module)]


def test_few_modules_are_outside_of_packages() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_LOOSE


def test_tests_mirror_the_tree_of_the_program() -> None:
    beside = {name for name in packages(ROOT / "tests") if name.split(".")[0] in TEST_FOLDERS}
    assert packages(PACKAGE) == packages(ROOT / "tests") - beside


def test_the_transfer_manager_does_not_import_registries_layouts_or_http() -> None:
    unknown = ("mirror.registry", "mirror.layout", "http", "urllib", "urllib3", "requests", "ssl", "socket")
    mine = [found for found in imports() if is_within(found.importer, ("mirror.transfer",))]
    assert [] == [str(found) for found in mine if is_within(found.module, unknown)]


def test_modules_of_values_do_no_io() -> None:
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
        if is_within(found.importer, ("mirror.oci", "mirror.errors", "mirror.selection.patterns"))
    ]
    assert [] == [str(found) for found in mine if is_within(found.module, outside)]


def test_planning_is_typed_on_the_reading_half_of_a_store() -> None:
    mine = [
        found
        for found in imports()
        if is_within(
            found.importer,
            (
                "mirror.sync.planner",
                "mirror.sync.target_planner",
                "mirror.selection.tag_rules",
                "mirror.sync.prune_planner",
                "mirror.sync.prune_selection",
                "mirror.sync.repository_content",
            ),
        )
    ]
    assert [] == [str(found) for found in mine if found.name in WRITERS]


@pytest.mark.parametrize(
    "module",
    [
        "mirror.sync.image_copier",
        "mirror.sync.planner",
        "mirror.sync.target_planner",
        "mirror.sync.copy_queue",
        "mirror.sync.image_reader",
        "mirror.sync.manifest_graph",
    ],
)
def test_modules_above_the_seam_do_not_mention_v1(module: str) -> None:
    text = modules()[module].read_text(encoding="utf-8").lower()
    assert [] == [word for word in ("v1", "fallback", "convert") if word in text]
    mine = [found for found in imports() if found.importer == module]
    assert [] == [str(found) for found in mine if is_within(found.module, ("mirror.registry",))]


def test_no_module_is_part_of_an_import_cycle() -> None:
    after = {module: set[str]() for module in modules()}
    for found in imports():
        # A package is imported before its modules; that dependency is Python's own.
        if found.runtime and found.at_top and found.module in after and found.module != found.importer:
            after[found.importer].add(found.module)
    while done := {module for module, needs in after.items() if not needs}:
        after = {module: needs - done for module, needs in after.items() if module not in done}
    assert {} == after


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_an_external_library_is_imported_in_one_place(library: str, homes: tuple[str, ...]) -> None:
    importers = {found.importer for found in imports() if found.module.split(".")[0] == library}
    assert [] == sorted(importer for importer in importers if not is_within(importer, homes))


def test_every_external_library_has_a_home() -> None:
    known = set(sys.stdlib_module_names) | {"mirror", "_typeshed"} | set(HOMES)
    assert [] == [str(found) for found in imports() if found.module.split(".")[0] not in known]


def test_a_module_has_at_most_350_lines() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert {} == {module: lines for module, lines in lengths.items() if lines > MAX_LINES}


def test_no_module_has_a_catch_all_name() -> None:
    """`util` is a package: each of its modules has one purpose."""
    leftovers = {"utils", "util", "common", "misc"}
    assert {"mirror.util"} == {module for module in modules() if module.split(".")[-1] in leftovers}


def test_no_code_swallows_all_exceptions() -> None:
    assert [] == [place for module in modules() for place in _catches_everything(module)]


def _catches_everything(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(kind) if kind else "" for kind in caught}
            # BaseException may be caught for cleanup if it is raised again.
            raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            kept = node.name is not None and is_within(module, KEEP_FAILURES)
            if names & {"", "Exception"} or ("BaseException" in names and not raises and not kept):
                yield f"{module}:{node.lineno}"


def test_only_the_command_line_and_the_report_print() -> None:
    printing = [
        f"{module}:{node.lineno}"
        for module in modules()
        if not is_within(module, MAY_PRINT)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [] == printing


def test_only_a_prune_deletes_from_targets() -> None:
    # The stores themselves and `mirror serve` implement deletions; a repair wraps a target.
    stores = {"mirror.layout.directory", "mirror.serve.pushes", "mirror.sync.repair"}
    callers = {name: _callers_of(name) for name in ("delete", "delete_unused")}
    assert {"delete": {"mirror.sync.deletions", *stores}, "delete_unused": {"mirror.sync.pruner"}} == callers
    importers = {found.importer for found in imports() if found.name in ("Deletions", "Pruner")}
    assert {"mirror.sync.pruner", "mirror.commands.prune_apply"} == importers


def _callers_of(method: str) -> set[str]:
    """Return the modules that call a method with this name."""
    return {
        module
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr == method
    }
