"""Helpers for tests of opening connections."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import trustme

from mirror.registry.session import Response, Session
from tests.registry.http.peers import Peer, raw_response
from tests.registry.http.sessions import session_with, work

OK = raw_response("200 OK", b"yes")


def get(session: Session, where: str = "/v2/", **options: Any) -> Response:
    return session.call("GET", where, options.pop("work", work(retries=False)), kind="ping", expect={200}, **options)


def at(*addresses: tuple[str, int]) -> Any:
    """Return a resolver that returns these addresses for every name."""

    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    return resolve


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server_context:
        return int(server_context.getsockname()[1])


def server_context(certificates: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.issue_cert(*(names or ("127.0.0.1",)), **options).configure_cert(context)
    return context


def https_session(peer: Peer | str, **options: Any) -> Session:
    return session_with(peer, plain_http=False, **options)
