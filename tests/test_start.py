"""The start and the end of the process: which modules are loaded, and the effect of an interrupt."""

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

# Runs the command line, then prints the loaded modules.
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

# Slow to import, and needed by few runs. Packages include all their modules.
RARELY_NEEDED = (
    *("requests", "urllib3", "rich", "publicsuffixlist", "cryptography", "semantic_version"),
    *("prometheus_client", "jinja2", "mirror.output.metrics", "mirror.output.notification"),
    *("mirror.serve", "mirror.registry.catalogs", "mirror.registry.v1.client", "boto3"),
)


def loaded_by(*arguments: str | Path) -> set[str]:
    """Return the modules that a command has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].removeprefix("loaded ").split())


def test_a_sync_without_work_does_not_load_slow_modules_that_it_does_not_need(
    registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, target = registry_factory("source"), registry_factory("target")
    seed(source, "team/app", images=2)
    mirrors = [{"source": f"{source.host}/team/app", "targets": [f"{target.host}/team/app"]}]
    config = mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    assert [] == sorted(loaded_by("sync", config) & set(RARELY_NEEDED))


INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"
INTERRUPTED_LATER = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("argparse", INTERRUPTED, ""),  # the first module that the command line imports
        ("sitecustomize", INTERRUPTED_LATER, "mirror: none.tar does not exist\n"),
    ],
    ids=["at its start", "at its end"],
)
def test_an_interrupt_without_cleanup_to_do_ends_the_process_silently(
    module: str, text: str, said: str, tmp_path: Path
) -> None:
    """The kernel ends the process: a shell shows 130."""
    (tmp_path / f"{module}.py").write_text(text)
    # SIGINT may be ignored if the tests run in the background.
    assert (-signal.SIGINT, "", said) == _run_beside(tmp_path, "env", "--default-signal=INT")


def test_an_interrupt_that_the_parent_ignores_stays_ignored_at_the_start(tmp_path: Path) -> None:
    """Shells do this for background jobs of scripts."""
    (tmp_path / "argparse.py").write_text(INTERRUPTED)
    assert (7, "", "") == _run_beside(tmp_path, "sh", "-c", "trap '' INT; exec \"$@\"", "sh")


def _run_beside(modules: Path, *before: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command. `modules` comes before all others in the path."""
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


def test_a_run_starts_without_a_writable_directory_for_temporary_files() -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"  # like a full disk
    loaded = "import mirror.commands.sync, tempfile; print(tempfile.tempdir)"
    done = subprocess.run(
        [sys.executable, "-c", f"{limited}; {loaded}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "None\n", "") == (done.returncode, done.stdout, done.stderr)
