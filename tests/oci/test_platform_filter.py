"""Which entries of an index belong to a set of platforms: a table of indexes of real tools in index_shapes.json.

Each shape has the entries of an index, with names in the place of digests. Each case has the platforms that are wanted
and the names of the entries that are kept, or `null` if the index has none of them; then `has` is in the message."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.platform import Platform, parse_platform
from mirror.oci.platform_filter import (
    FilteredIndex,
    PlatformFilter,
    config_of,
    filter_index,
    nested_indexes,
    parse_config_platform,
)

Shape = Mapping[str, Any]
SHAPES: list[Shape] = json.loads((Path(__file__).parent / "index_shapes.json").read_text())
CASES = [(shape, case) for shape in SHAPES for case in shape["cases"]]
_BY_NAME = "vnd.docker.reference.digest"
CHANGED = "changed"  # in place of the name of a nested index of which only a part is left


def digest_of(name: str) -> str:
    return str(Digest.of(name.encode()))


def entry_json(entry: Mapping[str, Any], made: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return an entry of a shape as it is in an index: its name becomes a digest, also in the annotation."""
    document = dict(entry)
    name = document.pop("name")
    size = made[name].size if name in made else len(name)
    digest = made[name].digest if name in made else digest_of(name)
    annotations = dict(document.pop("annotations", {}))
    if not annotations.get(_BY_NAME, "!").startswith("!"):
        annotations[_BY_NAME] = digest_of(annotations[_BY_NAME])
    return {**document, "digest": digest, "size": size, **({"annotations": annotations} if annotations else {})}


def index_json(media_type: str, entries: list[Any], members: Mapping[str, Any], made: Mapping[str, Manifest]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [entry_json(entry, made) for entry in entries],
        **{key: entry_json(value, made) if key == "subject" else value for key, value in members.items()},
    }
    return json.dumps(document, indent=3).encode()


def build(shape: Shape) -> tuple[Manifest, dict[str, Manifest]]:
    """Return the index of a shape, and its nested indexes by name."""
    types = {entry["name"]: entry["mediaType"] for entry in shape["manifests"]}
    types |= {entry["name"]: entry["mediaType"] for inner in shape.get("nested", {}).values() for entry in inner}
    made: dict[str, Manifest] = {}
    for name, entries in reversed(shape.get("nested", {}).items()):  # the deepest is last
        made[name] = parse_manifest(index_json(types[name], entries, {}, made))
    return parse_manifest(index_json(shape["mediaType"], shape["manifests"], shape.get("members", {}), made)), made


def run(shape: Shape, platforms: list[str], *, sparse: bool = False) -> tuple[Manifest, FilteredIndex, list[str]]:
    """Filter the index of a shape. Return it, the result, and the names of the entries in the result."""
    index, made = build(shape)
    nested: dict[Digest, Manifest] = {}
    level = [index]
    while level:
        level = [
            manifest
            for one in level
            for child in nested_indexes(one)
            for manifest in made.values()
            if manifest.digest == child.digest
        ]
        nested |= {manifest.digest: manifest for manifest in level}
    wanted = PlatformFilter.of(map(parse_platform, platforms), sparse=sparse)
    result = filter_index(index, nested, wanted, "host/app:v1")
    names = {digest_of(entry["name"]): entry["name"] for entry in shape["manifests"]}
    names |= {manifest.digest: name for name, manifest in made.items()}
    replaced = {manifest.digest for manifest in result.nested}
    kept = [
        CHANGED if entry["digest"] in replaced else names[entry["digest"]]
        for entry in json.loads(result.root.body)["manifests"]
    ]
    return index, result, kept


@pytest.mark.parametrize(("shape", "case"), CASES, ids=[f"{one['name']}-{case['platforms'][0]}" for one, case in CASES])
def test_the_entries_of_real_indexes_that_belong_to_platforms(shape: Shape, case: Mapping[str, Any]) -> None:
    if case["kept"] is None:
        with pytest.raises(RemoteError) as caught:
            run(shape, case["platforms"])
        assert ("not_found", 1) == (caught.value.code, caught.value.exit_code)
        assert case["has"] in caught.value.what
        return
    index, result, kept = run(shape, case["platforms"])
    nested = set(shape.get("nested", ()))
    assert case["kept"] == [
        want if name == CHANGED and want in nested else name for name, want in zip(kept, case["kept"], strict=True)
    ]
    before, after = json.loads(index.body), json.loads(result.root.body)
    assert list(before) == list(after), "the members keep their order"
    assert {**before, "manifests": None} == {**after, "manifests": None}
    assert [entry for entry in before["manifests"] if entry in after["manifests"]] == [
        entry for entry in after["manifests"] if entry in before["manifests"]
    ]
    assert index.media_type == result.root.media_type
    if len(kept) == len(before["manifests"]) and not result.nested:
        assert (index.body, index.digest) == (result.root.body, result.root.digest), "not written again"
    assert result.root.body == run(shape, list(reversed(case["platforms"])))[1].root.body


@pytest.mark.parametrize("shape", SHAPES, ids=[shape["name"] for shape in SHAPES])
def test_a_sparse_index_keeps_its_bytes_and_leaves_the_same_entries_out(shape: Shape) -> None:
    for case in (case for case in shape["cases"] if case["kept"] is not None):
        index, sparse, _ = run(shape, case["platforms"], sparse=True)
        _, smaller, _ = run(shape, case["platforms"])
        assert index.body == sparse.root.body
        # A nested index without a platform is always kept, so that it is known what its absence means.
        nested = {entry["name"] for entry in shape["manifests"] if "platform" not in entry}
        nested |= {entry["name"] for inner in shape.get("nested", {}).values() for entry in inner}
        kept = {made.digest for name, made in build(shape)[1].items() if name in nested}
        assert smaller.left_out - kept == sparse.left_out
        present = {entry.digest for entry in (*smaller.root.children, *smaller.root.blobs)}
        assert set() == present & sparse.left_out


def test_nested_indexes_are_made_smaller_and_the_root_refers_to_the_new_ones() -> None:
    shape = next(one for one in SHAPES if one["name"] == "nested indexes, two levels, one branch empty")
    index, result, _ = run(shape, ["linux/arm64"])
    assert 1 == len(result.root.children)
    outer = next(one for one in result.nested if one.digest == result.root.children[0].digest)
    assert outer.size == result.root.children[0].size
    deep = next(one for one in result.nested if one.digest == outer.children[0].digest)
    assert [digest_of("arm64")] == [child.digest for child in deep.children]
    assert digest_of("chart") == outer.children[1].digest
    assert index.digest != result.root.digest


def test_embedded_content_of_a_nested_index_that_changes_is_dropped() -> None:
    inner = parse_manifest(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [
                    entry_json(
                        {"name": name, "mediaType": OCI_MANIFEST, "platform": {"os": "linux", "architecture": name}}, {}
                    )
                    for name in ("amd64", "arm64")
                ],
            }
        ).encode()
    )
    entry = {
        "mediaType": OCI_INDEX,
        "digest": inner.digest,
        "size": inner.size,
        "data": base64.b64encode(inner.body).decode(),
    }
    index = parse_manifest(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode())
    result = filter_index(index, {inner.digest: inner}, PlatformFilter.of([Platform("linux", "arm64")]), "x")
    (only,) = json.loads(result.root.body)["manifests"]
    assert {"mediaType", "digest", "size"} == set(only)


def test_a_number_that_python_cannot_write_again_is_an_error() -> None:
    body = (
        b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "x": 1e999, "manifests": ['
        + ",".join(
            json.dumps(
                entry_json(
                    {"name": name, "mediaType": OCI_MANIFEST, "platform": {"os": "linux", "architecture": name}}, {}
                )
            )
            for name in ("amd64", "arm64")
        ).encode()
        + b"]}"
    )
    with pytest.raises(Exception, match="cannot be written"):
        filter_index(parse_manifest(body), {}, PlatformFilter.of([Platform("linux", "amd64")]), "x")


def test_equal_sets_of_platforms_have_equal_keys_in_the_state() -> None:
    one, two = Platform("linux", "amd64"), Platform("linux", "arm64")
    assert PlatformFilter.of([one, two, one]).result_key("x") == PlatformFilter.of([two, one]).result_key("x")
    keys = {
        PlatformFilter.of(platforms, sparse=sparse).result_key(source)
        for platforms in ([one], [two], [one, two])
        for sparse in (True, False)
        for source in ("a", "b")
    }
    assert 12 == len(keys)


@pytest.mark.parametrize(
    ("config", "platform"),
    [
        ({"os": "linux", "architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"}, "windows(10.0.17763.1)/amd64"),
        ({"os": "", "architecture": "amd64"}, None),
        ({"os": "linux", "architecture": 12}, None),
        ({"config": {"Labels": {"a": "1", "A": "2"}}, "os": "linux", "architecture": "amd64"}, "linux/amd64"),
        ([], None),
        (None, None),
    ],
    ids=str,
)
def test_the_platform_of_an_image_is_in_its_config(config: Any, platform: str | None) -> None:
    found = parse_config_platform(json.dumps(config).encode())
    assert platform == (str(found) if found is not None else None)


def test_a_config_that_is_no_json_states_no_platform() -> None:
    assert None is parse_config_platform(b'{"os": "linux", "os": "windows", "architecture": "amd64"}')
    assert None is parse_config_platform(b"\xff")


def test_only_configs_of_images_state_a_platform() -> None:
    def manifest(config_type: str) -> Manifest:
        config = {"mediaType": config_type, "digest": digest_of("c"), "size": 1}
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
        return parse_manifest(json.dumps(document).encode())

    assert None is config_of(manifest("application/vnd.oci.empty.v1+json"))
    found = config_of(manifest("application/vnd.oci.image.config.v1+json"))
    assert found is not None
    assert digest_of("c") == found.digest
