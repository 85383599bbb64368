"""Digests: `algorithm:hex`, checked against the grammar before they go anywhere near a URL or a path.

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
    """The part of hashlib's objects that we use."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


class Digest(str):
    """A digest that we can verify; made only by `parse` and `of`. Compares and hashes as its text."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Raises Refused (ref_invalid) for anything but sha256 or sha512 in lower-case hex of the right length."""
        if isinstance(text, str) and _KNOWN.fullmatch(text):
            return cls(text)
        if isinstance(text, str) and _GRAMMAR.fullmatch(text) and text.split(":")[0] not in _HEX_LENGTH:
            raise Refused(
                f"cannot verify the algorithm of digest '{printable(text, 80)}'",
                hint="sha256 and sha512 can be verified",
                code="ref_invalid",
            )
        raise Refused(
            f"not a digest: '{printable(text, 80)}'",
            hint="want sha256: and 64 hex digits",
            code="ref_invalid",
        )

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    def hasher(self) -> Hasher:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def short(self) -> str:
        """For people: enough of the hex to find it again."""
        return self.hex[:12]
