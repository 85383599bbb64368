"""Writes the events of `--json-events`, which report what happens in a run, as JSON lines on standard output.

docs/progress.md, "Events for programs", describes the events. Events and fields may be added, but not changed.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from mirror import __version__
from mirror.output.line_writer import LineWriter
from mirror.output.log_format import json_line, plain_value, timestamp
from mirror.output.progress import Phase, Snapshot, bytes_per_second, seconds_left
from mirror.output.redaction import Redactor
from mirror.output.report.records import ImageEntry, entry_fields

PROGRESS_EVERY = 1.0  # seconds between two `progress` events
_SPEED_OVER = 5.0  # seconds over which the speed is averaged

_log = logging.getLogger("mirror")

Fields = Mapping[str, object]


class EventStream:
    """Writes the events of a run as JSON lines. Thread-safe. No method waits for the reader of the lines.

    Implements ProgressWatcher."""

    every = 0.25  # seconds; every pause of a host is longer, so that none is missed

    def __init__(
        self,
        lines: LineWriter,
        *,
        run: str,
        redact: Redactor,
        now: Callable[[], float] = time.time,
        complete: Callable[[str], str] = str,
    ) -> None:
        """Create a stream that writes to `lines`. run: the id of the run. now: returns the seconds since the epoch.

        complete: completes the commands in messages and hints."""
        self._lines = lines
        self._run = run
        self._redact = redact
        self._now = now
        self._complete = complete
        # Used by `receive` only, on one thread.
        self._waiting: dict[str, tuple[str, float]] = {}  # the reason and the end of each wait, by host
        self._history: deque[Snapshot] = deque(maxlen=int(_SPEED_OVER / self.every))
        self._next_progress = 0.0

    def start_run(self, config: str) -> None:
        """Write the event `run_started`. config: the path of the configuration."""
        self._emit("run_started", {"schema": 1, "version": __version__, "config": config})

    def start_phase(self, phase: Phase) -> None:
        """Write the event `phase`, which reports that the run begins a new phase."""
        self._emit("phase", {"phase": phase})

    def add_image(self, entry: ImageEntry) -> None:
        """Write the event `image`, which contains the report's entry for one image on one target."""
        self._emit("image", entry_fields(entry, complete=self._complete))

    def add_blob(self, fields: Fields, *, is_root: bool) -> None:
        """Write the event `blob`, or `manifest` for the manifest that a tag refers to. fields: as in the log."""
        self._emit("manifest" if is_root else "blob", fields)

    def end_run(self, exit_code: int, *, seconds: float, totals: Fields, report: str) -> None:
        """Write the event `run_ended`. totals: the object `totals` of the report. report: the path of the report."""
        fields = {"exit": exit_code, "seconds": round(seconds, 3), "totals": totals, "report": report}
        self._emit("run_ended", fields)

    def receive(self, snapshot: Snapshot, *, last: bool) -> None:
        """Write `host_waiting` and `host_resumed` for hosts whose wait began or ended, and `progress` if it is due.

        last: whether the run has ended. In this case, `progress` is always written."""
        self._compare_hosts(snapshot)
        self._history.append(snapshot)
        if last or snapshot.seconds >= self._next_progress:
            self._next_progress = snapshot.seconds + PROGRESS_EVERY
            self._emit("progress", _progress_fields(self._history[0], snapshot))

    def _compare_hosts(self, snapshot: Snapshot) -> None:
        """Write `host_waiting` and `host_resumed` for the hosts whose wait has changed since the last snapshot."""
        before, self._waiting = self._waiting, {}
        for one in snapshot.hosts:
            until = snapshot.seconds + one.seconds
            reason, known_until = before.pop(one.host, ("", 0.0))
            if reason != one.reason or until > known_until + 1:
                fields = {"host": one.host, "reason": one.reason, "seconds": round(one.seconds, 1)}
                self._emit("host_waiting", fields)
            self._waiting[one.host] = one.reason, until
        for host in before:
            self._emit("host_resumed", {"host": host})

    def _emit(self, event: str, fields: Fields) -> None:
        """Put one event on the queue of the writer."""
        self._lines.put(partial(self.encode, event, fields, self._now()))

    def encode(self, event: str, fields: Fields, moment: float) -> str:
        """Return the JSON line for an event. moment: the time of the event, in seconds since the epoch."""
        common: dict[str, object] = {"ts": timestamp(moment), "event": event, "run": self._run}
        return json_line(common | {key: plain_value(value) for key, value in fields.items()}, self._redact)


def _progress_fields(before: Snapshot, now: Snapshot) -> dict[str, object]:
    """Return the fields of the event `progress`. The speed is the average since the snapshot `before`."""
    left = seconds_left(before, now)
    return {
        "phase": now.phase,
        "images": {"selected": now.images, "done": now.done, "failed": now.failed},
        "bytes": {
            "moved": now.moved,
            "complete": now.complete,
            "expected": now.expected or None,
            "is_estimate": now.is_estimate,
        },
        "bytes_per_second": round(bytes_per_second(before, now)),
        "seconds": round(now.seconds, 3),
        "seconds_left": None if left is None else round(left, 1),
        "blobs": [
            {
                "action": one.action,
                "repository": one.place,
                "digest": one.digest,
                "size": one.size,
                "position": one.position,
            }
            for one in now.blobs
        ],
        "more_blobs": now.more_blobs,
    }


@contextmanager
def open_events(*, run: str, redact: Redactor, complete: Callable[[str], str]) -> Iterator[EventStream]:
    """Return a context manager that yields an EventStream. It writes to standard output until the `with` block exits.

    If the reader of a pipe exits, the events are dropped. After another error, a warning is logged as well. The run
    continues in both cases. run: the id of the run. complete: completes the commands in messages and hints."""

    def warn(error: OSError) -> None:
        """Log a warning that events are missing, unless the error means that the reader has exited."""
        if error.errno != errno.EPIPE:
            text = f"cannot write the events to standard output: {error.strerror}; the run continues without them"
            _log.warning("events_failed", extra={"text": text})

    def describe_dropped(count: int) -> str:
        """Return the line of an event that reports how many events were dropped."""
        return events.encode("events_dropped", {"count": count}, time.time())

    # Standard output is not closed here: `mirror/cli.py` has opened its descriptor if it was closed.
    descriptor = sys.stdout.fileno() if sys.stdout is not None else 1
    with LineWriter(descriptor, name="events", on_error=warn, describe_dropped=describe_dropped) as lines:
        events = EventStream(lines, run=run, redact=redact, complete=complete)
        yield events
