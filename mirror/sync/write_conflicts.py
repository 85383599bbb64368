"""Write conflicts: two mirrors must not write one tag of one target repository.

The configuration shows those of mirrors without wildcards, and is refused. With a wildcard, only a catalog shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mirror.errors import Refused
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import overlap
from mirror.sync.plan_model import MirrorEntry
from mirror.util.structs import replace


def may_conflict(entries: Sequence[MirrorEntry]) -> list[MirrorEntry]:
    """The entries of which a catalog may show a write conflict: a wildcard and what may write to the same repository.

    A wildcard may also conflict with itself, by two of its targets."""
    by_host: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        for target in entry.targets:
            by_host[target.repository.host].append((number, target.repository.path))
    found: set[int] = set()
    for written in by_host.values():
        for at, (number, path) in enumerate(written):
            if not entries[number].wildcard:
                continue
            for other_at, (other, other_path) in enumerate(written):
                if (
                    at != other_at
                    and _may_be_equal(path, other_path)
                    and overlap(entries[number].rules, entries[other].rules)
                ):
                    found |= {number, other}
    return [entries[number] for number in sorted(found)]


def _may_be_equal(template: str, path: str) -> bool:
    """Whether a template can become `path`, or what `path`, if it is a template itself, can become."""
    before, _, after = template.partition(MATCHED)
    other_before, matched, other_after = path.partition(MATCHED)
    if not matched:
        return len(path) > len(before) + len(after) and path.startswith(before) and path.endswith(after)
    begin = before.startswith(other_before) or other_before.startswith(before)
    return begin and (after.endswith(other_after) or other_after.endswith(after))


class WriteConflicts:
    """What each repository of some entries writes. entries: without wildcards, in the order of the configuration."""

    def __init__(self, entries: Iterable[MirrorEntry] = ()) -> None:
        self._writers: defaultdict[Repository, list[MirrorEntry]] = defaultdict(list)
        for entry in entries:
            for target in entry.targets:
                self._writers[target.repository].append(entry)

    def without_conflicts(self, entry: MirrorEntry) -> tuple[MirrorEntry, list[tuple[MirrorEntry, Refused]]]:
        """Without the targets where another entry may write the same tags -> these, each with the reason."""
        errors = [(target, self._conflict(entry, target.repository)) for target in entry.targets]
        conflicts = [(replace(entry, targets=(target,)), error) for target, error in errors if error is not None]
        if not conflicts:
            return entry, []
        return replace(entry, targets=tuple(target for target, error in errors if error is None)), conflicts

    def _conflict(self, entry: MirrorEntry, repository: Repository) -> Refused | None:
        writers = self._writers.get(repository, ())
        others = [one for one in writers if one is not entry]
        if len(writers) - len(others) > 1:
            others.append(entry)  # by two of its own targets
        other = next((one for one in others if overlap(entry.rules, one.rules)), None)
        if other is None:
            return None
        return Refused(
            f"{entry.name} and {other.name} would write the same tags of {repository}; nothing is written there",
            hint="give one of them another target, or other tags",
            code="target_conflict",
        )
