"""`mirror serve` over https: TLS clients, and clients that do not speak TLS."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mirror.errors import ConfigError
from mirror.serve.server import RegistryServer
from mirror.serve.tls import server_context
from mirror.util.cancellation import Stop
from tests.registries.certificates import Authority
from tests.registries.client import sha256
from tests.registries.raw import connect
from tests.registries.real import RealRegistry
from tests.serve.test_connection import nothing, read_responses
from tests.support.images import Graph
from tests.support.layouts import Served, lay, pack
from tests.support.oracle import assert_equal, assert_whole, skopeo
from tests.support.tool import ROOT, MirrorTool

DATA = bytes(range(256)) * 4000
PING = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def graph() -> Graph:
    made = Graph("tls")
    index = made.platforms("v1")
    made.artifact("notes", texts=[DATA, b""])
    made.signature(index)
    return made


@pytest.fixture(params=["layout", "bundle"])
def served(request: pytest.FixtureRequest, graph: Graph, authority: Authority, tmp_path: Path) -> Iterator[Served]:
    path = lay(tmp_path / "out", app=graph) if request.param == "layout" else pack(tmp_path / "out.tar", app=graph)
    with Served(path, tls=authority) as server:
        yield server


def secure(host: str, authority: Authority, *, suppress_ragged_eofs: bool = True) -> ssl.SSLSocket:
    """Connect with TLS. suppress_ragged_eofs: accept an end without close_notify."""
    return authority.client_context().wrap_socket(
        connect(host), server_hostname="127.0.0.1", suppress_ragged_eofs=suppress_ragged_eofs
    )


# ---- clients


def test_sync_reads_over_https(
    mirror_run: MirrorTool, served: Served, target: RealRegistry, graph: Graph, tmp_path: Path
) -> None:
    mirror_run.config([{"source": f"{served.host}/app", "targets": [f"{target.host}/app"]}], served, target)
    mirror_run.sync()
    assert_equal(served, "app", target)
    assert set(graph.tags) == {tag for _, tag in assert_whole(target).tags}


def test_sync_refuses_an_untrusted_certificate(mirror_run: MirrorTool, served: Served, target: RealRegistry) -> None:
    mirrors = [{"source": f"{served.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, target)
    mirror_run.sync(expect=3)
    assert [] == target.writes()


def test_skopeo_reads_over_https(served: Served, authority: Authority, graph: Graph, tmp_path: Path) -> None:
    trusted = tmp_path / "certs"
    trusted.mkdir()
    shutil.copy(authority.ca, trusted / "ca.crt")
    raw = skopeo("inspect", "--raw", "--cert-dir", str(trusted), f"docker://{served.host}/app:v1")
    assert graph.tags["v1"] == sha256(raw.encode())
    skopeo(
        "copy", "--all", "--src-cert-dir", str(trusted), f"docker://{served.host}/app:v1", f"dir:{tmp_path / 'copy'}"
    )
    assert (tmp_path / "copy" / "manifest.json").exists()


def test_sync_writes_over_https(
    mirror_run: MirrorTool, source: RealRegistry, authority: Authority, tmp_path: Path
) -> None:
    with source.client() as client:
        graph = Graph("push")
        made = graph.image("v1", layers=[graph.blob(DATA)])
        for data in graph.blobs.values():
            client.put_blob("app", data)
        client.put_manifest("app", "v1", graph.manifests[made.digest].data, made.media_type)
    with Served(tmp_path / "layout", writable=True, tls=authority) as served:
        mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{served.host}/app"]}], source, served)
        mirror_run.sync()
        assert_equal(source, "app", served)


def test_a_large_blob_and_a_range_of_it_are_served(served: Served) -> None:
    with served.client() as client:
        path = f"/v2/app/blobs/{sha256(DATA)}"
        assert DATA == client.ask("GET", path, want=(200,)).body
        part = client.ask("GET", path, headers={"Range": "bytes=70000-900000"}, want=(206,))
    assert DATA[70000:900001] == part.body


def test_the_response_arrives_although_a_large_body_was_not_read(served: Served) -> None:
    with served.client() as client:
        client.ask("PUT", "/v2/app/manifests/v1", body=bytes(8 << 20), want=(405,))


def test_close_notify_is_sent_at_the_end_of_a_connection(served: Served, authority: Authority) -> None:
    with secure(served.host, authority, suppress_ragged_eofs=False) as connection:
        connection.sendall(PING.replace(b"Host", b"Connection: close\r\nHost"))
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_current_versions_of_tls_are_accepted(
    served: Served, authority: Authority, version: ssl.TLSVersion
) -> None:
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(connect(served.host), server_hostname="127.0.0.1") as connection:
        assert "http/1.1" == connection.selected_alpn_protocol()
        connection.sendall(PING)
        assert 1 == len(read_responses(connection, 1))


# ---- those that speak no TLS, or do not speak


@pytest.mark.parametrize("words", [PING, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 5000, b""])
def test_a_client_without_tls_does_not_affect_others(served: Served, words: bytes) -> None:
    with connect(served.host) as plain:
        plain.sendall(words)
        received = b""
        with suppress(OSError):  # the server may reset the connection before this side is closed
            plain.shutdown(socket.SHUT_WR)
            while piece := plain.recv(4096):
                received += piece
    assert b"HTTP" not in received
    with served.client() as client:
        client.ask("GET", "/v2/", want=(200,))


def test_clients_that_disconnect_before_they_are_accepted_do_not_affect_others(authority: Authority) -> None:
    context = server_context(*authority.server)
    with RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), max_connections=1, tls=context) as server:
        with secure(server.address, authority) as busy:
            busy.sendall(PING + PING[:20])
            assert read_responses(busy, 1)  # it is in the middle of a request, so no other connection takes its place
            for _ in range(20):
                gone = connect(server.address)
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends a reset
                gone.close()
        with secure(server.address, authority) as connection:
            connection.sendall(PING)
            assert read_responses(connection, 1)


def test_stalled_handshakes_do_not_block_other_clients(authority: Authority) -> None:
    context = server_context(*authority.server)
    with (
        RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), max_connections=3, tls=context) as server,
        ExitStack() as stack,
    ):
        silent = [stack.enter_context(connect(server.address)) for _ in range(5)]
        silent[-1].sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a handshake
        connection = stack.enter_context(secure(server.address, authority))
        connection.sendall(PING)
        assert read_responses(connection, 1)
        assert b"" == silent[0].recv(1), "the one that was silent longest made room"


def test_a_handshake_has_a_time_limit(authority: Authority) -> None:
    context = server_context(*authority.server)
    with (
        RegistryServer(nothing, "127.0.0.1", 0, stop=Stop(), tls=context, handshake_timeout=0.2) as server,
        connect(server.address) as silent,
    ):
        assert b"" == silent.recv(1)


def test_shutdown_waits_neither_for_handshakes_nor_for_silent_clients(served: Served, authority: Authority) -> None:
    with connect(served.host) as amid, secure(served.host, authority) as silent:
        silent.sendall(PING)
        assert read_responses(silent, 1)
        started = time.monotonic()
        served.__exit__()
        assert 3.0 > time.monotonic() - started
        assert b"" == amid.recv(1)


# ---- the command


def serve(layout: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mirror", "serve", str(layout), "--listen", "127.0.0.1:0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


def test_the_command_prints_an_https_url(graph: Graph, authority: Authority, tmp_path: Path) -> None:
    layout = lay(tmp_path / "layout", app=graph)
    certificate, key = authority.server
    with serve(layout, "--tls-cert", certificate, "--tls-key", key) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        host = line.split("/")[2]
        with secure(host, authority) as connection:
            connection.sendall(PING)
            assert read_responses(connection, 1)
            process.send_signal(signal.SIGTERM)
            assert 143 == process.wait(60)
    assert f"https://{host}/ serves {layout} (read-only)\n" == line


def encrypted(folder: Path, authority: Authority) -> tuple[Path, Path]:
    key = folder / "encrypted.key"
    key.write_text(
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,"
        "00112233445566778899AABBCCDDEEFF\n\nAAAAAAAAAAAAAAAAAAAAAA==\n-----END RSA PRIVATE KEY-----\n"
    )
    return authority.server[0], key


UNUSABLE: dict[str, tuple[Callable[[Path, Authority], tuple[Path | None, Path | None]], str]] = {
    "no-key": (lambda folder, authority: (authority.server[0], None), "--tls-cert and --tls-key"),
    "no-certificate": (lambda folder, authority: (None, authority.server[1]), "--tls-cert and --tls-key"),
    "missing": (lambda folder, authority: (authority.server[0], folder / "absent"), "--tls-key: cannot read"),
    "folder": (lambda folder, authority: (folder, authority.server[1]), "--tls-cert: cannot read"),
    "others": (lambda folder, authority: (authority.server[0], authority.client[1]), "do not match"),
    "swapped": (lambda folder, authority: (authority.server[1], authority.server[0]), "cannot be used"),
    "encrypted": (encrypted, "cannot be used"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_certificate_or_key_is_a_config_error(authority: Authority, tmp_path: Path, case: str) -> None:
    files, says = UNUSABLE[case]
    with pytest.raises(ConfigError, match=says):
        server_context(*files(tmp_path, authority))


def test_a_certificate_without_its_key_is_a_usage_error(graph: Graph, authority: Authority, tmp_path: Path) -> None:
    layout = lay(tmp_path / "layout", app=graph)
    with serve(layout, "--tls-cert", authority.server[0]) as process:
        out, err = process.communicate(timeout=20)
    assert (2, "") == (process.returncode, out)
    assert "--tls-key" in err
