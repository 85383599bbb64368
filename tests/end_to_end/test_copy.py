"""`mirror copy`: one repository without a configuration."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from mirror.commands.copy import KEEP_STATE
from mirror.util.files import private_directory
from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool, Ran

TAGS = ("v1.0", "v1.1", "v2.0", "edge")


@pytest.fixture
def registries(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, ScriptedRegistry]:
    """A source with four tags of one repository, and a target."""
    source, target = scripted("source"), scripted("target")
    graph = Graph("copy")
    for tag in TAGS:
        graph.image(tag)
    source.load("team/app", graph)
    return source, target


def copy(tool: MirrorTool, *arguments: str | Path, expect: int = 0) -> Ran:
    ran = tool("copy", *arguments)
    assert expect == ran.code, ran
    return ran


def tags_of(registry: ScriptedRegistry, repository: str) -> set[str]:
    """Return the tags of a repository. Everything below them must be intact."""
    return {tag for _, tag in assert_whole(registry, [repository]).tags}


def folders(tool: MirrorTool) -> list[Path]:
    return sorted((tool.home / ".local/state/mirror/copies").glob("copy-*"))


def test_selected_tags_are_copied_to_each_target(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    plain = ("--plain-http", source.host, "--plain-http", target.host)
    locations = (f"{source.host}/team/app", f"{target.host}/hub/app", "oci:out")
    options = ("--semver", ">=1.1", "--exclude", "edge", *plain)
    planned = copy(mirror_run, *locations, *options, "--dry-run")
    assert "to copy: 4 new" in planned.out
    assert [] == folders(mirror_run)
    ran = copy(mirror_run, *locations, *options)
    assert "images: 4 copied" in ran.out
    assert {"v1.1", "v2.0"} == tags_of(target, "hub/app")
    target.journal.mark()
    assert "up to date: 2 images on 2 targets" in copy(mirror_run, *locations, *options).out
    assert 1 == len(folders(mirror_run))
    assert "" == copy(mirror_run, "oci:out:team/app:v2.0", f"{target.host}/hub/app:latest", *plain, "-q").text
    assert {"v1.1", "v2.0", "latest"} == tags_of(target, "hub/app")


def test_a_configuration_gives_the_settings_of_the_registries_and_the_state(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    mirrors = [{"source": f"{source.host}/other", "targets": [f"{target.host}/other"]}]
    config = mirror_run.config(mirrors, source, target)
    words = (f"{source.host}/team/app:edge", f"{target.host}/app", "--config", config)
    copy(mirror_run, *words)
    assert {"edge"} == tags_of(target, "app")
    assert [] == folders(mirror_run)
    (state,) = mirror_run.state.glob("copy-*")
    assert (state / "report.json").exists()
    assert not (mirror_run.state / "report.json").exists()

    # The same copy may run only once at a time.
    with (state / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run holds the lock" in copy(mirror_run, *words, expect=75).err
    assert "would replace a file" in copy(mirror_run, *words, "--report", config, expect=2).err


def test_failures_have_the_exit_codes_of_a_sync(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    plain = ("--plain-http", source.host, "--plain-http", target.host)
    ran = copy(mirror_run, f"{source.host}/team/app:none", f"{target.host}/app", *plain, expect=1)
    assert "to retry only these" not in ran.text  # the same command does that
    both = ("--tag", "v1.0", "--include", "v1.*")
    assert (
        "--tag and --include cannot be" in copy(mirror_run, "a.example.com/a", "b.example.com/b", *both, expect=2).err
    )
    long = ["--newest", "9" * 5000]
    assert "expected a number" in copy(mirror_run, "a.example.com/a", "b.example.com/b", *long, expect=2).err
    assert "SOURCE, TARGET" in copy(mirror_run, expect=2).err


def test_the_state_of_a_copy_is_deleted_if_it_was_not_used_for_a_long_time(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, _ = registries
    state = mirror_run.home / ".local/state/mirror/copies"
    old, busy, other = state / "copy-000000000000", state / "copy-00000000000b", state / "other"
    for folder in (old, busy, other):
        private_directory(folder)
        lock = folder / "lock"
        lock.touch()
        used = time.time() - KEEP_STATE - 60
        os.utime(lock, (used, used))
    with (busy / "lock").open("rb+") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        copy(mirror_run, f"{source.host}/team/app:edge", "oci:out", "--plain-http", source.host)
    assert not old.exists()
    assert 2 == len(folders(mirror_run))  # the busy one, and that of the copy
    assert busy.exists()
    assert other.exists()
