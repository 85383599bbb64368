"""Image locks and mirrors: collects the content of a lock, applies a lock to mirrors, and compares the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial

from mirror.errors import ConfigError, MirrorError, NotFound, RemoteError, printable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.store import Version
from mirror.sync.image_lock import ImageLock, LockedImage, LockedMirror
from mirror.sync.plan_model import MirrorEntry, PlanEntry, SourceReference, source_digest
from mirror.sync.planner import Planner
from mirror.sync.planner_queries import resolve_all
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.structs import Struct, field, replace

_BATCH = 64  # maximum number of tags that one call resolves
_LOCK_AGAIN = "run `mirror lock CONFIG` to lock the images of this configuration"

MakePlanner = Callable[["ReferenceCollector"], Planner]
"""Creates a planner that plans no targets. Argument: its receiver, whose method `receive` gets the references."""


class ReferenceCollector:
    """Collects the references that mirrors select, with their versions. Implements PlanReceiver.

    references: by number of the mirror and source repository, and then by tag.
    failures: the name of each mirror and reference that could not be read, with its error.
    unread: what could not be listed, as number of the mirror and repository, or None for the whole wildcard."""

    def __init__(self) -> None:
        self.references: defaultdict[tuple[int, str], dict[str, SourceReference]] = defaultdict(dict)
        self.failures: list[tuple[str, MirrorError]] = []
        self.unread: set[tuple[int, str | None]] = set()

    def receive(self, references: Sequence[SourceReference]) -> None:
        """Add the references of one source repository."""
        for reference in references:
            entry = reference.entry
            self.references[entry.number, entry.repository][reference.tag] = reference

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Do nothing: targets are not planned."""

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a source cannot be read, or that its mirror selects nothing."""
        self.failures.append((entry.name, error))
        self.unread.add((entry.number, None if entry.wildcard else entry.repository))

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an invalid tag or repository name."""
        self.failures.append((entry.name, error))

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing: the number of repositories that each rule rejects is not needed."""

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing: targets are not planned."""

    def record_selection(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing: the number of tags that each rule rejects is not needed."""


# ---- locking


async def collect_lock(
    entries: Sequence[MirrorEntry], config: str, make_planner: MakePlanner
) -> tuple[ImageLock, list[tuple[str, MirrorError]]]:
    """Resolve all selected references at their sources. Return the image lock, and what could not be locked.

    If anything could not be locked, the lock is incomplete and must not be used. config: the name of the file."""
    collector = ReferenceCollector()
    await make_planner(collector).plan_all(entries)
    images: defaultdict[int, dict[str, dict[str, LockedImage]]] = defaultdict(dict)
    for (number, repository), references in collector.references.items():
        tags = images[number][repository] = {}
        for tag, reference in references.items():
            image = _lock_reference(reference)
            if isinstance(image, MirrorError):
                collector.failures.append((reference.name, image))
            else:
                tags[tag] = image
    mirrors = tuple(LockedMirror(entry.name, _target_names(entry), images[entry.number]) for entry in entries)
    return ImageLock(config, mirrors), collector.failures


def _lock_reference(reference: SourceReference) -> LockedImage | MirrorError:
    """Return the image that a resolved reference refers to, or an error if it cannot be locked."""
    version = reference.version
    if isinstance(version, MirrorError):
        return version
    digest = source_digest(version)
    if version is None or digest is None:
        return RemoteError(
            "the image is converted when it is copied, so its digest at the source cannot be locked",
            hint="put mirrors that convert images (v1, `schema1: convert`) into another configuration",
            code="manifest_invalid",
        )
    return LockedImage(digest, version.media_type)


# ---- applying


def lock_entries(entries: Sequence[MirrorEntry], lock: ImageLock, file: str) -> list[MirrorEntry]:
    """Return the entries with the images of a lock. file: the name of the lock, for messages.

    A mirror is identified by its source and, if several mirrors have this source, by its targets. So targets can be
    added, and mirrors can be reordered, without a new lock. Raises ConfigError if the lock lacks a mirror, contains
    another one, contains a repository that the source of its mirror does not, or if two mirrors would write one tag of
    one target repository."""
    locked: defaultdict[str, list[LockedMirror]] = defaultdict(list)
    wanted: defaultdict[str, list[MirrorEntry]] = defaultdict(list)
    for mirror in lock.mirrors:
        locked[mirror.source].append(mirror)
    for entry in entries:
        wanted[entry.name].append(entry)
    for source in (*wanted, *locked):
        if not locked[source]:
            raise ConfigError(f"{file} does not contain the mirror of {printable(source)}", hint=_LOCK_AGAIN)
        if not wanted[source]:
            what = f"{file} contains a mirror of {printable(source)}, but the configuration does not"
            raise ConfigError(what, hint=_LOCK_AGAIN)
    found = {
        entry.number: mirror
        for source in wanted
        for entry, mirror in _match_mirrors(wanted[source], locked[source], file)
    }
    for entry in entries:
        _check_repositories(entry, found[entry.number], file)
    locked_entries = [replace(entry, locked=found[entry.number].images) for entry in entries]
    _check_targets(locked_entries, file)
    return locked_entries


def _match_mirrors(
    entries: list[MirrorEntry], mirrors: list[LockedMirror], file: str
) -> list[tuple[MirrorEntry, LockedMirror]]:
    """Pair the entries for one source with the locked mirrors of this source. Raises ConfigError if they differ.

    Entries that also have the same targets are paired in their order."""
    if len(entries) == len(mirrors) == 1:
        return [(entries[0], mirrors[0])]
    ordered = sorted(entries, key=_target_names)
    others = sorted(mirrors, key=lambda mirror: mirror.targets)
    if [_target_names(entry) for entry in ordered] != [mirror.targets for mirror in others]:
        what = f"{file} and the configuration have different mirrors of {printable(entries[0].name)}"
        raise ConfigError(what, hint=_LOCK_AGAIN)
    return list(zip(ordered, others, strict=True))


def _target_names(entry: MirrorEntry) -> tuple[str, ...]:
    """Return the names of the target repositories, sorted."""
    return tuple(sorted(str(target.repository) for target in entry.targets))


def _check_repositories(entry: MirrorEntry, mirror: LockedMirror, file: str) -> None:
    """Raise ConfigError if the locked mirror contains a repository that `entry` cannot select."""
    for repository in mirror.images:
        if not entry.has_repository(repository):
            name = printable(repository, 80)
            raise ConfigError(f"{file}: {entry.name} does not contain the repository {name}", hint=_LOCK_AGAIN)


def _check_targets(entries: Sequence[MirrorEntry], file: str) -> None:
    """Raise ConfigError if two mirrors would write one tag of one target repository.

    The rules of the configuration exclude this only for the tags that they select."""
    writers: defaultdict[Repository, list[tuple[str, Mapping[str, LockedImage]]]] = defaultdict(list)
    for entry in entries:
        for repository, tags in (entry.locked or {}).items():
            expanded = entry.expand_wildcard(repository) if entry.wildcard else entry
            for target in expanded.targets:
                writers[target.repository].append((expanded.name, tags))
    for written, sources in writers.items():
        for number, (source, tags) in enumerate(sources):
            for other_source, other_tags in sources[:number]:
                both = sorted(tags.keys() & other_tags.keys())
                if both:
                    what = f"{file}: {other_source} and {source} would both be copied to {written}:{printable(both[0])}"
                    raise ConfigError(what, hint=_LOCK_AGAIN)


# ---- comparing


class DriftKind(Enum):
    """How the source of a mirror differs from the image lock."""

    MOVED = "moved"  # the tag refers to another digest now
    DELETED = "deleted"  # the source has no such tag any more
    DROPPED = "dropped"  # the rules do not select the tag any more
    UNLOCKED = "unlocked"  # the rules select the tag, but it is not locked


class Drift(Struct, frozen=True):
    """One difference between an image lock and a source. name: the tag at the source.

    locked, current: the digests in the lock and at the source, or None if there is none."""

    kind: DriftKind
    name: str
    locked: Digest | None
    current: Digest | None


class LockComparison(Struct):
    """The differences between an image lock and the sources, and the name of what could not be compared with errors."""

    drifts: list[Drift] = field(default_factory=list)
    failures: list[tuple[str, MirrorError]] = field(default_factory=list)


async def compare_lock(
    calls: Calls, locked_entries: Sequence[MirrorEntry], make_planner: MakePlanner
) -> LockComparison:
    """Compare the images of an image lock with the tags that the rules select now, and return the differences.

    Each tag is requested once, with HEAD. locked_entries: the result of `lock_entries`."""
    locked, current = ReferenceCollector(), ReferenceCollector()
    await make_planner(locked).plan_all(locked_entries)
    await make_planner(current).plan_all([replace(entry, locked=None) for entry in locked_entries])
    found = LockComparison(failures=current.failures)
    lost: list[Sequence[SourceReference]] = []
    for key in {**locked.references, **current.references}:
        before, after = locked.references[key], current.references[key]
        for tag, reference in after.items():
            _compare(found, before.get(tag), reference)
        if key not in current.unread and (key[0], None) not in current.unread:
            gone = [reference for tag, reference in before.items() if tag not in after]
            lost += [gone[start : start + _BATCH] for start in range(0, len(gone), _BATCH)]
    for part, versions in zip(lost, await run_group(_resolve_tags(calls, part) for part in lost), strict=True):
        for reference, version in zip(part, versions, strict=True):
            _add_drift(found, DriftKind.DROPPED, reference, version)
    return found


def _compare(found: LockComparison, before: SourceReference | None, after: SourceReference) -> None:
    """Compare a locked tag with the same tag as it is selected now. before: None if the tag is not locked."""
    if before is None:
        _add_drift(found, DriftKind.UNLOCKED, after, after.version)
    elif isinstance(after.version, MirrorError) or source_digest(after.version) != source_digest(before.version):
        _add_drift(found, DriftKind.MOVED, before, after.version)


def _add_drift(
    found: LockComparison, kind: DriftKind, reference: SourceReference, version: Version | MirrorError | None
) -> None:
    """Add a difference. version: what the tag refers to now, or the error if it could not be resolved."""
    if isinstance(version, NotFound) and kind is not DriftKind.UNLOCKED:
        kind = DriftKind.DELETED
    elif isinstance(version, MirrorError):
        found.failures.append((reference.name, version))
        return
    locked = None if kind is DriftKind.UNLOCKED else source_digest(reference.version)
    found.drifts.append(Drift(kind, reference.name, locked, source_digest(version)))


async def _resolve_tags(calls: Calls, references: Sequence[SourceReference]) -> list[Version | MirrorError]:
    """Return what the tags of locked references from one repository refer to now, or the errors."""
    entry, tags = references[0].entry, [reference.tag for reference in references]
    return await calls.call_host(entry.source.host, partial(resolve_all, entry.source, entry.repository, tags))
