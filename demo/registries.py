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

_END_WITHIN = 10.0  # seconds


class RecordingRegistry(Registry, Protocol):
    """A registry that records its requests, except those of the demonstration's own client."""

    def mark(self) -> None:
        """Forget all requests before this moment."""
        ...

    def requests(self) -> list[Seen]: ...

    def writes(self) -> list[Seen]: ...


class ServeRegistry:
    """`mirror serve --writable` with a new layout. Use with `with`.

    A proxy in front of the server records the requests, independently of the server's code."""

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
                raise CheckFailed(f"`mirror serve` does not start: {process.communicate()[1]}")
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
                process.communicate(timeout=_END_WITHIN)
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
