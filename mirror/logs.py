"""What a run says while it runs: JSON lines in a file for machines, one-liners on standard error for people.

Modules log events with fields on loggers under `mirror`: `log.warning("mount_refused", extra={"repo": …})`; a field
`text` is the sentence for people. A record costs its caller one queue entry; one thread writes. The file may be
shared by several processes.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from mirror.console import Console
from mirror.durable import local_error
from mirror.errors import LocalError
from mirror.logfile import Backlog, LogFile
from mirror.logrecords import LONGEST_FIELD, Lines, People, fields_of
from mirror.redact import Redactor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2  # verbosity: -q, nothing, -v, -vv
MIB = 1024 * 1024

_SHOWN = {QUIET: logging.ERROR, NORMAL: logging.WARNING, VERBOSE: logging.INFO, DEBUG: logging.DEBUG}
_BATCH = 500  # records between two looks at what waits for the file
_GATHER = 0.1  # seconds that a record waits for others: bringing one to the file costs as much as bringing fifty

_log = logging.getLogger("mirror")
_blobs = logging.getLogger("mirror.blob")


def blob_event(
    *,
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
) -> None:
    """Log what became of a blob in a target repository (design §4.4): one line for each that a run dealt with.

    source, target: repositories; image: the reference that it was first needed for; outcome: copied, mounted, exists
    or failed; from_: the repository it was mounted or read from, where not the source; code: of the error."""
    _blobs.log(
        logging.WARNING if outcome == "failed" else logging.INFO,
        "blob",
        extra={
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
        },
    )


class Logs:
    """The open log of a run."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener

    @property
    def trouble(self) -> LocalError | None:
        """Why lines of the file were lost, or nearly so: the run goes on, and ends with this error's exit code.

        Final after the log was closed."""
        return self._listener.trouble

    def flush(self) -> None:
        """Wait until all that was logged is written, for a few seconds at most."""
        self._listener.flush()


@contextmanager
def setup(
    *,
    run: str,
    console: Console,
    redact: Redactor,
    file: Path | None = None,
    level: str = "info",
    max_size: int = 50 * MIB,
    backups: int = 10,
    verbosity: int = NORMAL,
) -> Iterator[Logs]:
    """Take what is logged under `mirror` to `file` (from `level` on) and to `console` (as `verbosity` says).

    run: the id that each line carries; max_size: bytes. At the end all is written, and logging is as it was.
    Raises LocalError, before anything else, if the file cannot be written."""
    backlog = _open_backlog(file, max_size, backups) if file else None
    shown = _SHOWN.get(max(QUIET, min(DEBUG, verbosity)), logging.WARNING)
    lowest = min(LEVELS[level], shown) if file else shown
    filed = file is not None and LEVELS[level] <= logging.WARNING
    listener = _Listener(backlog, LEVELS[level], Lines(run, redact), People(console, shown, redact, filed=filed))
    handler = _Enqueue(listener, lowest)
    with listener, _attached(handler, lowest):
        yield Logs(listener)


def _open_backlog(file: Path, max_size: int, backups: int) -> Backlog:
    return Backlog(LogFile(file, max_size=max_size, backups=backups))


@contextmanager
def _attached(handler: logging.Handler, lowest: int) -> Iterator[None]:
    """`mirror` logs to `handler` and nowhere else; what HTTP libraries log is heard at debug level only."""
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


class _Enqueue(logging.Handler):
    """Puts records on a queue, made independent of the thread that logs them."""

    def __init__(self, listener: _Listener, lowest: int) -> None:
        super().__init__(lowest)
        self._listener = listener

    def createLock(self) -> None:  # noqa: N802 (logging's name)
        self.lock = None  # the queue needs none

    def emit(self, record: logging.LogRecord) -> None:
        if record.args:
            record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.__dict__.update(_told(record.exc_info[1]))
            record.exc_info = None
        self._listener.put(record, soon=record.levelno >= logging.WARNING)


def _told(error: BaseException | None) -> dict[str, object]:
    """An exception as fields; its traceback, without local values, only where debug output is wanted."""
    told: dict[str, object] = {"error": f"{type(error).__name__}: {error}"}
    if _log.isEnabledFor(logging.DEBUG) and error is not None:
        told["traceback"] = "".join(traceback.format_exception(error))[-LONGEST_FIELD:]
    return told


class _Listener:
    """The thread that writes. `with`: started, and joined when all that was queued is written."""

    def __init__(self, backlog: Backlog | None, level: int, lines: Lines, people: People) -> None:
        self._queue: SimpleQueue[logging.LogRecord | threading.Event | None] = SimpleQueue()
        self._soon = threading.Event()  # something on the queue is waited for
        self._full = False  # the last batch was: there is more
        self.trouble: LocalError | None = None
        self._lines = lines
        self._backlog = backlog
        self._level = level
        self._people = people
        self._thread = threading.Thread(target=self._run, name="log", daemon=False)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.put(None)
        self._thread.join()

    def put(self, item: logging.LogRecord | threading.Event | None, *, soon: bool = True) -> None:
        """A record, an event that is set when all before it is written, or the end."""
        self._queue.put(item)
        if soon:
            self._soon.set()

    def flush(self) -> None:
        written = threading.Event()
        self.put(written)
        written.wait(5.0)

    def _run(self) -> None:
        try:
            while self._take():
                self._write(now=False)
        finally:
            self._close()

    def _take(self) -> bool:
        """Take what is queued; wait for the first. False: that was all."""
        behind = self._backlog is not None and self._backlog.waiting > 0
        taken = 0
        try:
            item = self._queue.get(timeout=1.0 if behind else None)  # `__exit__` ends it
            if not self._full:
                self._soon.wait(_GATHER)
            self._soon.clear()
            self._full = False
            while item is not None:
                if isinstance(item, threading.Event):
                    self._write(now=True)
                    item.set()
                else:
                    self._handle(item)
                taken += 1
                if taken == _BATCH:
                    self._full = True
                    return True
                item = self._queue.get_nowait()
        except Empty:
            return True
        return False

    def _handle(self, record: logging.LogRecord) -> None:
        fields = fields_of(record)
        if self._backlog and record.levelno >= self._level:
            self._backlog.add(self._lines.encode(record, fields))
        self._people.tell(record, fields)

    def _write(self, *, now: bool) -> None:
        if not self._backlog:
            return
        self._backlog.write(now=now)
        error = self._backlog.error
        if error and not self.trouble and not isinstance(error, BlockingIOError):
            self._give_up(error)

    def _give_up(self, error: OSError | LocalError) -> None:
        if isinstance(error, OSError):
            error = local_error("write the log file", self._backlog.path if self._backlog else "", error)
        self.trouble = error
        self._people.say("error", f"{error}; the run goes on, and lines of the log may be lost")

    def _close(self) -> None:
        if self._backlog:
            self._write(now=True)
            error = self._backlog.error
            self._backlog.close()
            if self._backlog.lost and not self.trouble:
                self._give_up(error or LocalError("the log file could not be written"))
        self._people.close(self._backlog.lost if self._backlog else 0)
