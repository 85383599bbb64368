"""Descriptors: references between objects by digest and size. Source: OCI image-spec v1.1, descriptor.md."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from mirror.errors import MirrorError, Refused, printable
from mirror.oci.digest import Digest
from mirror.oci.platform import Platform
from mirror.oci.strictjson import Object, Value, refuse_look_alikes
from mirror.util.structs import Struct

_LARGEST = 1 << 63
_MOST_URLS = 100
_MOST_DATA = 64 * 1024  # characters of base64; longer embedded content is not verified
_KEYS = frozenset({"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"})
_EMPTY = Digest.of(b"")
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.",
    "application/vnd.oci.image.layer.nondistributable.",
)


class Descriptor(Struct, frozen=True):
    """A descriptor: the digest, the size in bytes and the media type of an object.

    size: None only for the layers of a schema 1 manifest, which does not state sizes.
    artifact_type: the type of the artifact that a manifest contains; empty if the descriptor does not state it."""

    digest: Digest
    size: int | None
    media_type: str = ""
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""

    @property
    def foreign(self) -> bool:
        """Whether the object is a foreign layer: a non-distributable layer with a URL.

        Foreign layers are not uploaded, and not expected on targets."""
        return bool(self.urls) and self.media_type.startswith(_FOREIGN)


def unique_descriptors(descriptors: Iterable[Descriptor], what: str) -> tuple[Descriptor, ...]:
    """Return one descriptor per digest, in order of first appearance.

    If a digest has both foreign and other descriptors, one of the others is returned (see `Descriptor.foreign`).
    what: the name of the document in error messages. Raises Refused (manifest_invalid) if a digest has two sizes."""
    found: dict[Digest, Descriptor] = {}
    for descriptor in descriptors:
        known = found.setdefault(descriptor.digest, descriptor)
        if known.size != descriptor.size and None not in (known.size, descriptor.size):
            raise Refused(f"{what}: {descriptor.digest} appears with two different sizes", code="manifest_invalid")
        if known.foreign:
            found[descriptor.digest] = descriptor
    return tuple(found.values())


def parse_descriptor(value: Value, where: str) -> Descriptor:
    """Parse a descriptor from JSON. Raises Refused (manifest_invalid, manifest_ambiguous) if it is invalid.

    where: the position of the descriptor in its document, for error messages."""
    if not isinstance(value, dict):
        raise _invalid_error(where, "not a descriptor")
    if not value.keys() <= _KEYS:
        refuse_look_alikes(value, _KEYS, where=where)
    try:
        digest = Digest.parse(value.get("digest"))
    except MirrorError as error:
        raise _invalid_error(f"{where}.digest", str(error)) from None
    size = value.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _LARGEST:
        raise _invalid_error(f"{where}.size", f"expected a number of bytes, got {printable(size, 80)!r}")
    if size == 0 and digest.algorithm == _EMPTY.algorithm and digest != _EMPTY:
        raise _invalid_error(f"{where}.size", f"size is 0, but {digest} is not the digest of empty content")
    _check_data(value.get("data"), digest, size, where)
    media_type = value.get("mediaType", "")
    if not isinstance(media_type, str):
        raise _invalid_error(f"{where}.mediaType", "expected a string")
    platform, artifact_type = value.get("platform"), value.get("artifactType")
    return Descriptor(
        digest,
        size,
        media_type,
        parse_platform_object(platform) if isinstance(platform, dict) else None,
        _urls(value, where),
        artifact_type if isinstance(artifact_type, str) else "",
    )


def _check_data(data: Value, digest: Digest, size: int, where: str) -> None:
    """Raise Refused unless the embedded content (`data`) matches the digest and size of the descriptor."""
    # This program does not use embedded content, but clients of the copied manifest may trust it.
    if data is None or (isinstance(data, str) and len(data) > _MOST_DATA):
        return
    try:
        content = base64.b64decode(data, validate=True) if isinstance(data, str) else None
    except ValueError:
        content = None
    if content is None:
        raise _invalid_error(f"{where}.data", "not valid base64")
    if len(content) != size or Digest.of(content, digest.algorithm) != digest:
        raise _invalid_error(f"{where}.data", "the decoded content does not match the digest and size")


def parse_platform_object(value: Object) -> Platform:
    """Return the platform that a JSON object states: `platform` in an index, or an image config.

    A value that is not a string is treated as missing. Values are made printable, and cut to 64 characters."""

    def text(key: str) -> str:
        """Return the string at `key` in printable form, or an empty string if there is none."""
        part = value.get(key)
        return printable(part, 64) if isinstance(part, str) else ""

    return Platform(text("os"), text("architecture"), text("variant"), text("os.version"))


def _urls(value: Object, where: str) -> tuple[str, ...]:
    """Return the URLs of a descriptor. Raises Refused if `urls` is not a list or is too long."""
    urls = value.get("urls")
    if urls is None:
        return ()
    if not isinstance(urls, list) or len(urls) > _MOST_URLS:
        raise _invalid_error(f"{where}.urls", f"expected a list of at most {_MOST_URLS} strings")
    return tuple(url for url in urls if isinstance(url, str))


def _invalid_error(where: str, why: str) -> Refused:
    """Return the error for an invalid descriptor. where: its position in the document. why: the reason."""
    return Refused(f"{where}: {why}", code="manifest_invalid")
