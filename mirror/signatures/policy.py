"""The signature policy of a mirror: the keys with which its images must be signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class VerificationKey(Protocol):
    """A key that verifies signatures.

    name: its name in messages. fingerprint: identifies the key, regardless of where it is stored."""

    name: str
    fingerprint: str

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether `signature` is a signature of `message` by this key. Thread-safe."""
        ...


class SignaturePolicy:
    """The signing requirement of a mirror: an image is copied only if it was signed with one of these keys.

    fingerprint: identifies the set of keys. Policies with equal sets have equal fingerprints."""

    def __init__(self, keys: Sequence[VerificationKey]) -> None:
        self.keys = tuple(keys)
        self.fingerprint = frozenset(key.fingerprint for key in keys)

    def find_signer(self, signature: bytes, message: bytes) -> VerificationKey | None:
        """Return the key that made a signature of `message`, or None if none of the keys made it."""
        return next((key for key in self.keys if key.verify(signature, message)), None)
