"""The log of HTTP exchanges: one record for each request that was sent, with listed header fields only."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mirror.errors import MirrorError, NetworkError
from mirror.registry.session import TooBig
from tests.registry.http.peers import Peer, PeerConnection, raw_response, reply
from tests.registry.http.sessions import Keys, get, session_with, work

ANSWER = raw_response(
    "200 OK",
    b"[]",
    "Content-Type: application/json",
    "Docker-Content-Digest: sha256:abc",
    "RateLimit-Remaining: 76;w=21600",
    "X-Request-Id: 7f3a",
    "Set-Cookie: session=CANARY",
    "X-Registry-Auth: CANARY",
    'WWW-Authenticate: Bearer realm="https://auth.example.com/token?account=CANARY",service="x"',
    'Link: </v2/a/tags/list?n=5&last=b&_state=CANARY>; rel="next"',
)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that returns the fields of the records so far."""
    caplog.set_level(logging.DEBUG, "mirror.http.exchange")
    return lambda: [vars(record) for record in caplog.records if record.name == "mirror.http.exchange"]


def test_only_listed_header_fields_are_logged_and_no_secrets_in_them(records: Any) -> None:
    with Peer(reply(ANSWER)) as peer, session_with(peer, authorizer=Keys("Bearer CANARY")) as session:
        get(session, "/v2/a/tags/list?n=5&token=CANARY", headers=(("Accept", "x/y"), ("X-Own", "CANARY")))
        (record,) = records()
        assert {"authorization": "bearer ***", "accept": "x/y"} == record["request_headers"]
        assert {
            "content-type": "application/json",
            "content-length": "2",
            "docker-content-digest": "sha256:abc",
            "ratelimit-remaining": "76;w=21600",
            "x-request-id": "7f3a",
            "www-authenticate": 'Bearer realm="https://auth.example.com/token?account=***",service="x"',
            "link": '</v2/a/tags/list?n=5&last=b&_state=***>; rel="next"',
        } == record["response_headers"]
        assert f"http://{peer.name}/v2/a/tags/list?n=5&token=***" == record["url"]
    expected = {"method": "GET", "kind": "tags", "host": peer.name, "status": 200, "received": 2, "code": None}
    assert expected == {name: record[name] for name in expected}
    assert "CANARY" not in str(record)


def test_a_hostile_header_field_is_cut_and_escaped(records: Any) -> None:
    hostile = raw_response("200 OK", b"[]", "Server: \x9b31m" + "x" * 3000, "Via: a", "Via: b")
    with Peer(reply(hostile)) as peer, session_with(peer) as session:
        get(session, "/v2/a/tags/list")
    fields = records()[0]["response_headers"]
    assert fields["server"].startswith("\\x9b31mxxx")
    assert len(fields["server"]) < 510
    assert "a, b" == fields["via"]


def test_an_error_has_the_id_of_its_request(records: Any) -> None:
    with Peer(reply(raw_response("500 R", b"no"))) as peer, session_with(peer) as session:
        with pytest.raises(MirrorError) as caught:
            get(session, "/v2/a/tags/list", retries=False)
        with pytest.raises(TooBig) as too_big:
            session.call("GET", "/v2/b", work(), kind="tags", expect={500}, limit=1)
    assert [caught.value.request_id, too_big.value.request_id] == [record["request_id"] for record in records()]
    assert caught.value.request_id == caught.value.with_text("other").request_id
    assert [None, "bad_response"] == [record["code"] for record in records()]


def test_a_request_that_is_repeated_because_its_connection_was_closed_has_two_records(records: Any) -> None:
    def answer_once(connection: PeerConnection) -> None:
        connection.read_request()
        connection.respond("200 OK", b"[]")
        connection.read_request()  # closes the connection without a response

    with Peer(answer_once) as peer, session_with(peer) as session:
        for _ in range(2):
            get(session, "/v2/a/tags/list")
    assert [200, None, 200] == [record["status"] for record in records()]
    assert records()[1]["code"] in ("truncated", "net_error")


def test_a_connection_that_fails_has_a_record_without_a_status(records: Any) -> None:
    with session_with("127.0.0.2:1") as session, pytest.raises(NetworkError) as caught:
        get(session, "/v2/a/tags/list", retries=False)
    (record,) = records()
    assert (None, "net_error", caught.value.what) == (record["status"], record["code"], record["error"])


def test_nothing_is_logged_and_no_error_has_an_id_at_other_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mirror.http.exchange")
    with (
        Peer(reply(raw_response("500 R"))) as peer,
        session_with(peer) as session,
        pytest.raises(MirrorError) as caught,
    ):
        get(session, "/v2/a/tags/list", retries=False)
    assert (None, []) == (caught.value.request_id, caplog.records)
