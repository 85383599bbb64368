"""Air-gap transfers in full size: 10 GiB in one bundle, 20,000 tags in one layout."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from benchmarks import cost
from benchmarks.cost import Cost
from tests.registries.client import Client, sha256
from tests.registries.real import RealRegistry
from tests.support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.support.tool import MirrorTool

LAYERS, LAYER = 20, 512 << 20  # number, and bytes of each: 10 GiB
REPOSITORIES = ("os", "data/sets", "tools")
MOST_MEMORY = 150 << 20  # bytes
MOST_FOR_A_TAG = 10 << 10  # bytes of memory
MOST_DISK = 1 << 30  # bytes, without the bundle
TIMEOUT = 900  # seconds for one run


@pytest.fixture
def work_folder() -> Iterator[Path]:
    """A folder on a disk. pytest's folders are not used, because they are kept for three runs."""
    with TemporaryDirectory(prefix="mirror-gap-") as folder:
        yield Path(folder)


@pytest.fixture
def tool(work_folder: Path) -> Iterator[MirrorTool]:
    with MirrorTool(work_folder / "mirror") as made:
        yield made


def run(tool: MirrorTool, *arguments: str | Path) -> Cost:
    """Run a command to its end; it must succeed."""
    out = tool.folder / "said.txt"
    command = [sys.executable, "-m", "mirror", *map(str, arguments)]
    spent = cost.run([command], folder=tool.folder, environment=tool.environment, out=out, timeout=TIMEOUT)
    assert 0 == spent.code, out.read_text()
    return spent


def report_numbers(spent: Cost) -> str:
    return f"{spent.memory >> 20} MiB, {spent.cpu:.1f} s of processor, {spent.wall:.1f} s"


def registry(work_folder: Path, name: str) -> RealRegistry:
    """A docker-registry that stores on disk, because the content does not fit into memory."""
    settings = {"storage": {"filesystem": {"rootdirectory": str(work_folder / name / "storage")}}}
    return RealRegistry(work_folder, name, settings=settings)


class Watch:
    """Records the peak disk usage of folders, without some files. Use with `with`."""

    def __init__(self, *folders: Path, but: tuple[Path, ...]) -> None:
        self._folders, self._but = folders, but
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.most = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, sum(map(self._bytes, self._folders)))

    def _bytes(self, folder: Path) -> int:
        total = 0
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                total += 0 if path in self._but else path.stat().st_blocks * 512
        return total


def fill_source(source: RealRegistry) -> tuple[dict[str, set[str]], int]:
    """Push three repositories of ten images with shared layers. Returns the blobs by repository, and the bytes of all
    layers."""
    piece = os.urandom(1 << 20)
    blobs: dict[str, set[str]] = {name: set() for name in REPOSITORIES}
    layers = []
    with source.client() as client:
        for number in range(LAYERS):
            data = number.to_bytes(8, "big") + piece[8:] + piece * ((LAYER >> 20) - 1)
            layers.append({"mediaType": OCI_LAYER, "digest": client.put_blob("os", data), "size": len(data)})
            del data
        for place, name in enumerate(REPOSITORIES):
            for number in range(10):
                first = 2 * number + place
                chosen = [layers[(first + step) % LAYERS] for step in range(3)]
                for layer in chosen:
                    if name != "os" and layer["digest"] not in blobs[name]:
                        assert client.mount(name, str(layer["digest"]), "os")
                blobs[name] |= {push_image(client, name, f"v{number}", chosen)}
                blobs[name] |= {str(layer["digest"]) for layer in chosen}
    return blobs, LAYERS * LAYER


def push_image(client: Client, name: str, tag: str, layers: list[dict[str, Any]]) -> str:
    """Push an image and return the digest of its config."""
    config = config_of(f"{name}:{tag}")
    client.put_blob(name, config)
    client.put_manifest(name, tag, manifest(config, layers), OCI_MANIFEST)
    return sha256(config)


def config_of(name: str) -> bytes:
    return json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": {"of": name}}}).encode()


def manifest(config: bytes, layers: list[dict[str, Any]]) -> bytes:
    described = {"mediaType": OCI_CONFIG, "digest": sha256(config), "size": len(config)}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": layers}
    return json.dumps(document).encode()


@pytest.mark.timeout(1800)
def test_ten_gibibytes_are_exported_and_imported_with_little_memory_and_disk(
    work_folder: Path, tool: MirrorTool
) -> None:
    media = work_folder / "media"
    media.mkdir()
    bundle = media / "bundle.tar"
    beside = (bundle, media / ".bundle.tar.partial")
    with registry(work_folder, "source") as source:
        blobs, size = fill_source(source)
        every = set().union(*blobs.values())
        source.mark()
        tool.config([{"source": f"{source.host}/{name}", "targets": [str(bundle)]} for name in REPOSITORIES], source)
        with Watch(tool.folder, media, but=beside) as disk:
            took = run(tool, "sync", tool.config_file)
        print(f"export: {report_numbers(took)}; {disk.most >> 20} MiB on disk besides the bundle")
        read = Counter(seen.reference for seen in source.requests() if seen.kind == "GET blob")
        assert dict.fromkeys(every, 1) == read, "each blob is read once"
        assert MOST_MEMORY >= took.memory
        assert MOST_DISK >= disk.most
        assert size < bundle.stat().st_size < size + (2 << 20)

    took = run(tool, "bundle", "verify", bundle)
    print(f"verify: {report_numbers(took)}")
    assert MOST_MEMORY >= took.memory

    with registry(work_folder, "target") as target:
        mirrors = [{"source": f"{bundle}:*", "targets": [f"{target.host}/{{repository}}"]}]
        config = tool.config(mirrors, target, file=work_folder / "import.yaml", state=str(work_folder / "far-state"))
        with Watch(tool.folder, media, work_folder / "far-state", but=beside) as disk:
            took = run(tool, "sync", config)
        print(f"import: {report_numbers(took)}; {disk.most >> 20} MiB on disk besides the bundle")
        assert MOST_MEMORY >= took.memory
        assert MOST_DISK >= disk.most
        sent = Counter(seen.reference for seen in target.requests() if (seen.kind, seen.status) == ("PUT upload", 201))
        assert dict.fromkeys(every, 1) == sent, "each blob is sent once, and mounted elsewhere"
        with target.client() as client:
            assert [] == [(name, one) for name in REPOSITORIES for one in blobs[name] if not client.has_blob(name, one)]


def many_tags(layout: Path, count: int) -> None:
    """Write a layout with many images in one repository. Each has its own config, and all share one layer."""
    files, entries = layout / "blobs" / "sha256", []
    files.mkdir(parents=True)
    layer = b"layer"
    layers = [{"mediaType": OCI_LAYER, "digest": sha256(layer), "size": len(layer)}]
    for number in range(count):
        config = config_of(f"many:v{number}")
        body = manifest(config, layers)
        for data in (config, body, layer):
            (files / hashlib.sha256(data).hexdigest()).write_bytes(data)
        named = {"org.opencontainers.image.ref.name": f"many:v{number}"}
        entries.append({"mediaType": OCI_MANIFEST, "digest": sha256(body), "size": len(body), "annotations": named})
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.mark.timeout(1800)
def test_the_time_for_a_layout_grows_linearly_with_its_tags(work_folder: Path, tool: MirrorTool) -> None:
    took: dict[int, Cost] = {}
    for count in (5_000, 20_000):
        many_tags(work_folder / f"from-{count}", count)
        to = work_folder / f"to-{count}"
        state = str(work_folder / f"state-{count}")
        tool.config([{"source": f"oci:{work_folder}/from-{count}:many", "targets": [f"oci:{to}:many"]}], state=state)
        took[count] = run(tool, "sync", tool.config_file)
        print(f"{count} tags: {report_numbers(took[count])}")
        again = run(tool, "sync", tool.config_file)
        print(f"{count} tags, nothing new: {report_numbers(again)}")
        assert count == len(json.loads((to / "index.json").read_text())["manifests"])
    assert 4 * 1.5 > took[20_000].cpu / took[5_000].cpu
    assert MOST_FOR_A_TAG * 15_000 > took[20_000].memory - took[5_000].memory
