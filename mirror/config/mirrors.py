"""Parses the section `mirrors` of the configuration, and applies the section `defaults`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mirror.config.attachments import attachment_rules
from mirror.config.problems import KeyPath, Position, quote_value
from mirror.config.registries import RegistriesConfig
from mirror.config.section import Section
from mirror.config.signature_keys import check_not_v1, parse_policy
from mirror.config.tag_rules import parse_patterns, parse_tag_rules
from mirror.config.tree import Scalar
from mirror.config.values import interval
from mirror.errors import ConfigError, printable
from mirror.oci.platform import parse_platform
from mirror.oci.platform_filter import MAX_PLATFORMS, PlatformFilter
from mirror.oci.reference import DOCKER_HUB, Repository
from mirror.registry.http.host_settings import HostSettings, V1Mode
from mirror.selection.attachment_rules import AttachmentRules
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
    placeholder_in,
)
from mirror.selection.repository_rules import RepositoryRules
from mirror.selection.tag_rules import TagRules
from mirror.selection.tag_templates import KEEP_TAG, TagTemplate
from mirror.signatures.policy import SignaturePolicy
from mirror.util.structs import Struct, replace

# Public registries that list the repositories of a namespace, but not all repositories.
_LISTED_BY_NAMESPACE = frozenset({DOCKER_HUB, "ghcr.io", "quay.io"})


class MirrorConfig(Struct, frozen=True):
    """One entry of the section `mirrors` of the configuration.

    path: the name in messages, which is the path of the key, such as `mirrors[2]`. source, targets: their hosts are
    the host name of a registry, the real path of a bundle, `oci:` and the real path of a layout, or `-` for a standard
    stream. tag_templates: the tags that images get on each target. wildcard: whether the path of the source is a
    prefix, and the paths of the targets contain `{repository}`. schema1: `copy`, `convert` or `fail`. foreign_layers:
    whether to copy foreign layers. attachments: the rules for signatures and other artifacts; None if they are not
    copied. v1: None if the settings of the registry apply. base: the inventory for differential exports. repositories:
    the rules that select repositories under a wildcard. signature_policy: the keys of which one must have signed each
    image; None if no signature is required. platforms: the platforms to copy; None for all. every: the interval in
    seconds between two runs of `sync --every`; None for the interval of the command line."""

    position: Position
    path: str
    source: Repository
    targets: tuple[Repository, ...]
    tag_templates: tuple[TagTemplate, ...]
    tags: TagRules
    schema1: str
    foreign_layers: bool = False
    v1: V1Mode | None = None
    wildcard: bool = False
    base: Path | None = None
    repositories: RepositoryRules = RepositoryRules()
    signature_policy: SignaturePolicy | None = None
    attachments: AttachmentRules | None = None
    platforms: PlatformFilter | None = None
    every: float | None = None


class Draft(Struct, frozen=True):
    """A mirror with a valid source that has not yet been checked for conflicts with other mirrors.

    path: the key path of the mirror. target_paths: the key paths of its valid targets. has_valid_rules: whether the
    rules for repositories and tags are valid. Otherwise, it is unknown what the mirror writes."""

    mirror: MirrorConfig
    path: KeyPath
    target_paths: tuple[KeyPath, ...]
    has_valid_rules: bool

    def targets(self) -> Iterator[tuple[Repository, TagTemplate, KeyPath]]:
        """Yield each valid target, the tags that images get on it, and its key path."""
        yield from zip(self.mirror.targets, self.mirror.tag_templates, self.target_paths, strict=True)


def build(sections: Iterable[Section], defaults: Section, hosts: RegistriesConfig) -> list[Draft]:
    """Build a Draft for each mirror that has a valid source. Add problems to the document.

    sections: the mirrors. defaults: the section `defaults`, with values for keys that a mirror lacks."""
    shared, policy = parse_tag_rules(defaults), parse_policy(defaults)
    drafts = [_build_draft(section, defaults, shared, policy, hosts) for section in sections]
    return [draft for draft in drafts if draft is not None]


def _build_draft(
    section: Section,
    defaults: Section,
    shared: TagRules | None,
    policy: SignaturePolicy | None,
    hosts: RegistriesConfig,
) -> Draft | None:
    """Build the Draft for one mirror, or return None if its source is invalid.

    shared, policy: the tag rules and the signature policy of `defaults`."""
    own = parse_tag_rules(section)
    source = section.parse("source", lambda text: _check_encodable(parse_source(text), section))
    targets = section.parse_list("targets", lambda text: _check_encodable(parse_target(text), section))
    if source is None:
        return None
    named = not isinstance(source, StreamLocation) and (source.tag is not None or source.digest is not None)
    if named and section.has_key("tags"):
        section.add_problem(
            "`source` already contains a tag or digest; remove it there, or remove `tags`", below="tags"
        )
    wildcard = _is_wildcard(section, source, targets)
    read = _repository(source, section, hosts)
    mirror = MirrorConfig(
        section.document.position(section.path),
        section.document.name(section.path),
        read,
        tuple(_target_repository(target, read, section, hosts, wildcard=wildcard) for _, target in targets),
        tuple(target.tag_template or KEEP_TAG for _, target in targets),
        _location_rules(source) or own or shared or TagRules(),
        section.text("schema1") or defaults.text("schema1") or "copy",
        (section.text("foreign-layers") or defaults.text("foreign-layers")) == "copy",
        _v1_mode(section) or _v1_mode(defaults),
        wildcard,
        section.file("base") or defaults.file("base"),
        (_repository_rules(section) or _repository_rules(defaults)) if wildcard else RepositoryRules(),
        parse_policy(section) or policy,
        attachment_rules(section, defaults),
        _platform_filter(section, defaults),
        section.parse("every", interval) or defaults.parse("every", interval),
    )
    if section.has_key("repositories") and not wildcard:
        what = "selects repositories of a source that ends with /*, but this source is a single repository; remove it"
        section.add_problem(what, below="repositories")
    if section.has_key("base") and not any(is_bundle(one.host) for one in mirror.targets):
        section.add_problem("is only for exports to bundles, but no target is a bundle; remove `base`", below="base")
    _check_wildcard(mirror, section, hosts)
    if mirror.signature_policy is not None and is_registry(read.host) and read.host != DOCKER_HUB:
        check_not_v1(mirror.v1 or hosts.settings.get(read.host, HostSettings(read.host)).v1, section)
    _check_platforms(mirror, section)
    return Draft(
        mirror,
        section.path,
        tuple((*section.path, "targets", number) for number, _ in targets),
        all(
            where.document.is_valid((*where.path, key))
            for where in (section, defaults)
            for key in ("tags", "repositories")
        ),
    )


def _check_encodable(location: Location, section: Section) -> Location:
    """Return a location unchanged. Raises ConfigError if it is a path on disk that cannot be encoded as UTF-8.

    The state stores such paths as text."""
    if isinstance(location, LayoutLocation | BundleLocation):
        name = location.directory if isinstance(location, LayoutLocation) else location.file
        try:
            _real_path(section, name).encode()
        except UnicodeEncodeError:
            what = f"the full path of {printable(name, 80)} cannot be encoded in this locale"
            raise ConfigError(f"{what}; set LC_ALL=C.UTF-8, or use names in UTF-8") from None
    return location


def _location_rules(source: Location) -> TagRules | None:
    """Return rules that select only the tag or digest of a location, or None if the location has neither."""
    if isinstance(source, StreamLocation) or not (source.tag or source.digest):
        return None
    return TagRules((source.tag,) if source.tag else None, source.digest)


def _is_wildcard(section: Section, source: Location, targets: Sequence[tuple[int, Location]]) -> bool:
    """Return whether a mirror copies all repositories of its source. Report targets that do not fit the source.

    A source on disk without a repository name selects all its repositories if a target contains `{repository}`.
    Otherwise, it selects its only repository."""
    may_be_wildcard = not isinstance(source, RegistryLocation) and not _has_repository(source)
    wildcard = source.wildcard or (may_be_wildcard and any(target.wildcard for _, target in targets))
    for number, target in targets:
        if wildcard and not target.wildcard and _has_repository(target):
            what = f"the target has no {MATCHED}, but the source has many repositories"
            section.document.add((*section.path, "targets", number), what + _template_hint(section, number, target))
        elif target.wildcard and not wildcard:
            path = (*section.path, "targets", number)
            node = section.document.node(path)
            written = placeholder_in(node.text if isinstance(node, Scalar) else "")
            what = f"the target contains {written}, but the source is a single repository; add /* to copy several"
            section.document.add(path, what)
    return wildcard


def _template_hint(section: Section, number: int, target: Location) -> str:
    """Return the hint for a target that must contain `{repository}`, because its source is a wildcard."""
    node = section.document.node((*section.path, "targets", number))
    if not isinstance(node, Scalar):
        return ""
    tag = f":{target.tag_template}" if target.tag_template is not None else ""
    return f"; write {quote_value(f'{node.text.removesuffix(tag)}/{MATCHED}{tag}')}"


def _check_wildcard(mirror: MirrorConfig, section: Section, hosts: RegistriesConfig) -> None:
    """Report a wildcard source whose repositories cannot be listed, such as a registry that is read over v1."""
    host, path = mirror.source.host, mirror.source.path
    if not mirror.wildcard or not is_registry(host):
        return
    if host in _LISTED_BY_NAMESPACE and not path:
        what = f"{host} lists repositories only by namespace; write {quote_value(f'{host}/namespace/*')}"
        section.add_problem(what, below="source")
    elif host == DOCKER_HUB and "/" in path:
        namespace = path.partition("/")[0]
        what = f"names on Docker Hub have two parts; write {quote_value(f'{host}/{namespace}/*')}"
        section.add_problem(what, below="source")
    if host == DOCKER_HUB:
        return
    mode = mirror.v1 or hosts.settings.get(host, HostSettings(host)).v1
    if mode is V1Mode.ONLY:
        section.add_problem("the v1 protocol cannot list repositories; add a mirror for each of them", below="source")
    elif mode is V1Mode.PER_TAG:
        what = "a wildcard does not match repositories that are available only over v1; add a mirror for each of them"
        section.add_warning(what, below="source")


def _has_repository(location: Location) -> bool:
    """Return whether a location names a repository, or a prefix of repository names."""
    return isinstance(location, RegistryLocation) or (
        not isinstance(location, StreamLocation) and bool(location.repository)
    )


def _target_repository(
    target: Location, source: Repository, section: Section, hosts: RegistriesConfig, *, wildcard: bool
) -> Repository:
    """Return the repository of a target. A target on disk without a repository name gets the path of the source."""
    repository = _repository(target, section, hosts)
    if _has_repository(target):
        return repository
    if not wildcard:
        return replace(repository, path=source.path)
    return replace(repository, path=f"{source.path}/{MATCHED}" if source.path else MATCHED)


def _repository(location: Location, section: Section, hosts: RegistriesConfig) -> Repository:
    """Convert a location to a Repository with the canonical host name."""
    if isinstance(location, RegistryLocation):
        return replace(location.repository, host=hosts.canonical(location.repository.host))
    if isinstance(location, StreamLocation):
        return Repository(STREAM, "")
    if isinstance(location, BundleLocation):
        return Repository(_real_path(section, location.file), location.repository)
    return Repository(f"oci:{_real_path(section, location.directory)}", location.repository)


def _real_path(section: Section, name: str) -> str:
    """Return the path of a store on disk with symbolic links resolved, so that each store has exactly one path.

    Raises ConfigError if the path is not valid."""
    return os.path.realpath(section.resolve_path(name))


def _v1_mode(section: Section) -> V1Mode | None:
    """Return the v1 mode that is set in a section, or None if there is none."""
    text = section.text("v1")
    return V1Mode(text) if text else None


def _platform_filter(section: Section, defaults: Section) -> PlatformFilter | None:
    """Return the platforms that a mirror copies, or None if it copies all."""
    owner = section if section.has_key("platforms") else defaults
    platforms = [platform for _, platform in owner.parse_list("platforms", parse_platform)]
    index = section.text("index") or defaults.text("index")
    return PlatformFilter.of(platforms, sparse=index == "sparse") if platforms else None


def _check_platforms(mirror: MirrorConfig, section: Section) -> None:
    """Report invalid uses of `platforms` and `index`, such as `index` without `platforms`."""
    if mirror.platforms is None:
        if section.has_key("index"):
            section.add_warning("has no effect without `platforms`", below="index")
    elif len(mirror.platforms.platforms) > MAX_PLATFORMS:
        section.add_problem(f"`platforms` lists more than {MAX_PLATFORMS} platforms", below="source")
    elif mirror.tags.digest is not None and not mirror.tags.literal and not mirror.platforms.sparse:
        what = (
            "`platforms` may change the digest of the image, so it needs a tag; write HOST/REPOSITORY:TAG@DIGEST, or "
        )
        what += "set `index: sparse`"
        section.add_problem(what, below="source")


def _repository_rules(section: Section) -> RepositoryRules:
    """Return the rules under the key `repositories`. They are empty if the key is missing or has no valid pattern."""
    rules = section.section("repositories")
    return RepositoryRules(parse_patterns(rules, "include"), parse_patterns(rules, "exclude"))
