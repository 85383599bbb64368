"""The settings of a registry as plain values, so that its client does not depend on the configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from mirror.errors import AuthError, printable
from mirror.limits import Rate
from mirror.oci.reference import contains_repository
from mirror.util.bandwidth import Bandwidth
from mirror.util.structs import RedactedStruct, Struct


class Secret(RedactedStruct, frozen=True):
    """A password or another secret, given as a plain value or read from an environment variable or file when needed.

    `origin` is used in messages to say where the secret comes from, such as `env HUB_TOKEN`. Neither `origin` nor
    `repr` reveals any part of the secret."""

    HIDDEN = ("plain",)

    origin: str
    env: str | None = None
    file: Path | None = None
    plain: str | None = None

    def problem(self) -> str | None:
        """Return the reason why the secret cannot be used, or None if no problem is found. Does not read the file."""
        if self.env is not None and not os.environ.get(self.env):
            return f"the environment variable {self.env} is unset or empty"
        if self.file is not None:
            try:
                if self.file.stat().st_size == 0:
                    return f"{self.file} is empty"
            except OSError as error:
                return f"{self.file}: {error.strerror}"
        return None

    def reveal(self) -> str:
        """Return the plain secret. One line break at the end of a file is removed.

        Raises AuthError if the environment variable or the file is missing, empty or unreadable."""
        if self.plain is not None:
            return self.plain
        problem = self.problem()
        if problem:
            raise AuthError(problem, hint="set this variable or write this file: the configuration refers to it")
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


class PathLogin(Struct, frozen=True):
    """The credentials for the repository `path` and for all repositories below it."""

    path: str
    username: str
    password: Secret


class TlsSettings(Struct, frozen=True):
    """The TLS settings of a registry. All files are PEM files."""

    ca: Path | None = None  # certificate authorities that replace those of the system
    cert: Path | None = None  # the client certificate
    key: Path | None = None  # the key of the client certificate; if it is None, `cert` also contains the key
    verify: bool = True  # if false, every certificate is accepted


class V1Mode(Enum):
    """The rule that decides when the v1 protocol is used for a source (docs/configuration.md, `v1`)."""

    NEVER = "never"
    AUTO = "auto"
    ONLY = "only"
    PER_TAG = "per-tag"


class EcrRepositorySettings(Struct, frozen=True):
    """The settings of new repositories on Amazon ECR. None and empty values leave the choice to ECR.

    endpoint: the URL of the API, for all calls; empty for the endpoint that boto3 chooses."""

    immutable_tags: bool | None = None
    scan_on_push: bool | None = None
    kms_key: str = ""
    tags: Mapping[str, str] = {}  # of the AWS resource, not of images
    endpoint: str = ""


class HarborProjectSettings(Struct, frozen=True):
    """The settings of new projects on Harbor. None leaves the choice to Harbor. `storage_limit` is in bytes."""

    public: bool = False
    scan_on_push: bool | None = None
    storage_limit: int | None = None


class HostSettings(RedactedStruct, frozen=True):
    """The settings of one registry. `host` is its name in references, such as `docker.io` or `example.com:5000`.

    `username` and `password` are the credentials of the host. They apply to all requests except those for repositories
    that have credentials of their own in `paths`."""

    HIDDEN = ("proxy",)

    host: str
    plain_http: bool = False
    username: str | None = None
    password: Secret | None = None
    paths: tuple[PathLogin, ...] = ()
    tls: TlsSettings = TlsSettings()
    parallel: int | None = None  # concurrent requests; None means 8
    rate: Rate | None = None
    bandwidth: Bandwidth | None = None  # of blobs; also applies to the hosts to which the registry redirects
    proxy: str | None = None  # URL; may contain a password
    no_proxy: frozenset[str] = frozenset()  # these hosts and their subdomains are contacted without the proxy
    connect_timeout: float = 10.0  # seconds
    idle_timeout: float = 60.0  # seconds
    token_realms: frozenset[str] = frozenset()  # hosts of token services that may receive the credentials
    allow_hosts: frozenset[str] = frozenset()  # hosts that responses may name even if they have private addresses
    mount: bool = True  # blobs are mounted from other repositories on the host
    exclusive: bool = False  # no other program writes to this target
    create: EcrRepositorySettings | HarborProjectSettings | None = None  # how missing repositories are created
    login: str = ""  # "ecr": the service that issues passwords; empty for none
    v1: V1Mode = V1Mode.AUTO
    v1_checksums: str = "require"  # "require" or "warn": what to do if the checksum of a v1 layer does not match

    @property
    def passwords(self) -> tuple[Secret, ...]:
        """All passwords in the settings."""
        own = () if self.password is None else (self.password,)
        return (*own, *(login.password for login in self.paths))

    def login_path(self, repository: str) -> str:
        """Return the path in `paths` whose credentials apply to a repository: the longest path that contains it.

        The path is empty if the credentials of the host apply. For a request that concerns no single repository, such
        as a request for the catalog, `repository` is empty."""
        containing = (login.path for login in self.paths if contains_repository(login.path, repository))
        return max(containing, key=len, default="")

    def find_login(self, repository: str) -> tuple[str, Secret] | None:
        """Return the user name and the password for requests about a repository, or None if the settings have none."""
        path = self.login_path(repository)
        if path:
            return next((login.username, login.password) for login in self.paths if login.path == path)
        if self.username is None or self.password is None:
            return None
        return self.username, self.password
