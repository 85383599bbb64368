"""Opening connections: name lookups, addresses, timeouts, and the check of the peer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from mirror.errors import (
    Cancelled,
    NetworkError,
    Refused,
    Unreachable,
)
from mirror.registry.http.dialer import AbortableSockets, Dialer, interleave
from mirror.registry.session import Session
from mirror.util.cancellation import Stop, Work
from tests.registry.http.dialling import OK, at, closed_port, get
from tests.registry.http.peers import Peer, peers, raw_response, reply
from tests.registry.http.sessions import LONG_TIMEOUTS, STOPPED_WITHIN, session_with
from tests.support import leftovers


def test_a_host_that_refuses_connections_is_unreachable() -> None:
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


@contextlib.contextmanager
def unresponsive_port() -> Iterator[int]:
    """Yield a port that does not respond to SYN, because its accept queue is full."""
    with contextlib.ExitStack() as stack:
        server_context = stack.enter_context(socket.socket())
        server_context.bind(("127.0.0.1", 0))
        server_context.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server_context.getsockname())
        yield server_context.getsockname()[1]


def test_all_addresses_of_a_host_are_tried() -> None:
    with Peer(reply(OK)) as peer:
        dead = closed_port()
        for count in (1, 4):
            resolve = at(*[("127.0.0.1", dead)] * count, ("127.0.0.1", peer.port))
            with session_with(f"reg.example.com:{peer.port}", resolve=resolve) as session:
                assert b"yes" == get(session).body
        assert f"reg.example.com:{peer.port}" == peer.requests[0].headers["host"]


def test_an_address_that_does_not_respond_does_not_delay_the_next_one() -> None:
    with unresponsive_port() as dead, Peer(reply(OK)) as peer:
        resolve = at(*[("127.0.0.1", dead)] * 4, ("127.0.0.1", peer.port))
        with session_with("reg.example.com", resolve=resolve, connect_timeout=60.0) as session:
            started = monotonic()
            assert b"yes" == get(session).body
            assert monotonic() - started < 30.0  # with the timeouts of all four: 240 s


def test_a_pending_attempt_may_still_succeed_after_the_other_addresses_failed() -> None:
    with unresponsive_port() as dead:
        dialer = Dialer(AbortableSockets(), lambda address: None, deadline=monotonic() + 0.5, stop=Stop())
        with pytest.raises(TimeoutError):
            dialer.connect(at(("127.0.0.1", dead), ("127.0.0.1", closed_port()))("", 0))


def test_an_address_family_that_this_machine_does_not_support_is_skipped() -> None:
    with Peer(reply(OK)) as peer:
        unknown = (socket.AF_APPLETALK, socket.SOCK_STREAM, 6, "", ("::1", 1))
        dialer = Dialer(AbortableSockets(), lambda address: None, deadline=monotonic() + 5.0, stop=Stop())
        sock, _ = dialer.connect([unknown, *at(("127.0.0.1", peer.port))("", 0)])
        sock.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOBUFS])
def test_a_socket_whose_options_cannot_be_set_is_closed(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(sock: socket.socket) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mirror.registry.http.dialer.enable_keepalive", fail)
    before = leftovers.take()
    dialer = Dialer(AbortableSockets(), lambda address: None, deadline=monotonic() + 5.0, stop=Stop())
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        dialer.connect(at(*[("127.0.0.1", closed_port())] * 2)("", 0))
    assert number == caught.value.errno
    assert [] == (leftovers.take() - before).describe()


def test_address_families_alternate() -> None:
    """Source: RFC 8305, 4."""
    four, six = socket.AF_INET, socket.AF_INET6
    found = [(family, socket.SOCK_STREAM, 6, "", (name, 1)) for family, name in [
        (six, "a"), (six, "b"), (six, "c"), (six, "d"), (four, "e"), (four, "f"),
    ]]  # fmt: skip
    assert ["a", "e", "b", "f", "c", "d"] == [info[4][0] for info in interleave(found)]
    assert [] == interleave([])


def test_a_forbidden_address_ends_the_search_except_for_pending_attempts() -> None:
    def check(address: str) -> None:
        if address == "127.0.0.2":
            raise Refused("not there", code="unsafe_redirect")

    with unresponsive_port() as dead, Peer(reply(OK)) as peer, Peer(reply(OK), address="127.0.0.2") as forbidden:
        first, second, third = ("127.0.0.1", dead), ("127.0.0.2", forbidden.port), ("127.0.0.1", peer.port)

        def connected(*addresses: tuple[str, int]) -> int:
            dialer = Dialer(AbortableSockets(), check, deadline=monotonic() + 1.0, stop=Stop())
            sock, _ = dialer.connect(at(*addresses)("", 0))
            with sock:
                return int(sock.getpeername()[1])

        with pytest.raises(Refused):
            connected(first, second, third)
        assert peer.port == connected(third, second)
        assert 0 == forbidden.connections


@contextlib.contextmanager
def hanging_lookup() -> Iterator[Any]:
    """Yield a resolver that hangs until the end of the test."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        threads.append(threading.current_thread())
        over.wait(60.0)
        return []

    yield resolve
    over.set()
    for thread in threads:
        thread.join()
    assert 1 == len(threads), "one for all that wait for the same name"


def test_a_lookup_that_hangs_ends_at_the_connect_timeout() -> None:
    with (
        hanging_lookup() as resolve,
        session_with("reg.example.com", resolve=resolve, connect_timeout=0.1) as session,
    ):
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                get(session)
            assert "timeout" == caught.value.code
            assert "DNS" in caught.value.hint


def test_a_stop_interrupts_a_lookup_that_hangs() -> None:
    with (
        hanging_lookup() as resolve,
        session_with("reg.example.com", resolve=resolve, **LONG_TIMEOUTS) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_the_connect_timeout_applies_to_all_steps_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup uses up most of it, by a clock that jumps; the handshake gets no response."""
    passed = [0.0]
    for module in ("connector", "dialer", "lookups"):
        monkeypatch.setattr(f"mirror.registry.http.{module}.monotonic", lambda: monotonic() + passed[0])

    def slow(host: str, port: int) -> Any:
        passed[0] = 89.0
        return at(("127.0.0.1", peer.port))(host, port)

    with (
        Peer(lambda conn: conn.read_to_end()) as peer,
        session_with("reg.example.com", plain_http=False, resolve=slow, connect_timeout=90.0) as session,
    ):
        started = monotonic()
        with pytest.raises(NetworkError) as caught:
            get(session)
        assert "timeout" == caught.value.code
        assert monotonic() - started < 60.0  # seconds; 90 if the handshake had a timeout of its own


def test_a_connect_without_a_response_times_out() -> None:
    with unresponsive_port() as port, session_with(f"127.0.0.1:{port}", connect_timeout=0.2) as session:
        with pytest.raises(Unreachable) as caught:
            get(session)
        assert "timeout" == caught.value.code


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[Work]:
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, ("a signal",))
    timer.start()
    started = monotonic()
    yield Work(stop)
    assert monotonic() - started < STOPPED_WITHIN
    timer.join()


def test_a_stop_interrupts_a_blocked_connect() -> None:
    with (
        unresponsive_port() as port,
        session_with(f"127.0.0.1:{port}", **LONG_TIMEOUTS) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_a_stop_interrupts_a_blocked_handshake() -> None:
    with (
        Peer(lambda conn: conn.read_to_end()) as peer,
        session_with(peer, plain_http=False, **LONG_TIMEOUTS) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_sockets_have_no_delay_and_keepalive() -> None:
    with Peer(reply(OK)) as peer, session_with(peer) as session:
        connection = session._client._pool.acquire(session.url_policy.destination("/"), Stop())
        options = [
            connection._sock.getsockopt(*option)
            for option in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            )
        ]
        connection.close()
        connection.abort()
        assert [1, 1] == [min(1, option) for option in options[:2]]
        assert options[2] < 60, "seconds: below what middleboxes forget"


def redirect_script(place: str) -> Any:
    return reply(raw_response("307 T", b"", f"Location: {place}"))


@pytest.mark.parametrize("address", ["169.254.169.254", "224.0.0.1", "0.0.0.0"])  # noqa: S104 - none is bound
def test_a_name_with_a_forbidden_address_is_refused_before_a_connection_is_opened(address: str) -> None:
    with Peer(redirect_script("http://metadata.example:9/latest")) as peer:

        def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
            return list(at((peer.address if host == peer.address else address, port))(host, port))

        with session_with(peer, resolve=resolve) as session, pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", False) == (caught.value.code, caught.value.retryable)


def pretend_public(session: Session) -> None:
    """Let the session treat the address of the registry as public."""
    session.url_policy.check_peer(session.url_policy.destination("/"), "1.1.1.1")


def test_a_public_registry_cannot_redirect_to_this_machine() -> None:
    with peers(reply(OK, raw_response("307 T", b"", "Location: http://cdn.example:9/x")), reply(OK)) as both:
        inside = at(("127.0.0.1", both[1].port))
        own = at(("127.0.0.1", both[0].port))
        with session_with(
            "reg.example.com", resolve=lambda host, port: (inside if host == "cdn.example" else own)(host, port)
        ) as session:
            get(session)
            pretend_public(session)
            with pytest.raises(Refused) as caught:
                get(session)
            assert ("unsafe_redirect", 0, 0) == (caught.value.code, both[1].connections, len(both[1].requests))


def test_the_address_of_a_kept_connection_is_checked_again() -> None:
    place = "http://cdn.example:9/x"
    with peers(redirect_script(place), reply(OK)) as both:
        addresses = {"cdn.example": both[1].port, "reg.example.com": both[0].port}
        resolve = lambda host, port: at(("127.0.0.1", addresses[host]))(host, port)  # noqa: E731
        with session_with("reg.example.com", resolve=resolve) as session:
            for _ in range(2):
                get(session)
            assert [1, 1] == [peer.connections for peer in both]
            pretend_public(session)
            with pytest.raises(Refused):
                get(session)
            assert 2 == len(both[1].requests)
