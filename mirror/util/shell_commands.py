"""Commands in messages: paths as their arguments, and the path of the configuration instead of the word CONFIG."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mirror.errors import printable

_WORD = "CONFIG"
_SYNC = re.compile(rf"(?<=`)mirror sync((?: --\w+)?) {_WORD}\b")
_CONFIG = re.compile(rf"(?<=`)(mirror [^`]*?)\b{_WORD}\b")


def insert_path(text: str, config: Path | None) -> str:
    """Replace the word CONFIG in commands by the path of the configuration, so that the commands can be run.

    Without a configuration, the commands are those for `mirror copy`. A text must be passed to this function only once,
    because a path may contain the word as well."""
    if _WORD not in text:
        return text
    if config is None:
        return _SYNC.sub(lambda found: f"mirror copy{found[1]} SOURCE TARGET", text)
    path = quote_path(config)
    return _CONFIG.sub(lambda found: f"{found[1]}{path}", text)


def quote_path(path: Path | str) -> str:
    """Quote a path as one argument of a shell command. A path that begins with `-` is changed to begin with `./`."""
    name = printable(path, 4096)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
