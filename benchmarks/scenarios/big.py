"""A scenario with one image so large that the run time depends only on the speed of data transfer."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from contextlib import ExitStack
from pathlib import Path

from benchmarks.scenarios.base import MIB, Access, Scenario, StoredRegistry
from benchmarks.traffic import Content
from tests.registries.real import RealRegistry
from tests.registries.scratch import MEMORY
from tests.support.images import OCI_LAYER, Graph, Made
from tests.support.seeding import push

_REPOSITORY = "team/big"
_SPARE = 4 << 30  # bytes of memory that must remain available
_QUICK = 64 * MIB


class Big(Scenario):
    name = "big"
    title = "One big image"
    note = (
        "The image has a single layer of 1 GiB, or of `--size`. The registry rejects a blob with a wrong digest, so "
        "the benchmark does not read the result back."
    )
    reads_all_back = False

    @property
    def size(self) -> int:
        """The size of the layer before gzip, in bytes."""
        return min(self.scale.big, _QUICK) if self.scale.quick else self.scale.big

    @property
    def _on_disk(self) -> bool:
        """Whether the registries store their files on disk, because the memory has no room for source and target."""
        if not MEMORY.is_dir():
            return True
        room = os.statvfs(MEMORY)
        available = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("MemAvailable")
        )
        return min(room.f_bavail * room.f_frsize, available) < 2 * self.size + _SPARE

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(StoredRegistry(folder, "source", on_disk=self._on_disk))
        self.content = self._seed(registry)
        return self.reach(registry, stack)

    def target(self, folder: Path, name: str) -> RealRegistry:
        return StoredRegistry(folder, name, on_disk=self._on_disk)

    def _seed(self, source: RealRegistry) -> Content:
        digest, size = _store(source.storage, self.size)
        graph = Graph("big")
        layer = Made(OCI_LAYER, digest, size)
        image = graph.image("v1", layers=[layer])
        push(source, _REPOSITORY, graph)
        sizes = {digest: size, image.digest: image.size}
        sizes |= {config: len(data) for config, data in graph.blobs.items()}
        return Content({(_REPOSITORY, "v1"): image.digest}, sizes)


def _store(storage: Path, size: int) -> tuple[str, int]:
    """Write a layer of random bytes directly to the storage of docker-registry, and return its digest and size.

    The layer is a valid gzip file without compression, because some tools compress uncompressed layers while copying
    them. size: bytes before gzip."""
    pool = random.Random("big").randbytes(8 * MIB)
    root = storage / "docker" / "registry" / "v2"
    root.mkdir(parents=True, exist_ok=True)
    path = root / "growing"
    with gzip.GzipFile(path, "wb", compresslevel=0, mtime=0) as out:
        for start in range(0, size, len(pool)):
            out.write((start.to_bytes(8) + pool[8:])[: size - start])
    with path.open("rb") as whole:
        hashed = hashlib.file_digest(whole, "sha256")
    stored = path.stat().st_size
    name = hashed.hexdigest()
    home = root / "blobs" / "sha256" / name[:2] / name
    home.mkdir(parents=True)
    path.rename(home / "data")
    link = root / "repositories" / _REPOSITORY / "_layers" / "sha256" / name / "link"
    link.parent.mkdir(parents=True)
    link.write_text(f"sha256:{name}", encoding="utf-8")
    return f"sha256:{name}", stored
