"""Which tags are selected, and which patterns are valid."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.selection.patterns import compile_pattern
from mirror.selection.tag_rules import Selection, TagRules, select
from mirror.selection.tag_templates import common_tag

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
        (
            TagRules(semver=("1.x",)),
            ("v1.0.0", "v1.1.0"),
            {"semver": 1, "semver (pre-release)": 1, "semver (no version)": 2},
        ),
        (TagRules(semver=(">=2", "=1.0.0")), ("v1.0.0", "v2.0.0"), {"semver": 2, "semver (no version)": 2}),
        (TagRules(newest=2), ("v1.1.0", "v2.0.0"), {"newest": 2, "newest (no version)": 2}),
        (TagRules(newest=9), TAGS[:4], {"newest (no version)": 2}),
        (
            TagRules(include=("v.*",), exclude=(".*-rc.*",), semver=("<2",), newest=1),
            ("v1.1.0",),
            {"include": 2, r"exclude .*-rc.*": 1, "semver": 1, "newest": 1},
        ),
        # These need digests, so `newest` is applied later.
        (TagRules(newest=1, by_created=True), TAGS, {}),
        (TagRules(newest=1, by_created=True, include=(".*",)), TAGS, {}),
        (TagRules(newest=1, min_age=60.0), TAGS[:4], {"newest (no version)": 2}),
        (TagRules(literal=("v9", "v1.0.0")), ("v9", "v1.0.0"), {}),  # asked for by name, listed or not
        (TagRules(digest=DIGEST), (), {}),
        (TagRules(literal=("pinned",), digest=DIGEST), ("pinned",), {}),
    ],
)
def test_rules_select_tags_and_count_excluded_ones(
    rules: TagRules, selected: tuple[str, ...], rejected: dict[str, int]
) -> None:
    assert Selection(selected, rejected) == select(rules, TAGS)


@pytest.mark.parametrize("include", [(), ("sha256-.*|v1",)], ids=["every tag", "included"])
def test_tags_of_attachments_do_not_count_as_images_for_newest_by_date(include: tuple[str, ...]) -> None:
    name = f"sha256-{'ab' * 32}"
    attachments = [name, *(f"{name}.{suffix}" for suffix in ("sig", "att", "sbom"))]
    tags = ["v1", *attachments]
    found = select(TagRules(include=include, newest=2, by_created=True), tags)
    assert Selection(("v1",), {"newest (attachment)": 4}) == found
    assert Selection(tuple(tags), {}) == select(TagRules(include=include, min_age=60.0), tags)


def test_a_tag_that_is_listed_twice_is_selected_once() -> None:
    assert ("a", "b") == select(TagRules(), ["a", "b", "a"]).selected
    assert ("a", "b") == select(TagRules(include=("[ab]",)), ["a", "b", "a"]).selected


def test_rules_with_literal_tags_or_a_digest_need_no_listing() -> None:
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
def test_select_agrees_with_rejected_by(tags: list[str], include: list[str], exclude: list[str]) -> None:
    rules = TagRules(include=tuple(include), exclude=tuple(exclude))
    found = select(rules, tags)
    assert tuple(dict.fromkeys(tag for tag in tags if rules.rejecting_rule(tag) is None)) == found.selected
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
        (TagRules(literal=("v1", "latest")), TagRules(semver=(">=2",)), None),
        (TagRules(literal=("v1", "v2.1")), TagRules(semver=(">=2",)), "v2.1"),
        (TagRules(literal=("latest",)), TagRules(newest=3), None),
        (TagRules(literal=("latest",)), TagRules(newest=3, by_created=True), "latest"),
        (TagRules(semver=("<2",)), TagRules(semver=(">=2",)), "*"),
        (TagRules(digest=DIGEST), TagRules(), None),  # it writes no tag
        (TagRules(literal=("a",), digest=DIGEST), TagRules(), "a"),
    ],
)
def test_rules_overlap_if_both_may_select_one_tag(one: TagRules, other: TagRules, shared: str | None) -> None:
    assert (shared, shared) == (common_tag(one, other), common_tag(other, one))


# ---- patterns ----

# Each construct of the syntax that Python's re reads in the same way.
PATTERNS = (
    ".*",
    "v1",
    r"v1\.2",
    r"v\d+(\.\d+)*",
    r"v?\d+\.\d+(?:\.\d+)?(?:-[a-z0-9]+)*",
    r"(\d+\.)+\d+",
    "(?:rc|beta|alpha)+",
    "[0-9a-f]{7,40}",
    "([0-9a-f]{2})+",
    "(a|b)*c",
    "a{3}|b{2,}|c{0,2}",
    "a.*?c+?x??",
    "(?i)ALPINE-V1",
    r"(?i:v)\d+(\.[a-z]+)*",
    r"sha256-[0-9a-f]{64}(\.sig|\.att)?",
    "[^-]*(-[^-]+)*",
    r"(?P<major>\d+)\.(?P<minor>\d+)",
    r"(\w\.\W?)*",
    "(a[^a]b)*",
    "^v1$",
    r"\Av1",
    r"(\.\b\d)*",
    r"\Bv1|a\B.*",
    r"[\d.]+|[\w-]+|[]a-]+|\S+|a\s",
    r"\x76\x31|\.\-_",
    "(|a)b?",
    "",
)
# An engine that backtracks takes exponential time for some texts.
AMBIGUOUS = ("(a+)+", "(a*)*", "(a|a)*", "((a+)+)?", "(a?a)*", "(.*)*", r"(\w+\d?)+x", "(.|[^-])*", "((a{1,20}){1,20})")
DRAWN_TAGS = st.text(alphabet="abcALPINEalpinev01.-_", max_size=12)


@pytest.mark.parametrize("text", PATTERNS)
@given(
    tag=DRAWN_TAGS | st.sampled_from(["v1", "v1.2", "v1.2.3-rc1", "a.b.c", "aaa", "bb", "1.2", "abc", "rcbeta", "V1.a"])
)
@settings(max_examples=60)
def test_patterns_match_like_pythons_re(text: str, tag: str) -> None:
    assert (re.fullmatch(text, tag) is not None) == compile_pattern(text).matches(tag)


@pytest.mark.parametrize("text", PATTERNS)
@given(data=st.data())
@settings(max_examples=20)
def test_patterns_match_generated_examples(text: str, data: st.DataObject) -> None:
    tag = data.draw(st.from_regex(re.compile(text, re.ASCII), fullmatch=True, alphabet=st.characters(codec="ascii")))
    assert compile_pattern(text).matches(tag)


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_patterns_match_in_linear_time(text: str) -> None:
    started = time.thread_time()
    compile_pattern(text).matches("a" * 127 + "!")
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    "text, says",
    [
        ("(", "missing )"),
        ("v[", "missing ]"),
        ("*", "no argument for repetition operator: *"),
        ("*-alpine", "write '.*-alpine'"),
        ("a{2,1}", "invalid repetition size: {2,1}"),
        ("a{,2}", "{,2} is not a repetition"),
        ("a{1001}", "repetition"),
        ("a{n}", "{n} is not a repetition"),
        ("x" * 1001, "the pattern is too long: 1001 characters; at most 1000"),
        ("\x1b(", "\\x1b("),
        ("\ud800", "Unicode"),
        ("(?!latest).*", "write a pattern for tags to select under `include`, to reject under `exclude`"),
        ("(?=v).*", "look-around"),
        (".*(?<!-rc)", "look-around"),
        (".*(?<=-rc)", "look-around"),
        (r"(a|b)\1", "backreferences"),
        ("(?P<n>x)(?P=n)", "backreferences"),
        ("(?>a+)", "linear time"),
        ("a++", "linear time"),
        (r"v1\Z", "a pattern must match the whole tag anyway"),
        ("(?x) v 1", "without spaces"),
        ("(?#one)v", "the comment in YAML"),
    ],
)
def test_an_invalid_pattern_is_an_error_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_pattern(text)
    assert says in str(caught.value)
    assert "\x1b" not in str(caught.value)


@given(st.text(alphabet="ab.*+?()[]{}|\\d^$1,-", max_size=25))
@settings(max_examples=400)
def test_arbitrary_text_is_a_pattern_or_a_configuration_error(text: str) -> None:
    try:
        assert compile_pattern(text).text == text
    except ConfigError as error:
        assert 2 == error.exit_code
