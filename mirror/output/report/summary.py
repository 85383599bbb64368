"""Formats the summary of a run in a few lines: what was done, what failed, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from mirror.errors import FAILED, OK, SIGNALLED, printable
from mirror.output.report.files import Report
from mirror.output.report.records import FailedImage, RunCost, Totals

_IMAGES = {"copied": "copied", "up-to-date": "up to date", "failed": "failed", "conflict": "in conflict"}
_BLOBS = {
    "copied": "copied",
    "mounted": "mounted",
    "exists": "already present",
    "failed": "failed",
    "interrupted": "interrupted",
}


def summary(report: Report, cost: RunCost, exit_code: int, *, config: Path, suggest_retry: bool = True) -> list[str]:
    """Return the lines of the summary. If everything was already up to date, return only one line.

    config: the configuration file.
    suggest_retry: whether the summary may suggest a run that copies only the failed images. False if a target is a
    bundle."""
    totals = report.totals
    requests = format_count(sum(sum(kinds.values()) for kinds in cost.requests.values()), "request")
    stopped = exit_code >= SIGNALLED
    # If the run succeeded, the skipped images are for platforms that are not wanted.
    if not stopped and set(totals.images) <= ({"up-to-date", "skipped"} if exit_code == OK else {"up-to-date"}):
        return [f"{_unchanged_line(totals)}; {requests}, {format_duration(cost.seconds)}"]
    lines = ["stopped by a signal: what was copied stays on the targets; the next run resumes"] if stopped else []
    lines.append(f"images: {_counts_text(totals.images, {**_IMAGES, 'skipped': 'skipped'})}")
    if any(totals.blobs.values()):
        lines.append(f"blobs: {_counts_text(totals.blobs, _BLOBS)}; {_bytes_text(totals)}")
    retries = ""
    if cost.retries:
        # The sum of parallel waits could be more than the duration of the run.
        retries = (
            f", {format_count(cost.retries, 'retry', 'retries')} (longest pause {format_duration(cost.longest_wait)})"
        )
    lines.append(f"cost: {requests}{retries}, {format_duration(cost.seconds)}")
    lines += _failure_lines(report, cost)
    if totals.images.get("failed") and exit_code == FAILED and suggest_retry:
        command = shlex.join(["mirror", "sync", str(config), "--only-from", str(report.failed_path)])
        lines.append(f"to retry only these: {command}")
    return lines


def _unchanged_line(totals: Totals) -> str:
    """Return the line for a run that changed nothing."""
    if not totals.images:
        return "nothing to do: no image is selected"
    if totals.images.get("skipped"):
        return f"images: {_counts_text(totals.images, {**_IMAGES, 'skipped': 'skipped'})}"
    return f"up to date: {format_count(len(totals.sources), 'image')} on {format_count(len(totals.hosts), 'target')}"


def _bytes_text(totals: Totals) -> str:
    """Format how many bytes were read and sent, and how many were saved by mounts."""
    moved = f"{format_size(totals.bytes['read'])} read, {format_size(totals.bytes['sent'])} sent"
    return f"{moved}, {format_size(totals.bytes['mounted'])} saved by mounts" if totals.bytes["mounted"] else moved


def _failure_lines(report: Report, cost: RunCost) -> list[str]:
    """Return the lines that list failed images and, if a registry asked for one, the pause before the next run."""
    lines: list[str] = []
    last_hint = ""
    for image in report.failed_images:
        lines.append(_failure_line(image))
        if image.hint and image.hint != last_hint:
            lines.append(f"    {image.hint}")
        last_hint = image.hint
    more = report.totals.images["failed"] + report.totals.images["conflict"] - len(report.failed_images)
    if more > 0:
        lines.append(f"and {more} more: see {report.failed_path} and {report.path}")
    if cost.retry_after is not None:
        lines.append(f"a registry asked for a pause of {format_duration(cost.retry_after)}: run again after this time")
    return lines


def _failure_line(image: FailedImage) -> str:
    """Return the line for one failed image."""
    word = "conflict" if image.result == "conflict" else "failed"
    return f"{word}: {printable(image.source)} -> {printable(image.target)}: {image.message}"


def _counts_text(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Format the counts that are not zero as text, such as `2 copied, 1 failed`. words: the word for each key."""
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts.get(key)) or "none"


def format_count(number: int, one: str, more: str = "") -> str:
    """Format a number with a noun, such as `2 images`. one: the singular. more: the plural, if it is irregular."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def format_size(count: float) -> str:
    """Format a number of bytes in human-readable form, such as `12.3 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Format a number of seconds in human-readable form, such as `1.2 s`, `3 min 4 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
