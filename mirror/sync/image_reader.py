"""Reads the manifest graph of each image once for all targets.

An image that must be changed for its targets first passes through a transform. Then the platforms of the mirror are
selected.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from mirror.errors import MirrorError, OtherPlatform, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind
from mirror.oci.platform_filter import FilteredIndex
from mirror.output.progress import Progress
from mirror.store import Transform, TransformPart, TransformResult, Version
from mirror.sync.attachment_search import AttachmentRef
from mirror.sync.attachments import Attachment, AttachmentReader
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph
from mirror.sync.plan_model import SourceReference, hide_digest, selected_platforms, source_digest
from mirror.sync.platform_reader import PlatformReader, left_out_of
from mirror.sync.signature_checker import SignatureChecker
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.calls import Calls
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class TransformHintWriter(Protocol):
    """Records the results of transforms for later runs."""

    def record_transform_digest(self, identity: str, digest: Digest) -> None:
        """Record the digest of a transform's result. Does not block, because the record is written later."""
        ...

    def record_other_platform(self, key: str, reason: str) -> None:
        """Record the reason for skipping an image because of its platform. Does not block, as the write is queued."""
        ...


async def read_version(calls: Calls, reference: SourceReference) -> Version:
    """Read the version to which a reference refers now from its source. Raises the same errors as `Source.read`."""
    entry = reference.entry
    return await calls.call_host(
        entry.source.host, lambda work: entry.source.read(entry.repository, reference.identifier, work)
    )


class Image(Struct, frozen=True):
    """An image that was read, with its attachments. Attachments of the image precede attachments of attachments."""

    graph: ManifestGraph
    attachments: tuple[Attachment, ...] = ()


class ImageReader:
    """Reads the manifest graph of each reference once, and keeps it until all users have released the reference.

    signatures: checks the signature of each image before the image is read.
    protection: compares tags of attachments on targets.
    attachments: finds and reads the attachments of images.
    is_selected: returns whether the run mirrors a source reference, according to `--only`.
    progress: the progress of the run, to which transforms are added."""

    def __init__(
        self,
        calls: Calls,
        notes: TransformHintWriter,
        manifests: ManifestCache,
        signatures: SignatureChecker,
        protection: TagProtection,
        is_selected: Callable[[str], bool] = lambda reference: True,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress or Progress()
        self._platforms = PlatformReader(calls, manifests)
        self.attachments = AttachmentReader(calls, manifests, self._platforms, protection, is_selected)
        self._calls = calls
        self._manifests = manifests
        self._notes = notes
        self._signatures = signatures
        self._graphs: dict[SourceReference, ManifestGraph] = {}
        self._results: dict[SourceReference, TransformResult] = {}  # of transforms
        self._resolutions: SharedTasks[SourceReference, Version] = SharedTasks(calls.tasks)
        self._reads: SharedTasks[SourceReference, ManifestGraph] = SharedTasks(calls.tasks)
        self._parts: SharedTasks[Hashable, None] = SharedTasks(calls.tasks)

    async def read_graph(self, reference: SourceReference) -> ManifestGraph:
        """Return the graph of the image to which a reference refers. Only the first call reads it from the source.

        Raises Refused (not_signed), and the errors that the source raises."""
        return self._graphs.get(reference) or await self._reads.run(reference, lambda: self._read(reference))

    async def read_image(self, reference: SourceReference) -> Image:
        """Return the image to which a reference refers, with its attachments. Each part is read once for all targets.

        Raises the same errors as `read_graph` and `AttachmentReader.read_all`."""
        graph = await self.read_graph(reference)
        return Image(graph, await self.attachments.read_all(reference, graph))

    async def read_images(self, references: Sequence[SourceReference]) -> list[Image | MirrorError]:
        """Return the image of each reference, or the error if it cannot be read."""
        return await gather_results(self.read_image(reference) for reference in references)

    def release(self, reference: SourceReference) -> None:
        """Record that one user no longer needs the graph of a reference. If no user is left, discard the graph."""
        reference.users -= 1
        if reference.users:
            return
        self._graphs.pop(reference, None)
        self.attachments.release(reference)
        if (result := self._results.pop(reference, None)) is not None:
            self._release_result(result)

    def _release_result(self, result: TransformResult) -> None:
        """Release the result of a transform, on a worker thread."""
        self._calls.tasks.detach(self._calls.call(lambda work: result.release(), policy=ONCE))

    async def resolve(self, reference: SourceReference) -> Version:
        """Return the version to which a reference refers at its source. Only the first call sends a request.

        Raises OtherPlatform if an earlier run found that the image is for a platform that is not selected."""
        if reference.version is None:
            version = await self._resolutions.run(reference, lambda: read_version(self._calls, reference))
            reference.version = reference.version or hide_digest(version, reference.entry.platforms)
        if isinstance(reference.version, MirrorError):
            raise reference.version
        if reference.version.other_platform:
            raise OtherPlatform(reference.version.other_platform)
        return reference.version

    async def check_signature(self, reference: SourceReference) -> None:
        """Check the signature of an image as `read_graph` does, without reading the image.

        Raises Refused (not_signed), OtherPlatform, and the errors of the source."""
        await self._signatures.check(reference, await self.resolve(reference))

    async def find_attachments(self, reference: SourceReference) -> tuple[AttachmentRef, ...]:
        """Find the attachments of an image at its source, without reading them. Only the indexes of the image are read.

        If the mirror selects platforms, the manifests of these platforms are read, too. Raises OtherPlatform, and the
        errors of the source."""
        version = await self.resolve(reference)
        digest = source_digest(version)
        if digest is None or reference.entry.attachments is None:
            return ()
        if selected_platforms(reference.entry, version) is None:
            return await self.attachments.find_at_source(reference, digest)
        root = await self._read_root(reference, version)
        graph = await self._read_selected_platforms(reference, version, root)
        return await self.attachments.find_at_source(reference, graph.root.digest, graph)

    async def find_digest(self, reference: SourceReference) -> Digest:
        """Return the digest that a target gets for a reference. As little of the image as possible is read.

        Raises OtherPlatform, and the same errors as `read_graph`."""
        version = await self.resolve(reference)
        if version.digest is not None:
            return version.digest
        if version.transform is not None:
            return (await self.read_graph(reference)).root.digest
        return (await self._filter(reference, version, await self._read_root(reference, version))).root.digest

    async def _read(self, reference: SourceReference) -> ManifestGraph:
        """Resolve a reference unless it has been resolved, transform the image if required, and read its graph."""
        version = await self.resolve(reference)
        await self._signatures.check(reference, version)
        if version.transform is not None:
            image = await self._run_transform(reference, version.transform)
        else:
            image = await self._read_root(reference, version)
        try:
            graph = await self._read_selected_platforms(reference, version, image)
        except BaseException:
            if version.transform is not None:
                self._release_result(image)
            raise
        if version.transform is None:
            self._check_schema1(reference, graph)
        else:
            self._notes.record_transform_digest(version.transform.identity, image.root.digest)
            self._results[reference] = image
        reference.version = replace(version, manifest=None)  # the graph contains it
        self._graphs[reference] = graph
        return graph

    async def _read_selected_platforms(
        self, reference: SourceReference, version: Version, image: TransformResult
    ) -> ManifestGraph:
        """Apply the platforms of the mirror to an image, and read the graph of the result."""
        filtered = await self._filter(reference, version, image)
        return await self._manifests.read_graph(
            image.source,
            image.repository,
            filtered.root.digest,
            filtered.root,
            foreign_layers=reference.entry.foreign_layers,
            made=filtered.nested,
            left_out=left_out_of(filtered, selected_platforms(reference.entry, version)),
        )

    async def _read_root(self, reference: SourceReference, version: Version) -> TransformResult:
        """Read the root manifest of an image that needs no transform."""
        entry = reference.entry
        identifier = version.source_digest or reference.identifier
        root = await self._manifests.read_root(entry.source, entry.repository, identifier, version.manifest)
        return TransformResult(root, entry.source, entry.repository)

    async def _filter(self, reference: SourceReference, version: Version, image: TransformResult) -> FilteredIndex:
        """Apply the platforms of the mirror to an image, and record the result for later runs."""
        wanted = selected_platforms(reference.entry, version)
        if wanted is None or (reference.entry.platforms is None and image.root.kind is not Kind.INDEX):
            return FilteredIndex(image.root)
        identity = version.transform.identity if version.transform is not None else image.root.digest
        key = wanted.result_key(identity)
        try:
            filtered = await self._platforms.filter(image.source, image.repository, image.root, wanted)
        except OtherPlatform as error:
            self._notes.record_other_platform(key, error.what)
            raise
        if not wanted.keeps_digest(image.root.media_type):
            self._notes.record_transform_digest(key, filtered.root.digest)
        return filtered

    def _check_schema1(self, reference: SourceReference, graph: ManifestGraph) -> None:
        """Raise RemoteError if an image has a schema 1 manifest and the mirror does not allow schema 1."""
        if not reference.entry.schema1 and any(manifest.kind is Kind.SCHEMA1 for manifest in graph.manifests()):
            raise RemoteError(
                f"{reference.name} is a schema 1 image (pushed by Docker before 1.10)",
                hint="the configuration sets `schema1: fail`; exclude the tag, or set `schema1: copy`",
                code="manifest_invalid",
            )

    async def _run_transform(self, reference: SourceReference, transform: Transform) -> TransformResult:
        """Run a transform: create its parts in parallel, then build the image from them."""
        host = host_permit(reference.entry.source.host)
        parts = await self._calls.call(transform.parts, needs=(host,), policy=ONCE)

        async def create_part(part: TransformPart) -> None:
            """Create one part of the image. If it is already being created for another image, wait for this part."""

            def run(work: Work) -> None:
                """Create a part of the transform, and show its progress. Runs on a worker thread."""
                with self._progress.running_blob(reference.name, "", part.size, "transform") as shown:
                    transform.create_part(part, work.with_progress(shown.add))

            await self._parts.run(part.key, lambda: self._calls.call(run, needs=(host, DOWNLOADS)))

        await run_group(create_part(part) for part in parts)
        return await self._calls.call(transform.build_image, needs=(host,), policy=ONCE)
