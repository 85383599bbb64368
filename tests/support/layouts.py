"""Layouts and bundles made of graphs, and `mirror serve` in this process."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mirror.layout.bundle.store import BundleStore
from mirror.layout.directory import LayoutStore
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.serve.server import RegistryServer, open_handler
from mirror.serve.tls import server_context
from mirror.store import Target
from mirror.util.cancellation import Stop, Work
from tests.registries.certificates import Authority
from tests.registries.client import Client
from tests.support.bundles import Bytes, comings, manifests_of
from tests.support.images import Graph


class Served:
    """`mirror serve` for a layout or bundle. Use with `with`. host: its address; tls: the authority of its
    certificate."""

    def __init__(self, path: Path, *, writable: bool = False, tls: Authority | None = None) -> None:
        self._path = path
        self._writable = writable
        self.tls = tls
        self._stack = ExitStack()
        self.name = path.name
        self.host = ""

    def __enter__(self) -> Served:
        with ExitStack() as stack:
            stop = Stop()
            answer = stack.enter_context(open_handler(self._path, stop, writable=self._writable))
            context = server_context(*self.tls.server) if self.tls else None
            self.host = stack.enter_context(RegistryServer(answer, "127.0.0.1", 0, stop=stop, tls=context)).address
            self._stack = stack.pop_all()
        return self

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}"

    def client(self) -> Client:
        return Client(self.host, tls=self.tls.client_context() if self.tls else None)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def lay(path: Path, **graphs: Graph) -> Path:
    """Write a layout of these graphs, named by repository; `__` stands for a slash. Return `path`."""
    work = Work(Stop())
    store = LayoutStore(path, new=True)
    try:
        store.begin((), work)
        for name, graph in graphs.items():
            bring(store, graph, name.replace("__", "/"))
        store.finish(whole=True, work=work)
    finally:
        store.close()
    return path


def pack(path: Path, **graphs: Graph) -> Path:
    """Write a bundle; see `lay`."""
    work = Work(Stop())
    store = BundleStore(path, str(path), spool=path.parent / "spool", new=True)
    try:
        coming = [
            one
            for name, graph in graphs.items()
            for one in comings(graph, name.replace("__", "/"), [*graph.tags, *graph.manifests])
        ]
        store.begin(coming, work)
        for name, graph in graphs.items():
            bring(store, graph, name.replace("__", "/"))
        store.finish(whole=True, work=work)
    finally:
        store.close()
    return path


def bring(store: Target, graph: Graph, repository: str) -> None:
    """Write the blobs, manifests and tags of a graph in the order of a sync."""
    work = Work(Stop())
    for digest, data in graph.blobs.items():
        blob = Descriptor(Digest(digest), len(data))
        with store.begin_upload(repository, blob, work) as session:
            session.send(partial(_from, data), work)
    manifests = manifests_of(graph)
    for digest, manifest in manifests.items():
        store.put_manifest(repository, digest, manifest, work)
    for tag, digest in graph.tags.items():
        store.put_manifest(repository, tag, manifests[digest], work)


def _from(data: bytes, offset: int) -> Bytes:
    return Bytes(data[offset:], piece=1 << 20)
