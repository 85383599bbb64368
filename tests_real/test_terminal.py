"""The live display in a real terminal: tmux shows what a user sees, also after a resize and after Ctrl-C."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.support.images import Graph
from tests.support.tool import MirrorTool

SIZE = 32 << 20  # bytes of the large blob
LINES = 24


class Terminal:
    """A terminal of tmux that runs one command. It stays open when the command has ended."""

    def __init__(self, command: str, environment: dict[str, str], columns: int) -> None:
        tmux = shutil.which("tmux")
        assert tmux is not None, "install tmux, or run `make test-terminal`"
        self._tmux = [tmux, "-L", f"mirror-{uuid4().hex}", "-f", "/dev/null"]
        given = [f"{name}={value}" for name, value in environment.items()]
        shell = f"trap : INT; {command}; echo ended; exec sleep 600"
        self._run("new-session", "-d", "-x", str(columns), "-y", str(LINES), "env", *given, "sh", "-c", shell)

    def _run(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=30, encoding="utf-8"
        ).stdout

    def rows(self) -> list[str]:
        """Return the rows of the screen up to the last one with text."""
        return self._run("capture-pane", "-p").rstrip("\n").splitlines()

    def wait_for(self, is_shown: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the screen satisfies a condition, and return its rows."""
        rows: list[str] = []

        def look() -> bool:
            """Read the screen, and return whether it satisfies the condition."""
            rows[:] = self.rows()
            return is_shown(rows)

        assert eventually(look, within=60, step=0.1), rows
        return rows

    def resize(self, columns: int) -> None:
        self._run("resize-window", "-x", str(columns))

    def press(self, key: str) -> None:
        self._run("send-keys", key)

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def open_terminal(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> Iterator[Callable[[int, dict[str, str]], Terminal]]:
    """Return a function that runs a sync of a large blob, which arrives slowly, and of an image on a paused host."""
    source, paused, target = scripted("source"), scripted("paused"), scripted("target")
    graph = Graph("large")
    graph.image("16", layers=[graph.layer(size=SIZE)])
    source.load("library/postgres", graph)
    source.fault("GET blob", drip=SIZE / 20, times=FOREVER)
    small = Graph("small")
    small.platforms("1")
    paused.load("app", small)
    paused.fault("GET tags", status=429, headers=(("Retry-After", "90"),), times=FOREVER)
    mirrors = [
        {"source": f"{source.host}/library/postgres", "targets": [f"{target.host}/hub/library/postgres"]},
        {"source": f"{paused.host}/app", "targets": [f"{target.host}/app"]},
    ]
    config = mirror_run.config(mirrors, source, paused, target)
    opened: list[Terminal] = []

    def open_one(columns: int, environment: dict[str, str]) -> Terminal:
        command = f"{sys.executable} -m mirror sync {config}"
        opened.append(Terminal(command, {**mirror_run.environment, "LC_ALL": "C.UTF-8", **environment}, columns))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def is_copying(rows: list[str]) -> bool:
    """Return whether a part of the large blob was copied, and a host waits."""
    return any("library/postgres" in row or "/postgres " in row for row in rows) and any(
        "rate limited, " in row for row in rows
    )


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_blob_in_progress_and_a_paused_host_are_shown_without_wrapped_lines(
    columns: int, open_terminal: Callable[[int, dict[str, str]], Terminal]
) -> None:
    terminal = open_terminal(columns, {})
    rows = terminal.wait_for(is_copying)
    (first,) = [number for number, row in enumerate(rows) if row.startswith("planning: ")]
    shown = rows[first:]
    assert 4 == len(shown), shown
    assert max(map(len, shown)) <= columns - 3
    assert " of 32.0 MiB" in shown[3]
    assert (columns >= 60) == ("─" in shown[3])


def test_a_resize_and_ctrl_c_leave_nothing_of_the_display(
    open_terminal: Callable[[int, dict[str, str]], Terminal],
) -> None:
    terminal = open_terminal(120, {})
    terminal.wait_for(is_copying)
    terminal.resize(60)
    terminal.wait_for(lambda rows: is_copying(rows) and max(map(len, rows)) <= 60)
    terminal.resize(100)
    terminal.wait_for(lambda rows: is_copying(rows) and max(map(len, rows)) > 60)
    terminal.press("C-c")
    rows = terminal.wait_for(lambda rows: "ended" in rows)
    assert any(row.startswith("stopped by a signal") for row in rows)
    left = [row for row in rows if row.startswith(("planning", "copying", "stopping")) or "MiB/s" in row or "─" in row]
    assert [] == left, rows


@pytest.mark.parametrize(
    ("environment", "ascii_only"),
    [({"NO_COLOR": "1"}, False), ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, True)],
    ids=["no color", "ascii"],
)
def test_the_display_works_without_colors_and_without_utf_8(
    environment: dict[str, str], ascii_only: bool, open_terminal: Callable[[int, dict[str, str]], Terminal]
) -> None:
    rows = open_terminal(80, environment).wait_for(is_copying)
    assert ascii_only == all(row.isascii() for row in rows)
