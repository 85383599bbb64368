"""Files of other tools: the new file selects what the tool copies, and every key is converted or reported.

data/answers.json has what the tools did with the files, as recorded by `python -m tests_real.migration_peers`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.migration.converter import Converted, convert_file
from tests.migration.fixture import DATA, DIGEST, SOURCE, TARGET, files, selected_pairs

ANSWERS = json.loads((DATA / "answers.json").read_text(encoding="utf-8"))
TOOLS = ("regsync", "skopeo", "image-syncer", "dregsy")
VARIABLES = {"MIGRATION_TARGET": TARGET, "MIGRATION_USER": "joe"}
CASES = [(tool, file) for tool in TOOLS for file in files(tool)]


def convert(tool: str, file: Path) -> Converted:
    return convert_file(tool, file, f"{TARGET}/hub" if tool == "skopeo" else None, VARIABLES)


@pytest.mark.parametrize(("tool", "file"), CASES, ids=lambda value: getattr(value, "name", value))
def test_the_new_file_selects_what_the_tool_copies(tool: str, file: Path, tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    config.write_text(convert(tool, file).text, encoding="utf-8")
    # The tools were not asked which tag a digest has. The answers name the source by its tag.
    pairs = {
        target: f"{SOURCE}/team/app:1.0.0" if DIGEST in source else source
        for target, source in selected_pairs(config).items()
    }
    assert ANSWERS[f"{tool}/{file.name}"] == pairs


@pytest.mark.parametrize("tool", TOOLS)
def test_there_are_ten_files_of_each_tool(tool: str) -> None:
    assert 10 == len(files(tool))


@pytest.mark.parametrize(("tool", "file"), CASES, ids=lambda value: getattr(value, "name", value))
def test_no_password_is_written_or_printed(tool: str, file: Path) -> None:
    converted = convert(tool, file)
    assert "hunter2" not in converted.text
    assert "hunter2" not in "".join(converted.notes)
