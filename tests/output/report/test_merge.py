from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import ConfigError
from mirror.output.report import Failure, ImageEntry, Report, Result, RunCost
from mirror.output.report.document import ReportDocument, read_report
from mirror.output.report.merge import merge_reports, report_lines
from mirror.util.host_use import MAX_INTERVALS, HostUsage, Pause, Quota
from mirror.util.structs import replace

NAIVE = (
    '{"schema": 1, "run": "r", "started": "2025-01-02T03:04:05", "ended": "2025-01-02T03:04:05Z", "exit": 0,'
    ' "totals": {"images": {}, "blobs": {}, "bytes": {}, "requests": {}}, "images": []}'
)  # the first time has no offset from UTC
STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def shard(
    folder: Path, run: str, *results: Result, exit_code: int = 0, after: float = 0.0, cost: RunCost | None = None
) -> ReportDocument:
    directory = folder / run
    directory.mkdir()
    started = STARTED + timedelta(seconds=after)
    with Report(directory, run=run, started=started) as report:
        for number, result in enumerate(results):
            error = Failure("net_error", "x") if result == "failed" else None
            report.add(ImageEntry(f"h/{run}:{number}", f"t/{run}:{number}", result, error=error, mirror="h/*"))
        report.finish(exit_code, ended=started + timedelta(seconds=10), cost=cost or RunCost())
    return read_report(directory)[0]


def merged(*reports: ReportDocument) -> Any:
    return json.loads("\n".join(report_lines(merge_reports(reports))))


def test_a_merged_report_is_a_report_with_the_sums_and_all_images(tmp_path: Path) -> None:
    one = shard(tmp_path, "a", "copied", "failed", exit_code=1, cost=RunCost({"h": {"GET tags": 1}}, 2, 1.5))
    two = shard(tmp_path, "b", "copied", after=5.0, cost=RunCost({"h": {"GET tags": 2}, "t": {"PUT blob": 4}}))
    both = merged(one, two)
    files = [json.loads((tmp_path / run / "report.json").read_bytes()) for run in "ab"]
    assert files[0].keys() == both.keys()
    assert [image for file in files for image in file["images"]] == both["images"]
    assert ("2025-01-02T03:04:05.000Z", "2025-01-02T03:04:20.000Z", 1) == (both["started"], both["ended"], both["exit"])
    totals = both["totals"]
    assert {"copied": 2, "up-to-date": 0, "failed": 1, "skipped": 0, "conflict": 0} == totals["images"]
    assert totals["images"] == totals["mirrors"]["h/*"]
    assert ({"h": {"GET tags": 3}, "t": {"PUT blob": 4}}, 2, 1.5) == (
        totals["requests"],
        totals["retries"],
        totals["waited_seconds"],
    )
    (tmp_path / "both.json").write_text("\n".join(report_lines(merge_reports([one, two]))))
    assert merge_reports([one, two]).totals == read_report(tmp_path / "both.json")[0].totals


def test_the_use_of_a_host_is_moved_to_the_time_of_the_first_start(tmp_path: Path) -> None:
    first = HostUsage({"200": 3}, 1.0, [1, 2], [Pause(1.0, 2.0)], Quota(9, 100))
    later = HostUsage({"200": 1, "429": 1}, 2.0, [1, 1], [Pause(0.5, 1.0)], Quota(5, 100))
    one = shard(tmp_path, "a", cost=RunCost(hosts={"h": first}))
    two = shard(tmp_path, "b", after=4.0, cost=RunCost(hosts={"h": later}))
    use = merge_reports([two, one]).hosts["h"]
    assert HostUsage({"200": 4, "429": 1}, 2.0, [3, 0, 1, 1], [Pause(1.0, 2.0), Pause(4.5, 1.0)], Quota(5, 100)) == use


def test_reports_of_runs_that_are_years_apart_can_be_merged(tmp_path: Path) -> None:
    use = HostUsage({}, 1.0, [1, 2])
    one = shard(tmp_path, "a", cost=RunCost(hosts={"h": use}))
    two = shard(tmp_path, "b", after=1e9, cost=RunCost(hosts={"h": use}))
    requests = merge_reports([one, two]).hosts["h"].requests
    assert (3, 3, 6) == (requests[0], requests[-1], sum(requests))
    assert len(requests) <= MAX_INTERVALS


@pytest.mark.parametrize(
    ("codes", "worst"), [((0, 0), 0), ((1, 0), 1), ((1, 3), 3), ((3, 4), 4), ((4, 143), 143), ((130, 0), 130)]
)
def test_the_exit_code_of_a_merged_report_is_the_worst_one(codes: tuple[int, int], worst: int, tmp_path: Path) -> None:
    reports = [shard(tmp_path, f"r{number}", exit_code=code) for number, code in enumerate(codes)]
    assert worst == merge_reports(reports).exit


def test_the_deadline_ended_the_merged_run_if_it_ended_one_of_them(tmp_path: Path) -> None:
    whole, stopped = (shard(tmp_path, run, exit_code=code) for run, code in (("a", 0), ("b", 1)))
    assert "deadline_reached" not in merged(whole)
    stopped = replace(stopped, deadline_reached=True)
    assert merged(whole, stopped)["deadline_reached"] is True


def test_two_reports_of_one_run_are_an_error(tmp_path: Path) -> None:
    one = shard(tmp_path, "a")
    both = merge_reports([one, shard(tmp_path, "b")])
    for reports in ([one, one], [both, one]):
        with pytest.raises(ConfigError, match="two reports are of the run a"):
            merge_reports(reports)


@pytest.mark.parametrize(
    "text",
    [NAIVE, "", "[]", "{}", '{"schema": 2}', '{"schema": 1, "run": "r", "images": [1]}', "[" * 100_000, "\ud800"],
)
def test_a_file_that_is_not_a_report_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="is not a report that mirror wrote"):
        read_report(path)
