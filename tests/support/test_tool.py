"""The fixture that runs the tool returns its output, and finds secrets anywhere in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from tests.conftest import RegistryFactory
from tests.registries.certificates import Authority
from tests.registries.real import RealRegistry
from tests.support.tool import MirrorTool, shapes

SECRET = "Canary-7f3a91 & Wörd"


def test_a_run_returns_exit_code_and_output(mirror_run: MirrorTool) -> None:
    ran = mirror_run("--version")
    assert (0, ("--version",)) == (ran.code, ran.arguments)
    assert ran.out.startswith("mirror ")
    assert [ran] == mirror_run.runs


def test_a_wrong_exit_code_shows_the_run(mirror_run: MirrorTool) -> None:
    with pytest.raises(AssertionError, match=r"want exit \(0,\)"):
        mirror_run.sync()  # the config file does not exist
    assert 2 == mirror_run.runs[0].code
    mirror_run.sync(expect=(1, 2))


def test_the_tool_runs_in_a_clean_environment(mirror_run: MirrorTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.com")
    assert "HTTP_PROXY" not in MirrorTool(mirror_run.folder / "another").environment
    assert str(mirror_run.home) == mirror_run.environment["HOME"]


def test_a_run_that_does_not_end_is_killed(mirror_run: MirrorTool) -> None:
    (mirror_run.folder / "mirror.py").write_text("import time\ntime.sleep(60)\n")
    process = mirror_run.start(environment={"PYTHONPATH": str(mirror_run.folder)})
    with pytest.raises(AssertionError, match=r"still running after 0\.3 s"):
        mirror_run.finish(process, timeout=0.3)
    assert -9 == process.returncode


def test_a_traceback_fails_the_test(mirror_run: MirrorTool) -> None:
    (mirror_run.folder / "mirror.py").write_text("1 / 0\n")
    with pytest.raises(AssertionError, match="not for users' eyes"):
        mirror_run(environment={"PYTHONPATH": str(mirror_run.folder)})


def test_running_processes_are_killed_at_the_end(tmp_path: Path) -> None:
    with MirrorTool(tmp_path / "tool") as tool:
        (tool.folder / "mirror.py").write_text("import time\ntime.sleep(60)\n")
        process = tool.start(environment={"PYTHONPATH": str(tool.folder)})
    assert -9 == process.returncode


def test_a_config_has_the_settings_of_each_registry(
    mirror_run: MirrorTool, registry_factory: RegistryFactory, authority: Authority, source: RealRegistry
) -> None:
    secure = registry_factory(tls=authority)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{secure.host}/app"]}]
    more = {secure.host: {"parallel": 3}}
    path = mirror_run.config(mirrors, source, secure, registries=more, parallel={"images": 2})
    written = yaml.safe_load(path.read_text())
    assert {"plain-http": True} == written["registries"][source.host]
    assert (str(authority.ca), 3) == (
        written["registries"][secure.host]["tls"]["ca"],
        written["registries"][secure.host]["parallel"],
    )
    assert (mirrors, {"images": 2}, str(mirror_run.state)) == tuple(
        written[key] for key in ("mirrors", "parallel", "state")
    )


def test_reports_and_logs_are_read(mirror_run: MirrorTool) -> None:
    mirror_run.state.mkdir()
    images = [{"target": "t/app:v1", "result": "copied"}]
    (mirror_run.state / "report.json").write_text(json.dumps({"schema": 1, "images": images}))
    (mirror_run.state / "failed.txt").write_text("a\nb\n")
    (mirror_run.state / "mirror.log.1").write_text('{"n": 1}\n')
    (mirror_run.state / "mirror.log").write_text('{"n": 2}\n')
    assert {"t/app:v1": "copied"} == mirror_run.results()
    assert ["a", "b"] == mirror_run.failed()
    assert [1, 2] == sorted(line["n"] for line in mirror_run.log())
    (mirror_run.state / "mirror.log").write_text('{"n": 2')
    with pytest.raises(ValueError, match="delimiter"):
        mirror_run.log()


@pytest.mark.parametrize(
    "hidden",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET),
        SECRET.encode().hex(),
        *(base64.b64encode(f"{user}:{SECRET}".encode()).decode() for user in ("", "a", "ab", "acme")),
        base64.urlsafe_b64encode(f"{{'password': '{SECRET}'}}".encode()).decode(),
    ],
)
def test_a_secret_is_found_in_every_encoding(mirror_run: MirrorTool, hidden: str) -> None:
    file = mirror_run.home / "file"
    file.write_text(f"before {hidden} after")
    with pytest.raises(AssertionError, match=r"a secret is in \['home/file'\]"):
        mirror_run.sweep(SECRET)
    mirror_run.sweep(SECRET, skip=[file])


def test_a_secret_is_found_in_the_output_of_a_run(mirror_run: MirrorTool) -> None:
    mirror_run("sync", SECRET)
    with pytest.raises(AssertionError, match="a secret is in"):
        mirror_run.sweep(SECRET)
    mirror_run.sweep("Another-Canary")


def test_a_secret_that_is_too_short_is_refused(mirror_run: MirrorTool) -> None:
    with pytest.raises(AssertionError, match="too short"):
        mirror_run.sweep("abc")
    assert all(len(shape) > 6 for shape in shapes("12345678"))
