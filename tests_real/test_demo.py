"""The demonstration with the programs that are installed on the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.story import run_demonstration
from tests.test_demo import scripts


def test_the_demonstration_runs_with_programs_of_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demonstration(tmp_path, scripts, skopeo=True, docker_registry=True)
    told = capsys.readouterr().out
    assert "$ skopeo copy" in told
    assert "target: docker-registry at" in told
    assert "each of the 9 blobs was read from the source once" in told
