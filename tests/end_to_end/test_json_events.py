"""`--json-events`: the events of whole runs agree with the report and with docs/progress.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.faults import FOREVER
from tests.support.tool import MirrorTool, Ran

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"ts", "event", "run"}
OPTIONAL = {"change", "old_digest", "error"}  # for images that were copied, or that failed


def events_of(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def documented_fields() -> dict[str, set[str]]:
    """Return the fields of each event in the table of docs/progress.md."""
    section = (ROOT / "docs" / "progress.md").read_text().partition("## Events for programs")[2]
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", section, re.MULTILINE)
    fields = {event: set(re.findall(r"`(\w+)`", text)) for event, text in rows}
    return fields | {"manifest": fields["blob"]}


def test_the_events_of_a_run_agree_with_its_report_and_with_their_documentation(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2", "v3")
    target.fault("PUT manifest", reference="v2", status=400, times=FOREVER)
    source.fault("GET tags", status=429, headers=(("Retry-After", "1"),))
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--json-events", expect=1)
    events, report = events_of(ran), mirror_run.report()
    names = [one["event"] for one in events]
    assert ("run_started", "run_ended") == (names[0], names[-1])
    assert {report["run"]} == {one["run"] for one in events}
    fields = documented_fields()
    assert set(fields) == {*names, "events_dropped"}
    for one in events:
        assert fields[one["event"]] - OPTIONAL == set(one) - COMMON - OPTIONAL, one["event"]
    assert ["listing", "planning", "copying", "finishing"] == [
        one["phase"] for one in events if one["event"] == "phase"
    ]
    assert ["host_waiting", "host_resumed"] == [name for name in names if name.startswith("host")]
    key = lambda image: image["target"]  # noqa: E731
    images = [{name: one[name] for name in set(one) - COMMON} for one in events if one["event"] == "image"]
    reported = [{name: one[name] for name in set(one) - {"failing_since"}} for one in report["images"]]
    assert sorted(reported, key=key) == sorted(images, key=key)
    blobs = [one for one in mirror_run.log() if one["event"] in ("blob", "manifest")]
    assert len(blobs) == len([name for name in names if name in ("blob", "manifest")])
    last = [one for one in events if one["event"] == "progress"][-1]
    assert {"selected": 3, "done": 3, "failed": 1} == last["images"]
    assert report["totals"]["bytes"]["sent"] == last["bytes"]["moved"] == last["bytes"]["complete"]
    assert (1, report["totals"]) == (events[-1]["exit"], events[-1]["totals"])
    assert "images: 2 copied, 1 failed" in ran.err
    assert "listing" not in ran.err


def test_without_changes_and_with_q_only_events_are_written(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    mirror_run.sync()
    ran = mirror_run.sync("--json-events", "-q")
    assert ("", ["up-to-date"]) == (ran.err, [one["result"] for one in events_of(ran) if one["event"] == "image"])


def test_a_reader_that_exits_does_not_disturb_the_run(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    command = [sys.executable, "-m", "mirror", "sync", str(mirror_run.config_file), "--json-events"]
    with subprocess.Popen(
        command, cwd=ROOT, env=mirror_run.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert 0 == process.returncode
    assert {"copied"} == set(mirror_run.results().values())
    assert "events" not in said


def test_events_are_refused_if_a_bundle_is_written_to_standard_output(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source = scripted("source")
    mirror_run.config([{"source": f"{source.host}/app", "targets": ["-"]}], source)
    ran = mirror_run.sync("--json-events", expect=2)
    assert ("", True) == (ran.out, "`--json-events` cannot be used: the target `-`" in ran.err)
    assert [] == source.requests()
