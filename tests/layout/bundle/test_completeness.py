"""Complete and incomplete bundles: `mirror bundle verify` and `mirror serve` agree."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import Refused
from mirror.layout.base_inventory import BaseInventory
from mirror.layout.bundle.index_document import index_json
from mirror.layout.bundle.reader import INDEX_NAME, INVENTORY_NAME
from mirror.layout.bundle.verify import verify_bundle
from mirror.layout.inventory import parse_inventory
from mirror.oci.digest import Digest
from mirror.serve.server import open_handler
from mirror.util.cancellation import Stop, Work
from tests.support.bundles import export, stock
from tests.support.images import Graph
from tests.support.layouts import Served

Keeps = Callable[[str], bool]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "bundle.tar"
    export(path, stock())
    return path


def repacked(path: Path, into: Path, keeps: Keeps) -> Path:
    """Copy a bundle with the members for whose names `keeps` returns True."""
    with tarfile.open(path) as old, tarfile.open(into, "w", format=tarfile.PAX_FORMAT) as new:
        for one in old:
            if keeps(one.name):
                new.addfile(one, old.extractfile(one))
    return into


def foreign(path: Path, into: Path, keeps: Keeps = lambda name: True) -> Path:
    """Copy a bundle without its inventory, as another tool would write it."""
    return repacked(path, into, lambda name: name != "mirror-inventory.json" and keeps(name))


def child_of(graph: Graph) -> str:
    return str(json.loads(graph.manifests[graph.tags["v1"]].data)["manifests"][0]["digest"])


def without(digest: str) -> Keeps:
    return lambda name: digest[7:] not in name


def test_verify_and_serve_agree_on_whether_a_bundle_is_complete(whole: Path, tmp_path: Path) -> None:
    graph = stock()
    gone = {"a-blob": graph.layer("base").digest, "a-child": child_of(graph), "a-root": graph.tags["v2"]}
    made = {"whole": whole, "foreign": foreign(whole, tmp_path / "foreign.tar")}
    for name, digest in gone.items():
        made[name] = repacked(whole, tmp_path / f"{name}.tar", without(digest))
        made[f"foreign-{name}"] = foreign(whole, tmp_path / f"foreign-{name}.tar", without(digest))
    damaged = made["a-damaged-manifest"] = tmp_path / "damaged.tar"
    damaged.write_bytes(whole.read_bytes().replace(graph.manifests[child_of(graph)].data[-40:], b"?" * 40))
    verdicts = {}
    for name, path in made.items():
        verified = not verify_bundle(path, Work(Stop())).problems
        try:
            with open_handler(path, Stop()):
                verdicts[name] = (verified, True)
        except Refused as error:
            assert "bundle_incomplete" == error.code
            verdicts[name] = (verified, False)
    assert {name: (name in ("whole", "foreign"),) * 2 for name in made} == verdicts


def test_verify_and_serve_report_that_a_differential_bundle_needs_its_base(whole: Path, tmp_path: Path) -> None:
    with tarfile.open(whole) as tar:
        file = tar.extractfile("mirror-inventory.json")
        assert file is not None
        base = BaseInventory(parse_inventory(file.read(), ""))
    graph = stock()
    graph.image("new", layers=[graph.layer("base"), graph.layer("new")])
    path = tmp_path / "second.tar"
    export(path, graph, base=base)
    found = verify_bundle(path, Work(Stop()))
    assert ([], True) == (found.problems, "complete with its base" in list(found.lines())[-1])
    with pytest.raises(Refused) as caught, open_handler(path, Stop()):
        pass
    assert "blobs that its base has" in caught.value.what


def test_a_bundle_written_by_another_tool_is_served(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    command = ["skopeo", "copy", "-q", "--all", "--preserve-digests", f"oci-archive:{whole}:app:v1"]
    subprocess.run([*command, f"oci-archive:{path}:v1"], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    with Served(path) as server, server.client() as client:
        assert ["v1"] == client.tags("foreign")


def test_a_child_manifest_that_the_inventory_does_not_list_makes_a_bundle_incomplete(
    whole: Path, tmp_path: Path
) -> None:
    child = child_of(stock())
    with tarfile.open(whole) as old:
        files = {one.name: file.read() for one in old if (file := old.extractfile(one)) is not None}
    inventory = parse_inventory(files[INVENTORY_NAME], "")
    del inventory.manifests[Digest(child)], files["blobs/" + child.replace(":", "/")]
    for holdings in inventory.repositories.values():
        holdings.manifests.discard(Digest(child))
    files[INVENTORY_NAME] = inventory.render()
    files[INDEX_NAME] = index_json(inventory, inventory.render())
    path = tmp_path / "without-a-child.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as new:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    (problem,) = verify_bundle(path, Work(Stop())).problems
    assert problem.text.startswith(f"{child} is not in the inventory")
    with pytest.raises(Refused) as caught, open_handler(path, Stop()):
        pass
    assert "bundle_incomplete" == caught.value.code
