"""What planning is about and what it finds: mirrors, references of their sources, and a verdict for each target."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from mirror.errors import MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import TagRules
from mirror.store import Source, Version
from mirror.transfer.blob_locations import Place, place_name
from mirror.util.structs import Struct, replace


class TargetEntry(Struct, frozen=True):
    """A repository to be kept equal. exclusive: nobody else writes there, so what is remembered is believed."""

    store: Source
    place: Place
    exclusive: bool = False


class Entry(Struct, frozen=True):
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
            return place_name(self.source.host, f"{self.repository}/*" if self.repository else "*")
        return place_name(self.source.host, self.repository)

    def of(self, repository: str) -> Entry:
        """The mirror of one repository that the wildcard matched."""
        matched = repository.removeprefix(f"{self.repository}/" if self.repository else "")
        targets = (
            replace(target, place=Place(target.place.host, target.place.path.replace(MATCHED, matched)))
            for target in self.targets
        )
        return replace(self, repository=repository, targets=tuple(targets), wildcard=False)


class Reading(Struct, eq=False):
    """One reference of a source, resolved at most once in a run and read once for all targets.

    reference: what the source is asked for; tag: what it is called on the targets (the digest, if by nothing else);
    version: what it names; None until asked; users: targets that may still need what is read of it."""

    entry: Entry
    reference: str
    tag: str
    version: Version | MirrorError | None = None
    users: int = 0

    @property
    def name(self) -> str:
        return self.entry.name + suffix(self.tag)


class Verdict(Enum):
    """What is to be done for one (reference, target)."""

    EQUAL = "equal"
    COPY = "copy"
    FAILED = "failed"


class Finding(Struct, frozen=True, eq=False):
    """The verdict on one reference for one target.

    old: what the target's tag names now; may_have: the repository may hold blobs already; broken: the target cannot
    say what its tag names, since its copy is damaged: a push may not replace that."""

    reading: Reading
    target: TargetEntry
    verdict: Verdict
    old: Digest | None = None
    may_have: bool = True
    broken: bool = False
    error: MirrorError | None = None

    @property
    def name(self) -> str:
        """The reference on the target."""
        return str(self.target.place) + suffix(self.reading.tag)


class Chosen(Protocol):
    """What takes part (`--only`, shards)."""

    def wants(self, reference: str) -> bool: ...
    def takes(self, repository: str) -> bool: ...
    def not_seen(self, repository: str) -> None: ...


class Findings(Protocol):
    """Takes what planning finds. Called on the event loop; must not block."""

    def found(self, finding: Finding) -> None: ...
    def listing_failed(self, entry: Entry, error: MirrorError) -> None: ...
    def refused_name(self, entry: Entry, error: MirrorError) -> None: ...
    def saw_target(self, place: Place, tag: str, digest: Digest) -> None: ...
    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None: ...


class Memory(Protocol):
    """What earlier runs noted. Does I/O."""

    def target_tag(self, repository: str, tag: str) -> Digest | None: ...
    def source_tag(self, repository: str, tag: str) -> Digest | None: ...
    def transformed(self, identity: str) -> Digest | None: ...
    def unfinished(self, repository: str) -> bool: ...


def suffix(reference: str) -> str:
    """`:tag` or `@digest`."""
    return ("@" if ":" in reference else ":") + reference


def listed_version(tag: str) -> Version | None:
    """What a tag names, where the list of tags itself says so."""
    return Version(tag.digest) if isinstance(tag, ListedTag) else None


def judged(
    reading: Reading,
    target: TargetEntry,
    old: Digest | MirrorError | None,
    *,
    believed: Digest | None = None,
    may_have: bool = True,
    broken: bool = False,
    repair: bool = False,
    was: str | None = None,
) -> Finding:
    """The finding for one reference, from what the source and the target answered. reading.version: None: the source
    was not asked; believed: the digest that an immutable tag had on both sides in an earlier run; was: the one that a
    damaged tag had, if that is known: with `repair` an immutable tag gets back what it had, and nothing else."""
    version = reading.version
    if isinstance(old, MirrorError):
        failed = Finding(reading, target, Verdict.FAILED, error=old)
        return _repaired(failed, old, was, may_have=may_have) if broken and repair else failed
    if old is not None and old == believed:
        return Finding(reading, target, Verdict.EQUAL, old)
    if isinstance(version, MirrorError):
        return Finding(reading, target, Verdict.FAILED, old, error=version)
    if version is not None and old is not None and version.digest == old:
        return Finding(reading, target, Verdict.EQUAL, old)
    if old is not None and reading.entry.rules.is_immutable(reading.tag) and not (version and version.unmade):
        return Finding(reading, target, Verdict.FAILED, old, error=immutable_conflict(version, old))
    return Finding(reading, target, Verdict.COPY, old, may_have, broken)


def _repaired(failed: Finding, error: MirrorError, was: str | None, *, may_have: bool) -> Finding:
    """The finding for a damaged immutable tag in a run with `--repair`: a copy if the source has what the tag had."""
    version = failed.reading.version
    if was is not None and isinstance(version, Version) and version.digest == was:
        return replace(failed, verdict=Verdict.COPY, may_have=may_have, broken=True, error=None)
    told = error.told(f"{error.what}; the tag is immutable, and it is not known to have had what the source has")
    told.hint = "remove the tag on the target by hand, then run `mirror sync CONFIG`"
    return replace(failed, error=told)


def keep_immutable(finding: Finding, made: Digest) -> None:
    """Raises Refused if `made`, which only a transform could tell, is not what the target's immutable tag has."""
    old, reading = finding.old, finding.reading
    if old is not None and old != made and reading.entry.rules.is_immutable(reading.tag):
        raise immutable_conflict(Version(made), old)


def immutable_conflict(version: Version | None, old: Digest) -> Refused:
    theirs = version.digest if version is not None and version.digest is not None else "something else"
    return Refused(
        f"the target has {old}, the source {theirs}",
        hint="the configuration says that this tag is immutable: find out who changed it; nothing was overwritten",
        code="tag_immutable",
    )
