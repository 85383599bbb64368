"""The one thread that writes the state: it gathers what others noted and commits it in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from mirror.errors import LocalError, MirrorError
from mirror.state.database import Database, Trouble
from mirror.state.file import refusal, renew

Action = Callable[[Database], None]

_GATHER = 1.0  # seconds for which hints wait for company before they are written
_BATCH = 2000  # actions in one transaction
_PRUNE = 1.0  # seconds that the end of a run may spend on tidying
_PATIENCE = 60.0  # seconds after which a commit that does not come is an error


class _Job:
    """An action; if somebody waits for it, with the event that ends the wait and what went wrong."""

    __slots__ = ("action", "done", "error")

    def __init__(self, action: Action, done: threading.Event | None = None) -> None:
        self.action = action
        self.done = done
        self.error: MirrorError | None = None


class Writer:
    """Owner of the connection that writes. `submit` and `call` from any thread; `close` once.

    A hint that cannot be written is lost, with one warning for the run (`trouble`); a file found corrupt is set
    aside, a new one begun with the marks, and `generation` counted up: older connections are then of no use."""

    def __init__(self, path: Path, database: Database, marks: Callable[[], list[str]], warn: Callable[[str], None]):
        self.generation = 0
        self.trouble: MirrorError | None = None
        self._path = path
        self._database = database
        self._marks = marks
        self._warn = warn
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="state", daemon=False)
        self._thread.start()

    def submit(self, action: Action) -> None:
        """Do it soon."""
        self._queue.put(_Job(action))

    def call(self, action: Action) -> None:
        """Do it, and all that was submitted before; it is on disk when this returns. Raises LocalError."""
        job = _Job(action, threading.Event())
        self._queue.put(job)
        self._await(job)

    def _await(self, job: _Job) -> None:
        deadline = time.monotonic() + _PATIENCE
        while job.done and not job.done.wait(0.5 if self._thread.is_alive() else 0.0):
            if not self._thread.is_alive() and not job.done.is_set():
                raise LocalError(f"cannot write {self._path}: it is closed")
            if time.monotonic() > deadline:
                raise LocalError(f"cannot write {self._path}: no answer from its disk in {_PATIENCE:g} s")
        if job.error:
            raise job.error

    def close(self) -> None:
        """Write what is left, tidy, end the thread."""
        self._queue.put(None)
        self._thread.join()

    def suspect(self) -> None:
        """A reader found the file corrupt: check it, and begin anew if that is so."""
        self.submit(Database.check)

    def _run(self) -> None:
        try:
            last = False
            while not last:
                jobs, last = self._gather()
                self._commit(jobs)
            self._tidy()
        finally:
            self._database.close()

    def _gather(self) -> tuple[list[_Job], bool]:
        """The next jobs, in order -> them, and whether they are the last."""
        jobs: list[_Job] = []
        until: float | None = None  # no end to the wait for the first: `close` always comes
        while len(jobs) < _BATCH:
            try:
                job = self._queue.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            if job.done:
                until = 0.0  # somebody waits: take along only what is there already
            elif until is None:
                until = time.monotonic() + _GATHER
        return jobs, False

    def _commit(self, jobs: list[_Job]) -> None:
        error: MirrorError | None = None
        if jobs:
            actions = [job.action for job in jobs]
            try:
                self._apply(actions)
            except Trouble as trouble:
                error = refusal(self._path, trouble)
            except LocalError as refused:
                error = refused
        if error and self.trouble is None:
            self.trouble = error
            self._warn(f"{error}; what this run learns is not kept, so that the next one asks more")
        for job in jobs:
            job.error = error
            if job.done:
                job.done.set()

    def _apply(self, actions: list[Action]) -> None:
        try:
            self._database.apply(actions)
        except Trouble as trouble:
            if not trouble.corrupt:
                raise
            self._renew(str(trouble))
            self._database.apply(actions)

    def _renew(self, reason: str) -> None:
        self._database.close()
        renew(self._path, f"is damaged ({reason})", self._warn)
        self._database = Database(self._path, write=True)
        self.generation += 1
        self._database.apply(partial(Database.mark, repository=name) for name in self._marks())

    def _tidy(self) -> None:
        deadline = time.monotonic() + _PRUNE
        for repository in self._database.outdated():
            if time.monotonic() > deadline:
                return  # its turn comes when one of its tags moves again
            try:
                self._database.apply([partial(Database.prune, repository=repository)])
            except Trouble:
                return  # tidying is of no importance
