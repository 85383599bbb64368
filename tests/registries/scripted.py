"""A configurable registry: stateful, strict, over real HTTP/1.1, with fault rules and a request log."""

from __future__ import annotations

import base64
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from tests.registries.access import OWN_AGENT, Seen, Target, classify
from tests.registries.certificates import Authority
from tests.registries.client import Authorize, Client, Response
from tests.registries.exchange import Headers, Hook, Reply, Request
from tests.registries.faults import CONNECT, Fault, Faults
from tests.registries.features import Features
from tests.registries.gate import Gate
from tests.registries.http1 import BadRequest, Incoming, read_request, reader_of
from tests.registries.journal import Journal, Logged
from tests.registries.listener import Listener, reset
from tests.registries.process import eventually
from tests.registries.sending import Sender
from tests.registries.storage import Repository, Storage, Upload
from tests.registries.tokens import PATH as TOKEN_PATH
from tests.registries.tokens import TokenService
from tests.registries.v1 import V1
from tests.registries.v2 import Protocol
from tests.support.images import Graph


class ScriptedRegistry:
    """Use with `with`. It listens on a port that the system chooses; `stop` and `start` keep port and content.

    users: name -> password; alone: Basic. bearer: Bearer, with its own token service at /auth/token; or `tokens`:
    another service. tls: the authority of its certificate. address: another loopback address makes it another host.
    features: keywords of `Features`. Requests of the tests' own client are not counted and get no faults."""

    def __init__(
        self,
        name: str = "scripted",
        *,
        users: Mapping[str, str] | None = None,
        bearer: bool = False,
        tokens: TokenService | None = None,
        tls: Authority | None = None,
        address: str = "127.0.0.1",
        **features: Any,
    ) -> None:
        self.name, self.tls, self.users = name, tls, dict(users or {})
        self.features = Features(**features)
        self.storage, self.journal, self.faults = Storage(), Journal(), Faults()
        self.v1: V1 | None = None  # supports v1 as well
        self.hook: Hook | None = None  # sees each request first, and may answer it
        inbuilt = bearer and tokens is None
        self.tokens = TokenService(users=users, realm="inbuilt") if inbuilt else tokens
        self._gate = Gate(self.features, self.users, self.tokens)
        self._protocol = Protocol(self.storage, self.features)
        self._address, self._port = address, 0
        self._context = tls.client_context() if tls else None
        self._listener: Listener | None = None
        self.start()
        if inbuilt and self.tokens:
            self.tokens.realm = f"{self.url}{TOKEN_PATH}"

    # ---- life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen, on the same port as before, if any."""
        context = self.tls.server_context() if self.tls else None
        self._listener = Listener(
            self._serve, name=self.name, tls=context, address=self._address, port=self._port, greet=self._greet
        )
        self._port = self._listener.port
        self._listener.start()
        return self

    def stop(self) -> None:
        """Abort all connections and stop listening; new connections are refused."""
        if self._listener:
            self._listener.stop()

    def cut_connections(self) -> None:
        """Abort all open connections, and keep listening."""
        self._listening.abort_connections()

    @property
    def _listening(self) -> Listener:
        if self._listener is None:
            raise RuntimeError(f"{self.name} never started")
        return self._listener

    @property
    def host(self) -> str:
        return f"{self._address}:{self._port}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}"

    @property
    def connections(self) -> int:
        """The number of connections accepted so far."""
        return self._listening.accepted

    # ---- telling it what to do

    def fault(self, kind: str, **rule: Any) -> Fault:
        """Add a rule. The fields of `Fault` define which requests and how: `fault("GET blob", nth=2,
        cut_after=1024)`."""
        return self.faults.add(Fault(kind, **rule))

    def load(self, repository: str, graph: Graph) -> Repository:
        """Load a graph without a request. Return the repository's content, which may be changed at will."""
        return self.storage.load(repository, graph)

    def create(self, repository: str) -> Repository:
        """Create an empty repository."""
        with self.storage.lock:
            return self.storage.make(repository)

    @property
    def uploads(self) -> list[Upload]:
        """Return the upload sessions that were neither committed nor cancelled."""
        with self.storage.lock:
            return list(self.storage.uploads.values())

    def wait_until_no_uploads(self) -> bool:
        """Wait until no upload session is open. On a busy machine, a DELETE is processed after its client timed out."""
        return eventually(lambda: not self.uploads, within=60)

    # ---- what it was asked, and what it holds; as for a real registry

    def mark(self) -> None:
        self.journal.mark()

    @property
    def log(self) -> list[Logged]:
        return self.journal.entries

    def requests(self) -> list[Seen]:
        return self.journal.requests()

    def counts(self, *, status: int | None = None) -> Counter[str]:
        return self.journal.counts(status=status)

    def writes(self) -> list[Seen]:
        return self.journal.writes()

    def client(self, *, agent: str = OWN_AGENT) -> Client:
        """Return a client of the tests; with another agent, its requests count and get faults."""
        return Client(self.host, tls=self._context, authorize=self._authorize(), agent=agent)

    def tags(self, repository: str) -> list[str]:
        with self.client() as client:
            return client.tags(repository)

    def manifest(self, repository: str, reference: str) -> Response:
        with self.client() as client:
            return client.manifest(repository, reference)

    def has_blob(self, repository: str, digest: str) -> bool:
        with self.storage.lock:
            return self.storage.blob(repository, digest) is not None

    def _authorize(self) -> Authorize | None:
        if self.tokens:
            return self.tokens.own_token
        if self.users:
            basic = base64.b64encode(":".join(next(iter(self.users.items()))).encode()).decode()
            return lambda _: f"Basic {basic}"
        return None

    # ---- serving

    def _greet(self, connection: socket.socket) -> bool:
        fault = self.faults.take(Target(CONNECT))
        if fault is None:
            return True
        sender = Sender(connection, self._listening.stopping)
        sender.pause(fault.delay)
        if fault.stall:
            sender.hold(fault.stall)
        if fault.raw is not None:
            connection.sendall(fault.raw)
            connection.recv(1 << 16)  # read what the client began to send; else close() would reset the connection
        if fault.reset:
            reset(connection)
        return not (fault.raw is not None or fault.reset)

    def _serve(self, connection: socket.socket, number: int) -> None:
        sender = Sender(connection, self._listening.stopping)
        with reader_of(connection) as reader:
            while incoming := read_request(reader):
                target = self._classify(incoming)
                logged = self.journal.begin(target, incoming.method, incoming.target, incoming.headers, number)
                try:
                    again = self._exchange(sender, incoming, target, logged)
                finally:
                    logged.body_length = incoming.received
                    self.journal.end(logged)
                if not again:
                    return

    def _classify(self, incoming: Incoming) -> Target:
        return classify(incoming.method, self._path(incoming.target))

    def _path(self, target: str) -> str:
        """Return the path below /v2/ of an upload session that has another prefix."""
        prefix = self.features.upload_prefix
        if not prefix or not target.startswith(prefix):
            return target
        path, mark, query = target.removeprefix(prefix).partition("?")
        repository, _, session = path.rpartition("/")
        return f"/v2/{repository}/blobs/uploads/{session}{mark}{query}"

    def _exchange(self, sender: Sender, incoming: Incoming, target: Target, logged: Logged) -> bool:
        """Handle one request. Return whether the connection can be used again."""
        fault = None if logged.ours else self.faults.take(target)
        if fault and fault.early:
            return self._refuse_early(sender, incoming, target, logged, fault)
        if incoming.expects_continue:
            sender.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = self._whole(incoming, target, logged.connection, fault)
        logged.body_length = incoming.received
        if fault and fault.cut_request_after is not None:
            return sender.cut(fault)
        if fault:
            sender.pause(fault.delay)
            sender.hold_before(fault)
        reply = self._reply(request, fault, ours=logged.ours)
        if fault:
            sender.hold_after(fault)
        bodiless = incoming.method == "HEAD"
        if not (fault and fault.says_nothing):
            logged.status, logged.size = reply.status, 0 if bodiless else len(reply.body)
        if not (fault and fault.lingers):
            self.journal.end(logged)
        again = sender.send(reply, bodiless=bodiless, fault=fault)
        return again and incoming.keeps_alive and not _closes(reply)

    def _refuse_early(self, sender: Sender, incoming: Incoming, target: Target, logged: Logged, fault: Fault) -> bool:
        """Answer before the body is read, and close."""
        reply = fault.reply(self._request(incoming, target, logged.connection), None)
        logged.status, logged.size = reply.status, len(reply.body)
        reply = replace(reply, headers=(*reply.headers, ("Connection", "close")))
        sender.send(reply, bodiless=incoming.method == "HEAD", fault=fault)
        return sender.cut(fault)

    def _request(self, incoming: Incoming, target: Target, connection: int) -> Request:
        return Request(
            incoming.method,
            self._path(incoming.target),
            incoming.headers,
            kind=target.kind,
            repository=target.repository,
            reference=target.reference,
            connection=connection,
        )

    def _whole(self, incoming: Incoming, target: Target, connection: int, fault: Fault | None) -> Request:
        """Return the request with the part of its body that a fault lets through. The session may keep the bytes of a
        truncated PATCH."""
        request, body = self._request(incoming, target, connection), bytearray()
        limit = fault.cut_request_after if fault else None
        cut = limit is not None
        try:
            for piece in incoming.body(limit):
                body += piece
        except BadRequest:
            cut = True
            raise
        finally:
            if cut and self.features.keeps_partial and request.kind == "PATCH upload":
                self._protocol(replace(request, body=bytes(body), headers=_but_range(request.headers)))
        return replace(request, body=bytes(body if fault is None or fault.accept is None else body[: fault.accept]))

    def _reply(self, request: Request, fault: Fault | None, *, ours: bool) -> Reply:
        if not ours and self.hook and (reply := self.hook(request)):
            return reply
        if fault and fault.hook and (reply := fault.hook(request)):
            return reply
        own = self._carry_out(request) if fault is None or fault.carries_out else None
        return fault.reply(request, own) if fault else own or Reply(500)

    def _carry_out(self, request: Request) -> Reply:
        if self.tokens and (reply := self.tokens(request)):
            return reply
        if self.v1 and request.path.startswith("/v1/"):
            return self.v1(request)
        return self._gate.refusal(request) or self._protocol(request)


def _but_range(headers: Headers) -> Headers:
    return [header for header in headers if header[0].lower() != "content-range"]


def _closes(reply: Reply) -> bool:
    return any(name.lower() == "connection" and value.lower() == "close" for name, value in reply.headers)
