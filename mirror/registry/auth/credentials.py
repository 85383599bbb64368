"""Finds the credentials for a registry in mirror's own configuration, or else in Docker's.

Files are read and helpers are run when they are first needed. The results are kept until a caller requests fresh ones.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from mirror.errors import AuthError, ConfigError
from mirror.oci.reference import DOCKER_HUB, Repository
from mirror.registry.auth import credential_helpers
from mirror.registry.auth.docker_config import HUB_KEY, DockerConfig, Login, config_files, display_path
from mirror.registry.http.host_settings import HostSettings, Secret
from mirror.util.cancellation import Stop
from mirror.util.single_flight import SingleFlight, copy_error
from mirror.util.structs import RedactedStruct

HELPER_TIMEOUT = 30.0  # seconds for one run of a helper

_IDENTITY_USER = "<token>"  # Docker's user name for a secret that is an identity token, not a password


class Credential(RedactedStruct, frozen=True):
    """A user name with a password, an identity token (for an OAuth2 token service) or a bearer token.

    `origin` tells users where the credential was found. It contains no part of a secret. After `renew_at`, a new
    credential should be looked up. After `expires_at`, the credential is invalid. Both are values of `Clock.now`, in
    seconds."""

    HIDDEN = ("password", "identity_token", "registry_token")

    username: str | None = None
    password: str | None = None
    identity_token: str | None = None
    registry_token: str | None = None
    origin: str = ""
    renew_at: float = math.inf
    expires_at: float = math.inf

    @classmethod
    def from_secret(cls, username: str, secret: str, origin: str) -> Credential:
        """Create a credential from a user name and a secret.

        As in Docker, the secret of the user `<token>` is an identity token."""
        if username == _IDENTITY_USER:
            return cls(identity_token=secret, origin=origin)
        return cls(username, secret, origin=origin)

    @property
    def description(self) -> str:
        """A description for messages, without the secret, such as `user acme, password from env HUB_TOKEN`."""
        if self.registry_token is not None:
            kind = "token"
        elif self.identity_token is not None:
            kind = "identity token"
        else:
            kind = "password"
        return f"user {self.username}, {kind} from {self.origin}" if self.username else f"{kind} from {self.origin}"

    def secrets(self) -> frozenset[str]:
        """Return all secret strings in the credential."""
        return frozenset(text for text in (self.password, self.identity_token, self.registry_token) if text)


class CredentialService(Protocol):
    """A service that provides the credential for one registry, and renews it before it expires. Thread-safe."""

    def find(self, *, fresh: bool, stop: Stop) -> Credential:
        """Return the credential, or a new credential if `fresh` is true. May send requests. Raises MirrorError."""
        ...


class CredentialSource:
    """The source of credentials for all hosts. Thread-safe. Threads that need the same credential share one helper run.

    `hosts` contains the settings of the hosts that are configured. `on_secret` is called with each new secret and
    its user name before the credential is returned, so that the secret can be redacted from output. `services` are
    asked for the credentials of their hosts; no other credentials are used there."""

    def __init__(
        self,
        hosts: Mapping[str, HostSettings],
        environ: Mapping[str, str] | None = None,
        *,
        helper_timeout: float = HELPER_TIMEOUT,
        on_secret: Callable[[str, str | None], None] | None = None,
        services: Mapping[str, CredentialService] | None = None,
    ) -> None:
        self._hosts = hosts
        self._services = services or {}
        self._environ = os.environ if environ is None else environ
        self._helper_timeout = helper_timeout
        self._on_secret = on_secret
        self._files = config_files(self._environ)
        self._lock = threading.Lock()
        self._configured: dict[tuple[str, str], Credential] = {}  # by host and path
        self._docker_configs: dict[Path, DockerConfig | None] = {}
        # The keys are a helper and a server. No lock is needed: entries are replaced as a whole, and never removed.
        self._helper_responses: dict[tuple[str, str], Credential | AuthError | None] = {}
        self._helper_calls: SingleFlight[tuple[str, str, bool], Credential | None] = SingleFlight("a credential helper")
        self._secrets: set[str] = set()

    @property
    def searched_files(self) -> str:
        """The paths of Docker's configuration files that are searched, as a string for messages."""
        names = [display_path(path, self._environ) for path in self._files]
        return " or ".join(names) if names else "Docker's configuration (no home directory is known)"

    def check_docker_files(self, repositories: Iterable[Repository]) -> None:
        """Read Docker's configuration now, unless mirror's own configuration has credentials for all `repositories`.

        Raises ConfigError if a file is invalid, so that the problem is reported before the first request."""
        if all(one.host in self._services or self._settings_of(one.host).find_login(one.path) for one in repositories):
            return
        try:
            for path in self._files:
                self._read_file(path, fresh=False)
        except AuthError as error:
            raise ConfigError(error.what, hint=error.hint) from error

    def find(
        self, host: str, repository: str = "", *, fresh: bool = False, stop: Stop | None = None
    ) -> Credential | None:
        """Return the credential for `repository` on `host`, or None if there is none.

        `host` is written as in references. If `fresh` is true, files are read and helpers are run again. Otherwise, a
        helper that has failed is not run again. May block while a helper runs. Raises AuthError if a secret or file
        cannot be read or a helper failed, and Cancelled."""
        found = self._look_up(host, repository, fresh, stop or Stop())
        if found is not None:
            with self._lock:
                new = found.secrets() - self._secrets
                self._secrets |= new
            if self._on_secret is not None:
                for secret in new:
                    self._on_secret(secret, found.username)
        return found

    def login_path(self, host: str, repository: str) -> str:
        """Return the path in mirror's own configuration whose credentials apply to a repository.

        The path is empty if the credentials of the host apply."""
        return self._settings_of(host).login_path(repository)

    def known_secrets(self) -> frozenset[str]:
        """Return the secrets of all credentials returned so far, for redaction."""
        with self._lock:
            return frozenset(self._secrets)

    def _look_up(self, host: str, repository: str, fresh: bool, stop: Stop) -> Credential | None:
        """Find a credential, as `find` does, but without recording its secrets."""
        service = self._services.get(host)
        if service is not None:
            return service.find(fresh=fresh, stop=stop)
        settings = self._settings_of(host)
        login = settings.find_login(repository)
        if login is not None:
            return self._configured_credential((host, settings.login_path(repository)), *login, fresh)
        port = 80 if settings.plain_http else 443
        name = host.removesuffix(f":{port}")
        for path in self._files:
            file = self._read_file(path, fresh)
            if file is None:
                continue
            helper = file.helper(name, port)
            if helper is not None:
                response = self._helper_credential(helper, HUB_KEY if name == DOCKER_HUB else host, port, fresh, stop)
                if response is not None:
                    return response
            entry = file.find_login(name, repository, port)
            if entry is not None:
                return _entry_credential(entry, file.name)
        return None

    def _settings_of(self, host: str) -> HostSettings:
        """Return the settings of a host. If it is not configured, return the defaults."""
        return self._hosts.get(host) or HostSettings(host)

    def _configured_credential(self, key: tuple[str, str], username: str, password: Secret, fresh: bool) -> Credential:
        """Return a credential from mirror's own configuration. Its password is read on first use and cached.

        key: the host, and the path to which the credential applies."""
        with self._lock:
            known = self._configured.get(key)
        if known is None or fresh:
            known = Credential.from_secret(username, password.reveal(), password.origin)
            with self._lock:
                self._configured[key] = known
        return known

    def _read_file(self, path: Path, fresh: bool) -> DockerConfig | None:
        """Return the content of a Docker configuration file, or None if the file does not exist."""
        with self._lock:
            if path in self._docker_configs and not fresh:
                return self._docker_configs[path]
        read = DockerConfig.read(path, display_path(path, self._environ))
        with self._lock:
            self._docker_configs[path] = read
        return read

    def _helper_credential(self, helper: str, server: str, port: int, fresh: bool, stop: Stop) -> Credential | None:
        """Return the credential that a helper has for `server`. Threads that need the same credential share one run."""

        def ask() -> Credential | None:
            """Return the credential from the helper, cached if another thread has just run it and `fresh` is false."""
            if not fresh and (helper, server) in self._helper_responses:
                return self._cached_response(helper, server)
            return self._run_helper(helper, server, port, stop)

        if not fresh and (helper, server) in self._helper_responses:
            return self._cached_response(helper, server)
        return self._helper_calls.share((helper, server, fresh), ask, stop)

    def _cached_response(self, helper: str, server: str) -> Credential | None:
        """Return the cached response of a helper, or raise its cached error."""
        known = self._helper_responses[helper, server]
        if isinstance(known, AuthError):
            raise copy_error(known)
        return known

    def _run_helper(self, helper: str, server: str, port: int, stop: Stop) -> Credential | None:
        """Run a helper, and cache its response or error."""
        try:
            response = credential_helpers.ask_helper(
                helper, server, environ=self._environ, stop=stop, port=port, timeout=self._helper_timeout
            )
        except AuthError as error:
            self._helper_responses[helper, server] = error
            raise
        origin = f"docker-credential-{helper}"
        found = Credential.from_secret(response.username, response.secret, origin) if response is not None else None
        self._helper_responses[helper, server] = found
        return found


def _entry_credential(login: Login, origin: str) -> Credential:
    """Return the credential for an entry of `auths` in Docker's configuration."""
    if login.username == _IDENTITY_USER and not login.identity_token:
        return Credential.from_secret(login.username, login.password, origin)
    return Credential(
        login.username or None,
        login.password or None,
        login.identity_token or None,
        login.registry_token or None,
        origin,
    )
