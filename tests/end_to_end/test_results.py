"""The output of a run for machines and people: log records, report, progress."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from mirror.util.files import Lock
from mirror.util.signals import InterruptibleSleep, Signals
from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.seeding import seed
from tests.support.tool import ROOT, MirrorTool

BLOB_FIELDS = {
    *("ts", "level", "event", "run", "source", "target", "image", "digest", "size", "outcome"),
    *("from", "bytes_read", "bytes_sent", "attempt", "seconds", "code"),
}


def test_the_log_has_one_record_for_each_blob_and_manifest_of_each_repository(
    source: RealRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    seeded = seed(source, "app", repositories=2, images=3, index=True)
    targets = [registry_factory("one"), registry_factory("two")]
    mirrors = [
        {"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}" for target in targets]}
        for name in seeded.repositories
    ]
    mirror_run.config(mirrors, source, *targets)
    mirror_run.sync()
    lines = [line for line in mirror_run.log() if line["event"] in ("blob", "manifest")]
    assert {frozenset(BLOB_FIELDS)} == {frozenset(line) for line in lines}
    told = Counter((line["target"], line["digest"]) for line in lines)
    assert {1} == set(told.values())
    assert 2 * (len(seeded.blobs) + len(seeded.shared) + len(seeded.manifests)) == len(told)
    totals = mirror_run.report()["totals"]
    manifests = [line for line in lines if line["digest"] in seeded.manifests]
    assert {"manifest": 2 * len(set(seeded.tags.values()))} == Counter(
        line["event"] for line in lines if line["event"] != "blob"
    )
    assert {("copied", 0, 0)} == {(line["outcome"], line["bytes_read"], line["bytes_sent"]) for line in manifests}
    outcomes = Counter(line["outcome"] for line in lines if line not in manifests)
    assert {"copied": 2 * len(seeded.blobs), "mounted": 2 * len(seeded.shared)} == outcomes
    assert outcomes == {name: totals["blobs"][name] for name in ("copied", "mounted")}
    assert totals["bytes"]["read"] == sum(line["bytes_read"] for line in lines) == sum(seeded.blobs.values())
    assert totals["bytes"]["sent"] == sum(line["bytes_sent"] for line in lines) == 2 * sum(seeded.blobs.values())


def test_bytes_copied_for_a_failed_image_are_in_the_totals(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source)
    target.fault("PUT manifest", status=400, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    totals = mirror_run.report()["totals"]
    assert {"copied": len(graph.blobs), "failed": 0} == {name: totals["blobs"][name] for name in ("copied", "failed")}
    assert sum(map(len, graph.blobs.values())) == totals["bytes"]["sent"] == totals["bytes"]["read"]


def logged_blobs(tool: MirrorTool) -> list[str]:
    return [line["outcome"] for line in tool.log() if line["event"] == "blob"]


def test_blobs_copied_before_another_failed_are_in_the_totals(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source)
    last, others = list(graph.blobs)[-1], threading.Event()
    late = source.fault("GET blob", reference=last, stall=others, status=404, times=FOREVER)
    pair(mirror_run, source, target)

    def release() -> None:
        # The log shows that the tool has read the responses.
        eventually(lambda: len(graph.blobs) - 1 == len(logged_blobs(mirror_run)), within=60)
        others.set()

    waiting = threading.Thread(target=release)
    waiting.start()
    mirror_run.sync(expect=1)
    waiting.join()
    assert late.hits
    totals = mirror_run.report()["totals"]
    logged = Counter(logged_blobs(mirror_run))
    assert {"copied": len(graph.blobs) - 1, "failed": 1} == logged
    assert logged == {name: totals["blobs"][name] for name in ("copied", "failed")}
    assert totals["bytes"]["sent"] == sum(len(data) for digest, data in graph.blobs.items() if digest != last)


def test_plain_progress_is_written_to_stderr_and_results_to_stdout(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "app", images=2)
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--progress", "plain")
    assert_synced(source, target)
    assert "2 copied" in ran.out
    assert "\x1b" not in ran.text
    assert "copied" not in ran.err


def test_quiet_prints_only_failures_and_warnings(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "app", images=2)
    pair(mirror_run, source, target)
    assert "" == mirror_run.sync("-q").text
    assert "" == mirror_run.sync("-q").text
    include = {"tags": {"include": ["v*", ".*"]}}
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}
    mirror_run.config([mirror | include], source, target)
    ran = mirror_run.sync("-q")
    assert ("", 1) == (ran.out, ran.err.count("warning: "))
    mirror_run.config([mirror], source, target)
    source.stop()
    ran = mirror_run.sync("-q", expect=1)
    assert ("", True) == (ran.out, source.host in ran.err)
    assert [] == [line for line in ran.err.splitlines() if line.startswith(("images:", "blobs:", "cost:"))]
    mirror_run.config(
        [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": {"include": ["v*"]}}]
    )
    assert "warning: " in mirror_run.sync("-q", expect=1).err


def test_a_second_run_prints_nothing_if_it_is_quiet(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    mirror_run.sync()
    with Lock(mirror_run.state / "lock").acquire(0.0, InterruptibleSleep(Signals())):
        assert "" == mirror_run.sync("-q", expect=75).text
        assert "mirror: " in mirror_run.sync(expect=75).err


def test_a_sync_lists_what_it_changed(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("one image")
    image = graph.image("v0")
    graph.tags |= {f"v{number}": image.digest for number in range(60)}
    source.load("app", graph)
    old = loaded(target, "v1", size=10).tags["v1"]
    pair(mirror_run, source, target)
    ran = mirror_run.sync()
    lines = ran.out.splitlines()
    rows = {row[0]: row[1:] for line in lines if (row := line.split())[0] in graph.tags}
    assert [f"v{number}" for number in range(50)] == list(rows)  # 10 follows 9
    assert ["moved", old[7:19], "->", graph.tags["v1"][7:19]] == rows["v1"][:4]
    assert ["new", graph.tags["v2"][7:19]] == rows["v2"][:2]
    assert 1 == sum(f"{target.host}/app" in line for line in lines)
    assert 1 == sum(line.startswith("  and 10 more, ") for line in lines)
    changes = {image["target"].rpartition(":")[2]: image for image in mirror_run.report()["images"]}
    assert ("moved", old) == (changes["v1"]["change"], changes["v1"]["old_digest"])
    assert ("new", None) == (changes["v2"]["change"], changes["v2"]["old_digest"])
    target.storage.repositories["app"].tags.clear()
    ran = mirror_run.sync("-v")
    assert set(graph.tags) <= {line.split()[0] for line in ran.out.splitlines()}
    assert 1 == len(mirror_run.sync().out.splitlines())
    assert {None} == {image.get("change") for image in mirror_run.report()["images"]}


def test_content_that_a_target_lacked_under_an_unchanged_tag_is_a_change(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source)
    pair(mirror_run, source, target)
    mirror_run.sync()
    target.storage.repositories["app"].blobs.discard(next(iter(graph.blobs)))
    assert "completed" in mirror_run.sync("--deep").out.split()
    assert ["completed"] == [image["change"] for image in mirror_run.report()["images"]]


def test_the_report_is_also_written_to_the_given_path_and_failed_txt_selects_images_of_the_next_run(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2", "v3")
    ill = target.fault("PUT manifest", reference="v2", status=400, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync("--report", tmp_path / "copy.json", expect=1)
    assert mirror_run.report() == json.loads((tmp_path / "copy.json").read_text())
    assert [f"{source.host}/app:v2"] == mirror_run.failed()
    ill.times = 0
    target.mark()
    failed = next(mirror_run.state.rglob("failed.txt"))
    mirror_run.sync("--only-from", failed)
    assert {f"{target.host}/app:v2": "copied"} == mirror_run.results()
    assert ["v2"] == [
        seen.reference for seen in target.requests() if seen.kind == "PUT manifest" and seen.reference[0] == "v"
    ]
    assert_synced(source, target)
    assert_whole(target)


def test_the_report_counts_the_requests_that_the_registries_received(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "app", repositories=2, images=2, index=True)
    pair(mirror_run, source, target, "app-0", "app-1")
    source.mark()
    target.mark()
    mirror_run.sync()
    said = mirror_run.report()["totals"]["requests"]
    assert source.counts().total() == sum(said[source.host].values())
    assert target.counts().total() == sum(said[target.host].values())


def test_a_report_never_replaces_a_file_that_the_run_uses(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    password, log, only, link = (tmp_path / name for name in ("password", "log", "only", "link"))
    password.write_text("a-secret-of-eight")
    only.write_text("*\n")
    link.symlink_to(password)
    login = {target.host: {"username": "u", "password": {"file": str(password)}}}
    pair(mirror_run, source, target, registries=login, log={"file": str(log)})
    mirror_run.sync()
    inside = [path for path in mirror_run.state.rglob("*") if path.is_file() and path.name != "report.json"]
    assert {"lock", "failed.txt"} < {path.name for path in inside}
    not_yet = [mirror_run.state / "state.sqlite3-wal", mirror_run.state / "mirror.log.1"]
    used = [mirror_run.config_file, password, log, only, link, *inside]
    before = [path.read_bytes() for path in used]
    target.mark()
    source.mark()
    for path in [*used, *not_yet, Path("-")]:
        ran = mirror_run.sync("--only-from", only, "--report", path, expect=2)
        assert f"--report {path}" in ran.err
    assert before == [path.read_bytes() for path in used]
    assert [] == source.requests() == target.requests()
    mirror_run.sync("--report", mirror_run.state / "report.json")
    mirror_run.sync("--report", mirror_run.state / "last.json")
    assert mirror_run.report() == json.loads((mirror_run.state / "last.json").read_text())


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/null"])
def test_a_report_path_that_is_a_pipe_or_device_is_refused_at_the_start(
    path: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target)
    ran = mirror_run.finish(mirror_run.start("sync", mirror_run.config_file, "--report", path))  # with pipes
    assert 4 == ran.code
    assert f"mirror: cannot write the report to {path}: it is not a regular file (choose another file)\n" == ran.err
    assert [] == source.requests() == target.requests()


@pytest.mark.parametrize("rules", [{}, {"tags": ["v1"]}, {"tags": {"include": ["v1"]}}], ids=["all", "named", "some"])
def test_an_only_pattern_without_matches_fails_and_the_others_are_copied(
    rules: dict[str, object], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    app = f"{source.host}/app"
    mirror_run.config([{"source": app, "targets": [f"{target.host}/app"], **rules}], source, target)
    only = ("--only", f"{app}:v1", "--only", f"{app}:nope")
    planned = mirror_run("sync", mirror_run.config_file, "--dry-run", *only)
    said = f"--only {app}:nope selects nothing"
    assert (1, True) == (planned.code, said in planned.out)
    for quiet in ([], ["-q"]):
        ran = mirror_run.sync(*only, *quiet, expect=1)
        assert said in ran.err
        assert 1 == mirror_run.report()["exit"]
    assert {f"{target.host}/app:v1": "up-to-date"} == mirror_run.results()
    mirror_run.sync("--only", app)


def test_verify_checks_the_images_of_only_and_fails_if_there_are_none(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    app = f"{source.host}/app"
    mirror_run.config([{"source": app, "targets": [f"{target.host}/app"]}], source, target)
    mirror_run.sync("--only", f"{app}:v1")
    ran = mirror_run("verify", mirror_run.config_file, "--only", f"{app}:v1")
    assert (0, True) == (ran.code, "verified: 1 image," in ran.out)
    ran = mirror_run("verify", mirror_run.config_file, "--only", f"{app}:v1", "-q")
    assert (0, "", "") == (ran.code, ran.out, ran.err)
    assert 1 == mirror_run("verify", mirror_run.config_file).code
    said = f"--only {app}:nope selects nothing"
    for quiet in ([], ["-q"]):
        ran = mirror_run("verify", mirror_run.config_file, "--only", f"{app}:nope", *quiet)
        assert (1, True) == (ran.code, said in ran.out)


@pytest.mark.parametrize("command", ["sync", "plan", "verify"])
def test_an_only_pattern_that_cannot_match_is_a_usage_error(
    command: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    mirrors = [
        {"source": f"{source.host}/team/*", "targets": [f"{target.host}/{{repository}}"]},
        {"source": f"{source.host}/app", "targets": [f"{target.host}/app"]},
    ]
    mirror_run.config(mirrors, source, target)
    pattern = f"{source.host}/taem/*"
    options = ["--dry-run"] if command == "plan" else []
    ran = mirror_run("verify" if command == "verify" else "sync", mirror_run.config_file, "--only", pattern, *options)
    assert 2 == ran.code
    assert f"mirror: --only {pattern} matches no source" in ran.err
    assert [] == [*source.requests(), *target.requests()]


def test_an_only_pattern_whose_repository_cannot_be_listed_causes_one_error(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    source.fault("GET tags", status=403, times=FOREVER)
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--only", f"{source.host}/app:v1", expect=1)
    assert "selects nothing" not in ran.text


def test_each_blob_of_an_image_that_is_pushed_twice_is_counted_once(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1")
    loaded(target, "other")
    digest, data = next(iter(graph.blobs.items()))
    size = ("Content-Length", str(len(data)))
    target.fault("HEAD blob", reference=digest, status=200, headers=(size,), body=b"")  # the blob does not exist
    pair(mirror_run, source, target)
    assert "the target lacks a blob" in mirror_run.sync().err
    totals = mirror_run.report()["totals"]
    assert {"copied": len(graph.blobs)} == {name: count for name, count in totals["blobs"].items() if count}
    assert totals["bytes"]["sent"] == sum(len(blob) for blob in graph.blobs.values())


# ---- failures by cause


def test_a_thousand_images_behind_one_password_are_at_most_eight_lines(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", users={"acme": "the-right-password"})
    graph = Graph("one image")
    image = graph.image("v0")
    graph.tags |= {f"v{number}": image.digest for number in range(100)}
    for number in range(10):
        source.load(f"team/app-{number}", graph)
    login = {target.host: {"username": "acme", "password": {"env": "PUSH_PASSWORD"}}}
    environment = {"COLUMNS": "80", "PUSH_PASSWORD": "the-wrong-password"}
    mirrors = [{"source": f"{source.host}/team/*", "targets": [f"{target.host}/hub/*"]}]
    mirror_run.config(mirrors, source, target, registries=login)
    for command, count in [("sync", 1000), ("plan", 100), ("verify", 100)]:
        if command == "plan":
            pair(mirror_run, source, target, "team/app-0", registries=login)
        ran = mirror_run(command, mirror_run.config_file, environment=environment)
        lines = [line for line in ran.text.splitlines() if "without encryption" not in line]
        assert (1, True) == (ran.code, len(lines) <= 8), ran
        assert 1 == ran.out.count(f"failed: {count} images: ")
        assert {"(auth_failed,", "401)", "acme,", target.host, str(count - 3), "hint:"} <= set(ran.out.split())
        assert [] == [line for line in lines if len(line) > 80 and str(mirror_run.folder) not in line]
    errors = [image["error"] for image in mirror_run.report()["images"]]
    assert (1000, {target.host}) == (len(errors), {error["host"] for error in errors})
    assert 1000 == sum(line["event"] == "image_failed" for line in mirror_run.log())


def test_three_causes_are_three_blocks(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, *(f"v{number}" for number in range(5)))
    loaded(source, *(f"v{number}" for number in range(4)), repository="other")
    loaded(source, "v1", "v2", "v3", repository="lost")
    source.fault("GET manifest", repository="lost", status=451, times=FOREVER)
    target.fault("PUT manifest", repository="app", status=400, times=FOREVER)
    target.fault("POST upload", repository="other", status=403, times=FOREVER)
    pair(mirror_run, source, target, "app", "other", "lost")
    ran = mirror_run.sync(expect=1)
    blocks = [line for line in ran.out.splitlines() if line.startswith("failed: ")]
    assert [("5", f"{target.host}:"), ("4", f"{target.host}:"), ("3", f"{source.host}:")] == [
        (line.split()[1], line.split()[3]) for line in blocks
    ]
    assert ["bad_response, 400)", "auth_denied, 403)", "bad_response, 451)"] == [
        line.rpartition("(")[2] for line in blocks
    ]


def test_a_denied_request_names_the_account(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target", users={"acme": "the-password"})
    loaded(source, "v1", "v2")
    target.fault("POST upload", status=403, times=FOREVER)
    login = {target.host: {"username": "acme", "password": {"env": "PUSH_PASSWORD"}}}
    pair(mirror_run, source, target, registries=login)
    ran = mirror_run.sync(expect=1, environment={"PUSH_PASSWORD": "the-password"})
    account = "user acme, password from env PUSH_PASSWORD"
    assert {("auth_denied", target.host, account)} == {
        (image["error"]["code"], image["error"]["host"], image["error"]["account"])
        for image in mirror_run.report()["images"]
    }
    assert 1 == ran.out.count(f"account: {account}")
    mirror_run.sweep("the-password")


# ---- for programs


def test_verify_writes_a_report_with_every_problem(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2", "v3")
    pair(mirror_run, source, target)
    mirror_run.sync()
    del target.storage.repositories["app"].tags["v2"]
    before = mirror_run.report()
    report = tmp_path / "verify.json"
    ran = mirror_run("verify", mirror_run.config_file, "-q", "--report", report)
    document = json.loads(report.read_text())
    assert (1, 1, "verify", before["totals"].keys()) == (
        *(ran.code, document["exit"], document["command"]),
        document["totals"].keys(),
    )
    assert {"v1": "up-to-date", "v2": "failed", "v3": "up-to-date"} == {
        image["target"].rpartition(":")[2]: image["result"] for image in document["images"]
    }
    (error,) = [image["error"] for image in document["images"] if "error" in image]
    assert ("not_found", target.host) == (error["code"], error["host"])
    assert f"`mirror sync {mirror_run.config_file}`" in error["hint"]
    assert before == mirror_run.report()
    pair(mirror_run, source, target, "app", "gone")
    del target.storage.repositories["app"].tags["v3"]
    mirror_run("verify", mirror_run.config_file, "--report", report)
    totals = json.loads(report.read_text())["totals"]
    assert [2, 1] == [totals["mirrors"][f"{source.host}/{name}"]["failed"] for name in ("app", "gone")]
    assert 3 == totals["images"]["failed"]
    out = mirror_run("verify", mirror_run.config_file, "--deep").out
    assert f"details: run `mirror verify --deep {mirror_run.config_file} --report verify.json`" in out
    assert sorted(["verify.json"]) == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    for path, code in [(mirror_run.config_file, 2), (tmp_path / "none" / "x.json", 4)]:
        source.mark()
        assert code == mirror_run("verify", mirror_run.config_file, "--report", path).code
        assert [] == source.requests()


def test_plan_prints_json_with_the_documented_fields(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "same", "moved", "new")
    loaded(target, "moved", size=3001)
    app = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}
    gone = {"source": f"{source.host}/gone", "targets": [f"{target.host}/gone"]}
    mirror_run.config([{**app, "tags": ["same"]}], source, target)
    mirror_run.sync()
    lock = mirror_run.folder / "app.lock"
    mirror_run.config([{**app, "tags": {"exclude": ["x.*"]}}], source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file, "-o", lock).code
    ran = mirror_run("plan", mirror_run.config_file, "--json", "--exit-code", "--locked", lock)
    assert (10, []) == (ran.code, json.loads(ran.out)["drift"])
    mirror_run.config([{**app, "tags": {"exclude": ["x.*"]}}, gone], source, target)
    ran = mirror_run("plan", mirror_run.config_file, "--json", "--exit-code")
    plan = json.loads(ran.out)
    old = target.storage.repositories["app"].tags["moved"]
    assert (1, 1) == (ran.code, plan["exit"])
    assert {"copy": 2, "up-to-date": 1, "failed": 1, "skipped": 0} == plan["totals"]["images"]
    assert [("app:moved", "changed", old), ("app:new", "new", None)] == [
        (image["target"].partition("/")[2], image["change"], image["old_digest"]) for image in plan["images"]
    ]
    assert [{"GET manifest": 3}] * 2 == [image["requests"] for image in plan["images"]]
    assert [("fail", "not_found")] == [(failed["action"], failed["error"]["code"]) for failed in plan["failures"]]
    text = (ROOT / "docs" / "operations.md").read_text()
    documented = json.loads(text.partition("### The plan as JSON")[2].partition("```json")[2].partition("```")[0])
    assert documented.keys() - {"drift"} == plan.keys()
    assert documented["images"][0].keys() == plan["images"][0].keys()
    assert documented["totals"].keys() == plan["totals"].keys()
    assert documented["failures"][0].keys() == plan["failures"][0].keys()
    assert documented["failures"][0]["error"].keys() - {"account"} == plan["failures"][0]["error"].keys()
    assert set(documented["left_out"]["tags"].popitem()[1]) == set(plan["left_out"]["tags"].popitem()[1])
