"""Fault rules: which requests fail, and how."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from tests.registries.access import Target, canonical
from tests.registries.exchange import Headers, Hook, Reply, Request

FOREVER = math.inf
CONNECT = "connect"  # kind of a connection that was just accepted, before TLS and any request
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal: handshake failure

Change = Callable[[Request, Reply], Reply]


@dataclass(eq=False, slots=True)
class Fault:
    """A rule. It applies to matching requests from the `nth` on, `times` of them. Units are bytes and seconds.

    fired: set when the rule first applies; wait for it instead of sleeping. hits: how often it has applied."""

    kind: str  # `PUT manifest`, a pattern such as `* blob`, or CONNECT
    repository: str | None = None
    reference: str | None = None
    nth: int = 1
    times: float = 1

    # before the request is carried out:
    delay: float = 0
    stall: threading.Event | None = None  # wait until it is set (forever if it never is)
    cut_request_after: int | None = None  # read this many bytes of the body, then cut the connection
    early: bool = False  # answer without reading the body, and close
    accept: int | None = None  # the registry receives only this many bytes of the body

    # the reply: instead of the request's own; with `after`, the request is carried out and its reply is changed
    status: int | None = None
    headers: Headers = ()
    body: bytes | None = None
    after: bool = False
    change: Change | None = None
    hook: Hook | None = None

    # how the reply is sent:
    raw: bytes | None = None  # send these bytes instead, then close
    informational: float = 0  # send this many `103 Early Hints` first; FOREVER: nothing else
    cut_head_after: int | None = None  # bytes of status line and headers
    cut_after: int | None = None  # bytes of the body
    reset: bool = False  # RST instead of FIN; alone: before any reply
    stall_after: int | None = None  # stop after this many bytes of the body
    drip: float | None = None  # bytes of the body per second
    drip_head: float | None = None  # bytes per second, from the status line on

    seen: int = 0
    hits: int = 0
    fired: threading.Event = field(default_factory=threading.Event)

    def matches(self, target: Target) -> bool:
        return (
            fnmatchcase(target.kind, self.kind)
            and (self.kind == CONNECT) == (target.kind == CONNECT)
            and self.repository in (None, target.repository)
            and self.reference in (None, target.reference)
        )

    @property
    def says_nothing(self) -> bool:
        """Whether the connection is reset before the first byte of a reply."""
        return self.reset and self.cut_after is None and self.cut_head_after is None and self.raw is None

    @property
    def lingers(self) -> bool:
        """Whether the reply is sent slowly."""
        return bool(self.informational or self.drip or self.drip_head) or self.stall_after is not None

    @property
    def carries_out(self) -> bool:
        """Whether the registry carries out the request."""
        if self.after:
            return True
        return self.status is None and self.raw is None and not self.says_nothing

    def reply(self, request: Request, own: Reply | None) -> Reply:
        """Return the reply to send. own: the reply of the request, if it was carried out."""
        if self.change and own:
            own = self.change(request, own)
        if own is None:
            return Reply(self.status or 500, self.headers, self.body or b"")
        mine = {name.lower() for name, _ in self.headers}
        kept = [(name, value) for name, value in own.headers if name.lower() not in mine]
        return replace(
            own,
            status=self.status or own.status,
            headers=(*kept, *self.headers),
            body=own.body if self.body is None else self.body,
        )


class Faults:
    """The rules of a registry; the first that applies is used. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        fault.kind = canonical(fault.kind)
        with self._lock:
            self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all rules. Replies that are stalled stay stalled."""
        with self._lock:
            self._rules.clear()

    def take(self, target: Target) -> Fault | None:
        """Return the rule for a request. Every matching rule counts the request."""
        taken: Fault | None = None
        with self._lock:
            for rule in self._rules:
                if not rule.matches(target):
                    continue
                rule.seen += 1
                if taken is None and rule.seen >= rule.nth and rule.hits < rule.times:
                    rule.hits += 1
                    taken = rule
        if taken:
            taken.fired.set()
        return taken


# ---- changes that are often wanted


def wrong_bytes(request: Request, reply: Reply) -> Reply:
    """Return bytes of the same length with another byte in the middle."""
    body = bytearray(reply.body)
    body[len(body) // 2] ^= 0xFF
    return replace(reply, body=bytes(body))


def shortened(size: int) -> Change:
    """Send the first `size` bytes, with a Content-Length of that size."""

    def change(request: Request, reply: Reply) -> Reply:
        return replace(without("Content-Length")(request, reply), body=reply.body[:size])

    return change


def lengthened(more: bytes) -> Change:
    def change(request: Request, reply: Reply) -> Reply:
        return replace(without("Content-Length")(request, reply), body=reply.body + more)

    return change


def without(*names: str) -> Change:
    """Remove headers."""
    gone = {name.lower() for name in names}

    def change(request: Request, reply: Reply) -> Reply:
        return replace(reply, headers=[header for header in reply.headers if header[0].lower() not in gone])

    return change


def close_delimited(request: Request, reply: Reply) -> Reply:
    """Send no length: the body ends when the connection closes."""
    kept = without("Content-Length")(request, reply).headers
    return replace(reply, headers=(*kept, ("Connection", "close")), length=False)


def unsized(request: Request, reply: Reply) -> Reply:
    """Send no Content-Length for HEAD."""
    return replace(without("Content-Length")(request, reply), length=False)


def chunked(request: Request, reply: Reply) -> Reply:
    """Send the body in chunks."""
    kept = without("Content-Length")(request, reply).headers
    pieces = [reply.body[at : at + 4096] for at in range(0, len(reply.body), 4096)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return replace(reply, headers=(*kept, ("Transfer-Encoding", "chunked")), body=body)
