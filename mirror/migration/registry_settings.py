"""Collects the settings of registries for the new file, in which references to variables or files replace passwords."""

from __future__ import annotations

import re
from pathlib import Path

from mirror.errors import ConfigError
from mirror.migration.peer_file import ToolMapping
from mirror.oci.reference import DOCKER_HUB, parse_host

_HUB_HOSTS = {"registry.hub.docker.com", "hub.docker.com", "registry-1.docker.io", "index.docker.io"}
MOST_PARALLEL = 64


class RegistrySettings:
    """The settings of registries in the new file, by host and key."""

    def __init__(self) -> None:
        self.by_host: dict[str, dict[str, object]] = {}
        self._passwords: dict[str, str] = {}  # the passwords in the old file, by the variables that replace them

    def set(self, host: str, key: str, value: object, peer: ToolMapping, peer_key: str | None) -> None:
        """Set a key of a registry. If the key already has a different value, keep the old value and add a note.

        peer, peer_key: the mapping and the key in the old file."""
        settings = self.by_host.setdefault(host, {})
        if settings.setdefault(key, value) != value:
            peer.note(peer_key, f"not converted: an earlier entry sets another value for {host}, which is kept")

    def set_login(
        self,
        host: str,
        username: str,
        password: str | dict[str, str],
        peer: ToolMapping,
        peer_key: str,
        *,
        path: str = "",
    ) -> None:
        """Set the user name and the password of a registry, or of the repositories below `path`.

        password: a reference to a variable or file, or the password itself, which is replaced by a reference to a
        variable. If the registry already has a different login, the old login is kept, and a note is added."""
        where = f"{host}/{path}" if path else host
        what = f"not converted: an earlier entry has another login for {where}, which is kept; if some repositories "
        what += "need this login, add it under `paths` of the registry"
        reference = password
        if isinstance(password, str):
            name = variable_for(where)
            reference = {"env": name}
            if name not in self._passwords:
                peer.note(peer_key, f"the password is not copied: set the environment variable {name} to this password")
            if self._passwords.setdefault(name, password) != password:
                peer.note(peer_key, what, lost=True)
                return
        settings = self.by_host.setdefault(host, {})
        if path:
            paths = settings.setdefault("paths", {})
            settings = paths.setdefault(path, {}) if isinstance(paths, dict) else {}
        login = {"username": username, "password": reference}
        if "username" in settings and {key: settings[key] for key in login} != login:
            peer.note(peer_key, what, lost=True)
        else:
            settings.update(login)

    def set_unverified(self, host: str, peer: ToolMapping, peer_key: str) -> None:
        """Disable certificate verification for a registry, and add a note about plain http."""
        self.merge_tls(host, {"verify": False}, peer, peer_key)
        what = "the certificate is not verified, as before, but http is never used as a fallback: if"
        peer.note(peer_key, f"{what} {host} does not support https, replace `tls: {{...}}` with `plain-http: true`")

    def merge_tls(self, host: str, values: dict[str, object], peer: ToolMapping, peer_key: str | None) -> None:
        """Add values to the key `tls` of a registry. If a key already has a different value, keep it and add a note."""
        tls = self.by_host.setdefault(host, {}).setdefault("tls", {})
        for key, value in values.items():
            if isinstance(tls, dict) and tls.setdefault(key, value) != value:
                peer.note(peer_key, f"not converted: an earlier entry sets another value for {host}, which is kept")

    def read_certificates(
        self, host: str, directory: str, peer: ToolMapping, peer_key: str, *, optional: bool = False
    ) -> None:
        """Set the key `tls` of a registry to the files `*.crt`, `*.cert` and `*.key` in a directory.

        optional: whether the directory may be missing or contain no such files; otherwise, a note is added."""
        try:
            found = {suffix: sorted(Path(directory).glob(f"*.{suffix}")) for suffix in ("crt", "cert", "key")}
        except OSError:  # for example no permission to read it
            found = {}
        if not any(found.values()) and optional:
            return
        if not any(found.values()):
            what = "not converted: the directory contains no certificates on this machine; set `tls: {ca, cert, key}`"
            peer.note(peer_key, f"{what} for {host} to the paths of the files")
            return
        if any(len(files) > 1 for files in found.values()):
            what = "not converted: the directory contains several files of one kind; put the certificate authorities"
            peer.note(peer_key, f"{what} into one PEM file, and set `tls: {{ca, cert, key}}` for {host}", lost=True)
            return
        keys = {"ca": found["crt"], "cert": found["cert"], "key": found["key"]}
        self.merge_tls(host, {key: str(files[0]) for key, files in keys.items() if files}, peer, peer_key)
        if found["crt"]:
            what = (
                "the certificate authorities in `ca` are used instead of those of the system, not in addition to them"
            )
            peer.note(peer_key, what)


def canonical_host(text: str) -> str:
    """Return the canonical host name of a registry, as in references. All names of Docker Hub become `docker.io`.

    text: the name in the old file, which may have a scheme and a path. Raises ConfigError if it is invalid."""
    host = re.sub(r"\Ahttps?://", "", text).partition("/")[0]
    if host.lower() in _HUB_HOSTS:
        return DOCKER_HUB
    return parse_host(host)


def variable_for(name: str) -> str:
    """Return the name of the environment variable for the password of a registry."""
    words = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    return f"{words}_PASSWORD" if words[:1].isalpha() else f"REGISTRY_{words}_PASSWORD"


def host_or_reject(peer: ToolMapping, key: str | None, text: str) -> str:
    """Return the canonical host name of a registry. Raises NotConvertible if it is invalid."""
    try:
        return canonical_host(text)
    except ConfigError as error:
        peer.reject(key, f"not converted: {error}")


def rate_per_second(requests: float) -> str | None:
    """Convert a number of requests per second to a value of the key `rate`, rounded down, or None if it is too low."""
    for seconds, unit in ((1, "s"), (60, "m"), (3600, "h")):
        count = requests * seconds
        if count >= 1 and (unit != "s" or count == int(count)):
            return f"{int(count)}/{unit}"
    return None
