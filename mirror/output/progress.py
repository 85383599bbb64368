"""How far a run is, while it runs: a live display on a terminal, a line now and then elsewhere.

The only module that knows the display library, and it loads it only for a terminal.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import IO, TYPE_CHECKING, Literal, cast

from mirror.output.console import Console
from mirror.output.report import duration, size
from mirror.util.structs import Struct

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress

Mode = Literal["auto", "plain", "none"]

PLAIN_EVERY = 30.0  # seconds
LIVE_EVERY = 0.25  # seconds


class Snapshot(Struct, frozen=True):
    """Counts at one moment; each only grows."""

    images: int  # known so far
    done: int  # of them, with whatever result
    failed: int  # of those done
    bytes: int  # moved: read or sent, tries that failed included
    seconds: float  # since the beginning


class Progress(AbstractContextManager["Progress"]):
    """Counters that any thread may feed, shown until the block ends by a thread that is joined then.

    `moved` fits as the `progress` of a `Work`. gauges: further numbers for each line (`active`, `waiting`)."""

    def __init__(
        self,
        console: Console,
        mode: Mode = "auto",
        *,
        gauges: Callable[[], Mapping[str, int]] | None = None,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """wait: waits so many seconds and says whether that was cut short because the run has ended; for tests."""
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

    def expect(self, images: int) -> None:
        """So many more images are to be done."""
        with self._lock:
            self._images += images

    def image_done(self, *, failed: bool = False) -> None:
        with self._lock:
            self._done += 1
            self._failed += failed

    def moved(self, count: int) -> None:
        """So many more bytes were read or sent."""
        with self._lock:
            self._bytes += count

    def snapshot(self) -> Snapshot:
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
        before = self.snapshot()
        while not self._wait(PLAIN_EVERY):
            now = self.snapshot()
            self._console.line(f"mirror: {self._status(before, now)}")
            before = now

    def _status(self, before: Snapshot, now: Snapshot) -> str:
        parts = [f"{now.done} of {now.images} images"]
        if now.failed:
            parts.append(f"{now.failed} failed")
        parts += [size(now.bytes), f"{size(_rate(before, now))}/s"]
        if self._gauges:
            parts += [f"{number} {name}" for name, number in self._gauges().items() if number]
        left = _left(before, now)
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _show_live(self) -> None:
        # Loading it costs 100 ms, which only somebody at a terminal has to spare.
        from rich.console import Console as RichConsole  # noqa: PLC0415
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        screen = RichConsole(
            file=cast(IO[str], _Screen(self._console)), force_terminal=True, highlight=False, markup=False
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
            stack.enter_context(self._console.through(lambda line: _print_above(screen, line)))
            self._draw(bar)

    def _draw(self, bar: RichProgress) -> None:
        task = bar.add_task("", total=None)
        history = [self.snapshot()]
        while True:
            now = self.snapshot()
            history = [*history[-int(5 / LIVE_EVERY) :], now]
            bar.update(task, completed=now.done, total=now.images or None, description=self._status(history[0], now))
            bar.refresh()
            if self._wait(LIVE_EVERY):
                return


def _rate(before: Snapshot, now: Snapshot) -> float:
    """Bytes a second."""
    seconds = now.seconds - before.seconds
    return (now.bytes - before.bytes) / seconds if seconds > 0 else 0.0


def _left(before: Snapshot, now: Snapshot) -> float | None:
    """Seconds to the end if the images that are left take as long as those done; None where too few are done to say,
    or nothing has moved meanwhile."""
    if now.done < 5 or now.done >= now.images or (now.done, now.bytes) == (before.done, before.bytes):
        return None
    return now.seconds / now.done * (now.images - now.done)


def _print_above(screen: RichConsole, line: str) -> None:
    screen.print(line, soft_wrap=True)


class _Screen(io.TextIOBase):
    """The terminal as the display library sees it; what it cannot take at once is left out."""

    encoding = "utf-8"

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        self._console.raw(text)
        return len(text)

    def isatty(self) -> bool:
        return True
