"""Groups of coroutines: all together, and what becomes of the others when one fails."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import MirrorError, NotFound
from mirror.transfer.tasks import gather_results, run_and_catch, run_group, run_in_background, task_group
from tests.transfer.harness import Desk, on_loop, settle


class Waiting:
    """Waits for ever; notes that it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(self) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return 0


async def gives(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fails(error: BaseException, after: int = 1) -> int:
    for _ in range(after):
        await asyncio.sleep(0)
    raise error


@on_loop
async def test_results_come_in_the_order_of_the_coroutines(desk: Desk) -> None:
    assert [1, 2, 3] == await run_group([gives(1), gives(2), gives(3)])
    assert [] == await run_group([])


@on_loop
async def test_the_first_failure_cancels_the_others_and_is_raised_as_it_is(desk: Desk) -> None:
    waiting = Waiting()
    with pytest.raises(NotFound, match="first"):
        await run_group([waiting(), fails(NotFound("first")), fails(NotFound("second"), 2)])
    assert waiting.cancelled


@on_loop
async def test_a_bug_counts_more_than_other_errors(desk: Desk) -> None:
    with pytest.raises(KeyError):
        await run_group([fails(NotFound("x")), fails(KeyError("bug"))])


@on_loop
async def test_all_can_be_waited_for_whatever_their_errors(desk: Desk) -> None:
    found = await gather_results([fails(NotFound("x")), gives(2)])
    assert [True, False] == [isinstance(one, MirrorError) for one in found]
    with pytest.raises(KeyError):
        await gather_results([fails(KeyError("bug")), gives(2)])


@on_loop
async def test_a_group_ends_with_the_tasks_that_its_tasks_have_added(desk: Desk) -> None:
    done: list[int] = []

    async def add(group: asyncio.TaskGroup, depth: int) -> None:
        await asyncio.sleep(0)
        done.append(depth)
        if depth:
            group.create_task(add(group, depth - 1))

    async with task_group() as group:
        group.create_task(add(group, 5))
    assert [5, 4, 3, 2, 1, 0] == done


@on_loop
async def test_background_tasks_end_with_their_block(desk: Desk) -> None:
    waiting = Waiting()
    async with run_in_background([waiting(), gives(1), fails(NotFound("not asked for"))]) as (_, one, _):
        assert 1 == await one
    assert waiting.cancelled


@on_loop
async def test_an_attempt_gives_back_whatever_is_raised_but_its_cancellation(desk: Desk) -> None:
    assert isinstance(await run_and_catch(fails(KeyError("bug"))), KeyError)
    assert 1 == await run_and_catch(gives(1))
    task = desk.start(run_and_catch(Waiting()()))
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()


@on_loop
async def test_ten_thousand_coroutines_that_await_each_other_fit(desk: Desk) -> None:
    async def after(before: asyncio.Task[int]) -> int:
        return await before + 1

    task = desk.start(gives(0))
    for _ in range(10_000):
        task = desk.start(after(task))
    assert 10_000 == await task
