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

from mirror.errors import Cancelled, LocalError
from mirror.output.console import Console
from mirror.output.log_file import PATIENCE, Backlog, LogFile, LogLocked
from mirror.output.log_format import LONGEST_FIELD, Lines, People, fields_of
from mirror.output.redaction import Redactor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2  # verbosity: -q, nothing, -v, -vv
MIB = 1024 * 1024

_SHOWN = {QUIET: logging.ERROR, NORMAL: logging.WARNING, VERBOSE: logging.INFO, DEBUG: logging.DEBUG}
_BATCH = 500  # records between two looks at what waits for the file
_FLUSH = 5.0  # seconds: a write may wait for the file's lock, and what is waited for comes after it
_MORE = 0.5  # seconds for a last try when the lock is waited for no longer
_GATHER = 0.1  # seconds that a record waits for others: bringing one to the file costs as much as bringing fifty

_log = logging.getLogger("mirror")
_blobs = logging.getLogger("mirror.blob")


def blob_event(
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
) -> None:
    """Log what became of a blob or child manifest in a target repository: one line for each that a run dealt with.

    is_root: it is the manifest that a tag names, whose event is `manifest`; source, target: repositories; image: the
    reference that it was first needed for; outcome: copied, mounted, exists or failed; from_: the repository it was
    mounted or read from, where not the source; code: of the error."""
    _blobs.log(
        logging.WARNING if outcome == "failed" and code != Cancelled.code else logging.INFO,
        "manifest" if is_root else "blob",
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

        Known when the log was settled; of what is logged after that, when it was closed."""
        return self._listener.trouble

    def flush(self) -> None:
        """Wait until all that was logged is written, for a few seconds at most."""
        self._listener.flush(_FLUSH)

    def settle(self, within: float = _FLUSH) -> None:
        """As `flush`, when the run is over: what was lost, or cannot be written now, is `trouble`.

        within: seconds for which the file's lock is waited for, from now until the log is closed."""
        self._listener.settle(within)


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
    backlog = Backlog(LogFile(file, max_size=max_size, backups=backups)) if file else None
    shown = _SHOWN.get(max(QUIET, min(DEBUG, verbosity)), logging.WARNING)
    lowest = min(LEVELS[level], shown) if file else shown
    filed = file is not None and LEVELS[level] <= logging.WARNING
    listener = _Listener(backlog, LEVELS[level], Lines(run, redact), People(console, shown, redact, filed=filed))
    handler = _Enqueue(listener, lowest)
    with listener, _attached(handler, lowest):
        yield Logs(listener)


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


class _Mark:
    """Passed when all before it was taken to the file. last: what is not there then may be lost."""

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.passed = threading.Event()


class _Listener:
    """The thread that writes. `with`: started, and joined when all that was queued is written."""

    def __init__(self, backlog: Backlog | None, level: int, lines: Lines, people: People) -> None:
        self._queue: SimpleQueue[logging.LogRecord | _Mark | None] = SimpleQueue()
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
        if self._backlog:
            self._backlog.limit_patience(PATIENCE)
        self.put(None)
        self._thread.join()

    def put(self, item: logging.LogRecord | _Mark | None, *, soon: bool = True) -> None:
        """A record, a mark to be passed, or the end."""
        self._queue.put(item)
        if soon:
            self._soon.set()

    def flush(self, within: float) -> None:
        self._wait_for(_Mark(last=False), within)

    def settle(self, within: float) -> None:
        if self._backlog:
            self._backlog.limit_patience(within)
        self._wait_for(_Mark(last=True), within + _MORE)

    def _wait_for(self, mark: _Mark, within: float) -> None:
        self.put(mark)
        mark.passed.wait(within)

    def _run(self) -> None:
        try:
            while self._take():
                self._write(now=False)
        finally:
            self._close()

    def _take(self) -> bool:
        """Take what is queued; wait for the first. False: that was all."""
        behind = self._backlog is not None and not self._backlog.is_empty
        taken = 0
        try:
            item = self._queue.get(timeout=1.0 if behind else None)  # `__exit__` ends it
            if not self._full:
                self._soon.wait(_GATHER)
            self._soon.clear()
            self._full = False
            while item is not None:
                if isinstance(item, _Mark):
                    self._write(now=True, last=item.last)
                    item.passed.set()
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

    def _write(self, *, now: bool, last: bool = False) -> None:
        """A lock that another process holds is trouble only if lines are lost by it, or still wait at the `last`."""
        backlog = self._backlog
        if not backlog:
            return
        backlog.write(now=now)
        passes = isinstance(backlog.error, LogLocked) and not last
        if self.trouble is None and (backlog.lost or (backlog.error and not passes)):
            self.trouble = backlog.cause or LocalError("the log file could not be written as fast as lines came")
            but = "" if last else "the run goes on, and "
            self._people.say("error", f"{self.trouble}; {but}lines of the log may be lost")

    def _close(self) -> None:
        lost = 0
        if self._backlog:
            self._write(now=True, last=True)
            self._backlog.close()
            lost = self._backlog.lost
        self._people.close(lost)
