"""Writes the figures. The page in docs/ is replaced only after a complete run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import chart, figures
from benchmarks.samples import Report

FIGURES, PAGE, CHART = "figures.json", "performance-figures.md", "performance.svg"


def write(report: Report, into: Path, docs: Path | None) -> str:
    """Write all samples into `into`, and the page with its chart into `docs` after a complete run, otherwise into
    `into`.

    Returns a message that says where the page is."""
    _put(into / FIGURES, json.dumps(report.document(), indent=1))
    if not report.scenarios:
        return "no page of figures was written: no scenario was finished"
    folder = docs if docs is not None and report.is_complete else into
    _put(folder / CHART, chart.svg(report.scenarios))
    _put(folder / PAGE, figures.page(report, CHART))
    said = f"the page of figures: {folder / PAGE}"
    if docs is None or folder == docs:
        return said
    return f"{said}; {docs / PAGE} was not changed, because this run was not complete"


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
