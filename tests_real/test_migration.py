"""Files of other tools: the recorded answers are what the tools do, and a sync with the new file does the same.

`make test-migration` installs a program with the Go libraries of the tools; `make bench-tools` installs regsync."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.migration.converter import convert_file
from tests.migration.fixture import TARGET, files
from tests.registries.real import RealRegistry
from tests.support.tool import MirrorTool
from tests_real.migration_peers import (
    ANSWERS,
    LIBRARIES,
    PREFIX,
    VARIABLES,
    Fixture,
    collect_answers,
    collect_library_answers,
)

RECORDED = json.loads(ANSWERS.read_text(encoding="utf-8"))


def test_the_recorded_answers_are_what_the_tools_do(tmp_path: Path) -> None:
    answers = collect_answers(tmp_path)
    assert RECORDED == answers


def test_the_recorded_answers_of_the_libraries_are_those_of_the_libraries() -> None:
    assert json.loads(LIBRARIES.read_text(encoding="utf-8")) == collect_library_answers()


@pytest.mark.parametrize("tool", ["regsync", "skopeo"])
def test_a_sync_with_the_new_file_writes_what_the_tool_writes(
    tool: str, tmp_path: Path, mirror_run: MirrorTool
) -> None:
    with Fixture(tmp_path) as fixture:
        for file in files(tool):
            with RealRegistry(tmp_path / file.stem, "target") as target:
                peer = tmp_path / file.name
                peer.write_text(fixture.localize(file.read_text(encoding="utf-8"), target), encoding="utf-8")
                variables = {name: value.replace(TARGET, target.host) for name, value in VARIABLES.items()}
                destination = f"{target.host}/{PREFIX}" if tool == "skopeo" else None
                text = convert_file(tool, peer, destination, variables).text
                config = mirror_run.folder / f"{file.stem}.yaml"
                config.write_text(_without_logins(text, fixture.registry.host, target.host), encoding="utf-8")
                done = mirror_run("sync", config, timeout=120)
                assert done.code == 0, f"{file.name}: {done}"
                assert RECORDED[f"{tool}/{file.name}"] == fixture.read_pairs(target), file.name


def _without_logins(text: str, *hosts: str) -> str:
    """Return a configuration that uses http, because the test registries have neither certificates nor users."""
    document: dict[str, Any] = yaml.safe_load(text)
    document["registries"] = {host: {"plain-http": True} for host in hosts}
    return yaml.safe_dump(document)
