"""The history file of a state directory: summaries of the last runs, and since when images have been failing.

The file contains only hints. If it is missing, damaged or not a history, a new history is started.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from mirror.errors import OK
from mirror.output.report.document import ReportDocument
from mirror.util.files import atomic_write
from mirror.util.structs import AwareTime, Count, Struct, check_years, decode_json, encode_json, field

# Not *.json, so that `--report` cannot replace it (`files.check_output_path`).
HISTORY_NAME = "history"
MAX_RUNS = 100
MAX_BYTES = 16 << 20


class PastRun(Struct, frozen=True):
    """The summary of one earlier run. requests: the total number of requests.

    deadline_reached: whether `--deadline` ended the run."""

    run: str
    started: AwareTime
    ended: AwareTime
    exit: Count
    images: dict[str, Count]
    bytes: dict[str, Count]
    requests: Count
    deadline_reached: bool = False

    def __post_init__(self) -> None:
        check_years(started=self.started, ended=self.ended)


class SentMessage(Struct, frozen=True):
    """The state of the messages to one webhook after the last run.

    failure: identifies the last known failure (`failure_digest`); empty if the last run succeeded.
    at: the end of the run that produced this state."""

    failure: str
    at: AwareTime

    def __post_init__(self) -> None:
        check_years(at=self.at)


class History(Struct, frozen=True):
    """The history of a state directory.

    runs: the last runs, the oldest first.
    last_success: the end of the last run with exit code 0 after which no image was failing.
    failing: since when each failing image has been failing (`FailureAges`).
    sent: the state of the messages to each webhook, by a hash of its URL."""

    schema: Literal[1] = 1
    runs: list[PastRun] = field(default_factory=list)
    last_success: AwareTime | None = None
    failing: dict[str, AwareTime] = field(default_factory=dict)
    sent: dict[str, SentMessage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_years(last_success=self.last_success, failing=min(self.failing.values(), default=None))
        check_years(failing=max(self.failing.values(), default=None))

    def with_run(self, report: ReportDocument, failing: Mapping[str, datetime]) -> History:
        """Return this history with one more run. failing: since when each failing image has been failing."""
        totals = report.totals
        requests = sum(sum(kinds.values()) for kinds in totals.requests.values())
        past = PastRun(
            report.run,
            report.started,
            report.ended,
            report.exit,
            totals.images,
            totals.bytes,
            requests,
            report.deadline_reached,
        )
        last_success = report.ended if report.exit == OK and not failing else self.last_success
        return History(1, [*self.runs, past][-MAX_RUNS:], last_success, dict(failing), self.sent)

    @property
    def oldest_failure(self) -> datetime | None:
        """The start of the run in which the longest-failing image first failed; None if no image is failing."""
        return min(self.failing.values(), default=None)


def read_history(directory: Path) -> History:
    """Return the history in a state directory. If it cannot be read, return an empty one."""
    path = directory / HISTORY_NAME
    try:
        return decode_json(path.read_bytes(), History) if _is_readable_file(path) else History()
    except (OSError, ValueError):
        return History()


def _is_readable_file(path: Path) -> bool:
    """Return whether a path is a regular file of at most MAX_BYTES bytes. Raises OSError."""
    status = path.stat()
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES


def write_history(directory: Path, history: History) -> None:
    """Write the history to a state directory. Raises LocalError."""
    with atomic_write(directory / HISTORY_NAME) as out:
        out.write(encode_json(history))
