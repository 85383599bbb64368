"""What processes cost: command lines that are run for the measurement, and servers that run beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """wall, cpu: seconds, of all commands together. memory: peak of the largest process, bytes. code: the last one."""

    wall: float
    cpu: float
    memory: int
    code: int


def run(
    commands: Sequence[Sequence[str]],
    *,
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    timeout: float,
    go_on: bool = False,
) -> Cost:
    """Run command lines one after the other, up to the first that fails, or all (`go_on`).

    out: what they say is appended there. timeout: seconds for all; then they are killed, and the code is -SIGKILL."""
    order = json.dumps({"commands": [list(command) for command in commands], "out": str(out), "go_on": go_on})
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_LAUNCH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=dict(environment),
        start_new_session=True,
    ) as launcher:
        try:
            said, _ = launcher.communicate(order, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(launcher)
            return Cost(timeout, 0, 0, -signal.SIGKILL)
        except BaseException:
            _kill(launcher)
            raise
    if launcher.returncode:
        raise RuntimeError(f"not started: {commands[0][0]}")
    found = json.loads(said)
    code = next((code for code in found["codes"] if code), 0)
    return Cost(found["wall"], found["cpu"], found["memory"], code)


def _kill(launcher: subprocess.Popen[str]) -> None:
    """The launcher and all that it started are one process group."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()


def cpu_of(pid: int) -> float:
    """CPU seconds that a running process has used, all its threads together: proc(5), /proc/PID/stat, 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
