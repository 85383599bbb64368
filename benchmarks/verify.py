"""`python -m benchmarks.verify`: compares the speed of `mirror bundle verify` with that of sha256sum.

In each round, a bundle is verified by `mirror`, and the same file is hashed by sha256sum and by OpenSSL, which `mirror`
uses through hashlib. The exit code is 1 if `mirror` took more than 1.3 times as long as sha256sum.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import cost, surroundings
from benchmarks.tools import environment
from mirror.layout.bundle.store import BundleStore
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import parse_manifest
from mirror.store import ExpectedImage
from mirror.util.cancellation import Stop, Work
from tests.support.bundles import Bytes
from tests.support.images import Graph

MAX_RATIO = 1.3  # the longest accepted time of `mirror bundle verify`, divided by the time of sha256sum
_BLOB = 256 << 20  # bytes
_HASHLIB = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the times. Return 1 if `mirror bundle verify` is too slow."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the bundle (default: 2048)")
    parser.add_argument("--runs", type=int, default=5, help="runs per tool (default: 5)")
    options = parser.parse_args(arguments)
    print("; ".join(f"{name} {text}" for name, text in surroundings.machine().items()), flush=True)
    with TemporaryDirectory(prefix="mirror-bench-") as folder:
        bundle = make_bundle(Path(folder) / "bundle.tar", options.mebibytes << 20)
        walls = measure(bundle, Path(folder), options.runs)
    base = statistics.median(walls["sha256sum"])
    for name, seconds in walls.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:22} {middle:6.2f} s ({spread}), {middle / base:.2f} times sha256sum")
    return 0 if statistics.median(walls["mirror bundle verify"]) <= MAX_RATIO * base else 1


def measure(bundle: Path, folder: Path, runs: int) -> dict[str, list[float]]:
    """Run each command `runs` times, and return their wall times in seconds. Raises RuntimeError if a command fails."""
    commands = {
        "sha256sum": ["sha256sum", str(bundle)],
        "hashlib": [sys.executable, "-c", _HASHLIB, str(bundle)],
        "mirror bundle verify": [sys.executable, "-m", "mirror", "bundle", "verify", str(bundle)],
    }
    walls: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        for name, command in commands.items():
            out = folder / "output.txt"
            spent = cost.run([command], folder=folder, environment=environment(folder), out=out, timeout=900)
            if spent.code:
                raise RuntimeError(f"{name}: {out.read_text()}")
            walls[name].append(spent.wall)
    return dict(walls)


def make_bundle(path: Path, size: int) -> Path:
    """Write a bundle with one image whose layers have a total size of `size` bytes, and return its path."""
    piece, graph, work = os.urandom(1 << 20), Graph("verify"), Work(Stop())
    blob = min(size, _BLOB)
    rest = piece[8:] + piece * ((blob >> 20) - 1)
    layers = [graph.blob(number.to_bytes(8, "big") + rest) for number in range(size // blob)]
    made = graph.image("v1", layers=layers)
    manifest = parse_manifest(
        graph.manifests[made.digest].data, made.media_type, expected=Digest(made.digest), what="the image"
    )
    bundle = BundleStore(path, str(path), spool=path.parent, new=True)
    try:
        bundle.begin([ExpectedImage("app", "v1", (manifest,), manifest.blobs)], work)
        for digest, data in graph.blobs.items():
            with bundle.begin_upload("app", Descriptor(Digest(digest), len(data)), work) as session:
                session.send(partial(_open_at, data), work)
        bundle.put_manifest("app", "v1", manifest, work)
        bundle.finish(whole=True, work=work)
    finally:
        bundle.close()
    return path


def _open_at(data: bytes, offset: int) -> Bytes:
    """Return a reader of `data` that starts at `offset`."""
    return Bytes(data[offset:], piece=1 << 20)


if __name__ == "__main__":
    sys.exit(main())
