"""The file with the plan of a prune: what is written can be read, and everything else is rejected."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import USAGE, ConfigError, RemoteError
from mirror.oci.digest import Digest
from mirror.sync.prune_plan import PlannedDeletion, PrunePlan, RepositoryPlan, read_prune_plan

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
NAME = "registry.example.com/app"


def make_plan(created: datetime = NOW) -> PrunePlan:
    tags = [PlannedDeletion(f"{NAME}:v1", "v1", ONE, "quay.io/app", "left out by `include`", 12, ("latest",))]
    attachments = [PlannedDeletion(f"{NAME}@{TWO}", TWO, TWO, "quay.io/app")]
    repositories = [RepositoryPlan(NAME, 4, tags, attachments)]
    error = RemoteError("denied", code="auth_denied")
    return PrunePlan(Path("prod.yaml"), "0" * 64, created, repositories, {f"{NAME}:v2": "immutable"}, {"x/y": error})


def read(folder: Path, text: str | bytes, now: datetime = NOW) -> Any:
    path = folder / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prune_plan(path, config_hash="0" * 64, now=now)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    allowed = read(tmp_path, make_plan().render())
    assert {NAME: {"v1": ONE, TWO: TWO}} == allowed.repositories
    assert (True, False, False) == (
        allowed.allows(NAME, "v1", ONE),
        allowed.allows(NAME, "v1", TWO),
        allowed.allows("other", "v1", ONE),
    )
    assert [25.0] == [repository.percent for repository in make_plan().repositories]


def test_entries_can_be_removed_by_hand(tmp_path: Path) -> None:
    document = json.loads(make_plan().render())
    document["repositories"][0]["tags"] = []
    assert {NAME: {TWO: TWO}} == read(tmp_path, json.dumps(document)).repositories


@pytest.mark.parametrize("age", [timedelta(hours=24), timedelta(minutes=-5)])
def test_a_plan_is_valid_for_a_day_also_if_the_clock_was_a_little_fast(tmp_path: Path, age: timedelta) -> None:
    assert NOW - age == read(tmp_path, make_plan(NOW - age).render()).created


@pytest.mark.parametrize("age", [timedelta(hours=24, seconds=1), timedelta(minutes=-6)])
def test_other_plans_are_refused(tmp_path: Path, age: timedelta) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, make_plan(NOW - age).render())
    assert ("prune_refused", USAGE) == (caught.value.code, caught.value.exit_code)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": None},
        {"schema": True},
        {"schema": 99},
        {"config": None},
        {"config": {"file": "x"}},
        {"config": {"sha256": 1}},
        {"created": None},
        {"created": "yesterday"},
        {"created": "2026-03-01T12:00:00"},
        {"repositories": None},
        {"repositories": {}},
        {"repositories": [1]},
        {"repositories": [{"repository": 1, "tags": [], "attachments": []}]},
        {"repositories": [{"repository": "x/y", "tags": []}]},
        {"repositories": [{"repository": "x/y", "tags": [{"reference": "v1"}], "attachments": []}]},
        {"repositories": [{"repository": "x/y", "tags": [{"reference": "v1", "digest": "x"}], "attachments": []}]},
        {"repositories": [{"repository": "x/y", "tags": [{"digest": ONE}], "attachments": []}]},
    ],
    ids=str,
)
def test_an_invalid_document_is_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, json.dumps({**json.loads(make_plan().render()), **change}))
    assert "mirror prune CONFIG --plan FILE" in caught.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"schema": 1, "schema": 1}', b"[" * 1000], ids=repr)
def test_what_is_not_a_document_is_rejected(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, text)
