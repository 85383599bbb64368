"""Shows the progress of a run: a live display on a terminal, otherwise a line every 30 seconds.

Only this module uses the library `rich`, which it imports only if it shows a live display.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import IO, TYPE_CHECKING, Literal, cast

from mirror.output.console import Console
from mirror.output.report import format_duration, format_size
from mirror.util.structs import Struct

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress

Mode = Literal["auto", "plain", "none"]

PLAIN_EVERY = 30.0  # seconds
LIVE_EVERY = 0.25  # seconds


class Snapshot(Struct, frozen=True):
    """The values of the progress counters at one moment. No counter ever decreases."""

    images: int  # planned so far
    done: int  # with any result
    failed: int  # of `done`
    bytes: int  # read or sent, also in failed attempts
    seconds: float  # since the start


class Progress(AbstractContextManager["Progress"]):
    """The progress counters of a run. Any thread may increase them.

    As a context manager, it shows the counters on the console until the `with` block exits.
    gauges: a function that returns further numbers to show, by name (`active`, `waiting`)."""

    def __init__(
        self,
        console: Console,
        mode: Mode = "auto",
        *,
        gauges: Callable[[], Mapping[str, int]] | None = None,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Create the counters. now, wait: replacements for the clock and for waiting, for tests.

        `wait` waits for a number of seconds, and returns True if the run has ended."""
        self._console = console
        self._live = mode == "auto" and console.is_terminal
        self._silent = mode == "none"
        self._gauges = gauges
        self._now = now
        self._begin = now()
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._lock = threading.Lock()
        self._images = self._done = self._failed = self._bytes = 0
        self._thread: threading.Thread | None = None

    def add_images(self, images: int) -> None:
        """Add `images` to the number of planned images."""
        with self._lock:
            self._images += images

    def count_image(self, *, failed: bool = False) -> None:
        """Count one image as done. failed: whether it failed."""
        with self._lock:
            self._done += 1
            self._failed += failed

    def add_bytes(self, count: int) -> None:
        """Add `count` to the number of bytes that were read or sent. This method can be the `progress` of a `Work`."""
        with self._lock:
            self._bytes += count

    def snapshot(self) -> Snapshot:
        """Return the current counters."""
        with self._lock:
            images, done, failed, moved = self._images, self._done, self._failed, self._bytes
        return Snapshot(max(images, done), done, failed, moved, self._now() - self._begin)

    def __enter__(self) -> Progress:
        if not self._silent:
            show = self._show_live if self._live else self._show_plain
            self._thread = threading.Thread(target=show, name="progress", daemon=False)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _show_plain(self) -> None:
        """Print a status line every PLAIN_EVERY seconds until the run ends."""
        before = self.snapshot()
        while not self._wait(PLAIN_EVERY):
            now = self.snapshot()
            self._console.write_line(f"mirror: {self._status(before, now)}")
            before = now

    def _status(self, before: Snapshot, now: Snapshot) -> str:
        """Return the status line for the snapshot `now`. The speed is the average since the snapshot `before`."""
        parts = [f"{now.done} of {now.images} images"]
        if now.failed:
            parts.append(f"{now.failed} failed")
        parts += [format_size(now.bytes), f"{format_size(_bytes_per_second(before, now))}/s"]
        if self._gauges:
            parts += [f"{number} {name}" for name, number in self._gauges().items() if number]
        left = _seconds_left(before, now)
        if left is not None:
            parts.append(f"about {format_duration(left)} left")
        return ", ".join(parts)

    def _show_live(self) -> None:
        """Show a live display until the run ends."""
        # The import takes 100 ms, and a run without a terminal does not need it.
        from rich.console import Console as RichConsole  # noqa: PLC0415
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        screen = RichConsole(
            file=cast(IO[str], _ConsoleStream(self._console)), force_terminal=True, highlight=False, markup=False
        )
        bar = RichProgress(
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=screen,
            auto_refresh=False,
            transient=True,
        )
        with ExitStack() as stack:
            stack.enter_context(bar)
            stack.enter_context(self._console.redirect_lines(lambda line: _print_above(screen, line)))
            self._update_display(bar)

    def _update_display(self, bar: RichProgress) -> None:
        """Update the live display every LIVE_EVERY seconds until the run ends."""
        task = bar.add_task("", total=None)
        history = [self.snapshot()]
        while True:
            now = self.snapshot()
            history = [*history[-int(5 / LIVE_EVERY) :], now]
            bar.update(task, completed=now.done, total=now.images or None, description=self._status(history[0], now))
            bar.refresh()
            if self._wait(LIVE_EVERY):
                return


def _bytes_per_second(before: Snapshot, now: Snapshot) -> float:
    """Return the average bytes per second between two snapshots."""
    seconds = now.seconds - before.seconds
    return (now.bytes - before.bytes) / seconds if seconds > 0 else 0.0


def _seconds_left(before: Snapshot, now: Snapshot) -> float | None:
    """Estimate the number of seconds until the end of the run from the average time per image so far.

    Return None if fewer than five images are done, if all are done, or if nothing has changed between the snapshots."""
    if now.done < 5 or now.done >= now.images or (now.done, now.bytes) == (before.done, before.bytes):
        return None
    return now.seconds / now.done * (now.images - now.done)


def _print_above(screen: RichConsole, line: str) -> None:
    """Print a line above the live display."""
    screen.print(line, soft_wrap=True)


class _ConsoleStream(io.TextIOBase):
    """The console as a stream for the display library. Output that the terminal does not accept in time is dropped."""

    encoding = "utf-8"

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        """Write `text` to the console, and return its length."""
        self._console.write_raw(text)
        return len(text)

    def isatty(self) -> bool:
        """Return True, because the display is only shown on a terminal."""
        return True
