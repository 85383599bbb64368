"""Finds the attachments in a target repository that a prune may delete.

An attachment is deleted when nothing uses its subject any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mirror.oci.digest import Digest
from mirror.oci.referrers import referrers_tag, signature_tags
from mirror.state.ownership import WrittenReference
from mirror.sync.repository_content import RepositoryContent


class OwnedAttachments:
    """The attachments that a configuration wrote to one target repository.

    written: the records of the attachments. roots: the digests of images without a tag, which are never deleted, nor
    are their attachments."""

    def __init__(self, content: RepositoryContent, written: Iterable[WrittenReference], roots: Collection[Digest]):
        self._content = content
        self._roots = roots
        self._written = list(written)

    def has(self, reference: str) -> bool:
        """Return whether a tag or digest is one of these attachments."""
        return any(one.reference == reference for one in self._written)

    async def divide(self, deleted: Collection[str]) -> tuple[set[Digest], list[WrittenReference]]:
        """Return the manifests that are in use after a deletion of tags, and the owned attachments that are not in use.

        deleted: the deleted tags. A manifest is in use if another tag refers to it, if it is below such a manifest, or
        if it is an attachment of a manifest in use. Raises the errors of the target."""
        tags = self._content.tags
        # A tag that has another digest now was changed by someone else.
        orphans = [one for one in self._written if ":" in one.reference or tags.get(one.reference) == one.digest]
        own_tags = {one.reference for one in orphans}
        roots = [digest for tag, digest in tags.items() if tag not in deleted and tag not in own_tags]
        used = await self._content.reachable([*roots, *self._roots])
        while True:
            orphaned = {one.digest for one in orphans}
            possible = _tags_of(used)
            kept = {
                one
                for one in orphans
                if (":" in one.reference and one.digest in used)
                or _belongs_to(one, used, possible)
                or await self._lists_other_manifests(one, orphaned)
            }
            if not kept:
                return used, orphans
            orphans = [one for one in orphans if one not in kept]
            used |= await self._content.reachable(one.digest for one in kept)

    async def find_orphans(self, deleted: Collection[str], images: Iterable[Digest]) -> list[WrittenReference]:
        """Return the attachments of images and of their child manifests, if nothing else uses these attachments.

        images: the images to which the tags `deleted` refer. Attachments of images that lost their tags earlier are not
        returned, because these images may still be pulled by digest. Raises the errors of the target."""
        _, orphans = await self.divide(deleted)
        subjects = await self._content.reachable(images)
        orphaned: dict[WrittenReference, None] = {}
        while True:
            tags = _tags_of(subjects)
            more = [one for one in orphans if one not in orphaned and _belongs_to(one, subjects, tags)]
            if not more:
                return list(orphaned)
            orphaned |= dict.fromkeys(more)
            subjects |= {one.digest for one in more}

    async def find_kept_tags(self, deleted: Collection[str], images: Iterable[Digest]) -> list[str]:
        """Return the tags of attachments that are kept although their images are no longer used.

        Someone else wrote these attachments or, if they are lists of referrers, some of their entries. The
        parameters are those of `find_orphans`. Raises the errors of the target."""
        used, orphans = await self.divide(deleted)
        subjects = await self._content.reachable(images) - used
        return sorted((_tags_of(subjects) & self._content.tags.keys()) - {one.reference for one in orphans})

    async def _lists_other_manifests(self, written: WrittenReference, orphaned: Collection[Digest]) -> bool:
        """Return whether an attachment is a list of referrers with an entry that is not in `orphaned`."""
        if ":" in written.reference or "." in written.reference:
            return False  # a referrer, or one of cosign's tags
        return not all(child in orphaned for child in await self._content.children(written.digest))


def _tags_of(subjects: Collection[Digest]) -> set[str]:
    """Return all tags that attachments of manifests may have."""
    return {tag for digest in subjects for tag in (referrers_tag(digest), *signature_tags(digest))}


def _belongs_to(written: WrittenReference, subjects: Collection[Digest], tags: Collection[str]) -> bool:
    """Return whether the subject of an attachment is one of the given subjects. tags: the result of `_tags_of`."""
    return written.reference in tags if ":" not in written.reference else written.subject in subjects
