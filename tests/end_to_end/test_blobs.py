"""Blobs of a target: which hints prove that a blob exists, and what happens without a proof."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.exchange import Request
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_equal, assert_whole
from tests.support.tool import MirrorTool


def with_base(source: ScriptedRegistry, *tags: str) -> Graph:
    """Put images into a scripted registry that share a base layer, and have one layer of their own."""
    graph = Graph("base")
    base = graph.layer("base")
    for tag in tags:
        graph.image(tag, layers=[base, graph.layer(tag)])
    source.load("app", graph)
    return graph


@pytest.mark.parametrize(("exclusive", "tags"), [(False, {}), (True, ["v1", "v2"])], ids=["listed", "exclusive"])
def test_a_blob_that_the_target_lost_below_a_tag_is_uploaded_with_the_next_image_that_needs_it(
    exclusive: bool, tags: Any, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", checks_references=False)
    graph = with_base(source, "v1")
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], **({"tags": tags} if tags else {})}]
    mirror_run.config(mirrors, source, target, registries={target.host: {"exclusive": exclusive}})
    mirror_run.sync(expect=1 if isinstance(tags, list) else 0)
    base = graph.layer("base")
    target.storage.repositories["app"].blobs.remove(base.digest)
    with_base(source, "v1", "v2")
    target.mark()
    mirror_run.sync()
    assert "copied" == mirror_run.results()[f"{target.host}/app:v2"]
    assert_synced(source, target)
    assert 1 == Counter(seen.reference for seen in target.requests() if seen.kind == "HEAD blob")[base.digest]


def test_blobs_of_an_earlier_run_are_requested_once_and_not_uploaded_or_mounted_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = with_base(source, "v1")
    source.load("other", graph)
    pair(mirror_run, source, target, "app", "other")
    mirror_run.sync()
    new = with_base(source, "v1", "v2")
    target.mark()
    mirror_run.sync()
    assert_synced(source, target)
    # HEAD for the base, and for the layer and config that are new to a repository with tags.
    assert (3, 2, 0) == tuple(target.counts()[kind] for kind in ("HEAD blob", "PUT upload", "POST mount"))
    assert len(new.blobs) == len(graph.blobs) + 2


def test_a_blob_that_the_target_cannot_look_up_is_pushed(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    base = with_base(source, "v1").layer("base")
    pair(mirror_run, source, target)
    mirror_run.sync()
    with_base(source, "v1", "v2")
    # 505 is not retried, which keeps this test short; test_blob_copier.py has other statuses.
    broken = target.fault("HEAD blob", reference=base.digest, status=505, times=FOREVER)
    refused = target.fault(
        "PUT upload", reference=base.digest, status=500
    )  # the next attempt checks whether the blob has arrived
    target.mark()
    mirror_run.sync()
    assert "copied" == mirror_run.results()[f"{target.host}/app:v2"]
    assert (2, 1) == (broken.hits, refused.hits)
    target.faults.clear()
    assert_synced(source, target)


@pytest.mark.parametrize("one_place", [False, True], ids=["two targets", "one repository"])
def test_a_blob_that_one_source_lacks_is_read_from_the_source_of_a_concurrent_mirror(
    one_place: bool, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    lacking, whole, first, second = (scripted(name) for name in ("lacking", "whole", "first", "second"))
    base = with_base(lacking, "v1").layer("base")
    with_base(whole, "v2")
    lacking.storage.repositories["app"].blobs.remove(base.digest)
    both = threading.Event()

    def note(request: Request) -> None:
        if request.kind == "GET blob" and request.repository == "app":
            both.set()  # the image has been read, so all its blobs are wanted

    whole.hook = note
    asked = lacking.fault("GET blob", reference=base.digest, stall=both, times=FOREVER)
    whole.fault("GET manifest", repository="app", stall=asked.fired, times=FOREVER)
    target = first if one_place else second
    mirrors = [
        {"source": f"{lacking.host}/app", "targets": [f"{first.host}/app"], "tags": ["v1"]},
        {"source": f"{whole.host}/app", "targets": [f"{target.host}/app"], "tags": ["v2"]},
    ]
    if not one_place:  # the spool is used because two target hosts need the blobs
        for source, other in ((lacking, second), (whole, first)):
            loaded(source, repository=source.name)
            mirrors.append({"source": f"{source.host}/{source.name}", "targets": [f"{other.host}/{source.name}"]})
    mirror_run.config(mirrors, lacking, whole, first, second)
    mirror_run.sync()
    assert {"copied"} == set(mirror_run.results().values())
    assert_equal(whole, "app", target, tags=["v2"])
    assert first.has_blob("app", base.digest)
    assert 1 == Counter(seen.reference for seen in whole.requests() if seen.kind == "GET blob")[base.digest]


@pytest.mark.parametrize("tag", ["first", "second"])
def test_a_digest_that_is_both_blob_and_manifest_is_copied_as_both(
    tag: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", checks_references=False)
    graph = Graph()
    child = graph.image(label="child")
    layer = graph.blob(graph.manifests[child.digest].data)
    graph.image("a" if tag == "first" else "z", layers=[layer], label="holds the bytes of a manifest")
    graph.index("m", children=[child])
    source.load("app", graph)
    pair(mirror_run, source, target, parallel={"images": 1})
    mirror_run.sync()
    assert_whole(target, ["app"])
    assert 0 == mirror_run("verify", mirror_run.config_file).code
