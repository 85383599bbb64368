"""Another process holds the log's lock: lines wait, those that are lost make a run end with 4, nothing waits long."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mirror.errors import LOCAL, LocalError
from mirror.output.log import Logs
from mirror.output.log_file import PATIENCE
from tests.output.test_log import blob, lines, log, logging_to
from tests.registries.process import eventually


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """By another, which `flock` takes each opening for."""
    with (directory / ".__mirror.lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def trouble_of(logs: Logs) -> LocalError | None:
    """Of this moment: asked for by a call, so that the type checker does not believe the last answer."""
    return logs.trouble


def test_a_lock_that_is_let_go_in_time_is_no_trouble(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        with held(tmp_path):
            blob(size=1)
            logs.flush()
            assert trouble_of(logs) is None
        blob(size=2)
        logs.settle()
        assert trouble_of(logs) is None
    assert [1, 2] == [line["size"] for line in lines(tmp_path)]
    assert "" == said.getvalue()


def test_lines_that_wait_for_a_lock_when_the_run_ends_are_trouble(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said), held(tmp_path):
        blob()
        blob()
        logs.settle(0.1)
        trouble = trouble_of(logs)
        assert trouble is not None
        assert LOCAL == trouble.exit_code
        assert "another process holds its lock" in str(trouble)
        assert 1 == said.getvalue().count("lines of the log may be lost")
    assert 2 == len(lines(tmp_path)), "they got there after all, when the log was closed"


def test_lines_that_found_no_room_while_they_waited_are_trouble_although_the_lock_was_let_go(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        with held(tmp_path):
            for _ in range(6000):
                log.warning("answer", extra={"body": "x" * 2048, "text": "long"})
            assert eventually(lambda: trouble_of(logs) is not None, within=60)
        logs.settle()
        trouble = trouble_of(logs)
        assert trouble is not None
        assert LOCAL == trouble.exit_code
    written = len(lines(tmp_path))
    assert 0 < written < 6000
    assert f"{6000 - written} lines of the log file were lost" in said.getvalue()


def test_nothing_waits_for_the_lock_once_the_log_was_settled(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        with held(tmp_path):
            blob()
            log.warning("odd", extra={"text": "was written"})
            assert eventually(lambda: "was written" in said.getvalue(), within=60)  # and the writer waits for the lock
            began = time.monotonic()
            logs.settle(0.2)
            blob()
            logs.flush()
            assert 0.2 <= time.monotonic() - began < 0.2 + PATIENCE
        logs.flush()
    assert 3 == len(lines(tmp_path))


def test_a_log_that_is_closed_waits_for_its_lock_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with logging_to(tmp_path) as (_, said):
            stack.enter_context(held(tmp_path))
            blob()
            log.warning("odd", extra={"text": "was written"})
            assert eventually(lambda: "was written" in said.getvalue(), within=60)  # and the writer waits for the lock
            began = time.monotonic()
        assert time.monotonic() - began < 2 * PATIENCE
    assert "2 lines of the log file were lost" in said.getvalue()


def test_a_lock_that_is_held_at_the_start_is_told_with_who_may_hold_it_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".__mirror.lock").touch()
    with held(tmp_path), pytest.raises(LocalError) as caught, logging_to(tmp_path):
        log.error("never")
    assert LOCAL == caught.value.exit_code
    assert str(tmp_path / "mirror.log") in caught.value.what
    for words in ("stopped", f"fuser -v {tmp_path / '.__mirror.lock'}", "`log.file`"):
        assert words in caught.value.hint
