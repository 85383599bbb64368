"""Signatures, SBOMs and attestations follow their image: at every kind of source, on every kind of target."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_INDEX, Graph, tag_of
from tests.support.oracle import assert_whole, walk_tag
from tests.support.signed import SBOM, SIGNATURE, Registry, Signed, listed_on
from tests.support.tool import MirrorTool


def sync_one(tool: MirrorTool, source: Registry, target: Registry, *arguments: str, **keys: Any) -> dict[str, Any]:
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20"], **keys}
    tool.config([mirror], source, target)
    tool.sync(*arguments)
    (image,) = tool.report()["images"]
    assert isinstance(image, dict)
    return image


@pytest.mark.parametrize("to_api", [True, False], ids=["to-api", "to-tags"])
@pytest.mark.parametrize("from_api", [True, False], ids=["from-api", "from-tags"])
def test_a_selected_tag_arrives_with_everything_that_belongs_to_it(
    scripted: ScriptedFactory, mirror_run: MirrorTool, from_api: bool, to_api: bool
) -> None:
    source, target = scripted("source", referrers=from_api), scripted("target", referrers=to_api)
    signed = Signed(index_tags=not from_api)
    source.load("app", signed.graph)
    image = sync_one(mirror_run, source, target)
    assert ("copied", {"copied": 4, "exists": 0}) == (image["result"], image["referrers"])
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "copy", subject, api=to_api)
    assert signed.graph.tags[signed.tag] == walk_tag(target, "copy", signed.tag).digest
    assert_whole(target)
    lists = set() if to_api else {subject.replace(":", "-") for subject in signed.listed}
    assert {"3.20", signed.tag, *lists} == set(target.tags("copy"))
    # One list and one GET for each manifest: an index with two platforms, and four attachments.
    counts = source.counts()
    assert (1, 7) == (counts["GET tags"], counts["GET manifest"] - (0 if from_api else 3))
    assert (7 if from_api else 1) == counts["GET referrers"]
    # The root is written last, by its tag.
    puts = [seen.reference for seen in target.requests() if seen.kind == "PUT manifest"]
    assert "3.20" == puts[-1]
    assert len(puts) == len(set(puts)) == 7 + (0 if to_api else 3)


# ---- images that did not change


def signed_pair(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, ScriptedRegistry, Signed]:
    """Return a source and a target with the referrers API, and the image at the source."""
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    signed = Signed(index_tags=False)
    source.load("app", signed.graph)
    return source, target, signed


def add_signature(registry: Registry, signed: Signed) -> str:
    """Attach another signature to the image at a scripted source. Return its digest."""
    assert isinstance(registry, ScriptedRegistry)
    graph = Graph("late")
    made = graph.artifact(kind=SIGNATURE, texts=[b"late"], subject=signed.image)
    registry.load("app", graph)
    return made.digest


def test_a_new_signature_arrives_with_recheck_or_deep_and_costs_nothing_before(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    sync_one(mirror_run, source, target)
    late = add_signature(source, signed)
    for registry in (source, target):
        registry.mark()
    sync_one(mirror_run, source, target)
    assert ({"HEAD manifest": 1}, {"HEAD manifest": 1}) == (source.counts(), target.counts())
    source.mark()
    image = sync_one(mirror_run, source, target, recheck="0 s")
    assert ("copied", {"copied": 1, "exists": 4}) == (image["result"], image["referrers"])
    assert late in listed_on(target, "copy", signed.image.digest, api=True)
    # A HEAD for the tag and one for cosign's tag; a list for each manifest; and only the new attachment is read.
    assert {"HEAD manifest": 2, "GET tags": 1, "GET referrers": 8, "GET manifest": 1, "GET blob": 1} == source.counts()
    source.mark()
    target.mark()
    image = sync_one(mirror_run, source, target, recheck="0 s")
    assert ("up-to-date", {"copied": 0, "exists": 5}) == (image["result"], image["referrers"])
    assert {"HEAD manifest": 2, "GET tags": 1, "GET referrers": 8} == source.counts()
    # A HEAD for the tag and one for each attachment; the index; and the target's list for each subject.
    assert {"HEAD manifest": 6, "GET manifest": 1, "GET referrers": 3} == target.counts()


def test_without_a_state_the_attachments_are_checked_once(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, _ = signed_pair(scripted)
    sync_one(mirror_run, source, target)
    for path in mirror_run.state.glob("state.sqlite3*"):
        path.unlink()
    source.mark()
    assert "up-to-date" == sync_one(mirror_run, source, target)["result"]
    assert 7 == source.counts()["GET referrers"]
    source.mark()
    assert "up-to-date" == sync_one(mirror_run, source, target)["result"]
    assert {"HEAD manifest": 1} == source.counts()


def test_a_source_without_attachments_and_without_the_api_costs_one_request_in_a_run(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("plain")
    for number in range(5):
        graph.platforms(f"v{number}")
    source.load("app", graph)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}], source, target)
    mirror_run.sync()
    blobs = len(graph.blobs)
    assert {"GET referrers": 1, "GET tags": 1, "GET manifest": 15, "GET blob": blobs} == source.counts()
    assert 0 == target.counts()["GET referrers"]
    for path in mirror_run.state.glob("state.sqlite3*"):
        path.unlink()
    source.mark()
    target.mark()
    mirror_run.sync()
    assert {"GET tags": 1, "HEAD manifest": 5, "GET referrers": 1} == source.counts()
    assert {"GET tags": 1, "HEAD manifest": 5} == target.counts()


@pytest.mark.parametrize("rules", [["3.20"], {"exclude": ["sha256-.*"]}, {"newest": 1}])
def test_a_signature_that_is_no_longer_mirrored_like_any_other_tag_is_copied_with_its_image_at_once(
    scripted: ScriptedFactory, mirror_run: MirrorTool, rules: Any
) -> None:
    source, target, signed = signed_pair(scripted)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}
    signature = json.loads(signed.graph.manifests[signed.graph.tags[signed.tag]].data)["layers"][0]["digest"]
    source.storage.repositories["app"].blobs.remove(signature)
    mirror_run.config([mirror], source, target)
    mirror_run.sync(expect=1)
    assert ("copied", "failed") == tuple(
        mirror_run.results()[f"{target.host}/copy:{tag}"] for tag in ("3.20", signed.tag)
    )
    mirror_run.config([{**mirror, "tags": rules}], source, target)
    mirror_run.sync(expect=1)
    source.storage.repositories["app"].blobs.add(signature)
    mirror_run.sync()
    assert signed.graph.tags[signed.tag] == walk_tag(target, "copy", signed.tag).digest
    source.mark()
    mirror_run.sync()
    assert 0 == source.counts()["GET referrers"]


# ---- what was lost on the target


@pytest.mark.parametrize("api", [True, False], ids=["api", "tags"])
def test_a_lost_attachment_is_named_by_verify_and_brought_back_by_deep(
    scripted: ScriptedFactory, mirror_run: MirrorTool, api: bool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=api)
    signed = Signed(index_tags=False)
    source.load("app", signed.graph)
    sync_one(mirror_run, source, target)
    verified = mirror_run("verify", mirror_run.config_file)
    assert (0, True) == (verified.code, "4 attachments" in verified.out), verified
    home = target.storage.repositories["copy"]
    (child_signature,) = signed.listed[signed.child.digest]
    del home.manifests[child_signature]
    del home.tags[signed.tag]
    if not api:
        del home.tags[tag_of(signed.image)]
    verified, problems = mirror_run.verify()
    assert 1 == verified.code, verified
    lost = {child_signature, signed.graph.tags[signed.tag]} | (set() if api else {signed.sbom.digest})
    assert [f"{target.host}/copy:3.20"] * len(lost) == [name for name, _ in problems]
    for digest in lost:
        (message,) = [message for _, message in problems if digest in message]
        assert f"mirror sync --deep {mirror_run.config_file}" in message
    assert any(f"{SIGNATURE} {child_signature} is missing" in message for _, message in problems)
    assert "up-to-date" == sync_one(mirror_run, source, target)["result"]
    image = sync_one(mirror_run, source, target, "--deep")
    assert ("copied", {"copied": len(lost), "exists": 4 - len(lost)}) == (image["result"], image["referrers"])
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "copy", subject, api=api)
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_entries_of_other_tools_in_a_list_are_kept(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source", referrers=True), scripted("target")
    signed = Signed(index_tags=False)
    source.load("app", signed.graph)
    theirs = Graph("theirs")
    other = theirs.artifact(subject=signed.image, kind="application/vnd.example.theirs")
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**other.json(), "x": 1}], "annotations": {}}
    theirs.raw(json.dumps(document).encode(), OCI_INDEX, tag_of(signed.image))
    target.load("copy", theirs)
    sync_one(mirror_run, source, target)
    with target.client() as client:
        index = json.loads(client.manifest("copy", tag_of(signed.image)).body)
    assert document["manifests"] == index["manifests"][:1]
    assert {} == index["annotations"]
    assert {other.digest, signed.sbom.digest} == {entry["digest"] for entry in index["manifests"]}


@pytest.mark.parametrize("times", [1, 4])
def test_two_writers_of_a_list_both_succeed(scripted: ScriptedFactory, mirror_run: MirrorTool, times: int) -> None:
    """Between a PUT of the tool and its check, another tool replaces the list with its own."""
    source, target = scripted("source", referrers=True), scripted("target")
    signed = Signed(index_tags=False)
    source.load("app", signed.graph)
    theirs = Graph("theirs")
    other = theirs.artifact(subject=signed.image)
    theirs.index(tag_of(signed.image), children=[other])

    def replace_list(request: Request, reply: Reply) -> Reply:
        target.load("copy", theirs)
        return reply

    fault = target.fault("PUT manifest", reference=tag_of(signed.image), after=True, change=replace_list, times=times)
    sync_one(mirror_run, source, target)
    assert times == fault.hits
    assert {other.digest, signed.sbom.digest} == listed_on(target, "copy", signed.image.digest, api=False)


def test_a_signature_that_is_not_in_the_list_of_the_target_after_a_failed_run_is_listed_by_the_next(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The image is up to date: the signature is written, but not the index that lists it."""
    source, target = scripted("source", referrers=True), scripted("target")
    signed = Signed(index_tags=False)
    source.load("app", signed.graph)
    sync_one(mirror_run, source, target)
    late = add_signature(source, signed)
    fault = target.fault("PUT manifest", reference=tag_of(signed.image), status=403)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/copy"],
        "tags": ["3.20"],
        "recheck": "0 s",
    }
    mirror_run.config([mirror], source, target)
    mirror_run.sync(expect=1)
    assert 1 == fault.hits
    assert late not in listed_on(target, "copy", signed.image.digest, api=False)
    assert "1 image with new attachments" in mirror_run("plan", mirror_run.config_file).out
    mirror_run.sync()
    assert late in listed_on(target, "copy", signed.image.digest, api=False)


# ---- what a mirror wants


def test_a_filter_leaves_attachments_out_and_false_leaves_out_all(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    image = sync_one(mirror_run, source, target, referrers={"include": ["sbom"]})
    assert {"copied": 1, "exists": 0} == image["referrers"]
    assert {"3.20"} == set(target.tags("copy"))
    assert {signed.sbom.digest} == listed_on(target, "copy", signed.image.digest, api=True)
    image = sync_one(mirror_run, source, target)  # other rules: the attachments are due at once
    assert {"copied": 3, "exists": 1} == image["referrers"]
    source.mark()
    image = sync_one(mirror_run, source, scripted("third", referrers=True), referrers=False)
    assert "referrers" not in image
    assert {"HEAD manifest": 1, "GET manifest": 3, "GET blob": len(image_blobs(signed))} == source.counts()


def image_blobs(signed: Signed) -> set[str]:
    """Return the blobs of the image, without those of its attachments."""
    blobs: set[str] = set()
    for child in json.loads(signed.graph.manifests[signed.image.digest].data)["manifests"]:
        document = json.loads(signed.graph.manifests[child["digest"]].data)
        blobs |= {blob["digest"] for blob in [document["config"], *document["layers"]]}
    return blobs


@pytest.mark.parametrize("api", [True, False], ids=["api", "tags"])
def test_the_attachments_of_an_image_come_with_it_although_only_selects_just_the_image(
    scripted: ScriptedFactory, mirror_run: MirrorTool, api: bool
) -> None:
    """The mirror has every tag, so that the tags of attachments are images of their own without `--only`."""
    source, target = scripted("source", referrers=api), scripted("target", referrers=api)
    signed = Signed(index_tags=not api)
    source.load("app", signed.graph)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}], source, target)
    only = ("--only", f"{source.host}/app:3.20")
    mirror_run.sync(*only)
    assert {"3.20", signed.tag} <= set(target.tags("copy"))
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "copy", subject, api=api)
    del target.storage.repositories["copy"].tags[signed.tag]
    assert 1 == mirror_run("verify", mirror_run.config_file, *only).code
    mirror_run.sync()
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_a_signature_that_is_newer_than_the_image_lock_is_not_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    signature = source.storage.repositories["app"].tags.pop(signed.tag)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}], source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.storage.repositories["app"].tags[signed.tag] = signature
    mirror_run.sync("--locked", mirror_run.config_file.with_suffix(".lock"))
    assert signed.tag not in target.tags("copy")
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "copy", subject, api=True)
    mirror_run.sync()
    assert signature == walk_tag(target, "copy", signed.tag).digest


def test_two_mirrors_of_one_source_with_the_same_rules_both_bring_the_signatures(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """One of them renames tags, so that its signature tags are not copied like any other image."""
    source, target, signed = signed_pair(scripted)
    mirrors = [
        {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]},
        {"source": f"{source.host}/app", "targets": [f"{target.host}/other:{{tag}}-hub"]},
    ]
    mirror_run.config(mirrors, source, target, defaults={"tags": {"exclude": ["old"]}})
    mirror_run.sync()
    for repository in ("copy", "other"):
        assert signed.graph.tags[signed.tag] == walk_tag(target, repository, signed.tag).digest


def test_an_image_without_a_required_attachment_is_refused_before_anything_is_written(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    graph = Graph("unsigned")
    graph.platforms("v1")
    signed = graph.image("v2")
    graph.signature(signed)
    source.load("app", graph)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/copy"],
        "tags": ["v1", "v2"],
        "referrers": {"require": ["signature"]},
    }
    mirror_run.config([mirror], source, target)
    ran = mirror_run.sync(expect=3)
    assert "app:v1 has no signature at the source" in ran.text
    assert {f"{target.host}/copy:v1": "failed", f"{target.host}/copy:v2": "copied"} == mirror_run.results()
    assert {"v2", f"{tag_of(signed)}.sig"} == set(target.tags("copy"))
    pushed = {seen.reference for seen in target.writes()}
    children = {entry["digest"] for entry in json.loads(graph.manifests[graph.tags["v1"]].data)["manifests"]}
    assert len(children) == 2
    assert not pushed & children
    assert 3 == mirror_run("plan", mirror_run.config_file).code


def test_signatures_that_the_rules_for_tags_select_need_no_signature_but_images_with_such_names_do(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("every tag")
    signed = graph.image("v1")
    graph.signature(signed)
    disguised = f"sha256-{'0' * 64}.sig"
    graph.image(disguised)
    source.load("app", graph)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/copy"],
        "referrers": {"require": ["signature"]},
        "recheck": "0 s",
    }
    mirror_run.config([mirror], source, target)
    for expected in ("copied", "up-to-date"):
        mirror_run.sync(expect=3)
        signature = f"{target.host}/copy:{tag_of(signed)}.sig"
        assert mirror_run.results() == {
            f"{target.host}/copy:v1": expected,
            signature: expected,
            f"{target.host}/copy:{disguised}": "failed",
        }


def test_plan_counts_attachments_and_names_images_that_lack_only_these(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20"], "recheck": "0 s"}
    mirror_run.config([mirror], source, target)
    planned = mirror_run("plan", mirror_run.config_file)
    assert f"  {source.host}/app -> {target.host}/copy\n    3.20  new  " in planned.out
    assert "4 attachments" in planned.out
    assert "7 manifest requests" in planned.out
    mirror_run.sync()
    assert "nothing to copy" in mirror_run("plan", mirror_run.config_file).out
    add_signature(source, signed)
    target.mark()
    planned = mirror_run("plan", mirror_run.config_file, "--exit-code")
    assert 10 == planned.code
    assert f"  {source.host}/app -> {target.host}/copy\n    3.20  attach  " in planned.out
    assert "1 attachment\n" in planned.out
    assert "1 image with new attachments" in planned.out
    assert [] == target.writes()


def test_an_attachment_that_cannot_be_copied_fails_its_image(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, signed = signed_pair(scripted)
    body = json.loads(signed.graph.manifests[signed.sbom.digest].data)
    lost = body["layers"][0]["digest"]
    source.fault("GET blob", reference=lost, status=404, times=100)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync(expect=1)
    assert "3.20" not in target.tags("copy")
    source.faults.clear()
    mirror_run.sync()
    assert {"3.20", signed.tag} == set(target.tags("copy"))


def test_a_target_that_needs_the_subject_gets_the_root_by_digest_first(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True, needs_subject=True)
    for name in ("one", "two"):
        graph = Graph(name)
        subject = graph.image("v1")
        graph.artifact(subject=subject, kind=SBOM)
        source.load(name, graph)
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in ("one", "two")]
    mirror_run.config(mirrors, source, target, parallel={"images": 1})
    mirror_run.sync()
    puts = [(seen.repository, seen.status) for seen in target.requests() if seen.kind == "PUT manifest"]
    assert 1 == len([status for _, status in puts if status == 404])  # the second image is not tried in vain
    for name in ("one", "two"):
        assert 3 == len([where for where, status in puts if (where, status) == (name, 201)])
    assert_whole(target)


def test_tags_of_one_image_bring_its_attachments_once(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source", referrers=True), scripted("target")
    signed = Signed(index_tags=False)
    tags = [f"t{number}" for number in range(6)]
    signed.graph.tag(signed.image.digest, *tags)
    source.load("app", signed.graph)
    mirror_run.config(
        [{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": tags}], source, target
    )
    mirror_run.sync()
    puts = [seen.reference for seen in target.requests() if seen.kind == "PUT manifest"]
    assert [] == [reference for reference, count in Counter(puts).items() if count > 1]
    assert 2 + len(tags) + 4 + 3 == len(puts)
    assert (7, 7) == (source.counts()["GET manifest"], source.counts()["GET referrers"])


def test_a_digest_without_a_tag_brings_its_attachments(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, signed = signed_pair(scripted)
    source.storage.repositories["app"].tags.clear()  # the repository has no tags: its tag list is answered with 404
    mirror = {"source": f"{source.host}/app@{signed.image.digest}", "targets": [f"{target.host}/copy"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    for subject, digests in signed.listed.items():
        assert digests == listed_on(target, "copy", subject, api=True)


def test_a_hostile_list_fails_only_its_image(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, signed = signed_pair(scripted)
    graph = Graph("other")
    other = graph.image("v1")
    foreign = graph.artifact(subject=other, kind=SBOM)
    source.load("app", graph)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [foreign.json()]}
    headers = (("Content-Type", OCI_INDEX),)
    body = json.dumps(document).encode()
    source.fault("GET referrers", reference=signed.image.digest, status=200, headers=headers, body=body, times=9)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20", "v1"]}
    mirror_run.config([mirror], source, target)
    ran = mirror_run.sync(expect=3)
    assert f"its subject is {other.digest}" in ran.text
    assert {f"{target.host}/copy:3.20": "failed", f"{target.host}/copy:v1": "copied"} == mirror_run.results()
    assert {foreign.digest} == listed_on(target, "copy", other.digest, api=True)


def test_a_missing_list_of_referrers_is_not_an_image_without_signatures(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    fault = source.fault("GET referrers", reference=signed.child.digest, status=404)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync(expect=1)
    assert (1, []) == (fault.hits, target.tags("copy"))
    mirror_run.sync()
    assert signed.listed[signed.child.digest] == listed_on(target, "copy", signed.child.digest, api=True)


def test_a_referrer_that_an_old_list_under_a_selected_tag_lacks_is_not_lost_without_a_message(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The source has the referrers API and lists under tags from the time before; the target has no such API."""
    source, target = scripted("source", referrers=True), scripted("target")
    signed = Signed(index_tags=True)
    source.load("app", signed.graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    late = add_signature(source, signed)
    assert 1 == mirror_run("verify", mirror_run.config_file).code
    mirror_run.config([{**mirror, "recheck": "0 s"}], source, target)
    ran = mirror_run.sync(expect=3)
    assert f"app:{tag_of(signed.image)} does not list {late}" in ran.text
    assert 3 == mirror_run("sync", mirror_run.config_file, "--deep").code
    mirror_run.config([{**mirror, "tags": {"exclude": ["sha256-[0-9a-f]{64}"]}}], source, target)
    mirror_run.sync("--deep")
    assert {late, signed.sbom.digest} == listed_on(target, "copy", signed.image.digest, api=False)
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_a_signature_tag_that_is_listed_but_not_found_fails_its_image(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = signed_pair(scripted)
    source.fault("GET manifest", reference=signed.tag, status=404)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20"]}
    mirror_run.config([mirror], source, target)
    ran = mirror_run.sync(expect=1)
    assert f"app:{signed.tag} is in the tag list of the source, but does not exist" in ran.text
    assert [] == target.tags("copy")
    mirror_run.sync()
    assert {"3.20", signed.tag} == set(target.tags("copy"))


def test_an_immutable_signature_tag_is_not_overwritten(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, signed = signed_pair(scripted)
    graph = Graph("theirs")
    graph.image(signed.tag, label="another signature")
    target.load("copy", graph)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/copy"],
        "tags": {"include": ["3.20"], "immutable": [".*"]},
    }
    mirror_run.config([mirror], source, target)
    ran = mirror_run.sync(expect=3)
    assert f"{signed.tag}: the tag is immutable, but the target has {graph.tags[signed.tag]}" in ran.text
    assert {f"{target.host}/copy:3.20": "conflict"} == mirror_run.results()
    assert [signed.tag] == target.tags("copy")


@pytest.mark.parametrize(("status", "code"), [(403, "DENIED"), (404, "NAME_UNKNOWN")])
def test_a_source_that_does_not_list_its_tags_is_asked_for_signatures_by_name(
    scripted: ScriptedFactory, mirror_run: MirrorTool, status: int, code: str
) -> None:
    source, target, signed = signed_pair(scripted)
    body = json.dumps({"errors": [{"code": code, "message": "no list"}]}).encode()
    source.fault("GET tags", status=status, body=body, times=100)
    image = sync_one(mirror_run, source, target)
    assert {"copied": 4, "exists": 0} == image["referrers"]
    assert {"3.20", signed.tag} == set(target.tags("copy"))
