"""Copies one image to one target. Only this module decides the order of writes.

The blobs are written first, then the child manifests under their digests, children before parents, and finally the
root manifest under its tag. The tag therefore always refers either to the old image or to the complete new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError, SparseRefused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.store import LeftOut, Target, Version
from mirror.sync.copy_hints import CopyHintWriter
from mirror.sync.manifest_graph import ManifestGraph, manifest_permits
from mirror.sync.plan_model import PlanEntry, reference_suffix
from mirror.sync.planner_queries import equality_key, may_be_damaged
from mirror.sync.recorder import BlobCounts
from mirror.sync.sparse_targets import SparseTargets
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
from mirror.transfer.calls import RESULT_NOT_NEEDED, Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import Coro, gather_results, run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.sync")


def manifest_descriptor(manifest: Manifest) -> Descriptor:
    """Return a descriptor that refers to a manifest: its digest, size and media type."""
    return Descriptor(manifest.digest, manifest.size, manifest.media_type)


class ImageCopier:
    """Copies images to targets.

    targets: the targets by host.
    recorder: records the result for each manifest, and for each blob that failed.
    check_all: whether to look up every object on the target, even if it is known to exist.
    repair: whether to read every manifest on the target, including the root.
    before_write: called on a thread before each manifest is written."""

    def __init__(
        self,
        calls: Calls,
        blob_copier: BlobCopier,
        locations: BlobLocations,
        notes: CopyHintWriter,
        targets: Mapping[str, Target],
        recorder: BlobRecorder,
        *,
        check_all: bool,
        repair: bool = False,
        before_write: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._puts: SharedTasks[tuple[Repository, str, Digest, bool], None] = SharedTasks(calls.tasks)
        self._recorder = recorder
        self._blob_copier = blob_copier
        self._locations = locations
        self._notes = notes
        self._targets = targets
        self._check_all = check_all
        self._repair = repair
        self._before_write = before_write
        self._sparse_targets = SparseTargets()

    async def copy(self, plan_entry: PlanEntry, graph: ManifestGraph, counts: BlobCounts) -> bool:
        """Copy an image, and return whether the target lacked any part of it. Count its blobs in `counts`.

        If the target rejects a manifest because it lacks a blob that it was known to have, push the image again, and
        look up every object on the target before it is sent. Raises the errors that the stores raise."""
        repository = plan_entry.target.repository
        if graph.left_out is not None:
            self._sparse_targets.check(repository.host, plan_entry.name)
        digests = [blob.digest for blob in graph.blobs]
        if self._can_mount_from_source(plan_entry, graph):
            self._locations.add_mount_candidates(
                Repository(graph.blob_source.store.host, graph.blob_source.repository), digests
            )
        if not self._check_all and not self._targets[repository.host].on_disk:
            unknown = [digest for digest in digests if not self._locations.has_blob(repository, digest)]
            if unknown:
                hints = await self._calls.call(
                    lambda work: self._locations.read_hints(repository, unknown), policy=ONCE
                )
                self._locations.add_hints(repository, hints)
        try:
            return await self._push(plan_entry, graph, counts, check_all=self._check_all)
        except RemoteError as error:
            if error.code != "blob_missing" or isinstance(error, SparseRefused):
                raise
            text = f"{plan_entry.name}: the target lacks a blob that it was expected to have; pushing the image again"
            _log.warning("distrust", extra={"target": plan_entry.name, "code": error.code, "text": text})
        self._locations.distrust(repository)
        counts.reset_for_second_push()
        return await self._push(plan_entry, graph, counts, check_all=True)

    async def _push(self, plan_entry: PlanEntry, graph: ManifestGraph, counts: BlobCounts, *, check_all: bool) -> bool:
        """Write the blobs and manifests that the target lacks, in order. Return whether it lacked any of them."""
        repository = plan_entry.target.repository
        store = self._targets[repository.host]

        def request_for(content: Descriptor, *, is_root: bool = False) -> BlobRequest:
            """Return a request to copy one blob or manifest of the image."""
            name = plan_entry.reference.name
            may_exist = plan_entry.may_have_blobs
            return BlobRequest(content, store, repository, graph.blob_source, name, may_exist, check_all, is_root)

        changed = await self._copy_blobs([request_for(blob) for blob in graph.blobs], counts)
        for level in graph.levels:
            look_up = check_all or plan_entry.old_digest == graph.root.digest
            missing, damaged = await self._find_missing(store, repository, level, look_up=look_up)
            missing_digests = {child.digest for child in missing}
            for child in level:
                if child.digest not in missing_digests:
                    self._record_existing(request_for(manifest_descriptor(child)))
            await run_group(
                self._put_manifest(
                    request_for(manifest_descriptor(child)), child.digest, child, left_out=graph.left_out_of(child)
                )
                for child in missing
            )
            await run_group(
                self._check_replaced(request_for(manifest_descriptor(child)), child.digest, child) for child in damaged
            )
            changed = changed or bool(missing)
        root, tag = graph.root, plan_entry.reference.tag
        root_request = request_for(manifest_descriptor(root), is_root=True)
        changed = changed or plan_entry.old_digest != root.digest
        if not changed and self._repair:
            changed = not await self._is_tag_current(store, repository, tag, root)
        if changed:
            before = partial(self._withdraw_tag, plan_entry, graph)
            await self._put_manifest(root_request, tag, root, before=before, left_out=graph.left_out_of(root))
        else:
            self._record_existing(root_request)
        if plan_entry.damaged:
            await self._check_replaced(root_request, tag, root)
        self._note_copied(repository, plan_entry, graph)
        return changed

    async def _copy_blobs(self, requests: list[BlobRequest], counts: BlobCounts) -> bool:
        """Copy the blobs of an image in parallel. Return whether the target lacked any of them."""
        uncounted = {request.blob.digest: request.blob for request in requests}

        async def copy(request: BlobRequest) -> bool:
            """Copy one blob and count it. Return whether the target lacked it."""
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
            # Try all blobs, so that a single run names everything that the registry's operator has to delete.
            results = await gather_results(copy(request) for request in requests)
            for result in results:
                if isinstance(result, MirrorError):
                    raise result
            return any(results)
        finally:
            for blob in uncounted.values():  # cancelled after another blob of the image failed
                counts.add_interrupted(blob)

    async def _find_missing(
        self, store: Target, repository: Repository, level: Collection[Manifest], *, look_up: bool
    ) -> tuple[list[Manifest], list[Manifest]]:
        """Return the manifests of a level that must be written, and those among them that may be damaged on the target.

        look_up: whether to look them up on the target. If not, return every manifest that this run has not written yet,
        because a PUT costs as much as a HEAD. Hints from earlier runs are not used, because a registry's garbage
        collection may delete untagged manifests, even children of an index, and many registries accept an index whose
        children are missing."""
        if not look_up:
            return [child for child in level if not self._locations.has_manifest(repository, child.digest)], []

        def resolve(work: Work) -> list[Version | MirrorError]:
            """Look up the manifests of the level. Runs on a worker thread."""
            return list(store.resolve(repository.path, [child.digest for child in level], work))

        versions = await self._calls.call_host(repository.host, resolve)
        pairs = list(zip(level, versions, strict=True))
        missing = [child for child, version in pairs if not isinstance(version, Version)]
        return missing, [child for child, version in pairs if may_be_damaged(version)]

    async def _check_replaced(self, request: BlobRequest, reference: str, manifest: Manifest) -> None:
        """Read back a manifest that was written over a damaged copy, to check that the target has replaced the copy.

        Raises Refused (target_lied) if the target still has the damaged copy. This sends a GET, because some registries
        respond to a HEAD with an error although they have the manifest."""
        repository = request.repository

        def read_back(work: Work) -> None:
            """Read the manifest and compare its digest. Runs on a worker thread."""
            try:
                stored = request.target.manifest(repository.path, reference, work).digest
            except MirrorError as error:
                if not may_be_damaged(error):
                    raise
                raise not_replaced(error.what) from error
            if stored != manifest.digest:
                raise not_replaced(f"its digest is {stored}")

        def not_replaced(why: str) -> Refused:
            """Return the error for a damaged copy that the target did not replace. why: how it is damaged."""
            return Refused(
                f"{repository} accepted the upload of {manifest.digest} but still serves a damaged copy: {why}",
                hint="run `mirror sync --repair CONFIG`, which says what to delete on the target",
                code="target_lied",
            )

        try:
            await self._calls.call_host(repository.host, read_back)
        except MirrorError as error:
            self._recorder.record_blob(request, BlobResult(), error)  # a second record, after the one for the PUT
            raise

    async def _is_tag_current(self, store: Target, repository: Repository, tag: str, root: Manifest) -> bool:
        """Ask the target whether the tag refers to the root manifest, and return the answer."""

        def resolve(work: Work) -> bool:
            """Resolve the tag and compare its digest. Runs on a worker thread."""
            (version,) = store.resolve(repository.path, [tag], work)
            return isinstance(version, Version) and version.digest == root.digest

        return await self._calls.call_host(repository.host, resolve)

    def _withdraw_tag(self, plan_entry: PlanEntry, graph: ManifestGraph) -> None:
        """Remove the recorded digest of a tag from the state on disk, before the tag is written.

        The record would be unreliable if the response to the PUT got lost. Also record which platforms a sparse image
        has: otherwise a later run could take it for complete, because its digest is that of the complete image."""
        repository, tag = str(plan_entry.target.repository), plan_entry.reference.tag
        self._notes.delete_tag_record(repository, tag, noted=plan_entry.old_digest is not None)
        if graph.left_out is not None and not self._targets[plan_entry.target.repository.host].on_disk:
            self._notes.record_sparse_image(repository, tag, graph.root.digest, graph.left_out.platforms)

    async def _put_manifest(
        self,
        request: BlobRequest,
        reference: str,
        manifest: Manifest,
        *,
        before: Callable[[], None] = lambda: None,
        left_out: LeftOut | None = None,
    ) -> None:
        """Write a manifest under a tag or its digest, and record the result.

        request: describes the manifest for the recorder. before: called on the worker thread before each attempt.
        left_out: for an index of a sparse image, what it lists but the image leaves out."""
        repository, result = request.repository, BlobResult()

        def put(work: Work) -> None:
            """Attempt to write the manifest once. Runs on a worker thread."""
            result.attempts += 1
            self._before_write(repository)
            before()
            request.target.put_manifest(repository.path, reference, manifest, work, left_out=left_out)
            self._recorder.record_manifest(request, result.end(BlobOutcome.COPIED))

        def push() -> Coro[None]:
            """Write the manifest. If it is already being written, wait for the result."""
            key = (repository, reference, manifest.digest, left_out is None)
            permits = manifest_permits(repository.host, manifest.size)
            return self._puts.run(key, lambda: self._calls.call(put, needs=permits))

        try:
            if left_out is None:
                await push()
            else:
                await self._sparse_targets.push(repository.host, f"{repository}{reference_suffix(reference)}", push)
            self._locations.add_manifest(repository, manifest.digest)
        except asyncio.CancelledError:
            self._recorder.record_manifest(request, BlobResult(), Cancelled(RESULT_NOT_NEEDED))
            raise
        except MirrorError as error:
            # If a blob is missing, the image is pushed once more, so this failure is not final.
            if error.code != "blob_missing" or request.lookup_first or isinstance(error, SparseRefused):
                self._recorder.record_manifest(request, BlobResult(), error)
            raise

    def _record_existing(self, request: BlobRequest) -> None:
        """Record that the target already has a manifest."""
        self._recorder.record_manifest(request, BlobResult(BlobOutcome.EXISTS))

    def _can_mount_from_source(self, plan_entry: PlanEntry, graph: ManifestGraph) -> bool:
        """Return whether the blobs of an image can be mounted from the source repository.

        This requires that the source repository is on a target registry, and that the image needs no transform. The
        selection of platforms does not change blobs."""
        target = self._targets.get(graph.blob_source.store.host)
        version = plan_entry.reference.version
        return target is not None and not target.on_disk and isinstance(version, Version) and version.transform is None

    def _note_copied(self, repository: Repository, plan_entry: PlanEntry, graph: ManifestGraph) -> None:
        """Record for later runs that the target has the image, and its digest.

        If blobs can be mounted from the source, record the same for the source."""
        reference, root = plan_entry.reference, graph.root.digest
        entry, tag = reference.entry, reference.tag
        blobs = [blob.digest for blob in graph.blobs]
        self._notes.record_image_blobs(str(repository), root, blobs)
        self._notes.record_tag("target", str(repository), tag, root)
        if not self._targets[repository.host].on_disk:
            platforms = graph.left_out.platforms if graph.left_out is not None else ()
            self._notes.keep_sparse_image(str(repository), tag, root, platforms)
        version = plan_entry.reference.version
        if self._can_mount_from_source(plan_entry, graph) and isinstance(version, Version):
            source_root = Digest(version.source_digest or root)
            self._notes.record_image_blobs(entry.name, source_root, blobs)
            self._notes.record_tag("source", entry.name, tag, source_root)
        if entry.rules.is_immutable(tag):
            self._notes.record_tag("source", equality_key(reference, repository), tag, root)
