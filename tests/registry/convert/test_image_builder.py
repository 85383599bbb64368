"""Converted images: the content of config and manifest, and that conversions are reproducible."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import MirrorError, NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, Kind
from mirror.registry.convert.image_builder import CONFIG_TYPE, LAYER_TYPE, HistoryStep, build_image, history_entry
from mirror.registry.convert.layers import EMPTY_LAYER, LayerWriter
from mirror.store import TransformResult
from mirror.util.cancellation import Stop, Work
from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, tar
from tests.support.old_registries import WORK, blob, made, old_registry, opened, transform_of

LAYERS = [gz(tar(etc__os=b"old")), tar(bin__sh=b"#!"), b"", gz(tar(etc__WHos=b""))]


def diff_id(stored: bytes) -> str:
    data = gzip.decompress(stored) if stored[:2] == b"\x1f\x8b" else stored or bytes(1024)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_of(result: TransformResult) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(blob(result, result.root.blobs[0]))
    return config


def document_of(**more: Any) -> dict[str, Any]:
    base = {"id": "a" * 64, "created": "2015-01-01T00:00:00Z", "os": "linux", "architecture": "arm"}
    return {key: value for key, value in (base | more).items() if value is not ...}


def config(**more: Any) -> dict[str, Any]:
    """Return the config that the JSON of one image is converted to."""
    body, _ = build_image(
        document_of(**more), [HistoryStep(history_entry(document_of(**more)), EMPTY_LAYER)], "the image"
    )
    made: dict[str, Any] = json.loads(body)
    return made


# ---- whole images


def test_a_chain_becomes_an_image(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    ids = server.chain(*LAYERS)
    server.tag("app", t=ids[-1])
    registry = old_registry(scripted, server)
    with opened(registry, tmp_path) as source:
        result = made(transform_of(source, "app", "t"))
        manifest, found = json.loads(result.root.body), config_of(result)
        blobs = [blob(result, one) for one in result.root.blobs[1:]]
    assert (Kind.IMAGE, DOCKER_MANIFEST) == (result.root.kind, result.root.media_type)
    assert {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST} == {
        key: manifest[key] for key in manifest if key not in ("config", "layers")
    }
    assert CONFIG_TYPE == manifest["config"]["mediaType"]
    assert [LAYER_TYPE] * 4 == [layer["mediaType"] for layer in manifest["layers"]]
    assert [diff_id(layer) for layer in LAYERS] == found["rootfs"]["diff_ids"]
    assert "layers" == found["rootfs"]["type"]
    assert [diff_id(data) for data in blobs] == found["rootfs"]["diff_ids"]
    assert [len(data) for data in blobs] == [layer["size"] for layer in manifest["layers"]]
    assert [LAYERS[0], LAYERS[3]] == [blobs[0], blobs[3]]  # gzip layers are unchanged
    top = json.loads(server.images[ids[-1]].json)
    for gone in ("id", "parent", "Size"):
        assert gone not in found
        del top[gone]
    assert top == {key: value for key, value in found.items() if key not in ("rootfs", "history")}
    assert [
        {"created": f"2014-03-{day:02}T10:00:00.123456789Z", "created_by": f"/bin/sh -c #(nop) ADD file {day - 1}"}
        for day in range(1, 5)
    ] == found["history"]


def test_a_layer_that_occurs_twice_is_listed_twice(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.chain(LAYERS[0], LAYERS[1], LAYERS[0])[-1])
    with opened(old_registry(scripted, server), tmp_path) as source:
        result = made(transform_of(source, "app", "t"))
    layers = json.loads(result.root.body)["layers"]
    assert layers[0] == layers[2] != layers[1]
    assert 3 == len(result.root.blobs)  # with the config


def test_converting_an_image_twice_gives_the_same_bytes(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.chain(*LAYERS)[-1])
    registry = old_registry(scripted, server)
    roots = []
    for folder in ("one", "two"):
        with opened(registry, tmp_path / folder) as source:
            roots.append(made(transform_of(source, "app", "t")).root)
    assert roots[0] == roots[1]
    # If this digest changes, it changes for every user, and CONVERTER_VERSION must change too.
    assert json.dumps(json.loads(roots[0].body), sort_keys=True, separators=(",", ":")).encode() == roots[0].body


def test_a_layer_shared_by_several_images_is_fetched_once(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    _, middle, top = server.chain(*LAYERS[:3])
    other = server.image(LAYERS[3], middle)
    server.tag("app", a=top, b=other, c=top)
    server.tag("more", d=middle)
    registry = old_registry(scripted, server)
    with opened(registry, tmp_path) as source:
        for repository, tag in (("app", "a"), ("app", "b"), ("app", "c"), ("more", "d")):
            made(transform_of(source, repository, tag))
    assert 4 == registry.counts()["GET v1-layer"]
    assert 4 == registry.counts()["GET v1-json"]
    assert 3 == registry.counts()["GET v1-ancestry"]


def test_an_evicted_layer_is_converted_again(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    layers = [tar(**{f"f{number}": bytes([number]) * 50_000}) for number in range(4)]
    one, two = server.chain(*layers[:2], seed="1")[-1], server.chain(*layers[2:], seed="2")[-1]
    server.tag("app", one=one, two=two)
    registry = old_registry(scripted, server)
    with opened(registry, tmp_path, limit=1) as source:
        result = made(transform_of(source, "app", "one"))
        assert 2 == len(list((tmp_path / "converted/v1").iterdir()))  # pinned layers may exceed the limit
        other = made(transform_of(source, "app", "two"))
        for descriptor in (*result.root.blobs, *other.root.blobs):
            source_of = result if descriptor in result.root.blobs else other
            assert Digest.of(blob(source_of, descriptor)) == descriptor.digest
        for done in (result, result, other):
            done.release()  # release may be called twice
        registry.mark()
        again = made(transform_of(source, "app", "one"))
        assert result.root == again.root
        assert [] != [entry for entry in registry.log if entry.kind == "GET v1-layer"]
    assert not (tmp_path / "converted/v1").exists()


def test_no_file_is_written_before_a_layer_is_converted(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.image(LAYERS[0]))
    with opened(old_registry(scripted, server), tmp_path) as source:
        transform_of(source, "app", "t").parts(WORK)
        assert not (tmp_path / "converted").exists()


def test_a_rejected_layer_leaves_no_file(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.image(b"not a layer"))
    with opened(old_registry(scripted, server), tmp_path) as source:
        with pytest.raises(Refused):
            made(transform_of(source, "app", "t"))
        assert [] == list((tmp_path / "converted/v1").iterdir())


def test_large_image_json_is_not_kept_but_requested_again(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.image(LAYERS[0], comment="x" * 100_000))
    registry = old_registry(scripted, server)
    with opened(registry, tmp_path) as source:
        assert 100_000 == len(config_of(made(transform_of(source, "app", "t")))["comment"])
    assert 2 == registry.counts()["GET v1-json"]


def test_a_conversion_reports_progress_and_ends_at_a_stop(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.image(LAYERS[1]))
    registry = old_registry(scripted, server)
    moved: list[int] = []
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "app", "t")
        made(transform, Work(Stop(), moved.append))
        assert len(LAYERS[1]) == sum(moved)
        stop = Stop()
        stop.request("enough")
        with pytest.raises(MirrorError):
            transform_of(source, "app", "t").parts(Work(stop)) and source.read("app", "x", Work(stop))


def test_a_converted_source_serves_only_its_own_image(scripted: ScriptedFactory, tmp_path: Path) -> None:
    server = V1()
    server.tag("app", t=server.image(LAYERS[0]))
    registry: ScriptedRegistry = old_registry(scripted, server)
    with opened(registry, tmp_path) as source:
        result = made(transform_of(source, "app", "t"))
        store, root, other = result.source, result.root, Digest.of(b"other")
        assert registry.host == store.host
        assert root == store.manifest("app", root.digest, WORK) == store.read("app", root.digest, WORK).manifest
        here, missing = store.resolve("app", [root.digest, other], WORK)
        assert root.digest == getattr(here, "digest", None)
        assert isinstance(missing, NotFound)
        assert [[], [], []] == [
            list(store.tags("app", WORK)),
            list(store.repositories("", WORK)),
            list(store.referrers("app", other, WORK) or ()),
        ]
        assert not store.omits_blob(Descriptor(other, 1))
        for ask in (lambda: store.manifest("app", other, WORK), lambda: blob(result, Descriptor(other, 1))):
            with pytest.raises(NotFound):
                ask()
        for descriptor in root.blobs:
            assert blob(result, descriptor)[5:] == blob(result, descriptor, 5)


# ---- configs


@pytest.mark.parametrize("docker_version", [..., "1.8.2", "1.9.1"])
def test_unknown_keys_of_the_config_are_kept(docker_version: Any) -> None:
    unknown = {"x": [1, {"y": None}], "n": 12345678901234567890, "f": 1.5, "Labels": {"A": "", "a": ""}}
    found = config(docker_version=docker_version, **unknown)
    assert unknown == {key: found[key] for key in unknown}


def test_keys_of_v1_are_removed_from_the_config() -> None:
    gone = {"parent": "b" * 64, "Size": 1, "parent_id": "x", "layer_id": "y", "throwaway": True}
    assert {} == {key: value for key, value in config(**gone).items() if key in (*gone, "id")}


def test_the_config_always_has_a_platform() -> None:
    for missing in (..., None, "", 5):
        found = config(os=missing, architecture=missing)
        assert ("linux", "amd64") == (found["os"], found["architecture"])
    assert ("linux", "arm") == (config()["os"], config()["architecture"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("created", "yesterday"), ("created", 5), ("created", "2015-13-01T00:00:00Z"),
     ("created", "2014-02-30T10:00:00Z"), ("created", "2013-02-29T10:00:00Z"), ("created", "0000-01-01T00:00:00Z"),
     ("created", "2014-01-01T00:00:00+24:00"), ("created", "\u0662\u0660\u0661\u0664-03-01T10:00:00Z"),
     ("author", []), ("config", "x"),
     ("container_config", [1]), ("docker_version", {}), ("comment", True), ("container", 1)],
)  # fmt: skip
def test_a_key_with_a_wrong_type_is_removed(key: str, value: Any) -> None:
    assert key not in config(**{key: value})


@pytest.mark.parametrize(
    ("document", "entry"),
    [
        ({}, {"created": "0001-01-01T00:00:00Z"}),
        ({"created": "2015-01-01T00:00:00.123456789+02:00"}, {"created": "2015-01-01T00:00:00.123456789+02:00"}),
        ({"created": "soon"}, {"created": "0001-01-01T00:00:00Z"}),
        ({"author": "me", "comment": "why"}, {"author": "me", "comment": "why"}),
        ({"author": "", "comment": None}, {}),
        ({"container_config": None}, {}),
        ({"container_config": {"Cmd": None}}, {}),
        ({"container_config": {"Cmd": []}}, {}),
        ({"container_config": {"Cmd": "sh"}}, {}),
        ({"container_config": {"Cmd": ["sh", 1]}}, {}),
        ({"container_config": {"Cmd": ["sh", "-c", "a  b"]}}, {"created_by": "sh -c a  b"}),
        ({"container_config": {"Cmd": ["x"]}, "throwaway": True}, {"created_by": "x"}),
    ],
)  # fmt: skip
def test_the_history_entry_of_an_image(document: Any, entry: dict[str, str]) -> None:
    assert {"created": "0001-01-01T00:00:00Z"} | entry == history_entry(document)


def test_a_step_without_a_layer_is_marked_as_an_empty_layer() -> None:
    entry = history_entry({})
    body, manifest = build_image(document_of(), [HistoryStep(entry, EMPTY_LAYER), HistoryStep(entry, None)], "x")
    found = json.loads(body)
    assert [None, True] == [one.get("empty_layer") for one in found["history"]]
    assert [EMPTY_LAYER.diff_id] == found["rootfs"]["diff_ids"]
    assert 2 == len(manifest.blobs)


def test_a_config_that_is_too_large_is_rejected() -> None:
    with pytest.raises(Refused):
        build_image(document_of(x="y" * (9 << 20)), [HistoryStep(history_entry({}), EMPTY_LAYER)], "x")


def test_a_value_that_json_cannot_represent_is_rejected() -> None:
    with pytest.raises(Refused):
        build_image(document_of(x=float("inf")), [HistoryStep(history_entry({}), EMPTY_LAYER)], "x")


def test_a_layer_writer_needs_only_an_output_stream() -> None:
    out = io.BytesIO()
    writer = LayerWriter(out, what="x", code="v1_invalid")
    writer.feed(LAYERS[0])
    assert Digest.of(out.getvalue()) == writer.finish().digest == Digest.of(LAYERS[0])
