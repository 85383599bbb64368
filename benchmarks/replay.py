"""Sends the requests of a plan from `ideal` over plain sockets. The kernel splices blobs from socket to socket.

Of the responses, only the status is checked. This is a separate program that imports nothing of the project, because
its start is part of the measurement. Several threads send the requests, each over its own connections to the source and
the target. They finish each step of the plan before the next one: listing tags, reading manifests, copying blobs,
mounting blobs, pushing child manifests, and pushing root manifests.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_WORKERS = 6
_PIPE = 1 << 20  # bytes
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which some builds of `fcntl` do not define

Item = list[Any]


class Connection:
    """A persistent HTTP/1.1 connection. Requests may be sent before earlier responses have been read."""

    def __init__(self, host: str) -> None:
        name, _, port = host.rpartition(":")
        self.host = host
        self.socket = socket.create_connection((name, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def send(self, method: str, path: str, *headers: str, body: bytes | None = None) -> None:
        """Send a request. headers: complete header lines."""
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", *length, *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + (body or b""))

    def head(self, *statuses: int) -> dict[str, str]:
        """Read the head of the next response and return its header fields, with names in lower case.

        Raises RuntimeError if the status is not one of `statuses`."""
        data = self._rest
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, self._rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        if int(first.split()[1]) not in statuses:
            raise RuntimeError(f"expected a status of {statuses}, got {head.decode()}")
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def body(self, size: int) -> bytes:
        """Read the next `size` bytes."""
        data = self._rest
        while len(data) < size:
            data += self._receive()
        self._rest = data[size:]
        return data[:size]

    def answer(self, *statuses: int) -> bytes:
        """Read the next response and return its body. Raises RuntimeError if the status is not one of `statuses`."""
        headers = self.head(*statuses)
        if "chunked" in headers.get("transfer-encoding", ""):
            parts = []
            while size := int(self._line(), 16):
                parts.append(self.body(size + 2)[:-2])
            self.body(2)
            return b"".join(parts)
        return self.body(int(headers.get("content-length", 0)))

    def _line(self) -> bytes:
        """Read the next line, and return it without its end."""
        while b"\r\n" not in self._rest:
            self._rest += self._receive()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _receive(self) -> bytes:
        """Return the next bytes from the socket. Raises RuntimeError if the connection was closed."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise RuntimeError(f"{self.host} closed the connection")
        return data

    def splice_to(self, size: int, other: Connection, pipe: tuple[int, int]) -> None:
        """Send the next `size` bytes of this connection on another one, without copying them through this process.

        pipe: the read end and the write end of the pipe for the splice calls."""
        first = self._rest[:size]
        self._rest = self._rest[size:]
        other.socket.sendall(first)
        left = size - len(first)
        while left:
            moved = os.splice(self.socket.fileno(), pipe[1], min(left, _PIPE))
            left -= moved
            while moved:
                moved -= os.splice(pipe[0], other.socket.fileno(), moved)


class ThreadConnections:
    """The connections and the pipe of one thread. They stay open until the process ends."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = Connection(source), Connection(target)
        self.pipe = os.pipe()
        fcntl.fcntl(self.pipe[0], _SET_PIPE_SIZE, _PIPE)


class Replay:
    """Executes a plan, and keeps the bodies of the manifests that have been read."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._bodies: dict[tuple[str, str], bytes] = {}
        self._own = threading.local()

    def run(self) -> None:
        """Execute the steps of the plan, each with several threads."""
        manifests, blobs = self._plan["manifests"], self._plan["blobs"]
        mounts = [[digest, home, homes[0]] for digest, _, homes in blobs for home in homes[1:]]
        children = [item for item in manifests if item[3][0] == item[1]]
        roots = [item for item in manifests if item[3][0] != item[1]]
        with ThreadPoolExecutor(_WORKERS, initializer=self._open_connections) as pool:
            for step, items in (
                (self._list, self._plan["listings"]),
                (self._read_manifest, manifests),
                (self._copy_blob, blobs),
                (self._mount, mounts),
                (self._put_manifest, children),
                (self._put_manifest, roots),
            ):
                for _ in pool.map(step, items):
                    pass

    def _open_connections(self) -> None:
        """Open the connections of the current thread."""
        self._own.connections = ThreadConnections(self._plan["source"], self._plan["target"])

    @property
    def _connections(self) -> ThreadConnections:
        """The connections of the current thread."""
        connections: ThreadConnections = self._own.connections
        return connections

    def _list(self, repository: str) -> None:
        """List the tags of a repository at the source."""
        source = self._connections.source
        source.send("GET", f"/v2/{repository}/tags/list")
        source.answer(200)

    def _read_manifest(self, item: Item) -> None:
        """Read a manifest from the source and keep its body."""
        repository, digest, media_type, _ = item
        source = self._connections.source
        source.send("GET", f"/v2/{repository}/manifests/{digest}", f"Accept: {media_type}")
        self._bodies[repository, digest] = source.answer(200)

    def _copy_blob(self, item: Item) -> None:
        """Copy a blob to the first of its repositories."""
        digest, size, homes = item
        source, target = self._connections.source, self._connections.target
        target.send("POST", f"/v2/{homes[0]}/blobs/uploads/", "Content-Length: 0")
        source.send("GET", f"/v2/{homes[0]}/blobs/{digest}")
        location = target.head(202)["location"].removeprefix(f"http://{target.host}")
        source.head(200)
        kind = ("Content-Type: application/octet-stream", f"Content-Length: {size}")
        target.send("PUT", f"{location}&digest={digest}", *kind)
        source.splice_to(size, target, self._connections.pipe)
        target.answer(201)

    def _mount(self, item: Item) -> None:
        """Mount a blob at the target from the repository to which it was copied."""
        digest, repository, home = item
        target = self._connections.target
        target.send("POST", f"/v2/{repository}/blobs/uploads/?mount={digest}&from={home}", "Content-Length: 0")
        target.answer(201)

    def _put_manifest(self, item: Item) -> None:
        """Push a manifest to the target under each of its references."""
        repository, digest, media_type, references = item
        target = self._connections.target
        for reference in references:
            path = f"/v2/{repository}/manifests/{reference}"
            target.send("PUT", path, f"Content-Type: {media_type}", body=self._bodies[repository, digest])
            target.answer(201)


if __name__ == "__main__":
    Replay(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))).run()
