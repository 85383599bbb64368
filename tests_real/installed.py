"""The registries that `make registries` installs, as processes. The tool reaches them through a proxy that counts
requests.

To add a registry, add a subclass with its command line. The tests run with each of MAKERS.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import pytest

from tests.registries.certificates import Authority
from tests.registries.client import Authorize, Client
from tests.registries.journal import Journal
from tests.registries.process import START_WITHIN, eventually
from tests.registries.real import htpasswd_line
from tests.registries.scratch import scratch
from tests.registries.wires import Front

BENCH = Path(__file__).resolve().parent.parent / ".bench" / "bin"  # where `make bench-tools` installs tools
FOLDER = Path(os.environ.get("MIRROR_REGISTRIES", Path(__file__).parent.parent / ".registries" / "bin"))


def find_tool(name: str, folder: Path, make_target: str) -> str:
    """Return the path of a tool, from PATH or `folder`. If it is missing, the test fails and names the make target."""
    found = shutil.which(name) or shutil.which(name, path=str(folder))
    if found is None:
        pytest.fail(f"{name} is neither on PATH nor in {folder}: `make {make_target}` installs it, with Go")
    return found


def program(name: str) -> str:
    """Return the path of an installed program. Raises AssertionError if it is missing."""
    path = FOLDER / name
    assert os.access(path, os.X_OK), f"{path} is missing: `make registries` installs it, with Go"
    return str(path)


class InstalledRegistry(ABC):
    """A registry on loopback, on a port chosen by the system. Its content is removed at the end. Use with `with`.

    `host` is the address of the proxy, whose `journal` has every request of the tool. Our own client bypasses the
    proxy."""

    maker: ClassVar[str]  # the name in docs/compatibility.md
    file: ClassVar[str]  # the program
    mounts: ClassVar[bool] = True  # supports cross-repository mounts
    separate: ClassVar[bool] = True  # a repository has only the blobs that were pushed to it
    referrers_api: ClassVar[bool] = False
    forgets_uploads: ClassVar[bool] = False  # answers a DELETE or GET of an upload session with an error
    asked_for_version: ClassVar[tuple[str, ...]] = ("--version",)
    listening: ClassVar[str] = r"listening on (?:\S+:)(\d+)"  # the output when it is ready, with the port

    tls: Authority | None = None

    def __init__(self, folder: Path, name: str, *, users: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.users = dict(users or {})
        self.front = Front(name=f"{name}'s front")
        self._said = self.folder / "said.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that starts it on a free port of 127.0.0.1."""

    @classmethod
    def version(cls) -> str:
        """Return the version that the program prints, for messages."""
        try:
            command = [program(cls.file), *cls.asked_for_version]
        except AssertionError as missing:
            return str(missing)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    @property
    def host(self) -> str:
        return self.front.host

    @property
    def url(self) -> str:
        return self.front.url

    @property
    def journal(self) -> Journal:
        return self.front.journal

    def client(self) -> Client:
        """Return a client that bypasses the proxy; use with `with`."""
        return Client(f"127.0.0.1:{self._port}", authorize=self._authorize())

    def _authorize(self) -> Authorize | None:
        if not self.users:
            return None
        basic = base64.b64encode(":".join(next(iter(self.users.items()))).encode()).decode()
        return lambda _: f"Basic {basic}"

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.front.stop()
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    def _start(self) -> None:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "OTEL_TRACES_EXPORTER": "none"}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, cwd=self.folder
            )

    def _wait(self) -> None:
        """Wait until it listens, and read its port from the output."""
        end = time.monotonic() + START_WITHIN
        if not eventually(lambda: self._ended() or self._listens(), within=START_WITHIN) or self._ended():
            raise RuntimeError(f"{self.name} did not start: {self._said.read_text(errors='replace')[:800]}")
        with Client(f"127.0.0.1:{self._port}", timeout=max(1.0, end - time.monotonic())) as client:
            client.ask("GET", "/v2/", want=(200, 401))
        self.front.upstream = self._port

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _listens(self) -> bool:
        found = re.search(self.listening, self._said.read_text(errors="replace"))
        self._port = int(found[1]) if found else 0
        return found is not None


class Distribution(InstalledRegistry):
    """The registry of the distribution project. settings: additions to its configuration file."""

    maker = "distribution"
    file = "registry"

    def __init__(self, folder: Path, name: str, *, settings: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(folder, name, **options)
        self._scratch: TemporaryDirectory[str] = scratch(self.folder)
        self._settings = dict(settings or {})

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._scratch.cleanup()

    def command(self) -> list[str]:
        made: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": self._scratch.name},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": "127.0.0.1:0", "secret": "not a secret"},
            **self._settings,
        }
        if self.users:
            users = self.folder / "users.htpasswd"
            users.write_text("".join(htpasswd_line(name, password) for name, password in self.users.items()))
            made["auth"] = {"htpasswd": {"realm": "registry", "path": str(users)}}
        path = self.folder / "config.yml"
        path.write_text(json.dumps(made))  # JSON is YAML
        return [program(self.file), "serve", str(path)]


class Crane(InstalledRegistry):
    """`crane registry serve` of go-containerregistry."""

    maker = "crane registry serve"
    file = "crane"
    asked_for_version = ("version",)
    mounts = False
    separate = False
    forgets_uploads = True
    listening = r"serving on port (\d+)"

    def command(self) -> list[str]:
        return [program(self.file), "registry", "serve", "--address", "127.0.0.1:0"]


class OciRegistry(InstalledRegistry):
    """The in-memory registry of cuelabs.dev/go/oci/ociregistry. flags: of tests_real/ociregistry/main.go."""

    maker = "ociregistry"
    file = "ociregistry"
    referrers_api = True

    def __init__(self, folder: Path, name: str, *, flags: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(folder, name, **options)
        self._flags = flags

    def command(self) -> list[str]:
        return [program(self.file), *self._flags]


MAKERS: tuple[type[InstalledRegistry], ...] = (Distribution, Crane, OciRegistry)
