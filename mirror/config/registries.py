"""The `registries` section: what is said of each host, as the plain settings that a registry client takes."""

from __future__ import annotations

import ipaddress
import re
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from mirror.config import values
from mirror.config.problems import KeyPath, dotted, key_shown
from mirror.config.section import Section
from mirror.config.tree import Document
from mirror.errors import ConfigError
from mirror.registry.http.host_settings import V1, HostSettings, Secret, Tls
from mirror.util.structs import Struct

_READABLE_BY_ALL = 0o004
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$[A-Z_][A-Z0-9_]*")


class Hosts(Struct, frozen=True):
    """settings: by host, in the one spelling that `canonical` gives. paths: where each stands in the file."""

    settings: Mapping[str, HostSettings]
    paths: Mapping[str, KeyPath]
    plain: frozenset[str]

    def canonical(self, host: str) -> str:
        """`host` without a port that is the default anyway, so that one registry has one name in a run."""
        return _canonical(host, self.plain)


def build(section: Section, *, secrets: bool) -> Hosts:
    """Raises nothing; problems are noted in the section's document. secrets: a TLS file that is missing is one."""
    names: dict[str, str] = {}
    for key in section.names():
        try:
            names[key] = values.host(key)
        except ConfigError as error:
            section.problem(str(error), key=key)
    plain = frozenset(host for key, host in names.items() if section.section(key).flag("plain-http", False))
    settings: dict[str, HostSettings] = {}
    taken: dict[str, str] = {}
    for key, name in names.items():
        host = _canonical(name, plain)
        if host in taken:
            first = section.document.place(section.path, key=taken[host])
            section.problem(f"is the same registry as {key_shown(taken[host])} on line {first.line}; keep one", key=key)
            continue
        taken[host] = key
        if not _can_be_named(host):
            section.problem(
                f"a reference cannot name this host without a port: {host}/app means docker.io/{host}/app; "
                f'write "{host}:443", or another port',
                key=key,
            )
        settings[host] = _settings(host, section.section(key), secrets=secrets)
    return Hosts(settings, {host: (*section.path, key) for host, key in taken.items()}, plain)


def _can_be_named(host: str) -> bool:
    return host == "localhost" or any(mark in host for mark in ".:")


def _canonical(host: str, plain: frozenset[str]) -> str:
    base, colon, port = host.rpartition(":")
    if not colon or not _can_be_named(base) or (":" in base and not base.endswith("]")):
        return host
    if port == "443" and not plain & {host, base}:
        return base
    return base if port == "80" and base in plain else host


def _is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine, by its name or by an address."""
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def check_presence(hosts: Hosts, used: set[str], document: Document, warnings: list[str] | None) -> None:
    """Note the passwords of the registries in use that are not there. warnings: where given, they are noted in it."""
    for host in sorted(used & hosts.settings.keys()):
        password, path = hosts.settings[host].password, (*hosts.paths[host], "password")
        missing = password.present() if password and document.sound(path) else None
        if missing and warnings is not None:
            warnings.append(f"{document.place(path)}: {dotted(path)}: {missing}; a run needs it")
        elif missing:
            document.add(path, f"{missing}; it is required: a mirror uses this registry")


def _settings(host: str, section: Section, *, secrets: bool) -> HostSettings:
    username, password = section.text("username"), _password(section)
    plain_http = section.flag("plain-http", False)
    if section.has("username") != section.has("password"):
        given, other = ("username", "password") if section.has("username") else ("password", "username")
        section.problem(f"{given} without {other}; give both or none", below=given)
    if plain_http and section.has("tls"):
        section.problem("tls has no effect with `plain-http: true`; remove one of them", below="tls")
    if plain_http and section.has("password") and not _is_loopback(host):
        what = "credentials and images go over the network unprotected; remove `plain-http` to use https"
        section.warn(what, below="plain-http")
    if _VARIABLE.fullmatch(username or ""):
        section.problem("variables are not substituted; give the user's name itself", below="username")
    if section.has("no-proxy") and not section.has("proxy"):
        section.problem("no-proxy has no effect without `proxy`; remove it", below="no-proxy")
    timeouts = section.section("timeouts")
    v1 = section.text("v1")
    return HostSettings(
        host,
        plain_http=plain_http,
        username=username,
        password=password,
        tls=_tls(section.section("tls"), secrets=secrets),
        parallel=section.number("parallel"),
        rate=section.parsed("rate", values.rate),
        proxy=section.parsed("proxy", values.proxy),
        no_proxy=frozenset(host for _, host in section.parsed_list("no-proxy", values.host)),
        connect_timeout=timeouts.parsed("connect", values.connect_timeout) or 10.0,
        idle_timeout=timeouts.parsed("idle", values.idle_timeout) or 60.0,
        token_realms=_hosts(section, "token-realms"),
        allow_hosts=_hosts(section, "allow-hosts"),
        mount=section.flag("mount", True),
        exclusive=section.flag("exclusive", False),
        v1=V1(v1) if v1 else V1.AUTO,
        v1_checksums=section.text("v1-checksums") or "require",
    )


def _hosts(section: Section, key: str) -> frozenset[str]:
    return frozenset(_canonical(host, frozenset()) for _, host in section.parsed_list(key, values.host))


def _password(section: Section) -> Secret | None:
    plain = section.text("password")
    variable = _VARIABLE.fullmatch(plain) if plain is not None else None
    if variable and variable["name"]:
        section.problem(f"variables are not substituted; write {{env: {variable['name']}}}", below="password")
    elif variable:  # without braces it may be a password, which no message shows
        section.problem("variables are not substituted; write {env: NAME}, with the variable's name", below="password")
    elif plain is not None:
        section.warn("a password in the file itself; {env: NAME} or {file: PATH} keep it out", below="password")
    if plain is not None:
        return Secret("the configuration", plain=plain)
    where = section.section("password")
    env, file = where.text("env"), where.file("file")
    if env is not None:
        return Secret(f"env {env}", env=env)
    if file is None:
        return None
    try:
        mode = file.stat().st_mode
    except OSError:
        return Secret(f"file {file}", file=file)  # check_presence says so, if the registry is in use
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        where.problem(f"{file} is {kind}; name the file that holds the password", below="file")
    elif mode & _READABLE_BY_ALL:
        section.warn(f"{file} can be read by everybody; chmod 600 it", below="password")
    return Secret(f"file {file}", file=file)


def _tls(section: Section, *, secrets: bool) -> Tls:
    ca, cert, key = section.file("ca"), section.file("cert"), section.file("key")
    verify = section.flag("verify", True)
    if (cert is None) != (key is None):
        section.problem("a client certificate needs both cert and key", below="cert" if cert else "key")
    if not verify:
        section.warn(
            "its certificate is not checked: anybody in between can read and change everything", below="verify"
        )
    files = (("ca", ca), ("cert", cert), ("key", key))
    good = [_pem(section, name, file, secrets=secrets) for name, file in files if file]
    if good and all(good):
        _load(section, ca, cert, key)
    return Tls(ca, cert, key, verify)


def _pem(section: Section, name: str, file: Path, *, secrets: bool) -> bool:
    """Whether the file is there, and looks right."""
    try:
        warning = values.pem(file, "PRIVATE KEY" if name == "key" else "CERTIFICATE")
    except values.AbsentError as error:
        if secrets:
            section.problem(f"{error}; provide it", below=name)
        else:
            section.warn(f"{error}; a run needs it", below=name)
        return False
    except ConfigError as error:
        section.problem(str(error), below=name)
        return False
    if warning:
        section.warn(warning, below=name)
    return True


def _load(section: Section, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Let OpenSSL read what looks right, so that a damaged file is found before the run."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca or cert else None
    try:
        if context and ca:
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError):
        section.problem(
            f"{ca} has no certificate that can be read; get it again from whoever runs the registry", below="ca"
        )
    try:
        if context and cert and key:
            context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        why = "do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "cannot be read by OpenSSL"
        section.problem(f"{cert} and {key} {why}; give a certificate and its key", below="cert")


def _no_passphrase() -> str:
    return ""
