"""Checks signatures in the two formats of cosign: simple signing, and Sigstore bundles.

A signature is accepted only if it was made with one of the keys, and if the signed text contains the digest of the
image. The text is not parsed before its signature has been verified. Sources: cosign's specification of signatures
("Payloads"), the Sigstore bundle format, DSSE ("Protocol"), and in-toto's Statement v1.
"""

from __future__ import annotations

import base64
import binascii

from mirror.errors import Refused, printable
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.strictjson import Object, Value
from mirror.signatures.policy import SignaturePolicy, VerificationKey

NOT_SIGNED = "not_signed"
"""The code of errors for images and signatures that a policy does not accept."""

MAX_SIGNATURE = 64 << 10  # characters of base64
_MAX_JSON_VALUES = 100_000
_MAX_ENVELOPE_SIGNATURES = 10
_SIMPLE_SIGNING_TYPE = "cosign container image signature"
_STATEMENT_TYPES = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_IN_TOTO = "application/vnd.in-toto+json"
_SIGNATURE_PREDICATE = "https://sigstore.dev/cosign/sign/v1"


def check_simple_signing(payload: bytes, signature: str, image: Digest, policy: SignaturePolicy) -> VerificationKey:
    """Check a signature in cosign's simple signing format, and return the key that made it.

    payload: the signed text. signature: in base64, from the annotation of the layer. image: the digest of the image.
    The repository in the payload (`docker-reference`) is ignored, because images are signed before they are mirrored.
    Raises Refused (not_signed)."""
    signer = policy.find_signer(_decode(signature, "the signature"), payload)
    if signer is None:
        raise _other_key_error()
    critical = _member(_parse_object(payload, "the payload"), "critical", "the payload")
    if critical.get("type") != _SIMPLE_SIGNING_TYPE:
        raise _not_signed_error(
            f"the signed payload is of the type {printable(critical.get('type'), 80)!r}, not a signature"
        )
    signed = _member(critical, "image", "critical in the payload").get("docker-manifest-digest")
    if signed != image:
        raise _not_signed_error(f"the signed payload is for another image, {printable(signed, 80)!r}")
    return signer


def check_bundle(data: bytes, image: Digest, policy: SignaturePolicy) -> VerificationKey:
    """Check the signature in a Sigstore bundle, and return the key that made it.

    data: the bundle. image: the digest of the image. Entries of transparency logs, timestamps and certificates are
    ignored, since the configuration names the keys. Raises Refused (not_signed)."""
    envelope = _member(_parse_object(data, "the bundle"), "dsseEnvelope", "the bundle")
    kind = envelope.get("payloadType")
    if kind != _IN_TOTO:
        raise _not_signed_error(f"the envelope in the bundle is of the type {printable(kind, 80)!r}, not {_IN_TOTO}")
    payload = _decode(envelope.get("payload"), "the payload of the bundle", limit=len(data))
    signer = _find_envelope_signer(envelope.get("signatures"), pre_authentication_encoding(kind, payload), policy)
    if signer is None:
        raise _other_key_error()
    statement = _parse_object(payload, "the statement")
    if statement.get("_type") not in _STATEMENT_TYPES:
        raise _not_signed_error(f"the signed statement is of the type {printable(statement.get('_type'), 80)!r}")
    predicate = statement.get("predicateType")
    if predicate != _SIGNATURE_PREDICATE:
        raise _not_signed_error(
            f"the signed statement is an attestation ({printable(predicate, 80)!r}), not a signature"
        )
    subjects = statement.get("subject")
    if not any(_subject_has_digest(subject, image) for subject in (subjects if isinstance(subjects, list) else ())):
        raise _not_signed_error("the signed statement is for another image")
    return signer


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """Return the bytes that a signature in a DSSE envelope covers. kind: the payload type. Source: DSSE, "Protocol"."""
    encoded = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(encoded), encoded, len(payload), payload)


def _find_envelope_signer(signatures: Value, message: bytes, policy: SignaturePolicy) -> VerificationKey | None:
    """Return a key of the policy that made one of the signatures in an envelope, or None if no key did."""
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= _MAX_ENVELOPE_SIGNATURES:
        raise _not_signed_error(f"the bundle must contain 1 to {_MAX_ENVELOPE_SIGNATURES} signatures")
    for one in signatures:
        text = one.get("sig") if isinstance(one, dict) else None
        signer = policy.find_signer(_decode(text, "the signature in the bundle"), message)
        if signer is not None:
            return signer
    return None


def _subject_has_digest(subject: Value, image: Digest) -> bool:
    """Return whether a subject of an in-toto statement is the image with a given digest."""
    digests = subject.get("digest") if isinstance(subject, dict) else None
    return isinstance(digests, dict) and digests.get(image.algorithm) == image.hex


def _parse_object(data: bytes, what: str) -> Object:
    """Parse a JSON object strictly. what: the name of the object in messages. Raises Refused (not_signed)."""
    value = strictjson.parse(data, what=what, code=NOT_SIGNED, nodes=_MAX_JSON_VALUES)
    if not isinstance(value, dict):
        raise _not_signed_error(f"{what} is not a JSON object")
    return value


def _member(value: Object, key: str, what: str) -> Object:
    """Return the JSON object under a key of an object. what: the name of the latter. Raises Refused (not_signed)."""
    member = value.get(key)
    if not isinstance(member, dict):
        raise _not_signed_error(f"{what} has no object {key!r}")
    return member


def _decode(text: Value, what: str, *, limit: int = MAX_SIGNATURE) -> bytes:
    """Decode base64. limit: the maximum number of characters. Raises Refused (not_signed) if `text` is invalid."""
    if not isinstance(text, str) or not text or len(text) > limit:
        raise _not_signed_error(f"{what} is missing or too long")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _not_signed_error(f"{what} is not base64") from None


def _other_key_error() -> Refused:
    """Return the error for a signature by a key that is not listed, or of a text that was changed after signing."""
    return _not_signed_error("the signature was made with a key that is not listed, or for different content")


def _not_signed_error(what: str) -> Refused:
    """Return the error for a signature that is not accepted."""
    return Refused(what, code=NOT_SIGNED)
