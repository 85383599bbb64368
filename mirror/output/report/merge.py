"""Merges the reports of several runs, such as those of shards, into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mirror.errors import SIGNALLED, ConfigError, printable, worst_exit_code
from mirror.output.report.document import ReportDocument, ReportTotals
from mirror.output.report.records import timestamp
from mirror.util.host_use import MAX_INTERVALS, MAX_PAUSES, HostUsage, Pause
from mirror.util.structs import encode_json, replace, to_builtins


def merge_reports(reports: Sequence[ReportDocument]) -> ReportDocument:
    """Merge one or more reports into one report, with the sums of their totals and with all their images, in order.

    The merged report covers the time from the first start to the last end. Its exit code is the worst exit code; the
    exit code of a signal is the worst of all. Raises ConfigError if two reports are of the same run, or of different
    commands."""
    runs = [run for report in reports for run in report.run.split("+")]
    twice = next((run for run, count in Counter(runs).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"two reports are of the run {twice}", hint="specify the report of each run only once")
    commands = {report.command for report in reports}
    if len(commands) > 1:
        text = f"the reports are of different commands: {', '.join(map(printable, sorted(commands)))}"
        raise ConfigError(text, hint="merge only reports of the same command")
    started = min(report.started for report in reports)
    refused = [report.retry_after for report in reports if report.retry_after is not None]
    return ReportDocument(
        schema=1,
        run="+".join(runs),
        started=started,
        ended=max(report.ended for report in reports),
        exit=_worst_exit([report.exit for report in reports]),
        totals=_merge_totals([report.totals for report in reports]),
        hosts=_merge_hosts([(report, (report.started - started).total_seconds()) for report in reports]),
        retry_after=max(refused, default=None),
        command=reports[0].command,
        deadline_reached=any(report.deadline_reached for report in reports),
        images=[image for report in reports for image in report.images],
    )


def report_lines(report: ReportDocument) -> Iterator[str]:
    """Yield the lines of a report as JSON, in the form of report.json: all members except `images`, then the images."""
    fields = {"schema": report.schema, "command": report.command, **to_builtins(replace(report, images=[]))}
    fields |= {"started": timestamp(report.started), "ended": timestamp(report.ended)}
    absent = {"images", *([] if report.deadline_reached else ["deadline_reached"])}
    fields = {name: value for name, value in fields.items() if name not in absent and value is not None}
    yield encode_json(fields).decode()[:-1] + ', "images": ['
    last = len(report.images) - 1
    for number, image in enumerate(report.images):
        yield bytes(image).decode() + ("," if number < last else "")
    yield "]}"


def _worst_exit(codes: Sequence[int]) -> int:
    """Return the worst of the exit codes of several runs."""
    return max((code for code in codes if code >= SIGNALLED), default=worst_exit_code(codes))


def _merge_totals(totals: Sequence[ReportTotals]) -> ReportTotals:
    """Return the sums of the totals of several reports."""
    return ReportTotals(
        images=_sum(one.images for one in totals),
        blobs=_sum(one.blobs for one in totals),
        bytes=_sum(one.bytes for one in totals),
        requests=_sum_by_name(one.requests for one in totals),
        retries=sum(one.retries for one in totals),
        waited_seconds=round(sum(one.waited_seconds for one in totals), 3),
        mirrors=_sum_by_name(one.mirrors for one in totals),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the counts that have the same name. Names keep their order."""
    sums: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            sums[name] = sums.get(name, 0) + count
    return sums


def _sum_by_name(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up the counts that have the same pair of names."""
    sums: dict[str, dict[str, int]] = {}
    for one in counts:
        for name, inner in one.items():
            sums[name] = _sum((sums.get(name, {}), inner))
    return sums


def _merge_hosts(reports: Sequence[tuple[ReportDocument, float]]) -> dict[str, HostUsage]:
    """Merge the usage of each host in several runs.

    reports: each with the number of seconds from the start of the first run to the start of its own run."""
    uses: dict[str, list[tuple[HostUsage, float]]] = {}
    for report, offset in sorted(reports, key=lambda one: one[0].ended):
        for host, use in report.hosts.items():
            uses.setdefault(host, []).append((use, offset))
    return {host: _merge_uses(found) for host, found in sorted(uses.items())}


def _merge_uses(uses: Sequence[tuple[HostUsage, float]]) -> HostUsage:
    """Merge the usage of one host in several runs. The last element must be from the run that ended last.

    uses: each with the number of seconds from the start of the first run to the start of its own run."""
    interval, requests = _merge_requests(uses)
    pauses = sorted((Pause(one.start + offset, one.seconds) for use, offset in uses for one in use.pauses), key=_start)
    quotas = [use.quota for use, _ in uses if use.quota is not None]
    return HostUsage(
        dict(sorted(_sum(use.statuses for use, _ in uses).items())),
        interval,
        requests,
        pauses[:MAX_PAUSES],
        quotas[-1] if quotas else None,
    )


def _start(pause: Pause) -> float:
    """Return the start of a pause, as a sort key."""
    return pause.start


def _merge_requests(uses: Sequence[tuple[HostUsage, float]]) -> tuple[float, list[int]]:
    """Merge the requests of several runs: return the length of an interval in seconds, and the requests in each."""
    interval = max(1.0, *(use.interval for use, _ in uses))
    end = max(offset + len(use.requests) * use.interval for use, offset in uses)
    while end > interval * MAX_INTERVALS:
        interval *= 2
    sums = Counter[int]()
    for use, offset in uses:
        for number, count in enumerate(use.requests):
            sums[max(0, int((offset + number * use.interval) / interval))] += count
    return interval, [sums[number] for number in range(max(sums, default=-1) + 1)]
