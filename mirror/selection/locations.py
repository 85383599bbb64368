"""The grammar of sources and targets: `host/repository`, `oci:DIR[:REPOSITORY]`, `FILE.tar[:REPOSITORY]`, `-`.

A source may end in `/*`: every repository under that prefix; its targets say with `*` or `{repository}` where
what the `*` matched goes, slashes included. A text that ends in `.tar`, before a colon if there is one, is a bundle.
A target names its registry. A source without one is an image of Docker Hub, as docker reads it, unless the text looks
like a host without a repository, or like a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.reference import DOCKER_HUB, Reference, Repository, is_tag, names_host, shown
from mirror.util.structs import Struct, replace

MATCHED = "{repository}"
STREAM = "-"  # what a standard stream is called
VARIABLE = re.compile(r"\$\{?[A-Za-z_]")  # of a shell; nothing is substituted here
NO_VARIABLES = "variables like $HOME are not substituted: give what they stand for"
_ANY_NAME = "any-name-0"  # stands for what a `*` will match, while the rest is checked
_NO_HOST = "layout.invalid"
_BUNDLE = re.compile(r"(?P<file>.+\.tar)(?::(?P<repository>.*))?", re.DOTALL)

# Transports of other tools: what is written here instead, and the prefix of that (None: there is no equivalent).
_TRANSPORTS: dict[str, tuple[str, str | None]] = {
    "oci-archive": ("a bundle is FILE.tar", ""),
    "docker-archive": ("a bundle is FILE.tar", ""),
    "ocidir": ("a layout is oci:DIR", "oci:"),
    "dir": ("a layout is oci:DIR", "oci:"),
    "docker-daemon": ("give the host/repository of a registry", None),
    "containers-storage": ("give the host/repository of a registry", None),
}
_EXAMPLE_HOST = "registry.example.com"
# A bundle whose name is not recognised as one: `images.TAR`, `images.tar/`.
_NEARLY_BUNDLE = re.compile(r"(?P<stem>[^:]+)\.tar(?:/+|(?P<rest>:.*)?)", re.IGNORECASE | re.DOTALL)
_ARCHIVE = re.compile(r"(?P<stem>[^:]+?)\.(?:tgz|tbz2?|txz|tar\.[a-z0-9]+|zip|gz|bz2|xz|zst|7z)(?P<rest>:.*)?")
_TEMPLATE = re.compile(r"\{[^{}]*\}")
_LONGEST_SUGGESTION = 80


class RegistryLocation(Struct, frozen=True):
    """repository: of a wildcard source, its prefix, which may be empty; of a wildcard target, with `{repository}`."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False

    kind = "registries"


class LayoutLocation(Struct, frozen=True):
    """An OCI image layout in a directory. repository: empty if none is given; as for registries if a wildcard."""

    directory: str
    repository: str = ""
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False

    kind = "layouts (oci:)"


class BundleLocation(Struct, frozen=True):
    """A bundle in a file."""

    file: str
    repository: str = ""
    tag: str | None = None
    digest: Digest | None = None
    wildcard: bool = False

    kind = "bundles (.tar)"


class StreamLocation(Struct, frozen=True):
    """A bundle on standard input or output."""

    wildcard: bool = False

    kind = "streams (-)"


Location: TypeAlias = RegistryLocation | LayoutLocation | BundleLocation | StreamLocation


def is_registry(host: str) -> bool:
    """Whether what is called so is a registry: stores on disk are called by absolute paths."""
    return host != STREAM and "/" not in host


def is_bundle(host: str) -> bool:
    """Whether what is called so is a bundle, in a file or on a standard stream."""
    return not is_registry(host) and not host.startswith("oci:")


class _Slip(Exception):
    """A text is not what it should be. hint: why; candidates: what was probably meant, not checked yet."""

    def __init__(self, hint: str, *candidates: str) -> None:
        super().__init__(hint)
        self.hint = hint
        self.candidates = candidates


def parse_source(text: str) -> Location:
    """Raises ConfigError (ref_invalid). What its message suggests to write is accepted."""
    return _parsed(text, _source)


def parse_target(text: str) -> Location:
    """Raises ConfigError (ref_invalid), also for a tag or a digest, and where the registry is not named."""
    return _parsed(text, _target)


def _parsed(text: str, parse: Callable[[str], Location]) -> Location:
    try:
        return parse(text)
    except _Slip as slip:
        meant = [f'"{one}"' for one in dict.fromkeys(slip.candidates) if one != text and _accepted(one, parse)]
        hint = f"{slip.hint}; write {', or '.join(meant)}" if meant else slip.hint
        raise ConfigError(f"not a valid location: '{shown(text)}'", hint=hint, code="ref_invalid") from None


def _accepted(text: str, parse: Callable[[str], Location]) -> bool:
    """Whether a suggestion may be shown, and would be accepted."""
    if not text or len(text) > _LONGEST_SUGGESTION or shown(text) != text:
        return False
    try:
        parse(text)
    except (_Slip, ConfigError):
        return False
    return True


def _source(text: str) -> Location:
    _check_meant(text)
    if _TEMPLATE.search(text):
        hint = f"a source has `*` at its end; {MATCHED} belongs into targets"
        raise _Slip(hint, _TEMPLATE.sub("*", text), _TEMPLATE.split(text)[0].rstrip(":/"))
    wildcard = text.endswith(("/*", ":*"))
    stem = text.removesuffix("*") if wildcard else text
    if text == "*":
        raise _Slip("the registry is missing before the `*`", f"{_EXAMPLE_HOST}/*")
    if "*" in stem:
        candidate = f"{stem.partition('*')[0].rpartition('/')[0]}/*"
        raise _Slip("`*` stands alone at the end, after a slash; patterns of tags go under `tags`", candidate)
    if text.endswith(":*") and not _on_disk(text):
        raise _Slip("`*` stands for repositories; without a tag, every tag is selected", text.removesuffix(":*"))
    _check_registry(text, hub=True)
    if not wildcard:
        return _parse(text)
    found = _parse(stem + _ANY_NAME)
    if isinstance(found, StreamLocation):
        return found
    if isinstance(found, RegistryLocation):
        host, path = found.repository.host, found.repository.path
        # `docker.io/*` is everything there, not just what has the implied namespace.
        implied = text.count("/") == 1 and path == f"library/{_ANY_NAME}"
        prefix = "" if implied else path.removesuffix(_ANY_NAME).removesuffix("/")
        return replace(found, repository=Repository(host, prefix), wildcard=True)
    return replace(found, repository=found.repository.removesuffix(_ANY_NAME).removesuffix("/"), wildcard=True)


def _target(text: str) -> Location:
    _check_meant(text)
    template = text.replace("*", MATCHED)
    if template.count(MATCHED) > 1:
        raise _Slip(f"`*` or {MATCHED} can stand once only")
    unknown = next((found for found in _TEMPLATE.findall(template) if found != MATCHED), None)
    if unknown == "{tag}":
        raise _Slip("{tag} is not in this version: images keep the tags that they have in the source", _untagged(text))
    if unknown is not None:
        candidate = template.replace(unknown, MATCHED)
        raise _Slip(f"{shown(unknown)} is not known here: {MATCHED} is the only template", candidate)
    _check_registry(text, hub=False)
    _check_host(text)
    found = _parse(template.replace(MATCHED, _ANY_NAME))
    if isinstance(found, StreamLocation):
        return found
    if found.tag or found.digest:
        hint = "a target has no tag or digest: images keep the names that they have in the source"
        raise _Slip(hint, _untagged(text))
    if MATCHED not in template:
        return found
    if isinstance(found, RegistryLocation):
        host, path = found.repository.host, found.repository.path
        implied = template == f"{host}/{MATCHED}" and path == f"library/{_ANY_NAME}"
        path = MATCHED if implied else path.replace(_ANY_NAME, MATCHED)
        parsed: Location = replace(found, repository=Repository(host, path), wildcard=True)
    else:
        path = found.repository.replace(_ANY_NAME, MATCHED)
        parsed = replace(found, repository=path, wildcard=True)
    if MATCHED not in path:
        raise _Slip(f"{template_in(text)} can stand in the repository only")
    return parsed


def template_in(text: str) -> str:
    """The template of a wildcard target as its author wrote it, for a message."""
    return "`*`" if "*" in text else MATCHED


def expand(target: RegistryLocation, matched: str) -> Repository:
    """The repository of a wildcard target for what the source's `*` matched. Raises ConfigError (ref_invalid)."""
    return Repository.parse(str(target.repository).replace(MATCHED, matched))


def _parse(text: str) -> Location:
    if text == STREAM:
        return StreamLocation()
    if text.startswith(f"{STREAM}:"):
        raise _Slip("`-` stands alone: it is everything in the stream", STREAM)
    if text.startswith("oci:"):
        directory, colon, rest = text.removeprefix("oci:").partition(":")
        if not directory:
            raise _Slip("want oci:DIR or oci:DIR:REPOSITORY")
        return LayoutLocation(directory, *_inner(rest if colon else None))
    bundle = _BUNDLE.fullmatch(text)
    if bundle and "://" not in text:
        return BundleLocation(bundle["file"], *_inner(bundle["repository"]))
    reference = Reference.parse(text)
    return RegistryLocation(reference.repository, reference.tag, reference.digest)


def _inner(text: str | None) -> tuple[str, str | None, Digest | None]:
    """REPOSITORY[:TAG][@DIGEST] of a layout or bundle; there is no implied host or namespace in it."""
    if text is None:
        return "", None, None
    if not text:
        raise _Slip("the repository is missing after the colon")
    reference = Reference.parse(f"{_NO_HOST}/{text}")
    return reference.repository.path, reference.tag, reference.digest


# ---- what was probably meant


def _check_meant(text: str) -> None:
    """Raises _Slip for the syntax of other tools, and for a variable of a shell."""
    transport, _, rest = text.partition(":")
    if transport == "docker" and (rest.startswith("//") or not is_tag(rest)):
        name = rest.removeprefix("//")
        raise _Slip(f"drop the `{text.removesuffix(name)}`", name)
    if transport in _TRANSPORTS:
        form, prefix = _TRANSPORTS[transport]
        candidates = [] if prefix is None else [prefix + rest.removeprefix("//")]
        raise _Slip(f"`{transport}:` is not supported; {form}", *candidates)
    if "://" in text:
        raise _Slip("host/repository is wanted, without a scheme", text.partition("://")[2])
    if VARIABLE.search(text):
        raise _Slip(NO_VARIABLES, without_home(text))


def without_home(text: str) -> str:
    """The text with `~` for the variable HOME."""
    return text.replace("${HOME}", "~").replace("$HOME", "~")


def _check_registry(text: str, *, hub: bool) -> None:
    """Raises _Slip for a directory, an archive, or a host without a repository. hub: Docker Hub may be meant too."""
    name = text.partition("@sha")[0]
    first = name.partition("/")[0]
    if _on_disk(name) or not name or "@" in name:
        return
    named = _is_host(first, alone="/" not in name)
    nearly = _NEARLY_BUNDLE.fullmatch(name)
    _, colon, port = first.partition(":")
    if nearly and ("/" not in name.rstrip("/") or not named or (colon and not port.isdecimal())):
        plain = f"{nearly['stem']}.tar{nearly['rest'] or ''}"
        raise _Slip("the name of a bundle ends in `.tar`, in lower case and without a slash", plain)
    if name.startswith(("/", "./", "../", "~")) or name in (".", "..") or (name.endswith("/") and not named):
        directory = name.rstrip("/") or "/"
        rooted = f"oci:{directory[:-2]}:*" if directory.endswith("/*") else f"oci:{directory}"
        raise _Slip("a directory is written with `oci:` before it", rooted)
    of_the_hub = [f"{DOCKER_HUB}/{text}" if "/" in text else f"{DOCKER_HUB}/library/{text}"] if hub else []
    archive = _ARCHIVE.fullmatch(name)
    if archive and ("/" not in name or not named):
        plain = f"{archive['stem']}.tar{archive['rest'] or ''}"
        raise _Slip("it looks like a file, and a bundle is a plain tar", plain, *of_the_hub)
    if named and name in (first, f"{first}/"):
        # `mono:6000` may be an image and its tag; a host with a dot, `localhost` and `[::1]` are no image.
        meant = [] if _is_host(first.partition(":")[0], alone=True) else of_the_hub
        raise _Slip("the repository is missing after the host", f"{first.partition('@')[0]}/repository", *meant)


def _check_host(text: str) -> None:
    """Raises _Slip for a target that does not say at which registry it is."""
    first, slash, _ = text.partition("/")
    if _on_disk(text) or "@" in text or not text or (slash and names_host(first)):
        return
    name = _untagged(text)
    raise _Slip("a target names its registry", f"{_EXAMPLE_HOST}/{name}", f"oci:{name}")


def _on_disk(text: str) -> bool:
    """Whether a text is a layout, a bundle or a stream, or begins like one."""
    return text == STREAM or text.startswith((f"{STREAM}:", "oci:")) or _BUNDLE.fullmatch(text) is not None


def _is_host(first: str, *, alone: bool) -> bool:
    """Whether the first part is a host. alone: nothing comes after it, so that what follows a colon may be a tag: 1024
    and more is taken for a port."""
    if not alone:
        return names_host(first)
    name, colon, port = first.partition(":")
    if colon and port.isdecimal() and len(port) <= 5 and 1024 <= int(port) <= 65535:
        return True
    return "." in name or name == "localhost" or name.startswith("[")


def _untagged(text: str) -> str:
    """Without the tag and digest that stand at its end."""
    name = text.partition("@")[0]
    start = name.rfind("/") + 1
    if name.startswith("oci:") or _BUNDLE.fullmatch(name):
        start = name.find(":", 4) + 1
    colon = name.find(":", start)
    return name if colon < 0 else name[:colon]


def may_be(path: str, written: str) -> bool:
    """Whether a repository of a target can be the one that is written as `written`, with or without MATCHED."""
    before, matched, after = written.partition(MATCHED)
    if not matched:
        return path == written
    return path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after)
