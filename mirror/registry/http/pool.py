"""A pool of idle connections. No lock is held while a connection is opened, used or closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

from mirror.registry.http.connection import Connection
from mirror.registry.http.url import Origin
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop

# Load balancers and NAT gateways drop idle connections, often without closing them: after 60 s (AWS's application load
# balancer), 240 s (Azure), 350 s (AWS's NAT gateway). nginx closes them after 75 s. A request on a dropped connection
# would wait for the whole idle timeout.
MAX_IDLE = 50.0  # seconds

PoolKey: TypeAlias = tuple[Origin, bool]
"""An origin, and whether the registry's credentials, such as the client certificate, may be sent on the connection."""


class ConnectionPool:
    """A pool of idle connections. The most recently used connection is reused first. Thread-safe.

    A connection that has been idle for more than MAX_IDLE seconds is not reused. `open` opens a new connection. `keep`
    is the maximum number of idle connections. Before a connection to a host that a server named is reused, `check` is
    called with the destination and the peer's address; it may raise Refused."""

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
        self._idle: list[tuple[float, PoolKey, Connection]] = []  # (idle since, key, connection), oldest first
        self._closed = False

    def acquire(self, destination: Destination, stop: Stop, *, fresh: bool = False) -> Connection:
        """Return an idle connection for one exchange. If none is usable, or `fresh` is true, open a new connection.

        The caller must release or close the connection. Raises the errors of `open` and `check`."""
        key = (destination.origin, destination.credentials)
        while not fresh and (idle := self._take_idle(key)) is not None:
            if idle.is_stale():
                idle.close()
                continue
            if destination.named_by_server and idle.peer is not None:
                self._check_peer(destination, idle)
            return idle
        return self._open(destination, stop)

    def release(self, destination: Destination, connection: Connection) -> None:
        """Return a connection to the pool after a complete exchange.

        If the pool is full, its oldest connection is closed. If the pool was closed, `connection` is closed."""
        connection.end_exchange()
        spare: Connection | None = connection
        with self._lock:
            if not self._closed:
                self._idle.append((self._now(), (destination.origin, destination.credentials), connection))
                spare = self._idle.pop(0)[2] if len(self._idle) > self._keep else None
        if spare is not None:
            spare.close()

    def close(self) -> None:
        """Close idle connections. Connections that are released later are closed too."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, _, connection in idle:
            connection.close()

    def _take_idle(self, key: PoolKey) -> Connection | None:
        """Remove and return the most recently used connection for `key`, or None if there is none.

        Closes all connections that have been idle for too long."""
        matching: Connection | None = None
        old: list[Connection] = []
        with self._lock:
            oldest = self._now() - MAX_IDLE
            while self._idle and self._idle[0][0] < oldest:
                old.append(self._idle.pop(0)[2])
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index][1] == key:
                    matching = self._idle.pop(index)[2]
                    break
        for connection in old:
            connection.close()
        return matching

    def _check_peer(self, destination: Destination, connection: Connection) -> None:
        """Check the address of an idle connection's peer. Closes the connection if the check fails."""
        try:
            self._check(destination, connection.peer or "")
        except BaseException:
            connection.close()
            raise
