"""Inventories: their format, their validation, and how they are created."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mirror.commands.bundle import list_references
from mirror.commands.inventory import make_inventory
from mirror.errors import ConfigError, Refused
from mirror.layout.base_inventory import BaseInventory
from mirror.layout.directory import LayoutStore
from mirror.layout.inventory import Inventory, parse_inventory, read_inventory
from mirror.layout.inventory_reader import survey_store
from mirror.oci.digest import Digest
from mirror.store import ExpectedImage, LeftOut
from mirror.util.structs import replace
from tests.support.bundles import comings, export, opened, stock, work
from tests.support.images import Graph
from tests.support.layouts import lay

SCHEMA = json.loads((Path(__file__).parents[2] / "mirror" / "inventory.schema.json").read_text(encoding="utf-8"))


def made(*images: ExpectedImage, base: BaseInventory | None = None) -> Inventory:
    one = Inventory()
    for coming in images:
        one.add(coming, base or BaseInventory())
    one.normalize()
    return one


def test_an_inventory_matches_its_published_schema() -> None:
    whole = made(*comings(stock()), *comings(stock(), "team/web"))
    less = made(*comings(stock()), base=BaseInventory(made(*comings(stock(), references=["v1"]))))
    empty = made()
    for one in (whole, less, empty):
        jsonschema.validate(json.loads(one.render()), SCHEMA)
    assert less.base


def test_an_inventory_is_read_back_as_it_was_written() -> None:
    one = made(*comings(stock()), *comings(stock("other"), "team/web", [stock("other").tags["v2"]]))
    again = parse_inventory(one.render(), "inventory")
    assert one == again
    assert one.render() == again.render()


def test_the_order_of_images_does_not_change_the_bytes() -> None:
    images = [*comings(stock()), *comings(stock(), "team/web")]
    assert made(*images).render() == made(*reversed(images)).render()


def sparse(image: ExpectedImage, *platforms: str) -> ExpectedImage:
    return replace(image, left_out=LeftOut(platforms, frozenset({image.manifests[-1].digest}), frozenset()))


def test_the_platforms_of_sparse_images_are_read_back_and_a_complete_image_has_none() -> None:
    (image,) = comings(stock(), references=["v1"])
    root = image.manifests[-1].digest
    amd64, arm64 = sparse(image, "linux/amd64"), sparse(image, "linux/arm64")
    for images, platforms in (
        ([amd64], ("linux/amd64",)),
        ([amd64, arm64], ("linux/amd64", "linux/arm64")),
        ([amd64, image], None),
    ):
        one = made(*images)
        assert one == parse_inventory(one.render(), "inventory") == made(*reversed(images))
        assert platforms == one.repositories["app"].platforms.get(root)
        jsonschema.validate(json.loads(one.render()), SCHEMA)


def test_an_inventory_of_twenty_thousand_tags_is_fast() -> None:
    one = made(*comings(stock()))
    root = one.repositories["app"].tags["v2"]
    one.repositories["app"].tags.update({f"tag-{number}": root for number in range(20_000)})
    for number in range(100_000):
        digest = Digest(f"sha256:{number:064x}")
        one.blobs[digest] = number
        one.repositories["app"].blobs.add(digest)
    assert one == parse_inventory(one.render(), "inventory")


def broken(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(made(*comings(stock())).render())
    change(document)
    return json.dumps(document).encode()


NO = "sha256:" + "0" * 64
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "no version": broken(lambda one: one.pop("inventory")),
    "version true": broken(lambda one: one.update(inventory=True)),
    "a later version": broken(lambda one: one.update(inventory=2)),
    "a repository that is none": broken(lambda one: one["repositories"].update({"../x": {}})),
    "a tag that is none": broken(lambda one: one["repositories"]["app"]["tags"].update({"a/b": NO})),
    "a tag of nothing": broken(lambda one: one["repositories"]["app"]["tags"].update({"x": NO})),
    "a blob of nothing": broken(lambda one: one["repositories"]["app"]["blobs"].append(NO)),
    "a digest that is none": broken(lambda one: one["blobs"].update({"sha256:xyz": 1})),
    "a size that is none": broken(lambda one: one["blobs"].update({NO: "1"})),
    "a negative size": broken(lambda one: one["blobs"].update({NO: -1})),
    "a type that is none": broken(lambda one: one["manifests"].update({NO: {"mediaType": 1}})),
    "a base without repositories": broken(lambda one: one.update(base={NO: {"size": 1, "repositories": []}})),
    "a base in a hostile repository": broken(lambda one: one.update(base={NO: {"size": 1, "repositories": ["/x"]}})),
    "platforms of nothing": broken(lambda one: one["repositories"]["app"].update(platforms={NO: ["linux/amd64"]})),
    "a platform that is none": broken(lambda one: one["repositories"]["app"].update(platforms={NO: ["linux"]})),
    "a key twice": b'{"inventory": 1, "inventory": 1}',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_invalid_inventory_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        parse_inventory(BROKEN[case], "inventory")
    assert "bundle_invalid" == caught.value.code
    path = tmp_path / "base.json"
    path.write_bytes(BROKEN[case])
    with pytest.raises(ConfigError):
        read_inventory(path)


def test_the_error_for_a_missing_base_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mirror inventory"):
        read_inventory(tmp_path / "none.json")


def test_a_base_names_the_repositories_that_have_a_blob() -> None:
    base = BaseInventory(made(*comings(stock()), *comings(stock(), "team/web", ["v1"])))
    of_v1 = comings(stock(), references=["v1"])[0].blobs[0].digest
    of_v2 = comings(stock(), references=["v2"])[0].blobs[0].digest
    assert ("app", "team/web") == base.repositories_with(of_v1)
    assert ("app",) == base.repositories_with(of_v2)
    assert () == base.repositories_with(Digest(NO))


def test_the_inventory_of_a_differential_bundle_is_a_base_with_the_blobs_of_both() -> None:
    first = BaseInventory(made(*comings(stock(), references=["v1"])))
    second = BaseInventory(made(*comings(stock()), base=first))
    assert all(second.repositories_with(blob.digest) for coming in comings(stock()) for blob in coming.blobs)


def test_a_survey_reads_the_manifests_of_a_store(tmp_path: Path) -> None:
    graph = stock()
    export(tmp_path / "bundle.tar", graph, team_web=stock("web"))
    bundle = opened(tmp_path / "bundle.tar")
    found = survey_store(bundle, ["app", "team/web", "nowhere"], work())
    assert [] == found.problems
    assert bundle.reader(work()).inventory == found.inventory
    of_v1 = comings(graph, references=["v1"])[0]
    size = sum(one.size for one in of_v1.manifests) + sum(blob.size or 0 for blob in of_v1.blobs)
    assert size == found.total_size(Digest(graph.tags["v1"]))
    bundle.close()


def test_a_survey_finds_referrers_without_a_tag_and_their_referrers(tmp_path: Path) -> None:
    graph = Graph("signed")
    index = graph.platforms("v1")
    sbom = graph.artifact(subject=index, texts=[b"sbom"])
    signature = graph.artifact(subject=sbom, texts=[b"signature"])
    graph.artifact(subject=graph.artifact(texts=[b"unrelated"]), texts=[b"of no image"])
    store = LayoutStore(lay(tmp_path / "layout", app=graph))
    found = survey_store(store, ["app"], work())
    store.close()
    assert [] == found.problems
    contents = found.inventory.repositories["app"]
    assert {sbom.digest, signature.digest} == contents.roots
    assert 5 == len(contents.manifests)
    assert {Digest(json.loads(graph.manifests[sbom.digest].data)["layers"][0]["digest"])} <= contents.blobs


def test_unreadable_manifests_are_reported_and_left_out_of_the_inventory(tmp_path: Path) -> None:
    graph = stock()
    path = tmp_path / "bundle.tar"
    export(path, graph)
    data = path.read_bytes()
    body = graph.manifests[graph.tags["v2"]].data
    path.write_bytes(data.replace(body, body[:-1] + b" "))
    bundle = opened(path)
    found = survey_store(bundle, ["app"], work())
    assert ["digest_mismatch"] == [one.code for one in found.problems]
    assert set(graph.tags) - {"v2", "latest"} == set(found.inventory.repositories["app"].tags)
    bundle.close()
    result = list_references(path)
    assert (3, 1) == (result.code, len(result.problems))


def test_the_inventory_of_a_bundle_is_printed_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    export(path, stock())
    result = make_inventory(path)
    bundle = opened(path)
    assert bundle.reader(work()).inventory_bytes == "".join(f"{line}\n" for line in result.lines).encode()
    assert 0 == result.code
    bundle.close()


def test_an_inventory_made_from_a_report_lists_the_copied_images(tmp_path: Path) -> None:
    root, other = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    images = [
        {"target": "r.example.com:5000/team/app:v1", "digest": root, "result": "copied"},
        {"target": "r.example.com:5000/team/app:v2", "digest": root, "result": "up-to-date"},
        {"target": f"r.example.com/web@{other}", "digest": other, "result": "copied"},
        {"target": "r.example.com/web:v3", "digest": None, "result": "failed"},
        {"target": "r.example.com/web:v4", "digest": root, "result": "failed"},
        {"target": "oci:/srv/far:lay/out:v1", "digest": root, "result": "copied"},
        {"target": "/srv/b.tar:bun/dle:v1", "digest": root, "result": "copied"},
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": 1, "run": "x", "images": images}))
    found = parse_inventory("\n".join(make_inventory(path).lines).encode(), "inventory")
    tags = {name: one.tags for name, one in found.repositories.items()}
    one = {"v1": root}
    assert {"team/app": {"v1": root, "v2": root}, "web": {}, "lay/out": one, "bun/dle": one} == tags
    assert {Digest(other)} == found.repositories["web"].roots
    jsonschema.validate(json.loads(found.render()), SCHEMA)
