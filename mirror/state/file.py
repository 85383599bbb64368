"""Opens, checks and creates the state file. An invalid file is set aside: it is renamed, and a new file is created.

Checks do not modify the file, so a file that is set aside keeps its content byte for byte.
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
from mirror.state.database import Database, DatabaseError, create_schema
from mirror.state.schema import ADDED, APPLICATION_ID, SCHEMA, VERSION
from mirror.util.files import local_error

_MAGIC = b"SQLite format 3\0"
_HEADER = 100  # bytes; https://www.sqlite.org/fileformat2.html#the_database_header
_SIDE_FILES = ("-wal", "-shm", "-journal")


def open_database(path: Path, warn: Callable[[str], None]) -> Database:
    """Open the state file for writing.

    An invalid file is set aside with a warning. A missing file is created (mode 0600). A file of an earlier version is
    upgraded. Raises LocalError."""
    fault = find_fault(path)
    if fault:
        replace_file(path, fault, warn)
    try:
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
        database = Database(path, write=True)
        try:
            database.upgrade()
        except DatabaseError:
            database.close()
            raise
        return database
    except OSError as error:
        raise local_error("write", path, error) from error
    except DatabaseError as error:
        raise state_error(path, error) from error


def replace_file(path: Path, fault: str, warn: Callable[[str], None]) -> None:
    """Set an invalid state file aside, create a new one, and warn. Raises LocalError.

    fault: the reason, for the warning, such as `is not a database`."""
    try:
        aside = _set_aside(path)
        _create(path)
    except OSError as error:
        raise local_error("set aside", path, error) from error
    except DatabaseError as error:
        raise state_error(path, error) from error
    warn(
        f"the state file {path} {fault}; it was set aside as {aside.name}, and this run sends more requests than usual"
    )


def state_error(path: Path, error: DatabaseError) -> LocalError:
    """Convert a DatabaseError to a LocalError with the path of the state file and a hint."""
    if error.full:
        return LocalError(f"cannot write {path}: {error}", hint="free some space on this disk", code="local_full")
    if error.busy:
        hint = "another program has locked the file: end that program, or set `state` to another directory"
        return LocalError(f"cannot write {path}: {error}", hint=hint)
    hint = "check that this user may write to the directory, and check the disk for errors"
    return LocalError(f"cannot write {path}: {error}", hint=hint)


def find_fault(path: Path) -> str | None:
    """Return the reason why the state file is invalid, such as `is not a database`, or None if it can be used.

    A missing or empty file can be used. The file is not modified. Raises LocalError if the file cannot be read, is a
    link, or is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("read", path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LocalError(f"the state file {path} is not a regular file", hint="move it to another directory")
        header = os.read(descriptor, _HEADER)
    except OSError as error:
        raise local_error("read", path, error) from error
    finally:
        os.close(descriptor)
    return (_header_fault(header) or _content_fault(path, _version(header))) if header else None


def _version(header: bytes) -> int:
    """Return the schema version in the header of the state file."""
    return int.from_bytes(header[60:64], "big")


def _header_fault(header: bytes) -> str | None:
    """Return the reason why the header of the state file is invalid, or None if it is valid."""
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return "is not a database"
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        return "is another program's database"
    version = _version(header)
    known = version == VERSION or version in ADDED
    return None if known else f"has version {version}; this program supports versions up to {VERSION}"


def _content_fault(path: Path, version: int) -> str | None:
    """Return the reason why the content of the state file is invalid, or None if it is valid."""
    expected = {name: sql for name, sql in SCHEMA.items() if name not in ADDED.get(version, ())}
    try:
        database = Database(path, write=False)
        try:
            database.unfinished_repositories()
            return None if database.tables() == expected else "does not have the tables of a state file"
        finally:
            database.close()
    except DatabaseError as error:
        return f"cannot be read ({error})"


def _set_aside(path: Path) -> Path:
    """Rename the state file, and SQLite's `-wal` and `-journal` files unless they are empty. Return the new path.

    Raises OSError."""
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
                beside.unlink()  # it has no data, because it was created when the file was opened for the check
    return aside


def _create(path: Path) -> None:
    """Create a state file under a temporary name, and rename it, so that no incomplete file ever exists at `path`.

    Raises OSError, DatabaseError."""
    new = path.with_name(f".{path.name}.new")
    for leftover in (new, *(path.with_name(path.name + suffix) for suffix in _SIDE_FILES)):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    create_schema(new)
    new.rename(path)
