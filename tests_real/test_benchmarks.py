"""Runs the smallest scenario of the benchmark with real registries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import files
from benchmarks.__main__ import main
from benchmarks.harness import measure
from benchmarks.samples import IDEAL
from benchmarks.scenarios import SCENARIOS, Scale
from benchmarks.scenarios.cold import Cold
from benchmarks.tools import TOOLS, Mirror


def test_the_smallest_scenario_gives_plausible_figures() -> None:
    scenario = Cold(Scale(quick=True))
    outcome = measure(scenario, [Mirror()], runs=1)
    content = scenario.content
    for tool in ("mirror", IDEAL):
        (sample,) = outcome.tools[tool]
        assert (0, True) == (sample.code, sample.equal)
        assert 0 < sample.cpu < 60
        assert 0 < sample.wall < 60
        assert sample.registry_cpu is not None
        assert 0 < sample.registry_cpu < 60
        assert 4 << 20 < sample.memory < 1 << 30
        assert sum(content.sizes.values()) == sample.target.accepted
        assert 1.05 * sample.target.accepted > sample.source.sent >= sample.target.accepted
        assert len(content.sizes) == sample.source.kinds["GET blob"] + sample.source.kinds["GET manifest"]
    ours, ideal = outcome.tools["mirror"][0], outcome.tools[IDEAL][0]
    # The ideal replay knows that there are no referrers. `mirror` asks once for each repository, as there is no API.
    assert {**ideal.source.kinds, "GET referrers": ours.source.kinds["GET tags"]} == ours.source.kinds
    # The ideal replay knows that the target is empty; the tools have to check.
    assert ideal.target.kinds == {kind: count for kind, count in ours.target.kinds.items() if kind != "GET tags"}
    assert outcome.ratio("mirror") is None  # there is no tool to compare with


def test_a_quick_run_of_one_tool_and_scenario_names_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, bench = tmp_path / "docs", tmp_path / "bench"
    asked = ["--quick", "--scenario", "cold", "--tools", "mirror", "--runs", "1"]
    assert 0 == main([*asked, "--into", str(bench), "--docs", str(docs)])
    assert not docs.exists()
    assert "reduced by --quick" in (bench / files.PAGE).read_text()
    assert f"the page of figures: {bench / files.PAGE}" in capsys.readouterr().out
    document = json.loads((bench / files.FIGURES).read_text())
    assert (True, True) == (document["quick"], document["scenarios"][0]["reduced"])
    assert {tool.name for tool in TOOLS} - {"mirror"} == set(document["tools_left_out"])
    assert len(SCENARIOS) - 1 == len(document["left_out"])
