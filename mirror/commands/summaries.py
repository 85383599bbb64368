"""The lines that `plan` and `verify` print."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mirror.errors import printable
from mirror.output.report import Causes, ChangeRow, FailedImage, cause_lines, change_table
from mirror.output.report.causes import repository_name
from mirror.output.report.changes import sort_key
from mirror.output.report.units import format_count, format_size
from mirror.selection.tag_rules import SelectionSummary
from mirror.sync.dry_run import PlannedCopy, PlanSummary
from mirror.sync.locked_selection import Drift, DriftKind
from mirror.sync.unrecorded_tags import UnrecordedTags
from mirror.sync.verifier import VerifyResult
from mirror.util.shell_commands import quote_path
from mirror.util.wrapping import line_width, wrap_line

MAX_EXAMPLES = 3  # repositories of a wildcard that are named in one line
MAX_TARGETS = 10  # targets whose tags of others are counted on a line of their own


def plan_lines(summary: PlanSummary, config: Path, *, verbose: bool = False) -> list[str]:
    """Return the lines that `plan` prints: the images that a sync would copy, the causes of failures, and totals.

    verbose: whether each repository of a wildcard has its own line about tags that are left out."""
    changes = sorted(summary.changes, key=lambda change: (sort_key(change.target), change.source))
    lines = change_table(map(_change_row, changes), line_width()) if changes else []
    lines += cause_lines(group_by_cause(summary.failures), config=config, width=line_width())
    for source, rejected in sorted(summary.rejected_repositories.items()):
        lines += wrap_line(f"{source}: repositories left out: {_count_text(rejected)}", line_width())
    for line in _selection_lines(summary, verbose=verbose):
        lines += wrap_line(line, line_width())
    lines += [f"rebuild {bundle}: {reason}" for bundle, reason in summary.bundles_to_rebuild.items()]
    lines += _other_platforms_lines(summary.other_platforms)
    for line in unrecorded_lines(summary.unrecorded):
        lines += wrap_line(line, line_width())
    if not summary.changes:
        rebuild = (
            f"; {format_count(len(summary.bundles_to_rebuild), 'bundle')} to rebuild"
            if summary.bundles_to_rebuild
            else ""
        )
        return [
            *lines,
            f"nothing to copy; {summary.up_to_date} up to date{rebuild}{_unknown_text(len(summary.failures))}",
        ]
    kinds = Counter(change.kind for change in summary.changes)
    compare = f"; {kinds['compare']} to compare" if kinds["compare"] else ""
    attach = f"; {format_count(kinds['attach'], 'image')} with new attachments" if kinds["attach"] else ""
    converted = len({change.source for change in summary.changes if change.size is None})
    unknown = f"; plus {format_count(converted, 'image')} to be converted, of unknown size" if converted else ""
    totals = [
        f"to copy: {kinds['new']} new, {kinds['changed']} changed{compare}{attach}; {summary.up_to_date} up to date"
        f"{_unknown_text(len(summary.failures))}",
        f"at most {format_size(summary.bytes_to_read)} to read, {format_size(summary.bytes_to_send)} to send; "
        f"{format_count(summary.manifests, 'manifest request')} that count{'s' if summary.manifests == 1 else ''} "
        f"against a pull quota{unknown}",
    ]
    return lines + [part for line in totals for part in wrap_line(line, line_width())]


def unrecorded_lines(found: Sequence[UnrecordedTags]) -> list[str]:
    """Return a line for each target with tags that no sync with this configuration wrote. At most MAX_TARGETS lines."""
    lines = []
    for one in found[:MAX_TARGETS]:
        where = f" in {format_count(one.repositories, 'repository', 'repositories')}" if "*" in one.target else ""
        were = "was" if one.tags == 1 else "were"
        text = f"{format_count(one.tags, 'tag')}{where} {were} not written by a sync with this configuration"
        lines.append(f"{printable(one.target)}: {text}")
    more = found[MAX_TARGETS:]
    if more:
        tags = format_count(sum(one.tags for one in more), "such tag")
        lines.append(f"and {tags} on {format_count(len(more), 'other target')}")
    return lines


def _count_text(rejected: Mapping[str, int]) -> str:
    """Return the number of names that each rule leaves out, as text, such as `3 by include`."""
    return ", ".join(f"{count} by {printable(rule, 80)}" for rule, count in sorted(rejected.items()))


def _selection_lines(summary: PlanSummary, *, verbose: bool) -> Iterator[str]:
    """Yield lines about the tags that the rules of each mirror leave out.

    The repositories of a wildcard share one line of each kind.

    verbose: whether each repository has its own line instead."""
    mirrors: defaultdict[str, dict[str, SelectionSummary]] = defaultdict(dict)
    for source, selection in sorted(summary.selections.items()):
        mirrors[source if verbose else summary.mirrors.get(source, source)][source] = selection
    for mirror, selections in sorted(mirrors.items()):
        for describe in (_left_out_text, _dates_text):
            found = {source: selection for source, selection in selections.items() if describe(selection)}
            if len(found) == 1:
                ((source, selection),) = found.items()
                yield f"{source}: {describe(selection)}"
            elif found:
                text = describe(_merge_selections(list(found.values())))
                yield f"{mirror}: {text} (in {len(found)} repositories: {_examples_text(list(found))})"


def _merge_selections(selections: Sequence[SelectionSummary]) -> SelectionSummary:
    """Return the sums of the selections of several repositories."""
    rejected = Counter[str]()
    for one in selections:
        rejected.update(one.rejected)
    ends = min((one.wait_ends for one in selections if one.wait_ends is not None), default=None)
    return SelectionSummary(
        sum(one.count for one in selections), rejected, ends, sum(one.dates_read for one in selections)
    )


def _examples_text(names: Sequence[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    more = f" and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else ""
    return ", ".join(names[:MAX_EXAMPLES]) + more


def _left_out_text(selection: SelectionSummary) -> str:
    """Return how many tags each rule leaves out, and until when tags wait, or an empty string."""
    rejected = dict(selection.rejected)
    waiting = rejected.pop("min-age", 0)
    parts = [_count_text(rejected)] if rejected else []
    if selection.wait_ends is not None:
        # Rounded up to a whole minute: a sync at this time selects the tag.
        end = datetime.fromtimestamp(math.ceil(selection.wait_ends / 60) * 60, UTC)
        until = "waits for min-age, until" if waiting == 1 else "wait for min-age, the first until"
        parts.append(f"{waiting} {until} {end:%Y-%m-%d %H:%M} UTC")
    return f"tags left out: {', '.join(parts)}" if parts else ""


def _dates_text(selection: SelectionSummary) -> str:
    """Return how many images lack a recorded date, or an empty string."""
    images = format_count(selection.dates_read, "image")
    text = f"the creation dates of {images} are not recorded; the next sync reads them again"
    return text if selection.dates_read else ""


def _other_platforms_lines(count: int) -> list[str]:
    """Return the line for images that are skipped because of their platform, or nothing if there are none."""
    return [f"skipped: {format_count(count, 'image')} for other platforms"] if count else []


def _change_row(change: PlannedCopy) -> ChangeRow:
    """Return the row of the table for one planned change."""
    source, target = repository_name(change.source), repository_name(change.target)
    tag, source_tag = change.target[len(target) :], change.source[len(source) :]
    notes = [] if source_tag == tag else [f"from the tag {source_tag.removeprefix(':')}"]
    if change.size is None:
        notes.append(f"{change.protocol}, to be converted{f': {change.reason}' if change.reason else ''}")
    if change.attachments:
        notes.append(format_count(change.attachments, "attachment"))
    size = "" if change.size is None else format_size(change.size)
    return ChangeRow(
        f"{source} -> {target}",
        tag,
        change.kind,
        change.old_digest,
        change.digest,
        (size,),
        printable("; ".join(notes)),
    )


def _unknown_text(count: int) -> str:
    """Return the end of a line about images whose state is unknown, or an empty string if there are none."""
    return f"; {count} unknown" if count else ""


def group_by_cause(failures: Iterable[FailedImage]) -> Causes:
    """Group failures by their cause."""
    causes = Causes()
    for failed in failures:
        causes.add(failed)
    return causes


def drift_lines(drifts: Sequence[Drift], file: Path, config: Path) -> list[str]:
    """Return the lines that `plan --locked` prints: how the sources differ from the image lock, and the totals.

    file: the image lock. config: the configuration. If two mirrors with the same source have the same difference, it
    is printed once."""
    different = set(drifts)
    width, lines = line_width(), list[str]()
    for drift in sorted(different, key=lambda drift: (drift.name, drift.kind.value)):
        lines += wrap_line(_drift_line(drift), width)
    if not drifts:
        return [f"{printable(file)}: matches the sources"]
    kinds = Counter(drift.kind.value for drift in different)
    counts = ", ".join(f"{kinds[kind.value]} {kind.value}" for kind in DriftKind if kinds[kind.value])
    command = f"`mirror lock {quote_path(config)} -o {quote_path(file)}`"
    return lines + wrap_line(
        f"{printable(file)}: {counts}; to lock the current state of the sources, run {command}", width
    )


def _drift_line(drift: Drift) -> str:
    """Return the line for one difference between the image lock and a source."""
    now = drift.current or "an image to be converted"
    what = {
        DriftKind.MOVED: f"locked {drift.locked}, the source has {now}",
        DriftKind.DELETED: f"locked {drift.locked}, the source no longer has the tag",
        DriftKind.DROPPED: f"locked {drift.locked}, the configuration no longer selects the tag",
        DriftKind.UNLOCKED: f"not locked, the source has {now}",
        DriftKind.ATTACHED: f"the image has the attachment {drift.current}, which is not locked",
        DriftKind.DETACHED: f"the image no longer has the attachment {drift.locked}",
        DriftKind.EXCLUDED: f"the configuration no longer selects the attachment {drift.locked}",
    }
    return f"{drift.kind.value:8} {drift.name}: {what[drift.kind]}"


def verification_lines(result: VerifyResult, config: Path, *, deep: bool, report: Path | None) -> list[str]:
    """Return the lines that `verify` prints: a block for each cause of problems, then the totals.

    report: the file with all results, if one was written."""
    problems, width = result.problems, line_width()
    name = quote_path(config)
    command = f"mirror verify {'--deep ' if deep else ''}{name} --report verify.json"
    details = printable(report) if report is not None else f"run `{command}`"
    lines = cause_lines(group_by_cause(problems), config=config, width=width, details=details)
    verdict = format_count(len(problems), "problem") if problems else "all complete"
    lines += _other_platforms_lines(result.other_platforms)
    if result.uncompared:
        many = result.uncompared != 1
        verdict = f"{verdict if problems else 'complete'}, but {result.uncompared} not compared"
        lines.append(
            f"{format_count(result.uncompared, 'image')} could not be compared with "
            f"{'their' if many else 'its'} source: "
            f"{'they are' if many else 'it is'} converted, and the digest of the result is not known "
            f"(run `mirror sync {name}` or `mirror verify --deep {name}` to compare)"
        )
    how = format_count(result.blobs, "blob")
    how += f", {format_count(result.attachments, 'attachment')}" if result.attachments else ""
    how += f", {format_size(result.bytes)} hashed" if deep else ""
    outcome = "checked" if problems else "verified"
    lines.append(f"{outcome}: {format_count(result.images, 'image')}, {how}; {verdict}")
    return [part for line in lines for part in wrap_line(line, width)]
