"""Tasks: generators that wait without a thread, and let go of what they waited for."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from mirror.errors import Cancelled, NetworkError, NotFound
from mirror.limits import Limits
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import DOWNLOADS, host_permit
from mirror.transfer.steps import Steps, settled
from mirror.transfer.watch import Watch
from mirror.util.cancellation import Stop, Work
from tests.transfer.harness import DEADLINE, FakeClock, Gate, until

NEEDS = (host_permit("a"), DOWNLOADS)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def manager(clock: FakeClock, stop: Stop) -> Iterator[Manager]:
    with Manager(limits=Limits(clock), stop=stop, downloads=3) as manager:
        yield manager


def outcome(watch: Watch[Any]) -> Any:
    assert watch.wait(DEADLINE)
    return watch.result()


def answers(manager: Manager, value: object) -> Watch[Any]:
    return manager.transfer(object(), lambda work: value, needs=NEEDS)


def fails(manager: Manager, error: BaseException) -> Watch[Any]:
    def run(work: Work) -> None:
        raise error

    return manager.transfer(object(), run, needs=NEEDS)


def ended(watch: Watch[Any]) -> Watch[Any]:
    assert watch.wait(DEADLINE)
    return watch


class TestWaiting:
    def test_the_result_of_what_was_waited_for_is_sent_in(self, manager: Manager) -> None:
        def task() -> Steps[Any]:
            one = yield answers(manager, 1)
            two = yield ended(answers(manager, 2))
            return one + two

        assert 3 == outcome(manager.spawn(task(), name="sum"))

    def test_its_error_is_thrown_in(self, manager: Manager) -> None:
        def task() -> Steps[str]:
            try:
                yield fails(manager, NotFound("x"))
            except NotFound as error:
                return f"caught {error}"
            return "nothing"

        assert "caught x" == outcome(manager.spawn(task(), name="catches"))

    def test_what_a_task_raises_is_its_error(self, manager: Manager) -> None:
        def task() -> Steps[None]:
            yield manager.timer(0.0)
            raise KeyError("oops")

        watch = manager.spawn(task(), name="fails")
        manager.poke()
        with pytest.raises(KeyError, match="oops"):
            outcome(watch)

    def test_a_task_need_not_wait(self, manager: Manager) -> None:
        def task() -> Steps[int]:
            return 1
            yield manager.timer(0.0)

        watch = manager.spawn(task(), name="at once")
        assert (True, 1) == (watch.done, watch.result())

    def test_several_results_come_in_the_order_asked_for(self, manager: Manager) -> None:
        def task() -> Steps[Any]:
            first = answers(manager, 1)
            return (yield [first, ended(answers(manager, 2)), answers(manager, 3), first])

        assert [1, 2, 3, 1] == outcome(manager.spawn(task(), name="several"))

    def test_nothing_to_wait_for_is_had_at_once(self, manager: Manager) -> None:
        def task() -> Steps[tuple[Any, Any]]:
            return (yield []), (yield settled([]))

        assert ([], []) == outcome(manager.spawn(task(), name="nothing"))

    def test_the_first_failure_of_several_ends_the_wait(self, manager: Manager) -> None:
        gate = Gate()

        def task() -> Steps[None]:
            yield [manager.transfer("hangs", gate, needs=NEEDS), fails(manager, NotFound("x")), manager.timer(9.0)]

        assert isinstance(ended(manager.spawn(task(), name="fails")).error, NotFound)
        until(lambda: not gate.inside)
        assert manager.join("hangs") is None

    def test_of_failures_that_have_happened_the_earliest_counts(self, manager: Manager) -> None:
        earlier = ended(fails(manager, NotFound("earlier")))
        later = ended(fails(manager, NotFound("later")))

        def task() -> Steps[None]:
            yield [manager.timer(9.0), later, earlier]

        with pytest.raises(NotFound, match="earlier"):
            outcome(manager.spawn(task(), name="fails"))

    def test_all_can_be_waited_for_however_they_end(self, manager: Manager) -> None:
        def task() -> Steps[list[Any]]:
            watches = yield settled([fails(manager, NotFound("x")), answers(manager, 1), ended(answers(manager, 2))])
            return [watch.error or watch.result() for watch in watches]

        error, *values = outcome(manager.spawn(task(), name="settled"))
        assert (NotFound, [1, 2]) == (type(error), values)

    @pytest.mark.parametrize("wrong", [7, None, "text", ["text"]])
    def test_what_cannot_be_waited_for_is_a_bug_of_the_task(self, manager: Manager, wrong: Any) -> None:
        def task() -> Steps[None]:
            yield wrong

        with pytest.raises(TypeError, match="a task yields a watch"):
            outcome(manager.spawn(task(), name="wrong"))

    def test_tasks_compose(self, manager: Manager) -> None:
        def inner(value: int) -> Steps[Any]:
            return (yield answers(manager, value)) * 2

        def outer() -> Steps[int]:
            one = yield from inner(1)
            two = yield manager.spawn(inner(2), name="inner")
            return int(one + two)

        assert 6 == outcome(manager.spawn(outer(), name="outer"))

    def test_an_upload_begins_when_the_first_bytes_are_in_hand(self, manager: Manager) -> None:
        gate = Gate(moves=1)

        def task() -> Steps[list[Any]]:
            download = manager.transfer("download", gate, needs=NEEDS)
            yield download.first_progress()
            upload = manager.transfer("upload", lambda work: download.done, needs=NEEDS)
            sent_early = not (yield upload)
            gate.open()
            return [sent_early, (yield download)]

        assert [True, "done"] == outcome(manager.spawn(task(), name="streams"))

    def test_who_waits_has_neither_slot_nor_thread(self, manager: Manager) -> None:
        """Jobs that have moved their data and wait for a signal keep nobody from the three slots."""
        signal, moved = Gate(), []

        def task(number: int, all_done: Watch[str]) -> Steps[None]:
            moved.append((yield answers(manager, number)))
            yield all_done

        gate = manager.transfer("signal", signal, needs=(host_permit("elsewhere"),))
        tasks = [manager.spawn(task(number, gate), name=str(number)) for number in range(50)]
        until(lambda: 50 == len(moved))
        assert [False] * 50 == [task.done for task in tasks]
        assert 10 > threading.active_count()
        signal.open()
        assert all(task.wait(DEADLINE) for task in tasks)


class TestDepth:
    def test_ten_thousand_waits_for_what_is_done_fit(self, manager: Manager) -> None:
        done = ended(answers(manager, 1))

        def task() -> Steps[int]:
            total = 0
            for _ in range(10_000):
                total += yield done
            return total

        assert 10_000 == outcome(manager.spawn(task(), name="long"))

    def test_a_chain_of_ten_thousand_tasks_fits(self, manager: Manager) -> None:
        gate = Gate()

        def task(before: Watch[Any]) -> Steps[int]:
            return (yield before) and 1

        watch: Watch[Any] = manager.transfer("first", gate, needs=NEEDS)
        for number in range(10_000):
            watch = manager.spawn(task(watch), name=str(number))
        gate.open()
        assert 1 == outcome(watch)

    def test_tasks_that_spawn_tasks_fit(self, manager: Manager) -> None:
        def task(depth: int) -> Steps[int]:
            return 1 + (yield manager.spawn(task(depth - 1), name=str(depth))) if depth else 0

        assert 5_000 == outcome(manager.spawn(task(5_000), name="deep"))


class TestRelease:
    def test_what_a_task_waited_for_is_released_when_it_fails(self, manager: Manager) -> None:
        gate = Gate()

        def task() -> Steps[None]:
            download = manager.transfer("download", gate, needs=NEEDS)
            try:
                yield [download, fails(manager, NotFound("x"))]
            except NotFound:
                assert not download.done
                raise

        assert isinstance(ended(manager.spawn(task(), name="fails")).error, NotFound)
        until(lambda: not gate.inside)

    def test_what_others_need_goes_on(self, manager: Manager) -> None:
        gate = Gate()

        def task() -> Steps[None]:
            yield [manager.transfer("shared", gate, needs=NEEDS), fails(manager, NotFound("x"))]

        other = manager.transfer("shared", gate, needs=NEEDS)
        ended(manager.spawn(task(), name="fails"))
        gate.open()
        assert "done" == outcome(other)
        assert 1 == gate.calls

    def test_the_slot_of_what_a_task_waits_for_is_given_back_with_it(self, manager: Manager) -> None:
        gate = Gate()

        def task() -> Steps[None]:
            yield manager.transfer(object(), gate, needs=NEEDS)

        slow = [manager.spawn(task(), name=str(number)) for number in range(3)]
        fourth = answers(manager, 4)
        until(lambda: 3 == gate.inside)
        assert not fourth.done
        slow[0].release()
        assert 4 == outcome(fourth)
        assert [False, False] == [watch.done for watch in slow[1:]]

    def test_who_waits_for_first_bytes_only_cares_for_the_whole(self, manager: Manager) -> None:
        gate = Gate()

        def task() -> Steps[None]:
            yield manager.transfer("download", gate, needs=NEEDS).first_progress()

        watch = manager.spawn(task(), name="waits")
        gate.wait_entered()
        watch.release()
        until(lambda: not gate.inside)
        assert isinstance(watch.error, Cancelled)

    def test_a_released_task_is_closed_where_it_waits(self, manager: Manager) -> None:
        closed, gate = [], Gate()

        def task() -> Steps[None]:
            try:
                yield manager.transfer("download", gate, needs=NEEDS)
            finally:
                closed.append(True)

        watch = manager.spawn(task(), name="waits")
        gate.wait_entered()
        watch.release()
        assert ([True], Cancelled) == (closed, type(watch.error))
        until(lambda: not gate.inside)

    def test_a_task_that_is_released_while_it_runs_is_closed_when_it_waits(self, manager: Manager) -> None:
        gate, inside, go_on, events = Gate(), threading.Event(), threading.Event(), []

        def task() -> Steps[None]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            inside.set()
            assert go_on.wait(DEADLINE)
            try:
                yield answers(manager, 2)
                events.append("goes on")
            finally:
                events.append("closed")

        watch = manager.spawn(task(), name="runs")
        gate.open()
        assert inside.wait(DEADLINE)
        watch.release()
        assert not watch.done
        go_on.set()
        assert watch.wait(DEADLINE)
        assert (["closed"], Cancelled) == (events, type(watch.error))

    def test_a_task_that_ends_while_it_is_released_has_its_result(self, manager: Manager) -> None:
        gate, inside, go_on = Gate(), threading.Event(), threading.Event()

        def task() -> Steps[int]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            inside.set()
            assert go_on.wait(DEADLINE)
            return 7

        watch = manager.spawn(task(), name="ends")
        gate.open()
        assert inside.wait(DEADLINE)
        watch.release()
        go_on.set()
        assert 7 == outcome(watch)

    def test_a_task_may_release_itself(self, manager: Manager) -> None:
        gate, mine = Gate(), list[Watch[None]]()

        def task() -> Steps[None]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            mine[0].release()
            yield manager.timer(100.0)

        mine.append(manager.spawn(task(), name="self"))
        gate.open()
        assert isinstance(ended(mine[0]).error, Cancelled)

    def test_a_bug_in_the_closing_of_a_task_is_not_lost(self, stop: Stop) -> None:
        def task(manager: Manager) -> Steps[None]:
            try:
                yield manager.timer(100.0)
            finally:
                raise KeyError("bug")

        with pytest.raises(KeyError, match="bug"), Manager(limits=Limits(), stop=stop) as manager:
            manager.spawn(task(manager), name="fails").release()


class TestKeys:
    def test_a_task_of_a_key_is_joined(self, manager: Manager) -> None:
        begun, gate = [], Gate()

        def task() -> Steps[Any]:
            begun.append(True)
            return (yield manager.transfer(object(), gate, needs=NEEDS))

        watches = [manager.spawn(task(), name="one", key="key") for _ in range(3)]
        joined = manager.join("key")
        assert joined is not None
        watches[0].release()
        gate.open()
        assert ["done"] * 3 == [outcome(watch) for watch in [*watches[1:], joined]]
        assert [True] == begun
        assert manager.join("key") is None

    def test_a_cancelled_one_that_has_not_ended_is_waited_for(self, manager: Manager) -> None:
        gate, inside, go_on, order = Gate(), threading.Event(), threading.Event(), []

        def first() -> Steps[None]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            inside.set()
            assert go_on.wait(DEADLINE)
            order.append("first")
            yield answers(manager, 1)

        def second() -> Steps[str]:
            order.append((yield answers(manager, "second")))
            return "second"

        watch = manager.spawn(first(), name="first", key="key")
        gate.open()
        assert inside.wait(DEADLINE)
        watch.release()
        assert manager.join("key") is None
        newcomers = [manager.spawn(second(), name="second", key="key") for _ in range(2)]
        assert [] == order
        go_on.set()
        assert ["second", "second"] == [outcome(one) for one in newcomers]
        assert ["first", "second"] == order


class TestStop:
    def test_a_stop_is_thrown_in_at_once(self, manager: Manager, stop: Stop) -> None:
        told, hangs = [], threading.Event()

        def task() -> Steps[None]:
            try:
                yield manager.transfer("hangs", lambda work: hangs.wait(DEADLINE), needs=NEEDS)
            except Cancelled as error:
                told.append(str(error))
                raise

        watch = manager.spawn(task(), name="waits")
        stop.request("SIGTERM")
        assert (["SIGTERM"], Cancelled) == (told, type(watch.error))
        hangs.set()

    def test_a_task_that_runs_is_told_when_it_waits(self, manager: Manager, stop: Stop) -> None:
        gate, inside, go_on = Gate(), threading.Event(), threading.Event()

        def task() -> Steps[str]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            inside.set()
            assert go_on.wait(DEADLINE)
            try:
                yield settled([])
            except Cancelled:
                return "told"
            return "not told"

        watch = manager.spawn(task(), name="runs")
        gate.open()
        assert inside.wait(DEADLINE)
        stop.request("SIGTERM")
        go_on.set()
        assert "told" == outcome(watch)

    def test_a_task_may_still_wait_for_what_has_to_end(self, manager: Manager, stop: Stop) -> None:
        gate = Gate()

        def task() -> Steps[str]:
            transfer = manager.transfer("key", gate, needs=NEEDS)
            try:
                yield transfer
            except Cancelled:
                yield settled([transfer])
            return "ended" if transfer.done else "left"

        watch = manager.spawn(task(), name="waits")
        gate.wait_entered()
        stop.request("SIGTERM")
        assert "ended" == outcome(watch)

    def test_no_task_begins_after_a_stop(self, manager: Manager, stop: Stop) -> None:
        begun = []

        def task() -> Steps[None]:
            begun.append(True)
            yield manager.timer(0.0)

        stop.request("SIGTERM")
        watch = manager.spawn(task(), name="late")
        assert (Cancelled, []) == (type(watch.error), begun)

    def test_a_task_that_waits_for_another_managers_work_is_closed_with_its_own(self) -> None:
        closed = []

        def task(other: Manager) -> Steps[None]:
            while True:
                try:
                    yield other.timer(1000.0)
                except Cancelled:
                    continue
                finally:
                    closed.append(True)

        with Manager(limits=Limits(), stop=Stop()) as other:
            with Manager(limits=Limits(), stop=Stop()) as manager:
                watch = manager.spawn(task(other), name="elsewhere")
            assert isinstance(watch.error, Cancelled)
        assert [True, True] == closed

    def test_closing_wins_over_a_stop(self, manager: Manager, stop: Stop) -> None:
        gate, inside, go_on, events = Gate(), threading.Event(), threading.Event(), []

        def task() -> Generator[Watch[Any], Any, None]:
            yield manager.transfer(object(), gate, needs=NEEDS)
            inside.set()
            assert go_on.wait(DEADLINE)
            try:
                yield manager.timer(1.0)
            except Cancelled:
                events.append("told")
            finally:
                events.append("closed")

        watch = manager.spawn(task(), name="runs")
        gate.open()
        assert inside.wait(DEADLINE)
        watch.release()
        stop.request("SIGTERM")
        go_on.set()
        assert watch.wait(DEADLINE)
        assert ["closed"] == events


class TestImages:
    """What the layers above build of it: images that share downloads, one of which fails."""

    def test_six_layers_one_twice_and_one_failing_once(self, clock: FakeClock, stop: Stop) -> None:
        calls: list[str] = []
        running, most = [0], [0]
        lock = threading.Lock()

        def layer(name: str) -> Any:
            def run(work: Work) -> str:
                with lock:
                    calls.append(name)
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                try:
                    work.progress(1)
                    if name == "id4" and calls.count("id4") == 1:
                        raise NetworkError("reset")
                    return f"diff-{name}"
                finally:
                    with lock:
                        running[0] -= 1

            return run

        def image(manager: Manager) -> Steps[Any]:
            names = ["id1", "id2", "id3", "id2", "id4", "id5"]
            return (yield [manager.transfer(name, layer(name), needs=NEEDS) for name in names])

        limits = Limits(clock)
        with Manager(limits=limits, stop=stop, downloads=3, draw=lambda: 1.0) as manager:
            gate = Gate()
            blockers = [manager.transfer(object(), gate, needs=NEEDS) for _ in range(3)]
            until(lambda: 3 == gate.inside)
            watch = manager.spawn(image(manager), name="image")
            gate.open()
            assert all(blocker.wait(DEADLINE) for blocker in blockers)
            until(lambda: limits.retries)
            clock.advance(0.5, manager)
            assert [f"diff-{name}" for name in ("id1", "id2", "id3", "id2", "id4", "id5")] == outcome(watch)
        assert 3 >= most[0]
        assert ["id1", "id2", "id3", "id4", "id4", "id5"] == sorted(calls)

    def test_ten_images_share_their_layers_and_a_failing_one_fails_alone(self, manager: Manager) -> None:
        gate, calls = Gate(), []

        def layer(number: int) -> Watch[int]:
            def run(work: Work) -> int:
                gate(work)
                calls.append(number)
                return number

            return manager.transfer(("layer", number), run, needs=NEEDS)

        def image(number: int) -> Steps[int]:
            shared = [layer(one) for one in range(5)]
            if number == 7:
                yield [*shared, fails(manager, NotFound("x"))]
            return int(sum((yield shared)))

        images = [manager.spawn(image(number), name=str(number)) for number in range(10)]
        gate.open()
        results = [watch.error or watch.result() for watch in images if watch.wait(DEADLINE)]
        assert [10] * 9 == [result for result in results if isinstance(result, int)]
        assert isinstance(results[7], NotFound)
        assert [0, 1, 2, 3, 4] == sorted(calls)
