"""Digests: `algorithm:hex`, validated before they are used in URLs or paths.

Grammar and registered algorithms: OCI image-spec v1.1, descriptor.md, "Digests".
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from mirror.errors import Refused, printable

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_KNOWN = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+")


class Hasher(Protocol):
    """The interface of hashlib's hash objects."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash `data` after the bytes that were passed earlier."""
        ...

    def hexdigest(self) -> str:
        """Return the digest of the bytes added so far, in hex."""
        ...

    def copy(self) -> Hasher:
        """Return an independent copy with the same state."""
        ...


class Digest(str):
    """A digest with a supported algorithm, such as `sha256:…`. Untrusted text must be converted with `parse`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Validate `text` and return it as a Digest.

        Raises Refused (ref_invalid) unless it is sha256 or sha512 in lower-case hex of the right length."""
        if isinstance(text, str) and _KNOWN.fullmatch(text):
            return cls(text)
        if isinstance(text, str) and _GRAMMAR.fullmatch(text) and text.split(":")[0] not in _HEX_LENGTH:
            raise Refused(
                f"unsupported digest algorithm: '{printable(text, 80)}'",
                hint="sha256 and sha512 are supported",
                code="ref_invalid",
            )
        raise Refused(
            f"not a digest: '{printable(text, 80)}'",
            hint="expected sha256: and 64 hex digits",
            code="ref_invalid",
        )

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `data`. algorithm: `sha256` or `sha512`."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """The name of the algorithm, such as `sha256`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The hex digits after the colon."""
        return self.partition(":")[2]

    def hasher(self) -> Hasher:
        """Return a new hash object for this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def short(self) -> str:
        """Return the first 12 hex digits, for messages."""
        return self.hex[:12]
