"""The services of Amazon ECR and ECR Public: they create repositories, list them, and issue passwords for a registry.

Source: Amazon ECR API reference, "CreateRepository", "DescribeRepositories" and "GetAuthorizationToken".
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from mirror.errors import AuthError, ConfigError, Refused, RemoteError
from mirror.registry.auth.expiring_logins import IssuedPassword
from mirror.registry.ecr_hosts import EcrHost, parse_ecr_host
from mirror.registry.http.host_settings import EcrRepositorySettings
from mirror.registry.listings import MAX_NAMES, MAX_PAGES
from mirror.util.cancellation import Stop, Work
from mirror.util.single_flight import LazyValue

if TYPE_CHECKING:
    from mirror.registry.aws import EcrApi

PAGE_SIZE = 1000  # repositories in a page of DescribeRepositories, the maximum
MIN_LIFETIME, MAX_LIFETIME = 60.0, 12 * 3600.0  # seconds; limits for the lifetime of a password that AWS reports


class EcrService:
    """The services of Amazon ECR for one registry host. The API is opened on first use. Close the object after use.

    Thread-safe. Calls cannot be interrupted, so a request to stop takes effect only between calls. All methods raise
    AuthError, RateLimited, NetworkError, RemoteError, ConfigError, Cancelled."""

    origin = "AWS (login: ecr)"

    def __init__(self, host: str, settings: EcrRepositorySettings) -> None:
        self._host = host
        self._names = parse_ecr_host(host) or EcrHost()
        self._settings = settings
        self._api: LazyValue[EcrApi] = LazyValue(lambda work: self._open_api())
        self._names_in_registry: LazyValue[tuple[str, ...]] = LazyValue(self._read_repositories)

    def _open_api(self) -> EcrApi:
        """Open a client for the API of Amazon ECR."""
        from mirror.registry.aws import EcrApi  # noqa: PLC0415 (boto3 is an extra, and importing it takes 0.2 s)

        return EcrApi(self._host, self._names, self._settings.endpoint)

    def close(self) -> None:
        """Close idle connections."""
        api = self._api.value_if_created()
        if api is not None:
            api.close()

    def container(self, repository: str) -> str:
        """Return the name of the object to create for a push to `repository`: on Amazon ECR, the repository itself."""
        return repository

    def create(self, repository: str, work: Work) -> bool:
        """Create a repository with the configured settings. Return False if it already existed."""
        what = f"creating {self._host}/{repository}"
        name = self._names.repository_name(repository)
        if not name:
            hint = f"write {self._host}/ALIAS/{repository}"
            raise ConfigError(f"{what}: ECR Public needs the alias of a registry in the path", hint=hint)
        work.stop.raise_if_requested()
        try:
            self._api.get(work).create_repository(what, self._parameters(name))
        except RemoteError as error:
            if error.registry_code == "RepositoryAlreadyExistsException":
                return False
            raise
        return True

    def _parameters(self, name: str) -> dict[str, object]:
        """Return the parameters with which CreateRepository creates the repository `name`."""
        settings, parameters = self._settings, dict[str, object](repositoryName=name)
        if self._names.account:
            parameters["registryId"] = self._names.account  # never the account of the credentials by mistake
        if settings.immutable_tags is not None:
            parameters["imageTagMutability"] = "IMMUTABLE" if settings.immutable_tags else "MUTABLE"
        if settings.scan_on_push is not None:
            parameters["imageScanningConfiguration"] = {"scanOnPush": settings.scan_on_push}
        if settings.kms_key:
            parameters["encryptionConfiguration"] = {"encryptionType": "KMS", "kmsKey": settings.kms_key}
        if settings.tags:
            parameters["tags"] = [{"Key": key, "Value": value} for key, value in settings.tags.items()]
        return parameters

    @property
    def lists_repositories(self) -> bool:
        """Whether the API lists all repositories of the host. ECR Public lists only the repositories of one account."""
        return not self._names.public

    def list_repositories(self, prefix: str, work: Work) -> Iterable[str]:
        """Return the repositories whose names begin with `prefix`. The list is read once.

        Also raises Refused (too_many) if the list is too long."""
        return [name for name in self._names_in_registry.get(work) if name.startswith(prefix)]

    def _read_repositories(self, work: Work) -> tuple[str, ...]:
        """Request the names of all repositories in the registry, page by page."""
        what = f"listing the repositories of {self._host}"
        parameters: dict[str, object] = {"maxResults": PAGE_SIZE}
        if self._names.account:
            parameters["registryId"] = self._names.account
        names: dict[str, None] = {}
        for _ in range(MAX_PAGES):
            work.stop.raise_if_requested()
            response = self._api.get(work).describe_repositories(what, parameters)
            entries = response.get("repositories")
            page = [entry.get("repositoryName") for entry in entries] if isinstance(entries, list) else [None]
            if not all(isinstance(name, str) for name in page):
                raise RemoteError(f"{what}: the response of AWS is not a list of repositories", code="bad_response")
            names |= dict.fromkeys(map(str, page))
            token = response.get("nextToken")
            if not token:
                return tuple(names)
            if len(names) > MAX_NAMES or token == parameters.get("nextToken"):
                break
            parameters["nextToken"] = token
        raise Refused(f"{what}: the list does not end, or has more than {MAX_NAMES} names", code="too_many")

    def issue(self, stop: Stop) -> IssuedPassword:
        """Return a new password for the registry, with its lifetime, which is 12 hours at AWS."""
        what = f"getting a password for {self._host}"
        stop.raise_if_requested()
        response = self._api.get(Work(stop)).get_authorization_token(what)
        data = response.get("authorizationData")
        entry = data[0] if isinstance(data, list) and data else data  # ECR Public sends no list
        token = entry.get("authorizationToken") if isinstance(entry, Mapping) else None
        try:
            text = base64.b64decode(token, validate=True).decode() if isinstance(token, str) else ""
        except (binascii.Error, ValueError):
            text = ""
        username, _, password = text.partition(":")
        if not username or not password or not isinstance(entry, Mapping):
            raise AuthError(f"{what}: the response of AWS contains no usable token", code="auth_failed")
        return IssuedPassword(username, password, _lifetime(entry.get("expiresAt"), response))


def _lifetime(expires: object, response: Mapping[str, object]) -> float:
    """Return the lifetime of a password in seconds, within the allowed limits.

    The lifetime starts at the time in the Date header, so that a wrong clock on this machine has no effect."""
    if not isinstance(expires, datetime):
        return MIN_LIFETIME
    metadata = response.get("ResponseMetadata")
    headers = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else None
    date = headers.get("date") if isinstance(headers, Mapping) else None
    try:
        now = parsedate_to_datetime(str(date)).timestamp()
    except ValueError:
        now = time.time()
    return max(MIN_LIFETIME, min(MAX_LIFETIME, expires.timestamp() - now))
