"""`schema1: convert`: docker's schema 1 manifests become schema 2 images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.registry.convert.layers import EMPTY_GZIP
from mirror.registry.convert.schema1 import read_history
from mirror.registry.http.host_settings import V1Mode
from mirror.store import Version
from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER, wrong_bytes
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import gz, tar
from tests.support.images import Graph
from tests.support.old_registries import WORK, blob, made, opened, transform_of

TARS = [tar(a=b"a" * 100), tar(b=b"b" * 5000)]


def world(scripted: ScriptedFactory, **options: Any) -> tuple[ScriptedRegistry, str]:
    """Return a registry with the tags `old` (schema 1) and `new` (schema 2), and the digest of the old manifest."""
    registry = scripted(**options)
    graph = Graph("schema1")
    digest = graph.schema1("old", layers=[graph.blob(gz(one)) for one in TARS]).digest
    graph.image("new")
    registry.load("app", graph)
    return registry, digest


@pytest.mark.parametrize("mode", [V1Mode.NEVER, V1Mode.AUTO])
def test_a_schema1_image_becomes_one_of_schema2(scripted: ScriptedFactory, tmp_path: Path, mode: V1Mode) -> None:
    registry, digest = world(scripted)
    with opened(registry, tmp_path, mode=mode, schema1=True) as source:
        old, new = source.resolve("app", ["old", "new"], WORK)
        assert isinstance(old, Version)
        assert isinstance(new, Version)
        assert (None, digest, "v2", None) == (old.digest, old.source_id, old.protocol, new.transform)
        result = made(transform_of(source, "app", "old"))
        config = json.loads(blob(result, result.root.blobs[0]))
        assert [gz(one) for one in TARS] == [blob(result, one) for one in result.root.blobs[1:]]
    assert Kind.IMAGE is result.root.kind
    assert [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in TARS] == config["rootfs"]["diff_ids"]
    assert ["2020-09-13T12:26:40Z"] * 2 == [one["created"] for one in config["history"]]
    assert 2 == registry.counts()["GET blob"]
    assert "id" not in config


def test_a_reference_by_digest_is_not_converted(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry, digest = world(scripted)
    with opened(registry, tmp_path, mode=V1Mode.NEVER, schema1=True) as source:
        (version,) = source.resolve("app", [digest], WORK)
        assert isinstance(version, Version)
        assert (digest, None) == (version.digest, version.transform)
        assert source.read("app", digest, WORK).transform is None


def test_read_converts_a_schema1_image_too(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry, _ = world(scripted)
    with opened(registry, tmp_path, mode=V1Mode.NEVER, schema1=True) as source:
        version = source.read("app", "old", WORK)
        assert version.transform is not None
        root = made(version.transform).root
        assert root == made(transform_of(source, "app", "old")).root
        assert source.read("app", "new", WORK).transform is None
    assert 2 == registry.counts()["GET blob"]  # once for both conversions


def test_a_manifest_without_a_useful_media_type_is_read(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry, _ = world(scripted)
    registry.fault("HEAD manifest", after=True, headers=[("Content-Type", "application/json")], times=FOREVER)
    with opened(registry, tmp_path, mode=V1Mode.NEVER, schema1=True) as source:
        old, new = source.resolve("app", ["old", "new"], WORK)
        assert isinstance(old, Version)
        assert isinstance(new, Version)
        assert old.transform is not None
        assert (None, "") == (new.transform, new.source_id)
        assert new.digest is not None


def test_a_layer_with_a_wrong_digest_is_rejected(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry, _ = world(scripted)
    registry.fault("GET blob", after=True, change=wrong_bytes, times=FOREVER)
    with opened(registry, tmp_path, mode=V1Mode.NEVER, schema1=True) as source, pytest.raises(Refused):
        made(transform_of(source, "app", "old"))


def manifest(*history: dict[str, Any] | str | None, layers: int | None = None) -> Manifest:
    count = len(history) if layers is None else layers
    document = {
        "schemaVersion": 1,
        "fsLayers": [{"blobSum": Digest.of(EMPTY_GZIP)}] * count,
        "history": [{"v1Compatibility": json.dumps(one) if isinstance(one, dict) else one} for one in history],
    }
    body = json.dumps(document).encode()
    return Manifest(body, Digest.of(body), "", Kind.SCHEMA1)


def test_the_history_starts_with_the_base() -> None:
    found = read_history(
        manifest({"id": "c", "parent": "b"}, {"id": "b", "parent": "a", "throwaway": True}, {"id": "a"}), "x"
    )
    assert ["a", "b", "c"] == [one.document["id"] for one in found]
    assert [False, True, False] == [one.layer is None for one in found]


def test_an_image_that_occurs_twice_in_a_row_counts_once() -> None:
    found = read_history(manifest({"id": "b", "parent": "a"}, {"id": "b", "parent": "a"}, {"id": "a"}), "x")
    assert ["a", "b"] == [one.document["id"] for one in found]


@pytest.mark.parametrize(
    "history",
    [
        [{"id": "b", "parent": "x"}, {"id": "a"}],
        [{"id": "b"}, {"id": "a"}],
        [{"id": "b", "parent": "a"}, {"id": "a", "parent": "z"}],
        [{"id": 5}],
        [{}],
        ["not JSON"],
        ["[]"],
        [None],
        ['{"id": "a", "id": "b"}'],
        ['{"id": "a", "x": "\\ud800"}'],
        [{"id": "a", "parent": "a"}, {"id": "a", "parent": "a"}],
        [{"id": "a", "parent": 5}, {"id": "b"}],
        [{"id": "a", "parent": {"x": 1}}, {"id": "b"}],
        [{"id": "a", "parent": "b"}, 5],
    ],
    ids=str,
)
def test_an_invalid_history_is_rejected(history: list[Any]) -> None:
    with pytest.raises(MirrorError) as caught:
        read_history(manifest(*history), "x")
    assert ("manifest_invalid", 3) == (caught.value.code, caught.value.exit_code)
