"""References, repositories and shards that the command line selects."""

from __future__ import annotations

import pytest

from mirror.commands.options import ReferenceFilter, Shard, repository_of


@pytest.mark.parametrize(
    ("patterns", "reference", "wanted"),
    [
        (None, "host/app:v1", True),
        (["host/app:v1"], "host/app:v1", True),
        (["host/app"], "host/app:v1", True),
        (["host/app"], "host/application:v1", False),
        (["host/app:v*"], "host/app:v1", True),
        (["host/*"], "host/team/app:v1", True),
        (["*:v1"], "host:5000/app:v1", True),
        (["host/app:v2", "host/app:v1"], "host/app:v1", True),
        (["host/app:v2"], "host/app:v1", False),
        (["[::1]:5000/app:v1"], "[::1]:5000/app:v1", True),
        (["[::1]:5000/app"], "[::1]:5000/app:v1", True),
        (["host/app@sha256:*"], "host/app@sha256:abc", True),
        ([], "host/app:v1", False),
        (["oci:/dir:app"], "oci:/dir:app:v1", True),
        (["oci:/dir:app"], "oci:/dir:app@sha256:abc", True),
    ],
)
def test_a_reference_is_selected_if_a_pattern_matches_it_or_its_repository(
    patterns: list[str] | None, reference: str, wanted: bool
) -> None:
    only = ReferenceFilter(patterns)
    assert wanted == only.is_selected(reference)
    repository = reference.partition("@")[0] if "@" in reference else reference.rpartition(":")[0]
    assert not wanted or only.may_select(repository), "a repository with a selected reference must be listed"


@pytest.mark.parametrize(
    ("pattern", "repository", "needed"),
    [
        ("host/app:v1", "host/app", True),
        ("host/app:v1", "host/other", False),
        ("host/app", "host/app", True),
        ("host/app*", "host/application", True),
        ("host/team/*", "host/team/app", True),
        ("host/team/*", "host/other", False),
        ("*", "host/any", True),
        ("host/app:v*", "host/app", True),
        ("host/app:v*", "host/application", False),
    ],
)
def test_a_repository_that_no_pattern_can_match_is_not_listed(pattern: str, repository: str, needed: bool) -> None:
    assert needed == ReferenceFilter([pattern]).may_select(repository)


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("host/app:v1", "host/app"),
        ("host:5000/a/b:v1", "host:5000/a/b"),
        ("host:5000/a/b", "host:5000/a/b"),
        ("host:5000/a@sha256:abc", "host:5000/a"),
        ("[::1]:5000/a:v1", "[::1]:5000/a"),
    ],
)
def test_the_repository_of_a_reference(reference: str, repository: str) -> None:
    assert repository == repository_of(reference)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_split_repositories_completely_and_deterministically(count: int) -> None:
    names = [f"host/team/app-{number}" for number in range(200)]
    owners = [[shard for shard in range(count) if Shard(shard, count).contains(name)] for name in names]
    assert all(1 == len(owner) for owner in owners)
    assert set(range(count)) == {owner[0] for owner in owners}
    assert [False, True, False] == [Shard(index, 3).contains("quay.io/prometheus/prometheus") for index in range(3)]


@pytest.mark.parametrize(
    ("pattern", "name", "can"),
    [
        ("host/app", "host/app", True),
        ("host/app:v1", "host/app", True),
        ("host/app:v*", "host/app", True),
        ("host/app@sha256:*", "host/app", True),
        ("h?st/app@sha256:*", "host/app", True),
        ("*:v1", "host/app", True),
        ("*/app:v1", "host/app", True),
        ("h?st/a[op]p", "host/app", True),
        ("*/app", "host/app", True),
        ("*/web:v1", "host/app", False),
        ("*/web", "host/app", False),
        ("h?st/ap", "host/app", False),
        ("host/app[!:]", "host/app", False),
        ("host/team/app", "host/team/*", True),
        ("host/team/app:v1", "host/team/*", True),
        ("host/team/*", "host/team/*", True),
        ("host/*:v1", "host/team/*", True),
        ("*:v1", "host/team/*", True),
        ("host/*/team:v1", "host/team/*", True),
        ("*", "host/*", True),
        ("host/other", "host/team/*", False),
        ("host/team", "host/team/*", False),
        ("host/team:v1", "host/team/*", False),
        ("host/te?m", "host/team/*", False),
        ("h?st/tea[n]/*", "host/team/*", False),
        ("h*st/tea[n]/*", "host/team/*", True),
        ("oci:/x/y:team/app:v1", "oci:/x/y:team/*", True),
        ("oci:/x/y:app:v1", "oci:/x/y:team/*", False),
        ("oci:/x/y:app:v1", "oci:/x/y:*", True),
        ("[::1]:5000/team/app", "[::1]:5000/team/*", True),
    ],
)
def test_patterns_that_cannot_match_a_source_are_reported(pattern: str, name: str, can: bool) -> None:
    assert ([] if can else [pattern]) == ReferenceFilter([pattern]).impossible_patterns([name])


def test_a_pattern_is_unused_until_it_matches() -> None:
    only = ReferenceFilter(["host/app", "host/app:v1", "host/app:v9", "host/*:v2"])
    assert only.may_select("host/app")
    assert [
        "host/*:v2",
        "host/app:v1",
        "host/app:v9",
    ] == only.unused_patterns()  # the repository was selected, but may have no tags
    assert all(only.is_selected(f"host/app:{tag}") for tag in ("v1", "v2"))
    assert ["host/app:v9"] == only.unused_patterns()


def test_a_pattern_is_not_reported_as_unused_if_its_repository_could_not_be_listed() -> None:
    patterns = ["host/app:v1", "host/team/web:v1", "other/app:v1"]
    only = ReferenceFilter(patterns)
    only.mark_unlisted("host/app")
    assert patterns[1:] == only.unused_patterns()
    only.mark_unlisted("host/team/*")
    assert [] == only.unused_patterns()


def test_the_shard_with_the_repository_reports_an_unused_pattern() -> None:
    names = [f"host/team/app-{number}" for number in range(20)]
    patterns = sorted(f"{name}:v9" for name in names)
    output = []
    for shard in range(3):
        only = ReferenceFilter(patterns, Shard(shard, 3))
        mine = [name for name in names if only.may_select(name)]
        assert mine == [name for name in names if Shard(shard, 3).contains(name)]
        output += only.unused_patterns()
    assert patterns == sorted(output)
