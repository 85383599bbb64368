"""The file that the state is in: found, checked, made, and set aside when it cannot be ours.

Checking only reads, so that a file which is set aside is as it was found, byte for byte.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mirror.errors import LocalError
from mirror.state.database import ADDED, APPLICATION_ID, SCHEMA, VERSION, Database, Trouble, create
from mirror.util.files import local_error

_MAGIC = b"SQLite format 3\0"
_HEADER = 100  # bytes; https://www.sqlite.org/fileformat2.html#the_database_header
_SIDE_FILES = ("-wal", "-shm", "-journal")


def open_database(path: Path, warn: Callable[[str], None]) -> Database:
    """For writing; a file that cannot be ours is set aside first, with a warning, a missing one made (0600), and one of
    an earlier version brought up to this one.

    Raises LocalError."""
    fault = find_fault(path)
    if fault:
        renew(path, fault, warn)
    try:
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
        database = Database(path, write=True)
        try:
            database.upgrade()
        except Trouble:
            database.close()
            raise
        return database
    except OSError as error:
        raise local_error("write", path, error) from error
    except Trouble as error:
        raise refusal(path, error) from error


def renew(path: Path, fault: str, warn: Callable[[str], None]) -> None:
    """Set the file aside, byte for byte, and begin a new one. Raises LocalError."""
    try:
        aside = _set_aside(path)
        _create(path)
    except OSError as error:
        raise local_error("set aside", path, error) from error
    except Trouble as error:
        raise refusal(path, error) from error
    warn(f"the state file {path} {fault}; it was set aside as {aside.name}, and this run will ask more than usual")


def refusal(path: Path, error: Trouble) -> LocalError:
    """`Trouble` as the error of a run."""
    if error.full:
        return LocalError(f"cannot write {path}: {error}", hint="free some space there", code="local_full")
    if error.busy:
        hint = "another program holds it (a backup, a browser): end that, or give this run a `state` of its own"
        return LocalError(f"cannot write {path}: {error}", hint=hint)
    hint = "see whether this user may write to the directory and whether its disk is sound"
    return LocalError(f"cannot write {path}: {error}", hint=hint)


def find_fault(path: Path) -> str | None:
    """Why the file is no state that this version reads, as the end of a sentence; None if it is one, or missing, or
    empty.

    Reads only. Raises LocalError where it cannot be read, or is a link or no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("read", path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LocalError(f"{path} is not a regular file", hint="move it away")
        header = os.read(descriptor, _HEADER)
    except OSError as error:
        raise local_error("read", path, error) from error
    finally:
        os.close(descriptor)
    return (_header_fault(header) or _content_fault(path, _version(header))) if header else None


def _version(header: bytes) -> int:
    return int.from_bytes(header[60:64], "big")


def _header_fault(header: bytes) -> str | None:
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return "is not a database"
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        return "is another program's database"
    version = _version(header)
    known = version == VERSION or version in ADDED
    return None if known else f"is of version {version}, and this program knows none after version {VERSION}"


def _content_fault(path: Path, version: int) -> str | None:
    expected = {name: sql for name, sql in SCHEMA.items() if name not in ADDED.get(version, ())}
    try:
        database = Database(path, write=False)
        try:
            database.marks()
            return None if database.tables() == expected else "has other tables than ours"
        finally:
            database.close()
    except Trouble as error:
        return f"cannot be read ({error})"


def _set_aside(path: Path) -> Path:
    stamp = f"{path.name}.bad-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (path.with_name(f"{stamp}{suffix}") for suffix in ("", *(f".{n}" for n in range(2, 100))))
    aside = next((name for name in names if not os.path.lexists(name)), None)
    if aside is None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    path.rename(aside)
    for suffix in _SIDE_FILES:
        beside = path.with_name(path.name + suffix)
        with suppress(FileNotFoundError):
            if suffix != "-shm" and beside.stat().st_size:
                beside.rename(aside.with_name(aside.name + suffix))
            else:
                beside.unlink()  # nothing in it, or nothing that the others do not have: checking made it
    return aside


def _create(path: Path) -> None:
    """Made under another name, so that a file under ours always has its whole schema."""
    new = path.with_name(f".{path.name}.new")
    for leftover in (new, *(path.with_name(path.name + suffix) for suffix in _SIDE_FILES)):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    create(new)
    new.rename(path)
