"""Loads a configuration file: returns a Config, or raises an error that lists all problems in the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import platformdirs

from mirror.config import cross_checks, mirrors, outputs, registries, schema_errors, values, yaml_reader
from mirror.config.mirrors import MirrorConfig
from mirror.config.outputs import OutputConfig
from mirror.config.peer_formats import recognize_tool
from mirror.config.problems import ConfigErrors
from mirror.config.section import Section
from mirror.config.tree import Document, to_plain
from mirror.errors import ConfigError, LocalError, printable
from mirror.registry.http.host_settings import HostSettings
from mirror.selection.locations import MATCHED, is_registry
from mirror.util.shell_commands import quote_path
from mirror.util.structs import Struct

_WRITABLE_BY_OTHERS = 0o022
_MIB = 1 << 20


class LogConfig(Struct, frozen=True):
    """The section `log` of the configuration.

    file: the log file; None for mirror.log in the state directory. max_size: the maximum size of the file in bytes.
    backups: the number of old log files to keep."""

    file: Path | None = None
    level: str = "info"
    max_size: int = 50 * _MIB
    backups: int = 10


class Parallel(Struct, frozen=True):
    """The section `parallel` of the configuration: the maximum numbers of concurrent operations.

    images: the limit for images that are copied to one target host. downloads, uploads: the limits for blobs in the
    whole run."""

    images: int = 4
    downloads: int = 6
    uploads: int = 8


class Config(Struct, frozen=True):
    """A valid configuration.

    path: the file, or the words "the command line" for a configuration that `mirror copy` builds from its arguments.
    All other paths are absolute. registries: the settings in the file, by host name. Host names in `registries` and
    `mirrors` do not include the default port. text_hash: the SHA-256 of the file, in hex."""

    path: Path
    state: Path | None
    spool: Path | None
    spool_max: int | None
    log: LogConfig
    parallel: Parallel
    registries: Mapping[str, HostSettings]
    mirrors: tuple[MirrorConfig, ...]
    warnings: tuple[str, ...]
    text_hash: str
    output: OutputConfig = OutputConfig()

    def settings_for(self, host: str) -> HostSettings:
        """Return the settings for a registry host. If the file contains none, return the default settings."""
        return self.registries.get(host) or HostSettings(host)


def load(path: Path, *, secrets: bool = True) -> Config:
    """Read and check a configuration file without contacting any host.

    secrets: whether missing TLS files, and missing passwords for registries in use, are problems; otherwise, they are
    warnings. Raises ConfigErrors with all problems, ConfigError if the file does not exist, and LocalError if it cannot
    be read."""
    return build_config(read_document(path), path, secrets=secrets, warnings=file_warnings(path))


def read_document(path: Path) -> Document:
    """Read a configuration file without checking its keys and values.

    Raises ConfigErrors with all problems, ConfigError, LocalError."""
    document = yaml_reader.read(path)
    tool = recognize_tool(document.root)
    if tool is not None:
        raise _foreign_file_error(document.file, tool)
    return document


def build_config(
    document: Document, path: Path, *, secrets: bool, warnings: list[str], mirrors_base: Path | None = None
) -> Config:
    """Check a configuration document, and build a Config from it. Raises ConfigErrors with all problems.

    path: the file; paths in it are relative to its directory. mirrors_base: the directory to which paths in the section
    `mirrors` are relative, if it is a different one. warnings: the list to which warnings are added. secrets: see
    `load`."""
    data = to_plain(document.root)
    schema_errors.check(document, data)
    base = path.absolute().parent
    top = Section(document, data, (), base, warnings)
    hosts = registries.build(top.section("registries"), secrets=secrets)
    entries = Section(document, data, (), mirrors_base or base, warnings).sections("mirrors")
    drafts = mirrors.build(entries, top.section("defaults"), hosts)
    cross_checks.check(document, drafts, warnings)
    registries.check_passwords(hosts, _used_repositories(drafts), document, None if secrets else warnings)
    output = outputs.build(top, secrets=secrets)
    log, parallel = top.section("log"), top.section("parallel")
    config = Config(
        path=path,
        state=top.file("state"),
        spool=top.file("spool"),
        spool_max=top.parse("spool-max", values.size),
        log=LogConfig(
            log.file("file"),
            log.text("level") or "info",
            log.parse("max-size", values.size) or 50 * _MIB,
            _or_default(log.number("backups"), 10),
        ),
        parallel=Parallel(
            _or_default(parallel.number("images"), 4),
            _or_default(parallel.number("downloads"), 6),
            _or_default(parallel.number("uploads"), 8),
        ),
        registries=MappingProxyType(dict(hosts.settings)),
        mirrors=tuple(draft.mirror for draft in drafts),
        warnings=tuple(warnings),
        text_hash=document.text_hash,
        output=output,
    )
    if document.problems:
        raise ConfigErrors(document.problems, warnings)
    return config


def _foreign_file_error(file: str, tool: str) -> ConfigError:
    """Return the error for a configuration of another tool. The hint is the command that converts the file."""
    destination = " --destination HOST/PREFIX" if tool == "skopeo" else ""
    command = f"mirror convert --from {tool} {quote_path(file)}{destination} -o mirror.yaml"
    return ConfigError(f"{file} is a configuration of {tool}", hint=f"convert it with `{command}`")


def state_directory(config: Config) -> Path:
    """Return the state directory of a configuration.

    Raises LocalError if the configuration does not set one, and there is no default because the user has no home
    directory."""
    if config.state is not None:
        return config.state
    real = os.fsencode(config.path.resolve())
    return state_home() / f"{config.path.stem}-{hashlib.sha256(real).hexdigest()[:12]}"


def default_state_directories() -> list[Path]:
    """Return the existing directories that `state_directory` returns for configurations without the key `state`."""
    try:
        return sorted(path for path in state_home().iterdir() if path.is_dir())
    except (OSError, LocalError):
        return []


def state_home() -> Path:
    """Return the directory that contains the default state directories of the user.

    Raises LocalError if the user has no home directory."""
    try:
        home = platformdirs.user_state_path("mirror", appauthor=False)
    except RuntimeError:  # newer versions of platformdirs raise this; older ones return the path with its ~
        home = Path()
    if home.is_absolute():
        return home
    raise LocalError(
        "the configuration sets no state directory, and there is no home directory for the default one",
        hint="set the key `state` to a directory, or set the environment variable HOME",
    )


def _used_repositories(drafts: list[mirrors.Draft]) -> Iterator[registries.UsedRepositories]:
    """Yield the registry repositories that the mirrors in `drafts` use."""
    for mirror in (draft.mirror for draft in drafts):
        source = mirror.source
        if is_registry(source.host) and mirror.wildcard:
            prefix = f"{source.path}/" if source.path else ""
            yield registries.UsedRepositories(source.host, prefix, is_prefix=True, has_catalog=True)
        elif is_registry(source.host):
            yield registries.UsedRepositories(source.host, source.path)
        for target in mirror.targets:
            before, matched, _ = target.path.partition(MATCHED)
            if is_registry(target.host):
                yield registries.UsedRepositories(target.host, before, is_prefix=bool(matched))


def _or_default(number: int | None, default: int) -> int:
    """Return `number`, or `default` if it is None."""
    return default if number is None else number


def file_warnings(path: Path) -> list[str]:
    """Return warnings about the permissions of a configuration file: others must not write to it if root reads it."""
    if os.geteuid() == 0 and path.stat().st_mode & _WRITABLE_BY_OTHERS:
        name = printable(path)
        what = f"{name}: users other than root can write to it, but mirror runs as root"
        return [f"{what}; run `chmod 644 {quote_path(path)}`"]
    return []
