"""Converts the intervals and schedules of other tools to crontab lines."""

from __future__ import annotations

import re

from mirror.errors import printable

_COMMAND = "mirror sync CONFIG"
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_DAY = 24 * 60  # minutes


def crontab_line(schedule: str | None, interval: str | None) -> str:
    """Return a crontab line that starts a sync at a schedule or an interval.

    schedule: a cron schedule, which takes precedence. interval: a Go duration, such as `1h30m`, which is rounded up to
    an interval that cron can express."""
    if schedule:
        return f"{printable(schedule, 100)} {_COMMAND}"
    found = _DURATION.fullmatch(interval or "")
    if found is None or not found[0]:
        return f"*/15 * * * * {_COMMAND}"
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return crontab_line_for_seconds(hours * 3600 + minutes * 60 + seconds)


def crontab_line_for_seconds(seconds: float) -> str:
    """Return a crontab line that starts a sync at an interval, which is rounded up to an interval of cron."""
    total = max(1, round(seconds / 60))
    minutes = next((one for one in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30) if one >= total), None)
    if minutes is not None:
        return f"{'*' if minutes == 1 else f'*/{minutes}'} * * * * {_COMMAND}"
    hours = next((one for one in (1, 2, 3, 4, 6, 8, 12) if one * 60 >= total), None)
    if hours is not None:
        return f"0 {'*' if hours == 1 else f'*/{hours}'} * * * {_COMMAND}"
    days = max(1, round(total / _DAY))
    return f"0 0 {'*' if days == 1 else f'*/{min(days, 31)}'} * * {_COMMAND}"
