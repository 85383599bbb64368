"""Host name lookups with a deadline. A system lookup cannot be interrupted, so each lookup runs on its own thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeAlias

from mirror.registry.http.ip_addresses import is_ip_address
from mirror.util.cancellation import Stop

AddressInfo: TypeAlias = tuple[Any, ...]
"""The family, type, protocol, canonical name and address that getaddrinfo returns for an address."""

Resolver: TypeAlias = Callable[[str, int], Sequence[AddressInfo]]
"""A function that returns the addresses of a host and port, in order of preference. Raises OSError, UnicodeError."""


def system_resolve(host: str, port: int) -> Sequence[AddressInfo]:
    """Resolve a host name with getaddrinfo."""
    # The name is ASCII (see `url`). It is passed as bytes, because Python would load its IDNA tables for a string.
    return socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)


class HostLookups:
    """A resolver that runs each lookup on its own thread. Concurrent calls for the same host and port share a lookup.

    Thread-safe."""

    def __init__(self, resolve: Resolver) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], Future[Sequence[AddressInfo]]] = {}

    def addresses(self, host: str, port: int, *, deadline: float, stop: Stop) -> Sequence[AddressInfo]:
        """Look up a host and return its addresses, in order of preference.

        `deadline` is a time on the monotonic clock. Raises the errors of the resolver, TimeoutError at the deadline,
        Cancelled."""
        if is_ip_address(host):
            return self._resolve(host, port)
        lookup = self._join_or_start(host, port)
        wake = threading.Event()
        lookup.add_done_callback(lambda _: wake.set())
        with stop.callback_on_stop(wake.set):
            wake.wait(max(0.0, deadline - monotonic()))
        stop.raise_if_requested()
        return lookup.result(timeout=0)

    def _join_or_start(self, host: str, port: int) -> Future[Sequence[AddressInfo]]:
        """Return the running lookup for a host and port. If there is none, start one."""
        with self._lock:
            lookup = self._running.get((host, port))
            if lookup is not None:
                return lookup
            lookup = self._running[host, port] = Future()
        # A daemon thread, because a lookup that hangs must not prevent the process from exiting.
        threading.Thread(target=self._run_lookup, args=(host, port, lookup), name="lookup", daemon=True).start()
        return lookup

    def _run_lookup(self, host: str, port: int, lookup: Future[Sequence[AddressInfo]]) -> None:
        """Resolve a host, and set the addresses or the error as the outcome of `lookup`."""
        try:
            addresses = self._resolve(host, port)
        except BaseException as error:  # noqa: BLE001 - it is raised in the waiting threads
            failure: BaseException | None = error
        else:
            failure = None
        with self._lock:
            del self._running[host, port]
        if failure is None:
            lookup.set_result(addresses)
        else:
            lookup.set_exception(failure)
