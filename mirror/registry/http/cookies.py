"""Cookies, for the v1 protocol alone: the oldest registries know by one of them who was let in.

Each goes back to the origin that set it, and to no other, until the run ends.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from mirror.registry.http.url import Origin

MAX_COOKIES = 50  # of an origin
MAX_BYTES = 4096  # of a cookie

# RFC 6265, "Set-Cookie", cookie-pair; quotes around a value are part of it.
_PAIR = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)="
    r"([\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*|\"[^\"\s;\\]*\")(?=\s*(?:;|$))"
)
_GONE = re.compile(r";\s*max-age\s*=\s*(?:0+|-\d+)\s*(?:;|$)", re.IGNORECASE)


class Cookies:
    """A jar. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jars: dict[Origin, dict[str, str]] = {}

    def header(self, origin: Origin) -> str | None:
        """The Cookie field for a request to `origin`; None: none."""
        with self._lock:
            jar = self._jars.get(origin)
            return "; ".join(f"{name}={value}" for name, value in jar.items()) if jar else None

    def note(self, origin: Origin, fields: Sequence[str]) -> None:
        """The Set-Cookie fields of a response of `origin`. What is no cookie, or too big, is passed over."""
        for field in fields:
            found = _PAIR.match(field)
            if found is None or len(found[0]) > MAX_BYTES:
                continue
            with self._lock:
                jar = self._jars.setdefault(origin, {})
                jar.pop(found[1], None)
                if not _GONE.search(field) and len(jar) < MAX_COOKIES:
                    jar[found[1]] = found[2]

    def __repr__(self) -> str:
        return "Cookies()"  # their values are secrets
