"""Debian's docker-registry, started for a test."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.registries.certificates import Authority
from tests.registries.client import Authorize
from tests.registries.damage import Damage
from tests.registries.process import RegistryProcess
from tests.registries.scratch import scratch
from tests.registries.tokens import TokenService


class RealRegistry(Damage, RegistryProcess):
    """A docker-registry on a loopback port. Its files are in `root`/`name`; its content is in `storage` until `close`.

    users: name -> password, for Basic authentication. tokens: a token service instead. tls: the authority of its
    certificate; client_certificates: require one from clients. schema1: accept such manifests. settings: merged over
    the configuration file."""

    def __init__(
        self,
        root: Path,
        name: str = "registry",
        *,
        users: Mapping[str, str] | None = None,
        tokens: TokenService | None = None,
        tls: Authority | None = None,
        client_certificates: bool = False,
        schema1: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(root, name)
        self._scratch = scratch(self.folder)
        self.storage = Path(self._scratch.name)
        self.users, self.tokens, self.tls = dict(users or {}), tokens, tls
        self._client_certificates, self._schema1 = client_certificates, schema1
        self._settings = dict(settings or {})
        self._context = tls.client_context() if tls else None

    def command(self) -> list[str]:
        path = self.folder / "config.yml"
        path.write_text(json.dumps(self._configuration()))  # JSON is YAML
        return ["docker-registry", "serve", str(path)]

    def close(self) -> None:
        super().close()
        self._scratch.cleanup()

    def tls_context(self) -> ssl.SSLContext | None:
        return self._context

    def authorize(self) -> Authorize | None:
        if self.tokens:
            return self.tokens.own_token
        if self.users:
            name, password = next(iter(self.users.items()))
            basic = base64.b64encode(f"{name}:{password}".encode()).decode()
            return lambda _: f"Basic {basic}"
        return None

    def _configuration(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.host, "secret": "not a secret"}
        made: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
        }
        if self.tls:
            certificate, key = self.tls.server
            http["tls"] = {"certificate": str(certificate), "key": str(key)}
            if self._client_certificates:
                http["tls"]["clientcas"] = [str(self.tls.ca)]
        if self._schema1:
            made["compatibility"] = {"schema1": {"enabled": True}}
        if self.tokens:
            made["auth"] = {"token": self.tokens.registry_settings()}
        elif self.users:
            made["auth"] = {"htpasswd": {"realm": "registry", "path": str(self._htpasswd())}}
        return _merged(made, self._settings)

    def _htpasswd(self) -> Path:
        path = self.folder / "users.htpasswd"
        path.write_text("".join(htpasswd_line(name, password) for name, password in self.users.items()))
        return path


def htpasswd_line(name: str, password: str) -> str:
    """Return a line of htpasswd with the lowest cost of bcrypt. The password goes by stdin, so that it is not in
    `ps`."""
    command = ["htpasswd", "-Bin", "-C", "4", name]
    made = subprocess.run(command, input=password, capture_output=True, text=True, check=True, timeout=30)
    return made.stdout.strip() + "\n"


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged
