"""The time at which `--deadline` ends a run."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from mirror.util.structs import Struct


class Deadline(Struct, frozen=True):
    """A deadline as the user specified it: a duration in seconds, or a time of day in minutes after local midnight."""

    duration: float | None = None
    minute: int = 0

    def seconds_from(self, now: float) -> float:
        """Return the seconds from `now` to the deadline. now: the start of the run, in seconds since the epoch.

        A time of day means its next occurrence, which is tomorrow if the time has already passed today."""
        if self.duration is not None:
            return self.duration
        return next_occurrence(self.minute, now) - now


def next_occurrence(minute: int, now: float) -> float:
    """Return the next time after `now` at which the local clock shows `minute`, in minutes after midnight.

    `now` and the result are in seconds since the epoch. If the change to daylight saving time skips the time, it is
    moved by the length of the change. If the time occurs twice on a day, both occurrences count."""
    today = datetime.fromtimestamp(now).date()
    for days in range(3):
        local = datetime.combine(today + timedelta(days), time(minute // 60, minute % 60))
        first, second = local.replace(fold=0).timestamp(), local.replace(fold=1).timestamp()
        for occurrence in (first, max(first, second)):
            if occurrence > now:
                return occurrence
    raise ValueError(f"no occurrence of minute {minute} after {now}")
