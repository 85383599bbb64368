"""Reading what is to be copied, once for all targets: its graph, and where its blobs are read from.

Here transforms run: what no target takes as it is becomes something that they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from mirror.errors import MirrorError, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind
from mirror.store import Transform, Transformed, Version
from mirror.sync.manifest_graph import Graph, Manifests
from mirror.sync.plan_model import Reading
from mirror.transfer.downloads import Origin
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import DOWNLOADS, host_permit
from mirror.transfer.steps import Steps, settled
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace


class Memory(Protocol):
    """What is noted for later runs: takes notes only, writes later."""

    def note_transformed(self, identity: str, digest: Digest) -> None: ...


def _nothing() -> None:
    pass


class Image(Struct, frozen=True):
    """What a reading turned out to be. version: as the source named it; origin: where blobs and children are read.

    release: called when nothing of it will be read any more."""

    graph: Graph
    origin: Origin
    version: Version
    release: Callable[[], None] = _nothing


def resolved(manager: Manager, reading: Reading) -> Steps[Version]:
    """Steps: what the source names by the reading's reference now. Raises what the source's `read` raises."""
    entry = reading.entry
    version: Version = yield manager.transfer(
        object(),
        lambda work: entry.source.read(entry.repository, reading.reference, work),
        needs=(host_permit(entry.source.host),),
        policy=ONCE,
    )
    return version


class Reader:
    """Reads each reading once, and keeps the result in it while it has users. Thread-safe."""

    def __init__(self, manager: Manager, memory: Memory, manifests: Manifests) -> None:
        self._manager = manager
        self._manifests = manifests
        self._memory = memory

    def image(self, reading: Reading) -> Steps[Image]:
        """Steps: the image of a reading; joins a reading that is under way. Raises what reading it raises."""
        while reading.image is None:
            yield self._manager.spawn(self._read(reading), name=f"read {reading.name}", key=("read", id(reading)))
        image: Image = reading.image
        return image

    def images(self, readings: Sequence[Reading]) -> Steps[list[Image | MirrorError]]:
        """Steps: the image of each reading, or in its place why it could not be read."""
        reads = [self._manager.spawn(self.image(one), name=f"gather {one.name}") for one in readings]
        found: list[Image | MirrorError] = []
        for read in (yield settled(reads)):
            if read.error is not None and not isinstance(read.error, MirrorError):
                raise read.error
            found.append(read.error if read.error is not None else read.result())
        return found

    def _read(self, reading: Reading) -> Steps[None]:
        if reading.version is None:
            reading.version = yield from resolved(self._manager, reading)
        version = reading.version
        if isinstance(version, MirrorError):
            raise version
        if version.transform is None:
            image = yield from self._plain(reading, version)
        else:
            image = yield from self._transformed(reading, version, version.transform)
        reading.version = replace(version, manifest=None)  # the graph has it
        reading.image = image

    def _plain(self, reading: Reading, version: Version) -> Steps[Image]:
        entry = reading.entry
        reference = version.digest or reading.reference
        graph = yield from self._manifests.graph(entry.source, entry.repository, reference, version.manifest)
        if not entry.schema1 and any(one.kind is Kind.SCHEMA1 for one in graph.manifests()):
            raise RemoteError(
                f"{reading.name} is a schema 1 image (made by Docker before 1.10)",
                hint="the configuration says `schema1: fail`",
                code="manifest_invalid",
            )
        return Image(graph, Origin(entry.source, entry.repository), version)

    def _transformed(self, reading: Reading, version: Version, transform: Transform) -> Steps[Image]:
        host = host_permit(reading.entry.source.host)
        parts = yield self._manager.transfer(object(), transform.parts, needs=(host,), policy=ONCE)
        yield [
            self._manager.transfer(
                ("part", part.key), partial(transform.make, part), needs=(host, DOWNLOADS), total=part.size
            )
            for part in parts
        ]
        made: Transformed = yield self._manager.transfer(object(), transform.finish, needs=(host,), policy=ONCE)
        graph = yield from self._manifests.graph(made.source, made.repository, made.root.digest, made.root)
        self._memory.note_transformed(transform.identity, made.root.digest)
        return Image(graph, Origin(made.source, made.repository), version, made.release)
