"""The grammar of sources and targets: `host/repository`, `oci:DIR[:REPOSITORY]`, `FILE.tar[:REPOSITORY]`, `-`.

A source may end in `/*`: every repository under that prefix; its targets say with `*` or `{repository}` where
what the `*` matched goes, slashes included. A text that ends in `.tar`, before a colon if there is one, is a bundle.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repository, shown
from mirror.structs import Struct, replace

MATCHED = "{repository}"
STREAM = "-"  # what a standard stream is called
_ANY_NAME = "any-name-0"  # stands for what a `*` will match, while the rest is checked
_NO_HOST = "layout.invalid"
_BUNDLE = re.compile(r"(?P<file>.+\.tar)(?::(?P<repository>.*))?", re.DOTALL)

# What other tools call their stores, and what is written here instead.
_TRANSPORTS = {
    "oci-archive": "FILE.tar",
    "docker-archive": "FILE.tar",
    "ocidir": "oci:DIR",
    "dir": "oci:DIR",
    "docker": "host/repository",
    "docker-daemon": "host/repository of a registry",
    "containers-storage": "host/repository of a registry",
}


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


def parse_source(text: str) -> Location:
    """Raises ConfigError (ref_invalid)."""
    if MATCHED in text:
        raise _invalid(text, f"a source has `*` at its end; {MATCHED} belongs into targets")
    wildcard = text.endswith(("/*", ":*"))
    stem = text.removesuffix("*") if wildcard else text
    if "*" in stem:
        raise _invalid(text, "`*` stands alone at the end, after a slash; patterns of tags go under `tags`")
    if not wildcard:
        return _parse(text, text)
    found = _parse(stem + _ANY_NAME, text)
    if isinstance(found, StreamLocation):
        return found
    if isinstance(found, RegistryLocation):
        host, path = found.repository.host, found.repository.path
        # `docker.io/*` is everything there, not just what has the implied namespace.
        implied = text.count("/") == 1 and path == f"library/{_ANY_NAME}"
        prefix = "" if implied else path.removesuffix(_ANY_NAME).removesuffix("/")
        return replace(found, repository=Repository(host, prefix), wildcard=True)
    return replace(found, repository=found.repository.removesuffix(_ANY_NAME).removesuffix("/"), wildcard=True)


def parse_target(text: str) -> Location:
    """Raises ConfigError (ref_invalid), also for a tag or a digest."""
    template = text.replace("*", MATCHED)
    if template.count(MATCHED) > 1:
        raise _invalid(text, f"`*` or {MATCHED} can stand once only")
    found = _parse(template.replace(MATCHED, _ANY_NAME), text)
    if isinstance(found, StreamLocation):
        return found
    if found.tag or found.digest:
        raise _invalid(text, "a target has no tag or digest: images keep the names that they have in the source")
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
        raise _invalid(text, f"{MATCHED} can stand in the repository only")
    return parsed


def expand(target: RegistryLocation, matched: str) -> Repository:
    """The repository of a wildcard target for what the source's `*` matched. Raises ConfigError (ref_invalid)."""
    return Repository.parse(str(target.repository).replace(MATCHED, matched))


def _parse(text: str, named: str) -> Location:
    """named: what messages call it."""
    if text == STREAM:
        return StreamLocation()
    if text.startswith(f"{STREAM}:"):
        raise _invalid(named, "`-` stands alone: it is everything in the stream")
    if text.startswith("oci:"):
        directory, colon, rest = text.removeprefix("oci:").partition(":")
        if not directory:
            raise _invalid(named, "want oci:DIR or oci:DIR:REPOSITORY")
        return LayoutLocation(directory, *_inner(rest if colon else None, named))
    bundle = _BUNDLE.fullmatch(text)
    if bundle and "://" not in text:
        return BundleLocation(bundle["file"], *_inner(bundle["repository"], named))
    transport = text.partition(":")[0]
    if transport in _TRANSPORTS:
        raise _invalid(named, f"{transport}: is not known here; write {_TRANSPORTS[transport]}")
    reference = Reference.parse(text)
    return RegistryLocation(reference.repository, reference.tag, reference.digest)


def _inner(text: str | None, named: str) -> tuple[str, str | None, Digest | None]:
    """REPOSITORY[:TAG][@DIGEST] of a layout or bundle; there is no implied host or namespace in it."""
    if text is None:
        return "", None, None
    if not text:
        raise _invalid(named, "the repository is missing after the colon")
    reference = Reference.parse(f"{_NO_HOST}/{text}")
    return reference.repository.path, reference.tag, reference.digest


def _invalid(text: str, hint: str) -> ConfigError:
    return ConfigError(f"not a valid location: '{shown(text)}'", hint=hint, code="ref_invalid")
