"""What has arrived in a bundle that is being made, kept beside it, so that a killed export goes on.

A line is added when a blob is written; a mark says of how many lines the data is on disk. After a mere kill all lines
hold; after a power cut those before the last mark do, and the others have to be proven.
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

SYNC_BYTES = 64 << 20  # data that is not on disk yet, at most, but for what comes in while it gets there
SYNC_SECONDS = 1.0  # how long it is not on disk yet, while more comes in

_HEAD = re.compile(r"mirror journal 1 (sha256:[0-9a-f]{64})")
_ENTRY = re.compile(r"\+ (\S+) (\d{1,19}) (\d{1,19})")
_MARK = re.compile(r"= (\d{1,9})")
_LARGEST = 512 << 20  # bytes that are read


class Entry(Struct, frozen=True):
    """A blob that was written: where, in bytes from the beginning of the tar."""

    digest: Digest
    offset: int
    size: int


class Recorded(Struct, frozen=True):
    """What a journal says. inventory: of the bundle it belongs to; synced: how many entries are surely on disk."""

    inventory: Digest
    entries: tuple[Entry, ...]
    synced: int


def recorded(path: Path) -> Recorded | None:
    """What the journal at `path` says, up to the first line that is none; None: there is no journal."""
    try:
        with path.open("rb") as file:
            lines = file.read(_LARGEST).decode("ascii", "replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("read", path, error) from error
    head = _HEAD.fullmatch(lines[0])
    if head is None or len(lines) == 1:
        return None
    entries: list[Entry] = []
    synced = 0
    for line in lines[1:-1]:  # what follows the last newline was cut
        entry, mark = _ENTRY.fullmatch(line), _MARK.fullmatch(line)
        if entry is not None:
            try:
                entries.append(Entry(Digest.parse(entry[1]), int(entry[2]), int(entry[3])))
            except Refused:
                break
        elif mark is not None and int(mark[1]) <= len(entries):
            synced = int(mark[1])
        else:
            break
    return Recorded(Digest(head[1]), tuple(entries), synced)


class Journal:
    """The journal of a bundle that is being made. Thread-safe.

    Lines are added by single writes to a file that is only appended to, so no lock is held while writing."""

    def __init__(self, path: Path, data: int, inventory: Digest, entries: tuple[Entry, ...]) -> None:
        """Begin it anew with what is there. data: descriptor of the tar. Raises LocalError."""
        self._path = path
        self._data = data
        self._lock = threading.Lock()
        self._count = len(entries)
        self._bytes = 0  # written since the last mark was begun
        self._since = time.monotonic()
        self._syncing = False
        self._broken: LocalError | None = None
        lines = [f"mirror journal 1 {inventory}", *(_line(entry) for entry in entries), f"= {len(entries)}", ""]
        try:
            os.fdatasync(data)
            with atomic_write(path) as out:
                out.write("\n".join(lines).encode())
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise local_error("write", path, error) from error

    def add(self, entry: Entry) -> None:
        """The data of `entry` has been written. Now and then this waits for the disk. Raises LocalError."""
        self._write(_line(entry))
        with self._lock:
            self._count += 1
            self._bytes += entry.size
            now = time.monotonic()
            due = not self._syncing and (self._bytes >= SYNC_BYTES or now - self._since >= SYNC_SECONDS)
            if due:
                self._syncing, self._bytes, self._since = True, 0, now
            count = self._count
        if due:
            self._sync(count)

    def _sync(self, count: int) -> None:
        """The first `count` lines were written before this, and their data before them: after the sync all hold.

        A sync that failed is never made good by another one: the kernel may have dropped what it could not write."""
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

    def settle(self) -> None:
        """Bring all of it to the disk. When nobody adds any more. Raises LocalError."""
        self._sync(self._count)

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise local_error("write", self._path, error) from error

    def close(self) -> None:
        os.close(self._descriptor)


def _line(entry: Entry) -> str:
    return f"+ {entry.digest} {entry.offset} {entry.size}"
