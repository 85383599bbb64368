"""Callers of the same key share one task, which is cancelled when the last one leaves."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import NotFound
from mirror.transfer.shared_tasks import SharedTasks, result_of
from mirror.transfer.tasks import Coro, run_group
from tests.transfer.harness import CallEnvironment, run_on_loop, settle


class SharedWork:
    """A coroutine function that waits for `go`, and counts how often it started and ended."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.end = asyncio.Event()  # also a cancelled coroutine waits for it
        self.end.set()

    async def __call__(self) -> int:
        self.started += 1
        number = self.started
        try:
            await self.go.wait()
        finally:
            await self.end.wait()
            self.ended += 1
        return number


@run_on_loop
async def test_all_callers_of_a_key_get_one_result(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    work = SharedWork()
    tasks = [env.start(shared.run("key", work)) for _ in range(5)]
    await settle()
    work.go.set()
    assert [1] * 5 == await asyncio.gather(*tasks)
    assert 2 == await shared.run("key", work), "after the end a new task is started"


@run_on_loop
async def test_all_callers_get_the_error_and_its_traceback_does_not_grow(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    go = asyncio.Event()

    async def fail() -> int:
        await go.wait()
        raise NotFound("gone")

    tasks = [env.start(shared.run("key", fail)) for _ in range(3)]
    await settle()
    go.set()
    await asyncio.wait(tasks)
    assert 1 == len({id(task.exception()) for task in tasks})
    for task in tasks:
        with pytest.raises(NotFound) as caught:
            await task
        assert 8 >= len(caught.traceback)


@run_on_loop
async def test_a_caller_that_leaves_does_not_cancel_the_task_of_the_others(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    work = SharedWork()
    leaving, staying = (env.start(shared.run("key", work)) for _ in range(2))
    await settle()
    leaving.cancel()
    await settle()
    assert (True, 0) == (leaving.cancelled(), work.ended)
    work.go.set()
    assert 1 == await staying


@run_on_loop
async def test_the_last_caller_that_leaves_cancels_the_task_and_waits_for_its_end(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    work = SharedWork()
    work.end.clear()
    tasks = [env.start(shared.run("key", work)) for _ in range(2)]
    await settle()
    for task in tasks:
        task.cancel()
    for _ in range(2):  # a second cancellation does not end the wait
        await settle()
        assert (True, False) == (tasks[0].done(), tasks[1].done())
        tasks[1].cancel()
    work.end.set()
    await settle()
    assert (True, 1) == (tasks[1].cancelled(), work.ended)


@run_on_loop
async def test_a_cancelled_task_is_not_joined_and_a_new_one_starts_after_its_end(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    work = SharedWork()
    work.end.clear()
    first = env.start(shared.run("key", work))
    await settle()
    first.cancel()
    await settle()
    others = [env.start(shared.run("key", work)) for _ in range(2)]
    await settle()
    assert (1, 0) == (work.started, work.ended)
    work.end.set()
    work.go.set()
    assert [2, 2] == await asyncio.gather(*others)


@run_on_loop
async def test_a_caller_inside_join_keeps_the_task_running_without_awaiting_it(env: CallEnvironment) -> None:
    shared: SharedTasks[str, int] = SharedTasks(env.calls.tasks)
    work = SharedWork()
    async with shared.join("key", work) as task:
        await settle()
        assert not task.done()
        work.go.set()
        assert 1 == await result_of(task)
    async with shared.join("key", SharedWork()) as task:
        await settle()
    assert task.cancelled()


@run_on_loop
async def test_an_error_of_a_cancelled_task_that_is_no_mirror_error_is_kept(env: CallEnvironment) -> None:
    shared: SharedTasks[str, None] = SharedTasks(env.calls.tasks)

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("bug")

    async with shared.join("key", fail):
        await settle()
    assert ["KeyError('bug')"] == [repr(bug) for bug in env.calls.tasks.bugs]
    env.calls.tasks.bugs.clear()


@run_on_loop
async def test_ten_images_share_their_layers_and_one_failure_does_not_affect_the_others(
    env: CallEnvironment,
) -> None:
    shared: SharedTasks[int, int] = SharedTasks(env.calls.tasks)
    go, started = asyncio.Event(), list[int]()

    async def layer(number: int) -> int:
        started.append(number)
        await go.wait()
        return number

    async def fail_image() -> int:
        raise NotFound("x")

    async def image(number: int) -> int:
        layers: list[Coro[int]] = [shared.run(one, lambda one=one: layer(one)) for one in range(5)]  # type: ignore[misc]
        return sum(await run_group([*layers, fail_image()] if number == 7 else layers))

    images = [env.start(image(number)) for number in range(10)]
    await settle()
    go.set()
    await asyncio.wait(images)
    assert [10] * 9 == [one.result() for one in images if one.exception() is None]
    assert isinstance(images[7].exception(), NotFound)
    assert [0, 1, 2, 3, 4] == started
