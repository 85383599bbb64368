"""The content of a disk after a power cut: a record of file operations, and the states that they allow.

The model is the weakest that POSIX permits. A file has the bytes of its last fsync. Creating, renaming or removing a
name is durable only after a later fsync of the directory; before that it may or may not have happened.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Named:
    """A name in a directory refers to a file or directory, or no longer exists (inode None)."""

    directory: int
    name: str
    inode: int | None
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """An fsync: a file had these bytes, or a directory its names."""

    inode: int
    data: bytes | None = None


class Record:
    """The operations below `top`, in order."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top.stat().st_ino
        self.events: list[Named | Synced] = []
        self._lock = threading.Lock()

    def note(self, *events: Named | Synced) -> None:
        with self._lock:
            self.events += events

    def crash(self, at: int, place: Path, chance: random.Random | None = None) -> None:
        """Create in `place` a state that is possible after the first `at` operations. chance: decides which uncertain
        names exist; None: none of them."""
        done = self.events[:at]
        last = {event.inode: number for number, event in enumerate(done) if isinstance(event, Synced)}
        data = {event.inode: event.data for event in done if isinstance(event, Synced) and event.data is not None}
        names: dict[int, dict[str, Named]] = {}
        for number, event in enumerate(done):
            if isinstance(event, Named) and (
                number < last.get(event.directory, -1) or (chance is not None and chance.random() < 0.5)
            ):
                entries = names.setdefault(event.directory, {})
                entries.pop(event.name, None)
                if event.inode is not None:
                    entries[event.name] = event
        self._make(place, self.root, names, data)

    def _make(self, place: Path, directory: int, names: dict[int, dict[str, Named]], data: dict[int, bytes]) -> None:
        place.mkdir()
        for name, event in names.get(directory, {}).items():
            if event.inode is None:
                continue
            if event.is_directory:
                self._make(place / name, event.inode, names, data)
            else:
                (place / name).write_bytes(data.get(event.inode, b""))


@contextmanager
def recorded(top: Path) -> Iterator[Record]:
    """Record the operations of this process below the existing directory `top`."""
    record = Record(top)
    with pytest.MonkeyPatch.context() as patch:
        for name, wrap in (("open", _open), ("mkdir", _mkdir), ("rename", _rename), ("unlink", _unlink)):
            patch.setattr(os, name, wrap(record, getattr(os, name)))
        patch.setattr(os, "fsync", _fsync(record, os.fsync))
        yield record


def _at(record: Record, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
    """Return the directory's inode and the name in it; None for a path outside of `top`."""
    name = Path(os.fsdecode(path))
    above = Path(f"/proc/self/fd/{dir_fd}").readlink() / name if dir_fd is not None else name.absolute()
    inside = above.parent == record.top or record.top in above.parent.parents
    return (above.parent.stat().st_ino, above.name) if inside else None


def _open(record: Record, real: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        place = _at(record, path, dir_fd) if flags & os.O_CREAT else None
        if place is not None:
            record.note(Named(*place, os.fstat(descriptor).st_ino))
        return descriptor

    return call


def _mkdir(record: Record, real: Callable[..., None]) -> Callable[..., None]:
    def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        place = _at(record, path, dir_fd)
        if place is not None:
            found = os.stat(path, dir_fd=dir_fd)
            record.note(Named(*place, found.st_ino, is_directory=True))

    return call


def _rename(record: Record, real: Callable[..., None]) -> Callable[..., None]:
    def call(src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        before, inode = _at(record, src, src_dir_fd), os.stat(src, dir_fd=src_dir_fd).st_ino
        real(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        after = _at(record, dst, dst_dir_fd)
        record.note(*([Named(*after, inode)] if after else []), *([Named(*before, None)] if before else []))

    return call


def _unlink(record: Record, real: Callable[..., None]) -> Callable[..., None]:
    def call(path: Any, *, dir_fd: int | None = None) -> None:
        place = _at(record, path, dir_fd)
        real(path, dir_fd=dir_fd)
        if place is not None:
            record.note(Named(*place, None))

    return call


def _fsync(record: Record, real: Callable[..., None]) -> Callable[..., None]:
    def call(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        record.note(Synced(os.fstat(descriptor).st_ino, None if path.is_dir() else path.read_bytes()))

    return call
