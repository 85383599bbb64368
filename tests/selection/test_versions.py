"""Tags as versions: which tags are versions, their order, and the ranges that select them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.oci.reference import is_tag
from mirror.selection.tag_rules import TagRules, select
from mirror.selection.versions import VersionRanges, find_newest_versions, parse_version, version_order

# 300 tags of public repositories (alpine, nginx, prometheus, python, ubuntu, node, golang, redis, and others), and what
# regsync copied from a repository with these tags. tests_real/test_regsync.py runs regsync again.
REGSYNC = json.loads((Path(__file__).parent / "regsync.json").read_text(encoding="utf-8"))
MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tag", "release", "suffix"),
    [
        ("1.2.3", (1, 2, 3), ()),
        ("v1.2.3", (1, 2, 3), ()),
        ("3.20", (3, 20, 0), ()),
        ("7", (7, 0, 0), ()),
        ("22.04", (22, 4, 0), ()),
        ("20240606", (20240606, 0, 0), ()),
        ("1.2.3-rc.1", (1, 2, 3), ("rc", "1")),
        ("1.25-alpine3.19", (1, 25, 0), ("alpine3", "19")),
        ("1.2.3-rc.01", (1, 2, 3), ("rc", "1")),
        ("2024-01-15", (2024, 0, 0), ("01-15",)),
        ("1.2.3_build.5", (1, 2, 3), ()),
        ("1.2.3-rc.1_build", (1, 2, 3), ("rc", "1")),
        ("10.0.17763.2114", (10, 0, 17763, 2114), ()),
        ("1.2.3.0.0", (1, 2, 3), ()),
        ("9" * 18, (10**18 - 1, 0, 0), ()),
    ],
)
def test_these_tags_are_versions(tag: str, release: tuple[int, ...], suffix: tuple[str, ...]) -> None:
    version = parse_version(tag)
    assert version is not None
    assert (release, suffix) == (version.release, version.suffix)
    assert bool(suffix) == version.is_prerelease
    assert () == version.without_suffix.suffix


NO_VERSIONS = (
    *("latest", "v", "V1.2", "n1.2", "release-1.2", "a1b2c3d", "sha256-ab.sig", "3.13.0rc2", "1.2.x"),
    *("1..2", "1.2.", "1.2.3-", "1.2.3-a..b", "9" * 19, "\u0661.2", "1.2\n", ""),
)


@pytest.mark.parametrize("tag", NO_VERSIONS)
def test_other_tags_are_no_versions(tag: str) -> None:
    assert parse_version(tag) is None


def test_versions_are_ordered_as_in_semantic_versioning() -> None:
    """The pre-releases are the example of https://semver.org, section 11; tags with one version have a fixed order."""
    oldest_first = [
        *("edge", "latest"),
        *("1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"),
        *("1.0.0-rc.1", "1", "1.0", "v1.0", "1.0.0", "1.0.0_1", "v1.0.0", "1.0.0.7", "1.0.1", "1.2", "1.2.0", "1.10"),
        *("v2-rc1", "2", "10.0.9", "10.0.10", "20240606"),
    ]
    assert oldest_first == sorted(sorted(oldest_first), key=version_order)
    assert {"10.0.9", "10.0.10", "20240606"} == find_newest_versions(oldest_first, 3)
    assert set(oldest_first) == find_newest_versions(oldest_first, 100)


@pytest.mark.parametrize(
    ("text", "selected", "others"),
    [
        (">=2.50 <4", "2.50.0 v3 3.99.99 2.50", "4 4.0.0 2.49.9 3.0.0-rc.1 2.50.0-rc.1"),
        ("^1.2.3", "1.2.3 1.9 v1.99.0", "2 1.2.2 1.3.0-rc.1"),
        ("^0.2.3", "0.2.3 0.2.9", "0.3 1"),
        ("~1.2.3", "1.2.3 1.2.9", "1.3.0 1.2"),
        ("1.2", "1.2 1.2.0 1.2.9 1.2.3.4", "1.3 1.20"),
        ("=1.2.3", "1.2.3 v1.2.3 1.2.3_build", "1.2.4 1.2.3-rc.1"),
        ("1.x || >=3.0.0", "1.0 1.99 3 4.1", "2 2.99"),
        ("1.2 - 1.4", "1.2.0 1.4 1.4.9", "1.5 1.1.9"),
        ("1.2.0 - 1.4.1", "1.4.1", "1.4.2"),
        ("*", "0 1.2.3 20240606", "1.2.3-rc.1 latest"),
        (">=1.2.3-rc.1 <2", "1.2.3-rc.1 1.2.3-rc.2 1.2.3 1.3.0", "1.2.3-beta 1.3.0-rc.1"),
        (">= 22.04  <  24.04", "22.04 22.10 23.10", "24.04 20.04 22.04-beta"),
        (">=v1.2 <=v1.4", "1.2 1.4.9", "1.5"),
        ("=1.2.3+build", "1.2.3", "1.2.4"),
    ],
)
def test_ranges_are_those_of_npm(text: str, selected: str, others: str) -> None:
    tags = [*selected.split(), *others.split()]
    assert selected.split() == list(select(TagRules(semver=(text,)), tags).selected)


@pytest.mark.parametrize("case", REGSYNC["cases"], ids=lambda case: str(case.get("semver", case)))
def test_300_public_tags_are_selected_as_by_regsync_except_for_documented_differences(case: dict[str, Any]) -> None:
    if "regsync" not in case:  # regsync does not accept this range of npm
        assert "invalid semver range" in case["error"]
        return
    include, exclude, semver = (tuple(case.get(key, ())) for key in ("include", "exclude", "semver"))
    rules = TagRules(include=include, exclude=exclude, semver=semver)
    theirs, ours = set(case["regsync"]), set(select(rules, REGSYNC["tags"]).selected)
    differences = case.get("differences", {})
    assert {tag for tags in differences.values() for tag in tags} == theirs ^ ours
    for reason in differences:
        assert f"| {reason} |" in MANUAL


def test_the_list_of_public_tags_is_long_and_mixed() -> None:
    tags = REGSYNC["tags"]
    assert 300 == len(set(tags)) == sum(map(is_tag, tags))
    versions = [version for tag in tags if (version := parse_version(tag))]
    assert len(versions) > 200
    assert sum(version.is_prerelease for version in versions) > 60
    assert len(tags) - len(versions) > 50


TAGS = st.lists(
    st.sampled_from(REGSYNC["tags"]) | st.from_regex(r"v?\d{1,2}(\.\d{1,2}){0,3}(-rc\.?\d)?", fullmatch=True),
    max_size=40,
    unique=True,
)
RULES = st.builds(
    TagRules,
    include=st.sampled_from([(), ("v?[0-9].*",)]),
    exclude=st.sampled_from([(), (".*-.*",)]),
    semver=st.sampled_from([(), (">=1 <20",), ("^1.2", "3.x")]),
    newest=st.sampled_from([None, 1, 3, 10]),
)


@given(RULES, TAGS, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_a_selection_is_small_stable_and_independent_of_the_order_of_the_list(
    rules: TagRules, tags: list[str], random: Any
) -> None:
    selection = select(rules, tags)
    assert len(tags) == len(selection.selected) + sum(selection.rejected.values())
    assert rules.newest is None or len(selection.selected) <= rules.newest
    assert selection.selected == select(rules, selection.selected).selected
    assert all(rules.rejecting_rule(tag) is None for tag in selection.selected)
    shuffled = list(tags)
    random.shuffle(shuffled)
    again = select(rules, shuffled)
    assert (set(selection.selected), selection.rejected) == (set(again.selected), again.rejected)
    assert [tag for tag in shuffled if tag in again.selected] == list(again.selected)


@given(st.text(alphabet="0123456789.xX*v<>=^~|- +,&!rc", max_size=20))
@settings(max_examples=400)
def test_arbitrary_text_is_a_range_or_a_configuration_error(text: str) -> None:
    try:
        ranges = VersionRanges([text])
    except ConfigError as error:
        assert 2 == error.exit_code
    else:
        for tag in ("1.2.3", "2", "0.0.1-rc.1"):
            version = parse_version(tag)
            assert version is not None
            assert ranges.matches(version) in (True, False)
