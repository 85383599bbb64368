"""The grammar of sources and targets: `host/repository`, `oci:DIR[:REPOSITORY]`, `FILE.tar[:REPOSITORY]`, and `-`.

A source may end in `/*`, which selects all repositories under the prefix. In its targets, `*` or `{repository}` stands
for the text that the `*` matched, which may contain slashes. A target may end in a tag, in which `{tag}` stands for the
tag of the source. A location that ends in `.tar`, or has `.tar:` before a repository, is a bundle. A target in a
registry must name its host. A source without a host is an image on Docker Hub, as in Docker, unless it looks like a
host without a repository or like a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.reference import DOCKER_HUB, Reference, Repository, is_tag, names_host, printable_reference
from mirror.selection.shell_variables import NO_VARIABLES, VARIABLE, replace_home
from mirror.selection.tag_templates import ANY_TAG, TAG, TagTemplate, parse_tag_template
from mirror.util.structs import Struct, replace

MATCHED = "{repository}"
STREAM = "-"  # the host name of standard input and standard output
_ANY_NAME = "any-name-0"  # replaces the wildcard while the other parts of a location are checked
_NO_HOST = "layout.invalid"
_BUNDLE = re.compile(r"(?P<file>.+\.tar)(?::(?P<repository>.*))?", re.DOTALL)

# Transports of other tools: the form to use instead, and its prefix. The prefix is None if there is no equivalent.
_TRANSPORTS: dict[str, tuple[str, str | None]] = {
    "oci-archive": ("a bundle has the form FILE.tar", ""),
    "docker-archive": ("a bundle has the form FILE.tar", ""),
    "ocidir": ("a layout has the form oci:DIR", "oci:"),
    "dir": ("a layout has the form oci:DIR", "oci:"),
    "docker-daemon": ("write a registry as host/repository", None),
    "containers-storage": ("write a registry as host/repository", None),
}
_EXAMPLE_HOST = "registry.example.com"
# Names that are probably meant as bundles but are not recognized: `images.TAR`, `images.tar/`.
_NEARLY_BUNDLE = re.compile(r"(?P<stem>[^:]+)\.tar(?:/+|(?P<rest>:.*)?)", re.IGNORECASE | re.DOTALL)
_ARCHIVE = re.compile(r"(?P<stem>[^:]+?)\.(?:tgz|tbz2?|txz|tar\.[a-z0-9]+|zip|gz|bz2|xz|zst|7z)(?P<rest>:.*)?")
_TEMPLATE = re.compile(r"\{[^{}]*\}")
_LONGEST_SUGGESTION = 80


class RegistryLocation(Struct, frozen=True):
    """A source or target in a registry: a repository or, with a wildcard, several repositories.

    repository: for a wildcard source, the prefix, which may be empty; for a wildcard target, it contains
    `{repository}`. tag_template: for a target, the template for the tags of images; None if the target contains no
    tag."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False
    tag_template: TagTemplate | None = None

    kind = "registries"


class LayoutLocation(Struct, frozen=True):
    """A source or target in an OCI image layout. `repository` may be empty. Other fields are as in RegistryLocation."""

    directory: str
    repository: str = ""
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False
    tag_template: TagTemplate | None = None

    kind = "layouts (oci:)"


class BundleLocation(Struct, frozen=True):
    """A source or target in a bundle, a tar file with an image layout. Other fields are as in LayoutLocation."""

    file: str
    repository: str = ""
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False
    tag_template: TagTemplate | None = None

    kind = "bundles (.tar)"


class StreamLocation(Struct, frozen=True):
    """A bundle that is read from standard input or written to standard output."""

    wildcard: bool = False
    tag_template: TagTemplate | None = None

    kind = "streams (-)"


Location: TypeAlias = RegistryLocation | LayoutLocation | BundleLocation | StreamLocation


def is_registry(host: str) -> bool:
    """Return whether a host is a registry. The host names of other stores are `-` or contain a slash."""
    return host != STREAM and "/" not in host


def is_bundle(host: str) -> bool:
    """Return whether a host is a bundle, in a file or on a standard stream."""
    return not is_registry(host) and not host.startswith("oci:")


class _Invalid(Exception):
    """Raised for a string that is not a valid source or target.

    hint: the reason. candidates: locations that the user probably meant; they may also be invalid."""

    def __init__(self, hint: str, *candidates: str) -> None:
        super().__init__(hint)
        self.hint = hint
        self.candidates = candidates


def parse_source(text: str) -> Location:
    """Parse a source of a mirror. Raises ConfigError (ref_invalid), whose hint suggests only valid sources."""
    return _parse_or_suggest(text, _parse_source_text)


def parse_target(text: str) -> Location:
    """Parse a target of a mirror. Raises ConfigError (ref_invalid) if it is invalid or has a digest."""
    return _parse_or_suggest(text, _parse_target_text)


def _parse_or_suggest(text: str, parse: Callable[[str], Location]) -> Location:
    """Parse a location with a parser. If this fails, raise a ConfigError with suggestions that the parser accepts."""
    try:
        return parse(text)
    except _Invalid as error:
        meant = [
            f'"{one}"' for one in dict.fromkeys(error.candidates) if one != text and _is_valid_suggestion(one, parse)
        ]
        hint = f"{error.hint}; write {', or '.join(meant)}" if meant else error.hint
        raise ConfigError(
            f"not a valid location: '{printable_reference(text)}'", hint=hint, code="ref_invalid"
        ) from None
    except ConfigError as error:
        what, hint = (one.replace(ANY_TAG, TAG).replace(_ANY_NAME, MATCHED) for one in (error.what, error.hint))
        raise ConfigError(what, hint=hint, code=error.code) from None


def _is_valid_suggestion(text: str, parse: Callable[[str], Location]) -> bool:
    """Return whether a message may suggest a location: whether it is valid, short and printable."""
    if not text or len(text) > _LONGEST_SUGGESTION or printable_reference(text) != text:
        return False
    try:
        parse(text)
    except (_Invalid, ConfigError):
        return False
    return True


def _parse_source_text(text: str) -> Location:
    """Parse a source of a mirror. Raises _Invalid, or ConfigError for an invalid reference."""
    _check_foreign_syntax(text)
    if _TEMPLATE.search(text):
        hint = f"a source can only end in `*`; {MATCHED} is for targets"
        raise _Invalid(hint, _TEMPLATE.sub("*", text), _TEMPLATE.split(text)[0].rstrip(":/"))
    wildcard = text.endswith(("/*", ":*"))
    stem = text.removesuffix("*") if wildcard else text
    if text == "*":
        raise _Invalid("the registry is missing before the `*`", f"{_EXAMPLE_HOST}/*")
    if "*" in stem:
        candidate = f"{stem.partition('*')[0].rpartition('/')[0]}/*"
        raise _Invalid("`*` must be at the end, after a slash; patterns for tags belong under `tags`", candidate)
    if text.endswith(":*") and not _is_on_disk(text):
        raise _Invalid("`*` matches repositories, not tags; omit the tag to select all tags", text.removesuffix(":*"))
    _reject_file_or_bare_host(text, hub=True)
    if not wildcard:
        return _parse(text)
    found = _parse(stem + _ANY_NAME)
    if isinstance(found, StreamLocation):
        return found
    if isinstance(found, RegistryLocation):
        host, path = found.repository.host, found.repository.path
        # `docker.io/*` means all repositories, not only those in the implied namespace.
        implied = text.count("/") == 1 and path == f"library/{_ANY_NAME}"
        prefix = "" if implied else path.removesuffix(_ANY_NAME).removesuffix("/")
        return replace(found, repository=Repository(host, prefix), wildcard=True)
    return replace(found, repository=found.repository.removesuffix(_ANY_NAME).removesuffix("/"), wildcard=True)


def _parse_target_text(text: str) -> Location:
    """Parse a target of a mirror. Raises _Invalid, or ConfigError for an invalid reference."""
    _check_foreign_syntax(text)
    template = text.replace("*", MATCHED)
    if template.count(MATCHED) > 1 or template.count(TAG) > 1:
        raise _Invalid(f"`*` or {MATCHED} is allowed only once in a target, and so is {TAG}")
    unknown = next((found for found in _TEMPLATE.findall(template) if found not in (MATCHED, TAG)), None)
    if unknown is not None:
        hint = f"unknown template {printable_reference(unknown)}: only {MATCHED} and {TAG} are supported"
        raise _Invalid(hint, template.replace(unknown, MATCHED), template.replace(unknown, TAG))
    _reject_file_or_bare_host(text, hub=False)
    _check_host(text)
    found = _parse(template.replace(MATCHED, _ANY_NAME).replace(TAG, ANY_TAG))
    if isinstance(found, StreamLocation):
        return found
    if found.digest:
        raise _Invalid("a target must not have a digest: an image keeps its digest", text.partition("@")[0])
    tag_template = parse_tag_template(found.tag) if found.tag else None
    if TAG in text and (tag_template is None or tag_template.is_fixed):
        raise _Invalid(f"{TAG} is allowed only in the tag, as in {_EXAMPLE_HOST}/app:{TAG}-copy")
    found = replace(found, tag=None, tag_template=tag_template)
    if MATCHED not in template:
        return found
    if isinstance(found, RegistryLocation):
        host, path = found.repository.host, found.repository.path
        implied = path == f"library/{_ANY_NAME}" and "library/" not in template
        path = MATCHED if implied else path.replace(_ANY_NAME, MATCHED)
        parsed: Location = replace(found, repository=Repository(host, path), wildcard=True)
    else:
        path = found.repository.replace(_ANY_NAME, MATCHED)
        parsed = replace(found, repository=path, wildcard=True)
    if MATCHED not in path:
        raise _Invalid(f"{placeholder_in(text)} is allowed only in the repository")
    return parsed


def placeholder_in(text: str) -> str:
    """Return the placeholder in a target, `*` or `{repository}`, for a message."""
    return "`*`" if "*" in text else MATCHED


def _parse(text: str) -> Location:
    """Parse a location without a wildcard or template. Raises _Invalid, or ConfigError for an invalid reference."""
    if text == STREAM:
        return StreamLocation()
    if text.startswith(f"{STREAM}:"):
        raise _Invalid("`-` takes no repository, because it means the whole stream", STREAM)
    if text.startswith("oci:"):
        directory, colon, rest = text.removeprefix("oci:").partition(":")
        if not directory:
            raise _Invalid("expected oci:DIR or oci:DIR:REPOSITORY")
        return LayoutLocation(directory, *_split_repository(rest if colon else None))
    bundle = _BUNDLE.fullmatch(text)
    if bundle and "://" not in text:
        return BundleLocation(bundle["file"], *_split_repository(bundle["repository"]))
    reference = Reference.parse(text)
    return RegistryLocation(reference.repository, reference.tag, reference.digest)


def _split_repository(text: str | None) -> tuple[str, str | None, Digest | None]:
    """Split `REPOSITORY[:TAG][@DIGEST]`, the part of a location after the path of a layout or bundle."""
    if text is None:
        return "", None, None
    if not text:
        raise _Invalid("the repository is missing after the colon")
    reference = Reference.parse(f"{_NO_HOST}/{text}")
    return reference.repository.path, reference.tag, reference.digest


# ---- suggestions


def _check_foreign_syntax(text: str) -> None:
    """Raise _Invalid for a location with a URL scheme, the transport prefix of another tool, or a shell variable."""
    transport, _, rest = text.partition(":")
    if transport == "docker" and (rest.startswith("//") or not is_tag(rest)):
        name = rest.removeprefix("//")
        raise _Invalid(f"leave out the `{text.removesuffix(name)}`", name)
    if transport in _TRANSPORTS:
        form, prefix = _TRANSPORTS[transport]
        candidates = [] if prefix is None else [prefix + rest.removeprefix("//")]
        raise _Invalid(f"`{transport}:` is not supported; {form}", *candidates)
    if "://" in text:
        raise _Invalid("expected HOST/REPOSITORY without a scheme such as https://", text.partition("://")[2])
    if VARIABLE.search(text):
        raise _Invalid(NO_VARIABLES, replace_home(text))


def _reject_file_or_bare_host(text: str, *, hub: bool) -> None:
    """Raise _Invalid for a location that looks like a directory, an archive or a host without a repository.

    hub: whether the suggestions include a repository on Docker Hub."""
    name = text.partition("@sha")[0]
    first = name.partition("/")[0]
    if _is_on_disk(name) or not name or "@" in name:
        return
    named = _is_host(first, alone="/" not in name)
    nearly = _NEARLY_BUNDLE.fullmatch(name)
    _, colon, port = first.partition(":")
    if nearly and ("/" not in name.rstrip("/") or not named or (colon and not port.isdecimal())):
        plain = f"{nearly['stem']}.tar{nearly['rest'] or ''}"
        raise _Invalid("the name of a bundle must end in `.tar`, in lower case and without a slash", plain)
    if name.startswith(("/", "./", "../", "~")) or name in (".", "..") or (name.endswith("/") and not named):
        directory = name.rstrip("/") or "/"
        rooted = f"oci:{directory[:-2]}:*" if directory.endswith("/*") else f"oci:{directory}"
        raise _Invalid("a directory needs the prefix `oci:`", rooted)
    of_the_hub = [f"{DOCKER_HUB}/{text}" if "/" in text else f"{DOCKER_HUB}/library/{text}"] if hub else []
    archive = _ARCHIVE.fullmatch(name)
    if archive and ("/" not in name or not named):
        plain = f"{archive['stem']}.tar{archive['rest'] or ''}"
        raise _Invalid("this looks like a file, but a bundle must be an uncompressed tar file", plain, *of_the_hub)
    if named and name in (first, f"{first}/"):
        # `mono:6000` may be an image with a tag. A host with a dot, `localhost` and `[::1]` are not images.
        meant = [] if _is_host(first.partition(":")[0], alone=True) else of_the_hub
        raise _Invalid("the repository is missing after the host", f"{first.partition('@')[0]}/repository", *meant)


def _check_host(text: str) -> None:
    """Raise _Invalid if a target in a registry does not name the registry."""
    first, slash, _ = text.partition("/")
    if _is_on_disk(text) or "@" in text or not text or (slash and names_host(first)):
        return
    name = _remove_tag(text)
    raise _Invalid("a target must name a registry", f"{_EXAMPLE_HOST}/{name}", f"oci:{name}")


def _is_on_disk(text: str) -> bool:
    """Return whether a location has the form of a layout, bundle or stream. It need not be valid."""
    return text == STREAM or text.startswith((f"{STREAM}:", "oci:")) or _BUNDLE.fullmatch(text) is not None


def _is_host(first: str, *, alone: bool) -> bool:
    """Return whether the first part of a location is a host.

    alone: whether the location has no other parts. In this case, a number after a colon is a port if it is at least
    1024; otherwise, it is a tag."""
    if not alone:
        return names_host(first)
    name, colon, port = first.partition(":")
    if colon and port.isdecimal() and len(port) <= 5 and 1024 <= int(port) <= 65535:
        return True
    return "." in name or name == "localhost" or name.startswith("[")


def _remove_tag(text: str) -> str:
    """Return a location without its tag and digest."""
    name = text.partition("@")[0]
    start = name.rfind("/") + 1
    if name.startswith("oci:") or _BUNDLE.fullmatch(name):
        start = name.find(":", 4) + 1
    colon = name.find(":", start)
    return name if colon < 0 else name[:colon]
