"""Cookies, which are used only with the v1 protocol: the oldest registries recognize a logged-in client by a cookie.

A cookie is kept until the end of the run. It is sent only to the origin that set it, and only for repositories that
have the same credentials as the repository for which it was set.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from mirror.registry.http.url import Origin

MAX_COOKIES = 50  # per origin
MAX_BYTES = 4096  # bytes of a cookie

# The cookie-pair of RFC 6265, 4.1.1. Quotes around a value are part of the value.
_PAIR = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)="
    r"([\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*|\"[^\"\s;\\]*\")(?=\s*(?:;|$))"
)
_EXPIRED = re.compile(r";\s*max-age\s*=\s*(?:0+|-\d+)\s*(?:;|$)", re.IGNORECASE)


class CookieJar:
    """The cookies that each origin has set in this run. Thread-safe.

    `login_path` is the path in the configuration whose credentials a request uses, or an empty string if it uses those
    of the host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jars: dict[tuple[Origin, str], dict[str, str]] = {}

    def header(self, origin: Origin, login_path: str = "") -> str | None:
        """Return the value of the Cookie header for a request to `origin`, or None if there are no cookies."""
        with self._lock:
            jar = self._jars.get((origin, login_path))
            return "; ".join(f"{name}={value}" for name, value in jar.items()) if jar else None

    def store(self, origin: Origin, fields: Sequence[str], login_path: str = "") -> None:
        """Store the cookies that a response from `origin` sets, and remove the cookies that it expires.

        `fields` are the values of its Set-Cookie headers. Invalid cookies, cookies larger than MAX_BYTES and new
        cookies after the first MAX_COOKIES are ignored."""
        for field in fields:
            pair = _PAIR.match(field)
            if pair is None or len(pair[0]) > MAX_BYTES:
                continue
            with self._lock:
                jar = self._jars.setdefault((origin, login_path), {})
                jar.pop(pair[1], None)
                if not _EXPIRED.search(field) and len(jar) < MAX_COOKIES:
                    jar[pair[1]] = pair[2]

    def __repr__(self) -> str:
        return "CookieJar()"  # the values are secrets
