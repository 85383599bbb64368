"""Formats paths of configuration keys for messages: `mirrors[2].tags`, `registries."localhost:5000".rate`."""

from __future__ import annotations

import json
import re
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_WORD = re.compile(r"[A-Za-z_*][A-Za-z0-9_*-]*")
_USERINFO = re.compile(r"[^/]*@")


def format_key_path(path: KeyPath) -> str:
    """Format the path of a configuration key, such as `mirrors[2].tags`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _WORD.fullmatch(part) else quote_key(part)
            text += f".{shown}" if text else shown
    return text


def registry_key(host: str, *keys: str) -> str:
    """Format the path of a configuration key of the registry `host`, such as `registries."ghcr.io".rate`."""
    return format_key_path(("registries", host, *keys))


def quote_key(key: str) -> str:
    """Return a configuration key in double quotes, shortened to at most 80 characters.

    Non-ASCII characters are escaped, and user information in a URL is hidden."""
    safe = _USERINFO.sub("***@", key)
    return json.dumps(safe if len(safe) <= 80 else safe[:79] + "…", ensure_ascii=True)
