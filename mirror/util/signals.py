"""SIGINT and SIGTERM: the first asks the run to end cleanly, the second ends the process at once."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from mirror.errors import SIGNALLED, Cancelled

if TYPE_CHECKING:
    import asyncio

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


def _nothing() -> None:
    pass


class Signals:
    """Use with `with`, in the main thread. `wait` returns when a signal came or `wake` was called.

    A pipe wakes the main thread: a handler that took a lock could wait for the very code that it interrupted. The
    interpreter writes to it as well, at once: it runs handlers only when the main thread is awake, and that is not
    woken by a signal that another thread was given, or that came just before it went to sleep. An event loop has a pipe
    of its own for that (`free_pipe`, `wake_loop`).

    on_signal: called by the loop after the first signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.on_signal: Callable[[], object] = _nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipe: tuple[int, int] | None = None
        self._came = 0.0  # when, by the monotonic clock
        self.hung = False  # threads had to be left behind: the process can only be ended hard

    def __enter__(self) -> Signals:
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._woken = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in _CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.free_pipe()
        signal.set_wakeup_fd(self._woken)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(SIGNALLED + number)
        self._came = time.monotonic()
        self.number = number
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.on_signal)
        self.wake()

    def free_pipe(self) -> None:
        """Close the pipe, since an event loop needs its two descriptors; `wait` cannot be used any more."""
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            pipe, self._pipe = self._pipe, None
            for descriptor in pipe:
                os.close(descriptor)

    def wake_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on a signal wakes `loop`, until it is closed."""
        loop.add_signal_handler(signal.SIGURG, _nothing)  # with any such handler, asyncio is woken by all signals
        self._loop = loop

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        if self._pipe is not None:
            with suppress(BlockingIOError):  # the pipe is full of reasons to wake up
                os.write(self._pipe[1], b"!")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a signal or a `wake`; False: neither came within `seconds`. Main thread only."""
        if self._pipe is None:
            raise RuntimeError("an event loop has taken over")
        ready, _, _ = select.select([self._pipe[0]], [], [], seconds)
        if ready:
            os.read(self._pipe[0], 4096)
        return bool(ready)

    def leave(self, code: int) -> int:
        """-> `code`, to exit with. Ends the process here if threads hang: the interpreter would wait for them."""
        if self.hung:
            os._exit(code)
        return code

    def since(self) -> float:
        """Seconds since the signal came."""
        return time.monotonic() - self._came

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number is not None else ""


class InterruptibleSleep:
    """Sleeps, for a wait for a lock, but not past a signal."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def sleep(self, seconds: float) -> None:
        """Raises Cancelled if there was a signal."""
        self._signals.wait(seconds)
        if self._signals.number is not None:
            raise Cancelled(f"stopped by {self._signals.name}")
