"""What earlier runs learned, in one SQLite file: hints that change what a run costs, not its result.

Some rows are more than hints: the mark of a repository that was begun and not finished, that v2 answered for a source
repository, and the tags that the operator chose to believe (docs/operations.md, "State and lock").
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from mirror.errors import LocalError, MirrorError
from mirror.oci.digest import Digest
from mirror.oci.reference import is_path
from mirror.state.database import SOURCE, TARGET, Database, Trouble
from mirror.state.file import find_fault, open_database, refusal
from mirror.state.writer import Writer

FILE_NAME = "state.sqlite3"

Side = Literal["source", "target"]
_SIDES = {"source": SOURCE, "target": TARGET}
_T = TypeVar("_T")


class State(AbstractContextManager["State"]):
    """Hints, by repository (`host/path`). Any thread. Reading costs one or two index look-ups; noting only queues.

    What was noted is read back after it was written, within about a second, or after `flush`; but forgetting,
    withdrawing and marking count at once. Threads that read have a connection to themselves meanwhile, and one thread
    writes: no lock of ours is held across SQLite's I/O. An answer may be wrong in any way that still is a digest or a
    path."""

    @classmethod
    def open(
        cls, directory: Path, warn: Callable[[str], None], *, read_only: bool = False, writers: str | None = None
    ) -> State:
        """The state in `directory`, made if missing; one that is corrupt, foreign or of another version is set aside,
        byte for byte, with a warning. read_only: for commands that take no lock: what is there is read, nothing is
        written, all notes are dropped. writers: the mark under which tags of targets are noted (`run_marks`); what was
        noted under another one is not known. None: all is known. Raises LocalError if it cannot be written (read).
        """
        path = directory / FILE_NAME
        if read_only:
            fault = find_fault(path)
            if fault:
                warn(f"the state file {path} {fault}; it is not used")
            usable = not fault and path.exists() and path.stat().st_size > 0
            state = cls(path, None, set(), warn, usable=usable)
            state._knows_targets = writers in (None, state._read("", Database.writers, None))
            return state
        database = open_database(path, warn)
        try:
            marks = database.marks()
            if writers not in (None, database.writers()):
                database.apply([partial(Database.begin_anew, mark=writers)])
        except Trouble as trouble:
            database.close()
            raise refusal(path, trouble) from trouble
        return cls(path, database, marks, warn)

    def __init__(
        self,
        path: Path,
        database: Database | None,
        marks: set[str],
        warn: Callable[[str], None],
        *,
        usable: bool = True,
    ) -> None:
        self._path = path
        self._warn = warn
        self._usable = usable  # whether there is a file to read
        self._knows_targets = True
        self._lock = threading.Lock()
        self._unfinished = marks
        self._forgotten: set[str] = set()
        self._idle: deque[tuple[int, Database]] = deque()  # connections that nobody reads with, with their generation
        self._suspected = False
        self._writer = Writer(path, database, self._marks, warn) if database else None

    def _marks(self) -> list[str]:
        with self._lock:
            return sorted(self._unfinished)

    @property
    def trouble(self) -> MirrorError | None:
        """Why hints could not be kept: the run goes on, and ends with this error's exit code."""
        return self._writer.trouble if self._writer else None

    # -- reading ------------------------------------------------------------------------------------------------------

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        """The digest that `tag` was last given, or seen with, on that target repository."""
        return self._tag("target", repository, tag) if self._knows_targets else None

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        """The digest that was last noted of `tag` for that source, under the name that it was noted by."""
        return self._tag("source", repository, tag)

    def _tag(self, side: Side, repository: str, tag: str) -> Digest | None:
        number = _SIDES[side]
        return self._read(repository, lambda database: database.tag(number, repository, tag), None)

    def transformed(self, identity: str) -> Digest | None:
        """The digest of what a transform made, the last time, of the version that `identity` names."""
        return self._read(identity, lambda database: database.transformed(identity), None)

    def held(self, repository: str, digest: Digest) -> bool:
        """Whether that repository held `digest` when an earlier run copied an image there. It may be gone since."""
        return self._read(repository, lambda database: database.held(repository, digest), False)

    def holders(self, host: str, digest: Digest, limit: int = 4) -> list[str]:
        """Paths of repositories on `host` that held `digest`, those written last first."""
        more = limit + len(self._forgotten)
        nothing: list[str] = []
        names = self._read("", lambda database: database.holders(host, digest, more), nothing)
        paths = [name[len(host) + 1 :] for name in names if name not in self._forgotten]
        return [path for path in paths if is_path(path)][:limit]

    def unfinished(self, repository: str) -> bool:
        """Whether a run began to write there and did not end its work: blobs may be there although no tag is."""
        return repository in self._unfinished

    def answered_by_v2(self, repository: str) -> bool:
        """Whether v2 answered for that source repository in an earlier run. Where the file cannot be read, it did."""
        return self._usable and self._read("", lambda database: database.answered_by_v2(repository), True)

    def _read(self, repository: str, query: Callable[[Database], _T], nothing: _T) -> _T:
        if not self._usable or repository in self._forgotten:
            return nothing
        generation = self._writer.generation if self._writer else 0
        try:
            database = self._borrow(generation)
            try:
                return query(database)
            finally:
                self._give_back(generation, database)
        except Trouble as trouble:
            self._note_trouble(trouble)
            return nothing

    def _borrow(self, generation: int) -> Database:
        while self._idle:
            try:
                made_for, database = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if made_for == generation:
                return database
            database.close()
        return Database(self._path, write=False)

    def _give_back(self, generation: int, database: Database) -> None:
        self._idle.append((generation, database))
        if not self._usable:  # closed meanwhile
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            try:
                _, database = self._idle.pop()
            except IndexError:
                return
            database.close()

    def _note_trouble(self, trouble: Trouble) -> None:
        with self._lock:
            first, self._suspected = not self._suspected, True
        if not first:
            return
        if trouble.corrupt and self._writer:
            self._writer.suspect()
        else:
            self._warn(f"cannot read the state file {self._path} ({trouble}); this run asks more than usual")

    # -- noting -------------------------------------------------------------------------------------------------------

    def note_tag(self, side: Side, repository: str, tag: str, digest: Digest | None) -> None:
        """`tag` has `digest` there now; None: it is not there."""
        number = _SIDES[side]
        self._submit(lambda database: database.note_tag(number, repository, tag, digest))

    def withdraw_tag(self, repository: str, tag: str, *, noted: bool) -> None:
        """Before `tag` is written on a target repository: what is known of it is off the disk when this returns.

        noted: whether this run has noted anything of it, which may still wait to be written. Raises LocalError."""
        known = self._read(repository, lambda database: database.tag(TARGET, repository, tag) is not None, True)
        if (known or noted) and self._writer:
            self._writer.call(lambda database: database.note_tag(TARGET, repository, tag, None))

    def note_graph(self, repository: str, root: Digest, blobs: Iterable[Digest]) -> None:
        """Every blob under `root` was proven to be in that repository, or read from there. Manifests are not noted: no
        hint spares putting one, since registries remove untagged ones while their tags still have the same digest."""
        kept = tuple(blobs)
        self._submit(lambda database: database.note_graph(repository, root, kept))

    def note_transformed(self, identity: str, digest: Digest) -> None:
        """A transform made a manifest with `digest` of the version that `identity` names."""
        self._submit(lambda database: database.note_transformed(identity, digest))

    def note_answered_by_v2(self, repository: str) -> None:
        """v2 answered for that source repository."""
        self._submit(lambda database: database.note_answered_by_v2(repository))

    def forget(self, repository: str) -> None:
        """Drop every hint of a repository; its mark stays, and that v2 answered for it.

        What this run notes of it later is for the next run."""
        with self._lock:
            self._forgotten.add(repository)
        self._submit(lambda database: database.forget(repository))

    def mark_unfinished(self, repository: str) -> None:
        """Before the first write into a repository: the mark is on disk when this returns. Raises LocalError."""
        with self._lock:
            marked = repository in self._unfinished
        if marked:
            return
        if not self._writer:
            raise LocalError(f"cannot write {self._path}: it was opened for reading")
        self._writer.call(lambda database: database.mark(repository))
        with self._lock:
            self._unfinished.add(repository)

    def finished(self, repository: str) -> None:
        """All that this run had to do there is done."""
        with self._lock:
            marked = repository in self._unfinished
            self._unfinished.discard(repository)
        if marked:
            self._submit(lambda database: database.unmark(repository))

    def _submit(self, action: Callable[[Database], None]) -> None:
        if self._writer:
            self._writer.submit(action)

    def flush(self) -> None:
        """Write all that was noted. Raises LocalError."""
        if self._writer:
            self._writer.call(Database.nothing)

    def close(self) -> None:
        """Write all that was noted, drop what is of no use any more, close the file. Nothing is read any more."""
        self._usable = False
        self._close_idle()
        if self._writer:
            self._writer.close()

    def __exit__(self, *_: object) -> None:
        self.close()
