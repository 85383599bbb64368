"""Callbacks that keep an event loop from all others: what they need of the CPU is measured, whatever else it does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

LONGEST = 0.1  # seconds of CPU that one callback may need


def install(note: Callable[[str], None]) -> None:
    """From now on, call `note` after each callback of a loop of this process that needed more; loops are in debug mode.

    It cannot be undone."""
    import asyncio  # noqa: PLC0415 (few processes that tests start need it)

    os.environ["PYTHONASYNCIODEBUG"] = "1"
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        spent = time.thread_time() - began
        if spent > LONGEST:
            note(f"a callback kept the event loop for {spent:.2f} s of CPU: {handle!r}")

    asyncio.Handle._run = watched  # type: ignore[assignment,method-assign]
    # In debug mode asyncio tells of slow callbacks as well, but by a clock that a busy machine stretches.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
