"""Writes a bundle to a partial file beside its final path, and renames the file when it is complete.

The partial file has the final size from the start, so blobs can be written in any order. Until it is complete, the
directory of FILE.tar also contains .FILE.tar.partial, .FILE.tar.journal and .FILE.tar.lock. A later run resumes the
partial file if the bundle has the same inventory; otherwise it copies the blobs that it needs from the partial file.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from mirror.errors import LocalError, Refused
from mirror.layout.bundle.index_document import index_json
from mirror.layout.bundle.journal import Journal, JournalContents, JournalEntry, read_journal
from mirror.layout.bundle.output import CHUNK, read_chunks, write_at, write_to_pipe
from mirror.layout.bundle.reader import INDEX_NAME, INVENTORY_NAME, VERSION, VERSION_NAME, BundleReader
from mirror.layout.bundle.tar_writer import MemberContents, MemberPosition, TarMap, blob_path
from mirror.layout.inventory import Inventory
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import BlobReader
from mirror.util.cancellation import Stop, Work
from mirror.util.files import Lock, local_error, rename_into_place

# Errors of posix_fallocate() on a file system that cannot allocate space in advance.
_ALLOCATION_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_LOOK_EVERY = 0.5  # seconds between two checks for a stop while another thread writes the same blob


class BundleWriter:
    """Writes a new bundle: creates the file with all manifests, adds blobs, and renames the file when it is complete.

    Thread-safe, except `prepare`, `finish` and `close`: call each once, in this order."""

    def __init__(self, path: Path, inventory: Inventory, manifests: Iterable[Manifest]) -> None:
        self._path = path
        self._inventory = inventory
        self._inventory_bytes = inventory.render()
        self.identity = Digest.of(self._inventory_bytes)
        bodies = {one.digest: one for one in manifests}
        contents = MemberContents(
            {
                INVENTORY_NAME: self._inventory_bytes,
                VERSION_NAME: VERSION,
                INDEX_NAME: index_json(inventory, self._inventory_bytes),
                **{blob_path(digest): bodies[digest] for digest in sorted(bodies)},
            }
        )
        sizes = contents.sizes()
        # Skip blobs that are manifests too: an index may list a manifest as something else.
        sizes |= {blob_path(digest): size for digest, size in sorted(inventory.blobs.items()) if digest not in bodies}
        self._contents: Mapping[str, bytes] = contents
        self.tar_map = TarMap(sizes.items())
        self._blobs = {digest: blob_path(digest) for digest in inventory.blobs}
        self._changed = threading.Condition()
        self._written: set[Digest] = {digest for digest in inventory.blobs if digest in bodies}
        self._writing: set[Digest] = set()
        self._descriptor = -1
        self._journal: Journal | None = None
        self._lock = Lock(self._sibling_path("lock"))
        self._locked = False

    def _sibling_path(self, what: str) -> Path:
        """Return the path of an auxiliary file beside the bundle."""
        return self._path.with_name(f".{self._path.name}.{what}")

    @property
    def partial_path(self) -> Path:
        """The path of the bundle while it is being written."""
        return self._sibling_path("partial")

    # ---- creation

    def prepare(self, previous_bundle: BundleReader | None, work: Work, *, keep: bool = False) -> None:
        """Create the partial file, and reuse blobs that are already on disk.

        previous_bundle: the bundle that will be replaced. keep: whether to keep the partial file of an earlier run, and
        raise LocalError, if the disk does not have space for a second file. Raises LockBusy, LocalError, Cancelled."""
        self._lock.acquire(0, work.stop)
        self._locked = True
        journal = self._sibling_path("journal")
        with ExitStack() as stack:
            earlier_journal = read_journal(journal)
            partial_size = self._partial_size()
            if keep:
                self._require_room(self.tar_map.total)
            resumed = (
                earlier_journal is not None
                and earlier_journal.inventory == self.identity
                and partial_size == self.tar_map.total
            )
            previous = -1
            try:
                if not resumed:
                    # Remove the journal first: it must never describe another file.
                    journal.unlink(missing_ok=True)
                if partial_size is not None and not resumed:
                    previous = os.open(self.partial_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    stack.callback(os.close, previous)
                    self.partial_path.unlink()
                self._create()
            except OSError as error:
                raise local_error(f"allocate {self.tar_map.total} bytes for", self.partial_path, error) from error
            entries = (
                self._resumable_entries(earlier_journal, work.stop) if earlier_journal is not None and resumed else []
            )
            self._journal = Journal(journal, self._descriptor, self.identity, tuple(entries))
            if earlier_journal is not None and previous >= 0:
                self._copy_intact(
                    previous, ((one.digest, one.offset, one.size) for one in earlier_journal.entries), work.stop
                )
            if previous_bundle is not None:
                self._copy_from_bundle(previous_bundle, work.stop)

    def _partial_size(self) -> int | None:
        """Return the size in bytes of the partial file that an earlier run left, or None if there is none.

        Raises LocalError if it is not a regular file."""
        try:
            status = self.partial_path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error("read the status of", self.partial_path, error) from error
        if not self.partial_path.is_file() or self.partial_path.is_symlink():
            raise LocalError(f"{self.partial_path} is not a regular file", hint="remove or rename this file")
        return status.st_size

    def _create(self) -> None:
        """Create the file with its final size, and write everything except the blobs. Raises OSError, LocalError."""
        self._descriptor = os.open(self.partial_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._require_room(self.tar_map.total - os.fstat(self._descriptor).st_blocks * 512)
        try:
            os.posix_fallocate(self._descriptor, 0, self.tar_map.total)
        except OSError as error:
            if error.errno not in _ALLOCATION_UNSUPPORTED:
                raise
            os.ftruncate(self._descriptor, self.tar_map.total)
        offset, pending = 0, b""
        for start, data in self.tar_map.fixed_parts(self._contents):
            if start != offset + len(pending) or len(pending) > CHUNK:
                write_at(self._descriptor, memoryview(pending), offset)
                offset, pending = start, b""
            pending += data
        write_at(self._descriptor, memoryview(pending), offset)

    def _require_room(self, count: int) -> None:
        """Raise LocalError (local_full) if the disk does not have `count` free bytes."""
        disk = os.statvfs(self._path.parent)
        if count > disk.f_bavail * disk.f_frsize:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise local_error(f"allocate {self.tar_map.total} bytes for", self.partial_path, error) from error

    def _position_of(self, digest: Digest) -> MemberPosition | None:
        """Return the position of a blob, or None if it is not part of the bundle."""
        path = self._blobs.get(digest)
        return self.tar_map.positions[path] if path is not None else None

    # ---- reuse of existing blobs

    def _resumable_entries(self, earlier_journal: JournalContents, stop: Stop) -> list[JournalEntry]:
        """Return the journal entries whose data is in the partial file. Data that was not synced is verified first."""
        resumed_entries = []
        for number, entry in enumerate(earlier_journal.entries):
            position = self._position_of(entry.digest)
            if (
                position is None
                or (position.offset, position.size) != (entry.offset, entry.size)
                or entry.digest in self._written
            ):
                continue
            if number < earlier_journal.synced_entries or self._is_intact(entry, stop):
                resumed_entries.append(entry)
                self._written.add(entry.digest)
        return resumed_entries

    def _is_intact(self, entry: JournalEntry, stop: Stop) -> bool:
        """Return whether the bytes in the file match the digest of a journal entry."""
        hasher = entry.digest.hasher()
        with suppress(OSError):  # the digest of a part differs
            for chunk in read_chunks(self._descriptor, entry.offset, entry.size, stop):
                hasher.update(chunk)
        return hasher.hexdigest() == entry.digest.hex

    def _copy_from_bundle(self, previous_bundle: BundleReader, stop: Stop) -> None:
        """Copy the blobs that the new bundle needs from the bundle that will be replaced."""
        members = ((digest, previous_bundle.member(digest)) for digest in self._blobs)
        self._copy_intact(
            previous_bundle.descriptor,
            ((digest, one.offset, one.size) for digest, one in members if one is not None),
            stop,
        )

    def _copy_intact(self, descriptor: int, blobs: Iterable[tuple[Digest, int, int]], stop: Stop) -> None:
        """Copy the blobs that the bundle needs from an open file, and record those whose digests match.

        blobs: (digest, offset, size in bytes) in the open file `descriptor`."""
        for digest, start, size in blobs:
            position = self._position_of(digest)
            if position is None or position.size != size or digest in self._written:
                continue
            hasher, offset = digest.hasher(), position.offset
            with suppress(OSError):  # the digest of a part differs
                for chunk in read_chunks(descriptor, start, size, stop):
                    hasher.update(chunk)
                    self._write_at(chunk, offset)
                    offset += len(chunk)
            if offset == position.offset + size and hasher.hexdigest() == digest.hex:
                self._record(digest, position)

    # ---- blobs

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the blob has been written, or is left out because the base has it."""
        with self._changed:
            return digest in self._written or digest in self._inventory.base

    def write(self, blob: Descriptor, body: Callable[[int], BlobReader], work: Work) -> None:
        """Write a blob to its position. If another thread is writing it, wait, and write it only if that thread fails.

        body: opens the blob at an offset in bytes. Raises Refused, LocalError, Cancelled, and the exceptions of
        `body`."""
        position = self._position_of(blob.digest)
        if position is None or not self._begin_write(blob.digest, work.stop):
            if position is None and not self.has_blob(blob.digest):
                raise Refused(
                    f"{self._path}: blob {blob.digest} is not in the inventory of the bundle", code="bundle_invalid"
                )
            return
        try:
            with body(0) as reader:
                self._copy_body(position, blob, reader, work)
            self._record(blob.digest, position)
        finally:
            with self._changed:
                self._writing.discard(blob.digest)
                self._changed.notify_all()

    def _begin_write(self, digest: Digest, stop: Stop) -> bool:
        """Reserve a blob for this thread. If another thread is writing it, wait until that thread finishes.

        Return True if the blob is now reserved, or False if it has already been written. Raises Cancelled."""
        while True:
            stop.raise_if_requested()
            with self._changed:
                if digest in self._written:
                    return False
                if digest not in self._writing:
                    self._writing.add(digest)
                    return True
                self._changed.wait(_LOOK_EVERY)

    def _copy_body(self, position: MemberPosition, blob: Descriptor, reader: BlobReader, work: Work) -> None:
        """Copy the bytes of a blob to its position. Raises Refused (size_mismatch), LocalError, Cancelled."""
        buffer = memoryview(bytearray(min(CHUNK, position.size + 1)))
        written = 0
        while count := reader.readinto(buffer):
            work.stop.raise_if_requested()
            if written + count > position.size:
                raise Refused(
                    f"blob {blob.digest} has more than the expected {position.size} bytes", code="size_mismatch"
                )
            self._write_at(buffer[:count], position.offset + written)
            written += count
            work.progress(count)
        if written != position.size:
            raise Refused(
                f"blob {blob.digest} ended after {written} of the expected {position.size} bytes", code="size_mismatch"
            )

    def _write_at(self, data: memoryview, offset: int) -> None:
        """Write bytes at `offset`. Raises LocalError."""
        try:
            write_at(self._descriptor, data, offset)
        except OSError as error:
            raise local_error("write", self.partial_path, error) from error

    def _record(self, digest: Digest, position: MemberPosition) -> None:
        """Record in the journal and in memory that a blob has been written. Raises LocalError."""
        if self._journal is not None:
            self._journal.add(JournalEntry(digest, position.offset, position.size))
        with self._changed:
            self._written.add(digest)

    def missing_blobs(self) -> list[Digest]:
        """Return the blobs that have not been written, sorted."""
        with self._changed:
            return sorted(self._blobs.keys() - self._written)

    # ---- completion

    def finish(self) -> None:
        """Rename the complete file to its final name.

        Raises Refused (bundle_incomplete) if a blob is missing, and LocalError."""
        self._sync_if_complete()
        rename_into_place(self.partial_path, self._path)
        self._sibling_path("journal").unlink(missing_ok=True)

    def write_to_pipe(self, descriptor: int, work: Work) -> None:
        """Write the complete file to a pipe, then remove the file. The file is kept if an error is raised.

        Raises Refused (bundle_incomplete) if a blob is missing, LocalError, Cancelled."""
        self._sync_if_complete()
        try:
            for chunk in read_chunks(self._descriptor, 0, self.tar_map.total, work.stop):
                write_to_pipe(descriptor, chunk, work.stop)
        except OSError as error:
            raise local_error("read", self.partial_path, error) from error
        self.partial_path.unlink()
        self._sibling_path("journal").unlink(missing_ok=True)

    def _sync_if_complete(self) -> None:
        """Sync the file to disk. Raises Refused (bundle_incomplete) if a blob is missing."""
        missing_blobs = self.missing_blobs()
        if missing_blobs:
            more = f" and {len(missing_blobs) - 1} more" if len(missing_blobs) > 1 else ""
            what = f"{self._path}: missing blobs: {missing_blobs[0]}{more}"
            raise Refused(what, hint="export again", code="bundle_incomplete")
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Close all files and release the lock. An unfinished bundle is kept for the next run. Raises LocalError."""
        with ExitStack() as stack:
            if self._locked:
                self._locked = False
                stack.callback(self._lock.release)
                # Only the holder of a lock may remove its file; another run checks that the file it locked still
                # exists.
                stack.callback(self._sibling_path("lock").unlink, missing_ok=True)
            descriptor, self._descriptor = self._descriptor, -1
            journal, self._journal = self._journal, None
            if descriptor >= 0:
                stack.callback(os.close, descriptor)
            if journal is not None:
                stack.callback(journal.close)
                if self.partial_path.exists():
                    stack.callback(journal.sync)
