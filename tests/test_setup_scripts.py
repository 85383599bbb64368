"""The scripts that set a machine up, run with stand-ins for the programs that would change the machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEED = ROOT / "tools" / "need.sh"

# `install` leaves the programs named in $INSTALLS in the folder; each call is written down.
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
    """A PATH of its own. calls: what was asked of apt-get and sudo."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def has(self, program: str, script: str = "#!/bin/sh\n") -> None:
        path = self.folder / "bin" / program
        path.write_text(script)
        path.chmod(0o755)

    def need(self, *items: str, **settings: str) -> subprocess.CompletedProcess[str]:
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
    """A machine with apt-get whose user is root."""
    (tmp_path / "bin").mkdir()
    made = Machine(tmp_path)
    made.has("apt-get", APT_GET)
    made.has("id", "#!/bin/sh\necho 0\n")
    made.has("env", '#!/bin/sh\nexec /usr/bin/env "$@"\n')
    return made


def test_nothing_is_touched_where_every_program_is_there(machine: Machine) -> None:
    machine.has("skopeo")
    assert 0 == machine.need("skopeo").returncode
    assert [] == machine.calls


def test_only_what_is_missing_is_installed_and_by_its_package_name(machine: Machine) -> None:
    machine.has("skopeo")
    done = machine.need("skopeo", "htpasswd:apache2-utils", INSTALLS="htpasswd")
    assert 0 == done.returncode, done.stderr
    assert ["apt-get install -y -q --no-install-recommends apache2-utils"] == machine.calls


def test_the_package_lists_are_renewed_where_the_first_try_fails(machine: Machine) -> None:
    done = machine.need("skopeo", INSTALLS="skopeo", STALE="yes")
    assert 0 == done.returncode, done.stderr
    install = "apt-get install -y -q --no-install-recommends skopeo"
    assert [install, "apt-get update -q", install] == machine.calls


def test_root_is_asked_for_by_sudo_without_a_question_where_there_is_no_terminal(machine: Machine) -> None:
    machine.has("id", "#!/bin/sh\necho 1000\n")
    machine.has("sudo", SUDO)
    machine.has("true")
    done = machine.need("skopeo", INSTALLS="skopeo")
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
def test_what_to_do_by_hand_is_said_where_nothing_can_be_installed(
    machine: Machine, missing: str, settings: dict[str, str], says: str
) -> None:
    machine.has("id", "#!/bin/sh\necho 1000\n")
    machine.has("sudo", SUDO)
    if missing:
        (machine.folder / "bin" / missing).unlink()
    done = machine.need("skopeo", "htpasswd:apache2-utils", **settings)
    assert 1 == done.returncode
    assert says in done.stderr
    assert "Install these packages by hand, then run make again: skopeo apache2-utils" in done.stderr
    assert [] == [call for call in machine.calls if "install" in call]


def test_a_program_that_its_package_does_not_bring_is_an_error(machine: Machine) -> None:
    done = machine.need("skopeo")
    assert 1 == done.returncode
    assert "skopeo is still not on PATH" in done.stderr
