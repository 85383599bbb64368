"""Statements of the project about itself are true: README, documents, change log, build targets."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mirror
from mirror import errors
from mirror.output.report.records import Failure
from tests.support.bad_configs import PUBLIC_KEY
from tests.support.tool import MirrorTool

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"
# Files that are written by hand; all others are generated.
WRITTEN = (
    "mirror",
    "tests",
    "demo",
    "tests_real",
    "tools",
    "docs",
    "configs",
    "contrib",
    "benchmarks",
    ".ci",
    "*.md",
    "Makefile",
    "MANIFEST.in",
    "setup.py",
    "Containerfile",
    "requirements.txt",
    "*.cfg",
    "*.toml",
)

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def written_files() -> Iterator[Path]:
    for pattern in WRITTEN:
        for path in ROOT.glob(pattern):
            yield from (file for file in ([path] if path.is_file() else path.rglob("*")) if _is_text(file))


def _is_text(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and b"\0" not in path.read_bytes()


@cache
def help_of(*command: str) -> str:
    """Return the output of `mirror COMMAND --help`."""
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mirror", *command, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


def commands() -> list[str]:
    """Return the commands in `mirror --help`."""
    listed = help_of().partition("\ncommands:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    ([a-z]+)  ", listed, re.MULTILINE)
    assert found, "mirror --help lists no commands"
    return found


def section(document: Path, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", read(document), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document.name} has no section {title!r}"
    return found[1]


def first_column(table: str) -> set[str]:
    """Return the first cell of each row, without code marks."""
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    return {row.strip().strip("`") for row in rows} - {""}


def test_the_readme_fits_one_screen_and_has_the_two_commands() -> None:
    readme = read(ROOT / "README.md")
    assert {"make demo", "make test"} == {command for command in ("make demo", "make test") if command in readme}
    assert 130 >= len(readme.splitlines())


def test_the_change_log_has_this_version() -> None:
    assert mirror.__version__ in re.findall(r"^## (\S+)", read(ROOT / "CHANGELOG.md"), re.MULTILINE)


def test_the_image_and_the_chart_have_this_version() -> None:
    chart = ROOT / "contrib" / "helm" / "mirror" / "Chart.yaml"
    found = re.findall(r"image\.version=\"(.+?)\"", read(ROOT / "Containerfile"))
    found += re.findall(r"^(?:appV|v)ersion: \"?([^\"\n]+)", read(chart), re.MULTILINE)
    assert [mirror.__version__] * 3 == found


def test_every_make_target_in_a_document_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    texts = [*DOCUMENTS, ROOT / ".ci" / "run"]
    named = {name for path in texts for name in re.findall(r"(?:^ *|`)make ([a-z][a-z-]*)", read(path), re.MULTILINE)}
    assert set() == named - targets


def test_ci_runs_the_linters_then_the_tests_then_the_campaigns() -> None:
    lines = [line for line in read(ROOT / ".ci" / "run").splitlines() if line.startswith("make ")]
    assert ["make lint", "make test", "make test-long"] == lines


def test_operations_documents_exactly_the_existing_commands() -> None:
    table, options = section(OPERATIONS, "Commands").split("| option |")
    assert set(commands()) == first_column(table) - {"command"}
    assert options


def test_the_readme_has_every_command_with_an_effect() -> None:
    readme = read(ROOT / "README.md")
    assert [] == [command for command in commands() if f"`mirror {command}" not in readme]


def test_operations_documents_exactly_the_existing_options() -> None:
    offered = {option for command in commands() for option in _OPTION.findall(help_of(command))}
    documented = set(_OPTION.findall(section(OPERATIONS, "Commands")))
    assert offered - {"--help"} == documented - {"--version"}


def test_operations_explains_every_exit_code() -> None:
    known = {errors.OK, errors.FAILED, errors.USAGE, errors.REFUSED, errors.LOCAL, errors.CHANGES, errors.BUSY}
    known |= {errors.SIGNALLED + 2, errors.SIGNALLED + 15}
    assert {str(code) for code in known} == first_column(section(OPERATIONS, "Exit codes")) - {"code"}


def test_a_run_never_exits_with_the_code_for_usage_after_its_start() -> None:
    assert errors.FAILED == errors.worst_exit_code([errors.OK, errors.USAGE])
    assert errors.LOCAL == errors.worst_exit_code([errors.USAGE, errors.LOCAL, errors.REFUSED])


def test_operations_explains_exactly_the_existing_error_codes() -> None:
    trees = [ast.parse(read(path)) for path in sorted((ROOT / "mirror").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    # `error` is the code of the base class, which is never raised itself.
    codes = {code for node in nodes for code in _error_codes(node)} - {"error"}
    explained = first_column(section(OPERATIONS, "Error codes")) - {"code"}
    assert set() == codes - explained
    assert set() == explained - texts


def test_operations_marks_the_same_error_codes_as_retryable_as_the_report() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*?\| [\d, ]+ \| (\w+) \|", section(OPERATIONS, "Error codes"), re.MULTILINE)
    assert len(rows) > 30
    for code, documented in rows:
        found = {
            Failure.from_error(errors.MirrorError("x", code=code, retryable=again)).retryable for again in (True, False)
        }
        assert {"yes": {True}, "no": {False}, "often": {True, False}}[documented] == found, code


def _error_codes(node: ast.AST) -> Iterator[str]:
    """Yield the values of `code=` arguments and of `code` attributes of classes."""
    match node:
        case ast.keyword(arg="code", value=value) | ast.Assign(targets=[ast.Name(id="code")], value=value):
            yield from _texts(value)


def _texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from (*_texts(value.body), *_texts(value.orelse))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_have_a_target(document: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", read(document))):
        name, _, anchor = link.partition("#")
        goal = (document.parent / name) if name else document
        if "://" in link:
            continue
        if not goal.exists() or (anchor and anchor not in {_anchor(title) for title in _HEADING.findall(read(goal))}):
            broken.append(link)
    assert [] == broken


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_configurations_in_the_documents_are_valid(mirror_run: MirrorTool) -> None:
    blocks = [
        body
        for path in DOCUMENTS
        for language, body in _FENCED.findall(read(path))
        if language == "yaml" and re.search("^ *mirrors:", body, re.MULTILINE)
    ]
    (mirror_run.folder / "cosign.pub").write_text(PUBLIC_KEY)
    for block in blocks:
        mirror_run.config_file.write_text(block, encoding="utf-8")
        passwords = {"HUB_TOKEN": "secret", "OLD_PASSWORD": "secret"}
        validated = mirror_run("validate", mirror_run.config_file, environment=passwords)
        assert 0 == validated.code, f"{block}\n{validated}"
    assert blocks


def test_every_dependency_is_explained() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    names = re.findall(r"^([A-Za-z][\w-]*)", wanted, re.MULTILINE)
    explained = section(ROOT / "docs" / "decisions.md", "2. What we depend on, and why")
    assert names
    assert [] == [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", explained)]


def test_the_requirements_with_hashes_have_every_dependency() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    texts = [setup["options"]["install_requires"], *(extras[name] for name in extras if name != "test")]
    wanted = {name.lower() for text in texts for name in re.findall(r"^([A-Za-z][\w-]*)", text, re.MULTILINE)}
    pinned = re.findall(r"^([\w-]+)==\S+ \\\n    --hash=sha256:", read(ROOT / "requirements.txt"), re.MULTILINE)
    assert set() == wanted - set(pinned), "run `make requirements`"


def test_make_test_installs_every_program_that_the_tests_run() -> None:
    recipe = re.search(r"^test:.*\n\t@tools/need\.sh (.*)$", read(ROOT / "Makefile"), re.MULTILINE)
    assert recipe
    installed = {item.partition(":")[0] for item in recipe[1].split()}
    started = {
        call.args[0].elts[0].value
        for path in (ROOT / "tests").rglob("*.py")
        for call in ast.walk(ast.parse(read(path)))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("subprocess.run", "subprocess.Popen")
        if call.args and isinstance(call.args[0], ast.List) and isinstance(call.args[0].elts[0], ast.Constant)
    }
    assert {"skopeo", "umoci"} <= started
    on_every_system = {"bash", "/bin/sh", "cat", "split", "tar", "true"}
    assert set() == started - installed - on_every_system


def test_the_constraints_fix_the_version_of_every_dependency_of_the_tests() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    texts = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    wanted = {name.lower() for name in re.findall(r"^([A-Za-z][\w-]*)", texts, re.MULTILINE)}
    fixed = re.findall(r"^([\w-]+)==\S+$", read(ROOT / "tools" / "constraints.txt"), re.MULTILINE)
    assert set() == wanted - set(fixed), "run `make requirements`"


def test_no_file_has_a_mark_of_unfinished_work() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")
    pattern = re.compile(rf"\b(?:{'|'.join(words)})\b")
    assert [] == [
        f"{path.relative_to(ROOT)}: {found[0]}" for path in written_files() for found in pattern.finditer(read(path))
    ]


def test_no_file_contains_a_path_of_one_machine() -> None:
    pattern = re.compile(rf"(?<![\w.~-])/(?:{'|'.join(('work', 'farm', 'root'))})/")
    assert [] == [
        f"{path.relative_to(ROOT)}: {found[0]}" for path in written_files() for found in pattern.finditer(read(path))
    ]


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    names = {"skip", "skipif", "xfail", "importorskip"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Attribute) and node.attr in names and "pytest" in ast.unparse(node.value)
    ]
    assert [] == found


def test_the_demonstration_installs_nothing_on_the_system() -> None:
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", read(ROOT / "Makefile"), re.MULTILINE)
    assert recipe is not None
    assert ["@$(BIN)/python -m demo"] == recipe[1].split("\t")[1].splitlines()
