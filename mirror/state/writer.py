"""The thread that makes all changes to the state file. It collects changes and commits them in batches."""

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
from mirror.state.platform_records import prune_platform_results

Change = Callable[[Database], None]

_GATHER = 1.0  # seconds to wait for more changes before a commit
_BATCH = 2000  # the maximum number of changes in one transaction
_PRUNE = 1.0  # the maximum number of seconds for pruning at the end of a run
_COMMIT_TIMEOUT = 60.0  # seconds after which a commit that has not ended is an error


class _QueuedWrite:
    """A change of the state that is queued for the writer thread.

    done: set when the change is on disk or has failed; None if no caller waits for the change.
    error: the error, if the change failed."""

    __slots__ = ("action", "done", "error")

    def __init__(self, action: Change, done: threading.Event | None = None) -> None:
        self.action = action
        self.done = done
        self.error: MirrorError | None = None


class Writer:
    """Writes changes to the state file on a separate thread. Any thread may call `submit` and `call`.

    If changes cannot be written, they are lost. The first such error is stored in `failure` and causes a warning. A
    damaged file is set aside and replaced by a new file with the marks of unfinished repositories. `generation` is then
    incremented, because older connections still read the old file. `close` must be called once.
    marks: a function that returns the names of unfinished repositories."""

    def __init__(self, path: Path, database: Database, marks: Callable[[], list[str]], warn: Callable[[str], None]):
        self.generation = 0
        self.failure: MirrorError | None = None
        self._path = path
        self._database = database
        self._marks = marks
        self._warn = warn
        self._queue: SimpleQueue[_QueuedWrite | None] = SimpleQueue()
        self._urgent = threading.Event()  # a caller waits, so the thread does not wait for further changes
        self._thread = threading.Thread(target=self._run, name="state", daemon=False)
        self._thread.start()

    def submit(self, action: Change) -> None:
        """Queue a change to the state file, and return without waiting for the write."""
        self._queue.put(_QueuedWrite(action))

    def call(self, action: Change) -> None:
        """Queue a change, and wait until it and all earlier changes are on disk. Raises LocalError."""
        job = _QueuedWrite(action, threading.Event())
        self._queue.put(job)
        self._urgent.set()
        self._wait_for(job)

    def _wait_for(self, job: _QueuedWrite) -> None:
        """Wait until a change is on disk. Raises LocalError if the change fails or takes too long."""
        deadline = time.monotonic() + _COMMIT_TIMEOUT
        while job.done and not job.done.wait(0.5 if self._thread.is_alive() else 0.0):
            if not self._thread.is_alive() and not job.done.is_set():
                raise LocalError(f"cannot write {self._path}: the file has been closed")
            if time.monotonic() > deadline:
                raise LocalError(f"cannot write {self._path}: the disk did not respond within {_COMMIT_TIMEOUT:g} s")
        if job.error:
            raise job.error

    def close(self) -> None:
        """Write the queued changes, delete outdated rows, and end the thread."""
        self._queue.put(None)
        self._urgent.set()
        self._thread.join()

    def check_file(self) -> None:
        """Queue a check of the state file, which may be damaged. If the file is damaged, it is replaced."""
        self.submit(Database.check_integrity)

    def _run(self) -> None:
        """Commit queued changes until `close` is called."""
        try:
            last = False
            while not last:
                first = self._queue.get()
                # Wait for more changes here, because calling `get` would wake this thread for each change.
                if first is not None and first.done is None:
                    self._urgent.wait(_GATHER)
                self._urgent.clear()
                jobs, last = self._take_batch(first)
                if len(jobs) == _BATCH:
                    self._urgent.set()  # a caller may wait for a change that is still in the queue
                self._commit(jobs)
            self._prune()
        finally:
            self._database.close()

    def _take_batch(self, first: _QueuedWrite | None) -> tuple[list[_QueuedWrite], bool]:
        """Take at most _BATCH changes from the queue. Return them in order, and whether `close` was called.

        first: a change that was already taken from the queue, or None if `close` was called."""
        jobs: list[_QueuedWrite] = []
        job = first
        while job is not None:
            jobs.append(job)
            if len(jobs) == _BATCH or self._queue.empty():
                return jobs, False
            job = self._queue.get()
        return jobs, True

    def _commit(self, jobs: list[_QueuedWrite]) -> None:
        """Commit queued changes, and wake the callers that wait for them."""
        error: MirrorError | None = None
        if jobs:
            actions = [job.action for job in jobs]
            try:
                self._apply(actions)
            except DatabaseError as failure:
                error = state_error(self._path, failure)
            except LocalError as failed:
                error = failed
        if error and self.failure is None:
            self.failure = error
            self._warn(f"{error}; this run's hints are not saved, so the next run will send more requests")
        for job in jobs:
            job.error = error
            if job.done:
                job.done.set()

    def _apply(self, actions: list[Change]) -> None:
        """Make changes in one transaction. If the state file is damaged, replace the file and try once more."""
        try:
            self._database.apply(actions)
        except DatabaseError as failure:
            if not failure.corrupt:
                raise
            self._replace_file(str(failure))
            self._database.apply(actions)

    def _replace_file(self, reason: str) -> None:
        """Replace the damaged state file by a new file that keeps the marks of unfinished repositories."""
        self._database.close()
        replace_file(self._path, f"is damaged ({reason})", self._warn)
        self._database = Database(self._path, write=True)
        self.generation += 1
        self._database.apply(partial(Database.mark_unfinished, repository=name) for name in self._marks())

    def _prune(self) -> None:
        """Delete the rows of images that no longer have a tag, if this run changed a tag. Stop after _PRUNE seconds."""
        deadline = time.monotonic() + _PRUNE
        outdated = self._database.outdated_repositories()
        actions: list[Callable[[Database], None]] = [prune_platform_results] if outdated else []
        actions += [partial(Database.prune, repository=repository) for repository in outdated]
        for prune in actions:
            if time.monotonic() > deadline:
                return  # the remaining repositories are pruned when one of their tags changes again
            try:
                self._database.apply([prune])
            except DatabaseError:
                return  # pruning only saves space
