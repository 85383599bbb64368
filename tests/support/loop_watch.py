"""Watches the event loops of a process: callbacks that keep the loop from all others, and uses by other threads.

The debug mode of asyncio checks the second too, but it also records a traceback for each callback and task, which
doubles the CPU time of a short run. It measures callbacks by a clock that a busy machine stretches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LONGEST = 0.1  # seconds of CPU that one callback may need


def install(note: Callable[[str], None]) -> None:
    """From now on, call `note` after each callback of a loop of this process that needed more. A callback that another
    thread schedules without `call_soon_threadsafe` is a RuntimeError.

    It cannot be undone."""
    import asyncio  # noqa: PLC0415 (few processes that tests start need it)

    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        spent = time.thread_time() - began
        if spent > LONGEST:
            note(f"a callback kept the event loop for {spent:.2f} s of CPU: {handle!r}")

    asyncio.Handle._run = watched  # type: ignore[assignment,method-assign]
    for name in ("call_soon", "call_at"):  # `call_later` uses `call_at`
        setattr(asyncio.BaseEventLoop, name, _checked(getattr(asyncio.BaseEventLoop, name)))


def _checked(schedule: Callable[..., Any]) -> Callable[..., Any]:
    def checked(loop: Any, *arguments: Any, **options: Any) -> Any:
        loop._check_thread()  # as in debug mode
        return schedule(loop, *arguments, **options)

    return checked
