"""Finds threads, child processes, sockets and open files that a test leaves behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Seconds: what ends by itself, such as a server's thread after its client has closed, may need long on a busy machine.
GRACE = float(os.environ.get("MIRROR_TESTS_GRACE", "30"))

# Files that the tools of the test run open at any time.
_TOOLS_FILES = (".coverage", ".hypothesis", ".pytest_cache", "/dev/", "/proc/", "anon_inode:")


@dataclass(frozen=True, slots=True)
class Resources:
    """What this process has open at one moment. descriptors: number -> description."""

    threads: frozenset[threading.Thread] = field(default_factory=frozenset)
    children: frozenset[int] = field(default_factory=frozenset)
    descriptors: frozenset[tuple[int, str]] = field(default_factory=frozenset)

    def __or__(self, other: Resources) -> Resources:
        return Resources(
            self.threads | other.threads, self.children | other.children, self.descriptors | other.descriptors
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.threads - other.threads, self.children - other.children, self.descriptors - other.descriptors
        )

    def describe(self) -> list[str]:
        """Return one line for each thing; empty if there is none."""
        return [
            *(f"thread {thread.name}" for thread in self.threads if thread.is_alive()),
            *(f"process {pid}: {_command(pid)}" for pid in self.children),
            *(f"descriptor {number}: {what}" for number, what in sorted(self.descriptors) if not _is_tools(what)),
        ]


def take() -> Resources:
    """Return what the process has open now."""
    return Resources(frozenset(threading.enumerate()), frozenset(_children()), frozenset(_descriptors()))


def left_since(before: Resources, grace: float = GRACE) -> list[str]:
    """Return what was opened since `before` and is not closed within `grace` seconds. Garbage that closes itself is
    ignored."""
    left = (take() - before).describe()
    end = time.monotonic() + grace
    if left:
        gc.collect()
    while left and time.monotonic() < end:
        time.sleep(0.005)
        left = (take() - before).describe()
    return left


def _children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208  (for every test: twice as fast as pathlib)
        try:
            text = Path(f"/proc/self/task/{task}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
        found += map(int, text.split())
    return found


def _descriptors() -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))  # noqa: PTH115
        except FileNotFoundError:
            continue  # the descriptor used for reading the directory
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "ended, not waited for"


def _is_tools(what: str) -> bool:
    return any(part in what for part in _TOOLS_FILES) and not what.startswith("socket:")
