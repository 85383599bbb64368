"""Writes the file of `--trace-http`: one JSON object for each HTTP request and its response."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mirror.output.line_writer import LineWriter
from mirror.output.log_format import JsonFormatter, record_fields
from mirror.output.redaction import Redactor
from mirror.util.files import local_error

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_EXISTING = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

_log = logging.getLogger("mirror")
_exchanges = logging.getLogger("mirror.http.exchange")  # mirror/registry/http/exchange_log.py uses the same name


@contextmanager
def open_trace(path: Path, *, run: str, redact: Redactor) -> Iterator[None]:
    """Return a context manager that writes each HTTP exchange to a file until the `with` block exits.

    The file is replaced. Only its owner may read it. If it cannot be written, one warning is logged, and the run
    continues. Raises LocalError if the file cannot be opened. run: the id of the run."""
    descriptor = _open_private(path)
    formatter = JsonFormatter(run, redact)

    def warn(error: OSError) -> None:
        """Log a warning that the trace is incomplete."""
        text = f"cannot write the trace {path}: {error.strerror}; the run continues without it"
        _log.warning("trace_failed", extra={"path": str(path), "text": text})

    def describe_dropped(count: int) -> str:
        """Return the line that says how many records were dropped."""
        record = _log.makeRecord("mirror", logging.WARNING, "", 0, "requests_dropped", (), None, extra={"count": count})
        return formatter.encode(record, record_fields(record))

    try:
        with LineWriter(descriptor, name="trace", on_error=warn, describe_dropped=describe_dropped) as lines:
            handler = _TraceHandler(lines, formatter)
            level = _exchanges.level
            _exchanges.setLevel(logging.DEBUG)
            _exchanges.addHandler(handler)
            try:
                yield
            finally:
                _exchanges.removeHandler(handler)
                _exchanges.setLevel(level)
    finally:
        os.close(descriptor)


class _TraceHandler(logging.Handler):
    """A logging handler that passes records to a LineWriter."""

    def __init__(self, lines: LineWriter, formatter: JsonFormatter) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines
        self._formatter = formatter

    def createLock(self) -> None:  # noqa: N802 (logging's name)
        """Do nothing. The handler needs no lock, because the LineWriter is thread-safe."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record on the queue of the LineWriter."""
        self._lines.put(partial(self._encode, record))

    def _encode(self, record: logging.LogRecord) -> str:
        """Return the JSON line for a record."""
        return self._formatter.encode(record, record_fields(record))


def _open_private(path: Path) -> int:
    """Create the trace file, or empty it. Only its owner may read it. Pipes and devices are opened as they are.

    Raises LocalError if it cannot be opened, belongs to another user, or is a symbolic link to a regular file."""
    try:
        with suppress(FileExistsError):
            return os.open(path, _NEW, 0o600)
        try:
            descriptor = os.open(path, _EXISTING | os.O_NOFOLLOW)
        except OSError as error:
            # `/dev/stderr` and `/dev/fd/63`, which shells pass, are links to pipes and terminals.
            if error.errno != errno.ELOOP or path.is_file():
                raise
            return os.open(path, _EXISTING)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            try:
                if found.st_uid != os.geteuid():  # root could change the mode, but the owner could change it back
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                os.fchmod(descriptor, 0o600)
                os.ftruncate(descriptor, 0)
            except OSError:
                os.close(descriptor)
                raise
    except OSError as error:
        raise local_error("write", path, error) from error
    return descriptor
