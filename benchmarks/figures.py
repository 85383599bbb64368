"""Generates the complete page of figures in Markdown. The page is never edited by hand."""

from __future__ import annotations

from benchmarks import tables
from benchmarks.samples import Report

_HEAD = """\
# Figures

`make bench` generates this page. Do not edit it. [performance.md](performance.md) explains the columns and the method.

Measured on {date} in interleaved runs{quick}. The values are medians. `÷ best other` is the wall time of a tool,
divided by the wall time of the fastest other tool whose targets were correct. The ideal replay is not a tool, so its
ratio is shown only for orientation.

| machine | |
|---|---|
{machine}

| version | |
|---|---|
{versions}
"""


def page(report: Report, chart: str | None = None) -> str:
    """Return the page. chart: the path of the chart, relative to the page; None if there is no chart."""
    rows = (
        "\n".join(f"| {name} | {text} |" for name, text in part.items()) for part in (report.machine, report.versions)
    )
    machine, versions = rows
    quick = ", **with counts and sizes reduced by `--quick`, so the ratios have no meaning**" if report.quick else ""
    head = _HEAD.format(date=report.date, quick=quick, machine=machine, versions=versions)
    picture = [f"![Wall times of all scenarios]({chart})\n"] if chart else []
    left_out = [*report.left_out, *report.tools_left_out]
    missing = [f"Not measured in this run: {', '.join(left_out)}.\n"] if left_out else []
    return "\n".join([head, *missing, *picture, *(tables.markdown(outcome) for outcome in report.scenarios)])
