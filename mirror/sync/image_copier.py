"""Copies one image to one target. Only this module decides the order of writes.

The blobs are written first, then the child manifests under their digests, children before parents, then the attachments
of the image, and finally the root manifest under its tag. The tag therefore always refers either to the old image or to
the complete new image with its signatures.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from mirror.errors import Cancelled, MirrorError, RemoteError, SparseRefused
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.oci.referrers import is_attachment_tag
from mirror.store import Target, Version
from mirror.sync.attachment_copier import AttachmentCopier, ImagePush
from mirror.sync.attachments import Attachment
from mirror.sync.copy_hints import CopyHintWriter, OwnershipWriter
from mirror.sync.deadline_estimate import DeadlineEstimate
from mirror.sync.image_reader import Image
from mirror.sync.manifest_graph import ManifestGraph
from mirror.sync.manifest_writer import ManifestWriter, manifest_descriptor
from mirror.sync.plan_model import PlanEntry
from mirror.sync.planner_queries import equality_key
from mirror.sync.recorder import BlobCounts
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobOutcome, BlobRequest
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.sync")


class ImageCopier:
    """Copies images to targets.

    ownership: records the tags and manifests that are written.
    targets: the targets by host.
    recorder: records the result for each manifest, and for each blob that failed.
    protection: decides whether a tag of attachments may be overwritten.
    estimate: decides whether there is enough time to copy an image.
    check_all: whether to look up every object on the target, even if it is known to exist.
    repair: whether to read every manifest on the target, including the root.
    before_write: called on a thread before each manifest is written."""

    def __init__(
        self,
        calls: Calls,
        blob_copier: BlobCopier,
        locations: BlobLocations,
        notes: CopyHintWriter,
        ownership: OwnershipWriter,
        targets: Mapping[str, Target],
        recorder: BlobRecorder,
        protection: TagProtection,
        estimate: DeadlineEstimate,
        *,
        check_all: bool,
        repair: bool = False,
        before_write: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._recorder = recorder
        self._blob_copier = blob_copier
        self._locations = locations
        self._notes = notes
        self._ownership = ownership
        self._targets = targets
        self._check_all = check_all
        self._repair = repair
        self._writer = ManifestWriter(calls, locations, recorder, before_write=before_write)
        self._protection = protection
        self._estimate = estimate
        self._attachments = AttachmentCopier(
            calls, self._writer, protection, self._copy_blobs, notes.delete_tag_record, ownership
        )

    async def copy(self, plan_entry: PlanEntry, image: Image, counts: BlobCounts) -> bool:
        """Copy an image with its attachments. Return whether the target lacked any part of the image.

        If the target reports that it lacks a blob which it was known to have, the image is pushed once more, with a
        lookup of every object. Raises Cancelled if there is not enough time before the deadline, and the errors that
        the stores raise."""
        if image.graph.left_out is not None:
            self._writer.check_sparse(plan_entry)
        graphs = [image.graph, *(one.graph for one in image.attachments)]
        await self._read_hints(plan_entry, graphs)
        self._estimate.check(plan_entry, (blob for graph in graphs for blob in graph.blobs))
        return await self._push_and_retry(
            plan_entry, counts, lambda check_all: self._push(plan_entry, image, counts, check_all=check_all)
        )

    async def copy_attachments(
        self, plan_entry: PlanEntry, attachments: Sequence[Attachment], counts: BlobCounts
    ) -> bool:
        """Copy attachments of an image that the target already has. Return whether the target lacked any attachment.

        attachments: must not be empty. Raises the errors that the stores raise."""
        await self._read_hints(plan_entry, [one.graph for one in attachments])

        async def push(check_all: bool) -> bool:
            """Write the attachments."""
            source = attachments[0].graph.blob_source
            store = self._targets[plan_entry.target.repository.host]
            attempt = ImagePush(plan_entry, store, counts, check_all=check_all, root=None, source=source)
            return await self._attachments.copy(attempt, attachments)

        return await self._push_and_retry(plan_entry, counts, push)

    async def _read_hints(self, plan_entry: PlanEntry, graphs: Sequence[ManifestGraph]) -> None:
        """Read from the state which repositories may have the blobs of an image."""
        repository = plan_entry.target.repository
        digests = list(dict.fromkeys(blob.digest for graph in graphs for blob in graph.blobs))
        blob_source = graphs[0].blob_source
        if self._can_mount_from_source(plan_entry, graphs[0]):
            self._locations.add_mount_candidates(Repository(blob_source.store.host, blob_source.repository), digests)
        if not self._check_all and not self._targets[repository.host].on_disk:
            unknown = [digest for digest in digests if not self._locations.has_blob(repository, digest)]
            if unknown:
                hints = await self._calls.call(
                    lambda work: self._locations.read_hints(repository, unknown), policy=ONCE
                )
                self._locations.add_hints(repository, hints)

    async def _push_and_retry(
        self, plan_entry: PlanEntry, counts: BlobCounts, push: Callable[[bool], Awaitable[bool]]
    ) -> bool:
        """Call `push` and return its result. If the target lacks a blob that it should have, call `push` again.

        push: its argument is whether to look up every object on the target."""
        try:
            return await push(self._check_all)
        except RemoteError as error:
            if error.code != "blob_missing" or isinstance(error, SparseRefused):
                raise
            text = f"{plan_entry.name}: the target lacks a blob that it was expected to have; pushing the image again"
            _log.warning("distrust", extra={"target": plan_entry.name, "code": error.code, "text": text})
        self._locations.distrust(plan_entry.target.repository)
        counts.reset_for_second_push()
        return await push(True)

    async def _push(self, plan_entry: PlanEntry, image: Image, counts: BlobCounts, *, check_all: bool) -> bool:
        """Write the missing blobs and manifests of an image in order. Return whether the target lacked any of them."""
        repository, graph, root = plan_entry.target.repository, image.graph, image.graph.root
        store, tag = self._targets[repository.host], plan_entry.tag
        is_new = plan_entry.old_digest != root.digest
        push = ImagePush(
            plan_entry,
            store,
            counts,
            check_all=check_all,
            root=root if is_new else None,
            source=graph.blob_source,
            left_out=graph.left_out_of(root),
        )
        changed = await self._copy_blobs(push.take_blobs(graph.blobs), counts)
        look_up = check_all or not is_new
        changed = await self._writer.put_levels(graph, store, push.request_for, look_up=look_up) or changed or is_new
        attached = await self._attachments.copy(push, image.attachments)
        root_request = push.request_for(manifest_descriptor(root), is_root=True)
        if not changed and self._repair:
            changed = not await self._writer.is_tag_current(store, repository, tag, root)
        if changed:
            await self._put_root(plan_entry, graph, root_request)
            if is_new:  # otherwise, the tag may have been written by someone else
                self._ownership.record(str(repository), tag, root.digest, plan_entry.reference.entry.name)
        else:
            self._writer.record_existing(root_request)
        if plan_entry.damaged:
            await self._writer.check_replaced(root_request, tag, root)
        self._record_copied(repository, plan_entry, graph)
        return changed or attached

    async def _put_root(self, plan_entry: PlanEntry, graph: ManifestGraph, request: BlobRequest) -> None:
        """Write the root manifest of an image under its tag.

        Raises Refused (target_conflict) for a tag of an attachment that must not be overwritten."""
        entry, target, tag, root = plan_entry.reference.entry, plan_entry.target, plan_entry.tag, graph.root
        put = partial(
            self._writer.put,
            request,
            tag,
            root,
            before=partial(self._delete_tag_record, plan_entry, graph),
            left_out=graph.left_out_of(root),
        )
        if not is_attachment_tag(tag):
            await put()
            return
        async with self._protection.lock(target.repository, tag):
            old = self._protection.digest_in_run(target.repository, tag) or plan_entry.old_digest
            if old is not None:
                await self._protection.check_overwrite(entry, target, tag, old, root)
            await put()
            self._protection.record_written(entry, target.repository, tag, root.digest)

    async def _copy_blobs(self, requests: list[BlobRequest], counts: BlobCounts) -> bool:
        """Copy the blobs of an image in parallel. Return whether the target lacked any of them."""
        uncounted = {request.blob.digest: request.blob for request in requests}

        async def copy(request: BlobRequest) -> bool:
            """Copy one blob and count it. Return whether the target lacked the blob."""
            try:
                result = await self._blob_copier.copy(request)
            except MirrorError as error:
                if not isinstance(error, Cancelled):
                    counts.add_failed(uncounted.pop(request.blob.digest), self._recorder.take_failed(request))
                raise
            counts.add(uncounted.pop(request.blob.digest), result)
            return result.outcome is not BlobOutcome.EXISTS

        try:
            if not self._repair:
                return any(await run_group(copy(request) for request in requests))
            # Try all blobs, so that a single run reports all files that the registry's operator must delete.
            results = await gather_results(copy(request) for request in requests)
            for result in results:
                if isinstance(result, MirrorError):
                    raise result
            return any(results)
        finally:
            for blob in uncounted.values():  # cancelled after another blob of the image failed
                counts.add_interrupted(blob)

    def _delete_tag_record(self, plan_entry: PlanEntry, graph: ManifestGraph) -> None:
        """Remove the recorded digest of a tag from the state on disk, before the tag is written.

        If the response to the PUT were lost, the record would be unreliable. For a sparse image, also record the
        platforms. Otherwise, a later run could treat the image as complete, because a complete image has the same
        digest."""
        repository, tag = str(plan_entry.target.repository), plan_entry.tag
        self._notes.delete_tag_record(repository, tag, was_recorded=plan_entry.old_digest is not None)
        if graph.left_out is not None and not self._targets[plan_entry.target.repository.host].on_disk:
            self._notes.record_sparse_image(repository, tag, graph.root.digest, graph.left_out.platforms)

    def _can_mount_from_source(self, plan_entry: PlanEntry, graph: ManifestGraph) -> bool:
        """Return whether the blobs of an image can be mounted from the source repository.

        This requires that the source repository is on a target registry, and that the image needs no transform. The
        selection of platforms does not change blobs."""
        target = self._targets.get(graph.blob_source.store.host)
        version = plan_entry.reference.version
        return target is not None and not target.on_disk and isinstance(version, Version) and version.transform is None

    def _record_copied(self, repository: Repository, plan_entry: PlanEntry, graph: ManifestGraph) -> None:
        """Record for later runs that the target has an image and its blobs.

        If blobs can be mounted from the source, record the same for the source."""
        reference, root, tag = plan_entry.reference, graph.root.digest, plan_entry.tag
        entry = reference.entry
        blobs = [blob.digest for blob in graph.blobs]
        self._notes.record_image_blobs(str(repository), root, blobs)
        self._notes.record_tag("target", str(repository), tag, root)
        if not self._targets[repository.host].on_disk:
            platforms = graph.left_out.platforms if graph.left_out is not None else ()
            self._notes.update_sparse_image(str(repository), tag, root, platforms)
        version = reference.version
        if self._can_mount_from_source(plan_entry, graph) and isinstance(version, Version):
            source_root = Digest(version.source_digest or root)
            self._notes.record_image_blobs(entry.name, source_root, blobs)
            self._notes.record_tag("source", entry.name, reference.tag, source_root)
        if entry.rules.is_immutable(tag):
            self._notes.record_tag("source", equality_key(reference, repository), tag, root)
