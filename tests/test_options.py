"""What the command line selects."""

from __future__ import annotations

import pytest

from mirror.options import Only, Shard, repository_of


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
    ],
)
def test_a_reference_takes_part_if_a_pattern_matches_it_or_its_repository(
    patterns: list[str] | None, reference: str, wanted: bool
) -> None:
    only = Only(patterns)
    assert wanted == only.wants(reference)
    assert not wanted or only.may_want(repository_of(reference)), "what is wanted must be looked for"


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
def test_a_repository_that_no_pattern_reaches_is_not_even_listed(pattern: str, repository: str, needed: bool) -> None:
    assert needed == Only([pattern]).may_want(repository)


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
def test_shards_split_repositories_without_gap_or_overlap_the_same_way_every_time(count: int) -> None:
    names = [f"host/team/app-{number}" for number in range(200)]
    owners = [[shard for shard in range(count) if Shard(shard, count).has(name)] for name in names]
    assert all(1 == len(owner) for owner in owners)
    assert set(range(count)) == {owner[0] for owner in owners}
    assert [False, True, False] == [Shard(index, 3).has("quay.io/prometheus/prometheus") for index in range(3)]
