"""Layers that conversions have made, on their way to the targets: files below the spool, for one run.

What an image in work needs is pinned; the rest makes room when the limit is reached, oldest first, and is made
again if it is wanted again. Nothing in it outlives a run.
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


class Kept(Struct, Generic[N]):
    """A layer and what was noted with it. pins: images in work that need its file; here: whether the file is there."""

    layer: Layer
    note: N
    path: Path
    pins: int = 0
    here: bool = True


class Scratch(Generic[N]):
    """By key: what was made of it. Thread-safe. Contacts nobody; makes its directory when first written to.

    limit: bytes; None: half of what is free then."""

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        self._ready = False
        self._number = 0
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Kept[N]] = OrderedDict()

    def find(self, key: Hashable) -> Kept[N] | None:
        """What was made of `key`, if its file is there."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.here:
                return None
            self._kept.move_to_end(key)
            return kept

    def pin(self, key: Hashable) -> Kept[N] | None:
        """As `find`; its file stays until `unpin`."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.here:
                return None
            kept.pins += 1
            return kept

    def unpin(self, keys: Collection[Hashable]) -> None:
        """Once for each `pin`."""
        with self._lock:
            for key in keys:
                self._kept[key].pins -= 1
            gone = self._make_room()
        for file in gone:
            file.unlink(missing_ok=True)

    @contextmanager
    def writing(self, key: Hashable, *, what: str, code: str) -> Iterator[_Making[N]]:
        """Feed the stored bytes of a layer to what this gives, then `keep` it. If the block raises, nothing is kept."""
        if not self._ready:
            self._prepare()
        with self._lock:
            self._number += 1
            path = self._directory / f"layer-{self._number}"
        with atomic_write(path) as out:
            making: _Making[N] = _Making(out, what=what, code=code)
            yield making
        if making.made is None:
            path.unlink(missing_ok=True)
            return
        layer, note = making.made
        gone: list[Path] = []
        with self._lock:
            earlier = self._kept.get(key)
            if earlier is not None and earlier.here:  # made twice at the same time
                gone.append(path)
            else:
                pins = earlier.pins if earlier is not None else 0
                self._kept[key] = Kept(layer, note, path, pins)
                self._bytes += layer.size
                gone += self._make_room(key)
        for file in gone:
            file.unlink(missing_ok=True)

    def open(self, key: Hashable, offset: int) -> FileReader:
        """The blob of a layer. Raises NotFound: it had to make room."""
        kept = self.find(key)
        if kept is None:
            raise _gone()
        try:
            descriptor = os.open(kept.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise _gone() from error
        except OSError as error:
            raise local_error("read", kept.path, error) from error
        return FileReader(descriptor, kept.path, offset, written=kept.layer.size)

    def sweep(self) -> None:
        """Remove what a killed run left. Before the first use."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def close(self) -> None:
        """Remove what is there."""
        if self._ready:
            self.sweep()

    def _prepare(self) -> None:
        """May be done by several threads at once."""
        private_directory(self._directory)
        if self._limit is None:
            self._limit = shutil.disk_usage(self._directory).free // 2
        self._ready = True

    # Under the lock:

    def _make_room(self, newest: Hashable = None) -> list[Path]:
        gone: list[Path] = []
        for key, kept in self._kept.items():
            if self._bytes <= (self._limit or 0):
                break
            if kept.here and not kept.pins and key != newest:
                kept.here = False
                self._bytes -= kept.layer.size
                gone.append(kept.path)
        return gone


class Measure(Scratch[N]):
    """A scratch for who wants to know what would be made, and nothing more: it has no file of it."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull) / "nothing")

    @contextmanager
    def writing(self, key: Hashable, *, what: str, code: str) -> Iterator[_Making[N]]:
        with open(os.devnull, "wb") as out:  # noqa: PTH123 (no path of ours)
            making: _Making[N] = _Making(out, what=what, code=code)
            yield making
        if making.made is not None:
            with self._lock:
                self._kept.setdefault(key, Kept(*making.made, self._directory))

    def open(self, key: Hashable, offset: int) -> FileReader:
        """Raises NotFound."""
        raise NotFound("what was converted was only measured")


class _Making(Generic[N]):
    """A layer that is being written."""

    def __init__(self, out: BinaryIO, *, what: str, code: str) -> None:

        self._writer = LayerWriter(out, what=what, code=code)
        self.made: tuple[Layer, N] | None = None

    def feed(self, data: bytes) -> None:
        self._writer.feed(data)

    def finish(self, *, sure: bool = True) -> Layer:
        """All came; sure: that it did. Raises Refused."""
        return self._writer.finish(sure=sure)

    def keep(self, layer: Layer, note: N) -> None:
        self.made = layer, note


def _gone() -> NotFound:
    return NotFound("a converted layer is no longer on this machine", hint="run again")
