"""Single-flight: once for all who want it, cancelled with the last of them."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import NotFound
from mirror.transfer.shared_tasks import SharedTasks, result_of
from mirror.transfer.tasks import Coro, run_group
from tests.transfer.harness import Desk, on_loop, settle


class Work:
    """Counts its beginnings and ends; ends when it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.end = asyncio.Event()  # a cancelled one waits for it
        self.end.set()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        finally:
            await self.end.wait()
            self.ended += 1
        return number


@on_loop
async def test_all_who_want_a_key_share_one_result(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    work = Work()
    tasks = [desk.start(shared.run("key", work)) for _ in range(5)]
    await settle()
    work.go.set()
    assert [1] * 5 == await asyncio.gather(*tasks)
    assert 2 == await shared.run("key", work), "after its end a key is forgotten"


@on_loop
async def test_an_error_is_for_all_and_gathers_no_frames(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    go = asyncio.Event()

    async def fails() -> int:
        await go.wait()
        raise NotFound("gone")

    tasks = [desk.start(shared.run("key", fails)) for _ in range(3)]
    await settle()
    go.set()
    await asyncio.wait(tasks)
    assert 1 == len({id(task.exception()) for task in tasks})
    for task in tasks:
        with pytest.raises(NotFound) as caught:
            await task
        assert 8 >= len(caught.traceback)


@on_loop
async def test_one_who_leaves_does_not_disturb_the_others(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    work = Work()
    leaves, stays = (desk.start(shared.run("key", work)) for _ in range(2))
    await settle()
    leaves.cancel()
    await settle()
    assert (True, 0) == (leaves.cancelled(), work.ended)
    work.go.set()
    assert 1 == await stays


@on_loop
async def test_the_last_who_leaves_cancels_it_and_waits_for_its_end(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    work = Work()
    work.end.clear()
    tasks = [desk.start(shared.run("key", work)) for _ in range(2)]
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


@on_loop
async def test_what_is_cancelled_is_not_joined_but_waited_for(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    work = Work()
    work.end.clear()
    first = desk.start(shared.run("key", work))
    await settle()
    first.cancel()
    await settle()
    others = [desk.start(shared.run("key", work)) for _ in range(2)]
    await settle()
    assert (1, 0) == (work.begun, work.ended)
    work.end.set()
    work.go.set()
    assert [2, 2] == await asyncio.gather(*others)


@on_loop
async def test_inside_of_join_one_is_interested_without_waiting(desk: Desk) -> None:
    shared: SharedTasks[str, int] = SharedTasks(desk.calls.tasks)
    work = Work()
    async with shared.join("key", work) as task:
        await settle()
        assert not task.done()
        work.go.set()
        assert 1 == await result_of(task)
    async with shared.join("key", Work()) as task:
        await settle()
    assert task.cancelled()


@on_loop
async def test_a_bug_in_the_end_of_what_nobody_wants_is_kept(desk: Desk) -> None:
    shared: SharedTasks[str, None] = SharedTasks(desk.calls.tasks)

    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("bug")

    async with shared.join("key", fails):
        await settle()
    assert ["KeyError('bug')"] == [repr(bug) for bug in desk.calls.tasks.bugs]
    desk.calls.tasks.bugs.clear()


@on_loop
async def test_ten_images_share_their_layers_and_a_failing_one_fails_alone(desk: Desk) -> None:
    shared: SharedTasks[int, int] = SharedTasks(desk.calls.tasks)
    go, begun = asyncio.Event(), list[int]()

    async def layer(number: int) -> int:
        begun.append(number)
        await go.wait()
        return number

    async def wrong() -> int:
        raise NotFound("x")

    async def image(number: int) -> int:
        layers: list[Coro[int]] = [shared.run(one, lambda one=one: layer(one)) for one in range(5)]  # type: ignore[misc]
        return sum(await run_group([*layers, wrong()] if number == 7 else layers))

    images = [desk.start(image(number)) for number in range(10)]
    await settle()
    go.set()
    await asyncio.wait(images)
    assert [10] * 9 == [one.result() for one in images if one.exception() is None]
    assert isinstance(images[7].exception(), NotFound)
    assert [0, 1, 2, 3, 4] == begun
