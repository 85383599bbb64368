"""The connections that read the state file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.state.database import Database


class ReadConnections:
    """A pool of read-only connections to the state file. Each is used by one thread at a time. Thread-safe.

    A connection reads the file that existed when it was opened, so it belongs to a `Writer.generation`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._idle: deque[tuple[int, Database]] = deque()  # unused connections, with their generation

    @contextmanager
    def connection(self, generation: int) -> Iterator[Database]:
        """Return a context manager that yields an idle connection to the current file, or a new connection.

        Raises DatabaseError if the file cannot be opened."""
        database = self._take(generation)
        try:
            yield database
        finally:
            self._idle.append((generation, database))
            if self._closed:  # `close` was called while the connection was in use
                self._close_idle()

    def close(self) -> None:
        """Close all idle connections now, and each other connection when it is no longer in use."""
        self._closed = True
        self._close_idle()

    def _take(self, generation: int) -> Database:
        """Return an idle connection of a generation, or open a new connection."""
        while self._idle:
            try:
                made_for, database = self._idle.pop()
            except IndexError:  # another thread took the last connection
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
