"""Converts the files of image-syncer (https://github.com/AliyunContainerService/image-syncer)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mirror.config import ConfigErrors, yaml_reader
from mirror.config.tree import Scalar, Sequence
from mirror.errors import ConfigError, printable
from mirror.migration.conversion import Conversion, ConvertedMirror, merge_mirrors
from mirror.migration.peer_file import NotConvertible, Note, ToolMapping
from mirror.migration.references import parse_repository
from mirror.migration.registry_settings import RegistrySettings, host_or_reject
from mirror.migration.tag_patterns import pattern_for_search
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.migration.templates import expand_variables, secret_of_variable
from mirror.oci.reference import DOCKER_HUB, names_host
from mirror.util.structs import Struct

_TOOL = "image-syncer"
_AUTH_FILES = ("auth.yaml", "auth.yml", "auth.json")
_EXPRESSION = re.compile(r"([^@]+?):/(.*)/", re.DOTALL)
_FLAGS = (
    "flags of image-syncer are not in the file: --proc is `parallel.images`; --os and --arch are `platforms`; --force "
    "is `mirror sync --deep`; --log is `log.file`; --retries and the files with results are not needed"
)


class _Name(Struct, frozen=True):
    """A parsed source or destination of image-syncer.

    repository: in the form of a `mirror` configuration. tags: the tags that the source or destination lists."""

    repository: str
    tags: tuple[str, ...] = ()
    digest: str = ""
    expression: str | None = None


def convert(top: ToolMapping, path: Path, environment: Mapping[str, str]) -> Conversion:
    """Convert a file of image-syncer, which lists images, or has the old format with the sections `auth` and `images`.

    path: the path of the file. If its directory contains `auth.yaml`, `auth.yml` or `auth.json`, the logins are read
    from this file. environment: the environment variables that destinations and logins may refer to. Raises
    NotConvertible, ConfigError, LocalError."""
    conversion, settings = Conversion(notes=top.notes), RegistrySettings()
    conversion.registries = settings.by_host
    conversion.notes.append(Note(1, "", _FLAGS))
    is_old = set(top.node.items) <= {"auth", "images"}
    if is_old:
        auth, images = top.mapping("auth"), top.mapping("images")
        # In the old format, image-syncer does not expand variables in logins.
        _convert_logins(auth, settings, None)
        if images is None:
            top.reject("images", "the file lists no images; convert the file that the option `--images` names")
    else:
        images = top
        _convert_logins(_read_auth_file(path, conversion.notes), settings, environment)
    mirrors: list[ConvertedMirror] = []
    for source in images.read_keys():
        notes: list[Note] = []
        try:
            mirrors += _convert_rule(images.with_notes(notes), source, environment)
        except NotConvertible as error:
            conversion.notes += [*notes, error.note]
    conversion.mirrors = merge_mirrors(mirrors, conversion.notes)
    return conversion


def _read_auth_file(path: Path, notes: list[Note]) -> ToolMapping | None:
    """Return the content of the file with the logins, or None if there is none. Raises ConfigError, LocalError."""
    found = next((path.parent / name for name in _AUTH_FILES if (path.parent / name).is_file()), None)
    if found is None or found.name == path.name:
        what = "no logins were converted: they are read from auth.yaml, auth.yml or auth.json in the same directory"
        notes.append(Note(1, "", what))
        return None
    document = yaml_reader.read(found)
    if document.problems:
        raise ConfigErrors(document.problems)
    name = printable(found.name)
    notes.append(Note(1, "", f"the logins were read from {name}"))
    return ToolMapping(document.root, (), notes, name)


def _convert_logins(
    auth: ToolMapping | None, settings: RegistrySettings, environment: Mapping[str, str] | None
) -> None:
    """Convert the logins of registries. environment: the variables to expand in logins; None to expand none."""
    if auth is None:
        return
    for name in auth.read_keys():
        try:
            login = auth.mapping(name)
            if login is not None:
                _convert_login(login, name, settings, environment)
                login.note_unknown_keys(_TOOL)
        except NotConvertible as error:
            auth.notes.append(error.note)


def _convert_login(
    login: ToolMapping, name: str, settings: RegistrySettings, environment: Mapping[str, str] | None
) -> None:
    """Convert one login. name: the key of the login: a registry, or a registry and a path. Raises NotConvertible."""
    registry, _, path = name.partition("/")
    if not names_host(registry):
        login.reject(None, "not converted: the key must begin with a registry, such as docker.io")
    host = host_or_reject(login, None, registry)
    username, password = login.text("username"), login.text("password")
    if username and password:
        reference = None
        if environment is not None:
            reference = secret_of_variable(password)
            username = expand_variables(login, "username", username, environment)
        settings.set_login(host, username, reference or password, login, "password", path=path)
        if path:
            what = "if several paths contain a repository, the longest path applies; image-syncer may use any of them"
            login.note(None, what)
    elif username or password:
        login.note(None, "not converted: a login needs `username` and `password`", lost=True)
    what = "not converted: use docker's configuration file, to which `docker login` writes identity tokens"
    login.note_if_present("identityToken", what, lost=True)
    if login.flag("insecure"):
        settings.set_unverified(host, login, "insecure")


def _convert_rule(images: ToolMapping, text: str, environment: Mapping[str, str]) -> Iterator[ConvertedMirror]:
    """Convert one rule to entries: a source and its destinations. text: the source. Raises NotConvertible."""
    source = _parse_name(images, text, text, is_source=True)
    line = images.node.keys[text].line + 1
    node = images.node.items[text]
    items = node.items if isinstance(node, Sequence) else [node]
    if not items or not all(isinstance(item, Scalar) and item.text for item in items):
        images.reject(text, "left out: the destination must be a string or a list of strings; correct the file")
    for item in items:
        written = expand_variables(images, text, item.text if isinstance(item, Scalar) else "", environment)
        target = _parse_name(images, text, written, is_source=False)
        for read, tags, repository in _pairs(images, text, source, target):
            yield ConvertedMirror(line, read, (repository,), tags, notes=tuple(dict.fromkeys(images.notes)))


def _pairs(images: ToolMapping, key: str, source: _Name, target: _Name) -> Iterator[tuple[str, TagSelection, str]]:
    """Yield the source, the tags and the target of each entry for one destination. Raises NotConvertible."""
    if source.digest:
        if target.digest not in ("", source.digest):
            images.reject(key, "left out: the digests of source and destination differ; correct the file")
        if len(target.tags) > 1:
            images.reject(key, "left out: an image with a digest can have only one tag; correct the file")
        tag = f":{target.tags[0]}" if target.tags else ""
        yield f"{source.repository}@{source.digest}", EVERY_TAG, f"{target.repository}{tag}"
        return
    if target.digest or (target.tags and len(target.tags) != len(source.tags)):
        what = "left out: the destination must have as many tags as the source, or none; correct the file"
        images.reject(key, what)
    if source.expression is not None:
        try:
            pattern = pattern_for_search(source.expression)
        except ConfigError as error:
            images.reject(key, f"left out: {error}")
        yield source.repository, TagSelection(include=(pattern,)), target.repository
    elif not source.tags:
        yield source.repository, EVERY_TAG, target.repository
    elif target.tags in ((), source.tags):
        yield source.repository, TagSelection(literal=source.tags), target.repository
    else:
        for old, new in zip(source.tags, target.tags, strict=True):
            yield source.repository, TagSelection(literal=(old,)), f"{target.repository}:{new}"


def _parse_name(images: ToolMapping, key: str, text: str, *, is_source: bool) -> _Name:
    """Parse a source or a destination. Raises NotConvertible."""
    expression = _EXPRESSION.fullmatch(text) if is_source else None
    if expression is not None:
        return _Name(parse_repository(images, key, expression[1]), expression=expression[2])
    name, _, digest = text.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tags = last.partition(":")
    repository = parse_repository(images, key, f"{head}{slash}{last}")
    if not is_source and repository.startswith(f"{DOCKER_HUB}/") and not names_host(text.partition("/")[0]):
        images.note(key, "the destination has no registry, which means Docker Hub")
    return _Name(repository, tuple(tags.split(",")) if colon else (), digest)
