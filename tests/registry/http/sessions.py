"""Short ways to a session with a peer of peers.py."""

from __future__ import annotations

import dataclasses
from typing import Any

from mirror.backoff import Policy
from mirror.limits import Limits, Stop, Work
from mirror.registry.session import Session
from mirror.registry.settings import HostSettings
from tests.registry.http.peers import Peer

QUICK = Policy(attempts=3, base=0.001, cap=0.001)
_SETTINGS = {field.name for field in dataclasses.fields(HostSettings)}


def session_with(peer: Peer | str, *, limits: Limits | None = None, **options: Any) -> Session:
    """Options are those of HostSettings and of Session. http, unless told; waits of at most 5 s."""
    host = peer if isinstance(peer, str) else peer.name
    mine: dict[str, Any] = {"plain_http": True, "idle_timeout": 5.0, "connect_timeout": 5.0}
    mine |= {name: options.pop(name) for name in list(options) if name in _SETTINGS}
    return Session(HostSettings(host, **mine), limits or Limits(), **{"policy": QUICK, **options})


def work(*, retries: bool = True) -> Work:
    return Work(Stop(), retries=retries)
