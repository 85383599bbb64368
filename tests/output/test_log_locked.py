"""Another process holds the log's lock: lines are buffered, lost lines end the run with exit code 4, all waits are
short.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mirror.errors import LOCAL, LocalError
from mirror.output.log import RunLog
from tests.output.test_log import blob, lines, log, logging_to
from tests.registries.process import eventually


@contextmanager
def hold_lock(directory: Path) -> Iterator[None]:
    """Hold the lock as another process would: `flock` locks belong to the open file."""
    with (directory / ".__mirror.lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def failure_of(logs: RunLog) -> LocalError | None:
    """Return the current failure. A call, so that the type checker does not assume the previous value."""
    return logs.failure


def test_a_lock_that_is_released_in_time_is_not_a_failure(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        with hold_lock(tmp_path):
            blob(size=1)
            logs.flush()
            assert failure_of(logs) is None
        blob(size=2)
        logs.finish()
        assert failure_of(logs) is None
    assert [1, 2] == [line["size"] for line in lines(tmp_path)]
    assert "" == said.getvalue()


def test_lines_that_wait_for_the_lock_when_the_run_ends_are_a_failure(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said), hold_lock(tmp_path):
        blob()
        blob()
        logs.finish(0.1)
        failure = failure_of(logs)
        assert failure is not None
        assert LOCAL == failure.exit_code
        assert "another process holds its lock" in str(failure)
        assert 1 == said.getvalue().count("lines of the log may be lost")
    assert 2 == len(lines(tmp_path)), "they were written when the log was closed"


def test_lines_that_exceed_the_buffer_are_a_failure_even_if_the_lock_is_released_later(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        with hold_lock(tmp_path):
            for _ in range(6000):
                log.warning("answer", extra={"body": "x" * 2048, "text": "long"})
            assert eventually(lambda: failure_of(logs) is not None, within=60)
        logs.finish()
        failure = failure_of(logs)
        assert failure is not None
        assert LOCAL == failure.exit_code
    written = len(lines(tmp_path))
    assert 0 < written < 6000
    assert f"{6000 - written} lines of the log file were lost" in said.getvalue()


def set_lock_timeout(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in ("log", "log_file"):
        monkeypatch.setattr(f"mirror.output.{module}.LOCK_TIMEOUT", seconds)


def test_nothing_waits_for_the_lock_after_the_log_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_lock_timeout(monkeypatch, 60.0)
    with logging_to(tmp_path) as (logs, said):
        with hold_lock(tmp_path):
            blob()
            log.warning("odd", extra={"text": "was written"})
            assert eventually(lambda: "was written" in said.getvalue(), within=60)  # now the writer waits for the lock
            began = time.monotonic()
            logs.finish(0.2)
            blob()
            logs.flush()
            assert 0.2 <= time.monotonic() - began < 60.0
        logs.flush()
    assert 3 == len(lines(tmp_path))


def test_closing_the_log_waits_for_the_lock_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_lock_timeout(monkeypatch, 6.0)
    with ExitStack() as stack:
        with logging_to(tmp_path) as (_, said):
            stack.enter_context(hold_lock(tmp_path))
            blob()
            log.warning("odd", extra={"text": "was written"})
            assert eventually(lambda: "was written" in said.getvalue(), within=60)  # now the writer waits for the lock
            began = time.monotonic()
        assert time.monotonic() - began < 12.0
    assert "2 lines of the log file were lost" in said.getvalue()


def test_the_error_for_a_lock_that_is_held_at_the_start_names_the_lock_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / ".__mirror.lock").touch()
    with hold_lock(tmp_path), pytest.raises(LocalError) as caught, logging_to(tmp_path):
        log.error("never")
    assert LOCAL == caught.value.exit_code
    assert str(tmp_path / "mirror.log") in caught.value.what
    for words in ("suspended", f"fuser -v {tmp_path / '.__mirror.lock'}", "`log.file`"):
        assert words in caught.value.hint
