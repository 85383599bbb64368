"""Relays between the tool and a registry: a TCP relay, and an HTTP proxy that counts and changes requests."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Self

from tests.registries.access import classify
from tests.registries.certificates import Authority
from tests.registries.exchange import Headers, Hook, Reply, Request
from tests.registries.http1 import Incoming, head_bytes, read_request, reader_of
from tests.registries.journal import Journal, Logged
from tests.registries.listener import Listener, abort, close

_BLOCK = 1 << 14
_HOPS = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}
_TICK = 0.02  # seconds between two checks for a stop


class Pipe:
    """A TCP relay to a port of 127.0.0.1. Use with `with`.

    rate: bytes per second, of all connections and both directions together; None: unlimited. first: the first bytes of
    each connection; b"" if there were none. tls: the authority of the registry behind it, for config files; bytes are
    forwarded unchanged. cuts: numbers of bytes, in ascending order: the connection with which `moved` exceeds one of
    them is broken."""

    def __init__(
        self,
        port: int,
        *,
        rate: float | None = None,
        address: str = "127.0.0.1",
        tls: Authority | None = None,
        cuts: Iterable[int] = (),
    ) -> None:
        self.upstream, self.rate, self.tls = port, rate, tls
        self.first: list[bytes] = []
        self.moved = 0  # bytes, both directions
        self._cuts = deque(cuts)
        self._lock, self._next = threading.Lock(), 0.0
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = Listener(self._serve, name="pipe", address=address)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._listener.stop()

    @property
    def host(self) -> str:
        return self._listener.host

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def connections(self) -> int:
        """The number of connections accepted so far."""
        return self._listener.accepted

    @property
    def open(self) -> int:
        return self._listener.open

    def freeze(self) -> None:
        """Stall: connections are accepted and stay open, but no bytes are forwarded."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def cut_connections(self) -> None:
        self._listener.abort_connections()

    def _serve(self, client: socket.socket, number: int) -> None:
        with self._lock:
            place = len(self.first)
            self.first.append(b"")
        with socket.create_connection(("127.0.0.1", self.upstream), 10) as server:
            server.settimeout(None)
            back = threading.Thread(target=self._pump, args=(server, client, None), name=f"pipe-{number}-back")
            back.start()
            try:
                self._pump(client, server, place)
            finally:
                abort(server)
                back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, place: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(_BLOCK):
                if place is not None and not self.first[place]:
                    self.first[place] = data[:64]
                if not self._may_move(len(data)):
                    break
                sink.sendall(data)
        for end in (source, sink):
            abort(end)

    def _may_move(self, size: int) -> bool:
        """Wait for permission to forward; return False if the relay stops or breaks this connection."""
        stopping = self._listener.stopping
        while not self._flowing.wait(_TICK):
            if stopping.is_set():
                return False
        with self._lock:
            self.moved += size
            if self._cuts and self.moved > self._cuts[0]:
                self._cuts.popleft()
                return False
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + size / self.rate if self.rate else turn
        return not stopping.wait(turn - now) if turn > now else not stopping.is_set()


class Front:
    """An HTTP proxy for a port of 127.0.0.1. Use with `with`.

    hook: gets each request (without its body) and may answer it, or block. alter: gets the request and the registry's
    complete reply, and returns the reply to send. journal: every request, and the maximum number in progress at once.
    upstream may be set later. tls: for clients; the registry behind it has none."""

    def __init__(
        self,
        upstream: int = 0,
        *,
        hook: Hook | None = None,
        alter: Callable[[Request, Reply], Reply] | None = None,
        tls: Authority | None = None,
        address: str = "127.0.0.1",
        name: str = "front",
    ) -> None:
        self.upstream, self.hook, self.alter, self.tls, self.name = upstream, hook, alter, tls, name
        self.journal = Journal()
        context = tls.server_context() if tls else None
        self._listener = Listener(self._serve, name=name, address=address, tls=context)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._listener.stop()

    @property
    def host(self) -> str:
        return self._listener.host

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}"

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def most_in_flight(self) -> int:
        """The maximum number of requests in progress at once since `journal.mark()`."""
        return self.journal.most_in_flight

    @property
    def connections(self) -> int:
        return self._listener.accepted

    def cut_connections(self) -> None:
        self._listener.abort_connections()

    def _serve(self, client: socket.socket, number: int) -> None:
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=120)
        try:
            with reader_of(client) as reader:
                while incoming := read_request(reader):
                    target = classify(incoming.method, incoming.target)
                    entry = self.journal.begin(target, incoming.method, incoming.target, incoming.headers, number)
                    try:
                        again = self._exchange(client, server, incoming, entry)
                    except http.client.HTTPException:
                        return  # the registry closed its connection, so close this one
                    finally:
                        entry.body_length = incoming.received
                        self.journal.end(entry)
                    if not again:
                        return
        finally:
            server.close()

    def _exchange(
        self, client: socket.socket, server: http.client.HTTPConnection, incoming: Incoming, entry: Logged
    ) -> bool:
        """Handle one request. Return whether the connection can be used again."""
        request = Request(
            incoming.method,
            incoming.target,
            incoming.headers,
            kind=entry.kind,
            repository=entry.repository,
            reference=entry.reference,
            connection=entry.connection,
        )
        if incoming.expects_continue:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.hook and (reply := self.hook(request)):
            for _ in incoming.body():
                pass
            return self._answer(client, incoming, entry, reply)
        response = _forward(server, incoming)
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOPS]
        if self.alter:
            reply = self.alter(request, Reply(response.status, headers, response.read()))
            return self._answer(client, incoming, entry, reply)
        entry.body_length, entry.status = incoming.received, response.status
        return self._relay(client, response, headers, entry) and incoming.keeps_alive

    def _answer(self, client: socket.socket, incoming: Incoming, entry: Logged, reply: Reply) -> bool:
        """Send a reply of the proxy itself."""
        body = b"" if incoming.method == "HEAD" else reply.body
        entry.body_length, entry.status, entry.size = incoming.received, reply.status, len(body)
        self.journal.end(entry)
        client.sendall(head_bytes(reply) + body)
        return incoming.keeps_alive

    def _relay(
        self, client: socket.socket, response: http.client.HTTPResponse, headers: Headers, entry: Logged
    ) -> bool:
        """Forward a reply as it arrives. Return whether its end is known without closing the connection."""
        bare = entry.method == "HEAD" or response.status in (204, 304)
        known = bare or response.getheader("Content-Length") is not None
        sent = headers if known else [*headers, ("Connection", "close")]
        last = head_bytes(Reply(response.status, sent, length=False, reason=response.reason))
        while piece := response.read(1 << 16):
            entry.size += len(piece)
            client.sendall(last)
            last = piece
        self.journal.end(entry)
        client.sendall(last)
        if not known:
            close(client)
        return known


def _forward(server: http.client.HTTPConnection, incoming: Incoming) -> http.client.HTTPResponse:
    server.putrequest(incoming.method, incoming.target, skip_host=True, skip_accept_encoding=True)
    for name, value in incoming.headers:
        if name.lower() not in _HOPS:
            server.putheader(name, value)
    chunked = "chunked" in (incoming.header("transfer-encoding") or "").lower()
    if chunked:
        server.putheader("Transfer-Encoding", "chunked")
    server.endheaders()
    for piece in _pieces(incoming, chunked=chunked):
        server.send(piece)
    return server.getresponse()


def _pieces(incoming: Incoming, *, chunked: bool) -> Iterator[bytes]:
    for piece in incoming.body():
        yield b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
    if chunked:
        yield b"0\r\n\r\n"
