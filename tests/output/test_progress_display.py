from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest

from mirror.output.console import Console
from mirror.output.progress import Progress
from mirror.output.progress_display import LIVE_AFTER, LIVE_EVERY, PLAIN_EVERY, Mode, show_progress

ROOT = Path(__file__).resolve().parents[2]


class ControlledClock:
    """A clock that the test controls: `advance` ends one wait of the display, and returns when the next one begins."""

    def __init__(self) -> None:
        self.time = 100.0
        self.asked: list[float] = []
        self._go: Queue[bool] = Queue()
        self._waiting: Queue[None] = Queue()

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> bool:
        self.asked.append(seconds)
        self._waiting.put(None)
        return self._go.get(timeout=10)

    def wait_until_waiting(self) -> None:
        self._waiting.get(timeout=10)

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self._go.put(False)
        self._waiting.get(timeout=10)

    def end(self) -> None:
        self._go.put(True)


@contextmanager
def shown(
    console: Console, mode: Mode = "plain", progress: Progress | None = None
) -> Iterator[tuple[Progress, ControlledClock]]:
    """Show the progress on a console, with a clock that the test controls."""
    clock = ControlledClock()
    progress = progress or Progress(now=clock.now)
    with show_progress(progress, console, mode, wait=clock.wait):
        clock.wait_until_waiting()
        yield progress, clock
        clock.end()


def test_a_line_is_printed_every_thirty_seconds() -> None:
    said = io.StringIO()
    with shown(Console(said)) as (progress, clock):
        progress.add_images(200)
        for _ in range(20):
            progress.count_image()
        clock.advance(30)
        progress.end_planning()
        progress.count_image(failed=True)
        clock.advance(30)
    assert [
        "mirror: planning: 20 of 200 images",
        "mirror: copying: 21 of 200 images, 1 failed, 8 min 32 s left",
    ] == said.getvalue().splitlines()
    assert [PLAIN_EVERY] * 3 == clock.asked


@pytest.mark.parametrize("mode", ["plain", "auto"])
def test_a_short_run_prints_no_progress_without_a_terminal(mode: Mode) -> None:
    said = io.StringIO()
    with show_progress(Progress(), Console(said), mode):
        pass
    assert "" == said.getvalue()


def test_auto_without_a_terminal_is_plain() -> None:
    said = io.StringIO()
    with shown(Console(said), "auto") as (_, clock):
        clock.advance(30)
    assert ["mirror: listing"] == said.getvalue().splitlines()


def test_none_starts_nothing() -> None:
    before = threading.active_count()
    said = io.StringIO()
    with show_progress(Progress(), Console(said), "none"):
        assert before == threading.active_count()
    assert "" == said.getvalue()


def test_the_thread_ends_with_the_block_also_if_the_block_raises() -> None:
    with pytest.raises(KeyError), show_progress(Progress(), Console(io.StringIO()), "plain"):
        raise KeyError
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "progress"]


def test_a_closed_stream_does_not_disturb_the_run() -> None:
    closed = io.StringIO()
    closed.close()
    with shown(Console(closed), "auto") as (_, clock):
        clock.advance(30)


# -- on a terminal ----------------------------------------------------------------------------------------------------


@contextmanager
def terminal(encoding: str = "utf-8") -> Iterator[tuple[int, Console]]:
    """Open a pseudo-terminal: the end that a person sees, and a console on the other end."""
    seen, given = pty.openpty()
    try:
        with os.fdopen(given, "w", encoding=encoding) as stream:
            yield seen, Console(stream)
    finally:
        os.close(seen)


def read_until(descriptor: int, end: str) -> str:
    found = b""
    while not found.endswith(end.encode()):  # a terminal returns at most 4 KiB at once
        found += os.read(descriptor, 100_000)
    return found.decode()


def set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.fixture
def _xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def live_output(*, columns: int = 80, encoding: str = "utf-8", narrower: int | None = None) -> str:
    """Return what the live display of a run with one blob writes to a terminal."""
    with terminal(encoding) as (seen, console):
        set_size(seen, columns, 24)
        with shown(console, "auto") as (progress, clock):
            progress.add_images(4)
            with progress.running_blob("registry.example.com/team/app", "sha256:a1b2c3d4e5f6", 500) as blob:
                blob.add(250)
                clock.advance(LIVE_AFTER)
                if narrower is not None:
                    set_size(seen, narrower, 24)
                clock.advance(LIVE_EVERY)
        console.write_line("after")
        return read_until(seen, "after\r\n")


@pytest.mark.usefixtures("_xterm")
@pytest.mark.parametrize("columns", [80, 40, 10])
def test_the_live_display_fits_the_width_of_the_terminal(columns: int) -> None:
    rows = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", row) for row in re.split("[\r\n]+", live_output(columns=columns))]
    assert any(row.startswith("planning:"[: columns - 3]) for row in rows)
    assert max(map(len, rows)) <= columns - 3


@pytest.mark.usefixtures("_xterm")
def test_rows_that_a_narrower_terminal_has_wrapped_are_erased() -> None:
    """The display has three rows. On half the columns, its two longer rows take two rows each."""
    before, after = live_output().count("\x1b[1A"), live_output(narrower=40).count("\x1b[1A")
    assert 2 == after - before


@pytest.mark.usefixtures("_xterm")
def test_a_terminal_without_utf_8_gets_only_characters_of_its_encoding() -> None:
    text = live_output(encoding="iso-8859-1")
    assert text.isascii()
    assert "###" in text


@pytest.mark.usefixtures("_xterm")
def test_no_color_leaves_out_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    colors = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colors.search(live_output())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colors.search(live_output())


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    with terminal() as (seen, console), shown(console, "auto") as (_, clock):
        clock.advance(30)
        assert "mirror: listing\r\n" == read_until(seen, "\n")


@pytest.mark.usefixtures("_xterm")
def test_a_terminal_shows_a_live_display_that_is_erased_at_the_end_and_does_not_split_lines() -> None:
    with terminal() as (seen, console):
        with shown(console, "auto") as (progress, clock):
            clock.advance(LIVE_AFTER)
            progress.add_images(10)
            for _ in range(7):
                progress.count_image()
            console.write_line("mirror: warning: [bold]slow[/bold] host")
            clock.advance(LIVE_EVERY)
        console.write_line("after")
        screen = read_until(seen, "after\r\n")
    assert "7 of 10 images" in screen
    assert "mirror: warning: [bold]slow[/bold] host\r\n" in screen
    assert screen.rindex("\x1b[2K") > screen.rindex("7 of 10 images")  # the display was erased
    assert [LIVE_AFTER, LIVE_EVERY, LIVE_EVERY] == clock.asked


@pytest.mark.usefixtures("_xterm")
def test_a_stopped_terminal_does_not_delay_the_end_of_a_run() -> None:
    with terminal() as (_, console):
        with shown(console, "auto") as (_, clock):
            clock.advance(LIVE_AFTER)
            for _ in range(200):
                console.write_line("x" * 1000)  # far more than the buffer of the terminal
        assert console.dropped > 0


def test_the_display_library_is_imported_for_a_terminal_only() -> None:
    code = (
        "import sys, io; from mirror.output.console import Console; from mirror.output.progress import Progress\n"
        "from mirror.output.progress_display import show_progress\n"
        "with show_progress(Progress(), Console(io.StringIO()), 'auto'): pass\n"
        "print(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "False\n" == done.stdout
