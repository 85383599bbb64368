"""The registries of the demonstration: `mirror serve` over an empty folder, and docker-registry if it is installed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from demo.checks import CheckFailed
from tests.registries.access import Seen
from tests.registries.client import Client, Registry
from tests.registries.wires import Front

_STOP_TIMEOUT = 10.0  # seconds; a server that takes longer to stop is killed


class RecordingRegistry(Registry, Protocol):
    """A registry that records the requests that it receives, except those of the demonstration's own client."""

    def mark(self) -> None:
        """Discard the requests that were recorded so far."""
        ...

    def requests(self) -> list[Seen]:
        """Return the recorded requests."""
        ...

    def writes(self) -> list[Seen]:
        """Return the recorded POST, PUT, PATCH and DELETE requests."""
        ...


class ServeRegistry:
    """A registry that runs `mirror serve --writable` with a new layout.

    As a context manager, it starts the server, and stops it when the `with` block exits. A proxy in front of the server
    records the requests, independently of the server's code."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._path = folder / name
        self._environment = environment
        self._front = Front(name=name)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ServeRegistry:
        command = [sys.executable, "-m", "mirror", "serve", str(self._path), "--listen", "127.0.0.1:0", "--writable"]
        process = self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(self._environment)
        )
        try:
            found = re.match(r"http://127\.0\.0\.1:(\d+)/ serves ", process.stdout.readline() if process.stdout else "")
            if found is None:
                process.kill()
                raise CheckFailed(f"`mirror serve` did not start: {process.communicate()[1]}")
            self._front.upstream = int(found[1])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._front.stop()
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    @property
    def host(self) -> str:
        return self._front.host

    @property
    def url(self) -> str:
        return self._front.url

    def client(self) -> Client:
        return Client(self.host)

    def mark(self) -> None:
        self._front.journal.mark()

    def requests(self) -> list[Seen]:
        return self._front.journal.requests()

    def writes(self) -> list[Seen]:
        return self._front.journal.writes()
