"""Collects the tags that the mirrors of a configuration select for target repositories. Contacts only the sources.

A tag may be deleted only if it is certain that no mirror selects it. If a mirror cannot be planned, or its source lists
no tags, nothing is deleted from the repositories to which the mirror might write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.selection.repository_rules import RepositoryRules, can_match
from mirror.selection.tag_rules import SelectionSummary
from mirror.sync.plan_model import MirrorEntry, PlanEntry, SourceReference, TargetEntry
from mirror.sync.prune_plan import PruneRefused
from mirror.util.structs import Struct, field


class SelectedRepository(Struct):
    """The references that all mirrors select for one target repository.

    references: the tags, and the digests of images without a tag. mirrors: the mirrors that write to the repository,
    with wildcards expanded, each with its target."""

    target: TargetEntry
    references: set[str] = field(default_factory=set)
    mirrors: list[tuple[MirrorEntry, TargetEntry]] = field(default_factory=list)


class PruneSelection:
    """Collects the references that all mirrors select, by target repository. Implements PlanReceiver.

    repositories: the selections, by the name of the target repository. listed: the tag lists that were read, by the
    name of the source repository."""

    def __init__(self) -> None:
        self.repositories: dict[str, SelectedRepository] = {}
        self.listed: dict[str, frozenset[str]] = {}
        self._failures: list[tuple[str, RepositoryRules | None, MirrorError]] = []

    def error_for(self, repository: str) -> MirrorError | None:
        """Return the error that makes the selection for a target repository unknown, or None if it is known."""
        found = (error for template, rules, error in self._failures if can_match(repository, template, rules))
        return next(found, None)

    @property
    def failures(self) -> dict[str, MirrorError]:
        """The target repositories for which the selection is unknown, each with the error. `*` is a wildcard."""
        return {template.replace(MATCHED, "*"): error for template, _, error in self._failures}

    def keep_tags(self, entry: MirrorEntry, tags: Iterable[str]) -> None:
        """Keep the tag list of a source. May be called on any thread."""
        self.listed[entry.name] = frozenset(tags)

    def receive(self, references: Sequence[SourceReference]) -> None:
        """Add the selected references of one source repository to the selections of its targets."""
        for reference in references:
            for target in reference.entry.targets:
                self._repository(target).references.add(target.tag_of(reference))

    def _repository(self, target: TargetEntry) -> SelectedRepository:
        """Return the selection for the repository of a target."""
        return self.repositories.setdefault(str(target.repository), SelectedRepository(target))

    # ---- the other methods of PlanReceiver

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Add a mirror to its target repositories. Tags that wait for `min-age` stay on the targets."""
        for target in entry.targets:
            repository = self._repository(target)
            repository.mirrors.append((entry, target))
            repository.references.update(target.tags.apply(tag) for tag in selection.waiting)
        if not selection.count and not selection.rejected and not entry.rules.is_literal:
            what = f"the source {entry.name} lists no tags"
            hint = "if the source is really empty, delete the tags on the target manually"
            self._add_failure(entry, PruneRefused(what, hint=hint))

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that the selection of a mirror is unknown."""
        self._add_failure(entry, error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a source lists an invalid name, because its list may be damaged."""
        self._add_failure(entry, error)

    def _add_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an error for all repositories to which a mirror may write."""
        for target in entry.targets:
            self._failures.append((str(target.repository), entry.repository_rules, error))

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Do nothing, because targets are not planned."""

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing, because targets are not planned."""

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing, because the number of repositories that each rule rejects is not needed."""
