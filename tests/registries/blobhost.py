"""A host that registries redirect clients to for blobs; it accepts no credentials."""

from __future__ import annotations

import socket
from typing import Self

from tests.registries.certificates import Authority
from tests.registries.exchange import Headers, Reply, Request
from tests.registries.http1 import head_bytes, simple_exchanges
from tests.registries.listener import Listener
from tests.registries.storage import Storage
from tests.registries.uploads import blob_reply


class BlobHost:
    """Serves the blobs of a `Storage` under URLs that look signed, on another loopback address. Use with `with`.

    A request with Authorization gets 400, since it would have two kinds of authentication. head: the status of HEAD
    (403: signed for GET only). seen: each request with its headers."""

    def __init__(
        self, storage: Storage, *, head: int = 403, address: str = "127.0.0.2", tls: Authority | None = None
    ) -> None:
        self.storage, self._head = storage, head
        self.seen: list[Request] = []
        self._scheme = "https" if tls else "http"
        context = tls.server_context() if tls else None
        self._listener = Listener(self._serve, name="blob-host", address=address, tls=context)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.stop()

    @property
    def host(self) -> str:
        return self._listener.host

    def url_of(self, digest: str) -> str:
        """Return the URL of a blob, for `Features.blob_redirect`."""
        return f"{self._scheme}://{self.host}/blobs/{digest}?X-Signature=signed-for-get"

    def _serve(self, connection: socket.socket, number: int) -> None:
        for incoming, body in simple_exchanges(connection):
            request = Request(incoming.method, incoming.target, incoming.headers, body, connection=number)
            self.seen.append(request)
            reply = self._reply(request)
            connection.sendall(head_bytes(reply) + (b"" if request.method == "HEAD" else reply.body))

    def _reply(self, request: Request) -> Reply:
        plain: Headers = (("Content-Type", "application/xml"),)
        if request.header("Authorization"):
            return Reply(400, plain, b"<Error><Code>InvalidArgument</Code></Error>")
        if request.method == "HEAD" and self._head != 200:
            return Reply(self._head, plain)
        data = self.storage.bytes.get(request.path.rpartition("/")[2])
        return Reply(404, plain) if data is None else blob_reply(request, data, ranges=True)
