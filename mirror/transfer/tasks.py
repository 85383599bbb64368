"""Tasks of one run on its event loop, and groups of coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from mirror.errors import MirrorError

_LAST_STEPS = 0.1  # seconds that cancelled tasks have to end

T = TypeVar("T")
# What a coroutine yields to the loop and is sent by it concerns only asyncio.
Coro: TypeAlias = Coroutine[Any, Any, T]


class Tasks:
    """Keeps tasks until they end. The loop itself has only weak references to them.

    bugs: what was raised where nobody awaits it, but for MirrorErrors."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self.bugs: list[BaseException] = []

    def start(self, steps: Coro[T]) -> asyncio.Task[T]:
        """Run it. The caller awaits the task, or gives it to `collect`."""
        task = self._loop.create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def detach(self, steps: Coro[object]) -> None:
        """Run it although nobody awaits it: a MirrorError that it raises is lost, anything else is a bug."""
        self.start(steps).add_done_callback(self.collect)

    def collect(self, task: asyncio.Task[Any]) -> None:
        """Keep what a task raised that has ended and that nobody awaits."""
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, MirrorError):
            self.bugs.append(error)

    async def wait_closed(self, seconds: float) -> None:
        """Wait for what is left; cancel what has not ended in `seconds`."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_LAST_STEPS)


async def run_group(all_steps: Iterable[Coro[T]]) -> list[T]:
    """Run all at the same time. -> their results, in order.

    If one fails, the others are cancelled, and once they have ended its error is raised."""
    async with task_group() as group:
        tasks = [group.create_task(steps) for steps in all_steps]
    return [task.result() for task in tasks]


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group that ends when all its tasks have ended.

    If one fails, or the block does, the others are cancelled, and once they have ended its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise _first(failures) from None


async def gather_results(all_steps: Iterable[Coro[T]]) -> list[T | MirrorError]:
    """Run all at the same time. -> for each, in order, its result or its MirrorError. Raises anything else."""
    return await run_group([_result(steps) for steps in all_steps])


async def _result(steps: Coro[T]) -> T | MirrorError:
    try:
        return await steps
    except MirrorError as error:
        return error


@asynccontextmanager
async def run_in_background(all_steps: Iterable[Coro[T]]) -> AsyncIterator[list[asyncio.Task[T]]]:
    """Run all while inside. What has not ended then is cancelled, and its end is waited for."""
    tasks = [asyncio.get_running_loop().create_task(steps) for steps in all_steps]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_and_catch(steps: Coro[T]) -> T | BaseException:
    """-> its result, or what it raised, whatever that is; only its own cancellation is raised."""
    try:
        return await steps
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 (for the caller, who looks at it)
        return error


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a group that counts: the first, but a bug before any MirrorError."""
    errors = [_first(one) if isinstance(one, BaseExceptionGroup) else one for one in failures.exceptions]
    return next((error for error in errors if not isinstance(error, MirrorError)), errors[0])


def strip_traceback(error: BaseException) -> BaseException:
    """`error` as it can be raised to many: else each raise adds frames to it, and keeps alive what they hold."""
    return error.with_traceback(None) if isinstance(error, MirrorError) else error


def call_and_catch(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What `call` returned, or what it raised, whatever that is: for who waits for it on another thread."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 (see above)
        return None, error
