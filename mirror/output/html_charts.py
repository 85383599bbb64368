"""Computes the charts of the HTML report. The template of the report draws them as SVG.

All positions and sizes are percentages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from mirror.errors import FAILED, OK, SIGNALLED
from mirror.output.report.document import ReportDocument, ReportedImage
from mirror.output.report.history import History, PastRun
from mirror.output.report.units import format_count, format_duration, format_size
from mirror.util.host_use import MAX_INTERVALS, MAX_PAUSES, HostUsage
from mirror.util.structs import Struct, field

MAX_REPOSITORIES = 25  # bars for repositories; all others share one row without a bar
MAX_KINDS = 40  # bars for kinds of requests
MAX_HOSTS = 40  # rows of the timeline
_SMALLEST = 0.3  # percent; smaller parts would be invisible


class ChartPart(Struct, frozen=True):
    """A rectangle in a chart. name: its CSS class. start, width: its position and size in percent. text: a tooltip."""

    name: str
    start: float
    width: float
    text: str = ""


class ChartRow(Struct, frozen=True):
    """A row of a chart: a name, a bar of adjacent rectangles, and a text."""

    name: str
    parts: list[ChartPart]
    text: str


class ChartColumn(Struct, frozen=True):
    """A column of a chart, which consists of stacked rectangles. start, width: its position and size in percent."""

    start: float
    width: float
    parts: list[ChartPart]
    text: str


class ColumnChart(Struct, frozen=True):
    """A chart with one column for each run. highest: the largest value. first, last: labels of the time axis."""

    title: str
    highest: str
    first: str
    last: str
    columns: list[ChartColumn] = field(default_factory=list)


def repository_rows(images: Iterable[ReportedImage]) -> list[ChartRow]:
    """Return a row for each source repository, with the bytes that were sent and mounted for its images."""
    sent, mounted = Counter[str](), Counter[str]()
    for image in images:
        name = repository_of(image.source)
        sent[name] += image.bytes.get("sent", 0)
        mounted[name] += image.bytes.get("mounted", 0)
    totals = sent + mounted
    ordered = [name for name, _ in totals.most_common()]
    shown, rest = ordered[:MAX_REPOSITORIES], ordered[MAX_REPOSITORIES:]
    scale = totals[shown[0]] if shown else 0
    rows = [
        ChartRow(
            name,
            _stack((("sent", sent[name]), ("mounted", mounted[name])), scale),
            _bytes_text(sent[name], mounted[name]),
        )
        for name in shown
    ]
    if rest:
        text = _bytes_text(sum(sent[one] for one in rest), sum(mounted[one] for one in rest))
        rows.append(ChartRow(format_count(len(rest), "other repository", "other repositories"), [], text))
    return rows


def _bytes_text(sent: int, mounted: int) -> str:
    """Format the number of bytes that were sent for a repository, and the number that mounts saved."""
    return f"{format_size(sent)} + {format_size(mounted)}" if mounted else format_size(sent)


def repository_of(reference: str) -> str:
    """Return `HOST/REPOSITORY` for a reference `HOST/REPOSITORY:TAG` or `HOST/REPOSITORY@DIGEST`."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0] if slash else name


def kind_rows(requests: Mapping[str, Mapping[str, int]]) -> list[ChartRow]:
    """Return a row for each kind of request, such as `HEAD manifest`, at each host; the most frequent first."""
    counts = [(count, f"{host} {kind}") for host, kinds in requests.items() for kind, count in kinds.items()]
    shown = sorted(counts, key=lambda one: (-one[0], one[1]))[:MAX_KINDS]
    scale = max((count for count, _ in shown), default=0)
    return [ChartRow(name, _stack((("count", count),), scale), str(count)) for count, name in shown]


def host_rows(report: ReportDocument) -> tuple[list[ChartRow], float]:
    """Return the rows of the timeline, with the requests and pauses of each host, and the axis's end in seconds."""
    ends = [report.seconds, 1.0]
    for use in report.hosts.values():
        ends += [pause.start + pause.seconds for pause in use.pauses]
        ends.append(max(0, len(use.requests) - 1) * use.interval)
    end = max(ends)
    totals = {host: sum(kinds.values()) for host, kinds in report.totals.requests.items()}
    hosts = sorted(report.hosts, key=lambda host: (-totals.get(host, 0), host))[:MAX_HOSTS]
    return [
        ChartRow(host, _timeline(report.hosts[host], end), _host_text(report.hosts[host], totals.get(host, 0)))
        for host in hosts
    ], end


def _host_text(use: HostUsage, requests: int) -> str:
    """Format the number of requests to a host, and how long the host was paused."""
    paused = sum(pause.seconds for pause in use.pauses)
    text = format_count(requests, "request")
    return f"{text}, paused {format_duration(paused)}" if paused else text


def _timeline(use: HostUsage, end: float) -> list[ChartPart]:
    """Return rectangles for a host's requests over time, in three shades, and for its pauses.

    end: the end of the axis in seconds."""
    requests = use.requests[:MAX_INTERVALS]
    busiest = max(requests, default=0)
    parts = []
    for number, count in enumerate(requests):
        start, width = _percent(number * use.interval, end), _percent(use.interval, end)
        if count and start < 100:
            shade = 1 + min(2, 3 * (count - 1) // max(1, busiest))
            text = f"{format_count(count, 'request')} after {format_duration(number * use.interval)}"
            parts.append(ChartPart(f"busy{shade}", start, min(width, 100 - start), text))
    for pause in use.pauses[:MAX_PAUSES]:
        start = _percent(pause.start, end)
        text = f"paused for {format_duration(pause.seconds)} after {format_duration(pause.start)}"
        parts.append(ChartPart("pause", start, max(_SMALLEST, _percent(pause.seconds, end)), text))
    return parts


def history_charts(history: History) -> list[ColumnChart]:
    """Return the charts that compare the last runs, or an empty list if there are fewer than two runs."""
    runs = history.runs
    if len(runs) < 2:
        return []
    seconds = [(one.ended - one.started).total_seconds() for one in runs]
    durations = [((_exit_class(one), value),) for one, value in zip(runs, seconds, strict=True)]
    copied = [(("copied", one.images.get("copied", 0)), ("failed", _count_failures(one))) for one in runs]
    sizes = [(("sent", one.bytes.get("sent", 0)),) for one in runs]
    highest = max(sum(number for _, number in parts) for parts in copied)
    longest = format_duration(max(seconds))
    return [
        _column_chart("Duration (green: succeeded, red: failed, grey: stopped)", runs, durations, longest),
        _column_chart("Images copied (blue) and failed (red)", runs, copied, format_count(int(highest), "image")),
        _column_chart("Bytes sent", runs, sizes, format_size(max(parts[0][1] for parts in sizes))),
    ]


def _exit_class(run: PastRun) -> str:
    """Return the CSS class for the exit code of a run."""
    reached = run.deadline_reached and run.exit == FAILED and not _count_failures(run)
    return "ok" if run.exit == OK else "stopped" if run.exit >= SIGNALLED or reached else "failed"


def _count_failures(run: PastRun) -> int:
    """Return the number of images that failed or are in conflict."""
    return run.images.get("failed", 0) + run.images.get("conflict", 0)


def _column_chart(
    title: str, runs: Sequence[PastRun], values: Sequence[Sequence[tuple[str, float]]], highest: str
) -> ColumnChart:
    """Return a chart with a column for each run. values: the parts of each column, from bottom to top."""
    scale = max(sum(number for _, number in parts) for parts in values)
    step = 100 / len(runs)
    columns = [
        ChartColumn(round(number * step, 2), round(step * 0.85, 2), _stack(parts, scale), _run_text(run))
        for number, (run, parts) in enumerate(zip(runs, values, strict=True))
    ]
    return ColumnChart(title, highest, format_time(runs[0].ended), format_time(runs[-1].ended), columns)


def _run_text(run: PastRun) -> str:
    """Describe a run in one line: its end, exit code, numbers of images, bytes sent, and duration."""
    seconds = (run.ended - run.started).total_seconds()
    counts = ", ".join(f"{count} {result}" for result, count in run.images.items() if count) or "no images"
    sent = format_size(run.bytes.get("sent", 0))
    return f"{format_time(run.ended)}: exit code {run.exit}; {counts}; {sent} sent; {format_duration(seconds)}"


def format_time(moment: datetime) -> str:
    """Format a time in UTC with a precision of minutes."""
    return f"{moment:%Y-%m-%d %H:%M}"


def _stack(parts: Iterable[tuple[str, float]], scale: float) -> list[ChartPart]:
    """Return rectangles placed end to end. parts: their names and values. scale: the value of 100 percent."""
    found, start = [], 0.0
    for name, value in parts:
        width = min(100 - start, max(_SMALLEST, _percent(value, scale))) if value > 0 else 0.0
        found.append(ChartPart(name, round(start, 2), round(width, 2)))
        start += width
    return found


def _percent(value: float, whole: float) -> float:
    """Return `value` as a percentage of `whole`, limited to the range from 0 to 100."""
    return round(max(0.0, min(100.0, 100 * value / whole)), 2) if whole > 0 else 0.0
