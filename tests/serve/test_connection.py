"""The connections of `mirror serve`: HTTP/1.1 (RFC 9112), misbehaving clients, and shutdown."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.serve.messages import ServerRequest, ServerResponse, json_response
from mirror.serve.server import RegistryServer
from mirror.util.cancellation import Stop
from tests.registries.client import sha256
from tests.registries.process import eventually
from tests.registries.raw import Received, ask, connect
from tests.support.images import Graph
from tests.support.layouts import Served, lay, pack
from tests.support.tool import ROOT

DATA = bytes(range(256)) * 4000


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    graph = Graph("http")
    graph.artifact("v1", texts=[DATA])
    return lay(tmp_path / "layout", app=graph)


@pytest.fixture
def served(layout: Path) -> Iterator[Served]:
    with Served(layout, writable=True) as server:
        yield server


def read_responses(connection: socket.socket, count: int) -> list[bytes]:
    """Read complete responses with a Content-Length from one connection."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = file.readline()
                assert line, f"cut after {head!r}"
                head += line
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lengths[0].partition(b":")[2]) if lengths else 0
            found.append(head + file.read(length))
    return found


def raw(served: Served, request: bytes) -> Received:
    """Send bytes, and read until the server closes the connection."""
    received, end = bytearray(), "FIN"
    started = time.monotonic()
    with connect(served.host) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:
            end = "RST"
    return Received(bytes(received), end, time.monotonic() - started)


def test_a_connection_is_reused_for_several_requests(served: Served) -> None:
    with connect(served.host) as connection:
        for _ in range(3):
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            (response,) = read_responses(connection, 1)
            assert response.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" not in response.lower()


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    paths = ("/v2/", "/v2/app/tags/list", "/v2/missing/tags/list")
    with connect(served.host) as connection:
        connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        assert [b"200", b"200", b"404"] == [response.split()[1] for response in read_responses(connection, 3)]


@pytest.mark.parametrize("words", ["HTTP/1.1\r\nHost: x\r\nConnection: close", "HTTP/1.0"])
def test_the_connection_is_closed_if_the_client_asks_for_it(served: Served, words: str) -> None:
    received = raw(served, f"GET /v2/ {words}\r\n\r\n".encode())
    assert (200, "FIN") == (received.status, received.end)


def test_a_large_blob_is_sent_completely(served: Served) -> None:
    received = ask(served.host, "GET", f"/v2/app/blobs/{sha256(DATA)}")
    assert (200, "FIN") == (received.status, received.end)
    assert DATA == received.body


# ---- bodies


def chunked(data: bytes, *, size: int = 1000, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"000\r\nTrailer: x\r\nOther: y\r\n\r\n"])
def test_a_request_body_may_be_chunked(served: Served, end: bytes) -> None:
    head = f"POST /v2/app/blobs/uploads/?digest={sha256(b'new' * 999)} HTTP/1.1\r\nHost: x\r\n"
    with connect(served.host) as connection:
        body = chunked(b"new" * 999, end=end)
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [b"201", b"200"] == [response.split()[1] for response in read_responses(connection, 2)]


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: -3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: \r\n",
        f"Content-Length: {'9' * 30}\r\n",
    ],
)
def test_a_request_body_of_ambiguous_length_is_refused(served: Served, headers: str) -> None:
    received = raw(served, f"PUT /v2/app/manifests/v2 HTTP/1.1\r\nHost: x\r\n{headers}\r\nabc".encode())
    assert 400 == received.status
    assert b"connection: close" in received.head.lower(), "what follows could be taken for a request"
    assert 1 == received.data.count(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 1000\r\n\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nsho",
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nshortX\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\nshort\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 200,
    ],
)
def test_a_truncated_request_body_changes_nothing(served: Served, body: bytes) -> None:
    head = f"POST /v2/app/blobs/uploads/?digest={sha256(b'short')} HTTP/1.1\r\nHost: x\r\n".encode()
    received = raw(served, head + body)
    assert b"" == received.data
    with served.client() as client:
        assert not client.has_blob("app", sha256(b"short"))


def test_an_interrupted_upload_resumes_where_it_ended(served: Served) -> None:
    with served.client() as client:
        location = client.ask("POST", "/v2/app/blobs/uploads/").headers["location"]
        cut = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:5000]
        assert b"" == raw(served, cut).data
        there = client.ask("GET", location, want=(204,)).headers["range"]
        assert "0-4999" == there
        client.ask("PATCH", location, headers={"Content-Range": f"5000-{len(DATA) - 1}"}, body=DATA[5000:], want=(202,))
        client.ask("PUT", f"{location}?digest={sha256(DATA)}", want=(201,))


def test_expect_100_continue_is_answered(served: Served) -> None:
    digest = sha256(b"waits")
    head = f"POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    with connect(served.host) as connection:
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(1000)
        connection.sendall(b"waits")
        (response,) = read_responses(connection, 1)
        assert response.startswith(b"HTTP/1.1 201 ")


def test_the_response_arrives_although_a_large_body_was_not_read(layout: Path) -> None:
    with Served(layout) as server:
        body = bytes(8 << 20)
        received = ask(server.host, "PUT", "/v2/app/manifests/v1", body=body)
    assert (405, "FIN") == (received.status, received.end)


# ---- what is no request


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2/ HTTP/9.9\r\n\r\n", 505),
        (b"GET /v2/ FTP/1.1\r\n\r\n", 400),
        (b"GET v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET http://elsewhere/v2/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v2/ HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /v2/ HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v2/app/tags/list?" + b"a&" * 500 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"BREW /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ],
)
def test_a_malformed_request_gets_an_error_document(served: Served, request_bytes: bytes, status: int) -> None:
    received = raw(served, request_bytes)
    assert status == received.status
    assert b"application/json" in received.head
    assert b"<" not in received.body


@pytest.mark.parametrize("request_bytes", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /v2/ HTTP/1.1"])
def test_a_client_that_disconnects_does_not_affect_others(served: Served, request_bytes: bytes) -> None:
    raw(served, request_bytes)
    assert 200 == raw(served, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").status


# ---- many connections, and the end


def nothing(request: ServerRequest) -> ServerResponse:
    return json_response({})


def test_a_new_connection_replaces_the_one_that_was_idle_longest() -> None:
    with RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), max_connections=3) as server, ExitStack() as stack:
        made = []
        for _ in range(5):
            connection = stack.enter_context(connect(server.address))
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_responses(connection, 1)
            # The thread of the connection notes since when it is idle just after it has sent the response.
            assert eventually(lambda: all(one.idle_since for one in list(server._connections)), within=60)
            made.append(connection)
        assert b"" == made[0].recv(1), "the first was ended"
        made[-1].sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_responses(made[-1], 1)


def test_a_new_connection_replaces_one_with_an_unfinished_head() -> None:
    with RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), max_connections=3) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server.address)).sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
        newcomer = stack.enter_context(connect(server.address))
        newcomer.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_responses(newcomer, 1)


def test_a_new_connection_replaces_one_that_delays_a_body_after_the_response() -> None:
    with RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), max_connections=3) as server, ExitStack() as stack:
        for _ in range(3):
            slow = stack.enter_context(connect(server.address))
            slow.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            assert read_responses(slow, 1)
        newcomer = stack.enter_context(connect(server.address))
        newcomer.settimeout(10)
        newcomer.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_responses(newcomer, 1)


def test_shutdown_does_not_wait_for_silent_clients(served: Served) -> None:
    with connect(served.host) as silent, connect(served.host) as amid:
        silent.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_responses(silent, 1)
        amid.sendall(b"PUT /v2/app/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        started = time.monotonic()
        served.__exit__()
        assert 3.0 > time.monotonic() - started
        assert b"" == silent.recv(1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_server_cleanly(layout: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "mirror", "serve", str(layout), "--listen", "127.0.0.1:0", "--writable"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().decode()
        host = line.split("/")[2]
        with connect(host) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_responses(connection, 1)
            process.send_signal(number)
            assert code == process.wait(60)
        assert b"" == process.stderr.read()
    assert f"http://{host}/ serves {layout} (accepts pushes)\n" == line


def test_the_threads_of_the_server_have_names(served: Served) -> None:
    with connect(served.host) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_responses(connection, 1)
        mine = {thread.name.partition("-")[0] for thread in threading.enumerate() if not thread.daemon}
    assert {"MainThread", "serve"} <= mine


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_truncating_a_bundle_while_it_is_served_truncates_only_the_current_response(tmp_path: Path) -> None:
    graph = Graph("cut")
    graph.artifact("v1", texts=[DATA])
    bundle = pack(tmp_path / "cut.tar", app=graph)
    with Served(bundle) as server:
        os.truncate(bundle, 20_000)
        with server.client() as client, pytest.raises(http.client.IncompleteRead):
            client.ask("GET", f"/v2/app/blobs/{sha256(DATA)}")
        with server.client() as client:
            assert 200 == client.ask("GET", "/v2/app/manifests/v1").status
