"""The `mirrors` section: locations and tag rules, each mirror with the defaults."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mirror.config.problems import KeyPath, Place, format_key_path, value_shown
from mirror.config.registries import Hosts
from mirror.config.section import Section
from mirror.config.tree import Scalar
from mirror.errors import ConfigError, printable
from mirror.oci.reference import DOCKER_HUB, Repository, is_tag, tag_hint
from mirror.registry.http.host_settings import V1, HostSettings
from mirror.selection.locations import (
    MATCHED,
    STREAM,
    BundleLocation,
    LayoutLocation,
    Location,
    RegistryLocation,
    StreamLocation,
    is_bundle,
    is_registry,
    parse_source,
    parse_target,
    template_in,
)
from mirror.selection.patterns import compile_pattern, regex_for_shell_pattern
from mirror.selection.tag_rules import TagRules
from mirror.util.structs import Struct, replace


class MirrorConfig(Struct, frozen=True):
    """One entry of `mirrors`. path: of its key, like `mirrors[2]`. schema1: `copy`, `convert` or `fail`.

    A bundle has its real path as host, a layout `oci:` and its real path, a standard stream `-`. wildcard: the source's
    path is a prefix, and those of the targets have `{repository}`. v1: None: as the registry's settings say.
    base: an inventory."""

    place: Place
    path: str
    source: Repository
    targets: tuple[Repository, ...]
    tags: TagRules
    schema1: str
    v1: V1 | None = None
    wildcard: bool = False
    base: Path | None = None


class Draft(Struct, frozen=True):
    """A mirror whose source could be read, with the paths of it and of those of its targets that could be, too.

    sure: whether its tags are what the file means; else nothing more can be said of what it writes."""

    mirror: MirrorConfig
    path: KeyPath
    target_paths: tuple[KeyPath, ...]
    sure: bool


def build(top: Section, hosts: Hosts) -> list[Draft]:
    """Raises nothing; problems are noted."""
    defaults = top.section("defaults")
    shared = _rules(defaults)
    drafts = [_draft(section, defaults, shared, hosts) for section in top.sections("mirrors")]
    return [draft for draft in drafts if draft is not None]


def _draft(section: Section, defaults: Section, shared: TagRules | None, hosts: Hosts) -> Draft | None:
    own = _rules(section)
    source = section.parsed("source", lambda text: _usable(parse_source(text), section))
    targets = section.parsed_list("targets", lambda text: _usable(parse_target(text), section))
    if source is None:
        return None
    named = not isinstance(source, StreamLocation) and (source.tag is not None or source.digest is not None)
    if named and section.has("tags"):
        section.problem("`source` names a tag or digest, so `tags` cannot be given too; keep one", below="tags")
    wildcard = _wildcard(section, source, targets)
    read = _repository(source, section, hosts)
    mirror = MirrorConfig(
        section.document.place(section.path),
        format_key_path(section.path),
        read,
        tuple(_written(target, read, section, hosts, wildcard=wildcard) for _, target in targets),
        _short(source) or own or shared or TagRules(),
        section.text("schema1") or defaults.text("schema1") or "copy",
        _v1(section) or _v1(defaults),
        wildcard,
        section.file("base") or defaults.file("base"),
    )
    if section.has("base") and not any(is_bundle(one.host) for one in mirror.targets):
        section.problem("is for differential exports, but no target is a bundle; remove it", below="base")
    _check_wildcard(mirror, section, hosts)
    return Draft(
        mirror,
        section.path,
        tuple((*section.path, "targets", number) for number, _ in targets),
        all(where.document.sound((*where.path, "tags")) for where in (section, defaults)),
    )


def _usable(location: Location, section: Section) -> Location:
    """Raises ConfigError where a store on disk has no path that can be told, and kept in the state."""
    if isinstance(location, LayoutLocation | BundleLocation):
        name = location.directory if isinstance(location, LayoutLocation) else location.file
        try:
            _real(section, name).encode()
        except UnicodeEncodeError:
            what = f"the whole path of {printable(name, 80)} is no text in this locale"
            raise ConfigError(f"{what}; set LC_ALL=C.UTF-8, or use names in UTF-8") from None
    return location


def _short(source: Location) -> TagRules | None:
    """What a tag or digest in the source selects."""
    if isinstance(source, StreamLocation) or not (source.tag or source.digest):
        return None
    return TagRules((source.tag,) if source.tag else None, source.digest)


def _wildcard(section: Section, source: Location, targets: Sequence[tuple[int, Location]]) -> bool:
    """Whether all repositories of the source take part. A store on disk without a repository: all, if the targets
    say where each goes, else the only one that it has."""
    able = not isinstance(source, RegistryLocation) and not _named(source)
    wildcard = source.wildcard or (able and any(target.wildcard for _, target in targets))
    for number, target in targets:
        if wildcard and not target.wildcard and _named(target):
            what = f"would get all repositories, but does not say where each goes{_with_template(section, number)}"
            section.document.add((*section.path, "targets", number), what)
        elif target.wildcard and not wildcard:
            path = (*section.path, "targets", number)
            node = section.document.node(path)
            written = template_in(node.text if isinstance(node, Scalar) else "")
            what = f"has {written}, but the source is one repository: a source that ends in /* is all below it"
            section.document.add(path, what)
    return wildcard


def _with_template(section: Section, number: int) -> str:
    """What to write for a target of a wildcard source that has no template."""
    node = section.document.node((*section.path, "targets", number))
    text = f"{node.text}/{MATCHED}" if isinstance(node, Scalar) else ""
    return f"; write {value_shown(text)}" if text else ""


def _check_wildcard(mirror: MirrorConfig, section: Section, hosts: Hosts) -> None:
    """A list of repositories is v2's alone."""
    host = mirror.source.host
    if not mirror.wildcard or not is_registry(host) or host == DOCKER_HUB:
        return
    mode = mirror.v1 or hosts.settings.get(host, HostSettings(host)).v1
    if mode is V1.ONLY:
        section.problem("v1 has no list of repositories: name each in a mirror of its own", below="source")
    elif mode is V1.PER_TAG:
        what = "repositories that only v1 has are not found in this way: name each in a mirror of its own"
        section.warn(what, below="source")


def _named(location: Location) -> bool:
    """Whether it says which repository, or which part of it."""
    return isinstance(location, RegistryLocation) or (
        not isinstance(location, StreamLocation) and bool(location.repository)
    )


def _written(target: Location, source: Repository, section: Section, hosts: Hosts, *, wildcard: bool) -> Repository:
    """A store on disk without a repository takes the source's name."""
    repository = _repository(target, section, hosts)
    if _named(target):
        return repository
    if not wildcard:
        return replace(repository, path=source.path)
    return replace(repository, path=f"{source.path}/{MATCHED}" if source.path else MATCHED)


def _repository(location: Location, section: Section, hosts: Hosts) -> Repository:
    if isinstance(location, RegistryLocation):
        return replace(location.repository, host=hosts.canonical(location.repository.host))
    if isinstance(location, StreamLocation):
        return Repository(STREAM, "")
    if isinstance(location, BundleLocation):
        return Repository(_real(section, location.file), location.repository)
    return Repository(f"oci:{_real(section, location.directory)}", location.repository)


def _real(section: Section, name: str) -> str:
    """The path of a store on disk without links: one file or directory is one store under all its names. Raises
    ConfigError."""
    return os.path.realpath(section.resolved(name))


def _v1(section: Section) -> V1 | None:
    text = section.text("v1")
    return V1(text) if text else None


def _rules(section: Section) -> TagRules | None:
    """What `tags` says; None where it is not given, or wrong."""
    literal = [tag for _, tag in section.parsed_list("tags", _tag)]
    if literal:
        twice = (
            next((tag for tag in literal if literal.count(tag) > 1), None) if len(set(literal)) < len(literal) else None
        )
        if twice is not None:
            section.warn(f'"{twice}" stands twice', below="tags")
        return TagRules(tuple(dict.fromkeys(literal)))
    rules = section.section("tags")
    include, exclude, immutable = (_patterns(rules, key) for key in ("include", "exclude", "immutable"))
    allow_empty = rules.flag("allow-empty", False)
    given = include or exclude or immutable or allow_empty
    return TagRules(None, None, include, exclude, immutable, allow_empty) if given else None


def _patterns(rules: Section, key: str) -> tuple[str, ...]:
    found = rules.parsed_list(key, _pattern)
    for number, text in found:
        instead = regex_for_shell_pattern(text)
        if instead is not None:
            what = f"\"{text}\" looks like a shell pattern, but is read as a regular expression; write '{instead}'"
            rules.warn(what, below=key, item=number)
    return tuple(text for _, text in found)


def _tag(text: str) -> str:
    if is_tag(text):
        return text
    hint = tag_hint(text)
    if text.startswith(("sha256:", "sha512:")):
        hint = "a digest goes into `source`, like host/repository@sha256:…"
    elif any(mark in text for mark in "*?[(|\\^$"):
        hint = "a pattern goes under `tags: {include: […]}`"
    raise ConfigError(f"not a tag: {value_shown(text)}; {hint}")


def _pattern(text: str) -> str:
    compile_pattern(text)
    return text
