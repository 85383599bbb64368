"""Reads public keys from PEM files, and verifies signatures with them.

Only this module uses `cryptography` and PyNaCl. The supported kinds of keys are those in cosign's specification of
signatures, "Signature Schemes".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib.util import find_spec

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from mirror.errors import ConfigError

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384  # verifying a signature with a larger key takes too long

# cosign uses SHA-256 with all keys by default. In its newer format, the size of the hash depends on the curve.
_HASHES: tuple[HashAlgorithm, ...] = (SHA256(), SHA384(), SHA512())
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_WANTED = "expected ECDSA with the curve P-256, P-384 or P-521, RSA, or Ed25519"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC = ("PUBLIC KEY", "RSA PUBLIC KEY")


class PublicKey:
    """A public key that verifies signatures. Thread-safe.

    name: the name of the key's file, for messages. fingerprint: the SHA-256 hash of the key's SubjectPublicKeyInfo, in
    hex."""

    def __init__(self, name: str, fingerprint: str, check: Callable[[bytes, bytes], None]) -> None:
        """Create a key. check: raises InvalidSignature unless a signature of a message is valid."""
        self.name = name
        self.fingerprint = fingerprint
        self._check = check

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether a signature of a message was made with this key."""
        try:
            self._check(signature, message)
        except InvalidSignature:
            return False
        return True


def parse_public_key(data: bytes, name: str) -> PublicKey:
    """Parse a PEM file that contains one public key. Raises ConfigError if it does not contain exactly one valid key.

    data: the content of the file. name: its name. ECDSA and RSA signatures (PKCS #1 v1.5) may use SHA-256, SHA-384 or
    SHA-512. Ed25519 signatures may be made for the message (Ed25519) or for its hash (Ed25519ph)."""
    labels = [label.decode("ascii") for label in _BLOCK.findall(data)]
    if len(labels) > 1:
        raise ConfigError(f"{name} contains {len(labels)} keys or certificates; put each key into its own file")
    if labels and labels[0] not in _PUBLIC:
        raise _wrong_block_error(labels[0], name)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        what = "contains no valid public key; export the key again, for example with `cosign public-key`"
        raise ConfigError(f"{name} {what}") from None
    check: Callable[[bytes, bytes], None]
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise ConfigError(f"{name} contains an ECDSA key with the curve {key.curve.name}; {_WANTED}")
        check = _ecdsa_check(key)
    elif isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            limits = f"expected {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
            raise ConfigError(f"{name} contains an RSA key with {key.key_size} bits; {limits}")
        check = _rsa_check(key)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        if find_spec("nacl") is None:
            how = "pip install 'mirror[ed25519]'"
            raise ConfigError(f"{name} contains an Ed25519 key, which needs the extra `ed25519`: {how}")
        check = _ed25519_check(key)
    else:
        raise ConfigError(f"{name} contains a key of another kind; {_WANTED}")
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(encoded).hexdigest(), check)


def _wrong_block_error(label: str, name: str) -> ConfigError:
    """Return the error for a file with another kind of PEM block. label: the label of the block. name: the file."""
    if label.endswith("PRIVATE KEY"):
        what = "a private key, expected a public key; specify cosign.pub, and do not store the private key here"
    elif label == "CERTIFICATE":
        what = "a certificate, expected a public key; extract it: openssl x509 -pubkey -noout -in FILE"
    else:
        what = f"a block {label}, expected PUBLIC KEY"
    return ConfigError(f"{name} contains {what}")


def _ecdsa_check(key: ec.EllipticCurvePublicKey) -> Callable[[bytes, bytes], None]:
    """Return a function that checks ECDSA signatures."""
    return _check_with_each_hash(lambda signature, message, one: key.verify(signature, message, ec.ECDSA(one)))


def _rsa_check(key: rsa.RSAPublicKey) -> Callable[[bytes, bytes], None]:
    """Return a function that checks RSA signatures (PKCS #1 v1.5)."""
    scheme = padding.PKCS1v15()
    return _check_with_each_hash(lambda signature, message, one: key.verify(signature, message, scheme, one))


def _ed25519_check(key: ed25519.Ed25519PublicKey) -> Callable[[bytes, bytes], None]:
    """Return a function that checks Ed25519 and Ed25519ph signatures (RFC 8032).

    cosign uses Ed25519ph since version 2.4, and used Ed25519 before. `cryptography` supports only the latter."""
    from nacl import bindings, exceptions  # noqa: PLC0415 (installed by the extra `ed25519`)

    raw = key.public_bytes_raw()

    def check(signature: bytes, message: bytes) -> None:
        """Check an Ed25519 signature of the message and, if this fails, an Ed25519ph signature of its hash."""
        try:
            key.verify(signature, message)
        except InvalidSignature:
            if len(signature) != bindings.crypto_sign_BYTES:
                raise
            state = bindings.crypto_sign_ed25519ph_state()
            bindings.crypto_sign_ed25519ph_update(state, message)
            try:
                bindings.crypto_sign_ed25519ph_final_verify(state, signature, raw)
            except exceptions.BadSignatureError:
                raise InvalidSignature from None

    return check


def _check_with_each_hash(check: Callable[[bytes, bytes, HashAlgorithm], None]) -> Callable[[bytes, bytes], None]:
    """Return a function that raises InvalidSignature unless `check` succeeds with one of the allowed hashes."""

    def check_all(signature: bytes, message: bytes) -> None:
        """Try each hash, because a signature does not say which hash it uses."""
        for algorithm in _HASHES:
            try:
                check(signature, message, algorithm)
            except InvalidSignature:
                continue
            return
        raise InvalidSignature

    return check_all
