"""The walks of layouts and bundles, which `verify` is compared with, detect every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.registries.client import sha256
from tests.support.images import Graph
from tests.support.layouts import lay, pack
from tests.support.walks import FilesView, Walker, bundle_view, layout_view


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(files: dict[str, bytes], want: str, *, hashing: bool = True) -> list[str]:
    return Walker(FilesView(files.get), hashing=hashing).problems("app", "v1", want)


def test_a_complete_image_has_no_problems(tmp_path: Path) -> None:
    graph = Graph("walk")
    root = graph.platforms("v1")
    views = (layout_view(lay(tmp_path / "layout", app=graph)), bundle_view(pack(tmp_path / "a.tar", app=graph)))
    for walker in [Walker(view, hashing=True) for view in views]:
        assert [] == walker.problems("app", "v1", root.digest)
        assert ["app:v2 is not there"] == walker.problems("app", "v2", root.digest)
        assert [f"app:v1 is {root.digest}, not sha256:0"] == walker.problems("app", "v1", "sha256:0")


@pytest.mark.parametrize(
    ("damage", "by_size", "by_hash"),
    [
        (lambda data: None, "is missing", "is missing"),
        (lambda data: data[:-1], "bytes, not", "bytes, not"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), None, "has other bytes"),
    ],
    ids=["missing", "short", "changed"],
)
def test_a_blob_is_checked_by_its_size_or_by_its_digest(
    damage: object, by_size: str | None, by_hash: str, tmp_path: Path
) -> None:
    graph = Graph("walk")
    root = graph.platforms("v1")
    files = files_of(lay(tmp_path / "layout", app=graph))
    name = f"blobs/{next(iter(graph.blobs)).replace(':', '/')}"
    assert callable(damage)
    changed = damage(files.pop(name))
    files |= {name: changed} if changed is not None else {}
    for hashing, want in ((False, by_size), (True, by_hash)):
        problems = found(files, root.digest, hashing=hashing)
        assert (want is not None) == bool(problems)
        assert all(str(want) in problem for problem in problems)


def test_a_child_with_wrong_bytes_and_a_root_of_a_wrong_size_are_problems(tmp_path: Path) -> None:
    graph = Graph("walk")
    root = graph.platforms("v1")
    files = files_of(lay(tmp_path / "layout", app=graph))
    child = next(iter(graph.manifests))
    whole = files[f"blobs/{child.replace(':', '/')}"]
    files[f"blobs/{child.replace(':', '/')}"] = whole.replace(b"schemaVersion", b"schemaversion")
    assert [f"manifest {child} is wrong"] == found(files, root.digest, hashing=False)
    index = json.loads(files["index.json"])
    index["manifests"][0]["size"] += 1
    assert root.digest == sha256(files[f"blobs/{root.digest.replace(':', '/')}"])
    assert ["app:v1 is not there"] == found({**files, "index.json": json.dumps(index).encode()}, root.digest)


def test_a_truncated_bundle_has_no_content(tmp_path: Path) -> None:
    graph = Graph("walk")
    root = graph.image("v1")
    bundle = pack(tmp_path / "a.tar", app=graph)
    bundle.write_bytes(bundle.read_bytes()[: bundle.stat().st_size // 2])
    assert ["app:v1 is not there"] == Walker(bundle_view(bundle), hashing=True).problems("app", "v1", root.digest)
