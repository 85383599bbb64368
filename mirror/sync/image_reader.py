"""Reads the manifest graph of each image once for all targets.

Images that targets do not accept as they are first pass through a transform.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

from mirror.errors import MirrorError, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind
from mirror.store import Transform, TransformPart, Version
from mirror.sync.attachments import Attachment, AttachmentReader
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph
from mirror.sync.plan_model import SourceReference
from mirror.sync.signature_checker import SignatureChecker
from mirror.transfer.calls import Calls
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class TransformHintWriter(Protocol):
    """Records the results of transforms for later runs."""

    def record_transform_digest(self, identity: str, digest: Digest) -> None:
        """Record the digest of a transform's result. Does not block, because the record is written later."""
        ...


async def read_version(calls: Calls, reference: SourceReference) -> Version:
    """Read from the source what a reference refers to now, and return it. Raises the same errors as `Source.read`."""
    entry = reference.entry
    return await calls.call_host(
        entry.source.host, lambda work: entry.source.read(entry.repository, reference.identifier, work)
    )


class Image(Struct, frozen=True):
    """An image that was read: its manifests and blobs, and its attachments, those of the image itself first."""

    graph: ManifestGraph
    attachments: tuple[Attachment, ...] = ()


class ImageReader:
    """Reads the manifest graph of each reference once, and keeps it until all its users have released it.

    signatures: checks the signature of each image before the image is read.
    attachments: finds and reads the attachments of images.
    is_selected: returns whether the run mirrors a source reference, according to `--only`."""

    def __init__(
        self,
        calls: Calls,
        notes: TransformHintWriter,
        manifests: ManifestCache,
        signatures: SignatureChecker,
        is_selected: Callable[[str], bool] = lambda reference: True,
    ) -> None:
        self.attachments = AttachmentReader(calls, manifests, is_selected)
        self._calls = calls
        self._manifests = manifests
        self._notes = notes
        self._signatures = signatures
        self._graphs: dict[SourceReference, ManifestGraph] = {}
        self._releases: dict[SourceReference, Callable[[], None]] = {}  # of transform results
        self._reads: SharedTasks[SourceReference, ManifestGraph] = SharedTasks(calls.tasks)
        self._parts: SharedTasks[Hashable, None] = SharedTasks(calls.tasks)

    async def read_graph(self, reference: SourceReference) -> ManifestGraph:
        """Return the graph of the image that a reference refers to. Only the first call reads it from the source.

        Raises Refused (not_signed), and the errors that the source raises."""
        return self._graphs.get(reference) or await self._reads.run(reference, lambda: self._read(reference))

    async def read_image(self, reference: SourceReference) -> Image:
        """Return the image that a reference refers to, with its attachments. Each part is read once for all targets.

        Raises the same errors as `read_graph` and `AttachmentReader.read_all`."""
        graph = await self.read_graph(reference)
        return Image(graph, await self.attachments.read_all(reference, graph))

    async def read_images(self, references: Sequence[SourceReference]) -> list[Image | MirrorError]:
        """Return the image of each reference, or the error if it cannot be read."""
        return await gather_results(self.read_image(reference) for reference in references)

    def release(self, reference: SourceReference) -> None:
        """Record that one user no longer needs the graph of a reference. If no user is left, drop the graph."""
        reference.users -= 1
        if reference.users:
            return
        self._graphs.pop(reference, None)
        self.attachments.release(reference)
        if (release := self._releases.pop(reference, None)) is not None:
            self._calls.tasks.detach(self._calls.call(lambda work: release(), policy=ONCE))

    async def _read(self, reference: SourceReference) -> ManifestGraph:
        """Resolve a reference unless it has been resolved, transform the image if required, and read its graph."""
        if reference.version is None:
            reference.version = await read_version(self._calls, reference)
        version = reference.version
        if isinstance(version, MirrorError):
            raise version
        await self._signatures.check(reference, version)
        if version.transform is None:
            graph = await self._read_untransformed(reference, version)
        else:
            graph = await self._run_transform(reference, version.transform)
        reference.version = replace(version, manifest=None)  # the graph contains it
        self._graphs[reference] = graph
        return graph

    async def _read_untransformed(self, reference: SourceReference, version: Version) -> ManifestGraph:
        """Read an image that needs no transform.

        Raises RemoteError (manifest_invalid) for a schema 1 image if the mirror does not allow schema 1."""
        entry = reference.entry
        identifier = version.digest or reference.identifier
        graph = await self._manifests.read_graph(
            entry.source, entry.repository, identifier, version.manifest, foreign_layers=entry.foreign_layers
        )
        if not entry.schema1 and any(manifest.kind is Kind.SCHEMA1 for manifest in graph.manifests()):
            raise RemoteError(
                f"{reference.name} is a schema 1 image (made by Docker before 1.10)",
                hint="the configuration says `schema1: fail`: leave the tag out, or set `schema1: copy`",
                code="manifest_invalid",
            )
        return graph

    async def _run_transform(self, reference: SourceReference, transform: Transform) -> ManifestGraph:
        """Run a transform: create its parts in parallel, then build the image from them."""
        host = host_permit(reference.entry.source.host)
        parts = await self._calls.call(transform.parts, needs=(host,), policy=ONCE)

        async def create_part(part: TransformPart) -> None:
            """Create one part. If it is already being created for another image, wait until it is complete."""
            run = partial(transform.create_part, part)
            await self._parts.run(part.key, lambda: self._calls.call(run, needs=(host, DOWNLOADS)))

        await run_group(create_part(part) for part in parts)
        result = await self._calls.call(transform.build_image, needs=(host,), policy=ONCE)
        foreign = reference.entry.foreign_layers
        graph = await self._manifests.read_graph(
            result.source, result.repository, result.root.digest, result.root, foreign_layers=foreign
        )
        self._notes.record_transform_digest(transform.identity, result.root.digest)
        self._releases[reference] = result.release
        return graph
