"""Creates an image lock from mirrors, and compares an image lock with the sources."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TypeVar

from mirror.errors import Cancelled, MirrorError, NotFound, OtherPlatform, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.tag_rules import SelectionSummary
from mirror.store import Version
from mirror.sync.attachment_search import AttachmentRef
from mirror.sync.image_lock import ImageLock, LockedAttachment, LockedImage, LockedMirror
from mirror.sync.locked_attachments import lock_attachments
from mirror.sync.locked_mirrors import target_names
from mirror.sync.plan_model import MirrorEntry, PlanEntry, SourceReference, source_digest
from mirror.sync.planner import Planner
from mirror.sync.planner_queries import resolve_all
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.structs import Struct, field, replace

_BATCH = 64  # maximum number of tags that one call resolves, and of images that are processed at the same time

T = TypeVar("T")
FindAttachments = Callable[[SourceReference], Awaitable[Iterable[AttachmentRef]]]
"""Finds the current attachments of an image at its source, including attachments whose tags the mirror selects."""

CheckSignature = Callable[[SourceReference], Awaitable[None]]
"""Checks the signature of an image, if its mirror requires one. Raises Refused (not_signed)."""

MakePlanner = Callable[["ReferenceCollector"], Planner]
"""Creates a planner that plans no targets. Argument: the collector, whose method `receive` gets the references."""


class ReferenceCollector:
    """Collects the references that mirrors select, with their versions. Implements PlanReceiver.

    references: the references by tag, for each pair of a mirror's number and a source repository. failures: the name of
    each mirror and reference that could not be read, with the error. unread: a mirror's number and a repository for
    each list that could not be read; the repository is None for the catalog of a wildcard. waiting: the number of tags
    that `min-age` leaves out."""

    def __init__(self) -> None:
        self.references: defaultdict[tuple[int, str], dict[str, SourceReference]] = defaultdict(dict)
        self.failures: list[tuple[str, MirrorError]] = []
        self.unread: set[tuple[int, str | None]] = set()
        self.waiting = 0

    def receive(self, references: Sequence[SourceReference]) -> None:
        """Add the selected references of one source repository."""
        for reference in references:
            entry = reference.entry
            self.references[entry.number, entry.repository][reference.tag] = reference

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Do nothing, because targets are not planned."""

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a source cannot be read, or that its mirror selects no tags."""
        self.failures.append((entry.name, error))
        self.unread.add((entry.number, None if entry.wildcard else entry.repository))

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an invalid tag or repository name."""
        self.failures.append((entry.name, error))

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing, because the number of repositories that each rule rejects is not needed."""

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing, because targets are not planned."""

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Add the number of tags that wait for `min-age`."""
        self.waiting += selection.rejected.get("min-age", 0)


# ---- locking


async def collect_lock(
    entries: Sequence[MirrorEntry],
    config: str,
    make_planner: MakePlanner,
    find_attachments: FindAttachments,
    check_signature: CheckSignature,
) -> tuple[ImageLock, ReferenceCollector]:
    """Resolve all selected references at their sources, check their signatures, and find their attachments.

    Return the image lock, and the collector, which contains the failures. If there are failures, the lock is incomplete
    and must not be used. config: the name of the configuration file."""
    collector = ReferenceCollector()
    await make_planner(collector).plan_all(entries)
    images: defaultdict[int, dict[str, dict[str, LockedImage]]] = defaultdict(dict)
    for number, repository in collector.references:
        images[number][repository] = {}
    references = [one for tags in collector.references.values() for one in tags.values()]
    for part in _batches(references):
        results = await gather_results(_lock_reference(one, find_attachments, check_signature) for one in part)
        for one, image in zip(part, results, strict=True):
            if isinstance(image, MirrorError):
                collector.failures.append((one.name, image))
            else:
                images[one.entry.number][one.entry.repository][one.tag] = image
    mirrors = tuple(LockedMirror(entry.name, target_names(entry), images[entry.number]) for entry in entries)
    return ImageLock(config, mirrors), collector


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Divide items into batches, because processing all items concurrently would need too many tasks."""
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


async def _lock_reference(
    reference: SourceReference, find_attachments: FindAttachments, check_signature: CheckSignature
) -> LockedImage:
    """Return the image to which a resolved reference refers. Raises an error if the image cannot be locked."""
    version = reference.version
    if isinstance(version, MirrorError):
        raise version
    digest = source_digest(version)
    if version is None or digest is None:
        raise RemoteError(
            "the image is converted when it is copied, so its digest at the source cannot be locked",
            hint="put mirrors that convert images (v1, `schema1: convert`) into another configuration",
            code="manifest_invalid",
        )
    with suppress(OtherPlatform):  # the image is not copied
        await check_signature(reference)
    return LockedImage(digest, version.media_type, await _find_attachments(reference, find_attachments))


async def _find_attachments(
    reference: SourceReference, find_attachments: FindAttachments
) -> tuple[LockedAttachment, ...] | None:
    """Return the current attachments of an image, or None if its mirror does not copy attachments."""
    if reference.entry.attachments is None:
        return None
    try:
        return lock_attachments(await find_attachments(reference))
    except OtherPlatform:
        return ()  # the image is not copied
    except MirrorError as error:
        raise error.with_text(error.what.removeprefix(f"{reference.name}: ")) from error


# ---- comparing


class DriftKind(Enum):
    """A way in which the source of a mirror may differ from the image lock."""

    MOVED = "moved"  # the tag refers to another digest now
    DELETED = "deleted"  # the source no longer has the tag
    DROPPED = "dropped"  # the rules no longer select the tag
    ATTACHED = "attached"  # the image has an attachment that is not locked
    DETACHED = "detached"  # the image no longer has the locked attachment
    EXCLUDED = "excluded"  # the rules no longer select the locked attachment
    UNLOCKED = "unlocked"  # the rules select the tag, but it is not locked


class Drift(Struct, frozen=True):
    """One difference between an image lock and a source.

    name: the tag at the source; for an attachment, the tag of its image. locked, current: the digests in the lock and
    at the source; None if there is no digest."""

    kind: DriftKind
    name: str
    locked: Digest | None
    current: Digest | None


class LockComparison(Struct):
    """The differences between an image lock and the sources, and the references that could not be compared.

    failures: the name of each such reference, with the error."""

    drifts: list[Drift] = field(default_factory=list)
    failures: list[tuple[str, MirrorError]] = field(default_factory=list)


async def compare_lock(
    calls: Calls,
    locked_entries: Sequence[MirrorEntry],
    make_planner: MakePlanner,
    find_attachments: FindAttachments,
) -> LockComparison:
    """Compare the images of an image lock with the tags that the rules select now, and return the differences.

    Each tag is requested once, with HEAD. The attachments are compared if the tag has not moved. locked_entries: the
    result of `lock_entries`."""
    locked, current = ReferenceCollector(), ReferenceCollector()
    await make_planner(locked).plan_all(locked_entries)
    await make_planner(current).plan_all([replace(entry, locked=None) for entry in locked_entries])
    found = LockComparison(failures=current.failures)
    lost: list[Sequence[SourceReference]] = []
    for key in {**locked.references, **current.references}:
        before, after = locked.references[key], current.references[key]
        unmoved = [
            (before[tag], reference)
            for tag, reference in after.items()
            if not _compare(found, before.get(tag), reference)
        ]
        for part in _batches(unmoved):
            await run_group(_compare_attachments(found, *pair, find_attachments) for pair in part)
        if key not in current.unread and (key[0], None) not in current.unread:
            gone = [reference for tag, reference in before.items() if tag not in after]
            lost += _batches(gone)
    for tags, versions in zip(lost, await run_group(_resolve_tags(calls, part) for part in lost), strict=True):
        for reference, version in zip(tags, versions, strict=True):
            _add_drift(found, DriftKind.DROPPED, reference, version)
    return found


def _compare(found: LockComparison, before: SourceReference | None, after: SourceReference) -> bool:
    """Compare a locked tag with the same tag in the current selection. Return whether they differ.

    before: the locked reference; None if the tag is not locked. after: the reference that is selected now."""
    if before is None:
        _add_drift(found, DriftKind.UNLOCKED, after, after.version)
    elif isinstance(after.version, MirrorError) or source_digest(after.version) != source_digest(before.version):
        _add_drift(found, DriftKind.MOVED, before, after.version)
    else:
        return False
    return True


async def _compare_attachments(
    found: LockComparison, before: SourceReference, after: SourceReference, find_attachments: FindAttachments
) -> None:
    """Compare the locked attachments of an image with its current attachments at the source.

    If the rules may leave out some of them, the image is searched again without these rules."""
    locked = (before.entry.locked or {}).get(before.entry.repository, {}).get(before.tag)
    if locked is None or locked.attachments is None:
        return
    old = _attachment_keys(locked.attachments)
    try:
        new = every = _attachment_keys(await _find_attachments(after, find_attachments))
        rules = after.entry.attachments
        if old - new and rules is not None and (rules.has_filter or after.entry.platforms is not None):
            unfiltered = replace(after.entry, platforms=None, attachments=AttachmentRules())
            every = _attachment_keys(await _find_attachments(_with_entry(after, unfiltered), find_attachments))
    except Cancelled:
        raise
    except MirrorError as error:
        found.failures.append((after.name, error))
        return
    for key in sorted(old - new):
        kind = DriftKind.EXCLUDED if key in every else DriftKind.DETACHED
        found.drifts.append(Drift(kind, after.name, key[-1], None))
    found.drifts += [Drift(DriftKind.ATTACHED, after.name, None, digest) for *_, digest in sorted(new - old)]


def _attachment_keys(attachments: Iterable[LockedAttachment] | None) -> set[tuple[Digest, str, Digest]]:
    """Return the subject, the tag and the digest of each attachment."""
    return {(one.subject, one.tag, one.digest) for one in attachments or ()}


def _with_entry(reference: SourceReference, entry: MirrorEntry) -> SourceReference:
    """Return the same reference at the same version, for another mirror entry."""
    return SourceReference(entry, reference.identifier, reference.tag, reference.version)


def _add_drift(
    found: LockComparison, kind: DriftKind, reference: SourceReference, version: Version | MirrorError | None
) -> None:
    """Add a difference to a comparison. version: the result of resolving the tag now."""
    if isinstance(version, NotFound) and kind is not DriftKind.UNLOCKED:
        kind = DriftKind.DELETED
    elif isinstance(version, MirrorError):
        found.failures.append((reference.name, version))
        return
    locked = None if kind is DriftKind.UNLOCKED else source_digest(reference.version)
    found.drifts.append(Drift(kind, reference.name, locked, source_digest(version)))


async def _resolve_tags(calls: Calls, references: Sequence[SourceReference]) -> list[Version | MirrorError]:
    """Resolve the tags of locked references from one repository now. Return a version or an error for each."""
    entry, tags = references[0].entry, [reference.tag for reference in references]
    return await calls.call_host(entry.source.host, partial(resolve_all, entry.source, entry.repository, tags))
