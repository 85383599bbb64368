"""Starts and tracks the asyncio tasks of a run, and runs groups of coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from mirror.errors import MirrorError

_CANCEL_TIMEOUT = 0.1  # seconds that cancelled tasks have to end

T = TypeVar("T")
# A coroutine that returns T. What it exchanges with the event loop is internal to asyncio.
Coro: TypeAlias = Coroutine[Any, Any, T]


class Tasks:
    """Keeps references to the tasks in progress, because the event loop has only weak references to them.

    bugs: the errors, except MirrorErrors, that were raised by tasks that nobody awaits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self.bugs: list[BaseException] = []

    def start(self, coroutine: Coro[T]) -> asyncio.Task[T]:
        """Run a coroutine as a task, and return the task. The caller must await it or pass it to `collect`."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def detach(self, coroutine: Coro[object]) -> None:
        """Run a coroutine as a task that nobody awaits. Ignore a MirrorError, and add any other error to `bugs`."""
        self.start(coroutine).add_done_callback(self.collect)

    def collect(self, task: asyncio.Task[Any]) -> None:
        """If a task that nobody awaits has failed with an error other than a MirrorError, add the error to `bugs`."""
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, MirrorError):
            self.bugs.append(error)

    async def wait_closed(self, seconds: float) -> None:
        """Wait at most `seconds` until all tasks have ended. Then cancel the tasks that are still running."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CANCEL_TIMEOUT)


async def run_group(coroutines: Iterable[Coro[T]]) -> list[T]:
    """Run coroutines concurrently and return their results in order.

    If a coroutine fails, the other coroutines are cancelled. When they have ended, the error is raised."""
    async with task_group() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Return a context manager that yields a task group. Its `with` block exits when all tasks have ended.

    If a task or the block fails, the other tasks are cancelled. When they have ended, the error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise _first_error(failures) from None


async def gather_results(coroutines: Iterable[Coro[T]]) -> list[T | MirrorError]:
    """Run coroutines concurrently and return the result or the MirrorError of each, in order.

    If a coroutine raises any other error, the other coroutines are cancelled, and the error is raised."""
    return await run_group([_result_or_error(coroutine) for coroutine in coroutines])


async def _result_or_error(coroutine: Coro[T]) -> T | MirrorError:
    """Return the result of a coroutine, or its MirrorError."""
    try:
        return await coroutine
    except MirrorError as error:
        return error


@asynccontextmanager
async def run_in_background(coroutines: Iterable[Coro[T]]) -> AsyncIterator[list[asyncio.Task[T]]]:
    """Return a context manager that runs coroutines as tasks and yields the tasks.

    When its `with` block exits, the tasks are cancelled, and it waits until they have ended."""
    tasks = [asyncio.get_running_loop().create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_and_catch(coroutine: Coro[T]) -> T | BaseException:
    """Await a coroutine, and return its result or the error that it raises. Only CancelledError is raised."""
    try:
        return await coroutine
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 (the caller handles it)
        return error


def _first_error(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group that is not a MirrorError. If there is none, return the first MirrorError."""
    errors = [_first_error(one) if isinstance(one, BaseExceptionGroup) else one for one in failures.exceptions]
    return next((error for error in errors if not isinstance(error, MirrorError)), errors[0])


def strip_traceback(error: BaseException) -> BaseException:
    """Return `error`. If it is a MirrorError, first remove its traceback, because several callers will raise it.

    Each caller would add frames to the traceback, which keep their local variables alive."""
    return error.with_traceback(None) if isinstance(error, MirrorError) else error


def call_and_catch(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Call `call`, and return a pair: its result and None, or None and the error that it raised."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 (the other thread raises it)
        return None, error
