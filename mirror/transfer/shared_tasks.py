"""Single-entry: work that several callers need at the same time is done once, while any of them needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from mirror.transfer.tasks import Coro, Tasks, strip_traceback

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedTasks(Generic[K, T]):
    """Work by key. Used on the event loop only."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._running: dict[K, _SharedTask[T]] = {}

    async def run(self, key: K, start: Callable[[], Coro[T]]) -> T:
        """The result of `start()`, or of what is in progress for that key. Raises what that raises."""
        async with self.join(key, start) as task:
            return await result_of(task)

    @asynccontextmanager
    async def join(self, key: K, start: Callable[[], Coro[T]]) -> AsyncIterator[asyncio.Task[T]]:
        """Join the work for that key, or start it, while inside. The last caller that leaves before its end cancels it,
        and waits for its end.

        Cancelled work is never joined: the caller waits for its end and starts the work again. Await the task with
        `result_of`: a plain `await` would pass a cancellation of the caller on to it."""
        while (entry := self._running.get(key)) is not None and (entry.abandoned or entry.task.done()):
            if not entry.task.done():
                await asyncio.wait([entry.task])
            self._forget(key, entry)
        if entry is None:
            entry = self._running[key] = _SharedTask(self._tasks.start(start()))
            started = entry
            entry.task.add_done_callback(lambda _: self._forget(key, started))
        entry.callers += 1
        try:
            yield entry.task
        finally:
            entry.callers -= 1
            if not entry.callers:
                await self._leave(entry)

    async def _leave(self, entry: _SharedTask[T]) -> None:
        """The last caller has left."""
        task = entry.task
        if not task.done():
            entry.abandoned = True
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:  # wait for its end nevertheless
                cancelled = error
        if entry.abandoned:
            self._tasks.collect(task)
        elif not task.cancelled():
            task.exception()  # else asyncio logs it if nobody has asked for the result
        if cancelled is not None:
            raise cancelled

    def _forget(self, key: K, entry: _SharedTask[T]) -> None:
        if self._running.get(key) is entry:
            del self._running[key]


class _SharedTask(Generic[T]):
    """Work in progress."""

    __slots__ = ("abandoned", "callers", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.callers = 0
        self.abandoned = False  # the last caller left before the end


async def result_of(task: asyncio.Task[T]) -> T:
    """The result of a task that others await too. Raises what it raised. Cancelling this does not cancel the task."""
    if not task.done():
        await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise strip_traceback(error)
    return task.result()
