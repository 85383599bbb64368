"""A deadline is a duration, or the next occurrence of a local time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from mirror.util.deadline import Deadline, next_occurrence


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "clock", "expected"),
    [
        ("2026-12-06T20:00", (5, 30), "2026-12-07T04:30"),  # tomorrow
        ("2026-12-06T03:00", (5, 30), "2026-12-06T04:30"),  # later today
        ("2026-12-06T04:30", (5, 30), "2026-12-07T04:30"),  # now is not the next occurrence
        ("2026-03-28T22:00", (5, 30), "2026-03-29T03:30"),  # the night in which summer begins has 23 hours
        ("2026-03-29T00:30", (2, 30), "2026-03-29T01:30"),  # 2:30 does not exist in this night
        ("2026-10-25T00:00", (2, 30), "2026-10-25T00:30"),  # 2:30 occurs twice
        ("2026-10-25T00:45", (2, 30), "2026-10-25T01:30"),
    ],
)
def test_a_time_of_day_is_its_next_occurrence(now: str, clock: tuple[int, int], expected: str) -> None:
    minute = clock[0] * 60 + clock[1]
    assert utc(expected) == next_occurrence(minute, utc(now))
    assert utc(expected) - utc(now) == Deadline(minute=minute).seconds_from(utc(now))


def test_a_duration_counts_from_the_start_of_the_run() -> None:
    assert 7200.0 == Deadline(duration=7200.0).seconds_from(utc("2026-12-06T20:00"))
