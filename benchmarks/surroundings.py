"""Describes the machine, and the versions of the measured software."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.tools import Tool


def machine() -> Mapping[str, str]:
    """Return properties of the machine by name, such as its processor and the current load average."""
    return {
        "processor": _proc_value("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int((_proc_value('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def versions(tools: Iterable[Tool]) -> Mapping[str, str]:
    """Return the versions of the installed tools, the interpreter and the registry."""
    found = {tool.name: tool.version() for tool in tools if tool.program()}
    printed = subprocess.run(["docker-registry", "--version"], capture_output=True, text=True, check=True, timeout=30)
    return {**found, "python": platform.python_version(), "docker-registry": printed.stdout.split()[-1]}


def _proc_value(file: str, name: str) -> str:
    """Return the value of the first line `name : value` in a file of /proc; empty if there is none."""
    found = re.search(rf"^{name}\s*:\s*(.+)$", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""
