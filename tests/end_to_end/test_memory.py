"""The memory of a process, measured by the operating system, with large or many manifests."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import pair
from tests.support.images import Graph, Made
from tests.support.tool import MirrorTool

MIB = 1 << 20


# The peak of a process includes the memory of its parent at the fork, so a small process starts the tool.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "mirror", *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak(tool: MirrorTool, command: str) -> float:
    """Run the tool successfully; return the peak memory of its process in MiB."""
    arguments = [sys.executable, "-c", MEASURE, command, str(tool.config_file)]
    ran = subprocess.run(arguments, env=tool.environment, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == ran.returncode, ran
    return int(ran.stdout.split()[-1]) / 1024


def padded(graph: Graph, name: str, size: int, *tags: str) -> Made:
    """Make an image whose manifest has about `size` bytes."""
    return graph.image(*tags, label=name, layers=[], annotations={"name": name, "padding": "x" * (size - 1000)})


def test_the_memory_for_an_index_does_not_depend_on_the_size_of_its_children(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", max_manifest=8 * MIB)
    graph = Graph("large")
    graph.index("v1", children=[padded(graph, f"child-{number}", 7 * MIB) for number in range(20)])
    source.load("app", graph)
    bundle = mirror_run.folder / "bundle.tar"
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app", str(bundle)]}
    mirror_run.config([mirror], source, target)
    used = peak(mirror_run, "sync")
    assert graph.manifests.keys() == target.storage.repositories["app"].manifests.keys()
    assert bundle.stat().st_size > 20 * 7 * MIB
    assert 1 + 20 == source.counts()["GET manifest"]
    assert used < 170
    assert [] == list(mirror_run.state.rglob("manifests/*"))


def test_manifests_read_only_for_their_digests_take_no_memory(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", content_digest=False), scripted("target", content_digest=False)
    graph = Graph("many")
    for number in range(48):
        padded(graph, f"image-{number}", MIB, f"v{number}")
    source.load("app", graph)
    target.load("app", graph)
    pair(mirror_run, source, target)
    for command in ("sync", "plan"):
        source.mark()
        used = peak(mirror_run, command)
        assert [] == target.writes()
        counts = source.counts()
        assert (48, 48) == (counts["HEAD manifest"], counts["GET manifest"])
        assert used < 100
