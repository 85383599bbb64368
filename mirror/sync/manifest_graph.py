"""Reads images as graphs: the root manifest, its child manifests, and the blobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from mirror.errors import Refused
from mirror.oci.descriptor import Descriptor, unique_descriptors
from mirror.oci.digest import Digest
from mirror.oci.manifest import MAX_BYTES, Manifest, manifest_too_big_error
from mirror.store import LeftOut, Source
from mirror.sync.manifest_bodies import ManifestBodies
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.permits import LARGE, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct

MAX_DEPTH = 16  # maximum number of levels of nested indexes
MAX_MANIFESTS = 10_000  # maximum number of manifests of one image
CACHE_BYTES = 32 << 20  # total size of the cached manifests
LARGE_SIZE = 1 << 20  # bytes; larger manifests need the permit LARGE
_LEAVE_OUT = "exclude this image in the configuration"
_REBUILD = "the image itself is invalid, not just a copy of it: rebuild it and push it again"


class WrongDescriptorError(Refused):
    """The error for an index with a wrong descriptor of a child manifest. Such an image is invalid in every store."""


def manifest_permits(host: str, size: int | None) -> tuple[str, ...]:
    """Return the permits for reading or writing a manifest of `size` bytes.

    A large manifest needs an extra permit, so that only a few of them are in memory at once."""
    return (host_permit(host), LARGE) if size is not None and size > LARGE_SIZE else (host_permit(host),)


class ManifestGraph(Struct, frozen=True):
    """The manifests and blobs of an image. Its manifests may load their bodies from files on demand.

    levels: the child manifests by level, lowest first; each manifest refers only to manifests of lower levels.
    blobs: the blobs of all manifests, each digest once. Foreign layers are included only if they are to be copied.
    blob_source: the repository from which the blobs can be read.
    left_out: the parts that a sparse image leaves out on purpose, although its indexes list them; None if there are
    none."""

    root: Manifest
    levels: tuple[tuple[Manifest, ...], ...]
    blobs: tuple[Descriptor, ...]
    blob_source: BlobSource
    left_out: LeftOut | None = None

    def manifests(self) -> Iterator[Manifest]:
        """Yield all manifests, children before their parents."""
        for level in self.levels:
            yield from level
        yield self.root

    def left_out_of(self, manifest: Manifest) -> LeftOut | None:
        """Return the parts that are left out if the manifest is an index that lists any of them, otherwise None."""
        return self.left_out if self.left_out is not None and self.left_out.has_part_of(manifest) else None


class ManifestCache:
    """Caches the manifests of a run, so that each is read only once from each host. Thread-safe.

    limit: the maximum total size of the cached manifests, in bytes.
    by_repository: whether to read each manifest once from each repository, because a repository may lack a manifest
    that another repository on the same host has.
    bodies: stores the bytes of the cached manifests and of all graphs in use; by default in memory only."""

    def __init__(
        self,
        calls: Calls,
        limit: int = CACHE_BYTES,
        *,
        by_repository: bool = False,
        bodies: ManifestBodies | None = None,
    ) -> None:
        self._calls = calls
        self._reads: SharedTasks[tuple[str, str, str], Manifest] = SharedTasks(calls.tasks)
        self._limit = limit
        self._by_repository = by_repository
        self._bodies = bodies or ManifestBodies(None)
        self._lock = threading.Lock()
        self._cached: OrderedDict[tuple[str, Digest], Manifest] = OrderedDict()
        self._bytes = 0
        self._tags: dict[tuple[str, str, str], Digest] = {}  # the results of `read_tag`
        self._referrers: dict[tuple[str, str, Digest], Sequence[Descriptor]] = {}  # kept by `read_referrers`

    async def read(self, source: Source, repository: str, reference: str, size: int | None = None) -> Manifest:
        """Return a manifest. If `reference` is a digest, the cache is used; a tag is always read from the source.

        size: the size in bytes, if it is known. Raises the same errors as `Source.manifest`."""
        scope = self._cache_scope(source, repository)

        def run(work: Work) -> Manifest:
            """Read the manifest on a worker thread, unless it has been cached in the meantime."""
            return self._find_cached(scope, reference) or self._add_to_cache(
                scope, source.manifest(repository, reference, work)
            )

        return self._find_cached(scope, reference) or await self._reads.run(
            (source.host, repository, reference),
            lambda: self._calls.call(run, needs=manifest_permits(source.host, size), policy=ONCE),
        )

    async def read_tag(self, source: Source, repository: str, tag: str) -> Manifest:
        """Return the manifest of a tag of attachments. The tag is read from its source only once in a run.

        This ensures that the copied signatures are the same as the checked signatures. Raises the same errors as
        `Source.manifest`."""
        known = self.find_tag(source, repository, tag)
        if known is not None:
            return known
        manifest = await self.read(source, repository, tag)
        with self._lock:
            self._tags[source.host, repository, tag] = manifest.digest
        return manifest

    def find_tag(self, source: Source, repository: str, tag: str) -> Manifest | None:
        """Return the cached manifest that `read_tag` has returned for a tag, or None if there is none."""
        with self._lock:
            digest = self._tags.get((source.host, repository, tag))
        return self._find_cached(self._cache_scope(source, repository), digest) if digest is not None else None

    async def read_referrers(
        self, source: Source, repository: str, subject: Digest, *, keep: bool = False
    ) -> Sequence[Descriptor] | None:
        """Return the referrers that a source lists for a manifest, or None if the source does not list referrers.

        keep: whether to keep the list, so that the next call returns it without a request. Raises the errors of the
        source."""
        key = (source.host, repository, subject)
        with self._lock:
            kept = self._referrers.pop(key, None)
        if kept is None:

            def list_referrers(work: Work) -> Sequence[Descriptor] | None:
                """List the referrers on a worker thread."""
                listed = source.referrers(repository, subject, work)
                return None if listed is None else tuple(listed)

            kept = await self._calls.call_host(source.host, list_referrers)
        if keep and kept is not None:
            with self._lock:
                self._referrers[key] = kept
        return kept

    async def read_root(
        self, source: Source, repository: str, reference: str, known: Manifest | None = None
    ) -> Manifest:
        """Return the root manifest of the image to which a reference refers.

        known: the root manifest, if it has already been read. Raises the same errors as `read`."""
        if known is None:
            return await self.read(source, repository, reference)
        is_kept = not isinstance(known.content, bytes)
        return known if is_kept else await self._add_on_thread(source, repository, known)

    async def read_graph(
        self,
        source: Source,
        repository: str,
        reference: str,
        known: Manifest | None = None,
        *,
        foreign_layers: bool = False,
        made: Sequence[Manifest] = (),
        left_out: LeftOut | None = None,
    ) -> ManifestGraph:
        """Read the graph of the image to which a reference refers.

        known: the root manifest, if it has already been read. foreign_layers: whether foreign layers are copied. made:
        child manifests that this program created, which the source does not have. left_out: the parts that a sparse
        image leaves out, which are not read. Raises Refused (too_deep, too_many, type_mismatch, size_mismatch,
        manifest_too_big), and the same errors as `read`."""
        root = await self.read_root(source, repository, reference, known)
        manifests: dict[Digest, Manifest] = {root.digest: root}
        own = {child.digest: child for child in made}

        async def read_child(child: Descriptor) -> Manifest:
            """Return one child manifest."""
            if child.digest in own:
                return await self._add_on_thread(source, repository, own[child.digest])
            return await self.read(source, repository, child.digest, child.size)

        level = [root]
        for _ in range(MAX_DEPTH + 1):
            wanted = {
                child.digest: child
                for parent in level
                for child in parent.children
                if child.digest not in manifests and (left_out is None or not left_out.covers(parent, child))
            }
            if not wanted:
                return _assemble_graph(
                    root, manifests, BlobSource(source, repository), left_out, foreign_layers=foreign_layers
                )
            check_count(len(manifests) + len(wanted), f"{source.host}/{repository}", reference)
            for descriptor in wanted.values():
                if descriptor.size is not None and descriptor.size > MAX_BYTES:
                    raise manifest_too_big_error(f"{source.host}/{repository}@{descriptor.digest}", descriptor.size)
            level = await run_group(read_child(child) for child in wanted.values())
            for child, descriptor in zip(level, wanted.values(), strict=True):
                check_descriptor(child, descriptor, f"{source.host}/{repository}")
                manifests[child.digest] = child
        raise too_deep_error(f"{source.host}/{repository}", reference)

    def add(self, source: Source, repository: str, manifest: Manifest) -> Manifest:
        """Add a manifest to the cache. Return the manifest with its body stored in `bodies`.

        May write a file. May be called on any thread."""
        return self._add_to_cache(self._cache_scope(source, repository), manifest)

    async def _add_on_thread(self, source: Source, repository: str, manifest: Manifest) -> Manifest:
        """Call `add` on a worker thread, because it may write a file."""
        return await self._calls.call(lambda work: self.add(source, repository, manifest), policy=ONCE)

    def _cache_scope(self, source: Source, repository: str) -> str:
        """Return the first part of a cache key: the host or, with `by_repository`, the repository."""
        return f"{source.host}/{repository}" if self._by_repository else source.host

    def close(self) -> None:
        """Delete the files that contain bodies, including files that a killed run left behind."""
        self._bodies.close()

    def _find_cached(self, scope: str, reference: str) -> Manifest | None:
        """Return the cached manifest with the digest `reference`. Return None for a tag, which may have changed."""
        if ":" not in reference:
            return None
        with self._lock:
            kept = self._cached.get((scope, Digest(reference)))
            if kept is not None:
                self._cached.move_to_end((scope, kept.digest))
            return kept

    def _add_to_cache(self, scope: str, manifest: Manifest) -> Manifest:
        """Add a manifest to the cache. If the cache is full, discard the least recently used manifests."""
        with self._lock:  # make room before another body is stored
            while self._bytes + manifest.size > self._limit and self._cached:
                _, dropped = self._cached.popitem(last=False)
                self._bytes -= dropped.size
        kept = self._bodies.keep(manifest)
        with self._lock:
            if (scope, kept.digest) not in self._cached:
                self._bytes += kept.size
                self._cached[scope, kept.digest] = kept
        return kept


def check_count(count: int, repository: str, reference: str) -> None:
    """Raise Refused (too_many) if an image has too many manifests. repository: the repository with its host."""
    if count > MAX_MANIFESTS:
        what = f"image {reference} in {repository} has more than {MAX_MANIFESTS} manifests"
        raise Refused(what, hint=_LEAVE_OUT, code="too_many")


def too_deep_error(repository: str, reference: str) -> Refused:
    """Return the error for an image whose indexes are nested too deeply. repository: the repository with its host."""
    what = f"image {reference} in {repository} has indexes nested more than {MAX_DEPTH} levels deep"
    return Refused(what, hint=_LEAVE_OUT, code="too_deep")


def check_descriptor(child: Manifest, descriptor: Descriptor, what: str) -> None:
    """Raise WrongDescriptorError if the size or media type of a manifest differs from its descriptor in an index.

    Two clients could interpret such a manifest differently. what: the name of the repository in messages."""
    if descriptor.size is not None and child.size != descriptor.size:
        raise WrongDescriptorError(
            f"{what}@{child.digest} has {child.size} bytes, but its index says {descriptor.size}",
            hint=_REBUILD,
            code="size_mismatch",
        )
    if descriptor.media_type and descriptor.media_type != child.media_type:
        raise WrongDescriptorError(
            f"{what}@{child.digest} has the media type {child.media_type}, but its index says {descriptor.media_type}",
            hint=_REBUILD,
            code="type_mismatch",
        )


def _assemble_graph(
    root: Manifest,
    manifests: dict[Digest, Manifest],
    blob_source: BlobSource,
    left_out: LeftOut | None,
    *,
    foreign_layers: bool,
) -> ManifestGraph:
    """Build the graph of an image: sort its manifests into levels, and collect its blobs."""
    heights: dict[Digest, int] = {}

    # The recursion is bounded by MAX_DEPTH, and each manifest is visited once.
    def height(manifest: Manifest) -> int:
        """Return the number of levels below a manifest."""
        if manifest.digest not in heights:
            heights[manifest.digest] = 0  # ends a cycle; only manifests with false digests can form one
            children = (manifests[child.digest] for child in manifest.children if child.digest in manifests)
            heights[manifest.digest] = 1 + max(map(height, children), default=-1)
        return heights[manifest.digest]

    height(root)
    below = [manifest for manifest in manifests.values() if manifest is not root]
    distinct = sorted({heights[manifest.digest] for manifest in below})
    levels = tuple(tuple(one for one in below if heights[one.digest] == value) for value in distinct)
    needed = (
        blob
        for manifest in manifests.values()
        for blob in manifest.blobs
        if left_out is None or not left_out.covers(manifest, blob)
    )
    blobs = unique_descriptors(needed, root.digest)
    copied = tuple(blob for blob in blobs if foreign_layers or not blob.foreign)
    return ManifestGraph(root, levels, copied, blob_source, left_out)
