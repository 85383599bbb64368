"""The store for bodies of manifests: a limited part in memory, the others in files while they are needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.errors import LocalError
from mirror.oci.manifest import OCI_INDEX, Manifest, parse_manifest
from mirror.sync.manifest_bodies import ManifestBodies
from tests.support import schema1

SIZE = 1000


def manifest(name: str) -> Manifest:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"name": name}}
    return parse_manifest(json.dumps(document).encode().ljust(SIZE))


def test_all_referenced_bodies_can_be_read_and_a_limited_part_is_in_memory(tmp_path: Path) -> None:
    bodies = ManifestBodies(tmp_path / "manifests", limit=3 * SIZE)
    manifests = [manifest(str(number)) for number in range(10)]
    kept = [bodies.keep(each) for each in manifests]
    expected = [(each.digest, each.size, each.body) for each in manifests]
    assert expected == [(each.digest, each.size, each.body) for each in kept]
    assert 7 == len(list((tmp_path / "manifests").iterdir()))
    assert kept[0] == bodies.keep(manifests[0]) == bodies.keep(kept[0])
    bodies.close()
    assert not (tmp_path / "manifests").exists()


def test_a_body_without_a_reference_is_not_written_to_a_file(tmp_path: Path) -> None:
    bodies = ManifestBodies(tmp_path / "manifests", limit=3 * SIZE)
    for number in range(10):
        bodies.keep(manifest(str(number)))
    assert not (tmp_path / "manifests").exists()


def test_files_of_bodies_without_a_reference_are_deleted(tmp_path: Path) -> None:
    bodies = ManifestBodies(tmp_path / "manifests", limit=SIZE)
    for batch in range(10):
        kept = [bodies.keep(manifest(f"{batch} {number}")) for number in range(50)]
        assert 50 == len({each.body for each in kept})
    assert len(list((tmp_path / "manifests").iterdir())) <= 150


def test_without_a_directory_bodies_above_the_limit_are_dropped() -> None:
    bodies = ManifestBodies(None, limit=2 * SIZE)
    first, *others = [bodies.keep(manifest(str(number))) for number in range(3)]
    assert [SIZE, SIZE] == [len(each.body) for each in others]
    assert SIZE == first.size
    with pytest.raises(RuntimeError, match="is not stored"):
        _ = first.body


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_that_was_changed_or_deleted_is_an_error(how: str, tmp_path: Path) -> None:
    bodies = ManifestBodies(tmp_path, limit=SIZE)
    first, _second = bodies.keep(manifest("first")), bodies.keep(manifest("second"))
    [file] = tmp_path.iterdir()
    file.unlink() if how == "gone" else file.write_bytes(b"x" * SIZE)
    with pytest.raises(LocalError, match=str(file)):
        _ = first.body


def test_a_file_that_cannot_be_written_leaves_the_body_in_memory(tmp_path: Path) -> None:
    (tmp_path / "manifests").write_text("in the way")
    bodies = ManifestBodies(tmp_path / "manifests", limit=SIZE)
    first = bodies.keep(manifest("first"))
    with pytest.raises(LocalError):
        bodies.keep(manifest("second"))
    assert SIZE == len(first.body)


def test_signed_manifests_with_the_same_digest_and_different_bytes_are_both_stored(tmp_path: Path) -> None:
    bodies = ManifestBodies(tmp_path, limit=1)
    layers = ["sha256:" + "a" * 64]
    one, other = (parse_manifest(schema1.signed("app", "v1", layers)) for _ in range(2))
    resigned = parse_manifest(one.body + b"\n") if one.body == other.body else other
    kept = [bodies.keep(one), bodies.keep(resigned), bodies.keep(manifest("third"))]
    assert one.digest == resigned.digest
    assert [one.body, resigned.body] == [each.body for each in kept[:2]]
