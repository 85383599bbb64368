"""Which tags are selected, and which patterns may select them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.patterns import compile_pattern
from mirror.selection import Selection, TagRules, overlap, select

DIGEST = Digest("sha256:" + "a" * 64)
TAGS = ("v1.0.0", "v1.1.0-rc.1", "v1.1.0", "v2.0.0", "latest", "nightly")


@pytest.mark.parametrize(
    "rules, selected, rejected",
    [
        (TagRules(), TAGS, {}),
        (TagRules(include=(r"v\d+\.\d+\.\d+",)), ("v1.0.0", "v1.1.0", "v2.0.0"), {"include": 3}),
        (TagRules(include=("v1",)), (), {"include": 6}),  # the whole tag, not its beginning
        (TagRules(include=("latest", "v2.*")), ("v2.0.0", "latest"), {"include": 4}),
        (
            TagRules(exclude=(r".*-rc\.\d+", "n.*")),
            ("v1.0.0", "v1.1.0", "v2.0.0", "latest"),
            {r"exclude .*-rc\.\d+": 1, "exclude n.*": 1},
        ),
        (TagRules(include=("v.*",), exclude=("v1.*",)), ("v2.0.0",), {"include": 2, "exclude v1.*": 3}),
        (TagRules(exclude=(".*",)), (), {"exclude .*": 6}),
        (TagRules(literal=("v9", "v1.0.0")), ("v9", "v1.0.0"), {}),  # asked for by name, listed or not
        (TagRules(digest=DIGEST), (), {}),
        (TagRules(literal=("pinned",), digest=DIGEST), ("pinned",), {}),
    ],
)
def test_rules_select_tags_and_count_what_each_leaves_out(
    rules: TagRules, selected: tuple[str, ...], rejected: dict[str, int]
) -> None:
    assert Selection(selected, rejected) == select(rules, TAGS)


def test_a_tag_that_is_listed_twice_is_selected_once() -> None:
    assert ("a", "b") == select(TagRules(), ["a", "b", "a"]).selected
    assert ("a", "b") == select(TagRules(include=("[ab]",)), ["a", "b", "a"]).selected


def test_only_names_and_digests_need_no_listing() -> None:
    assert [True, True, True, False, False] == [
        rules.is_literal
        for rules in (
            TagRules(literal=("a",)),
            TagRules(digest=DIGEST),
            TagRules(literal=("a",), digest=DIGEST),
            TagRules(include=("a",)),
            TagRules(),
        )
    ]


@given(
    st.lists(st.sampled_from(["v1", "v2", "v10", "rc", "v1-rc", "latest"])),
    st.lists(st.sampled_from(["v.*", r"v\d", "rc", ".*-rc", "latest"]), max_size=3),
    st.lists(st.sampled_from(["v.*", r"v\d", "rc", ".*-rc", "latest"]), max_size=3),
)
def test_selecting_agrees_with_asking_tag_by_tag(tags: list[str], include: list[str], exclude: list[str]) -> None:
    rules = TagRules(include=tuple(include), exclude=tuple(exclude))
    found = select(rules, tags)
    assert tuple(dict.fromkeys(tag for tag in tags if rules.rejected_by(tag) is None)) == found.selected
    plainly = {
        tag
        for tag in tags
        if (not include or any(re.fullmatch(pattern, tag) for pattern in include))
        and not any(re.fullmatch(pattern, tag) for pattern in exclude)
    }
    assert plainly == set(found.selected)
    assert len(tags) == sum(found.rejected.values()) + sum(tag in plainly for tag in tags)


@pytest.mark.parametrize(
    "one, other, shared",
    [
        (TagRules(), TagRules(), "*"),
        (TagRules(include=("a",)), TagRules(include=("b",)), "*"),  # patterns leave it open
        (TagRules(literal=("a", "b")), TagRules(literal=("b", "c")), "b"),
        (TagRules(literal=("a",)), TagRules(literal=("b",)), None),
        (TagRules(literal=("a", "b")), TagRules(include=("b",)), "b"),
        (TagRules(literal=("a",)), TagRules(exclude=("a",)), None),
        (TagRules(literal=("a",)), TagRules(), "a"),
        (TagRules(digest=DIGEST), TagRules(), None),  # it writes no tag
        (TagRules(literal=("a",), digest=DIGEST), TagRules(), "a"),
    ],
)
def test_rules_overlap_where_both_may_take_one_tag(one: TagRules, other: TagRules, shared: str | None) -> None:
    assert (shared, shared) == (overlap(one, other), overlap(other, one))


# ---- patterns ----

FINE = (
    ".*",
    r"v\d+(\.\d+)*",
    r"v?\d+\.\d+(?:\.\d+)?(?:-[a-z0-9]+)*",
    r"(\d+\.)+\d+",
    r"(?:rc|beta|alpha)+",
    r"[0-9a-f]{7,40}",
    r"([0-9a-f]{2})+",
    r"(a|b)*c",
    r"(?i:v)\d+(\.[a-z]+)*",
    r"sha256-[0-9a-f]{64}(\.sig|\.att)?",
    r"(?!latest)[^-]*(-[^-]+)*",
    r"(\.\d+)++",
    r"(?P<n>x)(?P=n)",
    r"(\w\.\W?)*",
    r"(a[^a]b)*",
    r"^v1$",
    r"(\.\b\d)*",
    r"(\D|-)*",
    r"(a|\w)*",
    "(a|ab)*",
)
RISKY = (
    "(a+)+",
    "(a+)+$",
    "(a*)*",
    "(a|a)*",
    "((a+)+)?",
    "(a?a)*",
    "(.*)*",
    r"(\w+\d?)+x",
    r"([a-z]+-?)*",
    r"(\.\d*\d*)*",
    "(x(a+)+)y",
    "(?:(?:a|b)+)*",
    "(?i:(ab|cA|Cad)*)",
    "(?=(a+)+)x",
    "((a{1,20}){1,20})",
    r"(?:(x)\1*)*",
    "(?>a+)+",
    "(.|[^-])*",
    "(x)(?(1)(a+)+|b)",
)


@pytest.mark.parametrize("text", FINE)
def test_a_pattern_without_ambiguous_repetition_is_taken(text: str) -> None:
    assert text == compile_pattern(text).pattern


@pytest.mark.parametrize("text", RISKY)
def test_a_pattern_that_could_take_exponential_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nested quantifier") as caught:
        compile_pattern(text)
    assert "separator" in caught.value.hint


@pytest.mark.parametrize("text", FINE)
@given(tag=st.text(alphabet="a.-1v", min_size=100, max_size=128))
@settings(max_examples=20, deadline=None)
def test_a_pattern_that_is_taken_is_quick_on_long_tags(text: str, tag: str) -> None:
    started = time.thread_time()
    compile_pattern(text).fullmatch(tag + "!")
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    "text, says",
    [
        ("(", "missing ), unterminated subpattern at character 1"),
        ("v[", "unterminated character set at character 2"),
        ("*", "nothing to repeat at character 1"),
        ("a{2,1}", "min repeat greater than max repeat"),
        ("x" * 1001, "pattern too long: 1001 characters, at most 1000"),
        ("[[a]]", "Possible nested set"),
        ("(" * 400 + "a" + ")" * 400, "nested too deep"),
        ("a{99999999999}", "not a usable regular expression"),
        ("\x1b(", "\\x1b("),
    ],
)
def test_a_pattern_that_does_not_compile_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_pattern(text)
    assert says in str(caught.value)
    assert "\x1b" not in str(caught.value)


@given(st.text(alphabet="ab.*+?()[]{}|\\d^$1,-", max_size=25))
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_pattern_or_a_configuration_error(text: str) -> None:
    try:
        assert compile_pattern(text).pattern == text
    except ConfigError as error:
        assert 2 == error.exit_code
