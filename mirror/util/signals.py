"""Handles SIGINT and SIGTERM. The first signal stops the run cleanly. The second signal ends the process immediately.

A command that runs until it is stopped also handles SIGHUP, which requests a reload of the configuration.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TypeVar

from mirror.errors import DEADLINE, FAILED, SIGNALLED, Cancelled
from mirror.util.cancellation import Stop, Work

if TYPE_CHECKING:
    import asyncio

_Result = TypeVar("_Result")

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


def _do_nothing() -> None:
    pass


class Signals:
    """A context manager that catches SIGINT and SIGTERM in the main thread until the `with` block exits.

    hangup: whether to catch SIGHUP, too.

    A pipe wakes the main thread, because a handler that took a lock could deadlock with the code that it interrupted.
    The interpreter also writes to the pipe (`set_wakeup_fd`), because it runs handlers only when the main thread is
    awake. A signal does not wake that thread if another thread received it, or if it came just before the thread
    started to wait. An event loop has its own pipe for this purpose (`free_pipe`, `wake_loop`).

    number: the first signal other than SIGHUP, or None if there was none.
    hangup_received: whether a SIGHUP has arrived. The code that handles it sets this to False.
    on_signal: a callback that the event loop calls after the first signal.

    deadline: the monotonic time, in seconds, at which the run ends as after a signal, but with another exit code; None
    if there is no deadline."""

    def __init__(self, *, hangup: bool = False) -> None:
        self.number: int | None = None
        self.hangup_received = False
        self._hangup = hangup
        self.on_signal: Callable[[], object] = _do_nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipe: tuple[int, int] | None = None
        self._end_time = 0.0  # monotonic time of the first signal, or of the deadline if that was earlier
        self.deadline: float | None = None
        self.deadline_reached = False  # whether the deadline ended the run
        self.has_hung_threads = False  # if it is True, only `os._exit` can end the process

    def __enter__(self) -> Signals:
        self._previous_wakeup = signal.set_wakeup_fd(-1)
        self.open_pipe()
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in _CAUGHT}
        if self._hangup:
            self._previous_handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._handle_hangup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self.free_pipe()
        signal.set_wakeup_fd(self._previous_wakeup)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal and wake the main thread. End the process at the second signal."""
        if self.number is not None:
            os._exit(SIGNALLED + number)
        if not self.deadline_reached:
            self._end_time = time.monotonic()
        self.number = number
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.on_signal)
        self.wake()

    def _handle_hangup(self, number: int, frame: FrameType | None) -> None:
        """Record a SIGHUP and wake the main thread. An event loop that is running is not stopped."""
        self.hangup_received = True
        self.wake()

    def open_pipe(self) -> None:
        """Open the pipe unless it is open, so that `wait` can be used again after the event loop has been closed."""
        self._loop, self.on_signal = None, _do_nothing
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def free_pipe(self) -> None:
        """Close the pipe, because the event loop has its own. `wait` cannot be used until `open_pipe` is called."""
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            pipe, self._pipe = self._pipe, None
            for descriptor in pipe:
                os.close(descriptor)

    def wake_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make signals wake the event loop `loop` until it is closed."""
        loop.add_signal_handler(signal.SIGURG, _do_nothing)  # with any such handler, asyncio is woken by all signals
        self._loop = loop

    def wake(self) -> None:
        """Make a pending or later call of `wait` return. May be called on any thread."""
        if self._pipe is not None:
            with suppress(BlockingIOError):  # the pipe is full, so the main thread wakes anyway
                os.write(self._pipe[1], b"!")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a signal or a call of `wake`. Return False if neither happens within `seconds`. Main thread only."""
        if self._pipe is None:
            raise RuntimeError("the pipe is closed: an event loop handles signals")
        ready, _, _ = select.select([self._pipe[0]], [], [], seconds)
        if ready:
            os.read(self._pipe[0], 4096)
        return bool(ready)

    def exit_if_hung(self, code: int) -> int:
        """If threads hang, end the process with the exit code `code`. Otherwise, return `code`.

        A normal exit would wait for threads that hang."""
        if self.has_hung_threads:
            os._exit(code)
        return code

    def start_run(self, seconds: float | None) -> None:
        """Set the deadline of the run that starts now. seconds: the time until the deadline; None for no deadline."""
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.deadline_reached = False

    def seconds_to_deadline(self) -> float | None:
        """Return the number of seconds until the deadline of the run, or None if it has none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def reach_deadline(self) -> None:
        """End the run because its deadline has been reached, unless a signal has already ended the run."""
        if self.number is None:
            self._end_time = time.monotonic()
            self.deadline_reached = True

    @property
    def has_ended_run(self) -> bool:
        """Whether a signal or the deadline has ended the run."""
        return self.number is not None or self.deadline_reached

    @property
    def exit_code(self) -> int:
        """The exit code of a run that a signal or the deadline has ended. A signal takes precedence."""
        return FAILED if self.number is None else SIGNALLED + self.number

    def error(self) -> Cancelled:
        """Return the error for work that a signal or the deadline has cancelled."""
        if self.number is None:
            return Cancelled("the deadline was reached (--deadline)", code=DEADLINE)
        return Cancelled(f"stopped by {self.name}")

    def seconds_since_end(self) -> float:
        """Return the number of seconds since a signal or the deadline ended the run."""
        return time.monotonic() - self._end_time

    @property
    def name(self) -> str:
        """The name of the first signal, such as `SIGINT`, or an empty string if there was none."""
        return signal.Signals(self.number).name if self.number is not None else ""


class InterruptibleSleep:
    """A Sleeper (`util.files`) that a signal or the deadline interrupts. It is used while waiting for a lock."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises Cancelled after a signal, and at the deadline."""
        signals = self._signals
        left = None if signals.deadline is None else max(0.0, signals.deadline - time.monotonic())
        signals.wait(seconds if left is None else min(seconds, left))
        if left is not None and left <= seconds:
            signals.reach_deadline()
        if signals.has_ended_run:
            raise signals.error()


def run_with_signals(run: Callable[[Work], _Result]) -> _Result:
    """Call `run` on another thread and return its result. A signal stops the `Work` that is passed to `run`.

    Raises the exceptions of `run`. After a signal, Cancelled has the exit code for that signal."""
    stop = Stop()
    with Signals() as signals, ThreadPoolExecutor(1, thread_name_prefix="command") as pool:
        future = pool.submit(run, Work(stop))
        future.add_done_callback(lambda _: signals.wake())
        while not future.done() and signals.number is None:
            signals.wait()
        if signals.number is not None:
            stop.request(signals.error().what)
        try:
            return future.result()
        except Cancelled as error:
            error.exit_code = SIGNALLED + (signals.number or 0)
            raise
