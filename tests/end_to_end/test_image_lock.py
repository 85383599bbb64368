"""`mirror lock`, `sync --locked` and `plan --locked`: locked images are copied even if their tags have moved."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_INDEX, Graph, tag_of
from tests.support.oracle import assert_whole, skopeo_digest, snapshot, walk_tag
from tests.support.signed import SIGNATURE, Signed, listed_on
from tests.support.tool import MirrorTool


def versions(label: str, *tags: str) -> Graph:
    """Make an image for each tag; the label makes their digests different from those of other labels."""
    graph = Graph(label)
    for tag in tags:
        graph.image(tag, label=f"{label} {tag}", layers=[graph.layer(f"{label} {tag}")])
    return graph


def configure(
    tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, what: str = "app", **keys: Any
) -> None:
    registries = keys.pop("registries", {})
    mirror = {"source": f"{source.host}/{what}", "targets": [f"{target.host}/{what}"], **keys}
    tool.config([mirror], source, target, registries=registries)


def lock_file(tool: MirrorTool) -> Path:
    return tool.config_file.with_suffix(".lock")


def delete_tag(registry: ScriptedRegistry, tag: str, repository: str = "app") -> None:
    """Delete a tag, but keep its manifest."""
    del registry.storage.repositories[repository].tags[tag]


def test_locked_images_are_copied_although_their_tags_have_moved_or_were_deleted(
    scripted: ScriptedFactory, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), registry_factory("target")
    old, new = versions("old", "v1", "v2", "v3"), versions("new", "v1", "v4")
    source.load("team/app", old)
    mirror = {"source": f"{source.host}/team/*", "targets": [f"{target.host}/copy/{{repository}}"]}
    mirror_run.config([mirror], source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.load("team/app", new)
    source.load("team/later", new)
    delete_tag(source, "v2", "team/app")
    assert (1, 1) == (source.counts()["GET tags"], source.counts()["GET catalog"])
    mirror_run.sync("--locked", lock_file(mirror_run))
    assert {("copy/app", tag): old.tags[tag] for tag in ("v1", "v2", "v3")} == snapshot(target).tags
    assert [] == snapshot(target).problems
    assert old.tags["v2"] == skopeo_digest(target, "copy/app", "v2")
    assert (1, 1) == (source.counts()["GET tags"], source.counts()["GET catalog"]), "the lock has the attachments, too"
    seen = len(source.requests())
    assert "up to date" in mirror_run.sync("--locked", lock_file(mirror_run)).out
    assert seen == len(source.requests()), "locked images that are on the targets need no request to the source"


def test_plan_with_a_lock_shows_how_the_source_differs_with_one_request_for_each_tag(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    old, new = versions("old", "v1", "v2", "v3", "x9"), versions("new", "v1", "v4")
    source.load("app", old)
    configure(mirror_run, source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    mirror_run.sync("--locked", lock_file(mirror_run))
    plan = ("plan", mirror_run.config_file, "--locked", lock_file(mirror_run), "--exit-code")
    ran = mirror_run(*plan)
    assert (0, f"{lock_file(mirror_run)}: matches the sources") == (ran.code, ran.out.splitlines()[-1])
    source.load("app", new)
    delete_tag(source, "v2")
    configure(mirror_run, source, target, tags={"exclude": ["x.*"]})
    heads, gets = source.counts()["HEAD manifest"], source.counts()["GET manifest"]
    ran = mirror_run(*plan)
    name = f"{source.host}/app"
    assert [
        "nothing to copy; 4 up to date",
        f"moved    {name}:v1: locked {old.tags['v1']}, the source has {new.tags['v1']}",
        f"deleted  {name}:v2: locked {old.tags['v2']}, the source no longer has the tag",
        f"unlocked {name}:v4: not locked, the source has {new.tags['v4']}",
        f"dropped  {name}:x9: locked {old.tags['x9']}, the configuration no longer selects the tag",
        f"{lock_file(mirror_run)}: 1 moved, 1 deleted, 1 dropped, 1 unlocked; to lock the current state of the "
        f"sources, run `mirror lock {mirror_run.config_file} -o {lock_file(mirror_run)}`",
    ] == ran.out.splitlines()
    assert 10 == ran.code
    assert 0 == mirror_run(*plan[:-1]).code
    assert (heads + 2 * 5, gets) == (source.counts()["HEAD manifest"], source.counts()["GET manifest"])
    source.fault("GET tags", status=403, times=FOREVER)
    ran = mirror_run(*plan)
    assert 1 == ran.code
    assert "deleted" not in ran.out
    assert "403" in ran.text


def test_the_printed_command_for_a_retry_copies_the_locked_images(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    old = versions("old", "v1", "v2")
    source.load("app", old)
    configure(mirror_run, source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.load("app", versions("new", "v2"))
    fault = target.fault("PUT manifest", reference="v2", status=400, times=FOREVER)
    ran = mirror_run.sync("--locked", lock_file(mirror_run), expect=1)
    (command,) = (line for line in ran.out.splitlines() if "--only-from" in line)
    fault.times = 0
    _, *arguments = shlex.split(command.removeprefix("to retry only these: "))
    ran = mirror_run(*arguments)
    assert (0, old.tags["v2"]) == (ran.code, target.storage.repositories["app"].tags["v2"])


def signed_lock(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, **keys: Any) -> Signed:
    """Lock an image with its attachments. Then delete some of them at the source, and add others."""
    signed = Signed(index_tags=not source.features.referrers)
    source.load("app", signed.graph)
    configure(tool, source, target, **keys)
    assert 0 == tool("lock", tool.config_file).code
    late = Graph("late")
    made = late.artifact(kind=SIGNATURE, texts=[b"late"], subject=signed.image)
    late.image(signed.tag, label="another signature")
    if not source.features.referrers:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [made.json()]}
        late.raw(json.dumps(document).encode(), OCI_INDEX, tag_of(signed.image))
    source.load("app", late)
    return signed


@pytest.mark.parametrize(("api", "tags"), [(True, ["3.20"]), (False, None)], ids=["one-tag", "every-tag"])
def test_locked_images_get_exactly_the_attachments_that_they_had(
    scripted: ScriptedFactory, mirror_run: MirrorTool, api: bool, tags: list[str] | None
) -> None:
    source, target = scripted("source", referrers=api), scripted("target", referrers=True)
    signed = signed_lock(mirror_run, source, target, recheck="0 s", **({"tags": tags} if tags else {}))
    source.mark()
    mirror_run.sync("--locked", lock_file(mirror_run))
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "app", subject, api=True)
    assert signed.graph.tags[signed.tag] == walk_tag(target, "app", signed.tag).digest
    assert (0, 0) == (source.counts()["GET tags"], source.counts()["GET referrers"])
    assert_whole(target)
    # Without the lock, what is new arrives, and with it, what was replaced comes back.
    only = ("--only", f"{source.host}/app:3.20")
    mirror_run.sync(*only)
    assert signed.graph.tags[signed.tag] != walk_tag(target, "app", signed.tag).digest
    mirror_run.sync("--locked", lock_file(mirror_run), *only)
    assert signed.graph.tags[signed.tag] == walk_tag(target, "app", signed.tag).digest


def test_a_locked_image_without_a_required_attachment_is_refused(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    graph = versions("required", "unsigned", "by-tag")
    graph.signature(graph.image("by-tag"))
    children = [graph.image(platform=platform, label="child") for platform in ("linux/amd64", "linux/arm64")]
    graph.index("by-platform", children=children)
    for child in children:
        graph.artifact(kind=SIGNATURE, texts=[child.digest.encode()], subject=child)
    source.load("app", graph)
    tags = ["by-tag", "by-platform", "unsigned"]
    configure(mirror_run, source, target, tags=tags)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    configure(mirror_run, source, target, tags=tags, referrers={"require": ["signature"]})
    ran = mirror_run.sync("--locked", lock_file(mirror_run), expect=3)
    assert "has no signature at the source" in ran.text
    assert "unsigned" not in target.tags("app")
    assert 3 == mirror_run("plan", mirror_run.config_file, "--locked", lock_file(mirror_run)).code
    target.load("app", versions("required", "unsigned"))
    source.mark()
    mirror_run.sync("--locked", lock_file(mirror_run), expect=3)
    wanted = {"by-tag": "up-to-date", "by-platform": "up-to-date", "unsigned": "failed"}
    assert {f"{target.host}/app:{tag}": result for tag, result in wanted.items()} == mirror_run.results()
    assert [] == source.requests()


def test_a_lock_says_how_many_tags_it_lacks_because_they_wait(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", versions("young", "v1", "v2"))
    configure(mirror_run, source, target, tags={"min-age": "1 h"})
    ran = mirror_run("lock", mirror_run.config_file)
    assert 0 == ran.code
    assert "0 images of 1 mirror locked" in ran.out
    assert "2 tags wait for min-age, so the image lock does not contain them" in ran.err


def test_plan_with_a_lock_shows_how_attachments_differ(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source", referrers=True), scripted("target")
    signed = signed_lock(mirror_run, source, target, tags=["3.20"])
    late = {one for one in source.storage.repositories["app"].manifests if one not in signed.graph.manifests}
    del source.storage.repositories["app"].manifests[signed.sbom.digest]
    ran = mirror_run("plan", mirror_run.config_file, "--locked", lock_file(mirror_run))
    lines = [line for line in ran.out.splitlines() if line.startswith(("attached", "detached"))]
    name = f"{source.host}/app:3.20"
    (of_sbom,) = signed.listed[signed.sbom.digest]
    gone = {signed.sbom.digest, of_sbom, signed.graph.tags[signed.tag]}
    assert {f"attached {name}: the image has the attachment {one}, which is not locked" for one in late} | {
        f"detached {name}: the image no longer has the attachment {one}" for one in gone
    } == set(lines)
    assert "3 detached" in ran.out.splitlines()[-1]


def test_plan_with_a_lock_tells_attachments_that_the_rules_leave_out_from_those_that_are_gone(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target")
    signed = signed_lock(mirror_run, source, target, tags=["3.20"])
    (of_child,), name = signed.listed[signed.child.digest], f"{source.host}/app:3.20"
    locked, moved = {one for listed in signed.listed.values() for one in listed}, signed.graph.tags[signed.tag]

    def compare() -> dict[str, set[str]]:
        """Return the last words of the lines, which are digests, by the first word."""
        found = defaultdict(set)
        for line in mirror_run("plan", mirror_run.config_file, "--locked", lock_file(mirror_run)).out.splitlines():
            if name in line and line.startswith(("detached", "excluded")):
                found[line.split()[0]].add(line.split()[-1])
        return found

    configure(mirror_run, source, target, tags=["3.20"], platforms=["linux/arm64"])
    assert {"excluded": locked, "detached": {moved}} == compare()
    configure(mirror_run, source, target, tags=["3.20"], platforms=["linux/amd64"])
    assert {"excluded": locked - {of_child}, "detached": {moved}} == compare()
    del source.storage.repositories["app"].manifests[of_child]
    assert {"excluded": locked - {of_child}, "detached": {moved, of_child}} == compare()


def test_a_lock_of_a_mirror_without_attachments_or_with_platforms_has_what_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    signed = signed_lock(mirror_run, source, target, tags=["3.20"], referrers=False)
    assert "attachments" not in lock_file(mirror_run).read_text()
    configure(mirror_run, source, target, tags=["3.20"], platforms=["linux/arm64"])
    printed = mirror_run("lock", mirror_run.config_file, "-o", "-").out
    assert '"attachments": []' in printed  # the index is another one, and only linux/amd64 has a signature
    configure(mirror_run, source, target, tags=["3.20"], platforms=["linux/amd64"])
    (of_child,) = signed.listed[signed.child.digest]
    printed = mirror_run("lock", mirror_run.config_file, "-o", "-").out
    assert (1, True) == (printed.count('"subject"'), of_child in printed)
    configure(mirror_run, source, target, tags=["3.20"], referrers={"require": ["sbom", "attestation"]})
    assert 3 == mirror_run("lock", mirror_run.config_file).code


def test_a_lock_is_not_written_if_a_source_cannot_be_read(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", versions("old", "v1", "v2"))
    configure(mirror_run, source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    before = lock_file(mirror_run).read_bytes()
    source.fault("HEAD manifest", reference="v2", status=403, times=FOREVER)
    source.load("app", versions("new", "v1"))
    for arguments in ((), ("-o", "-"), ("-o", "other.lock")):
        ran = mirror_run("lock", mirror_run.config_file, *arguments)
        assert (1, "") == (ran.code, ran.out), ran
        assert f"{source.host}/app:v2" in ran.err
        assert "no image lock was written" in ran.err
    assert before == lock_file(mirror_run).read_bytes()
    assert not (mirror_run.folder / "other.lock").exists()
    assert not mirror_run.state.exists(), "`lock` writes no state"
    assert 0 == len(target.requests())


def test_equal_sources_give_equal_locks_with_one_line_for_each_tag(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = versions("old", "v1", "v2")
    source.load("app", graph)
    configure(mirror_run, source, target)
    printed = mirror_run("lock", mirror_run.config_file, "-o", "-").out
    ran = mirror_run("lock", mirror_run.config_file)
    assert f"{lock_file(mirror_run)}: 2 images of 1 mirror locked\n" == ran.out
    assert printed == lock_file(mirror_run).read_text()
    mirror_run.sync("--locked", lock_file(mirror_run))
    for tag, digest in graph.tags.items():
        [line] = [line for line in printed.splitlines() if f'"{tag}"' in line]
        assert digest in line
    source.load("app", versions("new", "v2"))
    changed = mirror_run("lock", mirror_run.config_file, "-o", "-").out
    assert 1 == len(set(printed.splitlines()) - set(changed.splitlines()))


def test_an_immutable_tag_that_differs_from_the_lock_is_a_conflict_even_if_it_was_equal_to_the_source(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The state records for each locked digest, and for the tag at the source, whether the target was equal."""
    source, target = scripted("source"), scripted("target")
    old, new = versions("old", "v1"), versions("new", "v1")
    source.load("app", old)
    configure(mirror_run, source, target, tags={"immutable": ["v.*"]})
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.load("app", new)
    mirror_run.sync()
    assert new.tags == target.storage.repositories["app"].tags
    mirror_run.sync("--locked", lock_file(mirror_run), expect=3)
    assert {f"{target.host}/app:v1": "conflict"} == mirror_run.results()
    mirror_run.sync()  # the tag still equals the source
    target.load("app", old)
    for _ in range(2):
        mirror_run.sync("--locked", lock_file(mirror_run))
        assert {f"{target.host}/app:v1": "up-to-date"} == mirror_run.results()
    mirror_run.sync(expect=3)
    assert old.tags == target.storage.repositories["app"].tags


def test_only_selects_locked_images_and_an_exclusive_target_is_not_asked(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    old = versions("old", "v1", "v2")
    source.load("app", old)
    configure(mirror_run, source, target, registries={target.host: {"exclusive": True}})
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.load("app", versions("new", "v1", "v2"))
    mirror_run.sync("--locked", lock_file(mirror_run), "--only", f"{source.host}/app:v1")
    assert {"v1": old.tags["v1"]} == target.storage.repositories["app"].tags
    mirror_run.sync("--locked", lock_file(mirror_run))
    assert old.tags == target.storage.repositories["app"].tags
    requests = len(source.requests()), len(target.requests())
    mirror_run.sync("--locked", lock_file(mirror_run))
    assert requests == (len(source.requests()), len(target.requests()))
    mirror_run.sync()
    assert old.tags != target.storage.repositories["app"].tags, "without the lock, the tags follow the source"


def test_an_image_that_is_converted_cannot_be_locked(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("schema1")
    graph.schema1("v1")
    source.load("app", graph)
    configure(mirror_run, source, target, schema1="convert")
    ran = mirror_run("lock", mirror_run.config_file)
    assert 1 == ran.code
    assert "is converted when it is copied" in ran.err


def test_a_lock_that_does_not_fit_is_refused_before_anything_is_contacted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", versions("old", "v1"))
    configure(mirror_run, source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    before = len(source.requests()) + len(target.requests())
    configure(mirror_run, source, target, "other")
    for command in ("plan", "sync"):
        ran = mirror_run(command, mirror_run.config_file, "--locked", lock_file(mirror_run))
        assert 2 == ran.code, ran
        assert (
            f"does not contain the mirror of {source.host}/other (run `mirror lock {mirror_run.config_file}`" in ran.err
        )
    for output, code, says in (
        ("mirror.yaml", 2, "would replace the configuration"),
        ("state/report.json", 2, "is in the state directory"),
        ("none/file.lock", 4, "create the directory first"),
    ):
        ran = mirror_run("lock", mirror_run.config_file, "-o", output)
        assert (code, True) == (ran.code, says in ran.err), ran
    assert before == len(source.requests()) + len(target.requests())
