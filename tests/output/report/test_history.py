from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mirror.errors import Cancelled
from mirror.output.report import Failure, ImageEntry, Report, Result, RunCost
from mirror.output.report.document import ReportDocument
from mirror.output.report.failure_ages import MAX_FAILURES, FailureAges
from mirror.output.report.history import MAX_RUNS, History, read_history, write_history

FIRST = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = FIRST + timedelta(hours=1)


def entry(tag: str, result: Result, error: Failure | None = None) -> ImageEntry:
    return ImageEntry(f"quay.io/app:{tag}", f"h/app:{tag}", result, error=error)


def after(before: dict[str, datetime], *entries: ImageEntry, complete: bool = True) -> dict[str, datetime]:
    ages = FailureAges({f"quay.io/app:{tag} h/app:{tag}": since for tag, since in before.items()}, LATER)
    for one in entries:
        ages.record(one)
    return {key.rpartition(":")[2]: since for key, since in ages.for_next_run(complete=complete).items()}


@pytest.mark.parametrize(
    ("result", "complete", "since"),
    [
        ("failed", True, FIRST),
        ("conflict", True, FIRST),
        ("copied", True, None),
        ("up-to-date", False, None),
        ("skipped", True, None),
        (None, True, None),
        (None, False, FIRST),
    ],
)
def test_since_when_an_image_is_failing_that_failed_before(
    result: Result | None, complete: bool, since: datetime | None
) -> None:
    """An image without a result was not selected, or the run was for other images only."""
    entries = [entry("v1", result)] if result else []
    assert ({"v1": since} if since else {}) == after({"v1": FIRST}, *entries, complete=complete)


def test_an_image_that_was_not_attempted_after_a_stop_is_still_failing() -> None:
    """In contrast, an image that is skipped because of its platform is not failing any more."""
    stopped = Failure.from_error(Cancelled("stopped by SIGTERM"))
    assert {"v1": FIRST} == after({"v1": FIRST}, entry("v1", "skipped", stopped))
    assert {} == after({"v1": FIRST}, entry("v1", "skipped", Failure("other_platform", "x")))


def test_an_image_that_did_not_fail_before_is_failing_since_the_start_of_this_run() -> None:
    assert {"v1": LATER} == after({}, entry("v1", "failed"), entry("v2", "copied"), entry("v3", "skipped"))


@pytest.mark.parametrize("source", ["quay.io/app", "quay.io/*"])
def test_the_images_of_a_repository_that_could_not_be_listed_are_still_failing(source: str) -> None:
    unlisted = ImageEntry(source, "h/app", "failed", is_image=False)
    ages = FailureAges({"quay.io/app:v1 h/app:v1": FIRST, "quay.io/app-2:v1 h/app-2:v1": FIRST}, LATER)
    assert LATER == ages.record(unlisted)
    found = ages.for_next_run(complete=True)
    assert (FIRST, LATER) == (found["quay.io/app:v1 h/app:v1"], found[f"{source} h/app"])
    assert source.endswith("*") == ("quay.io/app-2:v1 h/app-2:v1" in found)


def test_the_number_of_failing_images_that_are_kept_is_bounded() -> None:
    assert MAX_FAILURES == len(after({}, *(entry(f"v{number}", "failed") for number in range(MAX_FAILURES + 5))))


def finished(directory: Path, exit_code: int, ended: datetime) -> ReportDocument:
    with Report(directory, run="r1", started=FIRST) as report:
        return report.finish(exit_code, ended=ended, cost=RunCost({"h": {"GET tags": 2, "HEAD manifest": 3}}))


def test_the_history_keeps_the_last_runs_and_the_last_success(tmp_path: Path) -> None:
    history = History().with_run(finished(tmp_path, 0, FIRST), {})
    for number in range(MAX_RUNS):
        history = history.with_run(finished(tmp_path, 1, FIRST + timedelta(minutes=number)), {"x": LATER, "y": FIRST})
    write_history(tmp_path, history)
    found = read_history(tmp_path)
    assert history == found
    assert FIRST == history.with_run(finished(tmp_path, 0, LATER), {"x": FIRST}).last_success
    assert (MAX_RUNS, 5, FIRST, FIRST) == (
        len(found.runs),
        found.runs[0].requests,
        found.last_success,
        found.oldest_failure,
    )
    assert 0o600 == stat.S_IMODE((tmp_path / "history").stat().st_mode)


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"{", b"[1]", b"[" * 9999, b"\xff" * 9, b'{"schema": 2}'),
        *(b'{"runs": [{"run": 3}]}', b'{"last_success": "2025-01-02T03:04:05"}'),
        *(b'{"last_success": "0001-01-01T00:00:00+01:00"}', b'{"failing": {"x": "9999-12-31T23:59:59-01:00"}}'),
        b'{"sent": {"x": {"failure": "", "at": "0001-01-01T00:00:00+01:00"}}}',
    ],
)
def test_a_damaged_history_starts_anew(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / "history").write_bytes(damaged)
    assert History() == read_history(tmp_path)
