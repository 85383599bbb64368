"""The signature policy of a mirror: the public keys of which one must have signed each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class VerificationKey(Protocol):
    """A public key that verifies signatures.

    name: the name of the key in messages. fingerprint: identifies the key, regardless of its file."""

    name: str
    fingerprint: str

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether a signature of a message was made with this key. Thread-safe."""
        ...


class SignaturePolicy:
    """The keys of a mirror's signature policy. An image is copied only if it was signed with one of them.

    fingerprint: identifies the set of keys; policies with the same keys have equal fingerprints."""

    def __init__(self, keys: Sequence[VerificationKey]) -> None:
        self.keys = tuple(keys)
        self.fingerprint = frozenset(key.fingerprint for key in keys)

    def find_signer(self, signature: bytes, message: bytes) -> VerificationKey | None:
        """Return the key with which a signature of a message was made, or None if it is not one of these keys."""
        return next((key for key in self.keys if key.verify(signature, message)), None)
