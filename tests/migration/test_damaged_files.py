"""Randomly changed files of other tools: the conversion gives a valid configuration or an error, and no passwords."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from mirror.commands.parsers import TOOLS
from mirror.config import ConfigErrors, load
from mirror.errors import ConfigError
from mirror.migration.converter import convert_file
from tests.migration.fixture import files

CHANGES_PER_FILE = 2
VALUES: tuple[object, ...] = (
    *(None, 0, -1, 3.5, True, "", "x", "a/b", "$X", '{{env "X"}}', "{{", "regex:", "regex:(,", "semver:", "keep:"),
    *("a\nb", "é", "'", '"', "*", [], {}, [None], [[]], {"a": None}, ["("], "sha256:12", "h.example.com/{repository}"),
    *("oci:x", "ocidir://", "x" * 2000, "1e999", "nan", "\x7f", "docker.io", "docker.io/a:", "@", "::", ":/["),
)
KEYS = ("docker.io/a:/[/", "", "a b", "h.example.com", "*", "x")


def change(node: object, chance: random.Random, share: float) -> object:
    """Return a copy of a document in which a share of the values and keys is replaced or missing."""
    if chance.random() < share:
        return chance.choice(VALUES)
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if chance.random() >= share / 2}
        renamed = {chance.choice(KEYS) if chance.random() < share / 2 else key: value for key, value in kept.items()}
        return {key: change(value, chance, share) for key, value in renamed.items()}
    return [change(item, chance, share) for item in node] if isinstance(node, list) else node


@pytest.mark.parametrize("tool", TOOLS)
def test_a_damaged_file_is_converted_to_a_valid_configuration_or_refused(tool: str, tmp_path: Path) -> None:
    chance = random.Random(tool)
    peer, config = tmp_path / "peer.json", tmp_path / "mirror.yaml"
    for file in files(tool) * CHANGES_PER_FILE:
        document = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 (strings only)
        peer.write_text(json.dumps(change(document, chance, chance.choice((0.02, 0.08, 0.2)))))
        try:
            converted = convert_file(tool, peer, "h.example.com/hub" if tool == "skopeo" else None, {"X": "a b"})
        except ConfigError as error:
            assert "hunter2" not in str(error)
            continue
        assert "hunter2" not in converted.text + "".join(converted.notes)
        if converted.mirrors:
            config.write_text(converted.text, encoding="utf-8")
            try:
                load(config, secrets=False)
            except ConfigErrors as errors:
                assert converted.has_losses
                assert {True} == {problem.path.startswith("registries") for problem in errors.problems}
