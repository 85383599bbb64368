"""`mirror explain`: which rule selects a reference, what each side has, and what a sync would do, without writing."""

from __future__ import annotations

import json
import shutil
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import pair
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph, tag_of
from tests.support.signing import signing_key
from tests.support.tool import MirrorTool, Ran


def images(label: str, *tags: str) -> Graph:
    """Make an image for each tag; the label makes their digests different from those of other labels."""
    graph = Graph(label)
    for tag in tags:
        graph.image(tag, label=f"{label} {tag}")
    return graph


def explained(tool: MirrorTool, reference: str, expect: int = 0) -> dict[str, Any]:
    """Return the only mirror in the JSON of `explain`."""
    ran = tool("explain", tool.config_file, reference, "--json")
    assert expect == ran.code, ran
    document = json.loads(ran.out)
    assert (1, reference) == (document["schema"], document["reference"])
    [mirror] = document["mirrors"]
    assert isinstance(mirror, dict)
    return mirror


def unwritten(tool: MirrorTool, *registries: ScriptedRegistry) -> None:
    """Check that nothing was written, neither to the registries nor to the state."""
    assert [] == [seen for registry in registries for seen in registry.writes()]
    assert not tool.state.exists()


def test_a_reference_is_explained_with_its_rule_both_digests_and_the_action(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    new, old = images("new", "v1", "v2", "v3", "v4-rc", "w1"), images("old", "v1", "v3")
    source.load("team/app", new)
    target.load("copy/app", old)
    target.load("copy/app", images("new", "w1"))
    mirror = {
        "source": f"{source.host}/team/*",
        "targets": [f"{target.host}/copy/{{repository}}"],
        "repositories": {"exclude": ["old"]},
        "tags": {"include": [r"[vw]\d.*"], "exclude": [".*-rc"], "immutable": ["v3"]},
    }
    mirror_run.config([mirror], source, target)
    name, copy = f"{source.host}/team/app", f"{target.host}/copy/app"
    found = {tag: explained(mirror_run, f"{name}:{tag}") for tag in ("v1", "v2", "v3", "v4-rc", "w1", "latest", "v9")}
    assert found["v1"] == explained(mirror_run, f"{copy}:v1"), "a target leads to its source"
    assert {
        "mirror": "mirrors[0]",
        "file": str(mirror_run.config_file),
        "line": mirror_run.config_file.read_text().splitlines().index(f"- source: {source.host}/team/*") + 1,
        "source": f"{name}:v1",
        "selected": True,
        "rule": "include",
        "reason": r"it matches the pattern [vw]\d.* of `include`",
        "digest": new.tags["v1"],
        "error": None,
        "targets": [
            {
                "target": f"{copy}:v1",
                "digest": old.tags["v1"],
                "error": None,
                "action": "copy",
                "reason": "the digests differ: the tag has moved at the source, or was changed on the target",
            }
        ],
    } == found["v1"]
    assert {
        "v1": (True, "include", "copy"),
        "v2": (True, "include", "copy"),
        "v3": (True, "include", "conflict"),
        "v4-rc": (False, "exclude .*-rc", "none"),
        "w1": (True, "include", "skip"),
        "latest": (False, "include", "none"),
        "v9": (False, "source", "none"),
    } == {tag: (one["selected"], one["rule"], one["targets"][0]["action"]) for tag, one in found.items()}
    assert "the target does not have it" == found["v2"]["targets"][0]["reason"]
    assert new.tags["v4-rc"] == found["v4-rc"]["digest"]
    assert "not_found" == found["v9"]["error"]["code"]
    assert [
        f"{name}:v3: {mirror_run.config_file}:{found['v1']['line']} (mirrors[0])",
        r"  selection: selected: it matches the pattern [vw]\d.* of `include`",
        f"  source:    {new.tags['v3']}",
        f"  target:    {copy}:v3: {old.tags['v3']}",
        f"    a sync would report a conflict: the tag is immutable, but the target has {old.tags['v3']} and the source "
        f"has {new.tags['v3']} (nothing was overwritten: find out why the tag has changed)",
    ] == mirror_run("explain", mirror_run.config_file, f"{name}:v3").out.splitlines()
    found = {one: explained(mirror_run, f"{source.host}/team/{one}") for one in ("app", "old", "none")}
    assert {
        "app": (True, "", "4 tags"),
        "old": (False, "repositories: exclude old", f"the rule `repositories: exclude old` leaves out {name[:-3]}old"),
        "none": (False, "source", f"the catalog does not contain {name[:-3]}none"),
    } == {one: (each["selected"], each["rule"], each["reason"]) for one, each in found.items()}
    assert not explained(mirror_run, f"{target.host}/copy/old:v1")["selected"]
    unwritten(mirror_run, source, target)


def test_a_repository_is_explained_with_the_number_of_its_tags(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", images("new", "v1", "v2", "rc"))
    target.load("app", images("new", "v1"))
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": {"exclude": ["rc"]}}
    mirror_run.config([mirror], source, target)
    found = explained(mirror_run, f"{source.host}/app")
    assert (True, "2 tags", {"exclude rc": 1}) == (found["selected"], found["reason"], found["rejected"])
    assert [{"target": f"{target.host}/app", "actions": {"copy": 1, "skip": 1}}] == found["targets"]
    ran = mirror_run("explain", mirror_run.config_file, f"{source.host}/app")
    assert ["  selection: selected: 2 tags", "    1 left out by exclude rc"] == ran.out.splitlines()[1:3]
    assert f"  target:    {target.host}/app: 1 to copy, 1 up to date" in ran.out.splitlines()


def test_what_cannot_be_determined_has_exit_code_1(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", images("new", "v1"))
    pair(mirror_run, source, target)
    source.fault("GET tags", status=403, times=FOREVER)
    found = explained(mirror_run, f"{source.host}/app:v1", expect=1)
    assert (None, "fail") == (found["selected"], found["targets"][0]["action"])
    assert "403" in found["reason"]
    source.faults.clear()
    target.fault("GET tags", status=403, times=FOREVER)
    target.fault("HEAD manifest", status=403, times=FOREVER)
    found = explained(mirror_run, f"{source.host}/app:v1", expect=1)
    assert (True, "fail") == (found["selected"], found["targets"][0]["action"])
    assert "auth_denied" == found["targets"][0]["error"]["code"]
    lines = mirror_run("explain", mirror_run.config_file, f"{source.host}/app:v1").out.splitlines()
    assert "    a sync would fail for this reason" == lines[-1]


def test_a_reference_that_no_mirror_concerns_is_a_usage_error_that_names_the_most_similar_one(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/copy/app"]}], source, target)

    def refused(reference: str) -> Ran:
        ran = mirror_run("explain", mirror_run.config_file, reference)
        assert (2, "") == (ran.code, ran.out), ran
        return ran

    assert f"the most similar source or target is {target.host}/copy/app" in refused(f"{target.host}/copy/ap:v1").err
    assert "does not name exactly one repository" in refused(f"{source.host}/team/*").err
    assert "the name of a repository must be lowercase" in refused(f"{source.host}/App:v1").err
    assert [] == [*source.requests(), *target.requests()]


def test_the_state_that_keeps_a_sync_from_copying_is_named(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", images("old", "v1", "w1"))
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": {"immutable": ["v.*"]}}
    mirror_run.config([mirror], source, target, registries={target.host: {"exclusive": True}})
    mirror_run.sync()
    source.load("app", images("new", "v1"))
    target.load("app", images("theirs", "w1"))
    for tag, why in (("v1", "the tag is immutable, and the state says"), ("w1", "the target is exclusive, and the")):
        [copy] = explained(mirror_run, f"{source.host}/app:{tag}")["targets"]
        assert "skip" == copy["action"]
        assert copy["reason"].startswith(why)
        assert f"`mirror sync --deep {mirror_run.config_file}`" in copy["reason"]


def test_a_target_with_other_tags_is_explained_by_the_tag_of_its_source(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", images("new", "1.0", "1.1"))
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app:{{tag}}-x"], "tags": {"newest": 1}}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    found = explained(mirror_run, f"{target.host}/app:1.1-x")
    [copy] = found["targets"]
    assert (f"{source.host}/app:1.1", f"{target.host}/app:1.1-x") == (found["source"], copy["target"])
    assert ("skip", found["digest"]) == (copy["action"], copy["digest"])
    assert "newest" == explained(mirror_run, f"{target.host}/app:1.0-x")["rule"]
    assert 2 == mirror_run("explain", mirror_run.config_file, f"{target.host}/app:1.1").code


def test_an_image_that_a_sync_would_reject_is_explained_with_the_reason(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = images("rejected", "v1")
    graph.schema1("old")
    source.load("app", graph)
    (mirror_run.folder / "cosign.pub").write_bytes(signing_key().pem)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "schema1": "fail"}
    rejected: dict[str, dict[str, Any]] = {
        "v1 is not signed": {"verify-signatures": {"keys": ["cosign.pub"]}, "referrers": False},
        "v1 has no signature": {"referrers": {"require": ["signature"]}},
        "old is a schema 1 image": {},
    }
    for reason, keys in rejected.items():
        mirror_run.config([{**mirror, **keys}], source, target)
        found = explained(mirror_run, f"{source.host}/app:{reason.partition(' ')[0]}")
        (on_target,) = found["targets"]
        assert (True, "fail") == (found["selected"], on_target["action"])
        assert reason.partition(" ")[2] in on_target["reason"]
    unwritten(mirror_run, source, target)


def test_without_a_state_a_smaller_index_on_the_target_is_explained_as_up_to_date(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("index")
    graph.platforms("v1")
    source.load("app", graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "platforms": ["linux/amd64"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    shutil.rmtree(mirror_run.state)
    (on_target,) = explained(mirror_run, f"{source.host}/app:v1")["targets"]
    assert ("skip", "the target has the image already") == (on_target["action"], on_target["reason"])


def test_a_tag_of_a_signature_that_the_rules_do_not_select_is_explained_as_an_attachment(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("signed")
    tag = f"{tag_of(image := graph.image('v1'))}.sig"
    graph.signature(image)
    source.load("app", graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": ["v1"]}
    for copied in (True, False):
        mirror_run.config([{**mirror, "referrers": copied}], source, target)
        found = explained(mirror_run, f"{target.host}/app:{tag}")
        (on_target,) = found["targets"]
        assert (False, "none") == (found["selected"], on_target["action"])
        assert copied == ("only with the image to which it belongs" in on_target["reason"])
