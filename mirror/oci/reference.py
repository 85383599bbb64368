"""References: `host[:port]/repository[:tag][@digest]`, with Docker's defaults.

Grammar: distribution-spec v1.1.1, "Pulling manifests" (names, tags); Docker's reference package for the implied host
`docker.io` and namespace `library/`. Paths are not normalized: `a/../b` is an error.
"""

from __future__ import annotations

import ipaddress
import re

from mirror.errors import ConfigError, Refused, printable
from mirror.oci.digest import Digest
from mirror.util.structs import Struct

DOCKER_HUB = "docker.io"
_HUB_NAMES = {"docker.io", "index.docker.io", "registry-1.docker.io"}

_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 255  # characters of host and path together, the limit in Docker's reference package
_LONGEST_TEXT = 1024


class ListedTag(str):
    """A tag from a tag list that also contains digests. digest: the digest to which the tag refers."""

    __slots__ = ("digest",)
    digest: Digest

    def __new__(cls, name: str, digest: Digest) -> ListedTag:
        tag = super().__new__(cls, name)
        tag.digest = digest
        return tag


def is_tag(text: object) -> bool:
    """Return whether `text` is a valid tag."""
    return isinstance(text, str) and _TAG.fullmatch(text) is not None


def is_path(text: object) -> bool:
    """Return whether `text` is a valid repository path, without a host."""
    return isinstance(text, str) and len(text) <= _LONGEST_NAME and _PATH.fullmatch(text) is not None


def contains_repository(path: str, repository: str) -> bool:
    """Return whether `repository` is `path` or a repository below it. An empty path contains every repository."""
    return not path or repository == path or repository.startswith(f"{path}/")


def parse_host(text: str) -> str:
    """Return `host[:port]` in canonical form: in lower case, without a trailing dot, and `docker.io` for Docker Hub.

    Raises ConfigError (ref_invalid) if the host is invalid."""
    if "@" in text:
        raise _invalid_error(text, "a reference must not contain credentials")
    if not text.isascii():  # before lower(), which turns the Kelvin sign into an ASCII k
        raise _invalid_error(text, "write an internationalized host name in punycode (xn--…)")
    if len(text) > _LONGEST_NAME:
        raise _invalid_error(text, f"it is longer than {_LONGEST_NAME} characters")
    host, colon, port = _split_ipv6(text) if text.startswith("[") else _split_name(text)
    if colon and not port:
        raise _invalid_error(text, "the port is missing after the colon")
    if port and not (port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _invalid_error(text, "the port must be a number from 1 to 65535")
    port = port.lstrip("0")
    if host in _HUB_NAMES and port in ("", "443"):
        return DOCKER_HUB
    return f"{host}:{port}" if port else host


def _split_ipv6(text: str) -> tuple[str, str, str]:
    """Split `[address]:port` into `[address]` in its shortest form, the colon and the port.

    The colon and the port may be empty. Raises ConfigError (ref_invalid) if the address is invalid."""
    inner, bracket, rest = text[1:].partition("]")
    if not bracket or (rest and not rest.startswith(":")) or not _is_ipv6(inner):
        raise _invalid_error(text, "expected an IPv6 address in brackets, like [::1]:5000")
    return f"[{ipaddress.IPv6Address(inner).compressed}]", rest[:1], rest[1:]


def _split_name(text: str) -> tuple[str, str, str]:
    """Split `name:port` into the name in lower case, the colon and the port.

    The colon and the port may be empty. Raises ConfigError (ref_invalid) if the name is invalid."""
    host, colon, port = text.lower().partition(":")
    if ":" in port:
        raise _invalid_error(text, "an IPv6 address needs brackets, like [::1]:5000")
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise _invalid_error(text, "the host name is not valid")
    return host, colon, port


def _is_ipv6(text: str) -> bool:
    """Return whether `text` is an IPv6 address without a zone."""
    if "%" in text:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class Repository(Struct, frozen=True, order=True):
    """A repository in a registry or in a store on disk.

    host: the host of the registry in the canonical form of `parse_host`; for stores on disk, a path or `-`.
    path: the name of the repository without the host, and with `library/` where Docker implies it."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Parse a repository. Raises ConfigError (ref_invalid) if it is invalid, or has a tag or digest."""
        reference = Reference.parse(text)
        if reference.tag or reference.digest:
            raise _invalid_error(text, "expected a repository without a tag or digest")
        return reference.repository

    def __str__(self) -> str:
        if not self.path:  # the unnamed repository of a store on disk
            return self.host
        return f"{self.host}:{self.path}" if self.host == "-" or "/" in self.host else f"{self.host}/{self.path}"


class Reference(Struct, frozen=True, order=True):
    """A repository with a tag, a digest, both or neither. If it has both, the digest determines the manifest."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference. For example, `ubuntu` means `docker.io/library/ubuntu`.

        The first part is a host if it contains a dot or a colon, begins with a bracket or is `localhost`. Raises
        ConfigError (ref_invalid) if the reference is invalid."""
        if len(text) > _LONGEST_TEXT:
            raise _invalid_error(text, f"it is longer than {_LONGEST_TEXT} characters")
        if "://" in text:
            raise _invalid_error(text, "write host/repository, without a scheme")
        rest, at, digest_text = text.partition("@")
        digest = None
        if at:
            if ":" not in digest_text or "/" in digest_text or "@" in digest_text:
                raise _invalid_error(text, "a reference must not contain credentials; a digest has the form @sha256:…")
            try:
                digest = Digest.parse(digest_text)
            except Refused as error:
                raise _invalid_error(text, str(error)) from None
        host, path = _split_host(rest)
        if not ("." in host or ":" in host or host == "localhost"):
            raise _invalid_error(text, "a host must contain a dot or a port, or be localhost")  # `app.`, for example
        path, colon, tag = path.partition(":")
        if colon and not is_tag(tag):
            raise _invalid_error(text, tag_hint(tag))
        if host == DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        if not _PATH.fullmatch(path):
            raise _invalid_error(text, _path_hint(path))
        if len(host) + 1 + len(path) > _LONGEST_NAME:
            raise _invalid_error(text, f"host and repository together are longer than {_LONGEST_NAME} characters")
        return cls(Repository(host, path), tag or None, digest)

    @property
    def name(self) -> str:
        """The digest of the reference or, without a digest, its tag. It follows `/manifests/` in a request URL."""
        return self.digest or self.tag or ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def _split_host(text: str) -> tuple[str, str]:
    """Split a reference into its host and the remaining text. The default host is Docker Hub."""
    first, slash, rest = text.partition("/")
    if slash and names_host(first):
        return parse_host(first), rest
    return DOCKER_HUB, text


def names_host(first: str) -> bool:
    """Return whether `first`, the text before the first slash of a reference, is a host.

    Otherwise it is the first part of the path of a Docker Hub repository."""
    return "." in first or ":" in first or first == "localhost" or first.startswith("[")


def tag_hint(tag: str) -> str:
    """Return a hint that says why `tag` is not a valid tag."""
    if not tag:
        return "the tag is missing after the colon"
    if len(tag) > 128:
        return "a tag has at most 128 characters"
    if "+" in tag and is_tag(tag.replace("+", "_")):
        return f"a tag cannot contain '+': use {tag.replace('+', '_')!r}"
    return "a tag consists of letters, digits, '_', '.' and '-', and does not begin with '.' or '-'"


def _path_hint(path: str) -> str:
    """Return a hint that says why `path` is not a valid repository path."""
    if not path or path == "library/":
        return "the repository is missing"
    if _PATH.fullmatch(path.lower()):
        return f"the name of a repository must be lowercase: {path.lower()!r}"
    return "the name of a repository consists of lower-case letters and digits, joined by '/', '.', '_', '__' or '-'"


def _invalid_error(text: str, hint: str) -> ConfigError:
    """Return the error for the invalid reference `text`. hint: why it is invalid."""
    return ConfigError(f"not a valid reference: '{printable_reference(text)}'", hint=hint, code="ref_invalid")


def printable_reference(text: str) -> str:
    """Return an invalid reference in printable form. The text before `@` is hidden, since it may be a password."""
    _, at, after = text.rpartition("@")
    return printable(f"***@{after}" if at else text, 80)
