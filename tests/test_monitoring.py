"""The alert rules, the dashboard and the documentation use exactly the metrics that a run writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from mirror.output.metrics import render_metrics
from mirror.output.report.document import ReportDocument, ReportTotals
from mirror.output.report.history import History
from mirror.util.host_use import HostUsage, Pause, Quota

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "contrib" / "prometheus" / "mirror.rules.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "mirror.json"
NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)

_METRIC = re.compile(r"\b(mirror_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)(?:=~|!~|!=|=)\"")
_SHOWN = re.compile(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


@cache
def labels() -> dict[str, frozenset[str]]:
    """Return the labels of each metric, of a run whose report has everything that a report can have."""
    totals = ReportTotals(
        {}, {"copied": 1}, {"sent": 1}, {"h": {"GET blob": 1}}, mirrors={"h/a": {"copied": 1, "failed": 1}}
    )
    use = HostUsage({"200": 1}, 1.0, [1], [Pause(0.0, 1.0)], Quota(1, 2))
    report = ReportDocument(1, "r", NOW, NOW, 0, totals, {"h": use})
    text = render_metrics(
        report, History().with_run(report, {}).with_run(report, {"x": NOW}), config=Path("/a.yaml")
    ).decode()
    return {one.name: frozenset(one.samples[0].labels) for one in text_string_to_metric_families(text)}


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert isinstance(found, list)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found = group["rules"]
    assert isinstance(found, list)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression, with the texts that show labels of its result."""
    for panel in panels():
        yield from ((target["expr"], target["legendFormat"]) for target in panel["targets"])
    yield from ((rule["expr"], " ".join(rule["annotations"].values())) for rule in rules())


def test_every_expression_uses_metrics_and_labels_that_a_run_writes() -> None:
    assert [] == [problem for expression, shown in expressions() for problem in problems(expression, shown)]


def problems(expression: str, shown: str) -> Iterator[str]:
    """Yield what an expression uses that a run does not write, and the labels in `shown` that its result lacks."""
    used = _METRIC.findall(expression)
    kept = labels().get(used[0][0], frozenset())
    for name, selectors in used:
        for label in _LABEL.findall(selectors):
            if label not in labels().get(name, ()):
                yield f"{expression}: {name} has no label {label}"
    for group in _GROUPED.findall(expression):
        kept &= frozenset(group.replace(" ", "").split(","))
    yield from (f"{expression}: {name}" for name, _ in used if name not in labels())
    yield from (f"{expression}: {label}" for label in _SHOWN.findall(shown) if label not in kept)


def test_the_documentation_lists_exactly_the_metrics_with_their_labels() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = {}
    for names, further in re.findall(r"^\| (`mirror_[^|]*) \|([^|]*)\|", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = frozenset(re.findall(r"`(\w+)`", further)) | {"config", "shard"}
    assert documented == labels()


def test_every_alert_has_a_severity_and_says_what_to_do() -> None:
    assert 7 == len({rule["alert"] for rule in rules()})
    assert {"warning", "critical"} == {rule["labels"]["severity"] for rule in rules()}
    assert [] == [rule["alert"] for rule in rules() if not rule["annotations"].keys() >= {"summary", "description"}]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = [
        (position["x"] + x, position["y"] + y)
        for position in (panel["gridPos"] for panel in panels())
        for x in range(position["w"])
        for y in range(position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert 24 == 1 + max(x for x, _ in cells)
    assert len(panels()) == len({panel["id"] for panel in panels()})
