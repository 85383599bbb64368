"""A configuration of many mirrors, each with the index of another tool and other platforms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.test_platforms import digests_below
from tests.support.images import Graph, Made, oddly
from tests.support.tool import MirrorTool

SHAPES = json.loads((Path(__file__).parents[1] / "oci" / "index_shapes.json").read_text())


def first_case(shape: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first case of a shape in which the index has one of the platforms."""
    return next(case for case in shape["cases"] if case["kept"] is not None)


def build_shape(shape: Mapping[str, Any]) -> tuple[Graph, dict[str, str]]:
    """Make the index of a shape with real images. Return the graph, and the names of the entries by digest."""
    graph, made = Graph(shape["name"]), dict[str, Made]()
    nested = shape.get("nested", {})
    everything = [*shape["manifests"], *(entry for entries in nested.values() for entry in entries)]
    for entry in everything:
        name, media_type = entry["name"], entry["mediaType"]
        if name in made or name in nested:
            continue
        is_blob = "manifest" not in media_type
        made[name] = (
            graph.blob(name.encode(), media_type) if is_blob else graph.image(label=name, oci="oci" in media_type)
        )

    def entry_json(entry: Mapping[str, Any]) -> dict[str, Any]:
        document = {key: value for key, value in entry.items() if key != "name"}
        annotations = dict(document.get("annotations", {}))
        described = annotations.get("vnd.docker.reference.digest", "")
        if described in made:
            annotations["vnd.docker.reference.digest"] = made[described].digest
        if annotations:
            document["annotations"] = annotations
        return {**document, "digest": made[entry["name"]].digest, "size": made[entry["name"]].size}

    for name, entries in reversed(nested.items()):
        media_type = next(entry["mediaType"] for entry in everything if entry["name"] == name)
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry_json(entry) for entry in entries]}
        made[name] = graph.raw(oddly(document), media_type)
    members = {key: value for key, value in shape.get("members", {}).items() if key != "subject"}
    root = {"schemaVersion": 2, "mediaType": shape["mediaType"], "manifests": [*map(entry_json, shape["manifests"])]}
    graph.raw(oddly({**root, **members}), shape["mediaType"], "v1")
    return graph, {one.digest: name for name, one in made.items()}


def test_a_configuration_of_many_mirrors_keeps_of_each_index_what_the_table_says(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", checks_references=False)
    names, mirrors = [], []
    for number, shape in enumerate(SHAPES):
        graph, by_digest = build_shape(shape)
        source.load(f"shape-{number}", graph)
        names.append(by_digest)
        one = {"source": f"{source.host}/shape-{number}", "targets": [f"{target.host}/shape-{number}"]}
        mirrors.append({**one, "platforms": first_case(shape)["platforms"]})
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    kept = {}
    for number, shape in enumerate(SHAPES):
        digests = digests_below(target.manifest(f"shape-{number}", "v1").body)
        kept[shape["name"]] = [names[number].get(digest, "a smaller index") for digest in digests]
    expected = {shape["name"]: first_case(shape)["kept"] for shape in SHAPES}
    expected["nested indexes, two levels, one branch empty"] = ["a smaller index"]
    expected["nested indexes without platforms"] = ["a smaller index"]
    assert expected == kept
    target.mark()
    mirror_run.sync()
    assert [] == target.writes()
    assert 0 == mirror_run("verify", mirror_run.config_file).code
