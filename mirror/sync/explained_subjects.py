"""The subjects of `mirror explain`, and the filter that limits its plan to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mirror.sync.plan_model import MirrorEntry, reference_suffix
from mirror.util.structs import Struct


class Subject(Struct, frozen=True):
    """The subject of an explanation: a source repository of one mirror, or a tag or digest in it.

    entry: the mirror for this repository, with only the targets to explain. identifier: the tag or digest, or None for
    the whole repository. repository_rule: the rule of `repositories` that leaves out the repository, or None if no
    rule leaves it out."""

    entry: MirrorEntry
    identifier: str | None
    repository_rule: str | None = None

    @property
    def source(self) -> str:
        """The name of the subject at the source, as a repository or a reference."""
        return self.entry.name + (reference_suffix(self.identifier) if self.identifier else "")


class SubjectFilter:
    """Selects the references of the subjects of an explanation. Implements RepositoryFilter."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._repositories = {subject.entry.name for subject in subjects}
        self._references = {subject.source for subject in subjects if subject.identifier}
        self._all = any(subject.identifier is None for subject in subjects)

    def is_selected(self, reference: str) -> bool:
        """Return whether a source reference is one of the subjects, or in a repository that is a subject."""
        return self._all or reference in self._references

    def excludes_any(self, references: Iterable[str]) -> bool:
        """Return False, because the explained sync does not exclude references."""
        return False

    def may_select(self, repository: str) -> bool:
        """Return whether a source repository is the repository of a subject."""
        return repository in self._repositories

    def mark_unlisted(self, repository: str) -> None:
        """Do nothing, because the subjects are not patterns that could be unused."""
