"""The lines that describe failures on the console: one block for each cause."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mirror.errors import printable
from mirror.output.report.causes import Cause, Causes
from mirror.output.report.records import FailedImage
from mirror.output.report.units import format_count
from mirror.util.columns import cut_text, text_width
from mirror.util.shell_commands import insert_path
from mirror.util.wrapping import wrap_line

_MAX_LINES = 4  # the number of lines after which the text of a failure is cut, approximately
MAX_BLOCKS = 10  # the maximum number of causes that are shown; others are only counted


def cause_lines(causes: Causes, *, config: Path | None, width: int, details: str = "") -> list[str]:
    """Return a block of lines for each cause, with the cause, up to three examples and a hint.

    config: the configuration, for the commands in hints; None for `mirror copy`. width: the width of lines in columns.
    details: where all failures are listed; it is shown if a block has more than one of them."""
    lines: list[str] = []
    for cause in islice(causes, MAX_BLOCKS):
        header, *texts = _block_texts(cause, width)
        lines += wrap_line(f"{cause.result}: {header}", width)
        for text in texts:
            lines += wrap_line(f"    {insert_path(text, config)}", width, indent=2)
    hidden = sum(cause.count for cause in islice(causes, MAX_BLOCKS, None))
    if hidden:
        more = len(causes) - MAX_BLOCKS
        lines += wrap_line(f"and {format_count(hidden, 'failure')} with {format_count(more, 'other cause')}", width)
    if details and any(cause.count > 1 for cause in causes):
        lines += wrap_line(f"details: {details}", width)
    return lines


def _block_texts(cause: Cause, width: int) -> list[str]:
    """Return the texts of a block: the header, the examples and the hint.

    If there are more failures than examples, the texts are cut so that the block has about six lines."""
    known = cause.examples[0].failure.message if cause.count == 1 else cause.text
    hint = [f"account: {cause.account}"] if cause.account and cause.account not in known else []
    subject = f" for {_short_name(cause.examples[0], cause.host)}" if cause.hints_differ else ""
    hint += [f"hint{subject}: {cause.hint}"] if cause.hint else []
    codes = cause.code if cause.status is None else f"{cause.code}, {cause.status}"
    if cause.count == 1:
        (failed,) = cause.examples
        return [_full_name(failed), f"{_without_host(failed.failure.message, cause.host)} ({codes})", *hint]
    counted = _counts_text(cause)
    more = f" and {cause.count - len(cause.examples)} more" if cause.count > len(cause.examples) else ""
    if cause.text:
        place = f"{cause.host}: " if cause.host and cause.host not in cause.text else ""
        text = _shorten(f"{counted}: {place}{cause.text}", (2 if more else _MAX_LINES) * (width - len(codes)))
        return [f"{text} ({codes})", f"{_example_names(cause.examples, cause.host)}{more}", *hint]
    place = f"{cause.host} " if cause.host else ""
    room = width - 4
    examples = [_example_text(failed, cause.host) for failed in cause.examples]
    if more and (max(map(text_width, examples)) > room or text_width(examples[-1] + more) > room):
        examples = [_shorten(examples[0], 2 * room), _example_names(cause.examples[1:], cause.host)]
    examples = [_shorten(text, _MAX_LINES * room) for text in examples]
    examples[-1] += more
    return [f"{counted}: {place}({codes})", *examples, *hint]


def _shorten(text: str, room: int) -> str:
    """Shorten a text to the words that fit into `room` columns, but at least one, and an ellipsis."""
    if text_width(text) <= room:
        return text
    end = text.rfind(" ", 0, max(len(cut_text(text, room - 1)), 1))
    return f"{text[:end] if end > 0 else text.partition(' ')[0]} …"


def _counts_text(cause: Cause) -> str:
    """Return the number of failures as text, such as `3 images`."""
    images = format_count(cause.images, "image")
    others = format_count(cause.others, "repository", "repositories")
    return f"{images} and {others}" if cause.images and cause.others else images if cause.images else others


def _full_name(failed: FailedImage) -> str:
    """Return a text with the source and the target of a failure."""
    source, target = printable(failed.source), printable(failed.target)
    return f"{source} -> {target}" if target and target != source else source


def _short_name(failed: FailedImage, host: str) -> str:
    """Return the name of the image on the host that caused the failure, without the host."""
    for name in (failed.target, failed.source):
        if host and name.startswith((f"{host}/", f"{host}:")):
            return printable(name[len(host) + 1 :])
    return printable(failed.source)


def _example_names(examples: Sequence[FailedImage], host: str) -> str:
    """Return the names of examples. If a source failed for several targets, its name occurs once."""
    names = Counter(_short_name(failed, host) for failed in examples)
    return ", ".join(name if count == 1 else f"{name} ({count} targets)" for name, count in names.items())


def _example_text(failed: FailedImage, host: str) -> str:
    """Return the message of a failure, with the name of the image in front unless the message contains it."""
    name, message = _short_name(failed, host), _without_host(failed.failure.message, host)
    return message if name in message else f"{name}: {message}"


def _without_host(message: str, host: str) -> str:
    """Remove `host` from the URLs and repository names in a message, except after `--only`."""
    if not host:
        return message
    message = re.sub(rf"\bhttps?://{re.escape(host)}(?=/)", "", message)
    return re.sub(rf"(?<![\w/.-])(?<!--only ){re.escape(host)}/(?=\w)", "", message)
