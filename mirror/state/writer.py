"""The only thread that writes the state. It collects notes and commits them in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from mirror.errors import LocalError, MirrorError
from mirror.state.database import Database, DatabaseError
from mirror.state.file import replace_file, state_error

Change = Callable[[Database], None]

_GATHER = 1.0  # seconds that a note waits for others, to be written with them
_BATCH = 2000  # actions in one transaction
_PRUNE = 1.0  # seconds for pruning at the end of a run
_COMMIT_TIMEOUT = 60.0  # seconds after which a commit that has not ended is an error


class _Action:
    """An action for the writing thread. If a caller waits for it: the event that ends the wait, and the error."""

    __slots__ = ("action", "done", "error")

    def __init__(self, action: Change, done: threading.Event | None = None) -> None:
        self.action = action
        self.done = done
        self.error: MirrorError | None = None


class Writer:
    """Owns the connection that writes. `submit` and `call` are for any thread; `close` is called once.

    A note that cannot be written is lost, with one warning for the run (`failure`). A damaged file is set aside and
    replaced by a new one with the marks. `generation` is then incremented: older connections read the old file."""

    def __init__(self, path: Path, database: Database, marks: Callable[[], list[str]], warn: Callable[[str], None]):
        self.generation = 0
        self.failure: MirrorError | None = None
        self._path = path
        self._database = database
        self._marks = marks
        self._warn = warn
        self._queue: SimpleQueue[_Action | None] = SimpleQueue()
        self._urgent = threading.Event()  # a caller waits: nothing more is gathered
        self._thread = threading.Thread(target=self._run, name="state", daemon=False)
        self._thread.start()

    def submit(self, action: Change) -> None:
        """Queue an action."""
        self._queue.put(_Action(action))

    def call(self, action: Change) -> None:
        """Queue an action and wait until it and all actions before it are on disk. Raises LocalError."""
        job = _Action(action, threading.Event())
        self._queue.put(job)
        self._urgent.set()
        self._wait_for(job)

    def _wait_for(self, job: _Action) -> None:
        """Wait until the action is done. Raises its error, or LocalError."""
        deadline = time.monotonic() + _COMMIT_TIMEOUT
        while job.done and not job.done.wait(0.5 if self._thread.is_alive() else 0.0):
            if not self._thread.is_alive() and not job.done.is_set():
                raise LocalError(f"cannot write {self._path}: it is closed")
            if time.monotonic() > deadline:
                raise LocalError(f"cannot write {self._path}: the disk did not respond within {_COMMIT_TIMEOUT:g} s")
        if job.error:
            raise job.error

    def close(self) -> None:
        """Write the queued actions, prune, and end the thread."""
        self._queue.put(None)
        self._urgent.set()
        self._thread.join()

    def check_file(self) -> None:
        """Check the file, because a reader found it damaged, and replace it if that is so."""
        self.submit(Database.check_integrity)

    def _run(self) -> None:
        """Commit actions until `close`."""
        try:
            last = False
            while not last:
                first = self._queue.get()
                # Not one `get` for each action: that would wake this thread for each of them.
                if first is not None and first.done is None:
                    self._urgent.wait(_GATHER)
                self._urgent.clear()
                jobs, last = self._actions_from(first)
                if len(jobs) == _BATCH:
                    self._urgent.set()  # a caller may wait for one of those that are left
                self._commit(jobs)
            self._prune()
        finally:
            self._database.close()

    def _actions_from(self, first: _Action | None) -> tuple[list[_Action], bool]:
        """Return the actions that are queued, in order, and whether they are the last ones. first: the oldest."""
        jobs: list[_Action] = []
        job = first
        while job is not None:
            jobs.append(job)
            if len(jobs) == _BATCH or self._queue.empty():
                return jobs, False
            job = self._queue.get()
        return jobs, True

    def _commit(self, jobs: list[_Action]) -> None:
        """Run the actions, and wake their callers."""
        error: MirrorError | None = None
        if jobs:
            actions = [job.action for job in jobs]
            try:
                self._apply(actions)
            except DatabaseError as failure:
                error = state_error(self._path, failure)
            except LocalError as refused:
                error = refused
        if error and self.failure is None:
            self.failure = error
            self._warn(f"{error}; this run's hints are not saved, so that the next run sends more requests")
        for job in jobs:
            job.error = error
            if job.done:
                job.done.set()

    def _apply(self, actions: list[Change]) -> None:
        """Run the changes in one transaction; replace a damaged file once and try again."""
        try:
            self._database.apply(actions)
        except DatabaseError as failure:
            if not failure.corrupt:
                raise
            self._replace_file(str(failure))
            self._database.apply(actions)

    def _replace_file(self, reason: str) -> None:
        """Replace the damaged file by a new one with the marks."""
        self._database.close()
        replace_file(self._path, f"is damaged ({reason})", self._warn)
        self._database = Database(self._path, write=True)
        self.generation += 1
        self._database.apply(partial(Database.mark_unfinished, repository=name) for name in self._marks())

    def _prune(self) -> None:
        """Prune repositories whose tags have moved."""
        deadline = time.monotonic() + _PRUNE
        for repository in self._database.outdated_repositories():
            if time.monotonic() > deadline:
                return  # the rest is pruned when one of its tags moves again
            try:
                self._database.apply([partial(Database.prune, repository=repository)])
            except DatabaseError:
                return  # pruning only saves space
