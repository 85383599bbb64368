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
from mirror.sync.manifest_graph import Graph, Manifests
from mirror.sync.plan_model import Reading
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import Origin
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class Memory(Protocol):
    """What is noted for later runs: takes notes only, writes later."""

    def note_transformed(self, identity: str, digest: Digest) -> None: ...


class Image(Struct, frozen=True):
    """What a reading turned out to be. version: as the source named it; origin: where blobs and children are read.

    release: to be called when nothing of it will be read any more; may remove files."""

    graph: Graph
    origin: Origin
    version: Version
    release: Callable[[], None] | None = None


async def resolved(calls: Calls, reading: Reading) -> Version:
    """What the source names by the reading's reference now. Raises what the source's `read` raises."""
    entry = reading.entry
    return await calls.call(
        lambda work: entry.source.read(entry.repository, reading.reference, work),
        needs=(host_permit(entry.source.host),),
        policy=ONCE,
    )


class Reader:
    """Reads each reading once, and keeps its image while it has users."""

    def __init__(self, calls: Calls, memory: Memory, manifests: Manifests) -> None:
        self._calls = calls
        self._manifests = manifests
        self._memory = memory
        self._images: dict[Reading, Image] = {}
        self._reads: Shared[Reading, Image] = Shared(calls.tasks)
        self._parts: Shared[Hashable, None] = Shared(calls.tasks)

    async def image(self, reading: Reading) -> Image:
        """The image of a reading; joins a reading that is in progress. Raises what reading it raises."""
        return self._images.get(reading) or await self._reads.run(reading, lambda: self._read(reading))

    async def images(self, readings: Sequence[Reading]) -> list[Image | MirrorError]:
        """The image of each reading, or in its place why it could not be read."""
        return await gather_results(self.image(one) for one in readings)

    def let_go(self, reading: Reading) -> None:
        """One of its users needs it no longer."""
        reading.users -= 1
        if reading.users:
            return
        image = self._images.pop(reading, None)
        if image is not None and (release := image.release) is not None:
            self._calls.tasks.detach(self._calls.call(lambda work: release(), policy=ONCE))

    async def _read(self, reading: Reading) -> Image:
        if reading.version is None:
            reading.version = await resolved(self._calls, reading)
        version = reading.version
        if isinstance(version, MirrorError):
            raise version
        if version.transform is None:
            image = await self._plain(reading, version)
        else:
            image = await self._transformed(reading, version, version.transform)
        reading.version = replace(version, manifest=None)  # the graph has it
        self._images[reading] = image
        return image

    async def _plain(self, reading: Reading, version: Version) -> Image:
        entry = reading.entry
        reference = version.digest or reading.reference
        graph = await self._manifests.graph(entry.source, entry.repository, reference, version.manifest)
        if not entry.schema1 and any(one.kind is Kind.SCHEMA1 for one in graph.manifests()):
            raise RemoteError(
                f"{reading.name} is a schema 1 image (made by Docker before 1.10)",
                hint="the configuration says `schema1: fail`",
                code="manifest_invalid",
            )
        return Image(graph, Origin(entry.source, entry.repository), version)

    async def _transformed(self, reading: Reading, version: Version, transform: Transform) -> Image:
        host = host_permit(reading.entry.source.host)
        parts = await self._calls.call(transform.parts, needs=(host,), policy=ONCE)

        async def make(part: TransformPart) -> None:
            run = partial(transform.make, part)
            await self._parts.run(part.key, lambda: self._calls.call(run, needs=(host, DOWNLOADS)))

        await run_group(make(part) for part in parts)
        made = await self._calls.call(transform.finish, needs=(host,), policy=ONCE)
        graph = await self._manifests.graph(made.source, made.repository, made.root.digest, made.root)
        self._memory.note_transformed(transform.identity, made.root.digest)
        return Image(graph, Origin(made.source, made.repository), version, made.release)
