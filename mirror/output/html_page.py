"""Renders the HTML report of a run: one page without external resources, which can be read without JavaScript.

Importing Jinja2 takes 0.1 s, so this module is imported only when it is needed. All texts are escaped by the template
engine, and a Content-Security-Policy in the page allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import pkgutil

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mirror import __version__
from mirror.errors import printable
from mirror.output.html_charts import history_charts, host_rows, kind_rows, repository_rows
from mirror.output.html_view import (
    cause_views,
    change_views,
    image_views,
    repository_names,
    run_view,
    tile_views,
)
from mirror.output.report.document import ReportDocument, ReportedImage
from mirror.output.report.history import History
from mirror.output.report.records import RESULTS
from mirror.output.report.units import format_count, format_duration


def render_page(report: ReportDocument, images: list[ReportedImage], history: History) -> str:
    """Return the HTML report of a run.

    images: the entries of the report. history: the last runs in the state directory; it may be empty."""
    style, script = _read_resource("page.css"), _read_resource("page.js")
    causes, other_causes = cause_views(report, images)
    changes, other_changes = change_views(images)
    shown, images_text = image_views(report, images)
    hosts, end = host_rows(report)
    return (
        _environment()
        .from_string(_read_resource("page.html"))
        .render(
            policy=_security_policy(style, script),
            style=Markup(style),  # noqa: S704 (a file of this package)
            script=Markup(script),  # noqa: S704
            version=__version__,
            run=run_view(report),
            tiles=tile_views(report),
            retry_after=format_duration(report.retry_after) if report.retry_after is not None else "",
            causes=causes,
            other_causes=other_causes,
            changes=changes,
            other_changes=other_changes,
            repositories=repository_rows(images),
            hosts=hosts,
            timeline_end=format_duration(end),
            kinds=kind_rows(report.totals.requests),
            charts=history_charts(history),
            history_text=f"The last {format_count(len(history.runs), 'run')} of this state directory.",
            results=RESULTS,
            repository_names=repository_names(images),
            images=shown,
            images_text=images_text,
        )
    )


def _environment() -> Environment:
    """Return the template engine. It escapes all values for HTML, and control characters as `printable` does."""
    return Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_escape_controls, trim_blocks=True, lstrip_blocks=True
    )


def _escape_controls(value: object) -> object:
    """Escape the control characters in a text. Return other values, and the parts of the template, unchanged."""
    return printable(value, 5000) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read_resource(name: str) -> str:
    """Return the text of a file in the folder `page`."""
    data = pkgutil.get_data("mirror.output", f"page/{name}")
    if data is None:
        raise FileNotFoundError(name)
    return data.decode("utf-8")


def _security_policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that forbids requests, and allows only this style sheet and this script."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
