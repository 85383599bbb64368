"""Work of a command without a run: on a thread of its own, while the main thread minds signals."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mirror.errors import SIGNALLED, Cancelled
from mirror.limits import Stop, Work
from mirror.signals import Signals

T = TypeVar("T")


def attended(run: Callable[[Work], T]) -> T:
    """What `run` returns. Raises what it raises; after a signal Cancelled, with the exit code of that signal."""
    stop = Stop()
    with Signals() as signals, ThreadPoolExecutor(1, thread_name_prefix="command") as pool:
        future = pool.submit(run, Work(stop))
        future.add_done_callback(lambda _: signals.wake())
        while not future.done() and signals.number is None:
            signals.wait()
        if signals.number is not None:
            stop.request(f"stopped by {signals.name}")
        try:
            return future.result()
        except Cancelled as error:
            error.exit_code = SIGNALLED + (signals.number or 0)
            raise
