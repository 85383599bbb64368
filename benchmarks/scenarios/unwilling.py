"""A scenario with busy registries, which answer some requests with 429 or 503."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack

from benchmarks.scenarios.base import SLOW, Access
from benchmarks.scenarios.cold import Cold
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.process import RegistryProcess
from tests.registries.wires import Front

_EVERY_NTH = 50  # requests


class Unwilling(Cold):
    name = "unwilling"
    runs = SLOW
    title = "Cold, while 2 % of all requests are answered with 429 or 503"
    note = (
        "Every 50th request to a registry is answered with 429 (`Retry-After: 1`) or 503, alternately. The "
        "requests go through a proxy that uses CPU time, so compare the tools only with each other. A command "
        "that fails is not repeated; the next command of the tool still runs."
    )
    with_ideal = False
    continue_on_error = True

    def reach(self, registry: RegistryProcess, stack: ExitStack) -> Access:
        front = stack.enter_context(Front(registry.port, hook=_Busy()))
        return Access(registry, front.host, front.journal, registry.pid)


class _Busy:
    """A hook of the proxy that answers every 50th request with 429 or 503 instead of forwarding it. Thread-safe."""

    def __init__(self) -> None:
        self._lock, self._numbers = threading.Lock(), itertools.count(1)

    def __call__(self, request: Request) -> Reply | None:
        if request.ours:
            return None
        with self._lock:
            number = next(self._numbers)
        if number % _EVERY_NTH:
            return None
        if number % (2 * _EVERY_NTH):
            return error_reply(429, "TOOMANYREQUESTS", "too many requests", ("Retry-After", "1"))
        return error_reply(503, "UNAVAILABLE", "busy")
