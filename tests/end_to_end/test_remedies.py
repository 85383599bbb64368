"""Commands in messages can be run as they are printed, also if paths contain spaces."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries.certificates import Authority
from tests.registries.scripted import ScriptedRegistry
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool

NAME = "it's a mirror"


def configured(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, **keys: Any) -> Path:
    """Write a configuration to a folder whose name has spaces and a quote. Return its path."""
    folder = tool.folder / NAME
    folder.mkdir()
    tool.state = folder / "state"
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    tool.config_file = tool.config(mirrors, source, target, file=folder / "mirror.yaml", **keys)
    return tool.config_file


def command_in(text: str, program: str) -> str:
    """Return the only command of a program in a text."""
    (command,) = {found[1] for found in re.finditer(rf"`({program} [^`]*)`", text)}
    return command


def run_in_shell(command: str) -> None:
    subprocess.run(["/bin/sh", "-c", command], check=True)


def test_the_printed_command_makes_the_state_directory_private(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    configured(mirror_run, source, target)
    mirror_run.state.mkdir()
    mirror_run.state.chmod(0o777)
    ran = mirror_run.sync(expect=4)
    run_in_shell(command_in(ran.err, "chmod"))
    mirror_run.sync()
    assert_equal(source, "app", target)


def test_the_printed_command_makes_a_password_private(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    settings = {"plain-http": True, "username": "joe", "password": {"file": "the password"}}
    config = configured(mirror_run, source, target, registries={target.host: settings})
    password = config.parent / "the password"
    password.write_text("hunter2-hunter2")
    password.chmod(0o644)
    ran = mirror_run("validate", config)
    run_in_shell(command_in(ran.text, "chmod"))
    assert "chmod" not in mirror_run("validate", config).text


def test_the_printed_command_makes_a_private_key_private(mirror_run: MirrorTool, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").client
    copied = mirror_run.folder / "the key.pem"
    copied.write_bytes(Path(key).read_bytes())
    copied.chmod(0o644)
    tls = {"cert": str(certificate), "key": str(copied)}
    mirrors = [{"source": "a.example.com/app", "targets": ["b.example.com/app"]}]
    config = mirror_run.config(mirrors, registries={"b.example.com": {"tls": tls}})
    run_in_shell(command_in(mirror_run("validate", config).text, "chmod"))
    assert "chmod" not in mirror_run("validate", config).text


def test_the_printed_command_converts_the_file_of_another_tool(mirror_run: MirrorTool) -> None:
    peer = mirror_run.folder / NAME
    peer.write_text("sync:\n- {source: a/b, target: h.example.com/b, type: repository}\n")
    misread: list[list[str | Path]] = [["validate", peer], ["convert", "--from", "skopeo", peer]]
    for arguments in misread:
        words = shlex.split(command_in(mirror_run(*arguments).text, "mirror convert"))
        assert 0 == mirror_run(*words[1:]).code


@pytest.mark.parametrize("options", [(), ("-v",), ("--json-events",)])
def test_every_output_of_a_sync_has_the_command_with_the_path_of_the_configuration(
    options: tuple[str, ...], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        graph = loaded(registry, "v1")
    digest = next(iter(graph.blobs))
    target.storage.bytes[digest] = target.storage.bytes[digest][:10]
    config = configured(mirror_run, source, target)
    ran = mirror_run("sync", config, "--deep", *options, cwd=config.parent.parent)
    assert 3 == ran.code
    page = mirror_run.folder / "page.html"
    assert 0 == mirror_run("report", mirror_run.state, "--html", page).code
    (failed,) = mirror_run.report()["images"]
    logged = [record["text"] for record in mirror_run.log() if "`mirror sync" in record.get("text", "")]
    events = [json.loads(line) for line in ran.out.splitlines()] if "--json-events" in options else []
    texts = {
        "console": ran.text if not events else ran.err,
        "log": "\n".join(logged),
        "message": failed["error"]["message"],
        "hint": failed["error"]["hint"],
        "page": html.unescape(page.read_text()),
        "events": "\n".join(one["error"]["message"] for one in events if one["event"] == "image"),
    }
    if not events:
        del texts["events"]
    commands = {name: command_in(text, "mirror sync") for name, text in texts.items()}
    assert dict.fromkeys(texts, f"mirror sync --repair {shlex.quote(str(config))}") == commands
    assert 0 == mirror_run(*shlex.split(commands["page"])[1:]).code
    assert_equal(source, "app", target)


def test_verify_and_plan_have_the_path_of_the_configuration_also_in_json(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    config = configured(mirror_run, source, target)
    report = mirror_run.folder / "verify.json"
    ran = mirror_run("verify", config, "--report", report)
    (missing,) = json.loads(report.read_text())["images"]
    wanted = f"mirror sync {shlex.quote(str(config))}"
    assert [wanted] * 2 == [command_in(text, "mirror sync") for text in (ran.out, missing["error"]["message"])]
    assert 0 == mirror_run(*shlex.split(wanted)[1:]).code
