"""Tag rules that select nothing, and sources that list nothing, are never a silent success."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries.exchange import json_reply
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.tool import MirrorTool


@pytest.fixture
def both(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, ScriptedRegistry]:
    return scripted("source"), scripted("target")


def configure(
    tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, what: str, tags: Any, **keys: Any
) -> str:
    """Configure one mirror of `what` with the rules `tags`; return its source as reports name it."""
    copy = f"{target.host}/{what.replace('*', '{repository}')}"
    mirror = {"source": f"{source.host}/{what}", "targets": [copy], "tags": tags}
    tool.config([mirror], source, target, **keys)
    return str(mirror["source"])


def assert_fails_everywhere(tool: MirrorTool, name: str, *says: str) -> None:
    """Check that `sync`, `sync -q`, `plan` and `verify` exit 1 and report that no tag of `name` is selected, with one
    report entry."""
    ran = [tool.sync(expect=1), tool.sync("-q", expect=1)]
    ran += [tool("plan", tool.config_file), tool("verify", tool.config_file)]
    for one in ran:
        assert 1 == one.code, one
        for text in (name, *says):
            assert text in one.text, one
    [entry] = tool.report()["images"]
    assert (name, "failed", "nothing_selected") == (entry["source"], entry["result"], entry["error"]["code"])
    assert not entry["error"]["retryable"]
    assert [name] == tool.failed()


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"include": ["v*"]}, ("2 by include", "'v.*'")),
        ({"exclude": [".*"]}, ("2 by exclude .*",)),
        ({"include": [r"v\d+"], "exclude": ["v1", "v.*"]}, ("1 by exclude v1",)),
    ],
    ids=["include", "exclude", "both"],
)
def test_a_mirror_whose_rules_select_none_of_its_tags_fails(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool, tags: Any, says: tuple[str, ...]
) -> None:
    source, target = both
    loaded(source, "v1", "v22")
    name = configure(mirror_run, source, target, "app", tags)
    assert_fails_everywhere(mirror_run, name, *says)
    assert [] == target.writes()
    again = mirror_run.sync("--only-from", next(mirror_run.state.rglob("failed.txt")), expect=1)
    assert "selects nothing" not in again.text


def test_allow_empty_makes_an_empty_selection_a_success(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    loaded(source, "latest")
    configure(mirror_run, source, target, "app", {"include": [r"v\d+"], "allow-empty": True})
    ran = mirror_run.sync("-q")
    assert "" == ran.text
    assert 0 == mirror_run("plan", mirror_run.config_file).code
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    configure(mirror_run, source, target, "app", {"include": [r"v\d+"]}, defaults={"tags": {"allow-empty": True}})
    mirror_run.sync(expect=1)  # `tags` of a mirror replaces the whole `tags` of the defaults


def test_a_wildcard_fails_only_if_the_rules_select_no_tag_of_any_repository(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    loaded(source, "v1", repository="team/app")
    loaded(source, "latest", repository="team/web")
    configure(mirror_run, source, target, "team/*", {"include": [r"v\d+"]})
    assert "" == mirror_run.sync("-q").text
    assert {f"{target.host}/team/app:v1": "copied"} == mirror_run.results()
    # A partial run without selected tags in its repositories does not fail if other repositories have one.
    for shard in ("0/2", "1/2"):
        assert 0 == mirror_run("sync", mirror_run.config_file, "-q", "--shard", shard).code
    for file in mirror_run.state.rglob("shard-*/*"):
        file.unlink() if file.is_file() else None
    name = configure(mirror_run, source, target, "team/*", {"include": ["v*"]})
    assert_fails_everywhere(mirror_run, name, "2 by include", "'v.*'")
    configure(mirror_run, source, target, "team/*", {"include": ["v*"], "allow-empty": True})
    mirror_run.sync()


def test_every_shard_of_a_wildcard_that_selects_nothing_fails(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    for number in range(16):  # so many that each shard has some, whatever the port of the source is
        loaded(source, "latest", repository=f"team/app-{number}")
    configure(mirror_run, source, target, "team/*", {"include": ["v*"]})
    for shard in ("0/2", "1/2"):
        assert 1 == mirror_run("sync", mirror_run.config_file, "--shard", shard).code


def test_a_wildcard_with_an_unlistable_repository_reports_only_that_error(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    loaded(source, "v1", repository="team/app")
    loaded(source, "latest", repository="team/web")
    source.fault("GET tags", repository="team/app", status=403, times=FOREVER)
    configure(mirror_run, source, target, "team/*", {"include": [r"v\d+"]})
    mirror_run.sync(expect=1)
    assert ["auth_denied"] == [image["error"]["code"] for image in mirror_run.report()["images"]]


@pytest.mark.parametrize("v1", ["auto", "never"])
def test_a_source_that_lists_no_tags_is_warned_about(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool, v1: str
) -> None:
    source, target = both
    source.create("app")
    source.features.empty_is_unknown = False
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "v1": v1}
    mirror_run.config([mirror], source, target)
    for command in ("sync", "plan", "verify"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 0 == ran.code, ran
        assert 1 == ran.err.count(f"{source.host}/app lists no tags"), ran
    assert 1 == len([line for line in mirror_run.log() if line["event"] == "no_tags"])


def test_a_source_whose_list_of_tags_is_null_is_warned_about(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    loaded(source, "v1")
    source.fault("GET tags", hook=lambda _: json_reply(200, {"name": "app", "tags": None}), times=FOREVER)
    configure(mirror_run, source, target, "app", {"include": [r"v\d+"]})
    assert f"{source.host}/app lists no tags" in mirror_run.sync().err


def test_validate_warns_about_a_pattern_that_looks_like_a_shell_pattern(
    mirror_run: MirrorTool,
) -> None:
    mirrors = [
        {
            "source": "a.example.com/app",
            "targets": ["b.example.com/app"],
            "tags": {"include": ["v*", "1.*-slim", r"v\d+"], "exclude": ["rc*"], "immutable": ["1.2*", "v?1.*"]},
        }
    ]
    mirror_run.config(mirrors)
    ran = mirror_run("validate", mirror_run.config_file)
    assert 0 == ran.code
    for path, instead in (("include[0]", "v.*"), ("exclude[0]", "rc.*"), ("immutable[0]", r"1\.2.*")):
        assert f"mirrors[0].tags.{path}: " in ran.text
        assert f"write '{instead}'" in ran.text
    assert 3 == ran.text.count("shell pattern")
    mirrors[0]["tags"] = {"include": ["*-alpine"]}
    mirror_run.config(mirrors)
    ran = mirror_run("validate", mirror_run.config_file)
    assert 2 == ran.code
    assert "write '.*-alpine'" in ran.text


def test_every_shard_warns_about_a_pattern_that_selects_nothing(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    for number in range(16):  # so many that each shard has some, whatever the port of the source is
        loaded(source, "v1", *(["rare"] if number == 3 else []), repository=f"team/app-{number}")
    configure(mirror_run, source, target, "team/*", {"include": [".*"]})
    patterns = [f"{source.host}/team/*:{tag}" for tag in ("nope", "rare", "v1")]
    only = [argument for pattern in patterns for argument in ("--only", pattern)]
    warnings = []
    for number in range(2):
        ran = mirror_run("sync", mirror_run.config_file, "--shard", f"{number}/2", *only)
        assert 0 == ran.code, "another shard may find it"
        warnings.append([one for one in patterns if f"--only {one} selects nothing in this shard" in ran.err])
    assert [patterns[:1], patterns[:2]] == sorted(warnings)
    assert ["rare", "v1"] == target.tags("team/app-3")
    assert 1 == mirror_run("sync", mirror_run.config_file, *only).code
