"""A web server on loopback that records the messages that it receives."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Received:
    """A request. body: parsed JSON."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class WebhookServer:
    """Answers each request with `status`. Use with `with`. hold: while it is not set, no request is answered."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    received: list[Received] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.hold.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                owner.received.append(Received("POST", self.path, dict(self.headers), json.loads(data)))
                owner.hold.wait()
                self.send_response(owner.status)
                for name, value in owner.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def take(self) -> list[Received]:
        """Return what was received since the last call."""
        taken, self.received[:] = list(self.received), []
        return taken
