"""Shows the progress of a run: a live display on a terminal, otherwise a line every 30 seconds.

Only this module uses the library `rich`, which it imports only if it shows a live display.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Literal, Protocol, cast

from mirror.output.console import Console
from mirror.output.progress import Progress, Snapshot
from mirror.output.progress_lines import Line, display_lines, plain_line
from mirror.util.columns import text_width

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.text import Text

Mode = Literal["auto", "plain", "none"]

PLAIN_EVERY = 30.0  # seconds
LIVE_AFTER = 0.5  # seconds; a shorter run shows no live display, and does not import `rich`
LIVE_EVERY = 0.25  # seconds
_SPEED_OVER = 5.0  # seconds over which the live display averages the speed

_STYLES = {"": "", "bar": "green", "rest": "dim", "faint": "dim", "warning": "yellow"}

Wait = Callable[[float], bool]


class ProgressWatcher(Protocol):
    """An object that receives a snapshot of the progress at intervals. every: the interval in seconds."""

    every: float

    def receive(self, snapshot: Snapshot, *, last: bool) -> None:
        """Handle a snapshot of the current progress. last: whether the run has ended."""
        ...


@contextmanager
def show_progress(
    progress: Progress, console: Console, mode: Mode = "auto", *, wait: Wait | None = None
) -> Iterator[None]:
    """Return a context manager that shows the progress on `console` until the `with` block exits.

    wait: waits for a number of seconds, and returns True if the run has ended; a replacement for tests."""
    if mode == "none":
        yield
        return
    show = _show_live if mode == "auto" and console.can_move_cursor else _show_plain
    with _run_on_thread(partial(show, progress, console), wait):
        yield


@contextmanager
def watch_progress(progress: Progress, watcher: ProgressWatcher, *, wait: Wait | None = None) -> Iterator[None]:
    """Return a context manager that passes the progress to `watcher` until the `with` block exits.

    wait: as for `show_progress`."""
    with _run_on_thread(partial(_watch, progress, watcher), wait):
        yield


@contextmanager
def _run_on_thread(run: Callable[[Wait], None], wait: Wait | None) -> Iterator[None]:
    """Return a context manager that calls `run` on another thread. When the `with` block exits, it waits for `run`.

    `run` must return when its argument, which waits for some seconds, returns True."""
    ended = threading.Event()
    thread = threading.Thread(target=run, args=(wait or ended.wait,), name="progress", daemon=False)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(progress: Progress, watcher: ProgressWatcher, wait: Wait) -> None:
    """Pass snapshots to `watcher` until the run ends."""
    while not wait(watcher.every):
        watcher.receive(progress.snapshot(), last=False)
    watcher.receive(progress.snapshot(), last=True)


def _show_plain(progress: Progress, console: Console, wait: Wait) -> None:
    """Print a line every PLAIN_EVERY seconds until the run ends."""
    before = progress.snapshot()
    while not wait(PLAIN_EVERY):
        now = progress.snapshot()
        console.write_line(f"mirror: {plain_line(before, now)}")
        before = now


def _show_live(progress: Progress, console: Console, wait: Wait) -> None:
    """Show a live display until the run ends."""
    if wait(LIVE_AFTER):
        return
    # The import takes 100 ms, and a run without a terminal does not need it.
    from rich.console import Console as RichConsole  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    stream = cast(IO[str], _ConsoleStream(console))
    screen = RichConsole(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
    view = _LiveView(progress, console, screen)
    live = Live(
        get_renderable=view.render,
        console=screen,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )
    view.update()
    with ExitStack() as stack:
        stack.enter_context(live)
        stack.enter_context(console.redirect_lines(lambda line: _print_above(screen, line)))
        has_ended = False
        while not has_ended:
            live.refresh()
            has_ended = wait(LIVE_EVERY)
            view.update()


class _LiveView:
    """The lines of the live progress display."""

    def __init__(self, progress: Progress, console: Console, screen: RichConsole) -> None:
        self._progress = progress
        self._console = console
        self._screen = screen
        self._width = 0
        self._history: deque[Snapshot] = deque(maxlen=max(2, int(_SPEED_OVER / LIVE_EVERY)))
        self._lines: list[Line] = []

    def update(self) -> None:
        """Read the progress and the size of the terminal, and compute the lines."""
        self._history.append(self._progress.snapshot())
        width, height = self._console.size()
        if width < self._width:
            self._erase_wrapped_rows(width)
        self._width = width
        self._screen.size = (width, height)
        self._lines = display_lines(
            self._history[0], self._history[-1], width=width, height=height, unicode=self._console.is_unicode
        )

    def _erase_wrapped_rows(self, width: int) -> None:
        """Erase the extra rows into which the terminal wrapped the lines of the display when it became narrower.

        The library `rich` erases only one row for each line."""
        lengths = [sum(text_width(text) for text, _ in line) for line in self._lines]
        rows = sum(max(0, length - 1) // width for length in lengths)
        self._console.write_raw("\x1b[2K\x1b[1A" * rows)

    def render(self) -> Text:
        """Return the current lines of the display as a `rich` renderable."""
        from rich.text import Text  # noqa: PLC0415 (see `_show_live`)

        text = Text(no_wrap=True, overflow="crop")
        for number, line in enumerate(self._lines):
            text.append("\n" if number else "")
            for part, style in line:
                text.append(part, _STYLES[style] or None)
        return text


def _print_above(screen: RichConsole, line: str) -> None:
    """Print a line above the live display."""
    screen.print(line, soft_wrap=True)


class _ConsoleStream(io.TextIOBase):
    """The console as a stream for the display library. Output that the terminal does not accept in time is dropped."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in the base class
        """The character encoding of the terminal."""
        return self._console.encoding

    def write(self, text: str) -> int:
        """Write `text` to the console, and return its length."""
        self._console.write_raw(text)
        return len(text)

    def isatty(self) -> bool:
        """Return True, because the display is only shown on a terminal."""
        return True
