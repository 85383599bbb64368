"""The rows that the selection of tags depends on: when tags were first seen, and the dates of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.selection.tag_rules import FirstSeen
from mirror.state.hints import State

APP, WEB = "localhost:5000/app", "localhost:5000/web"
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")


def open_state(directory: Path, *, read_only: bool = False) -> State:
    return State.open(directory, pytest.fail, read_only=read_only)


def test_the_first_time_is_kept_until_the_tag_moves(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        for identity, time in ((OLD, 1000.9), (OLD, 2000.0)):
            state.record_first_seen(APP, "v1", FirstSeen(identity, time))
            state.flush()
            assert FirstSeen(OLD, 1000.0) == state.first_seen(APP, "v1")
        state.record_first_seen(APP, "v1", FirstSeen(NEW, 3000.0))
    with open_state(tmp_path) as state:
        assert FirstSeen(NEW, 3000.0) == state.first_seen(APP, "v1")
        assert [None, None] == [state.first_seen(APP, "v2"), state.first_seen(WEB, "v1")]


def test_a_time_that_was_in_the_future_is_replaced_by_an_earlier_one(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_first_seen(APP, "v1", FirstSeen(OLD, 9000.0))
        state.record_first_seen(APP, "v1", FirstSeen(OLD, 5000.0))
        state.flush()
        assert FirstSeen(OLD, 5000.0) == state.first_seen(APP, "v1")


def test_dates_are_added_until_the_others_are_deleted(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_image_dates(APP, {OLD: -5, "an image id": 7})
        state.record_image_dates(WEB, {OLD: 1})
    with open_state(tmp_path) as state:
        assert [-5, 7, 1] == [
            state.image_date(APP, OLD),
            state.image_date(APP, "an image id"),
            state.image_date(WEB, OLD),
        ]
        state.record_image_dates(APP, {NEW: 1 << 62})
        state.delete_other_image_dates(APP, {OLD, NEW, "unknown"})
        state.flush()
        assert [-5, None, 1 << 62] == [state.image_date(APP, one) for one in (OLD, "an image id", NEW)]
        assert 1 == state.image_date(WEB, OLD)


def test_forgetting_a_repository_and_other_writers_do_not_change_ages_and_dates(tmp_path: Path) -> None:
    with State.open(tmp_path, pytest.fail, writers="first") as state:
        state.record_first_seen(APP, "v1", FirstSeen(OLD, 1000.0))
        state.record_image_dates(APP, {OLD: 5})
        state.forget(APP)
        state.flush()
        assert (FirstSeen(OLD, 1000.0), 5) == (state.first_seen(APP, "v1"), state.image_date(APP, OLD))
    with State.open(tmp_path, pytest.fail, writers="second") as state:
        assert (FirstSeen(OLD, 1000.0), 5) == (state.first_seen(APP, "v1"), state.image_date(APP, OLD))


def test_a_command_that_only_reads_records_nothing(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_first_seen(APP, "v1", FirstSeen(OLD, 1000.0))
    with open_state(tmp_path, read_only=True) as state:
        state.record_first_seen(APP, "v2", FirstSeen(OLD, 1000.0))
        state.record_image_dates(APP, {OLD: 5})
    with open_state(tmp_path) as state:
        assert FirstSeen(OLD, 1000.0) == state.first_seen(APP, "v1")
        assert [None, None] == [state.first_seen(APP, "v2"), state.image_date(APP, OLD)]
