"""Where the figures are written: the page of the docs is only for a run of everything."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import chart, figures
from benchmarks.samples import Report

FIGURES, PAGE, CHART = "figures.json", "performance-figures.md", "performance.svg"


def write(report: Report, into: Path, docs: Path | None) -> str:
    """Every sample goes into `into`; the page and its picture into `docs`, if all was measured, else into `into` too.

    -> where the page is, for people."""
    _put(into / FIGURES, json.dumps(report.document(), indent=1))
    if not report.scenarios:
        return "no page of figures: no scenario was finished"
    folder = docs if docs is not None and report.of_everything else into
    _put(folder / CHART, chart.svg(report.scenarios))
    _put(folder / PAGE, figures.page(report, CHART))
    said = f"the page of figures: {folder / PAGE}"
    if docs is None or folder == docs:
        return said
    return f"{said}; {docs / PAGE} stays as it was, since this was no run of everything"


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
