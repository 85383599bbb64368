"""The progress of a run as text: one line for logs and pipes, or the lines of a live display with a given width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from mirror.output.progress import MOST_HOSTS, BlobSnapshot, Snapshot, WaitingHost, bytes_per_second, seconds_left
from mirror.output.report import format_duration, format_size
from mirror.util.columns import cut_text, fill_text, text_width

Style = Literal["", "bar", "rest", "faint", "warning"]
Line = list[tuple[str, Style]]  # the parts of a line, each with a style

_NARROW = 60  # columns; a narrower display shows neither the digest nor the bar of a blob
_SHORTEST_BAR = 10  # columns
_DIGEST = 12  # hex digits
_UNITS = {unit: 1024**power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB"))}


def plain_line(before: Snapshot, now: Snapshot) -> str:
    """Format the snapshot `now` as one line. The speed is the average since the snapshot `before`."""
    numbers = ", ".join([*_image_parts(now), *_byte_parts(before, now)])
    blobs = [f"{one.action} {one.place}{_digest_suffix(one)}: {_amount(one)}" for one in now.blobs]
    if now.more_blobs:
        blobs.append(f"{now.more_blobs} more blobs")
    return "; ".join([f"{now.phase}: {numbers}" if numbers else now.phase, *blobs, *_host_lines(now)])


def display_lines(before: Snapshot, now: Snapshot, *, width: int, height: int, unicode: bool = True) -> list[Line]:
    """Return fewer than `height` lines for a live display, each at most `width - 3` columns wide.

    unicode: whether the terminal can show characters other than ASCII."""
    # Some terminals wrap a line that fills the last column. After Ctrl-C, a terminal shows `^C` at the cursor.
    width = max(1, width - 3)
    images = _image_parts(now)
    lines: list[Line] = [
        [(_fit([f"{now.phase}: {images[0]}", *images[1:]] if images else [now.phase], width), "")],
        list(_total_line(before, now, width, unicode=unicode)),
    ]
    lines += [[(_shorten(text, width, unicode=unicode, keep_end=False), "warning")] for text in _host_lines(now)]
    lines += [_blob_line(blob, width, unicode=unicode) for blob in now.blobs]
    if now.more_blobs:
        lines.append([(f"  and {now.more_blobs} more", "faint")])
    return [_crop(line, width) for line in lines if line][: max(1, height - 1)]


# ---- parts of lines


def _image_parts(now: Snapshot) -> list[str]:
    """Return the numbers of images as texts, or an empty list if no image has been selected."""
    what = "tags and attachments" if now.phase == "deleting" else "images"
    parts = [f"{now.done} of {now.images} {what}"] if now.images else []
    return [*parts, f"{now.failed} failed"] if now.failed else parts


def _byte_parts(before: Snapshot, now: Snapshot) -> list[str]:
    """Return the number of bytes, the speed and the remaining time as texts."""
    parts = []
    if now.expected or now.moved:
        about, total = "about " if now.is_estimate else "", now.expected
        parts.append(_amount_of(now.complete, total, about) if total else format_size(now.moved))
        parts.append(f"{format_size(bytes_per_second(before, now))}/s")
    left = seconds_left(before, now)
    return parts if left is None else [*parts, f"{_whole_seconds(left)} left"]


def _total_line(before: Snapshot, now: Snapshot, width: int, *, unicode: bool) -> Iterator[tuple[str, Style]]:
    """Yield the parts of the line for the whole run. It contains a bar only if the total is known."""
    done, total = (now.complete, now.expected) if now.expected else (now.done, now.images)
    parts = _byte_parts(before, now)
    text = _fit([f"{100 * done // total} %", *parts] if total else parts, width)
    room = width - text_width(text) - 2
    if total and room >= _SHORTEST_BAR:
        yield from _bar(done, total, room, unicode=unicode)
        text = f"  {text}"
    if text:
        yield text, ""


def _blob_line(blob: BlobSnapshot, width: int, *, unicode: bool) -> Line:
    """Return the line for a blob in progress. If the repository is too long, its beginning is cut off.

    Blobs in progress often have the same host, so the end of the repository is more useful."""
    amount, lead = f"{_amount(blob):>17}", f"  {blob.action} "
    if width < _NARROW:
        room = max(0, width - len(lead) - len(amount) - 1)
        return [(lead, "faint"), (f"{fill_text(_shorten(blob.place, room, unicode=unicode), room)} {amount}", "")]
    columns = max(_SHORTEST_BAR, width // 5)
    digest = blob.digest.partition(":")[2][:_DIGEST]
    room = width - len(lead) - 1 - _DIGEST - 2 - columns - 1 - len(amount)
    name = f"{fill_text(_shorten(blob.place, room, unicode=unicode), room)} "
    bar = list(_bar(blob.position, blob.size, columns, unicode=unicode)) if blob.size else [(" " * columns, "")]
    return [(lead, "faint"), (name, ""), (f"{digest:<{_DIGEST}}  ", "faint"), *bar, (f" {amount}", "")]


def _digest_suffix(blob: BlobSnapshot) -> str:
    """Return `@` and the beginning of the digest, or an empty string if the digest is not known."""
    algorithm, colon, encoded = blob.digest.partition(":")
    return f"@{algorithm}:{encoded[:_DIGEST]}" if colon else ""


def _host_lines(now: Snapshot) -> list[str]:
    """Return a text for each host to which requests are delayed, and the number of further such hosts."""
    texts = [_host_text(one) for one in now.hosts[:MOST_HOSTS]]
    more = len(now.hosts) - MOST_HOSTS
    return [*texts, f"{more} more hosts wait"] if more > 0 else texts


def _host_text(waiting: WaitingHost) -> str:
    """Return a text that says why and how long requests to a host are delayed."""
    return f"{waiting.host}: {waiting.reason}, {_whole_seconds(waiting.seconds)} left"


def _bar(done: int, total: int, width: int, *, unicode: bool) -> Iterator[tuple[str, Style]]:
    """Yield the two parts of a bar. They differ also on a terminal without colors."""
    filled = min(width, width * done // total)
    full, empty = ("━", "─") if unicode else ("#", "-")
    yield full * filled, "bar"
    yield empty * (width - filled), "rest"


def _amount(blob: BlobSnapshot) -> str:
    """Return how many bytes of a blob were sent or read, such as `0.7 of 500 MiB`, with at most 17 characters."""
    if not blob.size:
        return format_size(blob.position)
    total = format_size(blob.size)
    done = blob.position / _UNITS[total.partition(" ")[2]]
    return f"{done:.0f} of {total}" if done >= 100 or total.endswith("bytes") else f"{done:.1f} of {total}"


def _amount_of(done: int, total: int, about: str) -> str:
    """Format two sizes, such as `1.2 of 3.4 GiB`. about: a word that precedes the second size, or an empty string."""
    left, right = format_size(done), format_size(total)
    number, _, unit = left.partition(" ")
    return f"{number if right.endswith(f' {unit}') else left} of {about}{right}"


def _whole_seconds(seconds: float) -> str:
    """Format a remaining time in whole seconds."""
    whole = max(1, math.ceil(seconds))
    return f"{whole} s" if whole < 60 else format_duration(whole)


def _fit(parts: list[str], width: int) -> str:
    """Join as many of `parts` as fit into `width` columns, but at least the first one."""
    text = parts[0] if parts else ""
    for part in parts[1:]:
        if text_width(text) + 2 + text_width(part) > width:
            break
        text = f"{text}, {part}"
    return text


def _crop(line: Line, width: int) -> Line:
    """Return a line without the parts beyond `width` columns."""
    parts: Line = []
    for text, style in line:
        parts.append((cut_text(text, width), style))
        width -= text_width(parts[-1][0])
    return parts


def _shorten(text: str, width: int, *, unicode: bool, keep_end: bool = True) -> str:
    """Return `text` with at most `width` columns. keep_end: whether to cut off its beginning, not its end."""
    if text_width(text) <= width:
        return text
    mark = ("…" if unicode else "...")[:width]
    kept = width - len(mark)
    cut = cut_text(text, kept, keep_end=keep_end)
    return mark + cut if keep_end else cut + mark
