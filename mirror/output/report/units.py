"""Formats counts, sizes and durations as human-readable text."""

from __future__ import annotations


def format_count(number: int, one: str, more: str = "") -> str:
    """Format a number with a noun, such as `2 images`. one: the singular. more: the plural, if it is irregular."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def format_size(count: float) -> str:
    """Format a number of bytes in human-readable form, such as `12.3 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Format a number of seconds in human-readable form, such as `1.2 s`, `3 min 4 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
