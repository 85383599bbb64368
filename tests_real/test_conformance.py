"""The conformance suite of the distribution-spec, against `mirror serve --writable`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.registries.process import eventually
from tests.support.tool import ROOT, MirrorTool

SUITE = ROOT / ".registries" / "bin" / "conformance"
TIMEOUT = 300  # seconds
# Optional in the spec, and not supported by `mirror serve`, where all repositories share their blobs.
NOT_SUPPORTED = {"Blob delete": "Skip", "Blob delete atomic": "Skip"}


@pytest.fixture
def address(tool: MirrorTool, tmp_path: Path) -> Iterator[str]:
    """The address of a running `mirror serve --writable`."""
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        server = subprocess.Popen(
            tool.command("serve", tmp_path / "layout", "--writable", "--listen", "127.0.0.1:0"),
            stdout=out,
            env=tool.environment,
            cwd=tool.folder,
        )
        try:
            assert eventually(lambda: "://" in said.read_text(), within=60)
            found = re.search(r"http://(\S+)/", said.read_text())
            assert found is not None
            yield found[1]
        finally:
            server.terminate()
            code = server.wait(30)
    assert 143 == code


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[MirrorTool]:
    with MirrorTool(tmp_path / "mirror") as made:
        yield made


def test_the_writable_server_passes_the_conformance_suite_of_version_1_1(address: str, tmp_path: Path) -> None:
    assert SUITE.exists(), f"{SUITE} is missing: `make test-conformance` installs it, with Go"
    settings = {"OCI_REGISTRY": address, "OCI_TLS": "disabled", "OCI_VERSION": "1.1"}
    # The caller's environment must not affect the test.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("OCI_")} | settings
    ran = subprocess.run(
        [SUITE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    failed = [line for line in ran.stderr.splitlines() if "failed test" in line]
    assert (0, []) == (ran.returncode, failed), ran.stdout[-5000:]
    results = yaml.safe_load((tmp_path / "results" / "results.yaml").read_text())
    verdicts = {**results["apis"], **results["data"]}
    assert not {"FAIL", "Error", "Unknown"} & set(verdicts.values())
    asked = {name: verdict for name, verdict in results["apis"].items() if verdict != "Disabled"}
    assert NOT_SUPPORTED == {name: verdict for name, verdict in asked.items() if verdict != "Pass"}
