"""When the cycles of `sync --every` begin, and which mirrors take part in each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mirror.commands.schedule import Schedule

MINUTE = 60.0
HOUR = 3600.0


def cycles(
    intervals: Sequence[float], durations: Sequence[float], *, random_part: float = 0.0, start: float = 1000.0
) -> list[tuple[float, list[int]]]:
    """Run cycles that take `durations` seconds. Return the start of each, in seconds after `start`, and its mirrors."""
    schedule = Schedule(intervals, start, lambda: random_part)
    now, found = start, []
    for duration in durations:
        now = max(now, schedule.next_start)
        found.append((now - start, sorted(schedule.take_due(now))))
        now += duration
    return found


@pytest.mark.parametrize(
    ("intervals", "durations", "expected"),
    [
        ([60], [1, 1, 1], [(0, [0]), (60, [0]), (120, [0])]),
        # Mirrors with related intervals share cycles.
        ([60, 120, 60], [1] * 4, [(0, [0, 1, 2]), (60, [0, 2]), (120, [0, 1, 2]), (180, [0, 2])]),
        ([60, 90], [1] * 5, [(0, [0, 1]), (60, [0]), (90, [1]), (120, [0]), (180, [0, 1])]),
        # A cycle that takes longer than the interval is followed by the next one at once, and then by the regular ones.
        ([60], [70, 1, 1], [(0, [0]), (70, [0]), (120, [0])]),
        # Cycles that were missed are not made up for.
        ([60], [500, 1, 1], [(0, [0]), (500, [0]), (540, [0])]),
        ([60, 1000], [500, 600, 1], [(0, [0, 1]), (500, [0]), (1100, [0, 1])]),
        # A cycle that ends when the next one is due.
        ([60], [60, 60, 1], [(0, [0]), (60, [0]), (120, [0])]),
    ],
)
def test_a_mirror_is_copied_at_multiples_of_its_interval(
    intervals: list[float], durations: list[float], expected: list[tuple[float, list[int]]]
) -> None:
    assert expected == cycles(intervals, durations)


@pytest.mark.parametrize(
    ("intervals", "random_part", "expected"),
    [
        ([10 * MINUTE], 0.0, [0, 10 * MINUTE, 20 * MINUTE]),
        ([10 * MINUTE], 0.5, [0, 10 * MINUTE + 30, 20 * MINUTE + 30]),
        # The delay is at most a tenth of the interval, and at most a minute. It does not add up.
        ([MINUTE], 1.0, [0, MINUTE + 6, 2 * MINUTE + 6]),
        ([5 * HOUR], 1.0, [0, 5 * HOUR + MINUTE, 10 * HOUR + MINUTE]),
    ],
)
def test_each_cycle_except_the_first_is_delayed_by_a_random_part_of_the_interval(
    intervals: list[float], random_part: float, expected: list[float]
) -> None:
    assert expected == [start for start, _ in cycles(intervals, [1] * 3, random_part=random_part)]


def test_mirrors_that_are_due_at_the_same_time_share_a_cycle_in_spite_of_the_delay() -> None:
    found = cycles([MINUTE, HOUR], [1] * 61, random_part=0.7)
    assert [[0, 1], *[[0]] * 59, [0, 1]] == [mirrors for _, mirrors in found]
