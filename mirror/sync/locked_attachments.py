"""Converts the attachments of images to the form of an image lock, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.referrers import kinds_of_type, referrers_tag, signature_tags
from mirror.sync.attachment_search import AttachmentRef, is_copied_as_image
from mirror.sync.image_lock import LockedAttachment
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry


def lock_attachments(refs: Iterable[AttachmentRef]) -> tuple[LockedAttachment, ...]:
    """Convert attachments to the form of an image lock, in an order that depends only on their content."""
    locked = (
        LockedAttachment(
            ref.subject,
            ref.descriptor.digest,
            ref.descriptor.media_type,
            ref.descriptor.size,
            ref.descriptor.artifact_type,
            ref.tag,
            ref.level,
        )
        for ref in refs
    )
    return tuple(sorted(locked, key=lambda one: (one.level, one.subject, one.tag, one.digest)))


def keep_attachments_below(
    attachments: Iterable[LockedAttachment], manifests: Iterable[Digest]
) -> tuple[LockedAttachment, ...]:
    """Return the locked attachments of the copied manifests of an image, and the attachments of these attachments.

    manifests: the copied manifests. They lack some of the locked subjects if `platforms` was added or changed after the
    lock was written."""
    below, left_out = set(manifests), set[Digest]()
    kept = []
    for one in sorted(attachments, key=lambda one: one.level):
        # The children of an index that is an attachment are in neither set.
        if one.subject in below or (one.level > 1 and one.subject not in left_out):
            below.add(one.digest)
            kept.append(one)
        else:
            left_out.add(one.digest)
    return tuple(kept)


async def restore_attachments(
    manifests: ManifestCache,
    entry: MirrorEntry,
    attachments: Iterable[LockedAttachment],
    is_selected: Callable[[str], bool],
) -> tuple[AttachmentRef, ...]:
    """Convert the locked attachments of an image, except those that are copied like any other locked image.

    is_selected: returns whether the run mirrors a source reference. If a locked tag refers to a list of referrers, the
    list is read from the source, and errors of the source are raised."""
    lists: dict[Digest, set[Digest] | None] = {}
    refs = []
    for one in attachments:
        if one.tag and is_copied_as_image(entry, one.tag, is_selected):
            continue
        if not one.tag and one.subject not in lists:
            lists[one.subject] = await _read_list(manifests, entry, referrers_tag(one.subject), is_selected)
        listed = lists.get(one.subject) if not one.tag else None
        refs.append(
            AttachmentRef(
                one.subject,
                Descriptor(one.digest, one.size, one.media_type, artifact_type=one.artifact_type),
                one.tag,
                names=_names(one, one.artifact_type),
                list_is_ordinary=listed is not None,
                in_ordinary_list=listed is not None and one.digest in listed,
                level=one.level,
            )
        )
    return tuple(refs)


async def read_locked_names(manifests: ManifestCache, entry: MirrorEntry, locked: LockedAttachment) -> frozenset[str]:
    """Return the artifact type and kinds of a locked attachment, to which the rules of the mirror apply.

    If the lock does not contain the type of a referrer, its manifest is read from the source, whose errors are
    raised."""
    kind = locked.artifact_type
    if not kind and not locked.tag:
        kind = (await manifests.read(entry.source, entry.repository, locked.digest, locked.size)).artifact_type
    return _names(locked, kind)


def _names(locked: LockedAttachment, kind: str) -> frozenset[str]:
    """Return the artifact type and kinds of a locked attachment. kind: the artifact type of a referrer."""
    if locked.tag:
        return frozenset({signature_tags(locked.subject).get(locked.tag, "")})
    return kinds_of_type(kind) | {kind}


async def _read_list(
    manifests: ManifestCache, entry: MirrorEntry, tag: str, is_selected: Callable[[str], bool]
) -> set[Digest] | None:
    """Return the entries of the list of referrers under a locked tag, or None if the run does not copy the tag."""
    image = (entry.locked or {}).get(entry.repository, {}).get(tag)
    if image is None or not is_copied_as_image(entry, tag, is_selected):
        return None
    index = await manifests.read(entry.source, entry.repository, image.digest)
    return {child.digest for child in index.children}
