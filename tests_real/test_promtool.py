"""promtool accepts the metrics and the alert rules, and the alerts fire when they should. `make test-promtool`
installs it.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from mirror.output.metrics import render_metrics
from mirror.output.report import ImageEntry, Report, RunCost
from mirror.output.report.history import History
from mirror.util.host_use import HostUsage, Pause, Quota
from tests_real.installed import FOLDER, find_tool

RULES = Path(__file__).resolve().parent.parent / "contrib" / "prometheus"
NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def promtool(*arguments: str, stdin: bytes = b"") -> None:
    program = find_tool("promtool", FOLDER, "test-promtool")
    done = subprocess.run([program, *arguments], input=stdin, cwd=RULES, capture_output=True, check=False, timeout=60)
    assert (0, b"") == (done.returncode, done.stderr), done.stdout.decode() + done.stderr.decode()


def test_the_alert_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", "mirror.rules.yml")
    promtool("test", "rules", "mirror.rules.test.yml")


def test_the_metrics_of_a_run_have_no_problems(tmp_path: Path) -> None:
    use = HostUsage({"200": 1}, 1.0, [1], [Pause(0.0, 1.0)], Quota(1, 2))
    with Report(tmp_path, run="r1", started=NOW) as report:
        report.add(ImageEntry("h/a:1", "t/a:1", "copied", mirror='h/"a\\\n'))
        cost = RunCost({"h": {"GET blob": 1}}, hosts={"h": use})
        document = report.finish(0, ended=NOW, cost=cost)
    history = History().with_run(document, {"x": NOW})
    promtool("check", "metrics", stdin=render_metrics(document, history, config=tmp_path / "a.yaml"))
