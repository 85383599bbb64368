"""Measures the cost of command lines, and the CPU time of servers that run at the same time."""

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
    """The total cost of several command lines.

    wall, cpu: seconds. memory: peak memory of the largest process, in bytes. code: the first exit code that is not 0,
    or 0."""

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
    continue_on_error: bool = False,
) -> Cost:
    """Run command lines one after another and return their cost. Stop after the first that fails, unless
    `continue_on_error` is set.

    out: the file to which the output of the commands is appended. timeout: seconds for all commands together; when it
    expires, the commands are killed, and the exit code is -SIGKILL. Raises RuntimeError if a command cannot be
    started."""
    lines = [list(command) for command in commands]
    task = json.dumps({"commands": lines, "out": str(out), "continue_on_error": continue_on_error})
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
            output, _ = launcher.communicate(task, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(launcher)
            return Cost(timeout, 0, 0, -signal.SIGKILL)
        except BaseException:
            _kill(launcher)
            raise
    if launcher.returncode:
        raise RuntimeError(f"{commands[0][0]} could not be started")
    result = json.loads(output)
    code = next((code for code in result["codes"] if code), 0)
    return Cost(result["wall"], result["cpu"], result["memory"], code)


def _kill(launcher: subprocess.Popen[str]) -> None:
    """Kill the launcher and all processes that it started, which form one process group."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that all threads of a running process have used so far.

    Source: proc(5), /proc/PID/stat, fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
