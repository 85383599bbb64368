from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from concurrent_log_handler import ConcurrentRotatingFileHandler

from mirror.errors import LOCAL, LocalError
from mirror.output.console import Console
from mirror.output.log import DEBUG, NORMAL, QUIET, VERBOSE, RunLog, log_blob, open_log
from mirror.output.redaction import Redactor

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("mirror.tests")

BLOB_KEYS = [
    *("ts", "level", "event", "run", "source", "target", "image", "digest", "size", "outcome", "from"),
    *("bytes_read", "bytes_sent", "attempt", "seconds", "code"),
]


@contextmanager
def logging_to(directory: Path, **options: Any) -> Iterator[tuple[RunLog, io.StringIO]]:
    said = io.StringIO()
    options = {"run": "r1", "redact": Redactor(), "file": directory / "mirror.log", **options}
    with open_log(console=Console(said), **options) as logs:
        yield logs, said


def lines(directory: Path) -> list[dict[str, Any]]:
    """Every record of the file and its backups, the oldest first."""
    files = sorted(
        directory.glob("mirror.log*"), key=lambda path: -int(path.suffix[1:]) if path.suffix != ".log" else 0
    )
    return [json.loads(line) for path in files for line in path.read_text("ascii").splitlines()]


def blob(**changes: Any) -> None:
    fields: dict[str, Any] = {
        "source": "quay.io/app",
        "target": "localhost:5000/app",
        "image": "quay.io/app:v1",
        "digest": "sha256:" + "a" * 64,
        "size": 10,
        "outcome": "copied",
        "bytes_read": 10,
        "bytes_sent": 10,
        "seconds": 0.12345,
    }
    log_blob(**{**fields, **changes})


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_blob_is_logged_in_one_line_with_exactly_the_documented_keys(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        blob()
        blob(outcome="mounted", from_="localhost:5000/base", bytes_sent=0)
        blob(outcome="failed", code="net_error")
    found = lines(tmp_path)
    assert [BLOB_KEYS] * 3 == [list(line) for line in found]
    assert ["info", "info", "warning"] == [line["level"] for line in found]
    assert {"event": "blob", "run": "r1", "size": 10, "outcome": "copied", "from": None, "seconds": 0.123}.items() <= (
        found[0].items()
    )
    assert "localhost:5000/base" == found[1]["from"]
    assert "net_error" == found[2]["code"]


def test_records_have_a_utc_timestamp_in_milliseconds(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with logging_to(tmp_path):
        log.warning("mount_refused", extra={"repo": "app"})
    (line,) = lines(tmp_path)
    assert line["ts"].endswith("Z")
    assert len("2025-01-01T00:00:00.000Z") == len(line["ts"])
    assert before <= datetime.fromisoformat(line["ts"]) <= datetime.now(UTC)


def test_a_record_whose_message_is_a_sentence_becomes_a_note(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        log.warning("no space on %s", "/dev/sda")
    (line,) = lines(tmp_path)
    assert {"event": "note", "text": "no space on /dev/sda"}.items() <= line.items()


def test_fields_cannot_replace_standard_fields(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        log.warning("odd", extra={"run": "forged", "level": "forged", "ts": 1, "event": "forged"})
    (line,) = lines(tmp_path)
    assert {"run": "r1", "level": "warning", "event": "odd", "field_run": "forged"}.items() <= line.items()


HOSTILE = [
    'latest\n{"level":"info","event":"sync_ok"}',
    "\x1b]0;x\x07",
    "\x9b31m",
    "a\u202eb\u2066c\u2028d",
    "\x00\x7f\x85\ud800",
    "ünï\U0001f600",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_a_server_cannot_control_a_terminal_or_forge_a_line(tmp_path: Path, text: str) -> None:
    with logging_to(tmp_path) as (_, said):
        log.error("answer", extra={"text": f"it said {text}", "tag": text, "nested": {text: [text]}})
        log.error("it said %s", text)
    assert 2 == len(lines(tmp_path))
    for shown in ((tmp_path / "mirror.log").read_text("ascii"), said.getvalue()):
        assert 2 == shown.count("\n")
        assert [] == [sign for sign in shown if sign != "\n" and not sign.isprintable()]


def test_long_fields_are_cut_at_two_kibibytes(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        log.warning("answer", extra={"body": "x" * 1_000_000, "list": ["y" * 5000] * 1000})
    (line,) = lines(tmp_path)
    assert (2048, "…") == (len(line["body"]), line["body"][-1])
    assert (100, 2048) == (len(line["list"]), len(line["list"][0]))


@pytest.mark.parametrize(("level", "kept"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_of_the_file_does_not_depend_on_the_verbosity_of_the_console(
    tmp_path: Path, level: str, kept: int
) -> None:
    with logging_to(tmp_path, level=level, verbosity=QUIET) as (_, said):
        for write in (log.debug, log.info, log.warning, log.error):
            write("happened", extra={"text": write.__name__})
    assert kept == len(lines(tmp_path))
    assert "mirror: warning: warning\nmirror: error: error\n" == said.getvalue()


def test_exceptions_are_logged_with_a_traceback_at_debug_level_only(tmp_path: Path) -> None:
    for level, told in (("info", False), ("debug", True)):
        (tmp_path / level).mkdir()
        with logging_to(tmp_path / level, level=level):
            try:
                raise ConnectionResetError("by peer")
            except ConnectionResetError:
                log.warning("retry", exc_info=True)
        (line,) = lines(tmp_path / level)
        assert "ConnectionResetError: by peer" == line["error"]
        assert told == ("test_log.py" in line.get("traceback", ""))


def test_secrets_are_in_neither_the_file_nor_the_console_at_any_level(tmp_path: Path) -> None:
    redact = Redactor()
    redact.add("hunter2-canary", "bob")
    token = "Bearer eyJhbGciOiJ.eyJzdWIi.c2ln"
    with logging_to(tmp_path, level="debug", verbosity=DEBUG, redact=redact) as (_, said):
        log.info("request", extra={"url": "https://s3/x?X-Amz-Signature=signed-canary&n=1", "headers": {"a": token}})
        log.error("sent %s", {"Authorization": "Basic basic-canary"})
        log.warning(
            "answer", extra={"body": '{"token": "body-canary"}', "text": "hunter2-canary Ym9iOmh1bnRlcjItY2FuYXJ5"}
        )
        try:
            raise OSError("password=form-canary and hunter2-canary")
        except OSError:
            log.exception("failed")
        logging.getLogger("urllib3.connectionpool").debug('"GET /v2/?sig=query-canary HTTP/1.1" 401')
    written = (tmp_path / "mirror.log").read_text() + said.getvalue()
    assert 5 == len(lines(tmp_path))
    for secret in ("canary", "eyJhbGci", "Ym9iOmh1"):
        assert secret not in written
    assert "X-Amz-Signature=***&n=1" in written


def test_records_of_http_libraries_are_logged_at_debug_level_only(tmp_path: Path) -> None:
    with logging_to(tmp_path, verbosity=VERBOSE) as (_, said):
        logging.getLogger("urllib3.connectionpool").warning("Retrying")
        logging.getLogger("requests").error("no")
    assert ("", "") == ((tmp_path / "mirror.log").read_text(), said.getvalue())


def test_the_configuration_of_logging_is_restored(tmp_path: Path) -> None:
    def now() -> list[tuple[Any, ...]]:
        loggers = (logging.getLogger(name) for name in ("mirror", "urllib3", "requests"))
        return [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]

    before = now()
    with logging_to(tmp_path):
        assert before != now()
    assert before == now()


def test_only_the_owner_can_access_the_file_and_its_lock_regardless_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with logging_to(tmp_path, max_size=4096):
            for _ in range(100):
                blob()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert {0o600} == set(modes.values())
    assert ".__mirror.lock" in modes


@pytest.mark.parametrize("name", ["mirror.log", "mirror.log.txt", "log", ".log"])
def test_the_lock_file_is_the_one_of_the_handler(tmp_path: Path, name: str) -> None:
    with logging_to(tmp_path, file=tmp_path / name):
        blob()
    theirs = ConcurrentRotatingFileHandler(tmp_path / name)
    assert {tmp_path / name, Path(theirs.lockFilename)} == set(tmp_path.iterdir())
    theirs.close()


def test_the_file_is_rotated_at_its_maximum_size_and_backups_are_limited(tmp_path: Path) -> None:
    with logging_to(tmp_path, max_size=16 * 1024, backups=3) as (logs, _):
        for n in range(400):
            blob(size=n)
            if n % 10 == 0:
                logs.flush()
    assert ["mirror.log", "mirror.log.1", "mirror.log.2", "mirror.log.3"] == sorted(
        path.name for path in tmp_path.glob("mirror.log*")
    )
    assert all(path.stat().st_size < 3 * 16 * 1024 for path in tmp_path.glob("mirror.log*"))
    sizes = [line["size"] for line in lines(tmp_path)]
    assert list(range(400))[-len(sizes) :] == sizes


def test_a_partial_line_of_a_killed_run_is_ended_with_a_newline(tmp_path: Path) -> None:
    (tmp_path / "mirror.log").write_text('{"event":"blob"}\n{"event":"bl')
    with logging_to(tmp_path):
        blob()
    text = (tmp_path / "mirror.log").read_text()
    assert ['{"event":"blob"}', '{"event":"bl'] == text.splitlines()[:2]
    assert "blob" == json.loads(text.splitlines()[2])["event"]


@pytest.mark.parametrize(
    "kind", ["missing directory", "file as directory", "link", "pipe", "directory", "lock is a link"]
)
def test_a_path_that_cannot_be_a_log_file_is_an_error_before_anything_is_logged(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "mirror.log"
    if kind == "missing directory":
        path = tmp_path / "nowhere" / "mirror.log"
    elif kind == "file as directory":
        path = victim / "mirror.log"
    elif kind == "link":
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / ".__mirror.lock").symlink_to(victim)
    with pytest.raises(LocalError) as caught, logging_to(tmp_path, file=path):
        log.error("never")
    assert LOCAL == caught.value.exit_code
    assert str(path) in str(caught.value)
    assert "precious" == victim.read_text()


def test_a_link_that_replaces_the_file_during_a_run_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    path = tmp_path / "mirror.log"
    with logging_to(tmp_path) as (logs, said):
        blob()
        logs.flush()
        path.unlink()
        path.symlink_to(victim)
        blob()
        logs.flush()
        assert isinstance(logs.failure, LocalError)
        path.unlink()
    assert "precious\n" == victim.read_text()
    assert 1 == len(lines(tmp_path))  # the second record waited until the link was removed
    assert "symbolic link" in said.getvalue()


# -- several processes ------------------------------------------------------------------------------------------------

WRITE_MANY = """
import random, sys
from pathlib import Path
from mirror.output.console import Console
from mirror.output.log import open_log, log_blob
from mirror.output.redaction import Redactor
run, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
draw = random.Random(run)
print("ready", flush=True)
sys.stdin.readline()
with open_log(run=run, console=Console(), redact=Redactor(), file=path, max_size=16 * 1024, backups=50) as logs:
    for n in range(count):
        log_blob(source="h/a", target="h/b", image="h/a:v" * draw.randrange(1, 20), digest=f"sha256:{n}", size=n,
                   outcome="copied")
        if draw.random() < 0.2:
            logs.flush()
sys.exit(logs.failure is not None)
"""


def writer(directory: Path, run: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE_MANY, run, str(directory / "mirror.log"), str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_file_across_rotations_without_splitting_or_losing_lines(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(writer(tmp_path, run, 400)) for run in ("one", "two")]
        for child in children:
            assert child.stdout
            child.stdout.readline()
        for child in children:
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        assert [0, 0] == [child.wait(60) for child in children]
    found = lines(tmp_path)
    assert len(list(tmp_path.glob("mirror.log*"))) > 10
    for run in ("one", "two"):
        assert list(range(400)) == [line["size"] for line in found if line["run"] == run]


def test_a_stopped_process_that_holds_the_lock_causes_no_loss(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (logs, said):
        blob(size=1)
        logs.flush()
        with (tmp_path / ".__mirror.lock").open("r+") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            blob(size=2)
            logs.flush()  # returns although nothing could be written
            assert 1 == len(lines(tmp_path))
        blob(size=3)
    assert [1, 2, 3] == [line["size"] for line in lines(tmp_path)]
    assert (None, "") == (logs.failure, said.getvalue())


# -- a disk that is full ----------------------------------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from mirror.output.console import Console
from mirror.output.log import open_log, log_blob
from mirror.output.redaction import Redactor
def blob(n):
    log_blob(source="h/a", target="h/b", image="h/a:v", digest="d", size=n, outcome="copied")
with open_log(run="r", console=Console(), redact=Redactor(), file=Path(sys.argv[1])) as logs:
    for n in range(10):
        blob(n)
    logs.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
    for n in range(10, 20):
        blob(n)
    logs.flush()
    print(logs.failure.code, logs.failure.exit_code)
    if sys.argv[2] == "passes":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    blob(20)
"""


@pytest.mark.parametrize(
    ("then", "kept", "lost"), [("passes", 21, ""), ("stays", 10, "11 lines of the log file were lost")]
)
def test_a_full_disk_is_reported_in_one_line_and_the_run_continues(
    tmp_path: Path, then: str, kept: int, lost: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "mirror.log"), then],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "local_full 4\n" == done.stdout
    assert list(range(kept)) == [line["size"] for line in lines(tmp_path)]
    assert 1 == done.stderr.count("cannot write the log file")
    assert lost in done.stderr
    assert (2 if lost else 1) == len(done.stderr.splitlines())


# -- the console ------------------------------------------------------------------------------------------------------


def test_the_console_shows_warnings_and_errors_as_sentences_and_no_blobs(tmp_path: Path) -> None:
    with logging_to(tmp_path) as (_, said):
        blob()
        blob(outcome="failed")
        log.info("tag_written", extra={"text": "wrote v1"})
        log.warning("mount_refused", extra={"repo": "app", "status": 405, "nothing": None})
        log.error("image_failed", extra={"text": "localhost:5000/app:v1: not found", "code": "not_found"})
        log.error("internal_error", extra={"text": "localhost:5000/app:v1: a bug"})
    assert [
        "mirror: warning: mount refused: repo=app status=405",
        "mirror: error: localhost:5000/app:v1: a bug",
    ] == said.getvalue().splitlines(), "failed images are in the summary"


def test_a_verbose_console_shows_every_blob() -> None:
    said = io.StringIO()
    with open_log(run="r", console=Console(said), redact=Redactor(), verbosity=VERBOSE):
        blob()
        log.info("tag_written", extra={"text": "wrote v1"})
    assert [f"mirror: copied: sha256:{'a' * 64} (10 bytes) to localhost:5000/app", "mirror: wrote v1"] == (
        said.getvalue().splitlines()
    )


@pytest.mark.parametrize(
    ("file", "level", "where"),
    [("", "info", ""), ("log", "info", "; the log file contains them"), ("log", "error", "")],
    ids=["no file", "a file", "a file of errors"],
)
def test_repeated_and_excess_warnings_are_counted_instead_of_shown(
    tmp_path: Path, file: str, level: str, where: str
) -> None:
    said = io.StringIO()
    path = tmp_path / file if file else None
    with open_log(run="r", console=Console(said), redact=Redactor(), file=path, level=level):
        for n in range(1000):
            log.warning("slow", extra={"text": "the host is slow"})
            log.warning("%s", f"attempt {n}", extra={"event": f"attempt_{n}"})
    shown = said.getvalue().splitlines()
    assert 201 == len(shown)
    assert shown[-1].startswith("mirror: 1800 more warnings ")
    assert shown[-1].endswith(f" are not shown{where}")
    assert 1 == shown.count("mirror: warning: the host is slow")


def test_the_first_three_warnings_of_an_event_are_shown_and_all_about_the_configuration_or_with_v() -> None:
    for event, verbosity, count in [("not_listed", NORMAL, 3), ("config", NORMAL, 9), ("not_listed", VERBOSE, 9)]:
        said = io.StringIO()
        with open_log(run="r", console=Console(said), redact=Redactor(), verbosity=verbosity):
            for n in range(9):
                log.warning(event, extra={"text": f"number {n}"})
                log.warning(event, extra={"text": "number 0"})
        shown = said.getvalue().splitlines()
        assert [f"mirror: warning: number {n}" for n in range(count)] == shown[:-1]
        assert shown[-1].startswith(f"mirror: {18 - count} more warnings ")


def test_credentials_that_a_host_refuses_are_left_to_the_summary() -> None:
    said = io.StringIO()
    with open_log(run="r", console=Console(said), redact=Redactor()):
        log.warning("target_not_listed", extra={"text": "refused", "code": "auth_failed"})
        log.warning("target_not_listed", extra={"text": "denied", "code": "auth_denied"})
    assert "mirror: warning: denied\n" == said.getvalue()


def test_suppressed_errors_are_counted_as_errors() -> None:
    said = io.StringIO()
    with open_log(run="r", console=Console(said), redact=Redactor()):
        for _ in range(3):
            log.warning("slow", extra={"text": "the host is slow"})
            log.error("gone", extra={"text": "the host is gone"})
    assert "mirror: 4 more warnings and errors " in said.getvalue()


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_logging_a_blob_costs_the_thread_little_more_than_a_discarded_record(tmp_path: Path) -> None:
    unheard = logging.Logger("unheard", logging.INFO)
    unheard.addHandler(logging.NullHandler())

    def cost(call: Callable[[], object]) -> float:
        begin = time.thread_time()
        for _ in range(500):
            call()
        return time.thread_time() - begin

    with logging_to(tmp_path):
        ratios = [cost(blob) / cost(lambda: unheard.info("blob", extra={"size": 1})) for _ in range(5)]
    assert min(ratios) < 4
    assert 2500 == len(lines(tmp_path))
