"""`mirror report`: writes a report as an HTML page, and merges reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.config import default_state_directories
from mirror.errors import OK, ConfigError, printable
from mirror.output.console import print_lines
from mirror.output.report.document import ReportDocument, ReportedImage, read_report
from mirror.output.report.history import History, read_history
from mirror.util.files import atomic_write


def report(path: Path | None, *, html: Path | None, merge: Sequence[Path]) -> int:
    """Write a report as an HTML page, or merge reports and print the result. Return the exit code.

    path: a report or a state directory; None for the one in the user's state directory. html: the file for the page.
    merge: the reports to merge; empty to use `path`. Raises ConfigError, LocalError."""
    if merge and path is not None:
        raise ConfigError(f"--merge cannot be combined with {printable(path)}", hint="list all reports after --merge")
    if not merge and html is None:
        raise ConfigError("`mirror report` needs a file for the page", hint="specify --html FILE")
    used = list(merge) if merge else [path if path is not None else _default_directory()]
    if not merge and html is not None:
        _check_not_sharded(used[0], html)
    found = [read_report(one) for one in used]
    if html is not None and html.exists() and any(_report_file(one).samefile(html) for one in used):
        raise ConfigError(f"--html {printable(html)} would replace a report", hint="choose another file")
    document, images = found[0]
    if merge:
        from mirror.output.report.merge import merge_reports, report_lines  # noqa: PLC0415 (rarely needed)

        document, images = merge_reports([one for one, _ in found]), [image for _, some in found for image in some]
        if html is None:
            return print_lines(report_lines(document))
    if html is not None:
        history = History() if merge else read_history(_report_file(used[0]).parent)
        _write_page(html, document, images, history)
    return OK


def _write_page(path: Path, document: ReportDocument, images: list[ReportedImage], history: History) -> None:
    """Write the HTML page, which all users may read unless the umask forbids it. Raises LocalError."""
    from mirror.output.html_page import render_page  # noqa: PLC0415 (Jinja2 is slow to import)

    with atomic_write(path, mode=0o644) as out:
        out.write(render_page(document, images, history).encode())


def _check_not_sharded(path: Path, html: Path) -> None:
    """Raise ConfigError if a state directory contains only reports of shards."""
    if not (path / "report.json").exists() and any(path.glob("shard-*-of-*/report.json")):
        command = f"mirror report --merge {printable(path)}/shard-*/report.json --html {printable(html)}"
        raise ConfigError(f"{printable(path)} has a report for each shard", hint=f"merge them: {command}")


def _report_file(path: Path) -> Path:
    """Return the path of report.json for a path that may be a state directory."""
    return path / "report.json" if path.is_dir() else path


def _default_directory() -> Path:
    """Return the only directory in the user's state directory that has a report. Raises ConfigError."""
    found = [one for one in default_state_directories() if (one / "report.json").is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        text = "no report was found in the user's state directory"
        raise ConfigError(text, hint="specify a report.json, or the state directory of a configuration")
    names = ", ".join(printable(one) for one in found[:10])
    text = "the user's state directory has reports of several configurations"
    raise ConfigError(text, hint=f"specify one of these directories: {names}")
