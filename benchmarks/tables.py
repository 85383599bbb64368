"""Formats the outcome of a scenario as a table, either as plain text or in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from benchmarks.samples import Outcome, Sample, Spread

_HEADINGS = (
    "tool",
    "wall s (min–max)",
    "÷ best other",
    "CPU s",
    "registries' CPU s",
    "peak MiB",
    "requests source",
    "target",
    "MB from source",
    "to target",
    "equal",
)


def plain(outcome: Outcome) -> str:
    """Return the outcome as plain text for a terminal: a table and remarks."""
    rows = [list(_HEADINGS), *_rows(outcome)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([outcome.heading, *(f"  {line}" for line in lines), *(f"  {line}" for line in _remarks(outcome))])


def markdown(outcome: Outcome) -> str:
    """Return the outcome as a section in Markdown: a table, remarks, and a table of requests by kind."""
    rows = [list(_HEADINGS), ["---", *["--:"] * (len(_HEADINGS) - 1)], *_rows(outcome)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    remarks = "".join(f"\n{line}\n" for line in _remarks(outcome))
    kinds = "\n".join(f"| {' | '.join(row)} |" for row in _kinds(outcome))
    runs = f"{outcome.runs} runs" if outcome.runs > 1 else "One run"
    return f"## {outcome.heading}\n\n{outcome.note} {runs} per tool.\n\n{table}\n{remarks}\n{kinds}\n"


def _rows(outcome: Outcome) -> Iterator[list[str]]:
    """Yield the cells of one row for each tool, the fastest tool first."""
    for tool in sorted(outcome.tools, key=lambda tool: outcome.wall(tool).median):
        ratio = outcome.ratio(tool)
        yield [
            tool,
            _spread(outcome.wall(tool)),
            "–" if ratio is None else f"{ratio:.2f}",
            _median(outcome, tool, lambda sample: sample.cpu),
            _median(outcome, tool, lambda sample: sample.registry_cpu),
            _median(outcome, tool, lambda sample: sample.memory / 2**20, "{:.0f}"),
            _median(outcome, tool, lambda sample: sample.source.requests, "{:,.0f}"),
            _median(outcome, tool, lambda sample: sample.target.requests, "{:,.0f}"),
            _median(outcome, tool, lambda sample: sample.source.sent / 1e6, "{:,.1f}"),
            _median(outcome, tool, lambda sample: sample.target.accepted / 1e6, "{:,.1f}"),
            _equality(outcome.tools[tool]),
        ]


def _spread(spread: Spread) -> str:
    """Return the text of a cell such as `1.50 (1.20–1.90)`: median, minimum and maximum."""
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _median(outcome: Outcome, tool: str, figure: Callable[[Sample], float | None], form: str = "{:.2f}") -> str:
    """Return the text of a cell with the median of a figure; a dash if no run has a value."""
    figures = [found for sample in outcome.tools[tool] if (found := figure(sample)) is not None]
    return form.format(median(figures)) if figures else "–"


def _equality(samples: Sequence[Sample]) -> str:
    """Return the text of the column "equal".

    It is `yes`, or `no` with the number of runs that left unequal targets, followed by all exit codes other than 0."""
    unequal = sum(not sample.equal for sample in samples)
    codes = sorted({sample.code for sample in samples} - {0})
    words = [f"no ({unequal} of {len(samples)})" if unequal else "yes"]
    return ", ".join([*words, *(f"exit {code}" for code in codes)])


def _remarks(outcome: Outcome) -> list[str]:
    """Return lines about CPU time per GB, rejected requests, and tools that were not run."""
    remarks = []
    if outcome.gigabytes >= 0.05:
        each = {tool: outcome.spread(tool, lambda sample: sample.cpu).median for tool in outcome.tools}
        listed = ", ".join(f"{tool} {cpu / outcome.gigabytes:.2f}" for tool, cpu in each.items())
        remarks.append(f"CPU seconds of the tools per GB (10^9 bytes) of content: {listed}.")
    refused = {
        tool: max(one.source.refused + one.target.refused for one in runs) for tool, runs in outcome.tools.items()
    }
    if any(refused.values()):
        remarks.append(f"Rejected requests: {', '.join(f'{tool} {count}' for tool, count in refused.items())}.")
    remarks += [f"{tool}: {why}." for tool, why in outcome.absent.items()]
    return remarks


def _kinds(outcome: Outcome) -> Iterator[list[str]]:
    """Yield the rows of the table of requests by kind, which has a column for each tool. The numbers are those of the
    last run."""
    last = {tool: samples[-1] for tool, samples in outcome.tools.items()}
    yield ["request", *last]
    yield ["---", *["--:"] * len(last)]
    for side in ("source", "target"):
        found = {tool: Counter(getattr(sample, side).kinds) for tool, sample in last.items()}
        for kind in sorted({kind for kinds in found.values() for kind in kinds}):
            yield [f"{side}: {kind}", *(f"{kinds[kind]:,}" for kinds in found.values())]
