"""Manifests and indexes: their exact bytes, and the objects that they refer to.

A manifest is never serialized again: `body` is exactly the bytes that were received. Sources: OCI image-spec v1.1
(manifest.md, image-index.md), Docker's manifest v2 schema 1 and schema 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Protocol

from mirror.errors import MirrorError, Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, parse_descriptor, unique_descriptors
from mirror.oci.digest import Digest
from mirror.oci.schema1_digest import schema1_digest
from mirror.oci.strictjson import Object, Value
from mirror.util.structs import Struct

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"

MAX_BYTES = 8 << 20  # registries accept at most 4 MiB, some accept less
MAX_ENTRIES = 10_000  # layers of an image, children of an index


class Kind(Enum):
    """The kind of a manifest. It determines which keys of the document refer to other objects."""

    IMAGE = "image"
    INDEX = "index"
    ARTIFACT = "artifact"
    SCHEMA1 = "schema1"


_KINDS = {
    OCI_MANIFEST: Kind.IMAGE,
    DOCKER_MANIFEST: Kind.IMAGE,
    OCI_INDEX: Kind.INDEX,
    DOCKER_LIST: Kind.INDEX,
    OCI_ARTIFACT: Kind.ARTIFACT,
    SCHEMA1_SIGNED: Kind.SCHEMA1,
    SCHEMA1: Kind.SCHEMA1,
}

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
# For the Accept header, in order of preference. Each gets its own line, because old registries compare whole lines.
ACCEPTED = tuple(_KINDS)

_KEYS = {
    Kind.IMAGE: {"config", "layers"},
    Kind.INDEX: {"manifests"},
    Kind.ARTIFACT: {"blobs"},
    Kind.SCHEMA1: {"fsLayers", "history"},
}
# If a document has a key of another kind, two readers could see different kinds in it (CVE-2021-41190). "blobs" is not
# included: other kinds may have it as an extension.
_EXCLUSIVE_KEYS = {"config", "layers", "manifests", "fsLayers", "history"}
_DOCUMENT_KEYS = frozenset(
    {"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"}
    | {"blobs", "fsLayers", "history", "signatures"}
)
_GENERIC_TYPES = {"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"}


class StoredContent(Protocol):
    """The bytes of a manifest, which are stored on disk and read only when they are needed."""

    @property
    def size(self) -> int:
        """The size of the manifest in bytes."""
        ...

    def read(self) -> bytes:
        """Read the bytes and return them. Raises LocalError if they cannot be read."""
        ...


class Manifest(Struct, frozen=True):
    """A manifest or index whose bytes match `digest`.

    content: the bytes, or a reader for stored bytes. children: descriptors of child manifests, in the document's order.
    blobs: the config, then the layers, each digest once. Foreign layers (`Descriptor.foreign`) are included.
    artifact_type: the `artifactType` or, if there is none, the media type of the config; empty if there is neither."""

    content: bytes | StoredContent
    digest: Digest
    media_type: str
    kind: Kind
    children: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""

    @property
    def body(self) -> bytes:
        """The bytes of the manifest, read from disk if necessary. Raises LocalError if that fails."""
        return self.content if isinstance(self.content, bytes) else self.content.read()

    @property
    def size(self) -> int:
        """The size of the manifest in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


def is_manifest_type(media_type: str) -> bool:
    """Return whether `media_type` is the type of a manifest or index that this program can copy."""
    return media_type in _KINDS


def manifest_too_big_error(what: str, size: int | None = None) -> Refused:
    """Return the error for a manifest larger than MAX_BYTES. what: its name. size: its size in bytes, if known."""
    has = f"has {size} bytes" if size is not None else "is too large"
    hint = "push a smaller manifest (an index can be split), or exclude the tag with `tags.exclude`"
    return Refused(f"{what} {has}; a manifest may have at most {MAX_BYTES} bytes", hint=hint, code="manifest_too_big")


def plain_type(content_type: str) -> str:
    """Return the media type of a Content-Type header: in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def parse_manifest(
    body: bytes, content_type: str = "", *, expected: Digest | None = None, what: str = "manifest"
) -> Manifest:
    """Parse the manifest or index in `body`, and verify its digest.

    content_type: the Content-Type of the response. expected: the requested digest, if any. what: the name of the
    manifest in error messages. Raises RemoteError (bad_response) for an HTML page, and Refused (manifest_too_big,
    digest_mismatch, manifest_invalid, manifest_ambiguous, type_mismatch, too_many) for other invalid bodies."""
    declared = plain_type(content_type)
    if len(body) > MAX_BYTES:
        raise manifest_too_big_error(what, len(body))
    if declared == "text/html" or body[:100].lstrip().startswith(b"<"):
        raise RemoteError(
            f"{what} is an HTML page, not a manifest", hint="a proxy or a login page responded instead of the registry"
        )
    verified = False
    if expected is not None and not _may_be_schema1(declared, body):
        # Verify before parsing. A schema 1 manifest must be parsed first, since its digest excludes the signatures.
        _check_digest(Digest.of(body, expected.algorithm), expected, body, what)
        verified = True
    document = strictjson.parse(body, what=what)
    if not isinstance(document, dict):
        raise Refused(f"{what} is not a JSON object", code="manifest_invalid")
    media_type = _media_type(document, declared, what)
    kind = _KINDS[media_type]
    extra = sorted(_EXCLUSIVE_KEYS.intersection(document) - _KEYS[kind])
    if extra:
        raise Refused(
            f"{what} is ambiguous: its media type is {media_type}, but it has keys of another type: {', '.join(extra)}",
            code="manifest_ambiguous",
        )
    strictjson.refuse_look_alikes(document, _DOCUMENT_KEYS, where=what)
    if verified and expected is not None and kind is not Kind.SCHEMA1:
        digest = expected
    else:
        algorithm = expected.algorithm if expected else "sha256"
        digest = schema1_digest(body, document, what) if kind is Kind.SCHEMA1 else Digest.of(body, algorithm)
        if expected is not None:
            _check_digest(digest, expected, body, what)
    _check_version(document, kind, what)
    return Manifest(
        body,
        digest,
        media_type,
        kind,
        children=unique_descriptors(_children(document, kind, what), what),
        blobs=unique_descriptors(_blobs(document, kind, what), what),
        subject=_subject(document, kind, what),
        artifact_type=_artifact_type(document),
    )


def _may_be_schema1(declared: str, body: bytes) -> bool:
    """Return whether the body may be a schema 1 manifest."""
    # Registries before distribution 2.3 send schema 1 manifests as application/json.
    return declared in (SCHEMA1, SCHEMA1_SIGNED) or (declared in _GENERIC_TYPES and b'"fsLayers"' in body)


def _check_digest(actual: Digest, expected: Digest, body: bytes, what: str) -> None:
    """Raise Refused (digest_mismatch) unless `actual`, the digest of `body`, is the expected digest."""
    if actual != expected:
        raise Refused(
            f"{what}: received {len(body)} bytes, but their digest is {actual}, not {expected}",
            hint="the server, or a proxy in front of it, changed the bytes or sent another object",
            code="digest_mismatch",
        )


def _media_type(document: Object, declared: str, what: str) -> str:
    """Return the media type of a manifest.

    declared: the media type in the response. Raises Refused if the document's type is unknown or contradicts
    `declared`."""
    named = document.get("mediaType", "")
    if not isinstance(named, str):
        raise Refused(f"{what}: mediaType is not a string", code="manifest_invalid")
    is_generic = declared in _GENERIC_TYPES
    if named and not is_generic and named != declared:
        raise Refused(
            f"{what}: Content-Type is {printable(declared, 80)}, but mediaType is {printable(named, 80)}",
            code="type_mismatch",
        )
    media_type = named or ("" if is_generic else declared)
    if not media_type:
        return _type_from_keys(document, what)
    if media_type not in _KINDS:
        raise Refused(
            f"{what} has an unsupported media type: {printable(media_type, 80)}",
            hint="only manifests of a known format can be copied",
            code="manifest_invalid",
        )
    return media_type


def _type_from_keys(document: Object, what: str) -> str:
    """Return the media type that the keys of a manifest imply. Raises Refused if the keys imply no type."""
    # mediaType is optional in OCI 1.0.
    if "fsLayers" in document and document.get("schemaVersion") == 1:
        return SCHEMA1_SIGNED if "signatures" in document else SCHEMA1
    if "manifests" in document:
        return OCI_INDEX
    if "config" in document and "layers" in document:
        return OCI_MANIFEST
    raise Refused(f"{what} is neither a manifest nor an index", code="manifest_invalid")


def _check_version(document: Object, kind: Kind, what: str) -> None:
    """Raise Refused unless schemaVersion has the value that manifests of this kind must have."""
    version = document.get("schemaVersion")
    if kind is Kind.ARTIFACT and version is None:
        return
    expected = 1 if kind is Kind.SCHEMA1 else 2
    if type(version) is not int or version != expected:  # neither true nor 2.0
        raise Refused(
            f"{what}: schemaVersion is {printable(version, 40)!r}, expected {expected}", code="manifest_invalid"
        )


def _entries(document: Object, key: str, what: str) -> list[Value]:
    """Return the list at `key` of a manifest. Raises Refused if it is not a list or has too many entries."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise Refused(f"{what}: {key} is not a list", code="manifest_invalid")
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"{what}: {key} has {len(entries)} entries, more than {MAX_ENTRIES}", code="too_many")
    return entries


def _children(document: Object, kind: Kind, what: str) -> Iterator[Descriptor]:
    """Yield the descriptors of the child manifests of an index. Yield nothing for other kinds."""
    if kind is Kind.INDEX:
        for descriptor in _index_entries(document, what):
            if is_manifest_type(descriptor.media_type) or not descriptor.media_type:
                yield descriptor


def _index_entries(document: Object, what: str) -> Iterator[Descriptor]:
    """Yield the descriptors in the list `manifests` of an index."""
    for number, entry in enumerate(_entries(document, "manifests", what)):
        yield parse_descriptor(entry, f"{what}: manifests[{number}]")


def _blobs(document: Object, kind: Kind, what: str) -> Iterator[Descriptor]:
    """Yield the descriptors of the blobs of a manifest. A blob that is listed twice is yielded twice."""
    if kind is Kind.INDEX:
        # Build caches are indexes that list layers. Entries that are not manifests are copied as blobs.
        for descriptor in _index_entries(document, what):
            if descriptor.media_type and not is_manifest_type(descriptor.media_type):
                yield descriptor
    elif kind is Kind.IMAGE:
        yield parse_descriptor(document.get("config"), f"{what}: config")
        for number, entry in enumerate(_entries(document, "layers", what)):
            yield parse_descriptor(entry, f"{what}: layers[{number}]")
    elif kind is Kind.ARTIFACT:
        if document.get("blobs") is not None:
            for number, entry in enumerate(_entries(document, "blobs", what)):
                yield parse_descriptor(entry, f"{what}: blobs[{number}]")
    else:
        yield from _schema1_layers(document, what)


def _schema1_layers(document: Object, what: str) -> Iterator[Descriptor]:
    """Yield the descriptors of the layers of a schema 1 manifest, without sizes."""
    layers, history = _entries(document, "fsLayers", what), _entries(document, "history", what)
    if not layers or len(layers) != len(history):
        raise Refused(
            f"{what}: fsLayers and history must have the same number of entries, and at least one; they have "
            f"{len(layers)} and {len(history)}",
            code="manifest_invalid",
        )
    for number, entry in enumerate(layers):
        try:
            yield Descriptor(Digest.parse(entry.get("blobSum") if isinstance(entry, dict) else None), None)
        except MirrorError as error:
            raise Refused(f"{what}: fsLayers[{number}]: {error}", code="manifest_invalid") from None


def _subject(document: Object, kind: Kind, what: str) -> Descriptor | None:
    """Return the descriptor of a manifest's subject, or None if the manifest has no subject."""
    if kind is Kind.SCHEMA1 or document.get("subject") is None:
        return None
    return parse_descriptor(document["subject"], f"{what}: subject")


def _artifact_type(document: Object) -> str:
    """Return the artifact type of a manifest (image-spec, manifest.md, "Guidelines for Artifact Usage")."""
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    return kind if isinstance(kind, str) else ""
