"""`--trace-http`: every request of a run is in the file, and no secret is; ids lead from the report to the trace."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.blobhost import BlobHost
from tests.registries.faults import FOREVER
from tests.support.tool import MirrorTool

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "acme", "correct-horse-battery"


def trace_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_trace_has_every_request_and_no_secret(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source = scripted("source", users={USER: PASSWORD}, bearer=True)
    target = scripted("target", users={USER: PASSWORD}, address="127.0.0.3")
    loaded(source, "v1", "v2")
    trace = tmp_path / "trace.jsonl"
    login = {"username": USER, "password": {"env": "THE_PASSWORD"}}
    with BlobHost(source.storage) as blobs:
        source.features.blob_redirect = blobs.url_of
        pair(mirror_run, source, target, registries={source.host: login, target.host: login})
        mirror_run.sync("--trace-http", trace, environment={"THE_PASSWORD": PASSWORD})
        lines = trace_of(trace)
        seen = Counter(line["host"] for line in lines)
        totals = mirror_run.report()["totals"]["requests"]
        assert {host: sum(counts.values()) for host, counts in totals.items()} == seen
        assert len(blobs.seen) == seen[blobs.host]
    sent = Counter((one.method, one.status) for registry in (source, target) for one in registry.requests())
    assert sent == Counter((line["method"], line["status"]) for line in lines if line["host"] != blobs.host)
    assert {"bearer ***", "basic ***"} == {line["request_headers"].get("authorization") for line in lines} - {None}
    assert {mirror_run.report()["run"]} == {line["run"] for line in lines}
    assert len(lines) == len({line["request_id"] for line in lines})
    documented = (
        (ROOT / "docs" / "progress.md").read_text().partition("## Trace of requests")[2].partition("\nA line")[0]
    )
    fields = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*)\|", documented, re.MULTILINE))))
    assert fields - {"error"} == set().union(*lines)
    mirror_run.sweep(PASSWORD, "signed-for-get", *source.tokens.issued if source.tokens else ())


def test_ids_lead_from_the_report_and_the_log_to_the_request_that_failed(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    target.fault("PUT manifest", reference="v2", status=400, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync("--trace-http", tmp_path / "trace.jsonl", expect=1)
    (error,) = [image["error"] for image in mirror_run.report()["images"] if "error" in image]
    (logged,) = [line for line in mirror_run.log() if line["event"] == "image_failed"]
    (request,) = [line for line in trace_of(tmp_path / "trace.jsonl") if line["request_id"] == error["request_id"]]
    assert error["request_id"] == logged["request_id"]
    assert ("PUT", f"http://{target.host}/v2/app/manifests/v2", 400) == tuple(
        request[name] for name in ("method", "url", "status")
    )


def test_a_trace_that_cannot_be_written_causes_one_warning_and_does_not_fail_the_run(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--trace-http", "/dev/full")
    assert 1 == ran.err.count("cannot write the trace /dev/full: No space left on device; the run continues without it")
    assert {"copied"} == set(mirror_run.results().values())


def test_a_dry_run_can_be_traced(scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    mirror_run.sync("--dry-run", "--trace-http", tmp_path / "trace.jsonl")
    traced = {(line["method"], line["url"]) for line in trace_of(tmp_path / "trace.jsonl")}
    assert ("GET", f"http://{source.host}/v2/app/manifests/v1") in traced
    assert len(source.requests()) + len(target.requests()) == len(trace_of(tmp_path / "trace.jsonl"))


def test_without_a_trace_the_report_has_no_ids(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    target.fault("PUT manifest", status=400, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    assert "request_id" not in json.dumps(mirror_run.report())
