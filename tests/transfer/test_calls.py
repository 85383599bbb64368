"""Blocking calls on threads: permits, retries, cancellation, stops, and the end of the threads."""

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
from tests.transfer.harness import (
    DEADLINE,
    BlockedCall,
    CallEnvironment,
    FailingCall,
    eventually,
    run_on_loop,
    settle,
    wait_until,
)

HOST = host_permit("a")
NEEDS = (HOST, DOWNLOADS)


def failing(times: int, error: MirrorError) -> Callable[[Work], str]:
    """Return a call that fails `times` times."""
    left = [error] * times

    def run(work: Work) -> str:
        if left:
            raise left.pop()
        return "at last"

    return run


def slow(env: CallEnvironment, seconds: float, moves: int = 0) -> Callable[[Work], None]:
    """Return a call that takes `seconds` and fails. moves: bytes that it reports."""

    def run(work: Work) -> None:
        if moves:
            work.progress(moves)
        env.clock.advance(seconds)
        raise NetworkError("timeout")

    return run


async def pass_waits(env: CallEnvironment, task: asyncio.Task[object]) -> list[float]:
    """Advance the clock by each backoff until the task ends, and return the waits in seconds."""
    waits: list[float] = []
    while not task.done():
        await eventually(lambda: task.done() or env.limits.waited > sum(waits))
        if env.limits.waited > sum(waits):
            waits.append(env.limits.waited - sum(waits))
            await settle()
            env.clock.advance(waits[-1])
    return waits


# ---- results


@run_on_loop
async def test_a_call_returns_its_result(env: CallEnvironment) -> None:
    assert 7 == await env.calls.call(lambda work: 7, needs=NEEDS)


@run_on_loop
async def test_a_call_raises_its_error(env: CallEnvironment) -> None:
    with pytest.raises(NotFound, match="no such blob"):
        await env.calls.call(FailingCall(NotFound("no such blob")), needs=NEEDS)


@run_on_loop
async def test_an_error_that_is_no_mirror_error_is_not_retried(env: CallEnvironment) -> None:
    with pytest.raises(KeyError, match="oops"):
        await env.calls.call(FailingCall(KeyError("oops")), needs=NEEDS)
    assert 0 == env.limits.retries


@run_on_loop
async def test_the_number_of_concurrent_calls_is_limited_by_the_permits(env: CallEnvironment) -> None:
    blocked = BlockedCall()
    tasks = [env.start(env.calls.call(blocked, needs=NEEDS)) for _ in range(8)]
    await eventually(lambda: 3 == blocked.inside)
    blocked.release()
    assert ["done"] * 8 == await asyncio.gather(*tasks)
    assert (3, 8) == (blocked.most, blocked.calls)


@run_on_loop
async def test_the_number_of_concurrent_calls_without_a_host_is_limited(env: CallEnvironment) -> None:
    blocked = BlockedCall()
    tasks = [env.start(env.calls.call(blocked)) for _ in range(10)]
    await eventually(lambda: 4 == blocked.inside)
    blocked.release()
    await asyncio.gather(*tasks)
    assert 4 == blocked.most


@run_on_loop
async def test_a_call_that_needs_more_permits_than_exist_is_an_error(env: CallEnvironment) -> None:
    with pytest.raises(TooFewPermits, match="needs 9 units of the permit 'host a'"):
        await env.calls.call(BlockedCall(), needs=(HOST,) * 9)


@run_on_loop
async def test_sequential_calls_reuse_threads_that_are_no_daemons(env: CallEnvironment) -> None:
    seen = {await env.calls.call(lambda work: threading.current_thread(), needs=NEEDS) for _ in range(20)}
    assert {False} == {thread.daemon for thread in seen}
    assert len(seen) < 20


# ---- retries


@pytest.mark.parametrize(
    ("attempts", "failures", "retries", "works"),
    [(5, 1, 1, True), (5, 4, 4, True), (5, 5, 4, False), (1, 0, 0, True), (1, 1, 0, False)],
)
@run_on_loop
async def test_attempts_and_waits_follow_the_policy(
    env: CallEnvironment, attempts: int, failures: int, retries: int, works: bool
) -> None:
    run = failing(failures, NetworkError("reset"))
    task = env.start(env.calls.call(run, needs=NEEDS, policy=Policy(attempts=attempts)))
    waits = await pass_waits(env, task)
    assert works == (task.exception() is None)
    assert [0.5, 1.0, 2.0, 4.0][:retries] == waits
    assert (retries, sum(waits)) == (env.limits.retries, env.limits.waited)


@run_on_loop
async def test_an_error_that_is_not_retryable_is_not_retried(env: CallEnvironment) -> None:
    with pytest.raises(NotFound):
        await env.calls.call(failing(1, NotFound("x")), needs=NEEDS)
    assert 0 == env.limits.retries


@run_on_loop
async def test_a_call_that_waits_for_a_retry_holds_no_permit(env: CallEnvironment) -> None:
    env.limits.configure("a", 1)
    task = env.start(env.calls.call(failing(1, NetworkError("reset")), needs=NEEDS))
    await eventually(lambda: env.limits.retries)
    for _ in range(3):
        await env.calls.call(lambda work: 1, needs=NEEDS)
    assert not task.done()
    env.clock.advance(0.5)
    assert "at last" == await task


@run_on_loop
async def test_a_retry_after_is_honored(env: CallEnvironment) -> None:
    task = env.start(env.calls.call(failing(1, RateLimited("429", retry_after=100.0)), needs=NEEDS))
    assert [100.0] == await pass_waits(env, task)
    assert "at last" == await task


@run_on_loop
async def test_calls_to_a_host_that_is_down_are_not_retried(env: CallEnvironment) -> None:
    error = NetworkError("no connection", host="a")
    env.limits.host("a").mark_down(error)
    with pytest.raises(NetworkError):
        await env.calls.call(FailingCall(error), needs=NEEDS)
    assert 0 == env.limits.retries


@run_on_loop
async def test_a_retry_after_that_is_too_long_is_noted(env: CallEnvironment) -> None:
    with pytest.raises(RateLimited):
        await env.calls.call(failing(1, RateLimited("429", retry_after=1000.0)), needs=NEEDS)
    assert 1000.0 == env.limits.retry_after


@run_on_loop
async def test_the_time_budget_counts_attempts_without_progress_but_not_waits_for_permits(
    env: CallEnvironment,
) -> None:
    env.limits.configure("a", 1)
    blocked = BlockedCall()
    before = env.start(env.calls.call(blocked, needs=NEEDS))
    await eventually(lambda: blocked.inside)
    task = env.start(env.calls.call(slow(env, 60.0), needs=NEEDS, policy=Policy(budget=90.0)))
    await settle()
    env.clock.advance(1000.0)
    blocked.release()
    await before
    await pass_waits(env, task)
    assert isinstance(task.exception(), NetworkError)
    assert 1 == env.limits.retries


@run_on_loop
async def test_a_long_wait_for_a_permit_does_not_use_up_the_retries(env: CallEnvironment) -> None:
    env.limits.configure("a", 1)
    retried = env.start(env.calls.call(failing(2, NetworkError("reset")), needs=NEEDS))
    await eventually(lambda: env.limits.retries)
    blocked = BlockedCall()
    busy = env.start(env.calls.call(blocked, needs=NEEDS))
    await eventually(lambda: blocked.inside)
    env.clock.advance(1000.0)
    await settle()
    blocked.release()
    await busy
    await eventually(lambda: env.limits.retries == 2)
    await settle()
    env.clock.advance(1.0)
    assert "at last" == await retried


@run_on_loop
async def test_a_call_that_fails_after_hours_of_progress_is_retried(env: CallEnvironment) -> None:
    task = env.start(env.calls.call(slow(env, 7200.0, moves=1), needs=NEEDS))
    await pass_waits(env, task)
    assert isinstance(task.exception(), NetworkError)
    assert Policy().attempts == 1 + env.limits.retries, "only the number of attempts is limited"


@run_on_loop
async def test_an_attempt_that_moved_bytes_resets_the_time_budget(env: CallEnvironment) -> None:
    durations = iter([(60.0, 0), (7200.0, 1), (60.0, 0), (60.0, 0)])

    def run(work: Work) -> None:
        seconds, moves = next(durations)
        slow(env, seconds, moves)(work)

    task = env.start(env.calls.call(run, needs=NEEDS))
    await pass_waits(env, task)
    assert (NetworkError, 3) == (type(task.exception()), env.limits.retries)


@run_on_loop
async def test_the_time_budget_does_not_count_pauses_of_the_host(env: CallEnvironment) -> None:
    def run(work: Work) -> None:
        env.clock.advance(60.0)
        env.limits.add_limit_wait(60.0)
        raise NetworkError("reset")

    task = env.start(env.calls.call(run, needs=NEEDS))
    await pass_waits(env, task)
    assert isinstance(task.exception(), NetworkError)
    assert Policy().attempts == 1 + env.limits.retries


@pytest.mark.parametrize(("policy", "retries"), [(Policy(), False), (ONCE, True)])
@run_on_loop
async def test_a_call_retries_its_own_requests_only_if_the_call_is_not_retried(
    env: CallEnvironment, policy: Policy, retries: bool
) -> None:
    assert retries == await env.calls.call(lambda work: work.retries, needs=NEEDS, policy=policy)


# ---- cancellation


@run_on_loop
async def test_a_cancelled_call_is_stopped_and_its_task_waits_for_the_thread(env: CallEnvironment) -> None:
    may_end, events = threading.Event(), list[str]()

    def end_late(work: Work) -> None:
        events.append("started")
        wait_until(lambda: work.stop.is_requested)
        assert may_end.wait(DEADLINE)
        events.append("ended")

    task = env.start(env.calls.call(end_late, needs=NEEDS))
    await eventually(lambda: events)
    for _ in range(3):
        task.cancel()
        await settle()
        assert (False, 1) == (task.done(), env.calls.permits.used_units(DOWNLOADS))
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (["started", "ended"], 0) == (events, env.calls.permits.used_units(DOWNLOADS))


@run_on_loop
async def test_a_cancelled_call_that_waits_for_a_permit_never_runs(env: CallEnvironment) -> None:
    blocked, never = BlockedCall(), BlockedCall()
    running = [env.start(env.calls.call(blocked, needs=NEEDS)) for _ in range(3)]
    queued = env.start(env.calls.call(never, needs=NEEDS))
    await eventually(lambda: 3 == blocked.inside)
    queued.cancel()
    await settle()
    assert (True, 0) == (queued.cancelled(), env.calls.permits.waiting_calls())
    blocked.release()
    await asyncio.gather(*running)
    assert 0 == never.calls


@run_on_loop
async def test_a_cancellation_ends_the_wait_for_a_retry(env: CallEnvironment) -> None:
    task = env.start(env.calls.call(FailingCall(NetworkError("x")), needs=NEEDS))
    await eventually(lambda: env.limits.retries)
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()


def test_an_error_of_a_cancelled_call_that_is_no_mirror_error_is_raised_by_close() -> None:
    def run(work: Work) -> None:
        wait_until(lambda: work.stop.is_requested)
        raise KeyError("bug")

    async def call_and_cancel(env: CallEnvironment) -> None:
        task = env.start(env.calls.call(run, needs=NEEDS))
        await settle()
        task.cancel()
        await asyncio.wait([task])

    with pytest.raises(KeyError, match="bug"), CallEnvironment().opened() as env:
        env.run(call_and_cancel(env))


# ---- time


@run_on_loop
async def test_a_sleep_ends_after_its_time(env: CallEnvironment) -> None:
    early, late = (env.start(env.calls.sleep(seconds)) for seconds in (1.0, 2.0))
    await settle()
    env.clock.advance(1.5)
    await settle()
    assert (True, False) == (early.done(), late.done())
    env.clock.advance(1.5)
    await late


def test_sleeps_and_retries_work_with_the_system_clock() -> None:
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop(), policy=Policy(base=0.01))
    loop.run_until_complete(calls.sleep(0.01))
    assert "at last" == loop.run_until_complete(calls.call(failing(3, NetworkError("x")), needs=NEEDS))
    calls.close()


# ---- hosts


@run_on_loop
async def test_no_call_to_a_paused_host_starts(env: CallEnvironment) -> None:
    await env.calls.call(lambda work: 1, needs=NEEDS)
    env.limits.host("a").pause(30.0)
    await settle()
    waits = env.start(env.calls.call(lambda work: 1, needs=NEEDS))
    await env.calls.call(lambda work: 1, needs=(host_permit("b"),))
    await settle()
    assert not waits.done()
    env.clock.advance(30.0)
    await waits


@run_on_loop
async def test_a_pause_before_the_first_call_to_the_host_delays_that_call(env: CallEnvironment) -> None:
    env.limits.host("a").pause(30.0)
    waits = env.start(env.calls.call(lambda work: 1, needs=NEEDS))
    await settle()
    assert 1 == env.calls.permits.waiting_calls()
    env.clock.advance(30.0)
    await waits


@run_on_loop
async def test_no_call_starts_while_the_rate_limit_of_the_host_is_used_up(env: CallEnvironment) -> None:
    host = env.limits.configure("a", 2, Rate(1, 10.0))
    for _ in range(2):  # the first call connects the permits with the limits of the host
        host.reserve_start()
        await settle()
        waits = env.start(env.calls.call(lambda work: 1, needs=NEEDS))
        await settle()
        assert 1 == env.calls.permits.waiting_calls()
        env.clock.advance(10.0)
        await waits


@run_on_loop
async def test_the_number_of_concurrent_calls_to_a_host_is_limited(env: CallEnvironment) -> None:
    env.limits.configure("a", 2)
    blocked = BlockedCall()
    tasks = [env.start(env.calls.call(blocked, needs=NEEDS)) for _ in range(3)]
    await eventually(lambda: 2 == blocked.inside)
    blocked.release()
    await asyncio.gather(*tasks)
    assert 2 == blocked.most


# ---- the end


@run_on_loop
async def test_a_stop_ends_all_waits_at_once(env: CallEnvironment) -> None:
    hangs, never = threading.Event(), BlockedCall()
    running = [env.start(env.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS)) for _ in range(3)]
    waiting = [env.start(env.calls.call(never, needs=NEEDS)) for _ in range(100)]
    sleeping = env.start(env.calls.sleep(5.0))
    await settle()
    env.stop.request("SIGTERM")
    await settle()
    ended = [*running, *waiting, sleeping]
    assert {True} == {task.done() for task in ended}
    assert {(Cancelled, "SIGTERM")} == {(type(task.exception()), str(task.exception())) for task in ended}
    assert 0 == never.calls
    hangs.set()


@run_on_loop
async def test_a_stop_ends_the_wait_for_the_thread_of_a_cancelled_call(env: CallEnvironment) -> None:
    hangs = threading.Event()
    task = env.start(env.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS))
    await settle()
    task.cancel()
    await settle()
    assert not task.done()
    env.stop.request("SIGTERM")
    await settle()
    assert task.cancelled()
    hangs.set()


@run_on_loop
async def test_no_call_starts_after_a_stop(env: CallEnvironment) -> None:
    env.stop.request("SIGTERM")
    never = BlockedCall()
    for coroutine in (env.calls.call(never, needs=NEEDS), env.calls.sleep(0.0)):
        with pytest.raises(Cancelled, match="SIGTERM"):
            await coroutine
    assert 0 == never.calls


@run_on_loop
async def test_no_retry_starts_after_a_stop(env: CallEnvironment) -> None:
    attempts = []

    def run(work: Work) -> None:
        attempts.append(1)
        env.stop.request("SIGTERM")
        raise NetworkError("reset")

    with pytest.raises(Cancelled):
        await env.calls.call(run, needs=NEEDS)
    assert [1] == attempts


def test_close_stops_the_calls_that_are_left_and_ends_the_threads() -> None:
    before = threading.active_count()
    with CallEnvironment().opened() as env:
        blocked = BlockedCall()
        tasks = [env.start(env.calls.call(blocked, needs=NEEDS)), env.start(env.calls.sleep(100.0))]
        env.run(eventually(lambda: blocked.inside))
    assert [Cancelled, Cancelled] == [type(task.exception()) for task in tasks]
    assert (before, True) == (threading.active_count(), env.loop.is_closed())
    env.calls.close()


def test_a_hanging_thread_is_an_error_of_the_first_close_only() -> None:
    hangs, env = threading.Event(), CallEnvironment()
    task = env.start(env.calls.call(lambda work: hangs.wait(DEADLINE), needs=NEEDS))
    env.run(settle())
    with pytest.raises(LocalError, match=r"1 threads"):
        env.calls.close(0.01)
    env.calls.close()
    assert isinstance(task.exception(), Cancelled)
    hangs.set()
    wait_until(lambda: not any(thread.name.startswith("mirror") for thread in threading.enumerate()))


def test_a_detached_call_runs_and_its_error_is_raised_by_close_unless_it_is_a_mirror_error() -> None:
    done = threading.Event()
    with pytest.raises(KeyError, match="0") as caught, CallEnvironment().opened() as env:
        env.calls.tasks.detach(env.calls.call(lambda work: done.set()))
        env.calls.tasks.detach(env.calls.call(FailingCall(NotFound("lost"))))
        for number in range(2):
            env.calls.tasks.detach(env.calls.call(FailingCall(KeyError(number))))
            env.run(eventually(lambda: len(env.calls.tasks.bugs) > number))  # noqa: B023 (called at once)
    assert done.is_set()
    assert [True] == ["KeyError(1)" in note for note in caught.value.__notes__]
