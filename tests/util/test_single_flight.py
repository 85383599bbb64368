"""Callers share one call; a gate lets one thread pass at a time; every wait ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mirror.errors import AuthError, Cancelled, NetworkError
from mirror.util.cancellation import Stop, Work
from mirror.util.single_flight import HAND_OVER, Gate, LazyValue, SingleFlight, copy_error
from tests.registry.auth.doubles import FakeClock, WatchedStop


class Call:
    """A call that ends when the test says so."""

    def __init__(self, result: str | Exception) -> None:
        self.result = result
        self.started = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self.end.wait(60)
        return self.returned(self.result)

    @staticmethod
    def returned(result: str | Exception) -> str:
        if isinstance(result, Exception):
            raise result
        return result


def start_call(pool: ThreadPoolExecutor, calls: SingleFlight[str, str], call: Call) -> Future[str]:
    future = pool.submit(calls.share, "key", call, Stop())
    assert call.started.wait(60)
    return future


def test_callers_during_a_call_get_its_result() -> None:
    calls: SingleFlight[str, str] = SingleFlight("x")
    call, stops = Call("first"), [WatchedStop() for _ in range(5)]
    with ThreadPoolExecutor(6) as pool:
        leader = start_call(pool, calls, call)
        others = [pool.submit(calls.share, "key", lambda: "other", stop) for stop in stops]
        assert all(stop.waits.wait(60) for stop in stops)
        call.end.set()
        assert ["first"] * 6 == [future.result(10) for future in (leader, *others)]
    assert "second" == calls.share("key", lambda: "second", Stop())


def test_all_waiting_callers_get_a_copy_of_the_error() -> None:
    calls: SingleFlight[str, str] = SingleFlight("x")
    call, stop = Call(AuthError("no", hint="h", status=401)), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = start_call(pool, calls, call)
        other = pool.submit(calls.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        call.end.set()
        errors = [future.exception(10) for future in (leader, other)]
    assert ["no (h)", "no (h)"] == [str(error) for error in errors]
    assert errors[0] is not errors[1]
    assert "second" == calls.share("key", lambda: "second", Stop())


@pytest.mark.parametrize("failure", [Cancelled("only this one"), ValueError("a bug")])
def test_if_the_calling_thread_is_cancelled_another_caller_makes_the_call(failure: Exception) -> None:
    calls: SingleFlight[str, str] = SingleFlight("x")
    call, stop = Call(failure), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = start_call(pool, calls, call)
        other = pool.submit(calls.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        call.end.set()
        assert "other" == other.result(10)
        assert failure is leader.exception(10)


def test_a_waiting_caller_can_be_cancelled() -> None:
    calls: SingleFlight[str, str] = SingleFlight("x")
    call, stop = Call("late"), WatchedStop()
    with ThreadPoolExecutor(2) as pool:
        leader = start_call(pool, calls, call)
        other = pool.submit(calls.share, "key", lambda: "other", stop)
        assert stop.waits.wait(60)
        stop.request("a signal")
        with pytest.raises(Cancelled, match="a signal"):
            other.result(10)
        call.end.set()
        assert "late" == leader.result(10)


def test_the_wait_for_a_shared_call_is_limited() -> None:
    calls: SingleFlight[str, str] = SingleFlight("a token", timeout=0.05)
    call = Call("late")
    with ThreadPoolExecutor(1) as pool:
        leader = start_call(pool, calls, call)
        with pytest.raises(NetworkError, match="a token: another thread's call did not finish") as caught:
            calls.share("key", lambda: "other", Stop())
        assert ("timeout", True) == (caught.value.code, caught.value.retryable)
        call.end.set()
        leader.result(10)


def test_a_value_is_created_once_for_all_callers() -> None:
    call, stop = Call("made"), WatchedStop()
    once = LazyValue(lambda work: call())
    assert once.value_if_created() is None
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(once.get, Work(Stop()))
        assert call.started.wait(60)
        other = pool.submit(once.get, Work(stop))
        assert stop.waits.wait(60)
        call.end.set()
        assert ["made", "made"] == [leader.result(10), other.result(10)]
    call.result = "made again"
    assert ("made", "made") == (once.get(Work(Stop())), once.value_if_created())


def test_a_failed_creation_is_not_repeated_unless_it_was_cancelled() -> None:
    results: list[Exception | str] = [Cancelled("a signal"), AuthError("no"), "made"]
    once = LazyValue(lambda work: Call.returned(results.pop(0)))
    with pytest.raises(Cancelled):
        once.get(Work(Stop()))
    for _ in range(2):
        with pytest.raises(AuthError, match="no"):
            once.get(Work(Stop()))
    assert ["made"] == results


def test_calls_for_different_keys_do_not_wait_for_each_other() -> None:
    calls: SingleFlight[str, str] = SingleFlight("x")
    call = Call("a")
    with ThreadPoolExecutor(1) as pool:
        leader = start_call(pool, calls, call)
        assert "b" == calls.share("other", lambda: "b", Stop())
        call.end.set()
        assert "a" == leader.result(10)


def test_a_copy_of_an_error_differs_only_in_its_traceback() -> None:
    first = AuthError("what", hint="hint", code="auth_denied", status=403, retryable=True, retry_after=2)
    second = copy_error(first)
    assert vars(first) == vars(second)
    assert (AuthError, "what (hint)", first) == (type(second), str(second), second.__cause__)


# --- the gate


def enter_gate(gate: Gate, stop: Stop) -> bool:
    """Enter the gate, with new attempts until the thread may pass."""
    while not gate.enter(stop):
        pass
    return True


def start_waiters(pool: ThreadPoolExecutor, gate: Gate, count: int) -> tuple[list[Future[bool]], list[WatchedStop]]:
    stops = [WatchedStop() for _ in range(count)]
    futures = [pool.submit(enter_gate, gate, stop) for stop in stops]
    assert all(stop.waits.wait(60) for stop in stops)
    return futures, stops


def test_a_gate_lets_its_holder_pass_repeatedly_and_all_threads_once_it_is_open() -> None:
    gate = Gate(FakeClock())
    assert gate.enter(Stop())
    assert gate.enter(Stop())
    with ThreadPoolExecutor(4) as pool:
        futures, _ = start_waiters(pool, gate, 4)
        assert not any(future.done() for future in futures)
        gate.open()
        assert [True] * 4 == [future.result(10) for future in futures]
    assert gate.enter(Stop())


def test_leaving_a_gate_lets_exactly_one_thread_pass() -> None:
    gate = Gate(FakeClock())
    gate.enter(Stop())
    with ThreadPoolExecutor(2) as pool:
        futures, stops = start_waiters(pool, gate, 2)
        gate.leave()
        gate.leave()
        while not any(future.done() for future in futures):
            threading.Event().wait(0.01)
        assert 1 == sum(future.done() for future in futures)
        for stop in stops:
            stop.request("enough")
    assert 1 == sum(future.exception() is not None for future in futures)


def test_only_the_holder_can_leave_a_gate() -> None:
    gate = Gate(FakeClock())
    gate.enter(Stop())
    with ThreadPoolExecutor(2) as pool:
        pool.submit(gate.leave).result(10)
        futures, stops = start_waiters(pool, gate, 1)
        assert not futures[0].done()
        stops[0].request("enough")
        with pytest.raises(Cancelled):
            futures[0].result(10)


def test_the_next_thread_passes_a_gate_whose_holder_does_not_respond() -> None:
    clock = FakeClock()
    gate = Gate(clock)
    gate.enter(Stop())
    clock.time += HAND_OVER - 0.05
    with ThreadPoolExecutor(1) as pool:
        futures, _ = start_waiters(pool, gate, 1)
        clock.time += 0.05
        assert futures[0].result(10)
    stop = Stop()
    stop.request("enough")
    with pytest.raises(Cancelled):  # the other thread holds it now
        gate.enter(stop)
