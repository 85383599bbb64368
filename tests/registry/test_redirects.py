"""Redirects are followed only for reads, and without credentials outside the origin."""

from __future__ import annotations

import pytest

from mirror.errors import (
    AuthError,
    Refused,
    RemoteError,
)
from mirror.limits import Limits
from tests.registry.http.peers import Peer, peers, raw_response, reply
from tests.registry.http.sessions import (
    Keys,
    get,
    read_all,
    redirect_to,
    session_with,
)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_a_redirected_read_sends_no_credentials_to_another_host(method: str, status: str) -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed?X-Signature=CANARY"  # noqa: E731
    with peers(redirect_to(place, status), reply(raw_response("200 OK")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        found += both
        limits = Limits()
        with session_with(both[0], authorizer=Keys("Bearer secret"), limits=limits) as session:
            response = get(session, method=method, headers=(("Accept", "x/y"),), kind="blob")
        assert ["Bearer secret", None] == [peer.requests[0].headers.get("authorization") for peer in both]
        assert [f"{method} /signed?X-Signature=CANARY"] == both[1].targets()
        assert ("x/y", both[1].name) == (both[1].requests[0].headers["accept"], response.destination.origin.netloc)
        assert {both[0].name: {f"{method} blob": 1}, both[1].name: {f"{method} blob": 1}} == {
            host.name: host.requests() for host in limits.hosts()
        }


def test_a_redirect_within_the_origin_keeps_the_credentials() -> None:
    script = reply(raw_response("307 T", b"", "Location: /elsewhere?x=1"), raw_response("200 OK", b"blob"))
    with Peer(script) as peer, session_with(peer, authorizer=Keys("Bearer secret")) as session:
        assert b"blob" == read_all(session)
        assert ["Bearer secret"] * 2 == [request.headers["authorization"] for request in peer.requests]
        assert 1 == peer.connections


@pytest.mark.parametrize("place", ["/v2/a/b/tags/list", "/other"])
def test_a_redirect_loop_ends_after_five_redirects(place: str) -> None:
    with Peer(redirect_to(lambda: place)) as peer, session_with(peer) as session:
        with pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", 6) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest", "http://0.0.0.0:1/", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "//"]
)
def test_an_unsafe_redirect_is_not_followed(place: str) -> None:
    with Peer(redirect_to(lambda: place)) as peer, session_with(peer) as session:
        with pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", 1) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize("fields", [(), ("Location: /a", "Location: /b"), ("Location: ",)])
def test_a_redirect_must_have_a_location(fields: tuple[str, ...]) -> None:
    with Peer(reply(raw_response("302 Found", b"", *fields))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            get(session)
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_a_write_is_never_redirected(method: str, status: str) -> None:
    with Peer(redirect_to(lambda: "/elsewhere", status)) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError, match="redirect") as caught:
            get(session, method=method, body=b"body", expect={201, 202})
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


def test_a_401_of_another_host_is_final_and_its_403_starts_again_at_the_registry() -> None:
    for status, tries in (("401 Who", 1), ("403 Signature expired", 3)):
        found: list[Peer] = []
        place = lambda found=found: f"http://{found[1].name}/signed?s"  # noqa: E731
        script = reply(raw_response(status, b"", 'WWW-Authenticate: Basic realm="give"'))
        with peers(redirect_to(place), script, addresses=("127.0.0.2", "127.0.0.3")) as both:
            found += both
            keys = Keys("Bearer secret")
            with session_with(both[0], authorizer=keys) as session, pytest.raises(AuthError) as caught:
                get(session)
            assert ("auth_denied", []) == (caught.value.code, keys.challenges)
            assert [tries, tries] == [len(peer.requests) for peer in both]
            assert not any("authorization" in request.headers for request in both[1].requests)


def test_an_expected_status_is_returned_with_its_destination() -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed"  # noqa: E731
    with peers(redirect_to(place), reply(raw_response("403 No")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        found += both
        with session_with(both[0]) as session:
            response = get(session, method="HEAD", expect={200, 403}, kind="blob")
            assert (403, both[1].name) == (response.status, response.destination.origin.netloc)
            error = session.error_for(response, "HEAD", "blob")
            assert ("auth_denied", both[1].name) == (error.code, error.host)
