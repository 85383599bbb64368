"""Writes a conversion as the text of a configuration, with the notes as comments."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mirror.config.suggestions import YAML_BOOLEANS
from mirror.errors import printable
from mirror.migration.conversion import Conversion, ConvertedMirror
from mirror.migration.peer_file import Note

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@=-]*(?::[A-Za-z0-9_./@=-]+)*")
_WORDS = YAML_BOOLEANS | {"null", "y", "n"}
_WIDTH = 110  # maximum length of a line with a list or a mapping in brackets
_COMMENT_WIDTH = 110  # maximum length of a comment line


def write_configuration(conversion: Conversion, heading: Iterable[str], file: str) -> str:
    """Return the text of the new file. heading: the texts of the comment at the top. file: the name of the old file."""
    lines = [*_comment(heading, ""), *_notes(sorted(conversion.notes), file, ""), "version: 1"]
    for key, value in conversion.top.items():
        lines += _entry(key, value, "")
    if conversion.registries:
        lines.append("registries:")
        for host, settings in conversion.registries.items():
            lines += _entry(host, settings, "  ")
    lines.append("mirrors:")
    for mirror in conversion.mirrors:
        lines += _mirror_lines(mirror, file)
    return "".join(f"{line}\n" for line in lines)


def format_note(note: Note, file: str) -> str:
    """Format a note as a line with its position, such as `regsync.yml:7: sync[0].backup: not converted: ...`."""
    path = f"{note.path}: " if note.path else ""
    return printable(f"{note.file or file}:{note.line}: {path}{note.text}", 1200)


def _mirror_lines(mirror: ConvertedMirror, file: str) -> list[str]:
    """Return the YAML lines for one entry of `mirrors`."""
    lines = _notes(mirror.notes, file, "  ")
    for key, value in mirror.as_keys().items():
        lines += _entry(key, value, "    ")
    first = next(number for number, line in enumerate(lines) if line.startswith("    source: "))
    lines[first] = f"  - {lines[first].lstrip()}"
    return lines


def _entry(key: str, value: object, indent: str) -> list[str]:
    """Return the YAML lines for a key and its value: one line if it is short enough, otherwise several lines."""
    line = f"{indent}{_scalar(key)}: {_flow(value)}"
    if len(line) <= _WIDTH or not isinstance(value, dict | list):
        return [line]
    lines = [f"{indent}{_scalar(key)}:"]
    if isinstance(value, dict):
        for name, item in value.items():
            lines += _entry(str(name), item, f"{indent}  ")
    else:
        lines += [f"{indent}  - {_flow(item)}" for item in value]
    return lines


def _flow(value: object) -> str:
    """Return a value in YAML's flow style, which takes one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_scalar(str(key))}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _scalar(str(value))


def _scalar(text: str) -> str:
    """Return a string as a YAML scalar. It is quoted unless every YAML parser reads the unquoted text as a string."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if printable(text, len(text) + 1) == text:
        return f"'{text.replace(chr(39), chr(39) * 2)}'"
    escaped = re.sub(r'["\\]', r"\\\g<0>", text)
    return f'"{"".join(one if printable(one) == one else f"{chr(92)}u{ord(one):04x}" for one in escaped)}"'


def _notes(notes: Iterable[Note], file: str, indent: str) -> list[str]:
    """Return notes as YAML comment lines, without duplicates."""
    return _comment((format_note(note, file) for note in dict.fromkeys(notes)), indent)


def _comment(texts: Iterable[str], indent: str) -> list[str]:
    """Return texts as YAML comment lines. Long lines are broken between words."""
    lines = []
    for text in texts:
        line = f"{indent}#"
        for word in text.split():
            if len(line) + 1 + len(word) > _COMMENT_WIDTH and line.strip() != "#":
                lines.append(line)
                line = f"{indent}#  "
            line += f" {word}"
        lines.append(line)
    return lines
