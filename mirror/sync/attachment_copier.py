"""Copies the attachments of an image to a target.

`image_copier` determines the order: attachments are written after the child manifests of the image, before its root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

from mirror.errors import Refused, RemoteError
from mirror.oci.descriptor import Descriptor, unique_descriptors
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.referrers import referrers_tag
from mirror.store import LeftOut, Target, Version
from mirror.sync.attachment_search import NO_ATTACHMENTS_HINT
from mirror.sync.attachments import Attachment
from mirror.sync.copy_hints import OwnershipWriter
from mirror.sync.manifest_writer import ManifestWriter, manifest_descriptor
from mirror.sync.plan_decisions import immutable_conflict
from mirror.sync.plan_model import PlanEntry
from mirror.sync.recorder import BlobCounts
from mirror.sync.referrers_index import ReferrersIndexes, read_listed_referrers
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.blob_request import BlobRequest, BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.structs import Struct


class DeleteTagRecord(Protocol):
    """A function that deletes the recorded digest of a tag on a target. When it returns, the change is on disk."""

    def __call__(self, repository: str, tag: str, *, was_recorded: bool) -> None:
        """Delete the record. was_recorded: whether this run has recorded a digest for the tag. Raises LocalError."""
        ...


class ImagePush:
    """One attempt to write an image with its attachments to a target.

    root: the root manifest, if the target lacks it. source: the repository from which the image is read. left_out: the
    parts that a sparse image leaves out. check_all: whether to look up all objects, even those known to exist."""

    def __init__(
        self,
        plan_entry: PlanEntry,
        store: Target,
        counts: BlobCounts,
        *,
        check_all: bool,
        root: Manifest | None,
        source: BlobSource,
        left_out: LeftOut | None = None,
    ) -> None:
        self.plan_entry = plan_entry
        self.repository = plan_entry.target.repository
        self.store = store
        self.counts = counts
        self.check_all = check_all
        self.root = root
        self.source = source
        self.left_out = left_out
        self.blobs: set[Digest] = set()  # the blobs that have been copied

    def request_for(
        self, content: Descriptor, source: BlobSource | None = None, *, is_root: bool = False
    ) -> BlobRequest:
        """Return a request to copy a blob or manifest. source: where to read it; by default, `self.source`."""
        return BlobRequest(
            content,
            self.store,
            self.repository,
            source or self.source,
            self.plan_entry.reference.name,
            self.plan_entry.may_have_blobs,
            self.check_all,
            is_root,
        )

    def take_blobs(self, blobs: Sequence[Descriptor], source: BlobSource | None = None) -> list[BlobRequest]:
        """Return copy requests for blobs, except for blobs that an earlier call returned."""
        new = [blob for blob in blobs if blob.digest not in self.blobs]
        self.blobs.update(blob.digest for blob in new)
        return [self.request_for(blob, source) for blob in new]


class _TagOnTarget(Struct, frozen=True):
    """The result of looking up the tag of an attachment on a target.

    digest: the digest to which the tag refers; None if the tag does not exist, or if the attachment has no tag.
    written: the digest that this run had written under the tag before the lookup, or None."""

    digest: Digest | None = None
    written: Digest | None = None


class AttachmentCopier:
    """Writes attachments to targets: their blobs, their manifests, and the list of referrers if the target needs one.

    protection: decides whether a tag may be overwritten. copy_blobs: copies blobs and counts them. delete_tag_record:
    called on a thread before a tag is written. ownership: records the tags and manifests that are written."""

    def __init__(
        self,
        calls: Calls,
        writer: ManifestWriter,
        protection: TagProtection,
        copy_blobs: Callable[[list[BlobRequest], BlobCounts], Awaitable[bool]],
        delete_tag_record: DeleteTagRecord,
        ownership: OwnershipWriter,
    ) -> None:
        self._calls = calls
        self._writer = writer
        self._protection = protection
        self._copy_blobs = copy_blobs
        self._delete_tag_record = delete_tag_record
        self._ownership = ownership
        self._indexes = ReferrersIndexes(calls, writer, protection.lock)
        self._needs_subjects: set[str] = set()  # hosts that reject a referrer whose subject is missing

    async def copy(self, push: ImagePush, attachments: Sequence[Attachment]) -> bool:
        """Write the attachments that the target lacks. Return whether the target lacked any of them.

        With `push.check_all`, also ensure that the target lists each referrer. Raises Refused (target_conflict) if a
        tag must not be overwritten, and the errors that the stores raise."""
        changed = False
        for _, group in groupby(attachments, key=lambda one: one.ref.level):
            wanted = await self._look_up_tags(push, list(group))
            level = [one for one, _ in wanted]
            blobs = unique_descriptors((blob for one in level for blob in one.graph.blobs), push.plan_entry.name)
            if level:
                await self._copy_blobs(push.take_blobs(blobs, level[0].graph.blob_source), push.counts)
            results = await run_group(self._copy_one(push, one, found) for one, found in wanted)
            relisted = await self._list_referrers(push, level)
            for one, copied in zip(level, results, strict=True):
                is_new = copied or one.graph.root.digest in relisted
                push.counts.attachments["copied" if is_new else "exists"] += 1
                changed = changed or is_new
        return changed

    async def _look_up_tags(
        self, push: ImagePush, attachments: Sequence[Attachment]
    ) -> list[tuple[Attachment, _TagOnTarget]]:
        """Look up the tags of attachments on the target. Return the attachments that must be written or recorded.

        An attachment whose content is part of a larger manifest under the same tag is left out: the target has this
        attachment, because other tools add their own signatures to copied signatures."""
        tags = await run_group(self._look_up_tag(push, one) for one in attachments)
        pairs = list(zip(attachments, tags, strict=True))
        wanted = await run_group(self._needs_write(push, one, found.digest) for one, found in pairs)
        kept = [
            (one, found)
            for (one, found), is_wanted in zip(pairs, wanted, strict=True)
            if is_wanted or found.digest == one.graph.root.digest
        ]
        push.counts.attachments["exists"] += len(pairs) - len(kept)
        return kept

    async def _copy_one(self, push: ImagePush, attachment: Attachment, found: _TagOnTarget) -> bool:
        """Write the manifests of one attachment. Return whether the target lacked the attachment.

        found: the result of looking up the tag of the attachment on the target."""
        graph, ref = attachment.graph, attachment.ref
        await self._writer.put_levels(graph, push.store, push.request_for, look_up=push.check_all)
        request = push.request_for(manifest_descriptor(graph.root), graph.blob_source)
        if ref.tag:
            return await self._copy_tag(push, request, attachment, found)
        missing, damaged = await self._writer.find_missing(
            push.store, push.repository, [graph.root], look_up=push.check_all
        )
        if missing:
            await self._put(push, request, ref.reference, graph.root)
            if not damaged:
                subject = graph.root.subject.digest if graph.root.subject is not None else None
                self._record_written(push, graph.root.digest, graph.root.digest, subject)
        else:
            self._writer.record_existing(request)
        if damaged:
            await self._writer.check_replaced(request, ref.reference, graph.root)
        return bool(missing)

    def _record_written(self, push: ImagePush, reference: str, digest: Digest, subject: Digest | None = None) -> None:
        """Record that this run wrote the manifest of an attachment, or a list of referrers, under a tag or digest."""
        entry, repository = push.plan_entry.reference.entry, push.repository
        if ":" not in reference:
            self._protection.record_written(entry, repository, reference, digest)
        self._ownership.record(str(repository), reference, digest, entry.name, subject)

    async def _copy_tag(
        self, push: ImagePush, request: BlobRequest, attachment: Attachment, found: _TagOnTarget
    ) -> bool:
        """Write the manifest of an attachment under its tag. Return whether the target lacked the manifest."""
        entry, tag, root = push.plan_entry.reference.entry, attachment.ref.tag, attachment.graph.root
        async with self._protection.lock(push.repository, tag):
            old, written = found.digest, self._protection.digest_in_run(push.repository, tag)
            if written != found.written:  # the tag was written for another image after the lookup
                old = written
                if not await self._needs_write(push, attachment, old) and old != root.digest:
                    return False
            if old == root.digest:
                self._writer.record_existing(request)
                self._protection.record(entry, push.repository, tag, old)
                return False
            await self._put(push, request, tag, root)
            self._record_written(push, tag, root.digest)
            return True

    async def _look_up_tag(self, push: ImagePush, attachment: Attachment) -> _TagOnTarget:
        """Look up the tag of an attachment on the target, and return the digest to which it refers.

        No request is sent if this run has written the tag, or if the repository had no tags at the start of the run.
        Raises Refused (tag_immutable) if the tag has a different digest, and the rules do not allow it to be
        overwritten."""
        tag, root = attachment.ref.tag, attachment.graph.root
        if not tag:
            return _TagOnTarget()
        written = self._protection.digest_in_run(push.repository, tag)
        immutable = push.plan_entry.reference.entry.rules.is_immutable(tag)
        if not push.check_all and not immutable:
            is_new = push.store.needs_all_images or not push.plan_entry.may_have_blobs
            if written is not None or is_new:
                return _TagOnTarget(written, written)
        old = await self._protection.read_digest(push.store, push.repository, tag)
        if immutable and old not in (None, root.digest):
            raise immutable_conflict(Version(root.digest), old).with_subject(tag)
        return _TagOnTarget(old, written)

    async def _needs_write(self, push: ImagePush, attachment: Attachment, old: Digest | None) -> bool:
        """Return whether an attachment must be written. Raises Refused (target_conflict) if its tag must be kept.

        old: the digest of the tag on the target; None if the attachment has no tag, or the tag does not exist."""
        if old is None:
            return True
        entry, target = push.plan_entry.reference.entry, push.plan_entry.target
        return await self._protection.needs_write(entry, target, attachment.ref.tag, old, attachment.graph.root)

    async def _put(self, push: ImagePush, request: BlobRequest, reference: str, manifest: Manifest) -> None:
        """Write the manifest of an attachment.

        If the target rejects the manifest because its subject is missing, write the root of the image by its digest,
        and try again."""

        def before() -> None:
            """Delete the record of a tag before it is written. Runs on a worker thread."""
            if ":" not in reference:
                self._delete_tag_record(str(push.repository), reference, was_recorded=True)

        host = push.repository.host
        if manifest.subject is not None and host in self._needs_subjects:
            await self._put_root(push)
        try:
            await self._writer.put(request, reference, manifest, before=before)
        except RemoteError as error:
            if manifest.subject is None or push.root is None or error.status not in (400, 404):
                error.hint = error.hint or NO_ATTACHMENTS_HINT
                raise
            await self._put_root(push)
            await self._writer.put(request, reference, manifest, before=before)
            self._needs_subjects.add(host)

    async def _put_root(self, push: ImagePush) -> None:
        """Write the root manifest of the image by its digest, without a tag, if the target lacks the root."""
        root = push.root
        if root is not None:
            request = push.request_for(manifest_descriptor(root), is_root=True)
            await self._writer.put(request, root.digest, root, left_out=push.left_out)
            push.root = None

    # ---- lists of referrers

    async def _list_referrers(self, push: ImagePush, attachments: Sequence[Attachment]) -> set[Digest]:
        """Ensure that the target lists the referrers among the attachments. Return those that it did not list before.

        Without `push.check_all`, only referrers that this run wrote may be missing in a list."""
        by_subject: dict[Digest, list[Attachment]] = {}
        for one in attachments:
            subject = one.graph.root.subject
            # A manifest under one of cosign's tags may have any subject, even one that belongs to a different image.
            if subject is None or subject.digest != one.ref.subject or one.ref.in_ordinary_list:
                continue
            if not one.ref.list_is_ordinary:
                by_subject.setdefault(subject.digest, []).append(one)
            elif await self._is_unlisted(push, subject.digest, one.graph.root.digest):
                raise _old_list_error(push, subject.digest, one.graph.root.digest)
        results = await run_group(self._list_on_target(push, subject, group) for subject, group in by_subject.items())
        return {digest for result in results for digest in result}

    async def _is_unlisted(self, push: ImagePush, subject: Digest, referrer: Digest) -> bool:
        """Return whether the target has a referrer without listing it for its subject."""
        if self._writer.is_unlisted(push.repository, referrer):
            return True
        if not push.check_all or push.store.needs_all_images:
            return False
        run = partial(read_listed_referrers, push.store, push.repository.path, subject)
        return referrer not in await self._calls.call_host(push.repository.host, run)

    async def _list_on_target(self, push: ImagePush, subject: Digest, attachments: Sequence[Attachment]) -> set[Digest]:
        """Ensure that the target lists the referrers of one subject. Return those that it did not list before."""
        manifests = [one.graph.root for one in attachments]
        unlisted = [one for one in manifests if self._writer.is_unlisted(push.repository, one.digest)]
        written_again: set[Digest] = set()
        # A store that needs all images, such as a bundle, has its new content only when it is finished.
        if push.check_all and not push.store.needs_all_images and len(unlisted) < len(manifests):
            listed = await self._read_list(push, subject)
            if listed is None:
                unlisted = manifests
            else:
                missing = [one for one in attachments if one.graph.root.digest not in listed]
                for one in missing:
                    request = push.request_for(manifest_descriptor(one.graph.root), one.graph.blob_source)
                    await self._put(push, request, one.ref.reference, one.graph.root)
                written_again = {one.graph.root.digest for one in missing}
                unlisted = [one for one in manifests if self._writer.is_unlisted(push.repository, one.digest)]
        if not unlisted:
            return written_again
        added = await self._indexes.add(
            push.store,
            push.repository,
            subject,
            unlisted,
            push.request_for,
            lambda tag: self._delete_tag_record(str(push.repository), tag, was_recorded=True),
            partial(self._record_written, push),
        )
        return written_again | added

    async def _read_list(self, push: ImagePush, subject: Digest) -> set[Digest] | None:
        """Return the referrers that the target lists for a subject, or None if it has no such lists."""

        def run(work: Work) -> set[Digest] | None:
            """Request the list on a worker thread."""
            listed = push.store.referrers(push.repository.path, subject, work)
            return None if listed is None else {one.digest for one in listed}

        return await self._calls.call_host(push.repository.host, run)


def _old_list_error(push: ImagePush, subject: Digest, referrer: Digest) -> Refused:
    """Return the error for a referrer that would not be in any list on the target."""
    entry, tag = push.plan_entry.reference.entry, referrers_tag(subject)
    return Refused(
        f"{entry.name}:{tag} does not list {referrer}, but the source lists it as a referrer of {subject}. The target "
        "has no referrers API, and gets this tag like any other tag",
        hint=f"exclude the tag `{tag}` from this mirror: then the complete list of referrers is written under this tag",
        code="target_conflict",
    )
