"""The environment of the tool: cron's variables, no home, a state directory that others can write to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.registries.real import RealRegistry
from tests.support.oracle import assert_equal
from tests.support.seeding import seed
from tests.support.tool import ROOT, MirrorTool

# Variables that an installation does not need and a run from the checkout does.
BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


@pytest.fixture
def ready(source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool) -> MirrorTool:
    """Return a configuration that has something to copy."""
    seed(source, "app", images=1, index=True)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    return mirror_run


def test_an_empty_environment_is_sufficient(ready: MirrorTool, source: RealRegistry, target: RealRegistry) -> None:
    """`env -i PATH=$PATH mirror sync ...`, as under cron."""
    command = ["env", "-i", *(f"{name}={value}" for name, value in BARE.items())]
    command += [sys.executable, "-m", "mirror", "sync", str(ready.config_file)]
    ran = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (ran.returncode, ran.stderr)
    assert_equal(source, "app", target)
    assert {"copied"} == set(ready.results().values())


def _without_state(tool: MirrorTool) -> None:
    lines = tool.config_file.read_text().splitlines(keepends=True)
    tool.config_file.write_text("".join(line for line in lines if not line.startswith("state:")))


def test_without_home_the_directory_of_the_user_database_is_used(
    ready: MirrorTool, source: RealRegistry, target: RealRegistry
) -> None:
    _without_state(ready)
    state = ready.folder / "xdg"
    ran = ready.sync(only_environment={**BARE, "XDG_STATE_HOME": str(state)})
    assert_equal(source, "app", target)
    assert "" == ran.err
    assert 1 == len(list(state.rglob("report.json")))


def test_an_unusable_home_is_a_local_error_that_names_the_config_key(ready: MirrorTool, target: RealRegistry) -> None:
    _without_state(ready)
    ran = ready.sync(expect=4, only_environment={**BARE, "HOME": "/proc/nobody"})
    assert "`state`" in ran.err
    assert [] == target.requests()


def test_a_world_writable_state_directory_is_refused(ready: MirrorTool, target: RealRegistry) -> None:
    ready.state.mkdir()
    ready.state.chmod(0o777)
    ran = ready.sync(expect=4)
    assert str(ready.state) in ran.err
    assert [] == target.requests()


def test_a_state_directory_that_is_a_symbolic_link_is_refused(
    ready: MirrorTool, target: RealRegistry, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    ready.state.symlink_to(tmp_path / "elsewhere")
    ran = ready.sync(expect=4)
    assert str(ready.state) in ran.err
    assert [] == target.requests()
    assert [] == list((tmp_path / "elsewhere").iterdir())


def test_files_of_a_run_are_readable_only_by_their_owner(ready: MirrorTool) -> None:
    ready.sync()
    written = [ready.state, *ready.state.rglob("*")]
    assert [] == [path.name for path in written if path.stat().st_mode & 0o077]


def test_closed_standard_streams_do_no_harm(ready: MirrorTool, source: RealRegistry, target: RealRegistry) -> None:
    command = 'exec "$0" -m mirror sync "$1" <&- >&- 2>&-'
    arguments = ["sh", "-c", command, sys.executable, str(ready.config_file)]
    ran = subprocess.run(arguments, env=ready.environment, timeout=60, check=False)
    assert 0 == ran.returncode
    assert_equal(source, "app", target)


def test_a_closed_pipe_on_standard_output_does_no_harm(
    ready: MirrorTool, source: RealRegistry, target: RealRegistry
) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-m", "mirror", "sync", str(ready.config_file), "-v"]
    with os.fdopen(write, "wb") as gone:
        ran = subprocess.run(arguments, env=ready.environment, stdout=gone, stderr=gone, timeout=60, check=False)
    assert 0 == ran.returncode
    assert_equal(source, "app", target)
    assert 0 == ready.report()["exit"]


@pytest.mark.parametrize("limit", [16, 18, 22, 26])
def test_a_low_limit_of_open_files_is_a_local_error(
    limit: int, source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "app", images=8, index=True)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
    command = [*limited, sys.executable, "-m", "mirror", "sync", str(mirror_run.config_file)]
    ran = subprocess.run(command, env=mirror_run.environment, capture_output=True, text=True, timeout=60, check=False)
    assert 4 == ran.returncode, ran.stderr
    assert "ulimit -n" in ran.stdout
    assert "internal error" not in ran.stdout + ran.stderr
    entries = mirror_run.report()["images"]
    assert ["app"] == [entry["source"].rpartition("/")[2] for entry in entries] or 8 == len(entries)


def test_proxies_and_netrc_of_the_environment_are_not_used(
    ready: MirrorTool, source: RealRegistry, target: RealRegistry
) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    netrc = ready.home / ".netrc"
    netrc.write_text("machine 127.0.0.1 login stranger password secret-of-netrc\n")
    netrc.chmod(0o600)
    ready.sync(environment=proxies)
    assert_equal(source, "app", target)


def test_a_closed_standard_output_does_not_change_the_exit_code(ready: MirrorTool, source: RealRegistry) -> None:
    source.stop()
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-m", "mirror", "sync", str(ready.config_file)]
    with os.fdopen(write, "wb") as gone:
        command = subprocess.run(arguments, env=ready.environment, stdout=gone, timeout=60, check=False)
    assert 1 == command.returncode == ready.report()["exit"]


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("folder", [b"plain", "schräg".encode(), b"latin-1-\xe9"])
def test_paths_are_the_bytes_of_the_configuration_in_any_locale(
    folder: bytes, ready: MirrorTool, source: RealRegistry, target: RealRegistry, tmp_path: Path
) -> None:
    place = tmp_path / os.fsdecode(folder)
    place.mkdir()
    keys = {"state": "zustand-é€", "spool": "é", "log": {"file": "prôtokoll"}}
    moved = yaml.safe_load(ready.config_file.read_text()) | keys
    (place / "mirror.yaml").write_text(yaml.safe_dump(moved, allow_unicode=True), encoding="utf-8")
    for command in ("sync", "sync", "plan", "verify"):
        # Not the whole path: bytes that are not UTF-8 must not get into the report of a failed test.
        ran = ready(command, "mirror.yaml", environment=ASCII, cwd=place)
        assert (0, "") == (ran.code, ran.err)
    assert_equal(source, "app", target)
    assert {"mirror.yaml", "zustand-é€", "é", "prôtokoll"} <= {path.name for path in place.iterdir()}
    assert 0 == json.loads((place / "zustand-é€" / "report.json").read_text())["exit"]


@pytest.mark.parametrize("name", ["oci:aussenstände", "bündel.tar"])
def test_a_store_whose_name_this_locale_cannot_encode_is_refused_with_its_position(
    name: str, ready: MirrorTool, source: RealRegistry
) -> None:
    moved = yaml.safe_load(ready.config_file.read_text())
    moved["mirrors"][0]["targets"].append(name)
    ready.config_file.write_text(yaml.safe_dump(moved, allow_unicode=True), encoding="utf-8")
    source.mark()
    ran = ready.sync(expect=2, environment=ASCII)
    assert "mirrors[0].targets[1]" in ran.err
    assert "set LC_ALL=C.UTF-8" in ran.err
    assert [] == source.requests()
    ready.sync(environment={"LC_ALL": "C.UTF-8"})


def test_output_that_cannot_be_written_is_a_local_error(ready: MirrorTool, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    written = yaml.safe_load(ready.config_file.read_text())
    written["mirrors"][0]["targets"].append(f"oci:{layout}:app")
    ready.config_file.write_text(yaml.safe_dump(written))
    ready.sync()
    config = str(ready.config_file)
    commands = [["--version"], ["--help"], ["sync", "--help"], ["schema"]]
    commands += [[name, config] for name in ("validate", "plan", "verify", "inventory")]
    commands += [["inventory", f"oci:{layout}"], ["bundle", "list", str(layout)], ["bundle", "verify", str(layout)]]
    said = "mirror: cannot write to standard output: No space left on device\n"
    for command in commands:
        assert (4, said) == _into("/dev/full", ready, *command), command
    assert (4, said) == _started_into("/dev/full", ready, "validate", config)
    # The results of a sync are in its report, so a closed pipe is ignored.
    assert (0, said) == _into("/dev/full", ready, "sync", config)
    assert 0 == ready.report()["exit"]
    read, write = os.pipe()
    os.close(read)
    for command in commands:
        assert (0, "") == _into(write, ready, *command), command
    assert (0, "") == _started_into(write, ready, "validate", config)
    os.close(write)


def _into(stdout: str | int, tool: MirrorTool, *arguments: str) -> tuple[int, str]:
    """Run with this standard output; return the exit code and standard error."""
    with open(stdout, "wb", closefd=isinstance(stdout, str)) as out:
        ran = tool(*arguments, stdout=out.fileno())
    return ran.code, ran.err


def _started_into(stdout: str | int, tool: MirrorTool, *arguments: str) -> tuple[int, str]:
    """Do the same in a process that Python has set up for this standard output."""
    with open(stdout, "wb", closefd=isinstance(stdout, str)) as out:
        ran = subprocess.run(
            [sys.executable, "-m", "mirror", *arguments],
            env=tool.environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    return ran.returncode, ran.stderr
