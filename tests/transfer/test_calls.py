"""Blocking calls on threads: with permits, retried without one, stopped when nobody wants them, and always ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from mirror.errors import Cancelled, LocalError, MirrorError, NetworkError, NotFound, RateLimited
from mirror.limits import Limits, Rate
from mirror.transfer.calls import Calls, new_loop
from mirror.transfer.permits import DOWNLOADS, TooFewPermits, host_permit
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import ONCE, Policy
from tests.transfer.harness import DEADLINE, Desk, Gate, Raises, eventually, on_loop, settle, until

HOST = host_permit("a")
NEEDS = (HOST, DOWNLOADS)


def failing(times: int, error: MirrorError) -> Callable[[Work], str]:
    """Work that fails so often."""
    left = [error] * times

    def run(work: Work) -> str:
        if left:
            raise left.pop()
        return "at last"

    return run


def slow(desk: Desk, seconds: float, moves: int = 0) -> Callable[[Work], None]:
    """Work that takes its time, and fails."""

    def run(work: Work) -> None:
        if moves:
            work.progress(moves)
        desk.clock.advance(seconds)
        raise NetworkError("timeout")

    return run


async def wait_out(desk: Desk, task: asyncio.Task[object]) -> list[float]:
    """Let time pass from wait to wait; -> how long each was."""
    waits: list[float] = []
    while not task.done():
        await eventually(lambda: task.done() or desk.limits.waited > sum(waits))
        if desk.limits.waited > sum(waits):
            waits.append(desk.limits.waited - sum(waits))
            await settle()
            desk.clock.advance(waits[-1])
    return waits


# ---- results


@on_loop
async def test_the_result_reaches_the_caller(desk: Desk) -> None:
    assert 7 == await desk.calls.call(lambda work: 7, needs=NEEDS)


@on_loop
async def test_the_error_reaches_the_caller(desk: Desk) -> None:
    with pytest.raises(NotFound, match="no such blob"):
        await desk.calls.call(Raises(NotFound("no such blob")), needs=NEEDS)


@on_loop
async def test_a_bug_is_raised_at_once_and_not_tried_again(desk: Desk) -> None:
    with pytest.raises(KeyError, match="oops"):
        await desk.calls.call(Raises(KeyError("oops")), needs=NEEDS)
    assert 0 == desk.limits.retries


@on_loop
async def test_no_more_than_the_limit_run_at_a_time(desk: Desk) -> None:
    gate = Gate()
    tasks = [desk.start(desk.calls.call(gate, needs=NEEDS)) for _ in range(8)]
    await eventually(lambda: 3 == gate.inside)
    gate.open()
    assert ["done"] * 8 == await asyncio.gather(*tasks)
    assert (3, 8) == (gate.most, gate.calls)


@on_loop
async def test_calls_that_need_no_host_run_a_few_at_a_time(desk: Desk) -> None:
    gate = Gate()
    tasks = [desk.start(desk.calls.call(gate)) for _ in range(10)]
    await eventually(lambda: 4 == gate.inside)
    gate.open()
    await asyncio.gather(*tasks)
    assert 4 == gate.most


@on_loop
async def test_a_call_that_can_never_start_is_refused(desk: Desk) -> None:
    with pytest.raises(TooFewPermits, match="needs 9 of 'host a'"):
        await desk.calls.call(Gate(), needs=(HOST,) * 9)


@on_loop
async def test_threads_are_few_and_no_daemons(desk: Desk) -> None:
    seen = {await desk.calls.call(lambda work: threading.current_thread(), needs=NEEDS) for _ in range(20)}
    assert {False} == {thread.daemon for thread in seen}
    assert 3 >= len(seen)


# ---- retries


@pytest.mark.parametrize(
    ("attempts", "failures", "retries", "works"),
    [(5, 1, 1, True), (5, 4, 4, True), (5, 5, 4, False), (1, 0, 0, True), (1, 1, 0, False)],
)
@on_loop
async def test_attempts_are_what_the_policy_says(
    desk: Desk, attempts: int, failures: int, retries: int, works: bool
) -> None:
    run = failing(failures, NetworkError("reset"))
    task = desk.start(desk.calls.call(run, needs=NEEDS, policy=Policy(attempts=attempts)))
    waits = await wait_out(desk, task)
    assert works == (task.exception() is None)
    assert [0.5, 1.0, 2.0, 4.0][:retries] == waits
    assert (retries, sum(waits)) == (desk.limits.retries, desk.limits.waited)


@on_loop
async def test_what_cannot_work_later_is_tried_once(desk: Desk) -> None:
    with pytest.raises(NotFound):
        await desk.calls.call(failing(1, NotFound("x")), needs=NEEDS)
    assert 0 == desk.limits.retries


@on_loop
async def test_a_call_that_waits_for_its_retry_has_no_permit(desk: Desk) -> None:
    desk.limits.configure("a", 1)
    task = desk.start(desk.calls.call(failing(1, NetworkError("reset")), needs=NEEDS))
    await eventually(lambda: desk.limits.retries)
    for _ in range(3):
        await desk.calls.call(lambda work: 1, needs=NEEDS)
    assert not task.done()
    desk.clock.advance(0.5)
    assert "at last" == await task


@on_loop
async def test_a_wait_that_was_asked_for_is_kept(desk: Desk) -> None:
    task = desk.start(desk.calls.call(failing(1, RateLimited("429", retry_after=100.0)), needs=NEEDS))
    assert [100.0] == await wait_out(desk, task)
    assert "at last" == await task


@on_loop
async def test_the_work_of_a_host_that_is_down_is_not_tried_again(desk: Desk) -> None:
    error = NetworkError("no connection", host="a")
    desk.limits.host("a").mark_down(error)
    with pytest.raises(NetworkError):
        await desk.calls.call(Raises(error), needs=NEEDS)
    assert 0 == desk.limits.retries


@on_loop
async def test_a_wait_that_is_too_long_is_noted(desk: Desk) -> None:
    with pytest.raises(RateLimited):
        await desk.calls.call(failing(1, RateLimited("429", retry_after=1000.0)), needs=NEEDS)
    assert 1000.0 == desk.limits.retry_after


@on_loop
async def test_the_time_budget_counts_attempts_that_move_nothing_and_no_time_in_the_queue(desk: Desk) -> None:
    desk.limits.configure("a", 1)
    gate = Gate()
    before = desk.start(desk.calls.call(gate, needs=NEEDS))
    await eventually(lambda: gate.inside)
    task = desk.start(desk.calls.call(slow(desk, 60.0), needs=NEEDS, policy=Policy(budget=90.0)))
    await settle()
    desk.clock.advance(1000.0)
    gate.open()
    await before
    await wait_out(desk, task)
    assert isinstance(task.exception(), NetworkError)
    assert 1 == desk.limits.retries


@on_loop
async def test_a_retry_that_waits_long_for_a_permit_is_still_followed_by_others(desk: Desk) -> None:
    desk.limits.configure("a", 1)
    retried = desk.start(desk.calls.call(failing(2, NetworkError("reset")), needs=NEEDS))
    await eventually(lambda: desk.limits.retries)
    gate = Gate()
    busy = desk.start(desk.calls.call(gate, needs=NEEDS))
    await eventually(lambda: gate.inside)
    desk.clock.advance(1000.0)
    await settle()
    gate.open()
    await busy
    await eventually(lambda: desk.limits.retries == 2)
    await settle()
    desk.clock.advance(1.0)
    assert "at last" == await retried


@on_loop
async def test_a_call_that_breaks_after_hours_of_progress_is_tried_again(desk: Desk) -> None:
    task = desk.start(desk.calls.call(slow(desk, 7200.0, moves=1), needs=NEEDS))
    await wait_out(desk, task)
    assert isinstance(task.exception(), NetworkError)
    assert Policy().attempts == 1 + desk.limits.retries, "the number of attempts is what ends it"


@on_loop
async def test_the_time_budget_begins_anew_after_an_attempt_that_moved_bytes(desk: Desk) -> None:
    durations = iter([(60.0, 0), (7200.0, 1), (60.0, 0), (60.0, 0)])

    def run(work: Work) -> None:
        seconds, moves = next(durations)
        slow(desk, seconds, moves)(work)

    task = desk.start(desk.calls.call(run, needs=NEEDS))
    await wait_out(desk, task)
    assert (NetworkError, 3) == (type(task.exception()), desk.limits.retries)


@on_loop
async def test_time_in_which_the_host_is_paused_is_in_no_budget(desk: Desk) -> None:
    def run(work: Work) -> None:
        desk.clock.advance(60.0)
        desk.limits.add_queued(60.0)
        raise NetworkError("reset")

    task = desk.start(desk.calls.call(run, needs=NEEDS))
    await wait_out(desk, task)
    assert isinstance(task.exception(), NetworkError)
    assert Policy().attempts == 1 + desk.limits.retries


@pytest.mark.parametrize(("policy", "retries"), [(Policy(), False), (ONCE, True)])
@on_loop
async def test_small_requests_are_retried_inside_only_where_the_whole_is_not(
    desk: Desk, policy: Policy, retries: bool
) -> None:
    assert retries == await desk.calls.call(lambda work: work.retries, needs=NEEDS, policy=policy)


# ---- cancellation


@on_loop
async def test_a_cancelled_call_is_stopped_and_its_thread_is_waited_for(desk: Desk) -> None:
    ends, request = threading.Event(), list[str]()

    def reluctant(work: Work) -> None:
        request.append("begins")
        until(lambda: work.stop.is_requested)
        assert ends.wait(DEADLINE)
        request.append("ends")

    task = desk.start(desk.calls.call(reluctant, needs=NEEDS))
    await eventually(lambda: request)
    for _ in range(3):  # however often
        task.cancel()
        await settle()
        assert (False, 1) == (task.done(), desk.calls.permits.used(DOWNLOADS))
    ends.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (["begins", "ends"], 0) == (request, desk.calls.permits.used(DOWNLOADS))


@on_loop
async def test_a_cancelled_call_that_waits_for_a_permit_never_runs(desk: Desk) -> None:
    gate, never = Gate(), Gate()
    running = [desk.start(desk.calls.call(gate, needs=NEEDS)) for _ in range(3)]
    queued = desk.start(desk.calls.call(never, needs=NEEDS))
    await eventually(lambda: 3 == gate.inside)
    queued.cancel()
    await settle()
    assert (True, 0) == (queued.cancelled(), desk.calls.permits.waiting())
    gate.open()
    await asyncio.gather(*running)
    assert 0 == never.calls


@on_loop
async def test_a_wait_for_a_retry_ends_when_it_is_cancelled(desk: Desk) -> None:
    task = desk.start(desk.calls.call(Raises(NetworkError("x")), needs=NEEDS))
    await eventually(lambda: desk.limits.retries)
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()


def test_a_bug_of_a_call_that_nobody_wants_is_raised_at_the_end() -> None:
    def run(work: Work) -> None:
        until(lambda: work.stop.is_requested)
        raise KeyError("bug")

    async def leave(desk: Desk) -> None:
        task = desk.start(desk.calls.call(run, needs=NEEDS))
        await settle()
        task.cancel()
        await asyncio.wait([task])

    with pytest.raises(KeyError, match="bug"), Desk().opened() as desk:
        desk.run(leave(desk))


# ---- time


@on_loop
async def test_a_sleep_ends_in_time(desk: Desk) -> None:
    early, late = (desk.start(desk.calls.sleep(seconds)) for seconds in (1.0, 2.0))
    await settle()
    desk.clock.advance(1.5)
    await settle()
    assert (True, False) == (early.done(), late.done())
    desk.clock.advance(1.5)
    await late


def test_sleeps_and_retries_end_by_themselves() -> None:
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop(), policy=Policy(base=0.01))
    loop.run_until_complete(calls.sleep(0.01))
    assert "at last" == loop.run_until_complete(calls.call(failing(3, NetworkError("x")), needs=NEEDS))
    calls.close()


# ---- hosts


@on_loop
async def test_nothing_starts_for_a_paused_host(desk: Desk) -> None:
    await desk.calls.call(lambda work: 1, needs=NEEDS)
    desk.limits.host("a").pause(30.0)
    await settle()
    waits = desk.start(desk.calls.call(lambda work: 1, needs=NEEDS))
    await desk.calls.call(lambda work: 1, needs=(host_permit("b"),))
    await settle()
    assert not waits.done()
    desk.clock.advance(30.0)
    await waits


@on_loop
async def test_a_pause_from_before_its_first_use_counts(desk: Desk) -> None:
    desk.limits.host("a").pause(30.0)
    waits = desk.start(desk.calls.call(lambda work: 1, needs=NEEDS))
    await settle()
    assert 1 == desk.calls.permits.waiting()
    desk.clock.advance(30.0)
    await waits


@on_loop
async def test_nothing_starts_while_the_rate_of_a_host_is_used_up(desk: Desk) -> None:
    host = desk.limits.configure("a", 2, Rate(1, 10.0))
    for _ in range(2):  # the permits hear of the host only by the first of these
        host.reserve_start()
        await settle()
        waits = desk.start(desk.calls.call(lambda work: 1, needs=NEEDS))
        await settle()
        assert 1 == desk.calls.permits.waiting()
        desk.clock.advance(10.0)
        await waits


@on_loop
async def test_the_limit_of_a_host_counts(desk: Desk) -> None:
    desk.limits.configure("a", 2)
    gate = Gate()
    tasks = [desk.start(desk.calls.call(gate, needs=NEEDS)) for _ in range(3)]
    await eventually(lambda: 2 == gate.inside)
    gate.open()
    await asyncio.gather(*tasks)
    assert 2 == gate.most


# ---- the end


@on_loop
async def test_a_stop_ends_every_wait_at_once(desk: Desk) -> None:
    hangs, never = threading.Event(), Gate()
    running = [desk.start(desk.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS)) for _ in range(3)]
    waiting = [desk.start(desk.calls.call(never, needs=NEEDS)) for _ in range(100)]
    sleeping = desk.start(desk.calls.sleep(5.0))
    await settle()
    desk.stop.request("SIGTERM")
    await settle()
    ended = [*running, *waiting, sleeping]
    assert {True} == {task.done() for task in ended}
    assert {(Cancelled, "SIGTERM")} == {(type(task.exception()), str(task.exception())) for task in ended}
    assert 0 == never.calls
    hangs.set()


@on_loop
async def test_a_stop_ends_the_wait_for_the_thread_of_a_cancelled_call(desk: Desk) -> None:
    hangs = threading.Event()
    task = desk.start(desk.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS))
    await settle()
    task.cancel()
    await settle()
    assert not task.done()
    desk.stop.request("SIGTERM")
    await settle()
    assert task.cancelled()
    hangs.set()


@on_loop
async def test_nothing_starts_after_a_stop(desk: Desk) -> None:
    desk.stop.request("SIGTERM")
    never = Gate()
    for steps in (desk.calls.call(never, needs=NEEDS), desk.calls.sleep(0.0)):
        with pytest.raises(Cancelled, match="SIGTERM"):
            await steps
    assert 0 == never.calls


@on_loop
async def test_a_retry_does_not_begin_after_a_stop(desk: Desk) -> None:
    attempts = []

    def run(work: Work) -> None:
        attempts.append(1)
        desk.stop.request("SIGTERM")
        raise NetworkError("reset")

    with pytest.raises(Cancelled):
        await desk.calls.call(run, needs=NEEDS)
    assert [1] == attempts


def test_closing_stops_what_is_left_and_ends_the_threads() -> None:
    before = threading.active_count()
    with Desk().opened() as desk:
        gate = Gate()
        tasks = [desk.start(desk.calls.call(gate, needs=NEEDS)), desk.start(desk.calls.sleep(100.0))]
        desk.run(eventually(lambda: gate.inside))
    assert [Cancelled, Cancelled] == [type(task.exception()) for task in tasks]
    assert (before, True) == (threading.active_count(), desk.loop.is_closed())
    desk.calls.close()


def test_a_thread_that_hangs_is_an_error_and_is_not_waited_for_again() -> None:
    hangs, desk = threading.Event(), Desk()
    task = desk.start(desk.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS))
    desk.run(settle())
    with pytest.raises(LocalError, match=r"1 threads did not end within 0\.01 s"):
        desk.calls.close(0.01)
    desk.calls.close()
    assert isinstance(task.exception(), Cancelled)
    hangs.set()
    until(lambda: not any(thread.name.startswith("mirror") for thread in threading.enumerate()))


def test_what_is_detached_runs_although_nobody_waits_and_loses_no_bug() -> None:
    done = threading.Event()
    with pytest.raises(KeyError, match="0") as caught, Desk().opened() as desk:
        desk.calls.tasks.detach(desk.calls.call(lambda work: done.set()))
        desk.calls.tasks.detach(desk.calls.call(Raises(NotFound("lost"))))
        for number in range(2):
            desk.calls.tasks.detach(desk.calls.call(Raises(KeyError(number))))
            desk.run(eventually(lambda: len(desk.calls.tasks.bugs) > number))  # noqa: B023 (called at once)
    assert done.is_set()
    assert ["another task failed: KeyError(1)"] == caught.value.__notes__
