"""`mirror report`: writes a report as an HTML page, and merges reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.config import default_state_directories
from mirror.errors import OK, ConfigError, printable
from mirror.output.console import print_lines
from mirror.output.report.document import ReportDocument, ReportedImage, read_report
from mirror.output.report.files import resolve_writable
from mirror.output.report.history import History, read_history
from mirror.util.files import atomic_write, local_error
from mirror.util.shell_commands import quote_path

_DOCTYPE = b"<!doctype html"  # the beginning of each page


def report(path: Path | None, *, html: Path | None, merge: Sequence[Path]) -> int:
    """Write a report as an HTML page, or merge reports and print the result. Return the exit code.

    path: a report or a state directory; None for the one in the user's state directory. html: the file for the page.
    merge: the reports to merge; empty to use `path`. Raises ConfigError, LocalError."""
    if merge and path is not None:
        raise ConfigError(f"--merge cannot be combined with {printable(path)}", hint="list all reports after --merge")
    if not merge and html is None:
        raise ConfigError("`mirror report` needs a file for the page", hint="specify --html FILE")
    try:
        used = list(merge) if merge else [path if path is not None else _default_directory()]
        return _write_output(used, html, merge)
    except OSError as error:
        raise local_error("access", error.filename or "", error) from error


def _write_output(used: list[Path], html: Path | None, merge: Sequence[Path]) -> int:
    """Write the HTML page or print the merged report. Return the exit code. Raises ConfigError, LocalError, OSError."""
    if not merge and html is not None:
        _check_not_sharded(used[0], html)
    page = _resolve_page(html) if html is not None else None
    found = [read_report(one) for one in used]
    document, images = found[0]
    if merge:
        from mirror.output.report.merge import merge_reports, report_lines  # noqa: PLC0415 (rarely needed)

        document, images = merge_reports([one for one, _ in found]), [image for _, some in found for image in some]
        if page is None:
            return print_lines(report_lines(document))
    if page is not None:
        history = History() if merge else read_history(_report_file(used[0]).parent)
        _write_page(page, document, images, history)
    return OK


def _resolve_page(path: Path) -> Path:
    """Resolve symbolic links in the path of the page, and check that the page can be written there.

    Raises ConfigError if the page would replace a file that is not an HTML page, and OSError or LocalError if the page
    cannot be written."""
    if str(path) == "-":
        raise ConfigError("`--html -` does not name a file", hint="specify a path; the page cannot be printed")
    real = resolve_writable(path, "write the page to")
    if real.exists():
        with real.open("rb") as file:
            beginning = file.read(len(_DOCTYPE))
        if beginning.lower() not in (_DOCTYPE, b""):
            what = f"--html {printable(path)} would replace a file that is not an HTML page"
            raise ConfigError(what, hint="choose another file")
    return real


def _write_page(path: Path, document: ReportDocument, images: list[ReportedImage], history: History) -> None:
    """Write the HTML page, which all users may read unless the umask forbids it. Raises LocalError."""
    from mirror.output.html_page import render_page  # noqa: PLC0415 (Jinja2 is slow to import)

    with atomic_write(path, mode=0o644) as out:
        out.write(render_page(document, images, history).encode())


def _check_not_sharded(path: Path, html: Path) -> None:
    """Raise ConfigError if a state directory contains only reports of shards."""
    if not (path / "report.json").exists() and any(path.glob("shard-*-of-*/report.json")):
        command = f"mirror report --merge {quote_path(path)}/shard-*/report.json --html {quote_path(html)}"
        raise ConfigError(f"{printable(path)} has a report for each shard", hint=f"merge the reports: {command}")


def _report_file(path: Path) -> Path:
    """Return the path of a report. path: the report itself, or the state directory that contains it."""
    return path / "report.json" if path.is_dir() else path


def _default_directory() -> Path:
    """Return the only folder in the user's state directory that has a report.

    Raises ConfigError if there is none, or more than one."""
    found = [one for one in default_state_directories() if (one / "report.json").is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        text = "no report was found in the user's state directory"
        raise ConfigError(text, hint="specify a report.json, or the state directory of a configuration")
    names = ", ".join(printable(one) for one in found[:10])
    text = "the user's state directory has reports of several configurations"
    raise ConfigError(text, hint=f"specify one of these directories: {names}")
