"""What a run did, in a few lines for people: what happened, what failed, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from mirror.errors import FAILED, SIGNALLED, printable
from mirror.output.report.files import Report
from mirror.output.report.records import Effort, Told, Totals

_IMAGES = {"copied": "copied", "up-to-date": "up to date", "failed": "failed", "conflict": "in conflict"}
_BLOBS = {
    "copied": "copied",
    "mounted": "mounted",
    "exists": "there already",
    "failed": "failed",
    "interrupted": "interrupted",
}


def summary(report: Report, effort: Effort, exit_code: int, *, config: Path, parts: bool = True) -> list[str]:
    """Lines for standard output; exactly one where everything was up to date already. config: the configuration file;
    parts: whether a run for some of the references makes sense: not where a target is a bundle."""
    totals = report.totals
    requests = count(sum(sum(kinds.values()) for kinds in effort.requests.values()), "request")
    stopped = exit_code >= SIGNALLED
    if not stopped and set(totals.images) <= {"up-to-date"}:
        return [f"{_unchanged(totals)}; {requests}, {duration(effort.seconds)}"]
    lines = ["stopped by a signal: what was done stays done, and the next run goes on from there"] if stopped else []
    lines.append(f"images: {_listed(totals.images, {**_IMAGES, 'skipped': 'skipped'})}")
    if any(totals.blobs.values()):
        lines.append(f"blobs: {_listed(totals.blobs, _BLOBS)}; {_moved(totals)}")
    retries = ""
    if effort.retries:
        # The sum over all that waited at the same time would be more than the run took.
        retries = f", {count(effort.retries, 'retry', 'retries')} (longest pause {duration(effort.longest_wait)})"
    lines.append(f"cost: {requests}{retries}, {duration(effort.seconds)}")
    lines += _failures(report, effort)
    if totals.images.get("failed") and exit_code == FAILED and parts:
        command = shlex.join(["mirror", "sync", str(config), "--only-from", str(report.failed_path)])
        lines.append(f"to retry only these: {command}")
    return lines


def _unchanged(totals: Totals) -> str:
    if not totals.images:
        return "nothing to do: no image is selected"
    return f"up to date: {count(len(totals.sources), 'image')} on {count(len(totals.hosts), 'target')}"


def _moved(totals: Totals) -> str:
    moved = f"{size(totals.bytes['read'])} read, {size(totals.bytes['sent'])} sent"
    return f"{moved}, {size(totals.bytes['mounted'])} saved by mounts" if totals.bytes["mounted"] else moved


def _failures(report: Report, effort: Effort) -> list[str]:
    lines: list[str] = []
    last_hint = ""
    for told in report.told:
        lines.append(_failure(told))
        if told.hint and told.hint != last_hint:
            lines.append(f"    {told.hint}")
        last_hint = told.hint
    more = report.totals.images["failed"] + report.totals.images["conflict"] - len(report.told)
    if more > 0:
        lines.append(f"and {more} more: see {report.failed_path} and {report.path}")
    if effort.retry_after is not None:
        lines.append(f"a registry asked to be left alone for {duration(effort.retry_after)}: run again after that")
    return lines


def _failure(told: Told) -> str:
    word = "conflict" if told.result == "conflict" else "failed"
    return f"{word}: {printable(told.source)} -> {printable(told.target)}: {told.message}"


def _listed(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts.get(key)) or "none"


def count(number: int, one: str, more: str = "") -> str:
    """`1 image`, `2 images`; more: where that is no `s` more."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def size(count: float) -> str:
    """Bytes for people: `12.3 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: `1.2 s`, `3 min 4 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
