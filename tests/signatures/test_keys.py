"""Public keys: which files are accepted, and which signatures they verify."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.signatures.keys import parse_public_key
from tests.support.signing import SigningKey, signing_key

KINDS = ("p256", "p384", "p521", "rsa", "ed25519")
SPKI = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_is_verified_with_the_key_that_made_it(kind: str) -> None:
    signer, other = signing_key("ours", kind), signing_key("other", "p256")
    key, foreign = parse_public_key(signer.pem, "cosign.pub"), parse_public_key(other.pem, "other.pub")
    signature = signer.sign(b"message")
    assert key.verify(signature, b"message")
    assert not key.verify(signature, b"Message")
    assert not key.verify(signature[:-1] + bytes([signature[-1] ^ 1]), b"message")
    assert not key.verify(b"", b"message")
    assert kind == "p256" or not foreign.verify(signature, b"message")
    assert not key.verify(other.sign(b"message"), b"message")


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa"])
@pytest.mark.parametrize(
    ("algorithm", "accepted"),
    [(SHA256(), True), (SHA384(), True), (SHA512(), True), (SHA1(), False)],  # noqa: S303
)
def test_signatures_may_use_each_hash_of_the_sha2_family(kind: str, algorithm: HashAlgorithm, accepted: bool) -> None:
    signer = signing_key("ours", kind)
    key = parse_public_key(signer.pem, "cosign.pub")
    assert accepted == key.verify(signer.sign(b"message", algorithm), b"message")


@given(signature=st.binary(max_size=200), kind=st.sampled_from(KINDS))
@settings(max_examples=60)
def test_bytes_that_are_no_signature_are_not_accepted(signature: bytes, kind: str) -> None:
    assert not parse_public_key(signing_key("ours", kind).pem, "cosign.pub").verify(signature, b"message")


def test_the_fingerprint_identifies_the_key_regardless_of_its_file() -> None:
    public = rsa.generate_private_key(65537, 2048).public_key()
    files = [public.public_bytes(*SPKI), public.public_bytes(Encoding.PEM, PublicFormat.PKCS1), signing_key().pem]
    prints = [
        parse_public_key(b"# a comment\n" + data, name).fingerprint for name, data in zip("abc", files, strict=True)
    ]
    assert prints[0] == prints[1] != prints[2]


def _private_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "contains no valid public key"),
        (b"no PEM", "contains no valid public key"),
        (SigningKey().pem * 2, "contains 2 keys or certificates; put each key into its own file"),
        (_private_pem(), "contains a private key, expected a public key; specify cosign.pub"),
        (
            b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
            "contains a private key, expected a public key",
        ),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "extract it: openssl x509 -pubkey"),
        (b"-----BEGIN PGP MESSAGE-----\n", "contains a block PGP MESSAGE, expected PUBLIC KEY"),
        (
            ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(*SPKI),
            "an ECDSA key with the curve secp256k1; expected ECDSA with the curve P-256",
        ),
        (
            rsa.generate_private_key(65537, 1024).public_key().public_bytes(*SPKI),  # noqa: S505
            "an RSA key with 1024 bits; expected 2048 to 16384 bits",
        ),
        (
            ed448.Ed448PrivateKey.generate().public_key().public_bytes(*SPKI),
            "a key of another kind; expected ECDSA",
        ),
    ],
    ids=[
        "damaged",
        "text",
        "two-keys",
        "private",
        "cosign-private",
        "certificate",
        "pgp",
        "curve",
        "short-rsa",
        "ed448",
    ],
)
def test_other_files_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^cosign.pub .*{says}"):
        parse_public_key(data, "cosign.pub")
