"""A layer of 2 GiB, and one that would unpack to far more than its size."""

from __future__ import annotations

import json
import re
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.registries.certificates import Authority
from tests.registries.real import RealRegistry
from tests.support.tool import MirrorTool

SIZE = 2 << 30  # bytes
PIECE = 1 << 20
ID = "a" * 64
ANSWERS = {
    "/v1/_ping": {},
    "/v1/repositories/big/app/images": [{"id": ID}],
    "/v1/repositories/big/app/tags": {"t": ID},
    f"/v1/images/{ID}/ancestry": [ID],
    f"/v1/images/{ID}/json": {"id": ID, "created": "2014-05-01T12:00:00Z"},
}


def head(size: int) -> bytes:
    entry = tarfile.TarInfo("big")
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def gzip_layer() -> Iterator[bytes]:
    """Yield a gzip of 2 GiB of incompressible data."""
    piece = Random("big").randbytes(PIECE)
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    yield packer.compress(head(SIZE))
    for _ in range(SIZE // PIECE):
        yield packer.compress(piece)
    yield packer.compress(bytes(1024)) + packer.flush()


def tar_layer() -> Iterator[bytes]:
    """Yield a tar of 2 GiB."""
    piece = Random("big").randbytes(PIECE)
    yield head(SIZE)
    for _ in range(SIZE // PIECE):
        yield piece
    yield bytes(1024)


def bomb() -> Iterator[bytes]:
    """Yield a gzip of endless zeros, which compress 1000:1."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(head(64 << 30))
    piece = bytes(PIECE)
    while True:
        yield packer.compress(piece)


class Handler(BaseHTTPRequestHandler):
    """A v1 registry with one image, whose layer is generated while it is sent."""

    protocol_version = "HTTP/1.1"
    layer: Any

    def do_GET(self) -> None:
        if self.path in ANSWERS:
            self._send(200, json.dumps(ANSWERS[self.path]).encode())
        elif self.path == f"/v1/images/{ID}/layer":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for data in filter(None, type(self).layer()):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True
        else:
            self._send(404, b"no such page")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A server of Handler; use with `with`."""

    tls: Authority | None = None

    def __init__(self, layer: Any) -> None:
        handler = type("Handler", (Handler,), {"layer": staticmethod(layer)})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, name="v1")
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def peak_memory(tool: MirrorTool) -> tuple[int, int, str]:
    """Run a sync; returns the exit code, the peak resident memory in MiB, and the output."""
    process = tool.start("sync", tool.config_file)
    most = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        most = max(most, int(found[1]) // 1024 if found else 0)
        time.sleep(0.05)
    ran = tool.finish(process)
    return ran.code, most, ran.text


@pytest.mark.timeout(900)
@pytest.mark.parametrize("layer", [gzip_layer, tar_layer])
def test_two_gibibytes_take_less_than_100_mebibytes(layer: Any, target: RealRegistry, mirror_run: MirrorTool) -> None:
    with Server(layer) as server:
        mirror_run.config([{"source": f"{server.host}/big/app", "targets": [f"{target.host}/big"]}], server, target)
        code, most, text = peak_memory(mirror_run)
    assert 0 == code, text
    print(f"{layer.__name__}: {most} MiB")
    assert 10 < most < 100


@pytest.mark.timeout(300)
def test_a_decompression_bomb_is_rejected(target: RealRegistry, mirror_run: MirrorTool) -> None:
    with Server(bomb) as server:
        mirror_run.config([{"source": f"{server.host}/big/app", "targets": [f"{target.host}/big"]}], server, target)
        code, most, text = peak_memory(mirror_run)
    assert 3 == code
    assert "200 times" in text
    assert most < 100
