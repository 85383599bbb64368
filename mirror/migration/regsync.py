"""Converts the configuration of regsync (https://regclient.org/usage/regsync/)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mirror.errors import ConfigError
from mirror.migration.conversion import Conversion, ConvertedMirror, merge_mirrors
from mirror.migration.peer_file import NotConvertible, Note, ToolMapping
from mirror.migration.registry_settings import MOST_PARALLEL
from mirror.migration.regsync_hosts import RegistryNames, convert_hosts
from mirror.migration.regsync_tags import select_tags
from mirror.migration.schedules import crontab_line
from mirror.migration.tag_patterns import pattern_for_search
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.migration.templates import expand_template
from mirror.oci.platform import parse_platform
from mirror.oci.reference import Reference, names_host
from mirror.selection.locations import MATCHED
from mirror.util.structs import Struct

_TOOL = "regsync"
_OCI_SCHEMES = ("ocidir://", "ocifile://")


class _Options(Struct, frozen=True):
    """The settings of regsync that an entry and `defaults` may both contain. A setting is None if its key is missing.

    types: the artifact types under `referrerFilters`."""

    referrers: bool | None = None
    digest_tags: bool | None = None
    types: tuple[str, ...] = ()
    external: bool | None = None

    def with_defaults(self, defaults: _Options) -> _Options:
        """Return the settings of an entry, completed by those of `defaults`."""
        return _Options(
            defaults.referrers if self.referrers is None else self.referrers,
            defaults.digest_tags if self.digest_tags is None else self.digest_tags,
            self.types or defaults.types,
            defaults.external if self.external is None else self.external,
        )


def convert(top: ToolMapping, environment: Mapping[str, str]) -> Conversion:
    """Convert a configuration of regsync.

    environment: the environment variables that templates in the file may use. Raises NotConvertible if no part of the
    file can be converted."""
    version = top.number("version")
    if version not in (None, 0.0, 1.0):
        top.reject("version", "only version 1 of the configuration of regsync can be converted")
    conversion = Conversion(notes=top.notes)
    for key in top.node.items:
        if key.startswith("x-"):
            top.has(key)  # marks the key as read: it only defines anchors, which have been expanded
    registries, names = convert_hosts(top, environment)
    conversion.registries = registries.by_host
    defaults = top.mapping("defaults")
    options = _read_defaults(defaults, conversion) if defaults is not None else _Options()
    mirrors: list[ConvertedMirror] = []
    for entry in top.mappings("sync"):
        notes: list[Note] = []
        try:
            mirrors.append(_convert_entry(entry.with_notes(notes), options, names, environment))
        except NotConvertible as error:
            conversion.notes += [*notes, error.note]
    conversion.mirrors = merge_mirrors(mirrors, conversion.notes)
    top.note_unknown_keys(_TOOL)
    return conversion


def _read_defaults(defaults: ToolMapping, conversion: Conversion) -> _Options:
    """Convert the section `defaults`, and return the settings in it that apply to entries."""
    parallel = defaults.number("parallel")
    if parallel is not None:
        conversion.top["parallel"] = {"images": max(1, min(int(parallel), MOST_PARALLEL))}
        if parallel > 1:
            defaults.note(
                "parallel", "`parallel.images` limits the copies to each target host, not the copies of the whole run"
            )
    for key in ("cacheCount", "cacheTime", "blobLimit"):
        defaults.note_if_present(key, "not needed: nothing is requested twice in a run, and blobs have no size limit")
    what = "not converted: docker's configuration is used for registries without `username`. To ignore it, set the"
    if defaults.flag("skipDockerConfig"):
        defaults.note("skipDockerConfig", f"{what} environment variable DOCKER_CONFIG to an empty directory")
    defaults.note_if_present("userAgent", "not converted: the user agent cannot be changed")
    options = _read_options(defaults)
    defaults.note_unknown_keys(_TOOL)
    return options


def _read_options(peer: ToolMapping) -> _Options:
    """Read the settings that entries and `defaults` have in common. Add a note for each setting without equivalent."""
    types, filters = [], list(peer.mappings("referrerFilters"))
    for one in filters:
        kind = one.text("artifactType")
        if kind:
            types.append(kind)
        one.note_if_present("annotations", "not converted: attachments can be selected only by type, not by annotation")
        one.note_unknown_keys(_TOOL)
    if len(types) < len(filters):
        types = []  # a filter without a type selects every type
    peer.note_if_present("backup", "not converted: a tag that is overwritten is not saved under another name")
    schedule, interval = peer.text("schedule"), peer.text("interval")
    if schedule or interval:
        key = "schedule" if schedule else "interval"
        peer.note(key, f"not converted: start `mirror sync` with cron, for example: {crontab_line(schedule, interval)}")
    limit = peer.mapping("ratelimit")
    if limit is not None:
        what = "not converted: requests pause when a registry reports that its rate limit is exceeded"
        limit.note_if_present("min", f"{what}; no part of the quota is reserved")
        limit.note_if_present("retry", f"{what}, for the time that the registry specifies, up to 120 s")
        limit.note_unknown_keys(_TOOL)
    what = "not converted: attachments are read from the source repository and written to the target repository"
    for key in ("referrerSource", "referrerTarget"):
        peer.note_if_present(key, what, lost=True)
    peer.note_if_present("referrerSlow", "not needed: attachments are found by the referrers API, or by their tags")
    if peer.flag("fastCheck"):
        what = "not converted: the attachments of unchanged images are requested once per `recheck` (24 h by default)"
        peer.note("fastCheck", what)
    if peer.flag("forceRecursive"):
        peer.note("forceRecursive", "not converted: run `mirror sync --deep` to check all objects of unchanged images")
    peer.note_if_present("mediaTypes", "not needed: all types of manifests are copied; see `schema1` for the old type")
    peer.note_if_present("hooks", "not needed: regsync does not run hooks")
    return _Options(peer.flag("referrers"), peer.flag("digestTags"), tuple(types), peer.flag("includeExternal"))


def _convert_entry(
    entry: ToolMapping, defaults: _Options, names: RegistryNames, environment: Mapping[str, str]
) -> ConvertedMirror:
    """Convert one entry of `sync`. Raises NotConvertible."""
    kind = entry.text("type") or ""
    fields = {"Type": kind}
    source, target = (_expand_reference(entry, key, environment, fields) for key in ("source", "target"))
    options = _read_options(entry).with_defaults(defaults)
    repositories: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    tags = EVERY_TAG if kind == "image" else select_tags(entry)
    repos = entry.mapping("repos")
    if kind == "registry":
        source, target = f"{names.resolve(source)}/*", f"{names.resolve(target)}/{MATCHED}"
        if repos is not None:
            repositories = (_repository_patterns(repos, "allow"), _repository_patterns(repos, "deny"))
    elif kind == "repository":
        source, target = (
            _parse_repository(entry, key, one, names) for key, one in (("source", source), ("target", target))
        )
    elif kind == "image":
        source, target, tags = _convert_image(entry, source, target, names)
        for key in ("tags", "tagSets"):
            entry.note_if_present(key, "not needed: regsync ignores it for a single image")
    else:
        entry.reject("type", "left out: the type must be registry, repository or image; correct the file")
    if repos is not None:
        repos.note_unknown_keys(_TOOL)
        if kind != "registry":
            entry.note("repos", "not needed: regsync ignores it for a single repository or image")
    keys = tuple(_option_keys(entry, options))
    entry.note_unknown_keys(_TOOL)
    return ConvertedMirror(entry.line, source, (target,), tags, repositories, keys, tuple(entry.notes))


def _expand_reference(entry: ToolMapping, key: str, environment: Mapping[str, str], fields: dict[str, str]) -> str:
    """Return the source or target of an entry, in which each template is replaced by its value.

    The result is also stored in `fields`, because the template of a target may refer to the source."""
    text = entry.text(key)
    if not text:
        entry.reject(key, f"left out: the entry has no `{key}`; correct the file")
    expanded = expand_template(entry, key, text, environment, fields)
    fields[key.capitalize()] = expanded
    if expanded.startswith(_OCI_SCHEMES):
        what = (
            "a relative path refers to the directory of the new file. The repository in the layout has the name of the"
        )
        entry.note(key, f"{what} directory, while regsync stores tags without a repository")
    return expanded


def _option_keys(entry: ToolMapping, options: _Options) -> Iterator[tuple[str, object]]:
    """Yield the keys of the new entry for platforms, referrers and foreign layers, with their values."""
    platform, platforms = entry.text("platform"), entry.texts("platforms")
    for text in (*platforms, *([platform] if platform else ())):
        try:
            parse_platform(text)
        except ConfigError as error:
            entry.reject("platform" if platform else "platforms", f"left out: {error}")
    if platform:
        entry.note(
            "platform", "the index is copied with only this platform; regsync copies the image without its index"
        )
        yield "platforms", [platform]
    elif platforms:
        yield "platforms", platforms
        yield "index", "sparse"
    if options.referrers or options.digest_tags:
        yield "referrers", {"include": list(options.types)} if options.types and options.referrers else True
    if options.external:
        yield "foreign-layers", "copy"


def _repository_patterns(repos: ToolMapping, key: str) -> tuple[str, ...]:
    """Convert the regular expressions for repositories under `allow` or `deny`. Raises NotConvertible."""
    try:
        return tuple(pattern_for_search(f"^{text}$") for text in repos.texts(key))
    except ConfigError as error:
        repos.reject(key, f"left out: {error}")


def _parse_repository(entry: ToolMapping, key: str, text: str, names: RegistryNames) -> str:
    """Convert a repository to the form of a `mirror` configuration. Raises NotConvertible."""
    layout = _parse_layout(text)
    if layout is not None:
        location, tag = layout
        if tag:
            entry.reject(key, "left out: a repository has no tag; correct the file")
        return location
    reference = _parse_reference(entry, key, text, names)
    if reference.tag or reference.digest:
        entry.reject(key, "left out: a repository has no tag and no digest; correct the file")
    return str(reference)


def _convert_image(entry: ToolMapping, source: str, target: str, names: RegistryNames) -> tuple[str, str, TagSelection]:
    """Convert an entry for a single image to a source, a target and a tag. Raises NotConvertible."""
    digest = ""
    layout = _parse_layout(source)
    if layout is not None:
        read, tag = layout[0], layout[1] or "latest"
    else:
        reference = _parse_reference(entry, "source", source, names)
        read = str(reference.repository)
        tag = reference.tag or ("" if reference.digest else "latest")
        digest = f"@{reference.digest}" if reference.digest else ""
    layout = _parse_layout(target)
    if layout is not None:
        written, new_tag = layout[0], layout[1] or "latest"
    else:
        reference = _parse_reference(entry, "target", target, names)
        if reference.digest:
            entry.reject("target", "left out: a target has no digest; write a tag, and convert again")
        written, new_tag = str(reference.repository), reference.tag or "latest"
    if new_tag != tag:
        written = f"{written}:{new_tag}"
    if digest:
        # regsync requests the manifest by its digest, and ignores the tag before the digest.
        return f"{read}{f':{tag}' if tag else ''}{digest}", written, EVERY_TAG
    return read, written, TagSelection(literal=(tag,))


def _parse_reference(entry: ToolMapping, key: str, text: str, names: RegistryNames) -> Reference:
    """Parse a reference, and replace the name of its registry with the actual host. Raises NotConvertible."""
    first, slash, rest = text.partition("/")
    try:
        return Reference.parse(f"{names.resolve(first)}/{rest}" if slash and names_host(first) else text)
    except ConfigError as error:
        entry.reject(key, f"left out: {error}")


def _parse_layout(text: str) -> tuple[str, str] | None:
    """Split a reference to a layout (`ocidir://DIR:TAG`) into a location and a tag. Return None for a registry.

    In layouts, regsync stores tags without a repository. The location gets a repository named after the directory."""
    scheme = next((one for one in _OCI_SCHEMES if text.startswith(one)), None)
    if scheme is None:
        return None
    directory, _, tag = text.removeprefix(scheme).partition(":")
    return f"oci:{directory}:{directory.rstrip('/').rpartition('/')[2].lower()}", tag
