"""Log records as text: a JSON object on a line, or a line for people.

No control character, no secret and nothing very long gets through (threats-and-faults V-60..V-62).
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
_FOR_MACHINES = frozenset({*_OBJECTS, "image_failed", "run_ended"})  # the summary tells people
_DIFFERENT = 200  # warnings and errors that are shown; each once


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What the record says beyond its standard attributes, each value a plain, printable one."""
    found = {key: _plain(value) for key, value in record.__dict__.items() if key not in _STANDARD}
    if not _EVENT.fullmatch(str(record.msg)):
        found.setdefault("text", _plain(str(record.msg)))
    return found


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        short = len(value) <= LONGEST_FIELD and value.isascii() and value.isprintable()
        return str(value) if short else printable(value, LONGEST_FIELD)
    if isinstance(value, Mapping):
        return {printable(key, 100): _plain(item) for key, item in list(value.items())[:100]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in list(value)[:100]]
    return printable(value, LONGEST_FIELD)


class Lines:
    """Records as JSON, one object a line."""

    def __init__(self, run: str, redact: Redactor) -> None:
        self._run = run
        self._redact = redact
        self._encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

    def encode(self, record: logging.LogRecord, fields: dict[str, object]) -> str:
        message = str(record.msg)
        told: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "event": message if _EVENT.fullmatch(message) else "note",
            "run": self._run,
        }
        for key, value in fields.items():
            told[f"field_{key}" if key in told else key] = value
        line = self._encode(told)
        if self._redact.suspects(line):
            line = self._encode(_redacted(told, self._redact))
        return line + "\n"


def _timestamp(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _redacted(value: object, redact: Redactor) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(key): _redacted(item, redact) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, redact) for item in value]
    return value


class People:
    """Records as lines on the console, each different one once. filed: a log file has all warnings, too."""

    def __init__(self, console: Console, shown: int, redact: Redactor, *, filed: bool) -> None:
        self._console = console
        self._shown = shown
        self._redact = redact
        self._said: set[tuple[str, str]] = set()
        self._filed = filed
        self._folded: Counter[str] = Counter()  # by level

    def tell(self, record: logging.LogRecord, fields: dict[str, object]) -> None:
        if record.levelno < self._shown or (record.msg in _FOR_MACHINES and self._shown > logging.INFO):
            return
        text = fields.get("text")
        if record.msg in _OBJECTS:
            size = fields.get("size")
            text = f"{fields.get('outcome')}: {fields.get('digest')} ({size} bytes) to {fields.get('target')}"
        elif not text:
            told = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
            text = f"{str(record.msg).replace('_', ' ')}: {told}" if told else str(record.msg).replace("_", " ")
        self.say(record.levelname.lower(), str(text))

    def say(self, level: str, text: str) -> None:
        line = (level, text)
        if level in ("warning", "error"):
            if line in self._said or len(self._said) >= _DIFFERENT:
                self._folded[level] += 1
                return
            self._said.add(line)
        prefix = "" if level == "info" else f"{level}: "
        self._console.line(self._redact(f"mirror: {prefix}{text}"))

    def close(self, lost: int) -> None:
        if self._folded:
            what = " and ".join(f"{level}s" for level in ("warning", "error") if self._folded[level])
            where = "; the log file has them" if self._filed else ""
            self._console.line(
                f"mirror: {self._folded.total()} more {what} that were the same as, or like, earlier ones are not "
                f"shown{where}"
            )
        if lost:
            self._console.line(f"mirror: error: {lost} lines of the log file were lost")
