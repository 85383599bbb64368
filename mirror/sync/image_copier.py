"""The order of writes: the only code that decides it.

For one image on one target: its blobs; then its manifests, children before parents, by digest; then the root by
its tag, last. So a tag names at every instant its old image or the new one, whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, Protocol

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.store import Target, Version
from mirror.sync.image_reader import Image
from mirror.sync.manifest_graph import manifest_permits
from mirror.sync.plan_model import PlanEntry
from mirror.sync.planner_queries import equality_key, may_be_damaged
from mirror.sync.recorder import BlobCounts
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_outcomes import BlobRecorder
from mirror.transfer.blob_request import BlobEffort, BlobOutcome, BlobRequest
from mirror.transfer.calls import ABANDONED, Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.sync")


def descriptor(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.digest, manifest.size, manifest.media_type)


class CopyNotes(Protocol):
    """What is noted for later runs: takes notes and writes them later, but for withdrawals."""

    def note_tag(self, side: Literal["source", "target"], repository: str, tag: str, digest: Digest | None) -> None: ...
    def note_graph(self, repository: str, root: Digest, blobs: Collection[Digest]) -> None: ...
    def withdraw_tag(self, repository: str, tag: str, *, noted: bool) -> None: ...


class ImageCopier:
    """Brings images to targets.

    outcomes: where it is recorded what became of each manifest; certain: believe nothing that is known, ask for every
    object; repair: read every manifest on the target, the root too; writing: called, on a thread, before a write."""

    def __init__(
        self,
        calls: Calls,
        blob_copier: BlobCopier,
        locations: BlobLocations,
        memory: CopyNotes,
        targets: Mapping[str, Target],
        recorder: BlobRecorder,
        *,
        certain: bool,
        repair: bool = False,
        writing: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._puts: Shared[tuple[Repository, str, Digest], None] = Shared(calls.tasks)
        self._recorder = recorder
        self._blob_copier = blob_copier
        self._locations = locations
        self._memory = memory
        self._targets = targets
        self._certain = certain
        self._repair = repair
        self._writing = writing

    async def copy(self, plan_entry: PlanEntry, image: Image, counts: BlobCounts) -> bool:
        """Everything under the root, then the root. -> whether anything was missing. Raises as the stores do."""
        repository = plan_entry.target.repository
        digests = [blob.digest for blob in image.graph.blobs]
        if self._can_mount_from_source(image):
            self._locations.suggest(Repository(image.blob_source.source.host, image.blob_source.repository), digests)
        if not self._certain and not self._targets[repository.host].on_disk:
            unknown = [digest for digest in digests if not self._locations.has_blob(repository, digest)]
            if unknown:
                hints = await self._calls.call(
                    lambda work: self._locations.read_hints(repository, unknown), policy=ONCE
                )
                self._locations.note_hints(repository, hints)
        try:
            return await self._push(plan_entry, image, counts, certain=self._certain)
        except RemoteError as error:
            if error.code != "blob_missing":
                raise
            text = f"{plan_entry.name}: something believed to be on the target is not there; looking again"
            _log.warning("distrust", extra={"target": plan_entry.name, "code": error.code, "text": text})
        self._locations.distrust(repository)
        counts.reset_for_second_push()
        return await self._push(plan_entry, image, counts, certain=True)

    async def _push(self, plan_entry: PlanEntry, image: Image, counts: BlobCounts, *, certain: bool) -> bool:
        repository, graph = plan_entry.target.repository, image.graph
        store = self._targets[repository.host]

        def request_for(what: Descriptor, *, is_root: bool = False) -> BlobRequest:
            return BlobRequest(
                what,
                store,
                repository,
                image.blob_source,
                plan_entry.reference.name,
                plan_entry.may_have_blobs,
                certain,
                is_root,
            )

        changed = await self._copy_blobs([request_for(blob) for blob in graph.blobs], counts)
        for level in graph.levels:
            ask = certain or plan_entry.old_digest == graph.root.digest
            missing, broken = await self._find_missing(store, repository, level, ask=ask)
            lacking = {child.digest for child in missing}
            for child in level:
                if child.digest not in lacking:
                    self._recorder.record_manifest(
                        request_for(descriptor(child)), BlobEffort().result(BlobOutcome.EXISTS)
                    )
            await run_group(
                self._put_manifest(request_for(descriptor(child)), child.digest, child) for child in missing
            )
            await run_group(
                self._check_replaced(request_for(descriptor(child)), child.digest, child) for child in broken
            )
            changed = changed or bool(missing)
        root, tag = graph.root, plan_entry.reference.tag
        changed = changed or plan_entry.old_digest != root.digest
        if not changed and self._repair:
            changed = not await self._is_tag_current(store, repository, tag, root)
        if changed:
            await self._put_manifest(
                request_for(descriptor(root), is_root=True), tag, root, before=partial(self._withdraw_tag, plan_entry)
            )
        else:
            self._recorder.record_manifest(
                request_for(descriptor(root), is_root=True), BlobEffort().result(BlobOutcome.EXISTS)
            )
        if plan_entry.damaged:
            await self._check_replaced(request_for(descriptor(root), is_root=True), tag, root)
        self._note_copied(repository, plan_entry, image)
        return changed

    async def _copy_blobs(self, requests: list[BlobRequest], counts: BlobCounts) -> bool:
        """Bring the blobs of an image. -> whether any was missing."""
        left = {request.blob.digest: request.blob for request in requests}

        async def copy(request: BlobRequest) -> bool:
            try:
                result = await self._blob_copier.copy(request)
            except MirrorError as error:
                if not isinstance(error, Cancelled):
                    counts.add_failed(left.pop(request.blob.digest), self._recorder.take_failed_cost(request))
                raise
            counts.add(left.pop(request.blob.digest), result)
            return result.outcome is not BlobOutcome.EXISTS

        try:
            if not self._repair:
                return any(await run_group(copy(request) for request in requests))
            # One run names all that a registry's operator has to delete.
            results = await gather_results(copy(request) for request in requests)
            for result in results:
                if isinstance(result, MirrorError):
                    raise result
            return any(results)
        finally:
            for blob in left.values():  # every blob is counted, also where another blob of the image failed
                counts.add_interrupted(blob)

    async def _find_missing(
        self, store: Target, repository: Repository, level: Collection[Manifest], *, ask: bool
    ) -> tuple[list[Manifest], list[Manifest]]:
        """The manifests of a level that have to be put: those that this run did not put there yet. -> these, and those
        of them that the target has and cannot give.

        No earlier run's word is taken for a child: a registry's clean-up removes untagged manifests, those of indexes
        too, and many take an index whose child is gone. A PUT costs no more than asking; that is for where all is
        likely to be there."""
        if not ask:
            return [one for one in level if not self._locations.has_manifest(repository, one.digest)], []

        def look(work: Work) -> list[Version | MirrorError]:
            return list(store.resolve(repository.path, [one.digest for one in level], work))

        answers = await self._calls.call(look, needs=(host_permit(repository.host),), policy=ONCE)
        asked = list(zip(level, answers, strict=True))
        missing = [one for one, answer in asked if not isinstance(answer, Version)]
        return missing, [one for one, answer in asked if may_be_damaged(answer)]

    async def _check_replaced(self, request: BlobRequest, reference: str, manifest: Manifest) -> None:
        """Read what was put where the target had a copy that it could not give: it may have kept that.

        By GET: some registries answer a HEAD with an error although they have the manifest."""
        repository = request.repository

        def look(work: Work) -> None:
            try:
                stored = request.target.manifest(repository.path, reference, work).digest
            except MirrorError as error:
                if not may_be_damaged(error):
                    raise
                raise kept(error.what) from error
            if stored != manifest.digest:
                raise kept(f"it is {stored} still")

        def kept(why: str) -> Refused:
            return Refused(
                f"{repository} accepted the upload of {manifest.digest} but still serves a damaged copy: {why}",
                hint="run `mirror sync --repair CONFIG`, which says what to delete there",
                code="target_lied",
            )

        try:
            await self._calls.call(look, needs=(host_permit(repository.host),), policy=ONCE)
        except MirrorError as error:
            self._recorder.record_blob(request, error)  # what was copied turned out not to be there
            raise

    async def _is_tag_current(self, store: Target, repository: Repository, tag: str, root: Manifest) -> bool:
        """Whether the tag leads to the root, as the target says when it is asked again."""

        def look(work: Work) -> bool:
            (answer,) = store.resolve(repository.path, [tag], work)
            return isinstance(answer, Version) and answer.digest == root.digest

        return await self._calls.call(look, needs=(host_permit(repository.host),), policy=ONCE)

    def _withdraw_tag(self, plan_entry: PlanEntry) -> None:
        """Forget durably what the tag names on the target: after a PUT whose answer is lost nobody knows."""
        self._memory.withdraw_tag(
            str(plan_entry.target.repository), plan_entry.reference.tag, noted=plan_entry.old_digest is not None
        )

    async def _put_manifest(
        self, request: BlobRequest, reference: str, manifest: Manifest, *, before: Callable[[], None] = lambda: None
    ) -> None:
        """Put a manifest under a tag or its digest; `order` is for the record. before: called before each attempt."""
        repository, effort = request.repository, BlobEffort()

        def run(work: Work) -> None:
            effort.attempts += 1
            self._writing(repository)
            before()
            request.target.put_manifest(repository.path, reference, manifest, work)
            self._recorder.record_manifest(request, effort.result(BlobOutcome.COPIED))

        try:
            await self._puts.run(
                (repository, reference, manifest.digest),
                lambda: self._calls.call(run, needs=manifest_permits(repository.host, manifest.size)),
            )
            self._locations.add_manifest(repository, manifest.digest)
        except asyncio.CancelledError:
            self._recorder.record_manifest(request, Cancelled(ABANDONED))
            raise
        except MirrorError as error:
            # Where the target lacks a blob, the image is pushed once more.
            if error.code != "blob_missing" or request.certain:
                self._recorder.record_manifest(request, error)
            raise

    def _can_mount_from_source(self, image: Image) -> bool:
        """Whether blobs can be mounted from the source: it is a repository of a target's host that holds the image."""
        target = self._targets.get(image.blob_source.source.host)
        return target is not None and not target.on_disk and image.version.transform is None

    def _note_copied(self, repository: Repository, plan_entry: PlanEntry, image: Image) -> None:
        entry, root, tag = plan_entry.reference.entry, image.graph.root.digest, plan_entry.reference.tag
        blobs = [blob.digest for blob in image.graph.blobs]
        self._memory.note_graph(str(repository), root, blobs)
        self._memory.note_tag("target", str(repository), tag, root)
        if self._can_mount_from_source(image):
            self._memory.note_graph(entry.name, root, blobs)
            self._memory.note_tag("source", entry.name, tag, root)
        if entry.rules.is_immutable(tag):
            self._memory.note_tag("source", equality_key(entry, repository), tag, root)
