"""Bodies of manifests: the last few MiB in memory, older ones that are still needed in files."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from weakref import WeakValueDictionary

from mirror.errors import LocalError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.transfer.spool import translate_os_errors
from mirror.util.structs import replace

MEMORY = 32 << 20  # bytes of bodies that are kept in memory
_FEW = 64  # files below which none is looked for that nobody needs any more


class _StoredBody:
    """Where one body is. While it is referred to, the body is kept."""

    __slots__ = ("__weakref__", "_bodies", "key", "size")

    def __init__(self, bodies: ManifestBodies, key: Digest, size: int) -> None:
        self._bodies = bodies
        self.key = key
        self.size = size

    def read(self) -> bytes:
        return self._bodies.read(self.key)


class ManifestBodies:
    """Bounds the memory that manifests take, whatever their number and size. Thread-safe.

    directory: for what does not fit into `limit` bytes of memory. None: then such bodies are dropped, which is for
    runs that read what manifests refer to and copy nothing."""

    def __init__(self, directory: Path | None, limit: int = MEMORY) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        self._live: WeakValueDictionary[Digest, _StoredBody] = WeakValueDictionary()
        self._memory: OrderedDict[Digest, bytes] = OrderedDict()
        self._bytes = 0  # in memory
        self._leaving: dict[Digest, bytes] = {}  # being written to files
        self._files: dict[Digest, Path] = {}
        self._sweep_at = _FEW
        self._numbers = itertools.count(1)

    def keep(self, manifest: Manifest) -> Manifest:
        """The same manifest, whose body is kept here for as long as the result is referred to. May write a file.

        Raises LocalError."""
        body = manifest.content
        if not isinstance(body, bytes):
            return manifest
        # The digest of a schema 1 manifest is not that of its bytes.
        key = Digest.of(body) if manifest.kind is Kind.SCHEMA1 else manifest.digest
        with self._lock:
            stored = self._live.get(key)
            if stored is None:
                stored = self._live[key] = _StoredBody(self, key, len(body))
            if key not in self._memory and key not in self._leaving and key not in self._files:
                self._memory[key] = body
                self._bytes += len(body)
            leaving = self._make_room()
        for one in leaving:
            self._write(one)
        return replace(manifest, content=stored)

    def read(self, key: Digest) -> bytes:
        """Raises LocalError: its file cannot be read, or was changed."""
        with self._lock:
            body = self._memory.get(key) or self._leaving.get(key)
            path = self._files.get(key)
        if body is not None:
            return body
        if path is None:
            raise RuntimeError(f"the body of {key} was not kept")
        with translate_os_errors(path):
            body = path.read_bytes()
        if Digest.of(body, key.algorithm) != key:
            raise LocalError(f"{path} does not have the bytes that were written to it", hint="check the spool's disk")
        return body

    def close(self) -> None:
        """Remove all files, those that a killed run left, too."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _make_room(self) -> list[Digest]:
        """Under the lock: take the oldest bodies out of memory. -> those that have to be written to files."""
        leaving = []
        while self._bytes > self._limit and len(self._memory) > 1:
            key, body = self._memory.popitem(last=False)
            self._bytes -= len(body)
            if self._directory is not None and key in self._live:
                self._leaving[key] = body
                leaving.append(key)
        return leaving

    def _write(self, key: Digest) -> None:
        if self._directory is None:
            return
        path = self._directory / str(next(self._numbers))
        try:
            with translate_os_errors(path):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_bytes(self._leaving[key])
        except LocalError:
            with self._lock:  # better in memory than nowhere
                self._memory[key] = self._leaving.pop(key)
                self._bytes += len(self._memory[key])
            raise
        with self._lock:
            self._files[key] = path
            del self._leaving[key]
            unneeded = self._unneeded()
        for one in unneeded:
            one.unlink(missing_ok=True)

    def _unneeded(self) -> list[Path]:
        """Under the lock: forget files of bodies that nothing refers to, if there are many files."""
        if len(self._files) < self._sweep_at:
            return []
        dead = [key for key in self._files if key not in self._live]
        paths = [self._files.pop(key) for key in dead]
        self._sweep_at = max(_FEW, 2 * len(self._files))
        return paths
