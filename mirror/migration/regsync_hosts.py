"""Converts the section `creds` of regsync, which contains the settings of registries."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.errors import ConfigError
from mirror.migration.peer_file import NotConvertible, ToolMapping
from mirror.migration.registry_settings import (
    MOST_PARALLEL,
    RegistrySettings,
    canonical_host,
    host_or_reject,
    rate_per_second,
)
from mirror.migration.templates import expand_template, has_template, secret_of_template

_NOT_NEEDED = {
    "repoAuth": "every repository has its own token",
    "blobChunk": "the upload method depends on the size of the blob and on the registry",
    "blobMax": "the upload method depends on the size of the blob and on the registry",
    "api": "regsync ignores it",
}


class RegistryNames:
    """Maps the names of registries in the references of regsync to host names, where the two differ."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}

    def resolve(self, text: str) -> str:
        """Replace the name of the registry at the beginning of a reference with its host name."""
        first, slash, rest = text.partition("/")
        return f"{self.hosts.get(first, first)}{slash}{rest}"


def convert_hosts(top: ToolMapping, environment: Mapping[str, str]) -> tuple[RegistrySettings, RegistryNames]:
    """Convert the section `creds`. An entry that cannot be converted is left out, with a note."""
    settings, names = RegistrySettings(), RegistryNames()
    for peer in top.mappings("creds"):
        try:
            _convert_host(peer, settings, names, environment)
        except NotConvertible as error:
            top.notes.append(error.note)
        peer.note_unknown_keys("regsync")
    return settings, names


def _convert_host(
    peer: ToolMapping, settings: RegistrySettings, names: RegistryNames, environment: Mapping[str, str]
) -> None:
    """Convert one entry of `creds`: the settings of a registry. Raises NotConvertible."""
    name = expand_template(peer, "registry", peer.text("registry") or "", environment, {})
    host = host_or_reject(peer, "registry", name)
    hostname = peer.text("hostname")
    if hostname and host != _canonical_or_none(hostname):
        host = host_or_reject(peer, "hostname", hostname)
        names.hosts[name] = host
        peer.note("hostname", "references in the new file contain this host instead of the name of the registry")
    try:
        _convert_login(peer, host, settings, environment)
    except NotConvertible as error:
        peer.notes.append(error.note)
    _convert_tls(peer, host, settings)
    _convert_limits(peer, host, settings)
    what = "not converted: add this prefix to the path of each source in this registry"
    peer.note_if_present("pathPrefix", what, lost=True)
    what = "not converted: images are always read from the registry in `source`"
    for key in ("mirrors", "priority"):
        peer.note_if_present(key, what)
    for key, why in _NOT_NEEDED.items():
        peer.note_if_present(key, f"not needed: {why}")
    peer.note_if_present("apiOpts", "not converted: `mirror` has no options for the API of a registry")


def _canonical_or_none(hostname: str) -> str | None:
    """Return the canonical form of a host name, or None if it is not valid."""
    try:
        return canonical_host(hostname)
    except ConfigError:
        return None


def _convert_login(peer: ToolMapping, host: str, settings: RegistrySettings, environment: Mapping[str, str]) -> None:
    """Convert the user name, the password and the credential helper. Raises NotConvertible."""
    user, password = peer.text("user"), peer.text("pass")
    if user and password:
        reference = secret_of_template(password)
        if reference is None and has_template(password):
            what = "not converted: the template is not a single variable or file; set the password of"
            peer.note("pass", f"{what} {host} to {{env: NAME}} or {{file: PATH}}", lost=True)
        else:
            user = expand_template(peer, "user", user, environment, {})
            settings.set_login(host, user, password if reference is None else reference, peer, "pass")
    elif user or password:
        peer.note("user" if user else "pass", "not converted: a login needs `user` and `pass`", lost=True)
    what = "not converted: set `username` and `password` for this registry, which are used to request tokens"
    peer.note_if_present("token", what, lost=True)
    helper = peer.text("credHelper")
    if helper:
        short = helper.rpartition("/")[2].removeprefix("docker-credential-")
        what = (
            f'not converted: add "credHelpers": {{"{host}": "{short}"}} to docker\'s config.json, which `mirror` uses'
        )
        peer.note("credHelper", what, lost=True)
    peer.note_if_present("credExpire", "not needed: an expired login is renewed automatically")
    peer.note_if_present(
        "credHost", "not converted: credential helpers are called with the name of the registry", lost=True
    )


def _convert_tls(peer: ToolMapping, host: str, settings: RegistrySettings) -> None:
    """Convert the keys for https and certificates of a registry."""
    tls, scheme = (peer.text("tls") or "").lower(), (peer.text("scheme") or "").lower()
    if tls == "disabled" or scheme == "http":
        settings.set(host, "plain-http", True, peer, "tls" if tls else "scheme")
    elif tls == "insecure":
        settings.merge_tls(host, {"verify": False}, peer, "tls")
    elif tls not in ("", "enabled"):
        peer.note("tls", "not converted: expected enabled, insecure or disabled", lost=True)
    for key, ours in (("regcert", "ca"), ("clientCert", "cert"), ("clientKey", "key")):
        text = peer.text(key)
        if not text:
            continue
        reference = secret_of_template(text)
        if reference is not None and "file" in reference:
            settings.merge_tls(host, {ours: reference["file"]}, peer, key)
            continue
        what = f"not converted: save the PEM text in a file, and set `tls.{ours}` of {host} to its path"
        peer.note(key, what, lost=True)


def _convert_limits(peer: ToolMapping, host: str, settings: RegistrySettings) -> None:
    """Convert the request limits of a registry. Raises NotConvertible if a limit is not a number."""
    rate, parallel = peer.number("reqPerSec"), peer.number("reqConcurrent")
    if rate is not None and rate > 0:
        text = rate_per_second(rate)
        if text is None:
            peer.note("reqPerSec", "not converted: the rate is below the lowest possible value, `rate: 1/h`")
        else:
            settings.set(host, "rate", text, peer, "reqPerSec")
    if parallel is not None and parallel > 0:
        settings.set(host, "parallel", min(int(parallel), MOST_PARALLEL), peer, "reqConcurrent")
