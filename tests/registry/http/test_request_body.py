"""Uploads: bodies that are sent once, watched for an early response, and never look whole when they are not."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Any

import pytest

from mirror.errors import AuthError, Cancelled, LocalError, NetworkError, RemoteError
from mirror.registry.auth.authorizer import Anonymous, Scope, push
from mirror.registry.http.host_settings import TlsSettings
from mirror.registry.session import Response, Session
from mirror.util.cancellation import Stop, Work
from tests.registry.http.peers import Peer, Talk, peers, reply, whole
from tests.registry.http.sessions import PATIENT, STOPPED_WITHIN, session_with, work

BLOB = bytes(range(256)) * (16 << 10)  # 4 MiB
NEVER = 1 << 50  # bytes: the length of a body that is never sent whole, however large the buffers of sockets are
CREATED = whole("201 Created", b"", "Location: /v2/a/b/blobs/x")


class Renewing(Anonymous):
    """Sends a token, and takes note of refusals."""

    def __init__(self) -> None:
        self.challenges: list[Sequence[str]] = []

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        return "Bearer secret"

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        self.challenges.append(challenges)


def pieces(data: bytes = BLOB, size: int = 256 << 10) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), size):
        yield view[start : start + size]


def endless() -> Iterator[memoryview]:
    """A body that only its reader ends."""
    while True:
        yield from pieces()


def put(
    session: Session,
    body: Iterable[bytes | memoryview],
    *,
    length: int | None = len(BLOB),
    where: str = "/v2/a/b/blobs/uploads/u?_state=CANARY",
    **options: Any,
) -> Response:
    destination = session.url_policy.check_upload_location(
        where, session.url_policy.destination("/v2/a/b/blobs/uploads/")
    )
    options = {"work": work(), "kind": "blob", "scopes": push("a/b"), "expect": {201}, **options}
    return session.upload("PUT", destination, options.pop("work"), length=length, body=body, **options)


@pytest.mark.parametrize("length", [len(BLOB), None], ids=["counted", "chunked"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_body_arrives_as_it_is_and_the_connection_is_kept(length: int | None, secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": TlsSettings(ca=authority.ca)} if secure else {}
    with Peer(reply(CREATED), tls=tls) as peer, session_with(peer, **options) as session:
        for _ in range(2):
            response = put(session, [b"", *pieces(), b""], length=length)
            assert (201, "/v2/a/b/blobs/x") == (response.status, response.headers.get("location"))
        digests = {hashlib.sha256(request.body).hexdigest() for request in peer.requests}
        assert {hashlib.sha256(BLOB).hexdigest()} == digests
        assert (1, {"PUT blob": 2}) == (peer.connections, session.host.requests())
        assert (length is None) == ("transfer-encoding" in peer.requests[0].headers)


@pytest.mark.parametrize("length", [0, None])
def test_an_empty_body_is_a_body(length: int | None) -> None:
    with Peer(reply(CREATED)) as peer, session_with(peer) as session:
        assert 201 == put(session, [], length=length).status
        assert [b""] == [request.body for request in peer.requests]


class Watched:
    """A peer that notes what of a body it saw, and whether it looked whole."""

    def __init__(self) -> None:
        self.seen = b""
        self.head = b""

    def __call__(self, talk: Talk) -> None:
        self.head = talk.head() or b""
        self.seen = talk.until_gone()


def breaks(error: BaseException, after: int = 3) -> Iterator[bytes]:
    for _ in range(after):
        yield b"x" * 1000
    raise error


@pytest.mark.parametrize("length", [5000, 3000, None])
def test_a_body_that_breaks_cuts_the_connection_and_its_error_goes_through(length: int | None) -> None:
    watched = Watched()
    error = LocalError("the disk broke")
    with Peer(watched) as peer, session_with(peer) as session:
        with pytest.raises(LocalError) as caught:
            # The last bytes are the caller's to hold back: the error must come before them.
            put(session, breaks(error, after=2 if length == 3000 else 3), length=length)
        assert caught.value is error
        peer.settle()
        assert len(watched.seen) < (length or 10**9)
        assert not watched.seen.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("body", [[b"x" * 9], [b"x" * 6, b"x" * 5], []], ids=["short", "long", "empty"])
def test_a_body_of_another_length_is_not_completed(body: list[bytes]) -> None:
    watched = Watched()
    with Peer(watched) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, body, length=10)
        assert "size_mismatch" == caught.value.code
        peer.settle()
        assert len(watched.seen) < 10


def early(said: bytes, *, then: str, seconds: float = 10.0) -> Any:
    """Answer after the head, then do not read what follows: wait, close, or reset."""

    def script(talk: Talk) -> None:
        talk.head()
        talk.say(said)
        if then == "wait":
            talk.peer.wait_for(lambda: talk.peer.connections < 0, seconds)
        elif then == "reset":
            talk.reset()

    return script


@pytest.mark.parametrize("then", ["wait", "close", "reset"])
@pytest.mark.parametrize("length", [NEVER, None], ids=["counted", "chunked"])
def test_an_early_refusal_ends_the_sending_and_is_heard(then: str, length: int | None) -> None:
    said = whole("413 Too Large", b"<html>no</html>")
    with Peer(early(said, then=then)) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, endless(), length=length)
        if then != "reset":  # then the response may be lost on the way
            assert (413, False) == (caught.value.status, caught.value.retryable)
        peer.note(lambda: setattr(peer, "connections", -1))


@pytest.mark.parametrize("length", [NEVER, None], ids=["counted", "chunked"])
def test_a_success_that_comes_before_the_body_does_not_count(length: int | None) -> None:
    with Peer(early(CREATED, then="close")) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, endless(), length=length)
        assert ("bad_response", True) == (caught.value.code, caught.value.retryable)


def test_an_interim_response_does_not_end_the_sending() -> None:
    def script(talk: Talk) -> None:
        talk.head()
        talk.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Proc")
        threading.Event().wait(0.05)
        talk.say(b"essing\r\n\r\n")
        body = talk._exactly(len(BLOB))
        talk.say(CREATED if body == BLOB else whole("400 Other bytes"))

    with Peer(script) as peer, session_with(peer) as session:
        assert 201 == put(session, pieces()).status


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20"])
def test_a_peer_that_goes_away_in_mid_body_is_a_network_error(said: bytes) -> None:
    for end in (Talk.reset, lambda talk: talk.sock.close()):

        def script(talk: Talk, end: Any = end) -> None:
            talk.head()
            talk.say(said)
            end(talk)

        with Peer(script) as peer, session_with(peer) as session:
            with pytest.raises(NetworkError) as caught:
                put(session, pieces())
            assert caught.value.retryable
            assert caught.value.code in ("net_error", "truncated")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_peer_that_takes_nothing_is_too_slow(secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": TlsSettings(ca=authority.ca)} if secure else {}
    with Peer(early(b"", then="wait"), tls=tls) as peer:
        with session_with(peer, idle_timeout=0.3, **options) as session, pytest.raises(NetworkError) as caught:
            put(session, endless(), length=NEVER)
        assert "too_slow" == caught.value.code
        peer.note(lambda: setattr(peer, "connections", -1))


def test_a_small_request_with_a_big_body_has_a_deadline_too() -> None:
    with Peer(early(b"", then="wait")) as peer:
        with session_with(peer, idle_timeout=0.3, deadline=0.4) as session, pytest.raises(NetworkError) as caught:
            session.call("PUT", "/v2/a/b/manifests/x", work(retries=False), kind="m", body=BLOB * 4, expect={201})
        assert "timeout" == caught.value.code
        peer.note(lambda: setattr(peer, "connections", -1))


def test_a_peer_that_has_it_all_and_says_nothing_is_not_waited_for_for_ever() -> None:
    with Peer(lambda talk: talk.until_gone()) as peer, session_with(peer, idle_timeout=0.15) as session:
        with pytest.raises(NetworkError) as caught:
            put(session, [b"x"], length=1)
        assert ("timeout", True) == (caught.value.code, caught.value.retryable)


def test_a_stop_reaches_a_blocked_send() -> None:
    stop = Stop()
    with Peer(early(b"", then="wait", seconds=90.0)) as peer, session_with(peer, **PATIENT) as session:

        def body() -> Iterator[bytes]:
            yield b"x" * 1000
            timer.start()
            while True:
                yield BLOB

        timer = threading.Timer(0.1, stop.request, ("a signal",))
        begun = monotonic()
        with pytest.raises(Cancelled):
            put(session, body(), length=None, work=Work(stop))
        assert monotonic() - begun < STOPPED_WITHIN
        timer.join()
        peer.note(lambda: setattr(peer, "connections", -1))


def test_a_refused_login_lets_the_caller_start_again_with_a_new_one() -> None:
    keys = Renewing()
    script = reply(whole("401 Who", b"", 'WWW-Authenticate: Bearer realm="x"'))
    with Peer(script) as peer, session_with(peer, authorizer=keys) as session:
        with pytest.raises(AuthError) as caught:
            put(session, pieces())
        assert ("auth_failed", True, 401) == (caught.value.code, caught.value.retryable, caught.value.status)
        assert [['Bearer realm="x"']] == keys.challenges
        assert 1 == len(peer.requests)


@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_an_upload_is_never_redirected(status: str) -> None:
    with Peer(reply(whole(status, b"", "Location: /elsewhere"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError, match="redirect") as caught:
            put(session, pieces())
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


def test_an_upload_to_another_host_shows_no_credentials_and_no_query() -> None:
    keys = Renewing()
    with peers(reply(CREATED), reply(CREATED, whole("401 Who")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        with session_with(both[0], authorizer=keys) as session:
            where = f"http://{both[1].name}/upload?signature=CANARY"
            put(session, pieces(), where=where)
            with pytest.raises(AuthError) as caught:
                put(session, pieces(), where=where)
        assert ([], 2) == (both[0].requests, len(both[1].requests))
        assert not any("authorization" in request.headers for request in both[1].requests)
        assert (False, []) == (caught.value.retryable, keys.challenges)
        assert "CANARY" not in str(caught.value)
