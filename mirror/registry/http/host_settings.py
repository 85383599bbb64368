"""The settings of a registry as plain values, so that its client does not depend on the configuration file."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from mirror.errors import AuthError, printable
from mirror.limits import Rate
from mirror.util.structs import RedactedStruct, Struct


class Secret(RedactedStruct, frozen=True):
    """A password: a plain value, or the environment variable or file from which it is read on use. Hidden in repr.

    origin: where it comes from, for messages, such as `env HUB_TOKEN`; contains no part of the secret."""

    HIDDEN = ("plain",)

    origin: str
    env: str | None = None
    file: Path | None = None
    plain: str | None = None

    def problem(self) -> str | None:
        """Return why the secret is not usable, without reading it; None if it seems usable."""
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
        """Return the secret. One trailing line break of a file is removed. Raises AuthError."""
        if self.plain is not None:
            return self.plain
        problem = self.problem()
        if problem:
            raise AuthError(problem, hint="the configuration reads a password from it")
        if self.env is not None:
            return os.environ[self.env]
        assert self.file is not None  # noqa: S101 - one of the three is set; config/registries.py ensures it
        try:
            return self.file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise AuthError(f"{self.file} cannot be read: {printable(error)}") from None

    def __repr__(self) -> str:
        return f"Secret({self.origin})"

    __str__ = __repr__


class TlsSettings(Struct, frozen=True):
    """TLS settings. ca: PEM file with authorities that replace those of the system. cert, key: PEM files of the client
    certificate. verify: False: every certificate is accepted."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True


class V1Mode(Enum):
    """Whether the v1 protocol may be used for a source (docs/configuration.md, `v1`)."""

    NEVER = "never"
    AUTO = "auto"
    ONLY = "only"
    PER_TAG = "per-tag"


class HostSettings(RedactedStruct, frozen=True):
    """The settings of one registry. host: as in references, with the port; `docker.io` for Docker Hub."""

    HIDDEN = ("proxy",)

    host: str
    plain_http: bool = False
    username: str | None = None
    password: Secret | None = None
    tls: TlsSettings = TlsSettings()
    parallel: int | None = None  # concurrent requests; None: 8
    rate: Rate | None = None
    proxy: str | None = None  # URL; may contain a password
    no_proxy: frozenset[str] = frozenset()  # hosts that are contacted without the proxy, and their subdomains
    connect_timeout: float = 10.0  # seconds
    idle_timeout: float = 60.0  # seconds
    token_realms: frozenset[str] = frozenset()
    allow_hosts: frozenset[str] = frozenset()
    mount: bool = True
    exclusive: bool = False
    v1: V1Mode = V1Mode.AUTO
    v1_checksums: str = "require"
