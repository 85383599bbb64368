"""report.json for machines and failed.txt for the next run, written as a stream and whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mirror.errors import ConfigError, LocalError, printable
from mirror.output.report.records import OUTCOMES, RESULTS, WAYS, Effort, ImageEntry, Told, Totals, as_json
from mirror.util.files import atomic_write, local_error

SCHEMA = 1
REPORT_NAME = "report.json"
FAILED_NAME = "failed.txt"

_CHUNK = 64 * 1024  # bytes of entries that are collected before they go to disk
_TOLD = 20  # failures that are kept for the summary


class Report(AbstractContextManager["Report"]):
    """Collects one entry for each reference and target. Any thread may `add`; one calls `finish`, once.

    Entries go to an unnamed file in the directory of the report as they come; in memory are sums, and the references
    of what failed."""

    def __init__(
        self,
        directory: Path,
        *,
        run: str,
        started: datetime,
        copy_to: Path | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        """directory: the state's; copy_to: a second place for report.json. Raises LocalError if one is not writable."""
        self.path = directory / REPORT_NAME
        self.failed_path = directory / FAILED_NAME
        self.totals = Totals()
        self.told: list[Told] = []
        self._run = run
        self._started = started
        self._copy_to = _checked(copy_to) if copy_to else None
        self._redact = redact
        self._lock = threading.Lock()
        self._failed: dict[str, None] = {}
        self._chunks = _Chunks(directory)

    def add(self, entry: ImageEntry) -> None:
        """Take an entry. Never raises for the disk: what cannot be stored there stays in memory."""
        error = entry.error
        message = self._redact(printable(error.message, 600)) if error else ""
        hint = self._redact(printable(error.hint, 600)) if error else ""
        line = json.dumps(as_json(entry, f"{message} ({hint})" if hint else message), ensure_ascii=True)
        with self._lock:
            self.totals.add(entry)
            if entry.result == "failed":
                self._failed[entry.source] = None
            if entry.result in ("failed", "conflict") and len(self.told) < _TOLD:
                self.told.append(Told(entry.source, entry.target, entry.result, message or "failed", hint))
        self._chunks.add(line.encode())

    def finish(self, exit_code: int, *, ended: datetime, effort: Effort) -> None:
        """Write report.json, its copy and failed.txt, each whole or not at all. Raises LocalError, after all three
        were tried, if one could not be written."""
        with self._lock:
            head = self._head(exit_code, ended, effort)
            failed = "".join(f"{printable(reference, 2000)}\n" for reference in self._failed)
        errors = []
        for path in (self.failed_path, self.path, self._copy_to):
            try:
                if path == self.failed_path:
                    _write_text(path, failed)
                elif path:
                    self._write(path, head)
            except LocalError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _head(self, exit_code: int, ended: datetime, effort: Effort) -> dict[str, object]:
        totals = self.totals
        head: dict[str, object] = {
            "schema": SCHEMA,
            "run": self._run,
            "started": _timestamp(self._started),
            "ended": _timestamp(max(self._started, ended)),
            "exit": exit_code,
            "totals": {
                "images": {result: totals.images[result] for result in RESULTS},
                "blobs": {outcome: totals.blobs[outcome] for outcome in OUTCOMES},
                "bytes": {way: totals.bytes[way] for way in WAYS},
                "requests": {host: dict(kinds) for host, kinds in effort.requests.items()},
                "retries": effort.retries,
                "waited_seconds": round(effort.waited, 3),
            },
        }
        if effort.retry_after is not None:
            head["retry_after"] = round(effort.retry_after, 3)
        return head

    def _write(self, path: Path, head: dict[str, object]) -> None:
        with atomic_write(path) as out:
            out.write(json.dumps(head, ensure_ascii=True)[:-1].encode())
            out.write(b', "images": [\n')
            self._chunks.copy_to(out)
            out.write(b"\n]}\n")

    def __exit__(self, *_: object) -> None:
        self._chunks.close()


class _Chunks:
    """Lines, kept on disk in the order in which their chunks filled, and joined by commas when copied out."""

    def __init__(self, directory: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise local_error("write to the directory", directory, error) from error
        self._lock = threading.Lock()
        self._open: list[bytes] = []
        self._size = 0
        self._end = 0  # of the part of the file that is given out
        self._full: list[bytes | tuple[int, int]] = []  # in memory, or at an offset with a length

    def add(self, line: bytes) -> None:
        with self._lock:
            self._open.append(line)
            self._size += len(line)
            if self._size < _CHUNK:
                return
            chunk = b",\n".join(self._open)
            self._open, self._size = [], 0
            number, offset = len(self._full), self._end
            self._full.append(chunk)
            self._end += len(chunk)
        if self._store(chunk, offset):
            with self._lock:
                self._full[number] = (offset, len(chunk))

    def _store(self, chunk: bytes, offset: int) -> bool:
        rest = memoryview(chunk)
        with suppress(OSError, ValueError):  # no space, or closed: it stays in memory
            while rest:
                rest = rest[os.pwrite(self._file.fileno(), rest, offset + len(chunk) - len(rest)) :]
        return not rest

    def copy_to(self, out: BinaryIO) -> None:
        first = True
        for chunk in self._stored():
            out.write(chunk if first else b",\n" + chunk)
            first = False

    def _stored(self) -> Iterator[bytes]:
        with self._lock:
            chunks = [*self._full, *([b",\n".join(self._open)] if self._open else [])]
        for chunk in chunks:
            yield chunk if isinstance(chunk, bytes) else self._read(*chunk)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            found = os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise local_error("read back", "the report's entries", error) from error
        if len(found) != length:
            raise LocalError("the report's entries could not be read back", hint="see whether the disk is sound")
        return found

    def close(self) -> None:
        self._file.close()


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _checked(path: Path) -> Path:
    """Where a symbolic link leads to; found out before the work begins whether a file can be made there."""
    real = Path(os.path.realpath(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # of what /dev/stdout is, there is no other name
            raise LocalError(f"cannot write the report to {path}: it is not a regular file", hint="name another file")
    except FileNotFoundError:
        if not real.parent.is_dir():
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise local_error("write the report to", path, missing) from None
    except OSError as error:
        raise local_error("write the report to", path, error) from error
    if not os.access(real.parent, os.W_OK | os.X_OK):
        refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise local_error("write the report to", path, refused)
    return real


def check_copy(path: Path, *, state: Path, used: Iterable[Path]) -> None:
    """A copy of the report must not take the place of what a run reads or keeps. Raises ConfigError.

    state: the directory, of all shards; used: files elsewhere."""
    if str(path) == "-":
        raise ConfigError("--report - names no file", hint="standard output gets the summary; name a file")
    real = Path(os.path.realpath(path))
    if real in {Path(os.path.realpath(one)) for one in used}:
        raise ConfigError(f"--report {path} would replace a file that this run uses", hint="name another file")
    # What is kept there has many names, but of these only the report's own ends so.
    if real.is_relative_to(os.path.realpath(state)) and real.suffix != ".json":
        hint = "name a file elsewhere, or one that ends in .json"
        raise ConfigError(f"--report {path} could replace a file of the state directory", hint=hint)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as out:
        out.write(text.encode())


def read_only_from(path: Path) -> list[str]:
    """The references or patterns of a file for `--only-from`, such as failed.txt: one a line, `#` begins a comment.

    Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}", hint="want references, one a line") from error
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]
