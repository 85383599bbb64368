"""What a run loads before it begins: nothing that it has no use for. Most runs find that nothing has changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RegistryFactory
from tests.support.seeding import seed
from tests.support.tool import MirrorTool

ROOT = Path(__file__).resolve().parent.parent

# Runs the command line, then tells which modules are there.
LOADED = """
import sys
from mirror.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("loaded", *sys.modules)
sys.exit(code)
"""

NOT_FOR_A_SYNC = {
    *("requests", "urllib3", "rich", "publicsuffixlist", "multiprocessing"),
    *("mirror.layout", "mirror.serve", "mirror.commands.disk_stores", "mirror.commands.inventory"),
    *("mirror.sync.verifier", "mirror.sync.dry_run", "mirror.sync.repair"),
    *(
        "mirror.registry.convert.schema1",
        "mirror.registry.convert.image_builder",
        "mirror.registry.convert.layers",
        "mirror.registry.auth.credential_helpers",
    ),
    *(
        "mirror.registry.v1.client",
        "mirror.registry.v1.host",
        "mirror.registry.v1.image_conversion",
        "mirror.registry.http.cookies",
    ),
}
NOT_FOR_A_CHECK = NOT_FOR_A_SYNC | {"sqlite3", "mirror.commands.sync", "mirror.transfer", "mirror.registry.session"}
NOT_FOR_A_WORD = NOT_FOR_A_CHECK | {"yaml", "json", "logging", "msgspec", "inspect", "hashlib", "threading"}


def loaded_by(*arguments: str | Path) -> set[str]:
    """The modules that a command has loaded when it is done."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].removeprefix("loaded ").split())


def among(unwanted: set[str], loaded: set[str]) -> list[str]:
    return sorted(unwanted & loaded)


def test_a_sync_that_finds_nothing_to_do_loads_only_what_it_needs(
    registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, target = registry_factory("source"), registry_factory("target")
    seed(source, "team/app", images=2)
    mirrors = [{"source": f"{source.host}/team/app", "targets": [f"{target.host}/team/app"]}]
    config = mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    assert [] == among(NOT_FOR_A_SYNC, loaded_by("sync", config))


def test_checking_a_configuration_that_is_right_loads_no_part_of_a_run(tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    config.write_text("version: 1\nmirrors: [{source: a.example.com/b, targets: [c.example.com/d]}]\n")
    assert [] == among(NOT_FOR_A_CHECK, loaded_by("validate", config))


def test_the_version_is_told_without_more_than_the_command_line() -> None:
    loaded = loaded_by("--version")
    assert [] == among(NOT_FOR_A_WORD, loaded)
    assert {
        "mirror",
        "mirror.cli",
        "mirror.commands",
        "mirror.commands.arguments",
        "mirror.errors",
        "mirror.output",
        "mirror.output.console",
    } == {name for name in loaded if name.split(".")[0] == "mirror"}


INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"
INTERRUPTED_LATER = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("argparse", INTERRUPTED, ""),  # the first that the command line imports
        ("sitecustomize", INTERRUPTED_LATER, "mirror: none.tar does not exist\n"),
    ],
    ids=["at its start", "at its end"],
)
def test_an_interrupt_when_there_is_nothing_to_tidy_up_ends_the_process_without_a_word(
    module: str, text: str, said: str, tmp_path: Path
) -> None:
    """By the kernel: a shell shows 130."""
    (tmp_path / f"{module}.py").write_text(text)
    # Who runs the tests in the background may have it ignored for all of them.
    assert (-signal.SIGINT, "", said) == _run_beside(tmp_path, "env", "--default-signal=INT")


def test_an_interrupt_that_is_ignored_for_the_program_stays_ignored_at_its_start(tmp_path: Path) -> None:
    """As for the background jobs of a script."""
    (tmp_path / "argparse.py").write_text(INTERRUPTED)
    assert (7, "", "") == _run_beside(tmp_path, "sh", "-c", "trap '' INT; exec \"$@\"", "sh")


def _run_beside(modules: Path, *before: str) -> tuple[int, str, str]:
    """-> exit code, stdout and stderr of a command that minds signals, with `modules` before all others."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "mirror", "bundle", "verify", "none.tar"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{modules}:{ROOT}"},
        cwd=modules,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
