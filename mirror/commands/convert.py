"""`mirror convert`: converts the configuration of another tool."""

from __future__ import annotations

import os
from pathlib import Path

from mirror.commands.output_files import check_directory
from mirror.errors import FAILED, OK, ConfigError, LocalError, printable, worst_exit_code
from mirror.migration.converter import MAX_HEADING, convert_file, is_converted
from mirror.output.console import Console, print_lines
from mirror.output.report.units import format_count
from mirror.util.files import atomic_write, local_error

_STDOUT = Path("-")


def convert(tool: str, path: Path, output: Path | None, destination: str | None) -> int:
    """Convert a file of another tool, write the new configuration, and return the exit code. Contacts no host.

    output: the path of the new file; None or `-` for standard output. The notes about the conversion are printed to
    standard error. The exit code is 1 if the other tool copies images that a sync with the new file does not copy.
    Raises ConfigError or LocalError; in these cases, nothing is written."""
    target = None if output in (None, _STDOUT) else output
    if target is not None:
        _check_output(path, target)
    converted = convert_file(tool, path, destination, os.environ)
    console = Console()
    for note in converted.notes:
        console.write_line(f"mirror: {note}")
    if not converted.mirrors:
        what = f"{printable(path)}: nothing can be converted"
        raise ConfigError(what, hint="see the notes" if converted.notes else "the file lists no images")
    code = FAILED if converted.has_losses else OK
    if target is None:
        return worst_exit_code({code, print_lines(converted.text.splitlines())})
    with atomic_write(Path(os.path.realpath(target)), mode=0o644) as out:
        out.write(converted.text.encode())
    written = f"{printable(target)}: {format_count(converted.mirrors, 'mirror')} written"
    notes = f", {format_count(len(converted.notes), 'note')}" if converted.notes else ""
    return worst_exit_code({code, print_lines([written + notes])})


def _check_output(path: Path, output: Path) -> None:
    """Check the path of the new file.

    Raises ConfigError if it would replace the old file, or a file that `mirror convert` did not write. Raises
    LocalError if its directory does not exist, or if it is not a regular file."""
    real = Path(os.path.realpath(output))
    if real == Path(os.path.realpath(path)):
        what = f"the new configuration would replace {printable(output)}, the file to convert"
        raise ConfigError(what, hint="choose another file with `-o FILE`")
    check_directory(output, real)
    if not os.path.lexists(real):
        return
    if not real.is_file():
        what = f"cannot write {printable(output)}: it is not a regular file"
        raise LocalError(what, hint="choose another file with `-o FILE`")
    try:
        with real.open("rb") as file:
            beginning = file.read(MAX_HEADING)
    except OSError as error:
        raise local_error("read", output, error) from error
    if beginning and not is_converted(beginning):
        what = f"{printable(output)} exists, and was not written by `mirror convert`"
        raise ConfigError(what, hint="choose another file with `-o FILE`, or delete it")
