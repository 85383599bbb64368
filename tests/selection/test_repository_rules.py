"""Rules for repositories under a wildcard: which are selected, and what is known before there is a list."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.selection.patterns import compile_pattern
from mirror.selection.repository_rules import RepositoryRules, can_match

NAMES = ("app", "app-dev", "base/app", "copy/app", "web")


@pytest.mark.parametrize(
    ("include", "exclude", "selected", "rejected"),
    [
        ((), (), NAMES, {}),
        (("app",), (), ("app",), {"include": 4}),  # the whole part, not its beginning
        ((r"(base/)?app",), (), ("app", "base/app"), {"include": 3}),
        ((), (".*-dev", "copy/.*"), ("app", "base/app", "web"), {"exclude .*-dev": 1, "exclude copy/.*": 1}),
        (("app.*",), (".*-dev",), ("app",), {"include": 3, "exclude .*-dev": 1}),
        (("none",), (), (), {"include": 5}),
    ],
)
def test_include_and_then_exclude_select_repositories(
    include: tuple[str, ...], exclude: tuple[str, ...], selected: tuple[str, ...], rejected: dict[str, int]
) -> None:
    rules = RepositoryRules(include, exclude)
    assert (list(selected), rejected) == rules.select(NAMES)
    below = [f"team/{name}" for name in selected]
    assert (below, rejected) == rules.select([f"team/{name}" for name in NAMES], "team/")
    assert list(selected) == [name for name in NAMES if rules.selects(name)]
    assert bool(include or exclude) == bool(rules)
    assert rejected == Counter(rule for rule in map(rules.rejecting_rule, NAMES) if rule is not None)


# Rules, and the beginning and end of names of which none is selected.
CERTAIN = [
    (RepositoryRules(exclude=("copy/.*",)), "copy/", ""),
    (RepositoryRules(exclude=("copy/.*",)), "copy/x/", "-y"),
    (RepositoryRules(exclude=("(old|copy)/.*",)), "copy/", ""),
    (RepositoryRules(exclude=("[a-c]+.*",)), "copy/", ""),
    (RepositoryRules(exclude=(".*-copy",)), "", "-copy"),
    (RepositoryRules(exclude=(r".*\.copy",)), "", ".copy"),
    (RepositoryRules(exclude=("x", ".*")), "", ""),
    (RepositoryRules(include=("app-.*", "web")), "copy/", ""),
    (RepositoryRules(include=("app",)), "app/", ""),
]
POSSIBLE = [
    (RepositoryRules(exclude=("copy/.*",)), "", ""),
    (RepositoryRules(exclude=("copy/.*",)), "copy", ""),
    (RepositoryRules(exclude=("old|copy/.*",)), "old", ""),
    (RepositoryRules(exclude=(r"copy\.*",)), "copy", ""),
    (RepositoryRules(exclude=(r"copy$.*",)), "copy", ""),
    (RepositoryRules(exclude=(r"copy\b.*",)), "copy", ""),
    (RepositoryRules(exclude=("[[:alpha:](]|b[[:alpha:])].*",)), "a", ""),
    (RepositoryRules(exclude=("copy/[a-z]*",)), "copy/", ""),
    (RepositoryRules(exclude=("copy/.",)), "copy/", ""),
    (RepositoryRules(include=("app-.*", "c.*")), "copy/", ""),
    (RepositoryRules(include=("app",)), "ap", ""),
    (RepositoryRules(include=(".*",)), "copy/", ""),
    (RepositoryRules(), "copy/", ""),
]


@pytest.mark.parametrize(("rules", "before", "after"), CERTAIN, ids=str)
def test_common_patterns_are_known_to_leave_out_all_names_of_a_template(
    rules: RepositoryRules, before: str, after: str
) -> None:
    assert not rules.may_select(before, after)


@pytest.mark.parametrize(("rules", "before", "after"), POSSIBLE, ids=str)
def test_names_of_a_template_that_may_be_selected_are_not_ruled_out(
    rules: RepositoryRules, before: str, after: str
) -> None:
    assert rules.may_select(before, after)


ALPHABET = "abc/-."
PATTERNS = st.text(alphabet="abc/-.*+?|()[]\\^$", max_size=8)


@example(include=[], exclude=["a|b.*"], before="a", middle="c", after="")
@example(include=[], exclude=[r"[[:alpha:](]|b[[:alpha:])].*"], before="a", middle="b", after="")
@given(
    include=st.lists(PATTERNS, max_size=2),
    exclude=st.lists(PATTERNS, max_size=2),
    before=st.text(alphabet=ALPHABET, max_size=3),
    middle=st.text(alphabet=ALPHABET, min_size=1, max_size=3),
    after=st.text(alphabet=ALPHABET, max_size=3),
)
def test_what_is_ruled_out_for_a_template_is_never_selected(
    include: list[str], exclude: list[str], before: str, middle: str, after: str
) -> None:
    valid = RepositoryRules(_only_valid(include), _only_valid(exclude))
    if valid.selects(before + middle + after):
        assert valid.may_select(before, after)


def _only_valid(patterns: list[str]) -> tuple[str, ...]:
    return tuple(text for text in patterns if _is_valid(text))


def _is_valid(text: str) -> bool:
    try:
        compile_pattern(text)
    except ConfigError:
        return False
    return True


def test_a_path_matches_a_template_if_the_rules_select_its_middle() -> None:
    rules = RepositoryRules(exclude=("x.*",))
    paths = ("hub/a/tools", "hub/xa/tools", "hub//tools", "hub/a")
    assert ["hub/a/tools"] == [path for path in paths if can_match(path, "hub/{repository}/tools", rules)]
    assert can_match("hub/xa", "hub/xa", rules)
