"""Every wait has a time limit, and a stop interrupts it."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import pytest

from mirror.errors import (
    Cancelled,
    NetworkError,
)
from mirror.util.cancellation import Stop, Work
from tests.registry.http.peers import Peer, PeerConnection, Script, raw_response, reply
from tests.registry.http.sessions import (
    LONG_TIMEOUTS,
    get,
    read_all,
    send_and_hang,
    session_with,
    stopped_when,
    tls_with_ca,
    work,
)


def send_slowly(first: bytes, drip: bytes, every: float = 0.03) -> Script:
    def script(conn: PeerConnection) -> None:
        if conn.read_request() is None:
            return
        conn.send(first)
        gone = threading.Event()

        def watch() -> None:
            conn.read_to_end()
            gone.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        while not gone.wait(every):
            conn.send(drip)
        watcher.join()

    return script


HANGS: dict[str, tuple[Script, str]] = {
    "silence": (lambda conn: conn.read_to_end(), "timeout"),
    "silence in the head": (send_slowly(b"HTTP/1.1 200 OK\r\nA:", b""), "too_slow"),
    "a dripping head": (send_slowly(b"HTTP/1.1 200 OK\r\n", b"A"), "too_slow"),
    "a flood of interim heads": (
        send_slowly(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0001),
        "too_slow",
    ),
    "a dripping body": (send_slowly(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x"), "too_slow"),
    "dripping chunks": (
        send_slowly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        "too_slow",
    ),
}


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_a_small_request_ends_at_its_deadline(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3, deadline=0.4) as session:
        with pytest.raises(NetworkError) as caught:
            get(session, retries=False)
        assert (code, True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_a_stream_below_the_minimum_rate_is_an_error(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3) as session:
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert (code, True) == (caught.value.code, caught.value.retryable)


def test_a_body_above_the_minimum_rate_has_no_time_limit() -> None:
    with (
        Peer(send_slowly(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 20_000)) as peer,
        session_with(peer, idle_timeout=1.0) as session,
        session.stream("/x", work(), kind="blob") as stream,
    ):
        started, got, view = monotonic(), 0, memoryview(bytearray(1000))
        while monotonic() - started < 2.2:  # more than two idle timeouts
            got += stream.readinto(view)
        assert got > 1000


def test_a_body_that_breaks_off_is_an_error() -> None:
    def script(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 99)

    with Peer(script) as peer, session_with(peer) as session:
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert ("truncated", peer.name) == (caught.value.code, caught.value.host)


HEADS = [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"]


@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_stop_interrupts_a_blocked_read(first: bytes, secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": tls_with_ca(authority)} if secure else {}
    with Peer(send_and_hang(first), tls=tls) as peer, session_with(peer, **LONG_TIMEOUTS, **options) as session:
        with stopped_when(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            get(session, work=doomed)
        peer.requests.clear()
        with stopped_when(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            read_all(session, work=doomed)


def test_a_stop_is_not_the_end_of_a_body() -> None:
    sent_bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"  # complete if the connection ended here
    with (
        Peer(send_and_hang(sent_bytes)) as peer,
        session_with(peer, **LONG_TIMEOUTS) as session,
        stopped_when(peer, lambda: bool(peer.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        read_all(session, work=doomed)


def test_no_request_is_sent_after_a_stop() -> None:
    with Peer(reply(raw_response("200 OK"))) as peer, session_with(peer) as session:
        stop = Stop()
        stop.request("done")
        for _ in range(2):
            with pytest.raises(Cancelled):
                get(session, work=Work(stop))
        assert [] == peer.requests


def test_a_stop_ends_a_wait_between_attempts() -> None:
    with (
        Peer(reply(raw_response("429 Slow down", b"", "Retry-After: 60"))) as peer,
        session_with(peer) as session,
    ):
        stop = Stop()
        timer = threading.Timer(0.1, stop.request, ("enough",))
        timer.start()
        started = monotonic()
        with pytest.raises(Cancelled):
            get(session, work=Work(stop))
        assert monotonic() - started < 50  # seconds; the server requested a wait of a minute
        timer.join()
