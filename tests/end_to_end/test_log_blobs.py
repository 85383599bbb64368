"""Log records of blobs and manifests: one for each that a run handled in a target repository."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool

Line = dict[str, Any]


def lines_of_last_run(tool: MirrorTool) -> list[Line]:
    """Return the log records of blobs and manifests; there is one for each (target repository, digest)."""
    log = tool.log()
    run = log[-1]["run"]
    lines = [line for line in log if line["event"] in ("blob", "manifest") and line["run"] == run]
    repeated = [key for key, count in Counter((line["target"], line["digest"]) for line in lines).items() if count > 1]
    assert [] == repeated
    return lines


def outcomes(lines: list[Line], target: str) -> dict[str, str]:
    """Return digest -> outcome for one target repository."""
    return {line["digest"]: line["outcome"] for line in lines if line["target"] == target}


def everything(graph: Graph) -> list[str]:
    return [*graph.blobs, *graph.manifests]


def two_tags_of_one_index(source: ScriptedRegistry) -> Graph:
    graph = loaded(source, "v1")
    graph.tag(graph.tags["v1"], "latest")
    source.load("app", graph)
    return graph


def test_blobs_children_and_roots_have_one_record_each_whether_copied_or_existing(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = two_tags_of_one_index(source)
    source.load("twin", graph)
    pair(mirror_run, source, target, "app", "twin")
    mirror_run.sync()
    lines = lines_of_last_run(mirror_run)
    app, twin = (outcomes(lines, f"{target.host}/{name}") for name in ("app", "twin"))
    assert set(everything(graph)) == set(app) == set(twin)
    assert {"copied"} == {found[digest] for found in (app, twin) for digest in graph.manifests}
    assert len(graph.blobs) == Counter((*app.values(), *twin.values()))["mounted"]
    sizes = {digest: len(body.data) for digest, body in graph.manifests.items()}
    assert sizes == {line["digest"]: line["size"] for line in lines if line["digest"] in sizes}
    roots = {line["digest"] for line in lines if line["event"] == "manifest"}
    assert set(graph.tags.values()) == roots
    totals = mirror_run.report()["totals"]["bytes"]
    assert (totals["read"], totals["sent"]) == tuple(
        sum(line[key] for line in lines) for key in ("bytes_read", "bytes_sent")
    )

    mirror_run.sync("--deep")
    assert dict.fromkeys(everything(graph), "exists") == outcomes(lines_of_last_run(mirror_run), f"{target.host}/app")

    mirror_run.sync()
    assert [] == lines_of_last_run(mirror_run), "nothing had to be looked at but tags"


def test_a_blob_shared_with_an_earlier_image_has_a_record_with_exists(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("shared")
    layer = graph.layer("base")
    graph.image("v1", layers=[layer], label="v1")
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    new = graph.image("v2", layers=[layer], label="v2")
    source.load("app", graph)
    mirror_run.sync()
    found = outcomes(lines_of_last_run(mirror_run), f"{target.host}/app")
    assert {layer.digest: "exists", new.digest: "copied"}.items() <= found.items()


def test_a_refused_child_and_failed_blobs_have_a_record_with_the_error_code(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1", "v2")
    child = next(digest for digest in graph.manifests if digest not in graph.tags.values())
    target.fault("PUT manifest", reference=child, status=403, times=FOREVER)
    other = Graph("other")
    lost = other.layer("lost")
    other.image("v3", layers=[lost])
    other.image("v4", layers=[lost])
    source.load("app", other)
    source.storage.repositories["app"].blobs.remove(lost.digest)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    failed = {line["digest"]: line["code"] for line in lines_of_last_run(mirror_run) if line["outcome"] == "failed"}
    assert {child: "auth_denied", lost.digest: "not_found"} == {
        digest: code for digest, code in failed.items() if code != "interrupted"
    }
    assert 2 == mirror_run.report()["totals"]["blobs"]["failed"]  # the blob that was lost, which two images need


def test_a_blob_cancelled_by_a_signal_has_a_record_with_interrupted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    digest = max(loaded(source, "v1").blobs)
    stuck = target.fault("PUT upload", reference=digest, times=FOREVER, stall=threading.Event())
    pair(mirror_run, source, target)
    process = mirror_run.start("sync", mirror_run.config_file)
    assert stuck.fired.wait(20)
    process.send_signal(signal.SIGTERM)
    mirror_run.finish(process)
    lines = lines_of_last_run(mirror_run)
    assert [("failed", "interrupted", "info")] == [
        (line["outcome"], line["code"], line["level"]) for line in lines if line["digest"] == digest
    ]
    assert {None, "interrupted"} >= {line["code"] for line in lines}
    totals = mirror_run.report()["totals"]["blobs"]
    assert 0 == totals["failed"]
    assert sum(line["code"] == "interrupted" for line in lines) == totals["interrupted"]
