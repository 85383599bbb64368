"""Writes report.json for programs and failed.txt for the next run, each completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from mirror.errors import ConfigError, LocalError, printable
from mirror.output.report.causes import Causes
from mirror.output.report.changes import Changes
from mirror.output.report.document import REPORT_NAME, ReportDocument
from mirror.output.report.failure_ages import FailureAges
from mirror.output.report.records import (
    BYTE_COUNTS,
    OUTCOMES,
    PRUNE_RESULTS,
    RESULTS,
    FailedImage,
    Failure,
    ImageEntry,
    RunCost,
    Totals,
    entry_fields,
    timestamp,
)
from mirror.util.files import atomic_write, local_error
from mirror.util.structs import convert, replace, to_builtins

SCHEMA = 1
PRUNE_REPORT_NAME = "prune-report.json"
FAILED_NAME = "failed.txt"

_CHUNK = 64 * 1024  # bytes of entries that are collected before they are written to disk


class Report(AbstractContextManager["Report"]):
    """The report of a run. Collects one entry for each reference and target, and writes them to files at the end.

    Any thread may call `add`. One thread then calls `finish`, which replaces the files if it is called again. Until
    then, the entries are stored in an unnamed file in the directory of the report. Only the totals, the causes of
    failures, the first changes and the references of failed images are kept in memory."""

    def __init__(
        self,
        directory: Path,
        *,
        run: str,
        started: datetime,
        copy_to: Path | None = None,
        redact: Callable[[str], str] = str,
        command: str = "sync",
        keep_changes: bool = False,
        ages: FailureAges | None = None,
        list_unchanged: bool = True,
        complete: Callable[[str], str] = str,
    ) -> None:
        """Create an empty report. Raises LocalError if `directory` or `copy_to` is not writable.

        directory: the state directory. copy_to: the path for a copy of report.json. redact: removes secrets. command:
        the command whose results the report contains. The report of `prune` has another name, and there is no
        failed.txt. keep_changes: whether to keep all changed images in memory for the summary, and not only the first
        ones. ages: determines since when images have been failing. list_unchanged: whether `images` contains images
        that were up to date. complete: completes the commands in messages and hints in report.json."""
        is_prune = command == "prune"
        self.path = directory / (PRUNE_REPORT_NAME if is_prune else REPORT_NAME)
        self.failed_path: Path | None = None if is_prune else directory / FAILED_NAME
        self.totals = Totals()
        self.causes = Causes()
        self.changes = Changes(keep_all=keep_changes)
        self._run = run
        self._started = started
        self._copy_to = resolve_writable(copy_to, "write the report to") if copy_to else None
        self._redact = redact
        self._complete = complete
        self._ages = ages
        self._list_unchanged = list_unchanged
        self._lock = threading.Lock()
        self._failed: dict[str, None] = {}
        self._command = command
        self._chunks = _EntryFile(directory)

    @classmethod
    def at(
        cls,
        path: Path,
        *,
        run: str,
        started: datetime,
        redact: Callable[[str], str],
        command: str,
        complete: Callable[[str], str],
    ) -> Report:
        """Create an empty report that is written only to the file `path`. Raises LocalError if it is not writable."""
        real = resolve_writable(path, "write the report to")
        report = cls(real.parent, run=run, started=started, redact=redact, command=command, complete=complete)
        report.path, report.failed_path = real, None
        return report

    def add(self, entry: ImageEntry) -> None:
        """Add an entry to the report. Disk errors are not raised: if writing the entry fails, it stays in memory."""
        if entry.error is not None:
            more = tuple(self._redact_failure(failure) for failure in entry.more_errors)
            entry = replace(entry, error=self._redact_failure(entry.error), more_errors=more)
        with self._lock:
            since = self._ages.record(entry) if self._ages is not None else None
            self.totals.add(entry)
            self.changes.add(entry)
            if entry.result == "failed":
                self._failed[entry.source] = None
            if entry.result in ("failed", "conflict"):
                failure = entry.error or Failure("error", "failed")
                self.causes.add(FailedImage(entry.source, entry.target, entry.result, failure, entry.is_image))
        if self._list_unchanged or entry.result != "up-to-date":
            self._chunks.add(json.dumps(entry_fields(entry, since, self._complete), ensure_ascii=True).encode())

    def _redact_failure(self, failure: Failure) -> Failure:
        """Return a copy of a failure whose texts are printable and contain no secrets."""
        message, hint, account = (
            self._redact(printable(text, 600)) for text in (failure.message, failure.hint, failure.account)
        )
        return replace(failure, message=message, hint=hint, account=account)

    def finish(
        self, exit_code: int, *, ended: datetime, cost: RunCost, deadline_reached: bool = False
    ) -> ReportDocument:
        """Write report.json, its copy and failed.txt, each completely or not at all. Return the report without images.

        deadline_reached: whether `--deadline` ended the run. If one of the files cannot be written, this still writes
        the others, and then raises LocalError."""
        with self._lock:
            fields = self._fields_before_images(exit_code, ended, cost)
            if deadline_reached:
                fields["deadline_reached"] = True
            failed = "".join(f"{printable(reference, 2000)}\n" for reference in sorted(self._failed))
        errors = []
        for path in (self.failed_path, self.path, self._copy_to):
            try:
                if path is None:
                    continue
                if path == self.failed_path:
                    _write_text(path, failed)
                else:
                    self._write_report(path, fields)
            except LocalError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return convert(fields, ReportDocument)

    def totals_fields(self, cost: RunCost) -> dict[str, object]:
        """Return the JSON object `totals` of the report. Call this when all entries have been added."""
        totals, results = self.totals, PRUNE_RESULTS if self._command == "prune" else RESULTS
        return {
            "images": {result: totals.images[result] for result in results},
            "blobs": {outcome: totals.blobs[outcome] for outcome in OUTCOMES},
            "bytes": {way: totals.bytes[way] for way in BYTE_COUNTS},
            "requests": {host: dict(kinds) for host, kinds in cost.requests.items()},
            "retries": cost.retries,
            "waited_seconds": round(cost.waited, 3),
            "mirrors": {name: {one: counts[one] for one in RESULTS} for name, counts in totals.mirrors.items()},
        }

    def _fields_before_images(self, exit_code: int, ended: datetime, cost: RunCost) -> dict[str, object]:
        """Return all fields of report.json except `images`, which are written before it."""
        fields: dict[str, object] = {
            "schema": SCHEMA,
            "command": self._command,
            "run": self._run,
            "started": timestamp(self._started),
            "ended": timestamp(max(self._started, ended)),
            "exit": exit_code,
            "totals": self.totals_fields(cost),
            "hosts": {host: to_builtins(use) for host, use in cost.hosts.items()},
        }
        if cost.retry_after is not None:
            fields["retry_after"] = round(cost.retry_after, 3)
        return fields

    def _write_report(self, path: Path, fields: dict[str, object]) -> None:
        """Write the content of report.json to `path`. Raises LocalError if that fails. fields: all except `images`."""
        with atomic_write(path) as out:
            out.write(json.dumps(fields, ensure_ascii=True)[:-1].encode())
            out.write(b', "images": [\n')
            self._chunks.copy_to(out)
            out.write(b"\n]}\n")

    def __exit__(self, *_: object) -> None:
        self._chunks.close()


class _EntryFile:
    """A temporary file for the entries of a report, with one JSON object per line. Thread-safe.

    Lines are collected in memory and written to the file in chunks. `copy_to` separates them with commas."""

    def __init__(self, directory: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise local_error("write to the directory", directory, error) from error
        self._lock = threading.Lock()
        self._open: list[bytes] = []
        self._size = 0
        self._end = 0  # the offset after the last chunk in the file
        self._full: list[bytes | tuple[int, int]] = []  # each chunk, or its offset and length in the file

    def add(self, line: bytes) -> None:
        """Add a line to the current chunk. If the chunk is then large enough, write it to the file."""
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
        if self._write_chunk(chunk, offset):
            with self._lock:
                self._full[number] = (offset, len(chunk))

    def _write_chunk(self, chunk: bytes, offset: int) -> bool:
        """Write a chunk to the file at `offset`. Return whether this succeeded."""
        rest = memoryview(chunk)
        with suppress(OSError, ValueError):  # no space, or the file is closed: the chunk stays in memory
            while rest:
                rest = rest[os.pwrite(self._file.fileno(), rest, offset + len(chunk) - len(rest)) :]
        return not rest

    def copy_to(self, out: BinaryIO) -> None:
        """Write all lines to `out`, separated by commas. Raises LocalError if they cannot be read back."""
        first = True
        for chunk in self._read_chunks():
            out.write(chunk if first else b",\n" + chunk)
            first = False

    def _read_chunks(self) -> Iterator[bytes]:
        """Yield all chunks in order. Raises LocalError if a chunk cannot be read back."""
        with self._lock:
            chunks = [*self._full, *([b",\n".join(self._open)] if self._open else [])]
        for chunk in chunks:
            yield chunk if isinstance(chunk, bytes) else self._read(*chunk)

    def _read(self, offset: int, length: int) -> bytes:
        """Read a chunk from the file. Raises LocalError if it cannot be read completely."""
        try:
            found = os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise local_error("read back", "the report's entries", error) from error
        if len(found) != length:
            raise LocalError("the report's entries could not be read back", hint="check the disk for errors")
        return found

    def close(self) -> None:
        """Close the file, which deletes it."""
        self._file.close()


def resolve_writable(path: Path, doing: str) -> Path:
    """Return the path of a file with symbolic links resolved. Raises LocalError if a run could not write the file.

    The check takes place before the run starts, so that a long run does not lose its results. doing: the operation for
    messages, such as `write the report to`."""
    real = Path(os.path.realpath(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # /dev/stdout, for example
            raise LocalError(f"cannot {doing} {path}: it is not a regular file", hint="choose another file")
    except FileNotFoundError:
        if not real.parent.is_dir():
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise local_error(doing, path, missing) from None
    except OSError as error:
        raise local_error(doing, path, error) from error
    if not os.access(real.parent, os.W_OK | os.X_OK):
        refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise local_error(doing, path, refused)
    return real


def check_output_path(option: str, path: Path, *, state: Path, used: Iterable[Path], suffix: str) -> None:
    """Raise ConfigError if the output file at `path` would replace a file that the run uses.

    option: the option that names the file. state: the state directory, with the directories of all shards. used: the
    files outside it that the run uses. suffix: the suffix that the file must have if it is in the state directory."""
    if str(path) == "-":
        raise ConfigError(f"`{option} -` does not name a file", hint="specify a path; `-` is not supported here")
    real = Path(os.path.realpath(path))
    if real in {Path(os.path.realpath(one)) for one in used}:
        raise ConfigError(f"{option} {path} would replace a file that this run uses", hint="choose another file")
    # The report is the only file of the state directory whose name ends in .json. No name ends in .jsonl.
    if real.is_relative_to(os.path.realpath(state)) and real.suffix != suffix:
        hint = f"choose a file in another directory, or one whose name ends in {suffix}"
        raise ConfigError(f"{option} {path} could replace a file in the state directory", hint=hint)


def _write_text(path: Path, text: str) -> None:
    """Write `text` to a file, completely or not at all. Raises LocalError if that fails."""
    with atomic_write(path) as out:
        out.write(text.encode())


def read_references_file(path: Path) -> list[str]:
    """Return the references or patterns in a file for `--only-from`, such as failed.txt.

    Each is on its own line. Lines that begin with `#` are comments. Raises ConfigError if the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}", hint="specify a file with one reference per line") from error
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]
