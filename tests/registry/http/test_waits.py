"""Every wait has an end, and a stop reaches it."""

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
from tests.registry.http.peers import Peer, Script, Talk, reply, whole
from tests.registry.http.sessions import (
    PATIENT,
    get,
    hanging,
    read_all,
    session_with,
    stopped_soon,
    trusting,
    work,
)


def dripping(first: bytes, drip: bytes, every: float = 0.03) -> Script:
    def script(talk: Talk) -> None:
        if talk.request() is None:
            return
        talk.say(first)
        gone = threading.Event()

        def watch() -> None:
            talk.until_gone()
            gone.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        while not gone.wait(every):
            talk.say(drip)
        watcher.join()

    return script


HANGS: dict[str, tuple[Script, str]] = {
    "silence": (lambda talk: talk.until_gone(), "timeout"),
    "silence in the head": (dripping(b"HTTP/1.1 200 OK\r\nA:", b""), "too_slow"),
    "a dripping head": (dripping(b"HTTP/1.1 200 OK\r\n", b"A"), "too_slow"),
    "a flood of interim heads": (
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0001),
        "too_slow",
    ),
    "a dripping body": (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x"), "too_slow"),
    "dripping chunks": (dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"), "too_slow"),
}


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_no_peer_outlasts_a_small_requests_deadline(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3, deadline=0.4) as session:
        with pytest.raises(NetworkError) as caught:
            get(session, retries=False)
        assert (code, True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_no_peer_keeps_a_stream_below_the_floor(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3) as session:
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert (code, True) == (caught.value.code, caught.value.retryable)


def test_a_body_above_the_floor_may_take_its_time() -> None:
    with (
        Peer(dripping(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 20_000)) as peer,
        session_with(peer, idle_timeout=1.0) as session,
        session.stream("/x", work(), kind="blob") as stream,
    ):
        begun, got, view = monotonic(), 0, memoryview(bytearray(1000))
        while monotonic() - begun < 2.2:  # more than two times of what a body may be idle
            got += stream.readinto(view)
        assert got > 1000


def test_a_body_that_breaks_off_is_never_its_end() -> None:
    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 99)

    with Peer(script) as peer, session_with(peer) as session:
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert ("truncated", peer.name) == (caught.value.code, caught.value.host)


HEADS = [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"]


@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_stop_reaches_a_blocked_read(first: bytes, secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": trusting(authority)} if secure else {}
    with Peer(hanging(first), tls=tls) as peer, session_with(peer, **PATIENT, **options) as session:
        with stopped_soon(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            get(session, work=doomed)
        peer.requests.clear()
        with stopped_soon(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            read_all(session, work=doomed)


def test_a_stop_is_never_taken_for_the_end_of_a_body() -> None:
    said = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"  # which an end of the connection would complete
    with (
        Peer(hanging(said)) as peer,
        session_with(peer, **PATIENT) as session,
        stopped_soon(peer, lambda: bool(peer.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        read_all(session, work=doomed)


def test_stopped_work_sends_nothing() -> None:
    with Peer(reply(whole("200 OK"))) as peer, session_with(peer) as session:
        stop = Stop()
        stop.request("done")
        for _ in range(2):
            with pytest.raises(Cancelled):
                get(session, work=Work(stop))
        assert [] == peer.requests


def test_a_stop_ends_a_wait_between_two_tries() -> None:
    with (
        Peer(reply(whole("429 Slow down", b"", "Retry-After: 60"))) as peer,
        session_with(peer) as session,
    ):
        stop = Stop()
        timer = threading.Timer(0.1, stop.request, ("enough",))
        timer.start()
        begun = monotonic()
        with pytest.raises(Cancelled):
            get(session, work=Work(stop))
        assert monotonic() - begun < 50  # rather than the minute that it was asked to wait
        timer.join()
