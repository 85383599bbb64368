"""Transfers on threads: once for all who ask, retried without a slot, cancelled when nobody is left."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from mirror.errors import Cancelled, LocalError, MirrorError, NetworkError, NotFound, RateLimited
from mirror.limits import Limits, Rate
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import DOWNLOADS, Impossible, host_permit
from mirror.transfer.steps import Steps
from mirror.transfer.watch import Progress, Watch
from mirror.transfer.workers import Workers
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import ONCE, Policy
from tests.transfer.harness import DEADLINE, FakeClock, Gate, until

HOST = host_permit("a")
NEEDS = (HOST, DOWNLOADS)


@dataclass
class Desk:
    """A manager whose clock stands still, whose retries take the longest wait, and what it was given."""

    clock: FakeClock = field(default_factory=FakeClock)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.limits = Limits(self.clock)
        self.manager = Manager(limits=self.limits, stop=self.stop, downloads=3, draw=lambda: 1.0)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    with desk.manager:
        yield desk


@pytest.fixture
def manager(desk: Desk) -> Manager:
    return desk.manager


def error_of(watch: Watch[object]) -> BaseException | None:
    assert watch.wait(DEADLINE)
    return watch.error


class TestTransfers:
    def test_the_result_reaches_who_asked(self, manager: Manager) -> None:
        with manager.transfer("key", lambda work: 7, needs=NEEDS) as watch:
            assert watch.wait(DEADLINE)
            assert (7, 1, None) == (watch.result(), watch.attempts, watch.error)

    def test_the_error_reaches_who_asked(self, manager: Manager) -> None:
        def run(work: Work) -> None:
            raise NotFound("no such blob")

        watch = manager.transfer("key", run, needs=NEEDS)
        assert isinstance(error_of(watch), NotFound)
        for _ in range(2):
            with pytest.raises(NotFound, match="no such blob"):
                watch.result()

    def test_a_result_is_there_only_at_the_end(self, manager: Manager) -> None:
        gate = Gate()
        watch = manager.transfer("key", gate, needs=NEEDS)
        assert (False, False) == (watch.done, watch.wait(0.001))
        with pytest.raises(RuntimeError, match="not ended"):
            watch.result()
        gate.open()
        assert watch.wait(DEADLINE)
        assert "done" == watch.result()

    def test_three_start_at_once_and_progress_only_rises(self, manager: Manager) -> None:
        gates = [Gate(moves=1) for _ in range(3)]
        watches = [manager.transfer(number, gate, needs=NEEDS, total=1) for number, gate in enumerate(gates)]
        for gate in gates:
            gate.wait_entered()
        for gate in gates:
            gate.open()
        for watch in watches:
            values = [progress.moved for progress in watch.changes(DEADLINE)]
            assert sorted(set(values)) == values
            assert Progress(1, 1) == watch.progress

    def test_no_more_than_the_limit_run_at_a_time(self, manager: Manager) -> None:
        gate = Gate()
        watches = [manager.transfer(object(), gate, needs=NEEDS) for _ in range(8)]
        until(lambda: 3 == gate.inside)
        gate.open()
        assert ["done"] * 8 == [watch.result() for watch in watches if watch.wait(DEADLINE)]
        assert (3, 8) == (gate.most, gate.calls)

    def test_five_who_ask_for_one_key_share_one_transfer(self, manager: Manager) -> None:
        gate = Gate(moves=5)
        watches = [manager.transfer("key", gate, needs=NEEDS) for _ in range(5)]
        gate.wait_entered()
        assert [5] * 5 == [next(watch.changes(DEADLINE)).moved for watch in watches]
        gate.open()
        assert ["done"] * 5 == [watch.result() for watch in watches if watch.wait(DEADLINE)]
        assert 1 == gate.calls

    def test_an_error_is_shared_and_keeps_no_frames_alive(self, manager: Manager) -> None:
        gate = Gate()

        def run(work: Work) -> None:
            gate(work)
            raise NotFound("gone")

        watches = [manager.transfer("key", run, needs=NEEDS) for _ in range(3)]
        gate.open()
        for watch in watches:
            error = error_of(watch)
            with pytest.raises(NotFound) as caught:
                watch.result()
            assert error is caught.value
            assert 3 >= len(caught.traceback)

    def test_after_its_end_a_key_is_forgotten(self, manager: Manager) -> None:
        results = iter(range(2))
        for number in range(2):
            watch = manager.transfer("key", lambda work: next(results), needs=NEEDS)
            assert watch.wait(DEADLINE)
            assert number == watch.result()

    def test_jobs_that_need_nothing_run_a_few_at_a_time(self, manager: Manager) -> None:
        gate = Gate()
        watches = [manager.transfer(object(), gate, needs=()) for _ in range(10)]
        until(lambda: 4 == gate.inside)
        gate.open()
        assert all(watch.wait(DEADLINE) for watch in watches)
        assert 4 == gate.most

    def test_a_transfer_comes_after_others_however_they_end(self, manager: Manager) -> None:
        def fails(work: Work) -> None:
            raise NotFound("x")

        def task() -> Steps[None]:
            yield first

        gate = Gate()
        first = manager.transfer("first", gate, needs=NEEDS)
        failing = manager.transfer("failing", fails, needs=NEEDS)
        waits = manager.spawn(task(), name="waits")
        last = manager.transfer("last", lambda work: first.done, needs=NEEDS, after=[failing, waits, first])
        after_the_end = manager.transfer("x", lambda work: 1, needs=NEEDS, after=[failing])
        assert after_the_end.wait(DEADLINE)
        assert not last.done
        gate.open()
        assert last.wait(DEADLINE)
        assert last.result()

    def test_what_can_never_start_is_refused(self, manager: Manager) -> None:
        with pytest.raises(Impossible, match="needs 9 of 'host a'"):
            manager.transfer("key", Gate(), needs=(HOST,) * 9)
        with pytest.raises(Impossible, match="no permit 'lunch'"):
            manager.transfer("key", Gate(), needs=("lunch",))
        assert manager.join("key") is None

    def test_threads_are_named_and_few(self, manager: Manager) -> None:
        names = set()
        for _ in range(20):
            watch = manager.transfer(object(), lambda work: threading.current_thread(), needs=NEEDS)
            assert watch.wait(DEADLINE)
            names.add(watch.result().name)
            assert not watch.result().daemon
        assert names <= {"mirror-1", "mirror-2", "mirror-3"}


class TestRetries:
    def failing(self, times: int, error: MirrorError) -> Callable[[Work], str]:
        left = [error] * times

        def run(work: Work) -> str:
            if left:
                raise left.pop()
            return "at last"

        return run

    @pytest.mark.parametrize(
        ("attempts", "failures", "made", "works"),
        [(5, 1, 2, True), (5, 4, 5, True), (5, 5, 5, False), (1, 0, 1, True), (1, 1, 1, False)],
    )
    def test_attempts_are_what_the_policy_says(
        self, desk: Desk, attempts: int, failures: int, made: int, works: bool
    ) -> None:
        run = self.failing(failures, NetworkError("reset"))
        watch = desk.manager.transfer("key", run, needs=NEEDS, policy=Policy(attempts=attempts))
        waits = self.wait_out(desk, watch)
        assert (made, works) == (watch.attempts, watch.error is None)
        assert [0.5, 1.0, 2.0, 4.0][: made - 1] == waits
        assert (made - 1, sum(waits)) == (desk.limits.retries, desk.limits.waited)

    def wait_out(self, desk: Desk, watch: Watch[object]) -> list[float]:
        """Let time pass from wait to wait; -> how long each was."""
        waits: list[float] = []
        while not watch.done:
            until(lambda: watch.done or desk.limits.waited > sum(waits))
            if desk.limits.waited > sum(waits):
                waits.append(desk.limits.waited - sum(waits))
                attempts = watch.attempts
                desk.clock.advance(waits[-1] - 0.001, desk.manager)
                assert attempts == watch.attempts
                desk.clock.advance(0.001, desk.manager)
                until(partial(self.has_more, watch, attempts))
        return waits

    def has_more(self, watch: Watch[object], attempts: int) -> bool:
        return watch.attempts > attempts

    def test_what_cannot_work_later_is_tried_once(self, manager: Manager) -> None:
        watch = manager.transfer("key", self.failing(1, NotFound("x")), needs=NEEDS)
        assert isinstance(error_of(watch), NotFound)
        assert 1 == watch.attempts

    def test_a_bug_is_not_tried_again_and_not_swallowed(self, manager: Manager) -> None:
        def run(work: Work) -> None:
            raise KeyError("oops")

        watch = manager.transfer("key", run, needs=NEEDS)
        assert watch.wait(DEADLINE)
        with pytest.raises(KeyError, match="oops"):
            watch.result()

    def test_who_waits_for_a_retry_has_no_slot_and_no_thread(self, desk: Desk) -> None:
        desk.limits.configure("a", 1)
        watch = desk.manager.transfer("key", self.failing(1, NetworkError("reset")), needs=NEEDS)
        until(lambda: desk.limits.retries)
        for _ in range(3):
            other = desk.manager.transfer(object(), lambda work: 1, needs=NEEDS)
            assert other.wait(DEADLINE)
        assert not watch.done
        desk.clock.advance(0.5, desk.manager)
        assert watch.wait(DEADLINE)
        assert "at last" == watch.result()

    def test_a_wait_that_was_asked_for_is_kept(self, desk: Desk) -> None:
        run = self.failing(1, RateLimited("429", retry_after=100.0))
        watch = desk.manager.transfer("key", run, needs=NEEDS)
        assert [100.0] == self.wait_out(desk, watch)
        assert "at last" == watch.result()

    def test_the_work_of_a_host_that_is_down_is_not_tried_again(self, desk: Desk) -> None:
        error = NetworkError("no connection", host="a")
        desk.limits.host("a").mark_down(error)
        assert error is error_of(desk.manager.transfer("key", Raises(error), needs=NEEDS))
        assert 0 == desk.limits.retries

    def test_a_wait_that_is_too_long_is_noted(self, desk: Desk) -> None:
        run = self.failing(1, RateLimited("429", retry_after=1000.0))
        watch = desk.manager.transfer("key", run, needs=NEEDS)
        assert isinstance(error_of(watch), RateLimited)
        assert 1000.0 == desk.limits.retry_after

    def test_the_time_budget_counts_attempts_that_move_nothing_and_no_time_in_the_queue(self, desk: Desk) -> None:
        desk.limits.configure("a", 1)
        gate = Gate()
        before = desk.manager.transfer("before", gate, needs=NEEDS)
        slow = desk.manager.transfer("key", self.slow(desk, 60.0), needs=NEEDS, policy=Policy(budget=90.0))
        desk.clock.advance(1000.0, desk.manager)
        gate.open()
        assert before.wait(DEADLINE)
        self.wait_out(desk, slow)
        assert 2 == slow.attempts

    def test_a_retry_that_waits_long_for_a_slot_is_still_followed_by_others(self, desk: Desk) -> None:
        desk.limits.configure("a", 1)
        retried = desk.manager.transfer("key", self.failing(2, NetworkError("reset")), needs=NEEDS)
        until(lambda: desk.limits.retries)
        gate = Gate()
        busy = desk.manager.transfer("busy", gate, needs=NEEDS)
        gate.wait_entered()
        desk.clock.advance(1000.0, desk.manager)
        gate.open()
        assert busy.wait(DEADLINE)
        until(lambda: desk.limits.retries == 2)
        desk.clock.advance(1.0, desk.manager)
        assert retried.wait(DEADLINE)
        assert ("at last", 3) == (retried.result(), retried.attempts)

    def test_a_transfer_that_breaks_after_hours_of_progress_is_tried_again(self, desk: Desk) -> None:
        slow = desk.manager.transfer("key", self.slow(desk, 7200.0, moves=1), needs=NEEDS)
        self.wait_out(desk, slow)
        assert isinstance(slow.error, NetworkError)
        assert Policy().attempts == slow.attempts, "the number of attempts is what ends it"

    def test_the_time_budget_begins_anew_after_an_attempt_that_moved_bytes(self, desk: Desk) -> None:
        durations = iter([(60.0, 0), (7200.0, 1), (60.0, 0), (60.0, 0)])

        def run(work: Work) -> None:
            seconds, moves = next(durations)
            self.slow(desk, seconds, moves)(work)

        watch = desk.manager.transfer("key", run, needs=NEEDS)
        self.wait_out(desk, watch)
        assert (NetworkError, 4) == (type(watch.error), watch.attempts)

    def test_time_in_which_the_host_is_paused_is_in_no_budget(self, desk: Desk) -> None:
        def run(work: Work) -> None:
            desk.clock.advance(60.0)
            desk.limits.note_queued(60.0)
            raise NetworkError("reset")

        watch = desk.manager.transfer("key", run, needs=NEEDS)
        self.wait_out(desk, watch)
        assert Policy().attempts == watch.attempts

    def slow(self, desk: Desk, seconds: float, moves: int = 0) -> Callable[[Work], None]:
        def run(work: Work) -> None:
            if moves:
                work.progress(moves)
            desk.clock.advance(seconds)
            raise NetworkError("timeout")

        return run

    @pytest.mark.parametrize(("policy", "retries"), [(Policy(), False), (ONCE, True)])
    def test_small_requests_are_retried_inside_only_where_the_whole_is_not(
        self, manager: Manager, policy: Policy, retries: bool
    ) -> None:
        watch = manager.transfer("key", lambda work: work.retries, needs=NEEDS, policy=policy)
        assert watch.wait(DEADLINE)
        assert retries == watch.result()

    def test_the_wait_for_a_retry_ends_by_itself(self) -> None:
        with Manager(limits=Limits(), stop=Stop(), policy=Policy(base=0.01)) as manager:
            watch = manager.transfer("key", self.failing(3, NetworkError("x")), needs=NEEDS)
            assert watch.wait(DEADLINE)
            assert ("at last", 4) == (watch.result(), watch.attempts)


class TestCancel:
    def test_the_last_who_leaves_stops_the_work(self, manager: Manager) -> None:
        gate = Gate(moves=1)
        watches = [manager.transfer("key", gate, needs=NEEDS) for _ in range(5)]
        for watch in watches:
            assert 1 == next(iter(watch.changes(DEADLINE))).moved or gate.entered.wait(DEADLINE)
        for watch in watches[:-1]:
            watch.release()
            watch.release()
        assert not watches[-1].done
        watches[-1].release()
        assert all(isinstance(error_of(watch), Cancelled) for watch in watches)

    def test_two_callers_one_leaves_the_other_gets_the_result(self, manager: Manager) -> None:
        gate = Gate()
        with manager.transfer("key", gate, needs=NEEDS):
            other = manager.transfer("key", gate, needs=NEEDS)
        gate.open()
        assert other.wait(DEADLINE)
        assert "done" == other.result()

    def test_a_queued_transfer_leaves_the_queue_without_a_slot(self, manager: Manager) -> None:
        gate, never = Gate(), Gate()
        running = [manager.transfer(object(), gate, needs=NEEDS) for _ in range(3)]
        queued = manager.transfer("queued", never, needs=NEEDS)
        queued.release()
        assert isinstance(queued.error, Cancelled)
        assert (True, 0) == (queued.done, never.calls)
        gate.open()
        assert all(watch.wait(DEADLINE) for watch in running)

    def test_a_wait_for_a_retry_ends_with_its_last_watcher(self, desk: Desk) -> None:
        watch = desk.manager.transfer("key", Raises(NetworkError("x")), needs=NEEDS)
        until(lambda: desk.limits.retries)
        watch.release()
        assert isinstance(watch.error, Cancelled)

    def test_what_is_cancelled_is_not_joined_but_waited_for(self, manager: Manager) -> None:
        ends = threading.Event()
        order: list[str] = []

        def reluctant(work: Work) -> None:
            order.append("first")
            until(lambda: work.stop.requested)
            assert ends.wait(DEADLINE)
            order.append("first ends")

        first = manager.transfer("key", reluctant, needs=NEEDS)
        until(lambda: order)
        first.release()
        again = [manager.transfer("key", lambda work: order.append("second"), needs=NEEDS) for _ in range(2)]
        assert manager.join("key") is not None
        assert ([False, False], ["first"]) == ([watch.done for watch in again], order)
        ends.set()
        assert all(watch.wait(DEADLINE) for watch in again)
        assert ["first", "first ends", "second"] == order

    def test_a_failure_while_being_stopped_is_the_stop(self, manager: Manager) -> None:
        gate = Gate()

        def run(work: Work) -> None:
            try:
                gate(work)
            except Cancelled:
                raise NetworkError("the socket was shut") from None

        watch = manager.transfer("key", run, needs=NEEDS)
        gate.wait_entered()
        watch.release()
        error = error_of(watch)
        assert isinstance(error, Cancelled)
        assert isinstance(error.__cause__, NetworkError)
        assert 1 == watch.attempts

    def test_a_watch_of_what_has_ended_can_be_released(self, manager: Manager) -> None:
        watch = manager.transfer("key", lambda work: 1, needs=NEEDS)
        assert watch.wait(DEADLINE)
        watch.release()
        watch.release()
        assert 1 == watch.result()

    def test_a_bug_that_nobody_waits_for_is_raised_at_the_end(self) -> None:
        gate = Gate()

        def run(work: Work) -> None:
            try:
                gate(work)
            except Cancelled:
                raise KeyError("bug") from None

        with pytest.raises(KeyError, match="bug"), Manager(limits=Limits(), stop=Stop()) as manager:
            watch = manager.transfer("key", run, needs=NEEDS)
            gate.wait_entered()
            watch.release()
            assert watch.wait(DEADLINE)

    def test_a_transfer_that_is_abandoned_just_as_it_starts_does_not_run(self) -> None:
        """The scheduler has started it, but all threads are busy. Its permits are given back all the same."""
        desk = Desk()
        desk.limits.configure("a", 2)
        never = Gate()
        with desk.manager as manager:
            manager._engine._workers = Workers(most=1)
            gate = Gate()
            busy = manager.transfer("busy", gate, needs=NEEDS)
            gate.wait_entered()
            watch = manager.transfer("key", never, needs=NEEDS)
            behind = manager.transfer("behind", lambda work: 1, needs=(HOST, HOST))
            watch.release()
            gate.open()
            assert busy.wait(DEADLINE)
            assert isinstance(error_of(watch), Cancelled)
            assert error_of(behind) is None
        assert 0 == never.calls


class Raises:
    """Work that fails each time."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, work: Work) -> None:
        raise self.error


class TestProgress:
    def test_a_slow_reader_skips_values_but_gets_the_last_once(self, manager: Manager) -> None:
        gate = Gate(moves=1)

        def run(work: Work) -> None:
            gate(work)
            for _ in range(100):
                work.progress(1)

        watch = manager.transfer("key", run, needs=NEEDS, total=101)
        gate.wait_entered()
        values = []
        for progress in watch.changes(DEADLINE):
            values.append(progress.moved)
            gate.open()
            watch.wait(DEADLINE)
        assert [1, 101] == values

    def test_without_news_for_a_while_the_changes_end(self, manager: Manager) -> None:
        gate = Gate(moves=1)
        watch = manager.transfer("key", gate, needs=NEEDS)
        gate.wait_entered()
        assert [Progress(1)] == list(watch.changes(0.01))

    def test_the_changes_end_with_the_watch(self, manager: Manager) -> None:
        gate = Gate(moves=1)
        watch, other = (manager.transfer("key", gate, needs=NEEDS) for _ in range(2))
        changes = watch.changes(DEADLINE)
        gate.wait_entered()
        assert Progress(1) == next(changes)
        thread = threading.Timer(0.01, watch.release)
        thread.start()
        assert [] == list(changes)
        thread.join()
        assert not other.done

    def test_the_end_can_be_heard_of_before_and_after_it(self, manager: Manager) -> None:
        gate = Gate()
        heard: list[object] = []
        watch = manager.transfer("key", gate, needs=NEEDS)
        watch.on_done(heard.append)
        assert [] == heard
        gate.open()
        until(lambda: heard)
        watch.on_done(heard.append)
        assert [watch, watch] == heard

    def test_the_first_bytes_can_be_waited_for(self, manager: Manager) -> None:
        gate = Gate(moves=1)
        watch = manager.transfer("key", gate, needs=NEEDS)
        first = watch.first_progress()
        assert first.wait(DEADLINE)
        assert (None, False, None) == (first.result(), watch.done, first.error)
        watch.release()
        gate.open()
        assert watch.wait(DEADLINE)
        assert "done" == watch.result(), "the first progress was an interest, too"

    def test_the_first_bytes_are_not_waited_for_after_the_end(self, manager: Manager) -> None:
        gate = Gate()
        watch = manager.transfer(
            "key", Raises(NotFound("x")), needs=NEEDS, after=[manager.transfer(1, gate, needs=NEEDS)]
        )
        first, heard = watch.first_progress(), list[object]()
        first.on_done(heard.append)
        gate.open()
        assert isinstance(error_of(first), NotFound)
        with pytest.raises(NotFound):
            first.result()
        until(lambda: [first] == heard)

    def test_who_waits_for_the_first_bytes_hears_of_them_before_the_end(self, manager: Manager) -> None:
        before, gate, heard = Gate(), Gate(moves=1), list[object]()
        earlier = manager.transfer("before", before, needs=NEEDS)
        watch = manager.transfer("key", gate, needs=NEEDS, after=[earlier])
        first = watch.first_progress()
        first.on_done(heard.append)
        assert (False, []) == (first.done, heard)
        before.open()
        until(lambda: [first] == heard)
        assert not watch.done
        gate.open()
        assert watch.wait(DEADLINE)
        assert [first] == heard

    def test_a_job_can_come_after_the_first_bytes_of_another(self, manager: Manager) -> None:
        gate = Gate(moves=1)
        download = manager.transfer("download", gate, needs=NEEDS)
        upload = manager.transfer("upload", lambda work: "sent", needs=NEEDS, after=[download.first_progress()])
        assert upload.wait(DEADLINE)
        assert ("sent", False) == (upload.result(), download.done)


class TestTimers:
    def test_a_timer_ends_in_time(self, desk: Desk) -> None:
        early, late, never = (desk.manager.timer(seconds) for seconds in (1.0, 2.0, 3.0))
        never.release()
        desk.clock.advance(1.5, desk.manager)
        assert (True, False) == (early.done, late.done)
        desk.clock.advance(1.5, desk.manager)
        assert (None, None) == (early.result(), late.result())
        assert isinstance(never.error, Cancelled)

    def test_timers_end_by_themselves(self) -> None:
        with Manager(limits=Limits(), stop=Stop()) as manager:
            timers = [manager.timer(0.02), manager.timer(0.01)]
            assert all(timer.wait(DEADLINE) for timer in timers)


class TestHosts:
    def test_nothing_starts_for_a_paused_host(self, desk: Desk) -> None:
        host = desk.limits.host("a")
        assert desk.manager.transfer(object(), lambda work: 1, needs=NEEDS).wait(DEADLINE)
        host.pause(30.0)
        waits = desk.manager.transfer(object(), lambda work: 1, needs=NEEDS)
        other = desk.manager.transfer(object(), lambda work: 1, needs=(host_permit("b"),))
        assert other.wait(DEADLINE)
        assert not waits.done
        desk.clock.advance(30.0, desk.manager)
        assert waits.wait(DEADLINE)

    def test_a_pause_from_before_it_was_first_used_counts(self, desk: Desk) -> None:
        desk.limits.host("a").pause(30.0)
        waits = desk.manager.transfer(object(), lambda work: 1, needs=NEEDS)
        assert not waits.wait(0.01)
        desk.clock.advance(30.0, desk.manager)
        assert waits.wait(DEADLINE)

    def test_nothing_starts_while_a_hosts_rate_is_used_up(self, desk: Desk) -> None:
        host = desk.limits.configure("a", 2, Rate(1, 10.0))
        for _ in range(2):  # the manager hears of the host only by the first of these
            host.take()
            waits = desk.manager.transfer(object(), lambda work: 1, needs=NEEDS)
            assert not waits.wait(0.01)
            desk.clock.advance(10.0, desk.manager)
            assert waits.wait(DEADLINE)

    def test_a_hosts_own_limit_counts(self, desk: Desk) -> None:
        desk.limits.configure("a", 2)
        gate = Gate()
        watches = [desk.manager.transfer(object(), gate, needs=NEEDS) for _ in range(3)]
        until(lambda: 2 == gate.inside)
        gate.open()
        assert all(watch.wait(DEADLINE) for watch in watches)
        assert 2 == gate.most


class TestDetached:
    def test_it_runs_although_nobody_waits(self, manager: Manager) -> None:
        done = threading.Event()
        manager.detached(lambda work: done.set(), needs=NEEDS)
        assert done.wait(DEADLINE)

    def test_what_it_raises_is_lost_unless_it_is_a_bug(self) -> None:
        with pytest.raises(KeyError, match="bug"), Manager(limits=Limits(), stop=Stop()) as manager:
            manager.detached(Raises(NotFound("x")), needs=NEEDS)
            manager.detached(Raises(KeyError("bug")), needs=NEEDS)
            until(lambda: manager._hub.bugs)


class TestStop:
    def test_a_stop_ends_what_runs_and_what_is_queued(self, desk: Desk) -> None:
        gate, never = Gate(), Gate()
        running = [desk.manager.transfer(object(), gate, needs=NEEDS) for _ in range(3)]
        until(lambda: 3 == gate.inside)
        queued = [desk.manager.transfer(object(), never, needs=NEEDS) for _ in range(100)]
        timer = desk.manager.timer(5.0)
        desk.stop.request("SIGTERM")
        assert [True] * 101 == [watch.done for watch in [*queued, timer]]
        errors = [error_of(watch) for watch in [*running, *queued, timer]]
        assert {"SIGTERM"} == {str(error) for error in errors}
        assert {Cancelled} == {type(error) for error in errors}
        assert 0 == never.calls

    def test_nothing_starts_after_a_stop(self, desk: Desk) -> None:
        desk.stop.request("SIGTERM")
        never = Gate()
        watches: list[Watch[object]] = [
            desk.manager.transfer("key", never, needs=NEEDS),
            desk.manager.timer(0.0),
        ]
        assert [Cancelled] * 2 == [type(watch.error) for watch in watches]
        assert 0 == never.calls
        assert desk.manager.join("key") is None

    def test_what_had_been_started_but_has_no_thread_yet_does_not_run(self) -> None:
        desk, gate, never = Desk(), Gate(), Gate()
        with desk.manager as manager:
            manager._engine._workers = Workers(most=1)
            running = manager.transfer("busy", gate, needs=NEEDS)
            gate.wait_entered()
            watch = manager.transfer("key", never, needs=NEEDS)
            desk.stop.request("SIGTERM")
            assert (Cancelled, Cancelled) == (type(error_of(running)), type(error_of(watch)))
        assert 0 == never.calls

    def test_a_retry_does_not_begin_after_a_stop(self, desk: Desk) -> None:
        def run(work: Work) -> None:
            desk.stop.request("SIGTERM")
            raise NetworkError("reset")

        watch = desk.manager.transfer("key", run, needs=NEEDS)
        assert isinstance(error_of(watch), Cancelled)
        assert 1 == watch.attempts

    def test_an_error_that_no_stop_explains_stays(self, desk: Desk) -> None:
        def run(work: Work) -> None:
            desk.stop.request("SIGTERM")
            raise LocalError("disk full", code="local_full")

        assert isinstance(error_of(desk.manager.transfer("key", run, needs=NEEDS)), LocalError)

    def test_closing_stops_and_joins(self) -> None:
        gate = Gate()
        before = threading.active_count()
        with Manager(limits=Limits(), stop=Stop()) as manager:
            watch = manager.transfer("key", gate, needs=NEEDS)
            timer = manager.timer(100.0)
            gate.wait_entered()
        assert [Cancelled, Cancelled] == [type(watch.error), type(timer.error)]
        assert before == threading.active_count()
        manager.close()

    def test_a_thread_that_hangs_is_told_of(self) -> None:
        hangs = threading.Event()
        manager = Manager(limits=Limits(), stop=Stop())
        watch = manager.transfer("key", lambda work: hangs.wait(DEADLINE), needs=NEEDS)
        with pytest.raises(LocalError, match=r"1 threads did not end within 0\.01 s"):
            manager.close(patience=0.01)
        hangs.set()
        assert watch.wait(DEADLINE)
        manager.close()

    def test_trouble_at_the_end_does_not_hide_an_error(self) -> None:
        with pytest.raises(ValueError, match="mine") as caught, Manager(limits=Limits(), stop=Stop()) as manager:
            for number in range(2):
                manager.detached(Raises(KeyError(number)), needs=NEEDS)
            until(lambda: 2 == len(manager._hub.bugs))
            raise ValueError("mine")
        assert ["closing the manager failed as well: KeyError(0)"] == caught.value.__notes__

    def test_bugs_in_callbacks_are_raised_at_the_end(self) -> None:
        def fails(watch: Watch[str]) -> None:
            raise KeyError("callback")

        gate, heard = Gate(), list[object]()
        with pytest.raises(KeyError, match="callback") as caught, Manager(limits=Limits(), stop=Stop()) as manager:
            watch = manager.transfer("key", gate, needs=NEEDS)
            watch.on_done(fails)
            watch.on_done(fails)
            watch.on_done(heard.append)
            gate.open()
            until(lambda: heard)
        assert ["and elsewhere: KeyError('callback')"] == caught.value.__notes__


def test_many_transfers_from_many_threads_all_end_once() -> None:
    counted: Counter[int] = Counter()
    lock = threading.Lock()

    def run(number: int, work: Work) -> int:
        with lock:
            counted[number] += 1
        return number

    def ask(manager: Manager, results: list[int]) -> None:
        watches = [
            manager.transfer((threading.get_ident(), number), partial(run, number), needs=NEEDS)
            for number in range(300)
        ]
        results += [watch.result() for watch in watches if watch.wait(DEADLINE)]

    with Manager(limits=Limits(), stop=Stop()) as manager:
        results: list[list[int]] = [[] for _ in range(4)]
        threads = [threading.Thread(target=ask, args=(manager, found)) for found in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [list(range(300))] * 4 == results
    assert {4} == set(counted.values())
