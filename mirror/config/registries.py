"""Parses the section `registries` into settings for each host, which are passed to its registry client."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

from mirror.config import repository_creation, values
from mirror.config.problems import KeyPath, quote_key, quote_value
from mirror.config.secrets import VARIABLE, build_secret
from mirror.config.section import Section
from mirror.config.tree import Document
from mirror.errors import ConfigError
from mirror.oci.reference import is_path
from mirror.registry.http.host_settings import HostSettings, PathLogin, Secret, TlsSettings, V1Mode
from mirror.util.bandwidth import UNLIMITED, Bandwidth, BandwidthWindow
from mirror.util.structs import Struct


class RegistriesConfig(Struct, frozen=True):
    """The section `registries` of the configuration: the settings for each registry host.

    settings: by canonical host name. paths: the key path of each host's settings, by canonical host name. plain: the
    hosts for which `plain-http` is true."""

    settings: Mapping[str, HostSettings]
    paths: Mapping[str, KeyPath]
    plain: frozenset[str]

    def canonical(self, host: str) -> str:
        """Return the canonical name of a registry host, which does not include the default port of its scheme."""
        return _canonical(host, self.plain)


def build(section: Section, *, secrets: bool) -> RegistriesConfig:
    """Build the settings for all registries in the section `registries`. Add problems to the document.

    secrets: whether a missing TLS file is a problem; otherwise, it is a warning."""
    names: dict[str, str] = {}
    for key in section.keys():  # noqa: SIM118 (a Section is not a dict)
        try:
            names[key] = values.host(key)
        except ConfigError as error:
            section.add_problem(str(error), key=key)
    plain = frozenset(host for key, host in names.items() if section.section(key).flag("plain-http", False))
    settings: dict[str, HostSettings] = {}
    keys_by_host: dict[str, str] = {}
    for key, name in names.items():
        host = _canonical(name, plain)
        if host in keys_by_host:
            first = section.document.position(section.path, key=keys_by_host[host])
            section.add_problem(
                f"this is the same registry as {quote_key(keys_by_host[host])} on line {first.line}; keep one", key=key
            )
            continue
        keys_by_host[host] = key
        if not _can_start_reference(host):
            section.add_problem(
                f"this host needs a port, because the reference {host}/app means docker.io/{host}/app; "
                f'write "{host}:443", or another port',
                key=key,
            )
        settings[host] = _settings(host, section.section(key), secrets=secrets)
    return RegistriesConfig(settings, {host: (*section.path, key) for host, key in keys_by_host.items()}, plain)


def _can_start_reference(host: str) -> bool:
    """Return whether a reference can begin with a host: whether the host cannot be mistaken for a path."""
    return host == "localhost" or any(mark in host for mark in ".:")


def _canonical(host: str, plain: frozenset[str]) -> str:
    """Return a host without its default port: 443, or 80 for a host in `plain`."""
    base, colon, port = host.rpartition(":")
    if not colon or not _can_start_reference(base) or (":" in base and not base.endswith("]")):
        return host
    if port == "443" and not plain & {host, base}:
        return base
    return base if port == "80" and base in plain else host


class UsedRepositories(Struct, frozen=True):
    """A repository that a mirror uses, or all repositories whose paths begin with a prefix.

    path: the path of the repository; if `is_prefix` is True, the part of the path before a wildcard or `{repository}`.
    has_catalog: whether the mirror also reads the catalog of the host."""

    host: str
    path: str
    is_prefix: bool = False
    has_catalog: bool = False

    def login_paths(self, settings: HostSettings) -> set[str]:
        """Return the keys of `paths` whose credentials requests for these repositories may use.

        An empty string stands for the credentials of the host."""
        found = {""} if self.has_catalog else set()
        if not self.is_prefix:
            return found | {settings.login_path(self.path)}
        directory = self.path.rpartition("/")[0]
        below = {login.path for login in settings.paths if login.path.startswith(self.path)}
        return found | {settings.login_path(directory)} | below


def check_passwords(
    hosts: RegistriesConfig, used: Iterable[UsedRepositories], document: Document, warnings: list[str] | None
) -> None:
    """Report each missing password, such as an empty file, that is needed for the repositories in `used`.

    The reports are added to `warnings`. If `warnings` is None, they are added to `document` as problems."""
    logins = {
        (one.host, path)
        for one in used
        if one.host in hosts.settings
        for path in one.login_paths(hosts.settings[one.host])
    }
    for host, login_path in sorted(logins):
        login = hosts.settings[host].find_login(login_path)
        path = (*hosts.paths[host], *(("paths", login_path) if login_path else ()), "password")
        missing = login[1].problem() if login and document.is_valid(path) else None
        if missing and warnings is not None:
            warnings.append(str(document.problem(path, f"{missing}; a run needs it")))
        elif missing:
            what = f"a repository below {login_path}" if login_path else "this registry"
            document.add(path, f"{missing}; the password is required, because a mirror uses {what}")


def _settings(host: str, section: Section, *, secrets: bool) -> HostSettings:
    """Build the settings for one registry host."""
    username, password = _login(section)
    paths = section.section("paths")
    plain_http = section.flag("plain-http", False)
    if plain_http and section.has_key("tls"):
        section.add_problem("tls has no effect with `plain-http: true`; remove one of them", below="tls")
    has_secret = any(section.has_key(key) for key in ("password", "paths", "login"))
    if plain_http and has_secret and not values.is_loopback(host):
        what = "credentials and images are sent unencrypted; remove `plain-http` to use https"
        section.add_warning(what, below="plain-http")
    if section.has_key("no-proxy") and not section.has_key("proxy"):
        section.add_problem("no-proxy has no effect without `proxy`; remove it, or set `proxy`", below="no-proxy")
    timeouts = section.section("timeouts")
    v1 = section.text("v1")
    return HostSettings(
        host,
        plain_http=plain_http,
        username=username,
        password=password,
        paths=_path_logins(host, paths),
        tls=_tls(section.section("tls"), secrets=secrets),
        parallel=section.number("parallel"),
        rate=section.parse("rate", values.rate),
        bandwidth=_bandwidth(section.section("bandwidth")) if section.has_key("bandwidth") else None,
        proxy=section.parse("proxy", values.proxy),
        no_proxy=frozenset(host for _, host in section.parse_list("no-proxy", values.host)),
        connect_timeout=timeouts.parse("connect", values.connect_timeout) or 10.0,
        idle_timeout=timeouts.parse("idle", values.idle_timeout) or 60.0,
        token_realms=_host_set(section, "token-realms"),
        allow_hosts=_host_set(section, "allow-hosts"),
        create=repository_creation.build(section, host),
        login=repository_creation.build_login(section, host),
        mount=section.flag("mount", True),
        exclusive=section.flag("exclusive", False),
        v1=V1Mode(v1) if v1 else V1Mode.AUTO,
        v1_checksums=section.text("v1-checksums") or "require",
    )


def _bandwidth(section: Section) -> Bandwidth:
    """Build the bandwidth limits of a host from the key `bandwidth`. Report invalid times of the schedule."""
    windows: list[BandwidthWindow] = []
    for entry in section.sections("schedule"):
        begin, end = entry.parse("from", values.time_of_day), entry.parse("to", values.time_of_day)
        read, write = entry.parse("read", values.bandwidth), entry.parse("write", values.bandwidth)
        if not (entry.has_key("read") or entry.has_key("write")):
            entry.add_problem("this entry has no effect; set `read`, `write` or both")
        if begin is not None and begin == end:
            what = "`from` and `to` are the same time; to limit the whole day, set `read` or `write` of `bandwidth`"
            entry.add_problem(what, below="to")
        if begin is not None and end is not None:
            windows.append(BandwidthWindow(begin, end, read, write))
    read, write = section.parse("read", values.bandwidth), section.parse("write", values.bandwidth)
    return Bandwidth(UNLIMITED if read is None else read, UNLIMITED if write is None else write, tuple(windows))


def _host_set(section: Section, key: str) -> frozenset[str]:
    """Return the valid hosts in the list under a key, without default ports."""
    return frozenset(_canonical(host, frozenset()) for _, host in section.parse_list(key, values.host))


def _path_logins(host: str, section: Section) -> tuple[PathLogin, ...]:
    """Build the credentials for paths of a host from the key `paths`. Report invalid paths."""
    found: list[PathLogin] = []
    for path in section.keys():  # noqa: SIM118 (a Section is not a dict)
        username, password = _login(section.section(path))
        if not is_path(path) or path.startswith(f"{host}/"):
            section.add_problem(_path_problem(host, path), key=path)
        elif username is not None and password is not None:
            found.append(PathLogin(path, username, password))
    return tuple(found)


def _path_problem(host: str, path: str) -> str:
    """Return the message for an invalid path under the key `paths`."""
    stem = path.removeprefix(f"{host}/").removesuffix("*").strip("/")
    meant = f"; write {quote_value(stem)}, which also covers all repositories below it" if is_path(stem) else ""
    return f"expected a path of repositories, without the host and without a slash at its end{meant}"


def _login(section: Section) -> tuple[str | None, Secret | None]:
    """Return the user name and the password in a section. Report invalid or incomplete credentials."""
    username, password = section.text("username"), build_secret(section, "password", warn_if_plain=True)
    if section.has_key("username") != section.has_key("password"):
        given, other = ("username", "password") if section.has_key("username") else ("password", "username")
        section.add_problem(f"{given} without {other}; set both or neither", below=given)
    if VARIABLE.fullmatch(username or ""):
        section.add_problem("variables are not expanded; write the user name", below="username")
    return username, password


def _tls(section: Section, *, secrets: bool) -> TlsSettings:
    """Build the TLS settings for a host, and check the files that they name."""
    ca, cert, key = section.file("ca"), section.file("cert"), section.file("key")
    verify = section.flag("verify", True)
    if (cert is None) != (key is None):
        given, other = ("cert", "key") if cert else ("key", "cert")
        section.add_problem(f"a client certificate needs both cert and key; set `{other}`, too", below=given)
    if not verify:
        section.add_warning(
            "the certificate is not verified: anyone on the network path can read and change all data", below="verify"
        )
    files = (("ca", ca), ("cert", cert), ("key", key))
    good = [_check_pem(section, name, file, secrets=secrets) for name, file in files if file]
    if good and all(good):
        _check_with_openssl(section, ca, cert, key)
    return TlsSettings(ca, cert, key, verify)


def _check_pem(section: Section, name: str, file: Path, *, secrets: bool) -> bool:
    """Return whether a TLS file exists and contains the expected kind of PEM block. If not, report a problem.

    name: the key in the section `tls` that names the file: `ca`, `cert` or `key`. secrets: see `build`."""
    try:
        warning = values.check_pem(file, "PRIVATE KEY" if name == "key" else "CERTIFICATE")
    except values.MissingFileError as error:
        if secrets:
            section.add_problem(f"{error}; provide this file, or correct its path", below=name)
        else:
            section.add_warning(f"{error}; a run needs this file", below=name)
        return False
    except ConfigError as error:
        section.add_problem(str(error), below=name)
        return False
    if warning:
        section.add_warning(warning, below=name)
    return True


def _check_with_openssl(section: Section, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Load the certificates and the key with OpenSSL, to report damaged files before a run starts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca or cert else None
    try:
        if context and ca:
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError):
        section.add_problem(f"{ca} contains no valid certificate; ask the registry's operator for the file", below="ca")
    try:
        if context and cert and key:
            context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        why = "do not match" if error.reason == "KEY_VALUES_MISMATCH" else "cannot be loaded by OpenSSL"
        section.add_problem(f"{cert} and {key} {why}; use a certificate and its key", below="cert")


def _no_passphrase() -> str:
    """Return an empty passphrase for a TLS key, so that OpenSSL does not prompt for one on the terminal."""
    return ""
