"""Wraps lines of text to the width of the terminal. Words and commands are never broken."""

from __future__ import annotations

import re
import shutil

from mirror.util.columns import text_width

MIN_WIDTH = 40  # columns
# A command in backquotes is one word, and so are an error code and a status in parentheses.
_WORD = re.compile(r"\([a-z0-9_]+, [0-9]{3}\)|(?:`[^`]*`|\S)+")


def line_width() -> int:
    """Return the width of lines in columns, which is at least MIN_WIDTH.

    The width is the environment variable COLUMNS or, if it is not set, the width of the terminal; by default, 80."""
    return max(MIN_WIDTH, shutil.get_terminal_size((80, 24)).columns)


def wrap_line(text: str, width: int, *, indent: int = 4) -> list[str]:
    """Split a line into lines of at most `width` columns. A word that is longer than a line is not broken.

    Spaces at the beginning of `text` are kept. indent: the number of spaces before each further line, in addition to
    those of the first line."""
    if text_width(text) <= width:
        return [text]
    margin = " " * (len(text) - len(text.lstrip(" ")))
    lines, line = [], ""
    for word in _WORD.findall(text):
        if line and len(margin) + text_width(line) + 1 + text_width(word) > width:
            lines.append(margin + line)
            margin, line = (margin + " " * indent if len(lines) == 1 else margin), word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, margin + line]
