"""The rows about what syncs wrote: they belong to one configuration, survive, and are all that a prune may delete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.state.hints import FILE_NAME, State
from mirror.state.ownership import OwnershipRecords, WrittenReference

APP, SOURCE = "localhost:5000/team/app", "quay.io/app"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def open_state(directory: Path, *, read_only: bool = False) -> State:
    return State.open(directory, pytest.fail, read_only=read_only)


def records(*states: State, path: str = "/etc/prod.yaml") -> OwnershipRecords:
    return OwnershipRecords(states, Path(path))


def test_the_next_run_reads_what_was_written(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        mine = records(state)
        mine.record(APP, "v1", ONE, SOURCE)
        mine.record(APP, "v1", TWO, SOURCE)
        mine.record(APP, ONE, ONE, SOURCE, TWO)
        mine.record("localhost:5000/other", "v1", ONE, SOURCE)
    with open_state(tmp_path, read_only=True) as state:
        mine = records(state)
        assert {APP: 2, "localhost:5000/other": 1} == mine.repositories()
        wanted = {WrittenReference("v1", TWO, SOURCE), WrittenReference(ONE, ONE, SOURCE, TWO)}
        assert wanted == set(mine.written(APP))


def test_a_configuration_has_only_its_own_rows(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        records(state).record(APP, "v1", ONE, SOURCE)
        records(state, path="/etc/other.yaml").record(APP, "v1", TWO, SOURCE)
    with open_state(tmp_path) as state:
        assert [WrittenReference("v1", ONE, SOURCE)] == records(state).written(APP)
        assert {("v1", TWO)} == records(state).written_by_others(APP)
        assert ({}, []) == (records(state, path="/srv/prod.yaml").repositories(), records(state, path="x").written(APP))


def test_a_configuration_is_identified_by_its_path_and_not_by_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    link, relative = tmp_path / "prod.yaml", Path(os.path.relpath(tmp_path / "prod.yaml"))
    with open_state(tmp_path) as state:
        for target in ("first", "second"):
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / target)
            OwnershipRecords([state], link).record(APP, target, ONE, SOURCE)
        state.flush()
        assert {"first", "second"} == {one.reference for one in OwnershipRecords([state], relative).written(APP)}


def test_rows_of_several_state_files_are_read_and_deleted_together(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, digest in zip(folders, (ONE, TWO), strict=True):
        folder.mkdir()
        with open_state(folder) as state:
            records(state).record(APP, "v1", digest, SOURCE)
            state.record_tag("target", APP, "v1", digest)
    with open_state(folders[0]) as first, open_state(folders[1]) as second:
        mine = records(first, second)
        assert ({APP: 2}, [ONE, TWO]) == (mine.repositories(), [one.digest for one in mine.written(APP)])
        mine.delete_hint(APP, "v1")
        assert [None, None] == [state.target_tag(APP, "v1") for state in (first, second)]
        assert 2 == len(mine.written(APP))
        mine.forget(APP, "v1")
        for state in (first, second):
            state.flush()
        assert [] == mine.written(APP)


def test_rows_survive_when_the_hints_about_a_repository_are_dropped(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        records(state).record(APP, "v1", ONE, SOURCE)
        state.forget(APP)
        state.flush()
        assert 1 == len(records(state).written(APP))


def test_without_a_state_nothing_was_written(tmp_path: Path) -> None:
    with open_state(tmp_path, read_only=True) as state:
        assert ({}, [], set()) == (
            records(state).repositories(),
            records(state).written(APP),
            records(state).written_by_others(APP),
        )
    assert not (tmp_path / FILE_NAME).exists()
