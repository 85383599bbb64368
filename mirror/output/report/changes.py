"""The images that a run changed on targets, and the table that lists them."""

from __future__ import annotations

import re
import sys
from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import groupby

from mirror.errors import printable
from mirror.output.report.causes import repository_name
from mirror.output.report.records import ImageEntry
from mirror.output.report.units import format_duration, format_size
from mirror.util.columns import fill_text, text_width
from mirror.util.structs import Struct
from mirror.util.wrapping import wrap_line

FIRST = 50  # the number of changed images that are listed unless all are wanted
SHORT_DIGEST = 12  # hexadecimal digits
_MIN_NAME = 8  # columns
_NUMBERS = re.compile(r"([0-9]+)")

_SortKey = tuple[str, list[str | int]]


class ChangeRow(Struct, frozen=True):
    """One row of the table that lists changed images.

    repository: the heading under which the row is listed. name: the tag or digest after its separator, such as `:3.20`.
    change: the kind of change. old, new: the digests before and after the change, or None. amounts: further columns,
    aligned to the right. note: a text for a line of its own."""

    repository: str
    name: str
    change: str
    old: str | None
    new: str | None
    amounts: tuple[str, ...] = ()
    note: str = ""


class Changes:
    """The changed images of a run, sorted by name. Only the first images are kept, unless `keep_all` is set.

    Not thread-safe."""

    def __init__(self, *, keep_all: bool = False) -> None:
        self.count = 0
        self._limit = sys.maxsize if keep_all else FIRST
        self._entries: list[ImageEntry] = []
        self._keys: list[_SortKey] = []  # of these entries

    def add(self, entry: ImageEntry) -> None:
        """Add an entry of the report, if its image was copied."""
        if entry.result != "copied":
            return
        self.count += 1
        key = sort_key(entry.target)
        if len(self._keys) == self._limit and key >= self._keys[-1]:
            return
        at = bisect(self._keys, key)
        self._keys.insert(at, key)
        self._entries.insert(at, entry)
        del self._keys[self._limit :], self._entries[self._limit :]

    def rows(self) -> list[ChangeRow]:
        """Return the rows of the table of changes, for the images that were kept."""
        return [_row(entry) for entry in self._entries]


def sort_key(reference: str) -> _SortKey:
    """Return the key by which references are sorted: by repository, then by tag, with numbers in numerical order."""
    repository = repository_name(reference)
    parts = _NUMBERS.split(reference[len(repository) :])
    return repository, [int(part[:18]) if at % 2 else part for at, part in enumerate(parts)]


def _row(entry: ImageEntry) -> ChangeRow:
    """Return the row of the table of changes for a copied image."""
    repository = repository_name(entry.target)
    copied, mounted = entry.blobs.get("copied", 0), entry.blobs.get("mounted", 0)
    blobs = f"{copied} + {mounted}" if mounted else f"{copied}"
    amounts = (format_size(entry.bytes.get("sent", 0)), blobs, format_duration(entry.seconds))
    name = entry.target[len(repository) :]
    return ChangeRow(repository, name, entry.change or "", entry.old_digest, entry.digest, amounts)


def short_digest(digest: str | None) -> str:
    """Return the first digits of a digest, or an empty string if it is None."""
    return digest.rpartition(":")[2][:SHORT_DIGEST] if digest else ""


def change_table(rows: Iterable[ChangeRow], width: int) -> list[str]:
    """Return the lines of a table. Rows with the same repository have one heading, so they must follow each other.

    width: the width of lines in columns. A name that does not fit is printed on a line of its own."""
    listed = list(rows)
    moved = any(_is_moved(row) for row in listed)
    cells = [[row.change, _digests_text(row, wide=moved), *row.amounts] for row in listed]
    widths = [max(map(text_width, column)) for column in zip(*cells, strict=True)]
    names = [_short_name(row.name) for row in listed]
    room = width - 4 - sum(size + 2 for size in widths)
    name_width = min(max(map(text_width, names), default=0), max(room, _MIN_NAME))
    lines: list[str] = []
    numbered = enumerate(listed)
    for repository, group in groupby(numbered, key=lambda item: item[1].repository):
        lines += wrap_line(f"  {printable(repository)}", width)
        for number, row in group:
            lines += _row_lines(names[number], name_width, cells[number], widths, row.note, width)
    return lines


def _row_lines(
    name: str, name_width: int, cells: Sequence[str], widths: Sequence[int], note: str, width: int
) -> list[str]:
    """Return the lines for one row: usually one, or two if the name does not fit."""
    left = [fill_text(cell, size) for cell, size in zip(cells[:2], widths[:2], strict=True)]
    right = [fill_text(cell, size, right=True) for cell, size in zip(cells[2:], widths[2:], strict=True)]
    columns = "  ".join(one for one in (*left, *right) if one)
    lines = [] if text_width(name) <= name_width else [f"    {name}"]
    shown = name if text_width(name) <= name_width else ""
    lines.append(f"    {fill_text(shown, name_width)}  {columns}".rstrip())
    return [*lines, *(wrap_line(f"        {note}", width) if note else ())]


def _short_name(name: str) -> str:
    """Return `:TAG` as `TAG`, and `@sha256:DIGEST` as `@` and the first digits of the digest."""
    return f"@{short_digest(name[1:])}" if name.startswith("@") else printable(name.removeprefix(":"))


def _is_moved(row: ChangeRow) -> bool:
    """Return whether a row has two different digests."""
    return row.old is not None and row.old != row.new


def _digests_text(row: ChangeRow, *, wide: bool) -> str:
    """Return the text for the digests before and after a change. wide: whether another row has two digests."""
    if _is_moved(row):
        return f"{short_digest(row.old)} -> {short_digest(row.new)}"
    return f"{'':{SHORT_DIGEST if wide else 0}}{'    ' if wide else ''}{short_digest(row.new)}"
