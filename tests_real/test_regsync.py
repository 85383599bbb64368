"""regsync selects tags: what it copies is what tests/selection/regsync.json says. `make bench-tools` installs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push
from tests_real.installed import BENCH, find_tool

ROOT = Path(__file__).resolve().parent.parent
DATA = json.loads((ROOT / "tests" / "selection" / "regsync.json").read_text(encoding="utf-8"))
KEYS = {"semver": "semverRange", "include": "allow", "exclude": "deny"}


@pytest.fixture(scope="module")
def program() -> str:
    return find_tool("regsync", BENCH, "bench-tools")


def regsync(program: str, folder: Path, configuration: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run regsync once with a configuration. JSON is YAML."""
    (folder / "regsync.yaml").write_text(json.dumps(configuration))
    return subprocess.run(
        [program, "once", "-c", "regsync.yaml"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_regsync_copies_the_tags_in_the_data(program: str, tmp_path: Path) -> None:
    shown = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert DATA["regsync"] in shown, "the data is of another version of regsync: compare, then change its version"
    graph = Graph("mixed")
    graph.tag(graph.image(layers=[graph.layer(size=100)]).digest, *DATA["tags"])
    with RealRegistry(tmp_path, "registry") as registry:
        push(registry, "mixed", graph)
        for number, case in enumerate(DATA["cases"]):
            sync = {
                "source": f"{registry.host}/mixed",
                "target": f"{registry.host}/case-{number}",
                "type": "repository",
                "tags": {KEYS[key]: case[key] for key in KEYS if key in case},
            }
            credentials = [{"registry": registry.host, "tls": "disabled"}]
            done = regsync(program, tmp_path, {"version": 1, "creds": credentials, "sync": [sync]})
            if "error" in case:
                assert 0 != done.returncode
                assert "invalid semver range" in done.stderr
            else:
                assert 0 == done.returncode, done.stderr[-2000:]
                assert sorted(case["regsync"]) == sorted(registry.tags(f"case-{number}")), case
