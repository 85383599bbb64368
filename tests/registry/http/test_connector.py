"""Opening connections: names, addresses, and who is at the other end."""

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
from tests.registry.http.peers import Peer, peers, reply, whole
from tests.registry.http.sessions import PATIENT, STOPPED_WITHIN, session_with
from tests.support import leftovers


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


def test_the_addresses_of_a_name_are_tried_in_turn() -> None:
    with Peer(reply(OK)) as peer:
        dead = closed_port()
        for count in (1, 4):
            resolve = at(*[("127.0.0.1", dead)] * count, ("127.0.0.1", peer.port))
            with session_with(f"reg.example.com:{peer.port}", resolve=resolve) as session:
                assert b"yes" == get(session).body
        assert f"reg.example.com:{peer.port}" == peer.requests[0].headers["host"]


def test_an_address_that_does_not_answer_does_not_hold_up_the_next() -> None:
    with black_hole() as dead, Peer(reply(OK)) as peer:
        resolve = at(*[("127.0.0.1", dead)] * 4, ("127.0.0.1", peer.port))
        with session_with("reg.example.com", resolve=resolve, connect_timeout=60.0) as session:
            begun = monotonic()
            assert b"yes" == get(session).body
            assert monotonic() - begun < 30.0  # four timeouts: 240 s


def test_an_address_that_does_not_answer_is_waited_for_when_the_others_have_failed() -> None:
    with black_hole() as dead:
        dialer = Dialer(AbortableSockets(), lambda address: None, deadline=monotonic() + 0.5, stop=Stop())
        with pytest.raises(TimeoutError):
            dialer.connect(at(("127.0.0.1", dead), ("127.0.0.1", closed_port()))("", 0))


def test_a_family_that_this_machine_does_not_have_is_passed_over() -> None:
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


def test_families_of_addresses_take_turns() -> None:
    """Source: RFC 8305, 4."""
    four, six = socket.AF_INET, socket.AF_INET6
    found = [(family, socket.SOCK_STREAM, 6, "", (name, 1)) for family, name in [
        (six, "a"), (six, "b"), (six, "c"), (six, "d"), (four, "e"), (four, "f"),
    ]]  # fmt: skip
    assert ["a", "e", "b", "f", "c", "d"] == [info[4][0] for info in interleave(found)]
    assert [] == interleave([])


def test_an_address_that_is_refused_ends_the_search_but_for_those_that_were_begun() -> None:
    def check(address: str) -> None:
        if address == "127.0.0.2":
            raise Refused("not there", code="unsafe_redirect")

    with black_hole() as dead, Peer(reply(OK)) as peer, Peer(reply(OK), address="127.0.0.2") as forbidden:
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
    """A resolver that hangs until the test is over."""
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


def test_a_look_up_that_hangs_ends_with_the_time_for_a_connection() -> None:
    with (
        hanging_lookup() as resolve,
        session_with("reg.example.com", resolve=resolve, connect_timeout=0.1) as session,
    ):
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                get(session)
            assert "timeout" == caught.value.code
            assert "DNS" in caught.value.hint


def test_a_stop_reaches_a_look_up_that_hangs() -> None:
    with (
        hanging_lookup() as resolve,
        session_with("reg.example.com", resolve=resolve, **PATIENT) as session,
        stopped_after(0.1) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)


def test_one_time_is_for_all_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up takes most of it by a clock that jumps, the handshake is not answered."""
    passed = [0.0]
    for module in ("connector", "dialer", "lookups"):
        monkeypatch.setattr(f"mirror.registry.http.{module}.monotonic", lambda: monotonic() + passed[0])

    def slow(host: str, port: int) -> Any:
        passed[0] = 89.0
        return at(("127.0.0.1", peer.port))(host, port)

    with (
        Peer(lambda talk: talk.until_gone()) as peer,
        session_with("reg.example.com", plain_http=False, resolve=slow, connect_timeout=90.0) as session,
    ):
        begun = monotonic()
        with pytest.raises(NetworkError) as caught:
            get(session)
        assert "timeout" == caught.value.code
        assert monotonic() - begun < 60.0  # seconds; a time of its own for the handshake makes it 90


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


def redirecting(place: str) -> Any:
    return reply(whole("307 T", b"", f"Location: {place}"))


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
    session.url_policy.check_peer(session.url_policy.destination("/"), "1.1.1.1")


def test_a_public_registry_does_not_lead_to_this_machine() -> None:
    with peers(reply(OK, whole("307 T", b"", "Location: http://cdn.example:9/x")), reply(OK)) as both:
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
    with peers(redirecting(place), reply(OK)) as both:
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
