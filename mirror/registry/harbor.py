"""Creates projects with the API of Harbor.

Source: Harbor API v2.0, `POST /api/v2.0/projects`. The first part of a repository's path is its project.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mirror.errors import AuthError, ConfigError
from mirror.limits import Limits
from mirror.registry.auth.authorizer import Anonymous, Scope, push_scopes
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.http.headers import basic_authorization
from mirror.registry.http.host_settings import HarborProjectSettings, HostSettings
from mirror.registry.session import Session
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.retry_policy import Policy

_PERMISSION_HINT = (
    "the user must be allowed to create projects (Configuration > System Settings > Project Creation); "
    "among robot accounts, only system robot accounts can do this"
)


class HarborApiAuthorizer(Anonymous):
    """An Authorizer for the API of Harbor, which accepts Basic credentials, but not the tokens of the registry.

    The credentials are sent with the first request, because the API reports a missing login in several ways.
    Thread-safe."""

    def __init__(self, host: str, credentials: CredentialSource) -> None:
        self._host = host
        self._credentials = credentials

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """Return the Basic credentials for the repository in `scopes`. Raises AuthError if there are none."""
        return self._header(scopes[0].repository, work, fresh=False)

    def _header(self, repository: str, work: Work, *, fresh: bool) -> str:
        """Return the Basic credentials for a repository. If `fresh` is true, they are looked up again."""
        found = self._credentials.find(self._host, repository, fresh=fresh, stop=work.stop)
        if found is None or found.username is None or found.password is None:
            raise AuthError(
                f"{self._host}/{repository}: the API of Harbor needs a user name and a password",
                hint=f"set {registry_key(self._host, 'username')} and password",
            )
        return basic_authorization(found.username, found.password)

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        """Look up the credentials again. Raises AuthError unless they have changed."""
        repository = scopes[0].repository
        if self._header(repository, work, fresh=True) == sent:
            raise AuthError(
                f"{self._host}/{repository}: the API of Harbor does not accept the user name and password",
                hint="check the user name and the secret; " + _PERMISSION_HINT,
                status=401,
            )


class HarborService:
    """A service that creates projects on one Harbor host, with the settings of the registry. Thread-safe.

    Close the object after use."""

    def __init__(
        self,
        settings: HostSettings,
        project: HarborProjectSettings,
        credentials: CredentialSource,
        limits: Limits,
        policy: Policy | None = None,
    ) -> None:
        self._host = settings.host
        self._project = project
        authorizer = HarborApiAuthorizer(settings.host, credentials)
        self._session = Session(settings, limits, authorizer=authorizer, policy=policy)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def container(self, repository: str) -> str:
        """Return the project of a repository."""
        return repository.partition("/")[0]

    def create(self, repository: str, work: Work) -> bool:
        """Create the project of a repository with the configured settings. Return False if it already existed.

        Raises AuthError, NetworkError, RemoteError, ConfigError, Refused."""
        project, _, name = repository.partition("/")
        if not name:
            hint = f"write {self._host}/PROJECT/{repository}"
            raise ConfigError(f"{self._host}/{repository}: Harbor needs a project in the path", hint=hint)
        try:
            response = self._session.call(
                "POST",
                "/api/v2.0/projects",
                work,
                kind="project",
                scopes=push_scopes(repository),
                headers=(("Content-Type", "application/json"), ("Accept", "application/json")),
                body=json.dumps(self._project_document(project)).encode(),
                expect={201, 409},
            )
        except AuthError as error:
            if error.status == 403:
                error.hint = error.hint or _PERMISSION_HINT
            raise error.with_subject(f"creating the project {self._host}/{project}") from error
        return response.status == 201

    def _project_document(self, project: str) -> dict[str, object]:
        """Return the body of the request that creates a project. In Harbor's metadata, all values are strings."""
        settings = self._project
        metadata = {"public": _flag_text(settings.public)}
        if settings.scan_on_push is not None:
            metadata["auto_scan"] = _flag_text(settings.scan_on_push)
        document: dict[str, object] = {"project_name": project, "metadata": metadata}
        if settings.storage_limit is not None:
            document["storage_limit"] = settings.storage_limit
        return document


def _flag_text(flag: bool) -> str:
    """Return a flag in the form of Harbor's API: the string `true` or `false`."""
    return "true" if flag else "false"
