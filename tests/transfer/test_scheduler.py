"""The rules by which jobs start: pure, so that every case is a few lines."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import pytest

from mirror.errors import MirrorError
from mirror.transfer.scheduler import DOWNLOADS, UPLOADS, Impossible, Scheduler, host_permit

SOURCE, TARGET, OTHER = host_permit("source"), host_permit("target"), host_permit("other")


def scheduler(capacities: Mapping[str, int] | None = None, usual: int = 8) -> Scheduler:
    return Scheduler(lambda permit: (capacities or {}).get(permit, usual))


def test_a_permit_has_the_name_of_what_it_is_for() -> None:
    assert "host a:5000" == host_permit("a:5000")


def test_all_start_at_once_while_there_are_permits() -> None:
    jobs = scheduler(usual=5)
    assert [[1], [2], [3]] == [jobs.submit(job, (SOURCE,)) for job in (1, 2, 3)]


def test_a_job_that_needs_nothing_starts_at_once() -> None:
    assert [1] == scheduler().submit(1)


def test_never_more_than_the_capacity_run_and_the_first_come_is_the_first_served() -> None:
    jobs = scheduler(usual=3)
    started = [job for number in range(8) for job in jobs.submit(number, (SOURCE,))]
    assert [0, 1, 2] == started
    assert [[3], [4], [5], [6], [7], [], [], []] == [jobs.finished(job) for job in (2, 0, 1, 3, 4, 5, 6, 7)]
    assert 0 == len(jobs)


def test_a_job_gets_all_its_permits_or_none() -> None:
    jobs = scheduler({SOURCE: 1})
    assert [1] == jobs.submit(1, (SOURCE,))
    assert [] == jobs.submit(2, (TARGET, SOURCE))
    assert 0 == jobs.used(TARGET)
    assert [2] == jobs.finished(1)
    assert (1, 1) == (jobs.used(TARGET), jobs.used(SOURCE))


def test_one_host_may_be_needed_twice() -> None:
    jobs = scheduler(usual=3)
    assert [1] == jobs.submit(1, (SOURCE, SOURCE))
    assert [] == jobs.submit(2, (SOURCE, SOURCE))
    assert [] == jobs.submit(3, (SOURCE,)), "it came later"
    assert [2, 3] == jobs.finished(1)


@pytest.mark.parametrize("needs", [(SOURCE, SOURCE), (TARGET, SOURCE, SOURCE)])
def test_what_needs_more_than_there_is_is_refused(needs: tuple[str, ...]) -> None:
    jobs = scheduler({SOURCE: 1})
    for _ in range(2):
        with pytest.raises(Impossible, match="needs 2 of 'host source', of which there are 1") as caught:
            jobs.submit(1, needs)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, MirrorError)
        assert 0 == len(jobs)


def test_an_id_is_used_once_at_a_time() -> None:
    jobs = scheduler()
    jobs.submit(1)
    with pytest.raises(Impossible):
        jobs.submit(1)
    jobs.finished(1)
    assert [1] == jobs.submit(1)


@pytest.mark.parametrize("event", [Scheduler.finished, lambda jobs, job: jobs.again(job, 0.0)])
def test_only_a_running_job_can_end(event: object) -> None:
    jobs = scheduler(usual=1)
    jobs.submit(1, (SOURCE,))
    jobs.submit(2, (SOURCE,))
    assert callable(event)
    with pytest.raises(Impossible, match="job 2 is not running"):
        event(jobs, 2)


class TestOrder:
    def test_a_job_starts_after_those_that_it_comes_after(self) -> None:
        jobs = scheduler()
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE,))
        assert [] == jobs.submit(3, (TARGET,), after=[1, 2, 2])
        assert [[], [3]] == [jobs.finished(1), jobs.finished(2)]

    def test_what_has_ended_or_is_unknown_is_not_waited_for(self) -> None:
        jobs = scheduler()
        jobs.submit(1)
        jobs.finished(1)
        assert [2] == jobs.submit(2, after=[1, 99])

    def test_a_cancelled_job_has_ended_for_those_that_come_after_it(self) -> None:
        jobs = scheduler(usual=1)
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE,))
        jobs.submit(3, (TARGET,), after=[2])
        assert [3] == jobs.cancel(2)

    def test_a_job_that_is_tried_again_has_not_ended(self) -> None:
        jobs = scheduler()
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE,), after=[1])
        assert [] == jobs.again(1, 5.0)
        assert [1] == jobs.tick(5.0)
        assert [2] == jobs.finished(1)

    def test_a_job_waits_for_its_time_without_a_permit(self) -> None:
        jobs = scheduler(usual=1)
        assert [] == jobs.submit(1, (SOURCE,), not_before=5.0)
        assert [2] == jobs.submit(2, (SOURCE,))
        assert 5.0 == jobs.next_wakeup
        assert [] == jobs.tick(4.9)
        assert [] == jobs.tick(5.0), "the permit is taken"
        assert jobs.next_wakeup is None
        assert [1] == jobs.finished(2)

    def test_a_time_is_waited_for_after_the_jobs(self) -> None:
        jobs = scheduler()
        jobs.submit(1)
        jobs.submit(2, after=[1], not_before=5.0)
        assert jobs.next_wakeup is None
        assert [] == jobs.finished(1)
        assert [2] == jobs.tick(6.0)

    def test_who_waited_for_a_time_comes_when_that_is_over(self) -> None:
        jobs = scheduler(usual=1)
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE,), not_before=5.0)
        jobs.submit(3, (SOURCE,))
        jobs.tick(5.0)
        assert [[3], [2]] == [jobs.finished(1), jobs.finished(3)]

    def test_who_tries_again_queues_again_as_the_last(self) -> None:
        jobs = scheduler(usual=1)
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE,))
        assert [2] == jobs.again(1, 0.0)
        assert [1] == jobs.finished(2)

    def test_time_does_not_run_backwards(self) -> None:
        jobs = scheduler()
        jobs.tick(9.0)
        jobs.tick(3.0)
        assert [1] == jobs.submit(1, not_before=8.0)


class TestCancel:
    def test_a_queued_job_leaves_the_queue_without_a_permit(self) -> None:
        jobs = scheduler(usual=1)
        for job in (1, 2, 3):
            jobs.submit(job, (SOURCE,))
        assert [] == jobs.cancel(2)
        assert (False, True) == (jobs.waits(2), jobs.waits(3))
        assert [3] == jobs.finished(1)

    def test_a_job_that_waits_for_others_never_starts(self) -> None:
        jobs = scheduler()
        jobs.submit(1)
        jobs.submit(2, after=[1])
        assert [] == jobs.cancel(2)
        assert [] == jobs.finished(1)

    def test_a_job_that_waits_for_a_time_never_starts(self) -> None:
        jobs = scheduler()
        jobs.submit(1, not_before=5.0)
        jobs.cancel(1)
        assert jobs.next_wakeup is None
        assert [] == jobs.tick(5.0)

    def test_a_running_job_goes_on_and_an_unknown_one_is_nothing(self) -> None:
        jobs = scheduler(usual=1)
        jobs.submit(1, (SOURCE,))
        assert [[], []] == [jobs.cancel(1), jobs.cancel(7)]
        assert (1, False) == (jobs.used(SOURCE), jobs.waits(1))

    def test_what_waited_behind_it_may_start(self) -> None:
        jobs = scheduler(usual=2)
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (SOURCE, SOURCE))
        assert [] == jobs.submit(3, (SOURCE,))
        assert [3] == jobs.cancel(2)


class TestHolds:
    def test_nothing_starts_for_a_host_on_hold(self) -> None:
        jobs = scheduler()
        assert [] == jobs.hold(SOURCE, 5.0)
        assert [[], []] == [jobs.submit(1, (SOURCE,)), jobs.submit(2, (TARGET, SOURCE))]
        assert [3] == jobs.submit(3, (TARGET,))
        assert 5.0 == jobs.next_wakeup
        assert [1, 2] == jobs.tick(5.0)

    def test_a_hold_is_never_shortened(self) -> None:
        jobs = scheduler()
        jobs.hold(SOURCE, 5.0)
        jobs.hold(SOURCE, 3.0)
        jobs.submit(1, (SOURCE,))
        assert [] == jobs.tick(3.0)
        jobs.hold(SOURCE, 8.0)
        assert 8.0 == jobs.next_wakeup
        assert [] == jobs.tick(5.0)
        assert [1] == jobs.tick(8.0)

    def test_a_hold_until_now_is_none(self) -> None:
        jobs = scheduler()
        jobs.tick(5.0)
        jobs.hold(SOURCE, 5.0)
        assert [1] == jobs.submit(1, (SOURCE,))

    def test_a_job_for_a_host_on_hold_keeps_no_permit_of_its_lane(self) -> None:
        jobs = scheduler({SOURCE: 1, TARGET: 2})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (TARGET, SOURCE))
        jobs.submit(3, (TARGET,))
        assert [] == jobs.submit(4, (TARGET,)), "the last unit is kept for job 2"
        assert [4] == jobs.hold(SOURCE, 5.0)


class TestPassingBy:
    def test_a_job_that_lacks_another_host_lets_others_of_its_lane_pass(self) -> None:
        jobs = scheduler({SOURCE: 1})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (TARGET, SOURCE))
        assert [3] == jobs.submit(3, (TARGET,))
        assert [2] == jobs.finished(1)

    def test_the_last_unit_of_its_lane_is_kept_for_the_one_passed_over(self) -> None:
        jobs = scheduler({SOURCE: 1, TARGET: 2})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (TARGET, SOURCE))
        started = [jobs.submit(job, (TARGET,)) for job in (3, 4, 5)]
        assert [[3], [], []] == started
        assert [4] == jobs.finished(3)
        assert [2] == jobs.finished(1), "although there was always somebody for the target"

    def test_a_lane_of_one_unit_keeps_none(self) -> None:
        jobs = scheduler({SOURCE: 1, TARGET: 1})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (TARGET, SOURCE))
        assert [3] == jobs.submit(3, (TARGET,))

    def test_those_that_need_what_it_lacks_do_not_pass(self) -> None:
        jobs = scheduler({SOURCE: 2})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (TARGET, SOURCE, SOURCE))
        assert [[], [4]] == [jobs.submit(3, (TARGET, SOURCE)), jobs.submit(4, (TARGET,))]
        assert [2] == jobs.finished(1)
        assert [3] == jobs.finished(2)

    def test_what_is_kept_goes_to_the_oldest_first(self) -> None:
        jobs = scheduler({SOURCE: 1, OTHER: 1, TARGET: 2})
        jobs.submit(1, (SOURCE,))
        jobs.submit(2, (OTHER,))
        jobs.submit(3, (TARGET,))
        jobs.submit(4, (TARGET, SOURCE))
        jobs.submit(5, (TARGET, OTHER))
        assert [] == jobs.finished(2), "the free unit is kept for job 4"
        assert [4] == jobs.finished(1)
        assert [5] == jobs.finished(3)

    def test_several_units_are_gathered_when_it_is_the_lanes_turn(self) -> None:
        jobs = scheduler({SOURCE: 2})
        jobs.submit(1, (TARGET, SOURCE))
        jobs.submit(2, (TARGET, SOURCE))
        jobs.submit(3, (SOURCE, SOURCE))
        assert [] == jobs.submit(4, (TARGET, SOURCE))
        assert [] == jobs.finished(1), "the lane of the source holds fewer units of it"
        assert [3] == jobs.finished(2)
        assert [4] == jobs.finished(3)


class TestLanes:
    def test_lanes_take_turns(self) -> None:
        jobs = scheduler({DOWNLOADS: 1})
        jobs.submit(0, (SOURCE, DOWNLOADS))
        for job in range(1, 10):
            jobs.submit(job, ((SOURCE, TARGET, OTHER)[job % 3], DOWNLOADS))
        order, running = [], [0]
        while running:
            order.append(running.pop())
            running += jobs.finished(order[-1])
        assert [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] == order

    def test_a_lane_with_many_jobs_does_not_delay_one_with_few(self) -> None:
        jobs = scheduler({UPLOADS: 2})
        for job in range(100):
            jobs.submit(job, (SOURCE, UPLOADS))
        jobs.submit(100, (TARGET, UPLOADS))
        assert [100] == jobs.finished(0)

    def test_a_lane_of_slow_jobs_does_not_end_up_with_every_slot(self) -> None:
        jobs = scheduler({UPLOADS: 4})
        slow = set(range(10))
        running = [started for job in slow for started in jobs.submit(job, (SOURCE, UPLOADS))]
        for job in range(10, 50):
            running += jobs.submit(job, (TARGET, UPLOADS))
        for job in (0, 1):
            running.remove(job)
            running += jobs.finished(job)
        for _ in range(30):  # only the quick ones end
            quick = next(job for job in running if job not in slow)
            running.remove(quick)
            running += jobs.finished(quick)
        assert 2 == len(slow & set(running))

    def test_a_target_that_hangs_neither_idles_the_source_nor_stops_other_targets(self) -> None:
        hangs = host_permit("hangs")
        jobs = scheduler({hangs: 2, SOURCE: 4, TARGET: 2})
        stuck = [started for job in range(50) for started in jobs.submit(job, (hangs, SOURCE))]
        running = [started for job in range(50, 70) for started in jobs.submit(job, (TARGET, SOURCE))]
        assert ([0, 1], [50, 51]) == (stuck, running)
        done = 0
        while running:
            done += 1
            running += jobs.finished(running.pop(0))
            assert not running or 4 == jobs.used(SOURCE) or done >= 19
        assert 20 == done

    def test_a_job_of_two_hosts_is_served_beside_a_stream_of_jobs_of_one(self) -> None:
        jobs = scheduler({SOURCE: 2, TARGET: 2})
        numbers = iter(range(1, 1000))
        running = []
        for _ in range(8):
            running += jobs.submit(next(numbers), (SOURCE,))
            running += jobs.submit(next(numbers), (TARGET,))
        wanted = 0
        assert [] == jobs.submit(wanted, (TARGET, SOURCE))
        ended = 0
        while wanted not in running:
            job = running.pop(0)
            running += jobs.finished(job)
            running += jobs.submit(next(numbers), (SOURCE,) if job % 2 else (TARGET,))
            ended += 1
        assert 20 >= ended


def test_ten_thousand_queued_jobs_do_not_make_an_event_slow() -> None:
    kinds = [(TARGET, SOURCE, UPLOADS), (OTHER, SOURCE, UPLOADS), (SOURCE, DOWNLOADS)]

    def cost(count: int) -> float:
        jobs, draw = scheduler(), random.Random(1)
        began = time.process_time()
        running = [started for job in range(count) for started in jobs.submit(job, draw.choice(kinds))]
        while running:
            running += jobs.finished(running.pop())
        assert 0 == len(jobs)
        return (time.process_time() - began) / count

    few, many = min(cost(500) for _ in range(3)), min(cost(10_000) for _ in range(2))
    assert 3 * few > many  # it is the same; a scan of the queue would make it 20 times as much
    assert 200e-6 > many  # seconds; measured: 9e-6
