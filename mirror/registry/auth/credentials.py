"""Who we are to a registry: from our configuration, else from docker's, else nobody.

Nothing is read before it is needed; what was read is kept until it is asked for afresh.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mirror.errors import AuthError, ConfigError
from mirror.oci.reference import DOCKER_HUB
from mirror.registry.auth import credential_helpers
from mirror.registry.auth.docker_config import HUB_KEY, DockerConfig, Login, config_files, shown
from mirror.registry.http.host_settings import HostSettings, Secret
from mirror.util.cancellation import Stop
from mirror.util.single_flight import Flights, again
from mirror.util.structs import Hiding

HELPER_TIMEOUT = 30.0  # seconds, from start to end

_IDENTITY_USER = "<token>"  # docker's sign that a secret is an identity token, not a password


class Credential(Hiding, frozen=True):
    """A user name with a password, an identity token (for an OAuth2 token service) or a ready bearer token.

    origin: for people, where it came from; holds no part of a secret."""

    HIDDEN = ("password", "identity_token", "registry_token")

    username: str | None = None
    password: str | None = None
    identity_token: str | None = None
    registry_token: str | None = None
    origin: str = ""

    @classmethod
    def of(cls, username: str, secret: str, origin: str) -> Credential:
        """As docker reads it: the secret of the user `<token>` is an identity token."""
        if username == _IDENTITY_USER:
            return cls(identity_token=secret, origin=origin)
        return cls(username, secret, origin=origin)

    @property
    def who(self) -> str:
        """For messages: `user acme, password from env HUB_TOKEN`."""
        if self.registry_token is not None:
            kind = "token"
        elif self.identity_token is not None:
            kind = "identity token"
        else:
            kind = "password"
        return f"user {self.username}, {kind} from {self.origin}" if self.username else f"{kind} from {self.origin}"

    def secrets(self) -> frozenset[str]:
        """Every string in it that nobody may see."""
        return frozenset(text for text in (self.password, self.identity_token, self.registry_token) if text)


class CredentialSource:
    """Finds credentials for hosts. Thread-safe: a helper runs once for all who wait for it, outside of any lock.

    hosts: settings by host, of those that differ from the defaults. on_secret: told each new secret and its user
    before it is handed out, so that it can be kept out of texts."""

    def __init__(
        self,
        hosts: Mapping[str, HostSettings],
        environ: Mapping[str, str] | None = None,
        *,
        helper_timeout: float = HELPER_TIMEOUT,
        on_secret: Callable[[str, str | None], None] | None = None,
    ) -> None:
        self._hosts = hosts
        self._environ = os.environ if environ is None else environ
        self._helper_timeout = helper_timeout
        self._on_secret = on_secret
        self._files = config_files(self._environ)
        self._lock = threading.Lock()
        self._configured: dict[str, Credential] = {}
        self._read: dict[Path, DockerConfig | None] = {}
        # By helper and server. Entries are only ever set, whole: no lock.
        self._answers: dict[tuple[str, str], Credential | AuthError | None] = {}
        self._asking: Flights[tuple[str, str, bool], Credential | None] = Flights("a credential helper")
        self._secrets: set[str] = set()

    @property
    def places(self) -> str:
        """For messages: the files that were, or would be, looked into."""
        names = [shown(path, self._environ) for path in self._files]
        return " or ".join(names) if names else "a docker configuration (there is no home directory)"

    def check(self, hosts: Iterable[str]) -> None:
        """If docker's configuration will be asked for any of `hosts`, read it now, so that a broken one is found
        before anything is contacted. Raises ConfigError."""
        if all(self._login(host) for host in hosts):
            return
        try:
            for path in self._files:
                self._file(path, fresh=False)
        except AuthError as error:
            raise ConfigError(error.what, hint=error.hint) from error

    def find(
        self, host: str, repository: str = "", *, fresh: bool = False, stop: Stop | None = None
    ) -> Credential | None:
        """The credential for `repository` of `host` (as in references); None: nobody has one.

        fresh: read files and ask helpers again. May take as long as a helper takes. Raises AuthError (a secret
        or a file cannot be read; a helper failed, which is remembered until asked afresh), Cancelled."""
        found = self._find(host, repository, fresh, stop or Stop())
        if found is not None:
            with self._lock:
                new = found.secrets() - self._secrets
                self._secrets |= new
            if self._on_secret is not None:
                for secret in new:
                    self._on_secret(secret, found.username)
        return found

    def known_secrets(self) -> frozenset[str]:
        """All secrets handed out so far, for what must strip them from a text."""
        with self._lock:
            return frozenset(self._secrets)

    def _find(self, host: str, repository: str, fresh: bool, stop: Stop) -> Credential | None:
        login = self._login(host)
        if login is not None:
            return self._of_settings(host, *login, fresh)
        settings = self._hosts.get(host)
        port = 80 if settings is not None and settings.plain_http else 443
        name = host.removesuffix(f":{port}")
        for path in self._files:
            file = self._file(path, fresh)
            if file is None:
                continue
            helper = file.helper(name, port)
            if helper is not None:
                answer = self._of_helper(helper, HUB_KEY if name == DOCKER_HUB else host, port, fresh, stop)
                if answer is not None:
                    return answer
            entry = file.login(name, repository, port)
            if entry is not None:
                return _of_entry(entry, file.name)
        return None

    def _login(self, host: str) -> tuple[str, Secret] | None:
        """What our own configuration has for a host."""
        settings = self._hosts.get(host)
        if settings is None or settings.username is None or settings.password is None:
            return None
        return settings.username, settings.password

    def _of_settings(self, host: str, username: str, password: Secret, fresh: bool) -> Credential:
        with self._lock:
            known = self._configured.get(host)
        if known is None or fresh:
            known = Credential.of(username, password.reveal(), password.origin)
            with self._lock:
                self._configured[host] = known
        return known

    def _file(self, path: Path, fresh: bool) -> DockerConfig | None:
        with self._lock:
            if path in self._read and not fresh:
                return self._read[path]
        read = DockerConfig.read(path, shown(path, self._environ))
        with self._lock:
            self._read[path] = read
        return read

    def _of_helper(self, helper: str, server: str, port: int, fresh: bool, stop: Stop) -> Credential | None:
        def ask() -> Credential | None:
            if not fresh and (helper, server) in self._answers:  # by one whose call has just ended
                return self._answered(helper, server)
            return self._ask(helper, server, port, stop)

        if not fresh and (helper, server) in self._answers:
            return self._answered(helper, server)
        return self._asking.share((helper, server, fresh), ask, stop)

    def _answered(self, helper: str, server: str) -> Credential | None:
        known = self._answers[helper, server]
        if isinstance(known, AuthError):
            raise again(known)
        return known

    def _ask(self, helper: str, server: str, port: int, stop: Stop) -> Credential | None:

        try:
            said = credential_helpers.ask_helper(
                helper, server, environ=self._environ, stop=stop, port=port, timeout=self._helper_timeout
            )
        except AuthError as error:
            self._answers[helper, server] = error
            raise
        origin = f"docker-credential-{helper}"
        found = Credential.of(said.username, said.secret, origin) if said is not None else None
        self._answers[helper, server] = found
        return found


def _of_entry(login: Login, origin: str) -> Credential:
    if login.username == _IDENTITY_USER and not login.identity_token:
        return Credential.of(login.username, login.password, origin)
    return Credential(
        login.username or None,
        login.password or None,
        login.identity_token or None,
        login.registry_token or None,
        origin,
    )
