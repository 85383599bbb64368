"""References: `host[:port]/repository[:tag][@digest]`, as docker reads them.

Grammar: distribution-spec v1.1.1, "Pulling manifests" (names, tags); docker's reference package for the
implied host `docker.io` and namespace `library/`. A reference is never normalised by path: `a/../b` is refused.
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
_LONGEST_NAME = 255  # host and path together, the limit of docker's reference package
_LONGEST_TEXT = 1024


class ListedTag(str):
    """A tag from a list that also says what it names."""

    __slots__ = ("digest",)
    digest: Digest

    def __new__(cls, name: str, digest: Digest) -> ListedTag:
        tag = super().__new__(cls, name)
        tag.digest = digest
        return tag


def is_tag(text: object) -> bool:
    return isinstance(text, str) and _TAG.fullmatch(text) is not None


def is_path(text: object) -> bool:
    return isinstance(text, str) and len(text) <= _LONGEST_NAME and _PATH.fullmatch(text) is not None


def parse_host(text: str) -> str:
    """`host[:port]` in its one spelling: lower case, no trailing dot, docker.io for its other names.

    Raises ConfigError (ref_invalid)."""
    if "@" in text:
        raise _invalid(text, "credentials do not belong in a reference")
    if not text.isascii():  # before lower(), which makes an ASCII k of the Kelvin sign
        raise _invalid(text, "write an international host name as punycode (xn--…)")
    if len(text) > _LONGEST_NAME:
        raise _invalid(text, f"longer than {_LONGEST_NAME} characters")
    host, colon, port = _bracketed(text) if text.startswith("[") else _named(text)
    if colon and not port:
        raise _invalid(text, "the port is missing after the colon")
    if port and not (port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _invalid(text, "the port must be a number from 1 to 65535")
    port = port.lstrip("0")
    if host in _HUB_NAMES and port in ("", "443"):
        return DOCKER_HUB
    return f"{host}:{port}" if port else host


def _bracketed(text: str) -> tuple[str, str, str]:
    """IPv6 host in its shortest form, colon, port."""
    inner, bracket, rest = text[1:].partition("]")
    if not bracket or (rest and not rest.startswith(":")) or not _is_ipv6(inner):
        raise _invalid(text, "want an IPv6 address in brackets, like [::1]:5000")
    return f"[{ipaddress.IPv6Address(inner).compressed}]", rest[:1], rest[1:]


def _named(text: str) -> tuple[str, str, str]:
    host, colon, port = text.lower().partition(":")
    if ":" in port:
        raise _invalid(text, "an IPv6 address needs brackets, like [::1]:5000")
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise _invalid(text, "not a host name")
    return host, colon, port


def _is_ipv6(text: str) -> bool:
    if "%" in text:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class Repository(Struct, frozen=True, order=True):
    """A repository of a registry. host: as `parse_host` gives it; path: without the host, `library/` explicit.

    Of a store on disk: host is the path of it, or `-`."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Raises ConfigError (ref_invalid), also where `text` has a tag or a digest."""
        reference = Reference.parse(text)
        if reference.tag or reference.digest:
            raise _invalid(text, "a repository, without tag or digest, is wanted here")
        return reference.repository

    def __str__(self) -> str:
        if self.host == "-" or "/" in self.host:
            return f"{self.host}:{self.path}" if self.path else self.host
        return f"{self.host}/{self.path}"


class Reference(Struct, frozen=True, order=True):
    """A repository with a tag, a digest, both or neither. With both, the digest decides."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`ubuntu` is docker.io/library/ubuntu; the first part is a host if it has a dot or a colon, begins
        with a bracket or is `localhost`. Raises ConfigError (ref_invalid)."""
        if len(text) > _LONGEST_TEXT:
            raise _invalid(text, f"longer than {_LONGEST_TEXT} characters")
        if "://" in text:
            raise _invalid(text, "write host/repository, without a scheme")
        rest, at, digest_text = text.partition("@")
        digest = None
        if at:
            if ":" not in digest_text or "/" in digest_text or "@" in digest_text:
                raise _invalid(text, "credentials do not belong in a reference; a digest is written as @sha256:…")
            try:
                digest = Digest.parse(digest_text)
            except Refused as error:
                raise _invalid(text, str(error)) from None
        host, path = _split_host(rest)
        if not ("." in host or ":" in host or host == "localhost"):
            raise _invalid(text, "a host has a dot in it or a port, or is localhost")  # `app.` lost its dot
        path, colon, tag = path.partition(":")
        if colon and not is_tag(tag):
            raise _invalid(text, tag_hint(tag))
        if host == DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        if not _PATH.fullmatch(path):
            raise _invalid(text, _path_hint(path))
        if len(host) + 1 + len(path) > _LONGEST_NAME:
            raise _invalid(text, f"host and repository together are longer than {_LONGEST_NAME} characters")
        return cls(Repository(host, path), tag or None, digest)

    @property
    def name(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag or ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and names_host(first):
        return parse_host(first), rest
    return DOCKER_HUB, text


def names_host(first: str) -> bool:
    """Whether the part before the first slash is a host, and not part of a repository of Docker Hub."""
    return "." in first or ":" in first or first == "localhost" or first.startswith("[")


def tag_hint(tag: str) -> str:
    """What is wrong with a text that is no tag."""
    if not tag:
        return "the tag is missing after the colon"
    if len(tag) > 128:
        return "a tag has at most 128 characters"
    if "+" in tag and is_tag(tag.replace("+", "_")):
        return f"a tag cannot have '+': use {tag.replace('+', '_')!r}"
    return "a tag has letters, digits, '_', '.' and '-', and does not begin with '.' or '-'"


def _path_hint(path: str) -> str:
    if not path or path == "library/":
        return "the repository is missing"
    if _PATH.fullmatch(path.lower()):
        return f"a repository is in lower case: {path.lower()!r}"
    return "a repository has lower-case letters and digits, joined by '/', '.', '_', '__' or '-'"


def _invalid(text: str, hint: str) -> ConfigError:
    return ConfigError(f"not a valid reference: '{shown(text)}'", hint=hint, code="ref_invalid")


def shown(text: str) -> str:
    """A text that was to be a reference, for a message: what stands before an `@` may be a password."""
    _, at, after = text.rpartition("@")
    return printable(f"***@{after}" if at else text, 80)
