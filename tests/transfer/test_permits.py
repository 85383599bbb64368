"""The rules for granting permits to calls."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping

import pytest

from mirror.errors import Cancelled, MirrorError
from mirror.transfer.permits import DOWNLOADS, UPLOADS, TooFewPermits, host_permit
from tests.transfer.harness import CallEnvironment, NumberedCalls, run_on_loop, settle

SOURCE, TARGET, OTHER = host_permit("source"), host_permit("target"), host_permit("other")


class CallsFactory:
    """Creates calls with the given capacities of permits."""

    def __init__(self) -> None:
        self.created: list[NumberedCalls] = []

    def __call__(self, capacities: Mapping[str, int] | None = None, usual: int = 8) -> NumberedCalls:
        self.created.append(NumberedCalls(lambda permit: (capacities or {}).get(permit, usual)))
        return self.created[-1]


@pytest.fixture
def new_calls() -> Iterator[CallsFactory]:
    factory = CallsFactory()
    yield factory
    for one in factory.created:
        one.close()


def test_the_name_of_a_permit_contains_the_host() -> None:
    assert "host a:5000" == host_permit("a:5000")


def test_calls_start_at_once_while_permits_are_free(new_calls: CallsFactory) -> None:
    calls = new_calls(usual=5)
    assert [[1], [2], [3]] == [calls.submit(job, (SOURCE,)) for job in (1, 2, 3)]


def test_the_capacity_is_never_exceeded_and_calls_start_in_the_order_of_arrival(new_calls: CallsFactory) -> None:
    calls = new_calls(usual=3)
    started = [job for number in range(8) for job in calls.submit(number, (SOURCE,))]
    assert [0, 1, 2] == started
    assert [[3], [4], [5], [6], [7], [], [], []] == [calls.finish(job) for job in (2, 0, 1, 3, 4, 5, 6, 7)]
    assert 0 == len(calls)


def test_a_call_gets_all_its_permits_or_none(new_calls: CallsFactory) -> None:
    calls = new_calls({SOURCE: 1})
    assert [1] == calls.submit(1, (SOURCE,))
    assert [] == calls.submit(2, (TARGET, SOURCE))
    assert 0 == calls.permits.used_units(TARGET)
    assert [2] == calls.finish(1)
    assert (1, 1) == (calls.permits.used_units(TARGET), calls.permits.used_units(SOURCE))


def test_a_call_may_need_two_permits_of_one_host(new_calls: CallsFactory) -> None:
    calls = new_calls(usual=3)
    assert [1] == calls.submit(1, (SOURCE, SOURCE))
    assert [] == calls.submit(2, (SOURCE, SOURCE))
    assert [] == calls.submit(3, (SOURCE,)), "it arrived later"
    assert [2, 3] == calls.finish(1)


@pytest.mark.parametrize("needs", [(SOURCE, SOURCE), (TARGET, SOURCE, SOURCE)])
def test_a_call_that_needs_more_permits_than_exist_is_an_error(needs: tuple[str, ...], new_calls: CallsFactory) -> None:
    calls = new_calls({SOURCE: 1})
    for _ in range(2):
        message = "needs 2 units of the permit 'host source', but it has only 1"
        with pytest.raises(TooFewPermits, match=message) as caught:
            calls.submit(1, needs)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, MirrorError)
        assert 0 == len(calls)


class TestCancellation:
    def test_a_cancelled_call_leaves_the_queue_without_a_permit(self, new_calls: CallsFactory) -> None:
        calls = new_calls(usual=1)
        for job in (1, 2, 3):
            calls.submit(job, (SOURCE,))
        assert [] == calls.cancel(2)
        assert (False, True) == (calls.is_waiting(2), calls.is_waiting(3))
        assert [3] == calls.finish(1)

    def test_a_call_behind_a_cancelled_one_may_start(self, new_calls: CallsFactory) -> None:
        calls = new_calls(usual=2)
        calls.submit(1, (SOURCE,))
        calls.submit(2, (SOURCE, SOURCE))
        assert [] == calls.submit(3, (SOURCE,))
        assert [3] == calls.cancel(2)


class TestHolds:
    def test_no_call_to_a_host_on_hold_starts(self, new_calls: CallsFactory) -> None:
        calls = new_calls()
        assert [] == calls.hold(SOURCE, 5.0)
        assert [[], []] == [calls.submit(1, (SOURCE,)), calls.submit(2, (TARGET, SOURCE))]
        assert [3] == calls.submit(3, (TARGET,))
        assert [] == calls.tick(4.9)
        assert [1, 2] == calls.tick(5.0)

    def test_a_hold_is_never_shortened(self, new_calls: CallsFactory) -> None:
        calls = new_calls()
        calls.hold(SOURCE, 5.0)
        calls.hold(SOURCE, 3.0)
        calls.submit(1, (SOURCE,))
        assert [] == calls.tick(3.0)
        calls.hold(SOURCE, 8.0)
        assert [] == calls.tick(5.0)
        assert [1] == calls.tick(8.0)

    def test_a_hold_until_now_has_no_effect(self, new_calls: CallsFactory) -> None:
        calls = new_calls()
        calls.tick(5.0)
        calls.hold(SOURCE, 5.0)
        assert [1] == calls.submit(1, (SOURCE,))

    def test_no_unit_is_reserved_for_a_call_to_a_host_on_hold(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        calls.submit(3, (TARGET,))
        assert [] == calls.submit(4, (TARGET,)), "the last unit is reserved for call 2"
        assert [4] == calls.hold(SOURCE, 5.0)


class TestOvertaking:
    def test_a_call_that_lacks_a_permit_of_another_host_is_overtaken(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 1})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        assert [3] == calls.submit(3, (TARGET,))
        assert [2] == calls.finish(1)

    def test_the_last_unit_of_the_queue_is_reserved_for_the_overtaken_call(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        started = [calls.submit(job, (TARGET,)) for job in (3, 4, 5)]
        assert [[3], [], []] == started
        assert [4] == calls.finish(3)
        assert [2] == calls.finish(1), "although other calls for the target always waited"

    def test_no_unit_is_reserved_if_the_permit_has_only_one(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 1, TARGET: 1})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        assert [3] == calls.submit(3, (TARGET,))

    def test_calls_that_need_the_same_missing_permit_do_not_overtake(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE, SOURCE))
        assert [[], [4]] == [calls.submit(3, (TARGET, SOURCE)), calls.submit(4, (TARGET,))]
        assert [2] == calls.finish(1)
        assert [3] == calls.finish(2)

    def test_the_reserved_unit_is_granted_to_the_oldest_call(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 1, OTHER: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (OTHER,))
        calls.submit(3, (TARGET,))
        calls.submit(4, (TARGET, SOURCE))
        calls.submit(5, (TARGET, OTHER))
        assert [] == calls.finish(2), "the free unit is reserved for call 4"
        assert [4] == calls.finish(1)
        assert [5] == calls.finish(3)

    def test_units_are_reserved_until_a_call_that_needs_several_can_start(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 2})
        calls.submit(1, (TARGET, SOURCE))
        calls.submit(2, (TARGET, SOURCE))
        calls.submit(3, (SOURCE, SOURCE))
        assert [] == calls.submit(4, (TARGET, SOURCE))
        assert [] == calls.finish(1), "the calls in the queue of the source hold fewer units"
        assert [3] == calls.finish(2)
        assert [4] == calls.finish(3)


class TestQueues:
    def test_queues_take_turns(self, new_calls: CallsFactory) -> None:
        calls = new_calls({DOWNLOADS: 1})
        calls.submit(0, (SOURCE, DOWNLOADS))
        for job in range(1, 10):
            calls.submit(job, ((SOURCE, TARGET, OTHER)[job % 3], DOWNLOADS))
        order, running = [], [0]
        while running:
            order.append(running.pop())
            running += calls.finish(order[-1])
        assert [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] == order

    def test_a_queue_with_many_calls_does_not_delay_one_with_few(self, new_calls: CallsFactory) -> None:
        calls = new_calls({UPLOADS: 2})
        for job in range(100):
            calls.submit(job, (SOURCE, UPLOADS))
        calls.submit(100, (TARGET, UPLOADS))
        assert [100] == calls.finish(0)

    def test_a_queue_of_slow_calls_does_not_get_all_permits(self, new_calls: CallsFactory) -> None:
        calls = new_calls({UPLOADS: 4})
        slow = set(range(10))
        running = [started for job in slow for started in calls.submit(job, (SOURCE, UPLOADS))]
        for job in range(10, 50):
            running += calls.submit(job, (TARGET, UPLOADS))
        for job in (0, 1):
            running.remove(job)
            running += calls.finish(job)
        for _ in range(30):  # only the quick ones end
            quick = next(job for job in running if job not in slow)
            running.remove(quick)
            running += calls.finish(quick)
        assert 2 == len(slow & set(running))

    def test_a_hanging_target_does_not_delay_the_source_or_other_targets(self, new_calls: CallsFactory) -> None:
        hangs = host_permit("hangs")
        calls = new_calls({hangs: 2, SOURCE: 4, TARGET: 2})
        stuck = [started for job in range(50) for started in calls.submit(job, (hangs, SOURCE))]
        running = [started for job in range(50, 70) for started in calls.submit(job, (TARGET, SOURCE))]
        assert ([0, 1], [50, 51]) == (stuck, running)
        done = 0
        while running:
            done += 1
            running += calls.finish(running.pop(0))
            assert not running or 4 == calls.permits.used_units(SOURCE) or done >= 19
        assert 20 == done

    def test_a_call_to_two_hosts_does_not_starve_behind_calls_to_one_host(self, new_calls: CallsFactory) -> None:
        calls = new_calls({SOURCE: 2, TARGET: 2})
        numbers = iter(range(1, 1000))
        running = []
        for _ in range(8):
            running += calls.submit(next(numbers), (SOURCE,))
            running += calls.submit(next(numbers), (TARGET,))
        wanted = 0
        assert [] == calls.submit(wanted, (TARGET, SOURCE))
        ended = 0
        while wanted not in running:
            job = running.pop(0)
            running += calls.finish(job)
            running += calls.submit(next(numbers), (SOURCE,) if job % 2 else (TARGET,))
            ended += 1
        assert 20 >= ended


def test_the_cost_of_an_event_does_not_grow_with_the_number_of_waiting_calls(new_calls: CallsFactory) -> None:
    kinds = [(TARGET, SOURCE, UPLOADS), (OTHER, SOURCE, UPLOADS), (SOURCE, DOWNLOADS)]

    def cpu_seconds(count: int) -> float:
        calls, draw = new_calls(), random.Random(1)
        started_at = time.process_time()
        running = [started for job in range(count) for started in calls.submit(job, draw.choice(kinds))]
        while running:
            running += calls.finish(running.pop())
        assert 0 == len(calls)
        return (time.process_time() - started_at) / count

    few, many = min(cpu_seconds(500) for _ in range(3)), cpu_seconds(10_000)
    assert 3 * few > many  # a scan of the queue would make it 20 times as much


@run_on_loop
async def test_a_permit_granted_to_a_cancelled_task_is_released(env: CallEnvironment) -> None:
    permits = env.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    waiting = env.start(permits.acquire((DOWNLOADS,)))
    await settle()
    permits.release((DOWNLOADS,) * 3)  # granted, but the task has not run since
    waiting.cancel()
    await settle()
    assert (True, 0, 0) == (waiting.cancelled(), permits.used_units(DOWNLOADS), permits.waiting_calls())


@run_on_loop
async def test_a_task_gets_no_permit_after_its_cancellation(env: CallEnvironment) -> None:
    permits = env.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    first, second = (env.start(permits.acquire((DOWNLOADS,) * 3)) for _ in range(2))
    await settle()
    first.cancel()
    permits.release((DOWNLOADS,) * 3)
    await settle()
    assert (True, True, 3) == (first.cancelled(), second.done(), permits.used_units(DOWNLOADS))


@run_on_loop
async def test_close_fails_waiting_and_later_calls(env: CallEnvironment) -> None:
    permits = env.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    waiting = env.start(permits.acquire((DOWNLOADS,)))
    await settle()
    permits.close(Cancelled("SIGTERM"))
    for late in (waiting, permits.acquire((UPLOADS,))):
        with pytest.raises(Cancelled, match="SIGTERM"):
            await late
    permits.release((DOWNLOADS,) * 3)
    assert 0 == permits.used_units(DOWNLOADS)


@run_on_loop
async def test_an_unknown_permit_is_an_error(env: CallEnvironment) -> None:
    with pytest.raises(TooFewPermits, match="no permit 'lunch'"):
        await env.calls.permits.acquire(("lunch",))
