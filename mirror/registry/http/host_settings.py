"""The settings of one host, as plain values: a store never reads the configuration file."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from mirror.errors import AuthError, printable
from mirror.limits import Rate
from mirror.util.structs import RedactedStruct, Struct


class Secret(RedactedStruct, frozen=True):
    """A password: a plain value, or where to read it when it is first needed. Never shown by repr or str.

    origin: for people, where it came from, like `env HUB_TOKEN`; holds no part of the secret."""

    HIDDEN = ("plain",)

    origin: str
    env: str | None = None
    file: Path | None = None
    plain: str | None = None

    def present(self) -> str | None:
        """What is wrong with it without reading it; None if it looks usable."""
        if self.env is not None and not os.environ.get(self.env):
            return f"the environment variable {self.env} is not set or empty"
        if self.file is not None:
            try:
                if self.file.stat().st_size == 0:
                    return f"{self.file} is empty"
            except OSError as error:
                return f"{self.file}: {error.strerror}"
        return None

    def reveal(self) -> str:
        """The secret itself. One trailing newline of a file is not part of it. Raises AuthError."""
        if self.plain is not None:
            return self.plain
        wrong = self.present()
        if wrong:
            raise AuthError(wrong, hint="it holds a password of the configuration")
        if self.env is not None:
            return os.environ[self.env]
        assert self.file is not None  # noqa: S101 - one of the three is set; config/registries.py sees to it
        try:
            return self.file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise AuthError(f"{self.file} cannot be read: {printable(error)}") from None

    def __repr__(self) -> str:
        return f"Secret({self.origin})"

    __str__ = __repr__


class Tls(Struct, frozen=True):
    """ca: PEM file that replaces the system's authorities; cert and key: of the client; verify: False accepts any."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True


class V1(Enum):
    """Whether the v1 protocol may be used for a source (docs/configuration.md, `v1`)."""

    NEVER = "never"
    AUTO = "auto"
    ONLY = "only"
    PER_TAG = "per-tag"


class HostSettings(RedactedStruct, frozen=True):
    """One registry. host: as in references, with the port, `docker.io` for Docker Hub."""

    HIDDEN = ("proxy",)

    host: str
    plain_http: bool = False
    username: str | None = None
    password: Secret | None = None
    tls: Tls = Tls()
    parallel: int | None = None  # requests in flight; None: 8
    rate: Rate | None = None
    proxy: str | None = None  # URL; may hold a password
    no_proxy: frozenset[str] = frozenset()  # hosts that are contacted without the proxy, and those below them
    connect_timeout: float = 10.0  # seconds
    idle_timeout: float = 60.0  # seconds
    token_realms: frozenset[str] = frozenset()
    allow_hosts: frozenset[str] = frozenset()
    mount: bool = True
    exclusive: bool = False
    v1: V1 = V1.AUTO
    v1_checksums: str = "require"
