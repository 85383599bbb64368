"""Formats log records as JSON, with one object per line, or as human-readable lines.

Values are cut at a maximum length. Control characters are escaped, and secrets are removed.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from mirror.errors import printable
from mirror.output.console import Console
from mirror.output.redaction import Redactor

LONGEST_FIELD = 2048  # characters

_STANDARD = frozenset((*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"))
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OBJECTS = frozenset({"blob", "manifest"})
# The run's summary reports these events.
_FOR_MACHINES = frozenset({*_OBJECTS, "image_failed", "not_deleted", "run_ended"})
_NOT_LISTED = frozenset({"target_not_listed", "source_not_listed"})  # if credentials are refused, the images fail too
_UNLIMITED = frozenset({"", "config"})
_PER_EVENT = 3  # the maximum number of warnings that are shown for each event, except for those in _UNLIMITED
_DIFFERENT = 200  # the maximum number of different warnings and errors that are shown, each once


def record_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a record as printable JSON values, without the standard attributes of `logging`."""
    found = {key: plain_value(value) for key, value in record.__dict__.items() if key not in _STANDARD}
    if not _EVENT.fullmatch(str(record.msg)):
        found.setdefault("text", plain_value(str(record.msg)))
    return found


def plain_value(value: object) -> object:
    """Return `value` as plain JSON data, with long strings cut and control characters escaped."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        short = len(value) <= LONGEST_FIELD and value.isascii() and value.isprintable()
        return str(value) if short else printable(value, LONGEST_FIELD)
    if isinstance(value, Mapping):
        return {printable(key, 100): plain_value(item) for key, item in list(value.items())[:100]}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in list(value)[:100]]
    return printable(value, LONGEST_FIELD)


_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def json_line(fields: dict[str, object], redact: Redactor) -> str:
    """Return a JSON object on one line, without secrets. fields: plain JSON data (see `plain_value`)."""
    line = _encode(fields)
    if redact.may_contain_secret(line):
        line = _encode(_redact_value(fields, redact))
    return line + "\n"


def _is_in_summary(record: logging.LogRecord, fields: Mapping[str, object]) -> bool:
    """Return whether the summary of the run reports the event: a result, or credentials that make images fail."""
    return record.msg in _FOR_MACHINES or (record.msg in _NOT_LISTED and fields.get("code") == "auth_failed")


class JsonFormatter:
    """A formatter that writes each log record as a JSON object on one line."""

    def __init__(self, run: str, redact: Redactor) -> None:
        self._run = run
        self._redact = redact

    def encode(self, record: logging.LogRecord, fields: dict[str, object]) -> str:
        """Return the line for a record, without secrets. fields: the result of `record_fields`."""
        message = str(record.msg)
        fields_out: dict[str, object] = {
            "ts": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": message if _EVENT.fullmatch(message) else "note",
            "run": self._run,
        }
        for key, value in fields.items():
            fields_out[f"field_{key}" if key in fields_out else key] = value
        return json_line(fields_out, self._redact)


def timestamp(created: float) -> str:
    """Format a Unix time as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _redact_value(value: object, redact: Redactor) -> object:
    """Return `value` with secrets removed from every string in it."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(key): _redact_value(item, redact) for key, item in value.items()}
    if isinstance(value, list):
        return [_redact_value(item, redact) for item in value]
    return value


class ConsolePrinter:
    """Prints log records on the console, and limits the number of warnings and errors.

    Lines that repeat an earlier warning or error are only counted. So are further warnings of the same event.
    shown: the lowest level to print. in_file: whether a log file contains all warnings and errors."""

    def __init__(self, console: Console, shown: int, redact: Redactor, *, in_file: bool) -> None:
        self._console = console
        self._shown = shown
        self._redact = redact
        self._printed: set[tuple[str, str]] = set()
        self._in_file = in_file
        self._events: Counter[str] = Counter()  # the number of lines that were printed, by event
        self._suppressed: Counter[str] = Counter()  # by level

    def print_record(self, record: logging.LogRecord, fields: dict[str, object]) -> None:
        """Print a record if its level is shown. Events that the run's summary reports are printed only with `-v`."""
        if record.levelno < self._shown or (self._shown > logging.INFO and _is_in_summary(record, fields)):
            return
        text = fields.get("text")
        if record.msg in _OBJECTS:
            size = fields.get("size")
            text = f"{fields.get('outcome')}: {fields.get('digest')} ({size} bytes) to {fields.get('target')}"
        elif not text:
            fields_out = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
            text = (
                f"{str(record.msg).replace('_', ' ')}: {fields_out}"
                if fields_out
                else str(record.msg).replace("_", " ")
            )
        self.print_line(record.levelname.lower(), str(text), event=str(fields.get("event") or record.msg))

    def print_line(self, level: str, text: str, *, event: str = "") -> None:
        """Print one line. If it repeats a warning or error, or if too many have been printed, only count it.

        event: the event of a log record. Unless `-v` is given, only the first warnings of each event are printed."""
        line = (level, text)
        if level in ("warning", "error"):
            is_limited = level == "warning" and event not in _UNLIMITED and self._shown > logging.INFO
            too_many = len(self._printed) >= _DIFFERENT or (is_limited and self._events[event] >= _PER_EVENT)
            if line in self._printed or too_many:
                self._suppressed[level] += 1
                return
            self._printed.add(line)
            self._events[event] += 1
        prefix = "" if level == "info" else f"{level}: "
        self._console.write_line(self._redact(f"mirror: {prefix}{text}"))

    def close(self, lost: int) -> None:
        """Print how many lines were suppressed on the console, and how many lines of the log file were lost."""
        if self._suppressed:
            what = " and ".join(f"{level}s" for level in ("warning", "error") if self._suppressed[level])
            where = "; the log file contains them" if self._in_file else ""
            self._console.write_line(
                f"mirror: {self._suppressed.total()} more {what} (like those above) are not shown{where}"
            )
        if lost:
            self._console.write_line(f"mirror: error: {lost} lines of the log file were lost")
