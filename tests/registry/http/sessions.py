"""Helpers for sessions with a peer of peers.py."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

from mirror.limits import Limits
from mirror.registry.auth.authorizer import Scope, pull_scopes
from mirror.registry.http.host_settings import HostSettings, TlsSettings
from mirror.registry.session import Response, Session
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.registry.http.peers import Peer, PeerConnection, Script

QUICK = Policy(attempts=3, base=0.001, cap=0.001)
_SETTINGS = set(HostSettings.__struct_fields__)


def session_with(peer: Peer | str, *, limits: Limits | None = None, **options: Any) -> Session:
    """Return a session. options: of HostSettings and Session; by default plain http and timeouts of 30 s."""
    host = peer if isinstance(peer, str) else peer.name
    mine: dict[str, Any] = {"plain_http": True, "idle_timeout": 30.0, "connect_timeout": 30.0}
    mine |= {name: options.pop(name) for name in list(options) if name in _SETTINGS}
    return Session(HostSettings(host, **mine), limits or Limits(), **{"policy": QUICK, **options})


def work(*, retries: bool = True) -> Work:
    return Work(Stop(), retries=retries)


SCOPES = pull_scopes("a/b")


class Keys:
    """An Authorizer with a list of header values; `handle_challenge` switches to the next one."""

    def __init__(self, *values: str | None) -> None:
        self.values = list(values)
        self.challenges: list[tuple[list[str], str | None]] = []
        self.accepted_scopes: list[tuple[Scope, ...]] = []
        self.releases = 0

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        return self.values[0]

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        self.challenges.append((list(challenges), sent))
        if len(self.values) > 1:
            del self.values[0]

    def account(self, scopes: tuple[Scope, ...]) -> str:
        return ""

    def record_accepted(self, scopes: tuple[Scope, ...], *, is_forbidden: bool = False) -> None:
        self.accepted_scopes.append(scopes)

    def record_no_response(self, scopes: tuple[Scope, ...]) -> None:
        self.releases += 1

    def allow_one_more_request(self, scopes: tuple[Scope, ...], *, only_if_accepted: bool) -> None:
        pass


def get(session: Session, where: Any = "/v2/a/b/tags/list", *, retries: bool = True, **options: Any) -> Response:
    options = {"kind": "tags", "expect": {200}, **options}
    return session.call(options.pop("method", "GET"), where, options.pop("work", work(retries=retries)), **options)


def read_all(session: Session, where: Any = "/v2/a/b/blobs/x", **options: Any) -> bytes:
    data, view = bytearray(), memoryview(bytearray(1 << 16))
    with session.stream(where, options.pop("work", work()), kind="blob", **options) as stream:
        while count := stream.readinto(view):
            data += view[:count]
    return bytes(data)


# Timeouts of a session whose waits a test ends by a stop: none of them ends before STOPPED_WITHIN.
LONG_TIMEOUTS: dict[str, Any] = {"idle_timeout": 90.0, "connect_timeout": 90.0, "deadline": 90.0}
STOPPED_WITHIN = 60.0  # seconds


@contextlib.contextmanager
def stopped_when(peer: Peer, when: Callable[[], bool]) -> Iterator[Work]:
    """Yield a Work that another thread stops when `when()` is true for the peer. For sessions with LONG_TIMEOUTS."""
    stop = Stop()

    def wait() -> None:
        peer.wait_for(when, STOPPED_WITHIN)
        stop.request("a signal")

    thread = threading.Thread(target=wait)
    thread.start()
    started = monotonic()
    yield Work(stop)
    thread.join()
    assert monotonic() - started < STOPPED_WITHIN


def send_and_hang(first: bytes) -> Script:
    """Return a script that sends `first`, records that, and then sends nothing until the client disconnects."""

    def script(conn: PeerConnection) -> None:
        conn.read_head()
        conn.send(first)
        conn.peer.notify(lambda: conn.peer.requests.append(None))  # type: ignore[arg-type]
        conn.read_to_end()

    return script


def tls_with_ca(authority: Any, **more: Any) -> TlsSettings:
    return TlsSettings(ca=authority.ca, **more)


def redirect_to(place: Callable[[], str], status: str = "307 Temporary Redirect") -> Script:
    def script(conn: PeerConnection) -> None:
        while conn.read_request() is not None:
            conn.respond(status, b"moved", f"Location: {place()}")

    return script
