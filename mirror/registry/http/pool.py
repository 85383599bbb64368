"""Connections kept for the next request. No lock is held while one is opened, used or closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from mirror.registry.http.connection import Connection
from mirror.registry.http.url import Origin
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop

Key: TypeAlias = tuple[Origin, bool]  # whether our client certificate was offered there


class Pool:
    """Idle connections by origin, last used first. Thread-safe.

    open: makes a new connection. check: told the destination and peer of a kept one before it is used again."""

    def __init__(
        self,
        open: Callable[[Destination, Stop], Connection],
        check: Callable[[Destination, str], None],
        *,
        keep: int,
    ) -> None:
        self._open = open
        self._check = check
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[tuple[Key, Connection]] = []  # the last is the freshest
        self._closed = False

    def take(self, destination: Destination, stop: Stop, *, fresh: bool = False) -> Connection:
        """A connection for one exchange: a kept one if there is a live one, unless `fresh`. Give it back, or close it.

        Raises NetworkError, Refused, Cancelled."""
        key = (destination.origin, destination.credentials)
        while not fresh and (found := self._pop(key)) is not None:
            if found.stale():
                found.close()
                continue
            if destination.server_named and found.peer is not None:
                self._checked(destination, found)
            return found
        return self._open(destination, stop)

    def give(self, destination: Destination, connection: Connection) -> None:
        """Keep a connection whose last answer was whole."""
        connection.end()
        spare: Connection | None = connection
        with self._lock:
            if not self._closed:
                self._idle.append(((destination.origin, destination.credentials), connection))
                spare = self._idle.pop(0)[1] if len(self._idle) > self._keep else None
        if spare is not None:
            spare.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _pop(self, key: Key) -> Connection | None:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index][0] == key:
                    return self._idle.pop(index)[1]
        return None

    def _checked(self, destination: Destination, connection: Connection) -> None:
        try:
            self._check(destination, connection.peer or "")
        except BaseException:
            connection.close()
            raise
