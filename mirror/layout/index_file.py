"""The file index.json of a layout, in memory and on disk.

index.json names only content that is on disk. It is replaced at most once per second and at the end of a run, each time
after the directories that hold the content have been synced. While this process holds the lock, the index in memory is
authoritative.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from mirror.errors import LocalError, Refused
from mirror.layout.files import INDEX_FILE, VERSION_FILE, LayoutFiles
from mirror.layout.index import MAX_BYTES, Index, check_version
from mirror.layout.lock import LayoutLock
from mirror.util.cancellation import Work
from mirror.util.single_flight import LazyValue

T = TypeVar("T")

PUBLISH_EVERY = 1.0  # minimum number of seconds between two replacements
_MAX_SHARE = 20  # replacing index.json may take at most 1/20 of the duration of a run
_LOOK_EVERY = 1.0  # seconds between two checks whether another thread has finished replacing index.json
_VERSION = b'{"imageLayoutVersion":"1.0.0"}\n'
_MAX_VERSION_BYTES = 64 << 10  # bytes
_LOCK_FILE = ".lock"
# Entries that a directory may have before it becomes a layout.
_IGNORED_NAMES = ("lost+found", ".DS_Store", _LOCK_FILE)
_LAYOUT_HINT = "an OCI layout contains the files oci-layout and index.json"


class IndexFile:
    """The index of a layout in memory, and the file index.json that stores it. Thread-safe. `close` releases the lock.

    what: the name of the layout, for messages. adopts: see Index. new: True if the layout may not exist yet."""

    def __init__(self, files: LayoutFiles, what: str, adopts: Collection[str], *, new: bool) -> None:
        self._files = files
        self._what = what
        self._adopts = adopts
        self._new = new
        self._layout_lock = LayoutLock(files.path, _LOCK_FILE)
        self._begin_once = LazyValue(self._begin)
        self._has_lock = False
        self._state = threading.Condition()
        self._index: Index | None = None
        self._signature: tuple[int, ...] | None = None
        self._change_count = 0
        self._published_count = 0  # changes that are in index.json
        self._publishing = False
        self._next_publish = 0.0  # earliest time of the next replacement (monotonic clock, seconds)

    def close(self) -> None:
        """Release the lock on the layout."""
        self._layout_lock.release()

    # ---- reading

    @property
    def has_lock(self) -> bool:
        """Whether this process holds the lock on the layout."""
        return self._has_lock

    @property
    def revision(self) -> tuple[object, ...]:
        """A value that changes when another process replaces index.json."""
        return self.has_lock, self._signature

    def adopted_names(self, repository: str) -> tuple[str | None, ...]:
        """Return the values of `Root.repository` with which a root belongs to `repository`, in addition to its name.

        If `repository` is in `adopts`, roots that name no repository are assigned to it: their values are the empty
        string and None. Otherwise, the result is empty."""
        return ("", None) if repository in self._adopts else ()

    def query(self, query_index: Callable[[Index], T]) -> T:
        """Call `query_index` with the current index, and return its result.

        The function is called while a lock is held, so it must not do I/O. Raises Refused (bundle_invalid) and
        LocalError if index.json cannot be used."""
        index = self._current_index()
        with self._state:
            return query_index(index)

    def _current_index(self) -> Index:
        """Return the index. If another process has replaced index.json, read the file again first."""
        with self._state:
            cached, signature = self._index, self._signature
        if cached is not None and (self.has_lock or self._files.signature(INDEX_FILE) == signature):
            return cached
        exists = self.exists()
        signature = self._files.signature(INDEX_FILE) if exists else None
        loaded = Index(self._what, self._adopts) if signature is None and self._new else self._load()
        with self._state:
            if not self.has_lock or self._index is None:
                self._index, self._signature = loaded, signature
            return self._index

    def exists(self) -> bool:
        """Return whether the layout exists.

        Raises Refused if the layout is invalid, or if it does not exist and `new` is False. Raises LocalError if `new`
        is True and the directory contains other files."""
        try:
            names = self._files.list_names()
            text = self._files.read(VERSION_FILE, _MAX_VERSION_BYTES) if names else None
        except NotADirectoryError:
            names, text = ["?"], None
        if text is not None:
            check_version(text, f"{self._files.path / VERSION_FILE}")
            return True
        found = [name for name in names or () if name not in _IGNORED_NAMES and not name.endswith(".tmp")]
        if not self._new:
            what = "is not a layout" if found else "is empty" if names is not None else "does not exist"
            raise Refused(f"{self._what} {what}: no oci-layout file found", hint=_LAYOUT_HINT, code="bundle_invalid")
        if found:
            raise LocalError(
                f"{self._what} is not empty and is not a layout: no oci-layout file found",
                hint="choose a new or empty directory, or a layout",
            )
        return False

    def _load(self) -> Index:
        """Read index.json. Raises Refused (bundle_invalid), LocalError."""
        path = self._files.path / INDEX_FILE
        data = self._files.read(INDEX_FILE, MAX_BYTES)
        if data is None:
            raise Refused(f"{path} is missing", hint=_LAYOUT_HINT, code="bundle_invalid")
        return Index.parse(data, str(path), self._adopts)

    # ---- writing

    def begin(self, work: Work) -> None:
        """Acquire the lock, and create the layout if it does not exist.

        Raises LockBusy (another run has the lock), LocalError."""
        if not self.has_lock:
            self._begin_once.get(work)

    def _begin(self, work: Work) -> bool:
        """Acquire the lock, create the layout if needed, recover from a killed run, and read the index.

        Return True, because a LazyValue needs a value."""
        self.exists()
        self._files.create()
        self._layout_lock.acquire()
        if not self.exists():
            self._files.replace(VERSION_FILE, _VERSION)
        self._files.create_blob_directory("sha256")  # the image-spec requires the directory, even if it is empty
        self._files.recover()
        if self._files.signature(INDEX_FILE) is None:
            self._files.replace(INDEX_FILE, Index(self._what).render())
        loaded = self._load()
        with self._state:
            # Set both under one lock: a reader in between would store the index that it read before this process
            # acquired the lock.
            self._index, self._has_lock = loaded, True
        return True

    def change(self, modify: Callable[[Index], bool]) -> None:
        """Change the index in memory, and write it to index.json if the last write was long enough ago.

        modify: changes the index and returns whether it did so; it must not do I/O. Raises the exceptions of `modify`,
        and LocalError if writing fails. A later call of `change` or `publish` then attempts to write again."""
        with self._state:
            if self._index is None or not modify(self._index):
                return
            self._change_count += 1
            due = not self._publishing and time.monotonic() >= self._next_publish
            self._publishing = self._publishing or due
        if due:
            self._write_index()

    def publish(self) -> None:
        """Write all changes made so far to index.json. Raises LocalError."""
        with self._state:
            while self._publishing:
                self._state.wait(_LOOK_EVERY)
            due = self._publishing = self._published_count != self._change_count
        if due:
            self._write_index()

    def _write_index(self) -> None:
        """Sync the directories, then replace index.json. The caller must ensure that only one thread does this."""
        started = time.monotonic()
        try:
            # Every blob that this index names was renamed before, so `sync` makes its name durable first.
            with self._state:
                data, changes = (self._index or Index(self._what)).render(), self._change_count
            self._files.sync()
            self._files.replace(INDEX_FILE, data)
            with self._state:
                self._published_count = changes
        finally:
            now = time.monotonic()
            with self._state:
                self._publishing = False
                self._next_publish = now + max(PUBLISH_EVERY, _MAX_SHARE * (now - started))
                self._state.notify_all()
