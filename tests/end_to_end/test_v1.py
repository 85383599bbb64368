"""Registries with protocol v1 as a source."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request, error_reply, json_reply
from tests.registries.faults import FOREVER
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, no_v2, tar
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool

TAGS = 40


def old(scripted: ScriptedFactory, v1: V1, **options: Any) -> ScriptedRegistry:
    """A registry that supports only v1."""
    registry = scripted("old", **options)
    registry.v1, registry.hook = v1, no_v2
    return registry


def mixed(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, V1]:
    """By v2 the registry has `new` and `both`, by v1 `old` and `both`."""
    registry, v1, graph = scripted("mixed"), V1(), Graph("mixed")
    graph.image("new")
    graph.image("both")
    registry.load("app", graph)
    registry.v1 = v1
    image = v1.image(gz(tar(file=b"old")))
    v1.tag("app", old=image, both=image)
    return registry, v1


def one_image(scripted: ScriptedFactory, **how: Any) -> tuple[ScriptedRegistry, V1]:
    """Let `team/app:t` be an image with one layer."""
    v1 = V1(**how)
    v1.tag("team/app", t=v1.image(gz(tar(a=b"a"))))
    return old(scripted, v1), v1


def digest_of(registry: RealRegistry, repository: str, tag: str) -> str:
    with registry.client() as client:
        return f"sha256:{hashlib.sha256(client.manifest(repository, tag).body).hexdigest()}"


def diff_id(layer: bytes) -> str:
    data = gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer or bytes(1024)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def diff_ids(v1: V1, image_id: str | None) -> list[str]:
    """Return the diff IDs, computed from the registry's layers, the base first."""
    found: list[str] = []
    while image_id:
        found.insert(0, diff_id(v1.images[image_id].layer))
        image_id = v1.images[image_id].parent
    return found


def config_of(registry: RealRegistry | ScriptedRegistry, repository: str, tag: str) -> dict[str, Any]:
    with registry.client() as client:
        manifest = client.manifest(repository, tag).json()
        found: dict[str, Any] = json.loads(client.blob(repository, manifest["config"]["digest"]).body)
    return found


def events(tool: MirrorTool, event: str) -> list[dict[str, Any]]:
    return [line for line in tool.log() if line["event"] == event]


def asked(registry: ScriptedRegistry, protocol: str) -> list[str]:
    return [request.path for request in registry.requests() if request.path.startswith(f"/{protocol}/")]


@pytest.fixture
def forty() -> V1:
    """40 tags; two are the same image. They share layers with each other and with another repository."""
    v1 = V1()
    layers = [gz(tar(etc__os=b"old", bin__sh=b"#!" * 500)), tar(usr__lib=b"x" * 70_000), b"", gz(tar(etc__WHos=b""))]
    stem = v1.chain(*layers, seed="stem")
    tops = [v1.image(gz(tar(number=str(number).encode())), stem[number % 4]) for number in range(TAGS - 1)]
    v1.tag("team/app", **{f"v{number}": top for number, top in enumerate(tops)}, latest=tops[-1])
    v1.tag("team/other", one=v1.image(gz(tar(other=b"other")), stem[-1], unknown={"a": [1, None]}, Labels=None))
    return v1


def test_a_v1_registry_is_copied_and_a_rerun_copies_nothing(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1, tmp_path: Path
) -> None:
    registry = old(scripted, forty)
    mirrors = [
        {"source": f"{registry.host}/team/{name}", "targets": [f"{target.host}/moved/{name}"]}
        for name in ("app", "other")
    ]
    mirror_run.config(mirrors, registry, target)
    mirror_run.sync()
    assert_whole(target)
    images = {image["source"].removeprefix(f"{registry.host}/team/"): image for image in mirror_run.report()["images"]}
    assert TAGS + 1 == len(images)
    assert {("v1", "copied")} == {(image["protocol"], image["result"]) for image in images.values()}
    for name, image in images.items():
        repository, tag = name.split(":")
        assert forty.tags[f"team/{repository}"][tag] == image["v1_id"]
        expected = diff_ids(forty, image["v1_id"])
        assert expected == config_of(target, f"moved/{repository}", tag)["rootfs"]["diff_ids"]
    assert {"a": [1, None]} == config_of(target, "moved/other", "one")["unknown"]
    assert len(forty.images) == registry.counts()["GET v1-layer"]  # each once
    place = f"docker://{target.host}/moved/app:latest"
    copied = subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", "--quiet", place, f"oci:{tmp_path}/oci:t"],
        capture_output=True,
        check=False,
    )
    assert (0, b"") == (copied.returncode, copied.stderr)
    chosen = events(mirror_run, "protocol")
    assert {("v1", f"{registry.host}/team/app"), ("v1", f"{registry.host}/team/other")} == {
        (line["protocol"], line["source"]) for line in chosen
    }
    digests = {name: image["digest"] for name, image in images.items()}

    for mark in (registry.mark, target.mark):
        mark()
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert {"GET tags": 2, "GET v1-ping": 1, "GET v1-index": 2, "GET v1-tags": 2} == registry.counts()
    assert [] == target.writes()

    shutil.rmtree(mirror_run.state)
    mirror_run.sync()
    assert not {"POST upload", "PATCH upload", "PUT upload"} & set(target.counts())
    again = {image["source"].removeprefix(f"{registry.host}/team/"): image for image in mirror_run.report()["images"]}
    assert digests == {name: image["digest"] for name, image in again.items()}
    assert not (mirror_run.state / "spool/converted/v1").exists()


def test_a_plan_lists_conversions_and_reads_no_layer(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    config = mirror_run.config(
        [{"source": f"{registry.host}/team/other", "targets": [f"{target.host}/moved"]}], registry, target
    )
    ran = mirror_run("plan", config)
    assert 0 == ran.code
    assert f"  {registry.host}/team/other -> {target.host}/moved\n    one  new" in ran.out
    assert "v1, to be converted: the repository is not available over v2" in ran.out
    assert {"GET tags", "GET v1-ping", "GET v1-index", "GET v1-tags"} == set(registry.counts())
    assert not list(mirror_run.folder.rglob("converted"))


def test_verify_accepts_converted_images(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    config = mirror_run.config(
        [{"source": f"{registry.host}/team/other", "targets": [f"{target.host}/moved"]}], registry, target
    )
    assert 1 == mirror_run("verify", config).code
    mirror_run.sync()
    assert 0 == mirror_run("verify", config, "--deep").code


def test_a_plan_distinguishes_changed_images_from_incomparable_ones(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, v1 = one_image(scripted)
    v1.tag("team/app", u=v1.image(gz(tar(b=b"b"))))
    config = mirror_run.config(
        [{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target
    )
    mirror_run.sync()
    v1.tag("team/app", v=v1.image(gz(tar(c=b"c"))), u=v1.image(gz(tar(d=b"d"))))
    ran = mirror_run("plan", config)
    assert "u  compare  " in ran.out  # another image, whose converted digest is not known yet
    assert "to copy: 1 new, 0 changed; 1 to compare; 1 up to date\n" in ran.out
    assert (
        "0 bytes to send; 0 manifest requests that count against a pull quota; plus 2 images to be converted" in ran.out
    )

    shutil.rmtree(mirror_run.state)
    ran = mirror_run("plan", config, "--exit-code")
    assert 10 == ran.code
    assert "to copy: 1 new, 0 changed; 2 to compare; 0 up to date\n" in ran.out
    assert "  changed  " not in ran.out
    assert "plus 3 images to be converted" in ran.out


def test_verify_does_not_report_success_for_incomparable_images(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    v1 = V1()
    v1.tag("team/app", a=v1.image(gz(tar(a=b"a"))), b=v1.image(gz(tar(b=b"b"))))
    registry = old(scripted, v1)
    config = mirror_run.config(
        [{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target
    )
    mirror_run.sync()
    assert "; all complete" in mirror_run("verify", config).out
    shutil.rmtree(mirror_run.state)
    registry.mark()
    ran = mirror_run("verify", config)
    assert 0 == ran.code
    assert "2 images could not be compared with their source" in ran.out
    assert f"`mirror verify --deep {mirror_run.config_file}`" in ran.out
    assert "; complete, but 2 not compared" in ran.out
    assert "GET v1-layer" not in registry.counts()
    ran = mirror_run("verify", config, "--deep")
    assert (0, True) == (ran.code, "; all complete" in ran.out)
    assert 2 == registry.counts()["GET v1-layer"]

    with target.client() as client:
        body = client.manifest("app", "a").body
        kind = {"Content-Type": "application/vnd.docker.distribution.manifest.v2+json"}
        client.ask("PUT", "/v2/app/manifests/b", repository="app", body=body, headers=kind)
    target.mark()
    assert "but 2 not compared" in mirror_run("verify", config).out
    ran = mirror_run("verify", config, "--deep")
    assert 1 == ran.code
    assert f"{target.host}/app:b\n" in ran.out
    assert f"the digests differ: the target has {Digest.of(body)}" in ran.out
    assert "; 1 problem\n" in ran.out
    assert [] == target.writes()
    assert not mirror_run.state.exists()


def test_verify_deep_ignores_converted_digests_in_the_state(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    v1 = V1()
    first, other = (v1.image(gz(tar(name=name))) for name in (b"first", b"other"))
    v1.tag("team/app", t=first)
    registry = old(scripted, v1)
    config = mirror_run.config(
        [{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target
    )
    mirror_run.sync()
    v1.tag("team/app", t=other)
    [path] = mirror_run.state.glob("*.sqlite3")
    with closing(sqlite3.connect(path)) as state, state:
        state.execute("UPDATE transform SET identity = replace(identity, ?, ?)", (first, other))
    assert 0 == mirror_run("verify", config).code
    ran = mirror_run("verify", config, "--deep")
    assert (1, True) == (ran.code, "the digests differ: the target has" in ran.out)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("auto", {"new": "v2", "both": "v2"}),
        ("per-tag", {"new": "v2", "both": "v2", "old": "v1"}),
        ("only", {"both": "v1", "old": "v1"}),
        ("never", {"new": "v2", "both": "v2"}),
    ],
)
@pytest.mark.parametrize("place", ["registry", "mirror"])
def test_a_host_with_different_images_by_each_protocol_is_copied(
    scripted: ScriptedFactory,
    target: RealRegistry,
    mirror_run: MirrorTool,
    mode: str,
    expected: dict[str, str],
    place: str,
) -> None:
    registry, _ = mixed(scripted)
    mirror: dict[str, Any] = {"source": f"{registry.host}/app", "targets": [f"{target.host}/app"]}
    mirror |= {"v1": mode} if place == "mirror" else {}
    settings = {registry.host: {"v1": mode if place == "registry" else "never"}}
    mirror_run.config([mirror], registry, target, registries=settings)
    mirror_run.sync()
    found = {image["source"].rpartition(":")[2]: image["protocol"] for image in mirror_run.report()["images"]}
    assert expected == found
    assert sorted(expected) == sorted(target.tags("app"))
    assert_whole(target)
    assert (mode in ("per-tag", "only")) == bool(asked(registry, "v1"))
    assert (mode != "only") == bool(asked(registry, "v2"))
    if mode == "auto":
        (line,) = events(mirror_run, "protocol")
        assert "per-tag" in line["text"]


@pytest.mark.parametrize("tags", [[], ["both", "new"]], ids=["L22", "T10"])
@pytest.mark.parametrize("mode", ["auto", "per-tag", "never"])
def test_a_tag_that_v2_has_is_not_read_by_v1_after_a_later_failure(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, mode: str, tags: list[str]
) -> None:
    registry, _ = mixed(scripted)
    lost = registry.storage.repositories["app"].tags["both"]
    config = json.loads(registry.storage.repositories["app"].manifests[lost].data)["config"]["digest"]
    registry.fault("GET blob", reference=config, status=404, times=FOREVER)
    mirror: dict[str, Any] = {"source": f"{registry.host}/app", "targets": [f"{target.host}/app"], "v1": mode}
    mirror_run.config([mirror | ({"tags": tags} if tags else {})], registry, target)
    mirror_run.sync(expect=1)
    found = {image["source"].rpartition(":")[2]: image for image in mirror_run.report()["images"]}
    assert ("failed", "v2") == (found["both"]["result"], found["both"]["protocol"])
    assert "copied" == found["new"]["result"]
    assert {"new"} | ({"old"} if mode == "per-tag" and not tags else set()) == set(target.tags("app"))
    assert not any(line.endswith(("json", "ancestry", "layer")) for line in asked(registry, "v1")) or "old" in found
    assert mode == "per-tag" or [] == asked(registry, "v1")


@pytest.mark.parametrize("mode", ["auto", "per-tag", "never"])
def test_an_index_of_unknown_platforms_is_copied_completely_by_v2(  # row T11 of docs/fallback.md
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, mode: str
) -> None:
    registry, _ = mixed(scripted)
    graph = Graph("odd")
    graph.platforms("both", platforms=("plan9/vax",))
    registry.load("app", graph)
    mirror = {"source": f"{registry.host}/app", "tags": ["both"], "targets": [f"{target.host}/app"], "v1": mode}
    mirror_run.config([mirror], registry, target)
    mirror_run.sync()
    assert ["both"] == target.tags("app")
    assert_whole(target)
    assert mode == "per-tag" or [] == asked(registry, "v1")


def test_the_error_of_v2_comes_first_and_sets_the_exit_code(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, v1 = mixed(scripted)
    registry.storage.repositories.clear()
    v1.tags.clear()
    mirror_run.config([{"source": f"{registry.host}/app", "targets": [f"{target.host}/app"]}], registry, target)
    ran = mirror_run.sync(expect=1)
    before, _, after = ran.text.partition("; over v1: ")
    assert "NAME_UNKNOWN" in before
    assert "/v1/" in after
    (image,) = mirror_run.report()["images"]
    assert ("failed", "not_found", 404) == (image["result"], image["error"]["code"], image["error"]["status"])


@pytest.mark.parametrize(
    ("mirror", "error"),
    [
        ({"v1": "only", "source": "team/none"}, "not_found"),
        ({"v1": "only", "source": "team/none", "tags": ["t"]}, "not_found"),
        ({"source": "team/app", "tags": ["bad"]}, "v1_invalid"),
        ({"source": "team/app", "tags": ["none"]}, "not_found"),
        ({"source": "team/app", "tags": ["empty"]}, "v1_invalid"),
    ],
)
def test_the_report_names_the_protocol_of_a_failure_by_v1(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, mirror: dict[str, Any], error: str
) -> None:
    registry, v1 = one_image(scripted)
    v1.tag("team/app", bad="abcdef", empty=v1.image(b"no layer"))
    place = {"source": f"{registry.host}/{mirror['source']}", "targets": [f"{target.host}/app"]}
    mirror_run.config([mirror | place], registry, target)
    ran = mirror_run("sync", mirror_run.config_file)
    (image,) = mirror_run.report()["images"]
    assert ("v1", error) == (image["protocol"], image["error"]["code"])
    assert v1.tags["team/app"]["empty"] == image.get("v1_id") or mirror.get("tags") != ["empty"]
    assert "/v2/" not in ran.text


def test_a_failing_registry_is_not_tried_by_v1(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, _ = mixed(scripted)
    refusal = error_reply(400, "NAME_INVALID")
    registry.fault("GET tags", status=400, body=refusal.body, times=FOREVER)
    mirror_run.config([{"source": f"{registry.host}/app", "targets": [f"{target.host}/app"]}], registry, target)
    assert "NAME_INVALID" in mirror_run.sync(expect=1).text
    assert [] == asked(registry, "v1")


def test_a_hostile_image_fails_alone(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    bad = forty.image(b"this is no layer", None)
    loop = forty.image(b"", None)
    forty.ancestries[loop] = [loop, bad, loop]
    forty.tag("team/other", bad=bad, loop=loop, path="../../etc/passwd")
    mirror_run.config(
        [{"source": f"{registry.host}/team/other", "targets": [f"{target.host}/moved"]}], registry, target
    )
    mirror_run.sync(expect=3)
    results = {name.rpartition(":")[2]: result for name, result in mirror_run.results().items()}
    assert {"one": "copied", "bad": "failed", "loop": "failed", "path": "failed"} == results
    codes = {image["error"]["code"] for image in mirror_run.report()["images"] if "error" in image}
    assert {"v1_invalid"} == codes
    assert ["one"] == target.tags("moved")
    assert_whole(target)
    assert not any("etc" in path for path in asked(registry, "v1"))


def test_a_checksum_mismatch_is_refused(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    v1 = V1()
    v1.tag("app", t=v1.image(gz(tar(a=b"a"))))
    for image in v1.images.values():
        image.checksum = "sha256:" + "0" * 64
    registry = old(scripted, v1)
    mirrors = [{"source": f"{registry.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, registry, target)
    assert "v1-checksums" in mirror_run.sync(expect=3).text
    mirror_run.config(mirrors, registry, target, registries={registry.host: {"v1-checksums": "warn"}})
    mirror_run.sync()
    assert events(mirror_run, "v1_checksum")


def test_truncated_layers_and_an_unfinished_push_are_retried(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    for number in (1, 3, 5):
        registry.fault("GET v1-layer", nth=number, cut_after=10)
    uploading = b'{"error": "Image is being uploaded, retry later"}'
    registry.fault("GET v1-json", nth=2, status=400, body=uploading)
    registry.fault("GET v1-ancestry", nth=2, status=503)
    registry.fault("GET v1-ancestry", nth=4, status=400, body=uploading)
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target)
    mirror_run.sync()
    assert_whole(target)
    assert TAGS == len(target.tags("app"))


def test_two_targets_with_a_small_spool_read_each_layer_once(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry, further = old(scripted, forty), scripted("further")
    targets = [f"{target.host}/app", f"{further.host}/app"]
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": targets}], registry, target, further)
    mirror_run.sync()
    assert len(forty.images) - 1 == registry.counts()["GET v1-layer"]
    assert TAGS == len(further.tags("app")) == len(target.tags("app"))
    assert_whole(target)
    small: dict[str, Any] = {"spool-max": "1 KiB"}
    again = [{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/again"]}]
    mirror_run.config(again, registry, target, **small)
    mirror_run.sync()
    assert TAGS == len(target.tags("again"))


def test_v1_images_can_be_copied_to_v2_of_the_same_host(
    scripted: ScriptedFactory, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = scripted("mixed")
    registry.v1 = forty
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{registry.host}/moved"]}], registry)
    mirror_run.sync()
    assert TAGS == len(registry.tags("moved"))
    assert diff_ids(forty, forty.tags["team/app"]["v7"]) == config_of(registry, "moved", "v7")["rootfs"]["diff_ids"]


def test_temporary_files_of_a_killed_conversion_are_removed(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    mirrors = [{"source": f"{registry.host}/team/other", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, registry, target)
    mirror_run.sync()
    left = mirror_run.state / "spool/converted/v1/layer-7"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left")
    mirror_run.sync()
    assert not left.exists()


def test_a_tag_that_moved_is_converted_again(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, forty: V1
) -> None:
    registry = old(scripted, forty)
    mirror_run.config([{"source": f"{registry.host}/team/other", "targets": [f"{target.host}/app"]}], registry, target)
    mirror_run.sync()
    (before,) = mirror_run.report()["images"]
    forty.tag("team/other", one=forty.image(gz(tar(newer=b"newer")), before["v1_id"]))
    registry.mark()
    mirror_run.sync()
    (after,) = mirror_run.report()["images"]
    assert "copied" == after["result"]
    assert before["digest"] != after["digest"]
    assert 5 + 1 == registry.counts()["GET v1-layer"]
    assert_whole(target)


def test_schema1_is_converted_if_the_mirror_says_so(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, graph = scripted(), Graph("schema1")
    contents = [tar(a=b"a"), tar(b=b"b" * 1000)]
    digest = graph.schema1("old", layers=[graph.blob(gz(one)) for one in contents]).digest
    graph.image("new")
    registry.load("app", graph)
    mirror = {"source": f"{registry.host}/app", "targets": [f"{target.host}/app"], "schema1": "convert"}
    mirror_run.config([mirror], registry, target)
    mirror_run.sync()
    assert ["new", "old"] == target.tags("app")
    assert [diff_id(one) for one in contents] == config_of(target, "app", "old")["rootfs"]["diff_ids"]
    images = {image["source"].rpartition(":")[2]: image for image in mirror_run.report()["images"]}
    assert (digest, "v2") == (images["old"]["source_digest"], images["old"]["protocol"])
    assert digest != images["old"]["digest"]
    assert "source_digest" not in images["new"]
    registry.mark()
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert {"GET tags": 1, "HEAD manifest": 2} == registry.counts()
    shutil.rmtree(mirror_run.state)
    assert "; complete, but 1 not compared" in mirror_run("verify", mirror_run.config_file).out
    assert "; all complete" in mirror_run("verify", mirror_run.config_file, "--deep").out


def test_verify_reports_why_an_image_refused_by_the_source_is_missing(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, v1 = one_image(scripted)
    v1.tag("team/app", bad="abcdef")
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target)
    mirror_run.sync(expect=3)
    ran, [(name, message)] = mirror_run.verify()
    assert (3, f"{target.host}/app:bad") == (ran.code, name)
    assert message.startswith("the image is not on the target, and cannot be read from the source: ")
    assert "'abcdef' is not an image id" in message
    v1.tag("team/app", new=v1.tags["team/app"]["t"])
    v1.tags["team/app"].pop("bad")
    ran, problems = mirror_run.verify()
    assert 1 == ran.code
    text = f"the image is not on the target (run `mirror sync {mirror_run.config_file}`)"
    assert [(f"{target.host}/app:new", text)] == problems


# ---- what is immutable


def kept(scripted: ScriptedFactory, target: RealRegistry, tool: MirrorTool) -> V1:
    """An immutable tag was copied, and then the state was lost."""
    registry, v1 = one_image(scripted)
    mirror = {"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"], "tags": {"immutable": [".*"]}}
    tool.config([mirror], registry, target)
    tool.sync()
    shutil.rmtree(tool.state)
    return v1


@pytest.mark.parametrize("command", ["sync", "verify", "plan"])
def test_an_equal_immutable_tag_is_no_conflict_without_the_state(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, command: str
) -> None:
    kept(scripted, target, mirror_run)
    target.mark()
    ran = mirror_run(command, mirror_run.config_file)
    assert 0 == ran.code, ran
    assert [] == target.writes()


def test_a_different_immutable_tag_is_a_conflict_without_the_state(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    v1 = kept(scripted, target, mirror_run)
    before = digest_of(target, "app", "t")
    v1.tag("team/app", t=v1.image(gz(tar(b=b"another"))))
    mirror_run.sync(expect=3)
    assert ["conflict"] == list(mirror_run.results().values())
    assert before == digest_of(target, "app", "t")


# ---- hints that are not used, and secrets


def test_a_deep_sync_detects_changed_content_of_an_image_id(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    registry, v1 = one_image(scripted)
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target)
    mirror_run.sync()
    before = digest_of(target, "app", "t")
    (image,) = v1.images.values()
    image.layer = gz(tar(a=b"b"))
    image.size = len(image.layer)
    image.checksum = "sha256:" + hashlib.sha256(image.json + b"\n" + image.layer).hexdigest()
    mirror_run.sync()
    assert ["up-to-date"] == list(mirror_run.results().values())
    mirror_run.sync("--deep")
    (entry,) = mirror_run.report()["images"]
    assert ("copied", digest_of(target, "app", "t")) == (entry["result"], entry["digest"])
    assert before != entry["digest"]


@pytest.mark.parametrize("how", ["json", "plain", "cookie"])
def test_a_token_or_cookie_that_a_server_echoes_is_in_no_output(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, how: str
) -> None:
    registry, v1 = one_image(scripted)
    v1.tokens, v1.cookie = how != "cookie", "session=c00k1ec4nary" if how == "cookie" else ""
    secret = "c00k1ec4nary" if how == "cookie" else v1.token("team/app").partition(",")[0].partition("=")[2]

    def echo(request: Request) -> Reply | None:
        if not request.path.endswith("/json"):
            return no_v2(request)
        said = request.header("Cookie" if how == "cookie" else "Authorization") or ""
        assert secret in said
        return json_reply(400, {"error": f"bad: {said}"}) if how == "json" else Reply(400, (), f"bad: {said}".encode())

    registry.hook = echo
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target)
    assert "[hidden]" in mirror_run.sync("-v", expect=1).text
    mirror_run.sweep(secret)


# ---- what a run leaves, and what others find


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGKILL])
def test_converted_layers_of_an_interrupted_run_are_not_reused(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, which: int
) -> None:
    v1 = V1()
    ids = v1.chain(*(gz(tar(number=str(number).encode() * 100)) for number in range(6)))
    v1.tag("team/app", t=ids[-1])
    registry, waiting, go_on = old(scripted, v1), threading.Event(), threading.Event()

    def slow(request: Request) -> Reply | None:
        if request.path == f"/v1/images/{ids[4]}/layer" and not go_on.is_set():
            waiting.set()
            go_on.wait(60)
        return no_v2(request)

    registry.hook = slow
    mirror_run.config([{"source": f"{registry.host}/team/app", "targets": [f"{target.host}/app"]}], registry, target)
    process = mirror_run.start("sync", mirror_run.config_file)
    assert waiting.wait(60)
    process.send_signal(which)
    mirror_run.finish(process)
    go_on.set()
    assert [] == target.tags("app")
    converted = mirror_run.state / "spool/converted/v1"
    assert (which == signal.SIGKILL) == converted.exists()
    if which == signal.SIGKILL:
        for number in range(1, 8):
            (converted / f"layer-{number}").write_bytes(b"somebody else's")
    mirror_run.sync()
    assert_whole(target)
    assert diff_ids(v1, ids[-1]) == config_of(target, "app", "t")["rootfs"]["diff_ids"]
    assert not converted.exists()


NAMES = "abcdefghijkl"  # so many that each shard has some, whatever the port of the source is


@pytest.mark.parametrize("apart", ["shards", "configurations"])
def test_concurrent_runs_with_one_spool_do_not_use_each_others_layers(
    scripted: ScriptedFactory, target: RealRegistry, mirror_run: MirrorTool, apart: str
) -> None:
    v1 = V1()
    for name in NAMES:
        v1.tag(f"team/{name}", t=v1.chain(*(gz(tar(file=f"{name}{part}".encode())) for part in "01"), seed=name)[-1])
    registry, spool = old(scripted, v1), mirror_run.folder / "spool"
    mirrors = [{"source": f"{registry.host}/team/{name}", "targets": [f"{target.host}/{name}"]} for name in NAMES]
    mirror_run.config(mirrors, registry, target, spool=str(spool))
    mine, others = ["--shard", "0/2"], [str(mirror_run.config_file), "--shard", "1/2"]
    if apart == "configurations":
        elsewhere: dict[str, Any] = {"spool": str(spool), "state": str(mirror_run.folder / "another state")}
        mirrors = [mirror | {"targets": [f"{target.host}/another/{number}"]} for number, mirror in enumerate(mirrors)]
        config = mirror_run.config(mirrors, registry, target, file=mirror_run.folder / "another.yaml", **elsewhere)
        mine, others = [], [str(config)]
    whole: list[int] = []

    def meanwhile(request: Request) -> Reply | None:
        # The second run does all its work while the first has one layer and waits for the next.
        if request.path.endswith("/layer") and registry.counts().get("GET v1-layer", 0) >= 2 and not whole:
            whole.append(-1)
            whole[0] = mirror_run("sync", *others).code
        return no_v2(request)

    registry.hook = meanwhile
    mirror_run.sync(*mine)
    assert [0] == whole
    assert_whole(target)
    assert [] == [path for path in spool.rglob("*") if path.is_file()]


def test_plan_and_verify_read_v1_sources_with_a_state_of_the_first_version(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """An old state does not record which sources answered by v2, and these commands do not migrate it."""
    source, target = one_image(scripted)[0], scripted("target")
    mirror_run.config([{"source": f"{source.host}/team/app", "targets": [f"{target.host}/app"]}], source, target)
    mirror_run.sync()
    with closing(sqlite3.connect(mirror_run.state / "state.sqlite3")) as database:
        database.executescript("DROP TABLE answered_by_v2; DROP TABLE writers; PRAGMA user_version = 1")
    assert [0, 0] == [mirror_run(word, mirror_run.config_file).code for word in ("plan", "verify")]
