"""The rules by which calls get their permits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping

import pytest

from mirror.errors import Cancelled, MirrorError
from mirror.transfer.permits import DOWNLOADS, UPLOADS, TooFewPermits, host_permit
from tests.transfer.harness import Desk, Line, on_loop, settle

SOURCE, TARGET, OTHER = host_permit("source"), host_permit("target"), host_permit("other")


class Lines:
    """Makes lines, with so many units of each permit."""

    def __init__(self) -> None:
        self.made: list[Line] = []

    def __call__(self, capacities: Mapping[str, int] | None = None, usual: int = 8) -> Line:
        self.made.append(Line(lambda permit: (capacities or {}).get(permit, usual)))
        return self.made[-1]


@pytest.fixture
def line() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    for one in lines.made:
        one.close()


def test_a_permit_has_the_name_of_what_it_is_for() -> None:
    assert "host a:5000" == host_permit("a:5000")


def test_all_start_at_once_while_there_are_permits(line: Lines) -> None:
    calls = line(usual=5)
    assert [[1], [2], [3]] == [calls.submit(job, (SOURCE,)) for job in (1, 2, 3)]


def test_never_more_than_the_capacity_run_and_the_first_come_is_the_first_served(line: Lines) -> None:
    calls = line(usual=3)
    started = [job for number in range(8) for job in calls.submit(number, (SOURCE,))]
    assert [0, 1, 2] == started
    assert [[3], [4], [5], [6], [7], [], [], []] == [calls.finished(job) for job in (2, 0, 1, 3, 4, 5, 6, 7)]
    assert 0 == len(calls)


def test_a_call_gets_all_its_permits_or_none(line: Lines) -> None:
    calls = line({SOURCE: 1})
    assert [1] == calls.submit(1, (SOURCE,))
    assert [] == calls.submit(2, (TARGET, SOURCE))
    assert 0 == calls.permits.used(TARGET)
    assert [2] == calls.finished(1)
    assert (1, 1) == (calls.permits.used(TARGET), calls.permits.used(SOURCE))


def test_one_host_may_be_needed_twice(line: Lines) -> None:
    calls = line(usual=3)
    assert [1] == calls.submit(1, (SOURCE, SOURCE))
    assert [] == calls.submit(2, (SOURCE, SOURCE))
    assert [] == calls.submit(3, (SOURCE,)), "it came later"
    assert [2, 3] == calls.finished(1)


@pytest.mark.parametrize("needs", [(SOURCE, SOURCE), (TARGET, SOURCE, SOURCE)])
def test_what_needs_more_than_there_is_is_refused(needs: tuple[str, ...], line: Lines) -> None:
    calls = line({SOURCE: 1})
    for _ in range(2):
        with pytest.raises(TooFewPermits, match="needs 2 of 'host source', of which there are 1") as caught:
            calls.submit(1, needs)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, MirrorError)
        assert 0 == len(calls)


class TestCancel:
    def test_a_queued_call_leaves_the_queue_without_a_permit(self, line: Lines) -> None:
        calls = line(usual=1)
        for job in (1, 2, 3):
            calls.submit(job, (SOURCE,))
        assert [] == calls.cancel(2)
        assert (False, True) == (calls.waits(2), calls.waits(3))
        assert [3] == calls.finished(1)

    def test_what_waited_behind_it_may_start(self, line: Lines) -> None:
        calls = line(usual=2)
        calls.submit(1, (SOURCE,))
        calls.submit(2, (SOURCE, SOURCE))
        assert [] == calls.submit(3, (SOURCE,))
        assert [3] == calls.cancel(2)


class TestHolds:
    def test_nothing_starts_for_a_host_on_hold(self, line: Lines) -> None:
        calls = line()
        assert [] == calls.hold(SOURCE, 5.0)
        assert [[], []] == [calls.submit(1, (SOURCE,)), calls.submit(2, (TARGET, SOURCE))]
        assert [3] == calls.submit(3, (TARGET,))
        assert [] == calls.tick(4.9)
        assert [1, 2] == calls.tick(5.0)

    def test_a_hold_is_never_shortened(self, line: Lines) -> None:
        calls = line()
        calls.hold(SOURCE, 5.0)
        calls.hold(SOURCE, 3.0)
        calls.submit(1, (SOURCE,))
        assert [] == calls.tick(3.0)
        calls.hold(SOURCE, 8.0)
        assert [] == calls.tick(5.0)
        assert [1] == calls.tick(8.0)

    def test_a_hold_until_now_is_none(self, line: Lines) -> None:
        calls = line()
        calls.tick(5.0)
        calls.hold(SOURCE, 5.0)
        assert [1] == calls.submit(1, (SOURCE,))

    def test_a_call_for_a_host_on_hold_keeps_no_permit_of_its_lane(self, line: Lines) -> None:
        calls = line({SOURCE: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        calls.submit(3, (TARGET,))
        assert [] == calls.submit(4, (TARGET,)), "the last unit is kept for call 2"
        assert [4] == calls.hold(SOURCE, 5.0)


class TestPassingBy:
    def test_a_call_that_lacks_another_host_lets_others_of_its_lane_pass(self, line: Lines) -> None:
        calls = line({SOURCE: 1})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        assert [3] == calls.submit(3, (TARGET,))
        assert [2] == calls.finished(1)

    def test_the_last_unit_of_its_lane_is_kept_for_the_one_passed_over(self, line: Lines) -> None:
        calls = line({SOURCE: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        started = [calls.submit(job, (TARGET,)) for job in (3, 4, 5)]
        assert [[3], [], []] == started
        assert [4] == calls.finished(3)
        assert [2] == calls.finished(1), "although there was always somebody for the target"

    def test_a_lane_of_one_unit_keeps_none(self, line: Lines) -> None:
        calls = line({SOURCE: 1, TARGET: 1})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE))
        assert [3] == calls.submit(3, (TARGET,))

    def test_those_that_need_what_it_lacks_do_not_pass(self, line: Lines) -> None:
        calls = line({SOURCE: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (TARGET, SOURCE, SOURCE))
        assert [[], [4]] == [calls.submit(3, (TARGET, SOURCE)), calls.submit(4, (TARGET,))]
        assert [2] == calls.finished(1)
        assert [3] == calls.finished(2)

    def test_what_is_kept_goes_to_the_oldest_first(self, line: Lines) -> None:
        calls = line({SOURCE: 1, OTHER: 1, TARGET: 2})
        calls.submit(1, (SOURCE,))
        calls.submit(2, (OTHER,))
        calls.submit(3, (TARGET,))
        calls.submit(4, (TARGET, SOURCE))
        calls.submit(5, (TARGET, OTHER))
        assert [] == calls.finished(2), "the free unit is kept for call 4"
        assert [4] == calls.finished(1)
        assert [5] == calls.finished(3)

    def test_several_units_are_gathered_when_it_is_the_lanes_turn(self, line: Lines) -> None:
        calls = line({SOURCE: 2})
        calls.submit(1, (TARGET, SOURCE))
        calls.submit(2, (TARGET, SOURCE))
        calls.submit(3, (SOURCE, SOURCE))
        assert [] == calls.submit(4, (TARGET, SOURCE))
        assert [] == calls.finished(1), "the lane of the source holds fewer units of it"
        assert [3] == calls.finished(2)
        assert [4] == calls.finished(3)


class TestLanes:
    def test_lanes_take_turns(self, line: Lines) -> None:
        calls = line({DOWNLOADS: 1})
        calls.submit(0, (SOURCE, DOWNLOADS))
        for job in range(1, 10):
            calls.submit(job, ((SOURCE, TARGET, OTHER)[job % 3], DOWNLOADS))
        request, running = [], [0]
        while running:
            request.append(running.pop())
            running += calls.finished(request[-1])
        assert [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] == request

    def test_a_lane_with_many_calls_does_not_delay_one_with_few(self, line: Lines) -> None:
        calls = line({UPLOADS: 2})
        for job in range(100):
            calls.submit(job, (SOURCE, UPLOADS))
        calls.submit(100, (TARGET, UPLOADS))
        assert [100] == calls.finished(0)

    def test_a_lane_of_slow_calls_does_not_end_up_with_every_slot(self, line: Lines) -> None:
        calls = line({UPLOADS: 4})
        slow = set(range(10))
        running = [started for job in slow for started in calls.submit(job, (SOURCE, UPLOADS))]
        for job in range(10, 50):
            running += calls.submit(job, (TARGET, UPLOADS))
        for job in (0, 1):
            running.remove(job)
            running += calls.finished(job)
        for _ in range(30):  # only the quick ones end
            quick = next(job for job in running if job not in slow)
            running.remove(quick)
            running += calls.finished(quick)
        assert 2 == len(slow & set(running))

    def test_a_target_that_hangs_neither_idles_the_source_nor_stops_other_targets(self, line: Lines) -> None:
        hangs = host_permit("hangs")
        calls = line({hangs: 2, SOURCE: 4, TARGET: 2})
        stuck = [started for job in range(50) for started in calls.submit(job, (hangs, SOURCE))]
        running = [started for job in range(50, 70) for started in calls.submit(job, (TARGET, SOURCE))]
        assert ([0, 1], [50, 51]) == (stuck, running)
        done = 0
        while running:
            done += 1
            running += calls.finished(running.pop(0))
            assert not running or 4 == calls.permits.used(SOURCE) or done >= 19
        assert 20 == done

    def test_a_call_of_two_hosts_is_served_beside_a_stream_of_calls_of_one(self, line: Lines) -> None:
        calls = line({SOURCE: 2, TARGET: 2})
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
            running += calls.finished(job)
            running += calls.submit(next(numbers), (SOURCE,) if job % 2 else (TARGET,))
            ended += 1
        assert 20 >= ended


def test_ten_thousand_queued_calls_do_not_make_an_event_slow(line: Lines) -> None:
    kinds = [(TARGET, SOURCE, UPLOADS), (OTHER, SOURCE, UPLOADS), (SOURCE, DOWNLOADS)]

    def cost(count: int) -> float:
        calls, draw = line(), random.Random(1)
        began = time.process_time()
        running = [started for job in range(count) for started in calls.submit(job, draw.choice(kinds))]
        while running:
            running += calls.finished(running.pop())
        assert 0 == len(calls)
        return (time.process_time() - began) / count

    few, many = min(cost(500) for _ in range(3)), cost(10_000)
    assert 3 * few > many  # it is the same; a scan of the queue would make it 20 times as much


@on_loop
async def test_a_permit_that_is_granted_to_a_cancelled_task_is_given_back(desk: Desk) -> None:
    permits = desk.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    waiting = desk.start(permits.acquire((DOWNLOADS,)))
    await settle()
    permits.release((DOWNLOADS,) * 3)  # granted, but the task has not run since
    waiting.cancel()
    await settle()
    assert (True, 0, 0) == (waiting.cancelled(), permits.used(DOWNLOADS), permits.waiting())


@on_loop
async def test_a_cancelled_task_that_has_not_run_since_gets_no_permit(desk: Desk) -> None:
    permits = desk.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    first, second = (desk.start(permits.acquire((DOWNLOADS,) * 3)) for _ in range(2))
    await settle()
    first.cancel()
    permits.release((DOWNLOADS,) * 3)
    await settle()
    assert (True, True, 3) == (first.cancelled(), second.done(), permits.used(DOWNLOADS))


@on_loop
async def test_a_close_fails_who_waits_and_who_comes_later(desk: Desk) -> None:
    permits = desk.calls.permits
    await permits.acquire((DOWNLOADS,) * 3)
    waiting = desk.start(permits.acquire((DOWNLOADS,)))
    await settle()
    permits.close(Cancelled("SIGTERM"))
    for late in (waiting, permits.acquire((UPLOADS,))):
        with pytest.raises(Cancelled, match="SIGTERM"):
            await late
    permits.release((DOWNLOADS,) * 3)
    assert 0 == permits.used(DOWNLOADS)


@on_loop
async def test_there_are_no_permits_of_another_name(desk: Desk) -> None:
    with pytest.raises(TooFewPermits, match="no permit 'lunch'"):
        await desk.calls.permits.acquire(("lunch",))
