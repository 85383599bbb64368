"""Reads images from their sources, once for all targets: the manifest graph, and where the blobs are read from.

Transforms run here, for images that targets do not accept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

from mirror.errors import MirrorError, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind
from mirror.store import Transform, TransformPart, Version
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph
from mirror.sync.plan_model import SourceReference
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobSource
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class TransformNotes(Protocol):
    """Stores the results of transforms for later runs."""

    def note_transform_digest(self, identity: str, digest: Digest) -> None:
        """Note the digest of the result of a transform. Does not block: it is written later."""
        ...


class Image(Struct, frozen=True):
    """An image as it was read from its source.

    blob_source: the store that blobs and child manifests are read from.
    version: what the source returned for the reference.
    release: to be called when nothing more will be read from `blob_source`; it may delete files."""

    graph: ManifestGraph
    blob_source: BlobSource
    version: Version
    release: Callable[[], None] | None = None


async def read_version(calls: Calls, reference: SourceReference) -> Version:
    """Return what a reference refers to now. Raises what `Source.read` raises."""
    entry = reference.entry
    return await calls.call(
        lambda work: entry.source.read(entry.repository, reference.identifier, work),
        needs=(host_permit(entry.source.host),),
        policy=ONCE,
    )


class ImageReader:
    """Reads the image of each reference once, and keeps it as long as it has users."""

    def __init__(self, calls: Calls, notes: TransformNotes, manifests: ManifestCache) -> None:
        self._calls = calls
        self._manifests = manifests
        self._notes = notes
        self._images: dict[SourceReference, Image] = {}
        self._reads: Shared[SourceReference, Image] = Shared(calls.tasks)
        self._parts: Shared[Hashable, None] = Shared(calls.tasks)

    async def read_image(self, reference: SourceReference) -> Image:
        """Return the image of a reference, and read it if no other caller has done so. Raises what `Source` raises."""
        return self._images.get(reference) or await self._reads.run(reference, lambda: self._read(reference))

    async def read_images(self, references: Sequence[SourceReference]) -> list[Image | MirrorError]:
        """Return the image of each reference, or the error in its place."""
        return await gather_results(self.read_image(reference) for reference in references)

    def release(self, reference: SourceReference) -> None:
        """Record that one user of the reference is done. The last one removes the image."""
        reference.users -= 1
        if reference.users:
            return
        image = self._images.pop(reference, None)
        if image is not None and (release := image.release) is not None:
            self._calls.tasks.detach(self._calls.call(lambda work: release(), policy=ONCE))

    async def _read(self, reference: SourceReference) -> Image:
        """Resolve a reference if necessary, and read or transform its image."""
        if reference.version is None:
            reference.version = await read_version(self._calls, reference)
        version = reference.version
        if isinstance(version, MirrorError):
            raise version
        if version.transform is None:
            image = await self._read_plain(reference, version)
        else:
            image = await self._run_transform(reference, version, version.transform)
        reference.version = replace(version, manifest=None)  # the graph contains it
        self._images[reference] = image
        return image

    async def _read_plain(self, reference: SourceReference, version: Version) -> Image:
        """Read an image that needs no transform. Raises RemoteError for a schema 1 image if they are not allowed."""
        entry = reference.entry
        identifier = version.digest or reference.identifier
        graph = await self._manifests.read_graph(entry.source, entry.repository, identifier, version.manifest)
        if not entry.schema1 and any(manifest.kind is Kind.SCHEMA1 for manifest in graph.manifests()):
            raise RemoteError(
                f"{reference.name} is a schema 1 image (made by Docker before 1.10)",
                hint="the configuration says `schema1: fail`",
                code="manifest_invalid",
            )
        return Image(graph, BlobSource(entry.source, entry.repository), version)

    async def _run_transform(self, reference: SourceReference, version: Version, transform: Transform) -> Image:
        """Run a transform: create its parts in parallel, then build the image from them."""
        host = host_permit(reference.entry.source.host)
        parts = await self._calls.call(transform.parts, needs=(host,), policy=ONCE)

        async def make(part: TransformPart) -> None:
            run = partial(transform.make, part)
            await self._parts.run(part.key, lambda: self._calls.call(run, needs=(host, DOWNLOADS)))

        await run_group(make(part) for part in parts)
        result = await self._calls.call(transform.finish, needs=(host,), policy=ONCE)
        graph = await self._manifests.read_graph(result.source, result.repository, result.root.digest, result.root)
        self._notes.note_transform_digest(transform.identity, result.root.digest)
        return Image(graph, BlobSource(result.source, result.repository), version, result.release)
