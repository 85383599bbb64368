"""The files for systemd and cron: systemd accepts the units, and the service is confined."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mirror.cli import make_parser
from tests.support.tool import ROOT

SYSTEMD = ROOT / "contrib" / "systemd"
CRON = ROOT / "contrib" / "cron" / "mirror"
OPERATIONS = ROOT / "docs" / "operations.md"
PROGRAM = "/opt/mirror/bin/mirror"


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr), done.stderr
    return done.stdout


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.timer")]:
        # The program of a unit must exist.
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    names = ("mirror.timer", "mirror.service", "mirror-failure@mirror.service.service")
    run("systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in names))


def test_systemd_accepts_the_service_that_keeps_running(tmp_path: Path) -> None:
    for name in ("mirror.service", "mirror-failure@.service", "mirror.service.d/every.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((SYSTEMD / name).read_text().replace(PROGRAM, "/bin/true"))
    run("systemd-analyze", "verify", "--man=no", tmp_path / "mirror.service")


def test_the_program_accepts_the_commands_of_the_service() -> None:
    texts = [(SYSTEMD / name).read_text() for name in ("mirror.service", "mirror.service.d/every.conf")]
    commands = [words for text in texts for words in re.findall(rf"^ExecStart={PROGRAM} (.*)", text, re.MULTILINE)]
    parsed = [make_parser().parse_args(words.split()) for words in commands]
    assert [Path("/etc/mirror/mirror.yaml")] * 2 == [one.config for one in parsed]


def test_the_exposure_level_of_the_service_is_as_low_as_documented() -> None:
    shown = run("systemd-analyze", "security", "--offline=yes", "--no-pager", SYSTEMD / "mirror.service")
    level = re.search(r"Overall exposure level for mirror.service: (\S+)", shown)
    documented = re.search(r"an exposure level below ([\d.]+)\b", OPERATIONS.read_text())
    assert level is not None
    assert documented is not None
    assert float(level[1]) < float(documented[1])


def test_systemd_creates_the_user_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", "--root", str(tmp_path), str(SYSTEMD / "mirror.sysusers")]
    subprocess.run(command, check=True, timeout=60)
    users = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    assert [("mirror", "/var/lib/mirror", "/usr/sbin/nologin")] == [(one[0], one[5], one[6]) for one in users]
    assert "\nUser=mirror\n" in (SYSTEMD / "mirror.service").read_text()


def test_the_documentation_shows_the_entry_for_cron() -> None:
    entry = [line for line in CRON.read_text().splitlines() if not line.startswith("#")]
    assert "\n".join(["```cron", *entry, "```"]) in OPERATIONS.read_text()


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (3, 3), (75, 0)])
def test_the_entry_for_cron_fails_unless_the_run_succeeded_or_another_one_is_in_progress(
    tmp_path: Path, code: int, expected: int
) -> None:
    (program := tmp_path / "mirror").write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    (command,) = re.findall(rf"^\S+ \S+ \S+ \S+ \S+  mirror  ({PROGRAM} .*)", CRON.read_text(), re.MULTILINE)
    done = subprocess.run(["/bin/sh", "-c", command.replace(PROGRAM, str(program))], timeout=60, check=False)
    assert expected == done.returncode
