"""Converts the YAML file of `skopeo sync --src yaml` (skopeo-sync(1))."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from mirror.errors import ConfigError, Refused, printable
from mirror.migration import masterminds
from mirror.migration.conversion import Conversion, ConvertedMirror, merge_mirrors
from mirror.migration.peer_file import NotConvertible, Note, ToolMapping
from mirror.migration.registry_settings import RegistrySettings, host_or_reject
from mirror.migration.tag_patterns import pattern_for_search
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.migration.version_patterns import version_patterns
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository, is_tag, printable_reference, tag_hint
from mirror.selection.locations import MATCHED, parse_target
from mirror.selection.tag_templates import TAG
from mirror.util.config_key import format_key_path
from mirror.util.structs import Struct, field

_TOOL = "skopeo"
_FLAGS = (
    "flags of `skopeo sync` are not in the file: without --all, it copies one platform, while all platforms are copied "
    "here (see `platforms`); --scoped is --destination 'HOST/PREFIX/{repository}'; --append-suffix is --destination "
    "'HOST/PREFIX:{tag}-SUFFIX'; logins and certificates of the destination belong under `registries`; --keep-going "
    "and --retry-times are not needed"
)


class _Images(Struct):
    """The tags and digests that the mappings of a registry list for one repository.

    line: the first line with the repository, counted from 1."""

    line: int
    selections: list[TagSelection] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def convert(top: ToolMapping, destination: str) -> Conversion:
    """Convert a YAML file of `skopeo sync`.

    destination: the DESTINATION argument of `skopeo sync`. If it contains `{repository}`, this is replaced by the name
    of the source including its host, as with `--scoped`. A tag template at its end is kept. Raises NotConvertible, and
    ConfigError if the destination is invalid."""
    _check_destination(destination)
    conversion, settings = Conversion(notes=top.notes), RegistrySettings()
    conversion.registries = settings.by_host
    conversion.notes.append(Note(1, "", _FLAGS))
    mirrors: list[ConvertedMirror] = []
    for name in top.read_keys():
        try:
            block = top.mapping(name)
            if block is None:
                continue
            host = host_or_reject(top, name, name)
            _convert_settings(block, host, settings)
        except NotConvertible as error:
            conversion.notes.append(error.note)
            continue
        mirrors += _convert_images(block, host, destination, conversion.notes)
        block.note_unknown_keys(_TOOL)
    conversion.mirrors = merge_mirrors(mirrors, conversion.notes)
    return conversion


def _check_destination(destination: str) -> None:
    """Raise ConfigError if a destination with a repository name added to it is not a valid target."""
    name = printable_reference(destination)
    try:
        target = _target(destination.replace(MATCHED, "source"), Repository("localhost", "repository"))
        parse_target(target)
    except ConfigError as error:
        hint = "specify the DESTINATION argument of `skopeo sync`, for example registry.example.com/hub"
        raise ConfigError(f"not a valid destination: '{name}': {error.what}", hint=hint) from None


def _target(destination: str, source: Repository) -> str:
    """Return the target for a source repository. destination: the argument of `skopeo sync`."""
    prefix, colon, tag = destination.rpartition(":") if TAG in destination else (destination, "", "")
    if MATCHED in prefix:
        target = prefix.replace(MATCHED, str(source))
    else:
        target = f"{prefix.rstrip('/')}/{source.path.rpartition('/')[2]}"
    return f"{target}{colon}{tag}"


def _convert_settings(block: ToolMapping, host: str, settings: RegistrySettings) -> None:
    """Convert the login and the TLS settings of a registry. Raises NotConvertible if they are invalid."""
    login = block.mapping("credentials")
    if login is not None:
        username, password = login.text("username"), login.text("password")
        if username and password:
            settings.set_login(host, username, password, login, "password")
        what = "not converted: use docker's configuration file, to which `docker login` writes identity tokens"
        login.note_if_present("identitytoken", what, lost=True)
        login.note_unknown_keys(_TOOL)
    if block.flag("tls-verify") is False:
        settings.set_unverified(host, block, "tls-verify")
    directory = block.text("cert-dir")
    if directory:
        settings.read_certificates(host, directory, block, "cert-dir")


def _convert_images(block: ToolMapping, host: str, destination: str, notes: list[Note]) -> Iterator[ConvertedMirror]:
    """Yield an entry for each repository of a registry, and an entry for each image that is listed by its digest.

    notes: the list to which notes are added."""
    for name, images in _collect_images(block, notes).items():
        try:
            repository = Repository.parse(f"{host}/{name}")
            target = _target(destination, repository)
        except ConfigError as error:
            notes += [*images.notes, Note(images.line, format_key_path((name,)), f"left out: {error}", lost=True)]
            continue
        if images.selections:
            # Without exclusions, the union always exists.
            tags = reduce(lambda one, other: one.union(other) or EVERY_TAG, images.selections)
            yield ConvertedMirror(images.line, str(repository), (target,), tags, notes=tuple(images.notes))
        else:
            notes += images.notes
        for digest in images.digests:
            yield ConvertedMirror(images.line, f"{repository}@{digest}", (target,))


def _collect_images(block: ToolMapping, notes: list[Note]) -> dict[str, _Images]:
    """Read the mappings of a registry, and return the images of each repository.

    If several mappings contain a repository, the result contains the tags of all these mappings, as in skopeo."""
    found: dict[str, _Images] = {}
    for key, read in _READERS.items():
        try:
            repositories = block.mapping(key)
        except NotConvertible as error:
            notes.append(error.note)
            continue
        if repositories is None:
            continue
        for name in repositories.read_keys():
            own: list[Note] = []
            try:
                selection, digests = read(repositories.with_notes(own), name)
            except NotConvertible as error:
                notes += [*own, error.note]
                continue
            images = found.setdefault(name, _Images(repositories.node.keys[name].line + 1))
            images.selections += [selection] if selection is not None else []
            images.digests += digests
            images.notes += own
    return found


def _read_list(peer: ToolMapping, name: str) -> tuple[TagSelection | None, list[str]]:
    """Read the tags and digests of a repository. An empty list means all tags. Raises NotConvertible."""
    tags: list[str] = []
    digests: list[str] = []
    texts = peer.texts(name)
    for text in texts:
        if ":" in text:
            try:
                digests.append(str(Digest.parse(text)))
            except Refused as error:
                peer.note(name, f"left out: {error}", lost=True)
        elif is_tag(text):
            tags.append(text)
        else:
            peer.note(name, f"left out: not a tag: {printable(text, 80)}; {tag_hint(text)}", lost=True)
    if not texts:
        return EVERY_TAG, []
    return (TagSelection(literal=tuple(dict.fromkeys(tags))) if tags else None), digests


def _read_expression(peer: ToolMapping, name: str) -> tuple[TagSelection | None, list[str]]:
    """Read the regular expression for the tags of a repository, which is not anchored. Raises NotConvertible."""
    try:
        return TagSelection(include=(pattern_for_search(peer.text(name) or ""),)), []
    except ConfigError as error:
        peer.reject(name, f"left out: {error}")


def _read_range(peer: ToolMapping, name: str) -> tuple[TagSelection | None, list[str]]:
    """Read the version range for the tags of a repository. Raises NotConvertible."""
    text = peer.text(name) or ""
    try:
        patterns = version_patterns(masterminds.parse_range(text), masterminds.TAG_FORM)
    except ConfigError as error:
        peer.reject(name, f"left out: {error}")
    what = f"the patterns select exactly the tags of the range {printable(text, 100)}. The key `semver` takes ranges of"
    peer.note(name, f"{what} npm, which are similar and easier to read: see docs/migration.md")
    return TagSelection(include=tuple(patterns)), []


_READERS = {"images": _read_list, "images-by-tag-regex": _read_expression, "images-by-semver": _read_range}
