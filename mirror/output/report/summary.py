"""Formats the summary of a run in a few lines: what was done, what failed, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mirror.errors import FAILED, OK, SIGNALLED, printable
from mirror.output.report.cause_lines import cause_lines
from mirror.output.report.changes import change_table
from mirror.output.report.files import Report
from mirror.output.report.records import RunCost, Totals
from mirror.output.report.units import format_count, format_duration, format_size
from mirror.util.columns import text_width
from mirror.util.shell_commands import quote_path
from mirror.util.wrapping import line_width, wrap_line

_IMAGES = {"copied": "copied", "up-to-date": "up to date", "failed": "failed", "conflict": "in conflict"}
_BLOBS = {
    "copied": "copied",
    "mounted": "mounted",
    "exists": "already present",
    "failed": "failed",
    "interrupted": "interrupted",
}


def summary(
    report: Report,
    cost: RunCost,
    exit_code: int,
    *,
    config: Path | None,
    suggest_retry: bool = True,
    retry_arguments: Sequence[str] = (),
    quiet: bool = False,
    deadline_reached: bool = False,
) -> list[str]:
    """Return the lines of the summary: what changed, the totals, and the causes of failures.

    If everything was already up to date, return only one line.

    config: the configuration file; None for `mirror copy`. Lines are wrapped to the width of the terminal.
    suggest_retry: whether the summary may suggest a run that copies only the failed images. False if a target is a
    bundle. retry_arguments: the options of that run, in addition to the one that selects these images. quiet: whether
    to return only the lines about failures. deadline_reached: whether `--deadline` ended the run."""
    totals, width = report.totals, line_width()
    requests = format_count(sum(sum(kinds.values()) for kinds in cost.requests.values()), "request")
    stopped = "a signal" if exit_code >= SIGNALLED else "the deadline" if deadline_reached else ""
    # If the run succeeded, the skipped images are for platforms that the mirrors do not copy.
    if not stopped and set(totals.images) <= ({"up-to-date", "skipped"} if exit_code == OK else {"up-to-date"}):
        return [] if quiet else [f"{_unchanged_line(totals)}; {requests}, {format_duration(cost.seconds)}"]
    lines = [f"stopped by {stopped}: copied images stay on the targets; the next run continues"] if stopped else []
    if not quiet:
        lines += _change_lines(report, width)
        counts = f"images: {_counts_text(totals.images, {**_IMAGES, 'skipped': 'skipped'})}"
        used = f"{requests}{_retries_text(cost)}, {format_duration(cost.seconds)}"
        if any(totals.blobs.values()):
            blobs = f"blobs: {_counts_text(totals.blobs, _BLOBS)}; {_bytes_text(totals)}"
            totals_lines = [counts, blobs, f"cost: {used}"]
        else:
            totals_lines = [f"{counts}; {used}"]
        lines += [part for line in totals_lines for part in wrap_line(line, width)]
    lines += cause_lines(report.causes, config=config, width=width, details=printable(report.path, 1000))
    if cost.retry_after is not None:
        pause = f"a registry asked for a pause of {format_duration(cost.retry_after)}: run again after this time"
        lines += wrap_line(pause, width)
    done = totals.images.total() - totals.images["failed"]
    if totals.images["failed"] and done and exit_code == FAILED and suggest_retry and config and report.failed_path:
        options = shlex.join([*retry_arguments, "--only-from", str(report.failed_path)])
        command = f"mirror sync {quote_path(config)} {options}"
        fits = text_width(command) <= width - len("to retry only these: ")
        lines += [f"to retry only these: {command}"] if fits else ["to retry only these:", f"    {command}"]
    return lines


def _change_lines(report: Report, width: int) -> list[str]:
    """Return the lines that list the changed images: the first images, and the number of the others."""
    rows = report.changes.rows()
    if not rows:
        return []
    lines = ["changed (bytes sent, blobs copied + mounted, duration):", *change_table(rows, width)]
    more = report.changes.count - len(rows)
    return lines + wrap_line(f"  and {more} more, listed in {printable(report.path, 1000)}", width) if more else lines


def _retries_text(cost: RunCost) -> str:
    """Return a text with the number of retries and the longest pause.

    The sum of the pauses is not shown, because parallel pauses could add up to more than the duration of the run."""
    if not cost.retries:
        return ""
    return f", {format_count(cost.retries, 'retry', 'retries')} (longest pause {format_duration(cost.longest_wait)})"


def _unchanged_line(totals: Totals) -> str:
    """Return the line of the summary for a run that changed nothing."""
    if not totals.images:
        return "nothing to do: no image is selected"
    if totals.images.get("skipped"):
        return f"images: {_counts_text(totals.images, {**_IMAGES, 'skipped': 'skipped'})}"
    return f"up to date: {format_count(len(totals.sources), 'image')} on {format_count(len(totals.hosts), 'target')}"


def _bytes_text(totals: Totals) -> str:
    """Format the numbers of bytes that were read, sent, and saved by mounts."""
    moved = f"{format_size(totals.bytes['read'])} read, {format_size(totals.bytes['sent'])} sent"
    return f"{moved}, {format_size(totals.bytes['mounted'])} saved by mounts" if totals.bytes["mounted"] else moved


def _counts_text(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Format the counts that are not zero as text, such as `2 copied, 1 failed`. words: the word for each key."""
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts.get(key)) or "none"
