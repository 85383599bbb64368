"""What planning is about and what it finds: mirrors, references of their sources, and a verdict for each target."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from mirror.errors import MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag, Repository
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import TagRules
from mirror.store import Source, Version
from mirror.util.structs import Struct, replace


class TargetEntry(Struct, frozen=True):
    """A repository to be kept equal. exclusive: nobody else writes there, so what is remembered is believed."""

    store: Source
    repository: Repository
    exclusive: bool = False


class MirrorEntry(Struct, frozen=True):
    """One mirror: a source repository, what is selected of it, and its targets.

    heads_first: the source counts manifest GETs against a quota but no HEADs, so digests are asked for first.
    wildcard: repository is a prefix; every repository under it takes part, and what it has beyond the prefix stands
    in the targets for MATCHED."""

    source: Source
    repository: str
    rules: TagRules
    targets: tuple[TargetEntry, ...]
    heads_first: bool = False
    schema1: bool = True
    wildcard: bool = False

    @property
    def name(self) -> str:
        if self.wildcard:
            return str(Repository(self.source.host, f"{self.repository}/*" if self.repository else "*"))
        return str(Repository(self.source.host, self.repository))

    def for_repository(self, repository: str) -> MirrorEntry:
        """The mirror of one repository that the wildcard matched."""
        matched = repository.removeprefix(f"{self.repository}/" if self.repository else "")
        targets = (
            replace(
                target, repository=Repository(target.repository.host, target.repository.path.replace(MATCHED, matched))
            )
            for target in self.targets
        )
        return replace(self, repository=repository, targets=tuple(targets), wildcard=False)


class SourceReference(Struct, eq=False):
    """One reference of a source, resolved at most once in a run and read once for all targets.

    identifier: the tag or digest that is requested from the source; tag: its name on the targets, a digest if it has no
    tag; version: what it refers to, None before the request; users: targets that may still need its image."""

    entry: MirrorEntry
    identifier: str
    tag: str
    version: Version | MirrorError | None = None
    users: int = 0

    @property
    def name(self) -> str:
        return self.entry.name + suffix(self.tag)


class Action(Enum):
    """What is to be done for one (reference, target)."""

    EQUAL = "equal"
    COPY = "copy"
    FAILED = "failed"


class PlanEntry(Struct, frozen=True, eq=False):
    """The verdict on one reference for one target.

    old: what the target's tag names now; may_have: the repository may hold blobs already; broken: the target cannot
    say what its tag names, since its copy is damaged: a push may not replace that."""

    reference: SourceReference
    target: TargetEntry
    action: Action
    old: Digest | None = None
    may_have: bool = True
    broken: bool = False
    error: MirrorError | None = None

    @property
    def name(self) -> str:
        """The reference on the target."""
        return str(self.target.repository) + suffix(self.reference.tag)


class RepositoryFilter(Protocol):
    """What takes part (`--only`, shards)."""

    def is_selected(self, reference: str) -> bool: ...
    def may_select(self, repository: str) -> bool: ...
    def note_unlisted(self, repository: str) -> None: ...


class PlanReceiver(Protocol):
    """Takes what planning finds. Called on the event loop; must not block."""

    def found(self, planned: PlanEntry) -> None: ...
    def listing_failed(self, entry: MirrorEntry, error: MirrorError) -> None: ...
    def reject_name(self, entry: MirrorEntry, error: MirrorError) -> None: ...
    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None: ...
    def selected(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None: ...


class PlanHints(Protocol):
    """What earlier runs noted. Does I/O."""

    def target_tag(self, repository: str, tag: str) -> Digest | None: ...
    def source_tag(self, repository: str, tag: str) -> Digest | None: ...
    def transform_digest(self, identity: str) -> Digest | None: ...
    def is_unfinished(self, repository: str) -> bool: ...


def suffix(reference: str) -> str:
    """`:tag` or `@digest`."""
    return ("@" if ":" in reference else ":") + reference


def listed_version(tag: str) -> Version | None:
    """What a tag names, where the list of tags itself says so."""
    return Version(tag.digest) if isinstance(tag, ListedTag) else None


def plan_image(
    reference: SourceReference,
    target: TargetEntry,
    old: Digest | MirrorError | None,
    *,
    believed: Digest | None = None,
    may_have: bool = True,
    broken: bool = False,
    repair: bool = False,
    was: str | None = None,
) -> PlanEntry:
    """The finding for one reference, from what the source and the target answered. reading.version: None: the source
    was not asked; believed: the digest that an immutable tag had on both sides in an earlier run; was: the one that a
    damaged tag had, if that is known: with `repair` an immutable tag gets back what it had, and nothing else."""
    version = reference.version
    if isinstance(old, MirrorError):
        failed = PlanEntry(reference, target, Action.FAILED, error=old)
        return _repaired(failed, old, was, may_have=may_have) if broken and repair else failed
    if old is not None and old == believed:
        return PlanEntry(reference, target, Action.EQUAL, old)
    if isinstance(version, MirrorError):
        return PlanEntry(reference, target, Action.FAILED, old, error=version)
    if version is not None and old is not None and version.digest == old:
        return PlanEntry(reference, target, Action.EQUAL, old)
    if (
        old is not None
        and reference.entry.rules.is_immutable(reference.tag)
        and not (version and version.needs_transform)
    ):
        return PlanEntry(reference, target, Action.FAILED, old, error=immutable_conflict(version, old))
    return PlanEntry(reference, target, Action.COPY, old, may_have, broken)


def _repaired(failed: PlanEntry, error: MirrorError, was: str | None, *, may_have: bool) -> PlanEntry:
    """The finding for a damaged immutable tag in a run with `--repair`: a copy if the source has what the tag had."""
    version = failed.reference.version
    if was is not None and isinstance(version, Version) and version.digest == was:
        return replace(failed, action=Action.COPY, may_have=may_have, broken=True, error=None)
    told = error.with_text(f"{error.what}; the tag is immutable, and it is not known to have had what the source has")
    told.hint = "remove the tag on the target by hand, then run `mirror sync CONFIG`"
    return replace(failed, error=told)


def check_immutable(planned: PlanEntry, made: Digest) -> None:
    """Raises Refused if `made`, which only a transform could tell, is not what the target's immutable tag has."""
    old, reference = planned.old, planned.reference
    if old is not None and old != made and reference.entry.rules.is_immutable(reference.tag):
        raise immutable_conflict(Version(made), old)


def immutable_conflict(version: Version | None, old: Digest) -> Refused:
    theirs = version.digest if version is not None and version.digest is not None else "something else"
    return Refused(
        f"the target has {old}, the source {theirs}",
        hint="the configuration says that this tag is immutable: find out who changed it; nothing was overwritten",
        code="tag_immutable",
    )
