"""Rotation of the log file, by ConcurrentRotatingFileHandler. Imported when the file has reached its size."""

from __future__ import annotations

import os
from io import TextIOWrapper
from pathlib import Path

from concurrent_log_handler import ConcurrentRotatingFileHandler

from mirror.logfile import NEW, regular


def rotate(path: Path, backups: int) -> None:
    """Give the file the name of its first backup, and each backup that of the next; with no backups it is emptied.

    For who holds the log's lock. If a file cannot be renamed, the log grows, which loses nothing."""
    handler = _Handler(path, backupCount=backups, encoding="ascii")
    try:
        handler.doRollover()
    except OSError:
        return
    finally:
        handler.close()


class _Handler(ConcurrentRotatingFileHandler):
    def do_open(self, mode: str | None = None) -> TextIOWrapper:
        """A link or a device that took the file's place is refused."""
        flags = os.O_RDWR | os.O_APPEND | NEW | (os.O_TRUNC if mode == "w" else 0)
        descriptor: int = regular(Path(self.baseFilename), flags)
        file = open(descriptor, "a+", encoding="ascii")  # noqa: SIM115 (its user closes it)
        if isinstance(file, TextIOWrapper):
            return file
        raise TypeError(mode)
