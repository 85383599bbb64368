"""The width of texts on a terminal, where East Asian characters need two columns each."""

from __future__ import annotations

import unicodedata

_WIDE = ("W", "F")  # wide and full-width characters (Unicode Standard Annex 11)
_COMBINING = ("Mn", "Me")  # characters that are drawn over the one before


def text_width(text: str) -> int:
    """Return the number of columns that a text needs."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def cut_text(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return the longest beginning of a text that needs at most `width` columns. keep_end: whether to return an end."""
    if text_width(text) <= width:
        return text
    kept, left = 0, width
    for character in reversed(text) if keep_end else text:
        left -= _character_width(character)
        if left < 0:
            break
        kept += 1
    return text[len(text) - kept :] if keep_end else text[:kept]


def fill_text(text: str, width: int, *, right: bool = False) -> str:
    """Return a text with spaces up to a width of `width` columns. right: whether to align the text to the right."""
    spaces = " " * (width - text_width(text))
    return f"{spaces}{text}" if right else f"{text}{spaces}"


def _character_width(character: str) -> int:
    """Return the number of columns that a character needs."""
    if unicodedata.category(character) in _COMBINING:
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1
