"""The index of a layout, in memory and on disk: read when it changed, replaced when we changed it.

index.json names only what is there: it is replaced at most once a second, at the end, and after the directories that
it relies on were synced. While the lock is ours, what is in memory is what counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from mirror.errors import LocalError, Refused
from mirror.layout.files import INDEX_FILE, VERSION_FILE, Folder
from mirror.layout.index import MAX_BYTES, Index, check_version
from mirror.layout.lock import Claim
from mirror.util.cancellation import Work
from mirror.util.single_flight import Once

T = TypeVar("T")

PUBLISH_EVERY = 1.0  # seconds between two replacements
_SHARE = 20  # replacing it takes at most one part in this of the time
_LOOK_EVERY = 1.0  # seconds between two looks whether another thread has replaced it
_VERSION = b'{"imageLayoutVersion":"1.0.0"}\n'
_LARGEST_VERSION = 64 << 10  # bytes
_LOCK_FILE = ".lock"
# What a directory may have before it is a layout.
_NOTHING = ("lost+found", ".DS_Store", _LOCK_FILE)
_NO_LAYOUT = "an OCI layout has a file oci-layout and a file index.json"


class Ledger:
    """Thread-safe; `close` gives the lock back. adopts: see Index; new: there may be no layout yet."""

    def __init__(self, folder: Folder, what: str, adopts: Collection[str], *, new: bool) -> None:
        self._folder = folder
        self._what = what
        self._adopts = adopts
        self._new = new
        self._claim = Claim(folder.path, _LOCK_FILE)
        self._begun = Once(self._begin)
        self._writing = False
        self._state = threading.Condition()
        self._index: Index | None = None
        self._signature: tuple[int, ...] | None = None
        self._changes = 0
        self._published = 0  # changes that index.json has
        self._publishing = False
        self._next = 0.0  # earliest time of the next replacement

    def close(self) -> None:
        self._claim.release()

    # ---- reading

    @property
    def writing(self) -> bool:
        """Whether the lock is ours."""
        return self._writing

    @property
    def edition(self) -> tuple[object, ...]:
        """Another one after another process has changed the index."""
        return self.writing, self._signature

    def unnamed(self, repository: str) -> tuple[str | None, ...]:
        """What the repository of a root is where the roots without one belong to `repository`."""
        return ("", None) if repository in self._adopts else ()

    def look(self, question: Callable[[Index], T]) -> T:
        """What the index answers; `question` only computes. Raises Refused (bundle_invalid), LocalError."""
        index = self._current()
        with self._state:
            return question(index)

    def _current(self) -> Index:
        with self._state:
            known, signature = self._index, self._signature
        if known is not None and (self.writing or self._folder.signature(INDEX_FILE) == signature):
            return known
        there = self.is_there()
        signature = self._folder.signature(INDEX_FILE) if there else None
        loaded = Index(self._what, self._adopts) if signature is None and self._new else self._load()
        with self._state:
            if not self.writing or self._index is None:
                self._index, self._signature = loaded, signature
            return self._index

    def is_there(self) -> bool:
        """Whether there is a layout; False: there may be one. Raises Refused, LocalError."""
        try:
            names = self._folder.names()
            text = self._folder.read(VERSION_FILE, _LARGEST_VERSION) if names else None
        except NotADirectoryError:
            names, text = ["?"], None
        if text is not None:
            check_version(text, f"{self._folder.path / VERSION_FILE}")
            return True
        found = [name for name in names or () if name not in _NOTHING and not name.endswith(".tmp")]
        if not self._new:
            what = "is not a layout" if found else "is empty" if names is not None else "does not exist"
            raise Refused(f"{self._what} {what}: no oci-layout here", hint=_NO_LAYOUT, code="bundle_invalid")
        if found:
            raise LocalError(
                f"{self._what} is not empty, and no layout: there is no oci-layout in it",
                hint="name an empty or a new directory, or a layout",
            )
        return False

    def _load(self) -> Index:
        path = self._folder.path / INDEX_FILE
        data = self._folder.read(INDEX_FILE, MAX_BYTES)
        if data is None:
            raise Refused(f"{path} is missing", hint=_NO_LAYOUT, code="bundle_invalid")
        return Index.parse(data, str(path), self._adopts)

    # ---- writing

    def begin(self, work: Work) -> None:
        """Take the lock, and make the layout if there is none. Raises LockBusy: another run has it; LocalError."""
        if not self.writing:
            self._begun.get(work)

    def _begin(self, work: Work) -> bool:
        self.is_there()
        self._folder.make()
        self._claim.take()
        if not self.is_there():
            self._folder.replace(VERSION_FILE, _VERSION)
        self._folder.make_for("sha256")  # there has to be a directory of blobs, be it empty
        self._folder.take_over()
        if self._folder.signature(INDEX_FILE) is None:
            self._folder.replace(INDEX_FILE, Index(self._what).render())
        loaded = self._load()
        with self._state:
            # At once: a reader that comes in between would put back what it read before the lock was ours.
            self._index, self._writing = loaded, True
        return True

    def change(self, change: Callable[[Index], bool]) -> None:
        """Change the index in memory, and on disk if it is time. change: -> whether it did; only computes.

        Raises what it raises, and LocalError: then the next one, or `publish`, tries again."""
        with self._state:
            if self._index is None or not change(self._index):
                return
            self._changes += 1
            due = not self._publishing and time.monotonic() >= self._next
            self._publishing = self._publishing or due
        if due:
            self._replace()

    def publish(self) -> None:
        """After this index.json has all that was changed before. Raises LocalError."""
        with self._state:
            while self._publishing:
                self._state.wait(_LOOK_EVERY)
            due = self._publishing = self._published != self._changes
        if due:
            self._replace()

    def _replace(self) -> None:
        """By the one thread that is to do it."""
        started = time.monotonic()
        try:
            # All that is in memory now was renamed before: so it is synced before it is named.
            with self._state:
                data, changes = (self._index or Index(self._what)).render(), self._changes
            self._folder.sync()
            self._folder.replace(INDEX_FILE, data)
            with self._state:
                self._published = changes
        finally:
            now = time.monotonic()
            with self._state:
                self._publishing = False
                self._next = now + max(PUBLISH_EVERY, _SHARE * (now - started))
                self._state.notify_all()
