"""A cache for the converted layers of one run, which are stored as files in the spool directory.

The layers of images in progress are pinned. If the size limit is exceeded, layers that are not pinned are evicted,
starting with the least recently used. An evicted layer is converted again when it is needed. All files are removed at
the end of the run.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from mirror.errors import NotFound
from mirror.registry.convert.layers import Layer, LayerWriter
from mirror.util.file_reader import FileReader
from mirror.util.files import atomic_write, local_error, private_directory
from mirror.util.structs import Struct

N = TypeVar("N")


class CachedLayer(Struct, Generic[N]):
    """A converted layer in the cache, together with data that its converter stored (`note`).

    path: the file with the bytes. pins: the number of images in progress that need the file. is_present: whether the
    file exists; it does not if the layer was evicted."""

    layer: Layer
    note: N
    path: Path
    pins: int = 0
    is_present: bool = True


class LayerCache(Generic[N]):
    """A cache of converted layers in a directory. Thread-safe. The directory is created at the first write.

    limit: the maximum number of bytes; None for half of the disk space that is free at the first write."""

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        self._ready = False
        self._number = 0
        self._bytes = 0
        self._layers: OrderedDict[Hashable, CachedLayer[N]] = OrderedDict()

    def find(self, key: Hashable) -> CachedLayer[N] | None:
        """Return the layer that is cached under `key`, or None if it is not cached or was evicted."""
        with self._lock:
            cached = self._layers.get(key)
            if cached is None or not cached.is_present:
                return None
            self._layers.move_to_end(key)
            return cached

    def pin(self, key: Hashable) -> CachedLayer[N] | None:
        """Return the layer that is cached under `key`, and keep its file until `unpin` is called.

        Return None if the layer is not cached or was evicted."""
        with self._lock:
            cached = self._layers.get(key)
            if cached is None or not cached.is_present:
                return None
            cached.pins += 1
            return cached

    def unpin(self, keys: Collection[Hashable]) -> None:
        """Remove one pin from the layer of each key, then evict layers if the limit is exceeded."""
        with self._lock:
            for key in keys:
                self._layers[key].pins -= 1
            evicted = self._make_room()
        for file in evicted:
            file.unlink(missing_ok=True)

    @contextmanager
    def write_layer(self, key: Hashable, *, what: str, code: str) -> Iterator[_PendingLayer[N]]:
        """Convert one layer in a `with` block, and add it to the cache under `key`.

        Feed the stored bytes to the object that the `with` statement yields, and call its method `keep`. The layer is
        added when the block exits. If the block raises an exception or does not call `keep`, nothing is added. what:
        the layer's name in error messages. code: the code of these errors."""
        if not self._ready:
            self._create_directory()
        with self._lock:
            self._number += 1
            path = self._directory / f"layer-{self._number}"
        with atomic_write(path) as out:
            pending: _PendingLayer[N] = _PendingLayer(out, what=what, code=code)
            yield pending
        if pending.result is None:
            path.unlink(missing_ok=True)
            return
        layer, note = pending.result
        evicted: list[Path] = []
        with self._lock:
            existing = self._layers.get(key)
            if existing is not None and existing.is_present:  # another thread has converted the same layer
                evicted.append(path)
            else:
                pins = existing.pins if existing is not None else 0
                self._layers[key] = CachedLayer(layer, note, path, pins)
                self._bytes += layer.size
                evicted += self._make_room(key)
        for file in evicted:
            file.unlink(missing_ok=True)

    def open(self, key: Hashable, offset: int) -> FileReader:
        """Open the layer that is cached under `key`, to read it from byte `offset`.

        Raises NotFound if it is not cached or was evicted."""
        cached = self.find(key)
        if cached is None:
            raise _evicted_error()
        try:
            descriptor = os.open(cached.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise _evicted_error() from error
        except OSError as error:
            raise local_error("read", cached.path, error) from error
        return FileReader(descriptor, cached.path, offset, written=cached.layer.size)

    def remove_leftovers(self) -> None:
        """Remove the files that a killed run left behind. Call this before the cache is first used."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def close(self) -> None:
        """Remove the directory with all its files."""
        if self._ready:
            self.remove_leftovers()

    def _create_directory(self) -> None:
        """Create the directory, and determine the limit if none was set. Thread-safe."""
        private_directory(self._directory)
        if self._limit is None:
            self._limit = shutil.disk_usage(self._directory).free // 2
        self._ready = True

    def _make_room(self, kept_key: Hashable = None) -> list[Path]:
        """Evict unpinned layers until the total size is within the limit. Never evict the layer of `kept_key`.

        The caller holds the lock. Return the paths of the evicted files, which the caller removes after it releases
        the lock."""
        evicted: list[Path] = []
        for key, cached in self._layers.items():
            if self._bytes <= (self._limit or 0):
                break
            if cached.is_present and not cached.pins and key != kept_key:
                cached.is_present = False
                self._bytes -= cached.layer.size
                evicted.append(cached.path)
        return evicted


class DigestOnlyCache(LayerCache[N]):
    """A layer cache for dry runs. It keeps the digests and sizes of layers, but not their bytes."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull) / "nothing")

    @contextmanager
    def write_layer(self, key: Hashable, *, what: str, code: str) -> Iterator[_PendingLayer[N]]:
        """Convert one layer in a `with` block, as in LayerCache, but discard the converted bytes."""
        with open(os.devnull, "wb") as out:  # noqa: PTH123 (the null device)
            pending: _PendingLayer[N] = _PendingLayer(out, what=what, code=code)
            yield pending
        if pending.result is not None:
            with self._lock:
                self._layers.setdefault(key, CachedLayer(*pending.result, self._directory))

    def open(self, key: Hashable, offset: int) -> FileReader:
        """Raise NotFound, because no bytes are stored."""
        raise NotFound("the bytes of a converted layer are not kept in a dry run")


class _PendingLayer(Generic[N]):
    """A layer that is being converted. `LayerCache.write_layer` yields it."""

    def __init__(self, out: BinaryIO, *, what: str, code: str) -> None:
        self._writer = LayerWriter(out, what=what, code=code)
        self.result: tuple[Layer, N] | None = None

    def feed(self, data: bytes) -> None:
        """Convert the next stored bytes of the layer."""
        self._writer.feed(data)

    def finish(self, *, end_known: bool = True) -> Layer:
        """Finish the conversion and return its result. Raises Refused if the layer is not complete.

        end_known: see LayerWriter.finish."""
        return self._writer.finish(end_known=end_known)

    def keep(self, layer: Layer, note: N) -> None:
        """Add `layer` and `note` to the cache when the `with` block of `write_layer` exits."""
        self.result = layer, note


def _evicted_error() -> NotFound:
    """Return the error for a layer that is needed but was evicted from the cache."""
    return NotFound("a converted layer was removed from the spool to free space", hint="run the command again")
