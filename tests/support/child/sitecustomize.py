"""On the module path of the tool in tests: keeps the tool on loopback, and records attempts to leave it.

On request it also records callbacks that block the event loop."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import loop_watch, tripwire


def arm() -> None:
    """Install the tripwire as the environment says, and remove its settings from the environment."""
    file = Path(os.environ.pop("MIRROR_TESTS_TRIPWIRE", os.devnull))
    only = os.environ.pop("MIRROR_TESTS_ONLY", "").split()

    def note(what: str) -> None:
        with file.open("a") as opened:
            opened.write(what + "\n")

    tripwire.install(lambda what: note(f"left loopback: {what}"), only=only)
    if os.environ.pop("MIRROR_TESTS_WATCH_LOOP", ""):
        loop_watch.install(note)


if "MIRROR_TESTS_FORKING" not in os.environ:
    arm()
