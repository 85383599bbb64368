"""The values of options on the command line."""

from __future__ import annotations

import argparse

import pytest

from mirror.commands.parsers import _interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15m", 900), ("15 m", 900), ("15min", 900), ("15 min", 900), ("90s", 90), ("1.5 h", 5400), ("31d", 31 * 86400)],
)
def test_an_interval_is_a_duration_in_which_m_means_minutes(text: str, seconds: float) -> None:
    assert seconds == _interval(text)


@pytest.mark.parametrize(
    "text", ["", "15", "m", "1h30m", "-5m", "15 months", "100 ms", "32 d", "1e3 s", "*/15 * * * *"]
)
def test_other_texts_are_not_intervals(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        _interval(text)
