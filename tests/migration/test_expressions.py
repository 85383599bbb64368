"""Expressions of other tools: our patterns match exactly the tags that the Go libraries of the tools select."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import ConfigError
from mirror.migration import blang, masterminds
from mirror.migration.tag_patterns import complete_anchors, pattern_for_search, pattern_for_text
from mirror.migration.version_patterns import TagForm, version_patterns
from mirror.migration.version_sets import VersionSet
from mirror.selection.patterns import compile_pattern
from tests.migration.expressions import EXPRESSIONS, TAGS
from tests.migration.fixture import DATA

ANSWERS = json.loads((DATA / "libraries.json").read_text(encoding="utf-8"))
RANGES: dict[str, tuple[Callable[[str], VersionSet], TagForm]] = {
    "masterminds": (masterminds.parse_range, masterminds.TAG_FORM),
    "blang": (blang.parse_range, blang.TAG_FORM),
}


def matching(patterns: list[str]) -> list[str]:
    """Return the tags that match one of the patterns."""
    compiled = [compile_pattern(pattern) for pattern in patterns]
    return [tag for tag in TAGS if any(pattern.matches(tag) for pattern in compiled)]


@pytest.mark.parametrize("library", RANGES)
def test_the_patterns_for_a_range_match_the_tags_that_the_library_selects(library: str) -> None:
    parse, form = RANGES[library]
    for expression in EXPRESSIONS[library]:
        answer = ANSWERS[library][expression]
        if answer is None:
            with pytest.raises(ConfigError):
                parse(expression)
        else:
            assert answer.split() == matching(version_patterns(parse(expression), form)), expression


@pytest.mark.parametrize("library", RANGES)
def test_a_comparison_with_a_pre_release_is_refused_unless_it_is_the_lowest_one(library: str) -> None:
    parse, _ = RANGES[library]
    for expression in (">=1.2.3-rc.1", "<1.2.3-1", "=1.2.3-0", ">1.2.3-0"):
        with pytest.raises(ConfigError, match="pre-release"):
            parse(expression)


def test_the_pattern_for_a_search_matches_the_tags_in_which_the_expression_is_found() -> None:
    for expression in EXPRESSIONS["regexp"]:
        answer = ANSWERS["regexp"][expression]
        if answer is None or expression == "a{2":  # a brace that is not a repetition: no tag contains it
            with pytest.raises(ConfigError):
                pattern_for_search(expression)
        else:
            assert answer.split() == matching([pattern_for_search(expression)]), expression


@pytest.mark.parametrize(
    ("expression", "pattern"),
    [
        ("^v\\d+$", "v\\d+"),
        ("^1\\.2", "1\\.2.*"),
        ("rc", ".*rc.*"),
        ("^edge|main$", ".*(?:^edge|main$).*"),
        ("^(edge|main)$", "(edge|main)"),
        (".*rc.*", ".*rc.*"),
        ("rc\\$", ".*rc\\$.*"),
    ],
)
def test_anchors_of_a_single_alternative_are_left_out(expression: str, pattern: str) -> None:
    assert pattern == pattern_for_search(expression)


@pytest.mark.parametrize("tag", ["1.2.3", "v1_0-rc.1", "latest"])
def test_the_pattern_for_a_text_matches_only_the_text(tag: str) -> None:
    pattern = compile_pattern(pattern_for_text(tag))
    assert [True, False, False] == [pattern.matches(one) for one in (tag, f"{tag}x", tag.replace(".", "-") + "0")]


def test_dregsy_adds_only_the_anchors_that_are_missing() -> None:
    assert ["^a$"] * 4 == [complete_anchors(one) for one in ("a", "^a", "a$", "^a$")]


def test_the_recorded_answers_are_those_of_the_expressions() -> None:
    assert {library: set(expressions) for library, expressions in EXPRESSIONS.items()} == {
        library: set(answers) for library, answers in ANSWERS.items()
    }
    assert Path(DATA / "libraries.json").stat().st_size < 100_000
