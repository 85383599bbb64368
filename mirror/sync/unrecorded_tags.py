"""Counts the tags on targets that no sync with this configuration wrote, according to the state."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mirror.oci.reference import Repository
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.locations import MATCHED, is_bundle
from mirror.selection.repository_rules import can_match
from mirror.state.ownership import OwnershipRecords
from mirror.sync.plan_model import MirrorEntry
from mirror.util.structs import Struct


class UnrecordedTags(Struct, frozen=True):
    """The number of unrecorded tags in the repositories of one target.

    target: the target as the configuration names it, with `*` for a wildcard. repositories: the number of repositories
    that have such tags."""

    target: str
    repositories: int
    tags: int


class UnrecordedTagCounter:
    """Counts the unrecorded tags of target repositories whose tags are listed. Thread-safe.

    Tags of attachments are not counted. records: what syncs with this configuration wrote."""

    def __init__(self, records: OwnershipRecords) -> None:
        self._records = records
        self._counts: dict[Repository, int] = {}

    def count(self, repository: Repository, tags: Collection[str]) -> None:
        """Count the unrecorded tags of one repository. tags: all its tags. Reads the state."""
        if is_bundle(repository.host):
            return
        written = {one.reference for one in self._records.written(str(repository))}
        self._counts[repository] = sum(tag not in written and not is_attachment_tag(tag) for tag in tags)

    def by_target(self, entries: Sequence[MirrorEntry]) -> list[UnrecordedTags]:
        """Return the numbers for each target that has unrecorded tags. entries: the mirrors, with their wildcards."""
        targets = dict.fromkeys(target.repository for entry in entries for target in entry.targets)
        wildcards = [target for target in targets if MATCHED in target.path]
        numbers: dict[Repository, list[int]] = {}
        for repository, count in self._counts.items():
            target = repository
            if repository not in targets:
                matching = (one for one in wildcards if one.host == repository.host)
                target = next((one for one in matching if can_match(repository.path, one.path)), repository)
            if count:
                numbers.setdefault(target, []).append(count)
        found = [
            UnrecordedTags(str(target).replace(MATCHED, "*"), len(counts), sum(counts))
            for target, counts in numbers.items()
        ]
        return sorted(found, key=lambda one: one.target)
