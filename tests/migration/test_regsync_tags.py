"""The rules of regsync for tags: converted, they select the tags that regsync copies (tests/selection/regsync.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.config import yaml_reader
from mirror.migration.peer_file import NotConvertible, ToolMapping
from mirror.migration.regsync_tags import select_tags
from mirror.migration.tag_selection import TagSelection
from mirror.selection.tag_rules import TagRules, select

DATA = json.loads((Path(__file__).parent.parent / "selection" / "regsync.json").read_text(encoding="utf-8"))
KEYS = {"semver": "semverRange", "include": "allow", "exclude": "deny"}


def selection_of(folder: Path, entry: object) -> TagSelection:
    """Convert the rules of an entry. JSON is YAML."""
    file = folder / "regsync.json"
    file.write_text(json.dumps(entry), encoding="utf-8")
    return select_tags(ToolMapping(yaml_reader.read(file).root, (), []))


def tags_of(selection: TagSelection, tags: list[str]) -> list[str]:
    assert not selection.literal
    return sorted(select(TagRules(include=selection.include, exclude=selection.exclude), tags).selected)


def test_every_recorded_case_of_regsync_without_a_pre_release_in_a_range_is_converted_exactly(tmp_path: Path) -> None:
    for case in DATA["cases"]:
        rules = {KEYS[key]: case[key] for key in KEYS if key in case}
        if "error" in case or any("-" in text for text in case.get("semver", ())):  # a range with a pre-release
            with pytest.raises(NotConvertible, match="left out"):
                selection_of(tmp_path, {"tags": rules})
        else:
            assert sorted(case["regsync"]) == tags_of(selection_of(tmp_path, {"tags": rules}), DATA["tags"]), case


def test_a_tag_is_selected_if_any_set_selects_it(tmp_path: Path) -> None:
    entry = {"tagSets": [{"allow": ["a"]}, {"allow": ["b.*"]}], "tags": {"semverRange": [">=2"]}}
    assert ["a", "b1", "v2"] == tags_of(selection_of(tmp_path, entry), ["a", "b1", "c", "v1", "v2"])


@pytest.mark.parametrize(
    "sets",
    [
        [{"allow": ["a.*"], "deny": ["ab"]}, {"allow": ["b.*"]}],
        [{"deny": ["ab"]}, {"deny": ["b"]}],
        [{"allow": [".*"], "semverRange": [">1"]}, {"allow": ["b"]}],
    ],
)
def test_sets_with_different_exclusions_are_not_converted(sets: object, tmp_path: Path) -> None:
    with pytest.raises(NotConvertible, match="only one list `exclude`"):
        selection_of(tmp_path, {"tagSets": sets})


def test_a_set_without_exclusions_that_selects_all_tags_contains_the_others(tmp_path: Path) -> None:
    selection = selection_of(tmp_path, {"tagSets": [{"deny": ["x"]}, {"allow": [".*"], "deny": ["x"]}]})
    assert ["a"] == tags_of(selection, ["a", "x"])
