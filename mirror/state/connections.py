"""The connections through which the state file is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.state.database import Database


class ReadConnections:
    """Connections to the state file, each used by one thread at a time, and reused. Thread-safe.

    A connection reads the file that existed when it was opened, so each belongs to a `Writer.generation`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._idle: deque[tuple[int, Database]] = deque()  # unused connections, with their generation

    @contextmanager
    def connection(self, generation: int) -> Iterator[Database]:
        """Return a context manager for an idle connection to the current file, or for a new one.

        Raises DatabaseError if the file cannot be opened."""
        database = self._take(generation)
        try:
            yield database
        finally:
            self._idle.append((generation, database))
            if self._closed:  # meanwhile
                self._close_idle()

    def close(self) -> None:
        """Close all connections: the idle ones now, and those in use when they are no longer used."""
        self._closed = True
        self._close_idle()

    def _take(self, generation: int) -> Database:
        """Return an idle connection of this generation, or open a new one."""
        while self._idle:
            try:
                made_for, database = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            if made_for == generation:
                return database
            database.close()
        return Database(self._path, write=False)

    def _close_idle(self) -> None:
        """Close all idle connections."""
        while self._idle:
            try:
                _, database = self._idle.pop()
            except IndexError:
                return
            database.close()
