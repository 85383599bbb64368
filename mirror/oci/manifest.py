"""Manifests and indexes: their exact bytes, and what they refer to.

A manifest is never re-serialised: `body` is what came and what goes. Sources: OCI image-spec v1.1
(manifest.md, image-index.md), docker's manifest v2 schema 1 and 2.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from enum import Enum
from typing import Protocol

from mirror.errors import MirrorError, Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, once_each, parse_descriptor
from mirror.oci.digest import Digest
from mirror.oci.strictjson import Object, Value
from mirror.util.structs import Struct

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"

MAX_BYTES = 8 << 20  # what we read; registries refuse more than 4 MiB, some less
MAX_ENTRIES = 10_000  # layers of an image, children of an index


class Kind(Enum):
    """What a manifest is, which decides where its references are found."""

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

# In the order of preference; old registries compare whole header lines, so each is sent as a line of its own.
ACCEPTED = tuple(_KINDS)

_KEYS = {
    Kind.IMAGE: {"config", "layers"},
    Kind.INDEX: {"manifests"},
    Kind.ARTIFACT: {"blobs"},
    Kind.SCHEMA1: {"fsLayers", "history"},
}
# A key of another kind makes a document that two readers could take for different things
# (CVE-2021-41190); "blobs" is new enough that older kinds may carry it as an extension.
_TELLING = {"config", "layers", "manifests", "fsLayers", "history"}
_DOCUMENT_KEYS = frozenset(
    {"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"}
    | {"blobs", "fsLayers", "history", "signatures"}
)
_SAYS_NOTHING = {"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"}


class Stored(Protocol):
    """Where the bytes of a manifest are that are not in memory."""

    @property
    def size(self) -> int: ...
    def read(self) -> bytes:
        """May do I/O. Raises LocalError."""
        ...


class Manifest(Struct, frozen=True):
    """A manifest or index whose bytes hash to `digest`.

    content: these bytes, or where they are; children: descriptors of manifests, in the document's order; blobs: config
    first, then layers, each digest once; foreign layers are among them (`Descriptor.foreign`)."""

    content: bytes | Stored
    digest: Digest
    media_type: str
    kind: Kind
    children: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None

    @property
    def body(self) -> bytes:
        """The bytes. May do I/O if they are not in memory. Raises LocalError."""
        return self.content if isinstance(self.content, bytes) else self.content.read()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


def is_manifest_type(media_type: str) -> bool:
    return media_type in _KINDS


def too_big(what: str, size: int | None = None) -> Refused:
    """The refusal of a manifest that is larger than we read. size: bytes, where known."""
    has = f"has {size} bytes, more" if size is not None else "is larger"
    hint = "have a smaller one pushed (an index can be split), or `exclude` the tag"
    return Refused(
        f"{what} {has} than the {MAX_BYTES} bytes that a manifest may have", hint=hint, code="manifest_too_big"
    )


def plain_type(content_type: str) -> str:
    """A Content-Type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def parse_manifest(
    body: bytes, content_type: str = "", *, expected: Digest | None = None, what: str = "manifest"
) -> Manifest:
    """The manifest in `body`.

    content_type: as the answer gave it; expected: the digest it was asked by, if it was.
    Raises RemoteError (bad_response) for HTML; Refused: manifest_too_big, digest_mismatch, manifest_invalid,
    manifest_ambiguous, type_mismatch, too_many."""
    declared = plain_type(content_type)
    if len(body) > MAX_BYTES:
        raise too_big(what, len(body))
    if declared == "text/html" or body[:100].lstrip().startswith(b"<"):
        raise RemoteError(
            f"{what} is a page of HTML, not a manifest", hint="a proxy or login page answers for the registry"
        )
    proven = False
    if expected is not None and not _may_be_schema1(declared, body):
        # Bytes that are not the ones asked for are not even looked into; schema1's digest is not its bytes'.
        _same(Digest.of(body, expected.algorithm), expected, body, what)
        proven = True
    document = strictjson.parse(body, what=what)
    if not isinstance(document, dict):
        raise Refused(f"{what} is not a JSON object", code="manifest_invalid")
    media_type = _media_type(document, declared, what)
    kind = _KINDS[media_type]
    foreign_keys = sorted(_TELLING.intersection(document) - _KEYS[kind])
    if foreign_keys:
        raise Refused(
            f"{what} can be read as two things: {media_type} with {', '.join(foreign_keys)}",
            code="manifest_ambiguous",
        )
    strictjson.refuse_look_alikes(document, _DOCUMENT_KEYS, where=what)
    if proven and expected is not None and kind is not Kind.SCHEMA1:
        digest = expected
    else:
        algorithm = expected.algorithm if expected else "sha256"
        digest = schema1_digest(body, document, what) if kind is Kind.SCHEMA1 else Digest.of(body, algorithm)
        if expected is not None:
            _same(digest, expected, body, what)
    _check_version(document, kind, what)
    return Manifest(
        body,
        digest,
        media_type,
        kind,
        children=once_each(_children(document, kind, what), what),
        blobs=once_each(_blobs(document, kind, what), what),
        subject=_subject(document, kind, what),
    )


def _may_be_schema1(declared: str, body: bytes) -> bool:
    # Registries before distribution 2.3 send schema1 as application/json.
    return declared in (SCHEMA1, SCHEMA1_SIGNED) or (declared in _SAYS_NOTHING and b'"fsLayers"' in body)


def _same(actual: Digest, expected: Digest, body: bytes, what: str) -> None:
    if actual != expected:
        raise Refused(
            f"{what}: {len(body)} bytes with the digest {actual}, not {expected}",
            hint="the server or something before it changed or mixed up the bytes",
            code="digest_mismatch",
        )


def _media_type(document: Object, declared: str, what: str) -> str:
    named = document.get("mediaType", "")
    if not isinstance(named, str):
        raise Refused(f"{what}: mediaType is not a text", code="manifest_invalid")
    silent = declared in _SAYS_NOTHING
    if named and not silent and named != declared:
        raise Refused(
            f"{what}: the answer's Content-Type is {printable(declared, 80)}, its mediaType {printable(named, 80)}",
            code="type_mismatch",
        )
    media_type = named or ("" if silent else declared)
    if not media_type:
        return _type_from_shape(document, what)
    if media_type not in _KINDS:
        raise Refused(
            f"{what} is of a type we cannot copy whole: {printable(media_type, 80)}",
            hint="only manifests whose references we know can be mirrored",
            code="manifest_invalid",
        )
    return media_type


def _type_from_shape(document: Object, what: str) -> str:
    # OCI 1.0 allows to leave mediaType out; then the shape must be beyond doubt.
    if "fsLayers" in document and document.get("schemaVersion") == 1:
        return SCHEMA1_SIGNED if "signatures" in document else SCHEMA1
    if "manifests" in document:
        return OCI_INDEX
    if "config" in document and "layers" in document:
        return OCI_MANIFEST
    raise Refused(f"{what} is neither a manifest nor an index", code="manifest_invalid")


def _check_version(document: Object, kind: Kind, what: str) -> None:
    version = document.get("schemaVersion")
    if kind is Kind.ARTIFACT and version is None:
        return
    wanted = 1 if kind is Kind.SCHEMA1 else 2
    if type(version) is not int or version != wanted:  # neither true nor 2.0
        raise Refused(f"{what}: schemaVersion is {printable(version, 40)!r}, want {wanted}", code="manifest_invalid")


def _entries(document: Object, key: str, what: str) -> list[Value]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise Refused(f"{what}: {key} is not a list", code="manifest_invalid")
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"{what}: {len(entries)} {key}, more than {MAX_ENTRIES}", code="too_many")
    return entries


def _children(document: Object, kind: Kind, what: str) -> Iterator[Descriptor]:
    if kind is Kind.INDEX:
        for descriptor in _listed(document, what):
            if is_manifest_type(descriptor.media_type) or not descriptor.media_type:
                yield descriptor


def _listed(document: Object, what: str) -> Iterator[Descriptor]:
    for number, entry in enumerate(_entries(document, "manifests", what)):
        yield parse_descriptor(entry, f"{what}: manifests[{number}]")


def _blobs(document: Object, kind: Kind, what: str) -> Iterator[Descriptor]:
    if kind is Kind.INDEX:
        # Build caches are indexes that list layers; what is no manifest is fetched as a blob.
        for descriptor in _listed(document, what):
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
    layers, history = _entries(document, "fsLayers", what), _entries(document, "history", what)
    if not layers or len(layers) != len(history):
        raise Refused(f"{what}: {len(layers)} fsLayers and {len(history)} history entries", code="manifest_invalid")
    for number, entry in enumerate(layers):
        try:
            yield Descriptor(Digest.parse(entry.get("blobSum") if isinstance(entry, dict) else None), None)
        except MirrorError as error:
            raise Refused(f"{what}: fsLayers[{number}]: {error}", code="manifest_invalid") from None


def _subject(document: Object, kind: Kind, what: str) -> Descriptor | None:
    if kind is Kind.SCHEMA1 or document.get("subject") is None:
        return None
    return parse_descriptor(document["subject"], f"{what}: subject")


def schema1_digest(body: bytes, document: Object, what: str) -> Digest:
    """sha256 of the signed payload: the body without its signatures, as each signature's `protected` says.

    Source: docker's manifest v2 schema 1, "Signed manifests" (JSON web signature, pretty form)."""
    signatures = document.get("signatures")
    if signatures is None:
        return Digest.of(body)
    if not isinstance(signatures, list) or not signatures:
        raise Refused(f"{what}: signatures is not a list of signatures", code="manifest_invalid")
    payloads = {_payload(body, signature, what) for signature in signatures}
    if len(payloads) != 1:
        raise Refused(f"{what}: its signatures are over different payloads", code="manifest_invalid")
    return Digest.of(payloads.pop())


def _payload(body: bytes, signature: Value, what: str) -> bytes:
    protected = signature.get("protected") if isinstance(signature, dict) else None
    head = strictjson.parse(_base64url(protected, what), what=f"{what}: signatures[].protected")
    length = head.get("formatLength") if isinstance(head, dict) else None
    tail = _base64url(head.get("formatTail") if isinstance(head, dict) else None, what)
    if isinstance(length, bool) or not isinstance(length, int) or not 0 < length < len(body):
        raise Refused(f"{what}: formatLength does not fit", code="manifest_invalid")
    rest = body[length:].lstrip()
    if not rest.startswith(b",") or not rest[1:].lstrip().startswith(b'"signatures"'):
        # Anything else between the payload and the signatures would be content that no digest covers.
        raise Refused(f"{what}: data outside of the signed payload", code="manifest_invalid")
    return body[:length] + tail


def _base64url(text: Value, what: str) -> bytes:
    if not isinstance(text, str) or not text.isascii():
        raise Refused(f"{what}: a signature is not base64url", code="manifest_invalid")
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise Refused(f"{what}: a signature is not base64url", code="manifest_invalid") from None
