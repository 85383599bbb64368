"""What a conversion has made, as a store: one image whose config is in memory and whose layers are in the scratch."""

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
from mirror.registry.convert.layer_cache import Kept, Scratch
from mirror.store import BlobReader, Transformed, Version
from mirror.util.cancellation import Work

N = TypeVar("N")


def pinned(scratch: Scratch[N], keys: Sequence[Hashable], make: Callable[[Hashable], None]) -> list[Kept[N]]:
    """What was made of each key, pinned; what had to make room meanwhile is made again. Raises what `make` raises."""
    found: list[Kept[N]] = []
    try:
        for key in keys:
            kept = scratch.pin(key)
            while kept is None:
                make(key)
                kept = scratch.pin(key)
            found.append(kept)
    except BaseException:
        scratch.unpin(keys[: len(found)])
        raise
    return found


def assembled(
    host: str,
    repository: str,
    scratch: Scratch[N],
    keys: Sequence[Hashable],
    make: Callable[[Hashable], None],
    build: Callable[[Sequence[Kept[N]]], tuple[bytes, Manifest]],
) -> Transformed:
    """The image that `build` makes (config and manifest) of the layers of all keys, which stay pinned until it is
    released. Raises what `make` and `build` raise; then nothing is pinned."""
    found = pinned(scratch, keys, make)
    pins = Pins(scratch, keys)
    try:
        config, root = build(found)
    except BaseException:
        pins.release()
        raise
    layers = {kept.layer.digest: key for kept, key in zip(found, keys, strict=True)}
    return Transformed(root, Made(host, root, config, scratch, layers), repository, pins.release)


class Pins:
    """Pins that are taken out once, however often that is asked for. Thread-safe."""

    def __init__(self, scratch: Scratch[N], keys: Sequence[Hashable]) -> None:
        self._unpin: Callable[[], None] = partial(scratch.unpin, keys)
        self._lock = threading.Lock()
        self._out = False

    def release(self) -> None:
        with self._lock:
            first, self._out = not self._out, True
        if first:
            self._unpin()


class Made:
    """A Source of one converted image. host: of the registry that it comes from; layers: their keys in the scratch."""

    partial = False

    def __init__(
        self, host: str, root: Manifest, config: bytes, scratch: Scratch[N], layers: Mapping[Digest, Hashable]
    ) -> None:
        self.host = host
        self._root = root
        self._config = config
        self._config_digest = Digest.of(config)
        self._open: Callable[[Hashable, int], BlobReader] = scratch.open
        self._layers = dict(layers)

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        return ()

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        return ()

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        for reference in references:
            here = reference == self._root.digest
            yield Version(self._root.digest, self._root) if here else self._lacks(repository, reference)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        return Version(self._root.digest, self.manifest(repository, reference, work))

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        if reference != self._root.digest:
            raise self._lacks(repository, reference)
        return self._root

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        if blob.digest == self._config_digest:
            return _BytesReader(self._config, offset)
        if blob.digest not in self._layers:
            raise self._lacks(repository, blob.digest)
        return self._open(self._layers[blob.digest], offset)

    def lacks(self, blob: Descriptor) -> bool:
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        return ()

    def _lacks(self, repository: str, reference: str) -> NotFound:
        return NotFound(f"{reference} is not what was made of {self.host}/{repository}")


class _BytesReader(io.BytesIO):
    """A BlobReader over bytes."""

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data)
        self.seek(offset)
        self.size: int | None = len(data)
