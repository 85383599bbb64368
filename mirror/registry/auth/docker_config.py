"""Reads Docker's client configuration (config.json) and Podman's auth.json, which has the same format.

Only the keys for credentials are read: `auths`, `credHelpers`, `credsStore`. A file that exists but cannot be parsed is
an error. If it were treated as having no credentials, anonymous requests would fail later with a less clear error.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.errors import AuthError, printable
from mirror.oci.reference import DOCKER_HUB, contains_repository
from mirror.util.files import local_error
from mirror.util.structs import RedactedStruct

MAX_BYTES = 1024 * 1024
HUB_KEY = "https://index.docker.io/v1/"  # Docker's name for Docker Hub, in its configuration and for helpers

_HUB_NAMES = {DOCKER_HUB, "index.docker.io", "registry-1.docker.io"}
_API_PATHS = {"", "v1", "v2"}


def home_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the user's home directory: $HOME if it is an absolute path, otherwise the entry in the user database.

    Return None if neither is known."""
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return Path(home)
    try:
        found = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return Path(found) if found.startswith("/") else None


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the configuration files to read, in order. Podman's file is read only if $REGISTRY_AUTH_FILE names it."""
    files = []
    directory = environ.get("DOCKER_CONFIG", "")
    home = home_directory(environ)
    if directory:
        files.append(Path(directory) / "config.json")
    elif home is not None:
        files.append(home / ".docker" / "config.json")
    if environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(environ["REGISTRY_AUTH_FILE"]))
    return files


def display_path(path: Path, environ: Mapping[str, str]) -> str:
    """Return `path` for messages, with `~` in place of the home directory."""
    home = home_directory(environ)
    if home is not None and home != Path("/") and path.is_relative_to(home):
        return f"~/{path.relative_to(home)}"
    return str(path)


def normalize_host(text: str, port: int = 443) -> str:
    """Return the host in a key of Docker's configuration or in a server URL, in a normalized form.

    The result is in lower case, without the scheme, the path and the default port, which is `port`. For all names of
    Docker Hub, the result is `docker.io`."""
    host = text.rpartition("://")[2].partition("/")[0].lower().removesuffix(f":{port}")
    return DOCKER_HUB if host in _HUB_NAMES else host


class Login(RedactedStruct, frozen=True):
    """The credentials in an entry of `auths` in Docker's configuration.

    They apply to the repository `path` and all repositories below it, or to the whole host if `path` is empty."""

    HIDDEN = ("password", "identity_token", "registry_token")

    path: str
    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class DockerConfig:
    """The parsed content of one Docker configuration file. Immutable."""

    def __init__(self, name: str, document: dict[str, Any]) -> None:
        self.name = name  # for messages
        self._auths = self._get_mapping(document, "auths")
        self._helpers = self._get_mapping(document, "credHelpers")
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise self._invalid_error("credsStore is not a string")
        self._store = store

    @classmethod
    def read(cls, path: Path, name: str) -> DockerConfig | None:
        """Read and parse a configuration file. Return None if it does not exist.

        Raises AuthError if it is unreadable or invalid, LocalError if too many files are open."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # the file is not at fault
                raise local_error("read", path, error) from error
            raise AuthError(f"{name} cannot be read: {printable(error.strerror)}", hint=_HINT) from error
        if len(data) > MAX_BYTES:
            raise AuthError(f"{name} is larger than {MAX_BYTES} bytes", hint=_HINT)
        try:
            document = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            # The parser's message and the cause are omitted, because they may quote the file.
            raise AuthError(f"{name} is not valid JSON", hint=_HINT) from None
        if not isinstance(document, dict):
            raise AuthError(f"{name} is not a JSON object", hint=_HINT)
        return cls(name, document)

    def helper(self, host: str, port: int) -> str | None:
        """Return the name of the credential helper for a host, or None if there is none.

        Raises AuthError if the entry for the host is not a string."""
        for key, helper in self._helpers.items():
            if normalize_host(key, port) == host:
                if not isinstance(helper, str):
                    raise self._invalid_error(f"credHelpers for {printable(host)} is not a string")
                return helper
        return self._store or None

    def find_login(self, host: str, repository: str, port: int) -> Login | None:
        """Return the credentials for a repository from `auths`, or None if there are none.

        The entry with the longest path that contains the repository is used. If several entries have this path, the
        entry whose key has the usual form is preferred (`host/path`, or Docker's own key for Docker Hub). Otherwise,
        the first entry is used. Entries without credentials are skipped."""
        found: list[tuple[int, bool, Login]] = []
        for key, entry in self._auths.items():
            path = _key_path(key)
            if normalize_host(key, port) != host or not contains_repository(path, repository):
                continue
            login = self._parse_login(key, path, entry)
            if login is not None:
                is_usual_key = key == (HUB_KEY if host == DOCKER_HUB else f"{host}/{path}".rstrip("/"))
                found.append((-len(path), not is_usual_key, login))
        return min(found, key=lambda one: one[:2])[2] if found else None

    def _parse_login(self, key: str, path: str, entry: object) -> Login | None:
        """Parse one entry of `auths`. Return None if it has no credentials. Raises AuthError if it is malformed."""
        if not isinstance(entry, dict):
            raise self._invalid_error(f"the entry {printable(key, 80)!r} of auths is not an object")
        texts = {name: entry.get(name) or "" for name in _FIELDS}
        if not all(isinstance(text, str) for text in texts.values()):
            raise self._invalid_error(f"the entry {printable(key, 80)!r} of auths has a field that is not a string")
        username, password = texts["username"], texts["password"]
        if texts["auth"]:
            username, password = self._decode_auth(key, texts["auth"])
        identity, registry = texts["identitytoken"], texts["registrytoken"]
        if not (username or password or identity or registry):
            return None
        return Login(path, username, password, identity, registry)

    def _decode_auth(self, key: str, auth: str) -> tuple[str, str]:
        """Return the user name and password in an `auth` value. Raises AuthError if it is malformed."""
        try:
            raw = base64.b64decode(auth.replace("\n", "").replace("\r", ""), validate=True)
            username, colon, password = raw.decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            raise self._invalid_error(f"`auth` of {printable(key, 80)!r} is not base64-encoded UTF-8") from None
        if not colon:
            raise self._invalid_error(f"`auth` of {printable(key, 80)!r} has no colon between user and password")
        return username, password.rstrip("\0")  # old versions of Docker padded entries with NULs

    def _get_mapping(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        """Return the JSON object under `key`, or an empty dict if it is missing. Raises AuthError for other values."""
        found = document.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self._invalid_error(f"{key} is not an object")
        return found

    def _invalid_error(self, why: str) -> AuthError:
        """Return the error for an invalid configuration file."""
        return AuthError(f"{self.name}: {why}", hint=_HINT)


_FIELDS = ("auth", "username", "password", "identitytoken", "registrytoken")
_HINT = "this file is read for credentials; fix it, or set username and password in mirror's own configuration"


def _key_path(key: str) -> str:
    """Return the repository path in a key of `auths`: `ns` for `reg/ns`, but empty for `reg` and `https://reg/v2/`."""
    if "://" in key:
        return ""
    path = key.partition("/")[2].strip("/")
    return "" if path in _API_PATHS else path
