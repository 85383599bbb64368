"""Fault rules of the scripted registry for connections: at an exact byte, once or forever."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.access import Target
from tests.registries.certificates import Authority
from tests.registries.client import Client, sha256
from tests.registries.faults import FOREVER, TLS_ALERT, Fault, Faults, chunked, close_delimited
from tests.registries.process import eventually
from tests.registries.raw import Received, ask, connect
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph

DATA = bytes(range(256)) * 40
BLOB = sha256(DATA)
PATH = f"/v2/app/blobs/{BLOB}"


@pytest.fixture
def registry(scripted: ScriptedFactory) -> ScriptedRegistry:
    """A registry with the blob DATA and an image."""
    made: ScriptedRegistry = scripted()
    graph = Graph("faults")
    graph.blob(DATA)
    graph.image("v1")
    made.load("app", graph)
    return made


def get(registry: ScriptedRegistry, method: str = "GET", path: str = PATH) -> Received:
    return ask(registry.host, method, path)


def test_a_reply_can_be_truncated_at_every_byte_of_its_head(registry: ScriptedRegistry) -> None:
    whole = get(registry, "HEAD").data
    for length in range(len(whole)):
        registry.fault("HEAD blob", cut_head_after=length)
        cut = get(registry, "HEAD")
        assert (whole[:length], "FIN") == (cut.data, cut.end)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("length", [0, 1, 1024, len(DATA) - 1])
def test_a_reply_body_can_be_truncated_at_any_byte(registry: ScriptedRegistry, length: int, reset: bool) -> None:
    registry.fault("GET blob", cut_after=length, reset=reset)
    cut = get(registry)
    assert f"content-length: {len(DATA)}".encode() in cut.head.lower()
    assert (DATA[:length], "RST" if reset else "FIN") == (cut.body, cut.end)


@pytest.mark.parametrize(("after", "stored"), [(False, False), (True, True)])
def test_a_reset_before_the_reply_can_come_before_or_after_carrying_out_the_request(
    registry: ScriptedRegistry, after: bool, stored: bool
) -> None:
    registry.fault("PUT upload", reset=True, after=after)
    with registry.client() as client:
        location = client.ask("POST", "/v2/app/blobs/uploads/").headers["location"]
    lost = ask(registry.host, "PUT", f"{location}&digest={sha256(b'abc')}", body=b"abc")
    assert (b"", "RST") == (lost.data, lost.end)
    assert stored == registry.has_blob("app", sha256(b"abc"))
    assert 0 == registry.log[-1].status


@pytest.mark.parametrize(("keeps", "kept"), [(False, 0), (True, 1000)])
def test_a_request_body_can_be_truncated(scripted: ScriptedFactory, keeps: bool, kept: int) -> None:
    registry = scripted(keeps_partial=keeps)
    with registry.client() as client:
        location = client.ask("POST", "/v2/app/blobs/uploads/").headers["location"]
    registry.fault("PATCH upload", cut_request_after=1000)
    cut = ask(registry.host, "PATCH", location, body=DATA)
    assert b"" == cut.data
    assert registry.journal.wait_idle()
    assert (0, 1000) == (registry.log[-1].status, registry.log[-1].body_length)
    assert kept == len(registry.uploads[0].data)


def test_a_reply_can_be_sent_before_the_body_is_read(registry: ScriptedRegistry) -> None:
    registry.fault("PATCH upload", early=True, status=413, body=b"too large")
    refused = ask(registry.host, "PATCH", "/v2/app/blobs/uploads/x", body=DATA)
    assert (413, b"too large", 0) == (refused.status, refused.body, registry.log[-1].body_length)


def test_a_reply_can_be_stalled_until_it_is_released(registry: ScriptedRegistry) -> None:
    release = threading.Event()
    fault = registry.fault("GET blob", stall=release, stall_after=100)
    address = registry.host.split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 100:
            received += connection.recv(1 << 16)
        assert fault.fired.is_set()
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        release.set()
        connection.settimeout(5)
        while piece := connection.recv(1 << 16):
            received += piece
    assert DATA == received.partition(b"\r\n\r\n")[2]


def test_a_request_can_be_stalled_before_and_after_it_is_carried_out(registry: ScriptedRegistry) -> None:
    release = threading.Event()
    registry.fault("PUT manifest", stall=release)
    registry.fault("PUT manifest", nth=2, stall=release, after=True)
    manifest = registry.manifest("app", "v1")
    done: list[str] = []

    def put(tag: str) -> None:
        with registry.client(agent="raw") as client:
            done.append(client.put_manifest("app", tag, manifest.body, manifest.headers["content-type"]))

    threads = [threading.Thread(target=put, args=(tag,)) for tag in ("before", "after")]
    for number, thread in enumerate(threads, 1):
        thread.start()
        assert registry.journal.wait_for("PUT manifest", number)
    assert eventually(lambda: "after" in registry.tags("app"), 60)
    assert "before" not in registry.tags("app")
    assert ([], 2) == (done, registry.journal.most_in_flight)
    release.set()
    for thread in threads:
        thread.join()
    assert ["after", "before", "v1"] == registry.tags("app")
    assert registry.journal.wait_idle()


def test_stalled_requests_end_with_the_registry(scripted: ScriptedFactory) -> None:
    registry = scripted()
    fault = registry.fault("GET ping", stall=threading.Event())
    with connect(registry.host) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
        assert fault.fired.wait(60)
        registry.stop()
        assert b"" == connection.recv(1)


@pytest.mark.parametrize(("drip", "seconds"), [({"drip": 102_400}, 0.09), ({"drip_head": 102_400}, 0.09)], ids=str)
def test_a_reply_can_be_sent_slowly(registry: ScriptedRegistry, drip: dict[str, float], seconds: float) -> None:
    registry.fault("GET blob", **drip)
    dripped = get(registry)
    assert DATA == dripped.body
    assert seconds < dripped.seconds


def test_any_number_of_informational_replies_can_be_sent(registry: ScriptedRegistry) -> None:
    registry.fault("GET blob", informational=3)
    flooded = get(registry)
    assert 3 == flooded.data.count(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert flooded.data.endswith(DATA)
    registry.fault("GET blob", informational=FOREVER)
    with connect(registry.host) as connection:
        connection.sendall(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
        received = b""
        while received.count(b" 103 ") < 10:
            received += connection.recv(1 << 16)
    assert b" 200 " not in received


def test_replies_can_be_sent_without_a_length_in_chunks_or_as_raw_bytes(registry: ScriptedRegistry) -> None:
    registry.fault("GET blob", change=close_delimited)
    registry.fault("GET blob", nth=2, change=chunked)
    registry.fault("GET blob", nth=3, raw=b"SSH-2.0-nothing\r\n")
    plain, pieces, garbage = get(registry), get(registry), get(registry)
    assert b"content-length" not in plain.head.lower()
    assert DATA == plain.body
    assert b"transfer-encoding: chunked" in pieces.head.lower()
    assert pieces.body.endswith(b"\r\n0\r\n\r\n")
    assert b"SSH-2.0-nothing\r\n" == garbage.data


@pytest.mark.parametrize("status", [502, 503])
def test_a_rule_can_answer_several_requests_with_502(registry: ScriptedRegistry, status: int) -> None:
    registry.fault("* blob", times=3, status=status, body=b"<html>Bad Gateway</html>")
    assert [status] * 3 + [200] == [get(registry).status for _ in range(4)]


def test_a_connection_can_be_reset_before_a_request(registry: ScriptedRegistry) -> None:
    registry.fault("connect", reset=True)
    lost = get(registry)
    assert (b"", "RST") == (lost.data, lost.end)
    assert [] == registry.log
    assert DATA == get(registry).body


def test_a_connection_can_be_accepted_and_never_answered(registry: ScriptedRegistry) -> None:
    registry.fault("connect", stall=threading.Event())
    with connect(registry.host) as connection:
        connection.sendall(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        registry.cut_connections()
        connection.settimeout(5)
        assert b"" == connection.recv(1)


def test_a_tls_handshake_can_fail_with_an_alert_or_stall(scripted: ScriptedFactory, authority: Authority) -> None:
    registry = scripted(tls=authority)
    registry.fault("connect", raw=TLS_ALERT)
    registry.fault("connect", nth=2, raw=b"")
    for words in ("handshake failure", "EOF|reset|closed"):
        with (
            Client(registry.host, tls=authority.client_context(), agent="raw") as client,
            pytest.raises(OSError, match=f"(?i){words}"),
        ):
            client.ask("GET", "/v2/")
    with registry.client(agent="raw") as client:
        assert 200 == client.ask("GET", "/v2/").status


def test_tls_can_end_without_a_close_notify(scripted: ScriptedFactory, authority: Authority) -> None:
    registry = scripted(tls=authority)
    registry.storage.add_blob("app", BLOB, DATA)
    registry.fault("GET blob", cut_after=10)
    host, _, port = registry.host.partition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        authority.client_context().wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False) as connection,
    ):
        connection.sendall(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
        received = b""
        with pytest.raises(OSError, match="EOF occurred in violation of protocol"):
            while piece := connection.recv(1 << 16):
                received += piece
    assert DATA[:10] == received.partition(b"\r\n\r\n")[2]


def test_a_rule_applies_from_its_nth_match_for_a_number_of_times() -> None:
    faults = Faults()
    rule = faults.add(Fault("PUT blob", repository="app", nth=2, times=2))
    other = faults.add(Fault("* upload", reference="x", times=FOREVER))
    asked = [
        Target("PUT upload", "app", "x"),
        Target("PUT upload", "app", "x"),
        Target("PUT upload", "other", "x"),
        Target("PUT upload", "app", "x"),
        Target("PUT upload", "app", "x"),
        Target("PUT upload", "app", "y"),
        Target("GET blob", "app", "x"),
    ]
    assert [other, rule, other, rule, other, None, None] == [faults.take(target) for target in asked]
    assert (2, 3) == (rule.hits, other.hits)


def test_the_tests_own_requests_get_no_fault(registry: ScriptedRegistry) -> None:
    fault = registry.fault("*", times=FOREVER, status=500)
    assert ["v1"] == registry.tags("app")
    assert not fault.fired.is_set()
