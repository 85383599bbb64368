"""`mirror lock`: writes the selected tags and their digests to an image lock, which the option `--locked` reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mirror.commands.options import Options
from mirror.commands.output_files import resolve_output
from mirror.commands.read_only import open_for_reading
from mirror.commands.summaries import group_by_cause
from mirror.errors import ConfigError, worst_exit_code
from mirror.output.console import Console, print_lines
from mirror.output.report import cause_lines
from mirror.output.report.units import format_count
from mirror.sync.image_lock import MAX_BYTES, ImageLock
from mirror.sync.locked_selection import ReferenceCollector, collect_lock
from mirror.sync.report_entries import run_failure
from mirror.util.files import atomic_write
from mirror.util.wrapping import line_width

STDOUT = Path("-")


def lock(options: Options, output: Path | None) -> int:
    """Write the image lock of a configuration, and return the exit code. Contacts only the sources.

    output: the path of the image lock; `-` for standard output; None for the path of the configuration with the suffix
    `.lock`. If the digest of any tag cannot be determined, print the problems and write no image lock. Raises
    ConfigError, LocalError."""
    found: list[tuple[ImageLock, ReferenceCollector]] = []
    with open_for_reading(options) as (context, state):
        config = context.config
        path = output or config.path.with_suffix(".lock")
        if path != STDOUT:
            path = resolve_output(path, config, name="image lock", remedy="with `-o FILE`")

        async def collect() -> None:
            """Resolve the selected tags at the sources."""
            reader = context.image_reader(state, all_attachments=True)
            make_planner = partial(context.source_planner, state, reader)
            found.append(
                await collect_lock(
                    context.entries, config.path.name, make_planner, reader.find_attachments, reader.check_signature
                )
            )

        stopped = context.run_until_signal(collect())
        problems = context.run_problems() if stopped is None else []
    if stopped is not None:
        return context.signals.exit_if_hung(stopped)
    ((image_lock, collector),) = found
    failures = [*collector.failures, *problems]
    if failures:
        console = Console()
        causes = group_by_cause(run_failure(*one) for one in failures)
        for line in cause_lines(causes, config=config.path, width=line_width()):
            console.write_line(line)
        console.write_line(f"mirror: {format_count(len(failures), 'problem')}; no image lock was written")
        return worst_exit_code(error.exit_code for _, error in failures)
    size = sum(len(line.encode()) + 1 for line in image_lock.lines())
    if size > MAX_BYTES:
        what = f"the image lock would have {size} bytes; at most {MAX_BYTES} can be read"
        raise ConfigError(what, hint="divide the configuration into several files, or set `referrers: false`")
    if collector.waiting:
        Console().write_line(f"mirror: {_waiting_text(collector.waiting)}")
    if path == STDOUT:
        return print_lines(image_lock.lines())
    with atomic_write(path, mode=0o644) as out:
        for line in image_lock.lines():
            out.write(f"{line}\n".encode())
    images, mirrors = format_count(image_lock.count, "image"), format_count(len(image_lock.mirrors), "mirror")
    return print_lines([f"{path}: {images} of {mirrors} locked"])


def _waiting_text(count: int) -> str:
    """Return a message about the tags that the image lock lacks because they wait for `min-age`."""
    subject = "1 tag waits" if count == 1 else f"{count} tags wait"
    return f"{subject} for min-age, so the image lock does not contain {'it' if count == 1 else 'them'}"
