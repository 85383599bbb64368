"""The lines that `mirror prune` prints."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mirror.commands.summaries import unrecorded_lines
from mirror.errors import printable
from mirror.output.report import format_count, format_size
from mirror.sync.prune_plan import PrunePlan, RepositoryPlan
from mirror.sync.pruner import Outcome
from mirror.util.shell_commands import insert_path, quote_path
from mirror.util.wrapping import wrap_line

_LISTED = 50  # maximum number of repositories or errors that are listed
_NAMES = 10  # maximum number of names in one list


def plan_lines(plan: PrunePlan, file: Path, *, limit: float, has_records: bool) -> list[str]:
    """Return the lines that describe a plan: the tags to delete and to keep, errors, and the command that applies it.

    file: the file with the plan. limit: the default of `--max-delete`, in percent. has_records: whether the state
    records that syncs with this configuration wrote anything."""
    lines = [line for repository in plan.repositories[:_LISTED] for line in _repository_lines(repository)]
    lines += _more_line(len(plan.repositories), "repository", "repositories")
    by_reason = _group((reason, name) for name, reason in sorted(plan.kept.items()))
    lines += [line for reason, names in by_reason.items() for line in _name_lines(f"kept: {reason}: ", names)]
    for name, error in sorted(plan.refused.items())[:_LISTED]:
        lines += _wrap(f"nothing is deleted from {printable(name)}: {insert_path(str(error), plan.config)}")
    lines += _more_line(len(plan.refused), "repository", "repositories")
    lines += [part for line in unrecorded_lines(plan.unrecorded) for part in _wrap(line)]
    if not has_records:
        lines.append("the state has no record of tags that a sync with this configuration copied")
    if not plan.repositories:
        return [*lines, "nothing to delete"]
    return [*lines, *_apply_hint(plan, file, limit)]


def _repository_lines(repository: RepositoryPlan) -> list[str]:
    """Return the lines for one repository: the tags that would be deleted, by reason."""
    attachments = len(repository.attachments)
    also = f" and {format_count(attachments, 'attachment')}" if attachments else ""
    count = f"{len(repository.tags)} of {format_count(repository.owned, 'tag')}"
    lines = [f"{printable(repository.name)}: delete {count}{also}"]
    for reason, tags in _group((one.reason, one.reference) for one in repository.tags).items():
        lines += _name_lines(f"  {reason}: ", tags)
    for one in repository.tags:
        if one.shares_with:
            lines += _name_lines(
                f"  {one.reference} has the same manifest as these tags, which stay: ", one.shares_with
            )
    return lines


def _apply_hint(plan: PrunePlan, file: Path, limit: float) -> list[str]:
    """Return the lines with the totals of a plan, and with the command that applies it."""
    tags = sum(len(repository.tags) for repository in plan.repositories)
    attachments = sum(len(repository.attachments) for repository in plan.repositories)
    also = f" and {format_count(attachments, 'attachment')}" if attachments else ""
    where = format_count(len(plan.repositories), "repository", "repositories")
    lines = [f"to delete: {format_count(tags, 'tag')}{also} in {where}"]
    command = f"mirror prune {quote_path(plan.config)} --apply {quote_path(file)}"
    highest = max(repository.percent for repository in plan.repositories)
    if highest > limit:
        lines.append(f"this is more than {limit:g} % of the copied tags of a repository: a higher limit is needed")
        command += f" --max-delete {math.ceil(highest)}"
    lines.append(f"to delete them within 24 hours: {command}")
    return lines


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group pairs by their first element, and return the second elements of each group."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def _name_lines(start: str, names: Sequence[str]) -> list[str]:
    """Return lines that consist of `start` and the first _NAMES names."""
    more = f", and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return _wrap(f"{start}{', '.join(map(printable, names[:_NAMES]))}{more}")


def _more_line(count: int, one: str, more: str) -> list[str]:
    """Return a line with the number of objects beyond the first _LISTED objects, if there are more.

    count: the number of all objects. one, more: the name of an object, in the singular and the plural."""
    rest = format_count(count - _LISTED, f"more {one}", f"more {more}")
    return [f"and {rest}; see the file"] if count > _LISTED else []


def _wrap(text: str) -> list[str]:
    """Split a text into lines of at most 80 columns, unless a word is longer."""
    return wrap_line(text, 80)


def apply_lines(
    outcomes: Mapping[str, Outcome], problems: Sequence[tuple[str, str]], report: Path, freed: int
) -> list[str]:
    """Return the lines that `prune --apply` prints.

    outcomes: by name on the target. problems: the names of tags and hosts with errors, each with the error. freed: the
    number of bytes that were freed in stores on disk."""
    counts = Counter(outcomes.values())
    words: dict[Outcome, str] = {"deleted": "deleted", "gone": "already gone", "kept": "kept", "failed": "failed"}
    text = ", ".join(f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome])
    freed_text = f"; {format_size(freed)} freed" if freed else ""
    lines = [f"tags and attachments: {text or 'none'}{freed_text}"]
    for reason, names in list(_group((reason, name) for name, reason in problems).items())[:_LISTED]:
        lines += _wrap(f"not deleted: {reason}")
        lines += _name_lines("  ", names)
    if problems:
        lines.append(f"report: {report}")
    return lines
