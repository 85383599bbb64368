"""Single-flight for coroutines: callers with the same key share a task, which runs as long as any caller needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from mirror.transfer.tasks import Coro, Tasks, strip_traceback

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedTasks(Generic[K, T]):
    """Runs at most one task for each key at a time, and shares it among all callers. Must be used on the event loop."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._running: dict[K, _SharedTask[T]] = {}

    async def run(self, key: K, start: Callable[[], Coro[T]]) -> T:
        """Return the result of the task for `key`. If no such task is in progress, start one.

        start: creates the coroutine of a new task. Raises the error that the task raises."""
        async with self.join(key, start) as task:
            return await result_of(task)

    @asynccontextmanager
    async def join(self, key: K, start: Callable[[], Coro[T]]) -> AsyncIterator[asyncio.Task[T]]:
        """Return a context manager that yields the task for `key`. If no such task is in progress, start one.

        start: creates the coroutine of a new task. If the last caller leaves the `with` block before the task has
        ended, the task is cancelled, and that caller waits until it ends. A cancelled task is not shared: a new caller
        waits until it has ended, then starts a new one.

        Await the task with `result_of`: a plain `await` would pass a cancellation of the caller on to it."""
        while (entry := self._running.get(key)) is not None and (entry.is_cancelled or entry.task.done()):
            if not entry.task.done():
                await asyncio.wait([entry.task])
            self._remove_entry(key, entry)
        if entry is None:
            entry = self._running[key] = _SharedTask(self._tasks.start(start()))
            started = entry
            entry.task.add_done_callback(lambda _: self._remove_entry(key, started))
        entry.callers += 1
        try:
            yield entry.task
        finally:
            entry.callers -= 1
            if not entry.callers:
                await self._end_task(entry)

    async def _end_task(self, entry: _SharedTask[T]) -> None:
        """Cancel a task that has no callers left, unless the task has ended. Wait until it ends."""
        task = entry.task
        if not task.done():
            entry.is_cancelled = True
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:  # keep waiting until the task ends
                cancelled = error
        if entry.is_cancelled:
            self._tasks.collect(task)
        elif not task.cancelled():
            task.exception()  # otherwise asyncio logs the error if nobody has asked for the result
        if cancelled is not None:
            raise cancelled

    def _remove_entry(self, key: K, entry: _SharedTask[T]) -> None:
        """Remove the entry for `key` unless a newer entry has replaced it."""
        if self._running.get(key) is entry:
            del self._running[key]


class _SharedTask(Generic[T]):
    """A task in progress, with the number of callers that share it."""

    __slots__ = ("callers", "is_cancelled", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.callers = 0
        self.is_cancelled = False  # whether the last caller left before the task ended


async def result_of(task: asyncio.Task[T]) -> T:
    """Wait for a task that other callers also await, and return its result. Raises the error that the task raises.

    If this coroutine is cancelled, the task continues."""
    if not task.done():
        await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise strip_traceback(error)
    return task.result()
