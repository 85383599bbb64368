"""The two formats of signatures: what is accepted, and why anything else is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from mirror.errors import Refused
from mirror.oci.digest import Digest
from mirror.signatures.formats import MAX_SIGNATURE, check_bundle, check_simple_signing
from mirror.signatures.keys import parse_public_key
from mirror.signatures.policy import SignaturePolicy
from tests.support.signing import SigningKey, bundle, signing_key, simple_payload, statement

IMAGE = Digest.of(b"the image")
OTHER_IMAGE = Digest.of(b"another image")
OURS, SECOND, FOREIGN = signing_key("ours"), signing_key("second", "ed25519"), signing_key("foreign")
POLICY = SignaturePolicy([parse_public_key(OURS.pem, "ours.pub"), parse_public_key(SECOND.pem, "second.pub")])
OTHER_KEY = "the signature was made with a key that is not listed, or for different content"


def _simple(payload: bytes, key: SigningKey = OURS) -> str:
    return check_simple_signing(payload, key.sign_text(payload), IMAGE, POLICY).name


def _bundle(document: dict[str, Any] | bytes) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return check_bundle(data, IMAGE, POLICY).name


@pytest.mark.parametrize(("key", "name"), [(OURS, "ours.pub"), (SECOND, "second.pub")])
def test_a_signature_by_each_key_is_accepted(key: SigningKey, name: str) -> None:
    assert name == _simple(simple_payload(IMAGE), key)
    assert name == _bundle(bundle(statement(IMAGE), key))


def test_a_sha512_digest_may_be_signed() -> None:
    image = Digest.of(b"the image", "sha512")
    payload = simple_payload(image)
    assert "ours.pub" == check_simple_signing(payload, OURS.sign_text(payload), image, POLICY).name
    assert "ours.pub" == check_bundle(json.dumps(bundle(statement(image))).encode(), image, POLICY).name


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: _simple(simple_payload(IMAGE), FOREIGN), OTHER_KEY),
        (lambda: _simple(simple_payload(OTHER_IMAGE)), f"the signed payload is for another image, '{OTHER_IMAGE}'"),
        (lambda: _simple(simple_payload(IMAGE.upper())), "the signed payload is for another image"),
        (lambda: _simple(simple_payload(IMAGE, kind="atomic container signature")), "'atomic container signature'"),
        (lambda: _simple(b"[]"), "the payload is not a JSON object"),
        (lambda: _simple(b"{}"), "the payload has no object 'critical'"),
        (lambda: _simple(b'{"critical": {"type": "cosign container image signature"}}'), "has no object 'image'"),
        (lambda: _simple(b'{"critical": {}, "Critical": {}}'), "duplicate key"),
        (lambda: _simple(b"\xff"), "not valid UTF-8"),
        (lambda: _simple(b"[" * 100_000), "nested more than 64 levels deep"),
    ],
)
def test_other_payloads_are_not_accepted(run: Callable[[], str], says: str) -> None:
    with pytest.raises(Refused) as caught:
        run()
    assert "not_signed" == caught.value.code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        ("", "the signature is missing or too long"),
        ("A" * (MAX_SIGNATURE + 4), "the signature is missing or too long"),
        ("not base64!", "the signature is not base64"),
        ("é", "the signature is not base64"),
        (base64.b64encode(b"no signature").decode(), OTHER_KEY),
    ],
)
def test_other_signatures_are_not_accepted(signature: str, says: str) -> None:
    with pytest.raises(Refused) as caught:
        check_simple_signing(simple_payload(IMAGE), signature, IMAGE, POLICY)
    assert ("not_signed", True) == (caught.value.code, says in str(caught.value))


def test_a_payload_that_was_changed_after_it_was_signed_is_not_accepted() -> None:
    signature = OURS.sign_text(simple_payload(OTHER_IMAGE))
    with pytest.raises(Refused, match=OTHER_KEY):
        check_simple_signing(simple_payload(IMAGE), signature, IMAGE, POLICY)


def _changed(**changes: Any) -> dict[str, Any]:
    """Return a good bundle with changes to its envelope."""
    document = bundle(statement(IMAGE))
    return {**document, "dsseEnvelope": {**document["dsseEnvelope"], **changes}}


GOOD = bundle(statement(IMAGE))["dsseEnvelope"]["signatures"][0]
BAD = {"sig": base64.b64encode(b"no signature").decode()}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (bundle(statement(IMAGE), FOREIGN), OTHER_KEY),
        (_changed(payload=base64.b64encode(statement(OTHER_IMAGE)).decode()), OTHER_KEY),
        (bundle(statement(OTHER_IMAGE)), "the signed statement is for another image"),
        (bundle(statement(IMAGE.replace("sha256", "sha512"))), "the signed statement is for another image"),
        (bundle(statement(IMAGE, predicate="https://slsa.dev/provenance/v1")), "an attestation ('https://slsa.dev/"),
        (bundle(statement(IMAGE, kind="text")), "the signed statement is of the type 'text'"),
        (bundle(statement(IMAGE), kind="text/plain"), "the envelope in the bundle is of the type 'text/plain'"),
        (bundle(b'{"_type": "https://in-toto.io/Statement/v1"}'), "an attestation ('None')"),
        (bundle(b"[]"), "the statement is not a JSON object"),
        (_changed(payload=None), "the payload of the bundle is missing"),
        (_changed(payload="?"), "the payload of the bundle is not base64"),
        (_changed(signatures=[]), "the bundle must contain 1 to 10 signatures"),
        (_changed(signatures=[GOOD] * 11), "the bundle must contain 1 to 10 signatures"),
        (_changed(signatures=[{}]), "the signature in the bundle is missing"),
        (_changed(signatures=[BAD]), OTHER_KEY),
        ({"messageSignature": {}}, "the bundle has no object 'dsseEnvelope'"),
        (b"{", "the bundle is not valid JSON"),
    ],
)
def test_other_bundles_are_not_accepted(document: dict[str, Any] | bytes, says: str) -> None:
    with pytest.raises(Refused) as caught:
        _bundle(document)
    assert "not_signed" == caught.value.code
    assert says in str(caught.value)


def test_one_accepted_signature_in_an_envelope_is_enough() -> None:
    assert "ours.pub" == _bundle(_changed(signatures=[BAD, GOOD]))
