from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.errors import NetworkError, RateLimited, Unreachable
from mirror.limits import PROBE_EVERY, HostLimits, Limits, Rate


class FakeClock:
    """A clock that the test sets."""

    def __init__(self, time: float = 1000.0) -> None:
        self.time = time

    def now(self) -> float:
        return self.time


def host(clock: FakeClock, rate: Rate | None = None) -> tuple[HostLimits, list[float]]:
    """Return the limits of a host, and the list of times before which nothing may start."""
    limits, holds = HostLimits("h:5000", rate=rate, clock=clock), list[float]()
    limits.on_hold = holds.append
    return limits, holds


# -- rates and pauses -------------------------------------------------------------------------------------------------


def test_a_host_without_limits_is_contacted_at_once() -> None:
    limits, holds = host(FakeClock())
    assert [0.0, 0.0] == [limits.reserve_start(), limits.reserve_start()]
    assert (True, []) == (limits.ready_at() <= 1000.0, holds)


@pytest.mark.parametrize(("rate", "between"), [(Rate(5, 1), 0.2), (Rate(60, 60), 1.0), (Rate(100, 3600), 36.0)])
def test_a_rate_spreads_requests_evenly(rate: Rate, between: float) -> None:
    clock = FakeClock()
    limits, holds = host(clock, rate)
    assert [0.0, between, 2 * between] == pytest.approx([limits.reserve_start() for _ in range(3)])
    assert 1000.0 + 3 * between == pytest.approx(limits.ready_at())
    assert [1000.0 + n * between for n in (1, 2, 3)] == pytest.approx(holds)
    clock.time += 100 * between  # unused requests do not accumulate
    assert [0.0, between] == pytest.approx([limits.reserve_start() for _ in range(2)])


def test_a_paused_host_is_contacted_after_the_pause_which_is_reported_once() -> None:
    clock = FakeClock()
    limits, holds = host(clock)
    assert [True, False, False] == [limits.pause(10), limits.pause(5), limits.pause(20)]
    assert [1010.0, 1020.0] == holds
    assert (20.0, 1020.0) == (limits.reserve_start(), limits.ready_at())
    clock.time = 1020.0
    assert 0.0 == limits.reserve_start()
    assert limits.pause(1)


def waits(limits: HostLimits) -> tuple[str, float] | None:
    wait = limits.wait()
    return (wait.reason, wait.seconds) if wait is not None else None


def test_a_paused_host_waits_for_the_reason_of_its_longest_pause() -> None:
    clock = FakeClock()
    limits, _ = host(clock)
    assert waits(limits) is None
    limits.pause(10, "rate limited")
    limits.pause(5, "status 503")
    clock.time += 4
    assert ("rate limited", 6.0) == waits(limits)
    clock.time += 6
    assert waits(limits) is None


def test_a_host_with_a_low_rate_waits_for_its_next_request() -> None:
    clock = FakeClock()
    limits, _ = host(clock, Rate(100, 3600))
    limits.reserve_start()
    assert ("limited by `rate`", 36.0) == waits(limits)
    quick, _ = host(clock, Rate(5, 1))
    quick.reserve_start()
    assert waits(quick) is None


@pytest.mark.parametrize(("error", "reason"), [(Unreachable("no"), "down"), (RateLimited("429"), "rate limited")])
def test_a_host_that_is_down_waits_for_its_next_probe(error: NetworkError | RateLimited, reason: str) -> None:
    clock = FakeClock()
    limits, _ = host(clock)
    limits.mark_down(error)
    clock.time += 20
    assert (reason, PROBE_EVERY - 20) == waits(limits)
    clock.time += PROBE_EVERY
    assert (reason, 0.0) == waits(limits)
    probe = limits.check_available("GET blob")
    limits.record_response("GET blob", 200, probe=probe)
    assert waits(limits) is None


def test_a_host_without_quota_for_some_requests_waits() -> None:
    limits, _ = host(FakeClock())
    limits.mark_quota_used_up("GET manifest", RateLimited("429"))
    assert ("rate limited", PROBE_EVERY) == waits(limits)


def test_the_hosts_that_wait_are_sorted_by_name() -> None:
    limits = Limits(FakeClock())
    for name in ("c", "a", "b"):
        limits.host(name)
    limits.host("c").pause(3, "rate limited")
    limits.host("a").pause(2, "rate limited")
    assert [("a", 2.0), ("c", 3.0)] == [(wait.host, wait.seconds) for wait in limits.waiting_hosts()]


def test_a_pause_and_a_rate_add_up() -> None:
    limits, _ = host(FakeClock(), Rate(1, 1))
    limits.pause(10)
    assert [10.0, 11.0, 12.0] == [limits.reserve_start() for _ in range(3)]


def test_a_callback_of_a_hold_may_query_the_limits() -> None:
    limits, seen = HostLimits("h", rate=Rate(1, 1), clock=FakeClock()), list[float]()
    limits.on_hold = lambda until: seen.append(limits.ready_at() - until)
    limits.reserve_start()
    limits.pause(100)
    assert [0.0, 0.0] == seen


def test_requests_are_counted_by_kind_on_every_thread() -> None:
    limits, _ = host(FakeClock())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: limits.count_request("PUT blob" if n % 4 else "HEAD manifest"), range(2000)))
    assert {"HEAD manifest": 500, "PUT blob": 1500} == limits.requests()


# -- hosts that are down ----------------------------------------------------------------------------------------------


def test_requests_to_a_host_that_is_down_fail_at_once_with_its_error() -> None:
    limits, _ = host(FakeClock())
    assert (False, False) == (limits.check_available(), limits.down)
    assert [True, False] == [limits.mark_down(Unreachable("connect: refused")) for _ in range(2)]
    assert limits.down
    with pytest.raises(Unreachable, match="h:5000 is down: connect: refused") as caught:
        limits.check_available()
    assert ("net_error", True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("h:5000 cannot be reached: refused", "h:5000 is down: cannot be reached: refused"),
        ("h:5000: its proxy p:1 cannot be reached", "h:5000 is down: its proxy p:1 cannot be reached"),
    ],
)
def test_the_error_of_a_host_that_is_down_names_the_host_once(what: str, shown: str) -> None:
    limits, _ = host(FakeClock())
    limits.mark_down(Unreachable(what))
    with pytest.raises(Unreachable) as caught:
        limits.check_available()
    assert shown == caught.value.what


def test_a_host_that_is_down_is_probed_once_a_minute_until_it_answers() -> None:
    clock = FakeClock()
    limits, _ = host(clock)
    limits.mark_down(Unreachable("refused"))
    probes = []
    for _ in range(180):
        clock.time += 1
        try:
            probes.append((clock.time, limits.check_available()))
        except Unreachable:
            limits.mark_down(Unreachable("refused again"))  # this does not postpone the probe
    assert [(1000 + n * PROBE_EVERY, True) for n in (1, 2, 3)] == probes
    limits.record_response("HEAD blob", 404, probe=True)
    assert (False, False) == (limits.check_available(), limits.down)


def test_one_of_many_threads_sends_the_probe() -> None:
    clock = FakeClock()
    limits, _ = host(clock)
    limits.mark_down(Unreachable("refused"))
    clock.time += PROBE_EVERY

    def probe(_: int) -> bool:
        try:
            return limits.check_available()
        except Unreachable:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert 1 == sum(pool.map(probe, range(100)))


def test_each_caller_gets_its_own_error() -> None:
    limits, _ = host(FakeClock())
    limits.mark_down(NetworkError("reset"))
    errors = []
    for _ in range(2):
        with pytest.raises(NetworkError) as caught:
            limits.check_available()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


# -- all hosts --------------------------------------------------------------------------------------------------------


def test_all_callers_get_the_same_limits_of_a_host() -> None:
    limits = Limits(FakeClock(), default_parallel=3)
    set_up = limits.configure("b:1", 16, Rate(1, 1))
    with ThreadPoolExecutor(8) as pool:
        assert 1 == len(set(map(id, pool.map(lambda _: limits.host("a:1"), range(100)))))
    assert limits.host("b:1") is set_up
    assert [("a:1", 3, None), ("b:1", 16, Rate(1, 1))] == [
        (each.name, each.parallel, each.rate) for each in limits.hosts()
    ]


def test_retries_and_waits_add_up_over_threads() -> None:
    limits = Limits(FakeClock())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(limits.count_retry, [0.5] * 1000))
    limits.count_retry(2.0)
    limits.count_retry()
    assert (1002, 502.0, 2.0) == (limits.retries, limits.waited, limits.longest_wait)


def test_the_longest_refused_wait_is_kept() -> None:
    limits = Limits()
    assert limits.retry_after is None
    for seconds in (200.0, 3600.0, 300.0):
        limits.record_refused_wait(seconds)
    assert 3600.0 == limits.retry_after


def test_a_rate_limit_can_mark_a_host_as_down() -> None:
    limits, _ = host(FakeClock())
    limits.mark_down(RateLimited("429", status=429, retry_after=3600.0))
    with pytest.raises(RateLimited) as caught:
        limits.check_available()
    assert (429, 3600.0) == (caught.value.status, caught.value.retry_after)
