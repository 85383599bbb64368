"""bash, zsh and fish complete commands, options and files when TAB is pressed; man prints the manual page silently."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from tools.generated_files import COMPLETIONS, generate_files

# For each shell: how it is started without the user's settings, and the commands that load the completion.
# FILE is the generated file, and FOLDER its directory. `mirror` is a function that prints its arguments.
SHELLS = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        'PS1="ready> "; bind "set bell-style none"; mirror() { echo "got $*."; }; source FILE',
    ),
    "zsh": (
        ["-f", "-i"],
        'PS1="ready> "; mirror() { echo "got $*." }; fpath=(FOLDER $fpath); autoload -Uz compinit; compinit -u -D',
    ),
    "fish": (
        ["--no-config", "--interactive"],
        'function fish_prompt; echo -n "ready> "; end; function mirror; echo "got $argv."; end; source FILE',
    ),
}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the generated files, at the paths at which an installation has them."""
    root = tmp_path_factory.mktemp("prefix")
    for name, text in generate_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, prefix: Path, tmp_path: Path) -> Iterator[pexpect.spawn[str]]:
    """A shell on a terminal, in a directory with the file prod.yaml."""
    name: str = request.param
    assert shutil.which(name), f"{name} is missing: `make test-dist` installs it with apt"
    (tmp_path / "prod.yaml").touch()
    arguments, setup = SHELLS[name]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    with _terminal(name, arguments, environment, tmp_path) as started:
        file = prefix / COMPLETIONS[name]
        started.sendline(setup.replace("FILE", str(file)).replace("FOLDER", str(file.parent)))
        yield started


@contextmanager
def _terminal(
    name: str, arguments: list[str], environment: dict[str, str], folder: Path
) -> Iterator[pexpect.spawn[str]]:
    """Start a program on a new terminal, and end it with the block."""
    started = pexpect.spawn(
        name, arguments, env=environment, cwd=str(folder), encoding="utf-8", timeout=30, dimensions=(40, 200)
    )
    try:
        yield started
    finally:
        started.close(force=True)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("mirror vali\t\r", "validate"),
        ("mirror bundle ver\tpr\t\r", "bundle verify prod.yaml"),
        ("mirror sync --fail\tpr\t\r", "sync --fail-fast prod.yaml"),
        ("mirror sync --progress pl\t\r", "sync --progress plain"),
        ("mirror sync --report pr\t\r", "sync --report prod.yaml"),
        ("mirror help expl\t\r", "help explain"),
    ],
)
def test_the_tab_key_completes_commands_options_and_files(shell: pexpect.spawn[str], typed: str, expected: str) -> None:
    shell.send(typed)
    shell.expect_exact(f"got {expected}")


def test_man_prints_the_manual_page_without_warnings(prefix: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-M", str(prefix / "share" / "man"), "mirror"],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "" == done.stderr
    assert re.search(r"^ +--lock-wait SECONDS$", done.stdout, re.MULTILINE)
