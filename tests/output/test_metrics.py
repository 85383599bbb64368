from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.config.outputs import OutputConfig
from mirror.output.metrics import render_metrics
from mirror.output.report import ImageEntry, Report, Result, RunCost
from mirror.output.report.document import ReportDocument
from mirror.output.report.history import History

STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
CONFIG = Path("/etc/mirror/prod.yaml")


def finished(directory: Path, *results: Result, exit_code: int = 0, mirror: str = "quay.io/app") -> ReportDocument:
    with Report(directory, run="r1", started=STARTED) as report:
        for number, result in enumerate(results):
            report.add(ImageEntry(f"quay.io/app:v{number}", f"h/app:v{number}", result, mirror=mirror))
        cost = RunCost({"quay.io": {"HEAD manifest": 3}})
        return report.finish(exit_code, ended=STARTED + timedelta(seconds=90), cost=cost)


def parsed(text: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples by metric, read with the parser of the client library."""
    families = text_string_to_metric_families(text.decode())
    return {one.name: [(sample.labels, sample.value) for sample in one.samples] for one in families}


def test_every_sample_has_the_labels_of_the_configuration_and_the_shard(tmp_path: Path) -> None:
    report = finished(tmp_path, "copied", "failed", exit_code=1)
    found = parsed(render_metrics(report, History().with_run(report, {}), config=CONFIG, shard="shard-0-of-2"))
    labels = [labels for samples in found.values() for labels, _ in samples]
    assert {("/etc/mirror/prod.yaml", "shard-0-of-2")} == {(one["config"], one["shard"]) for one in labels}
    assert [90.0] == [value for _, value in found["mirror_last_run_duration_seconds"]]


def test_the_name_of_a_mirror_cannot_add_a_sample(tmp_path: Path) -> None:
    name = 'h/app"} 1\nforged{x="\\'
    report = finished(tmp_path, "copied", mirror=name)
    found = parsed(render_metrics(report, History(), config=CONFIG))
    assert {name} == {labels["mirror"] for labels, _ in found["mirror_last_run_images"]}
    assert [] == [metric for metric in found if not metric.startswith("mirror_")]


def test_a_configuration_whose_name_is_not_utf8_has_an_escaped_label(tmp_path: Path) -> None:
    report = finished(tmp_path, "copied")
    found = parsed(render_metrics(report, History(), config=Path(os.fsdecode(b"/etc/caf\xe9.yaml"))))
    assert {"/etc/caf\\udce9.yaml"} == {labels["config"] for samples in found.values() for labels, _ in samples}


def test_times_that_do_not_exist_have_no_sample(tmp_path: Path) -> None:
    report = finished(tmp_path, "failed", exit_code=1)
    history = History().with_run(report, {})
    found = parsed(render_metrics(report, history, config=CONFIG))
    assert "mirror_last_success_timestamp_seconds" not in found
    assert "mirror_oldest_failure_timestamp_seconds" not in found
    found = parsed(render_metrics(report, History().with_run(report, {"x": STARTED}), config=CONFIG))
    assert [STARTED.timestamp()] == [value for _, value in found["mirror_oldest_failure_timestamp_seconds"]]


@pytest.mark.parametrize(
    ("shard", "name"), [("", "mirror.prom"), ("shard-3-of-4", "mirror-shard-3-of-4.prom")], ids=["none", "shard"]
)
def test_the_file_of_a_shard_has_its_name(shard: str, name: str) -> None:
    assert Path("/var/lib") / name == OutputConfig(textfile=Path("/var/lib/mirror.prom")).textfile_of(shard)
