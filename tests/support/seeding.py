"""Puts graphs into registries: `push` one, `seed` many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Concatenate, ParamSpec

from tests.registries.client import Client, Registry
from tests.support.images import PLATFORMS, Graph, Made

_PUSHERS = 3
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Seeded:
    """The result of `seed`. tags: (repository, tag) -> digest. shared: digests of blobs that all repositories have."""

    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)  # digest -> size in bytes
    manifests: dict[str, int] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """The size of all blobs and manifests in bytes, each counted once."""
        return sum(self.blobs.values()) + sum(self.manifests.values())

    @property
    def repositories(self) -> list[str]:
        return sorted({repository for repository, _ in self.tags})


def push(registry: Registry, repository: str, graph: Graph, *, mounts: dict[str, str] | None = None) -> None:
    """Push a graph to a repository: blobs, manifests, tags last. mounts: digest -> a repository that has it."""
    with _clients(registry) as each, ThreadPoolExecutor(_PUSHERS, thread_name_prefix="push") as pool:
        list(pool.map(lambda digest: each(_put_blob, repository, graph, digest, mounts or {}), graph.blobs))
        each(_put_manifests, repository, graph)


def seed(
    registry: Registry,
    repository: str,
    *,
    repositories: int = 1,
    images: int = 1,
    tags: int | None = None,
    layers: int = 4,
    layer_size: int = 3000,
    shared: float = 0.5,
    index: bool = False,
    oci: bool = True,
    name: str = "seed",
) -> Seeded:
    """Make and push `images` images to `repository` (with several repositories: to repository-0, -1, ...).

    tags: number of tags, by default one per image; tag number k is `v{k}` and refers to image k % images. index: each
    tag is an index of two platforms with `layers` layers each. shared: the fraction of an image's layers that all
    images (of a platform) have in all repositories; they are mounted. name: different names give different content."""
    seeded = Seeded()
    names = [repository] if repositories == 1 else [f"{repository}-{number}" for number in range(repositories)]
    homes: dict[str, str] = {}
    for target in names:
        graph = Graph(name)
        common = round(layers * shared)
        for number in range(images):
            made = _one(graph, f"{target}-{number}", layers, common, layer_size, index=index, oci=oci)
            graph.tag(made.digest, *(f"v{k}" for k in range(number, tags or images, images)))
        push(registry, target, graph, mounts=homes)
        _account(seeded, target, graph, homes)
    return seeded


def _one(graph: Graph, own: str, layers: int, common: int, size: int, *, index: bool, oci: bool) -> Made:
    children = []
    for platform in PLATFORMS if index else PLATFORMS[:1]:
        labels = [f"shared-{platform}-{n}" if n < common else f"{own}-{platform}-{n}" for n in range(layers)]
        made = [graph.layer(label, size, oci=oci) for label in labels]
        children.append(graph.image(layers=made, oci=oci, platform=platform, label=own))
    return graph.index(children=children, oci=oci) if index else children[0]


def _account(seeded: Seeded, repository: str, graph: Graph, homes: dict[str, str]) -> None:
    for digest, data in graph.blobs.items():
        if digest in seeded.blobs:
            seeded.shared.add(digest)
        seeded.blobs[digest] = len(data)
        homes.setdefault(digest, repository)
    seeded.manifests.update({digest: len(body.data) for digest, body in graph.manifests.items()})
    seeded.tags.update({(repository, tag): digest for tag, digest in graph.tags.items()})


class _Each:
    """Lends one of a few clients to each call."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._free: SimpleQueue[Client] = SimpleQueue()
        for client in clients:
            self._free.put(client)

    def __call__(self, work: Callable[Concatenate[Client, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        client = self._free.get()
        try:
            work(client, *args, **kwargs)
        finally:
            self._free.put(client)


@contextmanager
def _clients(registry: Registry) -> Iterator[_Each]:
    with ExitStack() as stack:
        yield _Each([stack.enter_context(registry.client()) for _ in range(_PUSHERS)])


def _put_blob(client: Client, repository: str, graph: Graph, digest: str, mounts: dict[str, str]) -> None:
    home = mounts.get(digest)
    if home and home != repository and client.mount(repository, digest, home):
        return
    client.put_blob(repository, graph.blobs[digest])


def _put_manifests(client: Client, repository: str, graph: Graph) -> None:
    named: dict[str, list[str]] = {digest: [] for digest in graph.manifests}
    for tag, digest in graph.tags.items():
        named[digest].append(tag)
    for digest, body in graph.manifests.items():
        for reference in named[digest] or [digest]:
            client.put_manifest(repository, reference, body.data, body.media_type)
