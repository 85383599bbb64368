"""Writes the results to files. The page in docs/ is replaced only after a complete run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import chart, figures
from benchmarks.samples import Report

FIGURES, PAGE, CHART = "figures.json", "performance-figures.md", "performance.svg"


def write(report: Report, into: Path, docs: Path | None) -> str:
    """Write all samples to the folder `into`, and the page of figures with its chart to `docs` or `into`.

    The page and its chart are written to `docs` only after a complete run. Return a message that says where the page
    is."""
    _put(into / FIGURES, json.dumps(report.document(), indent=1))
    if not report.scenarios:
        return "no page of figures was written: no scenario was finished"
    folder = docs if docs is not None and report.is_complete else into
    _put(folder / CHART, chart.svg(report.scenarios))
    _put(folder / PAGE, figures.page(report, CHART))
    message = f"the page of figures: {folder / PAGE}"
    if docs is None or folder == docs:
        return message
    return f"{message}; {docs / PAGE} was not changed, because this run was not complete"


def _put(path: Path, text: str) -> None:
    """Write a file, after creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
