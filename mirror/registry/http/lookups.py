"""Look-ups of host names that end in time, although nothing can interrupt one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeAlias

from mirror.registry.http.ip_addresses import is_literal
from mirror.util.cancellation import Stop

AddressInfo: TypeAlias = tuple[Any, ...]
"""Family, type, protocol, name and address, as getaddrinfo gives them."""

Resolve: TypeAlias = Callable[[str, int], Sequence[AddressInfo]]
"""Host and port -> its addresses, the best first. Raises OSError, UnicodeError."""


def system_resolve(host: str, port: int) -> Sequence[AddressInfo]:
    # As bytes: what `url` lets through is ASCII, and of a text Python would load its tables for other names.
    return socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)


class Lookups:
    """Looks up names on threads of their own, one at a time for each host and port. Thread-safe."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], Future[Sequence[AddressInfo]]] = {}

    def find(self, host: str, port: int, *, until: float, stop: Stop) -> Sequence[AddressInfo]:
        """The addresses of a host. until: of the monotonic clock.

        Raises what the resolver raises, TimeoutError, Cancelled."""
        if is_literal(host):
            return self._resolve(host, port)
        found = self._join(host, port)
        woken = threading.Event()
        found.add_done_callback(lambda _: woken.set())
        with stop.callback_on_stop(woken.set):
            woken.wait(max(0.0, until - monotonic()))
        stop.raise_if_requested()
        return found.result(timeout=0)

    def _join(self, host: str, port: int) -> Future[Sequence[AddressInfo]]:
        """The look-up in progress, or a new one."""
        with self._lock:
            found = self._running.get((host, port))
            if found is not None:
                return found
            found = self._running[host, port] = Future()
        # A daemon: a look-up that hangs must not keep the process from ending.
        threading.Thread(target=self._run, args=(host, port, found), name="lookup", daemon=True).start()
        return found

    def _run(self, host: str, port: int, found: Future[Sequence[AddressInfo]]) -> None:
        try:
            addresses = self._resolve(host, port)
        except BaseException as error:  # noqa: BLE001 - it is raised by those who wait
            failure: BaseException | None = error
        else:
            failure = None
        with self._lock:
            del self._running[host, port]
        if failure is None:
            found.set_result(addresses)
        else:
            found.set_exception(failure)
