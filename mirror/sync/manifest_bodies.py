"""Stores manifest bodies: the most recent bodies in memory, the others in files while they are still needed."""

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
_MIN_FILES_TO_SWEEP = 64  # below this number of files, unneeded files are not deleted


class _StoredBody:
    """A reference to a stored manifest body. The body is kept as long as the reference exists."""

    __slots__ = ("__weakref__", "_bodies", "key", "size")

    def __init__(self, bodies: ManifestBodies, key: Digest, size: int) -> None:
        self._bodies = bodies
        self.key = key
        self.size = size

    def read(self) -> bytes:
        """Return the stored body. Raises LocalError if its file cannot be read or has been changed."""
        return self._bodies.read(self.key)


class ManifestBodies:
    """Stores manifest bodies within a limited amount of memory. Thread-safe.

    directory: the directory for bodies that do not fit within `limit`. If it is None, such bodies are discarded,
    because a run that copies nothing needs no body after the manifest has been parsed.
    limit: the maximum number of bytes in memory."""

    def __init__(self, directory: Path | None, limit: int = MEMORY) -> None:
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        self._live: WeakValueDictionary[Digest, _StoredBody] = WeakValueDictionary()
        self._memory: OrderedDict[Digest, bytes] = OrderedDict()
        self._bytes = 0  # the total size of the bodies in memory
        self._being_written: dict[Digest, bytes] = {}  # bodies that are being written to files
        self._files: dict[Digest, Path] = {}
        self._sweep_at = _MIN_FILES_TO_SWEEP
        self._numbers = itertools.count(1)

    def keep(self, manifest: Manifest) -> Manifest:
        """Store the body of a manifest, and return the manifest with a reference to the stored body.

        The body is kept as long as the result or another copy of the reference exists. May write a file. Raises
        LocalError if that fails."""
        body = manifest.content
        if not isinstance(body, bytes):
            return manifest
        # The digest of a schema 1 manifest is not the digest of its bytes.
        key = Digest.of(body) if manifest.kind is Kind.SCHEMA1 else manifest.digest
        with self._lock:
            stored = self._live.get(key)
            if stored is None:
                stored = self._live[key] = _StoredBody(self, key, len(body))
            if key not in self._memory and key not in self._being_written and key not in self._files:
                self._memory[key] = body
                self._bytes += len(body)
            to_write = self._make_room()
        for evicted in to_write:
            self._write(evicted)
        return replace(manifest, content=stored)

    def read(self, key: Digest) -> bytes:
        """Return the body whose bytes have a given digest. Raises LocalError if its file is unreadable or changed."""
        with self._lock:
            body = self._memory.get(key) or self._being_written.get(key)
            path = self._files.get(key)
        if body is not None:
            return body
        if path is None:
            raise RuntimeError(f"the body of manifest {key} is not stored")
        with translate_os_errors(path):
            body = path.read_bytes()
        if Digest.of(body, key.algorithm) != key:
            raise LocalError(
                f"{path} does not contain the bytes that were written to it",
                hint="check the disk that contains the spool directory",
            )
        return body

    def close(self) -> None:
        """Delete all files, including files that a killed run left behind."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _make_room(self) -> list[Digest]:
        """Remove the oldest bodies from memory until the others fit. Return the keys of bodies to write to files.

        The caller must hold the lock."""
        to_write = []
        while self._bytes > self._limit and len(self._memory) > 1:
            key, body = self._memory.popitem(last=False)
            self._bytes -= len(body)
            if self._directory is not None and key in self._live:
                self._being_written[key] = body
                to_write.append(key)
        return to_write

    def _write(self, key: Digest) -> None:
        """Write a body to a file, and delete files that are no longer needed. Raises LocalError if the write fails."""
        if self._directory is None:
            return
        path = self._directory / str(next(self._numbers))
        try:
            with translate_os_errors(path):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_bytes(self._being_written[key])
        except LocalError:
            with self._lock:  # keep it in memory, even above the limit
                self._memory[key] = self._being_written.pop(key)
                self._bytes += len(self._memory[key])
            raise
        with self._lock:
            self._files[key] = path
            del self._being_written[key]
            unneeded = self._take_unneeded_files()
        for file in unneeded:
            file.unlink(missing_ok=True)

    def _take_unneeded_files(self) -> list[Path]:
        """Stop tracking the files whose bodies are no longer referenced, and return their paths for deletion.

        The caller must hold the lock. As long as there are few files, the result is empty."""
        if len(self._files) < self._sweep_at:
            return []
        dead = [key for key in self._files if key not in self._live]
        paths = [self._files.pop(key) for key in dead]
        self._sweep_at = max(_MIN_FILES_TO_SWEEP, 2 * len(self._files))
        return paths
