"""Connections kept for the next request. No lock is held while one is opened, used or closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

from mirror.registry.http.connection import Connection
from mirror.registry.http.url import Origin
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop

# Load balancers and NAT gateways forget idle connections, often without a word: those of clouds after 60 s (AWS's load
# balancer for applications), 240 s (Azure), 350 s (AWS's NAT); nginx closes them after 75 s. A request on a connection
# that was forgotten waits for the whole idle timeout.
MOST_IDLE = 50.0  # seconds

Key: TypeAlias = tuple[Origin, bool]  # whether our client certificate was offered there


class Pool:
    """Idle connections by origin, last used first, each for at most MOST_IDLE seconds. Thread-safe.

    open: makes a new connection. check: told the destination and peer of a kept one before it is used again."""

    def __init__(
        self,
        open: Callable[[Destination, Stop], Connection],
        check: Callable[[Destination, str], None],
        *,
        keep: int,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._open = open
        self._check = check
        self._keep = keep
        self._now = now
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Key, Connection]] = []  # with the time since when, the freshest last
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
        """Keep a connection whose last response was whole."""
        connection.end()
        spare: Connection | None = connection
        with self._lock:
            if not self._closed:
                self._idle.append((self._now(), (destination.origin, destination.credentials), connection))
                spare = self._idle.pop(0)[2] if len(self._idle) > self._keep else None
        if spare is not None:
            spare.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, _, connection in idle:
            connection.close()

    def _pop(self, key: Key) -> Connection | None:
        """The freshest one of `key`. Closes all that are too old."""
        found: Connection | None = None
        old: list[Connection] = []
        with self._lock:
            oldest = self._now() - MOST_IDLE
            while self._idle and self._idle[0][0] < oldest:
                old.append(self._idle.pop(0)[2])
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index][1] == key:
                    found = self._idle.pop(index)[2]
                    break
        for connection in old:
            connection.close()
        return found

    def _checked(self, destination: Destination, connection: Connection) -> None:
        try:
            self._check(destination, connection.peer or "")
        except BaseException:
            connection.close()
            raise
