"""Reading docker's client configuration (config.json, and podman's auth.json of the same form).

Only what holds credentials is read: `auths`, `credHelpers`, `credsStore`. A file that exists and cannot be
understood is an error, never "no credentials": anonymous work with it would fail later, and less clearly.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.errors import AuthError, printable
from mirror.oci.reference import DOCKER_HUB
from mirror.util.structs import Hiding

MAX_BYTES = 1024 * 1024
HUB_KEY = "https://index.docker.io/v1/"  # what docker calls Docker Hub in this file and to its helpers

_HUB_NAMES = {DOCKER_HUB, "index.docker.io", "registry-1.docker.io"}
_API_PATHS = {"", "v1", "v2"}


def home(environ: Mapping[str, str]) -> Path | None:
    """The user's home: $HOME, else as the user database has it (cron and `env -i` set no HOME); None if neither."""
    named = environ.get("HOME", "")
    if named.startswith("/"):
        return Path(named)
    try:
        found = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return Path(found) if found.startswith("/") else None


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """The files that are asked, in their order. podman's own is read only where $REGISTRY_AUTH_FILE names it."""
    files = []
    directory = environ.get("DOCKER_CONFIG", "")
    where = home(environ)
    if directory:
        files.append(Path(directory) / "config.json")
    elif where is not None:
        files.append(where / ".docker" / "config.json")
    if environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(environ["REGISTRY_AUTH_FILE"]))
    return files


def shown(path: Path, environ: Mapping[str, str]) -> str:
    """`path` for people, the home directory as `~`."""
    where = home(environ)
    if where is not None and where != Path("/") and path.is_relative_to(where):
        return f"~/{path.relative_to(where)}"
    return str(path)


def bare_host(text: str, port: int = 443) -> str:
    """How `text` (a key, a server's URL) names a host: lower case, no scheme, path or default `port`; Docker Hub
    by its one name."""
    host = text.rpartition("://")[2].partition("/")[0].lower().removesuffix(f":{port}")
    return DOCKER_HUB if host in _HUB_NAMES else host


class Login(Hiding, frozen=True):
    """An entry of `auths`. path: of the repositories that it is for, empty for all of the host."""

    HIDDEN = ("password", "identity_token", "registry_token")

    path: str
    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class DockerConfig:
    """One file, as it was when it was read. Immutable."""

    def __init__(self, name: str, document: dict[str, Any]) -> None:
        self.name = name  # for people
        self._auths = self._mapping(document, "auths")
        self._helpers = self._mapping(document, "credHelpers")
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise self._broken("credsStore is not a string")
        self._store = store

    @classmethod
    def read(cls, path: Path, name: str) -> DockerConfig | None:
        """None if there is no such file. Raises AuthError if it cannot be read or is not what it ought to be."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise AuthError(f"{name} cannot be read: {printable(error.strerror)}", hint=_HINT) from error
        if len(data) > MAX_BYTES:
            raise AuthError(f"{name} is larger than {MAX_BYTES} bytes", hint=_HINT)
        try:
            document = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            # Not the parser's words, and no cause: both may quote the file.
            raise AuthError(f"{name} is not JSON", hint=_HINT) from None
        if not isinstance(document, dict):
            raise AuthError(f"{name} is not a JSON object", hint=_HINT)
        return cls(name, document)

    def helper(self, host: str, port: int) -> str | None:
        """The credential helper for a host; an empty one is a name too (and a wrong one). None: there is none."""
        for key, helper in self._helpers.items():
            if bare_host(key, port) == host:
                if not isinstance(helper, str):
                    raise self._broken(f"credHelpers for {printable(host)} is not a string")
                return helper
        return self._store or None

    def login(self, host: str, repository: str, port: int) -> Login | None:
        """The entry of `auths` with the longest path that holds `repository`; of equal ones the key that is just the
        host (for Docker Hub: docker's own key), then the first. Entries without a secret are passed over."""
        found: list[tuple[int, bool, Login]] = []
        for key, entry in self._auths.items():
            path = _path(key)
            if bare_host(key, port) != host or not _holds(path, repository):
                continue
            login = self._login(key, path, entry)
            if login is not None:
                usual = key == (HUB_KEY if host == DOCKER_HUB else f"{host}/{path}".rstrip("/"))
                found.append((-len(path), not usual, login))
        return min(found, key=lambda one: one[:2])[2] if found else None

    def _login(self, key: str, path: str, entry: object) -> Login | None:
        if not isinstance(entry, dict):
            raise self._broken(f"the entry {printable(key, 80)!r} is not an object")
        texts = {name: entry.get(name) or "" for name in _FIELDS}
        if not all(isinstance(text, str) for text in texts.values()):
            raise self._broken(f"the entry {printable(key, 80)!r} has a field that is not a string")
        username, password = texts["username"], texts["password"]
        if texts["auth"]:
            username, password = self._decoded(key, texts["auth"])
        identity, registry = texts["identitytoken"], texts["registrytoken"]
        if not (username or password or identity or registry):
            return None
        return Login(path, username, password, identity, registry)

    def _decoded(self, key: str, auth: str) -> tuple[str, str]:
        try:
            raw = base64.b64decode(auth.replace("\n", "").replace("\r", ""), validate=True)
            username, colon, password = raw.decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            raise self._broken(f"`auth` of {printable(key, 80)!r} is not base64 of UTF-8") from None
        if not colon:
            raise self._broken(f"`auth` of {printable(key, 80)!r} has no colon between user and password")
        return username, password.rstrip("\0")  # docker pads old entries with NULs

    def _mapping(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        found = document.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self._broken(f"{key} is not an object")
        return found

    def _broken(self, why: str) -> AuthError:
        return AuthError(f"{self.name}: {why}", hint=_HINT)


_FIELDS = ("auth", "username", "password", "identitytoken", "registrytoken")
_HINT = "docker's configuration is read for credentials; repair it, or give username and password in ours"


def _path(key: str) -> str:
    """The repositories that a key is for: `reg/ns` those under ns; `https://reg/v2/`, `reg` all of them."""
    if "://" in key:
        return ""
    path = key.partition("/")[2].strip("/")
    return "" if path in _API_PATHS else path


def _holds(path: str, repository: str) -> bool:
    return not path or repository == path or repository.startswith(f"{path}/")
