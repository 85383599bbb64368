"""On the path of the tool when tests run it: keeps it on loopback, and tells the test if it tried to leave."""

from __future__ import annotations

import os
from pathlib import Path

from tests import tripwire

_FILE = Path(os.environ.pop("MIRROR_TESTS_TRIPWIRE", os.devnull))
_ONLY = os.environ.pop("MIRROR_TESTS_ONLY", "").split()


def _note(what: str) -> None:
    with _FILE.open("a") as file:
        file.write(what + "\n")


tripwire.install(_note, only=_ONLY)
