"""How messages name a key of the configuration: `mirrors[2].tags`, `registries."localhost:5000".rate`."""

from __future__ import annotations

import json
import re
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_WORD = re.compile(r"[A-Za-z_*][A-Za-z0-9_*-]*")
_USERINFO = re.compile(r"[^/]*@")


def dotted(path: KeyPath) -> str:
    """The path of a key."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _WORD.fullmatch(part) else key_shown(part)
            text += f".{shown}" if text else shown
    return text


def registry_key(host: str, *keys: str) -> str:
    """A key of what the configuration says of a registry."""
    return dotted(("registries", host, *keys))


def key_shown(key: str) -> str:
    """A key in quotes; letters that only look like ASCII are escaped, user information of a URL is left out."""
    safe = _USERINFO.sub("***@", key)
    return json.dumps(safe if len(safe) <= 80 else safe[:79] + "…", ensure_ascii=True)
