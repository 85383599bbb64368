from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest

from mirror.output.console import Console
from mirror.output.progress import LIVE_EVERY, PLAIN_EVERY, Mode, Progress

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
def plain(stream: io.StringIO, mode: Mode = "plain", **options: object) -> Iterator[tuple[Progress, ControlledClock]]:
    clock = ControlledClock()
    with Progress(Console(stream), mode, now=clock.now, wait=clock.wait, **options) as progress:  # type: ignore[arg-type]
        clock.wait_until_waiting()
        yield progress, clock
        clock.end()


def test_a_line_is_printed_every_thirty_seconds() -> None:
    said = io.StringIO()
    with plain(said) as (progress, clock):
        progress.add_images(200)
        progress.add_bytes(30 * 1024**2)
        for _ in range(20):
            progress.count_image()
        clock.advance(30)
        progress.add_bytes(60 * 1024**2)
        progress.count_image(failed=True)
        clock.advance(30)
    assert [
        "mirror: 20 of 200 images, 30.0 MiB, 1.0 MiB/s, about 4 min 30 s left",
        "mirror: 21 of 200 images, 1 failed, 90.0 MiB, 2.0 MiB/s, about 8 min 31 s left",
    ] == said.getvalue().splitlines()
    assert [PLAIN_EVERY] * 3 == clock.asked


def test_no_time_is_estimated_while_nothing_progresses() -> None:
    said = io.StringIO()
    with plain(said) as (progress, clock):
        progress.add_images(20)
        for _ in range(10):
            progress.count_image()
        clock.advance(30)
        clock.advance(30)
        progress.add_bytes(1024)
        clock.advance(30)
    assert [
        "mirror: 10 of 20 images, 0 bytes, 0 bytes/s, about 30.0 s left",
        "mirror: 10 of 20 images, 0 bytes, 0 bytes/s",
        "mirror: 10 of 20 images, 1.0 KiB, 34 bytes/s, about 1 min 30 s left",
    ] == said.getvalue().splitlines()


@pytest.mark.parametrize("mode", ["plain", "auto"])
def test_a_short_run_prints_no_progress_without_a_terminal(mode: Mode) -> None:
    said = io.StringIO()
    with Progress(Console(said), mode) as progress:
        progress.add_images(1)
        progress.count_image()
    assert "" == said.getvalue()


def test_auto_without_a_terminal_is_plain() -> None:
    said = io.StringIO()
    with plain(said, "auto") as (_, clock):
        clock.advance(30)
    assert ["mirror: 0 of 0 images, 0 bytes, 0 bytes/s"] == said.getvalue().splitlines()


def test_none_starts_nothing() -> None:
    before = threading.active_count()
    said = io.StringIO()
    with Progress(Console(said), "none") as progress:
        progress.add_bytes(1)
        assert before == threading.active_count()
    assert "" == said.getvalue()


def test_gauges_are_printed_unless_they_are_zero() -> None:
    said = io.StringIO()
    gauges = {"active": 3, "waiting": 12, "paused": 0}
    with plain(said, gauges=lambda: gauges) as (_, clock):
        clock.advance(30)
    assert "mirror: 0 of 0 images, 0 bytes, 0 bytes/s, 3 active, 12 waiting\n" == said.getvalue()


def test_many_threads_may_increase_the_counters() -> None:
    with Progress(Console(io.StringIO()), "none") as progress:

        def feed(_: int) -> None:
            progress.add_images(2)
            progress.count_image(failed=True)
            progress.count_image()
            progress.add_bytes(3)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(feed, range(500)))
        seen = progress.snapshot()
    assert (1000, 1000, 500, 1500) == (seen.images, seen.done, seen.failed, seen.bytes)


def test_the_thread_ends_with_the_block_also_if_the_block_raises() -> None:
    with pytest.raises(KeyError), Progress(Console(io.StringIO()), "plain"):
        raise KeyError
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "progress"]


# -- on a terminal ----------------------------------------------------------------------------------------------------


@contextmanager
def terminal() -> Iterator[tuple[int, Console]]:
    """Open a pseudo-terminal: the end that a person sees, and a console on the other end."""
    seen, given = pty.openpty()
    try:
        with os.fdopen(given, "w") as stream:
            yield seen, Console(stream)
    finally:
        os.close(seen)


def read_until(descriptor: int, end: str) -> str:
    found = b""
    while not found.endswith(end.encode()):  # a terminal returns at most 4 KiB at once
        found += os.read(descriptor, 100_000)
    return found.decode()


def test_a_terminal_shows_a_live_display_that_is_erased_at_the_end_and_does_not_split_lines() -> None:
    with terminal() as (seen, console):
        clock = ControlledClock()
        with Progress(console, "auto", now=clock.now, wait=clock.wait) as progress:
            clock.wait_until_waiting()
            progress.add_images(10)
            for _ in range(7):
                progress.count_image()
            console.write_line("mirror: warning: [bold]slow[/bold] host")
            clock.advance(LIVE_EVERY)
            clock.end()
        console.write_line("after")
        shown = read_until(seen, "after\r\n")
    assert "7 of 10 images" in shown
    assert "mirror: warning: [bold]slow[/bold] host\r\n" in shown
    assert shown.rindex("\x1b[2K") > shown.rindex("7 of 10 images")  # the display was erased
    assert [LIVE_EVERY] * 2 == clock.asked


def test_a_stopped_terminal_does_not_delay_the_end_of_a_run() -> None:
    with terminal() as (_, console):
        with Progress(console, "auto") as progress:
            progress.add_images(1)
            for _ in range(200):
                console.write_line("x" * 1000)  # far more than the buffer of the terminal
        assert console.dropped > 0


def test_the_display_library_is_imported_for_a_terminal_only() -> None:
    code = (
        "import sys, io; from mirror.output.console import Console; from mirror.output.progress import Progress\n"
        "with Progress(Console(io.StringIO()), 'auto'): pass\n"
        "print(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "False\n" == done.stdout
