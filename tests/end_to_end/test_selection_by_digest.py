"""`min-age` and `newest` by date with whole commands: what is copied, what is printed, and what it costs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, no_v2, tar
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool

DAY = 86400


def configure(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, tags: Any, **keys: Any) -> None:
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": tags, **keys}
    tool.config([mirror], source, target)


def age(tool: MirrorTool, days: float) -> None:
    """Change the state as if this time had passed since its ages were recorded."""
    with closing(sqlite3.connect(tool.state / "state.sqlite3")) as database, database:
        database.execute("UPDATE first_seen SET time = time - ?", (int(days * DAY),))


def test_a_tag_is_copied_after_it_has_waited_and_its_old_image_stays_while_a_new_one_waits(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", first := Graph("first"))
    first.image("v1", "v2")
    source.load("app", first)
    configure(mirror_run, source, target, {"min-age": "3 d"})
    waits = "tags left out: 2 wait for min-age, the first until 20"
    assert waits in mirror_run("plan", mirror_run.config_file).out
    mirror_run.sync()
    assert ([], {}) == (target.writes(), mirror_run.results())
    age(mirror_run, 2.9)
    ran = mirror_run("plan", "--exit-code", mirror_run.config_file)
    assert (0, True) == (ran.code, waits in ran.out)
    age(mirror_run, 0.2)
    assert 10 == mirror_run("plan", "--exit-code", mirror_run.config_file).code
    source.mark()
    mirror_run.sync()
    assert {f"{target.host}/app:v1": "copied", f"{target.host}/app:v2": "copied"} == mirror_run.results()
    assert 2 == source.counts()["HEAD manifest"]

    second = Graph("second")
    moved = second.image("v1")
    source.load("app", second)
    mirror_run.sync()
    assert {f"{target.host}/app:v2": "up-to-date"} == mirror_run.results()
    assert first.tags["v1"] == target.manifest("app", "v1").headers["docker-content-digest"]
    assert "1 waits for min-age, until 20" in mirror_run("plan", mirror_run.config_file).out
    assert "verified: 1 image" in mirror_run("verify", mirror_run.config_file).out
    mirror_run.sync("--deep")
    assert first.tags["v1"] == target.manifest("app", "v1").headers["docker-content-digest"]
    age(mirror_run, 3)
    mirror_run.sync()
    assert moved.digest == target.manifest("app", "v1").headers["docker-content-digest"]
    assert_whole(target, "app")


def test_the_newest_of_200_images_are_found_by_reading_each_config_once(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, graph = scripted("source"), scripted("target"), Graph("dated")
    layer = graph.layer(size=100)
    tags = [f"{(number * 7919) % 100_003:08x}" for number in range(200)]
    for number, tag in enumerate(tags):
        graph.image(tag, layers=[layer], label=tag, created=f"2024-01-01T00:{number // 60:02}:{number % 60:02}Z")
    source.load("app", graph)
    newest = {f"{target.host}/app:{tag}": "copied" for tag in tags[-5:]}
    configure(mirror_run, source, target, {"newest": {"count": 5, "by": "created"}})
    mirror_run.sync()
    assert newest == mirror_run.results()
    reads = [(seen.kind, seen.reference) for seen in source.requests() if seen.kind in ("GET manifest", "GET blob")]
    assert len(set(reads)) == len(reads), "something was read twice"
    assert {"GET manifest": 200, "GET blob": 200 + 1} == Counter(kind for kind, _ in reads)  # configs, and one layer

    for arguments in (("sync", "-q"), ("plan",), ("verify", "-q")):
        source.mark()
        ran = mirror_run(arguments[0], mirror_run.config_file, *arguments[1:])
        assert 0 == ran.code, ran
        requests = source.counts()
        probes = {"GET referrers": 1} if arguments[0] == "verify" else {}  # the source lacks the referrers API
        assert {"HEAD manifest": 200, "GET tags": requests["GET tags"], **probes} == requests
    assert "195 by newest" in mirror_run.runs[-2].out

    for file in mirror_run.state.glob("state.sqlite3*"):
        file.unlink()
    source.mark()
    mirror_run.sync()
    assert dict.fromkeys(newest, "up-to-date") == mirror_run.results()
    assert (200, 200) == (source.counts()["GET manifest"], source.counts()["GET blob"])
    assert sorted(tags[-5:]) == target.tags("app")
    assert_whole(target, "app")


def test_images_of_an_old_registry_are_ordered_by_the_dates_in_their_descriptions(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.v1, source.hook = V1(), no_v2
    images = [source.v1.image(gz(tar(file=b"%d" % number))) for number in range(4)]  # one for each day
    source.v1.tag("app", c=images[0], a=images[2], d=images[3], b=images[1])
    configure(mirror_run, source, target, {"newest": {"count": 2, "by": "created"}}, v1="only")
    ran = mirror_run("plan", mirror_run.config_file)
    assert f"{source.host}/app: the creation dates of 4 images are not recorded" in ran.out
    mirror_run.sync()
    assert ["a", "d"] == target.tags("app")
    source.mark()
    mirror_run.sync()
    assert [] == [seen.path for seen in source.requests() if seen.path.endswith("/json")]


def test_too_few_tags_in_one_repository_of_a_wildcard_fail_only_this_repository(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for repository, tags in (("team/app", ("1.0", "1.1", "latest")), ("team/web", ("1.0", "latest"))):
        graph = Graph(repository)
        for tag in tags:
            graph.image(tag)
        source.load(repository, graph)
    mirror = {
        "source": f"{source.host}/team/*",
        "targets": [f"{target.host}/{{repository}}"],
        "tags": {"semver": ">=1", "min-tags": 2},
    }
    mirror_run.config([mirror], source, target)
    for command in ("plan", "sync", "verify"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 1 == ran.code, ran
        assert "team/web: 1 tag is selected, but `min-tags` is 2" in ran.text
    assert ["1.0", "1.1"] == target.tags("app")
    failed = {image["source"]: image["error"]["code"] for image in mirror_run.report()["images"] if "error" in image}
    assert {f"{source.host}/team/web": "tag_count"} == failed
    assert f"{source.host}/team/app: tags left out: 1 by semver (no version)" in mirror_run.runs[0].out
