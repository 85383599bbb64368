"""The setup scripts, run with stand-ins for the programs that would change the machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEED = ROOT / "tools" / "need.sh"

# `install` creates the programs in $INSTALLS in the folder; each call is recorded.
APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$CALLS"
case "$1" in
update) : >"$CALLS.updated" ;;
install)
    [ -z "$STALE" ] || [ -e "$CALLS.updated" ] || exit 100
    for program in $INSTALLS; do printf '#!/bin/sh\\n' >"$BIN/$program"; /bin/chmod +x "$BIN/$program"; done ;;
esac
"""
SUDO = """#!/bin/sh
echo "sudo $*" >>"$CALLS"
[ "$1" != -n ] || shift
[ -z "$REFUSES" ] || exit 1
[ "$1" = true ] || exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A PATH of its own. calls: the recorded calls of apt-get and sudo."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def add_program(self, program: str, script: str = "#!/bin/sh\n") -> None:
        path = self.folder / "bin" / program
        path.write_text(script)
        path.chmod(0o755)

    def run_need(self, *items: str, **settings: str) -> subprocess.CompletedProcess[str]:
        binaries = self.folder / "bin"
        defaults = {"PATH": str(binaries), "BIN": str(binaries), "CALLS": str(self.folder / "calls")}
        environment = defaults | {"INSTALLS": "", "STALE": "", "REFUSES": ""} | settings
        return subprocess.run(
            ["/bin/sh", str(NEED), *items],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with apt-get whose user is root."""
    (tmp_path / "bin").mkdir()
    created = Machine(tmp_path)
    created.add_program("apt-get", APT_GET)
    created.add_program("id", "#!/bin/sh\necho 0\n")
    created.add_program("env", '#!/bin/sh\nexec /usr/bin/env "$@"\n')
    return created


def test_nothing_is_installed_if_all_programs_exist(machine: Machine) -> None:
    machine.add_program("skopeo")
    assert 0 == machine.run_need("skopeo").returncode
    assert [] == machine.calls


def test_only_missing_programs_are_installed_by_their_package_names(machine: Machine) -> None:
    machine.add_program("skopeo")
    done = machine.run_need("skopeo", "htpasswd:apache2-utils", INSTALLS="htpasswd")
    assert 0 == done.returncode, done.stderr
    assert ["apt-get install -y -q --no-install-recommends apache2-utils"] == machine.calls


def test_the_package_lists_are_updated_if_the_first_attempt_fails(machine: Machine) -> None:
    done = machine.run_need("skopeo", INSTALLS="skopeo", STALE="yes")
    assert 0 == done.returncode, done.stderr
    install = "apt-get install -y -q --no-install-recommends skopeo"
    assert [install, "apt-get update -q", install] == machine.calls


def test_sudo_does_not_ask_for_a_password_without_a_terminal(machine: Machine) -> None:
    machine.add_program("id", "#!/bin/sh\necho 1000\n")
    machine.add_program("sudo", SUDO)
    machine.add_program("true")
    done = machine.run_need("skopeo", INSTALLS="skopeo")
    assert 0 == done.returncode, done.stderr
    assert "sudo -n true" == machine.calls[0]
    assert "apt-get install -y -q --no-install-recommends skopeo" == machine.calls[-1]


@pytest.mark.parametrize(
    ("missing", "settings", "says"),
    [
        ("apt-get", {}, "no apt-get"),
        ("sudo", {}, "no sudo"),
        ("", {"REFUSES": "yes"}, "sudo refused"),
    ],
)
def test_the_manual_steps_are_printed_if_nothing_can_be_installed(
    machine: Machine, missing: str, settings: dict[str, str], says: str
) -> None:
    machine.add_program("id", "#!/bin/sh\necho 1000\n")
    machine.add_program("sudo", SUDO)
    if missing:
        (machine.folder / "bin" / missing).unlink()
    done = machine.run_need("skopeo", "htpasswd:apache2-utils", **settings)
    assert 1 == done.returncode
    assert says in done.stderr
    assert "Install these packages by hand, then run make again: skopeo apache2-utils" in done.stderr
    assert [] == [call for call in machine.calls if "install" in call]


def test_a_program_missing_from_its_package_is_an_error(machine: Machine) -> None:
    done = machine.run_need("skopeo")
    assert 1 == done.returncode
    assert "skopeo is still not on PATH" in done.stderr
