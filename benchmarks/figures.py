"""The page of figures, in Markdown; it is made as a whole and never edited."""

from __future__ import annotations

from benchmarks import tables
from benchmarks.samples import Report

_HEAD = """\
# Figures

Made by `make bench`; not edited by hand. What the columns mean, and how it was measured: [performance](performance.md).

Measured on {date}, in turns{quick}; shown are medians. `÷ best other` is the tool's wall time over that of the fastest
of the other tools that left equal targets; the ideal replay is not a tool, and its ratio is for orientation only.

| machine | |
|---|---|
{machine}

| version | |
|---|---|
{versions}
"""


def page(report: Report, chart: str | None = None) -> str:
    """chart: how the page refers to the picture, if there is one."""
    rows = (
        "\n".join(f"| {name} | {text} |" for name, text in part.items()) for part in (report.machine, report.versions)
    )
    machine, versions = rows
    quick = ", **with counts and sizes reduced by `--quick`, so that ratios mean nothing**" if report.quick else ""
    head = _HEAD.format(date=report.date, quick=quick, machine=machine, versions=versions)
    picture = [f"![Wall times of all scenarios]({chart})\n"] if chart else []
    left_out = [*report.left_out, *report.tools_left_out]
    missing = [f"Not measured this time: {', '.join(left_out)}.\n"] if left_out else []
    return "\n".join([head, *missing, *picture, *(tables.markdown(outcome) for outcome in report.scenarios)])
