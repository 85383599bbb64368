"""Descriptors: references between objects by digest and size. Source: OCI image-spec v1.1, descriptor.md."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from mirror.errors import MirrorError, Refused, printable
from mirror.oci.digest import Digest
from mirror.oci.strictjson import Object, Value, refuse_look_alikes
from mirror.util.structs import Struct

_LARGEST = 1 << 63
_MOST_URLS = 100
_MOST_DATA = 64 * 1024  # characters of base64 that are verified at most
_KEYS = frozenset({"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"})
_EMPTY = Digest.of(b"")
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.",
    "application/vnd.oci.image.layer.nondistributable.",
)


class Platform(Struct, frozen=True):
    """The platform of a child manifest, as the index names it. Unknown values are kept as text."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


class Descriptor(Struct, frozen=True):
    """A descriptor: digest, size (bytes), media type. size is None only in schema 1, which has no sizes."""

    digest: Digest
    size: int | None
    media_type: str = ""
    platform: Platform | None = None
    urls: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether it is a non-distributable layer with a URL.

        Such layers are not uploaded, and not expected on targets."""
        return bool(self.urls) and self.media_type.startswith(_FOREIGN)


def unique_descriptors(descriptors: Iterable[Descriptor], what: str) -> tuple[Descriptor, ...]:
    """Return the first descriptor of each digest. A descriptor that is not foreign takes precedence.

    Raises Refused (manifest_invalid) if a digest has two sizes."""
    found: dict[Digest, Descriptor] = {}
    for descriptor in descriptors:
        known = found.setdefault(descriptor.digest, descriptor)
        if known.size != descriptor.size and None not in (known.size, descriptor.size):
            raise Refused(f"{what}: {descriptor.digest} appears with two sizes", code="manifest_invalid")
        if known.foreign:
            found[descriptor.digest] = descriptor
    return tuple(found.values())


def parse_descriptor(value: Value, where: str) -> Descriptor:
    """Parse the descriptor at `where` in a document. Raises Refused (manifest_invalid, manifest_ambiguous)."""
    if not isinstance(value, dict):
        raise _invalid(where, "is not a descriptor")
    if not value.keys() <= _KEYS:
        refuse_look_alikes(value, _KEYS, where=where)
    try:
        digest = Digest.parse(value.get("digest"))
    except MirrorError as error:
        raise _invalid(f"{where}.digest", str(error)) from None
    size = value.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _LARGEST:
        raise _invalid(f"{where}.size", f"want a number of bytes, got {printable(size, 80)!r}")
    if size == 0 and digest.algorithm == _EMPTY.algorithm and digest != _EMPTY:
        raise _invalid(f"{where}.size", f"size is 0, but the digest is not that of empty content: {digest}")
    _check_data(value.get("data"), digest, size, where)
    media_type = value.get("mediaType", "")
    if not isinstance(media_type, str):
        raise _invalid(f"{where}.mediaType", "want a string")
    return Descriptor(digest, size, media_type, _platform(value), _urls(value, where))


def _check_data(data: Value, digest: Digest, size: int, where: str) -> None:
    """Raise Refused if embedded content does not match the descriptor."""
    # This program does not use embedded content, but clients of the copied manifest may trust it.
    if data is None or (isinstance(data, str) and len(data) > _MOST_DATA):
        return
    try:
        content = base64.b64decode(data, validate=True) if isinstance(data, str) else None
    except ValueError:
        content = None
    if content is None:
        raise _invalid(f"{where}.data", "is not base64")
    if len(content) != size or Digest.of(content, digest.algorithm) != digest:
        raise _invalid(f"{where}.data", "does not match the digest and size")


def _platform(value: Object) -> Platform | None:
    """Return the platform of a descriptor, if it has one."""
    platform = value.get("platform")
    if not isinstance(platform, dict):
        return None

    def text(key: str) -> str:
        part = platform.get(key)
        return printable(part, 64) if isinstance(part, str) else ""

    return Platform(text("os"), text("architecture"), text("variant"))


def _urls(value: Object, where: str) -> tuple[str, ...]:
    """Return the URLs of a descriptor. Raises Refused."""
    urls = value.get("urls")
    if urls is None:
        return ()
    if not isinstance(urls, list) or len(urls) > _MOST_URLS:
        raise _invalid(f"{where}.urls", f"want a list of at most {_MOST_URLS} strings")
    return tuple(url for url in urls if isinstance(url, str))


def _invalid(where: str, why: str) -> Refused:
    """Return the error for an invalid descriptor."""
    return Refused(f"{where}: {why}", code="manifest_invalid")
