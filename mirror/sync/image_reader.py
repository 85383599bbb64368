"""Reading what is to be copied, once for all targets: its graph, and where its blobs are read from.

Here transforms run: what no target takes as it is becomes something that they take.
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
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class TransformNotes(Protocol):
    """What is noted for later runs: takes notes only, writes later."""

    def note_transformed(self, identity: str, digest: Digest) -> None: ...


class Image(Struct, frozen=True):
    """What a reading turned out to be. version: as the source named it; origin: where blobs and children are read.

    release: to be called when nothing of it will be read any more; may remove files."""

    graph: ManifestGraph
    origin: BlobSource
    version: Version
    release: Callable[[], None] | None = None


async def resolved(calls: Calls, reference: SourceReference) -> Version:
    """What the source names by the reading's reference now. Raises what the source's `read` raises."""
    entry = reference.entry
    return await calls.call(
        lambda work: entry.source.read(entry.repository, reference.identifier, work),
        needs=(host_permit(entry.source.host),),
        policy=ONCE,
    )


class ImageReader:
    """Reads each reading once, and keeps its image while it has users."""

    def __init__(self, calls: Calls, memory: TransformNotes, manifests: ManifestCache) -> None:
        self._calls = calls
        self._manifests = manifests
        self._memory = memory
        self._images: dict[SourceReference, Image] = {}
        self._reads: SharedTasks[SourceReference, Image] = SharedTasks(calls.tasks)
        self._parts: SharedTasks[Hashable, None] = SharedTasks(calls.tasks)

    async def image(self, reference: SourceReference) -> Image:
        """The image of a reading; joins a reading that is in progress. Raises what reading it raises."""
        return self._images.get(reference) or await self._reads.run(reference, lambda: self._read(reference))

    async def images(self, references: Sequence[SourceReference]) -> list[Image | MirrorError]:
        """The image of each reading, or in its place why it could not be read."""
        return await gather_results(self.image(one) for one in references)

    def release(self, reference: SourceReference) -> None:
        """One of its users needs it no longer."""
        reference.users -= 1
        if reference.users:
            return
        image = self._images.pop(reference, None)
        if image is not None and (release := image.release) is not None:
            self._calls.tasks.detach(self._calls.call(lambda work: release(), policy=ONCE))

    async def _read(self, reference: SourceReference) -> Image:
        if reference.version is None:
            reference.version = await resolved(self._calls, reference)
        version = reference.version
        if isinstance(version, MirrorError):
            raise version
        if version.transform is None:
            image = await self._plain(reference, version)
        else:
            image = await self._transformed(reference, version, version.transform)
        reference.version = replace(version, manifest=None)  # the graph has it
        self._images[reference] = image
        return image

    async def _plain(self, reference: SourceReference, version: Version) -> Image:
        entry = reference.entry
        identifier = version.digest or reference.identifier
        graph = await self._manifests.graph(entry.source, entry.repository, identifier, version.manifest)
        if not entry.schema1 and any(one.kind is Kind.SCHEMA1 for one in graph.manifests()):
            raise RemoteError(
                f"{reference.name} is a schema 1 image (made by Docker before 1.10)",
                hint="the configuration says `schema1: fail`",
                code="manifest_invalid",
            )
        return Image(graph, BlobSource(entry.source, entry.repository), version)

    async def _transformed(self, reference: SourceReference, version: Version, transform: Transform) -> Image:
        host = host_permit(reference.entry.source.host)
        parts = await self._calls.call(transform.parts, needs=(host,), policy=ONCE)

        async def make(part: TransformPart) -> None:
            run = partial(transform.make, part)
            await self._parts.run(part.key, lambda: self._calls.call(run, needs=(host, DOWNLOADS)))

        await run_group(make(part) for part in parts)
        made = await self._calls.call(transform.finish, needs=(host,), policy=ONCE)
        graph = await self._manifests.graph(made.source, made.repository, made.root.digest, made.root)
        self._memory.note_transformed(transform.identity, made.root.digest)
        return Image(graph, BlobSource(made.source, made.repository), version, made.release)
