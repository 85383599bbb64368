from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import LocalError
from mirror.output.http_trace import open_trace
from mirror.output.redaction import Redactor

log = logging.getLogger("mirror.http.exchange")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_one_line_with_the_id_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with open_trace(path, run="abc123", redact=Redactor()):
        log.debug("request", extra={"request_id": 7, "request_headers": {"accept": "x/y"}, "status": None})
    (line,) = lines_of(path)
    assert {"ts", "level", "event", "run", "request_id", "request_headers", "status"} == set(line)
    assert ("request", "abc123", 7, {"accept": "x/y"}, None) == (
        line["event"],
        line["run"],
        line["request_id"],
        line["request_headers"],
        line["status"],
    )


def test_known_secrets_are_hidden_wherever_they_are(tmp_path: Path) -> None:
    path, redact = tmp_path / "trace.jsonl", Redactor()
    redact.add("correct-horse")
    with open_trace(path, run="r", redact=redact):
        log.debug("request", extra={"response_headers": {"server": "correct-horse/1.0"}})
    assert "correct-horse" not in path.read_text()
    assert "***/1.0" == lines_of(path)[0]["response_headers"]["server"]


def test_records_are_made_only_while_the_trace_is_open(tmp_path: Path) -> None:
    before = (log.level, list(log.handlers))
    with open_trace(tmp_path / "trace", run="r", redact=Redactor()):
        assert log.isEnabledFor(logging.DEBUG)
    assert before == (log.level, log.handlers)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_owner_may_read_the_file(umask: int, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("an earlier trace\n")
    old.chmod(0o666)
    previous = os.umask(umask)
    try:
        for path in (old, new):
            with open_trace(path, run="r", redact=Redactor()):
                log.debug("request")
            assert 0o600 == path.stat().st_mode & 0o777
            assert 1 == len(lines_of(path))
    finally:
        os.umask(previous)


def test_a_link_to_a_file_is_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "trace"
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(LocalError, match="symbolic link"), open_trace(link, run="r", redact=Redactor()):
        pass
    assert "precious" == victim.read_text()


def test_a_file_of_another_user_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trace"
    file.write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(LocalError, match="not permitted"), open_trace(file, run="r", redact=Redactor()):
        pass
    assert "theirs" == file.read_text()


def test_a_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(LocalError, match="create the directory first"),
        open_trace(tmp_path / "none" / "trace", run="r", redact=Redactor()),
    ):
        pass


def test_a_pipe_that_a_shell_has_opened_can_be_written(tmp_path: Path) -> None:
    reader, given = os.pipe()
    with open_trace(Path(f"/dev/fd/{given}"), run="r", redact=Redactor()):
        log.debug("request")
    os.close(given)
    with os.fdopen(reader) as stream:
        assert "request" == json.loads(stream.read())["event"]


def test_a_full_disk_causes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with open_trace(Path("/dev/full"), run="r", redact=Redactor()):
        for _ in range(3):
            log.debug("request")
    warnings = [vars(record)["text"] for record in caplog.records if record.levelno == logging.WARNING]
    assert ["cannot write the trace /dev/full: No space left on device; the run continues without it"] == warnings
