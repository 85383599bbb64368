"""Groups of coroutines: their results, and the others if one fails."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import MirrorError, NotFound
from mirror.transfer.tasks import gather_results, run_and_catch, run_group, run_in_background, task_group
from tests.transfer.harness import CallEnvironment, run_on_loop, settle


class Endless:
    """A coroutine function that never ends, and notes that it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(self) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return 0


async def return_value(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail(error: BaseException, after: int = 1) -> int:
    for _ in range(after):
        await asyncio.sleep(0)
    raise error


@run_on_loop
async def test_results_are_in_the_order_of_the_coroutines(env: CallEnvironment) -> None:
    assert [1, 2, 3] == await run_group([return_value(1), return_value(2), return_value(3)])
    assert [] == await run_group([])


@run_on_loop
async def test_the_first_error_cancels_the_others_and_is_raised_unchanged(env: CallEnvironment) -> None:
    endless = Endless()
    with pytest.raises(NotFound, match="first"):
        await run_group([endless(), fail(NotFound("first")), fail(NotFound("second"), 2)])
    assert endless.cancelled


@run_on_loop
async def test_an_error_that_is_no_mirror_error_takes_precedence(env: CallEnvironment) -> None:
    with pytest.raises(KeyError):
        await run_group([fail(NotFound("x")), fail(KeyError("bug"))])


@run_on_loop
async def test_gather_results_returns_mirror_errors_and_raises_others(env: CallEnvironment) -> None:
    found = await gather_results([fail(NotFound("x")), return_value(2)])
    assert [True, False] == [isinstance(one, MirrorError) for one in found]
    with pytest.raises(KeyError):
        await gather_results([fail(KeyError("bug")), return_value(2)])


@run_on_loop
async def test_a_group_waits_for_tasks_that_its_tasks_have_added(env: CallEnvironment) -> None:
    done: list[int] = []

    async def add(group: asyncio.TaskGroup, depth: int) -> None:
        await asyncio.sleep(0)
        done.append(depth)
        if depth:
            group.create_task(add(group, depth - 1))

    async with task_group() as group:
        group.create_task(add(group, 5))
    assert [5, 4, 3, 2, 1, 0] == done


@run_on_loop
async def test_background_tasks_are_cancelled_at_the_end_of_the_block(env: CallEnvironment) -> None:
    endless = Endless()
    async with run_in_background([endless(), return_value(1), fail(NotFound("nobody awaits this"))]) as (_, one, _):
        assert 1 == await one
    assert endless.cancelled


@run_on_loop
async def test_run_and_catch_returns_all_errors_except_its_cancellation(env: CallEnvironment) -> None:
    assert isinstance(await run_and_catch(fail(KeyError("bug"))), KeyError)
    assert 1 == await run_and_catch(return_value(1))
    task = env.start(run_and_catch(Endless()()))
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()


@run_on_loop
async def test_ten_thousand_coroutines_can_await_each_other(env: CallEnvironment) -> None:
    async def after(before: asyncio.Task[int]) -> int:
        return await before + 1

    task = env.start(return_value(0))
    for _ in range(10_000):
        task = env.start(after(task))
    assert 10_000 == await task
