"""One call for many, one request alone: waiting that always ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mirror.errors import AuthError, Cancelled, NetworkError
from mirror.util.cancellation import Stop, Work
from mirror.util.single_flight import HAND_OVER, Flights, Gate, Once, again
from tests.registry.auth.doubles import FakeClock, WatchedStop


class Call:
    """A call that ends when told to."""

    def __init__(self, result: str | Exception) -> None:
        self.result = result
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.end.wait(60)
        return self.returned(self.result)

    @staticmethod
    def returned(result: str | Exception) -> str:
        if isinstance(result, Exception):
            raise result
        return result


def started(pool: ThreadPoolExecutor, flights: Flights[str, str], call: Call) -> Future[str]:
    future = pool.submit(flights.share, "key", call, Stop())
    assert call.begun.wait(60)
    return future


def test_who_asks_while_a_call_is_made_gets_its_result() -> None:
    flights: Flights[str, str] = Flights("x")
    call, stops = Call("first"), [WatchedStop() for _ in range(5)]
    with ThreadPoolExecutor(6) as pool:
        leader = started(pool, flights, call)
        others = [pool.submit(flights.share, "key", lambda: "other", stop) for stop in stops]
        assert all(stop.waits.wait(60) for stop in stops)
        call.end.set()
        assert ["first"] * 6 == [future.result(10) for future in (leader, *others)]
    assert "second" == flights.share("key", lambda: "second", Stop())


def test_an_error_is_for_all_who_wait_each_with_its_own_copy() -> None:
    flights: Flights[str, str] = Flights("x")
    call, stop = Call(AuthError("no", hint="h", status=401)), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = started(pool, flights, call)
        other = pool.submit(flights.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        call.end.set()
        errors = [future.exception(10) for future in (leader, other)]
    assert ["no (h)", "no (h)"] == [str(error) for error in errors]
    assert errors[0] is not errors[1]
    assert "second" == flights.share("key", lambda: "second", Stop())


@pytest.mark.parametrize("failure", [Cancelled("only this one"), ValueError("a bug")])
def test_when_the_one_who_calls_is_called_off_another_calls(failure: Exception) -> None:
    flights: Flights[str, str] = Flights("x")
    call, stop = Call(failure), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = started(pool, flights, call)
        other = pool.submit(flights.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        call.end.set()
        assert "other" == other.result(10)
        assert failure is leader.exception(10)


def test_who_waits_can_be_called_off() -> None:
    flights: Flights[str, str] = Flights("x")
    call, stop = Call("late"), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = started(pool, flights, call)
        other = pool.submit(flights.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        stop.request("a signal")
        with pytest.raises(Cancelled, match="a signal"):
            other.result(10)
        call.end.set()
        assert "late" == leader.result(10)


def test_nobody_waits_for_ever() -> None:
    flights: Flights[str, str] = Flights("a token", patience=0.05)
    call = Call("late")
    with ThreadPoolExecutor(1) as pool:
        leader = started(pool, flights, call)
        with pytest.raises(NetworkError, match="a token: no answer") as caught:
            flights.share("key", lambda: "other", Stop())
        assert ("timeout", True) == (caught.value.code, caught.value.retryable)
        call.end.set()
        leader.result(10)


def test_a_value_is_made_once_for_all_who_ask() -> None:
    call, stop = Call("made"), WatchedStop()
    once = Once(lambda work: call())
    assert once.peek() is None
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(once.get, Work(Stop()))
        assert call.begun.wait(60)
        other = pool.submit(once.get, Work(stop))
        assert stop.waits.wait(60)
        call.end.set()
        assert ["made", "made"] == [leader.result(10), other.result(10)]
    call.result = "made again"
    assert ("made", "made") == (once.get(Work(Stop())), once.peek())


def test_a_value_that_could_not_be_made_is_not_tried_again_unless_its_maker_was_called_off() -> None:
    results: list[Exception | str] = [Cancelled("a signal"), AuthError("no"), "made"]
    once = Once(lambda work: Call.returned(results.pop(0)))
    with pytest.raises(Cancelled):
        once.get(Work(Stop()))
    for _ in range(2):
        with pytest.raises(AuthError, match="no"):
            once.get(Work(Stop()))
    assert ["made"] == results


def test_calls_for_different_keys_do_not_wait_for_each_other() -> None:
    flights: Flights[str, str] = Flights("x")
    call = Call("a")
    with ThreadPoolExecutor(1) as pool:
        leader = started(pool, flights, call)
        assert "b" == flights.share("other", lambda: "b", Stop())
        call.end.set()
        assert "a" == leader.result(10)


def test_an_error_told_again_is_the_same_but_for_its_traceback() -> None:
    first = AuthError("what", hint="hint", code="auth_denied", status=403, retryable=True, retry_after=2)
    second = again(first)
    assert vars(first) == vars(second)
    assert (AuthError, "what (hint)", first) == (type(second), str(second), second.__cause__)


# --- the gate


def inside(gate: Gate, stop: Stop) -> bool:
    """Enter as users do: until it says yes."""
    while not gate.enter(stop):
        pass
    return True


def waiting(pool: ThreadPoolExecutor, gate: Gate, count: int) -> tuple[list[Future[bool]], list[WatchedStop]]:
    stops = [WatchedStop() for _ in range(count)]
    futures = [pool.submit(inside, gate, stop) for stop in stops]
    assert all(stop.waits.wait(60) for stop in stops)
    return futures, stops


def test_a_gate_lets_one_through_again_and_again_and_all_once_it_is_open() -> None:
    gate = Gate(FakeClock())
    assert gate.enter(Stop())
    assert gate.enter(Stop())
    with ThreadPoolExecutor(4) as pool:
        futures, _ = waiting(pool, gate, 4)
        assert not any(future.done() for future in futures)
        gate.open()
        assert [True] * 4 == [future.result(10) for future in futures]
    assert gate.opened


def test_who_leaves_lets_the_next_one_in_and_only_that() -> None:
    gate = Gate(FakeClock())
    gate.enter(Stop())
    with ThreadPoolExecutor(2) as pool:
        futures, stops = waiting(pool, gate, 2)
        gate.leave()
        gate.leave()
        while not any(future.done() for future in futures):
            threading.Event().wait(0.01)
        assert 1 == sum(future.done() for future in futures)
        for stop in stops:
            stop.request("enough")
    assert 1 == sum(future.exception() is not None for future in futures)


def test_only_its_holder_can_leave() -> None:
    gate = Gate(FakeClock())
    gate.enter(Stop())
    with ThreadPoolExecutor(2) as pool:
        pool.submit(gate.leave).result(10)
        futures, stops = waiting(pool, gate, 1)
        assert not futures[0].done()
        stops[0].request("enough")
        with pytest.raises(Cancelled):
            futures[0].result(10)


def test_a_holder_that_says_nothing_is_followed_by_the_next() -> None:
    clock = FakeClock()
    gate = Gate(clock)
    gate.enter(Stop())
    clock.time += HAND_OVER - 0.05
    with ThreadPoolExecutor(1) as pool:
        futures, _ = waiting(pool, gate, 1)
        clock.time += 0.05
        assert futures[0].result(10)
    stop = Stop()
    stop.request("enough")
    with pytest.raises(Cancelled):  # and that one holds it now
        gate.enter(stop)
