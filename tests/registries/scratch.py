"""Directories for the storage of registries: in memory if there is enough, because docker-registry syncs often."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = Path("/dev/shm")
_PLENTY = 2 << 30  # bytes; containers often have 64 MiB, which one test can fill
_NAME = "mirror-tests"


def scratch(fallback: Path) -> TemporaryDirectory[str]:
    """Return a new directory in memory, or else below `fallback`; `cleanup` removes it."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < _PLENTY:
        return TemporaryDirectory(dir=fallback, prefix="storage-")
    _remove_those_of_the_dead()
    return TemporaryDirectory(dir=MEMORY, prefix=f"{_NAME}-{os.getpid()}-")


def _remove_those_of_the_dead() -> None:
    """Remove the directories of killed test runs, which take memory."""
    for folder in MEMORY.glob(f"{_NAME}-*-*"):
        owner = folder.name.removeprefix(f"{_NAME}-").partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(OSError):
                shutil.rmtree(folder)
