"""Finds the manifests that a target lacks, writes them, and records the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mirror.errors import Cancelled, MirrorError, Refused, SparseRefused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.oci.referrers import is_attachment_tag
from mirror.store import LeftOut, Target, Version
from mirror.sync.manifest_graph import ManifestGraph, manifest_permits
from mirror.sync.plan_model import PlanEntry, reference_suffix
from mirror.sync.planner_queries import may_be_damaged
from mirror.sync.sparse_targets import SparseTargets
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
from mirror.transfer.calls import RESULT_NOT_NEEDED, Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import Coro, run_group
from mirror.util.cancellation import Work


def manifest_descriptor(manifest: Manifest) -> Descriptor:
    """Return a descriptor that refers to a manifest: its digest, size and media type."""
    return Descriptor(manifest.digest, manifest.size, manifest.media_type)


class ManifestWriter:
    """Writes manifests to target repositories. Each manifest is written to each repository at most once in a run.

    recorder: records the result of each manifest. before_write: called on a thread before each manifest is written."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        recorder: BlobRecorder,
        *,
        before_write: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._locations = locations
        self._recorder = recorder
        self._before_write = before_write
        self._puts: SharedTasks[tuple[Repository, str, Digest, bool], None] = SharedTasks(calls.tasks)
        self._sparse_targets = SparseTargets()
        self._sparse: set[tuple[Repository, Digest]] = set()  # indexes of sparse images that this run wrote
        # Manifests with a subject that this run wrote, and that the target did not list as referrers itself.
        self._unlisted: set[tuple[Repository, Digest]] = set()
        self._attachment_tags: dict[tuple[Repository, str], Digest] = {}  # tags of attachments that this run wrote

    def check_sparse(self, plan_entry: PlanEntry) -> None:
        """Raise SparseRefused if the target has already rejected a sparse image in this run."""
        self._sparse_targets.check(plan_entry.target.repository.host, plan_entry.name)

    def is_unlisted(self, repository: Repository, digest: Digest) -> bool:
        """Return whether this run wrote a manifest with a subject that the target did not list as a referrer itself."""
        return (repository, digest) in self._unlisted

    def has_written(self, repository: Repository, reference: str, digest: Digest) -> bool:
        """Return whether this run wrote a manifest under its digest, or under a tag of attachments."""
        if ":" in reference:
            return self._locations.has_manifest(repository, digest)
        return self._attachment_tags.get((repository, reference)) == digest

    async def put_levels(
        self, graph: ManifestGraph, store: Target, request_for: Callable[..., BlobRequest], *, look_up: bool
    ) -> bool:
        """Write the child manifests of an image, children before parents. Return whether the target lacked any of them.

        request_for: returns the request for a manifest with a descriptor from a source. look_up: see `find_missing`."""
        changed = False
        for level in graph.levels:
            requests = {child.digest: request_for(manifest_descriptor(child), graph.blob_source) for child in level}
            repository = next(iter(requests.values())).repository
            missing, damaged = await self.find_missing(store, repository, level, look_up=look_up)
            missing_digests = {child.digest for child in missing}
            for child in level:
                if child.digest not in missing_digests:
                    self.record_existing(requests[child.digest])
            await run_group(
                self.put(requests[child.digest], child.digest, child, left_out=graph.left_out_of(child))
                for child in missing
            )
            await run_group(self.check_replaced(requests[child.digest], child.digest, child) for child in damaged)
            changed = changed or bool(missing)
        return changed

    async def find_missing(
        self, store: Target, repository: Repository, level: Collection[Manifest], *, look_up: bool
    ) -> tuple[list[Manifest], list[Manifest]]:
        """Return the manifests that must be written, and those among them that may be damaged on the target.

        look_up: whether to look the manifests up on the target. If not, return all manifests that this run has not
        written yet, because a PUT costs as much as a HEAD. Hints from earlier runs are not used, because a registry's
        garbage collection may delete untagged manifests, even children of an index, and many registries accept an index
        whose children are missing."""
        if not look_up:
            return [child for child in level if not self._locations.has_manifest(repository, child.digest)], []

        def resolve(work: Work) -> list[Version | MirrorError]:
            """Look up the manifests of the level. Runs on a worker thread."""
            return list(store.resolve(repository.path, [child.digest for child in level], work))

        versions = await self._calls.call_host(repository.host, resolve)
        pairs = list(zip(level, versions, strict=True))
        missing = [child for child, version in pairs if not isinstance(version, Version)]
        return missing, [child for child, version in pairs if may_be_damaged(version)]

    async def check_replaced(self, request: BlobRequest, reference: str, manifest: Manifest) -> None:
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
            """Return the error for a damaged copy that the target did not replace. why: describes the damage."""
            return Refused(
                f"{repository} accepted the upload of {manifest.digest} but still serves a damaged copy: {why}",
                hint="run `mirror sync --repair CONFIG`, which reports the files to delete on the target",
                code="target_lied",
            )

        try:
            await self._calls.call_host(repository.host, read_back)
        except MirrorError as error:
            self._recorder.record_blob(request, BlobResult(), error)  # a second record, after the one for the PUT
            raise

    async def is_tag_current(self, store: Target, repository: Repository, tag: str, root: Manifest) -> bool:
        """Return whether a tag on the target refers to the root manifest of an image. Sends a request."""

        def resolve(work: Work) -> bool:
            """Resolve the tag and compare its digest. Runs on a worker thread."""
            (version,) = store.resolve(repository.path, [tag], work)
            return isinstance(version, Version) and version.digest == root.digest

        return await self._calls.call_host(repository.host, resolve)

    async def put(
        self,
        request: BlobRequest,
        reference: str,
        manifest: Manifest,
        *,
        before: Callable[[], None] = lambda: None,
        left_out: LeftOut | None = None,
    ) -> None:
        """Write a manifest under a tag or its digest, unless this run has written it, and record the result.

        request: describes the manifest for the recorder. before: called on the worker thread before each attempt.
        left_out: for an index of a sparse image, the parts that the index lists but the image leaves out."""
        repository, result = request.repository, BlobResult()

        def put(work: Work) -> None:
            """Attempt to write the manifest once. Runs on a worker thread."""
            result.attempts += 1
            self._before_write(repository)
            before()
            if not request.target.put_manifest(repository.path, reference, manifest, work, left_out=left_out):
                self._unlisted.add((repository, manifest.digest))
            self._recorder.record_manifest(request, result.end(BlobOutcome.COPIED))

        def call_put() -> Coro[None]:
            """Call `put` on a worker thread."""
            return self._calls.call(put, needs=manifest_permits(repository.host, manifest.size))

        async def put_once() -> None:
            """Write the manifest, and record that this run has written it."""
            if left_out is None:
                await call_put()
                self._sparse.discard((repository, manifest.digest))
            else:
                name = f"{repository}{reference_suffix(reference)}"
                await self._sparse_targets.push(repository.host, name, call_put)
                self._sparse.add((repository, manifest.digest))
            self._locations.add_manifest(repository, manifest.digest)
            if is_attachment_tag(reference):
                self._attachment_tags[repository, reference] = manifest.digest

        is_complete = left_out is None and (repository, manifest.digest) not in self._sparse
        if is_complete and not request.lookup_first and self.has_written(repository, reference, manifest.digest):
            self.record_existing(request)
            return
        try:
            await self._puts.run((repository, reference, manifest.digest, left_out is None), put_once)
        except asyncio.CancelledError:
            self._recorder.record_manifest(request, BlobResult(), Cancelled(RESULT_NOT_NEEDED))
            raise
        except MirrorError as error:
            # If a blob is missing, the image is pushed once more, so this failure is not final.
            if error.code != "blob_missing" or request.lookup_first or isinstance(error, SparseRefused):
                self._recorder.record_manifest(request, BlobResult(), error)
            raise

    def record_existing(self, request: BlobRequest) -> None:
        """Record that the target already has a manifest."""
        self._recorder.record_manifest(request, BlobResult(BlobOutcome.EXISTS))
