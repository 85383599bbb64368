"""Reads a configuration file as text. It must be a regular UTF-8 file of at most 1 MiB without control characters."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from mirror.config.problems import ConfigErrors, ConfigProblem, Position
from mirror.errors import ConfigError, LocalError, printable

MAX_BYTES = 1 << 20

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")


def read(path: Path) -> bytes:
    """Return the bytes of a configuration file. This does not block, even if `path` is a FIFO.

    Raises ConfigError if there is no regular file at `path`, ConfigErrors if it is too big, and LocalError if it cannot
    be read."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _read_error(path, error) from error
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            what = f"the configuration is not a regular file: {path} is {kind}"
            raise ConfigError(what, hint="specify the path of a YAML file")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _read_error(path, error) from error
    finally:
        os.close(handle)
    if len(data) > MAX_BYTES:
        message = "too big: a configuration may be at most 1 MiB in size"
        raise ConfigErrors([ConfigProblem(Position(printable(path), 1, 1), "", message)])
    return data


def _read_error(path: Path, error: OSError) -> ConfigError | LocalError:
    """Return the error for a configuration file that cannot be opened or read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ConfigError(f"configuration not found: {path}")
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return ConfigError(f"cannot open the configuration {path}: {reason}")
    return LocalError(f"cannot read the configuration {path}: {reason}")


def decode(data: bytes, file: str) -> str:
    """Decode the content of a configuration file as UTF-8, and remove a byte order mark.

    file: the name of the file, for messages. Raises ConfigErrors for invalid UTF-8 or a control character."""

    def fail(end: int, message: str) -> NoReturn:
        """Raise ConfigErrors with `message` and the position after the first `end` bytes."""
        before = data[:end].decode("utf-8", "replace").removeprefix("\ufeff")
        line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
        raise ConfigErrors([ConfigProblem(Position(file, line + 1, column + 1), "", message)])

    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        fail(error.start, f"not UTF-8 at byte {error.start}; save the file as UTF-8")
    control = _CONTROL.search(text)
    if control:
        fail(
            data.find(control.group().encode("utf-8")),
            f"control character {printable(control.group())} is not allowed in YAML; remove it",
        )
    return text
