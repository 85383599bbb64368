from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import LOCAL, USAGE, ConfigError, LocalError, NetworkError, NotFound, RateLimited
from mirror.output.redaction import Redactor
from mirror.output.report import Failure, ImageEntry, Report, RunCost, read_references_file, summary
from mirror.output.report.failure_ages import FailureAges
from mirror.output.report.units import format_duration, format_size
from mirror.util.host_use import HostUsage, Pause, Quota
from mirror.util.wrapping import wrap_line

ROOT = Path(__file__).resolve().parents[3]
STARTED = datetime(2025, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
ENDED = STARTED + timedelta(seconds=90)
DIGEST = "sha256:" + "a" * 64
USE = HostUsage({"200": 100, "429": 1}, 1.0, [90, 11], [Pause(0.5, 42.0)], Quota(34, 100))
FAILED = Failure.from_error(NetworkError("reset", status=None, hint="look at the network"))


def entry(tag: str, result: Any = "copied", **more: Any) -> ImageEntry:
    return ImageEntry(f"quay.io/app:{tag}", f"localhost:5000/app:{tag}", result, mirror="quay.io/app", **more)


def report_on(directory: Path, **options: Any) -> Report:
    return Report(directory, **{"run": "r1", "started": STARTED, "ages": FailureAges({}, STARTED), **options})


def finish_report(
    directory: Path, *entries: ImageEntry, exit_code: int = 0, cost: RunCost | None = None
) -> dict[str, Any]:
    with report_on(directory) as report:
        for each in entries:
            report.add(each)
        report.finish(exit_code, ended=ENDED, cost=cost or RunCost())
    return read(directory / "report.json")


def read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("ascii"))
    assert isinstance(found, dict)
    return found


def summary_of(directory: Path, *entries: ImageEntry, exit_code: int = 1, cost: RunCost | None = None) -> list[str]:
    cost = cost or RunCost({"quay.io": {"HEAD manifest": 90}, "localhost:5000": {"GET tags": 6}}, seconds=1.23)
    with report_on(directory) as report:
        for each in entries:
            report.add(each)
        return summary(report, cost, exit_code, config=Path("/etc/mirror.yaml"))


# -- report.json ------------------------------------------------------------------------------------------------------


def test_the_report_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    done = finish_report(
        tmp_path,
        entry("v1", digest=DIGEST, blobs={"copied": 2, "mounted": 1}, bytes={"read": 30, "sent": 20, "mounted": 9}),
        entry("v2", "up-to-date", digest=DIGEST),
        entry("v3", "failed", error=FAILED, blobs={"exists": 2, "failed": 1}, seconds=0.41234, attempts=5),
        exit_code=1,
        cost=RunCost(
            {"localhost:5000": {"HEAD manifest": 94, "PUT blob": 7}},
            retries=2,
            waited=1.5,
            hosts={"localhost:5000": USE},
        ),
    )
    image = {"source": "quay.io/app:v3", "target": "localhost:5000/app:v3", "digest": None, "result": "failed"}
    assert {
        **image,
        "protocol": "v2",
        "blobs": {"copied": 0, "mounted": 0, "exists": 2, "failed": 1, "interrupted": 0},
        "bytes": {"read": 0, "sent": 0, "mounted": 0},
        "seconds": 0.412,
        "attempts": 5,
        "error": {
            **{"code": "net_error", "status": None, "retryable": True, "message": "reset (look at the network)"},
            "hint": "look at the network",
        },
        "failing_since": "2025-01-02T03:04:05.678Z",
    } == done["images"][2]
    del done["images"]
    assert {
        "schema": 1,
        "command": "sync",
        "run": "r1",
        "started": "2025-01-02T03:04:05.678Z",
        "ended": "2025-01-02T03:05:35.678Z",
        "exit": 1,
        "totals": {
            "images": {"copied": 1, "up-to-date": 1, "failed": 1, "skipped": 0, "conflict": 0},
            "blobs": {"copied": 2, "mounted": 1, "exists": 2, "failed": 1, "interrupted": 0},
            "bytes": {"read": 30, "sent": 20, "mounted": 9},
            "requests": {"localhost:5000": {"HEAD manifest": 94, "PUT blob": 7}},
            "retries": 2,
            "waited_seconds": 1.5,
            "mirrors": {"quay.io/app": {"copied": 1, "up-to-date": 1, "failed": 1, "skipped": 0, "conflict": 0}},
        },
        "hosts": {
            "localhost:5000": {
                "statuses": {"200": 100, "429": 1},
                "interval": 1.0,
                "requests": [90, 11],
                "pauses": [{"start": 0.5, "seconds": 42.0}],
                "quota": {"remaining": 34, "limit": 100},
            }
        },
    } == done


def test_a_report_without_entries_is_valid(tmp_path: Path) -> None:
    assert [] == finish_report(tmp_path)["images"]


def test_the_report_has_the_source_digest_if_it_differs_and_the_longest_refused_wait(tmp_path: Path) -> None:
    done = finish_report(
        tmp_path,
        entry("v1", digest=DIGEST, source_digest="sha256:" + "b" * 64),
        entry("v2", digest=DIGEST, v1_id="c" * 64, protocol="v1"),
        cost=RunCost(retry_after=3600.0),
    )
    assert 3600.0 == done["retry_after"]
    assert ["sha256:" + "b" * 64, None] == [image.get("source_digest") for image in done["images"]]
    assert [(None, "v2"), ("c" * 64, "v1")] == [(image.get("v1_id"), image["protocol"]) for image in done["images"]]


def test_a_run_does_not_end_before_its_start_if_the_clock_is_set_back(tmp_path: Path) -> None:
    with report_on(tmp_path) as report:
        report.finish(0, ended=STARTED - timedelta(days=3650), cost=RunCost())
    done = read(tmp_path / "report.json")
    assert done["started"] == done["ended"]


def test_entries_are_kept_in_order_and_on_disk(tmp_path: Path) -> None:
    count = 5000
    with report_on(tmp_path) as report:
        tracemalloc.start()
        for n in range(count):
            report.add(entry(f"v{n}", digest=DIGEST))
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        report.finish(0, ended=ENDED, cost=RunCost())
    assert [f"quay.io/app:v{n}" for n in range(count)] == [
        image["source"] for image in read(tmp_path / "report.json")["images"]
    ]
    assert used / count < 400  # bytes


def test_twenty_threads_may_add_to_one_report(tmp_path: Path) -> None:
    with report_on(tmp_path) as report:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda n: report.add(entry(f"v{n}", blobs={"copied": 1})), range(4000)))
        report.finish(0, ended=ENDED, cost=RunCost())
    done = read(tmp_path / "report.json")
    assert 4000 == len({image["source"] for image in done["images"]}) == len(done["images"])
    assert (4000, 4000) == (done["totals"]["images"]["copied"], done["totals"]["blobs"]["copied"])


def test_the_copy_of_the_report_has_the_same_bytes(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "link.json").symlink_to("out.json")
    with report_on(state, copy_to=tmp_path / "link.json") as report:
        for n in range(500):
            report.add(entry(f"v{n}"))
        report.finish(0, ended=ENDED, cost=RunCost())
    assert (state / "report.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    assert (tmp_path / "link.json").is_symlink()


@pytest.mark.parametrize("where", ["nowhere/out.json", "afile/out.json", "directory", "pipe"])
def test_a_path_where_no_copy_can_be_written_is_an_error_before_the_run(tmp_path: Path, where: str) -> None:
    (tmp_path / "afile").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LocalError) as caught:
        report_on(tmp_path, copy_to=tmp_path / where)
    assert LOCAL == caught.value.exit_code
    assert str(tmp_path / where) in str(caught.value)


def test_the_report_is_written_even_if_its_copy_fails(tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    state.mkdir()
    other.mkdir()
    with report_on(state, copy_to=other / "out.json") as report:
        report.add(entry("v1", "failed", error=FAILED))
        other.rmdir()
        with pytest.raises(LocalError, match=re.escape(str(other / "out.json"))):
            report.finish(1, ended=ENDED, cost=RunCost())
    assert 1 == read(state / "report.json")["totals"]["images"]["failed"]
    assert "quay.io/app:v1\n" == (state / "failed.txt").read_text()


def test_only_the_owner_can_access_the_files_and_no_others_are_left(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        finish_report(tmp_path, *(entry(f"v{n}") for n in range(500)))
    finally:
        os.umask(before)
    assert {"report.json": 0o600, "failed.txt": 0o600} == {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()
    }


FULL = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from mirror.errors import LocalError
from mirror.output.report import ImageEntry, Report, RunCost
now = datetime.now(UTC)
with Report(Path(sys.argv[1]), run="r2", started=now) as report:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for n in range(2000):
        report.add(ImageEntry(f"h/a:{n}", f"g/a:{n}", "copied"))
    try:
        report.finish(0, ended=now, cost=RunCost())
    except LocalError as error:
        print(error.code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if sys.argv[2] == "again":
        report.finish(0, ended=now, cost=RunCost())
"""


@pytest.mark.parametrize(("then", "run", "count"), [("no more", "r1", 1), ("again", "r2", 2000)])
def test_a_full_disk_keeps_the_old_report_and_loses_no_entry(tmp_path: Path, then: str, run: str, count: int) -> None:
    finish_report(tmp_path, entry("old"))
    command = [sys.executable, "-c", FULL, str(tmp_path), then]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert "local_full\n" == done.stdout
    found = read(tmp_path / "report.json")
    assert (run, count) == (found["run"], len({image["source"] for image in found["images"]}))


# -- failed.txt -------------------------------------------------------------------------------------------------------


def test_failed_references_are_listed_once(tmp_path: Path) -> None:
    twice = [ImageEntry("quay.io/app:v1", f"{host}/app:v1", "failed", error=FAILED) for host in ("a", "b")]
    listing = ImageEntry("quay.io/gone", "localhost:5000/gone", "failed", error=FAILED)
    finish_report(tmp_path, *twice, listing, entry("v2"), entry("v3", "skipped"), entry("v4", "conflict", error=FAILED))
    assert ["quay.io/app:v1", "quay.io/gone"] == read_references_file(tmp_path / "failed.txt")


def test_a_run_without_failures_writes_an_empty_list(tmp_path: Path) -> None:
    finish_report(tmp_path, entry("v1", "failed", error=FAILED))
    finish_report(tmp_path, entry("v1"))
    assert b"" == (tmp_path / "failed.txt").read_bytes()
    assert [] == read_references_file(tmp_path / "failed.txt")


def test_a_list_may_have_comments_blank_lines_and_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "only.txt"
    path.write_bytes(b"# mine\r\nquay.io/app:v1\r\n\n  quay.io/*  \n#x\n[::1]:5000/app:v1")
    assert ["quay.io/app:v1", "quay.io/*", "[::1]:5000/app:v1"] == read_references_file(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_that_cannot_be_read_is_a_usage_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "only.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        read_references_file(path)
    assert USAGE == caught.value.exit_code


# -- words of others --------------------------------------------------------------------------------------------------


def test_a_report_contains_no_secrets_and_no_control_characters(tmp_path: Path) -> None:
    redact = Redactor()
    redact.add("hunter2-canary")
    error = NotFound("blob: hunter2-canary\x1b[31m", hint="see https://s3/x?sig=canary-query")
    with report_on(tmp_path, redact=redact) as report:
        report.add(ImageEntry("h/a:\x1b]0;x\x07", "g/a:\u202ev1\n", "failed", error=Failure.from_error(error)))
        report.finish(1, ended=ENDED, cost=RunCost())
        lines = summary(report, RunCost(), 1, config=Path("mirror.yaml"))
    written = (tmp_path / "report.json").read_text() + "\n".join(lines) + (tmp_path / "failed.txt").read_text()
    assert "canary" not in written
    assert [] == [sign for sign in written if sign != "\n" and not sign.isprintable()]
    assert ["h/a:\\x1b]0;x\\x07"] == read_references_file(tmp_path / "failed.txt")


# -- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_of_a_run_with_nothing_to_do_is_one_line(tmp_path: Path) -> None:
    entries = [
        ImageEntry(f"quay.io/app:v{n}", f"{host}/app:v{n}", "up-to-date") for n in range(90) for host in ("a:1", "b:1")
    ]
    assert ["up to date: 90 images on 2 targets; 96 requests, 1.2 s"] == summary_of(tmp_path, *entries, exit_code=0)
    assert ["up to date: 1 image on 1 target; 96 requests, 1.2 s"] == summary_of(tmp_path, entries[0], exit_code=0)


def test_the_summary_says_that_nothing_is_selected(tmp_path: Path) -> None:
    assert ["nothing to do: no image is selected; 96 requests, 1.2 s"] == summary_of(tmp_path, exit_code=0)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_summary_has_results_and_costs(tmp_path: Path) -> None:
    moved = {"read": 5 * 1024**2, "sent": 10 * 1024**2, "mounted": 3 * 1024**3}
    assert [
        "changed (bytes sent, blobs copied + mounted, duration):",
        "  localhost:5000/app",
        "    v1  new  aaaaaaaaaaaa  10.0 MiB  2 + 1  0.0 s",
        "    v2  new  aaaaaaaaaaaa  10.0 MiB  2 + 1  0.0 s",
        "images: 2 copied, 1 up to date, 1 skipped",
        "blobs: 4 copied, 2 mounted, 1 already present; 10.0 MiB read, 20.0 MiB sent, 6.0",
        "    GiB saved by mounts",
        "cost: 96 requests, 2 retries (longest pause 1.2 s), 1 min 30 s",
    ] == summary_of(
        tmp_path,
        entry("v1", digest=DIGEST, change="new", blobs={"copied": 2, "mounted": 1}, bytes=moved),
        entry("v2", digest=DIGEST, change="new", blobs={"copied": 2, "mounted": 1, "exists": 1}, bytes=moved),
        entry("v3", "up-to-date"),
        entry("v4", "skipped"),
        exit_code=0,
        cost=RunCost({"a": {"x": 96}}, retries=2, waited=1000.0, longest_wait=1.2, seconds=90),
    )


def test_the_summary_has_a_block_for_each_cause_and_the_command_for_a_retry(tmp_path: Path) -> None:
    limited = RateLimited("429 listing tags", hint="add credentials", host="quay.io", status=429)
    lines = summary_of(
        tmp_path,
        *(entry(f"v{n}", "failed", error=FAILED) for n in (3, 1, 2, 4)),
        entry("v5", "conflict", error=Failure("tag_immutable", "the tag is another image there")),
        entry("v6", "failed", error=Failure.from_error(limited)),
        entry("v7", "up-to-date"),
        cost=RunCost(retry_after=3600),
    )
    assert [
        "images: 1 up to date, 5 failed, 1 in conflict; 0 requests, 0.0 s",
        "conflict: quay.io/app:v5 -> localhost:5000/app:v5",
        "    the tag is another image there (tag_immutable)",
        "    hint: find out why the tag has changed; push under another tag, or remove",
        "      the rule",
        "failed: 4 images: reset (net_error)",
        "    quay.io/app:v1, quay.io/app:v2, quay.io/app:v3 and 1 more",
        "    hint: look at the network",
        "failed: quay.io/app:v6 -> localhost:5000/app:v6",
        "    429 listing tags (rate_limited, 429)",
        "    hint: add credentials",
        *wrap_line(f"details: {tmp_path}/report.json", 80),
        "a registry asked for a pause of 1 h 0 min: run again after this time",
        "to retry only these:",
        f"    mirror sync /etc/mirror.yaml --only-from {tmp_path}/failed.txt",
    ] == lines


def test_there_is_no_command_for_a_retry_if_everything_failed(tmp_path: Path) -> None:
    lines = summary_of(tmp_path, *(entry(f"v{n}", "failed", error=FAILED) for n in range(3)))
    assert [] == [line for line in lines if "--only-from" in line]


def test_the_summary_of_a_stopped_run_begins_with_that(tmp_path: Path) -> None:
    first, second, *_ = summary_of(tmp_path, entry("v1", "up-to-date"), exit_code=143)
    assert first.startswith("stopped by a signal")
    assert second.startswith("images: 1 up to date")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (150 * 1024, "150 KiB"),
        (1024**2 * 12.34, "12.3 MiB"),
        (1024**4 * 2, "2.0 TiB"),
        (1024**5, "1024.0 TiB"),
    ],
)
def test_bytes_are_shown_with_a_fitting_unit(count: float, shown: str) -> None:
    assert shown == format_size(count)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (184, "3 min 4 s"), (3599.9, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_seconds_are_shown_with_a_fitting_unit(seconds: float, shown: str) -> None:
    assert shown == format_duration(seconds)
