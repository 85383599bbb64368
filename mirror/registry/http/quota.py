"""Reads the remaining pull quota from the headers of a response.

Source: Docker documentation, "Docker Hub pull usage and limits".
"""

from __future__ import annotations

import re

from mirror.registry.http.headers import Headers
from mirror.util.host_use import Quota

_COUNT = re.compile(r"([0-9]{1,9})(?:;.*)?", re.DOTALL)


def parse_quota(headers: Headers) -> Quota | None:
    """Return the quota that a header such as `ratelimit-remaining: 76;w=21600` states, or None without a valid header.

    The number after `w` is the length of the period for which the quota is granted, in seconds."""
    remaining = _leading_number(headers.get("ratelimit-remaining"))
    return None if remaining is None else Quota(remaining, _leading_number(headers.get("ratelimit-limit")))


def _leading_number(value: str | None) -> int | None:
    """Return the number at the beginning of a header value, or None if there is no such number."""
    found = _COUNT.fullmatch(value) if value is not None else None
    return int(found[1]) if found is not None else None
