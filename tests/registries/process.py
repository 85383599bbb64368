"""A real registry as a child process: a command line to start it, and an access log.

Another implementation is a subclass that defines its configuration and the format of its log.
"""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.registries.access import OWN_AGENT, Seen, classify
from tests.registries.client import Authorize, Client, Response

START_WITHIN = 60.0  # seconds; enough for a busy machine
_serial = itertools.count(1)

# Apache's combined format; the last group is the user agent.
_COMBINED = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d+) (\d+) "[^"]*" "([^"]*)"')


class RegistryProcess(ABC):
    """Runs on a port of 127.0.0.1 that the system chooses and a restart keeps. Use with `with`.

    All files are in `root`/`name`. Not thread-safe."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.folder = root / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "access.log"
        self.errors = self.folder / "errors.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0

    @abstractmethod
    def command(self) -> list[str]:
        """Write the configuration for `self.host` and return the command; the access log goes to stdout."""

    def line(self, text: str) -> tuple[Seen, str] | None:
        """Parse a line of the access log, and return the user agent too. Here: Apache's combined format."""
        found = _COMBINED.search(text)
        if not found:
            return None
        method, path, status, size, agent = found.groups()
        target = classify(method, path)
        seen = Seen(method, path, int(status), int(size), target.kind, target.repository, target.reference)
        return seen, agent

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context of the tests' own client; None: no TLS."""
        return None

    def authorize(self) -> Authorize | None:
        """Return the Authorization of the tests' own client, which may do everything."""
        return None

    # ---- where it is

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls_context() else ''}://{self.host}"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"registry {self.name} is not running")
        return self._process.pid

    def client(self) -> Client:
        """Return a new connection of the tests' own client; use with `with`."""
        return Client(self.host, tls=self.tls_context(), authorize=self.authorize())

    # ---- life

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop it permanently."""
        self.stop()

    def start(self) -> Self:
        """Start on the same port as before, if any, and wait for a response. Raises RuntimeError with the process's
        output."""
        keep, end = self.port, time.monotonic() + START_WITHIN
        while True:
            self.port = keep or _free_port()
            with self.log.open("ab") as out, self.errors.open("wb") as err:
                self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            if self._responds(end):
                return self
            self.kill()
            said = self.errors.read_text(errors="replace")
            if "address already in use" not in said or time.monotonic() > end:
                raise RuntimeError(f"registry {self.name} did not start: {said[:800]}")

    def stop(self) -> None:
        """Stop the process; its data remain."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._end(subprocess.Popen.kill)

    def restart(self) -> None:
        """Kill the process and start it again on its port."""
        self.kill()
        self.start()

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        how(process)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _responds(self, end: float) -> bool:
        """Wait until a request is in the log of *this* process, so that it is not another process that has the port."""
        process = self._process
        while process and process.poll() is None and time.monotonic() < end:
            if _accepts(self.port) and self._probe(within=1.0):
                return True
            time.sleep(0.005)  # between two checks of a starting process
        return False

    # ---- what it was asked

    def mark(self) -> None:
        """Exclude earlier requests from the counts."""
        self.settle()
        self._offset = self.log.stat().st_size

    def requests(self) -> list[Seen]:
        """Return the requests since `mark` in the order of their responses, without those of the tests' own client."""
        self.settle()
        return self.read_log()

    def read_log(self) -> list[Seen]:
        """Return the same from the log so far, without a request; the latest may be missing."""
        with self.log.open("rb") as lines:
            lines.seek(self._offset)
            read = [self.line(line.decode(errors="replace")) for line in lines]
        return [found[0] for found in read if found and not found[1].startswith(OWN_AGENT)]

    def counts(self, *, status: int | None = None) -> Counter[str]:
        """Return the number of requests of each kind since `mark`, with any status or with this one."""
        return Counter(seen.kind for seen in self.requests() if status in (None, seen.status))

    def writes(self) -> list[Seen]:
        """Return the requests since `mark` that change something."""
        return [seen for seen in self.requests() if seen.method not in ("GET", "HEAD")]

    def settle(self) -> None:
        """Wait until everything that was answered is in the log. Done twice, because a line may be written after its
        response."""
        if self.running and not (self._probe(30.0) and self._probe(30.0)):
            raise RuntimeError(f"the access log of {self.name} does not settle")

    def _probe(self, within: float) -> bool:
        """Send a recognisable request and wait for its line in the log."""
        agent = f"{OWN_AGENT} probe-{next(_serial)}."
        position = self.log.stat().st_size
        with suppress(OSError), Client(self.host, tls=self.tls_context(), agent=agent, timeout=within) as client:
            client.ask("GET", "/v2/")
            return eventually(lambda: self._has(position, agent), within)
        return False

    def _has(self, position: int, words: str) -> bool:
        with self.log.open("rb") as lines:
            lines.seek(position)
            return words.encode() in lines.read()

    # ---- what it holds

    def tags(self, repository: str) -> list[str]:
        with self.client() as client:
            return client.tags(repository)

    def manifest(self, repository: str, reference: str) -> Response:
        with self.client() as client:
            return client.manifest(repository, reference)

    def has_blob(self, repository: str, digest: str) -> bool:
        with self.client() as client:
            return client.has_blob(repository, digest)


def eventually(condition: Callable[[], bool], within: float, step: float = 0.002) -> bool:
    """Wait until `condition` is true; return False on a timeout (seconds)."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    """Whether a process listens; a socket connected to itself (both ends on this port) does not count."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0 and probe.getsockname() != probe.getpeername()
