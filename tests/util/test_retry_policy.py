from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, RateLimited, Refused
from mirror.util.retry_policy import ONCE, Policy, SystemClock

LOST = NetworkError("reset")
POLICY = Policy(attempts=5, base=0.5, cap=20.0, budget=90.0, max_retry_after=120.0)


def longest(attempt: int, error: MirrorError = LOST, waited: float = 0.0, policy: Policy = POLICY) -> float | None:
    return policy.wait_before_next(attempt, error, waited, draw=lambda: 1.0)


def test_the_longest_wait_doubles_up_to_the_cap_and_the_last_attempt_is_the_last() -> None:
    assert [0.5, 1.0, 2.0, 4.0, None, None] == [longest(attempt) for attempt in range(1, 7)]
    many = Policy(attempts=20)
    assert [16.0, 20.0, 20.0] == [longest(attempt, policy=many) for attempt in (6, 7, 19)]


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_a_wait_is_drawn_between_zero_and_the_longest(draw: float) -> None:
    assert draw * 2.0 == POLICY.wait_before_next(3, LOST, 0.0, draw=lambda: draw)


def test_clients_that_failed_together_wait_for_different_times() -> None:
    assert len({POLICY.wait_before_next(3, LOST, 0.0) for _ in range(20)}) > 15


@pytest.mark.parametrize("error", [NotFound("no"), AuthError("no"), Refused("no"), NetworkError("no", retryable=False)])
def test_errors_that_are_not_retryable_are_not_retried(error: MirrorError) -> None:
    assert longest(1, error) is None


def test_no_attempt_starts_after_the_time_budget() -> None:
    assert [0.5, None, None] == [longest(1, waited=waited) for waited in (89.4, 89.5, 1000.0)]


@pytest.mark.parametrize(("asked", "wait"), [(3.0, 3.0), (120.0, 120.0), (120.1, None), (1e9, None)])
def test_a_retry_after_is_honored_or_ends_the_attempts(asked: float, wait: float | None) -> None:
    error = RateLimited("429", retry_after=asked)
    assert wait == longest(1, error)
    assert wait == longest(1, error, waited=1000.0), "only the policy's own waits count against its time budget"


@pytest.mark.parametrize("asked", [0.0, 0.3, 1.9])
def test_a_retry_after_never_shortens_the_backoff(asked: float) -> None:
    error = RateLimited("429", retry_after=asked)
    assert 2.0 == longest(3, error)
    assert max(asked, 0.5) == POLICY.wait_before_next(3, error, 0.0, draw=lambda: 0.25)


def test_a_retry_after_does_not_add_attempts() -> None:
    error = RateLimited("429", retry_after=3.0)
    assert [3.0, 3.0, 3.0, 4.0, None, None] == [longest(attempt, error) for attempt in range(1, 7)]


def test_the_policy_once_allows_no_retry() -> None:
    assert longest(1, policy=ONCE) is None
    assert longest(1, RateLimited("429", retry_after=0.0), policy=ONCE) is None


@given(
    attempts=st.integers(1, 50),
    base=st.floats(0.01, 10),
    cap=st.floats(0.01, 60),
    budget=st.floats(0, 1000),
    draw=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.floats(0, 1e9),
)
def test_every_sequence_of_waits_is_bounded(
    attempts: int, base: float, cap: float, budget: float, draw: float, asked: float | None
) -> None:
    policy = Policy(attempts=attempts, base=base, cap=cap, budget=budget)
    error = RateLimited("429", retry_after=asked)
    waited, waits = 0.0, list[float]()
    for attempt in range(1, 100):
        wait = policy.wait_before_next(attempt, error, waited, draw=lambda: draw)
        if wait is None:
            break
        backoff = draw * min(cap, base * 2.0 ** (attempt - 1))
        assert max(backoff, asked or 0.0) == pytest.approx(wait)
        waits.append(wait)
        waited += wait
    assert len(waits) < attempts
    assert all(0 <= wait <= max(cap, policy.max_retry_after if asked is not None else 0) for wait in waits)
    assert asked is not None or sum(waits) < budget or not waits


def test_the_system_clock_never_goes_back() -> None:
    clock: Any = SystemClock()
    before = time.monotonic()
    times = [clock.now() for _ in range(1000)]
    assert [before, *times] == sorted([before, *times])
