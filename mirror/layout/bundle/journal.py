"""The journal beside an unfinished bundle: it lists the blobs that were written, so that a killed export can be
resumed.

An entry is added after the data of a blob has been written. A sync mark states how many entries have their data on
disk. If the process was killed, all entries are valid. After a power cut, only the entries that the last mark counts
are certain to be valid, and later entries must be verified.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from pathlib import Path

from mirror.errors import LocalError, Refused
from mirror.oci.digest import Digest
from mirror.util.files import atomic_write, local_error
from mirror.util.structs import Struct

SYNC_BYTES = 64 << 20  # sync after this many bytes; blobs that are written during a sync are not counted
SYNC_SECONDS = 1.0  # sync after this many seconds while blobs are written

_HEAD = re.compile(r"mirror journal 1 (sha256:[0-9a-f]{64})")
_ENTRY = re.compile(r"\+ (\S+) (\d{1,19}) (\d{1,19})")
_SYNC_MARK = re.compile(r"= (\d{1,9})")
_MAX_BYTES = 512 << 20  # maximum size of a journal that is read, in bytes


class JournalEntry(Struct, frozen=True):
    """The entry for one blob in a bundle. offset, size: the position of its data in the tar and its size, in bytes."""

    digest: Digest
    offset: int
    size: int


class JournalContents(Struct, frozen=True):
    """The parsed contents of a journal.

    inventory: digest of the bundle's inventory. synced_entries: number of entries whose data is known to be on disk."""

    inventory: Digest
    entries: tuple[JournalEntry, ...]
    synced_entries: int


def read_journal(path: Path) -> JournalContents | None:
    """Read the journal at `path` up to the first invalid line, and return its contents. Raises LocalError.

    Return None if the file does not exist, or if its first line is invalid."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_BYTES).decode("ascii", "replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("read", path, error) from error
    head = _HEAD.fullmatch(lines[0])
    if head is None or len(lines) == 1:
        return None
    entries: list[JournalEntry] = []
    synced_entries = 0
    for line in lines[1:-1]:  # the last line is incomplete or empty
        entry, mark = _ENTRY.fullmatch(line), _SYNC_MARK.fullmatch(line)
        if entry is not None:
            try:
                entries.append(JournalEntry(Digest.parse(entry[1]), int(entry[2]), int(entry[3])))
            except Refused:
                break
        elif mark is not None and int(mark[1]) <= len(entries):
            synced_entries = int(mark[1])
        else:
            break
    return JournalContents(Digest(head[1]), tuple(entries), synced_entries)


class Journal:
    """The journal of a bundle that is being written: records the blobs that are already in the file. Thread-safe.

    Each line is written by a single write() in append mode, so writing does not need a lock."""

    def __init__(self, path: Path, data: int, inventory: Digest, entries: tuple[JournalEntry, ...]) -> None:
        """Create the journal file. An older journal at `path` is replaced.

        data: descriptor of the tar. entries: blobs that are already in it. Raises LocalError."""
        self._path = path
        self._data = data
        self._lock = threading.Lock()
        self._count = len(entries)
        self._bytes = 0  # bytes written since the last sync began
        self._last_sync = time.monotonic()
        self._syncing = False
        self._broken: LocalError | None = None  # the error that the first failed sync raised
        lines = [f"mirror journal 1 {inventory}", *(_line(entry) for entry in entries), f"= {len(entries)}", ""]
        try:
            os.fdatasync(data)
            with atomic_write(path) as out:
                out.write("\n".join(lines).encode())
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise local_error("write", path, error) from error

    def add(self, entry: JournalEntry) -> None:
        """Record a blob whose data has been written, and sync the data if a sync is due. Raises LocalError."""
        self._write(_line(entry))
        with self._lock:
            self._count += 1
            self._bytes += entry.size
            now = time.monotonic()
            due = not self._syncing and (self._bytes >= SYNC_BYTES or now - self._last_sync >= SYNC_SECONDS)
            if due:
                self._syncing, self._bytes, self._last_sync = True, 0, now
            count = self._count
        if due:
            self._sync_data(count)

    def _sync_data(self, count: int) -> None:
        """Sync the data, then mark the first `count` entries as synced. Their data was written before this call.

        After a failed sync, every later sync fails as well: the kernel may have dropped the data, so a later success
        would prove nothing. Raises LocalError."""
        if self._broken is not None:
            raise self._broken
        try:
            os.fdatasync(self._data)
            self._write(f"= {count}")
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._broken = local_error("write", self._path, error)
            raise self._broken from error
        finally:
            with self._lock:
                self._syncing = False

    def sync(self) -> None:
        """Sync the data and mark all entries as synced. Call this after the last call of `add`. Raises LocalError."""
        self._sync_data(self._count)

    def _write(self, line: str) -> None:
        """Append a line to the journal. Raises LocalError."""
        data = f"{line}\n".encode()
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise local_error("write", self._path, error) from error

    def close(self) -> None:
        """Close the journal file, and keep it on disk."""
        os.close(self._descriptor)


def _line(entry: JournalEntry) -> str:
    """Return the journal line for an entry, without a line break."""
    return f"+ {entry.digest} {entry.offset} {entry.size}"
