"""The log of a run: JSON lines in a file for programs, and short human-readable lines on standard error.

Modules log events with fields to loggers below `mirror`: `log.warning("mount_refused", extra={"repo": …})`. The field
`text` is the human-readable message. The calling thread only puts the record on a queue, and another thread writes
it. Several processes may share the file.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from mirror.errors import STOPPED, LocalError
from mirror.output.console import Console
from mirror.output.log_file import LOCK_TIMEOUT, Backlog, LogFile, LogLocked
from mirror.output.log_format import LONGEST_FIELD, ConsolePrinter, JsonFormatter, record_fields
from mirror.output.redaction import Redactor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2  # verbosity levels: -q, no option, -v, -vv
MIB = 1024 * 1024

_SHOWN = {QUIET: logging.WARNING, NORMAL: logging.WARNING, VERBOSE: logging.INFO, DEBUG: logging.DEBUG}
_BATCH = 500  # the maximum number of records between two writes to the file
_FLUSH = 5.0  # maximum seconds that `flush` waits: another process may hold the file's lock
_MORE = 0.5  # seconds for the last attempt to write after the wait for the lock has ended
_GATHER = 0.1  # seconds to wait for further records: writing one costs as much as writing fifty

_log = logging.getLogger("mirror")
_blobs = logging.getLogger("mirror.blob")


def log_blob(
    *,
    is_root: bool = False,
    source: str,
    target: str,
    image: str,
    digest: str,
    size: int | None,
    outcome: str,
    from_: str | None = None,
    bytes_read: int = 0,
    bytes_sent: int = 0,
    attempt: int = 1,
    seconds: float = 0.0,
    code: str | None = None,
) -> dict[str, object]:
    """Log the result for one blob or manifest in one target repository, and return the fields of the record.

    A run logs each result only once.

    is_root: whether it is the manifest that a tag refers to; the event is then `manifest` instead of `blob`.
    source, target: repositories. image: the first reference that needed the blob.
    outcome: copied, mounted, exists or failed. code: the code of the error.
    from_: the repository that the blob was mounted or read from, if that is not the source."""
    fields: dict[str, object] = {
        "source": source,
        "target": target,
        "image": image,
        "digest": digest,
        "size": size,
        "outcome": outcome,
        "from": from_,
        "bytes_read": bytes_read,
        "bytes_sent": bytes_sent,
        "attempt": attempt,
        "seconds": round(seconds, 3),
        "code": code,
    }
    level = logging.WARNING if outcome == "failed" and code not in STOPPED else logging.INFO
    _blobs.log(level, "manifest" if is_root else "blob", extra=fields)
    return fields


class RunLog:
    """A handle for the open log of a run, to flush it and to check whether lines were lost."""

    def __init__(self, listener: _LogWriter) -> None:
        self._listener = listener

    @property
    def failure(self) -> LocalError | None:
        """The error that caused lines of the log file to be lost or delayed, or None if there was none.

        The run continues, and exits with the error's code. After `finish`, the value covers all records so far. For
        later records, it is complete when the log is closed."""
        return self._listener.failure

    def flush(self) -> None:
        """Wait until all records logged so far have been written, for at most a few seconds."""
        self._listener.flush(_FLUSH)

    def finish(self, within: float = _FLUSH) -> None:
        """Write all remaining records at the end of the run. Set `failure` if lines were lost or cannot be written.

        within: the number of seconds after which writes wait only briefly for the file's lock."""
        self._listener.finish(within)


@contextmanager
def open_log(
    *,
    run: str,
    console: Console,
    redact: Redactor,
    file: Path | None = None,
    level: str = "info",
    max_size: int = 50 * MIB,
    backups: int = 10,
    verbosity: int = NORMAL,
    complete: Callable[[str], str] = str,
) -> Iterator[RunLog]:
    """Return a context manager that logs to `file` (from `level` on) and to `console` (depending on `verbosity`).

    When the `with` block exits, all records are written, and the configuration of logging is restored. Raises
    LocalError on entry if the file cannot be written.
    run: the id of the run, which every line in the file contains. max_size: the size in bytes at which the file is
    rotated. backups: the number of rotated files to keep. complete: completes the commands in a message."""
    backlog = Backlog(LogFile(file, max_size=max_size, backups=backups)) if file else None
    shown = _SHOWN.get(max(QUIET, min(DEBUG, verbosity)), logging.WARNING)
    lowest = min(LEVELS[level], shown) if file else shown
    in_file = file is not None and LEVELS[level] <= logging.WARNING
    listener = _LogWriter(
        backlog,
        LEVELS[level],
        JsonFormatter(run, redact),
        ConsolePrinter(console, shown, redact, in_file=in_file),
        complete,
    )
    handler = _QueueHandler(listener, lowest)
    with listener, _attach_handler(handler, lowest):
        yield RunLog(listener)


@contextmanager
def _attach_handler(handler: logging.Handler, lowest: int) -> Iterator[None]:
    """Return a context manager that sends the records of `mirror` only to `handler` until the `with` block exits.

    At debug level, the records of HTTP libraries are sent to it as well. At other levels, they are dropped."""
    changed = [_log, logging.getLogger("urllib3"), logging.getLogger("requests")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in changed]
    for logger in changed:
        logger.propagate = False
        silent = logger is not _log and lowest > logging.DEBUG
        logger.setLevel(logging.CRITICAL + 1 if silent else lowest)
        logger.handlers[:] = [handler]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers


class _QueueHandler(logging.Handler):
    """A logging handler that puts records on the queue of a _LogWriter."""

    def __init__(self, listener: _LogWriter, lowest: int) -> None:
        super().__init__(lowest)
        self._listener = listener

    def createLock(self) -> None:  # noqa: N802 (logging's name)
        """Do nothing. The handler needs no lock, because the queue is thread-safe."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record's message and exception, and put it on the queue."""
        if record.args:
            record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.__dict__.update(_exception_fields(record.exc_info[1]))
            record.exc_info = None
        self._listener.put(record, soon=record.levelno >= logging.WARNING)


def _exception_fields(error: BaseException | None) -> dict[str, object]:
    """Return the fields that describe an exception. The traceback is included at debug level only."""
    fields: dict[str, object] = {"error": f"{type(error).__name__}: {error}"}
    if _log.isEnabledFor(logging.DEBUG) and error is not None:
        fields["traceback"] = "".join(traceback.format_exception(error))[-LONGEST_FIELD:]
    return fields


class _FlushMarker:
    """A marker in the queue of log records. The event `reached` is set when all records before it are processed.

    last: whether it is a failure if lines cannot be written at that point."""

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.reached = threading.Event()


class _LogWriter:
    """Writes queued log records to the file and the console on a separate thread.

    As a context manager, it starts the thread. When the `with` block exits, all records are written and the thread is
    joined."""

    def __init__(
        self,
        backlog: Backlog | None,
        level: int,
        lines: JsonFormatter,
        printer: ConsolePrinter,
        complete: Callable[[str], str],
    ) -> None:
        self._queue: SimpleQueue[logging.LogRecord | _FlushMarker | None] = SimpleQueue()
        self._soon = threading.Event()  # the queue has an item that should be written at once
        self._full = False  # the last batch was full: the queue has more
        self.failure: LocalError | None = None
        self._lines = lines
        self._backlog = backlog
        self._level = level
        self._printer = printer
        self._complete = complete
        self._thread = threading.Thread(target=self._run, name="log", daemon=False)

    def __enter__(self) -> _LogWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._backlog:
            self._backlog.limit_lock_waits(LOCK_TIMEOUT)
        self.put(None)
        self._thread.join()

    def put(self, item: logging.LogRecord | _FlushMarker | None, *, soon: bool = True) -> None:
        """Queue a record, a marker, or None to end the thread. soon: whether not to wait for further records first."""
        self._queue.put(item)
        if soon:
            self._soon.set()

    def flush(self, within: float) -> None:
        """Wait until all records that were queued so far are written, for `within` seconds at most."""
        self._wait_for(_FlushMarker(last=False), within)

    def finish(self, within: float) -> None:
        """Flush the log at the end of the run. After `within` seconds, writes wait only briefly for the file's lock."""
        if self._backlog:
            self._backlog.limit_lock_waits(within)
        self._wait_for(_FlushMarker(last=True), within + _MORE)

    def _wait_for(self, mark: _FlushMarker, within: float) -> None:
        """Queue a marker and wait until all records before it are written, for `within` seconds at most."""
        self.put(mark)
        mark.reached.wait(within)

    def _run(self) -> None:
        """Process the queue until the log is closed. Runs on the thread of the writer."""
        try:
            while self._process_queue():
                self._write()
        finally:
            self._close()

    def _process_queue(self) -> bool:
        """Wait for an item, and process a batch of queued items. Return False if the log has been closed."""
        waiting = self._backlog is not None and not self._backlog.is_empty
        handled = 0
        try:
            item = self._queue.get(timeout=1.0 if waiting else None)  # `__exit__` ends an unlimited wait
            if not self._full:
                self._soon.wait(_GATHER)
            self._soon.clear()
            self._full = False
            while item is not None:
                if isinstance(item, _FlushMarker):
                    self._write(force=True, last=item.last)
                    item.reached.set()
                else:
                    self._process_record(item)
                handled += 1
                if handled == _BATCH:
                    self._full = True
                    return True
                item = self._queue.get_nowait()
        except Empty:
            return True
        return False

    def _process_record(self, record: logging.LogRecord) -> None:
        """Buffer the line of a record for the file, and print the record on the console."""
        fields = record_fields(record)
        if "text" in fields:
            fields["text"] = self._complete(str(fields["text"]))
        if self._backlog and record.levelno >= self._level:
            self._backlog.add(self._lines.encode(record, fields))
        self._printer.print_record(record, fields)

    def _write(self, *, force: bool = False, last: bool = False) -> None:
        """Write the buffered lines to the file.

        force: whether to write even if the last write has just failed. last: whether this is the last write of the run.
        If another process holds the file's lock, this sets `failure` only if lines are lost, or if they are still
        buffered after the last write."""
        backlog = self._backlog
        if not backlog:
            return
        backlog.write(force=force)
        is_temporary = isinstance(backlog.error, LogLocked) and not last
        if self.failure is None and (backlog.lost or (backlog.error and not is_temporary)):
            self.failure = backlog.cause or LocalError(
                "the log file could not be written as fast as records were logged"
            )
            but = "" if last else "the run continues, and "
            self._printer.print_line("error", f"{self.failure}; {but}lines of the log may be lost")

    def _close(self) -> None:
        """Write the remaining lines, close the file, and print how many lines were lost."""
        lost = 0
        if self._backlog:
            self._write(force=True, last=True)
            self._backlog.close()
            lost = self._backlog.lost
        self._printer.close(lost)
