"""A Source that serves one converted image: its config from memory, its layers from the layer cache."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from mirror.errors import MirrorError, NotFound
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.registry.convert.layer_cache import CachedLayer, LayerCache
from mirror.store import BlobReader, TransformResult, Version
from mirror.util.cancellation import Work

N = TypeVar("N")


def pin_layers(
    cache: LayerCache[N], keys: Sequence[Hashable], make: Callable[[Hashable], None]
) -> list[CachedLayer[N]]:
    """Pin the layer that is cached under each key, and return these layers in the order of `keys`.

    Pinned layers are not evicted from the cache. A layer that is missing or was evicted is converted by `make(key)`. If
    `make` raises, no layer stays pinned."""
    found: list[CachedLayer[N]] = []
    try:
        for key in keys:
            cached = cache.pin(key)
            while cached is None:
                make(key)
                cached = cache.pin(key)
            found.append(cached)
    except BaseException:
        cache.unpin(keys[: len(found)])
        raise
    return found


def assemble_image(
    host: str,
    repository: str,
    cache: LayerCache[N],
    keys: Sequence[Hashable],
    make: Callable[[Hashable], None],
    build: Callable[[Sequence[CachedLayer[N]]], tuple[bytes, Manifest]],
) -> TransformResult:
    """Build one image from cached layers, and return it with a Source that serves it.

    keys: the cache keys of the layers, starting with the base layer. make: converts a layer that is not cached. build:
    returns the config and the manifest for the layers. The layers stay pinned until the result is released. If `make`
    or `build` raises, no layer stays pinned."""
    found = pin_layers(cache, keys, make)
    pins = LayerPins(cache, keys)
    try:
        config, root = build(found)
    except BaseException:
        pins.release()
        raise
    layers = {cached.layer.digest: key for cached, key in zip(found, keys, strict=True)}
    return TransformResult(root, ConvertedSource(host, root, config, cache, layers), repository, pins.release)


class LayerPins:
    """The pins that keep the layers of one image in the layer cache. Thread-safe."""

    def __init__(self, cache: LayerCache[N], keys: Sequence[Hashable]) -> None:
        self._unpin: Callable[[], None] = partial(cache.unpin, keys)
        self._lock = threading.Lock()
        self._released = False

    def release(self) -> None:
        """Unpin the layers. Later calls do nothing."""
        with self._lock:
            first, self._released = not self._released, True
        if first:
            self._unpin()


class ConvertedSource:
    """A Source that contains only one converted image.

    host: the registry from which the image was read. layers: maps the digest of each layer to its cache key."""

    partial = False

    def __init__(
        self, host: str, root: Manifest, config: bytes, cache: LayerCache[N], layers: Mapping[Digest, Hashable]
    ) -> None:
        self.host = host
        self._root = root
        self._config = config
        self._config_digest = Digest.of(config)
        self._open: Callable[[Hashable, int], BlobReader] = cache.open
        self._layers = dict(layers)

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Return no repositories, since the image is available only by its digest."""
        return ()

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Return no tags, since the image is available only by its digest."""
        return ()

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """Yield a result for each reference: the converted image if the reference is its digest, otherwise NotFound."""
        for reference in references:
            is_root = reference == self._root.digest
            yield Version(self._root.digest, self._root) if is_root else self._not_found_error(repository, reference)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Return the version of the converted image. Raises NotFound unless `reference` is its digest."""
        return Version(self._root.digest, self.manifest(repository, reference, work))

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Return the manifest of the converted image. Raises NotFound unless `reference` is its digest."""
        if reference != self._root.digest:
            raise self._not_found_error(repository, reference)
        return self._root

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open the config or a layer of the converted image. Raises NotFound for other blobs."""
        if blob.digest == self._config_digest:
            return _BytesReader(self._config, offset)
        if blob.digest not in self._layers:
            raise self._not_found_error(repository, blob.digest)
        return self._open(self._layers[blob.digest], offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return False, since the image is complete."""
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """Return no referrers, since a converted image has none."""
        return ()

    def _not_found_error(self, repository: str, reference: str) -> NotFound:
        """Return the error for a reference or blob that is not part of the converted image."""
        return NotFound(f"{reference} is not part of the image that was converted from {self.host}/{repository}")


class _BytesReader(io.BytesIO):
    """A BlobReader that reads from bytes in memory."""

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data)
        self.seek(offset)
        self.size: int | None = len(data)
