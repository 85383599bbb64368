"""Finds write conflicts: two mirrors that would write the same tag to the same target repository.

Conflicts between mirrors without wildcards are configuration errors. With a wildcard, they can be found only after the
catalog of the source has been read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mirror.errors import Refused
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.selection.repository_rules import RepositoryRules, can_match
from mirror.selection.tag_templates import common_tag
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from mirror.util.structs import replace


def find_possible_conflicts(entries: Sequence[MirrorEntry]) -> list[MirrorEntry]:
    """Return the entries that may write the same tags to one repository, depending on what a wildcard matches.

    Two targets of one wildcard may also conflict with each other."""
    by_host: defaultdict[str, list[tuple[int, TargetEntry]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        for target in entry.targets:
            by_host[target.repository.host].append((number, target))
    conflicting: set[int] = set()
    for written in by_host.values():
        for position, (number, target) in enumerate(written):
            if not entries[number].wildcard:
                continue
            for other_position, (other, other_target) in enumerate(written):
                if (
                    position != other_position
                    and _may_be_equal(
                        target.repository.path, other_target.repository.path, entries[number].repository_rules
                    )
                    and common_tag(entries[number].rules, entries[other].rules, target.tags, other_target.tags)
                ):
                    conflicting |= {number, other}
    return [entries[number] for number in sorted(conflicting)]


def _may_be_equal(template: str, path: str, rules: RepositoryRules) -> bool:
    """Return whether two target paths may be equal: a template, and a path or another template.

    rules: restrict the text that replaces the wildcard in `template`. If `path` is also a template, the rules are not
    applied."""
    if MATCHED not in path:
        return can_match(path, template, rules)
    before, _, after = template.partition(MATCHED)
    other_before, _, other_after = path.partition(MATCHED)
    prefixes_agree = before.startswith(other_before) or other_before.startswith(before)
    return prefixes_agree and (after.endswith(other_after) or other_after.endswith(after))


class WriteConflicts:
    """Finds mirror entries that may write the same tags to the same target repository.

    entries: the entries that may conflict, without wildcards, in the order of the configuration."""

    def __init__(self, entries: Iterable[MirrorEntry] = ()) -> None:
        self._writers: defaultdict[Repository, list[tuple[MirrorEntry, TargetEntry]]] = defaultdict(list)
        for entry in entries:
            for target in entry.targets:
                self._writers[target.repository].append((entry, target))

    def remove_conflicts(self, entry: MirrorEntry) -> tuple[MirrorEntry, list[tuple[MirrorEntry, Refused]]]:
        """Remove the targets of a mirror to which another mirror may write the same tags.

        Return the entry with the remaining targets. Also return, for each removed target, an entry with only this
        target, and the error."""
        errors = [(target, self._find_conflict(entry, target)) for target in entry.targets]
        conflicts = [(replace(entry, targets=(target,)), error) for target, error in errors if error is not None]
        if not conflicts:
            return entry, []
        return replace(entry, targets=tuple(target for target, error in errors if error is None)), conflicts

    def _find_conflict(self, entry: MirrorEntry, target: TargetEntry) -> Refused | None:
        """Return an error if another mirror, or another target of the mirror, may write the same tags to a target."""
        others = (
            writer
            for writer, other_target in self._writers.get(target.repository, ())
            if (writer is not entry or other_target is not target)
            and common_tag(entry.rules, writer.rules, target.tags, other_target.tags)
        )
        other = next(others, None)
        if other is None:
            return None
        repository = target.repository
        return Refused(
            f"{entry.name} and {other.name} would write the same tags in {repository}, so neither is copied to it",
            hint="change the target or the selected tags of one of these mirrors",
            code="target_conflict",
        )
