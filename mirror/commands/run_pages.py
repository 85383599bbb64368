"""The pages about the last run of `mirror sync --every`: its metrics, and its report as an HTML page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mirror.errors import LocalError, MirrorError
from mirror.output.report.document import REPORT_NAME, ReportDocument, read_report
from mirror.output.report.history import read_history
from mirror.serve.messages import Headers, ServerResponse
from mirror.util.cancellation import Stop, Work
from mirror.util.files import local_error
from mirror.util.single_flight import LazyValue
from mirror.util.structs import Struct

MAX_REPORT = 64 << 20  # maximum size in bytes of a report that is shown as an HTML page

_NO_STORE = ("Cache-Control", "no-store")


class _LastRun(Struct, frozen=True):
    """The last run that has ended. config: the configuration file. html: the page, rendered on the first request."""

    report: ReportDocument
    directory: Path
    config: Path
    shard: str
    html: LazyValue[bytes]


class RunPages:
    """Renders the pages about the last run. Thread-safe: `set_last_run` may be called while a page is rendered."""

    def __init__(self) -> None:
        self._last: _LastRun | None = None

    def set_last_run(self, report: ReportDocument, *, directory: Path, config: Path, shard: str) -> None:
        """Set the run that the pages describe. directory: its state directory. shard: may be empty."""
        self._last = _LastRun(report, directory, config, shard, LazyValue(partial(_render_html, directory)))

    def metrics_page(self) -> ServerResponse:
        """Return the metrics of the last run. They are empty if no run has ended yet."""
        from mirror.output.metrics import CONTENT_TYPE, render_metrics  # noqa: PLC0415 (slow to import)

        last, body = self._last, b""
        if last is not None:
            body = render_metrics(last.report, read_history(last.directory), config=last.config, shard=last.shard)
        return ServerResponse(200, (("Content-Type", CONTENT_TYPE), _NO_STORE), body)

    def report_page(self) -> ServerResponse:
        """Return the report of the last run as an HTML page."""
        last = self._last
        if last is None:
            return text_page(404, "no run has ended yet")
        try:
            body = last.html.get(Work(Stop()))
        except MirrorError as error:
            return text_page(503, str(error))
        return ServerResponse(200, (("Content-Type", "text/html; charset=utf-8"), _NO_STORE), body)


def _render_html(directory: Path, _: Work) -> bytes:
    """Return the HTML page for the report in a state directory. Raises ConfigError, LocalError."""
    from mirror.output.html_page import render_page  # noqa: PLC0415 (slow to import)

    path = directory / REPORT_NAME
    try:
        size = path.stat().st_size
    except OSError as error:
        raise local_error("read", path, error) from error
    if size > MAX_REPORT:
        hint = "write the page to a file with `mirror report --html`"
        text = f"the report has {size} bytes; this page shows only reports of at most {MAX_REPORT} bytes"
        raise LocalError(text, hint=hint)
    return render_page(*read_report(directory), read_history(directory)).encode()


def text_page(status: int, text: str, headers: Headers = ()) -> ServerResponse:
    """Return a response whose body is one line of text."""
    return ServerResponse(
        status, (("Content-Type", "text/plain; charset=utf-8"), _NO_STORE, *headers), f"{text}\n".encode()
    )
