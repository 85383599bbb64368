"""The digest of a schema 1 manifest, which covers its payload but not its signatures.

Source: Docker's manifest v2 schema 1, "Signed manifests" (JSON web signature, pretty form).
"""

from __future__ import annotations

import base64
import binascii

from mirror.errors import Refused
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.strictjson import Object, Value


def schema1_digest(body: bytes, document: Object, what: str) -> Digest:
    """Return the digest of a schema 1 manifest: the sha256 of its payload, which excludes the signatures.

    The `protected` header of each signature describes the payload. Raises Refused if a header is invalid."""
    signatures = document.get("signatures")
    if signatures is None:
        return Digest.of(body)
    if not isinstance(signatures, list) or not signatures:
        raise Refused(f"{what}: signatures must be a non-empty list", code="manifest_invalid")
    payloads = {_payload(body, signature, what) for signature in signatures}
    if len(payloads) != 1:
        raise Refused(f"{what}: its signatures cover different payloads", code="manifest_invalid")
    return Digest.of(payloads.pop())


def _payload(body: bytes, signature: Value, what: str) -> bytes:
    """Return the payload that a signature covers. Raises Refused if the signature does not describe it correctly."""
    protected = signature.get("protected") if isinstance(signature, dict) else None
    head = strictjson.parse(_decode_base64url(protected, what), what=f"{what}: signatures[].protected")
    length = head.get("formatLength") if isinstance(head, dict) else None
    tail = _decode_base64url(head.get("formatTail") if isinstance(head, dict) else None, what)
    if isinstance(length, bool) or not isinstance(length, int) or not 0 < length < len(body):
        raise Refused(f"{what}: a signature has an invalid formatLength", code="manifest_invalid")
    rest = body[length:].lstrip()
    if not rest.startswith(b",") or not rest[1:].lstrip().startswith(b'"signatures"'):
        # Other data between the payload and the signatures would not be covered by the digest.
        raise Refused(f"{what}: it contains data outside the signed payload", code="manifest_invalid")
    return body[:length] + tail


def _decode_base64url(text: Value, what: str) -> bytes:
    """Decode base64url, with or without padding. Raises Refused if `text` is invalid."""
    if not isinstance(text, str) or not text.isascii():
        raise Refused(f"{what}: a signature is not base64url", code="manifest_invalid")
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise Refused(f"{what}: a signature is not base64url", code="manifest_invalid") from None
