"""Opening connections: names, addresses, and who is at the other end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from mirror.errors import (
    Cancelled,
    Refused,
    Unreachable,
)
from mirror.registry.session import Session
from mirror.util.cancellation import Stop, Work
from tests.registry.http.dialling import OK, at, closed_port, get
from tests.registry.http.peers import Peer, answers, peers, whole
from tests.registry.http.sessions import PATIENT, STOPPED_WITHIN, session_with


def test_a_host_that_refuses_is_unreachable() -> None:
    with session_with(f"127.0.0.1:{closed_port()}") as session, pytest.raises(Unreachable) as caught:
        get(session)
    assert ("net_error", True) == (caught.value.code, caught.value.retryable)
    assert "refused" in str(caught.value)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_does_not_exist_is_unreachable(error: Exception) -> None:
    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        raise error

    with session_with("reg.example.com", resolve=resolve) as session, pytest.raises(Unreachable) as caught:
        get(session)
    assert "reg.example.com" in str(caught.value)
    assert "DNS" in caught.value.hint


def test_a_name_without_addresses_is_unreachable() -> None:
    with session_with("reg.example.com", resolve=at()) as session, pytest.raises(Unreachable):
        get(session)


def test_the_addresses_of_a_name_are_tried_in_turn() -> None:
    with Peer(answers(OK)) as peer:
        dead = closed_port()
        resolve = at(("127.0.0.1", dead), ("127.0.0.1", peer.port))
        with session_with(f"reg.example.com:{peer.port}", resolve=resolve) as session:
            assert b"yes" == get(session).body
        assert f"reg.example.com:{peer.port}" == peer.requests[0].headers["host"]
        many = at(*[("127.0.0.1", dead)] * 4, ("127.0.0.1", peer.port))
        with session_with("reg.example.com", resolve=many) as session, pytest.raises(Unreachable):
            get(session)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_a_connect_that_is_not_answered_ends() -> None:
    with black_hole() as port, session_with(f"127.0.0.1:{port}", connect_timeout=0.2) as session:
        with pytest.raises(Unreachable) as caught:
            get(session)
        assert "timeout" == caught.value.code


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[Work]:
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, ("a signal",))
    timer.start()
    begun = monotonic()
    yield Work(stop)
    assert monotonic() - begun < STOPPED_WITHIN
    timer.join()


def test_a_stop_reaches_a_blocked_connect() -> None:
    with (
        black_hole() as port,
        session_with(f"127.0.0.1:{port}", **PATIENT) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_a_stop_reaches_a_blocked_handshake() -> None:
    with (
        Peer(lambda talk: talk.until_gone()) as peer,
        session_with(peer, plain_http=False, **PATIENT) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_the_socket_sends_at_once_and_watches_for_dead_peers() -> None:
    with Peer(answers(OK)) as peer, session_with(peer) as session:
        connection = session._exchange._pool.take(session.trust.own("/"), Stop())
        options = [
            connection._sock.getsockopt(*option)
            for option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        ]
        connection.close()
        connection.abort()
        assert [1, 1] == [min(1, option) for option in options]


def redirecting(place: str) -> Any:
    return answers(whole("307 T", b"", f"Location: {place}"))


@pytest.mark.parametrize("address", ["169.254.169.254", "224.0.0.1", "0.0.0.0"])  # noqa: S104 - none is bound
def test_a_name_that_leads_to_a_forbidden_address_is_refused_before_a_connection(address: str) -> None:
    with Peer(redirecting("http://metadata.example:9/latest")) as peer:

        def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
            return list(at((peer.address if host == peer.address else address, port))(host, port))

        with session_with(peer, resolve=resolve) as session, pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", False) == (caught.value.code, caught.value.retryable)


def as_if_public(session: Session) -> None:
    """From here on the registry counts as met at a public address."""
    session.trust.check_peer(session.trust.own("/"), "1.1.1.1")


def test_a_public_registry_does_not_lead_to_this_machine() -> None:
    with peers(answers(OK, whole("307 T", b"", "Location: http://cdn.example:9/x")), answers(OK)) as both:
        inside = at(("127.0.0.1", both[1].port))
        own = at(("127.0.0.1", both[0].port))
        with session_with(
            "reg.example.com", resolve=lambda host, port: (inside if host == "cdn.example" else own)(host, port)
        ) as session:
            get(session)
            as_if_public(session)
            with pytest.raises(Refused) as caught:
                get(session)
            assert ("unsafe_redirect", 0, 0) == (caught.value.code, both[1].connections, len(both[1].requests))


def test_a_kept_connection_is_looked_at_again() -> None:
    place = "http://cdn.example:9/x"
    with peers(redirecting(place), answers(OK)) as both:
        addresses = {"cdn.example": both[1].port, "reg.example.com": both[0].port}
        resolve = lambda host, port: at(("127.0.0.1", addresses[host]))(host, port)  # noqa: E731
        with session_with("reg.example.com", resolve=resolve) as session:
            for _ in range(2):
                get(session)
            assert [1, 1] == [peer.connections for peer in both]
            as_if_public(session)
            with pytest.raises(Refused):
                get(session)
            assert 2 == len(both[1].requests)
