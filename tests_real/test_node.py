"""Migration from a real v1 server of another project, verified with tools of other projects."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.registries.real import RealRegistry
from tests.registries.v1 import gz, tar
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool
from tests_real.node import NodeRegistry

TAGS = 40
FILES = {"etc/os": b"new", "bin/sh": b"#!/bin/sh\n", "srv/data": b"x" * 100_000}


def image_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Seeded:
    """40 tags on common layers, with replaced files, whiteouts and an empty layer. Two tags are the same image."""

    def __init__(self, server: NodeRegistry) -> None:
        self.server = server
        self.layers: dict[str, bytes] = {}
        self.parents: dict[str, str | None] = {}
        self.tags: dict[str, str] = {}
        stem = [
            gz(tar(etc__os=b"old", bin__sh=b"#!/bin/sh\n", gone__file=b"gone")),
            tar(etc__os=b"new", gone__WHfile=b""),
            b"",
            gz(tar(srv__data=b"x" * 100_000)) + bytes(512),  # umoci rejects a gzip with zeros after its end
        ]
        parent: str | None = None
        for number, layer in enumerate(stem):
            parent = self.add(f"stem {number}", layer, parent)
        for number in range(TAGS - 1):
            self.tags[f"v{number}"] = self.add(f"top {number}", gz(tar(top=str(number).encode())), parent)
        self.tags["latest"] = self.tags[f"v{TAGS - 2}"]
        for tag, found in self.tags.items():
            server.tag("team/app", tag, found)
        server.tag("team/other", "one", self.add("other", gz(tar(other=b"other")), parent))

    def add(self, name: str, layer: bytes, parent: str | None) -> str:
        made = image_id(name)
        document: dict[str, Any] = {
            "id": made,
            "created": "2014-05-01T12:00:00.5Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", name]},
            "config": {"Cmd": ["/bin/sh"]},
            "architecture": "amd64",
            "os": "linux",
            "nobody_knows": {"this": [1, None]},
        }
        self.server.image(document | ({"parent": parent} if parent else {}), layer)
        self.layers[made], self.parents[made] = layer, parent
        return made

    def diff_ids(self, made: str | None) -> list[str]:
        found: list[str] = []
        while made is not None:
            layer = self.layers[made]
            data = gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer or bytes(1024)
            found.insert(0, f"sha256:{hashlib.sha256(data).hexdigest()}")
            made = self.parents[made]
        return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NodeRegistry]:
    with NodeRegistry(tmp_path / "node") as registry:
        yield registry


def skopeo(*arguments: str) -> str:
    return subprocess.run(["skopeo", *arguments], capture_output=True, check=True, text=True).stdout


def test_forty_tags_of_a_real_v1_server_are_converted(
    server: NodeRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    seeded = Seeded(server)
    mirrors = [
        {"source": f"{server.host}/team/{name}", "targets": [f"{target.host}/moved/{name}"]}
        for name in ("app", "other")
    ]
    mirror_run.config(mirrors, server, target)
    mirror_run.sync(timeout=120)
    assert_whole(target)
    assert sorted(seeded.tags) == sorted(target.tags("moved/app"))
    for tag, made in seeded.tags.items():
        place = f"docker://{target.host}/moved/app:{tag}"
        skopeo("copy", "--src-tls-verify=false", "--quiet", place, f"oci:{tmp_path}/oci:{tag}")
        config = json.loads(skopeo("inspect", "--tls-verify=false", "--config", "--raw", place))
        assert seeded.diff_ids(made) == config["rootfs"]["diff_ids"]
        assert {"this": [1, None]} == config["nobody_knows"]

    unpack = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/oci:v7", f"{tmp_path}/bundle"]
    subprocess.run(unpack, capture_output=True, check=True)
    root = tmp_path / "bundle/rootfs"
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert FILES | {"top": b"7"} == found

    digests = {image["source"]: image["digest"] for image in mirror_run.report()["images"]}
    target.mark()
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert [] == target.writes()
    layers = {kind for kind in mirror_run.report()["totals"]["requests"][server.host] if "layer" in kind}
    assert set() == layers
    shutil.rmtree(mirror_run.state)
    mirror_run.sync()
    assert digests == {image["source"]: image["digest"] for image in mirror_run.report()["images"]}


def test_a_server_that_requires_credentials(target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path) -> None:
    with NodeRegistry(tmp_path / "node", "acme:open-sesame") as server:
        Seeded(server)
        mirrors = [{"source": f"{server.host}/team/other", "targets": [f"{target.host}/moved"]}]
        login = {"username": "acme", "password": {"env": "OLD_PASSWORD"}}
        mirror_run.config(mirrors, server, target, registries={server.host: login})
        mirror_run.sync(environment={"OLD_PASSWORD": "open-sesame"})
        assert ["one"] == target.tags("moved")
        mirror_run.sync(environment={"OLD_PASSWORD": "wrong-password"}, expect=1)
        mirror_run.sweep("open-sesame", "wrong-password")


def test_a_missing_repository_of_a_real_v1_server(
    server: NodeRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    mirror_run.config([{"source": f"{server.host}/no/such", "targets": [f"{target.host}/moved"]}], server, target)
    assert "; over v1: " in mirror_run.sync(expect=1).text
