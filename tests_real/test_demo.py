"""The demonstration with the programs that the system may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.story import tell
from tests.test_demo import scripts


def test_the_story_holds_with_programs_of_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(tmp_path, scripts, skopeo=True, docker_registry=True)
    told = capsys.readouterr().out
    assert "$ skopeo copy" in told
    assert "target: docker-registry at" in told
    assert "each of the 9 blobs was read from the source once" in told
